//! Keyed maths: HMAC, MD5 for TURN's long-term key, AEAD, AES counter mode, constant-time compare, secret dice.
//!
//! SHA-1 and MD5 stand here because STUN (RFC 8489) and SRTP (RFC 3711) name them; nothing else may use them.
//! `SecretRng` has two faces: the operating system's, and a seeded one that makes a simulation repeatable.

use aws_lc_rs::cipher::{EncryptingKey, EncryptionContext, UnboundCipherKey};
use aws_lc_rs::{aead, cipher, constant_time, digest, hmac as lc_hmac, iv};
use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;

/// HMAC-SHA1 with its key schedule prepared (RFC 2104): STUN's MESSAGE-INTEGRITY, SRTP's tag, TURN REST passwords.
#[derive(Clone)]
pub struct HmacSha1(Hmac<Sha1>);

impl HmacSha1 {
    pub fn new(key: &[u8]) -> Self {
        Self(<Hmac<Sha1> as KeyInit>::new_from_slice(key).expect("HMAC takes keys of every length"))
    }

    /// The tag over `parts` in order.
    pub fn sign(&self, parts: &[&[u8]]) -> [u8; 20] {
        let mut mac = self.0.clone();
        for part in parts {
            mac.update(part);
        }
        mac.finalize().into_bytes().into()
    }

    /// Whether `tag` (the first bytes of the HMAC, any length up to 20) fits. Constant time.
    pub fn verify(&self, parts: &[&[u8]], tag: &[u8]) -> bool {
        let want = self.sign(parts);
        tag.len() <= want.len() && equal(&want[..tag.len()], tag)
    }
}

/// HMAC-SHA256 over `parts` in order: nonces, minted credentials, derived keys.
pub fn hmac_sha256(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let mut ctx = lc_hmac::Context::with_key(&lc_hmac::Key::new(lc_hmac::HMAC_SHA256, key));
    for part in parts {
        ctx.update(part);
    }
    ctx.sign().as_ref().try_into().expect("SHA-256 gives 32 bytes")
}

/// SHA-256 over `parts` in order.
pub fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let mut ctx = digest::Context::new(&digest::SHA256);
    for part in parts {
        ctx.update(part);
    }
    ctx.finish().as_ref().try_into().expect("SHA-256 gives 32 bytes")
}

/// TURN's long-term key: MD5(username ":" realm ":" password) (RFC 8489 §9.2.2).
pub fn long_term_key(username: &[u8], realm: &[u8], password: &[u8]) -> [u8; 16] {
    use md5::Digest;
    let mut md5 = md5::Md5::new();
    for part in [username, b":", realm, b":", password] {
        md5.update(part);
    }
    md5.finalize().into()
}

/// Digest by the hash name of RFC 8122 §5; `None` for a hash we do not trust.
pub fn digest(hash: &str, bytes: &[u8]) -> Option<Vec<u8>> {
    let algorithm = match hash {
        "sha-256" => &digest::SHA256,
        "sha-384" => &digest::SHA384,
        "sha-512" => &digest::SHA512,
        _ => return None,
    };
    Some(digest::digest(algorithm, bytes).as_ref().to_vec())
}

/// Equality whose time does not depend on where the bytes differ.
pub fn equal(a: &[u8], b: &[u8]) -> bool {
    constant_time::verify_slices_are_equal(a, b).is_ok()
}

/// Length of an AES-GCM tag, bytes.
pub const GCM_TAG: usize = 16;

/// AES-128-GCM or AES-256-GCM, chosen by the key's length.
pub struct AesGcm(aead::LessSafeKey);

impl AesGcm {
    /// `None` unless the key has 16 or 32 bytes.
    pub fn new(key: &[u8]) -> Option<Self> {
        let algorithm = match key.len() {
            16 => &aead::AES_128_GCM,
            32 => &aead::AES_256_GCM,
            _ => return None,
        };
        Some(Self(aead::LessSafeKey::new(aead::UnboundKey::new(algorithm, key).ok()?)))
    }

    /// Encrypts in place and returns the tag. The caller never repeats `iv` under one key.
    pub fn seal(&self, iv: [u8; 12], aad: &[u8], bytes: &mut [u8]) -> [u8; GCM_TAG] {
        let nonce = aead::Nonce::assume_unique_for_key(iv);
        let tag = self.0.seal_in_place_separate_tag(nonce, aead::Aad::from(aad), bytes).expect("a packet is far below the limit of GCM");
        tag.as_ref().try_into().expect("GCM's tag has 16 bytes")
    }

