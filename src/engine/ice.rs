//! ICE-lite for one session (RFC 8445 §2.5, RFC 7675): checks in, answers out, the client's choice of path followed.
//!
//! 1. A check that fits our username and password validates its path; the answer goes back the same way.
//! 2. USE-CANDIDATE nominates the path. A better or fresher nomination replaces the selected one.
//! 3. Authenticated media on a validated path selects it, once it is nominated or the selected one is silent: what a client
//!    sends shows what it chose, and browsers nominate up to a second later.
//! 4. A relayed path is answered only after direct ones had a head start: on a short round trip a browser would settle for
//!    the relay before it has even tried TCP (docs/decisions/0001-direct-paths-first.md).
//! 5. Silence, without authenticated checks or media, is told after [`BUSY_SILENT_FOR`] or [`SILENT_FOR`], so that the client
//!    may be asked to look for another way; after [`CONSENT_LIFETIME`] all ways are given up, and nothing leaves until a new
//!    check comes.
//!
//! Not here, on purpose: checks of our own. A lite agent has none (RFC 8445 §6.2).

use crate::base::id::PathId;
use crate::base::time::{Duration, Instant};
use crate::crypto::HmacSha1;
use crate::wire::stun::{Class, Message, Method, Writer, attr};
use std::net::SocketAddr;

/// Silence after which nothing may be sent any more.
pub const CONSENT_LIFETIME: Duration = Duration::from_secs(15);
/// Silence after which a way has probably failed: browsers check their pair every 2.5 s (Chromium) or 5 s (Firefox).
pub const SILENT_FOR: Duration = Duration::from_secs(8);
/// The same where so many packets a second came just before.
pub const BUSY_SILENT_FOR: Duration = Duration::from_secs(2);
const BUSY: u32 = 10;
/// Where so many signs of life a second came, none for so long means that what was sent meanwhile is lost.
const OFTEN: u32 = 5;
const LOST_FOR: Duration = Duration::from_secs(1);
/// Media shows the client's choice before it nominates it when nothing came over the selected path for so long.
const LEFT_FOR: Duration = Duration::from_millis(500);
/// How long a session whose client has described itself waits for the first check.
pub const FIRST_CHECK_WITHIN: Duration = Duration::from_secs(30);
/// A selected path without a check for so long gives way to any other nominated one.
const STALE: Duration = Duration::from_secs(4);
/// How long checks over the relay stay unanswered while no direct path has shown itself. Chromium gathers TCP candidates
/// 50 ms after its relay ones, and stops gathering once any pair works.
pub const HEAD_START: Duration = Duration::from_millis(300);
/// Paths of one session: interfaces times transports, with room for a change of network.
const PATHS_MAX: usize = 16;

/// Our half or the client's half of the ICE credentials (RFC 8445 §5.3).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Credentials {
    pub ufrag: String,
    pub pwd: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The first good check on this path.
    Validated(PathId),
    /// Everything for the client goes this way from now on.
    Selected(PathId),
    /// A path that gave way to newer ones.
    Dropped(PathId),
    /// Nothing has come for some seconds; told once soon where media came just before, and once for everybody.
    Silent { was_busy: bool },
    /// The client is heard again over the selected path: what was sent to it meanwhile is lost.
    Back,
    /// Consent has run out, and all ways with it.
    Unreachable,
}

/// Why a check got no success answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IceDrop {
    /// Not a Binding request, or without a username of ours.
    NotForUs,
    /// MESSAGE-INTEGRITY does not fit.
    Unauthentic,
    /// An attribute that must be understood and is not, or a role conflict.
    Refused,
    /// A relayed check while direct paths have their head start; the client repeats it.
    HeadStart,
}

struct Local {
    ufrag: String,
    key: HmacSha1,
}

impl Local {
    fn new(credentials: &Credentials) -> Self {
        Self { ufrag: credentials.ufrag.clone(), key: HmacSha1::new(credentials.pwd.as_bytes()) }
    }
}

struct ValidPath {
    id: PathId,
    priority: u64,
    is_nominated: bool,
    last_check: Instant,
}

/// Signs of life of the running second and of the one before.
struct Pulse {
    since: Instant,
    media: u32,
    all: u32,
    media_before: u32,
    all_before: u32,
}

