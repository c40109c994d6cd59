//! What the output of a step says that must not be lost in a long run: what failed tests said, what was not tested, and
//! how long tests took. Read as it passes by.
//!
//! A test that cannot run here prints a line that begins with [`SKIPPED`], whatever crate it is in, and returns. With
//! `--show-output`, libtest shows that line below the test's name.

use std::collections::{BTreeSet, VecDeque};
use std::io::{BufRead, BufReader, Read, Write};
use std::process::ChildStdout;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

/// What a test prints, and behind it why, before it returns without having tested anything.
const SKIPPED: &str = "SKIPPED: ";
/// Lines of one failed test that are repeated.
const LINES: usize = 40;
/// The last lines of a step that are kept.
const LAST: usize = 60;
/// Lines of one failed test that are said once more at the very end: where, and the message.
const LINES_IN_SHORT: usize = 4;
/// The last lines of a failed step without tests that are.
const LAST_IN_SHORT: usize = 10;
/// How long what a step wrote last may take to be read once the step has ended.
const REST: Duration = Duration::from_secs(5);

/// Passes a step's output on to ours and keeps what matters of it.
#[derive(Debug)]
pub struct Tee(Receiver<Transcript>);

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

    /// What was kept of a step that has ended.
    pub fn end(self) -> Transcript {
        self.0.recv_timeout(REST).unwrap_or_default()
    }
}

fn pass_on(input: impl Read, output: &mut impl Write) -> Transcript {
    let mut input = BufReader::new(input);
    let mut reader = Reader::default();
    let mut line = Vec::new();
    let started = Instant::now();
    while matches!(input.read_until(b'\n', &mut line), Ok(1..)) {
        // A reader that has gone away does not end the tests.
        let _ = output.write_all(&line).and_then(|()| output.flush());
        reader.line(String::from_utf8_lossy(&line).trim_end(), started.elapsed());
        line.clear();
    }
    reader.kept
}

/// What is kept of a step's output.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Transcript {
    /// What failed tests said.
    pub failures: Vec<String>,
    /// Tests that tested nothing, with the reason: `a_test: there is no QEMU`. In the order of their names.
    pub skipped: BTreeSet<String>,
    /// Tests that no filter chose.
    pub filtered: usize,
    /// Time from one test's end to the next one's: how long a test took, if no other one ran beside it.
    pub took: Vec<(Duration, String)>,
    /// The last lines.
    pub last: VecDeque<String>,
}

impl Transcript {
    /// What there is to say about a failure: what failed tests said, or the last lines of a step that has no tests.
    pub fn of_failure(&self) -> impl Iterator<Item = &String> {
        let last = self.last.iter().filter(|_| self.failures.is_empty());
        self.failures.iter().chain(last)
    }

    /// The same in a few lines, for who sees only the end of the output.
    pub fn of_failure_in_short(&self) -> Vec<&String> {
        if self.failures.is_empty() {
            return self.last.iter().skip(self.last.len().saturating_sub(LAST_IN_SHORT)).collect();
        }
        let mut left = 0;
        let short = self.failures.iter().filter(|line| {
            left = if test_in(line).is_some() { 1 + LINES_IN_SHORT } else { left };
            let taken = left > 0 && !line.is_empty();
            left -= usize::from(taken);
            taken
        });
        short.collect()
    }

    /// The `count` tests that took longest, the longest first.
    pub fn longest(&self, count: usize) -> Vec<&(Duration, String)> {
        let mut tests: Vec<_> = self.took.iter().collect();
        tests.sort_by(|a, b| b.cmp(a));
        tests.truncate(count);
        tests
    }
}

/// The test whose output libtest begins with this line.
fn test_in(line: &str) -> Option<&str> {
    line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----"))
}

/// The part of libtest's output that a line is in.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Section {
    #[default]
    Other,
    /// What successful tests wrote, between the first line `successes:` and the second, which begins the list of names.
    Successes,
    /// The same of failed ones, after `failures:`.
    Failures,
}

#[derive(Debug, Default)]
struct Reader {
    kept: Transcript,
    section: Section,
    /// The test at hand.
    test: String,
    /// Its lines so far.
    seen: usize,
    /// When the line before came.
    before: Duration,
}

impl Reader {
    /// A line that came `at` this time since the start.
    fn line(&mut self, line: &str, at: Duration) {
        if self.kept.last.len() == LAST {
            self.kept.last.pop_front();
        }
        self.kept.last.push_back(line.to_owned());
        let took = at.saturating_sub(core::mem::replace(&mut self.before, at));
        let toggled = |section| if self.section == section { Section::Other } else { section };
        match line {
            "successes:" => self.section = toggled(Section::Successes),
            "failures:" => self.section = toggled(Section::Failures),
            "" => {}
            _ if self.section == Section::Other => self.verdict(line, took),
            _ => self.said(line),
        }
    }

    /// A line of what a test wrote.
    fn said(&mut self, line: &str) {
        match test_in(line) {
            Some(name) => (self.test, self.seen) = (name.to_owned(), 0),
            None => self.seen += 1,
        }
        if let Some(why) = line.strip_prefix(SKIPPED) {
            self.kept.skipped.insert(format!("{}: {why}", self.test));
        }
        if self.section == Section::Failures {
            match self.seen {
                0..=LINES => self.kept.failures.push(line.to_owned()),
                seen if seen == LINES + 1 => self.kept.failures.push("[more above]".to_owned()),
                _ => {}
            }
        }
    }

