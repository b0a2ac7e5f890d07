//! Some members, their disks and a network, in memory.

use super::super::*;

/// A disk that forgets what it was not told to keep.
#[derive(Clone, Default)]
pub(super) struct Disk {
    pub(super) restored: Restored,
    /// What an application holds: everything that was applied, by index.
    pub(super) image: BTreeMap<u64, Bytes>,
}

impl Disk {
    pub(super) fn of(voters: &[u64]) -> Self {
        let members = Members { voters: voters.to_vec(), ..Members::default() };
        Self { restored: Restored { members, ..Restored::default() }, image: BTreeMap::new() }
    }
}

pub(super) struct Member {
    pub(super) consensus: Consensus,
    pub(super) disk: Disk,
    pub(super) applied: Position,
    pub(super) members: Members,
    pub(super) state: BTreeMap<u64, Bytes>,
    pub(super) done: Vec<u64>,
    pub(super) lost: Vec<u64>,
    pub(super) refused: Vec<(u64, Refusal)>,
    pub(super) read: Vec<(u64, u64)>,
    pub(super) roles: Vec<Role>,
    pub(super) forgot: bool,
    pub(super) installed: Vec<Position>,
    /// Nothing gets durable as long as this is set.
    pub(super) slow_disk: bool,
    unsynced: VecDeque<Out>,
}

/// What is on its way.
#[derive(Clone)]
pub(super) enum Mail {
    Message(Bytes),
    Image { message: Bytes, position: Position, members: Members, state: BTreeMap<u64, Bytes> },
}

pub(super) struct Net {
    pub(super) members: BTreeMap<u64, Member>,
    pub(super) now: Time,
    /// Ways that lose everything.
    pub(super) cut: Vec<(u64, u64)>,
    /// Everything arrives twice, and the second time late.
    pub(super) doubles: bool,
    late: VecDeque<(u64, u64, Mail)>,
    mail: VecDeque<(u64, u64, Mail)>,
    pub(super) images_sent: usize,
    lives: u64,
    pub(super) witness: Option<u64>,
    pub(super) lag_max: LagMax,
}

impl Net {
    /// Members that vote from the beginning.
    pub(super) fn of(voters: &[u64]) -> Self {
        let mut net = Self {
            members: BTreeMap::new(),
            now: Time::from_ms(0),
            cut: Vec::new(),
            doubles: false,
            late: VecDeque::new(),
            mail: VecDeque::new(),
            images_sent: 0,
            lives: 0,
            witness: None,
            lag_max: LagMax::default(),
        };
        for id in voters {
            net.start(*id, Disk::of(voters));
        }
        net
    }

    pub(super) fn start(&mut self, id: u64, disk: Disk) {
        self.lives += 1;
        let config = Config {
            member: id,
            incarnation: self.lives,
            seed: 7,
            tick_ms: 100,
            witness: self.witness == Some(id),
            lag_max: self.lag_max,
        };
        let consensus = Consensus::new(config, disk.restored.clone()).unwrap();
        let (applied, members) = (disk.restored.applied, disk.restored.members.clone());
        let state = disk.image.clone();
        let (done, lost, refused, read, roles, installed, unsynced) = Default::default();
        let (forgot, slow_disk) = (false, false);
        let member = Member {
            consensus,
            disk,
            applied,
            members,
            state,
            done,
            lost,
            refused,
            read,
            roles,
            forgot,
            installed,
            slow_disk,
            unsynced,
        };
        self.members.insert(id, member);
        self.wake(id);
    }

    /// Stops a member; gives its disk.
    pub(super) fn stop(&mut self, id: u64) -> Disk {
        self.members.remove(&id).unwrap().disk
    }

    pub(super) fn member(&mut self, id: u64) -> &mut Member {
        self.members.get_mut(&id).unwrap()
    }

    pub(super) fn wake(&mut self, id: u64) {
        let now = self.now;
        let mut out = Vec::new();
        self.member(id).consensus.wake(now, &mut out);
        self.act(id, out);
    }

