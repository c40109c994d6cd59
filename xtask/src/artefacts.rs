//! Builds the hypervisor and the guests, and says where they are.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::Deserialize;

use crate::process::{self, Process};
use crate::spinner::Spinner;

/// The target of hypervisor and guests.
pub const METAL: &str = "x86_64-unknown-none";
/// The package of the hypervisor and the name of its binary.
pub const HYPERVISOR: &str = "pollux-hypervisor";
/// The package of the simulator, the name of its binary, and the profile that it is built with.
pub const SIMULATOR: &str = "pollux-sim";
/// See [`SIMULATOR`].
pub const SIMULATION: &str = "sim";
/// The package of the arbiter and the name of its binary.
const ARBITER: &str = "pollux-arbiter";
/// The package of the fuzz targets.
const FUZZER: &str = "pollux-fuzz";
/// The target that it is built for, this desk's.
const HOST: &str = "x86_64-unknown-linux-gnu";
/// LLVM's pass that libFuzzer is guided by. See: Clang, "SanitizerCoverage".
const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
                        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
                        -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares";
/// The package whose binaries are the guests.
pub const GUESTS: &str = "pollux-guests";

/// A build that takes longer hangs.
const BUILD_LIMIT: Duration = Duration::from_secs(1800);

/// The root of the workspace.
pub fn root() -> PathBuf {
    let package =
        std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    // When another package's tests run us, the variable names that package.
    let candidates = [package.as_path(), Path::new(env!("CARGO_MANIFEST_DIR"))];
    let is_root = |path: &&Path| path.join("xtask/Cargo.toml").is_file() && path.join("qemu").is_dir();
    let found = candidates.into_iter().flat_map(Path::ancestors).find(is_root);
    found.unwrap_or(Path::new(".")).to_owned()
}

/// Where cargo puts what it builds.
pub fn target_directory() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |path| root().join(path))
}

/// `cargo`, to be run in the root of the workspace.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()).stdin(Stdio::null());
    for (name, _) in std::env::vars_os() {
        // Left by the cargo that runs us; build scripts would be built again because of them.
        if name.to_str().is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")) {
            command.env_remove(name);
        }
    }
    command
}

/// Builds the hypervisor.
pub fn build_hypervisor() -> Result<PathBuf> {
    let mut built = build("building the hypervisor", &["-p", HYPERVISOR, "--bin", HYPERVISOR])?;
    built.remove(HYPERVISOR).context("cargo built no hypervisor")
}

/// Builds all guests: their paths by name.
pub fn build_guests() -> Result<BTreeMap<String, PathBuf>> {
    build("building the guests", &["-p", GUESTS, "--bins"])
}

/// The image of `guest`: a file if there is one or the name looks like a path, else a guest of ours, which is built.
pub fn guest(guest: &str, memory: u64) -> Result<PathBuf> {
    let path = Path::new(guest);
    if guest.contains('/') || path.is_file() {
        check_image(path, memory)?;
        return path.canonicalize().with_context(|| format!("guest image {guest}"));
    }
    let names = guest_names()?;
    ensure!(
        names.iter().any(|name| name == guest),
        "there is no guest `{guest}`: it is no file, and our guests are {}",
        names.join(", ")
    );
    let mut built = build(&format!("building the guest {guest}"), &["-p", GUESTS, "--bin", guest])?;
    built.remove(guest).with_context(|| format!("cargo built no guest {guest}"))
}

/// Refuses early what no hypervisor could load. The hypervisor itself checks more.
fn check_image(path: &Path, memory: u64) -> Result<()> {
    let mut file = fs::File::open(path).with_context(|| format!("cannot read guest image {}", path.display()))?;
    let metadata = file.metadata()?;
    ensure!(metadata.is_file(), "guest image {} is no regular file", path.display());
    let mut magic = [0; 4];
    let is_elf = file.read_exact(&mut magic).is_ok() && magic == *b"\x7fELF";
    ensure!(is_elf, "guest image {} is no ELF file", path.display());
    ensure!(
        metadata.len() < memory,
        "guest image {} ({} bytes) does not fit into the guest's memory of {memory} bytes; see --guest-memory",
        path.display(),
        metadata.len()
    );
    Ok(())
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    targets: Vec<Target>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

/// The names of our guests.
fn guest_names() -> Result<Vec<String>> {
    let output =
        process::output(cargo().args(["metadata", "--no-deps", "--format-version=1"]))?.ok_or_else(no_cargo)?;
    ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr).trim());
    let metadata: Metadata = serde_json::from_slice(&output.stdout).context("cargo metadata writes something else")?;
    let targets =
        metadata.packages.into_iter().filter(|package| package.name == GUESTS).flat_map(|package| package.targets);
    let mut names: Vec<_> =
        targets.filter(|target| target.kind.iter().any(|kind| kind == "bin")).map(|target| target.name).collect();
    names.sort();
    Ok(names)
}

fn no_cargo() -> anyhow::Error {
    anyhow!("cargo is not installed")
}

/// A line of `cargo build --message-format=json`.
#[derive(Deserialize)]
struct Message {
    target: Option<Target>,
    executable: Option<PathBuf>,
}

