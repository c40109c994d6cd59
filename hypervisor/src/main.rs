//! Pollux on the bare machine.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![allow(unsafe_code)]

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
mod metal;

/// The binary only means something on the bare machine; on the host it exists so that the workspace builds.
#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("this is the host's build of a bare-metal program; `cargo xtask qemu` builds and runs the real one");
    std::process::exit(1);
}
