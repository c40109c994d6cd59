//! Random bytes from this machine: its processor's generator, if it has one, a seed that the boot loader passed, and all that
//! differs from start to start.
#![allow(unsafe_code)]

use core::arch::x86_64::{_rdrand64_step, _rdseed64_step};

use sha2::{Digest, Sha256};

use super::clock;

/// Random numbers taken from the processor's generator.
const DRAWS: usize = 8;
/// A generator that gives nothing so many times in a row is broken. See: SDM volume 1, 7.3.17.
const TRIES: usize = 100;

/// Random bytes, and where they are from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gathered {
    /// The bytes.
    pub bytes: [u8; 32],
    /// For people: the best of the sources.
    pub source: &'static str,
    /// Whether that is a good one: nobody can guess the bytes.
    pub good: bool,
}

/// Gathers random bytes from the processor, the clocks, a `seed` that nobody knows, and what is `known` and tells this
/// machine from others.
#[must_use]
pub fn gather(seed: Option<&[u8]>, known: &[&[u8]]) -> Gathered {
    let mut pool = Sha256::new();
    pool.update(clock::cycles().to_le_bytes());
    // Waits for the RTC, so that the cycles behind it are other ones each time.
    pool.update(clock::unix_time().to_le_bytes());
    pool.update(clock::cycles().to_le_bytes());
    let has = raw_cpuid::CpuId::new();
    let rdseed = has.get_extended_feature_info().is_some_and(|info| info.has_rdseed());
    let rdrand = has.get_feature_info().is_some_and(|info| info.has_rdrand());
    // SAFETY: the processor has the instruction.
    let seeded = rdseed && draw(&mut pool, || unsafe { rdseed_step() });
    // SAFETY: the same.
    let drawn = rdrand && draw(&mut pool, || unsafe { rdrand_step() });
    for bytes in seed.iter().chain(known) {
        pool.update((bytes.len() as u64).to_le_bytes());
        pool.update(bytes);
    }
    let (source, good) = match () {
        () if seeded => ("RDSEED", true),
        () if drawn => ("RDRAND", true),
        () if seed.is_some() => ("module 'seed'", true),
        () => ("clocks alone", false),
    };
    Gathered { bytes: pool.finalize().into(), source, good }
}

/// Adds numbers to the pool; says whether the generator gave them all, and different ones: there are processors whose
/// generator breaks and gives the same number for ever.
fn draw(pool: &mut Sha256, mut step: impl FnMut() -> Option<u64>) -> bool {
    let mut last = None;
    (0..DRAWS).all(|_| {
        let number = (0..TRIES).find_map(|_| step());
        pool.update(number.unwrap_or(0).to_le_bytes());
        let is_another = number != last;
        last = number;
        is_another && number.is_some()
    })
}

#[target_feature(enable = "rdseed")]
fn rdseed_step() -> Option<u64> {
    let mut number = 0;
    (_rdseed64_step(&mut number) == 1).then_some(number)
}

#[target_feature(enable = "rdrand")]
fn rdrand_step() -> Option<u64> {
    let mut number = 0;
    (_rdrand64_step(&mut number) == 1).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generator_that_fails_is_noticed() {
        let mut pool = Sha256::new();
        let mut calls = 0;
        let slow = || {
            calls += 1;
            (calls % 50 == 0).then_some(calls)
        };
        assert!(draw(&mut pool, slow));
        assert!(!draw(&mut pool, || Some(u64::MAX)));
        assert!(!draw(&mut pool, || None));
    }
}
