use super::*;

/// A member with a disk that forgets what it was not told to keep.
struct Member {
    consensus: Consensus,
    disk: Restored,
    applied: Vec<Committed>,
    mail: Vec<Message>,
    lost: Vec<ProposalId>,
    read: Vec<ReadId>,
    now: Time,
}

impl Member {
    fn start(member: u64, disk: Restored) -> Self {
        let config = Config { member, seed: 7, tick_ms: 100 };
        let consensus = Consensus::new(config, disk.clone()).unwrap();
        let (applied, mail, lost, read) = Default::default();
        let mut this = Self { consensus, disk, applied, mail, lost, read, now: Time::from_ms(0) };
        this.pass(0);
        this
    }

    fn pass(&mut self, ms: u64) {
        self.now = self.now + ms;
        let mut out = Vec::new();
        self.consensus.wake(self.now, &mut out);
        self.act(out);
    }

    fn give(&mut self, input: In) {
        let mut out = Vec::new();
        self.consensus.handle(self.now, input, &mut out);
        self.act(out);
    }

    fn act(&mut self, out: Vec<Out>) {
        let mut wishes = VecDeque::from(out);
        while let Some(wish) = wishes.pop_front() {
            let mut more = Vec::new();
            match wish {
                Out::Persist(persist) => {
                    if let Some(first) = persist.entries.first() {
                        self.disk.entries.retain(|entry| entry.index < first.index);
                    }
                    self.disk.entries.extend(persist.entries);
                    self.disk.hard_state = persist.hard_state;
                    self.consensus.handle(self.now, In::Persisted(persist.number), &mut more);
                }
                Out::Commit(entries) => {
                    let last = entries.last().unwrap().index;
                    self.applied.extend(entries);
                    self.consensus.handle(self.now, In::Applied(last), &mut more);
                }
                Out::Send(messages) => self.mail.extend(messages),
                Out::Lost { proposals, .. } => self.lost.extend(proposals),
                Out::ReadReady(id) => self.read.push(id),
                Out::Role { .. } => {}
            }
            wishes.extend(more);
        }
    }

    fn propose(&mut self, ids: std::ops::Range<u64>) {
        let proposals = ids.map(|id| (ProposalId(id), Bytes::from(format!("entry {id}")))).collect();
        self.give(In::Propose(proposals));
    }

    fn ids(&self) -> Vec<u64> {
        self.applied.iter().filter_map(|entry| entry.id).map(|id| id.0).collect()
    }
}

fn alone() -> Restored {
    Restored { voters: vec![1], ..Restored::default() }
}

#[test]
fn a_single_member_leads_at_once_and_then_needs_no_clock() {
    let mut member = Member::start(1, alone());
    assert_eq!(member.consensus.role(), Role::Leader);
    assert_eq!(member.consensus.next_wake(), None);
    member.propose(1..4);
    assert_eq!(member.ids(), [1, 2, 3]);
    assert_eq!(member.applied.iter().map(|entry| entry.index).collect::<Vec<_>>(), [1, 2, 3, 4]);
    member.give(In::ReadIndex(ReadId(9)));
    assert_eq!(member.read, [ReadId(9)]);
}

#[test]
fn nothing_is_committed_before_the_disk_has_it() {
    let mut member = Member::start(1, alone());
    let mut out = Vec::new();
    member.consensus.handle(member.now, In::Propose(vec![(ProposalId(1), Bytes::from_static(b"x"))]), &mut out);
    let [Out::Persist(persist)] = &out[..] else { panic!("only a persist is wished for: {out:?}") };
    let number = persist.number;
    assert_eq!(persist.entries.len(), 1);
    assert!(member.ids().is_empty());
    member.give(In::Persisted(number));
    assert_eq!(member.ids(), [1]);
}

