//! Floor 3: one participant's transport. Composes ICE, DTLS, SRTP, SCTP and its RTP streams:
//! `Checking -> Handshaking -> Live -> Closing`.
//!
//! A session knows its own keys and numbers. It does not know who else is in the room: media that it unprotects goes up
//! to the shard, and comes down to the sessions that hear it.

mod hearing;
mod media;
pub mod negotiate;
pub mod path;
pub mod quality;

pub use hearing::{FORWARD_OVERHEAD_MAX, Passage};
pub use media::Media;

use crate::base::id::{PathId, SessionId, TrackId};
use crate::base::time::{Anchor, Duration, Instant};
use crate::engine::dtls::{self, Dtls, Identity};
use crate::engine::ice::{self, Credentials, Ice, IceDrop};
use crate::engine::rtp_in::{Arrivals, SenderClock};
use crate::engine::sctp::{self, Sctp};
use crate::engine::sent::Told;
use crate::engine::srtp::{self, Profile, SrtpError};
use crate::wire::data_packet::Delivery;
use crate::wire::dcep::{Limit, Reliability};
use crate::wire::stun::Message;
use hearing::{Hearing, Outgoing};
use media::{Compounds, NACKS_MAX, RoundTrip, Source, TOLD_MAX};
use negotiate::{Plan, Receive};
use quality::{Meter, Sample};
use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;

/// How often reports leave.
const REPORT_INTERVAL: Duration = Duration::from_millis(1000);
/// How long after its arrival a participant may take to open its channels, and what waits for that at most, bytes.
const CHANNEL_WITHIN: Duration = Duration::from_secs(20);
const EARLY_MESSAGES_MAX: usize = 128 * 1024;
/// Sources that one session may have sent in all its life.
const SPENT_MAX: usize = 65_536;

/// Life of a transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Checking,
    Handshaking,
    Live,
    Closing,
}

/// Why a session ended by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    HandshakeFailed,
    /// The certificate is not the one that signalling announced.
    FingerprintMismatch,
    /// The client said goodbye over DTLS.
    PeerClosed,
    /// The client does not take its reliable messages.
    DataStalled,
    /// Our own fault.
    Panicked,
}

/// Why a packet of this participant came to nothing. Each is a counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionDrop {
    Ice(IceDrop),
    /// Media before the handshake gave keys.
    BeforeKeys,
    Srtp(SrtpError),
    /// RTP whose source, mid, rid or payload type no section announced.
    UnknownSource,
    MalformedRtp,
    /// It came before: as itself, or as a retransmission.
    Duplicate,
    /// Too far behind the newest of its source.
    TooOld,
    /// A path that never passed a check.
    UncheckedPath,
}

#[derive(Debug)]
pub enum Effect {
    /// Bytes for the client over this path.
    Send {
        path: PathId,
        bytes: Vec<u8>,
    },
    PathValidated(PathId),
    PathSelected(PathId),
    /// A path that gave way to newer ones.
    PathDropped(PathId),
    /// Keys are there: media flows.
    Live {
        profile: Profile,
    },
    /// The client wants a picture it can start from.
    KeyFrameWanted(TrackId),
    /// The client missed a packet of ours.
    Resend {
        track: TrackId,
        layer: u8,
        sequence: u64,
    },
    /// It asked for one that is not ours, too old, or on its way already.
    ResendRefused,
    /// The client said goodbye to the source of this layer (RFC 3550 §6.6). It may take it up again.
    LayerEnded {
        track: TrackId,
        layer: u8,
    },
    /// So many packets were asked for from the client.
    Nacked(usize),
    /// What became of packets that went to the client.
    Told(Told),
    /// What the client did not repair: a hearer needs a key frame.
    PictureLost {
        track: TrackId,
        layer: u8,
    },
    Data {
        delivery: Delivery,
        bytes: Vec<u8>,
    },
    /// A packet of a data track.
    DataTrack(Vec<u8>),
    /// The client's path takes nothing of a stream any longer, or again.
    StreamState {
        track: TrackId,
        is_paused: bool,
    },
    /// The client gets another layer of a picture.
    Layer {
        track: TrackId,
        layer: u8,
    },
    /// Nothing has come for some seconds.
    Silent {
        was_busy: bool,
    },
    /// What the transport was like lately.
    Sampled(Sample),
    /// No authenticated check or media for 15 s, or never one: nothing leaves until one comes.
    Unreachable,
    /// It ended by itself; the text is for the log.
    Ended(End, String),
}

