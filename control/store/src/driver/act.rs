//! What consensus wishes, done in the order of its wishes.

use super::{Driver, GATHER_MAX, Health, Reply, Standing, Waiting, Write};
use crate::error::{Failure, WriteError};
use crate::flusher::Flushed;
use crate::image::{Image, Snapshot};
use crate::recover;
use crate::replica::RoleNow;
use crate::wal::Checkpoint;
use dhow_consensus::{Committed, In, Install, Members, Out, Persist, Position, ProposalId, ReadId, Role};
use dhow_state::{Applied, Change, DecodeError, Prepared, Rejected, State, Txn};
use dhow_types::{Machine, Revision};
use std::mem;
use std::sync::{Arc, PoisonError};
use std::time::Instant;
use tokio::sync::OwnedSemaphorePermit;

/// How many entries are applied under one lock: readers wait for no more than about a millisecond.
const APPLY_MAX: usize = 256;

/// An image on its way to become the state: first the object database, then the log, then what is in memory.
pub(super) struct Installing {
    install: Install,
    state: State,
}

/// An entry that has been read, which takes longer than to apply it and needs no lock.
struct Ready {
    position: Position,
    members: Option<Members>,
    what: What,
}

enum What {
    /// A write of this member, whose writer waits.
    Own(Prepared, Reply<Applied>, OwnedSemaphorePermit),
    /// A write of another member, or of a former life: who cares how it ends hears of it there.
    Foreign(Prepared),
    Change(Reply<Members>),
    /// Nothing for the state; `carried` if the entry carried something all the same.
    Nothing {
        carried: bool,
    },
    /// Nobody of this version wrote it.
    Unreadable(DecodeError),
}

/// Answers that are given once the lock is free and the watchers are served.
#[derive(Default)]
struct Answers {
    writes: Vec<(Reply<Applied>, OwnedSemaphorePermit, Result<Applied, Rejected>)>,
    changes: Vec<Reply<Members>>,
}

impl Driver {
    pub(super) fn act(&mut self, out: Vec<Out>) {
        self.work.wishes.extend(out);
        let mut held = Vec::new();
        while let Some(wish) = self.work.wishes.pop_front() {
            // What comes behind an image waits for it; heartbeats and the like do not.
            let waits = matches!(wish, Out::Persist(_) | Out::Commit(_) | Out::Install(_));
            if waits && self.work.installing.is_some() {
                held.push(wish);
                continue;
            }
            if let Some(input) = self.fulfil(wish) {
                let mut more = Vec::new();
                self.consensus.handle(self.now(), input, &mut more);
                self.work.wishes.extend(more);
            }
            if self.is_broken() {
                self.work.wishes.clear();
                return;
            }
        }
        self.work.wishes.extend(held);
    }

    fn fulfil(&mut self, wish: Out) -> Option<In> {
        match wish {
            Out::Persist(persist) => return self.persist(persist),
            Out::Send(messages) => {
                messages.into_iter().for_each(|message| self.peers.send(message.to, message.bytes));
            }
            Out::Commit(entries) => return self.apply(entries).map(In::Applied),
            Out::ReadReady(id) => {
                let revision = self.shared.state.read().unwrap_or_else(PoisonError::into_inner).revision();
                self.answer_read(id, &Ok(revision));
            }
            Out::Lost { proposals, reads } => {
                proposals.into_iter().for_each(|id| self.answer_error(id, WriteError::Lost));
                // What is committed may wait here for room on the disk.
                let why = self.log.refusal(0).map_or(WriteError::NoLeader, WriteError::Unavailable);
                reads.into_iter().for_each(|id| self.answer_read(id, &Err(why.clone())));
            }
            Out::Refused(id, why) => self.answer_error(id, why.into()),
            Out::Role { role, term } => self.show_role(role, term),
            Out::SendSnapshot { to, message } => {
                let Some(is_witness) = self.consensus.is_witness(to) else {
                    // Who has not spoken yet might be one. It is asked for again once it has.
                    return Some(In::SnapshotSent { to, ok: false });
                };
                let state = self.shared.state.read().unwrap_or_else(PoisonError::into_inner);
                let Standing { applied, members } = self.shared.standing().clone();
                let make = if is_witness { Snapshot::bare } else { Snapshot::new };
                let snapshot = make(&state, applied, members).with_message(message);
                drop(state);
                tracing::info!(to, bytes = snapshot.bytes(), "sending a snapshot");
                self.peers.send_snapshot(to, snapshot);
            }
            Out::Install(install) => self.begin_install(install),
            Out::Forgot { known, last } => {
                let what = format!(
                    "the member had acknowledged its log up to entry {known}, and its disk holds it up to {last}"
                );
                self.end(Failure { why: recover::condemn(&self.dir, what), is_loss: true });
            }
        }
        None
    }

