//! What the end-to-end tests share: rigs driven from outside, a client, and a judge of what the client saw.
//!
//! The tests know a rig as any outside script does: by `rig.json`, the service's port, signals, and `cargo xtask rig`.
//! They are run by `cargo xtask test rig`.

pub mod amount;
pub mod arbiter;
pub mod attacker;
pub mod cable;
pub mod capture;
pub mod debian;
pub mod desk;
pub mod frames;
pub mod history;
pub mod load;
pub mod resp;
pub mod rig;
pub mod seed;
pub mod shell;
pub mod status;
pub mod xtask;

/// The MAC address that guests have unless a rig is told otherwise.
pub const GUEST_MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];

/// The end of a test that cannot run here: `cargo xtask test` repeats at its own end which tests these were, and why.
///
/// # Errors
/// Never: what is missing is no fault of what is tested.
pub fn skip(why: &str) -> anyhow::Result<()> {
    println!("SKIPPED: {why}");
    Ok(())
}
