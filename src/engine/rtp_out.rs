//! One outgoing RTP stream: numbers and timestamps continuous for one receiver, whatever layer they come from.
//!
//! * Sequence: [`Renumber`] closes up over what is taken out, keeps the gaps of what is lost, and finds its way back for
//!   a retransmission. A switch begins an epoch; what a switch cut off stays visibly incomplete.
//! * Timestamp: on a switch by the sender's clock when both layers have a report, by arrival before that. Time only goes on:
//!   what is older than the last frame out gets the next tick, until those behind it have their own time again.
//! * The frame number of a dependency descriptor and the picture id of VP9 continue over a switch; what was left out of them
//!   stays left out.
//! * VP8 picture id and TL0PICIDX continue over a switch and over dropped temporal layers (RFC 7741 §4.2): a gap would
//!   make the receiver wait.
//! * Sender reports are ours: all publishers on one clock, so that a publisher's tracks stay in sync.

use super::renumber::{Fate, Renumber};
use crate::base::time::{Duration, Instant};
use crate::wire::rtcp::SenderInfo;
use std::collections::VecDeque;

/// How much further than the arrival a sender's clock may move a timestamp on a switch.
const SKEW_MAX: Duration = Duration::from_millis(75);
/// How much older than the last frame out the first one of another layer may be.
const LATE_MAX: Duration = Duration::from_secs(2);
/// Retransmissions remembered, so that a second request within a round trip is not answered.
const RESENT_MAX: usize = 128;
const FILLED_MAX: usize = 64;

/// What is known about a packet that may go out.
#[derive(Clone, Copy, Debug)]
pub struct Input {
    pub now: Instant,
    pub ssrc: u32,
    pub layer: u8,
    /// Extended by `rtp_in`.
    pub sequence: u64,
    pub timestamp: u32,
    /// Of timestamps, Hz.
    pub clock_rate: u32,
    pub marker: bool,
    /// The sender's clock at `timestamp`, NTP format, and ours.
    pub sent_ntp: Option<u64>,
    pub ntp: Option<u64>,
    /// Extended picture id and TL0PICIDX of VP8.
    pub picture: Option<u64>,
    pub tl0_pic_idx: u8,
    /// Spatial layer whose frame ends with this packet, in a stream that carries several.
    pub ends_spatial: Option<u8>,
    /// Of a dependency descriptor (AV1 RTP specification, annex A.8.1), or the picture id of VP9: numbers whose gaps stay.
    pub frame_number: Option<u16>,
}

/// The numbers that the packet goes out with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// Extended sequence number: its low 16 bits go on the wire, all of it is SRTP's index.
    pub index: u64,
    pub timestamp: u32,
    /// The receiver gets nothing more of this picture.
    pub marker: bool,
    pub picture_id: u16,
    pub tl0_pic_idx: u8,
    pub frame_number: u16,
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Send(Mapped),
    /// Nothing of it is wanted, but its number is waited for: an empty packet takes it.
    Fill(Mapped),
    /// Its place is closed up, or it is from before the stream began or after it switched.
    Leave,
}

/// Which packet went out under a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recalled {
    pub ssrc: u32,
    pub layer: u8,
    pub sequence: u64,
}

#[derive(Clone, Copy)]
struct Epoch {
    ssrc: u32,
    layer: u8,
    spatial_max: u8,
    serial: u16,
    timestamp_offset: u32,
    /// The same, had it not been for frames that were out already.
    true_offset: u32,
    tl0_offset: u8,
    frame_offset: u16,
    /// Its source began to go out with these.
    first_timestamp: u32,
    first_tl0: u8,
}

// Many of them are kept for each hearer.
const _: () = assert!(size_of::<Epoch>() <= 24);

impl Mapped {
    fn new(index: u64, input: &Input, epoch: &Epoch) -> Self {
        let timestamp = input.timestamp.wrapping_add(epoch.timestamp_offset);
        let marker = input.marker || input.ends_spatial.is_some_and(|s| s == epoch.spatial_max);
        let frame_number = input.frame_number.unwrap_or(0).wrapping_add(epoch.frame_offset);
        Self { index, timestamp, marker, picture_id: 0, tl0_pic_idx: 0, frame_number }
    }
}

struct Last {
    index: u64,
    clock_rate: u32,
    timestamp: u32,
    true_timestamp: u32,
    at: Instant,
    sent_ntp: Option<u64>,
    ntp: Option<u64>,
    marker: bool,
    tl0_pic_idx: u8,
    frame_number: u16,
}

/// The one of two timestamps that lies ahead.
fn later(a: u32, b: u32) -> u32 {
    if a.wrapping_sub(b) as i32 > 0 { a } else { b }
}

