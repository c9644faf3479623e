//! Who may use the relay: the long-term mechanism of STUN (RFC 8489 §9.2), without state per client.
//!
//! Three kinds of credentials:
//! * minted at join: username `<expiry>:p1.<participant sid>.<worker>`, password an HMAC under a label of its own;
//! * REST: username `<expiry>[:<name>]`, password base64(HMAC-SHA1(shared secret, username));
//! * static users of the config.
//!
//! A nonce is `base64(time(32) ‖ HMAC-SHA256(key, time ‖ client)[..12])`: it holds on every worker, after a restart and
//! on every node with the same keys. Browsers treat a 438 on Allocate as fatal, so nothing else may make one fail.

use crate::base::id::ClientAddr;
use crate::base::time::UnixTime;
use crate::crypto::{self, HmacSha1};
use crate::wire::stun::{Message, attr};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use std::collections::HashMap;

/// How long a nonce is good, seconds: RFC 8656 §5 asks for an hour at most.
pub const NONCE_LIFETIME_S: u64 = 3600;
/// How long a minted credential is good, seconds: an ICE restart late in a long call must still work.
pub const MINTED_LIFETIME_S: u64 = 12 * 3600;
/// Longest username (RFC 8489 §14.3), bytes.
const USERNAME_MAX: usize = 508;
const NONCE_TAG: usize = 12;

/// Why a request is not believed. One code on the wire each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthRefusal {
    /// No integrity, unknown or expired user, wrong realm or password: all look the same from outside.
    Unauthenticated,
    /// Integrity without username, realm or nonce.
    Incomplete,
    StaleNonce,
}

/// Proof that a request came from a known user. Only [`Secrets::authenticate`] makes one.
pub struct Authenticated<'a> {
    username: &'a [u8],
    key: HmacSha1,
}

impl<'a> Authenticated<'a> {
    pub fn username(&self) -> &'a [u8] {
        self.username
    }

    /// Signs answers, and stands for the user on an allocation.
    pub fn key(&self) -> &HmacSha1 {
        &self.key
    }

    /// What a quota counts by: the stable part of a username, so that a new expiry is not a new user.
    pub fn quota_name(&self) -> &'a [u8] {
        match self.username.iter().position(|b| *b == b':') {
            Some(colon) if self.username[..colon].iter().all(u8::is_ascii_digit) => &self.username[colon + 1..],
            _ => self.username,
        }
    }
}

/// Everything that credentials and nonces are made from.
#[derive(Clone)]
pub struct Secrets {
    realm: String,
    nonce_key: [u8; 32],
    mint_key: [u8; 32],
    shared: Vec<HmacSha1>,
    users: HashMap<String, String>,
}

impl Secrets {
    /// `master` is the deployment's own secret; equal masters accept each other's nonces and minted credentials.
    pub fn new(realm: &str, master: &[u8], shared: &[String], users: &HashMap<String, String>) -> Self {
        Self {
            realm: realm.to_owned(),
            nonce_key: crypto::hmac_sha256(master, &[b"postern turn nonce v1"]),
            mint_key: crypto::hmac_sha256(master, &[b"postern turn credential v1"]),
            shared: shared.iter().map(|s| HmacSha1::new(s.as_bytes())).collect(),
            users: users.clone(),
        }
    }