pub struct Ice {
    local: Local,
    /// Credentials before an ICE restart: good until the first check with the new ones.
    previous: Option<Local>,
    remote_ufrag: Option<String>,
    paths: Vec<ValidPath>,
    selected: Option<PathId>,
    last_alive: Instant,
    was_checked: bool,
    /// How often this silence was told.
    silence_told: u8,
    pulse: Pulse,
    /// When something came over the selected path.
    selected_alive: Instant,
    /// There was a silence, and nothing has come over the selected path since.
    is_missed: bool,
    first_relayed: Option<Instant>,
    /// Consent has run out, and nothing came since.
    is_unreachable: bool,
}

impl Ice {
    pub fn new(now: Instant, local: &Credentials) -> Self {
        Self {
            local: Local::new(local),
            previous: None,
            remote_ufrag: None,
            paths: Vec::new(),
            selected: None,
            last_alive: now,
            was_checked: false,
            silence_told: 0,
            pulse: Pulse { since: now, media: 0, all: 0, media_before: 0, all_before: 0 },
            selected_alive: now,
            is_missed: false,
            first_relayed: None,
            is_unreachable: false,
        }
    }

    /// The client's half; checks that name another one are not for this session. From the first one on it is waited for.
    pub fn set_remote_ufrag(&mut self, now: Instant, ufrag: &str) {
        if self.remote_ufrag.replace(ufrag.to_owned()).is_none() {
            self.last_alive = self.last_alive.max(now);
        }
    }

    /// New credentials of ours (RFC 8445 §9). Media flows on over the selected path meanwhile.
    pub fn restart(&mut self, local: &Credentials) {
        if local.ufrag != self.local.ufrag {
            self.previous = Some(std::mem::replace(&mut self.local, Local::new(local)));
        }
    }

    pub fn selected(&self) -> Option<PathId> {
        self.selected
    }

    pub fn is_valid(&self, path: PathId) -> bool {
        self.paths.iter().any(|p| p.id == path)
    }

