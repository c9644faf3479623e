//! Floor 3: one participant's transport. Composes ICE, DTLS, SRTP, SCTP and its RTP streams:
//! `Checking -> Handshaking -> Live -> Closing`.
//!
//! A session knows its own keys and numbers. It does not know who else is in the room: media that it unprotects goes up
//! to the shard, and comes down to the sessions that hear it.

pub mod negotiate;
pub mod path;

use crate::base::id::{PathId, SessionId, TrackId};
use crate::base::time::{Anchor, Duration, Instant};
use crate::engine::dtls::{self, Dtls, Identity};
use crate::engine::ice::{self, Credentials, Ice, IceDrop};
use crate::engine::rtp_in::{Arrivals, RtpIn};
use crate::engine::rtp_out::{Input, RtpOut};
use crate::engine::sctp::{self, Sctp};
use crate::engine::srtp::{self, Profile, SrtpError};
use crate::wire::data_packet::Delivery;
use crate::wire::rtcp::{self, SenderInfo};
use crate::wire::rtp::{self, Codec, Extension, ExtensionMap, FrameInfo};
use crate::wire::sdp::Format;
use crate::wire::stun::Message;
use crate::wire::vp8;
use negotiate::{Plan, Receive};
use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::ops::Range;

/// How often receiver reports leave.
const REPORT_INTERVAL: Duration = Duration::from_millis(1000);
/// Replaced sources that are remembered, so that they do not come back.
const RETIRED_MAX: usize = 64;
/// Room that a forwarded packet needs beyond its payload: header, extensions, tag.
pub const FORWARD_OVERHEAD_MAX: usize = 12 + 60 + 4 + 128 + 16;

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
    /// No authenticated check or media for 15 s, or never one.
    ConsentLost,
    HandshakeFailed,
    /// The certificate is not the one that signalling announced.
    FingerprintMismatch,
    /// The client said goodbye over DTLS.
    PeerClosed,
    /// The client does not take its reliable messages.
    DataStalled,
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
    SenderReport {
        track: TrackId,
        layer: u8,
        info: SenderInfo,
    },
    Data {
        delivery: Delivery,
        bytes: Vec<u8>,
    },
    Ended(End),
}

/// A decrypted packet on its way to its hearers; `header` and `payload` point into the packet's bytes.
pub struct Media {
    pub track: TrackId,
    pub layer: u8,
    pub format: Format,
    pub header: rtp::Header,
    pub payload: Range<usize>,
    /// Extended sequence number.
    pub sequence: u64,
    /// The sender's clock, NTP format.
    pub ntp: Option<u64>,
    pub frame: FrameInfo,
    /// Which id the sender gave each extension.
    pub extensions: ExtensionMap,
    /// RFC 6464: -dBov, 0 loudest, 127 silent.
    pub audio_level: Option<u8>,
}

struct Source {
    section: usize,
    layer: u8,
    stream: RtpIn,
}

struct Outgoing {
    plan: negotiate::Send,
    stream: RtpOut,
    cname_due: Instant,
}

pub struct Session {
    pub id: SessionId,
    state: State,
    anchor: Anchor,
    identity: Identity,
    ice: Ice,
    dtls: Option<Dtls>,
    keys: Option<(srtp::Receiver, srtp::Sender)>,
    sctp: Sctp,
    receive: Vec<Receive>,
    sources: HashMap<u32, Source>,
    /// Sources in the order they came: reports go round in it.
    source_order: Vec<u32>,
    retired: VecDeque<u32>,
    arrivals: Arrivals,
    outgoing: Vec<Outgoing>,
    /// Our name in RTCP that is not about a stream of ours.
    rtcp_ssrc: u32,
    report_due: Instant,
    last_path: Option<PathId>,
    ice_out: Vec<ice::Effect>,
    dtls_out: Vec<dtls::Effect>,
    sctp_out: Vec<sctp::Effect>,
}

