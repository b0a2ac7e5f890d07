//! Many seeds of the simulated store.

#![allow(clippy::unwrap_used, reason = "a test may stop where it finds what it does not expect")]

use dhow_sim_tests::{Bug, World};

const SEEDS: u64 = 200;
const STEPS: u64 = 400;

#[test]
fn no_seed_breaks_a_promise() {
    let (mut acknowledged, mut rejected, mut reads, mut watched, mut crashes) = (0, 0, 0, 0, 0);
    for seed in 0..SEEDS {
        let report =
            World::new(seed, Bug::Sound).run(STEPS).unwrap_or_else(|violation| panic!("seed {seed}: {violation}"));
        acknowledged += report.acknowledged;
        rejected += report.rejected;
        reads += report.reads;
        watched += report.watched;
        crashes += report.crashes;
    }
    // A simulation in which little happens would hold any promise.
    let happened = [acknowledged, rejected, reads, watched, crashes];
    assert!(happened.iter().all(|count| *count > SEEDS as usize * 3), "{happened:?}");
}

#[test]
fn a_seed_replays() {
    for seed in 0..20 {
        let run = || World::new(seed, Bug::Sound).run(STEPS).unwrap();
        assert_eq!(run(), run(), "seed {seed}");
    }
}

#[test]
fn planted_bugs_are_found() {
    for bug in [
        Bug::EarlyAcknowledgement,
        Bug::SkippedSync,
        Bug::EarlyTruncation,
        Bug::DroppedChange,
        Bug::RepeatedChange,
        Bug::StaleRead,
        Bug::IgnoredRejection,
    ] {
        let found = (0..20).filter(|seed| World::new(*seed, bug).run(STEPS).is_err()).count();
        assert!(found >= 5, "{bug:?} is found by {found} of 20 seeds");
    }
}
