//! Media of one participant: what it sends is unprotected, placed and repaired here, what it hears is renumbered and
//! protected. Bytes stay where they are: [`Media`] says what they mean.
//!
//! In:   SRTP -> source (mid, rid, SSRC) -> [`RtpIn`]; a retransmission takes its original's number (RFC 4588 §4).
//! Out:  [`Session::forward`] and [`Session::resend`] write one packet into a slot of the egress.
//! RTCP: receiver reports, round-trip requests and NACKs to publishers; sender reports to hearers.

use super::negotiate::{self, Playout, Receive};
use super::path::{Lag, Thinned, Thinning};
use super::{Effect, Session, SessionDrop};
use crate::base::buf::PacketBuf;
use crate::base::id::{PathId, TrackId};
use crate::base::time::{Duration, Instant};
use crate::engine::rtp_in::{Arrival, RtpIn};
use crate::engine::rtp_out::{Input, Mapped, RtpOut, Verdict};
use crate::engine::srtp::{SOURCES_MAX, Sender};
use crate::wire::dependency::{self, Structure};
use crate::wire::red::{self, Redundant};
use crate::wire::rtcp::{self, XrBlock};
use crate::wire::rtp::{self, Codec, Extension, ExtensionMap, FrameInfo};
use crate::wire::sdp::{Format, OfferedFormat};
use crate::wire::twcc::Feedback;
use crate::wire::{h264, vp8, vp9};
use std::collections::HashMap;
use std::ops::Range;

/// Replaced sources that are remembered, so that they do not come back: all that a transport can have.
const RETIRED_MAX: usize = SOURCES_MAX;
/// Sources of retransmissions whose originals are remembered.
const REPAIRS_MAX: usize = 64;
/// Room that a forwarded packet needs beyond its payload: header, extensions, number of a retransmission, padding, tag.
pub const FORWARD_OVERHEAD_MAX: usize = 12 + 60 + 4 + 128 + 2 + 4 + 16;
/// Assumed until a report tells the round trip.
const RTT_UNKNOWN: Duration = Duration::from_millis(100);
/// Retransmissions may take half of what is sent anew, and this much at once, bytes.
const CREDIT_MAX: usize = 128 * 1024;
/// With less than one packet's worth nothing is looked for.
const CREDIT_MIN: usize = 1500;
/// Packets that one client may ask for between two reports.
pub(super) const NACKS_MAX: usize = 2_000;
/// Longest RTCP packet: browsers refuse more than 2048 bytes, networks cut more than their MTU.
const RTCP_MAX: usize = 1_200;
/// Longest payload that is made redundant: what its publisher sent passes everywhere, and so must this.
const REPEATED_MAX: usize = 1_100;
/// Packets that one client may tell about between two reports.
pub(super) const TOLD_MAX: usize = 16_384;
/// Numbers of one NACK.
const NACK_MAX: usize = 128;

/// A decrypted packet on its way to its hearers; `header` and `payload` point into the packet's bytes.
#[derive(Clone, Debug)]
pub struct Media {
    pub track: TrackId,
    pub layer: u8,
    pub format: Format,
    /// As the publisher numbered it; of a retransmission, the original's.
    pub header: rtp::Header,
    pub payload: Range<usize>,
    /// Of a redundant payload (RFC 2198): where its newest part begins.
    pub newest: Option<usize>,
    /// Hearers that take redundancy may be given it.
    pub may_repeat: bool,
    /// Extended sequence number.
    pub sequence: u64,
    /// When it was captured, NTP format: on the sender's clock, which its layers share, and on ours, which all senders do.
    pub sent_ntp: Option<u64>,
    pub ntp: Option<u64>,
    /// When it came to this process.
    pub arrived: Instant,
    pub frame: FrameInfo,
    /// Descriptor and extended picture id of VP8.
    pub picture: Option<(vp8::Descriptor, u64)>,
    /// Of a dependency descriptor, or the picture id of VP9.
    pub frame_number: Option<u16>,
    pub vp9: Option<vp9::Ids>,
    /// Which id the sender gave each extension.
    pub extensions: ExtensionMap,
    /// RFC 6464: -dBov, 0 loudest, 127 silent.
    pub audio_level: Option<u8>,
}

impl Media {
    /// What it carries without redundancy.
    pub fn newest(&self) -> Range<usize> {
        self.newest.unwrap_or(self.payload.start)..self.payload.end
    }

    /// Takes the payload of an earlier packet along. Without effect when it does not fit or lies too far back.
    pub fn repeat(&mut self, packet: &mut PacketBuf, earlier: &Media, earlier_packet: &[u8]) {
        let offset = self.header.timestamp.wrapping_sub(earlier.header.timestamp);
        let Some(part) = earlier_packet.get(earlier.newest()) else { return };
        let fits = |growth: &usize| !self.payload.is_empty() && self.payload.len() + growth <= REPEATED_MAX;
        let Some(growth) = red::growth(offset, part).filter(fits) else { return };
        if let Some(room) = packet.insert(self.payload.start, growth) {
            red::write_before(room, self.header.payload_type, offset, part);
            self.payload.end += growth;
            self.newest = Some(self.payload.start + growth);
        }
    }

