//! What the machines of a rig boot over the network.

use std::path::Path;

use anyhow::{Context, Result};
use pollux_hypervisor::config::Cidr;

use crate::boot_server::dhcp::{Client, parse_mac};
use crate::net::{BootConfig, Network};
use crate::netboot;
use crate::rig::emulator::network_files;
use crate::rig::{Config, SLOTS, Slot};

/// Writes what all machines boot over the network into the directory that is `private`.
pub(super) fn prepare(config: &Config, private: &Path) -> Result<BootConfig> {
    let directory = network_files(private);
    let machines = SLOTS.map(|slot| (slot.name(), slot.mac(Network::Client)));
    netboot::Common { hypervisor: &config.hypervisor, guest: &config.guest, machines: &machines }.write(&directory)?;
    let clients = SLOTS.map(client).into_iter().collect::<Result<_>>()?;
    Ok(BootConfig { directory, clients })
}

/// A machine that boots: at its own address.
fn client(slot: Slot) -> Result<Client> {
    let mac = parse_mac(slot.mac(Network::Client)).context("a machine's MAC address")?;
    let lease = Some(Cidr { address: slot.client_address(), prefix: 24 });
    Ok(Client { name: slot.name().to_owned(), mac, lease })
}
