//! Members that join, lag, leave, or only vote.

use super::*;
use crate::members::ChangeError;
use MemberChange::{AddLearner, Promote, Remove};

fn voters(net: &Net, id: u64) -> Vec<u64> {
    net.members[&id].members.voters.clone()
}

/// Grows a control plane of one by a member as an operator would.
fn join(net: &mut Net, id: u64, proposal: u64) {
    net.start(id, Disk::default());
    let leader = net.leader().unwrap();
    net.change(leader, proposal, &[AddLearner(id)]);
    net.until("the learner has it all", |net| {
        let leader = net.leader().unwrap();
        net.members[&leader].applied == net.members[&id].applied
    });
    net.change(leader, proposal + 1, &[Promote(id)]);
    net.until("it votes", |net| net.members.values().all(|member| member.members.voters.contains(&id)));
}

#[test]
fn one_becomes_three_and_one_again() {
    let mut net = Net::of(&[1]);
    net.propose(1, 1..10);
    join(&mut net, 2, 100);
    join(&mut net, 3, 200);
    assert!(net.images_sent >= 2, "who was not there at the beginning needs an image");
    net.propose(3, 20..22);
    net.pass(200);
    assert_eq!(net.member(3).done, [20, 21]);
    net.check();
    let progress = net.member(1).consensus.progress();
    assert!(progress.len() == 3 && progress.iter().all(|p| p.voter && p.active && p.matched == progress[0].matched));

    for (gone, proposal) in [(3, 300), (2, 301)] {
        net.change(1, proposal, &[Remove(gone)]);
        net.until("it knows that it has been removed", |net| net.members[&gone].consensus.role() == Role::Removed);
        net.pass(2_000);
        assert_eq!(net.member(gone).consensus.next_wake(), None);
        net.propose(gone, 400..401);
        assert_eq!(net.member(gone).refused, [(400, Refusal::Removed)]);
        net.stop(gone);
    }
    net.propose(1, 30..31);
    assert!(net.member(1).done.contains(&30), "nobody is asked any more");
    assert_eq!(net.member(1).consensus.next_wake(), None);
}

#[test]
fn a_change_that_makes_no_sense_is_refused_on_any_member() {
    let mut net = Net::of(&[1, 2, 3]);
    let leader = net.elect();
    let follower = if leader == 1 { 2 } else { 1 };
    net.change(leader, 1, &[Promote(7)]);
    net.change(follower, 2, &[Remove(1), Remove(2), Remove(3)]);
    net.change(follower, 3, &[]);
    net.deliver();
    assert_eq!(net.member(leader).refused, [(1, Refusal::Change(ChangeError::NoLearner(7)))]);
    let refused = [(2, Refusal::Change(ChangeError::LastVoter)), (3, Refusal::Change(ChangeError::Malformed))];
    assert_eq!(net.member(follower).refused, refused);
    // A learner that nobody hears of would only be in the way.
    net.change(follower, 4, &[AddLearner(9)]);
    net.pass(500);
    assert_eq!(net.member(follower).done, [4]);
    net.change(follower, 5, &[Promote(9)]);
    net.pass(500);
    assert_eq!(net.member(follower).refused[2..], [(5, Refusal::Change(ChangeError::Silent(9)))]);
}

#[test]
fn a_learner_is_promoted_only_when_it_has_caught_up() {
    let mut net = Net::of(&[1]);
    net.start(2, Disk::default());
    net.change(1, 1, &[AddLearner(2)]);
    net.pass(500);
    // It answers, and the log does not get through.
    net.member(2).slow_disk = true;
    net.propose(1, 1_000..3_000);
    net.pass(500);
    net.change(1, 2, &[Promote(2)]);
    assert_eq!(net.member(1).refused, [(2, Refusal::Change(ChangeError::Lags(2)))]);
    net.sync(2);
    net.pass(500);
    net.change(1, 3, &[Promote(2)]);
    net.pass(500);
    assert_eq!(voters(&net, 2), [1, 2]);
    net.check();
}

