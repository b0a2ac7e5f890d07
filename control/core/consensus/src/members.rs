//! Who is a member, and how that may change.

use bytes::Bytes;
use protobuf::Message as _;
use raft::eraftpb::{ConfChangeSingle, ConfChangeType, ConfChangeV2, ConfState};

/// The members of a control plane, each list sorted. While a change of more than one voter is on its way, a majority
/// of the old voters and one of the new ones must agree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    /// Those who vote.
    pub voters: Vec<u64>,
    /// Those who get the log and do not vote.
    pub learners: Vec<u64>,
    /// The former voters, as long as they count, too.
    pub voters_outgoing: Vec<u64>,
    /// Outgoing voters that will be learners.
    pub learners_next: Vec<u64>,
    /// The leader ends the transition by itself.
    pub auto_leave: bool,
}

/// One wish about one member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberChange {
    /// A new member, which gets the log and does not vote.
    AddLearner(u64),
    /// A learner that has caught up becomes a voter.
    Promote(u64),
    /// A learner or voter leaves; its number is never used again.
    Remove(u64),
}

/// Why a change of the membership cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// Nothing to do, or two wishes about one member.
    #[error("the change names no member, a member twice, or member `0`")]
    Malformed,
    /// Only learners are promoted.
    #[error("member `{0}` is not a learner; add it first")]
    NoLearner(u64),
    /// A voter is not made a learner again.
    #[error("member `{0}` votes already; remove it first")]
    Votes(u64),
    /// Someone has to vote.
    #[error("no voter would be left; add another one first")]
    LastVoter,
    /// A learner that lags would hold up every commit as soon as it counts.
    #[error("member `{0}` has not caught up with the log; try again when it has")]
    Lags(u64),
    /// It is not heard of.
    #[error("member `{0}` does not answer; try again when it does")]
    Silent(u64),
}

/// The version of [`Members::encode`].
const FORMAT: u8 = 1;

impl Members {
    /// The members of a new control plane.
    pub fn founded_by(member: u64) -> Self {
        Self { voters: vec![member], ..Self::default() }
    }

    /// Nobody: a member that waits to be told.
    pub fn is_empty(&self) -> bool {
        self.voters.is_empty() && self.learners.is_empty()
    }

    /// Whether the member belongs to the control plane in any way.
    pub fn contains(&self, member: u64) -> bool {
        self.votes(member) || self.learners.contains(&member) || self.learners_next.contains(&member)
    }

    /// Whether the member counts for a majority.
    pub fn votes(&self, member: u64) -> bool {
        self.voters.contains(&member) || self.voters_outgoing.contains(&member)
    }

    /// Between two memberships.
    pub fn is_joint(&self) -> bool {
        !self.voters_outgoing.is_empty()
    }

    /// Whether the member decides alone.
    pub fn is_sole_voter(&self, member: u64) -> bool {
        self.voters == [member] && !self.is_joint()
    }

    /// Everybody, once.
    pub fn ids(&self) -> Vec<u64> {
        let lists = [&self.voters, &self.learners, &self.voters_outgoing, &self.learners_next];
        let mut ids: Vec<u64> = lists.into_iter().flatten().copied().collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// As bytes, to be stored beside a state.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![FORMAT, u8::from(self.auto_leave)];
        for list in [&self.voters, &self.learners, &self.voters_outgoing, &self.learners_next] {
            out.extend_from_slice(&(list.len() as u32).to_le_bytes());
            list.iter().for_each(|id| out.extend_from_slice(&id.to_le_bytes()));
        }
        out
    }

    /// From [`Members::encode`]'s bytes.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (&[FORMAT, auto_leave @ (0 | 1)], mut rest) = bytes.split_first_chunk::<2>()? else { return None };
        let mut list = || {
            let (count, more) = rest.split_first_chunk::<4>()?;
            let (ids, more) = more.split_at_checked((u32::from_le_bytes(*count) as usize).checked_mul(8)?)?;
            rest = more;
            let ids = ids.as_chunks::<8>().0.iter().map(|id| u64::from_le_bytes(*id));
            Some(ids.collect::<Vec<u64>>())
        };
        let (voters, learners, voters_outgoing, learners_next) = (list()?, list()?, list()?, list()?);
        let members = Self { voters, learners, voters_outgoing, learners_next, auto_leave: auto_leave == 1 };
        rest.is_empty().then_some(members)
    }

    /// Whether the change makes sense for this membership, whoever lags or is silent.
    pub fn check(&self, changes: &[MemberChange]) -> Result<(), ChangeError> {
        let mut named: Vec<u64> = changes.iter().map(MemberChange::member).collect();
        named.sort_unstable();
        if named.is_empty() || named[0] == 0 || named.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(ChangeError::Malformed);
        }
        for change in changes {
            match *change {
                MemberChange::AddLearner(id) if self.votes(id) => return Err(ChangeError::Votes(id)),
                MemberChange::Promote(id) if !self.learners.contains(&id) && !self.voters.contains(&id) => {
                    return Err(ChangeError::NoLearner(id));
                }
                _ => {}
            }
        }
        let stays = |id: &&u64| !changes.contains(&MemberChange::Remove(**id));
        let promotes = changes.iter().any(|change| matches!(change, MemberChange::Promote(_)));
        if !promotes && self.voters.iter().filter(stays).count() == 0 {
            return Err(ChangeError::LastVoter);
        }
        Ok(())
    }

    pub(crate) fn to_engine(&self) -> ConfState {
        let mut state = ConfState::default();
        state.set_voters(self.voters.clone());
        state.set_learners(self.learners.clone());
        state.set_voters_outgoing(self.voters_outgoing.clone());
        state.set_learners_next(self.learners_next.clone());
        state.auto_leave = self.auto_leave;
        state
    }

    pub(crate) fn from_engine(state: &ConfState) -> Self {
        let sorted = |ids: &[u64]| {
            let mut ids = ids.to_vec();
            ids.sort_unstable();
            ids
        };
        Self {
            voters: sorted(state.get_voters()),
            learners: sorted(state.get_learners()),
            voters_outgoing: sorted(state.get_voters_outgoing()),
            learners_next: sorted(state.get_learners_next()),
            auto_leave: state.auto_leave,
        }
    }
}

