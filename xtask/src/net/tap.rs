//! The client network as a kernel interface, so that the kernel's own TCP talks to the guest. Needs root.
//!
//! See: `Documentation/networking/tuntap.rst` in Linux, and netdevice(7).
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

use anyhow::{Context, Result, ensure};
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use nix::libc::{self, c_char, c_int, c_short, ifreq, sockaddr};

use super::HOST_ADDRESS;

mod ioctl {
    use nix::libc::{self, c_int, ifreq};

    nix::ioctl_write_ptr_bad!(attach, nix::request_code_write!(b'T', 202, size_of::<c_int>()), ifreq);
    nix::ioctl_write_ptr_bad!(set_address, libc::SIOCSIFADDR, ifreq);
    nix::ioctl_write_ptr_bad!(set_netmask, libc::SIOCSIFNETMASK, ifreq);
    nix::ioctl_write_ptr_bad!(set_flags, libc::SIOCSIFFLAGS, ifreq);
}

const DEVICE: &str = "/dev/net/tun";
const NETMASK: Ipv4Addr = Ipv4Addr::new(255, 255, 255, 0);

/// An attached interface. The kernel removes it when this is dropped, unless it had been there before.
#[derive(Debug)]
pub struct Tap {
    file: File,
    /// The kernel may have frames for us.
    pub readable: bool,
}

impl Tap {
    /// Attaches to the interface, creating it if need be, gives it its address and brings it up.
    pub fn open(name: &str, registry: &Registry, token: Token) -> Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(DEVICE)
            .with_context(|| format!("cannot open {DEVICE} for the tap {name} (root is needed)"))?;
        let mut request = request(name)?;
        request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as c_short;
        // SAFETY: the descriptor is open and `request` is a whole ifreq that lives across the call; TUNSETIFF reads
        // its name and flags and writes at most its name.
        unsafe { ioctl::attach(file.as_raw_fd(), &raw const request) }
            .with_context(|| format!("cannot attach to the tap {name} (root is needed, and nobody else attached)"))?;
        configure(name)?;
        registry
            .register(&mut SourceFd(&file.as_raw_fd()), token, Interest::READABLE)
            .with_context(|| format!("cannot poll the tap {name}"))?;
        Ok(Self { file, readable: true })
    }

    /// Takes the next frame from the kernel; none when there is no more.
    pub fn receive(&mut self, buffer: &mut [u8]) -> Option<usize> {
        loop {
            match self.file.read(buffer) {
                Ok(length) => return Some(length),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => {
                    self.readable = false;
                    return None;
                }
            }
        }
    }

    /// Hands a frame to the kernel; false if it did not take it.
    pub fn send(&mut self, frame: &[u8]) -> bool {
        self.file.write(frame).is_ok()
    }
}

fn configure(name: &str) -> Result<()> {
    // Any socket will do for the interface's ioctls.
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot create a socket")?;
    let descriptor: c_int = socket.as_raw_fd();
    let mut address = request(name)?;
    address.ifr_ifru.ifru_addr = inet(HOST_ADDRESS);
    let mut netmask = request(name)?;
    netmask.ifr_ifru.ifru_netmask = inet(NETMASK);
    let mut flags = request(name)?;
    flags.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as c_short;
    // SAFETY: the descriptor is open, and each request is a whole ifreq, with the member set that its ioctl reads,
    // that lives across the call; none of the three writes to it.
    unsafe {
        ioctl::set_address(descriptor, &raw const address)
            .with_context(|| format!("cannot give {HOST_ADDRESS} to the tap {name}"))?;
        ioctl::set_netmask(descriptor, &raw const netmask)
            .with_context(|| format!("cannot give the mask {NETMASK} to the tap {name}"))?;
        ioctl::set_flags(descriptor, &raw const flags).with_context(|| format!("cannot bring up the tap {name}"))?;
    }
    Ok(())
}

/// A request about the interface `name`, otherwise zero.
fn request(name: &str) -> Result<ifreq> {
    let mut ifr_name = [0 as c_char; libc::IFNAMSIZ];
    let good = |byte: u8| byte.is_ascii_graphic() && byte != b'/' && byte != b':';
    ensure!(
        (1..libc::IFNAMSIZ).contains(&name.len()) && name.bytes().all(good),
        "`{name}` is no name for an interface: 1 to 15 printable characters without `/` and `:`"
    );
    for (to, from) in ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as c_char;
    }
    let zero = sockaddr { sa_family: 0, sa_data: [0; 14] };
    Ok(ifreq { ifr_name, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_addr: zero } })
}

/// An IPv4 address as a generic socket address: port, then address, then zeros.
fn inet(address: Ipv4Addr) -> sockaddr {
    let mut sa_data = [0 as c_char; 14];
    for (to, from) in sa_data[2..].iter_mut().zip(address.octets()) {
        *to = from as c_char;
    }
    sockaddr { sa_family: libc::AF_INET as libc::sa_family_t, sa_data }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_names_are_refused() {
        for name in ["", "a/b", "a b", "a:0", "sixteen-letters!", "ü"] {
            assert!(request(name).is_err(), "{name}");
        }
        let name = request("pollux0").unwrap().ifr_name;
        assert_eq!(name[..8].iter().map(|&c| c as u8).collect::<Vec<_>>(), b"pollux0\0");
    }
}