    fn persist(&mut self, persist: Persist) -> Option<In> {
        let number = persist.number;
        let members = self.consensus.members();
        let alone = members.is_sole_voter(self.member) && members.learners.is_empty();
        let left = if alone { self.log.persist_here(persist) } else { Err(persist) };
        match left {
            Ok(()) if self.log.has_failed() => None,
            Ok(()) => Some(In::Persisted(number)),
            Err(persist) => {
                self.log.persist(persist);
                self.work.writing = Some((number, Instant::now() + GATHER_MAX));
                None
            }
        }
    }

    fn show_role(&mut self, role: Role, term: u64) {
        let leader = match role {
            Role::Leader => Some(self.member),
            Role::Follower { leader } => leader,
            Role::Candidate | Role::Removed => None,
        };
        tracing::info!(?role, term, "the role changed");
        self.role.send_replace(RoleNow { role, term, leader });
    }

    /// Applies entries and answers those who wait for them. Gives the index that is reached, unless an entry cannot
    /// be read.
    fn apply(&mut self, entries: Vec<Committed>) -> Option<u64> {
        let mut entries = entries.into_iter().peekable();
        let mut reached = None;
        while entries.peek().is_some() {
            reached = Some(self.apply_some(entries.by_ref().take(APPLY_MAX))?);
        }
        reached
    }

    fn apply_some(&mut self, entries: impl Iterator<Item = Committed>) -> Option<u64> {
        let ready: Vec<Ready> = entries.map(|entry| self.make_ready(entry)).collect();
        let mut changes: Vec<Arc<Change>> = Vec::new();
        let mut answers = Answers::default();
        let (mut carried, mut unreadable) = (false, None);
        let shared = self.shared.clone();
        let mut state = shared.state.write().unwrap_or_else(PoisonError::into_inner);
        let mut standing = shared.standing().clone();
        for Ready { position, members, what } in ready {
            if let What::Unreadable(error) = what {
                unreadable = Some(format!("entry {} of the log cannot be applied: {error}", position.index));
                break;
            }
            if position <= standing.applied {
                // Handed out before an image was installed that holds it; how a write ended nobody can say any more.
                continue;
            }
            carried |= members.is_some() || !matches!(what, What::Nothing { carried: false } | What::Change(_));
            standing.members = members.unwrap_or(standing.members);
            standing.applied = position;
            apply_one(&mut state, position.index, what, &mut changes, &mut answers);
        }
        *shared.standing() = standing.clone();
        let (revision, hash) = (state.revision(), state.hash());
        drop(state);
        let Standing { applied, members } = standing;
        if carried {
            self.flusher.add(&changes, Checkpoint { applied, revision: revision.0, hash, members: members.clone() });
        }
        if !changes.is_empty() {
            self.shared.hub.publish(&changes, revision);
        }
        for (reply, _room, ended) in answers.writes {
            let _ = reply.send(ended.map_err(WriteError::from));
        }
        self.answer_changes(answers.changes, &members);
        if let Some(why) = unreadable {
            self.fail(format!("{why}; run a newer dhow"));
            return None;
        }
        Some(applied.index)
    }

    fn make_ready(&mut self, entry: Committed) -> Ready {
        let Committed { index, term, id, data, members } = entry;
        let waiting = id.and_then(|id| self.work.waiting.remove(&id));
        let what = match waiting {
            Some(Waiting::Write(Write { prepared, reply, _room: room, .. })) => What::Own(prepared, reply, room),
            Some(Waiting::Change(reply)) => What::Change(reply),
            None if data.is_empty() => What::Nothing { carried: false },
            None if self.witness => What::Nothing { carried: true },
            None => match Txn::decode(data).map(Txn::prepare) {
                Ok(Ok(prepared)) => What::Foreign(prepared),
                // No state accepts it: it was refused wherever it was applied.
                Ok(Err(_)) => What::Nothing { carried: true },
                Err(error) => What::Unreadable(error),
            },
        };
        Ready { position: Position { index, term }, members, what }
    }

    /// A change is done when no joint membership is left.
    fn answer_changes(&mut self, changes: Vec<Reply<Members>>, members: &Members) {
        self.work.joint.extend(changes);
        if !members.is_joint() {
            for reply in mem::take(&mut self.work.joint) {
                let _ = reply.send(Ok(members.clone()));
            }
        }
    }

    fn begin_install(&mut self, install: Install) {
        let image = self.work.arrived.take().filter(|image| image.position == install.position);
        let Some(image) = image else {
            self.fail("an image was to be installed that is not there; this is a fault of dhow: report it".to_owned());
            return;
        };
        let Image { position, state, .. } = *image;
        let state =
            if self.witness { State::restore(self.shared.history_max, position.index, Revision(0), []) } else { state };
        tracing::info!(index = position.index, objects = state.len(), "installing a snapshot");
        let objects = state.iter().cloned().collect();
        let installing = Installing { install, state };
        self.flusher.install(objects, installing.checkpoint());
        self.work.installing = Some(installing);
    }

