//! What a leader does beside replicating: it takes proposals and reads, changes the members, and hands over.

use super::*;
use crate::envelope::{Forward, Verdict};
use crate::members::{ChangeError, read_wishes};
use crate::proposals::Attempt;
use crate::tail::{Entry, to_engine};

/// How far a learner may be behind to be promoted: what a healthy link brings within a heartbeat.
const PROMOTE_LAG_MAX: u64 = 1_000;

impl Consensus {
    /// What a leader does unasked.
    pub(super) fn lead(&mut self) {
        if !self.is_leader() {
            return;
        }
        if self.members.is_joint() && !self.node.raft.has_pending_conf() {
            // The engine leaves the transition by itself, unless the leader changed in between.
            let _ = self.step_proposal(vec![member_entry(Bytes::new(), Bytes::new())]);
        }
        if self.config.witness && self.node.raft.lead_transferee.is_none() {
            self.transfer(None);
        }
    }

    /// Sends what is held to whoever leads.
    pub(super) fn flush(&mut self, out: &mut Vec<Out>) {
        if !self.proposals.has_held() {
            return;
        }
        let term = self.node.raft.term;
        if self.is_leader() {
            if self.node.raft.lead_transferee.is_some() {
                return;
            }
            self.last_sequence += 1;
            let sequence = self.last_sequence;
            let wanted = self.proposals.send(Attempt { term, sequence, at: self.ticks }, usize::MAX);
            for (id, verdict) in self.append(self.life, wanted) {
                match verdict {
                    Verdict::Later => self.proposals.hold(id, sequence, self.ticks + 1),
                    Verdict::Refused(why) => {
                        self.proposals.finish(id);
                        out.push(Out::Refused(id, why));
                    }
                }
            }
        } else if let Some(leader) = self.leader() {
            loop {
                let (incarnation, sequence) = (self.config.incarnation, self.last_sequence + 1);
                let attempt = Attempt { term, sequence, at: self.ticks };
                let proposals = self.proposals.send(attempt, MESSAGE_BYTES_MAX as usize);
                if proposals.is_empty() {
                    return;
                }
                self.last_sequence = sequence;
                self.say(leader, &Saying::Forward(Forward { term, incarnation, sequence, proposals }));
            }
        }
    }

    /// Sends to the leader once more what has had no answer for long: one message a tick, for a leader that is merely
    /// slow is not helped by more.
    pub(super) fn forward_again(&mut self) {
        let (term, incarnation) = (self.node.raft.term, self.config.incarnation);
        if let Some(leader) = self.leader().filter(|leader| *leader != self.config.member)
            && let Some((sequence, proposals)) = self.proposals.send_again(term, self.ticks)
        {
            self.say(leader, &Saying::Forward(Forward { term, incarnation, sequence, proposals }));
        }
    }

    /// Appends proposals of any member; gives those that it did not.
    pub(super) fn append(&mut self, life: Life, wanted: Vec<Wanted>) -> Vec<(ProposalId, Verdict)> {
        let mut verdicts = Vec::new();
        let (mut ids, mut entries) = (Vec::with_capacity(wanted.len()), Vec::with_capacity(wanted.len()));
        let mut changes = Vec::new();
        for (id, kind, data) in wanted {
            match kind {
                EntryKind::Normal => {
                    ids.push(id);
                    // The engine fills in index and term.
                    let tag = life.tag(id);
                    entries.push(to_engine(Entry { index: 0, term: 0, kind, tag, data }));
                }
                EntryKind::Members => changes.push((id, data)),
            }
        }
        if !entries.is_empty()
            && let Err(verdict) = self.step_proposal(entries)
        {
            verdicts.extend(ids.into_iter().map(|id| (id, verdict)));
        }
        for (id, data) in changes {
            let tag = life.tag(id);
            let taken = self.check_change(&data).and_then(|()| self.step_proposal(vec![member_entry(tag, data)]));
            verdicts.extend(taken.err().map(|verdict| (id, verdict)));
        }
        verdicts
    }

    fn step_proposal(&mut self, entries: Vec<eraftpb::Entry>) -> Result<(), Verdict> {
        let mut message = eraftpb::Message::default();
        message.set_msg_type(MessageType::MsgPropose);
        message.from = self.config.member;
        message.set_entries(entries.into());
        let transferring = self.node.raft.lead_transferee.is_some();
        self.node.step(message).map_err(|_| match transferring {
            true => Verdict::Later,
            false => Verdict::Refused(Refusal::Overloaded),
        })
    }

