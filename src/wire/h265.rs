//! H.265 payloads (RFC 7798): where a decoder can start. Single NAL units, aggregation packets and fragments.

use super::be16;
use super::rtp::FrameInfo;

const AGGREGATION: u8 = 48;
const FRAGMENT: u8 = 49;

/// BLA and IDR slices, clean random access, and the parameter sets before them.
fn starts_key_frame(kind: u8) -> bool {
    matches!(kind, 16..=21 | 32..=34)
}

pub fn frame_info(payload: &[u8]) -> FrameInfo {
    let starts = match payload.first().map(|b| b >> 1 & 0x3F) {
        Some(AGGREGATION) => {
            let mut rest = payload.get(2..).unwrap_or_default();
            std::iter::from_fn(|| {
                let len = usize::from(be16(rest, 0)?);
                let kind = rest.get(2)? >> 1 & 0x3F;
                rest = rest.get(2 + len..)?;
                Some(kind)
            })
            .any(starts_key_frame)
        }
        Some(FRAGMENT) => payload.get(2).is_some_and(|fu| fu & 0x80 != 0 && starts_key_frame(fu & 0x3F)),
        Some(kind) => starts_key_frame(kind),
        None => false,
    };
    // Its temporal layers are not told: nothing in the payload says where a receiver may go up again.
    FrameInfo { starts_key_frame: starts, ..FrameInfo::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts() {
        let rows: &[(&str, &[u8], bool)] = &[
            ("VPS", &[0x40, 1], true),
            ("IDR_W_RADL", &[0x26, 1], true),
            ("trailing slice", &[0x02, 1], false),
            ("aggregation with SPS", &[0x60, 1, 0, 2, 0x42, 1], true),
            ("fragment start of IDR", &[0x62, 1, 0x93], true),
            ("fragment middle of IDR", &[0x62, 1, 0x13], false),
            ("empty", &[], false),
        ];
        for (name, bytes, want) in rows {
            assert_eq!(frame_info(bytes).starts_key_frame, *want, "{name}");
        }
    }
}
