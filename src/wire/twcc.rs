//! Transport-wide congestion control feedback (draft-holmer-rmcat-transport-wide-cc-extensions-01 §3.1).
//!
//! ```text
//! | 0x8F | 205 | length | sender SSRC | media SSRC | base sequence(16) | packet count(16) |
//! | reference time(24, 64 ms) | feedback count(8) | status chunks(16) ... | receive deltas(8 or 16, 250 us) ... | padding
//! ```

use super::rtcp::RTPFB;

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::rtcp;

    /// A reader of its own: statuses and deltas back into arrival times.
    fn read(bytes: &[u8]) -> (u16, Vec<Option<u64>>) {
        let base = u16::from_be_bytes([bytes[12], bytes[13]]);
        let count = usize::from(u16::from_be_bytes([bytes[14], bytes[15]]));
        let mut us = u64::from(u32::from_be_bytes([0, bytes[16], bytes[17], bytes[18]])) * REFERENCE_US;
        let (mut at, mut symbols) = (20, Vec::new());
        while symbols.len() < count {
            let chunk = u16::from_be_bytes([bytes[at], bytes[at + 1]]);
            at += 2;
            if chunk & 0x8000 == 0 {
                symbols.extend(std::iter::repeat_n(chunk >> 13, usize::from(chunk & 0x1FFF)));
            } else {
                symbols.extend((0..7).map(|i| chunk >> (12 - 2 * i) & 3));
            }
        }
        let arrivals = symbols[..count].iter().map(|symbol| {
            let delta = match symbol {
                0 => return None,
                1 => {
                    at += 1;
                    i64::from(bytes[at - 1])
                }
                _ => {
                    at += 2;
                    i64::from(i16::from_be_bytes([bytes[at - 2], bytes[at - 1]]))
                }
            };
            us = us.wrapping_add_signed(delta * TICK_US);
            Some(us)
        });
        (base, arrivals.collect())
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
            let (base, got) = read(&out);
            assert_eq!((base, got.len()), (65_530, covered));
            for (want, got) in arrivals.iter().zip(got) {
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
