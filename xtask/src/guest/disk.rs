//! Disk images: read as they are, or made raw by `qemu-img`.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use serde::Deserialize;

use crate::process;
use crate::units::format_size;

/// QEMU's program for images; Debian's package `qemu-utils` has it.
const QEMU_IMG: &str = "qemu-img";
/// How a qcow2 image begins. See: QEMU, "docs/interop/qcow2.txt".
const QCOW2: [u8; 4] = *b"QFI\xfb";
/// What a disk's size is a multiple of.
const SECTOR: u64 = 512;

/// What a disk image looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// The bytes of the disk
    Raw,
    /// QEMU's format; needs qemu-img
    Qcow2,
}

/// What `qemu-img info` says, as far as it is looked at.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Info {
    virtual_size: u64,
}

/// Writes the disk that is in `image` to the file `raw`, of at most `most` bytes; its length. Without a format it is taken
/// for raw, unless it does not look like that.
///
/// # Errors
/// Files that cannot be read or written, are too large, of another format, or no whole number of sectors.
pub fn make_raw(image: &Path, format: Option<Format>, raw: &Path, most: u64) -> Result<u64> {
    let shown = image.display();
    let mut file = File::open(image).with_context(|| format!("cannot read disk image {shown}"))?;
    let metadata = file.metadata().with_context(|| format!("cannot read disk image {shown}"))?;
    ensure!(metadata.is_file(), "disk image {shown} is no file");
    ensure!(metadata.len() > 0, "disk image {shown} is empty");
    let mut start = [0; QCOW2.len()];
    let is_qcow2 = file.read_exact(&mut start).is_ok() && start == QCOW2;
    let len = match format {
        Some(Format::Qcow2) if is_qcow2 => virtual_size(image)?,
        Some(Format::Qcow2) => bail!("disk image {shown} is no qcow2 image"),
        None if is_qcow2 => bail!("disk image {shown} looks like a qcow2 image: say --disk-format qcow2, or raw"),
        Some(Format::Raw) | None => metadata.len(),
    };
    ensure!(
        len.is_multiple_of(SECTOR) && len > 0,
        "disk image {shown} has {len} bytes, which is no multiple of {SECTOR} above 0"
    );
    ensure!(
        len <= most,
        "disk image {shown} of {} is too large: a disk in memory has at most {}",
        format_size(len),
        format_size(most)
    );
    if format == Some(Format::Qcow2) {
        run_qemu_img(Command::new(QEMU_IMG).args(["convert", "-f", "qcow2", "-O", "raw"]).arg(image).arg(raw), image)?;
    } else {
        fs::copy(image, raw).with_context(|| format!("cannot copy disk image {shown} to {}", raw.display()))?;
    }
    let copied = fs::metadata(raw).with_context(|| format!("cannot read {}", raw.display()))?.len();
    ensure!(copied == len, "disk image {shown} changed while it was read: {len} bytes became {copied}");
    Ok(len)
}

/// Size of the disk in a qcow2 image, in bytes.
fn virtual_size(image: &Path) -> Result<u64> {
    let text = run_qemu_img(Command::new(QEMU_IMG).args(["info", "-f", "qcow2", "--output=json"]).arg(image), image)?;
    let info: Info =
        serde_json::from_slice(&text).with_context(|| format!("what {QEMU_IMG} says of {}", image.display()))?;
    Ok(info.virtual_size)
}

fn run_qemu_img(command: &mut Command, image: &Path) -> Result<Vec<u8>> {
    let Some(output) = process::output(command)? else {
        bail!("{QEMU_IMG} is needed for qcow2 images, and not installed; Debian has it in the package qemu-utils");
    };
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{QEMU_IMG} cannot read disk image {}: {}", image.display(), said.trim());
    }
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use super::*;

    const MOST: u64 = 1 << 20;

    fn result(image: &Path, format: Option<Format>) -> Result<u64> {
        make_raw(image, format, &image.with_extension("raw"), MOST)
    }

    #[test]
    fn images_that_are_no_disks_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, content: &[u8]| {
            let path = directory.path().join(name);
            fs::write(&path, content).unwrap();
            path
        };
        let error = |path: &Path, format| result(path, format).unwrap_err().to_string();
        assert!(error(&directory.path().join("none"), None).contains("cannot read disk image"));
        assert!(error(directory.path(), None).contains("is no file"));
        assert!(error(&file("empty", &[]), None).contains("is empty"));
        assert!(error(&file("odd", &[7; 513]), None).contains("513 bytes, which is no multiple of 512"));
        let large = directory.path().join("large");
        File::create(&large).unwrap().set_len(MOST + 512).unwrap();
        assert!(error(&large, None).contains("too large"));
        let mut qcow2 = vec![0; 1024];
        qcow2[..4].copy_from_slice(&QCOW2);
        let qcow2 = file("qcow2", &qcow2);
        assert!(error(&qcow2, None).contains("say --disk-format qcow2"));
        assert!(error(&file("raw", &[7; 1024]), Some(Format::Qcow2)).contains("no qcow2 image"));
        // It begins like one, and is none; where there is no qemu-img, that is said.
        assert!(error(&qcow2, Some(Format::Qcow2)).contains(QEMU_IMG));
        assert_eq!(result(&qcow2, Some(Format::Raw)).unwrap(), 1024);
        assert_eq!(fs::read(qcow2.with_extension("raw")).unwrap(), fs::read(&qcow2).unwrap());
    }

    #[test]
    fn a_qcow2_image_becomes_raw() {
        let directory = tempfile::tempdir().unwrap();
        let (original, image) = (directory.path().join("original"), directory.path().join("image"));
        let content: Vec<u8> = (0..200 * SECTOR).map(|at| (at % 251) as u8).collect();
        fs::write(&original, &content).unwrap();
        let convert = ["convert", "-f", "raw", "-O", "qcow2"];
        match Command::new(QEMU_IMG).args(convert).arg(&original).arg(&image).status() {
            Ok(status) => assert!(status.success()),
            Err(error) if error.kind() == ErrorKind::NotFound => return println!("SKIPPED: there is no {QEMU_IMG}"),
            Err(error) => panic!("{error}"),
        }
        assert_eq!(result(&image, Some(Format::Qcow2)).unwrap(), content.len() as u64);
        assert_eq!(fs::read(image.with_extension("raw")).unwrap(), content);
        assert!(Command::new(QEMU_IMG).args(["resize", "-q"]).arg(&image).arg("1T").status().unwrap().success());
        assert!(result(&image, Some(Format::Qcow2)).unwrap_err().to_string().contains("too large"));
    }
}
