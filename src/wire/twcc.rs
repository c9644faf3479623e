//! Transport-wide congestion control feedback (draft-holmer-rmcat-transport-wide-cc-extensions-01 §3.1).
//!
//! ```text
//! | 0x8F | 205 | length | sender SSRC | media SSRC | base sequence(16) | packet count(16) |
//! | reference time(24, 64 ms) | feedback count(8) | status chunks(16) ... | receive deltas(8 or 16, 250 us) ... | padding
//! ```

use super::rtcp::RTPFB;
use super::{be16, be24};

/// Most packets that one feedback covers.
pub const COVERED_MAX: usize = 512;
const TICK_US: i64 = 250;
const REFERENCE_US: u64 = 64_000;

#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Status {
    Lost = 0,
    Small = 1,
    Large = 2,
}

/// Appends one feedback packet. `arrivals[i]` is when packet `base + i` came, in microseconds, or `None`.
/// Returns how many packets it covers: fewer than given when a gap in time does not fit into one packet.
pub fn write_feedback(out: &mut Vec<u8>, from: u32, media: u32, base: u16, count: u8, arrivals: &[Option<u64>]) -> usize {
    let arrivals = &arrivals[..arrivals.len().min(COVERED_MAX)];
    let Some(first_us) = arrivals.iter().flatten().next().copied() else { return 0 };
    let reference = first_us / REFERENCE_US;
    let mut last_us = (reference * REFERENCE_US) as i64;
    let mut statuses = [Status::Lost; COVERED_MAX];
    let mut deltas = [0i16; COVERED_MAX];
    let mut covered = 0;
    for (i, arrival) in arrivals.iter().enumerate() {
        if let Some(us) = arrival {
            let ticks = (*us as i64 - last_us).div_euclid(TICK_US);
            let Ok(delta) = i16::try_from(ticks) else { break };
            last_us += ticks * TICK_US;
            deltas[i] = delta;
            statuses[i] = if (0..=255).contains(&ticks) { Status::Small } else { Status::Large };
        }
        covered = i + 1;
    }
    let start = out.len();
    out.extend_from_slice(&[0x8F, RTPFB, 0, 0]);
    out.extend_from_slice(&from.to_be_bytes());
    out.extend_from_slice(&media.to_be_bytes());
    out.extend_from_slice(&base.to_be_bytes());
    out.extend_from_slice(&(covered as u16).to_be_bytes());
    out.extend_from_slice(&(reference as u32).to_be_bytes()[1..]);
    out.push(count);
    write_chunks(out, &statuses[..covered]);
    for (status, delta) in statuses[..covered].iter().zip(&deltas) {
        match status {
            Status::Lost => {}
            Status::Small => out.push(*delta as u8),
            Status::Large => out.extend_from_slice(&delta.to_be_bytes()),
        }
    }
    let padding = (4 - (out.len() - start) % 4) % 4;
    if padding > 0 {
        out[start] |= 0x20;
        out.resize(out.len() + padding, 0);
        *out.last_mut().expect("just grown") = padding as u8;
    }
    let words = ((out.len() - start) / 4 - 1) as u16;
    out[start + 2..start + 4].copy_from_slice(&words.to_be_bytes());
    covered
}

/// Run-length chunks where a status repeats at least seven times, two-bit vectors of seven elsewhere.
fn write_chunks(out: &mut Vec<u8>, mut statuses: &[Status]) {
    while let Some(&first) = statuses.first() {
        let run = statuses.iter().take_while(|s| **s == first).count();
        let (chunk, taken) = if run >= 7 || run == statuses.len() {
            ((first as u16) << 13 | run as u16, run)
        } else {
            let taken = statuses.len().min(7);
            let symbols = statuses[..taken].iter().enumerate();
            (symbols.fold(0xC000, |chunk, (i, s)| chunk | (*s as u16) << (12 - 2 * i)), taken)
        };
        out.extend_from_slice(&chunk.to_be_bytes());
        statuses = &statuses[taken..];
    }
}

/// Packets that a feedback which is read may speak of: a run of them takes two bytes, and each is looked at.
const READ_MAX: u16 = 4096;

/// A feedback packet as read: each number that it covers, with when it came, microseconds on the receiver's clock.
#[derive(Clone, Debug)]
pub struct Feedback<'a> {
    sequence: u16,
    left: u16,
    chunk: u16,
    /// Statuses of the chunk that were not given yet.
    in_chunk: u16,
    chunks: &'a [u8],
    deltas: &'a [u8],
    us: i64,
}

