//! What the running machine reports about itself: each figure once, with its meaning, whatever form it takes ([`Report`]).

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use pollux_driver::{Driver, Duty};
use pollux_ft::{Kind, Role, Span, Time, flow};

use super::console::Console;
use super::json::Json;
use super::machine::Machine;
use super::monitor;
use super::report::Report;
use crate::counter::choose::Chosen;
use crate::guest::{EXIT_KINDS, Guest};
use crate::host::clock;

/// Wall time between two reports that nobody asked for. Not shorter: a report has some 1,300 bytes, and
/// each of them is a system call of the emulator.
const INTERVAL: Span = Span::from_millis(1000);

/// Counts that belong to no other part.
#[derive(Debug, Default)]
pub(super) struct Figures {
    pub(super) console: Console,
    /// Cycles that the machine slept.
    pub(super) slept: u64,
    /// Frames of the machine's own that its card did not take.
    pub(super) own_frames_lost: u64,
    pub(super) packets_in: u64,
    pub(super) digests: u64,
    pub(super) takeovers: u64,
    pub(super) resets: u64,
    /// Turns in which the guest had to wait for the twin.
    pub(super) held_back: u64,
    pub(super) transfer_pages: u64,
    pub(super) transfer_bytes: u64,
    pub(super) transfer_rounds: u64,
    pub(super) transfer: Span,
    pub(super) transfer_pause: Span,
    pub(super) protected_since: Option<Time>,
    next_report: Time,
}

/// What a machine can be called in status and log.
const ROLES: [&str; 4] = ["primary", "backup", "joining", "halted"];

/// How it is called.
fn role_name(driver: &Driver<Guest>) -> &'static str {
    match driver.node().role() {
        _ if driver.has_ended() => "halted",
        Role::Starting => "primary",
        role if role.is_primary() => "primary",
        Role::Backup | Role::Draining => "backup",
        Role::Halted => "halted",
        _ => "joining",
    }
}

fn guest_state(driver: &Driver<Guest>) -> &'static str {
    match driver.duty() {
        Duty::Wait => "off",
        _ if driver.guest().is_halted() => "halted",
        _ => "running",
    }
}

impl Machine {
    pub(super) fn report_if_due(&mut self, driver: &Driver<Guest>) {
        if self.now >= self.figures.next_report {
            self.report(driver);
        }
    }

    /// Sends the status, but not that of a machine that halts and has not [said so](Self::report_end).
    pub(super) fn report(&mut self, driver: &Driver<Guest>) {
        if !self.config.monitor || self.ending.is_some() {
            return;
        }
        self.figures.next_report = self.now.after(INTERVAL);
        self.figures.console.show();
        let mut json = Json::line("status");
        let refused = self.service.as_ref().map_or_else(Vec::new, |service| service.refused().to_vec());
        self.fill(&mut json, driver, &refused);
        monitor::send(json);
    }

