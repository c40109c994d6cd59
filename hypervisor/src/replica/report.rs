//! What a machine reports, written in one place and read in two forms: the JSON of the monitor, and metrics for Prometheus.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;

use super::json::Json;

/// A column of a table: its name in JSON, that of its metric, and what it counts.
pub type Column = (&'static str, &'static str, &'static str);

/// Takes figures one by one, each with its meaning.
pub trait Report {
    /// A count that only grows while the machine runs.
    fn counter(&mut self, key: &'static str, value: u64, help: &'static str);
    /// A number that may rise and fall.
    fn gauge(&mut self, key: &'static str, value: u64, help: &'static str);
    /// A time in nanoseconds. In JSON it is in the unit in which `key` ends: `_ns`, `_us` or `_ms`.
    fn time(&mut self, key: &'static str, nanos: u64, help: &'static str);
    /// The same, but in JSON with decimals: `key` ends in `_ms`.
    fn millis(&mut self, key: &'static str, nanos: u64, help: &'static str);
    /// Yes or no.
    fn flag(&mut self, key: &'static str, value: bool, help: &'static str);
    /// One of the words `all`.
    fn one_of(&mut self, key: &'static str, all: &[&'static str], value: &'static str, help: &'static str);
    /// What this machine is: a label in metrics.
    fn label(&mut self, key: &'static str, value: &str);
    /// A text for people: no metric.
    fn text(&mut self, key: &'static str, value: &str);
    /// Counts of one sort, each with its name.
    fn counters(&mut self, key: &'static str, values: &[(&'static str, u64)], help: &'static str);
    /// Rows of counts, each with its name.
    fn table(&mut self, key: &'static str, columns: &[Column; 3], rows: &[(&'static str, [u64; 3])]);
    /// Figures that belong together: `key` in JSON, and in metrics what their names begin with.
    fn object(&mut self, key: &'static str, place: &'static str, fill: &mut dyn FnMut(&mut dyn Report));
}

impl Report for Json {
    fn counter(&mut self, key: &'static str, value: u64, _: &'static str) {
        self.number(key, value);
    }

    fn gauge(&mut self, key: &'static str, value: u64, _: &'static str) {
        self.number(key, value);
    }

    fn time(&mut self, key: &'static str, nanos: u64, _: &'static str) {
        self.number(key, nanos / unit(key).1);
    }

    fn millis(&mut self, key: &'static str, nanos: u64, _: &'static str) {
        Self::millis(self, key, pollux_ft::Span(nanos / 1000));
    }

    fn flag(&mut self, key: &'static str, value: bool, _: &'static str) {
        Self::flag(self, key, value);
    }

    fn one_of(&mut self, key: &'static str, _: &[&'static str], value: &'static str, _: &'static str) {
        Self::text(self, key, value);
    }

    fn label(&mut self, key: &'static str, value: &str) {
        Self::text(self, key, value);
    }

    fn text(&mut self, key: &'static str, value: &str) {
        Self::text(self, key, value);
    }

    fn counters(&mut self, key: &'static str, values: &[(&'static str, u64)], _: &'static str) {
        Self::object(self, key, |json| {
            for (name, value) in values {
                json.number(name, *value);
            }
        });
    }

    fn table(&mut self, key: &'static str, columns: &[Column; 3], rows: &[(&'static str, [u64; 3])]) {
        Self::object(self, key, |json| {
            for (name, values) in rows {
                json.object(name, |json| {
                    for ((column, ..), value) in columns.iter().zip(values) {
                        json.number(column, *value);
                    }
                });
            }
        });
    }

    fn object(&mut self, key: &'static str, _: &'static str, fill: &mut dyn FnMut(&mut dyn Report)) {
        Self::object(self, key, |json| fill(json));
    }
}

