//! Finds and fetches packages by `apt-get`, in a directory of our own and for nobody but us: what this desk runs, and which
//! packages it has, plays no part.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::needs::{self, DEBIAN_KEYS};
use crate::process::{self, Process};

/// Fetching that takes longer hangs.
const LIMIT: Duration = Duration::from_secs(900);
/// How packages with all that they depend on are asked for.
const INSTALL: [&str; 3] = ["install", "-y", "-qq"];
/// The package that depends on the newest kernel.
const KERNEL: &str = "linux-image-cloud-amd64";

/// How a kernel's package is called, before its version.
const IMAGE: &str = "linux-image-";
/// The suite that never becomes a release.
const UNSTABLE: &str = "sid";

/// A directory with lists of packages, and the packages themselves.
#[derive(Debug)]
pub struct Apt {
    directory: PathBuf,
}

impl Apt {
    /// Prepares `directory` for a release of Debian.
    pub fn open(directory: &Path, suite: &str) -> Result<Self> {
        let attempt = || -> std::io::Result<()> {
            for part in ["state/lists/partial", "cache/archives/partial", "etc/apt.conf.d", "etc/preferences.d"] {
                fs::create_dir_all(directory.join(part))?;
            }
            // A desk on which nothing is installed.
            fs::write(directory.join("status"), "")?;
            fs::write(directory.join("etc/sources.list"), sources(suite))?;
            fs::write(directory.join("apt.conf"), configuration(directory))
        };
        attempt().with_context(|| format!("cannot write {}", directory.display()))?;
        Ok(Self { directory: directory.to_owned() })
    }

    /// Fetches the lists of packages, also `stale` ones.
    pub fn update(&self, stale: bool) -> Result<()> {
        let stale_too: &[&str] = if stale { &["-o", "Acquire::Check-Valid-Until=false"] } else { &[] };
        self.run("apt-get", &[&["update", "--error-on=any"], stale_too].concat()).map_err(|error| {
            match error.to_string().contains("is expired") {
                true => error.context("the mirror stands still: `--stale` takes what it has"),
                false => error,
            }
        })
    }

    /// The names of the files that `names` and all that they depend on are in.
    pub fn listed(&self, names: &[&str]) -> Result<Vec<String>> {
        let listed = self.output("apt-get", &[&INSTALL[..], &["--print-uris"], names].concat())?;
        Ok(files(&listed).map(str::to_owned).collect())
    }

    /// Fetches `names` and all that they depend on; the files.
    pub fn fetch(&self, names: &[&str]) -> Result<Vec<PathBuf>> {
        let listed = self.listed(names)?;
        self.run("apt-get", &[&INSTALL[..], &["--download-only"], names].concat())?;
        listed.iter().map(|name| self.fetched(name)).collect()
    }

    /// Fetches the newest kernel: its package, and those of its version that this depends on. Nothing else that it
    /// depends on is needed by a guest.
    pub fn fetch_kernel(&self) -> Result<Vec<PathBuf>> {
        let listed = self.output("apt-cache", &["depends", KERNEL])?;
        let image = dependencies(&listed).find(|name| name.starts_with(IMAGE));
        let image = image.with_context(|| format!("{KERNEL} names no kernel"))?;
        let listed = self.output("apt-cache", &["depends", image])?;
        let version = image.trim_start_matches(IMAGE);
        let parts = dependencies(&listed).filter(|name| name.ends_with(version));
        [image].into_iter().chain(parts).map(|name| self.fetch_alone(name)).collect()
    }

    /// Fetches a package without what it depends on.
    fn fetch_alone(&self, name: &str) -> Result<PathBuf> {
        let listed = self.output("apt-get", &["download", "-qq", "--print-uris", name])?;
        let file = files(&listed).next().with_context(|| format!("there is no package {name}"))?;
        if let Ok(path) = self.fetched(file) {
            return Ok(path);
        }
        self.run("apt-get", &["download", "-qq", name])?;
        self.fetched(file)
    }

    fn archives(&self) -> PathBuf {
        self.directory.join("cache/archives")
    }