#[test]
fn several_voters_are_replaced_at_once_even_if_the_leader_dies_in_between() {
    for dies in [false, true] {
        let mut net = Net::of(&[1, 2, 3]);
        let leader = net.elect();
        for (id, proposal) in [(4, 1), (5, 2)] {
            net.start(id, Disk::default());
            net.change(leader, proposal, &[AddLearner(id)]);
            net.pass(500);
        }
        let gone: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
        let kept = if dies { gone[0] } else { leader };
        let out: Vec<u64> = (1..=3).filter(|id| *id != kept).collect();
        let changes = [Promote(4), Promote(5), Remove(out[0]), Remove(out[1])];
        if dies {
            // The old leader takes the change, and is gone before it can end the transition. It is among those that
            // go, and would hand over first: the change is made by hand.
            let entry = net.member(leader);
            let taken = entry
                .consensus
                .append(entry.consensus.life, vec![(ProposalId(3), EntryKind::Members, change_data(&changes))]);
            assert!(!taken.is_empty(), "a leader does not remove itself as long as another one can");
            net.deliver();
            net.until("another one leads", |net| net.leader().is_some_and(|now| now != leader));
            let second = net.leader().unwrap();
            net.change(second, 3, &changes.iter().copied().filter(|c| c.member() != second).collect::<Vec<_>>());
            net.until("the transition has begun", |net| net.members[&second].members.is_joint());
            net.stop(second);
            net.until("the transition has ended", |net| {
                net.members.values().all(|member| !member.members.is_joint() && member.members.votes(5))
            });
            net.check();
            continue;
        }
        net.change(leader, 3, &changes);
        net.until("the transition has ended", |net| {
            [kept, 4, 5].iter().all(|id| {
                let members = &net.members[id].members;
                !members.is_joint() && members.voters.len() == 3 && members.votes(5)
            })
        });
        assert_eq!(net.member(leader).done, [1, 2, 3]);
        net.until("those that went know it", |net| {
            out.iter().all(|id| net.members[id].consensus.role() == Role::Removed)
        });
        net.check();
    }
}

#[test]
fn one_change_waits_for_the_other() {
    let mut net = Net::of(&[1, 2, 3]);
    net.elect();
    for id in 1..=3 {
        net.change(id, 1, &[AddLearner(10 + id)]);
    }
    net.pass(2_000);
    for id in 1..=3 {
        assert_eq!(net.member(id).done, [1]);
        assert_eq!(net.member(id).members.learners, [11, 12, 13]);
    }
}

#[test]
fn a_leader_that_shall_go_hands_over_first() {
    for cut_off in [false, true] {
        let mut net = Net::of(&[1, 2, 3]);
        let leader = net.elect();
        net.change(leader, 1, &[Remove(leader)]);
        if cut_off {
            net.isolate(leader);
            net.pass(6_000);
            assert!(!net.members.values().any(|member| member.members.voters.len() == 2));
            let member = net.member(leader);
            assert_eq!(member.lost.len() + member.refused.len(), 1);
            continue;
        }
        net.until("it is gone", |net| net.members[&leader].consensus.role() == Role::Removed);
        assert!(net.leader().is_some_and(|now| now != leader));
        net.stop(leader);
        let left = net.leader().unwrap();
        net.propose(left, 5..6);
        net.pass(200);
        assert_eq!(net.member(left).done, [5]);
    }
}

#[test]
fn the_last_of_two_stays_when_its_leader_goes() {
    let mut net = Net::of(&[1, 2]);
    let leader = net.elect();
    let other = 3 - leader;
    net.change(other, 1, &[Remove(leader)]);
    net.until("it is alone", |net| net.members[&other].members.voters == [other]);
    net.pass(3_000);
    net.stop(leader);
    net.propose(other, 5..6);
    assert!(net.member(other).done.contains(&5));
}

