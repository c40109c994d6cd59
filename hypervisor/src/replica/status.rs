//! What the running machine reports about itself.

use alloc::string::ToString;
use alloc::vec::Vec;

use pollux_driver::{Driver, Duty};
use pollux_ft::{Kind, Role, Span, Time, flow};

use super::console::Console;
use super::json::Json;
use super::machine::Machine;
use super::monitor;
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

/// How a machine is called in status and log.
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
        let guest = driver.guest();
        let protected_ms = self.figures.protected_since.map_or(0, |since| self.now.since(since).0 / 1000);
        json.text("name", &self.config.name)
            .text("role", role_name(driver))
            .text("waits_for", &driver.node().waits_for(self.now).map(|what| what.to_string()).unwrap_or_default())
            .flag("protected", driver.is_protected() && !driver.has_ended())
            .number("protected_ms", protected_ms)
            .text("guest_state", guest_state(driver))
            .number("position", guest.position().0)
            .number("guest_ns", guest.now().0)
            .number("clock_lag_us", driver.clock_lag_ns() / 1000)
            .number("wall_ms", self.now.0 / 1000)
            .number("host_ticks", clock::cycles() - self.figures.slept)
            .number("guest_ticks", guest.ticks())
            .number("packets_in", self.figures.packets_in)
            .number("digests", self.figures.digests)
            .number("takeovers", self.figures.takeovers)
            .number("resets", self.figures.resets)
            .number("held_back", self.figures.held_back)
            .number("slowed_percent", u64::from(flow::FULL - driver.share()) * 100 / u64::from(flow::FULL))
            .object("transfer", |json| {
                json.number("bytes", self.figures.transfer_bytes)
                    .number("pages", self.figures.transfer_pages)
                    .number("rounds", self.figures.transfer_rounds)
                    .millis("total_ms", self.figures.transfer)
                    .millis("pause_ms", self.figures.transfer_pause);
            });
        json.object("exits", |json| {
            for (name, count) in EXIT_KINDS.iter().zip(guest.exits().0) {
                json.number(name, count);
            }
        });
        report_counter(&mut json, guest);
        self.report_disk(&mut json, guest);
        self.report_gate(&mut json);
        self.report_log(&mut json, driver);
        self.report_arbiter(&mut json);
        self.report_errors(&mut json, driver);
        monitor::send(json);
    }

    /// What the guest did with its disk since it came to this machine, and what this machine's disk does for it.
    fn report_disk(&self, json: &mut Json, guest: &Guest) {
        let Some((bytes, stats)) = guest.platform.disk() else { return };
        json.object("disk", |json| {
            json.number("bytes", bytes)
                .number("reads", stats.reads)
                .number("read_bytes", stats.read_bytes)
                .number("writes", stats.writes)
                .number("written_bytes", stats.written_bytes)
                .number("flushes", stats.flushes)
                .number("zeroed", stats.zeroed)
                .number("at_work", self.disk.depth() as u64)
                .number("most_at_work", self.disk.deepest as u64);
        });
    }

    fn report_gate(&self, json: &mut Json) {
        let Some(gate) = self.gate() else { return };
        let stats = gate.stats();
        json.object("gate", |json| {
            json.number("held", gate.held() as u64)
                .number("held_bytes", gate.held_bytes() as u64)
                .number("oldest_us", gate.oldest_age(self.now.0).unwrap_or(0))
                .number("max_us", stats.hold_time_max_us)
                .number("released", stats.released)
                .number("resent", stats.resent)
                .number("forgotten", stats.retained_forgotten)
                .number("dropped", stats.dropped_closed);
        });
    }

    fn gate_median_us(&self) -> u64 {
        self.gate().and_then(|gate| gate.stats().hold_time_quantile_us(500)).unwrap_or(0)
    }

    fn report_log(&self, json: &mut Json, driver: &Driver<Guest>) {
        let Some(link) = &self.link else { return };
        let node = driver.node();
        let (stats, lag) = (node.stats(), node.lag(self.now));
        let security = if node.is_secure() { "key" } else { "insecure" };
        json.text("security", security);
        self.report_keys(json, driver);
        json.number("heartbeats_unanswered", stats.heartbeats_unanswered)
            .number("term", node.term().0)
            .number("lag_entries", lag.entries)
            .number("lag_ticks", lag.ticks)
            .number("lag_us", lag.time.0);
        json.object("log", |json| {
            for kind in Kind::ALL {
                let count = stats.of(kind);
                json.object(kind.name(), |json| {
                    json.number("n", count.entries).number("bytes", count.bytes).number("data", count.data);
                });
            }
        });
        let wire = link.wire_bytes();
        json.number("wire_tx", wire.sent).number("wire_rx", wire.received).number("heartbeat_bytes", wire.heartbeats);
        json.number("gate_median_us", self.gate_median_us());
        json.number("batches", stats.batches).number("acks_received", stats.acks_received);
    }

    fn report_arbiter(&self, json: &mut Json) {
        let Some(arbiter) = &self.arbiter else { return };
        let figures = arbiter.figures();
        json.object("arbiter", |json| {
            json.text("words", if arbiter.is_sealed() { "sealed" } else { "etcd" });
            json.number("asks_for", arbiter.asks_for().map_or(0, |term| term.0))
                .number("questions", figures.questions)
                .number("tries", figures.tries)
                .number("failures", figures.failures)
                .number("unauthentic", figures.unauthentic)
                .number("granted", figures.granted)
                .number("taken", figures.taken)
                .number("answer_us", figures.answer.0)
                .number("looks", figures.looks)
                .number("looks_in_vain", figures.looks_in_vain)
                .flag("useless", arbiter.is_useless())
                .text("trouble", &arbiter.troubles().join("; "));
        });
    }

    fn report_errors(&mut self, json: &mut Json, driver: &Driver<Guest>) {
        json.object("errors", |json| {
            let platform = &driver.guest().platform;
            let net = platform.net_stats();
            json.number("guest_queues_malformed", platform.malformed_queues());
            json.number("guest_rx_overflow", net.overflow)
                .number("guest_rx_not_ready", net.not_ready)
                .number("guest_rx_bad_size", net.bad_size)
                .number("guest_tx_refused", net.bad_sent);
            if let Some((_, disk)) = platform.disk() {
                json.number("guest_disk_failed", disk.failed).number("guest_disk_unsupported", disk.unsupported);
                json.number("disk_failed", self.disk.failed);
            }
            if let Some(client) = &mut self.client {
                let errors = client.errors();
                json.number("guest_frames_refused", errors.refused)
                    .number("guest_frames_foreign", errors.foreign)
                    .number("guest_frames_overrun", errors.overrun);
                let card = client.nic().nic_stats();
                json.number("client_rx_too_long", card.rx.too_long + card.rx.fragmented + card.rx_oversize)
                    .number("client_rx_too_short", card.rx.too_short)
                    .number("client_rx_bad", card.rx.hardware_errors)
                    .number("client_rx_missed", card.rx_missed);
            }
            if self.link.is_some() {
                let stats = driver.node().stats();
                json.number("log_refused_seal", stats.refused_seal)
                    .number("log_refused_strangers", stats.refused_handshakes)
                    .number("log_refused_content", stats.refused_content)
                    .number("log_refused_order", stats.refused_order)
                    .number("log_refused_unexpected", stats.refused_unexpected)
                    .number("heartbeats_malformed", stats.heartbeats_malformed)
                    .number("heartbeats_late", stats.heartbeats_late)
                    .number("pairings_refused", stats.refused_pairings)
                    .number("log_full", stats.log_full)
                    .number("own_pauses", stats.own_pauses);
            }
        });
    }
}

fn report_counter(json: &mut Json, guest: &Guest) {
    let Chosen { counter, figures, why, lends_tsc } = guest.counter();
    let seen = counter.seen();
    json.text("counter", counter.name()).object("counter_test", |json| {
        json.text("identity", &counter.identity())
            .text("why", why)
            .number("checks", figures.checks)
            .flag("lends_tsc", *lends_tsc)
            .number("skid", figures.skid.largest())
            .text("skids", &figures.skid.to_string())
            .text("costs", &figures.costs.counting().collect::<Vec<_>>().join(", "))
            .number("margin", figures.margin)
            .number("steps_per_stop", figures.steps_per_stop)
            .number("skid_seen", seen.skid.largest())
            .text("skids_seen", &seen.skid.to_string())
            .number("late", seen.late)
            .number("spurious", seen.spurious);
    });
}