pub struct RtpOut {
    ssrc: u32,
    numbers: Renumber<Epoch, 32>,
    /// Epochs of pictures bear the serial number of their epoch of numbers.
    pictures: Renumber<u16, 4>,
    serial: u16,
    last: Option<Last>,
    first_index: u64,
    /// Retransmissions: their source, their next index, and what was repeated lately.
    rtx_ssrc: u32,
    rtx_index: u64,
    resent: VecDeque<(u64, Instant)>,
    /// Numbers that empty packets took.
    filled: VecDeque<u64>,
    /// Numbers before this went out in a form that cannot be made again.
    repeatable_from: u64,
    packets: u32,
    octets: u32,
}

impl RtpOut {
    /// `first_index` and `first_rtx_index`: extended numbers of the first packets.
    pub fn new(ssrc: u32, rtx_ssrc: u32, first_index: u64, first_rtx_index: u64) -> Self {
        Self {
            ssrc,
            numbers: Renumber::default(),
            pictures: Renumber::default(),
            last: None,
            first_index,
            rtx_ssrc,
            rtx_index: first_rtx_index,
            serial: 0,
            resent: VecDeque::new(),
            filled: VecDeque::new(),
            repeatable_from: 0,
            packets: 0,
            octets: 0,
        }
    }

    pub fn ssrc(&self) -> u32 {
        self.ssrc
    }

    /// Reads what the next packet needs, so that it lies in the cache by then. The value means nothing.
    pub fn warm(&self) -> u64 {
        let last = self.last.as_ref().map_or(0, |last| last.index ^ u64::from(last.tl0_pic_idx));
        self.numbers.warm() ^ self.pictures.warm() ^ last ^ self.filled.len() as u64 ^ u64::from(self.octets)
    }

    pub fn rtx_ssrc(&self) -> u32 {
        self.rtx_ssrc
    }

    /// Whether this packet is of the stream that goes out now.
    pub fn follows(&self, input: &Input) -> bool {
        self.numbers.current().is_some_and(|e| e.ssrc == input.ssrc)
    }

    /// The next packet comes from another stream, or from the same after a pause: continue from what went out last.
    pub fn switch(&mut self, input: &Input, spatial_max: u8) {
        self.serial = self.serial.wrapping_add(1);
        let (ssrc, layer, serial) = (input.ssrc, input.layer, self.serial);
        let mut epoch = Epoch {
            ssrc,
            layer,
            spatial_max,
            serial,
            timestamp_offset: 0,
            true_offset: 0,
            tl0_offset: 0,
            frame_offset: 0,
            first_timestamp: 0,
            first_tl0: 0,
        };
        if let Some(last) = &self.last {
            if !last.marker {
                // The frame that was under way stays unfinished: without a gap the receiver would glue both together.
                self.numbers.leave_gap();
            }
            let (true_timestamp, may_be_behind) = Self::true_timestamp(last, input);
            let next = last.timestamp.wrapping_add(1);
            let timestamp = if may_be_behind { later(true_timestamp, next) } else { true_timestamp };
            epoch.true_offset = true_timestamp.wrapping_sub(input.timestamp);
            epoch.timestamp_offset = timestamp.wrapping_sub(input.timestamp);
            epoch.tl0_offset = last.tl0_pic_idx.wrapping_add(1).wrapping_sub(input.tl0_pic_idx);
            epoch.frame_offset = last.frame_number.wrapping_add(1).wrapping_sub(input.frame_number.unwrap_or(0));
        }
        epoch.first_timestamp = input.timestamp.wrapping_add(epoch.timestamp_offset);
        epoch.first_tl0 = input.tl0_pic_idx.wrapping_add(epoch.tl0_offset);
        self.numbers.switch(input.sequence, epoch);
        if let Some(picture) = input.picture {
            self.pictures.switch(picture, serial);
        }
    }

    /// Pictures whose ids have no place behind the earlier ones: the encoder has started anew, or shows its first ones.
    fn anchor_pictures(&mut self, input: &Input) {
        let Some(picture) = input.picture else { return };
        let Some(epoch) = self.numbers.current().copied().filter(|e| e.ssrc == input.ssrc) else { return };
        let is_new = self.last.as_ref().is_some_and(|_| self.numbers.is_new(input.sequence));
        if is_new && !self.pictures.has_place(picture, |serial| *serial == epoch.serial) {
            self.serial = self.serial.wrapping_add(1);
            let last_tl0 = self.last.as_ref().map_or(0, |l| l.tl0_pic_idx);
            let tl0_offset = last_tl0.wrapping_add(1).wrapping_sub(input.tl0_pic_idx);
            self.numbers.split(input.sequence, Epoch { serial: self.serial, tl0_offset, ..epoch });
            self.pictures.switch(picture, self.serial);
        }
    }

