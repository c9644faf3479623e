//! One DTLS association over the sans-IO crate `dimpl`; yields SRTP keys (RFC 5764) and carries SCTP (RFC 8261).
//!
//! 1. As server: hold the first datagrams until the ClientHello is whole, look at its SRTP profiles, choose the version
//!    so that an AEAD wins, replay the datagrams unchanged. As client: speak first.
//! 2. Handshake. The peer's certificate must match the fingerprint of its description; a certificate is required.
//! 3. Keys, then application data.
//!
//! The crate's 1.3 server takes the client's first profile while its 1.2 server prefers GCM, and it never repeats a lost
//! final ACK; both are dealt with here until it learns to. What it returns as an error ends the session.

mod verifier;

use crate::base::time::{Anchor, Duration, Instant};
use crate::crypto;
use crate::wire::dtls::{HelloAssembler, SrtpOffer};
use crate::wire::sdp::Fingerprint;
use dimpl::{Config, Dtls as Association, DtlsCertificate, Output, SrtpProfile};
use std::sync::Arc;

/// First retransmission; Firefox as client never repeats its Finished by itself, so ours must come soon.
const FIRST_RETRANSMIT: Duration = Duration::from_millis(100);
const RETRANSMITS: usize = 9;
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(30);
/// Largest datagram of a flight, bytes: fits a path of 1280 with TURN and IPv6 around it.
const MTU: usize = 1150;
/// Datagrams held while the hello is incomplete.
const HELD_MAX: usize = 4;
/// Rooms for one record in and out of the crate.
const RECORD_MAX: usize = 4096;

/// Certificate and key of this process; made once, announced in every answer.
#[derive(Clone)]
pub struct Identity {
    certificate: DtlsCertificate,
    fingerprint: String,
    config: Arc<Config>,
}

impl Identity {
    /// A fresh self-signed P-256 certificate.
    pub fn generate() -> Result<Self, String> {
        let certificate = dimpl::certificate::generate_self_signed_certificate().map_err(|e| format!("DTLS certificate: {e}"))?;
        let digest = crypto::digest("sha-256", &certificate.certificate).unwrap_or_default();
        let fingerprint = digest.iter().map(|b| format!("{b:02X}")).collect::<Vec<_>>().join(":");
        let config = Config::builder()
            .mtu(MTU)
            .with_crypto_provider(verifier::provider())
            .use_server_cookie(false)
            .require_client_certificate(true)
            .flight_start_rto(FIRST_RETRANSMIT)
            .flight_retries(RETRANSMITS)
            .handshake_timeout(HANDSHAKE_WITHIN)
            .build()
            .map_err(|e| format!("DTLS settings: {e}"))?;
        Ok(Self { certificate, fingerprint, config: Arc::new(config) })
    }

    /// `AA:BB:…` of the SHA-256 digest, as `a=fingerprint` wants it.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
}

/// Who speaks first (RFC 8842 §5.2): the client sends the hello.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    #[default]
    Server,
    Client,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Effect {
    /// A datagram for the peer.
    Send(Vec<u8>),
    /// Exported keys; `use_srtp` is the profile's number (RFC 5764 §4.1.2).
    Keys {
        use_srtp: u16,
        material: Vec<u8>,
        role: Role,
    },
    Connected,
    Data(Vec<u8>),
    /// The peer said goodbye.
    PeerClosed,
}

/// Why an association ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DtlsError {
    #[error("{0}")]
    Protocol(String),
    #[error("the certificate is not the one that signalling announced")]
    FingerprintMismatch,
    #[error("the handshake ended without a certificate")]
    NoCertificate,
}

enum State {
    AwaitHello { held: Vec<Vec<u8>>, hello: HelloAssembler },
    AwaitFinish(Box<Association>),
    Established(Box<Association>),
}

pub struct Dtls {
    identity: Identity,
    anchor: Anchor,
    role: Role,
    remote: Fingerprint,
    state: State,
    is_verified: bool,
    deadline: Option<Instant>,
    /// The record that acknowledged the client's last flight: repeated whenever that flight comes again.
    final_ack: Option<Vec<u8>>,
}

impl Dtls {
    pub fn new(identity: Identity, anchor: Anchor, role: Role, remote: Fingerprint) -> Self {
        let state = State::AwaitHello { held: Vec::new(), hello: HelloAssembler::default() };
        Self { identity, anchor, role, remote, state, is_verified: false, deadline: None, final_ack: None }
    }

    pub fn role(&self) -> Role {
        self.role
    }

    pub fn is_established(&self) -> bool {
        matches!(self.state, State::Established(_))
    }

    /// As client: sends the hello. Call once a path is there; calling again changes nothing.
    pub fn start(&mut self, now: Instant, out: &mut Vec<Effect>) -> Result<(), DtlsError> {
        if self.role == Role::Client && matches!(self.state, State::AwaitHello { .. }) {
            let (config, certificate) = (Arc::clone(&self.identity.config), self.identity.certificate.clone());
            let mut association = Association::new_auto(config, certificate, self.anchor.to_std(now));
            association.set_active(true);
            self.state = State::AwaitFinish(Box::new(association));
            return self.wake(now, out);
        }
        Ok(())
    }

