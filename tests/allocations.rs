//! A shard allocates nothing for media over UDP once it flows: counted by an allocator of its own, on the thread that works for it.
#![cfg(feature = "sim")]

use postern::base::id::WorkerId;
use postern::base::time::Duration;
use postern::shard::counters::Counter;
use postern::sim::net::Net;
use postern::sim::{Arrival, Way, World, check};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static IS_COUNTING: Cell<bool> = const { Cell::new(false) };
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

fn note() {
    // At the end of a thread there is nothing to count in any more.
    let _ = IS_COUNTING.try_with(|is_counting| {
        if is_counting.get() {
            let _ = ALLOCATIONS.try_with(|n| n.set(n.get() + 1));
        }
    });
}

// SAFETY: everything is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note();
        // SAFETY: the caller keeps to the contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note();
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
