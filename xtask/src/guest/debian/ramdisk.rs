//! An initial ramdisk made of packages.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::services::Service;
use crate::guest::cpio::{self, CHARACTER, DIRECTORY, Meta, REGULAR, SYMLINK};
use crate::needs;
use crate::process::Process;

/// `dpkg-deb` takes a second; longer than this it hangs.
const LIMIT: Duration = Duration::from_secs(120);
/// Parts of packages that a machine without people does without.
const LEFT_OUT: [&str; 8] = [
    "usr/share/doc/",
    "usr/share/man/",
    "usr/share/info/",
    "usr/share/locale/",
    "usr/share/lintian/",
    "usr/share/bug/",
    "usr/share/bash-completion/",
    "usr/share/i18n/",
];
/// Parts of functions, for a compiler of PostgreSQL's queries that is not there.
const BITCODE: &str = "/lib/bitcode/";
/// Directories that are links into `/usr`. See: file-hierarchy(7), "Compatibility symlinks".
const MERGED: [&str; 4] = ["bin", "sbin", "lib", "lib64"];
/// The modules that a guest needs: the rest stays on the desk.
const MODULES: [&str; 2] = ["virtio_pci", "virtio_net"];
/// Those that a guest with a disk needs, too: ext4 has its check sums computed by the second.
const DISK_MODULES: [&str; 3] = ["virtio_blk", LIBRARY_SUM, "ext4"];
/// What ext4 computes its sums with, which has become a part of newer kernels.
const LIBRARY_SUM: &str = "crc32c_generic";
/// A file larger than this is no part of a package.
const LARGEST: u64 = 1 << 30;

const INITTAB: &str = include_str!("inittab");
const SETUP: &str = include_str!("setup");
const DATA: &str = include_str!("data");
const HOSTNAME: &str = "pollux\n";

/// A file in the making.
#[derive(Debug, Clone)]
struct Entry {
    meta: Meta,
    content: Vec<u8>,
}

/// What was found in the kernel's package.
#[derive(Debug)]
pub struct Linux {
    /// The kernel as it lies in `/boot`.
    pub vmlinuz: Vec<u8>,
    /// Its version.
    pub version: String,
}

/// A ramdisk in the making.
#[derive(Debug)]
pub struct Ramdisk {
    /// By path, without a slash in front: directories come before what is in them.
    files: BTreeMap<String, Entry>,
}

impl Ramdisk {
    /// The skeleton.
    pub fn new() -> Self {
        let mut ramdisk = Self { files: BTreeMap::new() };
        for name in ["dev", "proc", "sys", "run", "tmp", "root", "etc/pollux", "var/log", "var/lib", "var/tmp"] {
            ramdisk.directory(name);
        }
        for name in MERGED {
            ramdisk.directory(&format!("usr/{name}"));
            ramdisk.put(name, SYMLINK | 0o777, format!("usr/{name}").as_bytes());
        }
        ramdisk.put("var/run", SYMLINK | 0o777, b"/run");
        // What the kernel opens before anything is mounted.
        let meta = Meta { mode: CHARACTER | 0o600, device: (5, 1), ..Meta::default() };
        ramdisk.files.insert("dev/console".to_owned(), Entry { meta, content: Vec::new() });
        ramdisk
    }

    /// Adds what a package contains.
    pub fn add_package(&mut self, package: &Path) -> Result<()> {
        for_each_file(package, |path, entry| {
            if LEFT_OUT.iter().all(|prefix| !path.starts_with(prefix)) && !path.contains(BITCODE) {
                self.insert(path, entry)?;
            }
            Ok(())
        })
    }

    /// Adds the modules of a kernel's packages that a guest needs, and those that were asked for by name; gives the kernel.
    pub fn add_kernel(&mut self, packages: &[PathBuf], more: &[String]) -> Result<Linux> {
        let (mut kernel, mut modules, mut builtin) = (None, BTreeMap::new(), String::new());
        let mut take = |path: String, entry: Entry| {
            if let Some(version) = kernel_version(&path) {
                kernel = Some(Linux { version: version.to_owned(), vmlinuz: entry.content });
            } else if path.ends_with("/modules.builtin") {
                builtin = String::from_utf8_lossy(&entry.content).into_owned();
            } else if let Some(name) = module_name(&path) {
                modules.insert(name, (path, entry.content));
            }
            Ok(())
        };
        packages.iter().try_for_each(|package| for_each_file(package, &mut take))?;
        let kernel = kernel.with_context(|| format!("no kernel is in {packages:?}"))?;
        let builtin: Vec<String> = builtin.lines().filter_map(module_name).collect();
        let (mut order, mut listed) = (Vec::new(), 0);
        let more: Vec<&str> = more.iter().map(String::as_str).collect();
        for (list, names) in [("modules", &MODULES[..]), ("disk-modules", &DISK_MODULES), ("more-modules", &more)] {
            for &name in names {
                if name != LIBRARY_SUM || modules.contains_key(name) {
                    self.add_module(name, &mut modules, &builtin, &mut order)?;
                }
            }
            let lines: String = order[listed..].iter().map(|path| format!("{path}\n")).collect();
            self.put(&format!("etc/pollux/{list}"), REGULAR | 0o644, lines.as_bytes());
            listed = order.len();
        }
        Ok(kernel)
    }