#[test]
fn who_is_removed_believes_only_those_who_know_more() {
    let mut net = Net::of(&[1, 2, 3]);
    let leader = net.elect();
    let other = if leader == 1 { 2 } else { 1 };
    net.propose(leader, 1..3);
    net.pass(200);
    let last = net.member(other).consensus.last();
    let older = Position { index: last.index + 5, term: last.term - 1 };
    for (by, expected) in [(older, false), (Position { index: last.index - 1, ..last }, false), (last, true)] {
        let saying = Saying::Removed { term: 1, by };
        let from = crate::envelope::Speaker { member: leader, witness: false };
        net.give(other, In::Message(saying.encode(from)));
        assert_eq!(net.member(other).consensus.role() == Role::Removed, expected, "{by:?} {last:?}");
    }
    // The leader knows better.
    net.pass(500);
    assert_eq!(net.member(other).consensus.role(), Role::Follower { leader: Some(leader) });
}

#[test]
fn a_learner_notices_that_its_leader_is_gone() {
    let mut net = Net::of(&[1]);
    net.start(2, Disk::default());
    net.change(1, 1, &[AddLearner(2)]);
    net.pass(1_000);
    assert_eq!(net.member(2).consensus.role(), Role::Follower { leader: Some(1) });
    let disk = net.stop(1);
    net.pass(3_000);
    assert_eq!(net.member(2).consensus.role(), Role::Follower { leader: None });
    net.start(1, disk);
    net.pass(1_000);
    assert_eq!(net.member(2).consensus.role(), Role::Follower { leader: Some(1) });
}

#[test]
fn who_is_removed_votes_for_a_leader_that_forgot_it() {
    let mut net = Net::of(&[1, 2]);
    let leader = net.elect();
    let other = 3 - leader;
    net.change(leader, 1, &[Remove(other)]);
    net.until("it knows that it has been removed", |net| net.members[&other].consensus.role() == Role::Removed);
    // The log is there, but not that it is committed.
    let mut disk = net.stop(leader);
    disk.restored.hard_state.commit = 0;
    net.start(leader, disk);
    net.until("it leads again", |net| net.leader() == Some(leader) && voters(net, leader) == [leader]);
}

#[test]
fn a_member_that_lags_too_much_gets_an_image_of_now() {
    let mut net = Net::of(&[]);
    net.lag_max = LagMax { entries: 10, bytes: 10_000, needed_bytes: 20_000 };
    for id in 1..=3 {
        net.start(id, Disk::of(&[1, 2, 3]));
    }
    let leader = net.elect();
    let away = if leader == 1 { 2 } else { 1 };
    let disk = net.stop(away);
    for n in 0..40 {
        net.propose(leader, 10 * n..10 * n + 10);
        net.deliver();
    }
    net.pass(2_000);
    net.start(away, disk);
    let installed = net.members[&leader].applied;
    net.until("it has caught up", |net| net.members[&away].applied.index >= installed.index);
    assert_eq!(net.member(away).installed.len(), 1);
    net.check();
    // It starts again from what it was given.
    net.propose(leader, 1_000..1_005);
    net.pass(200);
    let disk = net.stop(away);
    assert!(disk.restored.applied.index >= 400 && disk.restored.entries.len() >= 5);
    net.start(away, disk);
    net.pass(500);
    net.check();
    assert!(net.member(away).holds(1_004) && net.member(away).installed.is_empty());
}

#[test]
fn an_image_may_be_newer_than_what_it_was_asked_for() {
    let mut net = Net::of(&[1]);
    net.propose(1, 1..5);
    net.start(2, Disk::default());
    net.change(1, 9, &[AddLearner(2)]);
    // The image that was asked for is on its way when more is done; the net takes the present one.
    net.propose(1, 10..20);
    net.pass(500);
    assert!(net.member(2).holds(19));
    net.check();
    // One that is older than the message is not taken.
    let metadata = eraftpb::SnapshotMetadata { index: 50, term: 9, ..Default::default() };
    let mut message = eraftpb::Message { from: 1, to: 2, term: 9, ..Default::default() };
    message.set_msg_type(MessageType::MsgSnapshot);
    message.mut_snapshot().set_metadata(metadata);
    let message = said_by(1, &message);
    let members = net.member(2).members.clone();
    let before = net.member(2).consensus.last();
    net.give(2, In::Snapshot { message: message.clone(), position: Position { index: 49, term: 9 }, members });
    net.give(2, In::Message(message));
    assert_eq!(net.member(2).consensus.last(), before);
}

