//! What one participant hears: its streams, and how a packet is written for it. All that a packet needs lies close together and
//! apart from the rest of the session: a room goes through its thousand hearers for each picture, and what it costs is mostly the
//! way of their state into the cache.
//!
//! [`Session::forward`] and [`Session::resend`] write one packet into a slot of the egress.

use super::media::Media;
use super::negotiate::{self, Playout};
use super::path::{Lag, Thinned, Thinning};
use super::{Session, TrackId};
use crate::base::time::Instant;
use crate::engine::rtp_out::{Mapped, RtpOut, Verdict};
use crate::engine::sent::Sent;
use crate::engine::srtp::Sender;
use crate::wire::rtp::{self, Codec, Extension, ExtensionMap};
use crate::wire::sdp::Format;
use crate::wire::{dependency, red};
use std::collections::HashMap;

/// Room that a forwarded packet needs beyond its payload: header, extensions, number of a retransmission, padding, tag.
pub const FORWARD_OVERHEAD_MAX: usize = 12 + 60 + 4 + 128 + 2 + 4 + 16;
/// Header extensions of a packet: each that is known, once. What a publisher says more often may be left out.
const EXTENSIONS_MAX: usize = Extension::ALL.len();
/// Retransmissions may take half of what is sent anew, and this much at once, bytes.
const CREDIT_MAX: usize = 128 * 1024;
/// With less than one packet's worth nothing is looked for.
pub(super) const CREDIT_MIN: usize = 1500;
/// What a session may retransmit before it has sent anything to speak of, bytes.
const CREDIT_START: usize = 64 * 1024;

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

/// All streams to one participant, and what they share.
pub(super) struct Hearing {
    /// Its keys; none before the handshake.
    pub(super) sender: Option<Sender>,
    streams: Vec<Outgoing>,
    /// The track of each stream, to look through without a visit to all of them, and which stream had the last packet.
    tracks: Vec<TrackId>,
    recent: usize,
    /// What was numbered for the transport.
    pub(super) sent: Sent,
    /// Bytes that retransmissions may take now.
    pub(super) credit: usize,
    /// Bytes that left since somebody asked.
    pub(super) bytes: u64,
}

impl Default for Hearing {
    fn default() -> Self {
        let (streams, tracks) = (Vec::new(), Vec::new());
        Self { sender: None, streams, tracks, recent: 0, sent: Sent::default(), credit: CREDIT_START, bytes: 0 }
    }
}

pub(super) struct Outgoing {
    pub(super) stream: RtpOut,
    form: Option<Form>,
    /// The layer of a picture that the client gets, and whether that was told.
    layer: Option<(u8, bool)>,
    pub(super) has_reported: bool,
    thinning: Thinning,
    pub(super) plan: negotiate::Send,
}

/// How packets of one format look to a hearer: found once for all of them.
#[derive(Clone, Copy)]
struct Form {
    of: Format,
    payload_type: u8,
    /// Of its retransmissions (RFC 4588), and of payloads that take earlier ones along (RFC 2198).
    rtx: Option<u8>,
    red: Option<u8>,
    extensions: ExtensionMap,
    playout: Option<Playout>,
    /// Packets count in the numbers of the transport.
    is_numbered: bool,
}

impl Form {
    /// A retransmission without a source of its own must be the same packet again.
    fn is_repeated_as_it_is(&self) -> bool {
        self.rtx.is_none() && self.of.codec.is_video()
    }
}

impl Outgoing {
    /// `spent` are the numbers that its sources have used under the same keys: it begins behind them.
    pub(super) fn new(plan: negotiate::Send, spent: &HashMap<u32, u64>) -> Self {
        // Below the roll-over that a receiver cannot see coming.
        let first = |ssrc: u32| spent.get(&ssrc).map_or(u64::from(ssrc >> 8 & 0x7FFF), |next| *next);
        let stream = RtpOut::new(plan.ssrc.0, plan.rtx.0, first(plan.ssrc.0), first(plan.rtx.0));
        Self { plan, stream, form: None, thinning: Thinning::default(), has_reported: false, layer: None }
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
        Self { plan, form: None, ..self }
    }

