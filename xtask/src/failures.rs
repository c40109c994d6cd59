//! What failed tests said: read from the output of `cargo test` as it passes by, for the end of a long run.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::ChildStdout;
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

/// Lines of one failed test that are repeated.
const LINES: usize = 40;
/// How long what a step wrote last may take to be read once the step has ended.
const REST: Duration = Duration::from_secs(5);

/// Passes a step's output on to ours and keeps what failed tests said.
#[derive(Debug)]
pub struct Tee(Receiver<Vec<String>>);

impl Tee {
    /// Reads `output` to its end, in a thread of its own.
    pub fn start(output: ChildStdout) -> Self {
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            let kept = pass_on(output, &mut std::io::stdout());
            // Nobody waits any longer for the output of a step that left something behind.
            let _ = sender.send(kept);
        });
        Self(receiver)
    }

    /// The lines kept of a step that has ended.
    pub fn end(self) -> Vec<String> {
        self.0.recv_timeout(REST).unwrap_or_default()
    }
}

fn pass_on(input: impl Read, output: &mut impl Write) -> Vec<String> {
    let mut input = BufReader::new(input);
    let mut failures = Failures::default();
    let mut line = Vec::new();
    while matches!(input.read_until(b'\n', &mut line), Ok(1..)) {
        // A reader that has gone away does not end the tests.
        let _ = output.write_all(&line).and_then(|()| output.flush());
        failures.line(String::from_utf8_lossy(&line).trim_end());
        line.clear();
    }
    failures.kept
}

/// The sections between libtest's first line `failures:` and its second, which begins the list of names.
#[derive(Debug, Default)]
struct Failures {
    kept: Vec<String>,
    inside: bool,
    /// Lines of the test at hand so far.
    seen: usize,
}

impl Failures {
    fn line(&mut self, line: &str) {
        if line == "failures:" {
            self.inside = !self.inside;
        } else if self.inside && !line.is_empty() {
            self.seen = if line.starts_with("---- ") { 0 } else { self.seen + 1 };
            match self.seen {
                0..=LINES => self.kept.push(line.to_owned()),
                seen if seen == LINES + 1 => self.kept.push("[more above]".to_owned()),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_failed_tests_are_kept_and_all_is_passed_on() {
        let long = "noise\n".repeat(LINES + 7);
        let text = format!(
            "running 3 tests\ntest a ... ok\n\nsuccesses:\n\n---- a stdout ----\nfine\n\nfailures:\n\n\
             ---- b stdout ----\nError: not within 20 s\n\n---- c stdout ----\n{long}\nfailures:\n    b\n    c\n\n\
             test result: FAILED\n"
        );
        let mut passed = Vec::new();
        let kept = pass_on(text.as_bytes(), &mut passed);
        assert_eq!(passed, text.as_bytes());
        assert_eq!(kept[..3], ["---- b stdout ----", "Error: not within 20 s", "---- c stdout ----"]);
        assert_eq!((kept.len(), kept.last().map(String::as_str)), (3 + LINES + 1, Some("[more above]")));
    }

    #[test]
    fn without_failures_nothing_is_kept() {
        assert!(pass_on(&b"test a ... ok\nwithout an end \xff"[..], &mut Vec::new()).is_empty());
    }
}