    pub(super) fn give(&mut self, id: u64, input: In) {
        let now = self.now;
        let mut out = Vec::new();
        self.member(id).consensus.handle(now, input, &mut out);
        self.act(id, out);
    }

    pub(super) fn propose(&mut self, id: u64, proposals: std::ops::Range<u64>) {
        let entry = |n: u64| (ProposalId(n), Bytes::from(format!("entry {n}")));
        self.give(id, In::Propose(proposals.map(entry).collect()));
    }

    pub(super) fn change(&mut self, id: u64, proposal: u64, changes: &[MemberChange]) {
        self.give(id, In::ChangeMembers(ProposalId(proposal), changes.to_vec()));
    }

    pub(super) fn act(&mut self, id: u64, out: Vec<Out>) {
        let mut wishes = VecDeque::from(out);
        while let Some(wish) = wishes.pop_front() {
            let more = self.act_one(id, wish);
            wishes.extend(more);
        }
    }

    fn act_one(&mut self, id: u64, wish: Out) -> Vec<Out> {
        let (now, mut more) = (self.now, Vec::new());
        let member = self.members.get_mut(&id).unwrap();
        match wish {
            Out::Persist(_) if member.slow_disk => member.unsynced.push_back(wish),
            Out::Persist(persist) => {
                let number = persist.number;
                member.keep(persist);
                member.consensus.handle(now, In::Persisted(number), &mut more);
            }
            Out::Install(_) => panic!("an image is installed where it arrives"),
            Out::Commit(entries) => {
                let index = entries.last().unwrap().index;
                for entry in entries {
                    member.apply(entry);
                }
                member.consensus.handle(now, In::Applied(index), &mut more);
            }
            Out::Send(messages) => {
                self.mail.extend(messages.into_iter().map(|m| (id, m.to, Mail::Message(m.bytes))));
            }
            Out::SendSnapshot { to, message } => {
                let (position, members, state) = (member.applied, member.members.clone(), member.state.clone());
                self.images_sent += 1;
                self.mail.push_back((id, to, Mail::Image { message, position, members, state }));
            }
            Out::ReadReady(read) => member.read.push((read.0, member.applied.index)),
            Out::Lost { proposals, reads } => {
                member.lost.extend(proposals.iter().map(|id| id.0).chain(reads.iter().map(|id| id.0)));
            }
            Out::Refused(proposal, why) => member.refused.push((proposal.0, why)),
            Out::Role { role, .. } => member.roles.push(role),
            Out::Forgot { .. } => member.forgot = true,
        }
        more
    }

    /// Lets the disk catch up.
    pub(super) fn sync(&mut self, id: u64) {
        let member = self.member(id);
        member.slow_disk = false;
        let wishes = std::mem::take(&mut member.unsynced);
        self.act(id, wishes.into());
    }

    /// Delivers until nothing is on its way.
    pub(super) fn deliver(&mut self) {
        for _ in 0..10_000 {
            let Some((from, to, mail)) = self.mail.pop_front() else { return };
            if self.doubles {
                self.late.push_back((from, to, mail.clone()));
            }
            self.deliver_one(from, to, mail);
        }
        panic!("the members never stop talking");
    }

    fn deliver_one(&mut self, from: u64, to: u64, mail: Mail) {
        let arrives = !self.cut.contains(&(from, to)) && self.members.contains_key(&to);
        match mail {
            Mail::Message(bytes) if arrives => self.give(to, In::Message(bytes)),
            Mail::Message(_) => {}
            Mail::Image { message, position, members, state } => {
                if arrives {
                    self.install(to, message, position, members, state);
                }
                if self.members.contains_key(&from) {
                    self.give(from, In::SnapshotSent { to, ok: arrives });
                }
            }
        }
    }

