//! `pair.toml`: one file that describes a pair, checked as a whole before anything is made of it. What is wrong is named by
//! file, line and reason.

mod file;

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};
use pollux_hypervisor::config::{Cidr, Config};
use toml::Spanned;

use self::file::{File, MachineTable, Reader, Text};
use crate::boot_server::dhcp::{Client, parse_mac};
use crate::grub;
use crate::rig::options::{CommandLine, GUEST_MAC, GivenOption, parse_guest_arguments};
use crate::rig::software::{DEFAULT_GUEST, SoftwareArgs, parse_disk, parse_memory};
use crate::secret::{KeyChoice, Secret};

/// A machine, checked.
#[derive(Debug)]
pub struct Machine {
    /// Its name, card, and address there, if it has one.
    pub client: Client,
    options: CommandLine,
    line: usize,
    /// Which option stands in which line.
    places: Vec<(String, usize)>,
}

/// The pair, checked.
#[derive(Debug)]
pub struct Pair {
    /// What runs.
    pub software: SoftwareArgs,
    /// The machines.
    pub machines: [Machine; 2],
    /// The pair's keys as modules of each machine.
    pub secrets: Vec<(&'static str, Secret)>,
    path: PathBuf,
}

impl Pair {
    /// Reads and checks the file.
    ///
    /// # Errors
    /// What is wrong, with the place.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let reader = Reader { path, text: &text };
        let file: File = toml::from_str(&text).map_err(|error| {
            let line = reader.line(error.span().map_or(0, |span| span.start));
            reader.at(line, error.message())
        })?;
        let tables = match &file.machines[..] {
            [first, second] => [first, second],
            other => {
                let line = other.get(2).map_or(1, |third| reader.line(third.span().start));
                return Err(reader.at(line, format_args!("a pair is two [[machine]], and here are {}", other.len())));
            }
        };
        let clients = check_machines(&reader, tables.map(Spanned::get_ref))?;
        let software = software(&reader, &file)?;
        let secrets = secrets(&reader, &file)?;
        let [one, other] = clients;
        let [first, second] = [(one, 0, 1), (other, 1, 0)]
            .map(|(client, own, twin)| machine(&reader, &file, client, [tables[own], tables[twin]]));
        let pair = Self { software, machines: [first?, second?], secrets, path: path.to_owned() };
        for machine in &pair.machines {
            pair.check(machine, &machine.options)?;
        }
        Ok(pair)
    }

    /// Whether a desk with this address can lend the machines theirs.
    ///
    /// # Errors
    /// A machine without an address, in another network than the desk's, or with the desk's own address.
    pub fn check_desk(&self, desk: Ipv4Addr) -> Result<()> {
        for machine in &self.machines {
            let wrong = |what: String| {
                let place = machine.places.iter().find(|(key, _)| key == "machine-address");
                let line = place.map_or(machine.line, |(_, line)| *line);
                Err(anyhow!("{}:{line}: {}: {what}", self.path.display(), machine.client.name))
            };
            let Some(lease) = machine.client.lease else {
                return wrong("--dhcp gives machines their machine-address, and there is none".to_owned());
            };
            let Cidr { address, prefix } = lease;
            if address == desk {
                return wrong(format!("{address} is the address of the desk, too"));
            }
            if !lease.contains(desk) {
                return wrong(format!("the desk's address {desk} is not in the network of {address}/{prefix}"));
            }
        }
        Ok(())
    }

    /// What a machine gets as modules that are for it alone: the pair's keys, and a seed, without which one whose processor
    /// draws no random numbers does not start. The seed is drawn anew at each call.
    ///
    /// # Errors
    /// When the system has no random numbers.
    pub fn modules(&self) -> Result<Vec<(&'static str, Secret)>> {
        let seed = ("seed", Secret::draw()?);
        Ok(self.secrets.iter().cloned().chain([seed]).collect())
    }

    /// The options of `machine` one by one, with what they are `usually` where the file says nothing.
    ///
    /// # Errors
    /// What the hypervisor or GRUB would refuse.
    pub fn words(&self, machine: &Machine, usually: &[(&str, &str)]) -> Result<Vec<String>> {
        let mut options = machine.options.clone();
        options.complete(usually);
        self.check(machine, &options)?;
        Ok(options.words().collect())
    }

