//! H.264 payloads (RFC 6184): where a decoder can start. Single NAL units, STAP-A and FU-A.

use super::be16;
use super::rtp::FrameInfo;

const IDR: u8 = 5;
const SPS: u8 = 7;
const STAP_A: u8 = 24;
const FU_A: u8 = 28;

/// A key frame begins with its parameter sets; an IDR slice without them starts one only where they come out of band.
pub fn frame_info(payload: &[u8]) -> FrameInfo {
    let starts_key_frame = match payload.first().map(|b| b & 0x1F) {
        Some(SPS | IDR) => true,
        Some(STAP_A) => aggregated(&payload[1..]).any(|kind| kind == SPS || kind == IDR),
        Some(FU_A) => payload.get(1).is_some_and(|fu| fu & 0x80 != 0 && matches!(fu & 0x1F, SPS | IDR)),
        _ => false,
    };
    FrameInfo { starts_key_frame, ..FrameInfo::default() }
}

/// Whether the payload holds a sequence parameter set: where a stream repeats them, a key frame begins with one.
pub fn has_parameter_sets(payload: &[u8]) -> bool {
    match payload.first().map(|b| b & 0x1F) {
        Some(SPS) => true,
        Some(STAP_A) => aggregated(&payload[1..]).any(|kind| kind == SPS),
        _ => false,
    }
}

fn aggregated(mut bytes: &[u8]) -> impl Iterator<Item = u8> + '_ {
    std::iter::from_fn(move || {
        let len = usize::from(be16(bytes, 0)?);
        let kind = bytes.get(2)? & 0x1F;
        bytes = bytes.get(2 + len..)?;
        Some(kind)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts() {
        let rows: &[(&str, &[u8], bool)] = &[
            ("SPS alone", &[0x67, 1], true),
            ("IDR alone", &[0x65, 1], true),
            ("slice", &[0x41, 1], false),
            ("STAP-A with SPS", &[0x78, 0, 2, 0x67, 1, 0, 1, 0x68], true),
            ("STAP-A with SEI only", &[0x78, 0, 1, 0x06], false),
            ("FU-A start of IDR", &[0x7C, 0x85], true),
            ("FU-A middle of IDR", &[0x7C, 0x05], false),
            ("empty", &[], false),
            ("cut STAP-A", &[0x78, 0xFF, 0xFF], false),
        ];
        for (name, bytes, want) in rows {
            assert_eq!(frame_info(bytes).starts_key_frame, *want, "{name}");
            assert_eq!(has_parameter_sets(bytes), name.contains("SPS"), "{name}");
        }
    }
}
