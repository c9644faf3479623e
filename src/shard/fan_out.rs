//! Media of one turn to its hearers, hearer by hearer: the key schedule of each stays hot, and packets of one size lie
//! side by side in the egress, where they become one message for the kernel. And once more to those who missed them.
//!
//! ```text
//! take_media     decrypted packets of the turn, in their buffers
//! fan_out        room: who gets which -> hearer by hearer -> session writes into the egress -> store keeps them. A large turn
//!                goes in pieces: when the egress is full, the driver sends and comes again
//! resend         NACK -> session recalls the packet -> store -> session writes it again
//! ```

use super::Shard;
use super::counters::Counter;
use super::mail::{Effect, Parcel};
use crate::base::buf::PacketBuf;
use crate::base::id::{Carrier, RoomId, SessionId, TrackId, WorkerId};
use crate::base::time::Now;
use crate::room::layers::Verdict;
use crate::room::{Routed, Word};
use crate::session::path::{Cargo, Lag, Route, Thinned};
use crate::session::{FORWARD_OVERHEAD_MAX, Media, Passage};
use crate::wire::rtp::Codec;

/// Packets of a turn before it is cut short.
const TURN_MAX: usize = 256;
/// Bytes of padding that may make a packet as long as its neighbours (RFC 3550 §5.1).
const PADDING_MAX: usize = 3;
/// Packets that are looked at for that: a run that is longer carries its length on.
const LOOK_AHEAD: usize = 8;
/// Hearers whose state is fetched ahead.
const AHEAD: usize = 8;
/// Packets that a hearer is given from the store when its stream starts with a late one.
const CATCH_UP_MAX: u64 = 256;

/// Demands of other workers that came before their track.
const EARLY_DEMANDS_MAX: usize = 1024;

/// What a turn has brought.
#[derive(Default)]
pub struct FanOut {
    packets: Vec<Packet>,
    deliveries: Vec<Delivery>,
    /// Room for them in another order.
    rearranged: Vec<Delivery>,
    /// Deliveries that are done; `None` before it is known who gets what.
    done: Option<usize>,
    routed: Routed,
}

struct Packet {
    room: RoomId,
    publisher: SessionId,
    media: Media,
    buf: PacketBuf,
    /// Somebody may miss it.
    is_kept: bool,
}

#[derive(Clone, Copy)]
struct Delivery {
    hearer: SessionId,
    /// Index of the packet in the turn.
    at: usize,
    passage: Passage,
}

impl Shard {
    /// A packet of a publisher that lives here.
    pub(super) fn take_media(&mut self, now: Now, publisher: SessionId, media: Media, buf: PacketBuf) {
        // What it brought along is gone with it.
        self.at_work = Some(publisher);
        let recovered = self.sessions.get_mut(&publisher).map(|s| s.take_recovered()).unwrap_or_default();
        if self.silenced.contains(&media.track) {
            self.counters.count(Counter::DropSilenced);
            return self.pool.put(buf);
        }
        self.counters.count(Counter::MediaIn);
        self.counters.add(Counter::MediaBytesIn, media.payload.end as u64);
        let Some(room) = self.places.get(&publisher).map(|p| p.room) else { return self.pool.put(buf) };
        for recovered in recovered {
            self.counters.count(Counter::Recovered);
            let mut copy = self.pool.take();
            copy.fill(&buf);
            self.take_packet(now, room, publisher, recovered, copy);
        }
        let (mut media, mut buf) = (media, buf);
        if media.may_repeat && media.newest.is_none() && media.format.codec == Codec::Opus {
            self.add_redundancy(&mut media, &mut buf);
        }
        self.take_packet(now, room, publisher, media, buf);
    }

    /// Takes the payload before along, for hearers who understand that; the others get the newest part alone.
    fn add_redundancy(&self, media: &mut Media, buf: &mut PacketBuf) {
        let before = media.sequence - 1;
        let is_before = |p: &&Packet| (p.media.track, p.media.header.ssrc, p.media.sequence) == (media.track, media.header.ssrc, before);
        let of_store = self.store.get(media.track, media.layer, before).filter(|(m, _)| m.header.ssrc == media.header.ssrc);
        // Two packets of one voice seldom come in one turn: that is looked through last.
        let of_turn = || self.fan_out.packets.iter().rev().find(is_before).map(|p| (&p.media, &*p.buf));
        if let Some((earlier, bytes)) = of_store.or_else(of_turn) {
            media.repeat(buf, earlier, bytes);
        }
    }