    /// All paths that passed a check.
    pub fn paths(&self) -> impl Iterator<Item = PathId> + '_ {
        self.paths.iter().map(|p| p.id)
    }

    /// Takes a Binding request that came over `path` from `seen_as`; leaves the answer in `reply` (empty: none).
    pub fn handle(
        &mut self,
        now: Instant,
        path: PathId,
        seen_as: SocketAddr,
        check: &Message<'_>,
        reply: &mut Vec<u8>,
        out: &mut Vec<Effect>,
    ) -> Result<(), IceDrop> {
        reply.clear();
        if (check.method, check.class) != (Method::Binding, Class::Request) {
            return Err(IceDrop::NotForUs);
        }
        let (ours, theirs) = usernames(check).ok_or(IceDrop::NotForUs)?;
        if self.remote_ufrag.as_deref().is_some_and(|known| known.as_bytes() != theirs) && self.previous.is_none() {
            return Err(IceDrop::NotForUs);
        }
        let is_new_generation = ours == self.local.ufrag.as_bytes();
        let local = match &self.previous {
            _ if is_new_generation => &self.local,
            Some(previous) if ours == previous.ufrag.as_bytes() => previous,
            _ => return Err(IceDrop::NotForUs),
        };
        let integrity = check.integrity().ok_or(IceDrop::NotForUs)?;
        let id = check.transaction_id();
        if !local.key.verify(&[&integrity.header, integrity.rest], integrity.tag) {
            Writer::new(reply, Method::Binding, Class::Error, id).error_code(401).fingerprint();
            return Err(IceDrop::Unauthentic);
        }
        let sign = |bytes: &[u8]| local.key.sign(&[bytes]);
        let unknown: Vec<u8> = check.attributes().filter(|(kind, _)| !is_understood(*kind)).flat_map(|(k, _)| k.to_be_bytes()).collect();
        if !unknown.is_empty() {
            Writer::new(reply, Method::Binding, Class::Error, id)
                .error_code(420)
                .attribute(attr::UNKNOWN_ATTRIBUTES, &unknown)
                .integrity(sign)
                .fingerprint();
            return Err(IceDrop::Refused);
        }
        if check.get(attr::ICE_CONTROLLED).is_some() {
            // A lite agent never controls (RFC 8445 §6.1.1); two controlled ones would wait for ever.
            Writer::new(reply, Method::Binding, Class::Error, id).error_code(487).integrity(sign).fingerprint();
            return Err(IceDrop::Refused);
        }
        if matches!(path, PathId::Relayed { .. }) && self.paths.is_empty() {
            let first = *self.first_relayed.get_or_insert(now);
            if now.since(first) < HEAD_START {
                return Err(IceDrop::HeadStart);
            }
        }
        Writer::new(reply, Method::Binding, Class::Success, id)
            .xor_address(attr::XOR_MAPPED_ADDRESS, seen_as)
            .integrity(sign)
            .fingerprint();
        if is_new_generation && self.previous.take().is_some() {
            // A client that starts again does so because of the ways it had: any new one is better.
            self.paths.iter_mut().for_each(|p| p.priority = 0);
        }
        self.was_checked = true;
        self.alive(now, path, 0, out);
        let priority = check.get_u32(attr::PRIORITY).unwrap_or(0);
        self.validated(now, path, pair_priority(path, priority), check.get(attr::USE_CANDIDATE).is_some(), out);
        Ok(())
    }

    fn validated(&mut self, now: Instant, path: PathId, priority: u64, nominates: bool, out: &mut Vec<Effect>) {
        match self.paths.iter_mut().find(|p| p.id == path) {
            Some(known) => {
                known.last_check = now;
                known.is_nominated |= nominates;
                known.priority = priority;
            }
            None => {
                if self.paths.len() >= PATHS_MAX {
                    let selected = self.selected;
                    let oldest = self.paths.iter().enumerate().filter(|(_, p)| Some(p.id) != selected).min_by_key(|(_, p)| p.last_check);
                    if let Some((at, _)) = oldest {
                        out.push(Effect::Dropped(self.paths.swap_remove(at).id));
                    }
                }
                self.paths.push(ValidPath { id: path, priority, is_nominated: nominates, last_check: now });
                out.push(Effect::Validated(path));
            }
        }
        if !nominates || self.selected == Some(path) {
            return;
        }
        let current = self.paths.iter().find(|p| Some(p.id) == self.selected);
        if current.is_none_or(|c| priority >= c.priority || now.since(c.last_check) > STALE) {
            self.select(now, path, out);
        }
    }

    /// Takes a path, over which something came at `alive`.
    fn select(&mut self, alive: Instant, path: PathId, out: &mut Vec<Effect>) {
        (self.selected, self.selected_alive) = (Some(path), alive);
        out.push(Effect::Selected(path));
        if std::mem::take(&mut self.is_missed) {
            out.push(Effect::Back);
        }
    }

    /// A sign of life over `path`; `media` packets of it.
    fn alive(&mut self, now: Instant, path: PathId, media: u32, out: &mut Vec<Effect>) {
        let pulse = &mut self.pulse;
        self.is_missed |= pulse.all.max(pulse.all_before) >= OFTEN && now.since(self.last_alive) >= LOST_FOR;
        self.last_alive = now;
        self.silence_told = 0;
        self.is_unreachable = false;
        (pulse.media, pulse.all) = (pulse.media + media, pulse.all + 1);
        if now.since(pulse.since) >= Duration::from_secs(1) {
            *pulse = Pulse { since: now, media: 0, all: 0, media_before: pulse.media, all_before: pulse.all };
        }
        if self.selected == Some(path) {
            self.selected_alive = now;
            if std::mem::take(&mut self.is_missed) {
                out.push(Effect::Back);
            }
        }
    }

    /// Authenticated media (or, else, feedback) came over `path`: a sign of life, and the client's choice.
    pub fn media_arrived(&mut self, now: Instant, path: PathId, is_media: bool, out: &mut Vec<Effect>) {
        self.alive(now, path, u32::from(is_media), out);
        if self.selected != Some(path) {
            let is_left = now.since(self.selected_alive) >= LEFT_FOR;
            if self.paths.iter().any(|p| p.id == path && (p.is_nominated || is_left)) {
                self.select(now, path, out);
            }
        }
    }

    /// The way is no more: a connection closed, an allocation ended.
    pub fn path_lost(&mut self, path: PathId, out: &mut Vec<Effect>) {
        self.paths.retain(|p| p.id != path);
        if self.selected == Some(path) {
            self.selected = None;
            let next = self.paths.iter().filter(|p| p.is_nominated).max_by_key(|p| (p.last_check, p.priority));
            if let Some((alive, next)) = next.map(|p| (p.last_check, p.id)) {
                self.select(alive, next, out);
            }
        }
    }

    /// The client has said that it is back: a way is waited for as at first.
    pub fn await_return(&mut self, now: Instant) {
        if self.is_unreachable {
            (self.is_unreachable, self.was_checked, self.last_alive) = (false, false, now);
        }
    }

    /// Tells of silence when it is due, and gives all ways up when consent has run out.
    pub fn wake(&mut self, now: Instant, out: &mut Vec<Effect>) {
        while self.silence_due().is_some_and(|at| at <= now) {
            out.push(Effect::Silent { was_busy: self.is_busy() && self.silence_told == 0 });
            self.silence_told = if self.is_busy() { self.silence_told + 1 } else { 2 };
        }
        if self.expiry().is_some_and(|at| at <= now) {
            (self.is_unreachable, self.selected) = (true, None);
            out.extend(self.paths.drain(..).map(|p| Effect::Dropped(p.id)));
            out.push(Effect::Unreachable);
        }
    }

    /// When consent runs out; never before the client has described itself.
    fn expiry(&self) -> Option<Instant> {
        self.remote_ufrag.as_ref().filter(|_| !self.is_unreachable)?;
        Some(self.last_alive + if self.was_checked { CONSENT_LIFETIME } else { FIRST_CHECK_WITHIN })
    }

    pub fn deadline(&self) -> Option<Instant> {
        self.silence_due().or(self.expiry())
    }

    fn is_busy(&self) -> bool {
        self.pulse.media.max(self.pulse.media_before) >= BUSY
    }

    fn silence_due(&self) -> Option<Instant> {
        let patience = if self.is_busy() && self.silence_told == 0 { BUSY_SILENT_FOR } else { SILENT_FOR };
        (self.was_checked && self.silence_told < 2).then_some(self.last_alive + patience)
    }
}

