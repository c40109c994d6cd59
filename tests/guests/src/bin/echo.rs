//! Sends every UDP datagram back, in whatever VLAN it comes. Beside the interface there is no stack: no ARP, no limits.
#![no_std]
#![no_main]

use core::sync::atomic::{Ordering, fence};

use pollux_boot::BootInfo;
use pollux_guests::net::{NIC_VECTOR, now};
use pollux_guests::nic::Nic;
use pollux_guests::reflect::reflect;
use pollux_guests::{cpu, interrupts, lapic, println, runtime};
use smoltcp::phy::{Device, RxToken, TxToken};

pollux_boot::entry!(main);

fn main(info: &'static BootInfo) -> ! {
    runtime::init(info);
    lapic::init(true);
    interrupts::set_handler(NIC_VECTOR, |_| lapic::end_of_interrupt());
    let mut nic = match Nic::new(Some(NIC_VECTOR)) {
        Ok(nic) => nic,
        Err(error) => panic!("network: {error}"),
    };
    println!("echo: listening");
    loop {
        let time = now();
        while let Some((received, room)) = nic.receive(time) {
            let mut frame = received.consume(<[u8]>::to_vec);
            if reflect(&mut frame) {
                room.consume(frame.len(), |sent| sent.copy_from_slice(&frame));
            }
        }
        nic.flush();
        // As in `Host::wait`.
        fence(Ordering::SeqCst);
        if !nic.has_received() {
            cpu::wait_for_interrupt();
        }
    }
}
