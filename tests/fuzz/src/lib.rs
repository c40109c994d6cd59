//! Fuzz targets: each takes bytes as they may come from outside and hands them to whatever reads them. It must not panic,
//! must not run for long, and must keep the promises that are asserted here.
//!
//! `cargo xtask fuzz` searches for new inputs; the tests of this package replay the corpus in `corpus/`.

mod boot;
mod guest;
mod record;
mod wire;

/// What is fuzzed.
#[derive(Debug)]
pub struct Target {
    /// Its name, and that of its folder in `corpus/`.
    pub name: &'static str,
    /// Hands it these bytes.
    pub run: fn(&[u8]),
}

/// All targets, by who sends the bytes.
pub const TARGETS: [Target; 12] = [
    // The twin, or whoever is on its network.
    Target { name: "message", run: wire::message },
    Target { name: "stream", run: wire::stream },
    Target { name: "heartbeat", run: wire::heartbeat },
    Target { name: "state", run: guest::state },
    // The arbiter.
    Target { name: "arbiter", run: wire::arbiter },
    // Whoever gives away a recording.
    Target { name: "recording", run: record::recording },
    // The boot loader and the files that it passes.
    Target { name: "options", run: boot::options },
    Target { name: "loader", run: boot::loader },
    Target { name: "archive", run: boot::archive },
    Target { name: "elf", run: boot::elf },
    Target { name: "linux", run: boot::linux },
    // The guest.
    Target { name: "devices", run: guest::devices },
];

/// The target of this name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}
