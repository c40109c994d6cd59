//! Durations, memory sizes and percentages as people type them, and as we print them.

use std::time::Duration;

/// Reads `500us`, `5ms`, `60s`, `1.5s`, `2m` or `1h`. The unit is required, except for a plain `0`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split_unit(text);
    let nanoseconds = match unit {
        "ns" => 1.0,
        "us" => 1e3,
        "ms" => 1e6,
        "s" => 1e9,
        "m" | "min" => 60e9,
        "h" => 3600e9,
        "" if number == "0" => 0.0,
        "" => return Err(format!("`{text}` lacks a unit: us, ms, s, m or h")),
        _ => return Err(format!("`{text}`: unknown unit `{unit}`; use us, ms, s, m or h")),
    };
    let value = parse_number(text, number)? * nanoseconds;
    Duration::try_from_secs_f64(value / 1e9).map_err(|_| format!("`{text}` is too long"))
}

/// A duration as [`parse_duration`] reads it, in the largest unit that makes it whole, down to nanoseconds.
pub fn format_duration(duration: Duration) -> String {
    let nanoseconds = duration.as_nanos();
    let units =
        [(3_600_000_000_000, "h"), (60_000_000_000, "m"), (1_000_000_000, "s"), (1_000_000, "ms"), (1_000, "us")];
    let whole = units.into_iter().find(|(unit, _)| nanoseconds != 0 && nanoseconds.is_multiple_of(*unit));
    whole.map_or_else(|| format!("{nanoseconds}ns"), |(unit, name)| format!("{}{name}", nanoseconds / unit))
}

/// Reads a size in bytes: `67108864`, `512K`, `64M`, `1G` (powers of 1024).
pub fn parse_size(text: &str) -> Result<u64, String> {
    let (number, unit) = split_unit(text);
    let shift = match unit.to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KIB" => 10,
        "M" | "MIB" => 20,
        "G" | "GIB" => 30,
        _ => return Err(format!("`{text}`: unknown unit `{unit}`; use K, M or G")),
    };
    let value: u64 = number.parse().map_err(|_| format!("`{text}` is no size such as 64M"))?;
    value.checked_mul(1 << shift).ok_or_else(|| format!("`{text}` is too large"))
}

/// A size as the hypervisor's options take it: the largest unit that divides it.
pub fn format_size(bytes: u64) -> String {
    [(30, "G"), (20, "M"), (10, "K")]
        .into_iter()
        .find(|(shift, _)| bytes != 0 && bytes.is_multiple_of(1 << shift))
        .map_or_else(|| bytes.to_string(), |(shift, unit)| format!("{}{unit}", bytes >> shift))
}

/// A count for a narrow column: `999`, `1.23 k`, `45.6 M`, `789 G`.
pub fn format_count(value: f64) -> String {
    let (scaled, unit) = match value.abs() {
        v if v >= 1e12 => (value / 1e12, " T"),
        v if v >= 1e9 => (value / 1e9, " G"),
        v if v >= 1e6 => (value / 1e6, " M"),
        v if v >= 1e3 => (value / 1e3, " k"),
        _ if value.fract() == 0.0 => return format!("{value:.0}"),
        _ => (value, ""),
    };
    let decimals = if scaled.abs() < 10.0 { 2 } else { usize::from(scaled.abs() < 100.0) };
    format!("{scaled:.decimals$}{unit}")
}

/// Bytes for a narrow column: `999 B`, `1.23 kB`.
pub fn format_bytes(value: f64) -> String {
    let count = format_count(value.round());
    if count.ends_with(|c: char| c.is_ascii_digit()) { count + " B" } else { count + "B" }
}

fn split_unit(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    text.split_at(end)
}

fn parse_number(text: &str, number: &str) -> Result<f64, String> {
    number.parse().map_err(|_| format!("`{text}` does not begin with a number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_their_unit_apart() {
        assert_eq!([0.0, 656.4, 1310.0].map(format_bytes), ["0 B", "656 B", "1.31 kB"]);
    }

    #[test]
    fn durations() {
        assert_eq!(parse_duration("500us"), Ok(Duration::from_micros(500)));
        assert_eq!(parse_duration("5ms"), Ok(Duration::from_millis(5)));
        assert_eq!(parse_duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(parse_duration("0"), Ok(Duration::ZERO));
        for bad in ["", "5", "ms", "-1s", "1y", "1.2.3s", "s5", "1e5s", "99999999999999999999999999h"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations_round_trip() {
        for text in ["500us", "5ms", "90s", "2m", "1h", "7ns", "0ns"] {
            assert_eq!(format_duration(parse_duration(text).unwrap()), text);
        }
    }

    #[test]
    fn sizes_round_trip() {
        for (text, bytes) in [("64M", 64 << 20), ("1G", 1 << 30), ("512K", 512 << 10), ("1000", 1000)] {
            assert_eq!(parse_size(text), Ok(bytes));
            assert_eq!(format_size(bytes), text);
        }
        for bad in ["", "M", "64X", "-1M", "1.5G", "99999999999G"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn counts_keep_three_digits() {
        let shown: Vec<_> = [0.0, 999.0, 1234.0, 45_600_000.0, 7.89e11].into_iter().map(format_count).collect();
        assert_eq!(shown, ["0", "999", "1.23 k", "45.6 M", "789 G"]);
    }
}