    /// From this packet on spatial layers up to `spatial_max` pass: the last packet of a picture may be another.
    pub fn limit_spatial(&mut self, input: &Input, spatial_max: u8) {
        if let Some(epoch) = self.numbers.current().copied().filter(|e| e.spatial_max != spatial_max) {
            self.numbers.split(input.sequence, Epoch { spatial_max, ..epoch });
        }
    }

    /// The timestamp of a packet from another source, when that of the last one out is known; whether it may lie behind that.
    fn true_timestamp(last: &Last, input: &Input) -> (u32, bool) {
        let arrived_us = input.now.since(last.at).as_micros() as i64;
        let believed = -(LATE_MAX.as_micros() as i64)..=arrived_us + SKEW_MAX.as_micros() as i64;
        let by_clock =
            last.sent_ntp.zip(input.sent_ntp).map(|(then, now)| ((i128::from(now.wrapping_sub(then) as i64) * 1_000_000) >> 32) as i64);
        let ticks = |us: i64| (i128::from(us) * i128::from(input.clock_rate) / 1_000_000) as u32;
        match by_clock.filter(|us| believed.contains(us)) {
            Some(us) => (last.true_timestamp.wrapping_add(ticks(us)), us < LATE_MAX.as_micros() as i64),
            None => (last.timestamp.wrapping_add(ticks(arrived_us).max(1)), false),
        }
    }

    /// After a layer that started late: each new frame comes as near to its own time as what went out before allows.
    fn catch_up(&mut self, input: &Input) {
        let Some(epoch) = self.numbers.current().copied().filter(|e| e.ssrc == input.ssrc) else { return };
        let Some(last) = self.last.as_ref().filter(|_| epoch.timestamp_offset != epoch.true_offset) else { return };
        // None of an older frame may be on its way: time would go back for it.
        let is_next = self.numbers.next_out(input.sequence).is_some_and(|out| self.first_index + out == last.index + 1);
        if last.marker && is_next {
            let timestamp = later(input.timestamp.wrapping_add(epoch.true_offset), last.timestamp.wrapping_add(1));
            let timestamp_offset = timestamp.wrapping_sub(input.timestamp);
            self.numbers.split(input.sequence, Epoch { timestamp_offset, ..epoch });
        }
    }

    /// This packet carries nothing for the receiver, and what follows closes up. `with_picture`: nor does any other of its
    /// frame. One that comes late is filled in, because what came after it has its number already.
    pub fn skip(&mut self, input: &Input, with_picture: bool) -> Verdict {
        if let (Some(picture), Some(epoch)) = (input.picture.filter(|_| with_picture), self.numbers.current()) {
            let serial = epoch.serial;
            self.pictures.drop(picture, |s| *s == serial);
        }
        if self.numbers.drop(input.sequence, |e| e.ssrc == input.ssrc) {
            return Verdict::Leave;
        }
        let Some((Fate::Out(out), epoch)) = self.numbers.take(input.sequence, |e| e.ssrc == input.ssrc) else {
            return Verdict::Leave;
        };
        let mapped = Mapped::new(self.first_index + out, input, epoch);
        self.fill(mapped)
    }

    /// An empty packet takes the number, and takes it again when that is asked for: one number, one content.
    fn fill(&mut self, mapped: Mapped) -> Verdict {
        if !self.filled.contains(&mapped.index) {
            if self.filled.len() == FILLED_MAX
                && let Some(forgotten) = self.filled.pop_front()
            {
                self.repeatable_from = self.repeatable_from.max(forgotten + 1);
            }
            self.filled.push_back(mapped.index);
        }
        Verdict::Fill(mapped)
    }

    /// The numbers for a packet of the current source, or for a late one of an earlier source.
    pub fn map(&mut self, input: &Input) -> Verdict {
        self.map_next(input).map_or_else(|| self.map_any(input), Verdict::Send)
    }

    /// The one behind the newest, of the same picture or the next: nobody has filled its number in, nothing has taken over behind it,
    /// and it is newer than all that went out.
    fn map_next(&mut self, input: &Input) -> Option<Mapped> {
        let epoch = *self.numbers.current().filter(|e| e.ssrc == input.ssrc && e.timestamp_offset == e.true_offset)?;
        let out = self.numbers.next_out(input.sequence)?;
        let mut mapped = Mapped::new(self.first_index + out, input, &epoch);
        mapped.tl0_pic_idx = input.tl0_pic_idx.wrapping_add(epoch.tl0_offset);
        if let Some(picture) = input.picture {
            let picture = self.pictures.go_on(picture, |serial| *serial == epoch.serial)?;
            mapped.picture_id = (picture & 0x7FFF) as u16;
        }
        self.numbers.go_on(input.sequence, |_| true)?;
        self.note(input, &mapped, mapped.timestamp);
        Some(mapped)
    }