impl Session {
    pub fn new(now: Instant, id: SessionId, anchor: Anchor, identity: Identity, local: &Credentials, rtcp_ssrc: u32) -> Self {
        Self {
            id,
            state: State::Checking,
            anchor,
            identity,
            ice: Ice::new(now, local),
            dtls: None,
            keys: None,
            sctp: Sctp::new(anchor),
            receive: Vec::new(),
            sources: HashMap::new(),
            source_order: Vec::new(),
            retired: VecDeque::new(),
            arrivals: Arrivals::default(),
            outgoing: Vec::new(),
            rtcp_ssrc,
            report_due: now + REPORT_INTERVAL,
            last_path: None,
            ice_out: Vec::new(),
            dtls_out: Vec::new(),
            sctp_out: Vec::new(),
        }
    }

    pub fn state(&self) -> State {
        self.state
    }

    pub fn profile(&self) -> Option<Profile> {
        self.keys.as_ref().map(|(receiver, _)| receiver.profile())
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
        self.ice.set_remote_ufrag(&plan.remote_ufrag);
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
        let mut before = std::mem::take(&mut self.outgoing);
        for plan in plan.send {
            let known = before.iter().position(|o| o.plan.track == plan.track && o.plan.ssrc == plan.ssrc);
            self.outgoing.push(match known {
                Some(at) => Outgoing { plan, ..before.swap_remove(at) },
                None => {
                    let clock_rate = plan.formats.first().map_or(90_000, |f| f.format.codec.clock_rate());
                    let stream = RtpOut::new(plan.ssrc.0, clock_rate, (plan.ssrc.0 >> 8) as u16);
                    Outgoing { plan, stream, cname_due: now }
                }
            });
        }
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

    /// Unprotects an RTP packet in place.
    pub fn handle_rtp(
        &mut self,
        now: Instant,
        path: PathId,
        packet: &mut [u8],
        out: &mut Vec<Effect>,
    ) -> Result<Option<Media>, SessionDrop> {
        let Some((receiver, _)) = &mut self.keys else { return Err(SessionDrop::BeforeKeys) };
        let (header, len) = receiver.unprotect_rtp(packet).map_err(SessionDrop::Srtp)?;
        let packet = &packet[..len];
        self.media_arrived(now, path, out);
        if self.retired.contains(&header.ssrc) {
            return Err(SessionDrop::UnknownSource);
        }
        if !self.sources.contains_key(&header.ssrc) {
            let (section, layer) = self.place(&header, packet).ok_or(SessionDrop::UnknownSource)?;
            let clock_rate = self.receive[section].formats.first().map_or(90_000, |f| f.format.codec.clock_rate());
            self.retire(section, layer);
            let stream = RtpIn::new(header.ssrc, clock_rate, header.sequence, now);
            self.sources.insert(header.ssrc, Source { section, layer, stream });
            self.source_order.push(header.ssrc);
        }
        let source = self.sources.get_mut(&header.ssrc).ok_or(SessionDrop::UnknownSource)?;
        let section = &self.receive[source.section];
        let sequence = source.stream.arrived(now, header.sequence, header.timestamp);
        let mut audio_level = None;
        for (id, value) in header.extensions(packet) {
            match section.extensions.extension(id) {
                Some(Extension::TransportCc) => {
                    if let &[high, low] = value {
                        self.arrivals.arrived(now, u16::from_be_bytes([high, low]));
                    }
                }
                Some(Extension::AudioLevel) => audio_level = value.first().map(|b| b & 0x7F),
                _ => {}
            }
        }
        let offered = section.formats.iter().find(|f| f.payload_type == header.payload_type);
        let format = offered.ok_or(SessionDrop::UnknownSource)?.format;
        let payload = header.payload(packet).map_err(|_| SessionDrop::MalformedRtp)?;
        let frame = format.codec.frame_info(&packet[payload.clone()]);
        let ntp = source.stream.ntp_at(header.timestamp);
        let (track, layer, extensions) = (section.track, source.layer, section.extensions);
        Ok(Some(Media { track, layer, format, header, payload, sequence, ntp, frame, extensions, audio_level }))
    }

    /// A layer has one source: a new one takes its place for good.
    fn retire(&mut self, section: usize, layer: u8) {
        let old = self.sources.iter().find(|(_, s)| (s.section, s.layer) == (section, layer)).map(|(ssrc, _)| *ssrc);
        if let Some(old) = old {
            self.sources.remove(&old);
            self.source_order.retain(|ssrc| *ssrc != old);
            self.retired.push_back(old);
            if self.retired.len() > RETIRED_MAX {
                self.retired.pop_front();
            }
        }
    }

    /// Which section and layer a new source belongs to: by mid and rid, by announced SSRC, by payload type.
    fn place(&self, header: &rtp::Header, packet: &[u8]) -> Option<(usize, u8)> {
        let by = |extension: Extension| {
            self.receive.iter().enumerate().find_map(|(at, section)| {
                let id = section.extensions.id(extension)?;
                let value = header.extensions(packet).find(|(i, _)| *i == id)?.1;
                (extension != Extension::Mid || section.mid.as_bytes() == value).then_some((at, value.to_vec()))
            })
        };
        let by_ssrc = || self.receive.iter().position(|r| r.ssrcs.contains(&header.ssrc));
        let by_payload_type = || {
            let mut fitting = self
                .receive
                .iter()
                .enumerate()
                .filter(|(_, r)| r.rids.is_empty() && r.formats.iter().any(|f| f.payload_type == header.payload_type));
            fitting.next().filter(|_| fitting.next().is_none()).map(|(at, _)| at)
        };
        let section = by(Extension::Mid).map(|(at, _)| at).or_else(by_ssrc).or_else(by_payload_type)?;
        let rids = &self.receive[section].rids;
        if rids.is_empty() {
            return Some((section, 0));
        }
        let (_, rid) = by(Extension::Rid)?;
        let layer = rids.iter().position(|r| r.as_bytes() == rid)?;
        Some((section, layer as u8))
    }

    pub fn handle_rtcp(&mut self, now: Instant, path: PathId, packet: &mut [u8], out: &mut Vec<Effect>) -> Result<(), SessionDrop> {
        let Some((receiver, _)) = &mut self.keys else { return Err(SessionDrop::BeforeKeys) };
        let len = receiver.unprotect_rtcp(packet).map_err(SessionDrop::Srtp)?;
        self.media_arrived(now, path, out);
        for part in rtcp::packets(&packet[..len]) {
            match part.map_err(|_| SessionDrop::MalformedRtp)? {
                rtcp::Packet::SenderReport(info, _) => {
                    if let Some(source) = self.sources.get_mut(&info.ssrc) {
                        source.stream.sender_report(now, info);
                        let track = self.receive[source.section].track;
                        out.push(Effect::SenderReport { track, layer: source.layer, info });
                    }
                }
                rtcp::Packet::Pli { ssrc } | rtcp::Packet::Fir { ssrc } => {
                    if let Some(outgoing) = self.outgoing.iter().find(|o| o.stream.ssrc() == ssrc) {
                        out.push(Effect::KeyFrameWanted(outgoing.plan.track));
                    }
                }
                rtcp::Packet::ReceiverReport(_) | rtcp::Packet::Bye | rtcp::Packet::Nack { .. } | rtcp::Packet::Other { .. } => {}
            }
        }
        Ok(())
    }

    fn media_arrived(&mut self, now: Instant, path: PathId, out: &mut Vec<Effect>) {
        self.ice.media_arrived(now, path, &mut self.ice_out);
        if !self.ice_out.is_empty() {
            self.drain_ice(out);
        }
    }

    /// Writes a packet for this hearer into `slot`; its length, or `None` when it stays here. `starts_stream` says that
    /// the numbers continue from another source.
    pub fn forward(&mut self, now: Instant, media: &Media, packet: &[u8], starts_stream: bool, slot: &mut [u8]) -> Option<usize> {
        let (_, sender) = self.keys.as_ref()?;
        let outgoing = self.outgoing.iter_mut().find(|o| o.plan.track == media.track)?;
        let payload_type = media.format.payload_type_in(&outgoing.plan.formats)?;
        let payload = &packet[media.payload.clone()];
        let vp8 = (media.format.codec == Codec::Vp8).then(|| vp8::Descriptor::read(payload)).flatten();
        let input =
            Input { now, ssrc: media.header.ssrc, sequence: media.sequence, timestamp: media.header.timestamp, ntp: media.ntp, vp8 };
        if starts_stream || !outgoing.stream.follows(&input) {
            outgoing.stream.switch(&input);
        }
        if payload.is_empty() {
            outgoing.stream.skip(media.sequence);
            return None;
        }
        let mapped = outgoing.stream.map(&input, payload.len())?;
        let fields = rtp::Outgoing {
            marker: media.header.marker,
            payload_type,
            sequence: mapped.index as u16,
            timestamp: mapped.timestamp,
            ssrc: outgoing.stream.ssrc(),
        };
        let (theirs, ours) = (media.extensions, outgoing.plan.extensions);
        let extensions = media.header.extensions(packet).filter_map(move |(id, value)| {
            let extension = theirs.extension(id).filter(|e| e.is_end_to_end())?;
            Some((ours.id(extension)?, value))
        });
        let header_len = rtp::write_header(slot, fields, media.header.csrcs(packet), extensions)?;
        let len = header_len + payload.len() + sender.rtp_overhead();
        let body = slot.get_mut(header_len..header_len + payload.len())?;
        body.copy_from_slice(payload);
        if let Some(descriptor) = vp8 {
            descriptor.rewrite(body, mapped.picture_id, mapped.tl0_pic_idx);
        }
        sender.protect_rtp(slot.get_mut(..len)?, header_len, fields.ssrc, mapped.index);
        Some(len)
    }

    /// Passes a publisher's sender report on to this hearer, in its own timestamps.
    pub fn forward_report(&mut self, now: Instant, track: TrackId, info: &SenderInfo, out: &mut Vec<Effect>) {
        let Some(outgoing) = self.outgoing.iter_mut().find(|o| o.plan.track == track) else { return };
        let Some(info) = outgoing.stream.sender_report(info) else { return };
        let mut compound = Vec::with_capacity(128);
        rtcp::write_sender_report(&mut compound, &info);
        if outgoing.cname_due <= now {
            outgoing.cname_due = now + REPORT_INTERVAL;
            rtcp::write_cname(&mut compound, info.ssrc, &outgoing.plan.mid);
        }
        self.send_rtcp(compound, out);
    }

    /// Asks the client for a key frame of one layer of its track.
    pub fn request_key_frame(&mut self, track: TrackId, layer: u8, out: &mut Vec<Effect>) {
        let Some(section) = self.receive.iter().position(|r| r.track == track) else { return };
        let ssrc = self.source_order.iter().find(|ssrc| self.sources.get(ssrc).is_some_and(|s| (s.section, s.layer) == (section, layer)));
        if let Some(&ssrc) = ssrc {
            let mut pli = Vec::with_capacity(48);
            rtcp::write_pli(&mut pli, self.rtcp_ssrc, ssrc);
            self.send_rtcp(pli, out);
        }
    }

    fn send_rtcp(&mut self, mut compound: Vec<u8>, out: &mut Vec<Effect>) {
        if let (Some((_, sender)), Some(path)) = (&mut self.keys, self.ice.selected().or(self.last_path)) {
            sender.protect_rtcp(&mut compound);
            out.push(Effect::Send { path, bytes: compound });
        }
    }

    /// Sends a room message to this participant.
    pub fn send_data(&mut self, now: Instant, delivery: Delivery, message: &[u8], out: &mut Vec<Effect>) -> Result<(), sctp::SctpDrop> {
        let label = match delivery {
            Delivery::Reliable => RELIABLE,
            Delivery::Lossy => LOSSY,
        };
        let outcome = self.sctp.send(now, label, message, &mut self.sctp_out);
        self.drain_sctp(now, out);
        outcome
    }

    /// A connection closed or an allocation ended.
    pub fn path_lost(&mut self, path: PathId, out: &mut Vec<Effect>) {
        if self.last_path == Some(path) {
            self.last_path = None;
        }
        self.ice.path_lost(path, &mut self.ice_out);
        self.drain_ice(out);
    }

    /// Says goodbye.
    pub fn close(&mut self, now: Instant, out: &mut Vec<Effect>) {
        if let Some(dtls) = &mut self.dtls {
            dtls.close(&mut self.dtls_out);
        }
        self.drain_dtls(now, out);
        self.state = State::Closing;
    }

    pub fn wake(&mut self, now: Instant, out: &mut Vec<Effect>) {
        if self.ice.deadline() <= now && self.state != State::Closing {
            self.state = State::Closing;
            out.push(Effect::Ended(End::ConsentLost));
            return;
        }
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
        if self.sctp.deadline().is_some_and(|at| at <= now) {
            self.sctp.wake(now, &mut self.sctp_out);
            self.drain_sctp(now, out);
        }
        let mut compound = Vec::new();
        let media = self.source_order.first().copied().unwrap_or(0);
        self.arrivals.feedback(now, self.rtcp_ssrc, media, &mut compound);
        if self.report_due <= now {
            self.report_due = now + REPORT_INTERVAL;
            let blocks: Vec<_> = self.source_order.iter().filter_map(|s| Some(self.sources.get_mut(s)?.stream.report(now))).collect();
            for blocks in blocks.chunks(31) {
                rtcp::write_receiver_report(&mut compound, self.rtcp_ssrc, blocks);
            }
        }
        if !compound.is_empty() {
            self.send_rtcp(compound, out);
        }
    }

    pub fn deadline(&self) -> Instant {
        let mut deadline = self.ice.deadline().min(self.report_due);
        let more = [self.dtls.as_ref().and_then(Dtls::deadline), self.sctp.deadline(), self.arrivals.deadline()];
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
        out.push(Effect::Ended(match error {
            dtls::DtlsError::FingerprintMismatch | dtls::DtlsError::NoCertificate => End::FingerprintMismatch,
            dtls::DtlsError::Protocol(_) => End::HandshakeFailed,
        }));
    }

    fn drain_ice(&mut self, out: &mut Vec<Effect>) {
        out.extend(self.ice_out.drain(..).map(|effect| match effect {
            ice::Effect::Validated(path) => Effect::PathValidated(path),
            ice::Effect::Selected(path) => Effect::PathSelected(path),
            ice::Effect::Dropped(path) => Effect::PathDropped(path),
        }));
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
                    self.keys = Profile::from_use_srtp(use_srtp).and_then(|p| srtp::from_exported(p, &material, is_client));
                    self.go_live(out);
                }
                dtls::Effect::Connected => self.go_live(out),
                dtls::Effect::Data(bytes) => self.sctp.handle(now, bytes, &mut self.sctp_out),
                dtls::Effect::PeerClosed => {
                    if self.state != State::Closing {
                        self.state = State::Closing;
                        out.push(Effect::Ended(End::PeerClosed));
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
        if let Some(profile) = self.profile().filter(|_| is_established && self.state == State::Handshaking) {
            self.state = State::Live;
            out.push(Effect::Live { profile });
        }
    }

    fn drain_sctp(&mut self, now: Instant, out: &mut Vec<Effect>) {
        let mut effects = std::mem::take(&mut self.sctp_out);
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
                        // `_data_track` is negotiated; its packets come with the data tracks themselves.
                        _ => continue,
                    };
                    out.push(Effect::Data { delivery, bytes });
                }
                sctp::Effect::Stalled => {
                    if self.state != State::Closing {
                        self.state = State::Closing;
                        out.push(Effect::Ended(End::DataStalled));
                    }
                }
                sctp::Effect::Opened { .. } | sctp::Effect::Lost => {}
            }
        }
        self.sctp_out = effects;
        if !self.dtls_out.is_empty() {
            self.drain_dtls(now, out);
        }
    }
}

/// Labels of the room protocol's channels.
const RELIABLE: &str = "_reliable";
const LOSSY: &str = "_lossy";