    /// The layer of a picture that a hearer has with this packet: of several streams, or of several in one.
    fn layer_of(&self, passage: Passage) -> Option<u8> {
        let (Passage::Continue { spatial_max } | Passage::Start { spatial_max, .. }) = passage else { return None };
        let is_video = self.format.codec.is_video();
        is_video.then_some(if self.frame.spatial_id.is_some() { spatial_max } else { self.layer })
    }

    fn input(&self, now: Instant) -> Input {
        Input {
            now,
            ssrc: self.header.ssrc,
            layer: self.layer,
            sequence: self.sequence,
            timestamp: self.header.timestamp,
            clock_rate: self.format.codec.clock_rate(),
            marker: self.header.marker,
            sent_ntp: self.sent_ntp,
            ntp: self.ntp,
            picture: self.picture.map(|(_, id)| id),
            tl0_pic_idx: self.picture.and_then(|(d, _)| d.tl0_pic_idx).or(self.vp9.and_then(|ids| ids.tl0_pic_idx)).unwrap_or(0),
            ends_spatial: self.frame.spatial_id.filter(|_| self.frame.ends_frame),
            frame_number: self.frame_number,
        }
    }
}

/// How a packet passes to one hearer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passage {
    /// With spatial layers up to `spatial_max`.
    Continue { spatial_max: u8 },
    /// The hearer's stream goes on from this packet's source.
    Start { spatial_max: u8, temporal_max: u8 },
    /// Its layer is not wanted: what follows closes up.
    Skip,
    /// From a source that the hearer's stream has left: into the gap that it left behind, if any.
    Late,
}

pub(super) struct Source {
    pub(super) section: usize,
    layer: u8,
    stream: RtpIn,
    picture_newest: u64,
    /// Layers of an AV1 stream, as its last key frame described them.
    structure: Option<Structure>,
    /// H.264 parameter sets come in band.
    repeats_sets: bool,
}

pub(super) struct Outgoing {
    pub(super) plan: negotiate::Send,
    stream: RtpOut,
    thinning: Thinning,
    has_reported: bool,
    /// The layer of a picture that the client gets, and whether that was told.
    layer: Option<(u8, bool)>,
}

impl Outgoing {
    /// `spent` are the numbers that its sources have used under the same keys: it begins behind them.
    pub(super) fn new(plan: negotiate::Send, spent: &HashMap<u32, u64>) -> Self {
        // Below the roll-over that a receiver cannot see coming.
        let first = |ssrc: u32| spent.get(&ssrc).map_or(u64::from(ssrc >> 8 & 0x7FFF), |next| *next);
        let stream = RtpOut::new(plan.ssrc.0, plan.rtx.0, first(plan.ssrc.0), first(plan.rtx.0));
        Self { plan, stream, thinning: Thinning::default(), has_reported: false, layer: None }
    }

    /// Its sources and the next number of each.
    pub(super) fn spent(&self) -> [(u32, u64); 2] {
        [(self.stream.ssrc(), self.stream.next_index()), (self.stream.rtx_ssrc(), self.stream.next_rtx_index())]
    }

    /// Goes on under another plan.
    pub(super) fn replan(mut self, plan: negotiate::Send) -> Self {
        if (&self.plan.formats, self.plan.extensions) != (&plan.formats, plan.extensions) {
            self.stream.change_form();
        }
        Self { plan, ..self }
    }
}

/// What reports tell of the way to the client and back.
#[derive(Default)]
pub(super) struct RoundTrip {
    smoothed: Option<Duration>,
    /// The client asked for ours: who, its stamp, and when.
    asked: Option<(u32, u32, Instant)>,
}

impl RoundTrip {
    pub(super) fn get(&self) -> Duration {
        self.smoothed.unwrap_or(RTT_UNKNOWN)
    }

    pub(super) fn told_so_far(&self) -> Option<Duration> {
        self.smoothed
    }

    /// Our stamp came back (RFC 3550 §6.4.1, figure 2): `last` are its middle bits, `delay` in 1/65536 s.
    fn told(&mut self, now: Instant, last: u32, delay: u32) {
        let elapsed = ((now.as_ntp() >> 16) as u32).wrapping_sub(last).wrapping_sub(delay);
        // Not ours, or a lie: a round trip of half a minute has no use anyhow.
        if last == 0 || elapsed > 30 << 16 {
            return;
        }
        let sample = Duration::from_micros((u64::from(elapsed) * 1_000_000) >> 16);
        self.smoothed = Some(self.smoothed.map_or(sample, |s| (s * 7 + sample) / 8));
    }
}

impl Session {
    /// Round trip to the client; a guess until it has told.
    pub fn rtt(&self) -> Duration {
        self.round_trip.get()
    }