#[test]
fn an_image_counts_when_it_is_durable() {
    let mut net = Net::of(&[1]);
    net.propose(1, 1..5);
    net.change(1, 9, &[AddLearner(2)]);
    let (position, members) = (net.member(1).applied, net.member(1).members.clone());
    let metadata = eraftpb::SnapshotMetadata { index: 3, term: 2, ..Default::default() };
    let mut message = eraftpb::Message { from: 1, to: 2, term: 2, ..Default::default() };
    message.set_msg_type(MessageType::MsgSnapshot);
    message.mut_snapshot().set_metadata(metadata);
    let message = said_by(1, &message);
    let mut joins = Consensus::new(config(2), Restored::default()).unwrap();
    let (now, mut out) = (Time::from_ms(0), Vec::new());
    joins.wake(now, &mut out);
    joins.handle(now, In::Snapshot { message, position, members }, &mut out);
    let install = out.iter().find_map(|out| match out {
        Out::Install(install) => Some(install.clone()),
        _ => None,
    });
    let install = install.unwrap();
    assert!(out.iter().all(|out| !matches!(out, Out::Send(_))), "nobody hears of it before it is durable: {out:?}");
    out.clear();
    assert_eq!(install.position, position);
    // The driver has put it in force, and says so before its disk does.
    joins.handle(now, In::Applied(position.index), &mut out);
    joins.handle(now, In::Persisted(install.number - 1), &mut out);
    assert!(out.iter().all(|out| !matches!(out, Out::Send(_))), "{out:?}");
    joins.handle(now, In::Persisted(install.number), &mut out);
    assert!(out.iter().any(|out| matches!(out, Out::Send(_))), "{out:?}");
    assert_eq!((joins.applied, joins.last()), (position.index, position));
}

#[test]
fn a_witness_that_wins_hands_over() {
    let mut net = Net::of(&[]);
    net.witness = Some(3);
    for id in 1..=3 {
        net.start(id, Disk::of(&[1, 2, 3]));
    }
    let leader = net.elect();
    assert_ne!(leader, 3, "with equal logs the others are preferred");
    let other = 3 - leader;
    // Only the witness gets the last entries.
    net.cut.extend([(leader, other), (other, leader)]);
    net.propose(leader, 1..5);
    net.deliver();
    assert_eq!(net.member(leader).done.len(), 4);
    net.stop(leader);
    net.cut.clear();
    net.until("the other one leads", |net| net.leader() == Some(other));
    net.until("it has what the witness knew", |net| net.members[&other].holds(4));
    assert!(net.member(3).roles.contains(&Role::Leader), "nobody else could");
    net.propose(other, 7..8);
    net.pass(500);
    assert_eq!(net.member(other).done, [7]);
    assert_eq!(net.images_sent, 0);
    net.check();
}

#[test]
fn nobody_hands_over_to_a_witness() {
    let mut net = Net::of(&[]);
    net.witness = Some(1);
    for id in 1..=3 {
        net.start(id, Disk::of(&[1, 2, 3]));
    }
    let first = net.elect();
    let other = 5 - first;
    for expected in [other, first] {
        let leader = net.leader().unwrap();
        net.give(leader, In::TransferLeadership { to: None });
        net.deliver();
        assert_eq!(net.leader(), Some(expected), "at once");
        net.pass(500);
    }
}

#[test]
fn a_member_that_joins_waits_to_be_told() {
    let mut net = Net::of(&[1]);
    net.start(2, Disk::default());
    net.pass(10_000);
    let member = net.member(2);
    assert_eq!((member.consensus.role(), member.consensus.term()), (Role::Follower { leader: None }, 1));
    net.propose(2, 1..2);
    net.pass(5_000);
    assert_eq!(net.member(2).refused, [(1, Refusal::NoLeader)]);
}
