//! ICE, DTLS and SRTP of one simulated participant: the controlling side, with one pair (RFC 8445); the DTLS client, or the server
//! of one that opens the handshake itself.
//!
//! 1. Checks go to the server's address until one is answered; the first nominates (RFC 8445 §8.1.1, one pair).
//! 2. The handshake; its keys.
//! 3. Media, and a check every 2.5 s for consent (RFC 7675). Checks of a server that is no lite agent are answered.

use super::offer::Remote;
use crate::base::time::{Anchor, Duration, Instant};
use crate::crypto::HmacSha1;
use crate::engine::dtls::{self, Dtls, Identity};
use crate::engine::ice::Credentials;
use crate::engine::srtp::{self, Profile};
use crate::wire::demux::{self, DatagramKind};
use crate::wire::rtp;
use crate::wire::stun::{Class, Message, Method, TransactionId, Writer, attr};
use std::net::SocketAddr;
use std::ops::Range;

const CHECK_AGAIN: Duration = Duration::from_millis(50);
const CONSENT_EVERY: Duration = Duration::from_millis(2_500);
/// Priority of a host candidate (RFC 8445 §5.1.2).
const PRIORITY: u32 = 126 << 24 | 0xFFFF << 8 | 255;

/// What a datagram of the server's was.
pub enum Incoming {
    /// RTP, decrypted in place: the header, where the payload lies, the extended number.
    Media(rtp::Header, Range<usize>, u64),
    /// RTCP, decrypted in place: its length.
    Feedback(usize),
    /// Keys are there: media may flow.
    Live,
    Other,
    /// It does not come through: not ours, not authentic, came before.
    Refused,
    /// The handshake failed, or the server said goodbye.
    Ended(String),
}

pub struct Peer {
    credentials: Credentials,
    own_key: HmacSha1,
    identity: Identity,
    anchor: Anchor,
    remote: Option<(Remote, HmacSha1)>,
    dtls: Option<Dtls>,
    keys: Option<(srtp::Receiver, srtp::Sender)>,
    is_live: bool,
    /// The check that is under way.
    check: TransactionId,
    checks: u64,
    check_due: Instant,
    is_answered: bool,
    dtls_out: Vec<dtls::Effect>,
}

impl Peer {
    pub fn new(identity: Identity, anchor: Anchor, credentials: Credentials) -> Self {
        Self {
            own_key: HmacSha1::new(credentials.pwd.as_bytes()),
            credentials,
            identity,
            anchor,
            remote: None,
            dtls: None,
            keys: None,
            is_live: false,
            check: TransactionId([0; 12]),
            checks: 0,
            check_due: Instant::default(),
            is_answered: false,
            dtls_out: Vec::new(),
        }
    }

    pub fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    /// Datagrams get to the server now. Later answers of the same transport change nothing.
    pub fn connect(&mut self, now: Instant, remote: &Remote) {
        if self.remote.is_none() {
            let key = HmacSha1::new(remote.credentials.pwd.as_bytes());
            let role = if remote.is_active { dtls::Role::Server } else { dtls::Role::Client };
            self.dtls = Some(Dtls::new(self.identity.clone(), self.anchor, role, remote.fingerprint.clone()));
            self.remote = Some((remote.clone(), key));
            self.check_due = now;
        }
    }

    /// When [`Peer::wake`] is due; never before it is connected.
    pub fn deadline(&self) -> Option<Instant> {
        self.remote.as_ref()?;
        Some(self.dtls.as_ref().and_then(Dtls::deadline).map_or(self.check_due, |at| at.min(self.check_due)))
    }

    /// Does what is due; datagrams for the server go to `out`.
    pub fn wake(&mut self, now: Instant, out: &mut Vec<Vec<u8>>) -> Incoming {
        if self.check_due <= now {
            self.send_check(now, out);
        }
        let due = self.dtls.as_mut().filter(|dtls| dtls.deadline().is_some_and(|at| at <= now));
        if let Some(Err(error)) = due.map(|dtls| dtls.wake(now, &mut self.dtls_out)) {
            return Incoming::Ended(error.to_string());
        }
        self.drain_dtls(out)
    }

    fn send_check(&mut self, now: Instant, out: &mut Vec<Vec<u8>>) {
        let Some((remote, key)) = &self.remote else { return };
        self.check_due = now + if self.is_answered { CONSENT_EVERY } else { CHECK_AGAIN };
        self.checks += 1;
        self.check.0[4..].copy_from_slice(&self.checks.to_be_bytes());
        let mut check = Vec::with_capacity(128);
        let username = format!("{}:{}", remote.credentials.ufrag, self.credentials.ufrag);
        let mut writer = Writer::new(&mut check, Method::Binding, Class::Request, self.check);
        writer.attribute(attr::USERNAME, username.as_bytes()).u32(attr::PRIORITY, PRIORITY);
        writer.attribute(attr::ICE_CONTROLLING, &[7; 8]).attribute(attr::USE_CANDIDATE, &[]);
        writer.integrity(|bytes| key.sign(&[bytes])).fingerprint();
        out.push(check);
    }

