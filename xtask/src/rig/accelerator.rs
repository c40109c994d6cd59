//! How QEMU runs instructions: with KVM, where that offers virtualization to what runs in it, or in software.

use std::fs::{self, OpenOptions};
use std::path::Path;

use anyhow::{Result, bail};
use clap::ValueEnum;

/// The user's wish.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Wish {
    /// KVM where it helps, else tcg
    Auto,
    /// In software
    Tcg,
    /// By the processor
    Kvm,
}

/// Whose processor this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vendor {
    /// Intel, with VMX.
    Intel,
    /// AMD, with SVM.
    Amd,
}

/// How instructions are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// In software.
    Tcg,
    /// By the processor.
    Kvm(Vendor),
}

impl Vendor {
    const ALL: [Self; 2] = [Self::Intel, Self::Amd];

    /// The feature's name, to Linux as to QEMU.
    pub fn feature(self) -> &'static str {
        match self {
            Self::Intel => "vmx",
            Self::Amd => "svm",
        }
    }

    fn module(self) -> &'static str {
        match self {
            Self::Intel => "kvm_intel",
            Self::Amd => "kvm_amd",
        }
    }
}

/// Whether the system below `root` has a KVM that offers virtualization to its guests; the error says what is missing.
pub fn nested_kvm(root: &Path) -> Result<Vendor, String> {
    let cpuinfo = fs::read_to_string(root.join("proc/cpuinfo")).unwrap_or_default();
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    let has = |vendor: &Vendor| flags.split_whitespace().any(|flag| flag == vendor.feature());
    let Some(vendor) = Vendor::ALL.into_iter().find(has) else {
        return Err("the processor shows no hardware virtualization (vmx or svm)".to_owned());
    };
    let device = root.join("dev/kvm");
    if !device.exists() {
        return Err("there is no /dev/kvm".to_owned());
    }
    if OpenOptions::new().read(true).write(true).open(device).is_err() {
        return Err("no access to /dev/kvm".to_owned());
    }
    let parameter = Path::new("sys/module").join(vendor.module()).join("parameters/nested");
    match fs::read_to_string(root.join(&parameter)) {
        Ok(text) if matches!(text.trim(), "Y" | "1") => Ok(vendor),
        _ => Err(format!("KVM has no nested virtualization (/{})", parameter.display())),
    }
}

/// What is used, given what [`nested_kvm`] found, and why.
///
/// # Errors
/// When the wish cannot be fulfilled.
pub fn choose(wish: Wish, kvm: &Result<Vendor, String>) -> Result<(Accelerator, String)> {
    const AMD: &str = "no exact instruction counter is known on AMD processors";
    Ok(match (wish, kvm) {
        (Wish::Tcg, _) => (Accelerator::Tcg, "as asked for".to_owned()),
        (Wish::Auto, Ok(Vendor::Amd)) => (Accelerator::Tcg, format!("KVM could be used, but {AMD}")),
        (Wish::Auto, Ok(vendor)) => (Accelerator::Kvm(*vendor), "KVM with nested virtualization is here".to_owned()),
        (Wish::Auto, Err(why)) => (Accelerator::Tcg, why.clone()),
        (Wish::Kvm, Ok(Vendor::Amd)) => {
            (Accelerator::Kvm(Vendor::Amd), format!("as asked for; but {AMD}: expect a refusal"))
        }
        (Wish::Kvm, Ok(vendor)) => (Accelerator::Kvm(*vendor), "as asked for".to_owned()),
        (Wish::Kvm, Err(why)) => bail!("--accel kvm: {why}; use --accel tcg"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A root with these files.
    fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    fn found(files: &[(&str, &str)]) -> Result<Vendor, String> {
        nested_kvm(root(files).path())
    }

    const INTEL: (&str, &str) = ("proc/cpuinfo", "model name\t: X\nflags\t\t: fpu vmx sse\n");
    const AMD: (&str, &str) = ("proc/cpuinfo", "flags\t\t: fpu svm sse\n");
    const DEVICE: (&str, &str) = ("dev/kvm", "");

    #[test]
    fn nested_virtualization_is_looked_for_everywhere() {
        let intel = |nested| found(&[INTEL, DEVICE, ("sys/module/kvm_intel/parameters/nested", nested)]);
        assert_eq!(intel("Y\n"), Ok(Vendor::Intel));
        assert_eq!(intel("1\n"), Ok(Vendor::Intel));
        assert!(intel("N\n").unwrap_err().contains("/sys/module/kvm_intel/parameters/nested"));
        assert_eq!(found(&[AMD, DEVICE, ("sys/module/kvm_amd/parameters/nested", "1")]), Ok(Vendor::Amd));
        // The other vendor's module does not count.
        assert!(found(&[AMD, DEVICE, ("sys/module/kvm_intel/parameters/nested", "Y")]).is_err());
    }

    #[test]
    fn what_is_missing_is_named() {
        assert!(found(&[]).unwrap_err().contains("vmx or svm"));
        assert!(found(&[("proc/cpuinfo", "flags : avmx vmxx\n")]).unwrap_err().contains("vmx or svm"));
        assert!(found(&[INTEL]).unwrap_err().contains("no /dev/kvm"));
        assert!(found(&[INTEL, DEVICE]).unwrap_err().contains("no nested virtualization"));
        // A directory cannot be opened for writing, not even by root.
        assert!(found(&[INTEL, ("dev/kvm/x", "")]).unwrap_err().contains("no access"));
    }

    #[test]
    fn auto_never_fails_and_says_why() {
        let auto = |kvm| choose(Wish::Auto, &kvm).unwrap();
        assert_eq!(auto(Ok(Vendor::Intel)).0, Accelerator::Kvm(Vendor::Intel));
        let (accelerator, why) = auto(Ok(Vendor::Amd));
        assert!(accelerator == Accelerator::Tcg && why.contains("no exact instruction counter"), "{why}");
        assert_eq!(auto(Err("because".to_owned())), (Accelerator::Tcg, "because".to_owned()));
    }

    #[test]
    fn kvm_is_forced_or_refused() {
        let (accelerator, why) = choose(Wish::Kvm, &Ok(Vendor::Amd)).unwrap();
        assert!(accelerator == Accelerator::Kvm(Vendor::Amd) && why.contains("expect a refusal"), "{why}");
        let error = choose(Wish::Kvm, &Err("there is none".to_owned())).unwrap_err().to_string();
        assert!(error.contains("there is none") && error.contains("--accel tcg"), "{error}");
        assert_eq!(choose(Wish::Tcg, &Ok(Vendor::Intel)).unwrap().0, Accelerator::Tcg);
    }
}
