//! Versions of the emulators: what their programs say of themselves, and with which of them rigs have been tried.

use std::process::Command;

use anyhow::Result;

use crate::needs::{self, Need};
use crate::process;

/// Major and minor number.
pub type Number = (u32, u32);

/// A version that has been tried.
#[derive(Debug)]
struct Tried {
    emulator: Need,
    version: &'static str,
    what: &'static str,
}

/// All of them. What is not in here may work as well: nobody has looked.
const TRIED: [Tried; 6] = [
    Tried { emulator: Need::Qemu, version: "7.2.22", what: "all tests" },
    Tried { emulator: Need::Qemu, version: "8.2.2", what: "all tests but those that take minutes" },
    Tried { emulator: Need::Qemu, version: "10.0.13", what: "all tests but those that take minutes" },
    Tried { emulator: Need::Qemu, version: "11.1.3", what: "kills of the primary under one connection" },
    Tried { emulator: Need::Bochs, version: "2.7", what: "the end-to-end tests of Bochs, exact stops" },
    Tried { emulator: Need::Bochs, version: "3.0", what: "the end-to-end tests of Bochs, exact stops" },
];

/// What Bochs' `--help` says; `None` when there is no Bochs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BochsHelp(String);

impl BochsHelp {
    /// Asks it. It has no option that only shows the version.
    pub fn ask() -> Result<Option<Self>> {
        let output = process::output(Command::new(needs::BOCHS).arg("--help"))?;
        // The banner goes here, the options there.
        Ok(output.map(|output| {
            Self([output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat())
        }))
    }

    /// The version, as in `Bochs x86 Emulator 2.7`.
    pub fn version(&self) -> Option<&str> {
        self.0.split("Bochs x86 Emulator ").nth(1)?.split_whitespace().next()
    }

    /// Whether it starts in its debugger, which has to be told to go on. A Bochs that is built without one knows no option
    /// for it; one that starts it on demand, as 3.0 does, has an option to demand it.
    pub fn starts_in_debugger(&self) -> bool {
        let has = |option: &str| self.0.lines().any(|line| line.split_whitespace().next() == Some(option));
        has("-rc") && !has("-debugger")
    }
}

/// The first two numbers of a version, as in `7.2.22`.
pub fn number(version: &str) -> Option<Number> {
    let mut numbers = version.split(|letter: char| !letter.is_ascii_digit()).map(str::parse);
    match (numbers.next()?, numbers.next()) {
        (Ok(major), Some(Ok(minor))) => Some((major, minor)),
        _ => None,
    }
}

/// Whether this version of an emulator has been tried, for people; `None` for what is no emulator.
pub fn verdict(need: Need, version: &str) -> Option<String> {
    let tried: Vec<_> = TRIED.iter().filter(|tried| tried.emulator == need).collect();
    if tried.is_empty() {
        return None;
    }
    let number = number(version);
    Some(match tried.iter().find(|tried| number.is_some() && self::number(tried.version) == number) {
        Some(Tried { version, what, .. }) => format!("tried ({version}: {what})"),
        None => {
            let versions: Vec<_> = tried.iter().map(|tried| tried.version).collect();
            format!("not tried (these were: {})", versions.join(", "))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn help(version: &str, options: &[&str]) -> BochsHelp {
        let options: String = options.iter().map(|option| format!("  {option}   what it does\n")).collect();
        BochsHelp(format!("====\n      Bochs x86 Emulator {version}\n====\nUsage: bochs [flags]\n\n{options}"))
    }

    #[test]
    fn bochs_is_asked_whether_it_starts_in_its_debugger() {
        let old = help("2.7", &["-n", "-unlock", "-rc filename", "-dbglog filename", "--help"]);
        let new = help("3.0", &["-n", "-unlock", "-debugger", "-rc filename", "--help"]);
        let without = help("3.0", &["-n", "-unlock", "--help"]);
        assert_eq!((old.version(), old.starts_in_debugger()), (Some("2.7"), true));
        assert_eq!((new.version(), new.starts_in_debugger()), (Some("3.0"), false));
        assert_eq!((without.version(), without.starts_in_debugger()), (Some("3.0"), false));
        assert_eq!(BochsHelp("something else".into()).version(), None);
    }

    #[test]
    fn versions_are_compared_by_their_first_two_numbers() {
        for (version, expected) in [("7.2.22", Some((7, 2))), ("3.0", Some((3, 0))), ("2.7-rc1", Some((2, 7)))] {
            assert_eq!(number(version), expected);
        }
        assert_eq!((number("7"), number(""), number("x.y")), (None, None, None));
        let verdict = |need, version| verdict(need, version).unwrap();
        assert!(verdict(Need::Qemu, "7.2.1").starts_with("tried (7.2.22: all tests"));
        assert_eq!(verdict(Need::Qemu, "9.1.0"), "not tried (these were: 7.2.22, 8.2.2, 10.0.13, 11.1.3)");
        assert!(verdict(Need::Bochs, "3.0").starts_with("tried (3.0: "));
        assert_eq!(verdict(Need::Bochs, "no version"), "not tried (these were: 2.7, 3.0)");
        assert_eq!(super::verdict(Need::Grub, "2.06"), None);
    }
}