    /// Unprotects an RTP packet in place. `None`: a probe that carries nothing.
    pub fn handle_rtp(
        &mut self,
        now: Instant,
        path: PathId,
        packet: &mut [u8],
        out: &mut Vec<Effect>,
    ) -> Result<Option<Media>, SessionDrop> {
        let Some((receiver, _)) = &mut self.keys else { return Err(SessionDrop::BeforeKeys) };
        let (mut header, len, index) = receiver.unprotect_rtp(packet).map_err(SessionDrop::Srtp)?;
        let packet = &packet[..len];
        self.meter.up.bytes += len as u64;
        self.media_arrived(now, path, true, out);
        if self.retired.contains(&header.ssrc) {
            return Err(SessionDrop::UnknownSource);
        }
        let mut payload = header.payload(packet).map_err(|_| SessionDrop::MalformedRtp)?;
        let repaired = self.repaired(&header, packet);
        if let Some((section, _)) = repaired {
            self.note_arrival(now, section, &header, packet);
        }
        if let Some((_, source)) = repaired {
            // RFC 4588 §4: the original's number stands before the original's payload.
            let Some(number) = packet[payload.clone()].get(..2) else { return Ok(None) };
            let source = source.ok_or(SessionDrop::UnknownSource)?;
            let formats = &self.receive[self.sources[&source].section].formats;
            let original = formats.iter().find(|f| f.rtx == Some(header.payload_type)).ok_or(SessionDrop::UnknownSource)?;
            header.sequence = u16::from_be_bytes([number[0], number[1]]);
            header.payload_type = original.payload_type;
            header.ssrc = source;
            payload.start += 2;
        } else if !self.sources.contains_key(&header.ssrc) {
            let (section, layer) = self.place(&header, packet).ok_or(SessionDrop::UnknownSource)?;
            self.adopt_source(section, layer, &header, index);
        }
        let source = self.sources.get_mut(&header.ssrc).ok_or(SessionDrop::UnknownSource)?;
        let (at, section) = (source.section, &self.receive[source.section]);
        let offered = offered(&section.formats, header.payload_type).ok_or(SessionDrop::UnknownSource)?;
        let format = offered.format;
        let redundant = if offered.payload_type == header.payload_type || payload.is_empty() {
            None
        } else {
            Some(Redundant::read(&packet[payload.clone()]).ok_or(SessionDrop::MalformedRtp)?)
        };
        let sequence = match source.stream.arrived(now, header.sequence, header.timestamp, repaired.is_some()) {
            Arrival::New(sequence) => sequence,
            Arrival::Duplicate => return Err(SessionDrop::Duplicate),
            Arrival::TooOld => return Err(SessionDrop::TooOld),
        };
        let by_payload = || format.codec.frame_info(&packet[payload.clone()]);
        let described = section.extensions.id(Extension::DependencyDescriptor);
        let described = described.and_then(|id| header.extensions(packet).find(|(i, _)| *i == id)).map(|(_, bytes)| bytes);
        let vp9 = (format.codec == Codec::Vp9).then(|| vp9::Ids::read(&packet[payload.clone()])).flatten();
        let described = described.filter(|_| format.codec == Codec::Av1);
        let frame_number = described.and_then(dependency::frame_number).or(vp9.and_then(|ids| ids.picture_id).map(|id| id.value));
        let frame = described.and_then(|bytes| dependency::read(bytes, &mut source.structure));
        let frame = frame.unwrap_or_else(by_payload);
        let mut frame = FrameInfo { is_late: sequence < source.stream.highest(), ..frame };
        if section.rids.len() > 1 {
            // Each layer is a stream of its own, whose one spatial layer says nothing.
            frame.spatial_id = None;
        }
        if format.codec == Codec::H264 {
            // Its slices repeat what its parameter sets began: only they start a picture, where they are sent at all.
            let has_sets = h264::has_parameter_sets(&packet[payload.clone()]);
            source.repeats_sets |= has_sets;
            frame.starts_key_frame &= has_sets || !source.repeats_sets;
        }
        if frame.starts_key_frame {
            source.stream.key_frame(sequence);
        }
        let picture = (format.codec == Codec::Vp8).then(|| vp8::Descriptor::read(&packet[payload.clone()])).flatten();
        let picture = picture.map(|descriptor| {
            let id = descriptor.picture_id.map_or(0, |id| id.extend(source.picture_newest));
            // An encoder that starts anew counts anew.
            source.picture_newest = if frame.starts_key_frame && !frame.is_late { id } else { source.picture_newest.max(id) };
            (descriptor, id)
        });
        let sent_ntp = source.stream.ntp_at(header.timestamp);
        let ntp = sent_ntp.and_then(|theirs| self.clock.to_ours(theirs));
        let (track, layer, extensions) = (section.track, source.layer, section.extensions);
        let newest = redundant.as_ref().map(|r| payload.start + r.newest.start);
        let may_repeat = section.redundancy;
        let mut media = Media {
            track,
            layer,
            format,
            header,
            payload,
            newest,
            may_repeat,
            sequence,
            sent_ntp,
            ntp,
            arrived: now,
            frame,
            picture,
            frame_number,
            vp9,
            extensions,
            audio_level: None,
        };
        if let Some(redundant) = redundant {
            self.recover(now, &media, &redundant);
        }
        if repaired.is_none() {
            media.audio_level = self.note_arrival(now, at, &media.header, packet);
        }
        Ok(Some(media))
    }