/// A key without its unit, and how many nanoseconds that has.
fn unit(key: &str) -> (&str, u64) {
    let units = [("_ns", 1), ("_us", 1_000), ("_ms", 1_000_000)];
    let found = units.iter().find_map(|(suffix, nanos)| Some((key.strip_suffix(suffix)?, *nanos)));
    found.unwrap_or((key, 1))
}

/// A metric and its samples.
#[derive(Debug)]
struct Family {
    name: String,
    kind: &'static str,
    help: &'static str,
    samples: String,
}

/// Metrics in the text format of Prometheus. See: <https://prometheus.io/docs/instrumenting/exposition_formats/>.
#[derive(Debug, Default)]
pub struct Metrics {
    /// What the names of metrics begin with, within objects.
    place: String,
    labels: String,
    families: Vec<Family>,
}

impl Metrics {
    /// All of them as text.
    #[must_use]
    pub fn finish(mut self) -> String {
        let labels = format!("{{{}}}", self.labels);
        self.sample("pollux_info", "gauge", "What this machine is; always 1", &labels, &1);
        let mut text = String::new();
        for Family { name, kind, help, samples } in self.families {
            // Writing to a string never fails.
            let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{samples}");
        }
        text
    }

    fn name(&self, key: &str, suffix: &str) -> String {
        format!("pollux_{}{key}{suffix}", self.place)
    }

    fn sample(
        &mut self,
        name: &str,
        kind: &'static str,
        help: &'static str,
        labels: &str,
        value: &dyn core::fmt::Display,
    ) {
        let at = match self.families.iter().position(|family| family.name == name) {
            Some(at) => at,
            None => {
                self.families.push(Family { name: name.into(), kind, help, samples: String::new() });
                self.families.len() - 1
            }
        };
        // Writing to a string never fails.
        let _ = writeln!(self.families[at].samples, "{name}{labels} {value}");
    }

    fn seconds(&mut self, key: &str, nanos: u64, help: &'static str) {
        let name = self.name(unit(key).0, "_seconds");
        let value = format!("{}.{:09}", nanos / 1_000_000_000, nanos % 1_000_000_000);
        self.sample(&name, "gauge", help, "", &value);
    }
}

/// A label with its value. See the format's rules of escaping.
fn label(key: &str, value: &str) -> String {
    let mut text = format!("{key}=\"");
    for character in value.chars() {
        match character {
            '"' | '\\' => text.extend(['\\', character]),
            '\n' => text.push_str("\\n"),
            _ => text.push(character),
        }
    }
    text.push('"');
    text
}

impl Report for Metrics {
    fn counter(&mut self, key: &'static str, value: u64, help: &'static str) {
        let name = self.name(key, "_total");
        self.sample(&name, "counter", help, "", &value);
    }

    fn gauge(&mut self, key: &'static str, value: u64, help: &'static str) {
        let name = self.name(key, "");
        self.sample(&name, "gauge", help, "", &value);
    }

    fn time(&mut self, key: &'static str, nanos: u64, help: &'static str) {
        self.seconds(key, nanos, help);
    }

    fn millis(&mut self, key: &'static str, nanos: u64, help: &'static str) {
        self.seconds(key, nanos, help);
    }

    fn flag(&mut self, key: &'static str, value: bool, help: &'static str) {
        self.gauge(key, value.into(), help);
    }

