//! `cargo xtask lesson`: what fault tolerance by a log teaches, each lesson a command that shows it in a rig: with a rule
//! switched off where there is one, then with the rule. Questions and answers are in `docs/lessons.md`.

mod brake;
mod chart;
mod distance;
mod draining;
mod duplicates;
mod lag;
mod output_rule;
mod same_bug;
mod stage;
mod transfer;
mod twins;
mod two_primaries;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;

use crate::artefacts;
use crate::needs::{self, Need};
use crate::output::{self, say};
use crate::platform::Platform;
use crate::view::wrap::wrap;
use stage::Stage;

/// Cells of a line of explanation.
const WIDTH: usize = 100;

/// Which lesson.
#[derive(Debug, Args)]
pub struct LessonArgs {
    /// Its number; without one all are listed
    number: Option<u8>,
    /// Where its rigs keep their files [default: a fresh directory under target/lesson]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Use this hypervisor instead of building one
    #[arg(long, value_name = "PATH")]
    hypervisor: Option<PathBuf>,
    /// The directory with our guests, instead of building them
    #[arg(long, value_name = "PATH")]
    guests: Option<PathBuf>,
    /// Install what is missing
    #[arg(long)]
    yes: bool,
}

/// A lesson.
struct Lesson {
    /// What it is called by.
    number: u8,
    title: &'static str,
    /// What it answers.
    question: &'static str,
    /// Shows it, and draws what was seen; an error if it did not show.
    show: fn(&Stage) -> Result<Vec<String>>,
    /// Why it is so, in three sentences.
    why: &'static str,
}

/// All lessons.
const LESSONS: [Lesson; 11] = [
    output_rule::LESSON,
    distance::LESSON,
    twins::EXACT_STOP,
    twins::TIME,
    twins::BOUNCE_BUFFER,
    two_primaries::LESSON,
    draining::LESSON,
    transfer::LESSON,
    duplicates::LESSON,
    same_bug::LESSON,
    lag::LESSON,
];

/// Lists the lessons, or gives one.
pub fn run(arguments: &LessonArgs) -> Result<()> {
    let Some(number) = arguments.number else {
        output::lines(list());
        return Ok(());
    };
    let lesson = LESSONS.iter().find(|lesson| lesson.number == number);
    let lesson = lesson.with_context(|| format!("there is no lesson {number}: `cargo xtask lesson` lists them"))?;
    needs::ensure_present(&[&[Need::Target], Platform::Qemu.needs()].concat(), arguments.yes)?;
    let directory = arguments.dir.clone().unwrap_or_else(|| fresh(number));
    if arguments.hypervisor.is_none() {
        artefacts::build_hypervisor()?;
    }
    if arguments.guests.is_none() {
        artefacts::build_guests()?;
    }
    let stage = Stage::new(directory, arguments.hypervisor.clone(), arguments.guests.clone());
    say!("lesson {number}: {}\n{}\n", lesson.title, lesson.question);
    let picture = (lesson.show)(&stage).with_context(|| format!("lesson {number} did not show what it is about"))?;
    say!("");
    output::lines(picture);
    say!("");
    output::lines(wrap(lesson.why, WIDTH, 0));
    Ok(())
}

fn list() -> Vec<String> {
    let lines = LESSONS.iter().map(|lesson| format!("{:>3}  {:<28} {}", lesson.number, lesson.title, lesson.question));
    let hint = "\ncargo xtask lesson N gives one; questions with answers: docs/lessons.md".to_owned();
    lines.chain([hint]).collect()
}

fn fresh(number: u8) -> PathBuf {
    artefacts::target_directory().join(format!("lesson/{number}-{}", std::process::id()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lessons_are_numbered_and_have_three_sentences_each() {
        assert!(LESSONS.is_sorted_by(|a, b| a.number < b.number));
        for lesson in &LESSONS {
            let sentences = lesson.why.split_terminator(['.', '?']).filter(|text| !text.trim().is_empty()).count();
            assert_eq!(sentences, 3, "lesson {}: {}", lesson.number, lesson.why);
            assert!(lesson.question.ends_with('?'), "{}", lesson.question);
        }
        assert_eq!(list().len(), LESSONS.len() + 1);
    }

    #[test]
    fn every_lesson_has_notes() {
        let notes = include_str!("../../../docs/lessons.md");
        for lesson in &LESSONS {
            let heading = format!("## {}. {}", lesson.number, lesson.title);
            assert!(notes.contains(&heading), "docs/lessons.md has no `{heading}`");
        }
    }

    #[test]
    fn a_lesson_that_is_not_there_is_refused() {
        let arguments = LessonArgs { number: Some(99), dir: None, hypervisor: None, guests: None, yes: false };
        assert!(run(&arguments).unwrap_err().to_string().contains("there is no lesson 99"));
    }
}
