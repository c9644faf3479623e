//! VP9 payload descriptor (RFC 9628 §4.2): key frames, spatial and temporal layers.
//!
//! ```text
//! |I|P|L|F|B|E|V|Z| if I: |M| picture id (7 or 15) | if L: | TID(3) |U| SID(3) |D|
//! ```

use super::rtp::FrameInfo;

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
