//! SRTP and SRTCP of one transport: AEAD_AES_128_GCM, AEAD_AES_256_GCM (RFC 7714), AES128_CM_SHA1_80 (RFC 3711).
//!
//! ```text
//! SRTP   | header and extension (clear, authenticated) | payload (encrypted) | tag: 16 GCM, 10 SHA1 |
//! SRTCP  | header, sender SSRC: 8 bytes (clear) | rest (encrypted) | GCM tag 16 | E, index 31 | SHA1 tag 10 |
//! ```
//! [`Receiver`] and [`Sender`] are built from keys that DTLS exported, so unprotected media has no way into a room.
//! Not here, on purpose: MKI, key derivation rates, the null cipher.

use crate::crypto::{AesCtr, AesGcm, GCM_TAG, HmacSha1};
use crate::wire::rtp;
use std::collections::HashMap;

/// Protection profile as `use_srtp` names it (RFC 5764 §4.1.2, RFC 7714 §14.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    AeadAes128Gcm,
    AeadAes256Gcm,
    Aes128CmSha1_80,
}

impl Profile {
    pub fn name(self) -> &'static str {
        match self {
            Self::AeadAes128Gcm => "AEAD_AES_128_GCM",
            Self::AeadAes256Gcm => "AEAD_AES_256_GCM",
            Self::Aes128CmSha1_80 => "AES128_CM_SHA1_80",
        }
    }

    /// By its `use_srtp` number (RFC 5764 §4.1.2, RFC 7714 §14.2).
    pub fn from_use_srtp(number: u16) -> Option<Self> {
        match number {
            1 => Some(Self::Aes128CmSha1_80),
            7 => Some(Self::AeadAes128Gcm),
            8 => Some(Self::AeadAes256Gcm),
            _ => None,
        }
    }

    /// Master key and master salt, bytes.
    pub fn lengths(self) -> (usize, usize) {
        match self {
            Self::AeadAes128Gcm => (16, 12),
            Self::AeadAes256Gcm => (32, 12),
            Self::Aes128CmSha1_80 => (16, 14),
        }
    }

    /// Bytes that protection adds to an RTP packet.
    pub fn rtp_overhead(self) -> usize {
        match self {
            Self::AeadAes128Gcm | Self::AeadAes256Gcm => GCM_TAG,
            Self::Aes128CmSha1_80 => SHA1_TAG,
        }
    }
}

/// Why a packet did not come through. Each is a counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SrtpError {
    Malformed,
    /// Seen before, or older than the window.
    Replayed,
    Unauthentic,
    /// More sources than one transport may have.
    TooManySources,
}

const SHA1_TAG: usize = 10;
const SRTCP_INDEX: usize = 4;
/// Packets behind the newest that are still taken: a second of a 1 Mbit/s layer, for retransmissions on the same SSRC.
const WINDOW: u64 = 1024;
/// Sources that one transport may have in all its life: each keeps its window, or it could be replayed.
pub const SOURCES_MAX: usize = 1024;

/// Labels of the key derivation (RFC 3711 §4.3.2).
const RTP_LABELS: [u8; 3] = [0, 1, 2];
const RTCP_LABELS: [u8; 3] = [3, 4, 5];

enum Cipher {
    Gcm {
        aead: AesGcm,
        salt: [u8; 12],
    },
    /// Ten times as large, and of those few who do not know the other.
    CmSha1(Box<CmSha1>),
}

struct CmSha1 {
    ctr: AesCtr,
    auth: HmacSha1,
    salt: [u8; 14],
}