    /// Decrypts `bytes` (ciphertext, then tag) in place; the plaintext's length, or `None` when the tag does not fit.
    pub fn open(&self, iv: [u8; 12], aad: &[u8], bytes: &mut [u8]) -> Option<usize> {
        let nonce = aead::Nonce::assume_unique_for_key(iv);
        self.0.open_in_place(nonce, aead::Aad::from(aad), bytes).ok().map(|plain| plain.len())
    }
}

/// AES-128 in counter mode (RFC 3711 §4.1.1) with its key schedule kept.
pub struct AesCtr(EncryptingKey);

impl AesCtr {
    /// `None` unless the key has 16 or 32 bytes.
    pub fn new(key: &[u8]) -> Option<Self> {
        let algorithm = match key.len() {
            16 => &cipher::AES_128,
            32 => &cipher::AES_256,
            _ => return None,
        };
        Some(Self(EncryptingKey::ctr(UnboundCipherKey::new(algorithm, key).ok()?).ok()?))
    }

    /// XORs the key stream that starts at counter block `iv` into `bytes`.
    pub fn apply(&self, iv: [u8; 16], bytes: &mut [u8]) {
        let context = EncryptionContext::Iv128(iv::FixedLength::from(iv));
        self.0.less_safe_encrypt(bytes, context).expect("counter mode takes every length");
    }
}

/// Dice for secrets: ICE passwords, session ids, SSRCs. Does not convert from or to `base::rng::Rng`.
pub struct SecretRng(Face);

enum Face {
    System,
    Seeded { key: [u8; 32], counter: u64 },
}

impl SecretRng {
    /// The operating system's generator.
    pub fn system() -> Self {
        Self(Face::System)
    }

    /// Repeatable bytes for simulation. Never in a running server.
    pub fn seeded(seed: u64) -> Self {
        Self(Face::Seeded { key: hmac_sha256(b"postern simulation", &[&seed.to_be_bytes()]), counter: 0 })
    }

    pub fn fill(&mut self, out: &mut [u8]) {
        match &mut self.0 {
            Face::System => aws_lc_rs::rand::fill(out).expect("the system's random generator works"),
            Face::Seeded { key, counter } => {
                for chunk in out.chunks_mut(32) {
                    *counter += 1;
                    chunk.copy_from_slice(&hmac_sha256(key, &[&counter.to_be_bytes()])[..chunk.len()]);
                }
            }
        }
    }

    pub fn u64(&mut self) -> u64 {
        let mut bytes = [0; 8];
        self.fill(&mut bytes);
        u64::from_be_bytes(bytes)
    }

    /// `len` characters of `[A-Za-z0-9+/]`, six bits each: the ice-char set of RFC 8839 §5.4.
    pub fn ice_chars(&mut self, len: usize) -> String {
        const SET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        self.chars(len, SET)
    }

    /// `len` letters of 32 that are not mixed up, five bits each, for ids that people see.
    pub fn id_chars(&mut self, len: usize) -> String {
        const SET: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyzABCDEFGH";
        self.chars(len, SET)
    }

    fn chars(&mut self, len: usize, set: &[u8]) -> String {
        let mut bytes = vec![0; len];
        self.fill(&mut bytes);
        bytes.iter().map(|b| char::from(set[usize::from(*b) % set.len()])).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_term_key_of_the_rfc_example() {
        // RFC 8489 §9.2.2: "user" "realm" "pass".
        let want = "8493fbc53ba582fb4c044c456bdc40eb";
        let got: String = long_term_key(b"user", b"realm", b"pass").iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(got, want);
    }

    #[test]
    fn a_seeded_generator_repeats_and_the_system_one_does_not() {
        assert_eq!(SecretRng::seeded(7).u64(), SecretRng::seeded(7).u64());
        assert_ne!(SecretRng::seeded(7).u64(), SecretRng::seeded(8).u64());
        assert_ne!(SecretRng::system().u64(), SecretRng::system().u64());
    }

    #[test]
    fn hmac_refuses_a_longer_or_changed_tag() {
        let key = HmacSha1::new(b"key");
        let tag = key.sign(&[b"a", b"b"]);
        assert!(key.verify(&[b"ab"], &tag));
        assert!(key.verify(&[b"ab"], &tag[..10]));
        assert!(!key.verify(&[b"ac"], &tag));
        assert!(!key.verify(&[b"ab"], &[tag.as_slice(), &[0]].concat()));
    }
}
