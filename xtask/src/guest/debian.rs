//! `cargo xtask guest debian`: a guest of Debian's own packages, with its kernel as it is.
//!
//! It needs no root: `apt-get` finds and fetches packages into a directory of ours, `dpkg-deb` unpacks them, and what they
//! contain becomes an initial ramdisk. The packages' installation scripts do not run. What they would do for a service stands
//! in `services.rs`; packages that it does not know are files without more.

mod key;
mod packages;
mod ramdisk;
mod services;

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use super::{Probe, kernel, write};
use crate::artefacts;
use crate::needs::{self, Need};
use crate::output::say;
use crate::spinner::Spinner;
use crate::units::format_size;

/// What `--guest` calls it.
pub const NAME: &str = "debian";
/// What is installed unless `--packages` says otherwise.
const DEFAULT_PACKAGES: &str = "redis-server";
/// The kernel's command line. Each line on the console costs the guest exits.
const ARGUMENTS: &str = "console=ttyS0 quiet";
/// Memory for kernel and services, and the least for all.
const WORKING_MEMORY: u64 = 256 << 20;
const LEAST_MEMORY: u64 = 384 << 20;

/// What guests are made by: one that others made is built anew.
const RECIPE: [&str; 9] = [
    include_str!("debian.rs"),
    include_str!("debian/data"),
    include_str!("debian/inittab"),
    include_str!("debian/setup"),
    include_str!("debian/packages.rs"),
    include_str!("debian/ramdisk.rs"),
    include_str!("debian/services.rs"),
    include_str!("cpio.rs"),
    include_str!("kernel.rs"),
];

/// A distribution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Distribution {
    /// Debian
    Debian,
}

/// A release of Debian.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Suite {
    /// Debian 12 with Linux 6.1
    Bookworm,
    /// Debian 13 with Linux 6.12
    Trixie,
    /// Debian's unstable, with the newest Linux that it has
    Sid,
}

impl Suite {
    fn name(self) -> &'static str {
        match self {
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
            Self::Sid => "sid",
        }
    }

    /// What every guest has: a shell with its tools, file systems, users, and the names of ports.
    fn base(self) -> &'static [&'static str] {
        match self {
            // Otherwise the package that merges /usr comes, with all of Perl.
            Self::Bookworm => &["busybox-static", "base-passwd", "e2fsprogs", "netbase", "usr-is-merged"],
            Self::Trixie | Self::Sid => &["busybox-static", "base-passwd", "e2fsprogs", "netbase"],
        }
    }
}

/// Which guest.
#[derive(Debug, Args)]
pub struct GuestArgs {
    /// The distribution
    #[arg(value_enum)]
    distribution: Distribution,
    /// Packages to be installed; services among them that are known are started
    #[arg(long, value_name = "NAME,…", value_delimiter = ',', default_value = DEFAULT_PACKAGES)]
    packages: Vec<String>,
    /// The release
    #[arg(long, value_enum, default_value_t = Suite::Bookworm)]
    suite: Suite,
    /// Modules of the kernel's beyond those for network and disk: they lie in the guest with what they need, for `modprobe`
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    modules: Vec<String>,
    /// What services keep lies on the guest's disk, which gets a file system if it is empty: run it with --disk
    #[arg(long)]
    data_on_disk: bool,
    /// A public key of OpenSSH's: whoever has it logs in as root over SSH, and nobody without
    #[arg(long, value_name = "FILE")]
    ssh_key: Option<PathBuf>,
    /// Leave the guest that `--guest debian` runs as it is: this one runs by `--guest` and its place
    #[arg(long)]
    aside: bool,
    /// Build it anew with the newest packages, even if it is there
    #[arg(long)]
    again: bool,
    /// Take packages from a mirror that stands still, whose list of them has expired: it is Debian's, but may be an old one
    #[arg(long)]
    stale: bool,
    /// Install what is missing on this desk
    #[arg(long)]
    yes: bool,
}

/// What is asked of a guest.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
struct Wanted {
    suite: Suite,
    packages: Vec<String>,
    /// Modules of the kernel's, as it writes their names itself.
    #[serde(default)]
    modules: Vec<String>,
    /// The line of a public key.
    #[serde(default)]
    ssh_key: Option<String>,
    /// Whether services keep what they have on the guest's disk.
    #[serde(default)]
    data_on_disk: bool,
}

/// A guest that was built.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Built {
    #[serde(flatten)]
    wanted: Wanted,
    /// The kernel's version.
    version: String,
    /// A hash of the recipe.
    #[serde(default)]
    recipe: u64,
    /// The kernel.
    #[serde(skip)]
    pub kernel: PathBuf,
    /// The initial ramdisk.
    #[serde(skip)]
    pub initrd: PathBuf,
    /// The memory that it needs, in bytes.
    pub memory: u64,
    /// The kernel's command line.
    pub arguments: String,
}