/// Builds the simulator.
pub fn build_simulator() -> Result<PathBuf> {
    let arguments = ["--profile", SIMULATION, "-p", SIMULATOR, "--bin", SIMULATOR];
    let mut built = build_as("building the simulator", &arguments)?;
    built.remove(SIMULATOR).context("cargo built no simulator")
}

/// With this feature an arbiter can keep its terms in an etcd cluster; it is built with protoc.
pub const ARBITERS_ETCD: [&str; 2] = ["--features", "pollux-arbiter/etcd"];

/// Builds the arbiter.
pub fn build_arbiter(with_etcd: bool) -> Result<PathBuf> {
    let features = if with_etcd { &ARBITERS_ETCD[..] } else { &[] };
    let mut built = build_as("building the arbiter", &[&["-p", ARBITER, "--bin", ARBITER], features].concat())?;
    built.remove(ARBITER).context("cargo built no arbiter")
}

/// Builds the fuzzer, with what counts coverage in the code that is fuzzed. It has a folder of its own, as these settings
/// are none of other builds, and a target is named so that build scripts are built without them.
pub fn build_fuzzer() -> Result<PathBuf> {
    let folder = target_directory().join("fuzz/build");
    let folder = folder.to_str().context("the path of the target directory is not UTF-8")?;
    let arguments = ["--profile", "fuzz", "--target", HOST, "--target-dir", folder];
    let package = ["-p", FUZZER, "--bin", "fuzz", "--features", "libfuzzer"];
    let mut built = build_with("building the fuzzer", &[&arguments[..], &package].concat(), Some(COVERAGE))?;
    built.remove("fuzz").context("cargo built no fuzzer")
}

/// Builds for bare metal; the executables by name.
fn build(what: &str, arguments: &[&str]) -> Result<BTreeMap<String, PathBuf>> {
    build_as(what, &[&["--release", "--target", METAL], arguments].concat())
}

fn build_as(what: &str, arguments: &[&str]) -> Result<BTreeMap<String, PathBuf>> {
    build_with(what, arguments, None)
}

fn build_with(what: &str, arguments: &[&str], rustflags: Option<&str>) -> Result<BTreeMap<String, PathBuf>> {
    let spinner = Spinner::start(what);
    let mut command = cargo();
    if let Some(rustflags) = rustflags {
        command.env("RUSTFLAGS", rustflags);
    }
    command.args(["build", "--message-format=json-render-diagnostics"]).args(arguments);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut cargo = Process::spawn(&mut command)?;
    let (Some(stdout), Some(stderr)) = (cargo.child_mut().stdout.take(), cargo.child_mut().stderr.take()) else {
        bail!("cargo has no pipes");
    };
    let (status, messages, errors) = std::thread::scope(|scope| -> Result<_> {
        let messages = scope.spawn(|| read_lines(stdout, |_| ()));
        let errors = scope.spawn(|| read_lines(stderr, |line| spinner.detail(line.trim())));
        // When this fails the group is gone, and with it the other ends of the pipes.
        let status = cargo.wait(BUILD_LIMIT)?;
        Ok((status, messages.join().unwrap_or_default(), errors.join().unwrap_or_default()))
    })?;
    if !status.success() {
        drop(spinner);
        bail!("{what} failed\n{}", errors.join("\n"));
    }
    spinner.done();
    Ok(executables(&messages))
}

fn executables(messages: &[String]) -> BTreeMap<String, PathBuf> {
    let messages = messages.iter().filter_map(|line| serde_json::from_str::<Message>(line).ok());
    messages.filter_map(|message| Some((message.target?.name, message.executable?))).collect()
}

fn read_lines(stream: impl Read, mut seen: impl FnMut(&str)) -> Vec<String> {
    let lines = BufReader::new(stream).split(b'\n').map_while(Result::ok);
    lines.map(|line| String::from_utf8_lossy(&line).into_owned()).inspect(|line| seen(line)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executables_are_taken_from_cargos_messages() {
        let messages = [
            r#"{"reason":"compiler-artifact","target":{"name":"log","kind":["lib"]},"executable":null}"#,
            r#"{"reason":"compiler-artifact","target":{"name":"counter","kind":["bin"]},"executable":"/t/counter"}"#,
            r#"{"reason":"build-finished","success":true}"#,
            "no json",
        ];
        let found = executables(&messages.map(String::from));
        assert_eq!(found.into_iter().collect::<Vec<_>>(), [("counter".into(), PathBuf::from("/t/counter"))]);
    }

    #[test]
    fn images_are_checked() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        assert!(check_image(&path, 1 << 20).unwrap_err().to_string().contains("cannot read"));
        fs::write(&path, "#!/bin/sh").unwrap();
        assert!(check_image(&path, 1 << 20).unwrap_err().to_string().contains("no ELF"));
        fs::write(&path, b"\x7fELF and more").unwrap();
        assert!(check_image(&path, 8).unwrap_err().to_string().contains("does not fit"));
        check_image(&path, 1 << 20).unwrap();
        assert!(check_image(directory.path(), 1 << 20).unwrap_err().to_string().contains("no regular file"));
    }

    #[test]
    fn the_root_is_found() {
        assert!(root().join("Cargo.toml").is_file());
    }
}