impl Cipher {
    /// `None` when the key lengths are not the profile's.
    fn derive(profile: Profile, master_key: &[u8], master_salt: &[u8], labels: [u8; 3]) -> Option<Self> {
        if (master_key.len(), master_salt.len()) != profile.lengths() {
            return None;
        }
        let prf = AesCtr::new(master_key)?;
        let expand = |label: u8, out: &mut [u8]| {
            let mut iv = [0; 16];
            iv[..master_salt.len()].copy_from_slice(master_salt);
            iv[7] ^= label;
            prf.apply(iv, out);
        };
        let [encryption, authentication, salting] = labels;
        let mut key = vec![0; master_key.len()];
        expand(encryption, &mut key);
        Some(match profile {
            Profile::AeadAes128Gcm | Profile::AeadAes256Gcm => {
                let mut salt = [0; 12];
                expand(salting, &mut salt);
                Self::Gcm { aead: AesGcm::new(&key)?, salt }
            }
            Profile::Aes128CmSha1_80 => {
                let (mut auth, mut salt) = ([0; 20], [0; 14]);
                expand(authentication, &mut auth);
                expand(salting, &mut salt);
                Self::CmSha1(Box::new(CmSha1 { ctr: AesCtr::new(&key)?, auth: HmacSha1::new(&auth), salt }))
            }
        })
    }

    /// RFC 7714 §8.1 and §9.1: `prefix` is 0, SSRC, then ROC and SEQ or the SRTCP index.
    fn gcm_iv(salt: &[u8; 12], ssrc: u32, index: u64) -> [u8; 12] {
        let mut iv = [0; 12];
        iv[2..6].copy_from_slice(&ssrc.to_be_bytes());
        iv[6..12].copy_from_slice(&index.to_be_bytes()[2..]);
        std::array::from_fn(|i| iv[i] ^ salt[i])
    }

    /// RFC 3711 §4.1.1: the last two bytes count blocks.
    fn cm_iv(salt: &[u8; 14], ssrc: u32, index: u64) -> [u8; 16] {
        let mut iv = [0; 16];
        iv[..14].copy_from_slice(salt);
        for (byte, s) in iv[4..8].iter_mut().zip(ssrc.to_be_bytes()) {
            *byte ^= s;
        }
        for (byte, s) in iv[8..14].iter_mut().zip(&index.to_be_bytes()[2..]) {
            *byte ^= s;
        }
        iv
    }
}

/// Newest index of a source and which of the ones before it came.
struct Replay {
    newest: u64,
    seen: [u64; WINDOW as usize / 64],
}

impl Replay {
    fn new(first: u64) -> Self {
        let mut replay = Self { newest: first, seen: [0; WINDOW as usize / 64] };
        replay.mark(first);
        replay
    }

    fn bit(index: u64) -> (usize, u64) {
        ((index % WINDOW / 64) as usize, 1 << (index % 64))
    }

    fn is_fresh(&self, index: u64) -> bool {
        let (word, bit) = Self::bit(index);
        index > self.newest || (self.newest - index < WINDOW && self.seen[word] & bit == 0)
    }

    fn mark(&mut self, index: u64) {
        if index > self.newest {
            if index - self.newest >= WINDOW {
                self.seen.fill(0);
            } else {
                for skipped in self.newest + 1..index {
                    let (word, bit) = Self::bit(skipped);
                    self.seen[word] &= !bit;
                }
            }
            self.newest = index;
        }
        let (word, bit) = Self::bit(index);
        self.seen[word] |= bit;
    }
}

/// The packet index nearest to what came before (RFC 3711 §3.3.1): 32 bits of roll-over counter, 16 of sequence.
fn nearest_index(newest: u64, sequence: u16) -> u64 {
    let distance = sequence.wrapping_sub(newest as u16) as i16;
    newest.checked_add_signed(i64::from(distance)).unwrap_or(u64::from(sequence))
}

/// Both halves from exported keying material: client key, server key, client salt, server salt (RFC 5764 §4.2).
/// `None` when its length is not the profile's.
pub fn from_exported(profile: Profile, material: &[u8], we_are_client: bool) -> Option<(Receiver, Sender)> {
    let (key_len, salt_len) = profile.lengths();
    if material.len() != 2 * (key_len + salt_len) {
        return None;
    }
    let (keys, salts) = material.split_at(2 * key_len);
    let (client, server) = ((&keys[..key_len], &salts[..salt_len]), (&keys[key_len..], &salts[salt_len..]));
    let (ours, theirs) = if we_are_client { (client, server) } else { (server, client) };
    Some((Receiver::new(profile, theirs.0, theirs.1)?, Sender::new(profile, ours.0, ours.1)?))
}

