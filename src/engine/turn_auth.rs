//! Who may use the relay: the long-term mechanism of STUN (RFC 8489 §9.2), without state per client.
//!
//! Three kinds of credentials:
//! * minted at join: username `<expiry>:p1.<participant sid>.<worker>`, password an HMAC under a label of its own;
//! * REST: username `<expiry>[:<name>]`, password base64(HMAC-SHA1(shared secret, username));
//! * static users of the config.
//!
//! A nonce is `obMatJos2 ‖ features(24 bits) ‖ time(18 bits, 4 s each) ‖ HMAC-SHA256(key, features ‖ time ‖ client)[..6]` in
//! base64 (RFC 8489 §9.2): it holds on every worker, after a restart and on every node with the same keys. It is short because
//! a challenge goes to whoever is named as its receiver. Browsers treat a 438 on Allocate as fatal, so nothing else may make
//! one fail.

use crate::base::id::ClientAddr;
use crate::base::time::UnixTime;
use crate::crypto::{self, HmacSha1};
use crate::wire::stun::{Integrity, Message, Writer, attr};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use std::collections::{BTreeMap, HashMap};

/// How long a nonce is good, seconds: RFC 8656 §5 asks for an hour at most.
pub const NONCE_LIFETIME_S: u64 = 3600;
/// How long a minted credential is good, seconds: an ICE restart late in a long call must still work.
pub const MINTED_LIFETIME_S: u64 = 12 * 3600;
/// Longest username (RFC 8489 §14.3), bytes.
const USERNAME_MAX: usize = 508;

/// What a nonce begins with when it speaks of features (RFC 8489 §9.2).
const COOKIE: &str = "obMatJos2";
const FEATURE_PASSWORD_ALGORITHMS: u32 = 1 << 23;
const FEATURE_USERNAME_ANONYMITY: u32 = 1 << 22;
/// Characters that carry the features, and those with time and tag.
const FEATURES_LEN: usize = 4;
const STAMP_LEN: usize = 11;
/// Seconds of one step of a nonce's time, and bits that count them.
const STEP_S: u64 = 4;
const TIME_BITS: u32 = 18;
const TAG_BITS: u32 = 48;

/// PASSWORD-ALGORITHMS as we offer it: SHA-256 before MD5 (RFC 8489 §18.5).
const ALGORITHMS: [u8; 8] = [0, 2, 0, 0, 0, 1, 0, 0];

/// Why a request is not believed. One code on the wire each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthRefusal {
    /// No integrity, unknown or expired user, wrong realm or password: all look the same from outside.
    Unauthenticated,
    /// Integrity without username, realm or nonce; algorithms that were not offered.
    Incomplete,
    StaleNonce,
}

/// The key that a password becomes (RFC 8489 §9.2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LongTermKey {
    Md5([u8; 16]),
    Sha256([u8; 32]),
}

impl LongTermKey {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Md5(key) => key,
            Self::Sha256(key) => key,
        }
    }
}

/// Signs answers as the request was signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signer {
    key: LongTermKey,
    with_sha256: bool,
}

impl Signer {
    pub fn key(&self) -> LongTermKey {
        self.key
    }

    pub fn sign(&self, answer: &mut Writer<'_>) {
        if self.with_sha256 {
            answer.integrity_sha256(|bytes| crypto::hmac_sha256(self.key.bytes(), &[bytes]));
        } else {
            answer.integrity(|bytes| HmacSha1::new(self.key.bytes()).sign(&[bytes]));
        }
    }

    fn fits(&self, integrity: &Integrity<'_>) -> bool {
        let parts = [&integrity.header[..], integrity.rest];
        if self.with_sha256 {
            let want = crypto::hmac_sha256(self.key.bytes(), &parts);
            crypto::equal(&want[..integrity.tag.len()], integrity.tag)
        } else {
            HmacSha1::new(self.key.bytes()).verify(&parts, integrity.tag)
        }
    }
}

/// Proof that a request came from a known user. Only [`Secrets::authenticate`] makes one.
pub struct Authenticated<'a> {
    username: &'a [u8],
    realm: &'a str,
    signer: Signer,
}

/// Whose allocation is there, and with which key it was made.
#[derive(Clone, Copy)]
pub struct Known<'a> {
    pub username: &'a [u8],
    pub realm: &'a str,
    pub key: LongTermKey,
}

