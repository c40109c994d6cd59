//! A machine in words: rows of a name and a text, what matters most first. What has no meaning in the machine's role is
//! left out.

use std::collections::BTreeMap;

use crate::rig::monitor::{Asking, Status};
use crate::rig::rates::Rates;
use crate::rig::roles::Role;
use crate::rig::snapshot::MachineSnapshot;
use crate::units::{format_bytes, format_count};

/// The most frequent entries of a table that are worth a row.
const TOP: usize = 6;
/// A machine that says nothing for longer is worth a row, in milliseconds: it speaks once a second.
const SILENT_MS: u64 = 1500;

/// A name of at most eight letters, and a text.
pub type Row = (&'static str, String);

/// Which machine this is, and what it does.
pub fn title(machine: &MachineSnapshot) -> String {
    let pid = machine.pid.map_or_else(String::new, |pid| format!(", pid {pid}"));
    format!("{}: {}{pid}", machine.name, machine.role.word())
}

/// Everything else about it.
pub fn rows(machine: &MachineSnapshot) -> Vec<Row> {
    let mut rows = Vec::new();
    if machine.pid.is_none() {
        rows.extend(machine.last_end.as_ref().map(|how| ("ended", how.clone())));
    }
    if let Some(silent) = machine.silent_ms.filter(|silent| *silent > SILENT_MS) {
        rows.push(("silent", format!("for {:.1} s", silent as f64 / 1e3)));
    }
    if let Some(status) = &machine.status {
        let rates = machine.rates.clone().unwrap_or_default();
        let has_guest = matches!(machine.role, Role::Primary | Role::Backup);
        rows.extend(has_guest.then(|| ("guest", guest(status, &rates))));
        let trouble = &status.arbiter.trouble;
        rows.extend((!trouble.is_empty()).then(|| ("ARBITER", format!("would give no term now: {trouble}"))));
        let insecure = "no key: everybody on the log network can decide who runs the guest".to_owned();
        rows.extend((status.security == "insecure").then_some(("INSECURE", insecure)));
        let plain =
            "the arbiter is asked in plain words: everybody on the way can decide who runs the guest".to_owned();
        let is_plain = status.security != "insecure" && status.arbiter.words == "etcd";
        rows.extend(is_plain.then_some(("INSECURE", plain)));
        rows.extend((!status.old_key.is_empty()).then(|| ("keys", keys(status))));
        rows.extend(errors(status));
        rows.extend(lag(machine.role, status));
        rows.extend(gate(machine.role, status));
        rows.extend(log(machine.role, status, &rates));
        rows.extend(term(status));
        rows.extend((status.digests > 0).then(|| ("digests", format!("{} compared", status.digests))));
        rows.extend(transfer(status));
        rows.extend(disk(status));
        let share = format!("{:.1} % of the instructions are the hypervisor's", rates.overhead * 100.0);
        rows.extend(has_guest.then_some(("overhead", share)));
        let exits = top(&rates.exits, |rate| format!("{}/s", format_count(rate.round())));
        rows.extend(exits.filter(|_| has_guest).map(|exits| ("exits", exits)));
        rows.push(("counter", counter(status)));
        rows.extend(skids(status));
    }
    rows
}

/// Of a machine with two keys.
fn keys(status: &Status) -> String {
    let Status { key, old_key, old_key_is_needed: why, .. } = status;
    let what = if why.is_empty() { "may be forgotten" } else { why };
    format!("{key}, and the old one {old_key}: {what}")
}

fn guest(status: &Status, rates: &Rates) -> String {
    let state = if status.guest_state.is_empty() { "unknown" } else { &status.guest_state };
    format!(
        "{state}, {:.1} MIPS, {} instructions, time {:.1} s",
        rates.guest_mips,
        format_count(status.guest_ticks as f64),
        status.guest_ns as f64 / 1e9,
    )
}

/// How far the backup is behind; only a primary that is followed knows.
fn lag(role: Role, status: &Status) -> Option<Row> {
    let text = || {
        format!(
            "{} entries, {}, {} ticks",
            status.lag_entries,
            millis(status.lag_us),
            format_count(status.lag_ticks as f64)
        )
    };
    (role == Role::Primary && status.protected).then(|| ("lag", text()))
}

fn gate(role: Role, status: &Status) -> Option<Row> {
    let gate = &status.gate;
    let verb = match role {
        Role::Primary => "held",
        // What the primary may not have sent yet.
        Role::Backup => "retained",
        Role::Joining | Role::Dead => return None,
    };
    let mut parts = vec![format!("{} {verb}", gate.held)];
    if gate.held > 0 {
        parts.push(format!("{} B, oldest {}", gate.held_bytes, millis(gate.oldest_us)));
    }
    if role == Role::Primary {
        parts.push(format!("{} released, longest {}", gate.released, millis(gate.max_us)));
    }
    for (count, what) in [(gate.dropped, "dropped"), (gate.resent, "sent again"), (gate.forgotten, "forgotten")] {
        parts.extend((count > 0).then(|| format!("{count} {what}")));
    }
    Some(("gate", parts.join(", ")))
}

fn log(role: Role, status: &Status, rates: &Rates) -> Option<Row> {
    let kinds = top(&rates.log_bytes, |rate| format!("{}/s", format_bytes(rate)));
    let text = [Some(format!("{}/s on the wire", format_bytes(rates.wire_bytes))), kinds];
    (status.protected || role == Role::Backup || rates.wire_bytes > 0.0)
        .then(|| ("log", text.into_iter().flatten().collect::<Vec<_>>().join("; ")))
}

fn term(status: &Status) -> Option<Row> {
    let Asking { asks_for, tries, failures, unauthentic, granted, taken, answer_us, .. } = status.arbiter;
    if status.term == 0 && asks_for == 0 && tries == 0 {
        return None;
    }
    let mut parts = vec![status.term.to_string()];
    if asks_for > 0 {
        parts.push(format!("waits for the arbiter's word on term {asks_for}"));
    }
    if tries > 0 {
        parts.push(format!("asked {tries} times, {failures} in vain"));
    }
    if unauthentic > 0 {
        parts.push(format!("{unauthentic} answers that were not the arbiter's"));
    }
    if granted + taken > 0 {
        parts.push(format!("last answer after {}", millis(answer_us)));
    }
    Some(("term", parts.join(", ")))
}

/// The instruction counter and why it can be relied on.
fn counter(status: &Status) -> String {
    let test = &status.counter_test;
    let mut line = match status.counter.as_str() {
        "" => "unknown".to_owned(),
        name => format!("{name}, passed {} checks", test.checks),
    };
    if test.margin > 0 {
        line += &format!(
            ", margin {}, skid {} (now {}), {} steps a stop",
            test.margin, test.skid, test.skid_seen, test.steps_per_stop
        );
    }
    for (count, what) in [(test.late, "late"), (test.spurious, "spurious")] {
        if count > 0 {
            line += &format!(", {count} overflows {what}");
        }
    }
    if !test.costs.is_empty() {
        line += &format!(", besides instructions count: {}", test.costs);
    }
    if !test.why.is_empty() {
        line += &format!(" ({})", test.why);
    }
    line
}

fn skids(status: &Status) -> Option<Row> {
    let test = &status.counter_test;
    let text = || format!("in the self-test: {}; since then: {}", test.skids, test.skids_seen);
    (test.margin > 0).then(|| ("skids", text()))
}

fn transfer(status: &Status) -> Option<Row> {
    let transfer = &status.transfer;
    let text = || {
        format!(
            "{}, {} pages in {} rounds and {:.0} ms, the guest stood still for {:.0} ms",
            format_bytes(transfer.bytes as f64),
            transfer.pages,
            transfer.rounds,
            transfer.total_ms,
            transfer.pause_ms
        )
    };
    (transfer.bytes > 0).then(|| ("transfer", text()))
}

fn disk(status: &Status) -> Option<Row> {
    let disk = &status.disk;
    let text = || {
        format!(
            "{}: {} reads ({}), {} writes ({}), {} flushes, {} discards",
            format_bytes(disk.bytes as f64),
            format_count(disk.reads as f64),
            format_bytes(disk.read_bytes as f64),
            format_count(disk.writes as f64),
            format_bytes(disk.written_bytes as f64),
            disk.flushes,
            disk.zeroed
        )
    };
    (disk.bytes > 0).then(|| ("disk", text()))
}

fn errors(status: &Status) -> Option<Row> {
    let errors: Vec<_> = status.errors.iter().filter(|(_, n)| **n > 0).map(|(name, n)| format!("{name} {n}")).collect();
    (!errors.is_empty()).then(|| ("errors", errors.join(", ")))
}

/// The largest entries of a table of rates, if there are any.
fn top(rates: &BTreeMap<String, f64>, format: impl Fn(f64) -> String) -> Option<String> {
    let mut entries: Vec<_> = rates.iter().filter(|(_, rate)| **rate > 0.0).collect();
    entries.sort_by(|a, b| b.1.total_cmp(a.1));
    let shown: Vec<_> = entries.iter().take(TOP).map(|(name, rate)| format!("{name} {}", format(**rate))).collect();
    (!shown.is_empty()).then(|| shown.join(", "))
}

fn millis(us: u64) -> String {
    format!("{:.1} ms", us as f64 / 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rig::monitor::Disk;
    use crate::view::text::tests::example;

    /// The rows of a machine in `role` with the status of the example's primary.
    fn rows_in(role: Role, protected: bool) -> Vec<Row> {
        let mut machine = example().machine(Role::Primary).unwrap().clone();
        machine.role = role;
        let status = machine.status.as_mut().unwrap();
        (status.protected, status.lag_ticks) = (protected, 133_000_000);
        rows(&machine)
    }

    fn names(rows: &[Row]) -> Vec<&'static str> {
        rows.iter().map(|(name, _)| *name).collect()
    }

    #[test]
    fn only_a_protected_primary_has_a_lag() {
        assert!(names(&rows_in(Role::Primary, true)).contains(&"lag"));
        for (role, protected) in
            [(Role::Primary, false), (Role::Backup, true), (Role::Joining, false), (Role::Dead, false)]
        {
            let rows = rows_in(role, protected);
            assert!(!rows.iter().any(|(name, text)| *name == "lag" || text.contains("133 M")), "{rows:?}");
        }
    }

    #[test]
    fn a_machine_without_a_guest_shows_nothing_of_one() {
        let names = names(&rows_in(Role::Joining, false));
        assert!(!["guest", "gate", "exits", "overhead"].iter().any(|name| names.contains(name)), "{names:?}");
    }

    #[test]
    fn a_pair_without_a_key_is_shown_as_such() {
        let shown = |security: &str| {
            let mut machine = example().machine(Role::Primary).unwrap().clone();
            machine.status.as_mut().unwrap().security = security.to_owned();
            names(&rows(&machine)).contains(&"INSECURE")
        };
        assert_eq!([shown("insecure"), shown("key"), shown("")], [true, false, false]);
    }

    #[test]
    fn two_keys_are_shown() {
        let mut machine = example().machine(Role::Primary).unwrap().clone();
        assert!(!names(&rows(&machine)).contains(&"keys"));
        let status = machine.status.as_mut().unwrap();
        (status.key, status.old_key) = ("0b".into(), "0a".into());
        assert!(rows(&machine).contains(&("keys", "0b, and the old one 0a: may be forgotten".into())));
        machine.status.as_mut().unwrap().old_key_is_needed = "the twin lacks it".into();
        assert!(rows(&machine).contains(&("keys", "0b, and the old one 0a: the twin lacks it".into())));
    }

    #[test]
    fn an_arbiter_that_anybody_can_be_is_shown_as_such() {
        let shown = |words: &str| {
            let mut machine = example().machine(Role::Primary).unwrap().clone();
            let status = machine.status.as_mut().unwrap();
            (status.security, status.arbiter.words, status.arbiter.unauthentic) = ("key".into(), words.into(), 3);
            let rows = rows(&machine);
            assert!(rows.iter().any(|(name, text)| *name == "term" && text.contains("3 answers that were not")));
            names(&rows).contains(&"INSECURE")
        };
        assert_eq!([shown("etcd"), shown("sealed"), shown("")], [true, false, false]);
    }

    #[test]
    fn what_never_happened_takes_no_room() {
        let (name, text) = gate(Role::Backup, &Status::default()).unwrap();
        assert_eq!((name, text.as_str()), ("gate", "0 retained"));
        let mut status = Status::default();
        (status.gate.held, status.gate.held_bytes, status.gate.oldest_us) = (2, 120, 1500);
        status.gate.resent = 3;
        let (_, text) = gate(Role::Primary, &status).unwrap();
        assert_eq!(text, "2 held, 120 B, oldest 1.5 ms, 0 released, longest 0.0 ms, 3 sent again");
        assert_eq!((term(&Status::default()), transfer(&Status::default())), (None, None));
        assert_eq!(disk(&Status::default()), None);
        status.disk = Disk { bytes: 1 << 20, writes: 3, written_bytes: 1536, ..Disk::default() };
        let text = "1.05 MB: 0 reads (0 B), 3 writes (1.54 kB), 0 flushes, 0 discards";
        assert_eq!(disk(&status), Some(("disk", text.to_owned())));
    }

    #[test]
    fn the_counter_comes_with_its_test() {
        let rows = rows_in(Role::Primary, true);
        let text = |wanted| rows.iter().find(|(name, _)| *name == wanted).unwrap().1.as_str();
        let line = "pmu, passed 41 checks, margin 256, skid 18 (now 21), 190 steps a stop, 2 overflows late, \
                    besides instructions count: injected interrupt (counter=pmu)";
        assert_eq!(text("counter"), line);
        assert_eq!(text("skids"), "in the self-test: largest 18, <32: 1106; since then: largest 21, <32: 5");
        let ticks = Status { counter: "ticks".into(), ..Status::default() };
        assert_eq!(counter(&ticks), "ticks, passed 0 checks");
    }
}