    pub fn handle(&mut self, now: Instant, datagram: &[u8], out: &mut Vec<Effect>) -> Result<(), DtlsError> {
        if let State::AwaitHello { held, hello } = &mut self.state {
            if self.role == Role::Client {
                return Ok(());
            }
            let offer = hello.push(datagram);
            held.push(datagram.to_vec());
            if offer.is_none() && held.len() < HELD_MAX {
                return Ok(());
            }
            let held = std::mem::take(held);
            let (config, certificate) = (Arc::clone(&self.identity.config), self.identity.certificate.clone());
            let at = self.anchor.to_std(now);
            let association = match offer {
                Some(SrtpOffer::GcmBehindCm) => Association::new_12(config, certificate, at),
                _ => Association::new_auto(config, certificate, at),
            };
            self.state = State::AwaitFinish(Box::new(association));
            return held.iter().try_for_each(|d| self.feed(now, d, out));
        }
        if let Some(ack) = &self.final_ack
            && is_epoch(datagram, 2)
        {
            out.push(Effect::Send(ack.clone()));
        }
        self.feed(now, datagram, out)
    }

    fn feed(&mut self, now: Instant, datagram: &[u8], out: &mut Vec<Effect>) -> Result<(), DtlsError> {
        let at = self.anchor.to_std(now);
        if let Some(association) = self.association() {
            association.handle_timeout(at).map_err(protocol)?;
            let outcome = association.handle_packet(datagram).map_err(protocol);
            // An alert may wait for the peer even after an error.
            let drained = self.drain(out);
            outcome.and(drained)
        } else {
            Ok(())
        }
    }

    /// Sends application data; it leaves as one record.
    pub fn send(&mut self, data: &[u8], out: &mut Vec<Effect>) -> Result<(), DtlsError> {
        if let State::Established(association) = &mut self.state {
            association.send_application_data(data).map_err(protocol)?;
            self.drain(out)?;
        }
        Ok(())
    }

    pub fn close(&mut self, out: &mut Vec<Effect>) {
        if let State::Established(association) = &mut self.state
            && association.close().is_ok()
        {
            let _ = self.drain(out);
        }
    }

    pub fn wake(&mut self, now: Instant, out: &mut Vec<Effect>) -> Result<(), DtlsError> {
        let at = self.anchor.to_std(now);
        if let Some(association) = self.association() {
            association.handle_timeout(at).map_err(protocol)?;
            self.drain(out)?;
        }
        Ok(())
    }

    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    fn association(&mut self) -> Option<&mut Association> {
        match &mut self.state {
            State::AwaitHello { .. } => None,
            State::AwaitFinish(association) | State::Established(association) => Some(association),
        }
    }

    fn drain(&mut self, out: &mut Vec<Effect>) -> Result<(), DtlsError> {
        let (anchor, role) = (self.anchor, self.role);
        let mut buf = vec![0; RECORD_MAX];
        let mut has_finished = false;
        loop {
            let Some(association) = self.association() else { return Ok(()) };
            match association.poll_output(&mut buf) {
                Output::Packet(packet) => {
                    if self.final_ack.is_none() && role == Role::Server && is_epoch(packet, 3) {
                        self.final_ack = Some(packet.to_vec());
                    }
                    out.push(Effect::Send(packet.to_vec()));
                }
                Output::BufferTooSmall { needed } => buf.resize(needed, 0),
                Output::Timeout(at) => {
                    self.deadline = Some(anchor.from_std(at));
                    break;
                }
                Output::PeerCert(der) => {
                    let digest = crypto::digest(&self.remote.hash, der);
                    if !digest.is_some_and(|d| crypto::equal(&d, &self.remote.digest)) {
                        return Err(DtlsError::FingerprintMismatch);
                    }
                    self.is_verified = true;
                }
                Output::KeyingMaterial(material, profile) => {
                    let use_srtp = match profile {
                        SrtpProfile::AES128_CM_SHA1_80 => 1,
                        SrtpProfile::AEAD_AES_128_GCM => 7,
                        SrtpProfile::AEAD_AES_256_GCM => 8,
                        other => return Err(DtlsError::Protocol(format!("SRTP profile {other:?}"))),
                    };
                    out.push(Effect::Keys { use_srtp, material: material.to_vec(), role });
                }
                Output::Connected => {
                    has_finished = true;
                    out.push(Effect::Connected);
                }
                Output::ApplicationData(data) => out.push(Effect::Data(data.to_vec())),
                Output::CloseNotify => out.push(Effect::PeerClosed),
                _ => {}
            }
        }
        if has_finished {
            if !self.is_verified {
                return Err(DtlsError::NoCertificate);
            }
            let nothing = State::AwaitHello { held: Vec::new(), hello: HelloAssembler::default() };
            if let State::AwaitFinish(association) = std::mem::replace(&mut self.state, nothing) {
                self.state = State::Established(association);
            }
        }
        Ok(())
    }
}

