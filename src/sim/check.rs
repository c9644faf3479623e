//! Named invariants of a simulated world.

use super::World;
use crate::shard::counters::Counter;
use std::collections::BTreeMap;

/// **conservation**: what came in = consumed + dropped by name. A packet that goes to another worker is counted where it
/// came in and where it ended.
pub fn conservation(world: &World) {
    let sum = |family: &str| world.shards.iter().map(|s| s.counters.sum(family)).sum::<u64>();
    let received = sum("datagrams_received") + sum("stream_frames_received");
    assert_eq!(received, world.given, "every packet that was given is counted once where it came in");
    let redirected: u64 = world.shards.iter().map(|s| s.counters.get(Counter::Redirected)).sum();
    let ended = sum("packets_consumed") + sum("drops");
    assert_eq!(received + redirected, ended, "every packet ends once: {:?}", drops(world));
}

/// **continuity**: what a hearer gets of one stream has no number twice, and what it says is what was sent under it.
pub fn continuity(world: &mut World) {
    for at in 0..world.len() {
        let mut seen: BTreeMap<u32, BTreeMap<u64, Vec<u8>>> = BTreeMap::new();
        for (ssrc, sequence, payload) in &world.peer(at).heard {
            let before = seen.entry(*ssrc).or_default().insert(*sequence, payload.clone());
            assert!(before.is_none(), "peer {at} heard {sequence} of {ssrc} twice");
        }
        for (ssrc, packets) in seen {
            let offsets: Vec<u64> = packets
                .iter()
                .map(|(sequence, payload)| {
                    let sent = u64::from_be_bytes(payload[..8].try_into().expect("eight bytes"));
                    sent.wrapping_sub(*sequence)
                })
                .collect();
            assert!(offsets.windows(2).all(|w| w[0] == w[1]), "peer {at}: numbers of {ssrc} shifted");
        }
    }
}

/// All drops by name that are not zero.
pub fn drops(world: &World) -> Vec<(&'static str, u64)> {
    let all = Counter::ALL.iter().filter(|c| c.family() == "drops");
    all.map(|c| (c.label(), world.shards.iter().map(|s| s.counters.get(*c)).sum())).filter(|(_, n)| *n > 0).collect()
}