impl<'a> Authenticated<'a> {
    pub fn username(&self) -> &'a [u8] {
        self.username
    }

    pub fn realm(&self) -> &'a str {
        self.realm
    }

    /// Signs answers; its key stands for the user on an allocation.
    pub fn signer(&self) -> Signer {
        self.signer
    }
}

/// The part of a username that stays the same when it is made anew; none of an expiry that names nobody.
fn stable_name(username: &[u8]) -> Option<&[u8]> {
    match username.iter().position(|b| !b.is_ascii_digit()) {
        Some(colon) if username[colon] == b':' => Some(&username[colon + 1..]).filter(|name| !name.is_empty()),
        Some(_) => Some(username),
        None => None,
    }
}

/// Until when a username is good, if it says so.
fn expiry_of(username: &str) -> Option<u64> {
    username.split_once(':').map_or(username, |(expiry, _)| expiry).parse().ok()
}

/// The participant that a minted username is bound to.
pub fn participant_of(username: &[u8]) -> Option<&str> {
    let (_, name) = std::str::from_utf8(username).ok()?.split_once(':')?;
    name.strip_prefix("p1.")?.rsplit_once('.').map(|(sid, _worker)| sid)
}

/// Who is known in one realm.
#[derive(Clone, Default)]
pub struct Realm {
    shared: Vec<HmacSha1>,
    users: HashMap<String, String>,
    /// Names of users by their hash (RFC 8489 §14.4), where users may hide theirs.
    hashes: HashMap<[u8; 32], String>,
}

impl Realm {
    /// `shared` are the secrets of REST credentials, any of which is good; `hides_names` accepts USERHASH.
    pub fn new(name: &str, shared: &[String], users: &HashMap<String, String>, hides_names: bool) -> Self {
        let hashed = |user: &String| (crypto::sha256(&[user.as_bytes(), b":", name.as_bytes()]), user.clone());
        Self {
            shared: shared.iter().map(|s| HmacSha1::new(s.as_bytes())).collect(),
            users: users.clone(),
            hashes: if hides_names { users.keys().map(hashed).collect() } else { HashMap::new() },
        }
    }
}

/// Everything that credentials and nonces are made from.
#[derive(Clone)]
pub struct Secrets {
    nonce_key: [u8; 32],
    mint_key: [u8; 32],
    tally_key: [u8; 32],
    /// The realm of whoever names none.
    realm: String,
    realms: BTreeMap<String, Realm>,
    features: u32,
}

impl Secrets {
    /// `master` is the deployment's own secret; equal masters accept each other's nonces and minted credentials, which are
    /// good in `realm`, the first.
    pub fn new(realm: &str, master: &[u8], shared: &[String], users: &HashMap<String, String>) -> Self {
        Self {
            nonce_key: crypto::hmac_sha256(master, &[b"postern turn nonce v1"]),
            mint_key: crypto::hmac_sha256(master, &[b"postern turn credential v1"]),
            tally_key: crypto::hmac_sha256(master, &[b"postern turn tally v1"]),
            realm: realm.to_owned(),
            realms: BTreeMap::from([(realm.to_owned(), Realm::new(realm, shared, users, false))]),
            features: FEATURE_PASSWORD_ALGORITHMS,
        }
    }

    /// One more realm, or the first one anew.
    pub fn with_realm(mut self, name: &str, realm: Realm) -> Self {
        if !realm.hashes.is_empty() {
            self.features |= FEATURE_USERNAME_ANONYMITY;
        }
        self.realms.insert(name.to_owned(), realm);
        self
    }

    pub fn realm(&self) -> &str {
        &self.realm
    }

    /// The realm of a client that asked for this server name by TLS (RFC 6066 §3): that of the name, if there is one.
    pub fn realm_for(&self, server_name: Option<&str>) -> &str {
        let known = server_name.and_then(|name| self.realms.get_key_value(name));
        known.map_or(&self.realm, |(name, _)| name)
    }

    /// Username and password for one participant, good until `expires`.
    pub fn mint(&self, participant: &str, worker: u8, expires: u64) -> (String, String) {
        let username = format!("{expires}:p1.{participant}.{worker}");
        let password = self.minted_password(&username);
        (username, password)
    }

