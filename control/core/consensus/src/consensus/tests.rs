mod members;
mod net;

use super::*;
use crate::tail::Entry;
use net::{Disk, Net};

#[test]
fn a_single_member_leads_at_once_and_then_needs_no_clock() {
    let mut net = Net::of(&[1]);
    assert_eq!(net.member(1).consensus.role(), Role::Leader);
    assert_eq!(net.member(1).consensus.next_wake(), None);
    net.propose(1, 1..4);
    assert_eq!(net.member(1).done, [1, 2, 3]);
    assert_eq!(net.member(1).state.keys().copied().collect::<Vec<_>>(), [1, 2, 3, 4]);
    net.give(1, In::ReadIndex(ReadId(9)));
    assert_eq!(net.member(1).read, [(9, 4)]);
    assert_eq!(net.member(1).consensus.next_wake(), None);
}

#[test]
fn nothing_is_committed_before_the_disk_has_it() {
    let mut net = Net::of(&[1]);
    net.member(1).slow_disk = true;
    net.propose(1, 1..3);
    net.propose(1, 3..4);
    assert!(net.member(1).done.is_empty());
    net.sync(1);
    assert_eq!(net.member(1).done, [1, 2, 3]);
}

#[test]
fn a_quorum_of_disks_is_enough_and_no_less() {
    let mut net = Net::of(&[1, 2, 3]);
    let leader = net.elect();
    let others: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
    others.iter().for_each(|id| net.member(*id).slow_disk = true);
    net.propose(leader, 1..3);
    net.deliver();
    assert!(net.member(leader).done.is_empty(), "its own disk is one of three");
    net.sync(others[0]);
    net.deliver();
    assert_eq!(net.member(leader).done, [1, 2]);
    // The leader hears of a commit without its own disk, and hands it out when its disk has it.
    net.member(leader).slow_disk = true;
    net.sync(others[1]);
    net.propose(leader, 3..4);
    net.deliver();
    assert_eq!(net.member(leader).done, [1, 2]);
    net.sync(leader);
    assert_eq!(net.member(leader).done, [1, 2, 3]);
}

#[test]
fn a_restarted_member_applies_what_it_had_persisted() {
    let mut net = Net::of(&[1]);
    net.propose(1, 1..6);
    let before = net.member(1).state.clone();
    let term = net.member(1).consensus.term();
    let disk = net.stop(1);
    net.start(1, disk.clone());
    assert!(before.iter().all(|(index, data)| net.members[&1].state.get(index) == Some(data)));
    assert!(net.member(1).done.is_empty(), "ids of another life mean nothing");
    assert!(net.member(1).consensus.term() > term);
    // From the middle, as after a flush of the state.
    let mut disk = disk;
    disk.restored.applied = Position { index: 4, term: disk.restored.entries[3].term };
    disk.restored.entries.drain(..4);
    disk.image = before.range(..=4).map(|(index, data)| (*index, data.clone())).collect();
    net.start(1, disk);
    assert!(before.iter().all(|(index, data)| net.members[&1].state.get(index) == Some(data)));
    net.propose(1, 7..8);
    assert_eq!(net.member(1).done, [7]);
}

fn config(member: u64) -> Config {
    Config { member, incarnation: 1, seed: 1, tick_ms: 100, witness: false, lag_max: LagMax::default() }
}

#[test]
fn a_log_with_a_hole_is_refused_and_one_that_an_image_replaced_is_void() {
    let entry =
        |index, term| Entry { index, term, kind: EntryKind::Normal, tag: Bytes::new(), data: Bytes::from_static(b"x") };
    let restored =
        |index, term, entries| Restored { applied: Position { index, term }, entries, ..Disk::of(&[1, 2, 3]).restored };
    let hole = Consensus::new(config(1), restored(0, 0, vec![entry(3, 1)]));
    assert_eq!(hole.err(), Some(StartError::Gap { expected: 1, found: 3 }));
    let hole = Consensus::new(config(1), restored(4, 2, vec![entry(5, 2), entry(7, 2)]));
    assert_eq!(hole.err(), Some(StartError::Gap { expected: 6, found: 7 }));
    let whole = Consensus::new(config(1), restored(4, 2, vec![entry(5, 2), entry(6, 2)])).unwrap();
    assert_eq!(whole.last(), Position { index: 6, term: 2 });
    let void = Consensus::new(config(1), restored(4, 2, vec![entry(5, 1), entry(6, 1)])).unwrap();
    assert_eq!(void.last(), Position { index: 4, term: 2 });
    assert!(matches!(Consensus::new(config(0), Restored::default()), Err(StartError::Config(_))));
}