    fn map_any(&mut self, input: &Input) -> Verdict {
        self.anchor_pictures(input);
        self.catch_up(input);
        let Some((Fate::Out(out), epoch)) = self.numbers.take(input.sequence, |e| e.ssrc == input.ssrc) else {
            return Verdict::Leave;
        };
        let mut mapped = Mapped::new(self.first_index + out, input, epoch);
        let true_timestamp = input.timestamp.wrapping_add(epoch.true_offset);
        let (tl0_offset, serial) = (epoch.tl0_offset, epoch.serial);
        if self.filled.contains(&mapped.index) {
            return Verdict::Fill(mapped);
        }
        mapped.tl0_pic_idx = input.tl0_pic_idx.wrapping_add(tl0_offset);
        if self.last.as_ref().is_some_and(|last| mapped.index < last.index)
            && let Some(next) = self.numbers.successor(input.sequence, |e| e.ssrc == input.ssrc)
        {
            let is_behind = mapped.timestamp.wrapping_sub(next.first_timestamp) as i32 >= 0
                || (input.picture.is_some() && mapped.tl0_pic_idx.wrapping_sub(next.first_tl0) as i8 >= 0);
            if is_behind {
                // Of a frame that was missed as a whole, taken after the one that took over: time would go back behind it.
                return self.fill(mapped);
            }
        }
        if let Some(picture) = input.picture {
            match self.pictures.take(picture, |s| *s == serial) {
                Some((Fate::Out(picture), _)) => mapped.picture_id = (picture & 0x7FFF) as u16,
                // The rest of its frame was taken out.
                Some((Fate::Dropped, _)) => return self.fill(mapped),
                None => return Verdict::Leave,
            }
        }
        if self.last.as_ref().is_none_or(|last| mapped.index > last.index) {
            self.note(input, &mapped, true_timestamp);
        }
        Verdict::Send(mapped)
    }

    /// What is newest now.
    fn note(&mut self, input: &Input, mapped: &Mapped, true_timestamp: u32) {
        self.last = Some(Last {
            index: mapped.index,
            clock_rate: input.clock_rate,
            timestamp: mapped.timestamp,
            true_timestamp,
            at: input.now,
            sent_ntp: input.sent_ntp,
            ntp: input.ntp,
            marker: mapped.marker,
            tl0_pic_idx: mapped.tl0_pic_idx,
            frame_number: mapped.frame_number,
        });
    }

    /// A packet went out: for the sender reports.
    pub fn sent(&mut self, payload_len: usize) {
        self.packets = self.packets.wrapping_add(1);
        self.octets = self.octets.wrapping_add(payload_len as u32);
    }

    /// What went out as `sequence`, when it may be sent again now: not twice within a round trip.
    pub fn recall(&mut self, now: Instant, sequence: u16, rtt: Duration) -> Option<Recalled> {
        let newest = self.last.as_ref()?.index;
        let index = newest.checked_add_signed(i64::from(sequence.wrapping_sub(newest as u16) as i16))?;
        if index < self.repeatable_from.max(self.first_index) {
            return None;
        }
        let (epoch, sequence) = self.numbers.find(index - self.first_index)?;
        let recalled = Recalled { ssrc: epoch.ssrc, layer: epoch.layer, sequence };
        let again_after = (rtt * 9 / 10).max(Duration::from_millis(5));
        if self.resent.iter().any(|(i, at)| *i == index && now.since(*at) < again_after) {
            return None;
        }
        if self.resent.len() == RESENT_MAX {
            self.resent.pop_front();
        }
        self.resent.push_back((index, now));
        Some(recalled)
    }

    /// The index of the next packet on the source of retransmissions.
    pub fn next_rtx(&mut self) -> u64 {
        self.rtx_index += 1;
        self.rtx_index - 1
    }

    /// What a stream that continues this one would begin with, and its retransmissions.
    pub fn next_index(&self) -> u64 {
        self.first_index + self.numbers.end()
    }

    pub fn next_rtx_index(&self) -> u64 {
        self.rtx_index
    }

    /// From here on packets look different: what went out cannot be made again as it was.
    pub fn change_form(&mut self) {
        self.repeatable_from = self.last.as_ref().map_or(0, |last| last.index + 1);
    }

