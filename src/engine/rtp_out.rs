//! One outgoing RTP stream: numbers and timestamps continuous for one receiver, whatever layer they come from.
//!
//! * Sequence: `out = in - first of this source + base - dropped before it`; packets from before a switch are late.
//! * Timestamp: on a switch by the sender's own clock when both layers have a report, by arrival before that.
//! * VP8 picture id and TL0PICIDX continue over a switch (RFC 7741 §4.2): a gap would make the receiver wait.

use crate::base::time::{Duration, Instant};
use crate::wire::rtcp::SenderInfo;
use crate::wire::vp8::Descriptor;
use std::collections::VecDeque;

/// How much further than the arrival a sender's clock may move a timestamp on a switch.
const SKEW_MAX: Duration = Duration::from_millis(75);
/// Dropped packets remembered for late neighbours.
const DROPPED_MAX: usize = 128;

/// What is known about a packet that may go out.
#[derive(Clone, Copy, Debug)]
pub struct Input {
    pub now: Instant,
    pub ssrc: u32,
    /// Extended by `rtp_in`.
    pub sequence: u64,
    pub timestamp: u32,
    /// The sender's clock at `timestamp`, NTP format.
    pub ntp: Option<u64>,
    pub vp8: Option<Descriptor>,
}

/// The numbers that the packet goes out with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// Extended sequence number: its low 16 bits go on the wire, all of it is SRTP's index.
    pub index: u64,
    pub timestamp: u32,
    pub picture_id: u16,
    pub tl0_pic_idx: u8,
}

#[derive(Default)]
struct Source {
    ssrc: u32,
    first: u64,
    highest: u64,
    newest_forgotten: Option<u64>,
    base: u64,
    dropped: VecDeque<u64>,
    dropped_forgotten: u64,
    timestamp_offset: u32,
    picture_id_offset: u16,
    tl0_offset: u8,
}

struct Last {
    index: u64,
    timestamp: u32,
    at: Instant,
    ntp: Option<u64>,
    picture_id: u16,
    tl0_pic_idx: u8,
}

pub struct RtpOut {
    ssrc: u32,
    clock_rate: u32,
    source: Option<Source>,
    last: Option<Last>,
    first_index: u64,
    packets: u32,
    octets: u32,
}

impl RtpOut {
    /// `first_sequence` and everything after it stays below the roll-over that a receiver cannot see coming.
    pub fn new(ssrc: u32, clock_rate: u32, first_sequence: u16) -> Self {
        Self { ssrc, clock_rate, source: None, last: None, first_index: u64::from(first_sequence & 0x7FFF), packets: 0, octets: 0 }
    }

    pub fn ssrc(&self) -> u32 {
        self.ssrc
    }

    /// Whether this packet is of the stream that goes out now. Two streams never share one range of numbers: that would
    /// use an SRTP index twice.
    pub fn follows(&self, input: &Input) -> bool {
        self.source.as_ref().is_some_and(|s| s.ssrc == input.ssrc)
    }

    /// The next packet comes from another stream: continue from what went out last.
    pub fn switch(&mut self, input: &Input) {
        let mut source = Source { ssrc: input.ssrc, first: input.sequence, base: self.first_index, ..Source::default() };
        if let Some(last) = &self.last {
            source.base = last.index + 1;
            let timestamp = last.timestamp.wrapping_add(self.elapsed_ticks(last, input));
            source.timestamp_offset = timestamp.wrapping_sub(input.timestamp);
            if let Some(d) = input.vp8 {
                let id = d.picture_id.map_or(0, |id| id.value);
                source.picture_id_offset = last.picture_id.wrapping_add(1).wrapping_sub(id);
                source.tl0_offset = last.tl0_pic_idx.wrapping_add(1).wrapping_sub(d.tl0_pic_idx.unwrap_or(0));
            }
        }
        self.source = Some(source);
    }

