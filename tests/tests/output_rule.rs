//! The output rule: what a client has seen, the twin knows.

use std::time::Duration;

use anyhow::{Result, ensure};
use pollux_tests::resp::Client;
use pollux_tests::rig::Rig;

/// Long enough to act in before the twin, which hears nothing more, takes over.
const SUSPECT: &str = "suspect=2500ms";
const PATIENCE: Duration = Duration::from_secs(20);

/// The machines by their names: on a busy desk the roles may have changed by the time of the kill.
const PRIMARY: &str = "castor";
const BACKUP: &str = "pollux";

/// A rig whose guest has counted to ten, and whose twin hears no more of it.
fn cut_off_at_ten(name: &str, options: &[&str]) -> Result<(Rig, Client)> {
    let arguments = [&["--hypervisor-option", SUSPECT], options].concat();
    let rig = Rig::protected(name, "counter", &arguments)?;
    let mut client = Client::connect(&rig.service()?, PATIENCE)?;
    for expected in 1..=10 {
        ensure!(client.increment("x")? == expected);
    }
    // Also what follows the tenth reply reaches the twin.
    std::thread::sleep(Duration::from_millis(300));
    rig.link("log", &["down"])?;
    Ok((rig, client))
}

#[test]
fn without_the_rule_a_client_sees_the_same_reply_twice() -> Result<()> {
    let (mut rig, mut client) = cut_off_at_ten("rule-off", &["break=output-rule"])?;
    ensure!(client.increment("x")? == 11);
    rig.kill(PRIMARY)?;
    rig.wait_role(BACKUP, "primary", PATIENCE)?;
    let again = Client::connect(&rig.service()?, PATIENCE)?.increment("x")?;
    ensure!(again == 11, "the counter went on with {again}: the rule was in force, or the log was not cut");
    rig.stop()
}

#[test]
fn with_the_rule_every_reply_is_seen_once() -> Result<()> {
    let (mut rig, mut client) = cut_off_at_ten("rule-on", &[])?;
    client.send(&["INCR", "x"])?;
    ensure!(client.is_silent(Duration::from_millis(400))?, "a reply left although the twin does not know of it");
    rig.kill(PRIMARY)?;
    ensure!(client.is_silent(Duration::from_millis(50))?, "a reply left although the twin does not know of it");
    rig.wait_role(BACKUP, "primary", PATIENCE)?;
    // The request reaches the survivor by TCP's own means.
    ensure!(client.receive_number()? == 11);
    ensure!(Client::connect(&rig.service()?, PATIENCE)?.increment("x")? == 12);
    ensure!(client.increment("x")? == 13);
    rig.stop()
}
