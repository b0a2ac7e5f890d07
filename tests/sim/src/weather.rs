//! What goes wrong in a run, drawn from its seed: each run has some kinds of faults and not others, so that they meet in
//! many ways and none hides the rest.

use crate::world::{Event, World};
use dhow_consensus::{In, LagMax, Role};
use dhow_types::Rng;

/// How bad it is.
#[derive(Clone, Debug)]
pub(crate) struct Weather {
    /// Members from the beginning.
    pub(crate) founders: u64,
    /// The last founder only votes.
    pub(crate) witness: bool,
    /// Members come and go.
    pub(crate) churn: bool,
    /// Disks are lost for good, and their members replaced.
    pub(crate) wipes: bool,
    /// Of a thousand messages.
    pub(crate) lost: u64,
    pub(crate) doubled: u64,
    pub(crate) late: u64,
    pub(crate) delay_ms: u64,
    /// Messages of one member to another stay in order.
    pub(crate) ordered: bool,
    pub(crate) sync_ms: u64,
    pub(crate) slow_disks: bool,
    /// Of a thousand syncs.
    pub(crate) failing_syncs: u64,
    pub(crate) crashes: bool,
    /// Of a thousand votes: the voter dies as soon as it has voted.
    pub(crate) deadly_votes: u64,
    pub(crate) pauses: bool,
    pub(crate) cuts: bool,
    pub(crate) transfers: bool,
    pub(crate) skew: bool,
    pub(crate) flush_ms: u64,
    pub(crate) lag_max: LagMax,
    /// Between two faults.
    pub(crate) pace_ms: u64,
    /// It is over, also for planted bugs that would keep anyone from coming to rest.
    pub(crate) is_clear: bool,
}

impl Weather {
    pub(crate) fn draw(rng: &mut Rng) -> Self {
        let founders = [1, 3, 3, 3, 3, 3, 5, 5][rng.below(8) as usize];
        let some = |of: u64, rng: &mut Rng| if rng.chance(1, 2) { 1 + rng.below(of) } else { 0 };
        let entries = 5 + rng.below(60) as usize;
        let wipes = founders > 1 && rng.chance(1, 4);
        let witness = founders == 3 && !wipes && rng.chance(1, 6);
        let mut weather = Self {
            founders,
            witness,
            wipes,
            churn: !wipes && !witness && rng.chance(2, 5),
            lost: some(80, rng),
            doubled: some(80, rng),
            late: some(60, rng),
            delay_ms: 1 + rng.below(20),
            ordered: rng.chance(1, 3),
            sync_ms: 1 + rng.below(15),
            slow_disks: rng.chance(1, 3),
            failing_syncs: if rng.chance(1, 4) { 1 + rng.below(5) } else { 0 },
            crashes: rng.chance(3, 4),
            deadly_votes: if rng.chance(1, 3) { 500 } else { 0 },
            pauses: rng.chance(1, 3),
            cuts: rng.chance(1, 2),
            transfers: rng.chance(1, 3),
            skew: rng.chance(1, 3),
            flush_ms: 100 + rng.below(1_500),
            lag_max: LagMax { entries, bytes: 1 << 20, needed_bytes: 2_000 + rng.below(50_000) as usize },
            pace_ms: 80 + rng.below(500),
            is_clear: false,
        };
        if weather.deadly_votes > 0 {
            // Elections that cross each other: many leaders die, and votes come late.
            (weather.late, weather.crashes, weather.pace_ms) = (100 + rng.below(250), true, 60 + rng.below(150));
        }
        weather
    }

    /// The sun comes out.
    pub(crate) fn clear(&mut self) {
        (self.lost, self.doubled, self.late, self.failing_syncs, self.deadly_votes) = (0, 0, 0, 0, 0);
        (self.delay_ms, self.sync_ms) = (2, 2);
        (self.slow_disks, self.crashes, self.pauses, self.cuts, self.transfers) = (false, false, false, false, false);
        (self.churn, self.wipes, self.is_clear) = (false, false, true);
    }
}

