//! The hypervisor's image: which instructions a block holds, and whose they are.

use std::fmt;
use std::path::Path;

use addr2line::Loader;
use anyhow::{Context, Result, anyhow};
use iced_x86::{Decoder, DecoderOptions, FlowControl};

/// More instructions than QEMU takes into a block.
const MOST: usize = 512;
/// In the path of each file of Rust's own library.
const LIBRARY: &str = "/library/";

/// The image.
pub struct Symbols {
    loader: Option<Loader>,
    /// Code by address.
    sections: Vec<(u64, Vec<u8>)>,
}

impl Symbols {
    /// Of the image at `path`.
    pub fn read(path: &Path) -> Result<Self> {
        let loader = Loader::new(path).map_err(|error| anyhow!("{}: {error}", path.display()))?;
        let image = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Self { loader: Some(loader), sections: code_of(&image).context("the hypervisor's image")? })
    }

    /// Code without names.
    #[cfg(test)]
    pub fn of_code(address: u64, code: &[u8]) -> Self {
        Self { loader: None, sections: vec![(address, code.to_vec())] }
    }

    /// The addresses of the instructions from `address` on: up to a branch, or up to `end` if that comes first.
    pub fn block(&self, address: u64, end: Option<u64>) -> Vec<u64> {
        let holds = |section: &&(u64, Vec<u8>)| (section.0..section.0 + section.1.len() as u64).contains(&address);
        let Some((start, code)) = self.sections.iter().find(holds) else { return vec![address] };
        let code = &code[(address - start) as usize..];
        let mut decoder = Decoder::with_ip(64, code, address, DecoderOptions::NONE);
        let mut addresses = Vec::new();
        while decoder.can_decode() && addresses.len() < MOST {
            if Some(decoder.ip()) == end && !addresses.is_empty() {
                break;
            }
            let instruction = decoder.decode();
            addresses.push(instruction.ip());
            if instruction.flow_control() != FlowControl::Next {
                break;
            }
        }
        addresses
    }

    /// The function that the instruction at `address` was written in, wherever it was inlined, and its file. What comes from
    /// Rust's own library counts for who called it there.
    pub fn function(&self, address: u64) -> Function {
        self.written(address).or_else(|| self.symbol(address)).unwrap_or_default()
    }

    fn written(&self, address: u64) -> Option<Function> {
        let mut frames = self.loader.as_ref()?.find_frames(address).ok()?;
        while let Some(frame) = frames.next().ok()? {
            let Some(file) = frame.location.and_then(|location| location.file) else { continue };
            if !file.contains(LIBRARY) {
                let name = frame.function?.demangle().ok()?.into_owned();
                let name = without_hash(without_types(&name)).to_owned();
                return Some(Function { name, file: short(file).to_owned() });
            }
        }
        None
    }

    /// What has no lines: assembly, and Rust's own functions that were not inlined.
    fn symbol(&self, address: u64) -> Option<Function> {
        let name = self.loader.as_ref()?.find_symbol(address)?;
        let name = without_hash(&addr2line::demangle_auto(name.into(), None)).to_owned();
        Some(Function { name, file: String::new() })
    }
}

/// A function.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Function {
    name: String,
    /// Where it was written; empty if that is not known.
    file: String,
}

impl Function {
    /// The part of the tree, or the package, that it belongs to.
    pub fn part(&self) -> &str {
        const OURS: usize = 3;
        let depth = if self.file.starts_with("hypervisor/") { OURS } else { OURS - 1 };
        match self.file.match_indices('/').nth(depth - 1) {
            Some((at, _)) => &self.file[..at],
            None => self.file.split('/').next().filter(|part| !part.is_empty()).unwrap_or("assembly, Rust's library"),
        }
    }
}

impl fmt::Display for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.name.as_str(), self.file.as_str()) {
            ("", _) => f.write_str("?"),
            (name, "") => f.write_str(name),
            (name, file) => write!(f, "{name} ({file})"),
        }
    }
}

