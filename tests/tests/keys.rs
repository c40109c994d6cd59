//! A pair changes its key while it serves.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use pollux_tests::arbiter::{Desk, free, keys};
use pollux_tests::debian::PATIENT;
use pollux_tests::load::{Load, judge, wait_answers};
use pollux_tests::resp::Client;
use pollux_tests::rig::{Rig, START_LIMIT, TAKEOVER_LIMIT, fresh_directory};
use pollux_tests::status::Status;
use pollux_tests::xtask;

/// A new key, in a file.
fn new_key(file: &Path) -> Result<&str> {
    let path = file.to_str().context("a path that is no text")?;
    ensure!(xtask::run(&["key", "new", path])?.status.success(), "no key");
    Ok(path)
}

/// A key as a monitor takes it.
fn hex(file: &Path) -> Result<String> {
    Ok(fs::read(file)?.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Waits until machine `role` says something of itself.
fn says(rig: &mut Rig, what: &str, role: &str, holds: impl Fn(&Status) -> bool) -> Result<Status> {
    rig.wait(&format!("{role}: {what}"), START_LIMIT, |rig| {
        Ok(rig.status()?.of(role).filter(|status| holds(status)).cloned())
    })
}

#[test]
#[ignore = "takes minutes: cargo xtask test rig a_key_is_changed_under_load --long"]
fn a_key_is_changed_under_load() -> Result<()> {
    // A busy desk must not be taken for a dead twin.
    let mut rig = Rig::protected("keys", "counter", &["--hypervisor-option", PATIENT])?;
    let load = Load::start(&rig.service()?, "x", Instant::now())?;
    wait_answers(&mut rig, &load, 10)?;
    let old = says(&mut rig, "a key", "primary", |status| !status.key.is_empty())?.key;
    // Nothing is forgotten that nothing follows.
    let refused = rig.ask(&["key", "forget"]).unwrap_err().to_string();
    ensure!(refused.contains("has no second key"), "{refused}");
    let next = fresh_directory("keys-next")?.join("key");
    rig.ask(&["key", "add", new_key(&next)?])?;
    let refused = rig.ask(&["key", "add", new_key(&next.with_file_name("third"))?]).unwrap_err().to_string();
    ensure!(refused.contains("`rig key forget` comes first"), "{refused}");
    wait_answers(&mut rig, &load, 10)?;
    rig.ask(&["key", "forget"])?;
    for role in ["primary", "backup"] {
        let status = says(&mut rig, "one key", role, |status| status.old_key.is_empty())?;
        ensure!(status.key != old, "{role} has forgotten the new key");
    }
    let status = rig.status()?;
    ensure!(status.protected && status.takeovers.is_empty(), "{}", rig.report());
    ensure!(status.notice("unprotected").is_none(), "protection was lost\n{}", rig.report());
    wait_answers(&mut rig, &load, 10)?;
    // All that follows rests on the new one: the term, and the stream of the next backup.
    rig.kill("primary")?;
    rig.wait_takeovers(1)?;
    wait_answers(&mut rig, &load, 10)?;
    rig.start_backup()?;
    let newest = says(&mut rig, "a key", "backup", |status| !status.key.is_empty())?;
    ensure!(newest.key != old && newest.old_key.is_empty(), "{newest:?}");
    println!("{:?}", judge(load)?);
    rig.stop()
}

/// An operator who takes the steps in the wrong order hears why they are refused, and loses nothing; machines and arbiter go on
/// with whichever key they have in common.
#[test]
#[ignore = "takes minutes: cargo xtask test rig machines_have_one_of_two_keys --long"]
fn machines_have_one_of_two_keys() -> Result<()> {
    let directory = fresh_directory("keys-order-files")?;
    let (old_file, folder) = keys(&directory)?;
    let (at, next_file) = (free()?, directory.join("next"));
    let next = new_key(&next_file)?;
    let arbiter = Desk::start(&at, &directory.join("arbiter.log"), &folder)?;
    let path = old_file.to_str().context("a path that is no text")?;
    let options = ["--key", path, "--arbiter", &at, "--hypervisor-option", PATIENT, "arbiter-watch=1s"];
    let mut rig = Rig::protected("keys-order", "counter", &options)?;
    let mut client = Client::connect(&rig.service()?, TAKEOVER_LIMIT)?;
    let add = format!("key-add {}", hex(&next_file)?);
    let old = says(&mut rig, "a key", "primary", |status| !status.key.is_empty())?.key;
    let forget = format!("key-forget {old}");

    // The primary alone has the next one: it needs the old one for its twin.
    rig.command("primary", &[&add])?;
    let status = says(&mut rig, "two keys", "primary", |status| !status.old_key.is_empty())?;
    ensure!(status.old_key == old && status.old_key_is_needed.contains("does not show"), "{status:?}");
    rig.command("primary", &[&forget])?;
    rig.wait("a refusal", START_LIMIT, |rig| Ok(rig.status()?.notice("does not show that it has the key").map(drop)))?;
    client.increment("x")?;
    // A backup that starts with the old one alone is taken in, and takes over; so does the arbiter know the old one alone.
    rig.kill("backup")?;
    rig.wait_file("the guest is unprotected", TAKEOVER_LIMIT, |file| !file.protected)?;
    rig.start_backup()?;
    let heir = rig.file()?.machine("backup")?.name.clone();
    rig.kill("primary")?;
    rig.wait_role(&heir, "primary", TAKEOVER_LIMIT)?;
    client.increment("x")?;
    // Both have both, and the arbiter is missing.
    rig.start_backup()?;
    for role in ["backup", "primary"] {
        rig.command(role, &[&add])?;
        says(&mut rig, "two keys", role, |status| !status.old_key.is_empty())?;
    }
    says(&mut rig, "the arbiter lacks the key", "primary", |status| status.old_key_is_needed.contains("arbiter"))?;
    let heir = rig.file()?.machine("backup")?.name.clone();
    rig.kill("primary")?;
    rig.wait_role(&heir, "primary", TAKEOVER_LIMIT)?;
    client.increment("x")?;
    // It gets the next one, with the old one and then without.
    let mut derive = xtask::command();
    derive.args(["arbiter", "key", "--key", next, "--follows", path]).arg(folder.join("next"));
    ensure!(derive.status()?.success(), "no arbiter's key");
    says(&mut rig, "the old key is of no use", &heir, |status| status.old_key_is_needed.is_empty())?;
    fs::remove_file(folder.join("pair"))?;
    rig.command(&heir, &[&forget])?;
    says(&mut rig, "one key", &heir, |status| status.old_key.is_empty() && status.key != old)?;
    // Who comes with the old key alone is a stranger now, and is told so; the survivor goes on.
    rig.ask(&["start", "backup"])?;
    rig.wait("a stranger", START_LIMIT, |rig| {
        let strangers = rig.status()?.of(&heir).and_then(|status| status.errors.get("log_refused_strangers").copied());
        Ok(strangers.filter(|count| *count > 0))
    })?;
    rig.wait("why", START_LIMIT, |rig| {
        let twin = if heir == "castor" { "pollux.log" } else { "castor.log" };
        Ok(rig.read(twin).contains("keys differ").then_some(()))
    })?;
    // With the next one it is the twin.
    let twin = if heir == "castor" { "pollux" } else { "castor" };
    rig.command(twin, &[&add])?;
    rig.wait_protected()?;
    ensure!(client.increment("x")? == 4, "an increment was lost");
    // And nothing but the new key is needed for the next death.
    rig.kill(&heir)?;
    rig.wait_role(twin, "primary", TAKEOVER_LIMIT)?;
    ensure!(client.increment("x")? == 5, "an increment was lost");
    ensure!(fs::metadata(folder.join("next"))?.permissions().mode() & 0o077 == 0, "others can read the arbiter's key");
    drop(arbiter);
    rig.stop()
}