    /// A report of what went out, at `ntp` on our clock; `None` until a packet with a known time went out.
    pub fn sender_report(&self, ntp: u64) -> Option<SenderInfo> {
        let last = self.last.as_ref()?;
        let since = i128::from(ntp.wrapping_sub(last.ntp?) as i64);
        let ticks = (since * i128::from(last.clock_rate)) >> 32;
        let rtp = last.true_timestamp.wrapping_add(ticks as u32);
        Some(SenderInfo { ssrc: self.ssrc, ntp, rtp, packets: self.packets, octets: self.octets })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn input(ms: u64, sequence: u64, timestamp: u32) -> Input {
        Input {
            now: Instant::from_millis(ms),
            ssrc: 5,
            layer: 0,
            sequence,
            timestamp,
            clock_rate: 90_000,
            marker: true,
            sent_ntp: None,
            ntp: None,
            picture: None,
            tl0_pic_idx: 0,
            ends_spatial: None,
            frame_number: None,
        }
    }

    fn sent(verdict: Verdict) -> Option<Mapped> {
        if let Verdict::Send(mapped) = verdict { Some(mapped) } else { None }
    }

    fn out() -> RtpOut {
        RtpOut::new(1, 2, 100, 0)
    }

    #[test]
    fn numbers_in_and_out() {
        // (action, source, sequence in, sequence out)
        enum Do {
            Switch,
            Map,
            Skip,
        }
        use Do::{Map, Skip, Switch};
        let rows: &[(&str, Do, u32, u64, Option<u64>)] = &[
            ("the first packet starts where we start", Switch, 5, 1_000, Some(100)),
            ("the next follows", Map, 5, 1_001, Some(101)),
            ("a gap stays a gap", Map, 5, 1_004, Some(104)),
            ("a late one falls into it", Map, 5, 1_002, Some(102)),
            ("padding is taken out", Skip, 5, 1_005, None),
            ("and the next closes up", Map, 5, 1_006, Some(105)),
            ("one before the padding keeps its place", Map, 5, 1_003, Some(103)),
            ("another layer continues", Switch, 6, 70_000, Some(106)),
            ("and goes on", Map, 6, 70_001, Some(107)),
            ("what was before the switch is late", Map, 6, 69_999, None),
            ("what the old layer sends on is not wanted", Map, 5, 1_007, None),
        ];
        let mut out = out();
        for (name, action, ssrc, sequence, want) in rows {
            let packet = Input { ssrc: *ssrc, ..input(0, *sequence, 0) };
            let got = match action {
                Switch => {
                    out.switch(&packet, 2);
                    sent(out.map(&packet))
                }
                Map => sent(out.map(&packet)),
                Skip => sent(out.skip(&packet, false)),
            };
            assert_eq!(got.map(|m| m.index), *want, "{name}");
        }
    }

    #[test]
    fn late_padding_fills_the_number_that_is_waited_for() {
        let mut out = out();
        out.switch(&input(0, 10, 0), 2);
        for sequence in [10, 12] {
            assert!(sent(out.map(&input(0, sequence, 0))).is_some());
        }
        assert!(matches!(out.skip(&input(0, 11, 0), false), Verdict::Fill(Mapped { index: 101, .. })));
        assert_eq!(sent(out.map(&input(0, 13, 0))).map(|m| m.index), Some(103));
    }

    #[test]
    fn a_frame_that_a_switch_cuts_off_stays_incomplete() {
        let mut out = out();
        out.switch(&input(0, 10, 0), 2);
        out.map(&Input { marker: false, ..input(0, 10, 0) });
        let other = Input { ssrc: 6, ..input(9, 500, 0) };
        out.switch(&other, 2);
        assert_eq!(sent(out.map(&other)).map(|m| m.index), Some(102));
    }

    #[test]
    fn timestamps_continue_by_arrival_and_by_clock() {
        let mut out = out();
        let first = input(0, 1, 5_000);
        out.switch(&first, 2);
        assert_eq!(sent(out.map(&first)).expect("current").timestamp, 5_000);
        let second = Input { ssrc: 6, ..input(100, 9, 777) };
        out.switch(&second, 2);
        assert_eq!(sent(out.map(&second)).expect("current").timestamp, 5_000 + 9_000, "100 ms by arrival");
        // Both ends report: the clock says 40 ms although the packet came after 60.
        let mut third = Input { sent_ntp: Some(100 << 32), ssrc: 6, ..input(200, 10, 777 + 9_000) };
        out.map(&third);
        third = Input { sent_ntp: Some((100 << 32) + (40 << 32) / 1000), ..input(260, 50, 1) };
        out.switch(&third, 2);
        let mapped = sent(out.map(&third)).expect("current");
        assert!(mapped.timestamp.abs_diff(5_000 + 18_000 + 3_600) <= 1, "{}", mapped.timestamp);
        // A clock that runs away is not believed.
        let fourth = Input { sent_ntp: Some(200 << 32), ssrc: 6, ..input(270, 90, 1) };
        out.switch(&fourth, 2);
        assert_eq!(sent(out.map(&fourth)).expect("current").timestamp, mapped.timestamp + 900);
    }

    #[test]
    fn a_layer_that_starts_late_gets_its_own_time_back() {
        let at = |ms: u64| Some((100 << 32) + (ms << 32) / 1000);
        let mut out = out();
        let send = |out: &mut RtpOut, ms, ssrc, sequence, timestamp, sent_ms, switches: bool| {
            let marker = sequence != 70;
            let packet = Input { ssrc, sent_ntp: at(sent_ms), marker, ..input(ms, sequence, timestamp) };
            if switches {
                out.switch(&packet, 2);
            }
            sent(out.map(&packet)).expect("current").timestamp
        };
        assert_eq!(send(&mut out, 0, 5, 1, 9_000, 0, true), 9_000);
        assert_eq!(send(&mut out, 100, 5, 2, 18_000, 100, false), 18_000);
        // Its key frame was repaired: taken 60 ms before the last frame that went out.
        assert_eq!(send(&mut out, 110, 6, 70, 500, 40, true), 18_001, "time goes on");
        assert_eq!(send(&mut out, 111, 6, 71, 500, 40, false), 18_001, "one frame, one timestamp");
        assert_eq!(send(&mut out, 112, 6, 72, 500 + 3_600, 80, false), 18_002, "no room yet");
        assert_eq!(send(&mut out, 150, 6, 73, 500 + 7_200, 120, false), 9_000 + 10_800, "120 ms after the first frame");
        assert_eq!(send(&mut out, 201, 6, 72, 500 + 3_600, 80, false), 18_002, "again as it was");
        assert_eq!(send(&mut out, 240, 5, 9, 9_000 + 21_600, 240, true), 9_000 + 21_600, "and the first layer its own");
    }

    #[test]
    fn what_was_missed_before_a_switch_fills_its_gap_and_nothing_goes_back() {
        let mut out = out();
        let packet = |ssrc, sequence, timestamp, tl0| Input {
            ssrc,
            picture: Some(sequence),
            tl0_pic_idx: tl0,
            ..input(sequence % 100 * 10, sequence, timestamp)
        };
        out.switch(&packet(5, 1, 9_000, 7), 2);
        assert!(sent(out.map(&packet(5, 1, 9_000, 7))).is_some());
        assert!(sent(out.map(&packet(5, 4, 18_000, 8))).is_some(), "2 and 3 are missing");
        let first = packet(6, 505, 77, 200);
        out.switch(&first, 2);
        let switched = sent(out.map(&first)).expect("current");
        assert_eq!((switched.index, switched.tl0_pic_idx), (104, 9));
        assert_eq!(sent(out.map(&packet(5, 2, 12_000, 7))).map(|m| m.index), Some(101), "older than the switch");
        assert!(matches!(out.map(&packet(5, 3, 90_000, 8)), Verdict::Fill(Mapped { index: 102, .. })), "newer in time");
        assert_eq!(out.map(&packet(5, 5, 19_000, 9)), Verdict::Leave, "behind the end of its source");
        assert!(sent(out.map(&packet(6, 508, 9_077, 201))).is_some(), "506 and 507 are missing");
        let third = packet(7, 909, 5, 100);
        out.switch(&third, 2);
        assert!(sent(out.map(&third)).is_some());
        assert!(matches!(out.map(&packet(5, 3, 90_000, 8)), Verdict::Fill(Mapped { index: 102, .. })), "again as it was");
        assert_eq!(sent(out.map(&packet(6, 507, 6_077, 200))).map(|m| m.index), Some(106), "between its two switches");
    }

    #[test]
    fn picture_ids_continue_over_switches_and_dropped_layers() {
        let mut out = out();
        let packet = |ssrc, sequence, picture, tl0| Input { ssrc, picture: Some(picture), tl0_pic_idx: tl0, ..input(0, sequence, 0) };
        let ids = |verdict| sent(verdict).map(|m| (m.picture_id, m.tl0_pic_idx));
        out.switch(&packet(5, 1, 0x7FFF, 250), 2);
        assert_eq!(ids(out.map(&packet(5, 1, 0x7FFF, 250))), Some((0, 250)));
        // A frame of two packets of a temporal layer that is not wanted.
        assert_eq!(out.skip(&packet(5, 2, 0x8000, 250), true), Verdict::Leave);
        assert_eq!(out.skip(&packet(5, 3, 0x8000, 250), true), Verdict::Leave);
        assert_eq!(ids(out.map(&packet(5, 4, 0x8001, 251))), Some((1, 251)));
        // The next unwanted frame comes apart: its second packet after a wanted one.
        assert_eq!(out.skip(&packet(5, 5, 0x8002, 251), true), Verdict::Leave);
        assert_eq!(ids(out.map(&packet(5, 7, 0x8003, 252))), Some((2, 252)));
        assert!(matches!(out.skip(&packet(5, 6, 0x8002, 251), true), Verdict::Fill(_)));
        out.switch(&packet(6, 900, 12, 7), 2);
        assert_eq!(ids(out.map(&packet(6, 900, 12, 7))), Some((3, 253)));
        // The encoder starts anew, far away.
        assert_eq!(ids(out.map(&packet(6, 901, 9_000, 90))), Some((4, 254)));
        assert_eq!(ids(out.map(&packet(6, 902, 9_001, 91))), Some((5, 255)));
        assert_eq!(ids(out.map(&packet(6, 900, 12, 7))), Some((3, 253)), "again as it was");
    }

    #[test]
    fn frame_numbers_continue_over_switches_and_keep_their_gaps() {
        let mut out = out();
        let packet = |ssrc, sequence, frame| Input { ssrc, frame_number: Some(frame), ..input(0, sequence, 0) };
        let number = |verdict| sent(verdict).map(|m| m.frame_number);
        out.switch(&packet(5, 1, 65_534), 2);
        assert_eq!(number(out.map(&packet(5, 1, 65_534))), Some(65_534));
        assert_eq!(out.skip(&packet(5, 2, 65_535), true), Verdict::Leave);
        assert_eq!(number(out.map(&packet(5, 3, 0))), Some(0), "the others count from it");
        out.switch(&packet(6, 70, 9_000), 2);
        assert_eq!(number(out.map(&packet(6, 70, 9_000))), Some(1));
        assert_eq!(number(out.map(&packet(6, 72, 9_002))), Some(3));
        assert_eq!(number(out.map(&packet(6, 71, 9_001))), Some(2), "late");
    }

    #[test]
    fn what_went_out_is_recalled_but_not_twice_within_a_round_trip() {
        let mut out = out();
        out.switch(&input(0, 1_000, 0), 2);
        for sequence in 1_000..1_010 {
            out.map(&input(0, sequence, 0));
        }
        out.switch(&Input { ssrc: 6, layer: 2, ..input(0, 50, 0) }, 2);
        out.map(&Input { ssrc: 6, layer: 2, ..input(0, 50, 0) });
        let rtt = Duration::from_millis(100);
        let mut recall = |ms, sequence| out.recall(Instant::from_millis(ms), sequence, rtt);
        assert_eq!(recall(10, 103), Some(Recalled { ssrc: 5, layer: 0, sequence: 1_003 }));
        assert_eq!(recall(10, 110), Some(Recalled { ssrc: 6, layer: 2, sequence: 50 }));
        assert_eq!(recall(99, 103), None, "the first answer is on its way");
        assert!(recall(100, 103).is_some());
        assert_eq!(recall(100, 111), None, "never sent");
        assert_eq!(recall(100, 99), None, "before the beginning");
        out.change_form();
        assert_eq!(out.recall(Instant::from_millis(300), 104, rtt), None, "it would not be the same packet");
    }

    #[test]
    fn the_last_packet_of_the_highest_layer_that_passes_ends_the_picture() {
        let mut out = out();
        let packet = |sequence, spatial| Input { marker: spatial == 2, ends_spatial: Some(spatial), ..input(0, sequence, 0) };
        let ends = |verdict| sent(verdict).map(|m| m.marker);
        out.switch(&packet(1, 0), 2);
        for spatial in 0..3 {
            assert_eq!(ends(out.map(&packet(1 + u64::from(spatial), spatial))), Some(spatial == 2));
        }
        out.limit_spatial(&packet(4, 0), 1);
        assert_eq!(ends(out.map(&packet(4, 0))), Some(false));
        assert_eq!(ends(out.map(&packet(5, 1))), Some(true));
        assert_eq!(out.skip(&packet(6, 2), true), Verdict::Leave);
        assert_eq!(ends(out.map(&packet(2, 1))), Some(false), "again as it was");
    }

    #[test]
    fn reports_tie_timestamps_to_our_clock() {
        let mut out = out();
        assert_eq!(out.sender_report(7), None);
        let packet = Input { ntp: Some(10 << 32), ..input(0, 1, 1_000) };
        out.switch(&packet, 2);
        out.map(&packet);
        out.sent(50);
        let report = out.sender_report((10 << 32) + (1 << 31)).expect("a packet went out");
        assert_eq!((report.rtp, report.packets, report.octets), (1_000 + 45_000, 1, 50));
    }

    /// What is in order takes a shorter way to the same numbers.
    #[test]
    fn the_short_way_and_the_long_one_agree() {
        for seed in 0..40 {
            let mut dice = crate::base::rng::Rng::new(seed);
            let (mut short, mut long) = (RtpOut::new(1, 2, 0x7FF0, 0), RtpOut::new(1, 2, 0x7FF0, 0));
            let (mut sequence, mut ssrc, mut picture) = (100_000u64, 5, 500u64);
            let mut passed = 0;
            for step in 0..3_000u64 {
                let starts = step == 0 || dice.one_in(60);
                if starts {
                    (sequence, ssrc, picture) = (100_000 + dice.below(1_000_000), ssrc + dice.below(2) as u32, dice.below(90_000));
                }
                let (late, jump) = (if dice.one_in(9) { dice.below(30) } else { 0 }, if dice.one_in(40) { dice.below(4_000) } else { 0 });
                let (now, clock) = (dice.one_in(3).then_some((step * 10) << 22), (step * 900) as u32);
                let packet = Input {
                    ssrc,
                    picture: (seed % 3 > 0).then_some(picture - late.min(picture) / 3),
                    tl0_pic_idx: picture as u8,
                    sent_ntp: now,
                    marker: dice.one_in(3),
                    ..input(step * 10, sequence - late, clock)
                };
                if starts {
                    short.switch(&packet, 2);
                    long.switch(&packet, 2);
                }
                if dice.one_in(12) {
                    let with_picture = dice.one_in(2);
                    assert_eq!(short.skip(&packet, with_picture), long.skip(&packet, with_picture), "seed {seed} step {step}");
                } else {
                    let verdict = short.map(&packet);
                    assert_eq!(verdict, long.map_any(&packet), "seed {seed} step {step}");
                    passed += usize::from(matches!(verdict, Verdict::Send(_)));
                }
                sequence += u64::from(late == 0) + jump;
                picture += u64::from(packet.marker) + jump / 2;
            }
            assert!(passed > 1_000, "seed {seed}: {passed}");
            let newest = short.last.as_ref().expect("something went out").index as u16;
            let mut recalled = 0;
            for number in (0..200).map(|back| newest.wrapping_sub(back)) {
                let again = short.recall(Instant::from_millis(90_000), number, Duration::ZERO);
                assert_eq!(again, long.recall(Instant::from_millis(90_000), number, Duration::ZERO), "seed {seed} number {number}");
                recalled += usize::from(again.is_some());
            }
            assert!(recalled > 20, "seed {seed}: {recalled}");
        }
    }

    /// Whatever goes in, what comes out is continuous: no number twice, no gap that the input did not have.
    #[test]
    fn continuity_over_random_switches() {
        for seed in 0..20 {
            let mut dice = crate::base::rng::Rng::new(seed);
            let mut out = RtpOut::new(1, 2, 0x7FF0, 0);
            let (mut sequence, mut ssrc, mut picture) = (100_000u64, 5, 500u64);
            let (mut given, mut last) = (HashSet::new(), None::<Mapped>);
            for step in 0..5_000u64 {
                let mut packet = input(step * 10, sequence, dice.next_u64() as u32);
                if step == 0 || dice.one_in(50) {
                    (sequence, ssrc, picture) = (100_000 + dice.below(1_000_000), ssrc + 1, dice.below(90_000));
                    packet = Input { ssrc, sequence, picture: Some(picture), ..packet };
                    out.switch(&packet, 2);
                } else {
                    picture += 1;
                    packet = Input { ssrc, timestamp: 0, picture: Some(picture), ..packet };
                    if dice.one_in(10) {
                        assert_eq!(out.skip(&packet, true), Verdict::Leave, "seed {seed} step {step}");
                        sequence += 1;
                        continue;
                    }
                }
                let mapped = sent(out.map(&packet)).unwrap_or_else(|| panic!("seed {seed} step {step}"));
                assert!(given.insert(mapped.index), "seed {seed} step {step}: {} twice", mapped.index);
                if let Some(before) = last {
                    assert_eq!(mapped.index, before.index + 1, "seed {seed} step {step}");
                    assert_eq!(mapped.picture_id, (before.picture_id + 1) & 0x7FFF, "seed {seed} step {step}");
                }
                last = Some(mapped);
                sequence += 1;
            }
        }
    }
}
