//! What went out on one transport under its transport-wide numbers, until the receiver has told what became of it
//! (draft-holmer-rmcat-transport-wide-cc-extensions-01 §2). The estimate of what the way takes is not made here.

use super::rtp_in::unwrap_sequence;
use crate::base::time::{Duration, Instant};
use crate::wire::twcc::Feedback;
use std::collections::VecDeque;

/// Packets that are waited for: two seconds of 2,000 packets each.
const WAITING_MAX: usize = 4096;
/// How long a packet is waited for.
const WAITED_MAX: Duration = Duration::from_secs(2);

#[derive(Clone, Copy)]
struct Packet {
    at: Instant,
    has_arrived: bool,
    is_missed: bool,
}

/// What one feedback packet told that was not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Told {
    pub received: u32,
    pub lost: u32,
}

#[derive(Default)]
pub struct Sent {
    /// Number of the oldest packet that is waited for.
    base: u64,
    packets: VecDeque<Packet>,
}

impl Sent {
    /// The number of the next packet.
    pub fn next(&self) -> u16 {
        (self.base + self.packets.len() as u64) as u16
    }

    /// Reads what the next packet needs, so that it lies in the cache by then. The value means nothing.
    pub fn warm(&self) -> u64 {
        self.base ^ u64::from(self.packets.back().is_some_and(|p| p.has_arrived))
    }

    /// The next packet went out.
    pub fn push(&mut self, now: Instant) {
        let is_over = |p: &Packet| now.since(p.at) > WAITED_MAX;
        while self.packets.len() >= WAITING_MAX || self.packets.front().is_some_and(is_over) {
            self.packets.pop_front();
            self.base += 1;
        }
        self.packets.push_back(Packet { at: now, has_arrived: false, is_missed: false });
    }

    /// The receiver told. One that it calls lost may still come: it is counted as received then.
    pub fn told(&mut self, feedback: Feedback<'_>) -> Told {
        let mut told = Told::default();
        let newest = self.base + self.packets.len() as u64;
        for (sequence, arrived) in feedback {
            let at = unwrap_sequence(newest, sequence).checked_sub(self.base);
            let Some(packet) = at.and_then(|at| self.packets.get_mut(at as usize)).filter(|p| !p.has_arrived) else { continue };
            match arrived {
                Some(_) => told.received += 1,
                None if packet.is_missed => {}
                None => told.lost += 1,
            }
            (packet.has_arrived, packet.is_missed) = (arrived.is_some(), arrived.is_none());
        }
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::twcc::write_feedback;

    fn feedback(base: u16, arrivals: &[Option<u64>]) -> Vec<u8> {
        let mut out = Vec::new();
        write_feedback(&mut out, 1, 2, base, 0, arrivals);
        out
    }

    #[test]
    fn each_packet_is_told_once() {
        let mut sent = Sent::default();
        for ms in 0..10 {
            assert_eq!(sent.next(), ms);
            sent.push(Instant::from_millis(u64::from(ms)));
        }
        let mut tell = |base, arrivals: &[Option<u64>]| {
            let bytes = feedback(base, arrivals);
            sent.told(Feedback::read(&bytes).expect("a feedback packet"))
        };
        assert_eq!(tell(0, &[Some(1_000), None, Some(2_000)]), Told { received: 2, lost: 1 });
        assert_eq!(tell(1, &[Some(2_500), Some(2_000)]), Told { received: 1, lost: 0 }, "the late one came, the other is known");
        assert_eq!(tell(5, &[None, Some(3_000)]), Told { received: 1, lost: 1 });
        assert_eq!(tell(5, &[None, Some(3_000)]), Told::default(), "said again");
        assert_eq!(tell(9, &[Some(1), Some(2), Some(3)]), Told { received: 1, lost: 0 }, "never sent");
    }

    #[test]
    fn memory_is_bounded_over_the_wrap() {
        let mut sent = Sent::default();
        for i in 0..70_000u64 {
            sent.push(Instant::from_nanos(i * 10_000));
        }
        assert_eq!((sent.packets.len(), sent.next()), (WAITING_MAX, (70_000u64 % 65_536) as u16));
        let bytes = feedback((69_990u64 % 65_536) as u16, &[Some(1); 10]);
        assert_eq!(sent.told(Feedback::read(&bytes).expect("a feedback packet")), Told { received: 10, lost: 0 });
        sent.push(Instant::from_millis(60_000));
        assert_eq!(sent.packets.len(), 1, "what is never told is not waited for");
    }
}
