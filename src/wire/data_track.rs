//! Packets of data tracks: the header that a server has to know. What follows belongs to the participants.
//!
//! ```text
//! | version(3) start final extensions reserved(2) | reserved | handle(16) | sequence(16) | frame(16) | timestamp(32) | …
//! ```

use super::be16;

const HEADER_LEN: usize = 12;
/// The version that is spoken, in the first three bits.
const VERSION: u8 = 0;

/// The handle that the sender has given the track; `None` for what is no packet of a data track.
pub fn handle(packet: &[u8]) -> Option<u16> {
    let is_packet = packet.len() >= HEADER_LEN && packet[0] >> 5 == VERSION;
    be16(packet, 2).filter(|_| is_packet)
}

/// Writes the handle that the receiver knows the track by.
pub fn set_handle(packet: &mut [u8], handle: u16) {
    if let Some(at) = packet.get_mut(2..4) {
        at.copy_from_slice(&handle.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_handle_is_read_and_rewritten_and_nothing_else() {
        let mut packet: Vec<u8> = (0..20).collect();
        packet[0] = 0x18;
        assert_eq!(handle(&packet), Some(0x0203));
        let before = packet.clone();
        set_handle(&mut packet, 0xABCD);
        assert_eq!(handle(&packet), Some(0xABCD));
        assert_eq!((packet[..2].to_vec(), packet[4..].to_vec()), (before[..2].to_vec(), before[4..].to_vec()));
        packet[0] = 0x20;
        assert_eq!(handle(&packet), None, "another version");
        assert_eq!(handle(&before[..11]), None, "too short");
    }
}