    /// RTP ticks between the last packet out and this one; never zero, or two frames would share a timestamp.
    fn elapsed_ticks(&self, last: &Last, input: &Input) -> u32 {
        let arrived = input.now.since(last.at);
        let by_clock = match (last.ntp, input.ntp) {
            (Some(then), Some(now)) => {
                let ntp = now.wrapping_sub(then) as i64;
                let micros = (i128::from(ntp) * 1_000_000) >> 32;
                u64::try_from(micros).ok().map(Duration::from_micros)
            }
            _ => None,
        };
        let elapsed = by_clock.filter(|d| *d <= arrived + SKEW_MAX).unwrap_or(arrived);
        let ticks = elapsed.as_micros() * u128::from(self.clock_rate) / 1_000_000;
        (ticks as u32).max(1)
    }

    /// This packet of the current source stays here; what follows closes up. One that comes late leaves a gap: what came
    /// after it has its number already.
    pub fn skip(&mut self, sequence: u64) {
        if let Some(source) = &mut self.source
            && sequence >= source.first
            && sequence > source.highest
        {
            source.dropped.push_back(sequence);
            if source.dropped.len() > DROPPED_MAX {
                source.newest_forgotten = source.dropped.pop_front();
                source.dropped_forgotten += 1;
            }
        }
    }

    /// The numbers for a packet of the current source; `None` when it is from before the switch.
    pub fn map(&mut self, input: &Input, payload_len: usize) -> Option<Mapped> {
        let source = self.source.as_mut()?;
        if source.newest_forgotten.is_some_and(|s| input.sequence <= s) {
            return None;
        }
        source.highest = source.highest.max(input.sequence);
        let dropped = source.dropped_forgotten + source.dropped.iter().filter(|s| **s < input.sequence).count() as u64;
        let index = (source.base + input.sequence.checked_sub(source.first)?).checked_sub(dropped)?;
        let descriptor = input.vp8.unwrap_or_default();
        let picture_id = descriptor.picture_id.map_or(0, |id| id.value).wrapping_add(source.picture_id_offset) & 0x7FFF;
        let mapped = Mapped {
            index,
            timestamp: input.timestamp.wrapping_add(source.timestamp_offset),
            picture_id,
            tl0_pic_idx: descriptor.tl0_pic_idx.unwrap_or(0).wrapping_add(source.tl0_offset),
        };
        if self.last.as_ref().is_none_or(|last| index > last.index) {
            self.last = Some(Last {
                index,
                timestamp: mapped.timestamp,
                at: input.now,
                ntp: input.ntp,
                picture_id,
                tl0_pic_idx: mapped.tl0_pic_idx,
            });
        }
        self.packets = self.packets.wrapping_add(1);
        self.octets = self.octets.wrapping_add(payload_len as u32);
        Some(mapped)
    }