    /// A packet of a publisher here or, over a ring, on another worker.
    pub(super) fn take_packet(&mut self, now: Now, room: RoomId, publisher: SessionId, media: Media, buf: PacketBuf) {
        // A driver comes again before it brings more; for one that does not, what waits is written first.
        while self.is_behind() || self.fan_out.packets.len() >= TURN_MAX {
            self.fan_out(now);
        }
        self.fan_out.packets.push(Packet { room, publisher, media, buf, is_kept: false });
    }

    /// A part of this turn waits until what is written has left.
    pub fn is_behind(&self) -> bool {
        self.fan_out.done.is_some()
    }

    /// Gives the packets of this turn to their hearers, as far as the egress takes them, and keeps them for those who will miss them.
    pub(super) fn fan_out(&mut self, now: Now) {
        if self.fan_out.packets.is_empty() {
            return;
        }
        let mut turn = std::mem::take(&mut self.fan_out);
        let mut done = turn.done.take().unwrap_or_else(|| {
            for (at, packet) in turn.packets.iter_mut().enumerate() {
                self.at_work = Some(packet.publisher);
                packet.is_kept = self.route(now, at, packet, &mut turn.routed, &mut turn.deliveries);
            }
            arrange(&mut turn.deliveries, &mut turn.rearranged, turn.packets.len());
            0
        });
        let mut warmed = done;
        while let Some(hearers) = turn.deliveries[done..].chunk_by(|a, b| a.hearer == b.hearer).next() {
            if warmed <= done {
                warmed = done + self.warm(&turn.deliveries[done..], &turn.packets);
            }
            done += hearers.len();
            self.guarded(|shard| shard.deliver(now, hearers, &turn.packets));
            if self.egress.is_full() && done < turn.deliveries.len() {
                turn.done = Some(done);
                self.fan_out = turn;
                return;
            }
        }
        turn.deliveries.clear();
        for Packet { room, media, buf, is_kept, .. } in turn.packets.drain(..) {
            // Its publisher may have gone while the pieces left: nobody would clear its store again.
            let is_there = || self.rooms.get(&room).is_some_and(|r| r.publication(media.track).is_some());
            if is_kept && is_there() && !self.store.put(now.mono, media, &buf) {
                self.counters.count(Counter::StoreFull);
            }
            self.pool.put(buf);
        }
        self.fan_out = turn;
    }

    /// Fetches what the next hearers need: many lines of a cache come in the time of one when none waits for the one before.
    /// So many deliveries are theirs.
    fn warm(&self, deliveries: &[Delivery], packets: &[Packet]) -> usize {
        let mut count = 0;
        let mut hearers = [None; AHEAD];
        for (place, hearer) in hearers.iter_mut().zip(deliveries.chunk_by(|a, b| a.hearer == b.hearer)) {
            count += hearer.len();
            *place = self.sessions.get(&hearer[0].hearer).map(|session| (session, packets[hearer[0].at].media.track));
        }
        // Where a stream is stands in its session: that is fetched for all of them first.
        for (session, _) in hearers.iter().flatten() {
            std::hint::black_box(session.warm());
        }
        for (session, track) in hearers.iter().flatten() {
            std::hint::black_box(session.warm_stream(*track));
        }
        count
    }

    /// Who gets a packet; what follows from it for its publisher. Whether somebody may miss it.
    fn route(&mut self, now: Now, at: usize, packet: &Packet, routed: &mut Routed, deliveries: &mut Vec<Delivery>) -> bool {
        let Packet { room: room_id, publisher, media, buf, .. } = packet;
        let room_id = *room_id;
        let Some(room) = self.rooms.get_mut(&room_id) else { return false };
        // Whoever owns the publisher tells of its voice.
        if let Some(level) = media.audio_level.filter(|_| room.is_home_of(media.track)) {
            room.speakers.observe(now.mono, *publisher, level);
            if let Some(at) = room.speakers.deadline() {
                self.timers.arm(super::Timer::Speakers(room_id), at);
            }
        }
        room.route(now.mono, media.track, media.layer, media.frame, routed);
        deliveries.extend(routed.hearers.iter().map(|(hearer, verdict)| {
            let passage = match *verdict {
                Verdict::Forward { spatial_max } => Passage::Continue { spatial_max },
                Verdict::Start { spatial_max, temporal_max } => Passage::Start { spatial_max, temporal_max },
                Verdict::Late => Passage::Late,
                Verdict::Skip | Verdict::Drop => Passage::Skip,
            };
            Delivery { hearer: *hearer, at, passage }
        }));
        if let Some(session) = self.sessions.get_mut(publisher) {
            session.set_watched(media.header.ssrc, routed.is_watched);
        }
        for to in routed.shadows.iter().copied() {
            let mut copy = self.pool.take();
            if !copy.fill(buf) {
                self.pool.put(copy);
                continue;
            }
            self.counters.count(Counter::RingMedia);
            let media = Box::new(media.clone());
            self.effects.push(Effect::Parcel { to, parcel: Parcel::Media { room: room_id, publisher: *publisher, media, buf: copy } });
        }
        for (to, word) in routed.words.iter().copied() {
            self.say(to, room_id, media.track, word);
        }
        for layer in routed.key_frames.iter().copied() {
            self.counters.count(Counter::KeyFrameStart);
            self.ask_key_frame(now, room_id, media.track, layer);
        }
        if let Some(layer) = routed.again {
            self.counters.count(Counter::KeyFrameHearer);
            self.ask_key_frame(now, room_id, media.track, layer);
        }
        routed.is_watched || !routed.hearers.is_empty()
    }

