//! Answers to strangers are rationed (RFC 8489 §16.1.2): by network and in all, in a table that no number of senders can grow.
//!
//! A network is an IPv4 /24 or an IPv6 /64. Networks whose places in the table coincide share a ration. This host's own
//! clients are not rationed: they need no relay to do harm.

use crate::base::pace::Pace;
use crate::base::rng::Rng;
use crate::base::time::{Duration, Instant};
use std::net::IpAddr;

const PLACES: usize = 4096;
/// What may come at once, as time at the rate: everybody behind one address comes back at the same moment.
const BURST: Duration = Duration::from_secs(10);

/// Answers a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ration {
    pub per_network: u64,
    pub in_all: u64,
}

pub struct Strangers {
    places: Box<[Pace]>,
    all: Pace,
    seed: u64,
}

impl Strangers {
    pub fn new(dice: &mut Rng) -> Self {
        Self { places: vec![Pace::default(); PLACES].into(), all: Pace::default(), seed: dice.next_u64() }
    }

    /// Whether a stranger at `ip` gets an answer.
    pub fn may_answer(&mut self, now: Instant, ip: IpAddr, ration: Ration) -> bool {
        if ip.is_loopback() {
            return true;
        }
        let network = match ip {
            IpAddr::V4(ip) => u64::from(ip.to_bits() >> 8),
            IpAddr::V6(ip) => (ip.to_bits() >> 64) as u64,
        };
        let place = Rng::new(network ^ self.seed).below(PLACES as u64) as usize;
        self.places[place].take(now, 1, ration.per_network, BURST) && self.all.take(now, 1, ration.in_all, BURST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_has_its_ration_and_all_have_theirs() {
        let mut strangers = Strangers::new(&mut Rng::new(1));
        let ration = Ration { per_network: 10, in_all: 25 };
        let mut answered = |ms: u64, ips: &[[u8; 4]]| {
            (0..1_000).filter(|n| strangers.may_answer(Instant::from_millis(ms), ips[n % ips.len()].into(), ration)).count()
        };
        assert_eq!(answered(0, &[[198, 51, 100, 1], [198, 51, 100, 2]]), 100, "one network");
        assert_eq!(answered(1_000, &[[198, 51, 100, 3]]), 10);
        assert_eq!(answered(1_000, &[[203, 0, 113, 1], [192, 0, 2, 1], [8, 8, 8, 8]]), 165, "all together");
        assert_eq!(answered(1_000, &[[127, 0, 0, 1]]), 1_000);
    }
}
