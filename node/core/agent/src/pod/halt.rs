//! How a running container comes to its end: its `preStop` hook, its turn, the word that it is to end.
//!
//! All of it happens within one grace period. `No → PreStop → Turn → Told`: what a container does not have is passed
//! over. A sidecar's turn is when the containers after it have ended; every other container's is at once.

use dhow_types::Time;

use super::{Ending, PodRun};
use crate::container::{Halt, Part, Step};
use crate::message::{ContainerRef, EventKind, HookKind, Out};

/// What a container gets to end by itself when its hook or the wait for its turn took the whole grace period; as a
/// kubelet has it.
const LEAST_MS: u64 = 2_000;

impl PodRun {
    /// Begins to end all containers, each within `grace_ms`; within less if they get less time now than before.
    pub(super) fn halt_all(&mut self, grace_ms: u64, now: Time, out: &mut Vec<Out>) {
        for at in 0..self.containers.len() {
            let message = format!("Stopping container {}", self.containers[at].name);
            self.halt(at, grace_ms, &message, now, out);
        }
        self.go_on_halting(now, out);
    }

    /// Ends a container that is to be started again.
    pub(super) fn restart(&mut self, at: usize, grace_ms: u64, message: &str, now: Time, out: &mut Vec<Out>) {
        self.halt(at, grace_ms, message, now, out);
        self.go_on_halting(now, out);
    }

    fn halt(&mut self, at: usize, grace_ms: u64, message: &str, now: Time, out: &mut Vec<Out>) {
        let until = now + grace_ms;
        match self.containers[at].halt_mut() {
            None => {}
            Some(halt @ Halt::No) => {
                *halt = Halt::Turn { ends: until };
                self.event(now, Some(at), EventKind::Normal, "Killing", message.to_owned(), out);
                if grace_ms > 0 && self.wish_hook(at, HookKind::PreStop, Some(grace_ms), out) {
                    self.set_halt(at, Halt::PreStop { ends: until });
                } else if grace_ms == 0 || self.has_turn(at) {
                    self.tell(at, grace_ms, out);
                }
            }
            Some(Halt::PreStop { ends } | Halt::Turn { ends }) => {
                *ends = until.min(*ends);
                if grace_ms == 0 {
                    self.tell(at, grace_ms, out);
                }
            }
            Some(Halt::Told { grace_ms: given }) if *given <= grace_ms => {}
            Some(Halt::Told { .. }) => self.tell(at, grace_ms, out),
        }
    }

    /// Tells those to end whose turn or last moment has come.
    pub(super) fn go_on_halting(&mut self, now: Time, out: &mut Vec<Out>) {
        for at in 0..self.containers.len() {
            let (ends, turn) = match self.containers[at].halt_mut() {
                Some(Halt::PreStop { ends }) => (*ends, false),
                Some(Halt::Turn { ends }) => (*ends, true),
                _ => continue,
            };
            if (turn && self.has_turn(at)) || self.due(Some(ends), now) {
                self.tell(at, ends.ms_since(now).max(LEAST_MS), out);
            }
        }
    }

    /// A `postStart` or `preStop` hook ended.
    pub(super) fn hooked(
        &mut self,
        now: Time,
        (at, attempt): (&ContainerRef, u32),
        hook: HookKind,
        result: Result<(), String>,
        out: &mut Vec<Out>,
    ) {
        let Some(at) = self.find(at, |step| matches!(step, Step::PostStart { .. } | Step::Running { .. })) else {
            return;
        };
        if self.containers[at].attempt != Some(attempt) {
            return;
        }
        match (hook, self.containers[at].step.clone()) {
            // PostStart → Running, or the container is ended and its restart policy decides.
            (HookKind::PostStart, Step::PostStart { since, halt: Halt::No }) => match result {
                Ok(()) => self.running(at, since, now, out),
                Err(why) => {
                    let message = format!("PostStartHook failed: {why}");
                    self.event(now, Some(at), EventKind::Warning, "FailedPostStartHook", message, out);
                    self.restart(at, self.grace_ms(Ending::Over), "FailedPostStartHook", now, out);
                }
            },
            (HookKind::PreStop, Step::PostStart { halt, .. } | Step::Running { halt, .. }) => {
                let Halt::PreStop { ends } = halt else { return };
                if let Err(why) = result {
                    let message = format!("PreStopHook failed: {why}");
                    self.event(now, Some(at), EventKind::Warning, "FailedPreStopHook", message, out);
                }
                self.set_halt(at, Halt::Turn { ends });
            }
            (HookKind::PostStart, _) | (HookKind::PreStop, _) => {}
        }
    }

    /// Wishes a hook to be run, if the container has it.
    pub(super) fn wish_hook(&self, at: usize, hook: HookKind, timeout_ms: Option<u64>, out: &mut Vec<Out>) -> bool {
        let container = &self.containers[at];
        let lifecycle = container.spec(&self.pod).and_then(|spec| spec.lifecycle.as_ref());
        let handler = lifecycle.and_then(|lifecycle| match hook {
            HookKind::PostStart => lifecycle.post_start.clone(),
            HookKind::PreStop => lifecycle.pre_stop.clone(),
        });
        let Some(handler) = handler.filter(|_| container.part != Part::Init) else { return false };
        let (attempt, handler, pod) = (container.attempt.unwrap_or(0), Box::new(handler), self.pod.clone());
        out.push(Out::Hook { at: self.container_ref(at), attempt, hook, handler, timeout_ms, pod });
        true
    }

    /// Whether nothing that is to end before this container still runs.
    fn has_turn(&self, at: usize) -> bool {
        let ordered = self.containers[at].part == Part::Sidecar && self.ending().is_some();
        !ordered || !self.containers[at + 1..].iter().any(|later| later.busy())
    }

    fn tell(&mut self, at: usize, grace_ms: u64, out: &mut Vec<Out>) {
        self.set_halt(at, Halt::Told { grace_ms });
        let attempt = self.containers[at].attempt.unwrap_or(0);
        out.push(Out::Stop { at: self.container_ref(at), attempt, grace_ms });
    }

    fn set_halt(&mut self, at: usize, halt: Halt) {
        if let Some(now) = self.containers[at].halt_mut() {
            *now = halt;
        }
    }
}
