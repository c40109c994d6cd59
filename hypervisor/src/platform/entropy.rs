//! The guest's random bytes, as state: whoever follows the guest draws the same ones.

use sha2::{Digest, Sha256};

use crate::state::{State, StateError, Visitor};

/// Bytes of a seed.
pub const BYTES: usize = 32;

/// A generator that cannot be run backwards: a seed that was drawn tells nothing of the next or the last one.
#[derive(Clone, PartialEq, Eq)]
pub struct Entropy([u8; BYTES]);

impl Entropy {
    /// The generator that begins with random `bytes`.
    pub const fn new(bytes: [u8; BYTES]) -> Self {
        Self(bytes)
    }

    /// The next seed.
    pub fn draw(&mut self) -> [u8; BYTES] {
        let derive = |purpose: &[u8]| Sha256::new().chain_update(self.0).chain_update(purpose).finalize().into();
        let (seed, next) = (derive(b"seed"), derive(b"next"));
        self.0 = next;
        seed
    }
}

impl State for Entropy {
    fn visit(&mut self, v: &mut dyn Visitor) -> Result<(), StateError> {
        v.bytes(&mut self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{load, save};

    #[test]
    fn twins_draw_the_same_and_never_twice() {
        let (mut one, mut other) = (Entropy::new([1; BYTES]), Entropy::new([2; BYTES]));
        let drawn = [one.draw(), one.draw(), other.draw()];
        assert!(drawn[0] != drawn[1] && drawn[1] != drawn[2] && drawn[0] != drawn[2]);
        load(&mut other, &save(&mut one)).unwrap();
        assert_eq!(one.draw(), other.draw());
    }
}
