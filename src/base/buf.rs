//! Packet buffers: one fixed size, headroom in front, taken from a pool that each worker owns.
//!
//! ```text
//!  0          start              end            CAPACITY
//!  | headroom  |  packet bytes    |   tailroom   |
//! ```
//! The headroom takes a ChannelData or Data-indication header without moving the payload, the tailroom an SRTP tag.

use std::ops::{Deref, DerefMut};

/// Room in front of a received packet, bytes.
pub const HEADROOM: usize = 64;
/// Largest packet a buffer takes from a socket, bytes: one Ethernet frame and a reserve for jumbo DTLS flights.
pub const PAYLOAD_MAX: usize = 2048;
const CAPACITY: usize = HEADROOM + PAYLOAD_MAX + 64;

/// One packet. Derefs to its bytes.
pub struct PacketBuf {
    bytes: Box<[u8; CAPACITY]>,
    start: u16,
    end: u16,
}

impl PacketBuf {
    fn new() -> Self {
        Self { bytes: Box::new([0; CAPACITY]), start: HEADROOM as u16, end: HEADROOM as u16 }
    }

    /// The room that a socket may write into; follow with [`PacketBuf::set_len`].
    pub fn spare(&mut self) -> &mut [u8] {
        self.start = HEADROOM as u16;
        self.end = HEADROOM as u16;
        &mut self.bytes[HEADROOM..HEADROOM + PAYLOAD_MAX]
    }

    /// Sets the length of the packet; longer than the buffer is cut to its end.
    pub fn set_len(&mut self, len: usize) {
        self.end = (usize::from(self.start) + len).min(CAPACITY) as u16;
    }

    /// Replaces the content. `false` when `bytes` does not fit; the buffer is then empty.
    pub fn fill(&mut self, bytes: &[u8]) -> bool {
        let room = self.spare();
        if bytes.len() > room.len() {
            return false;
        }
        room[..bytes.len()].copy_from_slice(bytes);
        self.set_len(bytes.len());
        true
    }

    /// Makes room for `n` bytes before the byte at `at`; `None` when the packet would no longer fit into every buffer.
    pub fn insert(&mut self, at: usize, n: usize) -> Option<&mut [u8]> {
        let (from, end) = (usize::from(self.start) + at, usize::from(self.end));
        if from > end || self.len() + n > PAYLOAD_MAX {
            return None;
        }
        self.bytes.copy_within(from..end, from + n);
        self.end += n as u16;
        Some(&mut self.bytes[from..from + n])
    }

    /// Cuts `n` bytes off the front.
    pub fn advance(&mut self, n: usize) {
        self.start = (usize::from(self.start) + n).min(usize::from(self.end)) as u16;
    }
}

impl Deref for PacketBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes[usize::from(self.start)..usize::from(self.end)]
    }
}

impl DerefMut for PacketBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[usize::from(self.start)..usize::from(self.end)]
    }
}

impl std::fmt::Debug for PacketBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PacketBuf({} bytes)", self.len())
    }
}

/// Buffers that wait for work. Keeps at most `kept_max`; beyond it a returned buffer is freed.
pub struct Pool {
    free: Vec<PacketBuf>,
    kept_max: usize,
}

impl Pool {
    pub fn new(kept_max: usize) -> Self {
        Self { free: (0..kept_max).map(|_| PacketBuf::new()).collect(), kept_max }
    }

    pub fn take(&mut self) -> PacketBuf {
        self.free.pop().unwrap_or_else(PacketBuf::new)
    }

    pub fn put(&mut self, mut buf: PacketBuf) {
        if self.free.len() < self.kept_max {
            buf.spare();
            self.free.push(buf);
        }
    }

    /// Memory that a full pool holds, bytes.
    pub fn bytes_max(&self) -> usize {
        self.kept_max * CAPACITY
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_is_filled_cut_and_refused_when_too_long() {
        let mut buf = Pool::new(1).take();
        assert!(buf.fill(b"abcdef"));
        buf.advance(2);
        assert_eq!(&*buf, b"cdef");
        buf.insert(1, 2).expect("there is room").copy_from_slice(b"--");
        assert_eq!(&*buf, b"c--def");
        assert!(buf.insert(7, 1).is_none() && buf.insert(0, CAPACITY).is_none());
        buf.advance(99);
        assert!(buf.is_empty());
        assert!(!buf.fill(&[0; PAYLOAD_MAX + 1]));
        assert!(buf.is_empty());
    }
}