    pub(super) fn say(&mut self, to: WorkerId, room: RoomId, track: TrackId, word: Word) {
        self.effects.push(Effect::Parcel { to, parcel: Parcel::Word { room, track, word } });
    }

    /// Another worker said something about a track.
    pub(super) fn take_word(&mut self, now: Now, from: WorkerId, room_id: RoomId, track: TrackId, word: Word) {
        let is_known = self.rooms.get(&room_id).is_some_and(|r| r.publication(track).is_some());
        if let (Word::Demand(_), false) = (word, is_known) {
            // Rings are looked at before mail: that it is published here may still be in there.
            if self.early_demands.len() >= EARLY_DEMANDS_MAX {
                self.early_demands.pop_front();
            }
            return self.early_demands.push_back((track, from, word));
        }
        let Some(room) = self.rooms.get_mut(&room_id) else { return };
        let (answer, key_frame) = room.heard(now.mono, track, from, word);
        if let Some(answer) = answer {
            self.say(from, room_id, track, answer);
        }
        if let Some(layer) = key_frame {
            self.ask_key_frame(now, room_id, track, layer);
        }
    }

    /// A track is published here: those who asked for it before that was known are heard now.
    pub(super) fn take_early_demands(&mut self, now: Now, room: RoomId, track: TrackId) {
        let early: Vec<(WorkerId, Word)> =
            self.early_demands.iter().filter(|(t, ..)| *t == track).map(|(_, from, word)| (*from, *word)).collect();
        self.early_demands.retain(|(t, ..)| *t != track);
        for (from, word) in early {
            self.take_word(now, from, room, track, word);
        }
    }

    /// Tells homes what has changed here about the needs of a room's hearers.
    pub(super) fn tell_homes(&mut self, room_id: RoomId) {
        let news = self.rooms.get_mut(&room_id).map(|r| r.news()).unwrap_or_default();
        for (track, to, word) in news {
            self.say(to, room_id, track, word);
        }
    }

    /// All packets of the turn for one hearer.
    fn deliver(&mut self, now: Now, deliveries: &[Delivery], packets: &[Packet]) {
        let hearer = deliveries[0].hearer;
        self.at_work = Some(hearer);
        let Some(path) = self.sessions.get(&hearer).and_then(|s| s.path()) else { return };
        let Some(route) = super::route_of(&self.turn, now, path) else {
            return self.counters.add(Counter::DropRelayNoRoute, deliveries.len() as u64);
        };
        let len = |d: &Delivery| packets[d.at].media.payload.len();
        let mut run = 0;
        for (i, delivery) in deliveries.iter().enumerate() {
            let Packet { media, buf, .. } = &packets[delivery.at];
            run = padded(run, len(delivery), deliveries[i + 1..].iter().take(LOOK_AHEAD).map(len));
            self.forward(now, hearer, route, media, buf, delivery.passage, run);
            if let Passage::Start { spatial_max, temporal_max } = delivery.passage {
                let earlier = packets[..delivery.at].iter().filter(|p| p.media.track == media.track && p.media.layer == media.layer);
                let mut missed: Vec<(u64, &Packet)> = earlier.map(|p| (p.media.sequence, p)).collect();
                missed.sort_unstable_by_key(|(sequence, _)| *sequence);
                self.catch_up(now, hearer, route, media, (spatial_max, temporal_max), &missed);
            }
        }
    }