/// Whether a DTLS 1.3 record carries these low bits of its epoch (RFC 9147 §4): 2 handshake, 3 application.
fn is_epoch(record: &[u8], epoch: u8) -> bool {
    record.first().is_some_and(|b| b & 0xE3 == 0x20 | epoch)
}

fn protocol(error: dimpl::Error) -> DtlsError {
    DtlsError::Protocol(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fingerprint_of(identity: &Identity) -> Fingerprint {
        let digest = crypto::digest("sha-256", &identity.certificate.certificate).expect("sha-256");
        Fingerprint { hash: "sha-256".into(), digest }
    }

    /// Two ends and the datagrams between them; `lose` drops the n-th datagram of the whole exchange.
    struct Pair {
        ends: [Dtls; 2],
        effects: [Vec<Effect>; 2],
        sent: usize,
    }

    impl Pair {
        fn new(server_knows: Option<Fingerprint>) -> Self {
            #[allow(clippy::disallowed_methods, reason = "any anchor will do")]
            let anchor = Anchor::new(std::time::Instant::now());
            let (a, b) = (Identity::generate().expect("a"), Identity::generate().expect("b"));
            let client = Dtls::new(a.clone(), anchor, Role::Client, fingerprint_of(&b));
            let server = Dtls::new(b, anchor, Role::Server, server_knows.unwrap_or_else(|| fingerprint_of(&a)));
            Self { ends: [client, server], effects: [Vec::new(), Vec::new()], sent: 0 }
        }

        /// Runs until both are established, at most ten virtual seconds.
        fn run(&mut self, lose: Option<usize>) -> Result<(), DtlsError> {
            let mut out = Vec::new();
            self.ends[0].start(Instant::from_millis(0), &mut out)?;
            let mut wire: Vec<(usize, Vec<u8>)> = Vec::new();
            for ms in 0..10_000 {
                let now = Instant::from_millis(ms);
                for end in 0..2 {
                    if self.ends[end].deadline().is_some_and(|at| at <= now) {
                        self.ends[end].wake(now, &mut out)?;
                    }
                    self.collect(end, &mut out, &mut wire, lose);
                }
                while !wire.is_empty() {
                    let (to, datagram) = wire.remove(0);
                    self.ends[to].handle(now, &datagram, &mut out)?;
                    self.collect(to, &mut out, &mut wire, lose);
                }
                if self.ends.iter().all(Dtls::is_established) {
                    return Ok(());
                }
            }
            Err(DtlsError::Protocol("not established in time".into()))
        }

        fn collect(&mut self, from: usize, out: &mut Vec<Effect>, wire: &mut Vec<(usize, Vec<u8>)>, lose: Option<usize>) {
            for effect in out.drain(..) {
                match effect {
                    Effect::Send(datagram) => {
                        self.sent += 1;
                        if lose != Some(self.sent) {
                            wire.push((1 - from, datagram));
                        }
                    }
                    other => self.effects[from].push(other),
                }
            }
        }

        fn keys(&self, end: usize) -> Option<(u16, Vec<u8>)> {
            self.effects[end].iter().find_map(|e| match e {
                Effect::Keys { use_srtp, material, .. } => Some((*use_srtp, material.clone())),
                _ => None,
            })
        }
    }

    #[test]
    fn both_roles_agree_on_keys_and_pass_data() {
        let mut pair = Pair::new(None);
        pair.run(None).expect("no loss");
        assert!(pair.keys(0).is_some() && pair.keys(0) == pair.keys(1));
        let (mut sent, mut got) = (Vec::new(), Vec::new());
        pair.ends[0].send(b"hello", &mut sent).expect("established");
        let Some(Effect::Send(datagram)) = sent.first() else { panic!("one record") };
        pair.ends[1].handle(Instant::from_millis(20_000), datagram, &mut got).expect("good");
        assert_eq!(got, [Effect::Data(b"hello".to_vec())]);
    }

    #[test]
    fn any_single_lost_datagram_is_survived() {
        for lost in 1..=8 {
            Pair::new(None).run(Some(lost)).unwrap_or_else(|e| panic!("datagram {lost} lost: {e:?}"));
        }
    }

    #[test]
    fn another_certificate_than_announced_ends_it() {
        let wrong = Fingerprint { hash: "sha-256".into(), digest: vec![0; 32] };
        assert_eq!(Pair::new(Some(wrong)).run(None), Err(DtlsError::FingerprintMismatch));
        let unknown = Fingerprint { hash: "sha-1".into(), digest: vec![0; 20] };
        assert_eq!(Pair::new(Some(unknown)).run(None), Err(DtlsError::FingerprintMismatch));
    }
}
