//! One target under libFuzzer; `cargo xtask fuzz` builds this with coverage and starts it.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use pollux_fuzz::Target;

/// The target is named by the environment: every argument is libFuzzer's.
fn target() -> &'static Target {
    static TARGET: OnceLock<&Target> = OnceLock::new();
    TARGET.get_or_init(|| {
        let name = std::env::var("POLLUX_FUZZ_TARGET").unwrap_or_default();
        pollux_fuzz::find(&name).unwrap_or_else(|| {
            eprintln!("POLLUX_FUZZ_TARGET names no target; started by: cargo xtask fuzz TARGET");
            std::process::exit(2)
        })
    })
}

fuzz_target!(|data: &[u8]| (target().run)(data));