    /// The object database holds the image: the log begins anew behind it.
    fn handle_installed(&mut self, checkpoint: Checkpoint) {
        if let Some(Installing { install, .. }) = &self.work.installing {
            self.log.reset(install.number, install.hard_state, checkpoint);
        }
    }

    /// Everything is durable: what is in memory follows.
    fn end_install(&mut self, Installing { install, state: image }: Installing) {
        let revision = image.revision();
        let mut state = self.shared.state.write().unwrap_or_else(PoisonError::into_inner);
        let former = mem::replace(&mut *state, image);
        *self.shared.standing() = Standing { applied: install.position, members: install.members };
        drop(state);
        // To free a million objects takes a while, and readers need not wait for it.
        drop(former);
        self.shared.hub.cut(revision);
    }

    pub(super) fn handle_logged(&mut self) {
        let report = self.log.report();
        if let Some(number) = report.persisted {
            self.work.writing = self.work.writing.filter(|(last, _)| *last > number);
            if let Some(installing) = self.work.installing.take_if(|installing| installing.install.number <= number) {
                self.end_install(installing);
            }
            self.give(In::Persisted(number));
        }
        if let Some(why) = report.failed {
            self.fail(format!("the log could not be written: {why}; restart when the disk is well"));
        } else if let Some(why) = report.stalled {
            self.work.health = Health::Full;
            let error = WriteError::Unavailable(why);
            self.lose_all(&error);
            self.step_down();
        }
    }

    pub(super) fn handle_flushed(&mut self) {
        match self.flusher.result() {
            None => {}
            // What was flushed before an image came is of no interest any more.
            Some(Ok(Flushed::To(_))) if self.work.installing.is_some() => {}
            Some(Ok(Flushed::To(checkpoint))) => self.log.note(checkpoint),
            Some(Ok(Flushed::Installed(checkpoint))) => self.handle_installed(checkpoint),
            Some(Err(error)) => {
                self.fail(format!("the object database could not be written: {error}; restart when the disk is well"));
            }
        }
    }

    /// Flushes what is left, unless an image is on its way, which the next start finds or does not.
    pub(super) fn end_database(&mut self) {
        match self.flusher.stop() {
            Some(Ok(Flushed::To(checkpoint))) if !self.is_broken() && self.work.installing.is_none() => {
                self.log.note(checkpoint);
            }
            Some(Err(error)) => tracing::warn!(%error, "closed without a last flush; the next start replays more"),
            _ => {}
        }
    }

    /// Takes no more writes, and falls silent, so that the other members go on. Whoever waits is told, and may not
    /// assume that nothing happened.
    fn fail(&mut self, why: String) {
        self.end(Failure { why, is_loss: false });
    }

    fn end(&mut self, failure: Failure) {
        let why = failure.why.clone();
        tracing::error!(%why, "the store takes no more writes");
        let error = WriteError::Unavailable(why.clone());
        self.work.health = Health::Broken(why);
        self.failure.send_replace(Some(failure));
        self.lose_all(&error);
        if let Some((id, _)) = self.work.reading {
            self.answer_read(id, &Err(error));
        }
        self.show_role(Role::Follower { leader: None }, self.consensus.term());
    }

    fn lose_all(&mut self, error: &WriteError) {
        let ids: Vec<ProposalId> = self.work.waiting.keys().copied().collect();
        ids.into_iter().for_each(|id| self.answer_error(id, error.clone()));
        for reply in mem::take(&mut self.work.joint) {
            let _ = reply.send(Err(error.clone()));
        }
    }

    fn answer_error(&mut self, id: ProposalId, error: WriteError) {
        match self.work.waiting.remove(&id) {
            Some(Waiting::Write(write)) => drop(write.reply.send(Err(error))),
            Some(Waiting::Change(reply)) => drop(reply.send(Err(error))),
            None => {}
        }
    }

    fn answer_read(&mut self, id: ReadId, answer: &Result<Revision, WriteError>) {
        if let Some((_, readers)) = self.work.reading.take_if(|(reading, _)| *reading == id) {
            readers.into_iter().for_each(|reader| drop(reader.send(answer.clone())));
        }
    }
}

fn apply_one(state: &mut State, index: u64, what: What, changes: &mut Vec<Arc<Change>>, answers: &mut Answers) {
    match what {
        What::Own(prepared, reply, room) => {
            let ended = state.apply_prepared(index, prepared, changes);
            answers.writes.push((reply, room, ended));
        }
        What::Foreign(prepared) => {
            let _ = state.apply_prepared(index, prepared, changes);
        }
        What::Change(reply) => {
            state.apply_nothing(index);
            answers.changes.push(reply);
        }
        What::Nothing { .. } | What::Unreadable(_) => state.apply_nothing(index),
    }
}

impl Installing {
    fn checkpoint(&self) -> Checkpoint {
        let Install { position, members, .. } = &self.install;
        let (revision, hash) = (self.state.revision().0, self.state.hash());
        Checkpoint { applied: *position, revision, hash, members: members.clone() }
    }
}