    /// Lost packets whose payloads came again with this one.
    fn recover(&mut self, now: Instant, media: &Media, redundant: &Redundant) {
        let Some(source) = self.sources.get_mut(&media.header.ssrc) else { return };
        let count = redundant.earlier().len() as u64;
        for (i, earlier) in redundant.earlier().iter().enumerate() {
            let sequence = media.sequence - (count - i as u64);
            let timestamp = media.header.timestamp.wrapping_sub(earlier.offset);
            if earlier.payload.is_empty() || !source.stream.lacks(sequence as u16) {
                continue;
            }
            if let Arrival::New(sequence) = source.stream.arrived(now, sequence as u16, timestamp, true) {
                let mut recovered = media.clone();
                recovered.header.sequence = sequence as u16;
                recovered.header.timestamp = timestamp;
                recovered.header.marker = false;
                recovered.payload = media.payload.start + earlier.payload.start..media.payload.start + earlier.payload.end;
                recovered.newest = None;
                recovered.sequence = sequence;
                recovered.sent_ntp = source.stream.ntp_at(timestamp);
                recovered.ntp = recovered.sent_ntp.and_then(|theirs| self.clock.to_ours(theirs));
                recovered.frame.is_late = true;
                self.recovered.push(recovered);
            }
        }
    }

    /// Lost packets that the last one brought again: they point into the same bytes.
    pub fn take_recovered(&mut self) -> Vec<Media> {
        std::mem::take(&mut self.recovered)
    }

    /// What the hop's own extensions say; the audio level when there is one.
    fn note_arrival(&mut self, now: Instant, section: usize, header: &rtp::Header, packet: &[u8]) -> Option<u8> {
        let mut audio_level = None;
        for (id, value) in header.extensions(packet) {
            match (self.receive[section].extensions.extension(id), value) {
                (Some(Extension::TransportCc), &[high, low]) => self.arrivals.arrived(now, u16::from_be_bytes([high, low])),
                (Some(Extension::AudioLevel), &[level, ..]) => audio_level = Some(level & 0x7F),
                _ => {}
            }
        }
        audio_level
    }

    /// Of a retransmission: its section, and the source it repairs, when that is known.
    fn repaired(&mut self, header: &rtp::Header, packet: &[u8]) -> Option<(usize, Option<u32>)> {
        if self.sources.contains_key(&header.ssrc) {
            return None;
        }
        if let Some((source, of)) = self.repairs.get(&header.ssrc).and_then(|s| Some((*s, self.sources.get(s)?))) {
            return Some((of.section, Some(source)));
        }
        let is_of = |r: &Receive| r.formats.iter().any(|f| f.rtx == Some(header.payload_type));
        let section = self
            .by_extension(header, packet, Extension::Mid)
            .map(|(at, _)| at)
            .or_else(|| self.receive.iter().position(|r| r.repairs.iter().any(|(_, rtx)| *rtx == header.ssrc)))
            .or_else(|| self.receive.iter().position(is_of))
            .filter(|at| is_of(&self.receive[*at]))?;
        let announced = self.receive[section].repairs.iter().find(|(_, rtx)| *rtx == header.ssrc).map(|(source, _)| *source);
        let layer = match self.by_extension(header, packet, Extension::RepairedRid) {
            Some((_, rid)) => self.receive[section].rids.iter().position(|r| r.as_bytes() == rid).map(|l| l as u8),
            None => self.receive[section].rids.is_empty().then_some(0),
        };
        let by_layer =
            || self.sources.iter().find(|(_, s)| Some((s.section, s.layer)) == layer.map(|l| (section, l))).map(|(ssrc, _)| *ssrc);
        let source = announced.filter(|s| self.sources.contains_key(s)).or_else(by_layer);
        if let Some(source) = source {
            if self.repairs.len() >= REPAIRS_MAX {
                self.repairs.clear();
            }
            self.repairs.insert(header.ssrc, source);
        }
        Some((section, source))
    }

    /// A new stream, in the place of the one that its layer had.
    pub(super) fn adopt_source(&mut self, section: usize, layer: u8, header: &rtp::Header, index: u64) {
        let ssrc = header.ssrc;
        let format = offered(&self.receive[section].formats, header.payload_type);
        let clock_rate = format.map_or(90_000, |f| f.format.codec.clock_rate());
        let old = self.sources.iter().find(|(_, s)| (s.section, s.layer) == (section, layer)).map(|(ssrc, _)| *ssrc);
        if let Some(old) = old {
            self.sources.remove(&old);
            self.source_order.retain(|ssrc| *ssrc != old);
            self.retired.push_back(old);
            if self.retired.len() > RETIRED_MAX {
                self.retired.pop_front();
            }
        }
        let stream = RtpIn::new(ssrc, clock_rate, index);
        self.sources.insert(ssrc, Source { section, layer, stream, picture_newest: 1 << 16, structure: None, repeats_sets: false });
        self.source_order.push(ssrc);
    }

