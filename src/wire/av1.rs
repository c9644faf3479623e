//! AV1 payloads (RTP payload format for AV1, §4.4): the aggregation header tells where a coded video sequence starts.
//!
//! ```text
//! |Z|Y| W |N|-|-|-|     N = 1: first packet of a coded video sequence
//! ```

use super::rtp::FrameInfo;

pub fn frame_info(payload: &[u8]) -> FrameInfo {
    let starts_key_frame = payload.first().is_some_and(|b| b & 0x08 != 0 && b & 0x80 == 0);
    FrameInfo { starts_key_frame, ..FrameInfo::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_n_bit_starts_a_sequence() {
        for (byte, want) in [(0x18, true), (0x10, false), (0x98, false)] {
            assert_eq!(frame_info(&[byte, 0x0A]).starts_key_frame, want, "{byte:02x}");
        }
        assert!(!frame_info(&[]).starts_key_frame);
    }
}