    /// Whether this machine does its part, and what that is, or why it does not.
    pub(super) fn health(&self, driver: &Driver<Guest>) -> Result<&'static str, String> {
        if driver.has_ended() {
            return Err("this machine has halted".into());
        }
        match driver.node().role() {
            _ if driver.is_protected() => Ok("protected: the backup follows"),
            Role::Backup => Ok("backup: follows the primary"),
            Role::Halted => Err("this machine has halted".into()),
            Role::Draining => Err("the primary is gone: this machine is about to take over".into()),
            Role::Joining | Role::Loading | Role::Starting => {
                let waits =
                    driver.node().waits_for(self.now).map_or_else(String::new, |what| format!(": it waits for {what}"));
                Err(format!("this machine has no guest yet{waits}"))
            }
            _ => Err("the guest runs without a backup".into()),
        }
    }

    /// All figures of this machine; `refused` are those of its service, which may be at work just now.
    pub(super) fn fill(&mut self, report: &mut dyn Report, driver: &Driver<Guest>, refused: &[(&'static str, u64)]) {
        let (guest, figures) = (driver.guest(), &self.figures);
        let protected = figures.protected_since.map_or(0, |since| self.now.since(since).0);
        report.label("name", &self.config.name);
        report.one_of("role", &ROLES, role_name(driver), "What this machine is: 1 for its role");
        let waits = driver.node().waits_for(self.now).map(|what| what.to_string()).unwrap_or_default();
        report.text("waits_for", &waits);
        report.flag("protected", driver.is_protected() && !driver.has_ended(), "Whether a backup follows this primary");
        report.time("protected_ms", protected * 1000, "For how long it has been protected");
        report.text("guest_state", guest_state(driver));
        report.gauge("position", guest.position().0, "Where the guest is, in ticks of its counter");
        report.time("guest_ns", guest.now().0, "The guest's time since it was created");
        report.time("clock_lag_us", driver.clock_lag_ns(), "By how much the guest's time is behind real time");
        report.time("wall_ms", self.now.0 * 1000, "Time since this machine was started");
        report.counter("host_ticks", clock::cycles() - figures.slept, "Cycles in which this machine did not sleep");
        report.counter("guest_ticks", guest.ticks(), "Ticks that the guest has run on this machine");
        report.counter("packets_in", figures.packets_in, "Frames of clients that the guest was given");
        report.counter("digests", figures.digests, "Digests of the guest that were logged or compared");
        report.counter("takeovers", figures.takeovers, "How often this machine went live in another one's place");
        report.counter("resets", figures.resets, "Resets of the guest");
        report.counter("held_back", figures.held_back, "Turns in which the guest had to wait for the twin");
        let slowed = u64::from(flow::FULL - driver.share()) * 100 / u64::from(flow::FULL);
        report.gauge("slowed_percent", slowed, "By how much the guest is slowed down for its backup");
        report.object("transfer", "transfer", &mut |report| {
            report.gauge("bytes", figures.transfer_bytes, "Bytes of state in the last transfer to a backup");
            report.gauge("pages", figures.transfer_pages, "Pages of memory in it");
            report.gauge("rounds", figures.transfer_rounds, "Rounds that it took");
            report.millis("total_ms", figures.transfer.0 * 1000, "How long it took");
            report.millis("pause_ms", figures.transfer_pause.0 * 1000, "How long the guest stood still for it");
        });
        let exits: Vec<_> = EXIT_KINDS.into_iter().zip(guest.exits().0).collect();
        report.counters("exits", &exits, "Runs of the guest by what ended them");
        report_counter(report, guest);
        self.report_disk(report, guest);
        self.report_gate(report);
        self.report_log(report, driver);
        self.report_arbiter(report);
        self.report_errors(report, driver, refused);
    }

    /// What the guest did with its disk since it came to this machine, and what this machine's disk does for it.
    fn report_disk(&self, report: &mut dyn Report, guest: &Guest) {
        let Some((bytes, stats)) = guest.platform.disk() else { return };
        report.object("disk", "disk", &mut |report| {
            report.gauge("bytes", bytes, "Size of the guest's disk");
            report.counter("reads", stats.reads, "Requests of the guest to read");
            report.counter("read_bytes", stats.read_bytes, "Bytes that it read");
            report.counter("writes", stats.writes, "Requests of the guest to write");
            report.counter("written_bytes", stats.written_bytes, "Bytes that it wrote");
            report.counter("flushes", stats.flushes, "Requests of the guest to flush");
            report.counter("zeroed", stats.zeroed, "Requests of the guest to discard or to write zeros");
            report.gauge("at_work", self.disk.depth() as u64, "Requests that this machine's disk works at");
            report.gauge("most_at_work", self.disk.deepest as u64, "The most that it worked at");
        });
    }

    fn report_gate(&self, report: &mut dyn Report) {
        let Some(gate) = self.gate() else { return };
        let stats = gate.stats();
        report.object("gate", "gate", &mut |report| {
            report.gauge("held", gate.held() as u64, "Frames of the guest that are held until the twin has the log");
            report.gauge("held_bytes", gate.held_bytes() as u64, "Their bytes");
            let oldest = gate.oldest_age(self.now.0).unwrap_or(0);
            report.time("oldest_us", oldest * 1000, "How long the oldest of them has been held");
            report.time("max_us", stats.hold_time_max_us * 1000, "The longest that a frame was held");
            report.counter("released", stats.released, "Frames of the guest that were sent");
            report.counter("resent", stats.resent, "Frames that were sent at a takeover");
            report.counter("forgotten", stats.retained_forgotten, "Frames that a backup had no room to retain");
            report.counter("dropped", stats.dropped_closed, "Frames that found the gate closed");
        });
    }

    fn gate_median_us(&self) -> u64 {
        self.gate().and_then(|gate| gate.stats().hold_time_quantile_us(500)).unwrap_or(0)
    }

    fn report_log(&self, report: &mut dyn Report, driver: &Driver<Guest>) {
        let Some(link) = &self.link else { return };
        let node = driver.node();
        let (stats, lag) = (node.stats(), node.lag(self.now));
        report.label("security", if node.is_secure() { "key" } else { "insecure" });
        self.report_keys(report, driver);
        report.counter(
            "heartbeats_unanswered",
            stats.heartbeats_unanswered,
            "Heartbeats that do not name this machine",
        );
        report.gauge("term", node.term().0, "The term that this machine is in");
        report.gauge("lag_entries", lag.entries, "By how many log entries the backup is behind");
        report.gauge("lag_ticks", lag.ticks, "By how many ticks of the guest");
        report.time("lag_us", lag.time.0 * 1000, "By how much time");
        let columns = [
            ("n", "entries", "Log entries of each kind, as primary"),
            ("bytes", "bytes", "Their bytes"),
            ("data", "data_bytes", "Bytes of data in them"),
        ];
        let rows = Kind::ALL.map(|kind| {
            let count = stats.of(kind);
            (kind.name(), [count.entries, count.bytes, count.data])
        });
        report.table("log", &columns, &rows);
        let wire = link.wire_bytes();
        report.counter("wire_tx", wire.sent, "Bytes sent on the log network");
        report.counter("wire_rx", wire.received, "Bytes received there");
        report.counter("heartbeat_bytes", wire.heartbeats, "Bytes of heartbeats");
        report.time(
            "gate_median_us",
            self.gate_median_us() * 1000,
            "The median of the times for which frames were held",
        );
        report.counter("batches", stats.batches, "Batches of log entries sent");
        report.counter("acks_received", stats.acks_received, "Acks received");
    }

    fn report_arbiter(&self, report: &mut dyn Report) {
        let Some(arbiter) = &self.arbiter else { return };
        let figures = arbiter.figures();
        report.object("arbiter", "arbiter", &mut |report| {
            report.text("words", if arbiter.is_sealed() { "sealed" } else { "etcd" });
            let asks_for = arbiter.asks_for().map_or(0, |term| term.0);
            report.gauge("asks_for", asks_for, "The term that the arbiter is asked for now; 0: none");
            report.counter("questions", figures.questions, "Terms that the arbiter was asked for");
            report.counter("tries", figures.tries, "Connections begun for that");
            report.counter("failures", figures.failures, "Those that brought no answer");
            report.counter("unauthentic", figures.unauthentic, "Answers that were not the arbiter's");
            report.counter("granted", figures.granted, "Terms that were granted");
            report.counter("taken", figures.taken, "Terms that another machine had");
            report.time("answer_us", figures.answer.0 * 1000, "How long the last answer took");
            report.counter("looks", figures.looks, "Looks whether the arbiter would answer");
            report.counter("looks_in_vain", figures.looks_in_vain, "Those that found that it would not");
            report.flag("useless", arbiter.is_useless(), "Whether no way leads to a term now");
            report.text("trouble", &arbiter.troubles().join("; "));
        });
    }

    fn report_errors(&mut self, report: &mut dyn Report, driver: &Driver<Guest>, refused: &[(&'static str, u64)]) {
        let platform = &driver.guest().platform;
        let net = platform.net_stats();
        let mut errors = Vec::with_capacity(32);
        errors.extend([
            ("guest_queues_malformed", platform.malformed_queues()),
            ("guest_rx_overflow", net.overflow),
            ("guest_rx_not_ready", net.not_ready),
            ("guest_rx_bad_size", net.bad_size),
            ("guest_tx_refused", net.bad_sent),
        ]);
        if let Some((_, disk)) = platform.disk() {
            errors.extend([
                ("guest_disk_failed", disk.failed),
                ("guest_disk_unsupported", disk.unsupported),
                ("disk_failed", self.disk.failed),
            ]);
        }
        if let Some(client) = &mut self.client {
            let refused = client.errors();
            let card = client.nic().nic_stats();
            errors.extend([
                ("guest_frames_refused", refused.refused),
                ("guest_frames_foreign", refused.foreign),
                ("guest_frames_overrun", refused.overrun),
                ("client_rx_too_long", card.rx.too_long + card.rx.fragmented + card.rx_oversize),
                ("client_rx_too_short", card.rx.too_short),
                ("client_rx_bad", card.rx.hardware_errors),
                ("client_rx_missed", card.rx_missed),
            ]);
        }
        if self.link.is_some() {
            let stats = driver.node().stats();
            errors.extend([
                ("log_refused_seal", stats.refused_seal),
                ("log_refused_strangers", stats.refused_handshakes),
                ("log_refused_content", stats.refused_content),
                ("log_refused_order", stats.refused_order),
                ("log_refused_unexpected", stats.refused_unexpected),
                ("heartbeats_malformed", stats.heartbeats_malformed),
                ("heartbeats_late", stats.heartbeats_late),
                ("pairings_refused", stats.refused_pairings),
                ("log_full", stats.log_full),
                ("own_pauses", stats.own_pauses),
            ]);
        }
        errors.push(("machine_tx_lost", self.figures.own_frames_lost));
        errors.extend(refused);
        report.counters("errors", &errors, "What was refused, and what else went wrong, by kind");
    }
}

fn report_counter(report: &mut dyn Report, guest: &Guest) {
    let Chosen { counter, figures, why, lends_tsc } = guest.counter();
    let seen = counter.seen();
    report.label("counter", counter.name());
    // No metric of Prometheus has a word such as "counter" in its name.
    report.object("counter_test", "exactness", &mut |report| {
        report.text("identity", &counter.identity());
        report.text("why", why);
        report.gauge("checks", figures.checks, "Checks that the counter has passed at boot");
        report.flag("lends_tsc", *lends_tsc, "Whether the guest reads its clock without an exit");
        report.gauge("skid", figures.skid.largest(), "By how many ticks a run ended late at most, in the test at boot");
        report.text("skids", &figures.skid.to_string());
        report.text("costs", &figures.costs.counting().collect::<Vec<_>>().join(", "));
        report.gauge("margin", figures.margin, "How many ticks before a stop single steps begin");
        report.gauge("steps_per_stop", figures.steps_per_stop, "Single steps that a stop takes");
        report.gauge("skid_seen", seen.skid.largest(), "By how many ticks a run ended late at most, since then");
        report.text("skids_seen", &seen.skid.to_string());
        report.counter("late", seen.late, "Runs that ended late");
        report.counter("spurious", seen.spurious, "Runs that the counter ended early");
    });
}