/// Unprotects what comes in.
pub struct Receiver {
    profile: Profile,
    rtp: Cipher,
    rtcp: Cipher,
    rtp_sources: HashMap<u32, Replay>,
    rtcp_sources: HashMap<u32, Replay>,
}

impl Receiver {
    /// `None` when the key lengths are not the profile's.
    pub fn new(profile: Profile, key: &[u8], salt: &[u8]) -> Option<Self> {
        Some(Self {
            profile,
            rtp: Cipher::derive(profile, key, salt, RTP_LABELS)?,
            rtcp: Cipher::derive(profile, key, salt, RTCP_LABELS)?,
            rtp_sources: HashMap::new(),
            rtcp_sources: HashMap::new(),
        })
    }

    pub fn profile(&self) -> Profile {
        self.profile
    }

    /// Decrypts an RTP packet in place; its header, the length of the plain packet, and its index.
    pub fn unprotect_rtp(&mut self, packet: &mut [u8]) -> Result<(rtp::Header, usize, u64), SrtpError> {
        let header = rtp::Header::read(packet).map_err(|_| SrtpError::Malformed)?;
        let known = self.rtp_sources.get(&header.ssrc);
        let index = known.map_or(u64::from(header.sequence), |r| nearest_index(r.newest, header.sequence));
        if known.is_some_and(|r| !r.is_fresh(index)) {
            return Err(SrtpError::Replayed);
        }
        if known.is_none() && self.rtp_sources.len() >= SOURCES_MAX {
            return Err(SrtpError::TooManySources);
        }
        let (clear, body) = packet.split_at_mut(header.len);
        let len = match &self.rtp {
            Cipher::Gcm { aead, salt } => {
                let iv = Cipher::gcm_iv(salt, header.ssrc, index);
                aead.open(iv, clear, body).ok_or(SrtpError::Unauthentic)?
            }
            Cipher::CmSha1(cm) => {
                let CmSha1 { ctr, auth, salt } = &**cm;
                let len = body.len().checked_sub(SHA1_TAG).ok_or(SrtpError::Malformed)?;
                let (payload, tag) = body.split_at_mut(len);
                let roc = ((index >> 16) as u32).to_be_bytes();
                if !auth.verify(&[clear, payload, &roc], tag) {
                    return Err(SrtpError::Unauthentic);
                }
                ctr.apply(Cipher::cm_iv(salt, header.ssrc, index), payload);
                len
            }
        };
        self.rtp_sources.entry(header.ssrc).or_insert_with(|| Replay::new(index)).mark(index);
        let len = header.len + len;
        Ok((header, len, index))
    }

    /// Decrypts a compound RTCP packet in place; its plain length.
    pub fn unprotect_rtcp(&mut self, packet: &mut [u8]) -> Result<usize, SrtpError> {
        let ssrc = crate::wire::be32(packet, 4).ok_or(SrtpError::Malformed)?;
        let known = self.rtcp_sources.get(&ssrc);
        if known.is_none() && self.rtcp_sources.len() >= SOURCES_MAX {
            return Err(SrtpError::TooManySources);
        }
        let tag_behind = match &self.rtcp {
            Cipher::Gcm { .. } => 0,
            Cipher::CmSha1(_) => SHA1_TAG,
        };
        let index_at = packet.len().checked_sub(SRTCP_INDEX + tag_behind).filter(|at| *at >= 8).ok_or(SrtpError::Malformed)?;
        let word = crate::wire::be32(packet, index_at).ok_or(SrtpError::Malformed)?;
        let (is_encrypted, index) = (word >> 31 == 1, u64::from(word & 0x7FFF_FFFF));
        if known.is_some_and(|r| !r.is_fresh(index)) {
            return Err(SrtpError::Replayed);
        }
        let len = match &self.rtcp {
            Cipher::Gcm { aead, salt } => {
                // An unencrypted packet would be all AAD (RFC 7714 §9.3); no browser sends one.
                if !is_encrypted {
                    return Err(SrtpError::Malformed);
                }
                let mut aad = [0; 12];
                aad[..8].copy_from_slice(&packet[..8]);
                aad[8..].copy_from_slice(&word.to_be_bytes());
                let iv = Cipher::gcm_iv(salt, ssrc, index);
                8 + aead.open(iv, &aad, &mut packet[8..index_at]).ok_or(SrtpError::Unauthentic)?
            }
            Cipher::CmSha1(cm) => {
                let CmSha1 { ctr, auth, salt } = &**cm;
                let (signed, tag) = packet.split_at_mut(index_at + SRTCP_INDEX);
                if !auth.verify(&[signed], tag) {
                    return Err(SrtpError::Unauthentic);
                }
                if is_encrypted {
                    ctr.apply(Cipher::cm_iv(salt, ssrc, index), &mut signed[8..index_at]);
                }
                index_at
            }
        };
        self.rtcp_sources.entry(ssrc).or_insert_with(|| Replay::new(index)).mark(index);
        Ok(len)
    }
}