/// A file as people know it: below the workspace, or below the registry's packages.
fn short(file: &str) -> &str {
    let ours = crate::artefacts::root();
    let below = |root: &str| file.strip_prefix(root).map(|rest| rest.trim_start_matches('/'));
    let packages = file.split_once("/registry/src/").and_then(|(_, rest)| rest.split_once('/'));
    ours.to_str().and_then(below).or(packages.map(|(_, rest)| rest)).unwrap_or(file)
}

/// Without the types that a generic function was made for.
fn without_types(name: &str) -> &str {
    match name.find('<') {
        Some(at) if at > 0 => &name[..at],
        _ => name,
    }
}

/// Without what tells functions of one name apart.
fn without_hash(name: &str) -> &str {
    match name.rsplit_once("::h") {
        Some((name, hash)) if hash.len() == 16 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()) => name,
        _ => name,
    }
}

/// The loaded, executable parts of a 64-bit ELF image. See: System V ABI, "Program Header".
fn code_of(image: &[u8]) -> Option<Vec<(u64, Vec<u8>)>> {
    const LOAD: u32 = 1;
    const EXECUTABLE: u32 = 1;
    let half = |at: usize| Some(u16::from_le_bytes(image.get(at..at + 2)?.try_into().ok()?));
    let word = |at: usize| Some(u32::from_le_bytes(image.get(at..at + 4)?.try_into().ok()?));
    let long = |at: usize| Some(u64::from_le_bytes(image.get(at..at + 8)?.try_into().ok()?));
    let (table, size, count) = (usize::try_from(long(0x20)?).ok()?, half(0x36)?, half(0x38)?);
    let mut parts = Vec::new();
    for index in 0..usize::from(count) {
        let at = table + index * usize::from(size);
        if word(at)? == LOAD && word(at + 4)? & EXECUTABLE != 0 {
            let (offset, length) = (usize::try_from(long(at + 8)?).ok()?, usize::try_from(long(at + 0x20)?).ok()?);
            parts.push((long(at + 0x10)?, image.get(offset..offset.checked_add(length)?)?.to_vec()));
        }
    }
    Some(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_ends_at_a_branch_or_at_the_next_one() {
        // nop; nop; jmp; nop
        let symbols = Symbols::of_code(0x1000, &[0x90, 0x90, 0xeb, 0x00, 0x90]);
        assert_eq!(symbols.block(0x1000, None), [0x1000, 0x1001, 0x1002]);
        assert_eq!(symbols.block(0x1000, Some(0x1001)), [0x1000]);
        assert_eq!(symbols.block(0x1000, Some(0x1000)), [0x1000, 0x1001, 0x1002], "a loop");
        assert_eq!(symbols.block(0x1004, None), [0x1004]);
        assert_eq!(symbols.block(0x9000, None), [0x9000], "no code is known there");
    }

    #[test]
    fn names_are_without_hashes() {
        assert_eq!(without_hash("a::b::h0123456789abcdef"), "a::b");
        assert_eq!(without_hash("a::b::hash"), "a::b::hash");
        assert_eq!((without_types("run<A, B<C>>"), without_types("<A as B>::run")), ("run", "<A as B>::run"));
    }

    #[test]
    fn files_are_short() {
        let own = crate::artefacts::root().join("ft/src/log.rs");
        assert_eq!(short(own.to_str().unwrap()), "ft/src/log.rs");
        assert_eq!(short("/home/x/.cargo/registry/src/index-1/a-1.0/src/b.rs"), "a-1.0/src/b.rs");
        assert_eq!(short("/elsewhere/c.rs"), "/elsewhere/c.rs");
    }

    #[test]
    fn functions_belong_to_parts() {
        let part = |file: &str| Function { name: "f".into(), file: file.into() }.part().to_owned();
        assert_eq!(part("hypervisor/src/replica/link.rs"), "hypervisor/src/replica");
        assert_eq!(part("ft/driver/src/live.rs"), "ft/driver");
        assert_eq!(part("smoltcp-0.13.1/src/wire/ip.rs"), "smoltcp-0.13.1/src");
        assert_eq!(part(""), "assembly, Rust's library");
    }

    #[test]
    fn nonsense_has_no_code() {
        assert!(code_of(&[0; 16]).is_none());
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(code_of(&own).is_some_and(|parts| !parts.is_empty()));
    }
}