    fn minted_password(&self, username: &str) -> String {
        BASE64.encode(&crypto::hmac_sha256(&self.mint_key, &[username.as_bytes()])[..24])
    }

    /// Whom a quota counts: a new expiry is not a new user. None if the credentials say nothing but their expiry.
    pub fn quota_name<'a>(&self, user: &Authenticated<'a>) -> Option<&'a [u8]> {
        let is_fixed = |realm: &Realm| std::str::from_utf8(user.username).is_ok_and(|name| realm.users.contains_key(name));
        if self.realms.get(user.realm).is_some_and(is_fixed) { Some(user.username) } else { stable_name(user.username) }
    }

    /// What somebody is counted under: nobody can choose names so that two are one.
    pub fn tally(&self, kind: &[u8], name: &[u8]) -> u64 {
        let tag = crypto::hmac_sha256(&self.tally_key, &[kind, name]);
        u64::from_be_bytes(tag[..8].try_into().expect("shorter than SHA-256"))
    }

    /// REALM, NONCE and what goes with them.
    pub fn challenge(&self, wall: UnixTime, client: ClientAddr, realm: &str, answer: &mut Writer<'_>) {
        answer.attribute(attr::REALM, realm.as_bytes()).attribute(attr::NONCE, self.nonce(wall, client).as_bytes());
        answer.attribute(attr::PASSWORD_ALGORITHMS, &ALGORITHMS);
    }

    /// A nonce for this client at this time.
    pub fn nonce(&self, wall: UnixTime, client: ClientAddr) -> String {
        let time = wall.as_secs() / STEP_S % (1 << TIME_BITS);
        let stamp = u128::from(time) << TAG_BITS | u128::from(self.nonce_tag(self.features, time, client));
        let mut nonce = COOKIE.to_owned();
        write_base64(&mut nonce, u128::from(self.features), FEATURES_LEN);
        write_base64(&mut nonce, stamp, STAMP_LEN);
        nonce
    }

    fn nonce_tag(&self, features: u32, time: u64, client: ClientAddr) -> u64 {
        let address = client.0.to_string();
        let tag = crypto::hmac_sha256(&self.nonce_key, &[&features.to_be_bytes(), &time.to_be_bytes(), address.as_bytes()]);
        u64::from_be_bytes(tag[..8].try_into().expect("shorter than SHA-256")) >> (64 - TAG_BITS)
    }

    fn nonce_is_good(&self, wall: UnixTime, client: ClientAddr, nonce: &[u8]) -> bool {
        let Some(rest) = nonce.strip_prefix(COOKIE.as_bytes()).filter(|rest| rest.len() == FEATURES_LEN + STAMP_LEN) else { return false };
        let (Some(features), Some(stamp)) = (read_base64(&rest[..FEATURES_LEN]), read_base64(&rest[FEATURES_LEN..])) else { return false };
        let (time, tag) = ((stamp >> TAG_BITS) as u64, stamp as u64 & ((1 << TAG_BITS) - 1));
        let age = (wall.as_secs() / STEP_S).wrapping_sub(time) % (1 << TIME_BITS);
        let want = self.nonce_tag(features as u32, time, client);
        crypto::equal(&tag.to_be_bytes(), &want.to_be_bytes()) && age < NONCE_LIFETIME_S / STEP_S
    }

    /// Checks a request in the order of RFC 8489 §9.2.4. `must_be_current` refuses expired users. An allocation that is there
    /// (`known`) may be used with the credentials that it was made with, whatever else became of them since.
    pub fn authenticate<'a>(
        &'a self,
        wall: UnixTime,
        client: ClientAddr,
        request: &Message<'a>,
        must_be_current: bool,
        known: Option<Known<'_>>,
    ) -> Result<Authenticated<'a>, AuthRefusal> {
        let sha256 = request.integrity_sha256();
        let with_sha256 = sha256.is_some();
        let integrity = sha256.or_else(|| request.integrity()).ok_or(AuthRefusal::Unauthenticated)?;
        let realm_name = request.get(attr::REALM).ok_or(AuthRefusal::Incomplete)?;
        let realm_text = std::str::from_utf8(realm_name).unwrap_or_default();
        let nonce = request.get(attr::NONCE).ok_or(AuthRefusal::Incomplete)?;
        let realm = self.realms.get(realm_text);
        let username = match (request.get(attr::USERNAME), request.get(attr::USERHASH)) {
            (Some(username), _) => username,
            (None, Some(hash)) if self.features & FEATURE_USERNAME_ANONYMITY != 0 => {
                let user = <[u8; 32]>::try_from(hash).ok().and_then(|hash| realm?.hashes.get(&hash));
                user.map_or(&b""[..], |user| user.as_bytes())
            }
            (None, _) => return Err(AuthRefusal::Incomplete),
        };
        let is_sha256_key = match (request.get(attr::PASSWORD_ALGORITHM), request.get(attr::PASSWORD_ALGORITHMS)) {
            (None, None) => false,
            (Some([0, 1, 0, 0]), Some(offered)) if *offered == ALGORITHMS => false,
            (Some([0, 2, 0, 0]), Some(offered)) if *offered == ALGORITHMS => true,
            _ => return Err(AuthRefusal::Incomplete),
        };
        if !self.nonce_is_good(wall, client, nonce) {
            return Err(AuthRefusal::StaleNonce);
        }
        let signer = |password: &[u8]| {
            let key = if is_sha256_key {
                LongTermKey::Sha256(crypto::sha256(&[username, b":", realm_name, b":", password]))
            } else {
                LongTermKey::Md5(crypto::long_term_key(username, realm_name, password))
            };
            Signer { key, with_sha256 }
        };
        // A participant's end with its stay.
        let may_expire = participant_of(username).is_none() || realm_text != self.realm;
        let has_expired =
            || may_expire && std::str::from_utf8(username).ok().and_then(expiry_of).is_some_and(|expiry| expiry < wall.as_secs());
        let is_same = |known: &Known<'_>| known.username == username && known.realm == realm_text;
        if let Some(known) = known.filter(|known| is_same(known) && !(must_be_current && has_expired())) {
            let signer = Signer { key: known.key, with_sha256 };
            if signer.fits(&integrity) {
                return Ok(Authenticated { username, realm: realm_text, signer });
            }
        }
        let candidates = self.candidates(wall, realm, realm_name, username, must_be_current);
        // Every candidate is tried, whoever asks: neither bytes nor time tell an unknown user from a wrong password.
        let mut found = None;
        for (password, is_real) in &candidates {
            let signer = signer(password.as_bytes());
            if signer.fits(&integrity) && *is_real {
                found = Some(signer);
            }
        }
        found.map(|signer| Authenticated { username, realm: realm_text, signer }).ok_or(AuthRefusal::Unauthenticated)
    }

    /// Passwords that `username` may have: one for each shared secret while they rotate. As many as that come for everybody,
    /// made by as many HMACs; those that are nobody's are marked.
    fn candidates(
        &self,
        wall: UnixTime,
        realm: Option<&Realm>,
        realm_name: &[u8],
        username: &[u8],
        must_be_current: bool,
    ) -> Vec<(String, bool)> {
        let nobody = Realm::default();
        let of = realm.unwrap_or(&nobody);
        let name = std::str::from_utf8(username).ok().filter(|u| u.len() <= USERNAME_MAX).unwrap_or("");
        let rest: Vec<String> = of.shared.iter().map(|s| BASE64.encode(s.sign(&[name.as_bytes()]))).collect();
        let minted = self.minted_password(name);
        let label = name.split_once(':').map_or("", |(_, label)| label);
        let is_current = expiry_of(name).is_some_and(|expiry| expiry >= wall.as_secs() || !must_be_current);
        let is_minted = label.starts_with("p1.") && realm_name == self.realm.as_bytes();
        let fixed = of.users.get(name).filter(|_| !name.is_empty());
        let mut candidates: Vec<(String, bool)> = match fixed {
            Some(password) => vec![(password.clone(), true)],
            None if is_minted => vec![(minted, is_current)],
            // What begins like a minted name is never a REST name: a shared secret mints nothing.
            None => rest.into_iter().map(|password| (password, is_current && !label.starts_with("p1."))).collect(),
        };
        candidates.resize(of.shared.len().max(1), (String::new(), false));
        candidates
    }
}