    /// A line of libtest itself: `test a ... ignored, takes a day`, `test result: ok. 3 passed; … 2 filtered out; …`. It
    /// comes when the test has ended, and libtest wrote nothing since the one before had.
    fn verdict(&mut self, line: &str, took: Duration) {
        let Some(rest) = line.strip_prefix("test ") else { return };
        if let Some(counts) = rest.strip_prefix("result: ") {
            let filtered = counts.split("; ").find_map(|part| part.strip_suffix(" filtered out"));
            self.kept.filtered += filtered.and_then(|count| count.parse::<usize>().ok()).unwrap_or(0);
        } else if let Some((name, why)) = rest.split_once(" ... ignored") {
            let why = why.strip_prefix(", ").unwrap_or("ignored");
            self.kept.skipped.insert(format!("{name}: {why}"));
        } else if let Some((name, _)) = rest.split_once(" ... ") {
            self.kept.took.push((took, name.to_owned()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Transcript {
        let mut passed = Vec::new();
        let kept = pass_on(text.as_bytes(), &mut passed);
        assert_eq!(passed, text.as_bytes());
        kept
    }

    #[test]
    fn of_the_output_only_failed_tests_are_kept_and_all_is_passed_on() {
        let long = "noise\n".repeat(LINES + 7);
        let kept = read(&format!(
            "running 3 tests\ntest a ... ok\n\nsuccesses:\n\n---- a stdout ----\nfine\n\n\nsuccesses:\n    a\n\nfailures:\n\n\
             ---- b stdout ----\nError: not within 20 s\n\n---- c stdout ----\n{long}\nfailures:\n    b\n    c\n\n\
             test result: FAILED\n"
        ));
        let failures = &kept.failures;
        assert_eq!(failures[..3], ["---- b stdout ----", "Error: not within 20 s", "---- c stdout ----"]);
        assert_eq!((failures.len(), failures.last().map(String::as_str)), (3 + LINES + 1, Some("[more above]")));
        assert_eq!((kept.skipped.len(), kept.filtered), (0, 0));
        let short = kept.of_failure_in_short();
        assert_eq!(short[..3], ["---- b stdout ----", "Error: not within 20 s", "---- c stdout ----"]);
        assert_eq!(short.len(), 3 + LINES_IN_SHORT);
    }

    #[test]
    fn what_was_not_tested_is_kept_with_the_reason() {
        let kept = read(
            "running 4 tests\ntest d ... ignored, takes a day\ntest a ... ok\ntest b::c ... ok\ntest e ... ignored\n\n\
             successes:\n\n---- a stdout ----\nSKIPPED: there is no etcd\nSKIPPED: there is no etcd\n\n\
             ---- b::c stdout ----\n70 kills\nSKIPPED: no root\n\n\n\
             successes:\n    a\n    b::c\n\n\
             test result: ok. 2 passed; 0 failed; 2 ignored; 0 measured; 7 filtered out; finished in 0.00s\n\n\
             running 1 test\ntest f ... FAILED\n\n\
             failures:\n\n---- f stdout ----\nSKIPPED: half of it\npanicked\n\n\nfailures:\n    f\n\n\
             test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 20 filtered out; finished in 0.00s\n",
        );
        let skipped: Vec<_> = kept.skipped.iter().map(String::as_str).collect();
        let expected = ["a: there is no etcd", "b::c: no root", "d: takes a day", "e: ignored", "f: half of it"];
        assert_eq!(skipped, expected);
        assert_eq!(kept.filtered, 27);
        assert_eq!(kept.failures.len(), 3);
    }

    #[test]
    fn without_tests_the_last_lines_are_kept() {
        let kept = pass_on(&b"from seed 7\n\nwithout an end \xff"[..], &mut Vec::new());
        let lines = ["from seed 7", "", "without an end \u{fffd}"];
        assert_eq!(kept, Transcript { last: lines.map(str::to_owned).into(), ..Transcript::default() });
        assert!(kept.of_failure().eq(lines.iter()));
        let kept = read(&"line\n".repeat(LAST + 3));
        assert_eq!(kept.of_failure().count(), LAST);
        assert_eq!(kept.of_failure_in_short().len(), LAST_IN_SHORT);
        let kept = read("failures:\n---- b stdout ----\nwrong\n");
        assert!(kept.of_failure().eq(["---- b stdout ----", "wrong"].iter()));
    }

    #[test]
    fn tests_that_ran_alone_have_their_times() {
        let mut reader = Reader::default();
        let lines = [
            (1, "running 3 tests"),
            (3, "test a ... ok"),
            (7, "test b::c ... FAILED"),
            (7, "test d ... ignored, a day"),
            (8, "test e ... ok"),
            (9, "test result: FAILED. 2 passed; 1 failed"),
        ];
        for (at, line) in lines {
            reader.line(line, Duration::from_secs(at));
        }
        let kept = reader.kept;
        let longest: Vec<_> = kept.longest(2).iter().map(|(took, name)| (took.as_secs(), name.as_str())).collect();
        assert_eq!(longest, [(4, "b::c"), (2, "a")]);
        assert_eq!(kept.took.len(), 3);
    }
}
