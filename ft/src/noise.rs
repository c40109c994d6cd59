//! The handshake `Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s`, both messages without payload, and the ciphers that it ends in.
//!
//! Both ends have one secret, and each makes a key pair for this connection alone: whoever learns the secret later cannot
//! read what was said before. Hash, cipher and curve are other people's; this is the order in which they are asked.
//! See: The Noise Protocol Framework, revision 34, 4, 5 and 9.

use blake2::{Blake2s256, Digest};
use chacha20poly1305::aead::{AeadInOut, KeyInit};
use chacha20poly1305::{ChaCha20Poly1305, Nonce, Tag};
use curve25519_dalek::MontgomeryPoint;
use hkdf::SimpleHkdf;

/// Bytes of a key, of a hash and of a point.
const LEN: usize = 32;
/// Bytes of a tag.
pub(crate) const TAG: usize = 16;
/// Bytes of either message.
pub(crate) const MESSAGE: usize = LEN + TAG;
const NAME: &[u8] = b"Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s";

/// A key, and the number of the message that it seals next: Noise's `CipherState`.
#[derive(Clone)]
pub(crate) struct Cipher {
    key: [u8; LEN],
    number: u64,
}

impl Cipher {
    fn new(key: [u8; LEN]) -> Self {
        Self { key, number: 0 }
    }

    fn with(&self, number: u64) -> (ChaCha20Poly1305, Nonce) {
        let mut nonce = Nonce::default();
        nonce[4..].copy_from_slice(&number.to_le_bytes());
        (ChaCha20Poly1305::new(&self.key.into()), nonce)
    }

    /// The number of the next message.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Seals the next message in place; returns its tag, which also covers `head`.
    pub(crate) fn seal(&mut self, head: &[u8], body: &mut [u8]) -> [u8; TAG] {
        let (cipher, nonce) = self.with(self.number);
        self.number += 1;
        cipher.encrypt_inout_detached(&nonce, head, body.into()).expect("shorter than 256 GiB").into()
    }

    /// Opens the next message in place; false, and `body` of no use, when it is not what [`seal`](Self::seal) made of it.
    pub(crate) fn open(&mut self, head: &[u8], body: &mut [u8], tag: &[u8; TAG]) -> bool {
        let (cipher, nonce) = self.with(self.number);
        self.number += 1;
        cipher.decrypt_inout_detached(&nonce, head, body.into(), &Tag::from(*tag)).is_ok()
    }

    /// Another key, from which this one cannot be told. Numbers go on. See: Noise, 11.3.
    pub(crate) fn rekey(&mut self) {
        let (cipher, nonce) = self.with(u64::MAX);
        let mut key = [0; LEN];
        cipher.encrypt_inout_detached(&nonce, &[], (&mut key[..]).into()).expect("shorter than 256 GiB");
        self.key = key;
    }
}

/// The ciphers of a connection.
#[derive(Clone)]
pub(crate) struct Keys {
    /// Seals what the initiator says.
    pub(crate) initiator: Cipher,
    /// Seals what the responder says.
    pub(crate) responder: Cipher,
}

/// Noise's `SymmetricState`: all that was said and agreed on so far.
struct Symmetric {
    chaining: [u8; LEN],
    hash: [u8; LEN],
    cipher: Cipher,
}

impl Symmetric {
    fn new(secret: &[u8; LEN], prologue: &[u8]) -> Self {
        let name: [u8; LEN] = Blake2s256::digest(NAME).into();
        let mut this = Self { chaining: name, hash: name, cipher: Cipher::new([0; LEN]) };
        this.mix_hash(prologue);
        let [chaining, hash, key] = this.derive(secret);
        this.chaining = chaining;
        this.mix_hash(&hash);
        this.cipher = Cipher::new(key);
        this
    }

    fn derive<const N: usize>(&self, input: &[u8]) -> [[u8; LEN]; N] {
        let mut out = [[0; LEN]; N];
        let hkdf = SimpleHkdf::<Blake2s256>::new(Some(&self.chaining), input);
        hkdf.expand(&[], out.as_flattened_mut()).expect("shorter than 255 hashes");
        out
    }

    fn mix_hash(&mut self, bytes: &[u8]) {
        self.hash = Blake2s256::new().chain_update(self.hash).chain_update(bytes).finalize().into();
    }

