//! Floor 1: bytes to values and back. Borrowed views, no allocation on the packet path, decoding never panics.
//! Nothing here knows a key: a decoded message is unauthenticated by type.

pub mod av1;
pub mod data_packet;
pub mod data_track;
pub mod dcep;
pub mod demux;
pub mod dependency;
pub mod dtls;
pub mod framing;
pub mod h264;
pub mod h265;
pub mod red;
pub mod rtcp;
pub mod rtp;
pub mod sdp;
pub mod stun;
pub mod turn;
pub mod twcc;
pub mod vp8;
pub mod vp9;

/// Bytes that are not what they claim to be. Becomes a counter, never an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

pub(crate) fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

pub(crate) fn be24(bytes: &[u8], at: usize) -> Option<u32> {
    let b = bytes.get(at..at + 3)?;
    Some(u32::from_be_bytes([0, b[0], b[1], b[2]]))
}

pub(crate) fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

pub(crate) fn be64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}
