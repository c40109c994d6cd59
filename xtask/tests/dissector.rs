//! The dissector for Wireshark, on captures of rigs.

use std::path::{Path, PathBuf};
use std::process::Command;

/// What `tshark` says of a capture with our dissector, a line a packet; none where there is no `tshark`.
fn told(capture: &str, more: &[&str]) -> Option<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let path = |name: &str| -> PathBuf { root.join(name) };
    let mut command = Command::new("tshark");
    command.arg("-X").arg(format!("lua_script:{}", path("docs/pollux.lua").display()));
    command.arg("-r").arg(path("tests/vectors").join(capture)).args(more);
    let output = match command.output() {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            println!("SKIPPED: there is no tshark (Debian's package `tshark`)");
            return None;
        }
        Err(error) => panic!("tshark: {error}"),
    };
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !complaints.contains("Lua"), "{complaints}");
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Lines that tell of us, and how often each of `words` is in them.
fn counts(text: &str, words: &[&str]) -> Vec<usize> {
    let ours: Vec<_> = text.lines().filter(|line| line.contains("POLLUX")).collect();
    words.iter().map(|word| ours.iter().filter(|line| line.contains(word)).count()).collect()
}

#[test]
fn the_messages_of_a_pair_without_a_key_are_decoded() {
    let Some(text) = told("log-without-key.pcap", &[]) else { return };
    let words = [
        "Hello wants to join",
        "Hello is primary · StateBegin term 1",
        "Joined · Ack 24, 0 of them",
        "Entries 25 to 25 (digest)",
    ];
    assert_eq!(counts(&text, &words), [1, 1, 1, 1], "{text}");
    assert_eq!(counts(&text, &["joining, term 0, entry 0", "protected, term 2, entry 24"]), [6, 1], "{text}");
    let Some(fields) = told("log-without-key.pcap", &["-T", "fields", "-e", "pollux.received", "-e", "pollux.digest"])
    else {
        return;
    };
    assert!(fields.lines().any(|line| line.trim() == "24"), "{fields}");
    let Some(bad) = told("log-without-key.pcap", &["-Y", "pollux.malformed"]) else { return };
    assert_eq!(bad.trim(), "");
}

#[test]
fn of_a_pair_with_a_key_the_framing_is_shown_and_nothing_else() {
    let Some(text) = told("log-with-key.pcap", &[]) else { return };
    assert_eq!(counts(&text, &["Greeting", "Handshake", "Sealed, 263 bytes"]), [2, 2, 2], "{text}");
    assert_eq!(counts(&text, &["Heartbeat", "sealed", "Hello"]), [6, 6, 0], "{text}");
}