    fn mix_key(&mut self, input: &[u8]) {
        let [chaining, key] = self.derive(input);
        self.chaining = chaining;
        self.cipher = Cipher::new(key);
    }

    /// The token `e`, of either end. With a secret it is mixed into the key, too.
    fn mix_point(&mut self, point: &[u8; LEN]) {
        self.mix_hash(point);
        self.mix_key(point);
    }

    /// The token `ee`.
    fn mix_shared(&mut self, ephemeral: &[u8; LEN], point: [u8; LEN]) {
        self.mix_key(MontgomeryPoint(point).mul_clamped(*ephemeral).as_bytes());
    }

    /// A message that ends here, with its tag over all that was said.
    fn write(&mut self, point: &[u8; LEN]) -> [u8; MESSAGE] {
        let tag = self.cipher.seal(&self.hash, &mut []);
        self.mix_hash(&tag);
        let mut message = [0; MESSAGE];
        message[..LEN].copy_from_slice(point);
        message[LEN..].copy_from_slice(&tag);
        message
    }

    fn read(&mut self, tag: &[u8; TAG]) -> Option<()> {
        let genuine = self.cipher.open(&self.hash, &mut [], tag);
        self.mix_hash(tag);
        genuine.then_some(())
    }

    fn split(&self) -> Keys {
        let [initiator, responder] = self.derive(&[]).map(Cipher::new);
        Keys { initiator, responder }
    }
}

/// Point and tag of a message.
fn parts(message: &[u8; MESSAGE]) -> ([u8; LEN], [u8; TAG]) {
    let (point, tag) = message.split_first_chunk().expect("it is longer");
    (*point, *tag.first_chunk().expect("it is as long"))
}

fn point_of(ephemeral: &[u8; LEN]) -> [u8; LEN] {
    MontgomeryPoint::mul_base_clamped(*ephemeral).to_bytes()
}

/// Who spoke first, and waits for the answer.
pub(crate) struct Initiator {
    symmetric: Symmetric,
    ephemeral: [u8; LEN],
}

/// Speaks first. `ephemeral` is random, and of this connection alone.
pub(crate) fn initiate(secret: &[u8; LEN], prologue: &[u8], ephemeral: [u8; LEN]) -> (Initiator, [u8; MESSAGE]) {
    let mut symmetric = Symmetric::new(secret, prologue);
    let point = point_of(&ephemeral);
    symmetric.mix_point(&point);
    let message = symmetric.write(&point);
    (Initiator { symmetric, ephemeral }, message)
}

impl Initiator {
    /// Takes the answer; `None` when it is of somebody without the secret, or to something else.
    pub(crate) fn finish(mut self, message: &[u8; MESSAGE]) -> Option<Keys> {
        let (point, tag) = parts(message);
        self.symmetric.mix_point(&point);
        self.symmetric.mix_shared(&self.ephemeral, point);
        self.symmetric.read(&tag)?;
        Some(self.symmetric.split())
    }
}