/// USERNAME of a check: the receiver's fragment, a colon, the sender's (RFC 8445 §7.2.2).
pub fn usernames<'a>(check: &Message<'a>) -> Option<(&'a [u8], &'a [u8])> {
    let username = check.get(attr::USERNAME)?;
    let colon = username.iter().position(|b| *b == b':')?;
    Some((&username[..colon], &username[colon + 1..]))
}

/// Comprehension-required attributes of a check; those from 0x8000 on are optional (RFC 8489 §14).
fn is_understood(kind: u16) -> bool {
    kind >= 0x8000 || matches!(kind, attr::USERNAME | attr::PRIORITY | attr::USE_CANDIDATE)
}

/// Pair priority (RFC 8445 §6.1.2.3); the client controls. Our UDP candidate comes before our TCP one.
fn pair_priority(path: PathId, remote: u32) -> u64 {
    let local: u32 = match path {
        PathId::Udp { .. } | PathId::Relayed { .. } => 126 << 24 | 0xFFFF << 8 | 255,
        PathId::Tcp(_) => 90 << 24 | 0xFFFF << 8 | 255,
    };
    let (small, large) = (local.min(remote), local.max(remote));
    u64::from(small) << 32 | u64::from(large) << 1 | u64::from(remote > local)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::id::{ClientAddr, SocketId, StreamId};
    use crate::wire::stun::TransactionId;

    fn udp(port: u16) -> PathId {
        let remote = ClientAddr(SocketAddr::from(([192, 0, 2, 1], port)));
        PathId::Udp { socket: SocketId(0), local: [192, 0, 2, 9].into(), remote }
    }

    fn check(user: &str, pwd: &str, priority: u32, nominate: bool) -> Vec<u8> {
        let mut out = Vec::new();
        let mut w = Writer::new(&mut out, Method::Binding, Class::Request, TransactionId([3; 12]));
        w.attribute(attr::USERNAME, user.as_bytes()).u32(attr::PRIORITY, priority).attribute(attr::ICE_CONTROLLING, &[0; 8]);
        if nominate {
            w.attribute(attr::USE_CANDIDATE, &[]);
        }
        w.integrity(|b| HmacSha1::new(pwd.as_bytes()).sign(&[b])).fingerprint();
        out
    }

    struct Lab {
        ice: Ice,
        reply: Vec<u8>,
        out: Vec<Effect>,
    }

    impl Lab {
        fn new() -> Self {
            let mut ice = Ice::new(Instant::from_millis(0), &Credentials { ufrag: "srv".into(), pwd: "secret".into() });
            ice.set_remote_ufrag(Instant::from_millis(0), "cli");
            Self { ice, reply: Vec::new(), out: Vec::new() }
        }

        fn check(&mut self, ms: u64, path: PathId, bytes: &[u8]) -> Result<(), IceDrop> {
            self.out.clear();
            let message = Message::decode(bytes).expect("well-formed");
            let seen_as = SocketAddr::from(([192, 0, 2, 1], 5));
            self.ice.handle(Instant::from_millis(ms), path, seen_as, &message, &mut self.reply, &mut self.out)
        }

        fn error_code(&self) -> Option<u16> {
            let value = Message::decode(&self.reply).ok()?.get(attr::ERROR_CODE)?.to_vec();
            Some(u16::from(value[2]) * 100 + u16::from(value[3]))
        }
    }

    #[test]
    fn answers_by_rule() {
        let mut lab = Lab::new();
        assert_eq!(lab.check(0, udp(1), &check("srv:cli", "secret", 9, false)), Ok(()));
        let reply = Message::decode(&lab.reply).expect("an answer");
        assert_eq!(reply.get(attr::XOR_MAPPED_ADDRESS).and_then(|v| reply.xor_address(v)), "192.0.2.1:5".parse().ok());
        assert_eq!(lab.out, [Effect::Validated(udp(1))]);
        assert_eq!(lab.check(0, udp(1), &check("srv:cli", "wrong", 9, false)), Err(IceDrop::Unauthentic));
        assert_eq!(lab.error_code(), Some(401));
        for stranger in ["other:cli", "srv:other", "srvcli"] {
            assert_eq!(lab.check(0, udp(1), &check(stranger, "secret", 9, false)), Err(IceDrop::NotForUs));
            assert!(lab.reply.is_empty(), "{stranger}");
        }
    }

    #[test]
    fn the_selected_path_follows_the_client() {
        let mut lab = Lab::new();
        let tcp = PathId::Tcp(StreamId(4));
        lab.check(0, udp(1), &check("srv:cli", "secret", 100, true)).expect("good");
        assert_eq!(lab.ice.selected(), Some(udp(1)));
        lab.check(10, tcp, &check("srv:cli", "secret", 90, true)).expect("good");
        assert_eq!(lab.ice.selected(), Some(udp(1)), "a lower pair does not replace a fresh one");
        lab.check(20, udp(2), &check("srv:cli", "secret", 200, true)).expect("good");
        assert_eq!(lab.ice.selected(), Some(udp(2)), "a higher one does");
        lab.check(5_000, tcp, &check("srv:cli", "secret", 90, true)).expect("good");
        assert_eq!(lab.ice.selected(), Some(tcp), "a stale one gives way");
        let mut out = Vec::new();
        lab.ice.media_arrived(Instant::from_millis(5_001), udp(2), true, &mut out);
        assert_eq!(out, [Effect::Selected(udp(2))]);
        lab.ice.path_lost(udp(2), &mut out);
        assert_eq!(lab.ice.selected(), Some(tcp));
    }

    #[test]
    fn a_restart_takes_both_generations_until_the_new_one_speaks() {
        let mut lab = Lab::new();
        lab.ice.restart(&Credentials { ufrag: "new".into(), pwd: "fresh".into() });
        lab.ice.set_remote_ufrag(Instant::from_millis(0), "cli2");
        assert_eq!(lab.check(0, udp(1), &check("srv:cli", "secret", 1, true)), Ok(()));
        assert_eq!(lab.check(0, udp(1), &check("new:cli2", "fresh", 1, true)), Ok(()));
        assert_eq!(lab.check(0, udp(1), &check("srv:cli", "secret", 1, true)), Err(IceDrop::NotForUs));
    }

    #[test]
    fn direct_paths_have_a_head_start() {
        use crate::base::id::{AllocationId, PeerAddr};
        let peer = PeerAddr(SocketAddr::from(([192, 0, 2, 9], 443)));
        let relayed = PathId::Relayed { allocation: AllocationId(1), peer };
        let mut lab = Lab::new();
        for (ms, want) in [(1_000, Err(IceDrop::HeadStart)), (1_299, Err(IceDrop::HeadStart)), (1_300, Ok(()))] {
            assert_eq!(lab.check(ms, relayed, &check("srv:cli", "secret", 1, true)), want, "at {ms} ms");
            assert_eq!(lab.reply.is_empty(), want.is_err());
        }
        // With a direct path there is nothing to wait for.
        let mut lab = Lab::new();
        assert_eq!(lab.check(1_000, udp(1), &check("srv:cli", "secret", 9, false)), Ok(()));
        assert_eq!(lab.check(1_001, relayed, &check("srv:cli", "secret", 1, false)), Ok(()));
    }

    #[test]
    fn silence_ends_consent() {
        let (mut lab, at) = (Lab::new(), Instant::from_millis);
        assert_eq!(lab.ice.deadline(), Some(at(30_000)));
        lab.check(1_000, udp(1), &check("srv:cli", "secret", 1, true)).expect("good");
        assert_eq!(lab.ice.deadline(), Some(at(9_000)), "of silence");
        lab.ice.wake(at(9_000), &mut lab.out);
        assert_eq!(lab.out.pop(), Some(Effect::Silent { was_busy: false }));
        assert_eq!(lab.ice.deadline(), Some(at(16_000)), "told once");
        for ms in 10_000..10_050 {
            lab.ice.media_arrived(at(ms), udp(1), true, &mut lab.out);
        }
        assert_eq!(lab.ice.deadline(), Some(at(12_049)), "where much came, silence shows sooner");
        lab.ice.wake(at(12_049), &mut lab.out);
        assert_eq!(lab.out.pop(), Some(Effect::Silent { was_busy: true }));
        assert_eq!(lab.ice.deadline(), Some(at(18_049)), "and once more");
        // Media has stopped on purpose: checks alone come, and are waited for as with everybody.
        for ms in [12_100, 13_200, 14_300] {
            lab.check(ms, udp(1), &check("srv:cli", "secret", 1, true)).expect("good");
        }
        assert_eq!(lab.ice.deadline(), Some(at(22_300)));
        lab.ice.media_arrived(at(10_049 + 5_000), udp(1), true, &mut lab.out);
        lab.ice.wake(at(30_049), &mut lab.out);
        assert_eq!(lab.out.split_off(lab.out.len() - 2), [Effect::Dropped(udp(1)), Effect::Unreachable]);
        assert_eq!((lab.ice.selected(), lab.ice.deadline()), (None, None), "told once");
        lab.check(40_000, udp(1), &check("srv:cli", "secret", 1, true)).expect("good");
        assert_eq!((lab.ice.selected(), lab.ice.deadline()), (Some(udp(1)), Some(at(48_000))), "it is back");
    }

    #[test]
    fn media_shows_where_a_client_went_before_it_nominates() {
        let (mut lab, at) = (Lab::new(), Instant::from_millis);
        let tcp = PathId::Tcp(StreamId(7));
        lab.check(1_000, udp(1), &check("srv:cli", "secret", 1, true)).expect("good");
        for ms in (1_000..2_000).step_by(20) {
            lab.ice.media_arrived(at(ms), udp(1), true, &mut lab.out);
        }
        lab.check(2_200, tcp, &check("srv:cli", "secret", 1, false)).expect("good");
        lab.out.clear();
        lab.ice.media_arrived(at(2_300), tcp, true, &mut lab.out);
        assert_eq!((lab.ice.selected(), lab.out.len()), (Some(udp(1)), 0), "the selected way was alive just now");
        lab.check(3_400, tcp, &check("srv:cli", "secret", 1, false)).expect("good");
        assert_eq!(lab.out, [], "what is sent now still goes the old way");
        lab.ice.media_arrived(at(3_410), tcp, true, &mut lab.out);
        assert_eq!(lab.out, [Effect::Selected(tcp), Effect::Back]);
        lab.ice.media_arrived(at(3_420), tcp, true, &mut lab.out);
        assert_eq!(lab.out.len(), 2, "told once");
    }

    #[test]
    fn nobody_is_waited_for_who_has_not_described_itself() {
        let mut ice = Ice::new(Instant::from_millis(0), &Credentials { ufrag: "srv".into(), pwd: "secret".into() });
        assert_eq!(ice.deadline(), None);
        ice.set_remote_ufrag(Instant::from_millis(100_000), "cli");
        assert_eq!(ice.deadline(), Some(Instant::from_millis(130_000)));
    }

    #[test]
    fn a_restart_leaves_the_old_ways_for_any_new_one() {
        let mut lab = Lab::new();
        lab.check(1_000, udp(1), &check("srv:cli", "secret", 9, true)).expect("good");
        lab.ice.restart(&Credentials { ufrag: "new".into(), pwd: "other".into() });
        lab.check(1_100, udp(2), &check("new:cli", "other", 1, true)).expect("good");
        assert_eq!(lab.ice.selected(), Some(udp(2)), "although it is worth less");
    }

    #[test]
    fn paths_are_bounded_and_the_selected_one_stays() {
        let mut lab = Lab::new();
        lab.check(0, udp(1), &check("srv:cli", "secret", 9, true)).expect("good");
        for port in 2..100 {
            lab.check(u64::from(port), udp(port), &check("srv:cli", "secret", 1, false)).expect("good");
        }
        assert_eq!(lab.ice.paths().count(), PATHS_MAX);
        assert!(lab.ice.is_valid(udp(1)));
    }
}