    /// The sender's report in this receiver's timestamps. Its clock passes unchanged, so that all tracks of one
    /// publisher stay in sync with each other.
    pub fn sender_report(&self, theirs: &SenderInfo) -> Option<SenderInfo> {
        let source = self.source.as_ref()?;
        self.last.as_ref()?;
        Some(SenderInfo {
            ssrc: self.ssrc,
            ntp: theirs.ntp,
            rtp: theirs.rtp.wrapping_add(source.timestamp_offset),
            packets: self.packets,
            octets: self.octets,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(ms: u64, sequence: u64, timestamp: u32) -> Input {
        Input { now: Instant::from_millis(ms), ssrc: 5, sequence, timestamp, ntp: None, vp8: None }
    }

    fn vp8(picture_id: u16, tl0: u8) -> Option<Descriptor> {
        let [high, low] = picture_id.to_be_bytes();
        Descriptor::read(&[0x90, 0xC0, 0x80 | high, low, tl0, 0])
    }

    #[test]
    fn numbers_in_and_out() {
        // (action, sequence in, sequence out)
        enum Do {
            Switch,
            Map,
            Skip,
        }
        use Do::{Map, Skip, Switch};
        let rows: &[(&str, Do, u64, Option<u64>)] = &[
            ("the first packet starts where we start", Switch, 1_000, Some(100)),
            ("the next follows", Map, 1_001, Some(101)),
            ("a gap stays a gap", Map, 1_004, Some(104)),
            ("a late one falls into it", Map, 1_002, Some(102)),
            ("padding is taken out", Skip, 1_005, None),
            ("and the next closes up", Map, 1_006, Some(105)),
            ("one before the padding keeps its place", Map, 1_003, Some(103)),
            ("padding that comes late moves nothing", Skip, 1_002, None),
            ("so no number is used twice", Map, 1_007, Some(106)),
            ("another layer continues", Switch, 70_000, Some(107)),
            ("and goes on", Map, 70_001, Some(108)),
            ("what was before the switch is late", Map, 69_999, None),
        ];
        let mut out = RtpOut::new(1, 90_000, 100);
        for (name, action, sequence, want) in rows {
            let packet = input(0, *sequence, 0);
            let got = match action {
                Switch => {
                    out.switch(&packet);
                    out.map(&packet, 1)
                }
                Map => out.map(&packet, 1),
                Skip => {
                    out.skip(*sequence);
                    None
                }
            };
            assert_eq!(got.map(|m| m.index), *want, "{name}");
        }
    }

    #[test]
    fn timestamps_continue_by_arrival_and_by_clock() {
        let mut out = RtpOut::new(1, 90_000, 0);
        let first = input(0, 1, 5_000);
        out.switch(&first);
        assert_eq!(out.map(&first, 1).expect("current").timestamp, 5_000);
        let second = input(100, 9, 777);
        out.switch(&second);
        assert_eq!(out.map(&second, 1).expect("current").timestamp, 5_000 + 9_000, "100 ms by arrival");
        // Both ends report: the clock says 40 ms although the packet came after 60.
        let mut third = Input { ntp: Some(100 << 32), ..input(200, 10, 777 + 9_000) };
        out.map(&third, 1).expect("current");
        third = Input { ntp: Some((100 << 32) + (40 << 32) / 1000), ..input(260, 50, 1) };
        out.switch(&third);
        let mapped = out.map(&third, 1).expect("current");
        assert!(mapped.timestamp.abs_diff(5_000 + 18_000 + 3_600) <= 1, "{}", mapped.timestamp);
        // A clock that runs away is not believed.
        let fourth = Input { ntp: Some(200 << 32), ..input(270, 90, 1) };
        out.switch(&fourth);
        assert_eq!(out.map(&fourth, 1).expect("current").timestamp, mapped.timestamp + 900);
    }

    #[test]
    fn picture_ids_continue_over_a_switch() {
        let mut out = RtpOut::new(1, 90_000, 0);
        let first = Input { vp8: vp8(0x7FFF, 255), ..input(0, 1, 0) };
        out.switch(&first);
        let a = out.map(&first, 1).expect("current");
        let second = Input { vp8: vp8(1_234, 7), ..input(50, 900, 0) };
        out.switch(&second);
        let b = out.map(&second, 1).expect("current");
        assert_eq!((a.picture_id, a.tl0_pic_idx), (0x7FFF, 255));
        assert_eq!((b.picture_id, b.tl0_pic_idx), (0, 0));
    }

    /// Whatever goes in, what comes out is continuous: no number twice, no gap that the input did not have.
    #[test]
    fn continuity_over_random_switches() {
        let mut dice = crate::base::rng::Rng::new(4);
        let mut out = RtpOut::new(1, 90_000, 0x7FF0);
        let (mut sequence, mut want, mut last_timestamp) = (100_000u64, 0x7FF0u64, None);
        for step in 0..20_000u64 {
            let mut packet = input(step * 10, sequence, dice.next_u64() as u32);
            if step == 0 || dice.one_in(50) {
                sequence = 100_000 + dice.below(1_000_000);
                packet.sequence = sequence;
                out.switch(&packet);
                let mapped = out.map(&packet, 10).expect("current");
                if let Some(last) = last_timestamp {
                    assert!(mapped.timestamp.wrapping_sub(last) as i32 > 0, "step {step}");
                }
                last_timestamp = Some(mapped.timestamp);
                assert_eq!(mapped.index, want, "step {step}");
                want += 1;
            } else if dice.one_in(10) {
                out.skip(sequence);
            } else {
                packet.timestamp = 0;
                let mapped = out.map(&packet, 10).expect("current");
                last_timestamp = Some(mapped.timestamp);
                assert_eq!(mapped.index, want, "step {step}");
                want += 1;
            }
            sequence += 1;
        }
    }
}