    /// A datagram from the server.
    pub fn handle(&mut self, now: Instant, from: SocketAddr, datagram: &mut [u8], out: &mut Vec<Vec<u8>>) -> Incoming {
        match demux::datagram(datagram) {
            DatagramKind::Stun => self.handle_stun(now, from, datagram, out),
            DatagramKind::Dtls => {
                let Some(dtls) = &mut self.dtls else { return Incoming::Refused };
                if let Err(error) = dtls.handle(now, datagram, &mut self.dtls_out) {
                    return Incoming::Ended(error.to_string());
                }
                self.drain_dtls(out)
            }
            DatagramKind::Rtp => self.handle_media(datagram),
            DatagramKind::Quic | DatagramKind::ChannelData | DatagramKind::Unknown => Incoming::Refused,
        }
    }

    fn handle_stun(&mut self, now: Instant, from: SocketAddr, datagram: &[u8], out: &mut Vec<Vec<u8>>) -> Incoming {
        let (Ok(message), Some((_, key))) = (Message::decode(datagram), &self.remote) else { return Incoming::Refused };
        let fits = |key: &HmacSha1| message.integrity().is_some_and(|i| key.verify(&[&i.header, i.rest], i.tag));
        match (message.method, message.class) {
            (Method::Binding, Class::Success) if self.is_ours(message.transaction_id()) && fits(key) => {
                if !std::mem::replace(&mut self.is_answered, true) {
                    self.check_due = now + CONSENT_EVERY;
                    let Some(dtls) = &mut self.dtls else { return Incoming::Refused };
                    if let Err(error) = dtls.start(now, &mut self.dtls_out) {
                        return Incoming::Ended(error.to_string());
                    }
                }
                self.drain_dtls(out)
            }
            (Method::Binding, Class::Request) if fits(&self.own_key) => {
                let mut answer = Vec::with_capacity(96);
                let mut writer = Writer::new(&mut answer, Method::Binding, Class::Success, message.transaction_id());
                writer.xor_address(attr::XOR_MAPPED_ADDRESS, from).integrity(|b| self.own_key.sign(&[b])).fingerprint();
                out.push(answer);
                Incoming::Other
            }
            _ => Incoming::Refused,
        }
    }

    /// Any of our checks: the way may be longer than the time between two.
    fn is_ours(&self, id: TransactionId) -> bool {
        let (zeros, number) = id.0.split_at(4);
        zeros == [0; 4] && number.try_into().is_ok_and(|n| (1..=self.checks).contains(&u64::from_be_bytes(n)))
    }

    fn handle_media(&mut self, packet: &mut [u8]) -> Incoming {
        let Some((receiver, _)) = &mut self.keys else { return Incoming::Refused };
        if demux::is_rtcp(packet) {
            return receiver.unprotect_rtcp(packet).map_or(Incoming::Refused, Incoming::Feedback);
        }
        let Ok((header, len, index)) = receiver.unprotect_rtp(packet) else { return Incoming::Refused };
        header.payload(&packet[..len]).map_or(Incoming::Refused, |payload| Incoming::Media(header, payload, index))
    }

    fn drain_dtls(&mut self, out: &mut Vec<Vec<u8>>) -> Incoming {
        let mut outcome = Incoming::Other;
        for effect in std::mem::take(&mut self.dtls_out) {
            match effect {
                dtls::Effect::Send(bytes) => out.push(bytes),
                dtls::Effect::Keys { use_srtp, material, role } => {
                    let profile = Profile::from_use_srtp(use_srtp);
                    self.keys = profile.and_then(|p| srtp::from_exported(p, &material, role == dtls::Role::Client));
                }
                dtls::Effect::Connected | dtls::Effect::Data(_) => {}
                dtls::Effect::PeerClosed => outcome = Incoming::Ended("the server said goodbye".into()),
            }
        }
        let is_up = self.keys.is_some() && self.dtls.as_ref().is_some_and(Dtls::is_established);
        if is_up && !std::mem::replace(&mut self.is_live, true) {
            return Incoming::Live;
        }
        outcome
    }

    /// Protects what is sent; `None` before there are keys.
    pub fn sender(&self) -> Option<&srtp::Sender> {
        self.keys.as_ref().map(|(_, sender)| sender).filter(|_| self.is_live)
    }

    /// Protects a compound of reports; `None` before there are keys.
    pub fn protect_reports(&mut self, mut compound: Vec<u8>) -> Option<Vec<u8>> {
        let (_, sender) = self.keys.as_mut().filter(|_| self.is_live)?;
        sender.protect_rtcp(&mut compound);
        Some(compound)
    }

    pub fn close(&mut self, out: &mut Vec<Vec<u8>>) {
        if let Some(dtls) = &mut self.dtls {
            dtls.close(&mut self.dtls_out);
        }
        self.drain_dtls(out);
    }
}
