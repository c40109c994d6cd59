//! `cargo xtask timeline`: what happened in a rig, as one page that needs nothing but a browser, or paper.
//!
//! `story` puts in order what the rig wrote down (`rig/history.rs`) and what it captured; `lanes` draws that, `page` puts
//! it together. All of it is pure but this file.

mod capture;
mod lanes;
mod markup;
mod page;
mod pcapng;
mod picture;
mod requests;
mod story;

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::net::Network;
use crate::output::say;
use crate::rig::directory::latest_link;
use crate::rig::options::GUEST_ADDRESS;
use crate::rig::{SLOTS, history};
use story::Story;

/// The page in a rig's directory.
const FILE: &str = "timeline.html";
/// So much of a capture is read: some hundred thousand requests.
const MAX_CAPTURE: u64 = 64 << 20;

/// Which rig.
#[derive(Debug, Args)]
pub struct TimelineArgs {
    /// The rig's directory [default: that of the rig last started without --dir]
    dir: Option<PathBuf>,
    /// Where the page goes [default: timeline.html in the rig's directory]
    #[arg(long)]
    out: Option<PathBuf>,
    /// Also write a picture of the first takeover alone, for documents
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Also write what was captured as client.pcapng and log.pcapng, with comments that tell what happened
    #[arg(long)]
    pcapng: bool,
}

/// Writes the page of a rig, which may still run.
pub fn run(arguments: &TimelineArgs) -> Result<()> {
    let directory = arguments.dir.clone().unwrap_or_else(latest_link);
    let story = read(&directory)?;
    let out = arguments.out.clone().unwrap_or_else(|| directory.join(FILE));
    write_page(&directory, &story, &out)?;
    say!("timeline: {}", out.display());
    if let Some(path) = &arguments.svg {
        let Some(picture) = page::picture(&story, 0) else {
            bail!("there was no takeover to draw in {}", directory.display())
        };
        fs::write(path, picture).with_context(|| format!("cannot write {}", path.display()))?;
        say!("picture: {}", path.display());
    }
    if arguments.pcapng {
        write_commented(&directory, &story)?;
    }
    Ok(())
}

/// Writes the captures once more, with comments.
fn write_commented(directory: &Path, story: &Story) -> Result<()> {
    let comments: Vec<_> = story.notices.iter().map(|(at, text)| (story.unix_s + at, text.clone())).collect();
    let mut found = false;
    for network in Network::ALL {
        let path = directory.join(format!("{}.pcap", network.name()));
        let Some(capture) = read_capture(&path)? else { continue };
        let frames = capture::frames(&capture).with_context(|| format!("{} is no capture", path.display()))?;
        let out = path.with_extension("pcapng");
        fs::write(&out, pcapng::annotated(network.name(), frames, &comments))
            .with_context(|| format!("cannot write {}", out.display()))?;
        say!("commented: {}", out.display());
        found = true;
    }
    ensure!(found, "nothing was captured in {}: start the rig with --capture", directory.display());
    Ok(())
}

/// Writes the page of a rig that has ended into its directory; where it is.
pub fn write(directory: &Path) -> Result<PathBuf> {
    let out = directory.join(FILE);
    write_page(directory, &read(directory)?, &out)?;
    Ok(out)
}

fn write_page(directory: &Path, story: &Story, out: &Path) -> Result<()> {
    let directory = directory.canonicalize().unwrap_or_else(|_| directory.to_owned());
    let name = directory.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    fs::write(out, page::page(story, &name)).with_context(|| format!("cannot write {}", out.display()))
}

fn read(directory: &Path) -> Result<Story> {
    let path = directory.join(history::FILE);
    let text = fs::read_to_string(&path)
        .with_context(|| format!("no rig was in {}: cannot read {}", directory.display(), history::FILE))?;
    let mut story = story::of_history(&history::parse(&text));
    ensure!(!story.machines.is_empty(), "{} tells nothing of a rig", path.display());
    if let Some(capture) = read_capture(&directory.join("client.pcap"))? {
        story.add_client_capture(&capture, GUEST_ADDRESS.octets());
    }
    if let Some(capture) = read_capture(&directory.join("log.pcap"))? {
        let macs: Vec<_> = SLOTS.iter().map(|slot| mac(slot.mac(Network::Log))).collect();
        story.add_log_capture(&capture, &macs);
    }
    Ok(story)
}

/// The beginning of a capture, if there is one.
fn read_capture(path: &Path) -> Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    let mut bytes = Vec::new();
    file.take(MAX_CAPTURE).read_to_end(&mut bytes).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(Some(bytes))
}

/// A MAC address as it is on the wire.
fn mac(text: &str) -> [u8; 6] {
    let mut bytes = text.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap_or(0));
    std::array::from_fn(|_| bytes.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn macs_are_read() {
        assert_eq!(mac("52:54:00:20:00:0f"), [0x52, 0x54, 0, 0x20, 0, 0x0f]);
    }

    #[test]
    fn a_directory_without_a_rig_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let error = format!("{:#}", write(directory.path()).unwrap_err());
        assert!(error.contains("no rig was in") && error.contains(history::FILE), "{error}");
        fs::write(directory.path().join(history::FILE), "nonsense\n").unwrap();
        assert!(write(directory.path()).unwrap_err().to_string().contains("tells nothing"));
    }
}
