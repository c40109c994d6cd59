//! `cargo xtask bench --profile`: in which functions the hypervisor spends its instructions, for each request of a guest.
//!
//! QEMU writes down each block of code that it runs; the guest's are left out, and what the others hold is counted from the
//! hypervisor's image. No block is left out; how many requests that was is exact to a few in a hundred. While it writes, a machine is some twenty times slower; so are its clocks, which run
//! by instructions then. Networks and clients are not: to the machine they seem twenty times as fast.

mod blocks;
mod monitor;
mod symbols;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;

use self::monitor::Monitor;
use self::symbols::{Function, Symbols};
use super::Bench;
use super::figures::{CLIENTS, MEMORY, SETTLE, wait_for_answer, wait_until_compared};
use crate::driven::client::Counting;
use crate::driven::{DrivenRig, pause};
use crate::guest::debian;
use crate::output;
use crate::platform::Platform;
use crate::rig::roles::Role;

/// For how long is written down.
const WINDOW: Duration = Duration::from_secs(4);
/// Lines of the tables.
const PARTS: usize = 15;
const FUNCTIONS: usize = 30;
/// The machines' clocks are as slow as they are. One that writes all it does down must not be taken for dead.
const SLOW: [&str; 4] = ["--rtc", "vm", "--hypervisor-option", "suspect=20s"];

/// Whose requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Subject {
    /// The guest `counter`.
    Counter,
    /// Debian's kernel with Redis.
    Debian,
}

/// Prints a table for one machine, and for the two of a pair.
pub fn run(bench: &Bench, hypervisor: &Path, subject: Subject) -> Result<()> {
    if bench.platform != Platform::Qemu {
        bail!("--profile asks QEMU what it runs: it cannot be had --on bochs");
    }
    let symbols = Symbols::read(hypervisor)?;
    let (place, memory) = match subject {
        Subject::Counter => (None, MEMORY),
        Subject::Debian => {
            let (guest, place) = debian::ensure_usual(false)?;
            (Some(place), guest.memory)
        }
    };
    let guest = place.as_deref().map(|place| place.to_str().context("the guest's place is not UTF-8")).transpose()?;
    let guest: Vec<_> = guest.iter().flat_map(|place| ["--guest", place]).collect();
    for clients in [1, CLIENTS] {
        let mut solo = bench.start(&[&guest[..], &["--solo"], &SLOW].concat())?;
        wait_for_answer(&mut solo)?;
        print(&format!("one machine, {clients} clients"), &observe(&mut solo, &[Role::Primary], clients, &symbols)?);
        drop(solo);
        let mut pair = bench.pair(&[&guest[..], &SLOW].concat())?;
        wait_for_answer(&mut pair)?;
        wait_until_compared(&mut pair, memory)?;
        let of_both = observe(&mut pair, &[Role::Primary, Role::Backup], clients, &symbols)?;
        print(&format!("a pair, {clients} clients"), &of_both);
    }
    Ok(())
}

/// What a machine did in the window.
struct Profile {
    role: Role,
    requests: usize,
    exits: u64,
    /// Instructions by function.
    functions: BTreeMap<Function, u64>,
}

/// Has the machines in these `roles` write down what they do while clients count.
fn observe(rig: &mut DrivenRig, roles: &[Role], clients: usize, symbols: &Symbols) -> Result<Vec<Profile>> {
    let counting: Vec<_> =
        (0..clients).map(|index| Counting::start(rig.service(), &format!("profile-{index}"))).collect::<Result<_>>()?;
    pause(SETTLE)?;
    let machines: Vec<_> = {
        let snapshot = rig.snapshot()?;
        let named = roles.iter().map(|&role| snapshot.machine(role).map(|machine| (role, machine.name.clone())));
        named.collect::<Option<_>>().context("a machine is missing")?
    };
    let file = |name: &str| rig.directory().join(format!("{name}.blocks"));
    let mut monitors = Vec::new();
    for (_, name) in &machines {
        monitors.push(Monitor::connect(rig.directory(), name)?);
    }
    let answered = || counting.iter().map(Counting::answered).sum::<usize>();
    for (monitor, (_, name)) in monitors.iter_mut().zip(&machines) {
        monitor.write_blocks(&file(name))?;
    }
    // Both write now. What happens before the second one does, and after the first has ended, is little beside this.
    let before = answered();
    pause(WINDOW)?;
    let requests = answered() - before;
    for monitor in &mut monitors {
        monitor.write_nothing()?;
    }
    for client in counting {
        client.finish()?;
    }
    ensure!(requests > 0, "no request was answered while the machines wrote down what they did");
    let profile = |(role, name): &(Role, String)| -> Result<Profile> {
        let path = file(name);
        let trace = File::open(&path).with_context(|| format!("QEMU wrote no {}", path.display()))?;
        let blocks = blocks::read(BufReader::new(trace), symbols)?;
        std::fs::remove_file(&path)?;
        let mut functions = BTreeMap::new();
        for (&address, &count) in &blocks.instructions {
            *functions.entry(symbols.function(address)).or_insert(0) += count;
        }
        Ok(Profile { role: *role, requests, exits: blocks.exits, functions })
    };
    machines.iter().map(profile).collect()
}

fn print(what: &str, profiles: &[Profile]) {
    for Profile { role, requests, exits, functions } in profiles {
        let all: u64 = functions.values().sum();
        let each = |count: u64| count as f64 / *requests as f64;
        let mut parts = BTreeMap::new();
        for (function, count) in functions {
            *parts.entry(function.part()).or_insert(0) += count;
        }
        let told = |what: &str, counts: Vec<(String, u64)>, most: usize| {
            let share = |count| count as f64 / all as f64 * 100.0;
            let line =
                |(name, count): &(String, u64)| format!("{:>10.0}  {:>5.1}%  {name}", each(*count), share(*count));
            let mut sorted = counts;
            sorted.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
            output::lines([format!("{:>10}  {:>6}  {what}", "each", "share")]);
            output::lines(sorted.iter().take(most).map(line));
        };
        output::lines([
            String::new(),
            format!(
                "{what}, {}: {:.0} instructions of the hypervisor for each of {requests} requests, in {:.1} exits",
                role.word(),
                each(all),
                each(*exits)
            ),
        ]);
        told("part", parts.into_iter().map(|(part, count)| (part.to_owned(), count)).collect(), PARTS);
        told("function", functions.iter().map(|(name, count)| (name.to_string(), *count)).collect(), FUNCTIONS);
    }
}
