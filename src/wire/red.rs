//! Redundant audio (RFC 2198 §3): earlier payloads of a stream before the newest one, so that a lost packet comes again
//! with the next.
//!
//! ```text
//! earlier | 1 | payload type(7) | timestamp offset(14) | length(10) |
//! newest  | 0 | payload type(7) |
//! then the payloads in the same order
//! ```

use std::ops::Range;

/// Earlier payloads that one packet is read for; browsers send one or two.
pub const EARLIER_MAX: usize = 4;
const EARLIER_LEN: usize = 4;
const NEWEST_LEN: usize = 1;
const OFFSET_MAX: u32 = (1 << 14) - 1;
const LENGTH_MAX: usize = (1 << 10) - 1;

/// A payload that was sent before, and by how much, in ticks of the stream's clock.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Earlier {
    pub offset: u32,
    pub payload: Range<usize>,
}

/// A redundant payload as read; ranges point into it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Redundant {
    earlier: [Earlier; EARLIER_MAX],
    count: usize,
    pub newest: Range<usize>,
}

impl Redundant {
    /// `None`: not a redundant payload, or one that repeats more than anybody does.
    pub fn read(payload: &[u8]) -> Option<Self> {
        let mut read = Self::default();
        let mut at = 0;
        while payload.get(at)? & 0x80 != 0 {
            let header = payload.get(at..at + EARLIER_LEN)?;
            let word = u32::from_be_bytes([0, header[1], header[2], header[3]]);
            let slot = read.earlier.get_mut(read.count)?;
            // The length stands here until all headers are known.
            *slot = Earlier { offset: word >> 10, payload: 0..(word as usize & LENGTH_MAX) };
            read.count += 1;
            at += EARLIER_LEN;
        }
        at += NEWEST_LEN;
        for earlier in &mut read.earlier[..read.count] {
            let end = at + earlier.payload.end;
            earlier.payload = at..end;
            at = end;
        }
        read.newest = at..payload.len();
        (at <= payload.len()).then_some(read)
    }

    /// Oldest first.
    pub fn earlier(&self) -> &[Earlier] {
        &self.earlier[..self.count]
    }
}

/// Bytes by which a payload grows that takes `earlier` along; `None` when it cannot.
pub fn growth(offset: u32, earlier: &[u8]) -> Option<usize> {
    let fits = (1..=OFFSET_MAX).contains(&offset) && (1..=LENGTH_MAX).contains(&earlier.len());
    fits.then_some(EARLIER_LEN + NEWEST_LEN + earlier.len())
}

/// Writes what stands before the newest payload: the headers and `earlier`, sent `offset` ticks before. `out` is as long as
/// [`growth`] says.
pub fn write_before(out: &mut [u8], payload_type: u8, offset: u32, earlier: &[u8]) {
    let word = offset << 10 | earlier.len() as u32;
    out[0] = 0x80 | payload_type;
    out[1..EARLIER_LEN].copy_from_slice(&word.to_be_bytes()[1..]);
    out[EARLIER_LEN] = payload_type;
    out[EARLIER_LEN + NEWEST_LEN..].copy_from_slice(earlier);
}

/// Gives every block the payload type that its receiver knows it by.
pub fn set_payload_type(payload: &mut [u8], payload_type: u8) {
    let mut at = 0;
    while let Some(byte) = payload.get_mut(at) {
        let is_newest = *byte & 0x80 == 0;
        *byte = *byte & 0x80 | payload_type;
        if is_newest {
            return;
        }
        at += EARLIER_LEN;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let (earlier, newest) = ([7; 90], [9; 100]);
        let growth = growth(960, &earlier).expect("it fits");
        let mut payload = vec![0; growth];
        write_before(&mut payload, 111, 960, &earlier);
        payload.extend_from_slice(&newest);
        set_payload_type(&mut payload, 96);
        assert_eq!((payload[0], payload[4]), (0x80 | 96, 96));
        let read = Redundant::read(&payload).expect("ours");
        assert_eq!(read.earlier(), [Earlier { offset: 960, payload: 5..95 }]);
        assert_eq!((&payload[read.earlier()[0].payload.clone()], &payload[read.newest.clone()]), (&earlier[..], &newest[..]));
    }

    #[test]
    fn payloads_of_all_kinds() {
        // (name, bytes, offsets and payloads of the earlier ones, newest)
        type Row<'a> = (&'a str, &'a [u8], Option<(&'a [(u32, Range<usize>)], Range<usize>)>);
        let rows: &[Row<'_>] = &[
            ("the newest alone", &[111, 1, 2], Some((&[], 1..3))),
            ("one before", &[0x80 | 111, 0x0F, 0x00, 2, 111, 1, 2, 3], Some((&[(960, 5..7)], 7..8))),
            (
                "two before",
                &[0x80 | 111, 0x1E, 0x00, 1, 0x80 | 111, 0x0F, 0x00, 1, 111, 1, 2, 3],
                Some((&[(1920, 9..10), (960, 10..11)], 11..12)),
            ),
            ("silence", &[111], Some((&[], 1..1))),
            ("empty", &[], None),
            ("a header that is cut off", &[0x80 | 111, 0, 0], None),
            ("no newest header", &[0x80 | 111, 0, 0, 0], None),
            ("longer than the packet", &[0x80 | 111, 0x0F, 0x00, 9, 111, 1], None),
            ("more than anybody repeats", &[0x80; 24], None),
        ];
        for (name, bytes, want) in rows {
            let got = Redundant::read(bytes);
            let got =
                got.as_ref().map(|r| (r.earlier().iter().map(|e| (e.offset, e.payload.clone())).collect::<Vec<_>>(), r.newest.clone()));
            assert_eq!(got, want.as_ref().map(|(earlier, newest)| (earlier.to_vec(), newest.clone())), "{name}");
        }
        for (offset, len, fits) in [(960, 100, true), (0, 100, false), (20_000, 100, false), (960, 0, false), (960, 1_024, false)] {
            assert_eq!(growth(offset, &vec![0; len]).is_some(), fits, "{offset} {len}");
        }
    }

    #[test]
    fn damage_never_panics() {
        let mut dice = crate::base::rng::Rng::new(5);
        for _ in 0..20_000 {
            let mut bytes: Vec<u8> = (0..dice.below(40)).map(|_| dice.next_u64() as u8).collect();
            if let Some(read) = Redundant::read(&bytes) {
                assert!(read.earlier().iter().all(|e| e.payload.end <= bytes.len()) && read.newest.end == bytes.len());
            }
            set_payload_type(&mut bytes, 100);
        }
    }
}