    /// The section whose id for `extension` the packet carries, with the value; for mid, the section that has this mid.
    fn by_extension<'p>(&self, header: &rtp::Header, packet: &'p [u8], extension: Extension) -> Option<(usize, &'p [u8])> {
        self.receive.iter().enumerate().find_map(|(at, section)| {
            let id = section.extensions.id(extension)?;
            let value = header.extensions(packet).find(|(i, _)| *i == id)?.1;
            (extension != Extension::Mid || section.mid.as_bytes() == value).then_some((at, value))
        })
    }

    /// Which section and layer a new source belongs to: by mid and rid, by announced SSRC, by payload type.
    fn place(&self, header: &rtp::Header, packet: &[u8]) -> Option<(usize, u8)> {
        let by_ssrc = || self.receive.iter().position(|r| r.ssrcs.contains(&header.ssrc));
        let by_payload_type = || {
            let fits = |r: &Receive| r.rids.is_empty() && offered(&r.formats, header.payload_type).is_some();
            let mut fitting = self.receive.iter().enumerate().filter(|(_, r)| fits(r));
            fitting.next().filter(|_| fitting.next().is_none()).map(|(at, _)| at)
        };
        let by_mid = self.by_extension(header, packet, Extension::Mid).map(|(at, _)| at);
        let section = by_mid.or_else(by_ssrc).or_else(by_payload_type)?;
        offered(&self.receive[section].formats, header.payload_type)?;
        let rids = &self.receive[section].rids;
        if rids.is_empty() {
            return Some((section, 0));
        }
        let (_, rid) = self.by_extension(header, packet, Extension::Rid)?;
        let layer = rids.iter().position(|r| r.as_bytes() == rid)?;
        Some((section, layer as u8))
    }

    /// Whether somebody hears or awaits this source: only then it is repaired.
    pub fn set_watched(&mut self, ssrc: u32, is_watched: bool) {
        if let Some(source) = self.sources.get_mut(&ssrc) {
            // Sound is not repaired: nobody negotiates it, and it would come too late.
            let is_video = self.receive[source.section].formats.iter().any(|f| f.format.codec.is_video());
            source.stream.set_watched(is_watched && is_video);
        }
    }

    pub fn handle_rtcp(&mut self, now: Instant, path: PathId, packet: &mut [u8], out: &mut Vec<Effect>) -> Result<(), SessionDrop> {
        let Some((receiver, _)) = &mut self.keys else { return Err(SessionDrop::BeforeKeys) };
        let len = receiver.unprotect_rtcp(packet).map_err(SessionDrop::Srtp)?;
        self.media_arrived(now, path, false, out);
        for part in rtcp::packets(&packet[..len]) {
            match part.map_err(|_| SessionDrop::MalformedRtp)? {
                rtcp::Packet::SenderReport(info, blocks) => {
                    if let Some(source) = self.sources.get_mut(&info.ssrc) {
                        source.stream.sender_report(now, info);
                        self.clock.report(now.as_ntp(), info.ntp);
                    }
                    self.take_blocks(now, blocks);
                }
                rtcp::Packet::ReceiverReport(blocks) => self.take_blocks(now, blocks),
                rtcp::Packet::Extended { from, blocks } => {
                    for block in blocks {
                        match block {
                            XrBlock::ReferenceTime(ntp) => self.round_trip.asked = Some((from, (ntp >> 16) as u32, now)),
                            XrBlock::Delay { ssrc, last_rr, delay } if ssrc == self.rtcp_ssrc => {
                                self.round_trip.told(now, last_rr, delay);
                            }
                            XrBlock::Delay { .. } => {}
                        }
                    }
                }
                rtcp::Packet::Pli { ssrc } | rtcp::Packet::Fir { ssrc } => {
                    if let Some(outgoing) = self.outgoing.iter().find(|o| o.stream.ssrc() == ssrc) {
                        self.meter.down.key_frames += 1;
                        out.push(Effect::KeyFrameWanted(outgoing.plan.track));
                    }
                }
                rtcp::Packet::Nack { ssrc, lost } => {
                    let rtt = self.round_trip.get();
                    // Sound is not sent again: nobody negotiates it, and redundancy is faster.
                    let outgoing = self.outgoing.iter_mut().find(|o| o.stream.ssrc() == ssrc && o.plan.is_video());
                    // Nobody is made to look for more than may be sent.
                    let Some(outgoing) = outgoing.filter(|_| self.credit >= CREDIT_MIN) else {
                        out.push(Effect::ResendRefused);
                        continue;
                    };
                    let track = outgoing.plan.track;
                    let wanted = lost.sequences().take(self.nacks_left);
                    let before = out.len();
                    out.extend(wanted.map(|number| match outgoing.stream.recall(now, number, rtt) {
                        Some(r) => Effect::Resend { track, layer: r.layer, sequence: r.sequence },
                        None => Effect::ResendRefused,
                    }));
                    let asked = out.len() - before;
                    self.nacks_left -= asked;
                    self.meter.down.nacks += asked as u32;
                }
                rtcp::Packet::TransportCc(feedback) => {
                    if let Some(feedback) = Feedback::read(feedback).filter(|f| f.covers() <= self.told_left) {
                        self.told_left -= feedback.covers();
                        out.push(Effect::Told(self.sent.told(feedback)));
                    }
                }
                rtcp::Packet::Bye(sources) => {
                    for ssrc in sources {
                        let Some(source) = self.sources.get_mut(&ssrc) else { continue };
                        source.stream.end();
                        let track = self.receive[source.section].track;
                        out.push(Effect::LayerEnded { track, layer: source.layer });
                    }
                }
                // Acted on when the estimate of a receiver's bandwidth exists.
                rtcp::Packet::Remb { .. } | rtcp::Packet::Other { .. } => {}
            }
        }
        Ok(())
    }

    fn take_blocks(&mut self, now: Instant, blocks: rtcp::Blocks<'_>) {
        for block in blocks {
            if let Some(outgoing) = self.outgoing.iter().find(|o| o.stream.ssrc() == block.ssrc) {
                self.round_trip.told(now, block.last_sr, block.delay_since_last_sr);
                let clock_rate = outgoing.plan.formats.first().map_or(90_000, |f| f.format.codec.clock_rate());
                self.meter.report_down(&block, clock_rate);
            }
        }
    }

    /// Whether a picture passes to this hearer although its path lags behind.
    pub fn thin(&mut self, now: Instant, media: &Media, lag: Lag) -> Thinned {
        if !media.format.codec.is_video() {
            return Thinned::Pass;
        }
        let Some(outgoing) = self.outgoing.iter_mut().find(|o| o.plan.track == media.track) else { return Thinned::Pass };
        // A simulcast layer has a clock of its own; its stream starts with a key frame anyhow.
        let starts = media.frame.starts_key_frame && !media.frame.is_late;
        let thinned = outgoing.thinning.decide(lag, media.header.timestamp, media.frame.temporal_id == 0, starts);
        if let Some(is_paused) = outgoing.thinning.news(now) {
            self.stream_news.push((media.track, is_paused));
        }
        thinned
    }

    /// Reads what [`Session::forward`] will need, so that it lies in the cache by then. The value means nothing.
    pub fn warm(&self, track: TrackId) -> u64 {
        let outgoing = self.outgoing.iter().find(|o| o.plan.track == track);
        let of_stream = outgoing.map_or(0, |o| {
            let format = o.plan.formats.first().map_or(0, |f| u64::from(f.payload_type));
            o.stream.warm() ^ format ^ u64::from(o.plan.is_numbered()) ^ u64::from(o.layer.is_some())
        });
        let keys = self.keys.as_ref().map_or(0, |(_, sender)| sender.warm());
        of_stream ^ keys ^ self.credit as u64 ^ self.meter.down.bytes ^ u64::from(self.path().is_some())
    }

    /// Writes a packet for this hearer into `slot`; its length, or `None` when it stays here. `padded_to` is the payload
    /// length that makes it as long as its neighbours.
    pub fn forward(
        &mut self,
        now: Instant,
        media: &Media,
        packet: &[u8],
        passage: Passage,
        padded_to: usize,
        slot: &mut [u8],
    ) -> Option<usize> {
        #[cfg(any(test, feature = "sim"))]
        assert!(!self.is_broken, "broken by a test");
        let (_, sender) = self.keys.as_ref()?;
        let outgoing = self.outgoing.iter_mut().find(|o| o.plan.track == media.track)?;
        let format = media.format.among(&outgoing.plan.formats)?;
        let input = media.input(now);
        let red = format.red.as_ref().map(|(payload_type, _)| *payload_type).filter(|_| media.newest.is_some());
        let carried = if red.is_some() { media.payload.clone() } else { media.newest() };
        match passage {
            Passage::Continue { spatial_max } if outgoing.stream.follows(&input) => {
                if media.frame.spatial_id.is_some() {
                    outgoing.stream.limit_spatial(&input, spatial_max);
                }
            }
            Passage::Start { spatial_max, .. } | Passage::Continue { spatial_max } => outgoing.stream.switch(&input, spatial_max),
            Passage::Skip | Passage::Late => {}
        }
        let verdict = match passage {
            Passage::Skip => outgoing.stream.skip(&input, true),
            _ if carried.is_empty() => outgoing.stream.skip(&input, false),
            _ => outgoing.stream.map(&input),
        };
        // A retransmission without a source of its own must be the same packet again: it is never padded.
        let padding = if format.rtx.is_some() { padded_to.saturating_sub(media.payload.len()) } else { 0 };
        let (mapped, payload, padding) = match verdict {
            Verdict::Send(mapped) => (mapped, packet.get(carried)?, padding),
            Verdict::Fill(mapped) => (mapped, &[][..], 1),
            Verdict::Leave => return None,
        };
        if let Some(layer) = media.layer_of(passage)
            && outgoing.layer.is_none_or(|(before, _)| before != layer)
        {
            outgoing.layer = Some((layer, false));
        }
        outgoing.stream.sent(payload.len());
        self.credit = (self.credit + payload.len() / 2).min(CREDIT_MAX);
        let is_repeated_as_it_is = format.rtx.is_none() && format.format.codec.is_video();
        let is_numbered = outgoing.plan.is_numbered() && !is_repeated_as_it_is;
        let place = Place {
            payload_type: red.unwrap_or(format.payload_type),
            block_type: red.map(|_| format.payload_type),
            ssrc: outgoing.stream.ssrc(),
            index: mapped.index,
            original: None,
            padding,
            transport: is_numbered.then(|| self.sent.next()),
        };
        let len = write(slot, sender, media, packet, &outgoing.plan, &mapped, payload, &place)?;
        self.meter.down.bytes += len as u64;
        if is_numbered {
            self.sent.push(now);
        }
        Some(len)
    }

    /// Whether retransmissions may take so many bytes more.
    pub fn may_resend(&self, len: usize) -> bool {
        self.credit >= len
    }

    /// Writes a packet once more, on the source of retransmissions where the client has one.
    pub fn resend(&mut self, now: Instant, media: &Media, packet: &[u8], slot: &mut [u8]) -> Option<usize> {
        let (_, sender) = self.keys.as_ref()?;
        let outgoing = self.outgoing.iter_mut().find(|o| o.plan.track == media.track)?;
        let format = media.format.among(&outgoing.plan.formats)?;
        self.credit = self.credit.saturating_sub(media.payload.len());
        let input = media.input(now);
        let (mapped, payload, padding) = match outgoing.stream.map(&input) {
            Verdict::Send(mapped) => (mapped, packet.get(media.payload.clone())?, 0),
            Verdict::Fill(mapped) => (mapped, &[][..], 1),
            Verdict::Leave => return None,
        };
        let (payload_type, ssrc, index, original) = match format.rtx {
            Some(rtx) => (rtx, outgoing.stream.rtx_ssrc(), outgoing.stream.next_rtx(), Some(mapped.index as u16)),
            None => (format.payload_type, outgoing.stream.ssrc(), mapped.index, None),
        };
        let is_numbered = outgoing.plan.is_numbered() && original.is_some();
        let transport = is_numbered.then(|| self.sent.next());
        let place = Place { payload_type, block_type: None, ssrc, index, original, padding, transport };
        let len = write(slot, sender, media, packet, &outgoing.plan, &mapped, payload, &place)?;
        self.meter.down.bytes += len as u64;
        if is_numbered {
            self.sent.push(now);
        }
        Some(len)
    }

    /// Asks the client for a key frame of one layer of its track.
    pub fn request_key_frame(&mut self, track: TrackId, layer: u8, out: &mut Vec<Effect>) {
        let Some(section) = self.receive.iter().position(|r| r.track == track) else { return };
        let ssrc = self.source_order.iter().find(|ssrc| self.sources.get(ssrc).is_some_and(|s| (s.section, s.layer) == (section, layer)));
        if let Some(&ssrc) = ssrc {
            let mut pli = Vec::with_capacity(48);
            rtcp::write_pli(&mut pli, self.rtcp_ssrc, ssrc);
            self.meter.up.key_frames += 1;
            self.send_rtcp(pli, out);
        }
    }

    /// When the next packet should be asked for again.
    pub(super) fn repair_deadline(&self) -> Option<Instant> {
        self.sources.values().filter_map(|s| s.stream.deadline()).min()
    }

    /// Asks for what is missing.
    pub(super) fn repair(&mut self, now: Instant, compounds: &mut Compounds, out: &mut Vec<Effect>) {
        let rtt = self.round_trip.get();
        let mut lost = Vec::new();
        for ssrc in &self.source_order {
            let Some(source) = self.sources.get_mut(ssrc) else { continue };
            if source.stream.nacks(now, rtt, &mut lost) {
                out.push(Effect::PictureLost { track: self.receive[source.section].track, layer: source.layer });
            }
            if !lost.is_empty() {
                self.meter.up.nacks += lost.len() as u32;
                out.push(Effect::Nacked(lost.len()));
                for lost in lost.chunks(NACK_MAX) {
                    compounds.add(|out| rtcp::write_nack(out, self.rtcp_ssrc, *ssrc, lost));
                }
                lost.clear();
            }
        }
    }

    /// Says that streams of ours are over.
    pub(super) fn say_bye(&mut self, sources: &[u32], compounds: &mut Compounds) {
        // A report stands before it (RFC 3550 §6.1).
        compounds.add(|out| rtcp::write_receiver_report(out, self.rtcp_ssrc, &[]));
        for sources in sources.chunks(31) {
            compounds.add(|out| rtcp::write_bye(out, sources));
        }
    }

    /// What is said every second: about what came, about what went, and for the round trip.
    pub(super) fn report(&mut self, now: Instant, compounds: &mut Compounds) {
        self.nacks_left = NACKS_MAX;
        self.told_left = TOLD_MAX;
        let gone = std::mem::take(&mut self.gone);
        if !gone.is_empty() {
            self.say_bye(&gone, compounds);
        }
        let mut blocks = Vec::new();
        for ssrc in &self.source_order {
            let Some(source) = self.sources.get_mut(ssrc) else { continue };
            let block = source.stream.report(now);
            self.meter.report_up(&block, source.stream.clock_rate());
            blocks.push(block);
        }
        for blocks in blocks.chunks(31) {
            compounds.add(|out| rtcp::write_receiver_report(out, self.rtcp_ssrc, blocks));
        }
        if !blocks.is_empty() {
            compounds.add(|out| rtcp::write_reference_time(out, self.rtcp_ssrc, now.as_ntp()));
        }
        if let Some((to, last_rr, since)) = self.round_trip.asked.take() {
            let delay = ((now.since(since).as_micros() as u64) << 16) / 1_000_000;
            compounds.add(|out| rtcp::write_delay(out, self.rtcp_ssrc, to, last_rr, delay as u32));
        }
        for outgoing in &mut self.outgoing {
            if let Some(info) = outgoing.stream.sender_report(now.as_ntp()) {
                outgoing.has_reported = true;
                compounds.add(|out| {
                    rtcp::write_sender_report(out, &info);
                    rtcp::write_cname(out, info.ssrc, &outgoing.plan.cname);
                });
            }
        }
    }

    /// Layers that have changed and were not told.
    pub(super) fn layer_news(&mut self) -> impl Iterator<Item = (TrackId, u8)> {
        let untold = self.outgoing.iter_mut().filter_map(|o| Some((o.plan.track, o.layer.as_mut().filter(|(_, was_told)| !was_told)?)));
        untold.map(|(track, (layer, was_told))| {
            *was_told = true;
            (track, *layer)
        })
    }

    /// A stream that has a clock now and has not said so: its receiver cannot put sound and picture together before.
    pub(super) fn has_news(&self, now: Instant) -> bool {
        self.outgoing.iter().any(|o| !o.has_reported && o.stream.sender_report(now.as_ntp()).is_some())
    }
}