    /// Adds a module behind those that it needs.
    fn add_module(
        &mut self,
        name: &str,
        modules: &mut BTreeMap<String, (String, Vec<u8>)>,
        builtin: &[String],
        order: &mut Vec<String>,
    ) -> Result<()> {
        let Some((path, content)) = modules.remove(name) else {
            let there = builtin.iter().any(|known| known == name) || order.iter().any(|path| ends_in(path, name));
            ensure!(there, "the kernel has no module {name}");
            return Ok(());
        };
        let (path, content) = match path.strip_suffix(".xz") {
            None => (path, content),
            Some(path) => {
                let mut unpacked = Vec::new();
                let reader = lzma_rust2::XzReader::new(&content[..], false);
                reader.take(LARGEST).read_to_end(&mut unpacked).with_context(|| format!("module {name}"))?;
                (path.to_owned(), unpacked)
            }
        };
        for needed in dependencies(&content) {
            self.add_module(&needed, modules, builtin, order)?;
        }
        self.put(&path, REGULAR | 0o644, &content);
        order.push(format!("/{path}"));
        Ok(())
    }

    /// Adds what makes a system of it: the first process, users, services. Whoever has the key, a line of OpenSSH's, is root.
    /// `on_disk`: what services keep lies on the guest's disk.
    pub fn add_system(&mut self, services: &[&Service], key: Option<&str>, on_disk: bool) -> Result<()> {
        ensure!(self.files.contains_key("usr/bin/busybox"), "there is no busybox");
        self.put("init", SYMLINK | 0o777, b"usr/bin/busybox");
        self.put("etc/pollux/setup", REGULAR | 0o755, SETUP.as_bytes());
        if on_disk {
            self.put("etc/pollux/data", REGULAR | 0o644, DATA.as_bytes());
        }
        self.put("etc/hostname", REGULAR | 0o644, HOSTNAME.as_bytes());
        self.put("etc/hosts", REGULAR | 0o644, b"127.0.0.1 localhost\n10.0.2.15 pollux\n");
        let mut inittab = INITTAB.to_owned();
        for service in services {
            let (name, script) = (service.probe.name, service.script);
            let path = format!("etc/pollux/services/{name}");
            inittab += &format!("::respawn:/{path}\n");
            let text = format!("#!/bin/sh\nexec >>/var/log/{name}.log 2>&1\n{script}");
            self.put(&path, REGULAR | 0o755, text.as_bytes());
        }
        self.put("etc/inittab", REGULAR | 0o644, inittab.as_bytes());
        if let Some(key) = key {
            self.put("root/.ssh", DIRECTORY | 0o700, b"");
            self.put("root/.ssh/authorized_keys", REGULAR | 0o600, format!("{key}\n").as_bytes());
        }
        self.add_users(services)
    }

    /// Debian's usual users, with a root that needs no password, and those of the services.
    fn add_users(&mut self, services: &[&Service]) -> Result<()> {
        for what in ["passwd", "group"] {
            let master = self.files.get(&format!("usr/share/base-passwd/{what}.master"));
            let master = master.with_context(|| format!("there is no list {what}"))?;
            let mut text = String::from_utf8_lossy(&master.content).replace("root:*:", "root::");
            if !self.files.contains_key("usr/bin/bash") {
                text = text.replace(":/bin/bash\n", ":/bin/sh\n");
            }
            for (name, number, home) in services.iter().flat_map(|service| service.users) {
                text += &match what {
                    "passwd" => format!("{name}:*:{number}:{number}::{home}:/usr/sbin/nologin\n"),
                    _ => format!("{name}:*:{number}:\n"),
                };
                let meta = Meta { mode: DIRECTORY | 0o750, uid: *number, gid: *number, ..Meta::default() };
                self.files.insert(home.trim_start_matches('/').to_owned(), Entry { meta, content: Vec::new() });
            }
            self.put(&format!("etc/{what}"), REGULAR | 0o644, text.as_bytes());
        }
        Ok(())
    }