const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// The lowest `6 * len` bits of a number.
fn write_base64(out: &mut String, bits: u128, len: usize) {
    out.extend((0..len).rev().map(|at| char::from(DIGITS[(bits >> (6 * at)) as usize & 63])));
}

fn read_base64(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0, |bits, digit| {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        Some(bits << 6 | u128::from(value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::stun::{Class, Method, TransactionId};

    const WALL: UnixTime = UnixTime::from_nanos(1_000_000 * 1_000_000_000);

    fn client(port: u16) -> ClientAddr {
        ClientAddr(([192, 0, 2, 1], port).into())
    }

    fn users() -> HashMap<String, String> {
        HashMap::from([("alice".to_owned(), "wonder".to_owned())])
    }

    fn secrets() -> Secrets {
        let other = Realm::new("other", &["third".into()], &HashMap::from([("carol".to_owned(), "sing".to_owned())]), true);
        Secrets::new("realm", b"master", &["new".into(), "old".into()], &users()).with_realm("other", other)
    }

    fn request(username: &str, realm: &str, nonce: &str, password: &str) -> Vec<u8> {
        let key = crypto::long_term_key(username.as_bytes(), realm.as_bytes(), password.as_bytes());
        let mut out = Vec::new();
        Writer::new(&mut out, Method::Allocate, Class::Request, TransactionId([1; 12]))
            .attribute(attr::USERNAME, username.as_bytes())
            .attribute(attr::REALM, realm.as_bytes())
            .attribute(attr::NONCE, nonce.as_bytes())
            .integrity(|b| HmacSha1::new(&key).sign(&[b]));
        out
    }

    fn judge(bytes: &[u8], must_be_current: bool) -> Result<(), AuthRefusal> {
        let message = Message::decode(bytes).expect("well-formed");
        secrets().authenticate(WALL, client(1), &message, must_be_current, None).map(|_| ())
    }

    #[test]
    fn who_is_believed() {
        let s = secrets();
        let nonce = s.nonce(WALL, client(1));
        let rest = |secret: &str, name: &str| BASE64.encode(HmacSha1::new(secret.as_bytes()).sign(&[name.as_bytes()]));
        let (minted, minted_password) = s.mint("PA_1", 3, 1_000_500);
        let (late, late_password) = s.mint("PA_1", 3, 999_999);
        const NO: Result<(), AuthRefusal> = Err(AuthRefusal::Unauthenticated);
        let rows: &[(&str, Vec<u8>, bool, Result<(), AuthRefusal>)] = &[
            ("static", request("alice", "realm", &nonce, "wonder"), true, Ok(())),
            ("static, wrong", request("alice", "realm", &nonce, "x"), true, NO),
            ("unknown", request("bob", "realm", &nonce, ""), true, NO),
            ("empty name", request("", "realm", &nonce, ""), true, NO),
            ("another realm's", request("alice", "other", &nonce, "wonder"), true, NO),
            ("a realm that is none", request("alice", "third", &nonce, "wonder"), true, NO),
            ("second realm", request("carol", "other", &nonce, "sing"), true, Ok(())),
            ("second realm, REST", request("1000500:u", "other", &nonce, &rest("third", "1000500:u")), true, Ok(())),
            ("minted is of the first realm", request(&minted, "other", &nonce, &minted_password), true, NO),
            ("REST", request("1000500:u", "realm", &nonce, &rest("new", "1000500:u")), true, Ok(())),
            ("REST, no name", request("1000500", "realm", &nonce, &rest("new", "1000500")), true, Ok(())),
            ("REST, older secret", request("1000500:u", "realm", &nonce, &rest("old", "1000500:u")), true, Ok(())),
            ("REST, unknown secret", request("1000500:u", "realm", &nonce, &rest("x", "1000500:u")), true, NO),
            ("REST, late", request("999999:u", "realm", &nonce, &rest("new", "999999:u")), true, NO),
            ("minted", request(&minted, "realm", &nonce, &minted_password), true, Ok(())),
            ("minted, late", request(&late, "realm", &nonce, &late_password), true, NO),
            ("minted, late, refresh", request(&late, "realm", &nonce, &late_password), false, Ok(())),
            ("a shared secret mints nothing", request("1000500:p1.x.0", "realm", &nonce, &rest("new", "1000500:p1.x.0")), true, NO),
            ("nonce of another", request("alice", "realm", &s.nonce(WALL, client(2)), "wonder"), true, Err(AuthRefusal::StaleNonce)),
            ("no nonce at all", request("alice", "realm", "", "wonder"), true, Err(AuthRefusal::StaleNonce)),
        ];
        for (name, bytes, must_be_current, want) in rows {
            assert_eq!(judge(bytes, *must_be_current), *want, "{name}");
        }
    }

    #[test]
    fn whoever_asks_costs_the_same() {
        let s = secrets();
        for username in ["alice", "bob", "1000500:u", "999999:u", "1000500:p1.PA_1.0", ""] {
            let candidates = s.candidates(WALL, s.realms.get("realm"), b"realm", username.as_bytes(), true);
            assert_eq!(candidates.len(), 2, "{username}: as many as there are shared secrets");
        }
        assert_eq!(s.candidates(WALL, None, b"none", b"alice", true), [(String::new(), false)]);
    }

    #[test]
    fn hashes_and_algorithms_of_rfc_8489() {
        let nonce = secrets().nonce(WALL, client(1));
        // (algorithm, algorithms as echoed, SHA-256 key, SHA-256 tag of so many bytes, outcome)
        type Row<'a> = (&'a str, Option<[u8; 4]>, Option<&'a [u8]>, bool, Option<usize>, Result<(), AuthRefusal>);
        let (md5, sha) = (Some([0, 1, 0, 0]), Some([0, 2, 0, 0]));
        const BAD: Result<(), AuthRefusal> = Err(AuthRefusal::Incomplete);
        let rows: &[Row<'_>] = &[
            ("neither: MD5", None, None, false, None, Ok(())),
            ("neither, SHA-256 tag", None, None, false, Some(32), Ok(())),
            ("MD5 of the offer", md5, Some(&ALGORITHMS), false, None, Ok(())),
            ("SHA-256 of the offer", sha, Some(&ALGORITHMS), true, Some(32), Ok(())),
            ("its tag cut to 16", sha, Some(&ALGORITHMS), true, Some(16), Ok(())),
            ("SHA-256 key, SHA-1 tag", sha, Some(&ALGORITHMS), true, None, Ok(())),
            ("an algorithm alone", sha, None, true, Some(32), BAD),
            ("an offer alone", None, Some(&ALGORITHMS), false, None, BAD),
            ("another offer", sha, Some(&[0, 2, 0, 0]), true, Some(32), BAD),
            ("an algorithm of no offer", Some([0, 3, 0, 0]), Some(&ALGORITHMS), true, Some(32), BAD),
            ("the key of another algorithm", md5, Some(&ALGORITHMS), true, Some(32), Err(AuthRefusal::Unauthenticated)),
        ];
        for (name, algorithm, algorithms, is_sha256_key, tag, want) in rows {
            let key = if *is_sha256_key {
                crypto::sha256(&[b"alice:realm:wonder"]).to_vec()
            } else {
                crypto::long_term_key(b"alice", b"realm", b"wonder").to_vec()
            };
            let mut bytes = Vec::new();
            let mut w = Writer::new(&mut bytes, Method::Refresh, Class::Request, TransactionId([1; 12]));
            w.attribute(attr::USERNAME, b"alice").attribute(attr::REALM, b"realm").attribute(attr::NONCE, nonce.as_bytes());
            if let Some(algorithm) = algorithm {
                w.attribute(attr::PASSWORD_ALGORITHM, algorithm);
            }
            if let Some(offered) = algorithms {
                w.attribute(attr::PASSWORD_ALGORITHMS, offered);
            }
            match tag {
                None => _ = w.integrity(|b| HmacSha1::new(&key).sign(&[b])),
                Some(32) => _ = w.integrity_sha256(|b| crypto::hmac_sha256(&key, &[b])),
                Some(len) => {
                    // As above, with the length of the shorter tag.
                    w.attribute(attr::MESSAGE_INTEGRITY_SHA256, &vec![0; *len]);
                    let at = bytes.len() - len;
                    let tag = crypto::hmac_sha256(&key, &[&bytes[..at - 4]]);
                    bytes[at..].copy_from_slice(&tag[..*len]);
                }
            }
            assert_eq!(judge(&bytes, true), *want, "{name}");
        }
    }

    #[test]
    fn a_hidden_name_is_found_where_it_may_be() {
        let hidden = |user: &str, realm: &str, password: &str| {
            let s = secrets();
            let key = crypto::long_term_key(user.as_bytes(), realm.as_bytes(), password.as_bytes());
            let mut bytes = Vec::new();
            Writer::new(&mut bytes, Method::Allocate, Class::Request, TransactionId([1; 12]))
                .attribute(attr::USERHASH, &crypto::sha256(&[user.as_bytes(), b":", realm.as_bytes()]))
                .attribute(attr::REALM, realm.as_bytes())
                .attribute(attr::NONCE, s.nonce(WALL, client(1)).as_bytes())
                .integrity(|b| HmacSha1::new(&key).sign(&[b]));
            bytes
        };
        assert_eq!(judge(&hidden("carol", "other", "sing"), true), Ok(()));
        assert_eq!(judge(&hidden("alice", "realm", "wonder"), true), Err(AuthRefusal::Unauthenticated), "not in this realm");
        let closed = Secrets::new("realm", b"master", &[], &users());
        let mut bytes = Vec::new();
        Writer::new(&mut bytes, Method::Allocate, Class::Request, TransactionId([1; 12]))
            .attribute(attr::USERHASH, &crypto::sha256(&[b"alice:realm"]))
            .attribute(attr::REALM, b"realm")
            .attribute(attr::NONCE, closed.nonce(WALL, client(1)).as_bytes())
            .integrity(|_| [0; 20]);
        let message = Message::decode(&bytes).expect("well-formed");
        let outcome = closed.authenticate(WALL, client(1), &message, true, None).map(|_| ());
        assert_eq!(outcome, Err(AuthRefusal::Incomplete), "without the offer it is no name (RFC 8489 §9.2.4)");
    }

    #[test]
    fn a_nonce_lives_an_hour_on_every_worker_and_after_a_restart() {
        let nonce = secrets().nonce(WALL, client(1));
        assert_eq!((nonce.len(), &nonce[..9]), (24, "obMatJos2"), "short: it goes to strangers");
        let bytes = request("alice", "realm", &nonce, "wonder");
        let message = Message::decode(&bytes).expect("well-formed");
        for (age_s, want) in [(0, true), (3599, true), (3600, false), (1 << 20, true)] {
            let later = UnixTime::from_nanos((1_000_000 + age_s) * 1_000_000_000);
            assert_eq!(secrets().authenticate(later, client(1), &message, true, None).is_ok(), want, "{age_s} s");
        }
        let other = Secrets::new("realm", b"other master", &[], &HashMap::new());
        assert!(matches!(other.authenticate(WALL, client(1), &message, true, None), Err(AuthRefusal::StaleNonce)));
        for at in 0..nonce.len() {
            let mut changed = nonce.clone().into_bytes();
            changed[at] = if changed[at] == b'x' { b'y' } else { b'x' };
            assert!(!secrets().nonce_is_good(WALL, client(1), &changed), "byte {at}");
        }
    }

    #[test]
    fn an_allocation_outlives_the_secret_that_it_was_made_with() {
        let s = secrets();
        let bytes = request("alice", "realm", &s.nonce(WALL, client(1)), "wonder");
        let message = Message::decode(&bytes).expect("well-formed");
        let key = s.authenticate(WALL, client(1), &message, true, None).expect("known").signer().key();
        let without = Secrets::new("realm", b"master", &[], &HashMap::new());
        let refresh = |known| without.authenticate(WALL, client(1), &message, false, known).is_ok();
        let known = |username, realm| Some(Known { username, realm, key });
        assert!(!refresh(None) && refresh(known(b"alice", "realm")));
        assert!(!refresh(known(b"bob", "realm")) && !refresh(known(b"alice", "other")));
    }

    #[test]
    fn a_quota_counts_people_not_expiries_and_a_minted_name_says_whose_it_is() {
        let bob = Some("bob");
        for (username, want) in [
            ("alice", Some("alice")),
            ("1000500:bob", bob),
            ("1000900:bob", bob),
            ("x:bob", Some("x:bob")),
            ("1000500", None),
            ("1000500:", None),
        ] {
            assert_eq!(stable_name(username.as_bytes()), want.map(str::as_bytes), "{username}");
        }
        for (username, want) in [("1000:p1.PA_x.3", Some("PA_x")), ("1000:bob", None), ("alice", None), ("p1.PA_x.3", None)] {
            assert_eq!(participant_of(username.as_bytes()), want, "{username}");
        }
    }
}