    /// A stream that starts with a late packet goes on with those that came before it: in earlier turns, or in this one.
    fn catch_up(&mut self, now: Now, hearer: SessionId, route: Route, start: &Media, layers: (u8, u8), missed: &[(u64, &Packet)]) {
        if !start.frame.is_late {
            return;
        }
        let stored = self.store.newest(start.track, start.layer).unwrap_or(0);
        let newest = missed.last().map_or(stored, |(sequence, _)| stored.max(*sequence));
        for sequence in start.sequence + 1..=newest.min(start.sequence + CATCH_UP_MAX) {
            let of_turn = missed.iter().find(|(s, _)| *s == sequence).map(|(_, p)| (p.media.clone(), p.buf.to_vec()));
            let of_store = || self.store.get(start.track, start.layer, sequence).map(|(m, bytes)| (m.clone(), bytes.to_vec()));
            let Some((media, packet)) = of_turn.or_else(of_store).filter(|(m, _)| m.header.ssrc == start.header.ssrc) else { continue };
            let (spatial_max, temporal_max) = layers;
            // It waited in the store on purpose: that is no delay of ours.
            let media = Media { arrived: now.mono, ..media };
            let is_wanted = media.frame.spatial_id.is_none_or(|s| s <= spatial_max) && media.frame.temporal_id <= temporal_max;
            let passage = if is_wanted { Passage::Continue { spatial_max } } else { Passage::Skip };
            self.forward(now, hearer, route, &media, &packet, passage, 0);
        }
    }

    #[allow(clippy::too_many_arguments, reason = "one packet, to one hearer, on one way")]
    fn forward(&mut self, now: Now, hearer: SessionId, route: Route, media: &Media, packet: &[u8], passage: Passage, padded_to: usize) {
        self.at_work = Some(hearer);
        let Some(session) = self.sessions.get_mut(&hearer) else { return };
        let mut asks = false;
        let (padded_to, passage) = match route.carrier {
            Carrier::Udp { .. } => (padded_to, passage),
            Carrier::Stream(stream) => {
                let lag = self.streams.get(&stream).map_or(Lag::None, |s| s.queue.lag(now.mono));
                match session.thin(now.mono, media, lag) {
                    Thinned::Pass => (0, passage),
                    left_out => {
                        self.counters.count(Counter::ThinnedPackets);
                        if left_out == Thinned::LeaveOutAndAsk {
                            asks = true;
                        }
                        (0, Passage::Skip)
                    }
                }
            }
        };
        let slot = self.egress.slot(route, media.payload.len() + FORWARD_OVERHEAD_MAX);
        match session.forward(now.mono, media, packet, passage, padded_to, slot) {
            Some(len) => {
                self.counters.count(Counter::Forwarded);
                self.counters.add(Counter::MediaBytesOut, len as u64);
                self.departures.add(media.arrived);
                self.commit(now, route, len, if media.format.codec.is_video() { Cargo::Picture } else { Cargo::Sound });
            }
            None => drop(self.egress.abandon()),
        }
        if asks && let Some(room_id) = self.places.get(&hearer).map(|p| p.room) {
            let layer = self.rooms.get_mut(&room_id).and_then(|r| r.key_frame_wanted(now.mono, media.track, hearer));
            if let Some(layer) = layer {
                self.counters.count(Counter::KeyFrameThinned);
                self.ask_key_frame(now, room_id, media.track, layer);
            }
        }
    }

    /// A hearer missed a packet.
    pub(super) fn resend(&mut self, now: Now, hearer: SessionId, track: TrackId, layer: u8, sequence: u64) {
        self.at_work = Some(hearer);
        let Some(session) = self.sessions.get_mut(&hearer) else { return };
        self.store.reach(session.rtt());
        let Some((media, packet)) = self.store.get(track, layer, sequence) else {
            return self.counters.count(Counter::ResendNotStored);
        };
        let Some(route) = session.path().and_then(|path| super::route_of(&self.turn, now, path)) else { return };
        if !session.may_resend(media.payload.len()) {
            return self.counters.count(Counter::ResendCapped);
        }
        let slot = self.egress.slot(route, media.payload.len() + FORWARD_OVERHEAD_MAX);
        match session.resend(now.mono, media, packet, slot) {
            Some(len) => {
                self.counters.count(Counter::Resent);
                self.commit(now, route, len, Cargo::Picture);
            }
            None => {
                self.counters.count(Counter::ResendRefused);
                self.egress.abandon();
            }
        }
    }

