//! Reads and writes its disk, many requests in flight at once that overlap, and compares all that it reads with what it has
//! written. Pollux carries out requests that overlap in the order in which they were made; other disks need not.
//!
//! UDP port 7 answers `hash?` with a hash of what was read; at `off` nothing is left in flight, and the guest switches its
//! machine off. What differs is reported as `WRONG`, on the console and there.
#![no_std]
#![no_main]

extern crate alloc;

use alloc::vec::Vec;

use pollux_boot::BootInfo;
use pollux_guests::disk::{Disk, MOST, Request, SECTOR_SIZE};
use pollux_guests::net::{Host, now};
use pollux_guests::observe::Observations;
use pollux_guests::options::Options;
use pollux_guests::random::Random;
use pollux_guests::{lapic, println, runtime};

/// Sectors that are worked on, if there are so many.
const AREA: usize = 256;
/// Most sectors of a request.
const LONGEST: usize = 8;
/// Most sectors of a read of everything, and how many of these are in flight together: more than a device does at once.
const EVERYTHING: usize = 2048;
const TOGETHER: usize = MOST;
/// Rounds between two looks at the network, two flushes, two reads of everything, and two lines on the console.
const POLL_EVERY: u64 = 8;
const FLUSH_EVERY: u64 = 32;
const COMPARE_EVERY: u64 = 1024;
const PRINT_EVERY: u64 = 1024;

pollux_boot::entry!(main);

struct Worker {
    disk: Disk,
    random: Random,
    /// What must be on the disk.
    model: Vec<u8>,
    observations: Observations,
    wrong: u64,
}

fn main(info: &'static BootInfo) -> ! {
    runtime::init(info);
    let options = Options::of(info);
    lapic::init(!options.xapic);
    let disk = Disk::new().unwrap_or_else(|error| panic!("disk: {error}"));
    let mut host = Host::new(&options, true).unwrap_or_else(|error| panic!("network: {error}"));
    let socket = host.add_udp(7);
    let mut worker = Worker::new(disk, options.seed);
    println!("disk: running");
    for round in 0u64.. {
        worker.overlap();
        if round % FLUSH_EVERY == 0 {
            worker.ask_other_things();
        }
        if round % COMPARE_EVERY == 0 {
            worker.compare_all();
        }
        if round % PRINT_EVERY == 0 {
            println!("disk: round {round} hash {:016x}", worker.observations.hash());
        }
        if round % POLL_EVERY == 0 {
            let now = now();
            host.poll(now);
            let mut off = false;
            host.answer_udp(socket, |datagram| {
                off |= datagram == b"off";
                worker.answer(datagram)
            });
            host.send(now);
            if off {
                runtime::power_off();
            }
        }
    }
    runtime::halt()
}

impl Worker {
    /// Begins with whatever is on the disk.
    fn new(disk: Disk, seed: u64) -> Self {
        let sectors = disk.sectors().min(AREA);
        assert!(sectors > LONGEST, "a disk of {sectors} sectors is too small");
        let (random, observations) = (Random::new(seed), Observations::default());
        let mut worker = Self { disk, random, model: Vec::new(), observations, wrong: 0 };
        let mut all = [Request::read(0, sectors)];
        worker.disk.run(&mut all);
        let [Request { data, result, .. }] = all;
        worker.expect("the first read", result.is_ok());
        let sum: u64 = data.iter().map(|&byte| u64::from(byte)).sum();
        println!("disk: {} sectors, the bytes of the first {sectors} add up to {sum}", worker.disk.sectors());
        worker.observations.add(&data);
        worker.model = data;
        worker
    }

    fn sectors(&self) -> usize {
        self.model.len() / SECTOR_SIZE
    }

    fn expect(&mut self, what: &str, is_right: bool) {
        if !is_right {
            self.wrong += 1;
            println!("disk: WRONG {what}");
        }
    }

    fn below(&mut self, bound: usize) -> usize {
        self.random.below(bound as u64) as usize
    }

    /// Requests at random places near each other, in flight together.
    fn overlap(&mut self) {
        let count = 1 + self.below(MOST);
        let near = self.below(self.sectors() - LONGEST);
        let (mut requests, mut expected) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let sectors = 1 + self.below(LONGEST);
            let sector = (near + self.below(LONGEST)).min(self.sectors() - sectors);
            let place = sector * SECTOR_SIZE..(sector + sectors) * SECTOR_SIZE;
            if self.below(2) == 0 {
                let mut data = alloc::vec![0; place.len()];
                for word in data.chunks_mut(8) {
                    word.copy_from_slice(&self.random.number().to_le_bytes());
                }
                self.model[place].copy_from_slice(&data);
                expected.push(data.clone());
                requests.push(Request::write(sector, data));
            } else {
                expected.push(self.model[place].to_vec());
                requests.push(Request::read(sector, sectors));
            }
        }
        self.disk.run(&mut requests);
        for (request, expected) in requests.iter().zip(&expected) {
            self.expect("content", request.result.is_ok() && request.data == *expected);
            if !request.write {
                self.observations.add(&request.data);
            }
        }
    }

    /// Flushes, asks for the name, and for sectors that are not there.
    fn ask_other_things(&mut self) {
        let flushed = self.disk.flush().is_ok();
        self.expect("flush", flushed);
        let name = self.disk.name();
        self.expect("name", name.is_ok());
        self.observations.add(&name.unwrap_or_default());
        let end = self.disk.sectors();
        let mut beyond =
            [Request::read(end - 1, 2), Request::write(end, alloc::vec![0; SECTOR_SIZE]), Request::read(0, 1)];
        self.disk.run(&mut beyond);
        let [first, second, third] = beyond.map(|request| request.result.is_ok());
        self.expect("sectors beyond the end", !first && !second && third);
    }

    /// Everything, several times at once.
    fn compare_all(&mut self) {
        let sectors = self.disk.sectors().min(EVERYTHING);
        let mut all = [(); TOGETHER].map(|()| Request::read(0, sectors));
        self.disk.run(&mut all);
        for read in all {
            let is_right = read.result.is_ok() && read.data.starts_with(&self.model);
            self.expect("content of everything", is_right);
        }
    }

    fn answer(&self, datagram: &[u8]) -> Vec<u8> {
        let mut reply = self.observations.answer(datagram);
        if self.wrong > 0 && reply != datagram {
            reply.extend_from_slice(b"WRONG\n");
        }
        reply
    }
}
