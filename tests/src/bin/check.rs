//! Judges from outside what clients of a counter saw, and what was on their wire.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use pollux_tests::{capture, history};

const USAGE: &str = "usage: check HISTORY [--first N] [--capture PCAP --guest MAC]

HISTORY has a line of JSON for each INCR of one key, in any order, of all clients:
  {\"invoked_us\": 1000, \"replied_us\": 1250, \"value\": 1}      value and replied_us null: no reply came
Found are values that came twice, are missing, or came out of order in real time. --first is the first value [1].
In the capture of the client network, TCP data that the guest sent twice must be the same.
Ends with 0 when nothing is wrong, 1 when something is, 2 when it cannot tell.";

/// What is asked for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Arguments {
    history: PathBuf,
    first: i64,
    capture: Option<(PathBuf, [u8; 6])>,
}

fn arguments(mut words: impl Iterator<Item = String>) -> Result<Arguments> {
    let (mut history, mut first, mut capture, mut guest) = (None, 1, None, None);
    while let Some(word) = words.next() {
        let mut value = || words.next().with_context(|| format!("{word} needs a value"));
        match word.as_str() {
            "--first" => first = value()?.parse().context("--first is a number")?,
            "--capture" => capture = Some(PathBuf::from(value()?)),
            "--guest" => guest = Some(mac(&value()?)?),
            option if option.starts_with('-') => bail!("{option} is unknown"),
            _ if history.is_some() => bail!("one history, not also {word}"),
            path => history = Some(PathBuf::from(path)),
        }
    }
    let capture = match (capture, guest) {
        (Some(path), Some(mac)) => Some((path, mac)),
        (None, None) => None,
        _ => bail!("--capture and --guest go together"),
    };
    Ok(Arguments { history: history.context("which history?")?, first, capture })
}

fn mac(text: &str) -> Result<[u8; 6]> {
    let bytes: Vec<_> = text.split(':').map(|part| u8::from_str_radix(part, 16)).collect::<Result<_, _>>()?;
    bytes.try_into().ok().context("a MAC address looks like 52:54:00:12:34:56")
}

/// Whether all is well; what is wrong is printed.
fn judge(arguments: &Arguments) -> Result<bool> {
    let mut well = true;
    match history::check(arguments.first, &history::read(&arguments.history)?) {
        Ok(summary) => println!("history: {summary}"),
        Err(anomaly) => {
            well = false;
            println!("history: {anomaly}");
        }
    }
    if let Some((path, guest)) = &arguments.capture {
        match capture::repeats(&capture::read(path)?, *guest) {
            Ok(repeats) => println!("capture: {repeats}"),
            Err(difference) => {
                well = false;
                println!("capture: {difference}");
            }
        }
    }
    Ok(well)
}

fn main() -> ExitCode {
    let words: Vec<_> = std::env::args().skip(1).collect();
    if words.iter().any(|word| word == "--help" || word == "-h") {
        println!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    match arguments(words.into_iter()).map_err(|error| error.context(USAGE)).and_then(|asked| judge(&asked)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("check: {error:#}");
            ExitCode::from(2)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Result<Arguments> {
        arguments(text.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn arguments_are_understood_or_refused() {
        let plain = Arguments { history: "h".into(), first: 1, capture: None };
        assert_eq!(words("h").unwrap(), plain);
        let full = words("--capture c.pcap h --guest 52:54:00:12:34:56 --first 5").unwrap();
        assert_eq!((full.first, full.capture), (5, Some(("c.pcap".into(), [0x52, 0x54, 0, 0x12, 0x34, 0x56]))));
        for bad in ["", "h i", "h --first", "h --first x", "h --capture c", "h --guest 1:2", "--frob h"] {
            assert!(words(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn bad_histories_are_found() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let line = |from: u64, to: u64, value: i64| {
            format!("{{\"invoked_us\": {from}, \"replied_us\": {to}, \"value\": {value}}}\n")
        };
        let verdict = |values: [i64; 3]| {
            let text: String =
                (0u64..).zip(values).map(|(index, value)| line(index * 9, index * 9 + 5, value)).collect();
            std::fs::write(file.path(), text).unwrap();
            judge(&Arguments { history: file.path().into(), first: 1, capture: None }).unwrap()
        };
        assert!(verdict([1, 2, 3]));
        for bad in [[1, 2, 2], [1, 3, 4], [2, 1, 3], [0, 1, 2], [1, 2, 4]] {
            assert!(!verdict(bad), "{bad:?}");
        }
        std::fs::write(file.path(), "nonsense").unwrap();
        assert!(judge(&Arguments { history: file.path().into(), first: 1, capture: None }).is_err());
    }
}