/// Builds the guest, if it is not there.
pub fn run(arguments: &GuestArgs) -> Result<()> {
    let Distribution::Debian = arguments.distribution;
    for name in &arguments.packages {
        let known = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "+-.".contains(c);
        ensure!(
            name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.chars().all(known),
            "`{name}` is no name of a package"
        );
    }
    let modules = arguments.modules.iter().map(|name| ramdisk::checked_module(name)).collect::<Result<_>>()?;
    let ssh_key = arguments.ssh_key.as_deref().map(key::read).transpose()?;
    let (suite, packages, data_on_disk) = (arguments.suite, arguments.packages.clone(), arguments.data_on_disk);
    let wanted = Wanted { suite, packages, modules, ssh_key, data_on_disk };
    let _lock = lock()?;
    let there = load(&wanted.place()).filter(|built| built.wanted == wanted && built.is_current() && !arguments.again);
    let built = match there {
        Some(built) => built,
        None => build(wanted, arguments.stale, arguments.yes)?,
    };
    let place = built.wanted.place();
    let name = if arguments.aside { place.display().to_string() } else { NAME.to_owned() };
    if !arguments.aside {
        built.wanted.choose()?;
    }
    say!("place       {}", place.display());
    say!("kernel      {} (Linux {})", built.kernel.display(), built.version);
    say!("initrd      {}", built.initrd.display());
    say!("packages    {} and what they need, of {}", built.wanted.packages.join(", "), built.wanted.suite.name());
    if !built.wanted.modules.is_empty() {
        say!("modules     {} and what they need", built.wanted.modules.join(", "));
    }
    say!("memory      {}", format_size(built.memory));
    for Probe { name, port, .. } in built.probes() {
        say!("service     {name} at port {port}");
    }
    let disk = if built.needs_disk() { " --disk nvme:1G" } else { "" };
    say!("run it with cargo xtask qemu --guest {name}{disk}");
    Ok(())
}

/// The guest that was built in a directory, if that is one.
pub fn in_place(directory: &Path) -> Option<Built> {
    load(directory)
}

/// The usual guest, whatever was asked for last, and where it is.
pub fn ensure_usual(yes: bool) -> Result<(Built, PathBuf)> {
    ensure(Wanted::usual(), yes)
}

/// The usual guest with these packages instead of its own, and where it is.
pub fn ensure_with(packages: &[&str], yes: bool) -> Result<(Built, PathBuf)> {
    let packages = packages.iter().map(|&name| name.to_owned()).collect();
    ensure(Wanted { packages, ..Wanted::usual() }, yes)
}

fn ensure(wanted: Wanted, yes: bool) -> Result<(Built, PathBuf)> {
    let _lock = lock()?;
    let place = wanted.place();
    let built = match load(&place).filter(Built::is_current) {
        Some(built) => built,
        None => build(wanted, false, yes)?,
    };
    Ok((built, place))
}

/// The guest that was asked for last, or the usual one, which is then built.
pub fn ensure_built(yes: bool) -> Result<Built> {
    let _lock = lock()?;
    let wanted = match load(&chosen()) {
        Some(built) if built.is_current() => return Ok(built),
        Some(old) => old.wanted,
        None => Wanted::usual(),
    };
    let built = build(wanted, false, yes)?;
    built.wanted.choose()?;
    Ok(built)
}

impl Wanted {
    /// Who asks for nothing gets this.
    fn usual() -> Self {
        let packages = vec![DEFAULT_PACKAGES.to_owned()];
        Self { suite: Suite::Bookworm, packages, modules: Vec::new(), ssh_key: None, data_on_disk: false }
    }

    /// Where it is kept.
    fn place(&self) -> PathBuf {
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        parent().join(format!("{NAME}-{}-{:016x}", self.suite.name(), hasher.finish()))
    }

    /// Makes it the one that runs.
    fn choose(&self) -> Result<()> {
        let (link, place) = (chosen(), self.place());
        let attempt = || -> std::io::Result<()> {
            match link.symlink_metadata() {
                // As it was when there was one guest only.
                Ok(old) if old.is_dir() => fs::remove_dir_all(&link)?,
                Ok(_) => fs::remove_file(&link)?,
                Err(_) => {}
            }
            std::os::unix::fs::symlink(&place, &link)
        };
        attempt().with_context(|| format!("cannot write {}", link.display()))
    }
}

impl Built {
    /// Its services.
    pub fn probes(&self) -> impl Iterator<Item = Probe> {
        services::of(&self.wanted.packages).map(|service| service.probe)
    }

    /// Whether it does not run without a disk.
    pub fn needs_disk(&self) -> bool {
        self.wanted.data_on_disk
    }

    /// Whether this xtask would build it the same way.
    fn is_current(&self) -> bool {
        self.recipe == recipe()
    }
}

fn recipe() -> u64 {
    let mut hasher = DefaultHasher::new();
    RECIPE.hash(&mut hasher);
    hasher.finish()
}

/// Where guests are kept.
fn parent() -> PathBuf {
    artefacts::target_directory().join("guests")
}

/// The guest that was asked for last.
fn chosen() -> PathBuf {
    parent().join(NAME)
}

