//! Polls its receive buffer in memory, without interrupts, and hashes what it sees and when.
//!
//! UDP port 7 echoes; the datagram `hash?` is answered with the hash and the number of frames. A frame that was seen in part
//! is reported as `TORN`, on the console and in every later answer to `hash?`.
#![no_std]
#![no_main]

extern crate alloc;

use alloc::vec::Vec;

use pollux_boot::BootInfo;
use pollux_guests::net::{Host, now};
use pollux_guests::observe::Observations;
use pollux_guests::options::Options;
use pollux_guests::rx_poll::RxPoll;
use pollux_guests::{println, runtime};

pollux_boot::entry!(main);

fn main(info: &'static BootInfo) -> ! {
    runtime::init(info);
    let options = Options::of(info);
    let mut host = match RxPoll::new().and_then(|device| Host::on(device, &options)) {
        Ok(host) => host,
        Err(error) => panic!("network: {error}"),
    };
    let socket = host.add_udp(7);
    println!("poll-rx: polling");
    let mut observations = Observations::default();
    let mut torn = 0u64;
    loop {
        let arrival = host.nic.wait();
        observations.add_number(arrival.iterations);
        observations.add(host.nic.frame());
        if arrival.torn {
            torn += 1;
            println!("poll-rx: TORN frame after {} iterations", arrival.iterations);
        }
        let now = now();
        host.receive_one(now);
        host.answer_udp(socket, |datagram| answer(&observations, torn, datagram));
        host.send(now);
        host.nic.release();
    }
}

fn answer(observations: &Observations, torn: u64, datagram: &[u8]) -> Vec<u8> {
    let mut reply = observations.answer(datagram);
    if torn > 0 && reply != datagram {
        reply.extend_from_slice(b"TORN\n");
    }
    reply
}
