//! Many seeds of a simulated control plane.

#![allow(clippy::unwrap_used, reason = "a test may stop where it finds what it does not expect")]

use dhow_sim_tests::{Bug, Report, Violation, World};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

const SEEDS: u64 = 200;

/// Runs seeds on all processors until `enough` says so; the results come in the order of the seeds.
fn run_all(
    bug: Bug,
    enough: impl Fn(&Result<Report, Violation>) -> bool + Sync,
) -> Vec<(u64, Result<Report, Violation>)> {
    let (next, results) = (AtomicU64::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= SEEDS {
                        return;
                    }
                    let result = World::try_seed(seed, bug, false);
                    if enough(&result) {
                        next.store(SEEDS, Ordering::Relaxed);
                    }
                    results.lock().unwrap().push((seed, result));
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap();
    results.sort_by_key(|(seed, _)| *seed);
    results
}

#[test]
fn no_seed_breaks_a_promise_and_each_replays() {
    let (first, second) = (run_all(Bug::Sound, Result::is_err), run_all(Bug::Sound, Result::is_err));
    let mut sum = Report::default();
    for ((seed, one), (_, other)) in first.into_iter().zip(second) {
        let report = one.clone().unwrap_or_else(|violation| {
            panic!("seed {seed}, {violation}\nreplay: cargo run -p dhow-sim-tests -- --replay {seed}")
        });
        assert_eq!(one, other, "seed {seed} does not replay");
        sum.add(&report);
    }
    // A simulation in which little happens would hold any promise.
    let seeds = SEEDS as usize;
    let often = [sum.acknowledged, sum.rejected, sum.reads, sum.watched];
    assert!(often.iter().all(|count| *count > 20 * seeds), "{sum:?}");
    let now_and_then = [sum.unknown, sum.relists, sum.crashes, sum.terms];
    assert!(now_and_then.iter().all(|count| *count > 2 * seeds), "{sum:?}");
    let seldom = [sum.refused, sum.wipes, sum.images, sum.changes];
    assert!(seldom.iter().all(|count| *count > seeds / 10), "{sum:?}");
    assert!(sum.undecided * 100 < seeds, "{sum:?}");
}

#[test]
fn planted_bugs_are_found() {
    for bug in Bug::ALL {
        let results = run_all(bug, Result::is_err);
        let found = results.iter().find(|(_, result)| result.is_err());
        let (seed, found) = found.unwrap_or_else(|| panic!("{bug:?} is not found by {SEEDS} seeds"));
        println!("{bug:?}: seed {seed}, {}", found.as_ref().unwrap_err());
    }
}