/// Keeps others from building at the same time.
fn lock() -> Result<File> {
    let parent = parent();
    let attempt = || -> std::io::Result<File> {
        fs::create_dir_all(&parent)?;
        let file = File::create(parent.join("lock"))?;
        file.lock()?;
        Ok(file)
    };
    attempt().with_context(|| format!("cannot lock {}", parent.display()))
}

/// The guest that is in a directory, if one is and it is whole.
fn load(directory: &Path) -> Option<Built> {
    let text = fs::read(directory.join("guest.json")).ok()?;
    let mut built: Built = serde_json::from_slice(&text).ok()?;
    (built.kernel, built.initrd) = (directory.join("kernel"), directory.join("initrd"));
    (built.kernel.is_file() && built.initrd.is_file()).then_some(built)
}

fn build(wanted: Wanted, stale: bool, yes: bool) -> Result<Built> {
    let Wanted { suite, packages: names, .. } = &wanted;
    needs::ensure_present(&[Need::Apt], yes)?;
    let spinner = Spinner::start(format!("building a guest of Debian's {}", suite.name()));
    let apt = packages::Apt::open(&parent().join("apt").join(suite.name()), suite.name())?;
    spinner.detail("looking for packages");
    apt.update(stale)?;
    let services: Vec<_> = services::of(names).collect();
    spinner.detail("fetching packages");
    let all: Vec<&str> = suite.base().iter().copied().chain(names.iter().map(String::as_str)).collect();
    let files = without_luxuries(apt.fetch(&all)?, &apt, &all)?;
    let kernel_packages = apt.fetch_kernel()?;

    let mut ramdisk = ramdisk::Ramdisk::new();
    for file in &files {
        spinner.detail(&format!("unpacking {}", file_name(file)));
        ramdisk.add_package(file)?;
    }
    spinner.detail("unpacking the kernel");
    let linux = ramdisk.add_kernel(&kernel_packages, &wanted.modules)?;
    ramdisk.add_system(&services, wanted.ssh_key.as_deref(), wanted.data_on_disk)?;

    let scratch = tempfile::Builder::new().prefix(".new-").tempdir_in(parent()).context("cannot create a directory")?;
    let packed = &linux.vmlinuz;
    write(&scratch.path().join("kernel"), kernel::unpack(packed)?.as_deref().unwrap_or(packed))?;
    let len = ramdisk.write(&scratch.path().join("initrd"))?;
    let memory = (WORKING_MEMORY + 3 * len).max(LEAST_MEMORY).next_multiple_of(2 << 20);
    let place = wanted.place();
    let built = Built {
        wanted,
        version: linux.version,
        recipe: recipe(),
        kernel: PathBuf::new(),
        initrd: PathBuf::new(),
        memory,
        arguments: ARGUMENTS.to_owned(),
    };
    let text = serde_json::to_string_pretty(&built)? + "\n";
    write(&scratch.path().join("guest.json"), text.as_bytes())?;
    if place.exists() {
        fs::remove_dir_all(&place).with_context(|| format!("cannot remove {}", place.display()))?;
    }
    fs::rename(scratch.keep(), &place).with_context(|| format!("cannot write {}", place.display()))?;
    spinner.done();
    load(&place).context("the guest that was just built is not there")
}

/// The packages but those that can be done without and nobody else has asked for.
fn without_luxuries(mut files: Vec<PathBuf>, apt: &packages::Apt, all: &[&str]) -> Result<Vec<PathBuf>> {
    let prefixes: Vec<&str> = all.iter().flat_map(|name| services::luxuries(name)).copied().collect();
    if !prefixes.is_empty() {
        let others: Vec<&str> = all.iter().copied().filter(|name| services::luxuries(name).is_empty()).collect();
        let needed = apt.listed(&others)?;
        files.retain(|file| {
            let name = file_name(file);
            needed.contains(&name) || !prefixes.iter().any(|prefix| name.starts_with(prefix))
        });
    }
    Ok(files)
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_of_another_recipe_is_built_anew() {
        let text = r#"{"suite":"bookworm","packages":["nginx-light"],"version":"6.1","memory":1,"arguments":""}"#;
        let mut built: Built = serde_json::from_str(text).unwrap();
        assert!(!built.is_current(), "it is older than the recipe's hash");
        built.recipe = recipe();
        assert!(built.is_current());
    }

    #[test]
    fn guests_that_differ_are_kept_apart() {
        let usual = Wanted::usual();
        let others = [
            Wanted { suite: Suite::Trixie, ..usual.clone() },
            Wanted { packages: vec!["redis-server".to_owned(), "python3".to_owned()], ..usual.clone() },
            Wanted { modules: vec!["zram".to_owned()], ..usual.clone() },
            Wanted { data_on_disk: true, ..usual.clone() },
            Wanted { ssh_key: Some("ssh-ed25519 AAAA".to_owned()), ..usual.clone() },
        ];
        for other in others {
            assert_ne!(other.place(), usual.place(), "{other:?}");
        }
        assert_eq!(usual.place(), usual.clone().place());
    }
}
