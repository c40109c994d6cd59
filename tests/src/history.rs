//! Judges what the clients of one counter saw: each reply to INCR is one more than the last, whoever asked.

use std::fmt;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result as AnyResult};
use serde::{Deserialize, Serialize};

/// One INCR: when it was sent, and what came back when. Times are since the start of the observation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Increment {
    /// When the request was sent.
    pub invoked: Duration,
    /// When the reply arrived, and its value; `None` if it never did.
    pub reply: Option<(Duration, i64)>,
}

/// What no correct counter can show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Anomaly {
    /// A reply arrived before its request was sent.
    BeforeRequest(i64),
    /// Two requests got the same value.
    Repeated(i64),
    /// A value below the counter's first.
    TooSmall(i64),
    /// A value that nobody saw, and that no unanswered request can account for.
    Missing(i64),
    /// A value that was seen before a smaller one was even asked for.
    OutOfOrder {
        /// The larger, earlier one.
        earlier: i64,
        /// The smaller, later one.
        later: i64,
    },
}

impl fmt::Display for Anomaly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BeforeRequest(value) => write!(f, "{value} arrived before it was asked for"),
            Self::Repeated(value) => write!(f, "{value} was seen twice"),
            Self::TooSmall(value) => write!(f, "{value} is below the counter's start"),
            Self::Missing(value) => write!(f, "{value} is missing"),
            Self::OutOfOrder { earlier, later } => {
                write!(f, "{later} was asked for only after {earlier} had been seen")
            }
        }
    }
}

impl std::error::Error for Anomaly {}

/// What a history without anomalies is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Requests that were answered.
    pub answered: usize,
    /// Requests that were not.
    pub unanswered: usize,
    /// The largest value.
    pub last: Option<i64>,
    /// The longest time that a request waited for its reply.
    pub longest_wait: Duration,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { answered, unanswered, longest_wait, .. } = self;
        write!(f, "{answered} replies, {unanswered} requests unanswered, ")?;
        if let Some(last) = self.last {
            write!(f, "the last value is {last}, ")?;
        }
        write!(f, "the longest wait was {} ms", longest_wait.as_millis())
    }
}

/// One increment as a line of JSON.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    invoked_us: u64,
    replied_us: Option<u64>,
    value: Option<i64>,
}

/// Reads a history from a file: a line of JSON for each increment.
///
/// # Errors
/// Names the line that is none.
pub fn read(path: &Path) -> AnyResult<Vec<Increment>> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(index, text)| {
            let line: Line = serde_json::from_str(text).with_context(|| format!("line {}", index + 1))?;
            let reply = line.replied_us.map(Duration::from_micros).zip(line.value);
            Ok(Increment { invoked: Duration::from_micros(line.invoked_us), reply })
        })
        .collect()
}