/// RTCP packets, put together as long as they fit into one datagram.
#[derive(Default)]
pub(super) struct Compounds(pub(super) Vec<Vec<u8>>);

impl Compounds {
    pub(super) fn add(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let mut packet = Vec::with_capacity(64);
        write(&mut packet);
        match self.0.last_mut().filter(|last| last.len() + packet.len() <= RTCP_MAX) {
            Some(last) => last.extend_from_slice(&packet),
            None if packet.is_empty() => {}
            None => self.0.push(packet),
        }
    }
}

/// The format that a payload type stands for, bare or redundant.
fn offered(formats: &[OfferedFormat], payload_type: u8) -> Option<&OfferedFormat> {
    formats.iter().find(|f| f.payload_type == payload_type || f.red.as_ref().is_some_and(|(red, _)| *red == payload_type))
}

/// Where a packet goes in the numbers of its receiver.
struct Place {
    payload_type: u8,
    /// Of a redundant payload: the type of its parts.
    block_type: Option<u8>,
    ssrc: u32,
    index: u64,
    /// Of a retransmission: the number it went out with before.
    original: Option<u16>,
    padding: usize,
    /// Transport-wide number. None for what may have to go out once more as it was: one number, one content.
    transport: Option<u16>,
}

/// Header, payload and tag into `slot`; the packet's length.
#[allow(clippy::too_many_arguments, reason = "two packets meet here: the one that came and the one that goes")]
fn write(
    slot: &mut [u8],
    sender: &Sender,
    media: &Media,
    packet: &[u8],
    plan: &negotiate::Send,
    mapped: &Mapped,
    payload: &[u8],
    place: &Place,
) -> Option<usize> {
    let fields = rtp::Outgoing {
        marker: mapped.marker,
        has_padding: place.padding > 0,
        payload_type: place.payload_type,
        sequence: place.index as u16,
        timestamp: mapped.timestamp,
        ssrc: place.ssrc,
    };
    let (ours, theirs) = (&plan.extensions, media.extensions);
    // Ours wins over the publisher's, and is said when a receiver starts: it keeps to what it heard last.
    let playout = plan.playout.map(Playout::bytes);
    let said = playout.as_ref().filter(|_| media.frame.starts_key_frame);
    let said = said.and_then(|value| Some((ours.id(Extension::PlayoutDelay)?, &value[..])));
    let is_renumbered = media.format.codec == Codec::Av1 && media.frame_number.is_some_and(|number| number != mapped.frame_number);
    let descriptor = theirs.id(Extension::DependencyDescriptor).filter(|_| is_renumbered);
    let descriptor = descriptor.and_then(|id| media.header.extensions(packet).find(|(i, _)| *i == id));
    let mut bytes;
    let renumbered = match descriptor {
        Some((_, value)) => {
            bytes = [0; u8::MAX as usize];
            let value_as_it_goes = bytes.get_mut(..value.len())?;
            value_as_it_goes.copy_from_slice(value);
            dependency::set_frame_number(value_as_it_goes, mapped.frame_number);
            Some(&*value_as_it_goes)
        }
        None => None,
    };
    let extensions = media.header.extensions(packet).filter_map(move |(id, value)| {
        let extension = theirs.extension(id).filter(|e| e.is_end_to_end())?;
        if extension == Extension::PlayoutDelay && playout.is_some() {
            return None;
        }
        let value = renumbered.filter(|_| extension == Extension::DependencyDescriptor).unwrap_or(value);
        Some((ours.id(extension)?, value))
    });
    let transport = place.transport.map(u16::to_be_bytes);
    let numbered = transport.as_ref().and_then(|number| Some((ours.id(Extension::TransportCc)?, &number[..])));
    let extensions = extensions.chain(said).chain(numbered);
    let header_len = rtp::write_header(slot, fields, media.header.csrcs(packet), extensions)?;
    let mut at = header_len;
    if let Some(original) = place.original {
        slot.get_mut(at..at + 2)?.copy_from_slice(&original.to_be_bytes());
        at += 2;
    }
    let body = slot.get_mut(at..at + payload.len())?;
    body.copy_from_slice(payload);
    if let Some((descriptor, _)) = media.picture.filter(|_| !payload.is_empty()) {
        descriptor.rewrite(body, mapped.picture_id, mapped.tl0_pic_idx);
    }
    if let Some(ids) = media.vp9.filter(|_| !payload.is_empty()) {
        ids.rewrite(body, mapped.frame_number, mapped.tl0_pic_idx);
    }
    if let Some(payload_type) = place.block_type {
        red::set_payload_type(body, payload_type);
    }
    at += payload.len();
    if place.padding > 0 {
        let padding = slot.get_mut(at..at + place.padding)?;
        padding.fill(0);
        *padding.last_mut()? = place.padding as u8;
        at += place.padding;
    }
    let len = at + sender.rtp_overhead();
    sender.protect_rtp(slot.get_mut(..len)?, header_len, fields.ssrc, place.index);
    Some(len)
}
