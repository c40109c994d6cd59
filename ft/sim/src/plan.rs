//! What a seed chooses: the machines, the network, the guest and which faults there will be.

use crate::net::Quality;
use crate::rng::Rng;
use pollux_ft::{Config, Protection, Span};

/// Events of a run at most: some hundred times those of a usual one.
const MOST_EVENTS: u64 = 5_000_000;

/// What the machines protect their words with: a number that no attacker here looks at, which costs less than a cipher.
const PROTECTION: Protection = Protection::Checksum(0x6765_6D69_6E69);

/// How faults come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Faults {
    /// One at a time; the next when the guest is protected again. No single fault may lose the guest.
    OneByOne,
    /// At any time. What then can be lost may be lost, but no rule may be broken.
    Storm,
}

/// All that a seed chooses at the start.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) machines: usize,
    pub(crate) arbiter: bool,
    /// Machines start by themselves, create the guest where there is none, and come back as they were started.
    pub(crate) auto: bool,
    pub(crate) faults: Faults,
    /// Microseconds until faults stop.
    pub(crate) duration: u64,
    /// Mean time between two faults.
    pub(crate) pause: u64,
    pub(crate) quality: Quality,
    pub(crate) config: Config,
    pub(crate) clients: usize,
    /// Mean time that a client thinks between two requests.
    pub(crate) think: u64,
    pub(crate) busy_guest: bool,
    /// Ticks that a request takes at most.
    pub(crate) work: u64,
    /// Ticks per thousand microseconds that machines run.
    pub(crate) speeds: [u64; crate::net::MACHINES],
    /// Frames that the gate holds.
    pub(crate) gate_frames: usize,
    /// Guest time by which the backup may lag, in nanoseconds.
    pub(crate) lag_bound: u64,
    /// The guest switches itself off in the end.
    pub(crate) power_off: bool,
    /// The guest has a disk.
    pub(crate) disk: bool,
    /// Mean time that a request to it takes, in microseconds.
    pub(crate) disk_latency: u64,
    /// A run of more events than this does not end.
    pub(crate) most_events: u64,
}

/// Runs whose machines start by themselves, per thousand.
const RUNS_WITHOUT_A_PERSON: u64 = 300;

impl Plan {
    /// Perhaps nobody tells the machines what they are.
    pub(crate) fn perhaps_auto(mut self, rng: &mut Rng) -> Self {
        if rng.chance(RUNS_WITHOUT_A_PERSON) {
            (self.auto, self.machines) = (true, 2);
        }
        self
    }

    /// The plan of a seed.
    pub(crate) fn new(rng: &mut Rng) -> Self {
        let heartbeat = rng.pick(&[50, 100, 100, 200]);
        let suspect = heartbeat * rng.between(5, 10);
        let arbiter = rng.chance(950);
        let config = Config {
            arbiter,
            heartbeat_interval: Span::from_millis(heartbeat),
            suspect_after: Span::from_millis(suspect),
            ack_timeout: Span::from_millis(suspect * rng.between(1, 3)),
            ack_delay: Span::from_millis(rng.between(1, 50)),
            // No machine has more, see the hypervisor's options.
            batch_delay: Span::from_millis(rng.between(1, 250.min(suspect / 4))),
            packet_delay: Span::from_millis(rng.between(0, 20)),
            batch_bytes: rng.between(200, 8000) as usize,
            send_buffer_bytes: 200 * 1024,
            receive_buffer_bytes: rng.pick(&[8, 64, 512]) * 1024,
            max_entries: rng.pick(&[64, 400, 4000]),
            protection: PROTECTION,
            ..Config::default()
        };
        let storm = rng.chance(500);
        let usual = 1000;
        Self {
            machines: if rng.chance(400) { 3 } else { 2 },
            arbiter,
            auto: false,
            faults: if storm { Faults::Storm } else { Faults::OneByOne },
            duration: rng.between(4, 14) * 1_000_000,
            pause: rng.between(100, 1500) * 1000,
            quality: Quality {
                delay: rng.pick(&[50, 200, 1000, 5000]),
                jitter: rng.pick(&[50, 500, 5000]),
                loss: rng.pick(&[0, 0, 10, 100]),
                doubled: rng.pick(&[0, 10, 50]),
                window: rng.pick(&[4, 64, 256]) * 1024,
            },
            config,
            clients: rng.between(1, 4) as usize,
            think: rng.between(2, 60) * 1000,
            busy_guest: rng.chance(500),
            work: rng.between(50, 3000),
            speeds: [usual, rng.pick(&[usual, usual, 700, 1500]), rng.pick(&[usual, 700, 1500])],
            gate_frames: rng.pick(&[8, 64, 256]),
            lag_bound: rng.pick(&[200, 500, 1000]) * 1_000_000,
            power_off: rng.chance(50),
            disk: rng.chance(400),
            disk_latency: rng.pick(&[0, 100, 1_000, 10_000]),
            most_events: MOST_EVENTS,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_plan_makes_sense() {
        for seed in 0..100_000 {
            assert_eq!(Plan::new(&mut Rng::new(seed, 1)).config.check(), Ok(()), "seed {seed}");
        }
    }
}