#[test]
fn a_restarted_member_applies_what_it_had_persisted() {
    let mut first = Member::start(1, alone());
    first.propose(1..6);
    let mut second = Member::start(1, first.disk.clone());
    let data = |member: &Member| -> Vec<Bytes> {
        member.applied.iter().map(|entry| entry.data.clone()).filter(|data| !data.is_empty()).collect()
    };
    assert_eq!(data(&first), data(&second));
    assert!(second.ids().is_empty(), "ids of another run mean nothing");
    assert!(second.consensus.term() > first.consensus.term());
    // From the middle, as after a flush of the state.
    let mut disk = first.disk.clone();
    disk.applied = Position { index: 4, term: disk.entries[3].term };
    disk.entries.drain(..4);
    let third = Member::start(1, disk);
    assert_eq!(data(&third), data(&first)[3..]);
    second.propose(7..8);
    assert_eq!(second.ids(), [7]);
}

#[test]
fn a_log_with_a_hole_is_refused() {
    let mut disk = alone();
    disk.entries = vec![Entry { index: 3, term: 1, data: Bytes::new() }];
    let config = Config { member: 1, seed: 1, tick_ms: 100 };
    assert_eq!(Consensus::new(config.clone(), disk).err(), Some(StartError::Gap { expected: 1, found: 3 }));
    assert!(matches!(Consensus::new(config, Restored::default()), Err(StartError::Config(_))));
}

fn deliver(members: &mut [Member], reachable: &[u64]) {
    for _ in 0..100 {
        let mut mail = Vec::new();
        for (from, member) in (1..).zip(members.iter_mut()) {
            mail.extend(member.mail.drain(..).map(|message| (from, message)));
        }
        mail.retain(|(from, message)| reachable.contains(from) && reachable.contains(&message.to));
        if mail.is_empty() {
            return;
        }
        for (_, message) in mail {
            members[message.to as usize - 1].give(In::Message(message.bytes));
        }
    }
}

#[test]
fn three_members_elect_replicate_and_replace_a_leader() {
    let disk = Restored { voters: vec![1, 2, 3], ..Restored::default() };
    let run = || {
        let mut members: Vec<Member> = (1..=3).map(|id| Member::start(id, disk.clone())).collect();
        let mut trace = Vec::new();
        let step = |members: &mut Vec<Member>, reachable: &[u64], trace: &mut Vec<_>| {
            members.iter_mut().for_each(|member| member.pass(100));
            deliver(members, reachable);
            trace.push(
                members.iter().map(|member| (member.consensus.role(), member.consensus.term())).collect::<Vec<_>>(),
            );
        };
        let leader = |members: &[Member], among: &[u64]| {
            among.iter().copied().find(|id| members[*id as usize - 1].consensus.role() == Role::Leader)
        };
        while leader(&members, &[1, 2, 3]).is_none() {
            step(&mut members, &[1, 2, 3], &mut trace);
        }
        let first = leader(&members, &[1, 2, 3]).unwrap();
        members[first as usize - 1].propose(1..4);
        deliver(&mut members, &[1, 2, 3]);
        assert_eq!(members[first as usize - 1].ids(), [1, 2, 3]);

        let others: Vec<u64> = (1..=3).filter(|id| *id != first).collect();
        members[first as usize - 1].propose(10..12);
        while leader(&members, &others).is_none() {
            step(&mut members, &others, &mut trace);
        }
        let second = leader(&members, &others).unwrap();
        members[second as usize - 1].propose(20..22);
        deliver(&mut members, &others);
        for _ in 0..40 {
            step(&mut members, &[1, 2, 3], &mut trace);
        }
        assert_eq!(members[first as usize - 1].lost, [ProposalId(10), ProposalId(11)]);
        let logs: Vec<Vec<Bytes>> =
            members.iter().map(|member| member.applied.iter().map(|entry| entry.data.clone()).collect()).collect();
        assert_eq!(logs[0], logs[1]);
        assert_eq!(logs[0], logs[2]);
        assert!(logs[0].contains(&Bytes::from_static(b"entry 21")));
        trace
    };
    assert_eq!(run(), run(), "a seed replays");
}

#[test]
fn damaged_messages_are_dropped() {
    let mut member = Member::start(1, alone());
    for bytes in [&b""[..], b"\xff\xff\xff", b"\x08\x01\x10\x01", b"\x08\x07", b"\x08\x00"] {
        member.give(In::Message(Bytes::copy_from_slice(bytes)));
    }
    member.propose(1..2);
    assert_eq!(member.ids(), [1]);
}
