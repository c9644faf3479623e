//! Session descriptions from apps.
#![no_main]
use libfuzzer_sys::fuzz_target;
use postern::wire::sdp::{Description, SECTIONS_MAX};

fuzz_target!(|text: &str| {
    if let Ok(offer) = Description::parse(text) {
        assert!(offer.sections.len() <= SECTIONS_MAX);
        assert!(offer.sections.iter().all(|s| s.rids.len() <= 3));
    }
});
