//! Links the binary at its fixed address, and names what it is built from.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;

/// All that makes up the hypervisor, relative to this crate.
const SOURCES: [&str; 7] =
    ["src", "../ft/src", "../nic-driver/src", "../boot/src", "../boot/link.ld", "../Cargo.lock", "Cargo.toml"];

fn main() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../boot/link.ld");
    if std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "none") {
        println!("cargo:rustc-link-arg-bins=-T{script}");
    }
    let mut hasher = DefaultHasher::new();
    for source in SOURCES {
        println!("cargo:rerun-if-changed={source}");
        hash(Path::new(source), &mut hasher);
    }
    println!("cargo:rustc-env=POLLUX_SOURCES={:016x}", hasher.finish());
}

/// Hashes a file, or all files below a folder in the order of their names.
fn hash(path: &Path, hasher: &mut DefaultHasher) {
    if path.is_dir() {
        let entries = fs::read_dir(path).expect("a folder of sources");
        let mut entries: Vec<_> = entries.map(|entry| entry.expect("a source").path()).collect();
        entries.sort();
        entries.iter().for_each(|entry| hash(entry, hasher));
    } else {
        path.file_name().hash(hasher);
        fs::read(path).expect("a source").hash(hasher);
    }
}