    /// Asks the publisher, or the worker that owns it.
    pub(super) fn ask_key_frame(&mut self, now: Now, room_id: RoomId, track: TrackId, layer: u8) {
        let Some(room) = self.rooms.get(&room_id) else { return };
        if let Some(home) = room.home_of(track) {
            return self.say(home, room_id, track, Word::KeyFrame(layer));
        }
        let Some(publisher) = room.publication(track).map(|p| p.publisher) else { return };
        self.at_work = Some(publisher);
        let Some(session) = self.sessions.get_mut(&publisher) else { return };
        self.counters.count(Counter::KeyFramesAsked);
        let mut effects = std::mem::take(&mut self.session_effects);
        session.request_key_frame(track, layer, &mut effects);
        self.drain_session(now, publisher, effects);
    }
}

/// Of so many packets in turn, each to its hearers: hearer by hearer.
fn arrange(deliveries: &mut Vec<Delivery>, rearranged: &mut Vec<Delivery>, packets: usize) {
    let each = deliveries.len() / packets;
    let mut of_packets = deliveries.chunks(each.max(1));
    let first = of_packets.next().unwrap_or_default();
    // Packets of one picture go to the same hearers, in the same order: that needs no sorting.
    let is_even = deliveries.len().is_multiple_of(packets)
        && of_packets.all(|of_packet| of_packet.iter().map(|d| d.hearer).eq(first.iter().map(|d| d.hearer)));
    if is_even {
        rearranged.clear();
        rearranged.extend((0..each).flat_map(|nth| deliveries.iter().skip(nth).step_by(each)));
        std::mem::swap(deliveries, rearranged);
    } else {
        deliveries.sort_unstable_by_key(|d| (d.hearer, d.at));
    }
}

/// The length that makes a payload of `len` part of a run: that of the run before it, or of those that come. Browsers cut a
/// frame into pieces that differ by a byte; the kernel takes pieces of one length only.
fn padded(run: usize, len: usize, next: impl Iterator<Item = usize>) -> usize {
    let near = |other: usize| other >= len && other - len <= PADDING_MAX;
    let mut next = next.peekable();
    if near(run) && next.peek().is_some_and(|other| run >= *other && run - other <= PADDING_MAX) {
        return run;
    }
    let mut target = len;
    let mut has_next = false;
    for other in next.take_while(|other| near(*other) || (*other < len && len - other <= PADDING_MAX)) {
        has_next = true;
        target = target.max(other);
    }
    // The last one of a run may be shorter.
    if has_next && near(run) { target.max(run) } else { target }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever packets go to whom, each hearer's are together and in order.
    #[test]
    fn deliveries_are_put_together_by_hearer() {
        let even: &[&[&[u64]]] = &[&[&[5]], &[&[7, 3, 5], &[7, 3, 5], &[7, 3, 5]], &[&[], &[]]];
        let uneven: &[&[&[u64]]] = &[&[&[7, 3, 5], &[7, 5], &[3, 7, 5]], &[&[7, 3], &[5, 9], &[]], &[&[], &[5]], &[&[5], &[5], &[]]];
        for row in even.iter().chain(uneven) {
            let delivery = |at, id: &u64| Delivery { hearer: SessionId(*id), at, passage: Passage::Skip };
            let mut deliveries: Vec<Delivery> =
                row.iter().enumerate().flat_map(|(at, hearers)| hearers.iter().map(move |id| delivery(at, id))).collect();
            let mut want: Vec<(u64, usize)> = deliveries.iter().map(|d| (d.hearer.0, d.at)).collect();
            arrange(&mut deliveries, &mut Vec::new(), row.len());
            let mut got: Vec<(u64, usize)> = Vec::new();
            for hearer in deliveries.chunk_by(|a, b| a.hearer == b.hearer) {
                assert!(hearer.is_sorted_by_key(|d| d.at) && !got.iter().any(|(id, _)| *id == hearer[0].hearer.0), "{row:?}");
                got.extend(hearer.iter().map(|d| (d.hearer.0, d.at)));
            }
            got.sort_unstable();
            want.sort_unstable();
            assert_eq!(got, want);
        }
    }

    #[test]
    fn pieces_of_a_frame_get_one_length() {
        let rows: &[(&[usize], &[usize])] = &[
            (&[1100, 1100, 1101, 1101], &[1101, 1101, 1101, 1101]),
            (&[1101, 1100, 1100], &[1101, 1101, 1100]),
            (&[1100, 400], &[1100, 400]),
            (&[100], &[100]),
            (&[100, 104, 104], &[100, 104, 104]),
        ];
        for (lens, want) in rows {
            let mut run = 0;
            let got: Vec<usize> = (0..lens.len())
                .map(|i| {
                    run = padded(run, lens[i], lens[i + 1..].iter().copied());
                    run
                })
                .collect();
            assert_eq!(got, *want, "{lens:?}");
        }
    }
}
