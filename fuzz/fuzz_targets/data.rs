//! Data channel bytes: DCEP, and the envelope of room messages. A stamp never unmakes a well-formed packet.
#![no_main]
use libfuzzer_sys::fuzz_target;
use postern::wire::{data_packet, dcep};

fuzz_target!(|bytes: &[u8]| {
    dcep::decode(bytes);
    if data_packet::destinations(bytes).is_ok() {
        let stamped = data_packet::stamped(bytes, data_packet::Delivery::Lossy, "identity", "PA_1");
        assert!(data_packet::destinations(&stamped).is_ok());
    }
});