impl World {
    /// The next fault.
    pub(crate) fn handle_weather(&mut self) {
        let pace = self.weather.pace_ms;
        let pause = 1 + self.rng.below(2 * pace);
        self.after(pause, Event::Weather);
        match self.rng.below(12) {
            0..3 if self.weather.crashes => {
                let id = self.random_node();
                self.crash_for_a_while(id);
            }
            3 if self.weather.crashes => {
                if let Some(leader) = self.leader() {
                    self.crash_for_a_while(Some(leader));
                }
            }
            4 if self.weather.crashes && self.rng.chance(1, 3) => {
                let all: Vec<u64> = self.nodes.keys().copied().collect();
                all.into_iter().for_each(|id| self.crash_for_a_while(Some(id)));
            }
            5 if self.weather.pauses => self.pause_one(),
            6..8 if self.weather.cuts => self.cut_some(),
            8 => {
                self.note(format_args!("all ways are open"));
                self.net.cut.clear();
            }
            9 if self.weather.transfers => {
                if let Some(id) = self.random_node() {
                    let to = self.random_node().filter(|_| self.rng.chance(1, 2));
                    self.note(format_args!("{id} shall hand over to {to:?}"));
                    self.give(id, In::TransferLeadership { to });
                }
            }
            10 if self.weather.slow_disks => {
                let (id, until) = (self.random_node(), self.now + 100 + self.rng.below(1_500));
                if let Some(node) = id.and_then(|id| self.nodes.get_mut(&id)) {
                    node.slow_until = until;
                }
            }
            11 if self.weather.wipes => self.wipe_one(),
            _ => {}
        }
    }

    fn crash_for_a_while(&mut self, id: Option<u64>) {
        let Some(id) = id.filter(|id| self.nodes[id].running.is_some()) else { return };
        let long = if self.rng.chance(1, 4) { 4_000 } else { 300 };
        let rest = self.rng.below(long);
        self.crash(id, rest);
    }

    fn pause_one(&mut self) {
        let until = self.now + 20 + self.rng.below(2_000);
        let id = if self.rng.chance(1, 2) { self.leader() } else { self.random_node() };
        if let Some(id) = id {
            self.note(format_args!("{id} stands still until {}", until.as_ms()));
            self.node(id).paused_until = until;
        }
    }

    fn cut_some(&mut self) {
        let ids: Vec<u64> = self.nodes.keys().copied().collect();
        match self.rng.below(3) {
            0 => {
                let one = self.leader().filter(|_| self.rng.chance(1, 2)).or_else(|| self.random_node());
                let Some(one) = one else { return };
                let (hears, speaks) = [(false, false), (false, true), (true, false)][self.rng.below(3) as usize];
                for other in ids.into_iter().filter(|other| *other != one) {
                    if !speaks {
                        self.net.cut.insert((one, other));
                    }
                    if !hears {
                        self.net.cut.insert((other, one));
                    }
                }
            }
            1 => {
                let side: Vec<bool> = ids.iter().map(|_| self.rng.chance(1, 2)).collect();
                for (from, left) in ids.iter().zip(&side) {
                    let others = ids.iter().zip(&side).filter(|(_, right)| left != *right);
                    self.net.cut.extend(others.map(|(to, _)| (*from, *to)));
                }
            }
            _ => {
                let (from, to) = (self.rng.below(ids.len() as u64), self.rng.below(ids.len() as u64));
                self.net.cut.insert((ids[from as usize], ids[to as usize]));
            }
        }
        let cut = std::mem::take(&mut self.net.cut);
        self.note(format_args!("cut {cut:?}"));
        self.net.cut = cut;
    }

    /// One disk is gone for good, unless another one still waits to be replaced.
    fn wipe_one(&mut self) {
        let Some(leader) = self.leader() else { return };
        let members = self.running(leader).consensus.members().clone();
        let whole = members.voters.len() >= 3 && members.learners.is_empty() && !members.is_joint();
        let Some(id) = self.random_node().filter(|id| members.voters.contains(id)) else { return };
        let settled = members.ids().iter().all(|id| !self.nodes[id].gone) && self.operator.is_idle();
        if whole && settled && self.report.wipes < 3 {
            self.crash(id, 0);
            self.note(format_args!("the disk of {id} is lost"));
            self.node(id).gone = true;
            self.report.wipes += 1;
        }
    }

    /// The member that leads in the latest term.
    pub(crate) fn leader(&self) -> Option<u64> {
        let running = self.nodes.iter().filter_map(|(id, node)| Some((*id, &node.running.as_ref()?.consensus)));
        let leaders = running.filter(|(_, consensus)| consensus.role() == Role::Leader);
        leaders.max_by_key(|(_, consensus)| consensus.term()).map(|(id, _)| id)
    }

    /// Anyone who runs.
    pub(crate) fn random_node(&mut self) -> Option<u64> {
        let running: Vec<u64> =
            self.nodes.iter().filter(|(_, node)| node.running.is_some()).map(|(id, _)| *id).collect();
        if running.is_empty() { None } else { Some(running[self.rng.below(running.len() as u64) as usize]) }
    }
}
