//! Messages on their way: lost, late, doubled, and out of order.

use crate::disk::Image;
use crate::world::{Event, World};
use bytes::Bytes;
use dhow_consensus::{In, Message, Position};
use dhow_types::Time;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

#[derive(Debug, Default)]
pub(crate) struct Network {
    /// Ways that lose everything.
    pub(crate) cut: BTreeSet<(u64, u64)>,
    /// When the last message of an ordered way arrives.
    last: BTreeMap<(u64, u64), Time>,
}

impl World {
    pub(crate) fn send(&mut self, from: u64, messages: Vec<Message>) {
        for Message { to, bytes } in messages {
            if self.net.cut.contains(&(from, to)) || self.rng.below(1_000) < self.weather.lost {
                // Sometimes the sender finds out.
                if self.rng.chance(1, 20) {
                    let life = self.node(from).life;
                    self.after(30, Event::Unreachable { node: from, life, member: to });
                }
                continue;
            }
            let copies = 1 + usize::from(self.rng.below(1_000) < self.weather.doubled);
            for _ in 0..copies {
                let at = self.arrival(from, to);
                self.at(at, Event::Deliver { from, to, bytes: bytes.clone() });
            }
        }
    }

    fn arrival(&mut self, from: u64, to: u64) -> Time {
        let mut delay = 1 + self.rng.below(self.weather.delay_ms);
        if self.rng.below(1_000) < self.weather.late {
            delay += self.rng.below(600);
        }
        let mut at = self.now + delay;
        if self.weather.ordered {
            let last = self.net.last.entry((from, to)).or_insert(at);
            at = at.max(*last);
            *last = at;
        }
        at
    }

    pub(crate) fn deliver(&mut self, from: u64, to: u64, bytes: Bytes) {
        if !self.net.cut.contains(&(from, to)) && self.is_running(to) {
            self.give(to, In::Message(bytes));
        }
    }

    /// The sender takes an image of its state, which may have moved on since it was asked to.
    pub(crate) fn capture(&mut self, from: u64, to: u64, message: Bytes) {
        let image = self.running(from).image();
        let mut position = image.position;
        if self.bug == crate::Bug::ImageAtWrongPosition && self.rng.chance(1, 2) {
            position.index -= 1;
        }
        let life = self.node(from).life;
        let delay = 5 + self.rng.below(8 * self.weather.delay_ms);
        self.note(format_args!("{from} sends an image at {} to {to}", position.index));
        self.after(delay, Event::Image { from, life, to, message, position, image });
    }

    pub(crate) fn deliver_image(
        &mut self,
        (from, life): (u64, u64),
        to: u64,
        message: Bytes,
        position: Position,
        image: Arc<Image>,
    ) {
        let lost = self.rng.below(1_000) < self.weather.lost;
        let arrives = !lost && !self.net.cut.contains(&(from, to)) && self.is_running(to);
        if arrives {
            let members = image.members.clone();
            let image = Image { position, ..(*image).clone() };
            self.running(to).offered = Some(Arc::new(image));
            self.give(to, In::Snapshot { message, position, members });
            if let Some(running) = &mut self.node(to).running {
                running.offered = None;
            }
        }
        if self.is_running(from) && self.node(from).life == life {
            self.give(from, In::SnapshotSent { to, ok: arrives });
        }
    }
}
