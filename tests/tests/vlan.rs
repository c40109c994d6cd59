//! Frames with a VLAN tag, from a tap interface to a guest and back.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::unistd::geteuid;
use pollux_tests::rig::Rig;
use pollux_tests::{GUEST_MAC, capture};
use smoltcp::phy::{Device, Medium, RawSocket, RxToken, TxToken};

const TAP: &str = "pollux-vlan";
const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 5];
const TAG: [u8; 4] = [0x81, 0, 0, 5];
/// Bytes of the headers of Ethernet, tag, IPv4 and UDP.
const HEADERS: usize = 14 + 4 + 20 + 8;

/// A datagram in VLAN 5. Its checksums are wrong, and nobody looks at them.
fn datagram(length: usize, number: u8) -> Vec<u8> {
    let mut frame = [&GUEST_MAC[..], &CLIENT_MAC, &TAG, &[8, 0]].concat();
    let ip = (length - 18) as u16;
    frame.extend([0x45, 0, (ip >> 8) as u8, ip as u8, 0, 0, 0x40, 0, 64, 17, 0, 0, 10, 77, 5, 1, 10, 77, 5, 2]);
    let udp = ip - 20;
    frame.extend([0x30, 0x39, 0, 7, (udp >> 8) as u8, udp as u8, 0, 0]);
    frame.resize(length, number);
    frame
}

/// Sends a frame until its echo comes: one may be lost, as during a takeover. The kernel takes the tag off what it hands us.
fn echo(socket: &mut RawSocket, length: usize, number: u8) -> Result<()> {
    let sent = datagram(length, number);
    let now = smoltcp::time::Instant::ZERO;
    for _ in 0..40 {
        let room = socket.transmit(now).context("no room")?;
        room.consume(length, |bytes| bytes.copy_from_slice(&sent));
        let deadline = Instant::now() + Duration::from_millis(500);
        while Instant::now() < deadline {
            let Some((received, _)) = socket.receive(now) else {
                std::thread::sleep(Duration::from_millis(2));
                continue;
            };
            let frame = received.consume(<[u8]>::to_vec);
            if frame.starts_with(&CLIENT_MAC) && frame.last() == Some(&number) {
                let payload = &frame[frame.len() - (length - HEADERS)..];
                ensure!(payload == &sent[HEADERS..], "another datagram came back");
                return Ok(());
            }
        }
    }
    bail!("no echo of {length} bytes")
}

#[test]
fn tagged_frames_of_full_size_pass_both_ways() -> Result<()> {
    if !geteuid().is_root() || !Path::new("/dev/net/tun").exists() {
        println!("SKIPPED: a tap interface needs root and /dev/net/tun");
        return Ok(());
    }
    let mut rig = Rig::protected("vlan", "echo", &["--tap", TAP, "--capture"])?;
    let mut socket = RawSocket::new(TAP, Medium::Ethernet)?;
    for (length, number) in [(64, 1), (1514, 2), (1515, 3), (1518, 4)] {
        echo(&mut socket, length, number)?;
    }
    rig.kill("primary")?;
    echo(&mut socket, 1518, 5)?;
    rig.wait_takeovers(1)?;
    let file = rig.directory().join("client.pcap");
    rig.stop()?;
    // The switch saw the tag both ways.
    let frames = capture::read(&file)?;
    for number in [4, 5] {
        let full = |to: [u8; 6]| {
            let tagged = |frame: &&Vec<u8>| frame.starts_with(&to) && frame[12..16] == TAG;
            frames.iter().filter(tagged).filter(|frame| frame.len() == 1518 && frame.last() == Some(&number)).count()
        };
        ensure!(full(GUEST_MAC) > 0 && full(CLIENT_MAC) > 0, "frame {number} is not in the capture");
    }
    Ok(())
}