pub struct Session {
    pub id: SessionId,
    state: State,
    /// It fails at its next packet, for tests of what happens then.
    #[cfg(any(test, feature = "sim"))]
    pub is_broken: bool,
    anchor: Anchor,
    identity: Identity,
    ice: Ice,
    dtls: Option<Dtls>,
    /// Its keys; none before the handshake.
    receiver: Option<srtp::Receiver>,
    hearing: Hearing,
    sctp: Sctp,
    /// The channels are ours to open.
    opens_channels: bool,
    /// Reliable messages that came before the channel for them, and until when that is waited for.
    early_messages: Vec<Vec<u8>>,
    channel_due: Instant,
    receive: Vec<Receive>,
    sources: HashMap<u32, Source>,
    /// Sources in the order they came: reports go round in it.
    source_order: Vec<u32>,
    retired: VecDeque<u32>,
    /// Sources of retransmissions, and whose they are.
    repairs: HashMap<u32, u32>,
    arrivals: Arrivals,
    clock: SenderClock,
    round_trip: RoundTrip,
    /// Lost packets that came again with later ones, for the shard to fetch.
    recovered: Vec<Media>,
    /// Sources that ended since the last report.
    gone: Vec<u32>,
    /// Packets that the client may ask for until the next report.
    nacks_left: usize,
    /// Packets that it may tell about until then.
    told_left: usize,
    /// Sources that are no longer sent, and the number that each would go on with: under one key none is used twice.
    spent: HashMap<u32, u64>,
    /// Our name in RTCP that is not about a stream of ours.
    rtcp_ssrc: u32,
    report_due: Instant,
    meter: Meter,
    /// Streams that the client's path stopped or lets go on, to be told.
    stream_news: Vec<(TrackId, bool)>,
    last_path: Option<PathId>,
    ice_out: Vec<ice::Effect>,
    dtls_out: Vec<dtls::Effect>,
    sctp_out: Vec<sctp::Effect>,
}

impl Session {
    pub fn new(now: Instant, id: SessionId, anchor: Anchor, identity: Identity, local: &Credentials, rtcp_ssrc: u32) -> Self {
        Self {
            id,
            #[cfg(any(test, feature = "sim"))]
            is_broken: false,
            state: State::Checking,
            anchor,
            identity,
            ice: Ice::new(now, local),
            dtls: None,
            receiver: None,
            hearing: Hearing::default(),
            sctp: Sctp::new(anchor),
            opens_channels: false,
            early_messages: Vec::new(),
            channel_due: now + CHANNEL_WITHIN,
            receive: Vec::new(),
            sources: HashMap::new(),
            source_order: Vec::new(),
            retired: VecDeque::new(),
            repairs: HashMap::new(),
            arrivals: Arrivals::default(),
            clock: SenderClock::default(),
            round_trip: RoundTrip::default(),
            recovered: Vec::new(),
            gone: Vec::new(),
            nacks_left: NACKS_MAX,
            told_left: TOLD_MAX,
            spent: HashMap::new(),
            rtcp_ssrc,
            report_due: now + REPORT_INTERVAL,
            meter: Meter::default(),
            stream_news: Vec::new(),
            last_path: None,
            ice_out: Vec::new(),
            dtls_out: Vec::new(),
            sctp_out: Vec::new(),
        }
    }