    /// Asks the hypervisor's own parser.
    fn check(&self, machine: &Machine, options: &CommandLine) -> Result<()> {
        let wrong = |what: &str| {
            // It names an option first, in quotes.
            let named = what.split('\'').nth(1).map(|option| option.split('=').next().unwrap_or(option));
            let place = machine.places.iter().rev().find(|(key, _)| Some(key.as_str()) == named);
            anyhow!(
                "{}:{}: {}: {what}",
                self.path.display(),
                place.map_or(machine.line, |(_, line)| *line),
                machine.client.name
            )
        };
        for word in options.words() {
            grub::check_option(&word)
                .map_err(|error| wrong(&format!("option '{}': {error}", word.split('=').next().unwrap_or_default())))?;
        }
        let config = Config::parse(&options.to_string()).map_err(|error| wrong(&error.to_string()))?;
        let key =
            |name| self.secrets.iter().find(|(own, _)| *own == name).and_then(|(_, key)| key.bytes().try_into().ok());
        let protection = config.protection([key("key"), key("key-next")], true);
        protection.map(drop).map_err(|error| wrong(&error.to_string()))
    }
}

/// What the machines may not have in common, and must.
fn check_machines(reader: &Reader<'_>, tables: [&MachineTable; 2]) -> Result<[Client; 2]> {
    let [first, second] = tables;
    for table in tables {
        let name = table.name.get_ref();
        // It becomes the name of a directory.
        let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
        if name.is_empty() || name.len() > 32 || !plain {
            return Err(reader.wrong(&table.name, "a machine's name is 1 to 32 letters, digits, '-' or '_'"));
        }
    }
    reader.differ("name", [&first.name, &second.name], first.name == second.name)?;
    let mac = |table: &MachineTable| {
        let mac = parse_mac(table.mac.get_ref()).filter(|mac| mac[0] & 1 == 0 && *mac != [0; 6]);
        mac.ok_or_else(|| reader.wrong(&table.mac, "no MAC address of a card, such as 52:54:00:10:00:01"))
    };
    let macs = [mac(first)?, mac(second)?];
    reader.differ("MAC address", [&first.mac, &second.mac], macs[0] == macs[1])?;
    let log = addresses(reader, "log network", [&first.log_address, &second.log_address])?;
    let own = match (&first.machine_address, &second.machine_address) {
        (Some(one), Some(other)) => Some(addresses(reader, "client network", [one, other])?),
        (None, None) => None,
        (Some(alone), None) | (None, Some(alone)) => {
            return Err(reader.wrong(alone, "one machine has a machine-address, and the other one has none"));
        }
    };
    if let (Some([own, _]), [log, _], Some(text)) = (own, log, &first.machine_address)
        && (own.contains(log.address) || log.contains(own.address))
    {
        return Err(reader.wrong(text, "client network and log network are the same"));
    }
    Ok([0, 1].map(|index| {
        let name = tables[index].name.get_ref().clone();
        Client { name, mac: macs[index], lease: own.map(|own| own[index]) }
    }))
}

/// Two addresses in one network.
fn addresses(reader: &Reader<'_>, network: &str, texts: [&Text; 2]) -> Result<[Cidr; 2]> {
    let parse = |text: &Text| reader.value(text, |value| value.parse::<Cidr>().map_err(str::to_owned));
    let [first, second] = [parse(texts[0])?, parse(texts[1])?];
    reader.differ("address", texts, first.address == second.address)?;
    if first.prefix != second.prefix || !first.contains(second.address) {
        let line = reader.line(texts[0].span().start);
        return Err(reader.wrong(
            texts[1],
            format_args!(
                "{} is not in the {network} of its twin, {} (line {line})",
                texts[1].get_ref(),
                texts[0].get_ref()
            ),
        ));
    }
    Ok([first, second])
}

/// What runs.
fn software(reader: &Reader<'_>, file: &File) -> Result<SoftwareArgs> {
    let guest = &file.guest;
    let there = |text: &Option<Text>| text.as_ref().map(|text| reader.file(text)).transpose();
    if let (Some(image), Some(_)) = (&guest.image, &guest.kernel) {
        return Err(reader.wrong(image, "image and kernel contradict: one of them is the guest"));
    }
    if let (Some(initrd), None) = (&guest.initrd, &guest.kernel) {
        return Err(reader.wrong(initrd, "initrd belongs to a kernel, and there is none"));
    }
    if let (Some(disk), Some(_)) = (&guest.disk, &guest.disk_image) {
        return Err(reader.wrong(disk, "disk and disk-image contradict"));
    }
    let image = guest.image.as_ref().map_or_else(
        || DEFAULT_GUEST.to_owned(),
        |image| {
            let path = reader.path(image);
            // Anything else is a name, or none: whoever builds it says so.
            if path.exists() { path.display().to_string() } else { image.get_ref().clone() }
        },
    );
    if let Some(text) = guest.image.as_ref().filter(|_| image.contains('/') && !Path::new(&image).exists()) {
        return Err(reader.wrong(text, format_args!("cannot read {image}")));
    }
    let disk = guest.disk.as_ref().map(|text| {
        let disk = reader.value(text, parse_disk)?;
        match disk.drive_bytes() {
            Some(_) => {
                Err(reader.wrong(text, "a drive is each machine's own: options = [\"disk=nvme:BUS:DEVICE.FUNCTION\"]"))
            }
            None => Ok(disk),
        }
    });
    let key = match &file.key {
        Some(key) => KeyChoice::File(reader.path(key)),
        None => KeyChoice::Without,
    };
    Ok(SoftwareArgs {
        guest: image,
        kernel: there(&guest.kernel)?,
        initrd: there(&guest.initrd)?,
        guest_args: guest.append.as_ref().map(|text| reader.value(text, parse_guest_arguments)).transpose()?,
        guest_memory: guest.memory.as_ref().map(|text| reader.value(text, parse_memory)).transpose()?,
        disk: disk.transpose()?,
        disk_image: there(&guest.disk_image)?,
        disk_format: None,
        hypervisor_option: Vec::new(),
        key: Some(key),
        key_next: file.key_next.as_ref().map(|key| reader.path(key)),
        hypervisor: None,
        yes: false,
    })
}

