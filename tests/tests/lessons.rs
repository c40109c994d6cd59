//! The lessons show what they are about.

use anyhow::{Context, Result, ensure};
use pollux_tests::desk;
use pollux_tests::rig::{Platform, fresh_directory};
use pollux_tests::xtask::{self, Artefacts};

/// Gives a lesson, which must end well, and say each of `words`.
fn lesson(number: &str, words: &[&str]) -> Result<()> {
    if Platform::get() != Platform::Qemu {
        return pollux_tests::skip("lessons are given in QEMU");
    }
    let artefacts = Artefacts::get();
    let _place = desk::take(desk::CORES);
    let guests = artefacts.path("counter")?.parent().context("the guests' directory")?;
    let directory = fresh_directory(&format!("lesson-{number}"))?;
    let mut command = xtask::command();
    command.args(["lesson", number, "--dir"]).arg(&directory);
    command.arg("--hypervisor").arg(artefacts.path("hypervisor")?).arg("--guests").arg(guests);
    let output = command.output().context("cannot start xtask")?;
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "lesson {number}: {said}");
    for word in words {
        ensure!(said.contains(word), "lesson {number} does not say `{word}`: {said}");
    }
    println!("{said}");
    Ok(())
}

#[test]
fn a_lesson_shows_a_client_the_same_number_twice() -> Result<()> {
    lesson("1", &["without the rule", "timeline: ", "promises"])
}

#[test]
#[ignore = "takes minutes: cargo xtask test rig lessons --long"]
fn the_other_lessons_show_what_they_are_about() -> Result<()> {
    for (number, word) in [
        ("2", "10 ms with the rule"),
        ("3", "diverged"),
        ("4", "diverged"),
        ("5", "they differ"),
        ("6", "halted"),
        ("7", "was behind"),
        ("8", "the whole state, once"),
        ("9", "UDP: answers"),
        ("10", "crashed at"),
        ("11", "slow backup"),
    ] {
        lesson(number, &[word])?;
    }
    Ok(())
}