    /// `None` when the hearer takes nothing of this format.
    fn form(&mut self, of: Format) -> Option<Form> {
        if self.form.is_none_or(|form| form.of != of) {
            let plan = &self.plan;
            self.form = of.among(&plan.formats).map(|offered| Form {
                of,
                payload_type: offered.payload_type,
                rtx: offered.rtx,
                red: offered.red.as_ref().map(|(payload_type, _)| *payload_type),
                extensions: plan.extensions,
                playout: plan.playout,
                is_numbered: plan.is_numbered(),
            });
        }
        self.form
    }
}

impl Hearing {
    pub(super) fn streams(&self) -> &[Outgoing] {
        &self.streams
    }

    pub(super) fn streams_mut(&mut self) -> &mut [Outgoing] {
        &mut self.streams
    }

    pub(super) fn take_streams(&mut self) -> Vec<Outgoing> {
        self.tracks.clear();
        std::mem::take(&mut self.streams)
    }

    pub(super) fn set_streams(&mut self, streams: Vec<Outgoing>) {
        self.tracks = streams.iter().map(|o| o.plan.track).collect();
        (self.streams, self.recent) = (streams, 0);
    }

    fn find(&self, track: TrackId) -> Option<usize> {
        if self.tracks.get(self.recent) == Some(&track) {
            return Some(self.recent);
        }
        self.tracks.iter().position(|t| *t == track)
    }

    /// Reads what it takes to find a packet's stream; see [`Session::warm`].
    fn warm(&self) -> u64 {
        self.sender.as_ref().map_or(0, Sender::warm) ^ self.credit as u64 ^ self.bytes ^ self.sent.warm()
    }

    fn warm_stream(&self, track: TrackId) -> u64 {
        let outgoing = self.find(track).map(|at| &self.streams[at]);
        outgoing.map_or(0, |o| o.stream.warm() ^ u64::from(o.form.is_some()) ^ u64::from(o.layer.is_some()))
    }

    fn forward(
        &mut self,
        now: Instant,
        media: &Media,
        packet: &[u8],
        passage: Passage,
        padded_to: usize,
        slot: &mut [u8],
    ) -> Option<usize> {
        let sender = self.sender.as_ref()?;
        self.recent = self.find(media.track)?;
        let outgoing = &mut self.streams[self.recent];
        let form = outgoing.form(media.format)?;
        let input = media.input(now);
        let red = form.red.filter(|_| media.newest.is_some());
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
        // What may have to be the same packet again is never padded.
        let padding = if form.rtx.is_some() { padded_to.saturating_sub(media.payload.len()) } else { 0 };
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
        let is_numbered = form.is_numbered && !form.is_repeated_as_it_is();
        let place = Place {
            payload_type: red.unwrap_or(form.payload_type),
            block_type: red.map(|_| form.payload_type),
            ssrc: outgoing.stream.ssrc(),
            index: mapped.index,
            original: None,
            padding,
            transport: is_numbered.then(|| self.sent.next()),
        };
        let len = write(slot, sender, media, packet, &form, &mapped, payload, &place)?;
        Some(self.left(now, len, is_numbered))
    }

    /// A packet of this length is written.
    fn left(&mut self, now: Instant, len: usize, is_numbered: bool) -> usize {
        self.bytes += len as u64;
        if is_numbered {
            self.sent.push(now);
        }
        len
    }

    fn resend(&mut self, now: Instant, media: &Media, packet: &[u8], slot: &mut [u8]) -> Option<usize> {
        let at = self.find(media.track)?;
        let (sender, outgoing) = (self.sender.as_ref()?, &mut self.streams[at]);
        let form = outgoing.form(media.format)?;
        self.credit = self.credit.saturating_sub(media.payload.len());
        let input = media.input(now);
        let (mapped, payload, padding) = match outgoing.stream.map(&input) {
            Verdict::Send(mapped) => (mapped, packet.get(media.payload.clone())?, 0),
            Verdict::Fill(mapped) => (mapped, &[][..], 1),
            Verdict::Leave => return None,
        };
        let (payload_type, ssrc, index, original) = match form.rtx {
            Some(rtx) => (rtx, outgoing.stream.rtx_ssrc(), outgoing.stream.next_rtx(), Some(mapped.index as u16)),
            None => (form.payload_type, outgoing.stream.ssrc(), mapped.index, None),
        };
        let is_numbered = form.is_numbered && original.is_some();
        let transport = is_numbered.then(|| self.sent.next());
        let place = Place { payload_type, block_type: None, ssrc, index, original, padding, transport };
        let len = write(slot, sender, media, packet, &form, &mapped, payload, &place)?;
        Some(self.left(now, len, is_numbered))
    }
}