    fn one_of(&mut self, key: &'static str, all: &[&'static str], value: &'static str, help: &'static str) {
        let name = self.name(key, "");
        for word in all {
            let labels = format!("{{{}}}", label(key, word));
            self.sample(&name, "gauge", help, &labels, &u8::from(*word == value));
        }
    }

    fn label(&mut self, key: &'static str, value: &str) {
        if !self.labels.is_empty() {
            self.labels.push(',');
        }
        self.labels.push_str(&label(key, value));
    }

    fn text(&mut self, _: &'static str, _: &str) {}

    fn counters(&mut self, key: &'static str, values: &[(&'static str, u64)], help: &'static str) {
        let name = self.name(key, "_total");
        for (kind, value) in values {
            self.sample(&name, "counter", help, &format!("{{{}}}", label("kind", kind)), value);
        }
    }

    fn table(&mut self, key: &'static str, columns: &[Column; 3], rows: &[(&'static str, [u64; 3])]) {
        for (at, (_, metric, help)) in columns.iter().enumerate() {
            let name = self.name(&format!("{key}_{metric}"), "_total");
            for (kind, values) in rows {
                self.sample(&name, "counter", help, &format!("{{{}}}", label("kind", kind)), &values[at]);
            }
        }
    }

    fn object(&mut self, _: &'static str, place: &'static str, fill: &mut dyn FnMut(&mut dyn Report)) {
        let outer = self.place.len();
        self.place.push_str(place);
        self.place.push('_');
        fill(self);
        self.place.truncate(outer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(report: &mut dyn Report) {
        report.label("name", "cas\"tor");
        report.one_of("role", &["primary", "backup"], "backup", "Its role");
        report.text("waits_for", "nobody");
        report.flag("protected", true, "Whether");
        report.gauge("position", 7, "Where");
        report.time("guest_ns", 1_500_000_000, "Time");
        report.time("protected_ms", 1_500_000_000, "Time");
        report.object("transfer", "transfer", &mut |report| {
            report.counter("bytes", 4, "Bytes");
            report.millis("pause_ms", 1_234_000, "Pause");
        });
        report.counters("exits", &[("cpuid", 1), ("io", 2)], "Exits by kind");
        let columns = [("n", "entries", "Entries"), ("bytes", "bytes", "Bytes"), ("data", "data_bytes", "Data")];
        report.table("log", &columns, &[("clock", [1, 2, 3]), ("packet", [4, 5, 6])]);
        report.counter("errors", 0, "Errors");
    }

    /// As on the monitor.
    #[test]
    fn as_json() {
        let mut json = Json::line("status");
        fill(&mut json);
        assert_eq!(
            json.finish(),
            "{\"t\":\"status\",\"name\":\"cas\\\"tor\",\"role\":\"backup\",\"waits_for\":\"nobody\",\"protected\":true,\
             \"position\":7,\"guest_ns\":1500000000,\"protected_ms\":1500,\"transfer\":{\"bytes\":4,\"pause_ms\":1.234},\
             \"exits\":{\"cpuid\":1,\"io\":2},\"log\":{\"clock\":{\"n\":1,\"bytes\":2,\"data\":3},\
             \"packet\":{\"n\":4,\"bytes\":5,\"data\":6}},\"errors\":0}\n"
        );
    }

    #[test]
    fn as_metrics() {
        let mut metrics = Metrics::default();
        fill(&mut metrics);
        let text = metrics.finish();
        for expected in [
            "# HELP pollux_role Its role\n# TYPE pollux_role gauge\npollux_role{role=\"primary\"} 0\n\
             pollux_role{role=\"backup\"} 1\n",
            "# TYPE pollux_protected gauge\npollux_protected 1\n",
            "pollux_guest_seconds 1.500000000\n",
            "pollux_protected_seconds 1.500000000\n",
            "# TYPE pollux_transfer_bytes_total counter\npollux_transfer_bytes_total 4\n",
            "pollux_transfer_pause_seconds 0.001234000\n",
            "# TYPE pollux_exits_total counter\npollux_exits_total{kind=\"cpuid\"} 1\npollux_exits_total{kind=\"io\"} 2\n",
            "# TYPE pollux_log_entries_total counter\npollux_log_entries_total{kind=\"clock\"} 1\n\
             pollux_log_entries_total{kind=\"packet\"} 4\n",
            "pollux_log_data_bytes_total{kind=\"packet\"} 6\n",
            "\npollux_errors_total 0\n",
            "pollux_info{name=\"cas\\\"tor\"} 1\n",
        ] {
            assert!(text.contains(expected), "{expected} in {text}");
        }
        assert!(!text.contains("nobody"));
    }
}