    /// The engine takes one change after the other, and makes nothing of a wrong one without a word.
    fn check_change(&mut self, data: &[u8]) -> Result<(), Verdict> {
        let refuse = |error| Verdict::Refused(Refusal::Change(error));
        let changes = read_wishes(data).ok_or(refuse(ChangeError::Malformed))?;
        if self.node.raft.has_pending_conf() || self.members.is_joint() {
            return Err(Verdict::Later);
        }
        self.members.check(&changes).map_err(refuse)?;
        for change in &changes {
            match *change {
                MemberChange::Promote(id) if self.members.learners.contains(&id) => {
                    let matched = self.node.raft.prs().get(id).map_or(0, |progress| progress.matched);
                    if !self.is_active(id) {
                        return Err(refuse(ChangeError::Silent(id)));
                    }
                    // Who has nothing waits for an image, which may fail for long; its vote would be missed meanwhile.
                    if matched == 0 || matched + PROMOTE_LAG_MAX < self.last().index {
                        return Err(refuse(ChangeError::Lags(id)));
                    }
                }
                MemberChange::Remove(id) if id == self.config.member && self.best_successor().is_some() => {
                    // The next leader removes this one. It could do so itself, but the others might then not learn
                    // whether it has.
                    self.transfer(None);
                    return Err(Verdict::Later);
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The voter that is furthest, if any is heard of. The others would not vote for a witness that knows no more than
    /// they do.
    fn best_successor(&self) -> Option<u64> {
        let others = self.progress().into_iter().filter(|progress| {
            let id = progress.member;
            let witness = self.heard.get(&id).is_some_and(|heard| heard.witness);
            id != self.config.member && self.members.voters.contains(&id) && progress.active && !witness
        });
        others.max_by_key(|progress| (progress.matched, std::cmp::Reverse(progress.member))).map(|best| best.member)
    }

    /// Hands over, or asks the leader to.
    pub(super) fn transfer(&mut self, to: Option<u64>) {
        if self.is_leader() {
            let to = to.filter(|to| self.members.voters.contains(to)).or_else(|| self.best_successor());
            if let Some(to) = to.filter(|to| *to != self.config.member) {
                self.node.transfer_leader(to);
            }
        } else if let Some(leader) = self.leader() {
            self.say(leader, &Saying::Transfer { to });
        }
    }

    /// This leader has just removed itself. It tells the others that it has, and who shall follow.
    pub(super) fn abdicate(&mut self) {
        let successor = self.best_successor();
        let raft = &mut self.node.raft;
        raft.bcast_append();
        if let Some(successor) = successor {
            raft.send_timeout_now(successor);
        }
        let term = raft.term;
        raft.become_follower(term, 0);
    }

    /// Asks for the reads of this member, and as a leader for everybody's.
    pub(super) fn ask_reads(&mut self) {
        if self.is_leader() {
            for id in self.reads.ask(self.ticks) {
                self.reads.gather(Asker::Own(id));
            }
            // Before, the engine would drop the question.
            while self.node.raft.commit_to_current_term()
                && let Some(round) = self.reads.begin_round()
            {
                // A former life's round must not be confirmed by an answer that comes late.
                let words = [round, self.config.incarnation];
                self.node.read_index(words.into_iter().flat_map(u64::to_le_bytes).collect());
            }
        } else if let Some(leader) = self.leader() {
            for id in self.reads.ask(self.ticks) {
                self.say(leader, &Saying::AskRead { incarnation: self.config.incarnation, id });
            }
        }
    }

    pub(super) fn end_round(&mut self, index: u64, context: &[u8]) {
        let ([round, incarnation], []) = context.as_chunks::<8>() else { return };
        if u64::from_le_bytes(*incarnation) != self.config.incarnation {
            return;
        }
        for asker in self.reads.end_round(u64::from_le_bytes(*round)) {
            match asker {
                Asker::Own(id) => self.reads.answer(id, index),
                Asker::Other(Life { member, incarnation }, id) => {
                    self.say(member, &Saying::AnswerRead { incarnation, id, index });
                }
            }
        }
    }
}

fn member_entry(tag: Bytes, data: Bytes) -> eraftpb::Entry {
    to_engine(Entry { index: 0, term: 0, kind: EntryKind::Members, tag, data })
}
