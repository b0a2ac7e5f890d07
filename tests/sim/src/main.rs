//! Many seeds for a long time, or one seed in words.

#![allow(clippy::print_stdout, reason = "a report for a human is what this program is for")]

use dhow_sim_tests::{Bug, Report, World};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

const USAGE: &str = "usage: dhow-sim-tests [--seeds COUNT] [--from SEED] [--bug NAME] | --replay SEED [--bug NAME]";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (mut seeds, mut from, mut replay, mut bug) = (1_000, 0, None, Bug::Sound);
    for pair in arguments.chunks(2) {
        let [name, value] = pair else { return usage() };
        if name == "--bug" {
            let Some(known) = Bug::ALL.into_iter().find(|bug| format!("{bug:?}") == *value) else { return usage() };
            bug = known;
            continue;
        }
        let Ok(value) = value.parse::<u64>() else { return usage() };
        match name.as_str() {
            "--seeds" => seeds = value,
            "--from" => from = value,
            "--replay" => replay = Some(value),
            _ => return usage(),
        }
    }
    match replay {
        Some(seed) => show(seed, bug),
        None => soak(from, seeds, bug),
    }
}

fn usage() -> ExitCode {
    println!("{USAGE}");
    println!("bugs that can be planted: {:?}", Bug::ALL);
    ExitCode::FAILURE
}

fn show(seed: u64, bug: Bug) -> ExitCode {
    match World::try_seed(seed, bug, true) {
        Ok(report) => {
            report.trace.iter().for_each(|line| println!("{line}"));
            println!("seed {seed} holds every promise");
            ExitCode::SUCCESS
        }
        Err(violation) => {
            violation.trace.iter().for_each(|line| println!("{line}"));
            println!("seed {seed}, {violation}");
            ExitCode::FAILURE
        }
    }
}

/// Runs every seed on all processors; each twice, for a run that does not replay is worth nothing.
fn soak(from: u64, seeds: u64, bug: Bug) -> ExitCode {
    let (next, failed, sum) = (AtomicU64::new(from), AtomicBool::new(false), Mutex::new(Report::default()));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= from + seeds {
                        return;
                    }
                    let run = || World::try_seed(seed, bug, false);
                    let (first, second) = (run(), run());
                    if let Ok(report) = &first {
                        sum.lock().unwrap_or_else(PoisonError::into_inner).add(report);
                    }
                    if let Err(violation) = &first {
                        failed.store(true, Ordering::Relaxed);
                        println!("seed {seed}, {violation}\n  replay it in words with --replay {seed}");
                    } else if first != second {
                        failed.store(true, Ordering::Relaxed);
                        println!("seed {seed} does not replay");
                    }
                    if (seed + 1 - from).is_multiple_of(1_000) {
                        println!("{} seeds", seed + 1 - from);
                    }
                }
            });
        }
    });
    println!("{:?}", sum.into_inner().unwrap_or_else(PoisonError::into_inner));
    if failed.load(Ordering::Relaxed) { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
