//! Random bytes from a seed. The guest's generator is state: whoever follows the guest draws the same ones. The machine's is
//! its own.

use core::fmt;

use sha2::{Digest, Sha256};

use crate::state::{State, StateError, Visitor};

/// Bytes of a seed.
pub const BYTES: usize = 32;

/// A generator that cannot be run backwards: a seed that was drawn tells nothing of the next or the last one.
#[derive(Clone, PartialEq, Eq)]
pub struct Random([u8; BYTES]);

impl Random {
    /// The generator that begins with random `bytes`.
    pub const fn new(bytes: [u8; BYTES]) -> Self {
        Self(bytes)
    }

    /// The next bytes.
    pub fn draw(&mut self) -> [u8; BYTES] {
        let derive = |purpose: &[u8]| Sha256::new().chain_update(self.0).chain_update(purpose).finalize().into();
        let (seed, next) = (derive(b"seed"), derive(b"next"));
        self.0 = next;
        seed
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        let bytes = self.draw();
        u64::from_le_bytes(*bytes.first_chunk().expect("there are 32"))
    }

    /// From now on these bytes count, too.
    pub fn add(&mut self, bytes: &[u8]) {
        self.0 = Sha256::new().chain_update(self.0).chain_update(b"add").chain_update(bytes).finalize().into();
    }

    /// A generator that tells nothing about this one.
    #[must_use]
    pub fn fork(&mut self) -> Self {
        Self(self.draw())
    }
}

/// What it will draw is not shown.
impl fmt::Debug for Random {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Random")
    }
}

impl State for Random {
    fn visit(&mut self, v: &mut dyn Visitor) -> Result<(), StateError> {
        v.bytes(&mut self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{load, save};

    /// See: FIPS 180-4, and NIST's examples for it.
    #[test]
    fn the_hash_gives_the_published_answer() {
        let want = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let hash = Sha256::digest(b"abc");
        assert_eq!(hash.iter().map(|byte| alloc::format!("{byte:02x}")).collect::<alloc::string::String>(), want);
    }

    #[test]
    fn twins_draw_the_same_and_never_twice() {
        let (mut one, mut other) = (Random::new([1; BYTES]), Random::new([2; BYTES]));
        let drawn = [one.draw(), one.draw(), other.draw()];
        assert!(drawn[0] != drawn[1] && drawn[1] != drawn[2] && drawn[0] != drawn[2]);
        load(&mut other, &save(&mut one)).unwrap();
        assert_eq!(one.draw(), other.draw());
        assert!(one.fork().draw() == other.fork().draw() && one.draw() == other.draw());
        other.add(b"");
        assert_ne!(one.draw(), other.draw());
    }
}