    /// Writes the archive; its length.
    pub fn write(&mut self, path: &Path) -> Result<u64> {
        let parents =
            |path: &String| -> Vec<String> { path.match_indices('/').map(|(at, _)| path[..at].to_owned()).collect() };
        let missing: Vec<String> = self.files.keys().flat_map(parents).collect();
        missing.iter().for_each(|name| self.directory(name));
        let attempt = || -> io::Result<u64> {
            let mut archive = cpio::Writer::new(BufWriter::new(File::create(path)?));
            self.files.iter().try_for_each(|(name, entry)| archive.add(name, entry.meta, &entry.content))?;
            let file = archive.finish()?.into_inner().map_err(io::IntoInnerError::into_error)?;
            Ok(file.metadata()?.len())
        };
        attempt().with_context(|| format!("cannot write {}", path.display()))
    }

    fn insert(&mut self, path: String, mut entry: Entry) -> Result<()> {
        if entry.meta.mode == HARD_LINK {
            let linked = std::str::from_utf8(&entry.content).ok().and_then(|target| self.files.get(target));
            entry = linked.with_context(|| format!("{path} is a link to nothing"))?.clone();
        }
        let is_directory = |entry: &Entry| entry.meta.mode & 0o170_000 == DIRECTORY;
        if is_directory(&entry) && self.files.contains_key(&path) {
            return Ok(());
        }
        self.files.insert(path, entry);
        Ok(())
    }

    fn put(&mut self, path: &str, mode: u32, content: &[u8]) {
        let meta = Meta { mode, ..Meta::default() };
        self.files.insert(path.to_owned(), Entry { meta, content: content.to_owned() });
    }

    fn directory(&mut self, path: &str) {
        let meta = Meta { mode: DIRECTORY | 0o755, ..Meta::default() };
        self.files.entry(path.to_owned()).or_insert(Entry { meta, content: Vec::new() });
    }
}

/// How a link within a package is kept until it is resolved: a kind that no file has.
const HARD_LINK: u32 = 0o170_000;

/// Calls `take` with path and content of all that is in a package.
fn for_each_file(package: &Path, mut take: impl FnMut(String, Entry) -> Result<()>) -> Result<()> {
    let mut command = Command::new("dpkg-deb");
    let log = tempfile::tempfile().context("cannot create a temporary file")?;
    command.arg("--fsys-tarfile").arg(package).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log.try_clone()?);
    let mut process = Process::spawn(&mut command)?;
    let stdout = process.child_mut().stdout.take().context("dpkg-deb has no pipe")?;
    let mut archive = tar::Archive::new(stdout);
    let result = archive.entries().map_err(anyhow::Error::from).and_then(|entries| {
        for entry in entries {
            let mut entry = entry?;
            if let Some((path, entry)) = read_entry(&mut entry)? {
                take(path, entry)?;
            }
        }
        Ok(())
    });
    let mut rest = archive.into_inner();
    if result.is_ok() {
        io::copy(&mut rest, &mut io::sink())?;
    }
    drop(rest);
    let status = process.wait(LIMIT)?;
    result.with_context(|| format!("package {}", package.display()))?;
    ensure!(status.success(), "cannot unpack {}\n{}", package.display(), needs::tail(log));
    Ok(())
}

/// Path and content; `None` for the root, and for the links into `/usr` that we have ourselves.
fn read_entry(entry: &mut tar::Entry<'_, impl Read>) -> Result<Option<(String, Entry)>> {
    let path = entry.path_bytes();
    let Some(path) = merged(std::str::from_utf8(&path).context("a path is not UTF-8")?)? else { return Ok(None) };
    let header = entry.header();
    let number = |number: io::Result<u64>| -> Result<u32> { Ok(u32::try_from(number?)?) };
    let (uid, gid) = (number(header.uid())?, number(header.gid())?);
    let permissions = header.mode()? & 0o7777;
    let target = entry.link_name_bytes().map(|name| name.into_owned()).unwrap_or_default();
    let (mode, content) = match entry.header().entry_type() {
        tar::EntryType::Directory => (DIRECTORY | permissions, Vec::new()),
        tar::EntryType::Symlink => (SYMLINK | 0o777, target),
        tar::EntryType::Link => {
            let target = merged(std::str::from_utf8(&target).context("a path is not UTF-8")?)?;
            (HARD_LINK, target.unwrap_or_default().into_bytes())
        }
        tar::EntryType::Regular => {
            let mut content = Vec::new();
            entry.take(LARGEST).read_to_end(&mut content)?;
            (REGULAR | permissions, content)
        }
        other => bail!("{path} is of a kind ({other:?}) that packages do not have"),
    };
    Ok(Some((path, Entry { meta: Meta { mode, uid, gid, device: (0, 0) }, content })))
}

/// A path of a package as it is with `/usr` merged; `None` for the directories that are links then, and the root.
fn merged(path: &str) -> Result<Option<String>> {
    let path = path.strip_prefix('.').unwrap_or(path).trim_matches('/');
    ensure!(path.split('/').all(|part| part != ".."), "a package holds the path {path}");
    let (first, rest) = path.split_once('/').unwrap_or((path, ""));
    let is_merged = MERGED.contains(&first);
    if path.is_empty() || is_merged && rest.is_empty() {
        return Ok(None);
    }
    Ok(Some(if is_merged { format!("usr/{path}") } else { path.to_owned() }))
}