    /// Has the room protocol's channels opened by us, as soon as there is a transport.
    pub fn open_channels(&mut self) {
        self.opens_channels = true;
    }

    pub fn state(&self) -> State {
        self.state
    }

    pub fn profile(&self) -> Option<Profile> {
        self.receiver.as_ref().map(srtp::Receiver::profile)
    }

    /// Where media goes: the path the client chose, before that the last one it used.
    pub fn path(&self) -> Option<PathId> {
        self.ice.selected().or(self.last_path)
    }

    /// All paths that passed a check.
    pub fn paths(&self) -> impl Iterator<Item = PathId> + '_ {
        self.ice.paths()
    }

    /// Takes a finished negotiation. Streams that are in both plans go on with their numbers.
    pub fn apply(&mut self, now: Instant, plan: Plan) {
        self.ice.restart(&plan.credentials);
        self.ice.set_remote_ufrag(now, &plan.remote_ufrag);
        if self.dtls.is_none() {
            self.dtls = Some(Dtls::new(self.identity.clone(), self.anchor, plan.role, plan.remote_fingerprint));
        }
        let receive = plan.receive;
        for section in &self.receive {
            let is_gone = !receive.iter().any(|r| r.mid == section.mid && r.track == section.track);
            if is_gone {
                let old = self.receive.iter().position(|r| r.mid == section.mid);
                self.sources.retain(|_, s| Some(s.section) != old);
            }
        }
        let moved: HashMap<usize, usize> =
            self.receive.iter().enumerate().filter_map(|(old, r)| Some((old, receive.iter().position(|n| n.mid == r.mid)?))).collect();
        self.sources.retain(|_, source| match moved.get(&source.section) {
            Some(section) => {
                source.section = *section;
                true
            }
            None => false,
        });
        self.source_order.retain(|ssrc| self.sources.contains_key(ssrc));
        self.receive = receive;
        let goes_on = |o: &Outgoing| plan.send.iter().any(|p| p.track == o.plan.track && p.ssrc == o.plan.ssrc);
        let (mut before, gone): (Vec<_>, Vec<_>) = self.hearing.take_streams().into_iter().partition(goes_on);
        self.spent.extend(gone.iter().flat_map(Outgoing::spent));
        self.gone.extend(gone.iter().map(|o| o.plan.ssrc.0));
        let mut streams: Vec<Outgoing> = Vec::with_capacity(plan.send.len());
        for plan in plan.send {
            let known = before.iter().position(|o| o.plan.track == plan.track && o.plan.ssrc == plan.ssrc);
            streams.push(match known {
                Some(at) => before.swap_remove(at).replan(plan),
                None if streams.iter().any(|o| o.plan.ssrc == plan.ssrc) || self.spent.len() > SPENT_MAX => continue,
                None => Outgoing::new(plan, &self.spent),
            });
        }
        self.gone.retain(|ssrc| !streams.iter().any(|o| o.plan.ssrc.0 == *ssrc));
        self.hearing.set_streams(streams);
    }

    /// A STUN message that names our ufrag, over `path`, from `seen_as`.
    pub fn handle_check(
        &mut self,
        now: Instant,
        path: PathId,
        seen_as: SocketAddr,
        check: &Message<'_>,
        out: &mut Vec<Effect>,
    ) -> Result<(), SessionDrop> {
        let mut reply = Vec::new();
        let outcome = self.ice.handle(now, path, seen_as, check, &mut reply, &mut self.ice_out);
        if !reply.is_empty() {
            out.push(Effect::Send { path, bytes: reply });
        }
        outcome.map_err(SessionDrop::Ice)?;
        self.last_path = Some(path);
        self.drain_ice(out);
        if self.state == State::Checking {
            self.state = State::Handshaking;
        }
        if let Some(dtls) = &mut self.dtls
            && let Err(error) = dtls.start(now, &mut self.dtls_out)
        {
            self.fail(error, out);
        }
        self.drain_dtls(now, out);
        Ok(())
    }

    pub fn handle_dtls(&mut self, now: Instant, path: PathId, datagram: &[u8], out: &mut Vec<Effect>) -> Result<(), SessionDrop> {
        if !self.ice.is_valid(path) {
            return Err(SessionDrop::UncheckedPath);
        }
        if self.state != State::Live {
            self.last_path = Some(path);
        }
        let Some(dtls) = &mut self.dtls else { return Err(SessionDrop::BeforeKeys) };
        let outcome = dtls.handle(now, datagram, &mut self.dtls_out);
        self.drain_dtls(now, out);
        if let Err(error) = outcome {
            self.fail(error, out);
        }
        Ok(())
    }

    fn media_arrived(&mut self, now: Instant, path: PathId, is_media: bool, out: &mut Vec<Effect>) {
        self.ice.media_arrived(now, path, is_media, &mut self.ice_out);
        if !self.ice_out.is_empty() {
            self.drain_ice(out);
        }
    }

    fn send_rtcp(&mut self, mut compound: Vec<u8>, out: &mut Vec<Effect>) {
        if let (Some(sender), Some(path)) = (&mut self.hearing.sender, self.ice.selected().or(self.last_path)) {
            sender.protect_rtcp(&mut compound);
            out.push(Effect::Send { path, bytes: compound });
        }
    }

    /// Sends a room message to this participant. Reliable ones for somebody who has just arrived wait until there is a
    /// channel: the others know of a participant before its transport is up.
    pub fn send_data(&mut self, now: Instant, delivery: Delivery, message: &[u8], out: &mut Vec<Effect>) -> Result<(), sctp::SctpDrop> {
        let label = match delivery {
            Delivery::Reliable => RELIABLE,
            Delivery::Lossy => LOSSY,
        };
        let outcome = self.sctp.send(now, label, message, &mut self.sctp_out);
        self.drain_sctp(now, out);
        if outcome == Err(sctp::SctpDrop::NoChannel) && delivery == Delivery::Reliable && now < self.channel_due {
            let held: usize = self.early_messages.iter().map(Vec::len).sum();
            if held + message.len() > EARLY_MESSAGES_MAX {
                return Err(sctp::SctpDrop::QueueFull);
            }
            self.early_messages.push(message.to_vec());
            return Ok(());
        }
        outcome
    }

    /// Sends a packet of a data track to this participant.
    pub fn send_data_track(&mut self, now: Instant, packet: &[u8], out: &mut Vec<Effect>) -> Result<(), sctp::SctpDrop> {
        let outcome = self.sctp.send(now, DATA_TRACK, packet, &mut self.sctp_out);
        self.drain_sctp(now, out);
        outcome
    }

    /// The client has said that it is back.
    pub fn await_return(&mut self, now: Instant) {
        self.ice.await_return(now);
    }

    /// A connection closed or an allocation ended.
    pub fn path_lost(&mut self, path: PathId, out: &mut Vec<Effect>) {
        if self.last_path == Some(path) {
            self.last_path = None;
        }
        self.ice.path_lost(path, &mut self.ice_out);
        self.drain_ice(out);
    }

    /// What it was like since the last sample; the last one.
    pub fn last_sample(&mut self, now: Instant) -> Sample {
        let rtt = self.round_trip.told_so_far();
        self.meter().rest(now, rtt)
    }

    /// With what has left until now.
    fn meter(&mut self) -> &mut Meter {
        self.meter.down.bytes += std::mem::take(&mut self.hearing.bytes);
        &mut self.meter
    }

    /// Says goodbye.
    pub fn close(&mut self, now: Instant, out: &mut Vec<Effect>) {
        let sources: Vec<u32> = self.hearing.streams().iter().map(|o| o.plan.ssrc.0).collect();
        let mut compounds = Compounds::default();
        if !sources.is_empty() {
            self.say_bye(&sources, &mut compounds);
        }
        for compound in compounds.0 {
            self.send_rtcp(compound, out);
        }
        if let Some(dtls) = &mut self.dtls {
            dtls.close(&mut self.dtls_out);
        }
        self.drain_dtls(now, out);
        self.state = State::Closing;
    }

    pub fn wake(&mut self, now: Instant, out: &mut Vec<Effect>) {
        self.ice.wake(now, &mut self.ice_out);
        self.drain_ice(out);
        if let Some(dtls) = &mut self.dtls
            && dtls.deadline().is_some_and(|at| at <= now)
        {
            let outcome = dtls.wake(now, &mut self.dtls_out);
            self.drain_dtls(now, out);
            if let Err(error) = outcome {
                self.fail(error, out);
                return;
            }
        }
        if self.channel_due <= now {
            self.early_messages = Vec::new();
        }
        if self.sctp.deadline().is_some_and(|at| at <= now) {
            self.sctp.wake(now, &mut self.sctp_out);
            self.drain_sctp(now, out);
        }
        let mut compounds = Compounds::default();
        let media = self.source_order.first().copied().unwrap_or(0);
        let from = self.rtcp_ssrc;
        compounds.add(|out| self.arrivals.feedback(now, from, media, out));
        if self.state == State::Live {
            self.repair(now, &mut compounds, out);
            if self.report_due <= now || self.has_news(now) {
                self.report_due = now + REPORT_INTERVAL;
                self.report(now, &mut compounds);
                let rtt = self.round_trip.told_so_far();
                out.extend(self.meter().take(now, rtt).map(Effect::Sampled));
                out.extend(self.layer_news().map(|(track, layer)| Effect::Layer { track, layer }));
                out.extend(self.stream_news.drain(..).map(|(track, is_paused)| Effect::StreamState { track, is_paused }));
            }
        } else if self.report_due <= now {
            self.report_due = now + REPORT_INTERVAL;
        }
        for compound in compounds.0 {
            self.send_rtcp(compound, out);
        }
    }

    pub fn deadline(&self) -> Instant {
        let mut deadline = self.report_due;
        let dtls = self.dtls.as_ref().and_then(Dtls::deadline);
        let more = [self.ice.deadline(), dtls, self.sctp.deadline(), self.arrivals.deadline(), self.repair_deadline()];
        for at in more.into_iter().flatten() {
            deadline = deadline.min(at);
        }
        deadline
    }

    fn fail(&mut self, error: dtls::DtlsError, out: &mut Vec<Effect>) {
        if self.state == State::Closing {
            return;
        }
        self.state = State::Closing;
        let end = match error {
            dtls::DtlsError::FingerprintMismatch | dtls::DtlsError::NoCertificate => End::FingerprintMismatch,
            dtls::DtlsError::Protocol(_) => End::HandshakeFailed,
        };
        out.push(Effect::Ended(end, error.to_string()));
    }

    fn drain_ice(&mut self, out: &mut Vec<Effect>) {
        for effect in self.ice_out.drain(..) {
            out.push(match effect {
                ice::Effect::Validated(path) => Effect::PathValidated(path),
                ice::Effect::Selected(path) => Effect::PathSelected(path),
                ice::Effect::Dropped(path) => Effect::PathDropped(path),
                ice::Effect::Silent { was_busy } => Effect::Silent { was_busy },
                // A browser waits three seconds for lost pictures before it asks for a new one.
                ice::Effect::Back => {
                    out.extend(self.hearing.streams().iter().filter(|o| o.plan.is_video()).map(|o| Effect::KeyFrameWanted(o.plan.track)));
                    continue;
                }
                ice::Effect::Unreachable => {
                    self.last_path = None;
                    Effect::Unreachable
                }
            });
        }
    }

    fn drain_dtls(&mut self, now: Instant, out: &mut Vec<Effect>) {
        let mut effects = std::mem::take(&mut self.dtls_out);
        for effect in effects.drain(..) {
            match effect {
                dtls::Effect::Send(bytes) => {
                    if let Some(path) = self.path() {
                        out.push(Effect::Send { path, bytes });
                    }
                }
                dtls::Effect::Keys { use_srtp, material, role } => {
                    let is_client = role == dtls::Role::Client;
                    let keys = Profile::from_use_srtp(use_srtp).and_then(|p| srtp::from_exported(p, &material, is_client));
                    (self.receiver, self.hearing.sender) = keys.unzip();
                    self.go_live(out);
                }
                dtls::Effect::Connected => self.go_live(out),
                dtls::Effect::Data(bytes) => self.sctp.handle(now, bytes, &mut self.sctp_out),
                dtls::Effect::PeerClosed => {
                    if self.state != State::Closing {
                        self.state = State::Closing;
                        out.push(Effect::Ended(End::PeerClosed, String::new()));
                    }
                }
            }
        }
        self.dtls_out = effects;
        if !self.sctp_out.is_empty() {
            self.drain_sctp(now, out);
        }
    }

    /// Media flows once the handshake has ended and has given keys; either may be told first.
    fn go_live(&mut self, out: &mut Vec<Effect>) {
        let is_established = self.dtls.as_ref().is_some_and(Dtls::is_established);
        if let (Some(dtls), true) = (&self.dtls, self.opens_channels) {
            self.sctp.open_channels(CHANNELS, dtls.role() == dtls::Role::Client);
        }
        if let Some(profile) = self.profile().filter(|_| is_established && self.state == State::Handshaking) {
            self.state = State::Live;
            out.push(Effect::Live { profile });
        }
    }

    fn drain_sctp(&mut self, now: Instant, out: &mut Vec<Effect>) {
        let mut effects = std::mem::take(&mut self.sctp_out);
        let mut opened = false;
        for effect in effects.drain(..) {
            match effect {
                sctp::Effect::Send(packet) => {
                    if let Some(dtls) = &mut self.dtls
                        && let Err(error) = dtls.send(&packet, &mut self.dtls_out)
                    {
                        self.fail(error, out);
                    }
                }
                sctp::Effect::Message { label, bytes } => {
                    let delivery = match label.as_str() {
                        RELIABLE => Delivery::Reliable,
                        LOSSY => Delivery::Lossy,
                        DATA_TRACK => {
                            out.push(Effect::DataTrack(bytes));
                            continue;
                        }
                        _ => continue,
                    };
                    out.push(Effect::Data { delivery, bytes });
                }
                sctp::Effect::Stalled => {
                    if self.state != State::Closing {
                        self.state = State::Closing;
                        out.push(Effect::Ended(End::DataStalled, String::new()));
                    }
                }
                sctp::Effect::Opened { label } => opened |= label == RELIABLE,
                sctp::Effect::Lost => {}
            }
        }
        self.sctp_out = effects;
        if opened {
            for message in std::mem::take(&mut self.early_messages) {
                // Fits: it is less than what may wait for a channel.
                let _ = self.sctp.send(now, RELIABLE, &message, &mut self.sctp_out);
            }
            return self.drain_sctp(now, out);
        }
        if !self.dtls_out.is_empty() {
            self.drain_dtls(now, out);
        }
    }
}

/// Labels of the room protocol's channels.
const RELIABLE: &str = "_reliable";
const LOSSY: &str = "_lossy";
const DATA_TRACK: &str = "_data_track";
/// The channels, for clients that have them opened by the server.
const CHANNELS: &[sctp::Wanted] = &[
    (RELIABLE, Reliability { unordered: false, limit: Limit::None }),
    (LOSSY, Reliability { unordered: true, limit: Limit::Retransmits(0) }),
    (DATA_TRACK, Reliability { unordered: true, limit: Limit::Retransmits(0) }),
];

#[cfg(test)]
mod tests;