/// The keys.
fn secrets(reader: &Reader<'_>, file: &File) -> Result<Vec<(&'static str, Secret)>> {
    match (&file.key, file.insecure) {
        (None, false) => {
            return Err(reader.at(
                1,
                "the pair has no key: `cargo xtask key new FILE` makes one, and key = \"FILE\" names it; to do without, and \
                 let everybody on the log network decide who runs the guest, say insecure = true",
            ));
        }
        (Some(key), true) => return Err(reader.wrong(key, "key and insecure = true contradict")),
        _ => {}
    }
    let named = [("key", &file.key), ("key-next", &file.key_next)];
    let named = named.into_iter().filter_map(|(name, text)| Some((name, text.as_ref()?)));
    named
        .map(|(name, text)| {
            let secret =
                Secret::read(&reader.file(text)?).map_err(|error| reader.wrong(text, format_args!("{error:#}")))?;
            Ok((name, secret))
        })
        .collect()
}

/// The options of a machine that has this twin.
fn machine(
    reader: &Reader<'_>,
    file: &File,
    client: Client,
    [own, twin]: [&Spanned<MachineTable>; 2],
) -> Result<Machine> {
    let line = reader.line(own.span().start);
    let (table, twin) = (own.get_ref(), twin.get_ref());
    let mut given: Vec<(GivenOption, String, usize)> = Vec::new();
    let mut add = |key: &str, value: &str, line: usize| -> Result<()> {
        let word = format!("{key}={value}");
        let option = word.parse().map_err(|what| reader.at(line, what))?;
        given.push((option, key.to_owned(), line));
        Ok(())
    };
    let address = |text: &Text| text.get_ref().split('/').next().unwrap_or_default().to_owned();
    let mut put = |key: &str, text: Option<&Text>| {
        text.map_or(Ok(()), |text| add(key, text.get_ref(), reader.line(text.span().start)))
    };
    put("name", Some(&table.name))?;
    put("pair", file.pair.as_ref())?;
    put("client-nic", Some(&table.client_nic))?;
    put("log-nic", Some(&table.log_nic))?;
    put("log-address", Some(&table.log_address))?;
    put("arbiter", Some(&file.arbiter))?;
    put("machine-address", table.machine_address.as_ref())?;
    put("machine-gateway", table.machine_gateway.as_ref())?;
    put("guest-mac", file.guest.mac.as_ref())?;
    add("log-peer", &address(&twin.log_address), reader.line(twin.log_address.span().start))?;
    if let Some(peer) = &twin.machine_address {
        add("machine-peer", &address(peer), reader.line(peer.span().start))?;
    }
    if file.insecure {
        add("insecure", "on", 1)?;
    }
    let (ours, own_words) = (given.len(), file.options.iter().chain(&table.options));
    for text in own_words {
        let option: GivenOption = reader.value(text, str::parse)?;
        CommandLine::given(std::slice::from_ref(&option)).map_err(|what| reader.wrong(text, what))?;
        let (key, line) =
            (text.get_ref().split('=').next().unwrap_or_default().to_owned(), reader.line(text.span().start));
        if let Some((_, _, first)) = given[..ours].iter().find(|(_, other, _)| *other == key) {
            return Err(
                reader.at(line, format_args!("the option {key} follows from what stands in line {first} already"))
            );
        }
        given.push((option, key, line));
    }
    let places = given.iter().map(|(_, key, line)| (key.clone(), *line)).collect();
    let given: Vec<_> = given.into_iter().map(|(option, ..)| option).collect();
    let mut options = CommandLine::given(&given).map_err(|what| reader.at(line, what))?;
    options.complete(&[("role", "auto")]);
    let guest_mac = options.value("guest-mac").unwrap_or(GUEST_MAC);
    ensure!(
        parse_mac(guest_mac) != Some(client.mac),
        reader.wrong(&table.mac, "that is the guest's own MAC address, and no card's")
    );
    Ok(Machine { client, options, line, places })
}

#[cfg(test)]
mod tests;
