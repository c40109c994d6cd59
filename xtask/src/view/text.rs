//! A rig in words: the plain lines, `rig status`, and the panels of the live view.

use super::machine;
use crate::rig::network::LinkSnapshot;
use crate::rig::roles::Role;
use crate::rig::snapshot::{MachineSnapshot, Notice, Snapshot, TakeoverEntry};
use crate::units::{format_bytes, format_count};

/// Something that happened, with its time.
pub fn notice(notice: &Notice) -> String {
    format!("[{:7.1} s] {}", notice.at_s, notice.text)
}

/// The state in one line.
pub fn summary(snapshot: &Snapshot) -> String {
    let roles = snapshot.machines.iter().map(|machine| format!("{}={}", machine.name, machine.role.word()));
    let mut parts: Vec<_> = roles.collect();
    parts.push(protection(snapshot));
    if let Some(primary) = snapshot.machine(Role::Primary) {
        parts.extend(primary.rates.as_ref().map(|rates| format!("{:.1} MIPS", rates.guest_mips)));
        if let Some(status) = &primary.status {
            parts.push(format!("guest {}", format_count(status.guest_ticks as f64)));
            parts.push(format!("counter {}", if status.counter.is_empty() { "unknown" } else { &status.counter }));
            if status.protected {
                parts.push(format!("lag {} entries {:.1} ms", status.lag_entries, status.lag_us as f64 / 1e3));
            }
            parts.push(format!("gate {} held", status.gate.held));
        }
        parts.extend(primary.rates.as_ref().map(|rates| format!("log {}/s", format_bytes(rates.wire_bytes))));
    }
    if let Some(digests) =
        snapshot.machines.iter().filter_map(|machine| machine.status.as_ref()).map(|s| s.digests).max()
    {
        parts.push(format!("digests {digests}"));
    }
    parts.push(format!("takeovers {}", snapshot.takeovers.len()));
    format!("[{:7.1} s] {}", snapshot.uptime_s, parts.join(", "))
}

/// Protected or not, and for how long.
pub fn protection(snapshot: &Snapshot) -> String {
    let word = if snapshot.protected { "protected" } else { "not protected" };
    let useless = |machine: &MachineSnapshot| machine.status.as_ref().is_some_and(|status| status.arbiter.useless);
    // Who loses its twin now would wait.
    let warning = if snapshot.machines.iter().any(useless) { " (THE ARBITER IS OF NO USE)" } else { "" };
    format!("{word} for {:.0} s{warning}", snapshot.protected_s)
}

/// Everything, for `rig status`.
pub fn status(snapshot: &Snapshot) -> Vec<String> {
    let mut lines = vec![
        format!("service    {}", snapshot.service),
        format!("directory  {}", snapshot.directory.display()),
        format!("up         {:.0} s, {}", snapshot.uptime_s, protection(snapshot)),
    ];
    for shown in &snapshot.machines {
        lines.extend([String::new(), machine::title(shown)]);
        lines.extend(machine::rows(shown).iter().map(|(name, text)| format!("  {name:<10} {text}")));
    }
    lines.push(String::new());
    lines.extend(links(snapshot));
    lines.push(format!("takeovers  {}", snapshot.takeovers.len()));
    lines.extend(snapshot.takeovers.iter().map(takeover));
    lines
}

/// The networks and the arbiter, a line each.
pub fn links(snapshot: &Snapshot) -> Vec<String> {
    let line = |link: &LinkSnapshot| {
        let (frames, bytes) = (format_count(link.frames as f64), format_bytes(link.bytes as f64));
        format!("link {:<6} {}, {frames} frames, {bytes}, {} dropped", link.name, link.state, link.dropped)
    };
    snapshot.links.iter().map(line).chain(snapshot.arbiter.as_ref().map(ToString::to_string)).collect()
}

/// A takeover in a line.
pub fn takeover(entry: &TakeoverEntry) -> String {
    format!("  at {:.1} s: {} {}", entry.at_s, entry.name, entry.times)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::rig::arbiter::ArbiterSnapshot;
    use crate::rig::monitor::{Amount, Asking, Claim, CounterTest, Status, Takeover};
    use crate::rig::rates::Rates;

    /// A protected pair under load, after one takeover.
    pub(crate) fn example() -> Snapshot {
        let status = Status {
            role: Claim::Primary,
            protected: true,
            guest_ticks: 12_345_000_000,
            guest_state: "running".into(),
            log: [("packet".to_owned(), Amount { n: 3, bytes: 400, data: 300 })].into(),
            digests: 17,
            term: 2,
            arbiter: Asking { asks_for: 3, tries: 5, failures: 4, ..Asking::default() },
            counter: "pmu".into(),
            counter_test: CounterTest {
                why: "counter=pmu".into(),
                checks: 41,
                skid: 18,
                margin: 256,
                steps_per_stop: 190,
                skid_seen: 21,
                skids: "largest 18, <32: 1106".into(),
                skids_seen: "largest 21, <32: 5".into(),
                costs: "injected interrupt".into(),
                late: 2,
                ..CounterTest::default()
            },
            ..Status::default()
        };
        let rates = Rates {
            guest_mips: 321.5,
            overhead: 0.015,
            wire_bytes: 4_500.0,
            exits: [("io".to_owned(), 12.0), ("hlt".to_owned(), 1500.0)].into(),
            ..Rates::default()
        };
        let machine = |name: &str, role, status, rates| MachineSnapshot {
            name: name.to_owned(),
            role,
            pid: Some(4711),
            serial: format!("/rig/{name}.log").into(),
            claim: None,
            silent_ms: Some(100),
            last_end: None,
            malformed: 0,
            status,
            rates,
        };
        let times = Takeover { detect_ms: 1000.0, drain_ms: 2.5, total_ms: 1003.0, ..Takeover::default() };
        Snapshot {
            keys: Vec::new(),
            service: "127.0.0.1:7777".into(),
            directory: "/rig".into(),
            uptime_s: 61.2,
            protected: true,
            protected_s: 12.0,
            first_protected_s: Some(3.0),
            first_answer_s: Some(2.0),
            machines: vec![
                machine("castor", Role::Backup, None, None),
                machine("pollux", Role::Primary, Some(status), Some(rates)),
            ],
            takeovers: vec![TakeoverEntry { at_s: 40.0, name: "pollux".into(), times }],
            arbiter: Some(ArbiterSnapshot {
                address: "127.0.0.1:2379".into(),
                insecure: false,
                newest_term: Some(2),
                winner: Some("00000000000000aa pollux".into()),
                requests: 3,
                failed: 0,
            }),
            links: Vec::new(),
            network: None,
            notices: vec![Notice { at_s: 40.0, text: "pollux took over".into() }],
        }
    }

    #[test]
    fn the_summary_is_one_line_with_the_essentials() {
        let line = summary(&example());
        for part in [
            "castor=backup",
            "pollux=primary",
            "counter pmu",
            "protected for 12 s",
            "321.5 MIPS",
            "digests 17",
            "takeovers 1",
        ] {
            assert!(line.contains(part), "{part} is not in {line}");
        }
        assert!(!line.contains('\n'));
    }

    #[test]
    fn the_status_shows_rates_and_takeovers() {
        let text = status(&example()).join("\n");
        for part in [
            "12.3 G instructions",
            "1.5 % of",
            "hlt 1.50 k/s, io 12/s",
            "17 compared",
            "1003 ms (detection 1000",
            "3 requests, newest term 2",
            "term       2, waits for the arbiter's word on term 3, asked 5 times, 4 in vain",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }
}