/// Protects what goes out.
pub struct Sender {
    profile: Profile,
    rtp: Cipher,
    rtcp: Cipher,
    rtcp_index: u32,
}

impl Sender {
    /// `None` when the key lengths are not the profile's.
    pub fn new(profile: Profile, key: &[u8], salt: &[u8]) -> Option<Self> {
        Some(Self {
            profile,
            rtp: Cipher::derive(profile, key, salt, RTP_LABELS)?,
            rtcp: Cipher::derive(profile, key, salt, RTCP_LABELS)?,
            rtcp_index: 0,
        })
    }

    pub fn rtp_overhead(&self) -> usize {
        self.profile.rtp_overhead()
    }

    /// Reads what the next packet needs, as far as it is ours to read, so that it lies in the cache by then. The value means nothing.
    pub fn warm(&self) -> u64 {
        let salt = match &self.rtp {
            Cipher::Gcm { salt, .. } => salt[0],
            Cipher::CmSha1(cm) => cm.salt[0],
        };
        self.profile as u64 ^ u64::from(salt)
    }

    /// Encrypts in place. `packet` ends with [`Sender::rtp_overhead`] bytes of room for the tag; `index` is the
    /// extended sequence number of this SSRC, never used twice; the packet's header carries its low 16 bits.
    pub fn protect_rtp(&self, packet: &mut [u8], header_len: usize, ssrc: u32, index: u64) {
        let plain_len = packet.len() - self.rtp_overhead();
        let (signed, tag) = packet.split_at_mut(plain_len);
        match &self.rtp {
            Cipher::Gcm { aead, salt } => {
                let (clear, payload) = signed.split_at_mut(header_len);
                tag.copy_from_slice(&aead.seal(Cipher::gcm_iv(salt, ssrc, index), clear, payload));
            }
            Cipher::CmSha1(cm) => {
                let CmSha1 { ctr, auth, salt } = &**cm;
                ctr.apply(Cipher::cm_iv(salt, ssrc, index), &mut signed[header_len..]);
                let roc = ((index >> 16) as u32).to_be_bytes();
                tag.copy_from_slice(&auth.sign(&[signed, &roc])[..SHA1_TAG]);
            }
        }
    }

