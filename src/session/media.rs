//! Media of one participant: what it sends is unprotected, placed and repaired here. Bytes stay where they are: [`Media`] says what
//! they mean. What it hears is in `hearing.rs`.
//!
//! In:   SRTP -> source (mid, rid, SSRC) -> [`RtpIn`]; a retransmission takes its original's number (RFC 4588 §4).
//! RTCP: receiver reports, round-trip requests and NACKs to publishers; sender reports to hearers.

use super::hearing::{CREDIT_MIN, Passage};
use super::negotiate::Receive;
use super::{Effect, Session, SessionDrop};
use crate::base::buf::PacketBuf;
use crate::base::id::{PathId, TrackId};
use crate::base::time::{Duration, Instant};
use crate::engine::rtp_in::{Arrival, RtpIn};
use crate::engine::rtp_out::Input;
use crate::engine::srtp::SOURCES_MAX;
use crate::wire::dependency::{self, Structure};
use crate::wire::red::{self, Redundant};
use crate::wire::rtcp::{self, XrBlock};
use crate::wire::rtp::{self, Codec, Extension, ExtensionMap, FrameInfo};
use crate::wire::sdp::{Format, OfferedFormat};
use crate::wire::twcc::Feedback;
use crate::wire::{h264, vp8, vp9};
use std::ops::Range;

/// Replaced sources that are remembered, so that they do not come back: all that a transport can have.
const RETIRED_MAX: usize = SOURCES_MAX;
/// Sources of retransmissions whose originals are remembered.
const REPAIRS_MAX: usize = 64;
/// Assumed until a report tells the round trip.
const RTT_UNKNOWN: Duration = Duration::from_millis(100);
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
    pub(super) fn layer_of(&self, passage: Passage) -> Option<u8> {
        let (Passage::Continue { spatial_max } | Passage::Start { spatial_max, .. }) = passage else { return None };
        let is_video = self.format.codec.is_video();
        is_video.then_some(if self.frame.spatial_id.is_some() { spatial_max } else { self.layer })
    }

    pub(super) fn input(&self, now: Instant) -> Input {
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
        let Some(receiver) = &mut self.receiver else { return Err(SessionDrop::BeforeKeys) };
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
        let Some(receiver) = &mut self.receiver else { return Err(SessionDrop::BeforeKeys) };
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
                    if let Some(outgoing) = self.hearing.streams().iter().find(|o| o.stream.ssrc() == ssrc) {
                        self.meter.down.key_frames += 1;
                        out.push(Effect::KeyFrameWanted(outgoing.plan.track));
                    }
                }
                rtcp::Packet::Nack { ssrc, lost } => {
                    let rtt = self.round_trip.get();
                    // Nobody is made to look for more than may be sent.
                    let may_repeat = self.hearing.credit >= CREDIT_MIN;
                    // Sound is not sent again: nobody negotiates it, and redundancy is faster.
                    let outgoing = self.hearing.streams_mut().iter_mut().find(|o| o.stream.ssrc() == ssrc && o.plan.is_video());
                    let Some(outgoing) = outgoing.filter(|_| may_repeat) else {
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
                        out.push(Effect::Told(self.hearing.sent.told(feedback)));
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
            if let Some(outgoing) = self.hearing.streams().iter().find(|o| o.stream.ssrc() == block.ssrc) {
                self.round_trip.told(now, block.last_sr, block.delay_since_last_sr);
                let clock_rate = outgoing.plan.formats.first().map_or(90_000, |f| f.format.codec.clock_rate());
                self.meter.report_down(&block, clock_rate);
            }
        }
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
        for outgoing in self.hearing.streams_mut() {
            if let Some(info) = outgoing.stream.sender_report(now.as_ntp()) {
                outgoing.has_reported = true;
                compounds.add(|out| {
                    rtcp::write_sender_report(out, &info);
                    rtcp::write_cname(out, info.ssrc, &outgoing.plan.cname);
                });
            }
        }
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
