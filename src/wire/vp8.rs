//! VP8 payload descriptor (RFC 7741 §4.2): frame starts, temporal layer, and the numbers that a switch must keep continuous.
//!
//! ```text
//! |X|R|N|S|R| PID | if X: |I|L|T|K| RSV | if I: |M| picture id (7 or 15) | if L: TL0PICIDX(8) | if T or K: |TID|Y|KEYIDX|
//! ```

use super::rtp::FrameInfo;

/// A descriptor as read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Descriptor {
    /// First packet of a partition 0: the start of a frame.
    pub starts_frame: bool,
    pub picture_id: Option<PictureId>,
    pub tl0_pic_idx: Option<u8>,
    pub temporal_id: u8,
    /// The Y bit: depends only on the base layer.
    pub is_layer_sync: bool,
    picture_id_at: usize,
    tl0_at: usize,
    /// Length of the descriptor, bytes.
    pub len: usize,
}

/// A picture id and its width on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PictureId {
    pub value: u16,
    pub is_15_bit: bool,
}

impl PictureId {
    pub(super) fn read(payload: &[u8], at: usize) -> Option<Self> {
        let &high = payload.get(at)?;
        Some(match high & 0x80 != 0 {
            true => Self { value: u16::from_be_bytes([high & 0x7F, *payload.get(at + 1)?]), is_15_bit: true },
            false => Self { value: u16::from(high), is_15_bit: false },
        })
    }

    /// Bytes on the wire.
    pub(super) fn len(self) -> usize {
        if self.is_15_bit { 2 } else { 1 }
    }

    /// Writes another value in the same width.
    pub(super) fn write(self, payload: &mut [u8], at: usize, value: u16) {
        let [high, low] = value.to_be_bytes();
        if self.is_15_bit {
            payload[at..at + 2].copy_from_slice(&[high | 0x80, low]);
        } else {
            payload[at] = low & 0x7F;
        }
    }

    /// Extended by what came before.
    pub fn extend(self, newest: u64) -> u64 {
        let half = if self.is_15_bit { 0x4000 } else { 0x40 };
        let step = u64::from(self.value).wrapping_sub(newest) & (2 * half - 1);
        if step < half { newest + step } else { newest + step - 2 * half }
    }
}

impl Descriptor {
    pub fn read(payload: &[u8]) -> Option<Self> {
        let &first = payload.first()?;
        let mut d = Self { starts_frame: first & 0x10 != 0 && first & 0x07 == 0, len: 1, ..Self::default() };
        if first & 0x80 == 0 {
            return Some(d);
        }
        let &flags = payload.get(1)?;
        d.len = 2;
        if flags & 0x80 != 0 {
            d.picture_id_at = d.len;
            let id = PictureId::read(payload, d.len)?;
            d.len += id.len();
            d.picture_id = Some(id);
        }
        if flags & 0x40 != 0 {
            d.tl0_at = d.len;
            d.tl0_pic_idx = Some(*payload.get(d.len)?);
            d.len += 1;
        }
        if flags & 0x30 != 0 {
            let &byte = payload.get(d.len)?;
            if flags & 0x20 != 0 {
                d.temporal_id = byte >> 6;
                d.is_layer_sync = byte & 0x20 != 0;
            }
            d.len += 1;
        }
        Some(d)
    }

    /// Overwrites the numbers in place; the widths stay, so nothing moves.
    pub fn rewrite(&self, payload: &mut [u8], picture_id: u16, tl0_pic_idx: u8) {
        if let Some(id) = self.picture_id {
            id.write(payload, self.picture_id_at, picture_id);
        }
        if self.tl0_pic_idx.is_some() {
            payload[self.tl0_at] = tl0_pic_idx;
        }
    }
}

pub fn frame_info(payload: &[u8]) -> FrameInfo {
    let Some(d) = Descriptor::read(payload) else { return FrameInfo::default() };
    // The P bit of the frame tag (RFC 6386 §9.1) is 0 in a key frame.
    let is_key = payload.get(d.len).is_some_and(|tag| tag & 1 == 0);
    FrameInfo {
        starts_key_frame: d.starts_frame && is_key,
        starts_frame: d.starts_frame,
        temporal_id: d.temporal_id,
        is_switching_up: d.is_layer_sync,
        ..FrameInfo::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors() {
        // (bytes, starts a key frame, starts a frame, temporal layer, layer sync)
        let rows: &[(&str, &[u8], bool, bool, u8, bool)] = &[
            ("bare key", &[0x10, 0x00], true, true, 0, false),
            ("bare inter", &[0x10, 0x01], false, true, 0, false),
            ("second packet", &[0x00, 0x00], false, false, 0, false),
            ("second partition", &[0x11, 0x00], false, false, 0, false),
            ("15-bit id, TL0, TID 2, key", &[0x90, 0xE0, 0x81, 0x02, 0x09, 0x80, 0x00], true, true, 2, false),
            ("TID 1, Y", &[0x90, 0xE0, 0x81, 0x02, 0x09, 0x60, 0x01], false, true, 1, true),
            ("cut inside", &[0x90, 0xE0, 0x81], false, false, 0, false),
        ];
        for (name, bytes, starts_key_frame, starts_frame, temporal_id, is_switching_up) in rows.iter().copied() {
            let want = FrameInfo { starts_key_frame, starts_frame, temporal_id, is_switching_up, ..FrameInfo::default() };
            assert_eq!(frame_info(bytes), want, "{name}");
        }
    }

    #[test]
    fn picture_ids_are_extended_in_their_own_width() {
        let wide = |value| PictureId { value, is_15_bit: true };
        let narrow = |value| PictureId { value, is_15_bit: false };
        for (id, newest, want) in [
            (wide(5), 0x1_0000, 0x1_0005),
            (wide(0x7FFF), 0x1_0000, 0xFFFF),
            (wide(0), 0xFFFF, 0x1_0000),
            (narrow(0), 0x1_007F, 0x1_0080),
            (narrow(0x7E), 0x1_0080, 0x1_007E),
        ] {
            assert_eq!(id.extend(newest), want, "{id:?} after {newest:x}");
        }
    }

    #[test]
    fn numbers_are_rewritten_in_their_own_width() {
        let mut wide = [0x90, 0xE0, 0x81, 0x02, 0x09, 0x80, 0x00];
        Descriptor::read(&wide).expect("whole").rewrite(&mut wide, 0x7ABC, 5);
        let d = Descriptor::read(&wide).expect("whole");
        assert_eq!((d.picture_id, d.tl0_pic_idx), (Some(PictureId { value: 0x7ABC, is_15_bit: true }), Some(5)));
        let mut narrow = [0x90, 0x80, 0x05, 0x00];
        Descriptor::read(&narrow).expect("whole").rewrite(&mut narrow, 0x1FF, 0);
        assert_eq!(narrow, [0x90, 0x80, 0x7F, 0x00]);
    }
}
