//! The smoke run of the fuzz targets: their seeds, and thousands of mutations of the seeds.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code: a panic is its report")]
#![allow(clippy::print_stdout, reason = "the measured figures are for the reader of --nocapture")]

#[path = "../fuzz/src/lib.rs"]
#[allow(unreachable_pub, reason = "a library of its own where the fuzzer runs it")]
mod entries;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use fastrand::Rng;

/// The number of inputs for each target; fewer if the time is over.
const INPUTS: u32 = 20_000;
const MOST_TIME: Duration = Duration::from_secs(6);
/// The maximum length of an input.
const LONGEST: usize = 4096;
/// A fixed seed, so that every run has the same inputs.
const SEED: u64 = 7;

fn seeds(target: &str) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
    let mut paths: Vec<_> =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty());
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// A seed with some bytes changed, removed, doubled or invented; sometimes random bytes only.
fn mutated(random: &mut Rng, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = random.choice(seeds).unwrap().clone();
    if random.u8(..) < 32 {
        bytes = (0..random.usize(..LONGEST)).map(|_| random.u8(..)).collect();
    }
    for _ in 0..random.u8(1..6) {
        let at = random.usize(..=bytes.len());
        let end = (at + random.usize(..16)).min(bytes.len());
        match random.u8(..5) {
            0 => bytes.truncate(at),
            1 => drop(bytes.drain(at..end)),
            2 => bytes.extend_from_within(at..end),
            3 => bytes.insert(at, random.u8(..)),
            _ => bytes[at..end].iter_mut().for_each(|byte| *byte ^= 1 << random.u8(..8)),
        }
    }
    bytes.truncate(LONGEST);
    bytes
}

fn feed(target: &str, entry: fn(&[u8]), input: &[u8]) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| entry(input))) {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{target}"));
        fs::write(&path, input).unwrap();
        println!("{target} failed with the input {}", path.display());
        resume_unwind(panic);
    }
}

#[test]
fn every_target_takes_its_seeds_and_thousands_of_mutations() {
    for (target, entry) in entries::ALL {
        let (seeds, mut random, begin) = (seeds(target), Rng::with_seed(SEED), Instant::now());
        seeds.iter().for_each(|seed| feed(target, entry, seed));
        let mut inputs = 0;
        while inputs < INPUTS && begin.elapsed() < MOST_TIME {
            feed(target, entry, &mutated(&mut random, &seeds));
            inputs += 1;
        }
        println!("{target}: {inputs} inputs in {:?}", begin.elapsed());
        assert!(inputs >= 200, "{target}: only {inputs} inputs");
    }
}