#[test]
fn three_members_elect_replicate_and_replace_a_leader() {
    let run = || {
        let mut net = Net::of(&[1, 2, 3]);
        let first = net.elect();
        net.propose(first, 1..4);
        net.deliver();
        assert_eq!(net.member(first).done, [1, 2, 3]);
        net.isolate(first);
        net.until("another one leads", |net| net.leader() != Some(first));
        let second = net.leader().unwrap();
        net.propose(second, 20..22);
        net.deliver();
        net.cut.clear();
        net.pass(4_000);
        assert_eq!(net.elect(), second, "who comes back does not disturb");
        net.check();
        assert!(net.members.values().all(|member| member.holds(21)));
        let roles: Vec<Vec<Role>> = net.members.values().map(|member| member.roles.clone()).collect();
        (roles, net.now)
    };
    assert_eq!(run(), run(), "a seed replays");
}

#[test]
fn a_proposal_is_taken_on_any_member_and_answered_there() {
    let mut net = Net::of(&[1, 2, 3]);
    let leader = net.elect();
    let follower = if leader == 1 { 2 } else { 1 };
    net.propose(follower, 1..4);
    net.deliver();
    assert_eq!(net.member(follower).done, [1, 2, 3]);
    assert!(net.member(leader).done.is_empty());
    // Its own write is seen by its own read, at once.
    net.give(follower, In::ReadIndex(ReadId(8)));
    net.give(leader, In::ReadIndex(ReadId(9)));
    net.deliver();
    assert_eq!(net.member(follower).read, [(8, 4)]);
    assert_eq!(net.member(leader).read, [(9, 4)]);
}

#[test]
fn what_arrives_twice_and_late_is_done_once() {
    let mut net = Net::of(&[1, 2, 3]);
    let leader = net.elect();
    net.doubles = true;
    for round in 0..20 {
        for id in 1..=3 {
            net.propose(id, 100 * round + 10 * id..100 * round + 10 * id + 3);
            net.give(id, In::ReadIndex(ReadId(1_000_000 + 10 * round + id)));
        }
        net.pass(100);
    }
    net.pass(1_000);
    net.check();
    assert_eq!(net.leader(), Some(leader));
    for member in net.members.values() {
        assert_eq!((member.done.len(), member.read.len(), member.lost.len()), (60, 20, 0));
    }
}

#[test]
fn a_proposal_whose_message_is_lost_is_sent_again() {
    let mut net = Net::of(&[1, 2, 3]);
    let leader = net.elect();
    let follower = if leader == 1 { 2 } else { 1 };
    net.cut.push((follower, leader));
    net.propose(follower, 1..3);
    net.deliver();
    net.cut.clear();
    net.pass(1_500);
    assert_eq!(net.member(follower).done, [1, 2]);
    // And if only the answer is late, it is not done twice.
    let other = 6 - leader - follower;
    [follower, other].into_iter().for_each(|id| net.member(id).slow_disk = true);
    net.propose(follower, 3..4);
    net.pass(2_500);
    [follower, other].into_iter().for_each(|id| net.sync(id));
    net.pass(500);
    assert_eq!(net.member(follower).done, [1, 2, 3]);
    net.check();
}

#[test]
fn proposals_without_a_leader_wait_for_the_next() {
    let mut net = Net::of(&[1, 2, 3]);
    let first = net.elect();
    let follower = if first == 1 { 2 } else { 1 };
    // The leader appends them and dies; nobody else ever sees them.
    net.cut.extend((1..=3).map(|to| (first, to)));
    net.propose(follower, 1..3);
    net.deliver();
    let disk = net.stop(first);
    net.propose(follower, 3..4);
    net.give(follower, In::ReadIndex(ReadId(9)));
    net.cut.clear();
    net.until("the proposals are done", |net| net.members[&follower].done.len() == 3);
    let member = net.member(follower);
    assert!(member.lost.is_empty() && member.refused.is_empty());
    net.until("the read is answered", |net| !net.members[&follower].read.is_empty());
    net.start(first, disk);
    net.pass(2_000);
    net.check();
}

#[test]
fn a_leader_that_is_cut_off_serves_nothing_and_its_proposals_end() {
    let mut net = Net::of(&[1, 2, 3]);
    let first = net.elect();
    net.isolate(first);
    net.propose(first, 1..3);
    net.give(first, In::ReadIndex(ReadId(9)));
    net.pass(900);
    let member = net.member(first);
    assert!(member.done.is_empty() && member.read.is_empty() && member.lost.is_empty());
    net.until("another one leads", |net| net.leader() != Some(first));
    let second = net.leader().unwrap();
    net.propose(second, 20..22);
    net.pass(4_000);
    let member = net.member(first);
    assert_ne!(member.consensus.role(), Role::Leader, "it hears of no majority");
    assert_eq!((&member.lost[..], &member.read[..]), (&[1, 2, 9][..], &[][..]));
    // Without a leader they were never sent: that much is certain.
    net.propose(first, 5..6);
    net.pass(5_000);
    assert_eq!(net.member(first).refused, [(5, Refusal::NoLeader)]);
    net.cut.clear();
    net.pass(3_000);
    net.check();
    assert!(!net.member(first).holds(1) && net.member(first).holds(21));
}

