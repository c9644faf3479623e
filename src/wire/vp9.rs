//! VP9 payload descriptor (RFC 9628 §4.2): key frames and temporal layer.

use super::rtp::FrameInfo;

pub fn frame_info(payload: &[u8]) -> FrameInfo {
    read(payload).unwrap_or_default()
}

fn read(payload: &[u8]) -> Option<FrameInfo> {
    let &flags = payload.first()?;
    let (has_id, inter, has_layers, begins) = (flags & 0x80 != 0, flags & 0x40 != 0, flags & 0x20 != 0, flags & 0x08 != 0);
    let mut at = 1;
    if has_id {
        at += if payload.get(at)? & 0x80 != 0 { 2 } else { 1 };
    }
    let (mut temporal_id, mut spatial_id) = (0, 0);
    if has_layers {
        let &layer = payload.get(at)?;
        temporal_id = layer >> 5;
        spatial_id = layer >> 1 & 7;
    }
    Some(FrameInfo { starts_key_frame: begins && !inter && spatial_id == 0, temporal_id })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors() {
        let rows: &[(&str, &[u8], FrameInfo)] = &[
            ("key, 15-bit id", &[0x88, 0x81, 0x02], FrameInfo { starts_key_frame: true, temporal_id: 0 }),
            ("inter", &[0xC8, 0x81, 0x02], FrameInfo::default()),
            ("key, spatial 1", &[0xA8, 0x01, 0x02, 0x00], FrameInfo::default()),
            ("inter, temporal 2", &[0xE8, 0x01, 0x40, 0x00], FrameInfo { starts_key_frame: false, temporal_id: 2 }),
            ("middle of a key frame", &[0x80, 0x01], FrameInfo::default()),
            ("cut", &[0xA8], FrameInfo::default()),
        ];
        for (name, bytes, want) in rows {
            assert_eq!(frame_info(bytes), *want, "{name}");
        }
    }
}