    fn fetched(&self, file: &str) -> Result<PathBuf> {
        let path = self.archives().join(file);
        ensure!(path.is_file(), "apt-get has not fetched {file}");
        Ok(path)
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(arguments).env("APT_CONFIG", self.directory.join("apt.conf")).env("LC_ALL", "C");
        command.current_dir(self.archives()).stdin(Stdio::null());
        command
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Result<()> {
        let mut command = self.command(program, arguments);
        let log = tempfile::tempfile().context("cannot create a temporary file")?;
        command.stdout(log.try_clone()?).stderr(log.try_clone()?);
        let status = Process::spawn(&mut command)?.wait(LIMIT)?;
        ensure!(status.success(), "`{program} {}` failed\n{}", arguments.join(" "), needs::tail(log));
        Ok(())
    }

    /// What a question about packages is answered, as if none had been fetched yet.
    fn output(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let mut command = self.command(program, arguments);
        // `install` looks for what it has in its cache, `download` in the working directory.
        command.args(["-o", "Dir::Cache::archives=empty/"]).current_dir(&self.directory);
        let output = process::output(&mut command)?.with_context(|| format!("{program} is not installed"))?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "`{program} {}` failed\n{}", arguments.join(" "), said.trim());
        String::from_utf8(output.stdout).with_context(|| format!("{program} writes something else than text"))
    }
}

fn sources(suite: &str) -> String {
    let source =
        |path: &str, suite: &str| format!("deb [signed-by={DEBIAN_KEYS}] http://deb.debian.org/{path} {suite} main\n");
    // What is unstable gets its corrections where it gets all else.
    let security =
        if suite == UNSTABLE { String::new() } else { source("debian-security", &format!("{suite}-security")) };
    source("debian", suite) + &security
}

fn configuration(directory: &Path) -> String {
    let path = |part: &OsStr| directory.join(part).display().to_string();
    let (root, status) = (path(OsStr::new("")), path(OsStr::new("status")));
    format!(
        "Dir \"{root}\";\n\
         Dir::State \"state\";\n\
         Dir::State::status \"{status}\";\n\
         Dir::Cache \"cache\";\n\
         Dir::Etc \"etc\";\n\
         Dir::Etc::sourcelist \"sources.list\";\n\
         Dir::Etc::sourceparts \"-\";\n\
         APT::Architecture \"amd64\";\n\
         APT::Architectures {{ \"amd64\"; }};\n\
         APT::Install-Recommends \"false\";\n\
         APT::Sandbox::User \"\";\n\
         Acquire::Languages \"none\";\n\
         Acquire::Retries \"3\";\n\
         Debug::NoLocking \"true\";\n"
    )
}

/// The packages in lines such as `  Depends: NAME`, of which one, if there are alternatives, has a `|` in front.
fn dependencies(listed: &str) -> impl Iterator<Item = &str> {
    listed.lines().filter_map(|line| line.trim().strip_prefix("Depends: "))
}

/// The names of the files in lines such as `'http://…' NAME LENGTH HASH`.
fn files(listed: &str) -> impl Iterator<Item = &str> {
    let lines = listed.lines().filter(|line| line.starts_with('\''));
    lines.filter_map(|line| line.split_whitespace().nth(1)).filter(|name| name.ends_with(".deb") && !name.contains('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_found_in_what_apt_lists() {
        let listed = "linux-image-7-cloud\n  PreDepends: linux-base\n |Depends: dracut\n  Depends: <initramfs>\n    dracut\n\
                      \x20 Depends: linux-binary-7-cloud\n  Breaks: fwupdate\n";
        assert_eq!(dependencies(listed).collect::<Vec<_>>(), ["<initramfs>", "linux-binary-7-cloud"]);
    }

    #[test]
    fn files_are_found_in_what_apt_lists() {
        let listed = "'http://x/y/a_1%3a2_amd64.deb' a_1%3a2_amd64.deb 123 SHA256:00\nnoise\n\
                      'http://x/z' ../evil.deb 1 SHA256:00\n'http://x/b_1_all.deb' b_1_all.deb 5 \n";
        assert_eq!(files(listed).collect::<Vec<_>>(), ["a_1%3a2_amd64.deb", "b_1_all.deb"]);
    }
}