impl<'a> Feedback<'a> {
    /// `packet` is the whole RTCP packet.
    pub fn read(packet: &'a [u8]) -> Option<Self> {
        let (sequence, left, reference) = (be16(packet, 12)?, be16(packet, 14)?, be24(packet, 16)?);
        let rest = packet.get(20..).filter(|_| left <= READ_MAX)?;
        let (mut at, mut statuses) = (0, 0);
        while statuses < usize::from(left) {
            statuses += usize::from(statuses_of(be16(rest, at)?));
            at += 2;
        }
        let us = i64::from(reference) * REFERENCE_US as i64;
        Some(Self { sequence, left, chunk: 0, in_chunk: 0, chunks: &rest[..at], deltas: &rest[at..], us })
    }
}

impl Feedback<'_> {
    /// How many packets it speaks of.
    pub fn covers(&self) -> usize {
        usize::from(self.left)
    }
}

impl Iterator for Feedback<'_> {
    type Item = (u16, Option<u64>);

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        while self.in_chunk == 0 {
            self.chunk = be16(self.chunks, 0)?;
            self.chunks = &self.chunks[2..];
            self.in_chunk = statuses_of(self.chunk);
        }
        self.in_chunk -= 1;
        let status = match self.chunk >> 14 {
            0b10 => self.chunk >> self.in_chunk & 1,
            0b11 => self.chunk >> (2 * self.in_chunk) & 3,
            _ => self.chunk >> 13 & 3,
        };
        let (delta, taken) = match status {
            1 => (i64::from(*self.deltas.first()?), 1),
            2 => (i64::from(be16(self.deltas, 0)? as i16), 2),
            _ => (0, 0),
        };
        self.deltas = &self.deltas[taken..];
        self.us += delta * TICK_US;
        let sequence = self.sequence;
        self.sequence = sequence.wrapping_add(1);
        Some((sequence, (taken > 0).then_some(self.us.max(0) as u64)))
    }
}

/// How many packets a chunk speaks of: a run, fourteen of one bit, or seven of two.
fn statuses_of(chunk: u16) -> u16 {
    match chunk >> 14 {
        0b10 => 14,
        0b11 => 7,
        _ => chunk & 0x1FFF,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::rtcp;

    /// Everything that a feedback packet says.
    fn read(bytes: &[u8]) -> Vec<(u16, Option<u64>)> {
        Feedback::read(bytes).expect("a feedback packet").collect()
    }

    #[test]
    fn all_kinds_of_chunks_are_read() {
        // A run of two small deltas, one-bit statuses, two-bit statuses of which only two count; the draft's §3.1.3.
        let chunks = [[0x20, 0x02], [0b1010_0000, 0b0000_0001], [0b1110_0001, 0]];
        let deltas: [&[u8]; 5] = [&[4], &[8], &[1], &[2], &[0xFF, 0xFC]];
        let mut packet = vec![0x8F, RTPFB, 0, 9, 0, 0, 0, 1, 0, 0, 0, 2, 0xFF, 0xFF, 0, 18, 0, 0, 1, 7];
        packet.extend(chunks.concat());
        packet.extend(deltas.concat());
        let got: Vec<_> = read(&packet).into_iter().filter_map(|(sequence, at)| Some((sequence, at?))).collect();
        assert_eq!(got, [(0xFFFF, 65_000), (0, 67_000), (1, 67_250), (14, 67_750), (15, 66_750)]);
        assert_eq!(read(&packet).len(), 18);
        packet[14..16].copy_from_slice(&5_000u16.to_be_bytes());
        assert!(Feedback::read(&packet).is_none(), "more than anybody tells at once");
        for len in 0..26 {
            assert!(Feedback::read(&packet[..len]).is_none_or(|f| f.count() < 18), "cut off at {len}");
        }
    }

    #[test]
    fn arrivals_come_back_to_a_quarter_millisecond() {
        let mut dice = crate::base::rng::Rng::new(3);
        for round in 0..200u64 {
            let mut us = 1_000_000 + round * 77_777;
            let arrivals: Vec<Option<u64>> = (0..1 + dice.below(60))
                .map(|_| {
                    us += dice.below(90_000);
                    (!dice.one_in(4)).then_some(us)
                })
                .collect();
            let mut out = Vec::new();
            let covered = write_feedback(&mut out, 1, 2, 65_530, 3, &arrivals);
            if covered == 0 {
                assert!(arrivals.iter().all(Option::is_none));
                continue;
            }
            assert!(matches!(rtcp::packets(&out).next(), Some(Ok(_))) && out.len() % 4 == 0);
            let got = read(&out);
            assert_eq!((got[0].0, got.len()), (65_530, covered));
            for (want, (_, got)) in arrivals.iter().zip(got) {
                assert_eq!(want.is_some(), got.is_some());
                assert!(want.unwrap_or(0).abs_diff(got.unwrap_or(0)) < 250, "{want:?} {got:?}");
            }
        }
    }

    #[test]
    fn a_gap_that_does_not_fit_ends_the_packet() {
        let mut out = Vec::new();
        assert_eq!(write_feedback(&mut out, 1, 2, 0, 0, &[Some(0), Some(20_000_000)]), 1);
    }
}