/// Answers the first message; `None` when it is of somebody without the secret, or meant something else.
pub(crate) fn respond(
    secret: &[u8; LEN],
    prologue: &[u8],
    ephemeral: &[u8; LEN],
    message: &[u8; MESSAGE],
) -> Option<([u8; MESSAGE], Keys)> {
    let mut symmetric = Symmetric::new(secret, prologue);
    let (theirs, tag) = parts(message);
    symmetric.mix_point(&theirs);
    symmetric.read(&tag)?;
    let point = point_of(ephemeral);
    symmetric.mix_point(&point);
    symmetric.mix_shared(ephemeral, theirs);
    let answer = symmetric.write(&point);
    Some((answer, symmetric.split()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeMap;
    use alloc::format;
    use alloc::vec::Vec;

    /// What another implementation said, and the program that made it.
    const OTHER: &str = include_str!("../../tests/vectors/noise.txt");

    fn bytes(hex: &str) -> Vec<u8> {
        hex.as_bytes().chunks(2).map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
    }

    fn array<const N: usize>(hex: &str) -> [u8; N] {
        bytes(hex).try_into().unwrap()
    }

    /// See: RFC 7748, 6.1.
    #[test]
    fn the_curve_gives_the_published_answers() {
        let ours = array("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a");
        let theirs = array("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb");
        let points = [&ours, &theirs].map(point_of);
        assert_eq!(points[0], array("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"));
        assert_eq!(points[1], array("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"));
        let shared = MontgomeryPoint(points[1]).mul_clamped(ours).to_bytes();
        assert_eq!(shared, array("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"));
        assert_eq!(shared, MontgomeryPoint(points[0]).mul_clamped(theirs).to_bytes());
    }

    /// See: RFC 7693, B.
    #[test]
    fn the_hash_gives_the_published_answer() {
        let want: [u8; LEN] = array("508c5e8c327c14e2e1a72ba34eeb452f37458b209ed63a294d999b4c86675982");
        assert_eq!(Blake2s256::digest(b"abc")[..], want);
    }

    /// See: RFC 8439, 2.8.2.
    #[test]
    fn the_cipher_gives_the_published_answer() {
        let key: [u8; LEN] = core::array::from_fn(|index| 0x80 + index as u8);
        let mut text = *b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, \
                          sunscreen would be it.";
        let nonce: [u8; 12] = array("070000004041424344454647");
        let tag = ChaCha20Poly1305::new(&key.into())
            .encrypt_inout_detached(&nonce.into(), &bytes("50515253c0c1c2c3c4c5c6c7"), (&mut text[..]).into())
            .unwrap();
        let want = bytes(
            "d31a8d34648e60db7b86afbc53ef7ec2a4aded51296e08fea9e2b5a736ee62d63dbea45e8ca9671282fafb69da92728b\
             1a71de0a9e060b2905d6a5b67ecd3b3692ddbd7f2d778b8c9803aee328091b58fab324e4fad675945585808b4831d7bc\
             3ff4def08e4b7a9de576d26586cec64b6116",
        );
        assert_eq!(text[..], want);
        assert_eq!(tag[..], bytes("1ae10b594f09e26a7e902ecbd0600691"));
    }

    fn said() -> BTreeMap<&'static str, Vec<u8>> {
        OTHER.lines().map(|line| line.split_once(' ').unwrap()).map(|(name, hex)| (name, bytes(hex))).collect()
    }

    fn ends() -> (Initiator, [u8; MESSAGE], Keys, [u8; MESSAGE]) {
        let said = said();
        let of = |name: &str| <[u8; LEN]>::try_from(&said[name][..]).unwrap();
        let (initiator, first) = initiate(&of("secret"), &said["prologue"], of("initiator-ephemeral"));
        let (second, keys) =
            respond(&of("secret"), &said["prologue"], &of("responder-ephemeral"), &first).expect("it is genuine");
        (initiator, first, keys, second)
    }

    #[test]
    fn another_implementation_says_the_same() {
        let said = said();
        let (initiator, first, _, second) = ends();
        assert_eq!((&first[..], &second[..]), (&said["first"][..], &said["second"][..]));
        let mut keys = initiator.finish(&second).expect("it is genuine");
        for turn in 0..4 {
            for (name, cipher) in [("initiator", &mut keys.initiator), ("responder", &mut keys.responder)] {
                if turn == 2 {
                    cipher.rekey();
                }
                let mut text = format!("message {turn} of the {name}").into_bytes();
                let tag = cipher.seal(&[], &mut text);
                text.extend_from_slice(&tag);
                assert_eq!(text, said[&*format!("{name}-{turn}")], "{name} {turn}");
            }
        }
    }

    #[test]
    fn both_ends_get_the_same_keys_and_nobody_else() {
        let (initiator, first, theirs, second) = ends();
        let ours = initiator.finish(&second).unwrap();
        assert_eq!((ours.initiator.key, ours.responder.key), (theirs.initiator.key, theirs.responder.key));
        assert_ne!(ours.initiator.key, ours.responder.key);
        let (secret, other) = (array(&"01".repeat(LEN)), [7; LEN]);
        for (secret, prologue) in
            [(secret, &b"what both know beforehand"[..]), (core::array::from_fn(|at| at as u8), b"?")]
        {
            assert!(respond(&secret, prologue, &other, &first).is_none());
        }
        for bit in 0..MESSAGE * 8 {
            let (initiator, mut first, _, mut second) = ends();
            first[bit / 8] ^= 1 << (bit % 8);
            second[bit / 8] ^= 1 << (bit % 8);
            let said = said();
            let secret = <[u8; LEN]>::try_from(&said["secret"][..]).unwrap();
            assert!(respond(&secret, &said["prologue"], &other, &first).is_none(), "bit {bit}");
            assert!(initiator.finish(&second).is_none(), "bit {bit}");
        }
    }
}