impl Session {
    /// Whether a picture passes to this hearer although its path lags behind.
    pub fn thin(&mut self, now: Instant, media: &Media, lag: Lag) -> Thinned {
        if !media.format.codec.is_video() {
            return Thinned::Pass;
        }
        let Some(at) = self.hearing.find(media.track) else { return Thinned::Pass };
        let outgoing = &mut self.hearing.streams[at];
        // A simulcast layer has a clock of its own; its stream starts with a key frame anyhow.
        let starts = media.frame.starts_key_frame && !media.frame.is_late;
        let thinned = outgoing.thinning.decide(lag, media.header.timestamp, media.frame.temporal_id == 0, starts);
        if let Some(is_paused) = outgoing.thinning.news(now) {
            self.stream_news.push((media.track, is_paused));
        }
        thinned
    }

    /// Reads what it takes to find the stream of a packet, so that it lies in the cache by then. The value means nothing.
    pub fn warm(&self) -> u64 {
        self.hearing.warm() ^ u64::from(self.path().is_some())
    }

    /// The same for the stream itself.
    pub fn warm_stream(&self, track: TrackId) -> u64 {
        self.hearing.warm_stream(track)
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
        self.hearing.forward(now, media, packet, passage, padded_to, slot)
    }

    /// Whether retransmissions may take so many bytes more.
    pub fn may_resend(&self, len: usize) -> bool {
        self.hearing.credit >= len
    }

    /// Writes a packet once more, on the source of retransmissions where the client has one.
    pub fn resend(&mut self, now: Instant, media: &Media, packet: &[u8], slot: &mut [u8]) -> Option<usize> {
        self.hearing.resend(now, media, packet, slot)
    }

    /// Layers that have changed and were not told.
    pub(super) fn layer_news(&mut self) -> impl Iterator<Item = (TrackId, u8)> {
        let untold =
            self.hearing.streams_mut().iter_mut().filter_map(|o| Some((o.plan.track, o.layer.as_mut().filter(|(_, was_told)| !was_told)?)));
        untold.map(|(track, (layer, was_told))| {
            *was_told = true;
            (track, *layer)
        })
    }

    /// A stream that has a clock now and has not said so: its receiver cannot put sound and picture together before.
    pub(super) fn has_news(&self, now: Instant) -> bool {
        self.hearing.streams().iter().any(|o| !o.has_reported && o.stream.sender_report(now.as_ntp()).is_some())
    }
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
    form: &Form,
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
    let (ours, theirs) = (&form.extensions, media.extensions);
    // Ours wins over the publisher's, and is said when a receiver starts: it keeps to what it heard last.
    let playout = form.playout.map(Playout::bytes);
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
    let carried = media.header.extensions(packet).filter_map(|(id, value)| {
        let extension = theirs.extension(id).filter(|e| e.is_end_to_end())?;
        if extension == Extension::PlayoutDelay && playout.is_some() {
            return None;
        }
        let value = renumbered.filter(|_| extension == Extension::DependencyDescriptor).unwrap_or(value);
        Some((ours.id(extension)?, value))
    });
    let transport = place.transport.map(u16::to_be_bytes);
    let numbered = transport.as_ref().and_then(|number| Some((ours.id(Extension::TransportCc)?, &number[..])));
    let mut extensions = [(0, &[][..]); EXTENSIONS_MAX];
    let mut count = 0;
    for extension in numbered.into_iter().chain(said).chain(carried).take(EXTENSIONS_MAX) {
        extensions[count] = extension;
        count += 1;
    }
    let header_len = rtp::write_header(slot, fields, media.header.csrcs(packet), &extensions[..count])?;
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
