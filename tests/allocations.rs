//! What a shard allocates, counted by an allocator of its own on the thread that works for it: nothing for media over UDP once it
//! flows, and nothing that stays for strangers.
#![cfg(feature = "sim")]
#![allow(clippy::disallowed_methods, reason = "tests at the rim look at the clock")]

mod common;
#[allow(dead_code, reason = "each file of tests uses its part")]
#[path = "conformance/lab.rs"]
mod lab;
#[allow(dead_code, reason = "each file of tests uses its part")]
#[path = "conformance/shard.rs"]
mod shard;

use postern::base::id::WorkerId;
use postern::base::rng::Rng;
use postern::base::time::Duration;
use postern::engine::flood::Ration;
use postern::shard::counters::Counter;
use postern::sim::net::Net;
use postern::sim::{Arrival, Way, World, check};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::{Ipv4Addr, SocketAddr};

thread_local! {
    static IS_COUNTING: Cell<bool> = const { Cell::new(false) };
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
    /// Bytes that were taken and not given back.
    static HELD: Cell<i64> = const { Cell::new(0) };
}

struct Counting;

fn note(taken: usize, given_back: usize) {
    // At the end of a thread there is nothing to count in any more.
    let _ = IS_COUNTING.try_with(|is_counting| {
        if is_counting.get() {
            let _ = ALLOCATIONS.try_with(|n| n.set(n.get() + u64::from(taken > 0)));
            let _ = HELD.try_with(|n| n.set(n.get() + taken as i64 - given_back as i64));
        }
    });
}

// SAFETY: everything is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size(), 0);
        // SAFETY: the caller keeps to the contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        note(0, layout.size());
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size, layout.size());
        // SAFETY: as above.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn media_over_udp_allocates_nothing_in_steady_state() {
    let mut world = World::new(1, 1, Net::new(1, 0, 0, 5..10));
    world.films = true;
    let arrival = Arrival { way: Way::Udp, ingress: WorkerId(0), owner: WorkerId(0) };
    world.join(&[arrival; 4]);
    // Windows, histories and rings have grown to what they need.
    world.run(Duration::from_secs(10));
    assert!((0..4).all(|at| world.peer(at).is_connected), "{:?}", check::drops(&world));
    let forwarded = |world: &World| world.shards[0].counters.get(Counter::Forwarded);
    let before = forwarded(&world);
    world.probe = |is_media| IS_COUNTING.set(is_media);
    world.run(Duration::from_secs(10));
    let forwarded = forwarded(&world) - before;
    assert!(forwarded > 10_000, "{forwarded}");
    assert_eq!(ALLOCATIONS.get(), 0, "allocations for {forwarded} packets");
}

#[test]
fn s12_and_s13_a_million_strangers_leave_nothing_behind() {
    let mut wire = shard::ShardWire::with(lab::Transport::Udp, |config| {
        config.ration = Ration { per_network: 200, in_all: 50_000 };
    });
    let [bare, forged] = lab::strangers_allocates();
    let mut dice = Rng::new(12);
    let counters = wire.counters();
    let rest = wire.deadline();
    let mut answered = 0;
    for n in 0..1_000_000_u32 {
        // Buffers that are kept have been made by then.
        if n == 1_000 {
            IS_COUNTING.set(true);
        }
        let (ip, port) = (Ipv4Addr::from_bits(dice.next_u64() as u32), 1 + dice.below(65_535) as u16);
        if ip.is_loopback() {
            continue;
        }
        let bytes = if n % 2 == 0 { &bare } else { &forged };
        if let Some(len) = wire.passing(SocketAddr::from((ip, port)), bytes) {
            assert!(len <= 80, "{len} bytes");
            answered += 1;
        }
    }
    IS_COUNTING.set(false);
    assert_eq!(HELD.get(), 0, "bytes that are held for them");
    assert_eq!(wire.deadline(), rest, "no timer runs for them");
    assert_eq!(answered, 500_000, "what all together have in ten seconds");
    assert!(counters.get(Counter::DropTurnRationed) > 490_000);
    assert_eq!(counters.get(Counter::AllocationsOpened), 0);
}
