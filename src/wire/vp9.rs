//! VP9 payload descriptor (RFC 9628 §4.2): key frames, spatial and temporal layers, and the numbers that a switch must
//! keep continuous.
//!
//! ```text
//! |I|P|L|F|B|E|V|Z| if I: |M| picture id (7 or 15) | if L: | TID(3) |U| SID(3) |D| | if L and not F: TL0PICIDX(8)
//! ```

use super::rtp::FrameInfo;
use super::vp8::PictureId;

/// Numbers of a descriptor, and where they stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ids {
    pub picture_id: Option<PictureId>,
    pub tl0_pic_idx: Option<u8>,
    tl0_at: usize,
}

impl Ids {
    pub fn read(payload: &[u8]) -> Option<Self> {
        let &flags = payload.first()?;
        let mut ids = Self::default();
        let mut at = 1;
        if flags & 0x80 != 0 {
            let id = PictureId::read(payload, at)?;
            at += id.len();
            ids.picture_id = Some(id);
        }
        if flags & 0x30 == 0x20 {
            ids.tl0_at = at + 1;
            ids.tl0_pic_idx = Some(*payload.get(at + 1)?);
        }
        Some(ids)
    }

    /// Overwrites the numbers in place; the widths stay, so nothing moves.
    pub fn rewrite(&self, payload: &mut [u8], picture_id: u16, tl0_pic_idx: u8) {
        if let Some(id) = self.picture_id {
            id.write(payload, 1, picture_id);
        }
        if self.tl0_pic_idx.is_some() {
            payload[self.tl0_at] = tl0_pic_idx;
        }
    }
}

pub fn frame_info(payload: &[u8]) -> FrameInfo {
    read(payload).unwrap_or_default()
}

fn read(payload: &[u8]) -> Option<FrameInfo> {
    let &flags = payload.first()?;
    let has = |bit: u8| flags & bit != 0;
    let (has_id, inter, has_layers, begins, ends) = (has(0x80), has(0x40), has(0x20), has(0x08), has(0x04));
    let mut at = 1;
    if has_id {
        at += if payload.get(at)? & 0x80 != 0 { 2 } else { 1 };
    }
    let mut frame = FrameInfo { starts_frame: begins, ends_frame: ends, ..FrameInfo::default() };
    if has_layers {
        let &layer = payload.get(at)?;
        frame.temporal_id = layer >> 5;
        frame.is_switching_up = layer & 0x10 != 0;
        frame.spatial_id = Some(layer >> 1 & 7);
    }
    frame.starts_key_frame = begins && !inter && frame.spatial_id.unwrap_or(0) == 0;
    Some(frame)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_and_rewritten_where_they_stand() {
        // (name, descriptor, picture id, TL0PICIDX, the same with picture id 0x1234 and TL0PICIDX 0x56)
        type Row<'a> = (&'a str, &'a [u8], Option<u16>, Option<u8>, &'a [u8]);
        let rows: &[Row<'_>] = &[
            ("15 bits, layers", &[0xA8, 0x81, 0x02, 0x20, 9, 1], Some(0x102), Some(9), &[0xA8, 0x92, 0x34, 0x20, 0x56, 1]),
            ("7 bits", &[0x88, 0x05, 1], Some(5), None, &[0x88, 0x34, 1]),
            ("flexible mode has none", &[0xB8, 0x81, 0x02, 0x20, 9], Some(0x102), None, &[0xB8, 0x92, 0x34, 0x20, 9]),
            ("layers alone", &[0x28, 0x20, 9, 1], None, Some(9), &[0x28, 0x20, 0x56, 1]),
            ("nothing", &[0x08, 1], None, None, &[0x08, 1]),
        ];
        for (name, bytes, picture_id, tl0_pic_idx, want) in rows {
            let ids = Ids::read(bytes).expect("a descriptor");
            assert_eq!((ids.picture_id.map(|id| id.value), ids.tl0_pic_idx), (*picture_id, *tl0_pic_idx), "{name}");
            let mut rewritten = bytes.to_vec();
            ids.rewrite(&mut rewritten, 0x1234, 0x56);
            assert_eq!(rewritten, *want, "{name}");
        }
        for cut in [&[0x80][..], &[0x80, 0x81], &[0x20], &[0x20, 1], &[]] {
            assert_eq!(Ids::read(cut), None, "{cut:?}");
        }
    }

    #[test]
    fn descriptors() {
        let none = FrameInfo::default();
        let start = FrameInfo { starts_frame: true, ..none };
        let layer = |spatial| FrameInfo { spatial_id: Some(spatial), ..start };
        let rows: &[(&str, &[u8], FrameInfo)] = &[
            ("key, 15-bit id", &[0x88, 0x81, 0x02], FrameInfo { starts_key_frame: true, ..start }),
            ("inter", &[0xC8, 0x81, 0x02], start),
            ("key, spatial 0", &[0xA8, 0x01, 0x00], FrameInfo { starts_key_frame: true, ..layer(0) }),
            ("key, spatial 1", &[0xA8, 0x01, 0x02, 0x00], layer(1)),
            (
                "inter, temporal 2, up",
                &[0xEC, 0x01, 0x54, 0x00],
                FrameInfo { temporal_id: 2, is_switching_up: true, ends_frame: true, ..layer(2) },
            ),
            ("middle of a key frame", &[0x80, 0x01], none),
            ("cut", &[0xA8], none),
        ];
        for (name, bytes, want) in rows {
            assert_eq!(frame_info(bytes), *want, "{name}");
        }
    }
}