/// Writes a history in the form that [`read`] reads; times are cut to microseconds.
///
/// # Errors
/// When the file cannot be written.
pub fn write(path: &Path, increments: &[Increment]) -> AnyResult<()> {
    let us = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    let mut text = String::new();
    for one in increments {
        let (replied_us, value) = one.reply.map(|(at, value)| (us(at), value)).unzip();
        let line = Line { invoked_us: us(one.invoked), replied_us, value };
        text += &serde_json::to_string(&line)?;
        text.push('\n');
    }
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Checks the increments of all clients of a counter whose first reply is `first`. Their order does not matter.
///
/// # Errors
/// The first anomaly found.
pub fn check(first: i64, increments: &[Increment]) -> Result<Summary, Anomaly> {
    let replies = increments.iter().filter_map(|one| one.reply.map(|(at, value)| (one.invoked, at, value)));
    let mut answered: Vec<_> = replies.collect();
    if let Some(early) = answered.iter().find(|(invoked, returned, _)| returned < invoked) {
        return Err(Anomaly::BeforeRequest(early.2));
    }
    let unanswered = increments.len() - answered.len();
    check_values(first, answered.iter().map(|reply| reply.2).collect(), unanswered)?;
    check_order(&mut answered)?;
    Ok(Summary {
        answered: answered.len(),
        unanswered,
        last: answered.iter().map(|reply| reply.2).max(),
        longest_wait: answered.iter().map(|(invoked, returned, _)| *returned - *invoked).max().unwrap_or_default(),
    })
}

/// All values once. Each hole must be the reply that some request did not get any more.
fn check_values(first: i64, mut values: Vec<i64>, mut excuses: usize) -> Result<(), Anomaly> {
    values.sort_unstable();
    let mut expected = first;
    for value in values {
        if value < first {
            return Err(Anomaly::TooSmall(value));
        }
        if value < expected {
            return Err(Anomaly::Repeated(value));
        }
        while expected < value {
            excuses = excuses.checked_sub(1).ok_or(Anomaly::Missing(expected))?;
            expected += 1;
        }
        expected += 1;
    }
    Ok(())
}

/// Who asks after a value was seen gets a larger one.
fn check_order(answered: &mut [(Duration, Duration, i64)]) -> Result<(), Anomaly> {
    let mut returned: Vec<_> = answered.iter().map(|&(_, at, value)| (at, value)).collect();
    returned.sort_unstable();
    answered.sort_unstable();
    let mut seen = returned.into_iter().peekable();
    let mut largest = None;
    for &(invoked, _, value) in answered.iter() {
        while let Some((_, value)) = seen.next_if(|&(at, _)| at < invoked) {
            largest = largest.max(Some(value));
        }
        if let Some(earlier) = largest.filter(|&largest| largest > value) {
            return Err(Anomaly::OutOfOrder { earlier, later: value });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn answered(invoked: u64, returned: u64, value: i64) -> Increment {
        Increment { invoked: at(invoked), reply: Some((at(returned), value)) }
    }

    fn lost(invoked: u64) -> Increment {
        Increment { invoked: at(invoked), reply: None }
    }

    /// One request after another.
    fn sequence(values: &[i64]) -> Vec<Increment> {
        (0u64..).zip(values).map(|(index, &value)| answered(index * 10, index * 10 + 5, value)).collect()
    }

    #[test]
    fn a_good_history_passes_and_is_summed_up() {
        let mut history = sequence(&[1, 2, 3]);
        history.extend([answered(30, 1030, 4), lost(40)]);
        let summary = Summary { answered: 4, unanswered: 1, last: Some(4), longest_wait: at(1000) };
        assert_eq!(check(1, &history), Ok(summary));
        assert_eq!(check(1, &[]).map(|summary| summary.last), Ok(None));
    }

    #[test]
    fn a_gap_is_found() {
        assert_eq!(check(1, &sequence(&[1, 2, 4])), Err(Anomaly::Missing(3)));
        assert_eq!(check(1, &sequence(&[2, 3])), Err(Anomaly::Missing(1)));
    }

    #[test]
    fn a_repeat_is_found() {
        assert_eq!(check(1, &sequence(&[1, 2, 2, 3])), Err(Anomaly::Repeated(2)));
    }

    #[test]
    fn a_counter_that_starts_again_is_found() {
        assert_eq!(check(5, &sequence(&[5, 6, 1])), Err(Anomaly::TooSmall(1)));
    }

    #[test]
    fn a_reply_before_its_request_is_found() {
        assert_eq!(check(1, &[answered(10, 9, 1)]), Err(Anomaly::BeforeRequest(1)));
    }

    #[test]
    fn order_counts_only_between_requests_that_do_not_overlap() {
        let disorder = Anomaly::OutOfOrder { earlier: 2, later: 1 };
        assert_eq!(check(1, &[answered(0, 5, 2), answered(6, 9, 1)]), Err(disorder));
        assert!(check(1, &[answered(0, 7, 2), answered(6, 9, 1)]).is_ok());
    }

    #[test]
    fn an_unanswered_request_excuses_one_hole() {
        let mut history = sequence(&[1, 3]);
        history.push(lost(5));
        assert!(check(1, &history).is_ok());
        history.push(answered(20, 25, 5));
        assert_eq!(check(1, &history), Err(Anomaly::Missing(4)));
    }

    #[test]
    fn a_history_is_written_and_read() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let history = [answered(1, 5, 7), lost(9)];
        write(file.path(), &history).unwrap();
        assert_eq!(read(file.path()).unwrap(), history);
        fs::write(file.path(), "{\"invoked_us\": 1, \"replied_us\": 2, \"value\": 1}\n\n{}\n").unwrap();
        assert!(format!("{:#}", read(file.path()).unwrap_err()).contains("line 3"));
    }

    proptest! {
        #[test]
        fn any_damage_to_a_sequence_is_found(count in 2usize..50, victim in any::<prop::sample::Index>(), damage in 0..3) {
            let mut history = sequence(&(1..=count as i64).collect::<Vec<_>>());
            prop_assert!(check(1, &history).is_ok());
            let victim = victim.index(count - 1);
            match damage {
                0 => drop(history.remove(victim)),
                1 => history.push(history[victim]),
                _ => {
                    let values = [victim + 1, victim].map(|index| history[index].reply.map(|(_, value)| value));
                    for (index, value) in [victim, victim + 1].into_iter().zip(values) {
                        history[index].reply = history[index].reply.zip(value).map(|((at, _), value)| (at, value));
                    }
                }
            }
            prop_assert!(check(1, &history).is_err());
        }
    }
}