    /// Encrypts a compound packet, growing it by index and tag.
    pub fn protect_rtcp(&mut self, packet: &mut Vec<u8>) {
        let ssrc = crate::wire::be32(packet, 4).expect("we write whole packets");
        self.rtcp_index = (self.rtcp_index + 1) & 0x7FFF_FFFF;
        let index = u64::from(self.rtcp_index);
        let word = (0x8000_0000 | self.rtcp_index).to_be_bytes();
        match &self.rtcp {
            Cipher::Gcm { aead, salt } => {
                let mut aad = [0; 12];
                aad[..8].copy_from_slice(&packet[..8]);
                aad[8..].copy_from_slice(&word);
                let tag = aead.seal(Cipher::gcm_iv(salt, ssrc, index), &aad, &mut packet[8..]);
                packet.extend_from_slice(&tag);
                packet.extend_from_slice(&word);
            }
            Cipher::CmSha1(cm) => {
                let CmSha1 { ctr, auth, salt } = &**cm;
                ctr.apply(Cipher::cm_iv(salt, ssrc, index), &mut packet[8..]);
                packet.extend_from_slice(&word);
                let tag = auth.sign(&[packet]);
                packet.extend_from_slice(&tag[..SHA1_TAG]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
        digits.chunks(2).map(|d| u8::from_str_radix(std::str::from_utf8(d).expect("ascii"), 16).expect("hex")).collect()
    }

    #[test]
    fn rfc3711_b2_key_stream() {
        let ctr = AesCtr::new(&hex("2B7E151628AED2A6ABF7158809CF4F3C")).expect("16 bytes");
        let mut stream = [0; 48];
        ctr.apply(Cipher::cm_iv(&hex("F0F1F2F3F4F5F6F7F8F9FAFBFCFD").try_into().expect("14 bytes"), 0, 0), &mut stream);
        assert_eq!(stream[..], hex("E03EAD0935C95E80E166B16DD92B4EB4 D23513162B02D0F72A43A2FE4A5F97AB 41E95B3BB0A2E8DD477901E4FCA894C0"));
    }

    #[test]
    fn rfc3711_b3_key_derivation() {
        let prf = AesCtr::new(&hex("E1F97A0D3E018BE0D64FA32C06DE4139")).expect("16 bytes");
        let salt = hex("0EC675AD498AFEEBB6960B3AABE6");
        let rows =
            [(0, "C61E7A93744F39EE10734AFE3FF7A087"), (2, "30CBBC08863D8C85D49DB34A9AE1"), (1, "CEBE321F6FF7716B6FD4AB49AF256A156D38BAA4")];
        for (label, want) in rows {
            let want = hex(want);
            let mut iv = [0; 16];
            iv[..14].copy_from_slice(&salt);
            iv[7] ^= label;
            let mut got = vec![0; want.len()];
            prf.apply(iv, &mut got);
            assert_eq!(got, want, "label {label}");
        }
    }

    /// The RTP packet of RFC 7714 §16: ROC 0, sequence 0xF17B, SSRC 0xCAFEBABE.
    const PLAIN: &str = "8040f17b8041f8d35501a0b247616c6c696120657374206f6d6e69732064697669736120696e207061727465732074726573";

    #[test]
    fn rfc7714_16_1_and_16_2_srtp() {
        let rows = [
            (
                "000102030405060708090a0b0c0d0e0f",
                "8040f17b8041f8d35501a0b2f24de3a3fb34de6cacba861c9d7e4bcabe633bd50d294e6f42a5f47a51c7d19b36de3adf8833899d7f27beb16a9152cf765ee4390cce",
            ),
            (
                "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f",
                "8040f17b8041f8d35501a0b232b1de78a822fe12ef9f78fa332e33aab18012389a58e2f3b50b2a0276ffae0f1ba63799b87b7aa3db36dfffd6b0f9bb7878d7a76c13",
            ),
        ];
        for (key, want) in rows {
            let (plain, want) = (hex(PLAIN), hex(want));
            // The RFC's vectors use the session key itself: no derivation.
            let salt: [u8; 12] = hex("517569642070726f2071756f").try_into().expect("12 bytes");
            let sender = Sender {
                profile: Profile::AeadAes128Gcm,
                rtp: Cipher::Gcm { aead: AesGcm::new(&hex(key)).expect("a key"), salt },
                rtcp: Cipher::Gcm { aead: AesGcm::new(&hex(key)).expect("a key"), salt },
                rtcp_index: 0,
            };
            let mut packet = [plain, vec![0; 16]].concat();
            sender.protect_rtp(&mut packet, 12, 0x5501_a0b2, 0xf17b);
            assert_eq!(packet, want);
        }
    }

    #[test]
    fn rfc7714_17_1_srtcp() {
        let key = hex("000102030405060708090a0b0c0d0e0f");
        let salt: [u8; 12] = hex("517569642070726f2071756f").try_into().expect("12 bytes");
        let cipher = || Cipher::Gcm { aead: AesGcm::new(&key).expect("a key"), salt };
        let mut sender = Sender { profile: Profile::AeadAes128Gcm, rtp: cipher(), rtcp: cipher(), rtcp_index: 0x5d3 };
        let mut packet = hex("81c8000d4d6172734e5450314e545032525450200000042a0000e9304c756e61deadbeefdeadbeefdeadbeefdeadbeefdeadbeef");
        sender.protect_rtcp(&mut packet);
        let want = hex(
            "81c8000d4d61727363e94885dcdab67ca727d7662f6b7e997ff5c0f76c06f32dc676a5f1730d6fda4ce09b4686303ded0bb9275bc84aa45896cf4d2fc5abf87245d9eade800005d4",
        );
        assert_eq!(packet, want);
    }

    const ALL: [Profile; 3] = [Profile::AeadAes128Gcm, Profile::AeadAes256Gcm, Profile::Aes128CmSha1_80];

    fn pair(profile: Profile) -> (Sender, Receiver) {
        let (key, salt) = profile.lengths();
        let (key, salt) = (vec![7; key], vec![9; salt]);
        (Sender::new(profile, &key, &salt).expect("lengths fit"), Receiver::new(profile, &key, &salt).expect("lengths fit"))
    }

    fn packet(sender: &Sender, index: u64) -> Vec<u8> {
        let mut bytes = vec![0x80, 96];
        bytes.extend_from_slice(&(index as u16).to_be_bytes());
        bytes.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 2]);
        bytes.extend_from_slice(b"payload");
        bytes.resize(bytes.len() + sender.rtp_overhead(), 0);
        sender.protect_rtp(&mut bytes, 12, 2, index);
        bytes
    }

    #[test]
    fn media_crosses_the_roll_over_once_and_unharmed() {
        for profile in ALL {
            let (sender, mut receiver) = pair(profile);
            for index in [65_530, 65_535, 65_536, 65_534, 65_540, 131_072 + 3] {
                // A receiver follows gaps of less than half the sequence space.
                if index > 100_000 {
                    for step in [98_000, 120_000] {
                        receiver.unprotect_rtp(&mut packet(&sender, step)).expect("a step between");
                    }
                }
                let mut bytes = packet(&sender, index);
                let (header, len, _) = receiver.unprotect_rtp(&mut bytes.clone()).expect("authentic");
                assert_eq!((header.sequence, len), (index as u16, 19), "{profile:?} {index}");
                assert_eq!(receiver.unprotect_rtp(&mut bytes), Err(SrtpError::Replayed), "{profile:?} {index}");
            }
        }
    }

    #[test]
    fn a_changed_bit_is_found_everywhere() {
        for profile in ALL {
            let (mut sender, mut receiver) = pair(profile);
            let good = packet(&sender, 5);
            for at in 1..good.len() {
                let mut bad = good.clone();
                bad[at] ^= 0x10;
                assert!(receiver.unprotect_rtp(&mut bad).is_err(), "{profile:?} byte {at}");
            }
            let mut rtcp = Vec::new();
            crate::wire::rtcp::write_pli(&mut rtcp, 1, 2);
            let plain = rtcp.clone();
            sender.protect_rtcp(&mut rtcp);
            for at in 4..rtcp.len() {
                let mut bad = rtcp.clone();
                bad[at] ^= 0x10;
                assert!(receiver.unprotect_rtcp(&mut bad).is_err(), "{profile:?} byte {at}");
            }
            let mut copy = rtcp.clone();
            let len = receiver.unprotect_rtcp(&mut copy).expect("authentic");
            assert_eq!(copy[..len], plain);
            assert_eq!(receiver.unprotect_rtcp(&mut rtcp), Err(SrtpError::Replayed));
        }
    }

    #[test]
    fn damage_never_panics() {
        let mut dice = crate::base::rng::Rng::new(5);
        for profile in ALL {
            let (_, mut receiver) = pair(profile);
            for _ in 0..5_000 {
                let mut bytes: Vec<u8> = (0..dice.below(64)).map(|_| dice.next_u64() as u8).collect();
                if let Some(first) = bytes.first_mut() {
                    *first = 0x80 | *first & 0x3F;
                }
                assert!(receiver.unprotect_rtp(&mut bytes.clone()).is_err());
                assert!(receiver.unprotect_rtcp(&mut bytes).is_err());
            }
        }
    }
}
