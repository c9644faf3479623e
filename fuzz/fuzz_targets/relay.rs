//! Operations on the relay of two shards: requests that are authentic, data both ways, connections, sockets that cannot be
//! opened, time. In the end nothing is left.
#![no_main]
use libfuzzer_sys::fuzz_target;

fuzz_target!(|script: &[u8]| {
    postern::sim::relay::run(script);
});
