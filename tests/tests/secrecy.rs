//! What somebody sees who listens on the log network.

use anyhow::{Context, Result, ensure};
use pollux_tests::resp::Client;
use pollux_tests::rig::{Rig, START_LIMIT, TAKEOVER_LIMIT, fresh_directory};
use pollux_tests::{capture, xtask};

/// What a client stores in the guest.
const SECRET: &str = "what-nobody-else-may-read-7c1e94";

/// How often the secret is on the log network: as a request on its way in, and in the guest's memory on its way to a new
/// backup.
fn seen(name: &str, key: &[&str]) -> Result<usize> {
    let mut rig = Rig::protected(name, "counter", &[&["--capture"], key].concat())?;
    let mut client = Client::connect(&rig.service()?, TAKEOVER_LIMIT)?;
    client.send(&["SET", "secret", SECRET])?;
    client.receive()?;
    if key.is_empty() {
        // It changes its key: the state of the next backup, and the next term, rest on the new one.
        let file = fresh_directory(&format!("{name}-key"))?.join("key");
        let path = file.to_str().context("a path that is no text")?;
        ensure!(xtask::run(&["key", "new", path])?.status.success(), "no key");
        rig.ask(&["key", "add", path])?;
        rig.ask(&["key", "forget"])?;
        client.increment("count")?;
    }
    rig.kill("backup")?;
    rig.wait_file("the guest is unprotected", TAKEOVER_LIMIT, |file| !file.protected)?;
    rig.start_backup()?;
    rig.wait_file("the guest is protected again", START_LIMIT, |file| file.protected)?;
    let frames = capture::read(&rig.directory().join("log.pcap"))?;
    if key.is_empty() {
        rig.kill("primary")?;
        rig.wait_takeovers(1)?;
        ensure!(client.increment("count")? == 2, "an increment was lost");
    }
    let bytes: usize = frames.iter().map(Vec::len).sum();
    let seen =
        frames.iter().filter(|frame| frame.windows(SECRET.len()).any(|bytes| bytes == SECRET.as_bytes())).count();
    println!("{name}: seen {seen} times in {} frames, {bytes} bytes", frames.len());
    ensure!(bytes > 100_000, "the state is not in the capture: {bytes} bytes");
    rig.stop()?;
    Ok(seen)
}

#[test]
fn nothing_of_the_guest_is_seen_on_the_log_network() -> Result<()> {
    let seen = seen("secret", &[])?;
    ensure!(seen == 0, "the secret is in {seen} frames");
    Ok(())
}

/// The test above would see it.
#[test]
fn a_pair_without_a_key_has_no_secrets() -> Result<()> {
    let seen = seen("no-secret", &["--key", "none"])?;
    ensure!(seen > 1, "the secret is in {seen} frames");
    Ok(())
}