/// The version of the kernel that lies at `path`: in `/boot`, or, in newer packages, beside its modules.
fn kernel_version(path: &str) -> Option<&str> {
    let beside = || path.strip_prefix("usr/lib/modules/")?.strip_suffix("/vmlinuz");
    path.strip_prefix("boot/vmlinuz-").or_else(beside)
}

/// The name of a module as the kernel writes it.
///
/// # Errors
/// When no module can have that name.
pub fn checked_module(name: &str) -> Result<String> {
    let known = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    ensure!(!name.is_empty() && name.chars().all(known), "`{name}` is no name of a module");
    Ok(name.replace('-', "_"))
}

/// The name of the module in a file, as other modules call it.
fn module_name(path: &str) -> Option<String> {
    let file = path.rsplit('/').next()?;
    let name = file.strip_suffix(".xz").unwrap_or(file).strip_suffix(".ko")?;
    Some(name.replace('-', "_"))
}

fn ends_in(path: &str, name: &str) -> bool {
    module_name(path).is_some_and(|found| found == name)
}

/// The modules that a module says it needs.
fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let value = module[at + KEY.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    let names = std::str::from_utf8(value).unwrap_or_default().split(',').filter(|name| !name.is_empty());
    names.map(|name| name.replace('-', "_")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_merged_into_usr() {
        let merged = |path| merged(path).unwrap();
        assert_eq!(merged("./lib/x86_64-linux-gnu/libc.so.6").as_deref(), Some("usr/lib/x86_64-linux-gnu/libc.so.6"));
        assert_eq!(merged("./etc/redis/").as_deref(), Some("etc/redis"));
        assert_eq!(merged("./bin/").as_deref(), None);
        assert_eq!(merged("./").as_deref(), None);
        assert!(super::merged("./../etc/passwd").is_err());
    }

    #[test]
    fn kernels_are_found_where_they_are() {
        assert_eq!(kernel_version("boot/vmlinuz-6.1.0-57-cloud-amd64"), Some("6.1.0-57-cloud-amd64"));
        assert_eq!(kernel_version("usr/lib/modules/7.2.13-amd64/vmlinuz"), Some("7.2.13-amd64"));
        assert_eq!(kernel_version("usr/lib/modules/7.2.13-amd64/modules.order"), None);
    }

    #[test]
    fn modules_come_behind_what_they_need() {
        let mut ramdisk = Ramdisk::new();
        let module = |name: &str, depends: &str| {
            let path = format!("usr/lib/modules/1/{name}.ko");
            (
                name.replace('-', "_"),
                (path, format!("\x7fELF\0license=GPL\0depends={depends}\0name={name}").into_bytes()),
            )
        };
        let mut modules = BTreeMap::from([
            module("virtio_net", "net-failover,virtio"),
            module("net_failover", "failover"),
            module("failover", ""),
        ]);
        let builtin = ["virtio".to_owned()];
        let mut order = Vec::new();
        ramdisk.add_module("virtio_net", &mut modules, &builtin, &mut order).unwrap();
        ramdisk.add_module("failover", &mut modules, &builtin, &mut order).unwrap();
        let names: Vec<_> = order.iter().filter_map(|path| module_name(path)).collect();
        assert_eq!(names, ["failover", "net_failover", "virtio_net"]);
        assert!(ramdisk.files.contains_key("usr/lib/modules/1/failover.ko"));
        let error = ramdisk.add_module("ext4", &mut modules, &builtin, &mut order).unwrap_err();
        assert!(error.to_string().contains("no module ext4"));
    }

    #[test]
    fn names_of_modules_are_as_the_kernel_writes_them() {
        assert_eq!(checked_module("lzo-rle").unwrap(), "lzo_rle");
        for bad in ["", "../zram", "zram.ko", "a b"] {
            assert!(checked_module(bad).unwrap_err().to_string().contains("no name of a module"), "{bad}");
        }
    }

    #[test]
    fn parents_come_before_children() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("initrd");
        let mut ramdisk = Ramdisk::new();
        ramdisk.put("opt/a/b", REGULAR | 0o644, b"x");
        let len = ramdisk.write(&path).unwrap();
        let archive = std::fs::read(&path).unwrap();
        assert_eq!(archive.len() as u64, len);
        let at = |name: &[u8]| archive.windows(name.len()).position(|window| window == name).unwrap();
        assert!(at(b"opt\0") < at(b"opt/a\0") && at(b"opt/a\0") < at(b"opt/a/b\0"));
    }
}
