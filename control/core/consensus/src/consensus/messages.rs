//! What other members say, and what is said to them.
//!
//! The engine trusts its peers: some messages that no sound peer sends would end the process. They are dropped here.

use super::*;
use crate::envelope::{Forward, Speaker, Verdict, encode_engine};
use protobuf::Message as _;

impl Consensus {
    pub(super) fn say(&mut self, to: u64, saying: &Saying) {
        self.outbox.push(Message { to, bytes: saying.encode(self.speaker()) });
    }

    fn speaker(&self) -> Speaker {
        Speaker { member: self.config.member, witness: self.config.witness }
    }

    /// Sends the engine's messages, images apart.
    pub(super) fn send(&mut self, messages: Vec<eraftpb::Message>, out: &mut Vec<Out>) {
        let mut sent = Vec::with_capacity(messages.len());
        for message in messages {
            let (kind, to) = (message.get_msg_type(), message.to);
            // See `note_applied`: the log from its beginning is only for those who were there.
            if kind == MessageType::MsgAppend && message.index == 0 && self.members != self.founders {
                continue;
            }
            let bytes = encode_engine(self.speaker(), &message);
            if kind == MessageType::MsgSnapshot {
                out.push(Out::SendSnapshot { to, message: bytes });
            } else {
                sent.push(Message { to, bytes });
            }
        }
        if !sent.is_empty() {
            out.push(Out::Send(sent));
        }
    }

    pub(super) fn handle_message(&mut self, bytes: &Bytes, out: &mut Vec<Out>) {
        let Some((Speaker { member: from, witness }, saying)) = Saying::decode(bytes) else { return };
        if from == 0 || from == self.config.member {
            return;
        }
        if self.is_stranger(from) {
            if !matches!(saying, Saying::Removed { .. }) {
                let (term, by) = (self.node.raft.term, self.delivered);
                self.say(from, &Saying::Removed { term, by });
            }
            return;
        }
        self.heard.insert(from, Heard { at: self.ticks, witness });
        match saying {
            Saying::Engine(bytes) => self.handle_engine(from, &bytes, out),
            Saying::Forward(forward) => self.handle_forward(from, forward),
            Saying::Verdicts { incarnation, sequence, verdicts } if incarnation == self.config.incarnation => {
                self.handle_verdicts(sequence, verdicts, out);
            }
            Saying::AskRead { incarnation, id } if self.is_leader() => {
                self.reads.gather(Asker::Other(Life { member: from, incarnation }, id));
            }
            Saying::AnswerRead { incarnation, id, index } if incarnation == self.config.incarnation => {
                self.reads.answer(id, index);
            }
            Saying::Transfer { to } if self.is_leader() => self.transfer(to),
            Saying::Removed { term, by } if self.is_told_by(by) => self.told_removed = Some(term),
            Saying::Verdicts { .. }
            | Saying::AskRead { .. }
            | Saying::AnswerRead { .. }
            | Saying::Transfer { .. }
            | Saying::Removed { .. } => {}
        }
    }

    /// Whether whoever has handed out the log up to there knows all changes of the members that this one knows. A
    /// leader that is none any more may not have heard of the change that made this one a member.
    fn is_told_by(&self, by: Position) -> bool {
        let last = self.last();
        !self.members.is_empty() && (by.term, by.index) >= (last.term, last.index)
    }

    /// Only a leader that has handed out all that was committed before its term knows who is none.
    fn is_stranger(&self, member: u64) -> bool {
        self.is_leader() && self.delivered.term == self.node.raft.term && !self.members.contains(member)
    }

    fn handle_engine(&mut self, from: u64, bytes: &Bytes, out: &mut Vec<Out>) {
        let Ok(message) = eraftpb::Message::parse_from_carllerche_bytes(bytes) else { return };
        if message.from != from || message.to != self.config.member || message.term == 0 {
            return;
        }
        let last = self.node.raft.raft_log.last_index();
        match message.get_msg_type() {
            MessageType::MsgAppend | MessageType::MsgHeartbeat => {
                if self.told_removed.is_some_and(|term| message.term >= term) {
                    self.told_removed = None;
                }
                let known = message.commit;
                let is_heartbeat = message.get_msg_type() == MessageType::MsgHeartbeat;
                if is_heartbeat && message.term >= self.node.raft.term && known > last {
                    out.push(Out::Forgot { known, last });
                    return;
                }
                let follow = (message.index + 1..).zip(message.get_entries()).all(|(index, e)| e.index == index);
                // A member that does not know the members must not take the log from its beginning, which does not
                // say so.
                if !follow || (!is_heartbeat && self.members.is_empty() && message.index == 0) {
                    return;
                }
            }
            MessageType::MsgAppendResponse if !message.reject && message.index > last => return,
            MessageType::MsgTimeoutNow if !self.may_campaign() => return,
            MessageType::MsgAppendResponse
            | MessageType::MsgHeartbeatResponse
            | MessageType::MsgRequestVote
            | MessageType::MsgRequestVoteResponse
            | MessageType::MsgRequestPreVote
            | MessageType::MsgRequestPreVoteResponse
            | MessageType::MsgTimeoutNow => {}
            // An image comes by another way, and nobody sends anything else.
            _ => return,
        }
        // An error means that the sender is no member: drop it.
        let _ = self.node.step(message);
        self.draw_timeout(false);
    }

    /// The image may be of a later position than the message says; the leader learns it from the answer.
    pub(super) fn handle_snapshot(&mut self, bytes: &Bytes, position: Position, members: &Members) {
        let Some((Speaker { member: from, witness }, Saying::Engine(bytes))) = Saying::decode(bytes) else { return };
        let Ok(mut message) = eraftpb::Message::parse_from_carllerche_bytes(&bytes) else { return };
        let fits = message.get_msg_type() == MessageType::MsgSnapshot
            && message.from == from
            && message.to == self.config.member
            && message.term != 0
            && position.index >= message.get_snapshot().get_metadata().index.max(1);
        if !fits || self.is_installing() || !members.contains(self.config.member) {
            return;
        }
        let metadata = message.mut_snapshot().mut_metadata();
        metadata.index = position.index;
        metadata.term = position.term;
        metadata.set_conf_state(members.to_engine());
        self.heard.insert(from, Heard { at: self.ticks, witness });
        self.told_removed = None;
        let _ = self.node.step(message);
        self.draw_timeout(false);
    }

    /// Proposals that were sent to the leader of another term are left alone: their proposer finds out.
    fn handle_forward(&mut self, from: u64, forward: Forward) {
        let Forward { term, incarnation, sequence, proposals } = forward;
        let life = Life { member: from, incarnation };
        if !self.is_leader() || term != self.node.raft.term || !self.inbox.is_new(term, life, sequence) {
            return;
        }
        let verdicts = self.append(life, proposals);
        if !verdicts.is_empty() {
            self.say(from, &Saying::Verdicts { incarnation, sequence, verdicts });
        }
    }

    fn handle_verdicts(&mut self, sequence: u64, verdicts: Vec<(ProposalId, Verdict)>, out: &mut Vec<Out>) {
        for (id, verdict) in verdicts {
            match verdict {
                Verdict::Later => self.proposals.hold(id, sequence, self.ticks + 1),
                Verdict::Refused(why) if self.proposals.was_sent(id, sequence) => {
                    self.proposals.finish(id);
                    out.push(Out::Refused(id, why));
                }
                // It has been sent anew since, or is answered.
                Verdict::Refused(_) => {}
            }
        }
    }
}
