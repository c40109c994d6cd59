//! `cargo xtask netboot`: what a pair of machines boots over the network.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::boot_server::Root;
use crate::boot_server::dhcp::{Client, Server, format_mac};
use crate::boot_server::serve::{Place, Ports, serve};
use crate::needs::{self, Need};
use crate::netboot::pair::{self, Pair};
use crate::netboot::{BIOS_IMAGE, Common, IPXE_SCRIPT, MADE, Machine, UEFI_IMAGE};
use crate::output::say;
use crate::rig::software::Software;
use crate::units::format_size;

/// Which pair, and where its files go.
#[derive(Debug, Args)]
pub struct NetbootArgs {
    /// The description of the pair; see docs/two-servers.md
    #[arg(long, value_name = "FILE", default_value = "pair.toml")]
    config: PathBuf,
    /// The directory that a TFTP or HTTP server shall serve; what an earlier call made there is replaced
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Then serve it by TFTP, and tell machines of it by DHCP, until Ctrl-C; for root. Beside a DHCP server: it gives no addresses
    #[arg(long, requires = "at")]
    serve: bool,
    /// The network interface to serve at
    #[arg(long, value_name = "NAME", group = "at", requires = "serve")]
    interface: Option<String>,
    /// The same by its address
    #[arg(long, value_name = "A.B.C.D", group = "at", requires = "serve")]
    address: Option<Ipv4Addr>,
    /// Give the two machines their own addresses (machine-address), where no other DHCP server does; nobody else gets any
    #[arg(long, requires = "serve")]
    dhcp: bool,
    /// Other ports than the usual ones for DHCP, its proxies and TFTP, for tests
    #[arg(long, value_name = "PORT", num_args = 3, requires = "serve", hide = true)]
    ports: Option<Vec<u16>>,
    /// Use this hypervisor instead of building one
    #[arg(long, value_name = "PATH")]
    hypervisor: Option<PathBuf>,
    /// Install what is missing
    #[arg(long)]
    yes: bool,
}

/// Makes the files.
pub fn run(arguments: &NetbootArgs) -> Result<()> {
    let mut pair = Pair::read(&arguments.config)?;
    check_place(&arguments.out)?;
    let place = arguments.place(&pair)?;
    needs::ensure_present(&[Need::Target, Need::Grub], arguments.yes)?;
    (pair.software.hypervisor, pair.software.yes) = (arguments.hypervisor.clone(), arguments.yes);
    let Software { hypervisor, guest, options: common, .. } = pair.software.build(|| Ok(None))?;
    let memory = format_size(common.guest_memory);
    let mut usually = vec![("guest-memory", memory.as_str()), ("guest-args", &common.guest_arguments)];
    let disk = common.disk.map(crate::rig::options::Disk::option);
    usually.extend(disk.as_deref().map(|disk| ("disk", disk)));
    let words = pair.machines.iter().map(|machine| pair.words(machine, &usually)).collect::<Result<Vec<_>>>()?;
    let macs = pair.machines.each_ref().map(|machine| format_mac(machine.client.mac));
    let names = pair.machines.iter().map(|machine| machine.client.name.as_str());
    let machines: Vec<_> = names.zip(macs.iter().map(String::as_str)).collect();

    let out = &arguments.out;
    fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
    // A machine that is no more has its key there.
    let old = out.join("machines");
    if old.exists() {
        fs::remove_dir_all(&old).with_context(|| format!("cannot remove {}", old.display()))?;
    }
    Common { hypervisor: &hypervisor, guest: &guest, machines: &machines }.write(out)?;
    for ((name, mac), options) in machines.iter().zip(&words) {
        Machine { name, options, secrets: &pair.modules()? }.write(out, &guest)?;
        say!("{name:<11} {mac}: {}", options.join(" "));
    }
    let kept = if pair.secrets.is_empty() { "" } else { " (with the pair's key: whoever can ask the server gets it)" };
    say!("directory   {}{kept}", out.display());
    say!("boot files  BIOS {BIOS_IMAGE}, UEFI {UEFI_IMAGE}, iPXE {IPXE_SCRIPT}");
    match place {
        Some(place) => arguments.serve(&pair, &place),
        None => Ok(()),
    }
}

impl NetbootArgs {
    /// Where to serve, if that is wanted.
    fn place(&self, pair: &Pair) -> Result<Option<Place>> {
        if !self.serve {
            return Ok(None);
        }
        let place = Place::find(self.interface.as_deref(), self.address)?;
        if self.dhcp {
            pair.check_desk(place.address)?;
        }
        Ok(Some(place))
    }

    fn serve(&self, pair: &Pair, place: &Place) -> Result<()> {
        let ports = match self.ports.as_deref() {
            Some(&[dhcp, proxy, tftp]) => Ports { dhcp, proxy, tftp },
            _ => Ports::default(),
        };
        let client = |machine: &pair::Machine| Client {
            lease: machine.client.lease.filter(|_| self.dhcp),
            ..machine.client.clone()
        };
        let clients = pair.machines.iter().map(client).collect();
        let server = Server { address: place.address, clients };
        say!("serving at {} ({}) until Ctrl-C", place.address, place.interface);
        serve(Root::new(&self.out)?, server, place, ports)
    }
}

/// Refuses a directory with other things in it.
fn check_place(out: &Path) -> Result<()> {
    let empty =
        fs::read_dir(out).map_or(Ok(true), |mut entries| entries.next().transpose().map(|entry| entry.is_none()))?;
    let ours = || fs::read_to_string(out.join("grub/grub.cfg")).is_ok_and(|text| text.starts_with(MADE));
    ensure!(empty || ours(), "{} has something else in it: give another --out", out.display());
    Ok(())
}