impl MemberChange {
    /// Whom it is about.
    pub fn member(&self) -> u64 {
        let (Self::AddLearner(id) | Self::Promote(id) | Self::Remove(id)) = self;
        *id
    }
}

/// The data of the entry that makes the change; more than one wish is done by joint consensus.
pub(crate) fn change_data(changes: &[MemberChange]) -> Bytes {
    let single = |change: &MemberChange| {
        let mut single = ConfChangeSingle { node_id: change.member(), ..ConfChangeSingle::default() };
        single.set_change_type(match change {
            MemberChange::AddLearner(_) => ConfChangeType::AddLearnerNode,
            MemberChange::Promote(_) => ConfChangeType::AddNode,
            MemberChange::Remove(_) => ConfChangeType::RemoveNode,
        });
        single
    };
    let mut change = ConfChangeV2::default();
    change.set_changes(changes.iter().map(single).collect::<Vec<_>>().into());
    change.write_to_bytes().expect("the message has no required fields").into()
}

/// What [`change_data`] made, or what the engine made to end a transition; `None` if it is neither.
pub(crate) fn read_change(data: &[u8]) -> Option<ConfChangeV2> {
    let mut change = ConfChangeV2::default();
    change.merge_from_bytes(data).ok()?;
    Some(change)
}

/// The wishes in the data of an entry.
pub(crate) fn read_wishes(data: &[u8]) -> Option<Vec<MemberChange>> {
    let wish = |single: &ConfChangeSingle| match single.get_change_type() {
        ConfChangeType::AddLearnerNode => MemberChange::AddLearner(single.node_id),
        ConfChangeType::AddNode => MemberChange::Promote(single.node_id),
        ConfChangeType::RemoveNode => MemberChange::Remove(single.node_id),
    };
    Some(read_change(data)?.get_changes().iter().map(wish).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(voters: &[u64], learners: &[u64]) -> Members {
        Members { voters: voters.to_vec(), learners: learners.to_vec(), ..Members::default() }
    }

    #[test]
    fn members_survive_their_bytes_and_nothing_else_does() {
        let joint = Members {
            voters: vec![1, 2, 4],
            learners: vec![9],
            voters_outgoing: vec![1, 2, 3],
            learners_next: vec![3],
            auto_leave: true,
        };
        for members in [Members::default(), Members::founded_by(7), joint] {
            let bytes = members.encode();
            assert_eq!(Members::decode(&bytes), Some(members.clone()));
            assert_eq!(Members::from_engine(&members.to_engine()), members);
            for len in 0..bytes.len() {
                assert_eq!(Members::decode(&bytes[..len]), None);
            }
            assert_eq!(Members::decode(&[bytes, vec![0]].concat()), None);
        }
        assert_eq!(Members::decode(&[2, 0]), None, "a newer form");
        assert_eq!(Members::decode(&[1, 0, 255, 255, 255, 255, 1]), None);
    }

    #[test]
    fn a_change_that_makes_no_sense_is_refused() {
        use MemberChange::{AddLearner, Promote, Remove};
        let three = members(&[1, 2, 3], &[4]);
        for (changes, expected) in [
            (vec![], Err(ChangeError::Malformed)),
            (vec![AddLearner(0)], Err(ChangeError::Malformed)),
            (vec![AddLearner(5), Remove(5)], Err(ChangeError::Malformed)),
            (vec![AddLearner(3)], Err(ChangeError::Votes(3))),
            (vec![AddLearner(4)], Ok(())),
            (vec![AddLearner(5), Remove(3)], Ok(())),
            (vec![Promote(5)], Err(ChangeError::NoLearner(5))),
            (vec![Promote(4), Remove(1)], Ok(())),
            (vec![Promote(1)], Ok(())),
            (vec![Remove(1), Remove(2), Remove(3)], Err(ChangeError::LastVoter)),
            (vec![Remove(1), Remove(2), Remove(3), Promote(4)], Ok(())),
            (vec![Remove(17)], Ok(())),
        ] {
            assert_eq!(three.check(&changes), expected, "{changes:?}");
            if !changes.is_empty() {
                assert_eq!(read_wishes(&change_data(&changes)), Some(changes));
            }
        }
        assert_eq!(members(&[1], &[]).check(&[Remove(1)]), Err(ChangeError::LastVoter));
    }
}