    pub fn realm(&self) -> &str {
        &self.realm
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

    /// A nonce for this client at this time.
    pub fn nonce(&self, wall: UnixTime, client: ClientAddr) -> String {
        let time = (wall.as_secs() as u32).to_be_bytes();
        BASE64.encode([&time[..], &self.nonce_tag(time, client)].concat())
    }

    fn nonce_tag(&self, time: [u8; 4], client: ClientAddr) -> [u8; NONCE_TAG] {
        let address = client.0.to_string();
        let tag = crypto::hmac_sha256(&self.nonce_key, &[&time, address.as_bytes()]);
        tag[..NONCE_TAG].try_into().expect("shorter than SHA-256")
    }

    fn nonce_is_good(&self, wall: UnixTime, client: ClientAddr, nonce: &[u8]) -> bool {
        let Ok(bytes) = BASE64.decode(nonce) else { return false };
        let Some((time, tag)) = bytes.split_first_chunk::<4>() else { return false };
        let age = wall.as_secs().wrapping_sub(u64::from(u32::from_be_bytes(*time)));
        crypto::equal(tag, &self.nonce_tag(*time, client)) && age <= NONCE_LIFETIME_S
    }

    /// Checks a request in the order of RFC 8489 §9.2.4. `must_be_current` refuses expired users; an existing
    /// allocation may be refreshed with the credentials that it was made with.
    pub fn authenticate<'a>(
        &self,
        wall: UnixTime,
        client: ClientAddr,
        request: &Message<'a>,
        must_be_current: bool,
    ) -> Result<Authenticated<'a>, AuthRefusal> {
        let integrity = request.integrity().ok_or(AuthRefusal::Unauthenticated)?;
        let username = request.get(attr::USERNAME).ok_or(AuthRefusal::Incomplete)?;
        let realm = request.get(attr::REALM).ok_or(AuthRefusal::Incomplete)?;
        let nonce = request.get(attr::NONCE).ok_or(AuthRefusal::Incomplete)?;
        if !self.nonce_is_good(wall, client, nonce) {
            return Err(AuthRefusal::StaleNonce);
        }
        let passwords = self.passwords(wall, username, must_be_current);
        let key_of = |password: &str| HmacSha1::new(&crypto::long_term_key(username, self.realm.as_bytes(), password.as_bytes()));
        let fits = |key: &HmacSha1| key.verify(&[&integrity.header, integrity.rest], integrity.tag);
        if passwords.is_empty() {
            // An unknown user costs as much as a known one.
            fits(&key_of(""));
            return Err(AuthRefusal::Unauthenticated);
        }
        let key = passwords.iter().map(|p| key_of(p)).find(fits).ok_or(AuthRefusal::Unauthenticated)?;
        if realm != self.realm.as_bytes() {
            return Err(AuthRefusal::Unauthenticated);
        }
        Ok(Authenticated { username, key })
    }

    /// Every password that `username` may have: one, or one per shared secret while they rotate. Empty: no such user.
    fn passwords(&self, wall: UnixTime, username: &[u8], must_be_current: bool) -> Vec<String> {
        let Some(username) = std::str::from_utf8(username).ok().filter(|u| u.len() <= USERNAME_MAX) else { return Vec::new() };
        if let Some(password) = self.users.get(username) {
            return vec![password.clone()];
        }
        let (expires, name) = username.split_once(':').unwrap_or((username, ""));
        match expires.parse::<u64>() {
            Ok(expires) if expires >= wall.as_secs() || !must_be_current => {}
            _ => return Vec::new(),
        }
        if name.starts_with("p1.") {
            return vec![self.minted_password(username)];
        }
        self.shared.iter().map(|s| BASE64.encode(s.sign(&[username.as_bytes()]))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::stun::{Class, Method, TransactionId, Writer};

    const WALL: UnixTime = UnixTime::from_nanos(1_000_000 * 1_000_000_000);

    fn client(port: u16) -> ClientAddr {
        ClientAddr(([192, 0, 2, 1], port).into())
    }

    fn secrets() -> Secrets {
        let users = HashMap::from([("alice".to_owned(), "wonder".to_owned())]);
        Secrets::new("realm", b"master", &["new".into(), "old".into()], &users)
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

    #[test]
    fn who_is_believed() {
        let s = secrets();
        let nonce = s.nonce(WALL, client(1));
        let rest = |secret: &str, name: &str| BASE64.encode(HmacSha1::new(secret.as_bytes()).sign(&[name.as_bytes()]));
        let (minted, minted_password) = s.mint("PA_1", 3, 1_000_500);
        let (late, late_password) = s.mint("PA_1", 3, 999_999);
        let rows: &[(&str, Vec<u8>, bool, Result<(), AuthRefusal>)] = &[
            ("static", request("alice", "realm", &nonce, "wonder"), true, Ok(())),
            ("static, wrong", request("alice", "realm", &nonce, "x"), true, Err(AuthRefusal::Unauthenticated)),
            ("unknown", request("bob", "realm", &nonce, ""), true, Err(AuthRefusal::Unauthenticated)),
            ("empty name", request("", "realm", &nonce, ""), true, Err(AuthRefusal::Unauthenticated)),
            ("other realm", request("alice", "other", &nonce, "wonder"), true, Err(AuthRefusal::Unauthenticated)),
            ("REST", request("1000500:u", "realm", &nonce, &rest("new", "1000500:u")), true, Ok(())),
            ("REST, no name", request("1000500", "realm", &nonce, &rest("new", "1000500")), true, Ok(())),
            ("REST, older secret", request("1000500:u", "realm", &nonce, &rest("old", "1000500:u")), true, Ok(())),
            (
                "REST, unknown secret",
                request("1000500:u", "realm", &nonce, &rest("x", "1000500:u")),
                true,
                Err(AuthRefusal::Unauthenticated),
            ),
            ("REST, late", request("999999:u", "realm", &nonce, &rest("new", "999999:u")), true, Err(AuthRefusal::Unauthenticated)),
            ("minted", request(&minted, "realm", &nonce, &minted_password), true, Ok(())),
            ("minted, late", request(&late, "realm", &nonce, &late_password), true, Err(AuthRefusal::Unauthenticated)),
            ("minted, late, refresh", request(&late, "realm", &nonce, &late_password), false, Ok(())),
            (
                "a shared secret mints nothing",
                request("1000500:p1.x.0", "realm", &nonce, &rest("new", "1000500:p1.x.0")),
                true,
                Err(AuthRefusal::Unauthenticated),
            ),
            ("nonce of another", request("alice", "realm", &s.nonce(WALL, client(2)), "wonder"), true, Err(AuthRefusal::StaleNonce)),
            ("no nonce at all", request("alice", "realm", "", "wonder"), true, Err(AuthRefusal::StaleNonce)),
        ];
        for (name, bytes, must_be_current, want) in rows {
            let message = Message::decode(bytes).expect(name);
            let got = s.authenticate(WALL, client(1), &message, *must_be_current).map(|_| ());
            assert_eq!(got, *want, "{name}");
        }
    }

    #[test]
    fn a_nonce_lives_an_hour_on_every_worker_and_after_a_restart() {
        let nonce = secrets().nonce(WALL, client(1));
        let bytes = request("alice", "realm", &nonce, "wonder");
        let message = Message::decode(&bytes).expect("well-formed");
        for (age_s, want) in [(0, true), (3600, true), (3601, false)] {
            let later = UnixTime::from_nanos((1_000_000 + age_s) * 1_000_000_000);
            assert_eq!(secrets().authenticate(later, client(1), &message, true).is_ok(), want, "{age_s} s");
        }
        let other = Secrets::new("realm", b"other master", &[], &HashMap::new());
        assert!(matches!(other.authenticate(WALL, client(1), &message, true), Err(AuthRefusal::StaleNonce)));
    }

    #[test]
    fn a_quota_counts_people_not_expiries() {
        let s = secrets();
        for (username, want) in [("alice", "alice"), ("1000500:bob", "bob"), ("1000900:bob", "bob"), ("x:bob", "x:bob")] {
            let a = Authenticated { username: username.as_bytes(), key: HmacSha1::new(b"") };
            assert_eq!(a.quota_name(), want.as_bytes());
        }
        assert_eq!(s.realm(), "realm");
    }
}