#[test]
fn a_member_that_was_away_does_not_end_the_term() {
    for one_way in [false, true] {
        let mut net = Net::of(&[1, 2, 3]);
        let leader = net.elect();
        let term = net.member(leader).consensus.term();
        let away = if leader == 1 { 2 } else { 1 };
        net.isolate(away);
        if one_way {
            // It speaks and does not hear.
            net.cut.retain(|(_, to)| *to == away);
        }
        net.pass(10_000);
        net.cut.clear();
        net.pass(3_000);
        assert_eq!((net.leader(), net.member(leader).consensus.term()), (Some(leader), term));
        assert_eq!(net.member(away).consensus.leader(), Some(leader));
    }
}

#[test]
fn leadership_goes_to_whom_it_shall() {
    let mut net = Net::of(&[1, 2, 3]);
    let first = net.elect();
    let wanted = if first == 3 { 2 } else { 3 };
    net.give(first, In::TransferLeadership { to: Some(wanted) });
    net.propose(first, 1..3);
    net.deliver();
    assert_eq!(net.leader(), Some(wanted), "without waiting for a timeout");
    net.pass(500);
    assert_eq!(net.member(first).done, [1, 2], "what came meanwhile goes to the new leader");
    net.give(first, In::TransferLeadership { to: None });
    net.deliver();
    assert_ne!(net.leader(), Some(wanted), "a follower asks the leader to hand over");
    net.check();
}

#[test]
fn a_leader_never_holds_more_than_it_may() {
    let mut net = Net::of(&[1, 2, 3]);
    let leader = net.elect();
    net.isolate(leader);
    let large = |id| (ProposalId(id), Bytes::from(vec![0; 1 << 20]));
    for id in 1..=100 {
        net.give(leader, In::Propose(vec![large(id)]));
    }
    let refused = &net.member(leader).refused;
    assert!(refused.len() >= 36 && refused.iter().all(|(_, why)| *why == Refusal::Overloaded), "{}", refused.len());
}

fn said_by(member: u64, message: &eraftpb::Message) -> Bytes {
    crate::envelope::encode_engine(crate::envelope::Speaker { member, witness: false }, message)
}

#[test]
fn damaged_messages_are_dropped() {
    let mut net = Net::of(&[1, 2, 3]);
    let leader = net.elect();
    let mut bytes: Vec<Vec<u8>> =
        vec![vec![], vec![0xff; 3], vec![1, 2, 0, 0, 0, 0, 0, 0, 0], vec![1, 2, 0, 0, 0, 0, 0, 0, 0, 8, 7]];
    for kind in [0, 1, 2, 3, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 18] {
        let mut message = eraftpb::Message { from: 2, to: leader, term: 1, ..Default::default() };
        message.index = 1 << 40;
        message.commit = 1 << 41;
        message.reject_hint = 1 << 42;
        protobuf::ProtobufEnum::from_i32(kind).into_iter().for_each(|kind| message.set_msg_type(kind));
        bytes.push(said_by(2, &message).to_vec());
        message.from = 9;
        bytes.push(said_by(9, &message).to_vec());
    }
    let other = if leader == 1 { 2 } else { 1 };
    for bytes in bytes {
        net.give(leader, In::Message(bytes.clone().into()));
        net.give(other, In::Message(bytes.into()));
    }
    net.propose(leader, 1..2);
    net.deliver();
    net.pass(3_000);
    assert_eq!(net.member(leader).done, [1]);
    net.check();
}

#[test]
fn a_member_that_has_seen_no_term_can_say_no() {
    let mut net = Net::of(&[]);
    net.start(1, Disk::of(&[1, 2, 3]));
    let mut message = eraftpb::Message { from: 2, to: 1, term: 1, priority: -1, ..Default::default() };
    for term in [1, 2] {
        message.term = term;
        message.set_msg_type(MessageType::MsgRequestPreVote);
        net.give(1, In::Message(said_by(2, &message)));
    }
}

#[test]
fn a_member_whose_disk_forgot_is_found_out() {
    let mut net = Net::of(&[1, 2, 3]);
    let leader = net.elect();
    let other = if leader == 1 { 2 } else { 1 };
    net.propose(leader, 1..3);
    net.pass(500);
    net.stop(other);
    net.start(other, Disk::of(&[1, 2, 3]));
    net.pass(500);
    assert!(net.member(other).forgot);
}