    fn install(&mut self, to: u64, message: Bytes, position: Position, members: Members, state: BTreeMap<u64, Bytes>) {
        let now = self.now;
        let member = self.member(to);
        let mut out = Vec::new();
        member.consensus.handle(now, In::Snapshot { message, position, members }, &mut out);
        let mut more = Vec::new();
        out.retain(|wish| {
            let Out::Install(install) = wish else { return true };
            assert_eq!(install.position, position);
            member.install(install, &state);
            member.consensus.handle(now, In::Persisted(install.number), &mut more);
            false
        });
        out.extend(more);
        self.act(to, out);
    }

    /// Lets time pass, 50 ms a step.
    pub(super) fn pass(&mut self, ms: u64) {
        for _ in 0..ms / 50 {
            self.now = self.now + 50;
            for id in self.members.keys().copied().collect::<Vec<_>>() {
                self.wake(id);
            }
            let late = std::mem::take(&mut self.late);
            self.deliver();
            for (from, to, mail) in late {
                self.deliver_one(from, to, mail);
            }
            self.deliver();
        }
    }

    /// Lets time pass until `done`; a minute at most.
    pub(super) fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        for _ in 0..1_200 {
            if done(self) {
                return;
            }
            self.pass(50);
        }
        panic!("it never comes to this: {what}");
    }

    pub(super) fn leader(&self) -> Option<u64> {
        let leads = self.members.iter().filter(|(_, member)| member.consensus.role() == Role::Leader);
        leads.max_by_key(|(_, member)| member.consensus.term()).map(|(id, _)| *id)
    }

    pub(super) fn elect(&mut self) -> u64 {
        self.until("someone leads and all follow", |net| {
            let leader = net.leader();
            leader.is_some() && net.members.values().all(|member| member.consensus.leader() == leader)
        });
        self.leader().unwrap()
    }

    pub(super) fn isolate(&mut self, id: u64) {
        for other in self.members.keys().filter(|other| **other != id) {
            self.cut.extend([(id, *other), (*other, id)]);
        }
    }

    /// The members hold the same, and each of the entries once.
    pub(super) fn check(&self) {
        for pair in self.members.values().collect::<Vec<_>>().windows(2) {
            let common = pair[0].applied.index.min(pair[1].applied.index);
            assert!(pair[0].state.range(..=common).eq(pair[1].state.range(..=common)), "two members differ");
        }
        for member in self.members.values() {
            let mut entries: Vec<&Bytes> = member.state.values().filter(|data| !data.is_empty()).collect();
            let count = entries.len();
            entries.sort();
            entries.dedup();
            assert_eq!(entries.len(), count, "an entry is there twice");
        }
    }
}

impl Member {
    fn keep(&mut self, persist: Persist) {
        let restored = &mut self.disk.restored;
        if let Some(first) = persist.entries.first() {
            restored.entries.retain(|entry| entry.index < first.index);
        }
        restored.entries.extend(persist.entries);
        restored.hard_state = persist.hard_state;
    }

    fn apply(&mut self, entry: Committed) {
        assert_eq!(entry.index, self.applied.index + 1, "no entry is left out");
        self.applied = Position { index: entry.index, term: entry.term };
        self.members = entry.members.unwrap_or_else(|| self.members.clone());
        self.state.insert(entry.index, entry.data);
        self.done.extend(entry.id.map(|id| id.0));
    }

    fn install(&mut self, install: &Install, state: &BTreeMap<u64, Bytes>) {
        (self.applied, self.members, self.state) = (install.position, install.members.clone(), state.clone());
        self.installed.push(install.position);
        self.flush();
        self.disk.restored.entries.clear();
        self.disk.restored.hard_state = install.hard_state;
    }

    /// Keeps the state, and not the log that led to it.
    pub(super) fn flush(&mut self) {
        self.disk.image = self.state.clone();
        let restored = &mut self.disk.restored;
        (restored.applied, restored.members) = (self.applied, self.members.clone());
        restored.entries.retain(|entry| entry.index > self.applied.index);
    }

    pub(super) fn holds(&self, n: u64) -> bool {
        let wanted = Bytes::from(format!("entry {n}"));
        self.state.values().any(|data| *data == wanted)
    }
}
