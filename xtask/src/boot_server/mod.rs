//! What answers machines that boot over the network: DHCP, as far as it names boot files, and TFTP for reading. Both are pure:
//! bytes and time in, bytes out. `net::boot` is the host of a rig's client network that speaks them, [`serve`] the server
//! for a desk.

pub mod dhcp;
mod root;
pub mod serve;
pub mod tftp;

pub use root::{Asker, Root, Served};
