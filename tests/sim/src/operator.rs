//! Who adds and removes members while everything else goes on.

use crate::clients::Waiting;
use crate::disk::Disk;
use crate::world::{Event, World};
use dhow_consensus::{In, MemberChange, Members, ProposalId};

/// More machines are not had.
const NODES_MAX: usize = 12;

#[derive(Debug, Default)]
pub(crate) struct Operator {
    waits: bool,
    last_id: u64,
}

impl Operator {
    pub(crate) fn new(founders: u64) -> Self {
        Self { waits: false, last_id: founders }
    }

    /// There is an answer, or none to come.
    pub(crate) fn end(&mut self) {
        self.waits = false;
    }

    pub(crate) fn is_idle(&self) -> bool {
        !self.waits
    }
}

impl World {
    pub(crate) fn handle_operator(&mut self) {
        let pause = 50 + self.rng.below(500);
        self.after(pause, Event::Operator);
        let Some(leader) = self.leader().filter(|_| self.operator.is_idle()) else { return };
        let members = self.running(leader).consensus.members().clone();
        let changes = if self.weather.wipes {
            self.replace_lost(&members)
        } else if self.weather.churn {
            self.churn(&members)
        } else {
            return;
        };
        let through = self.random_node().filter(|id| !self.nodes[id].gone && members.contains(*id));
        let Some(through) = through.filter(|_| !changes.is_empty()) else { return };
        self.note(format_args!("the operator asks {through} for {changes:?}"));
        let id = ProposalId(self.fresh_id());
        self.operator.waits = true;
        self.running(through).waiting.insert(id, Waiting::Operator);
        self.give(through, In::ChangeMembers(id, changes));
    }

    /// A machine with an empty disk.
    fn new_machine(&mut self) -> Option<u64> {
        if self.nodes.len() >= NODES_MAX {
            return None;
        }
        self.operator.last_id += 1;
        let id = self.operator.last_id;
        self.add_node(id, Disk::default(), false);
        Some(id)
    }

    fn replace_lost(&mut self, members: &Members) -> Vec<MemberChange> {
        let lost = members.ids().into_iter().find(|id| self.nodes[id].gone);
        match (lost, members.learners.first().copied()) {
            (None, Some(learner)) => vec![MemberChange::Promote(learner)],
            (None, None) => Vec::new(),
            (Some(lost), Some(learner)) if lost != learner && self.rng.chance(2, 3) => {
                vec![MemberChange::Promote(learner), MemberChange::Remove(lost)]
            }
            (Some(lost), None) if !self.rng.chance(1, 3) => {
                // A learner nobody knows yet may be there from an attempt that came to nothing.
                let known = |id: &u64| members.contains(*id) || self.nodes[id].gone;
                let spare = self.nodes.keys().copied().find(|id| !known(id));
                let new = spare.or_else(|| self.new_machine());
                new.map_or(vec![MemberChange::Remove(lost)], |new| vec![MemberChange::AddLearner(new)])
            }
            (Some(lost), _) => vec![MemberChange::Remove(lost)],
        }
    }

    fn churn(&mut self, members: &Members) -> Vec<MemberChange> {
        let voter = members.voters[self.rng.below(members.voters.len() as u64) as usize];
        let removes = MemberChange::Remove(voter);
        match (members.learners.first().copied(), self.rng.below(10)) {
            (Some(learner), 0) => vec![MemberChange::Remove(learner)],
            (Some(learner), 1..6) => vec![MemberChange::Promote(learner)],
            (Some(learner), _) => vec![MemberChange::Promote(learner), removes],
            (None, 0..6) if members.voters.len() < 5 => match self.new_machine() {
                Some(new) if self.rng.chance(4, 5) => vec![MemberChange::AddLearner(new)],
                Some(new) => vec![MemberChange::AddLearner(new), removes],
                None => Vec::new(),
            },
            _ => vec![removes],
        }
    }
}
