//! What a stranger can write to a TCP port: the sniffing front and both framings. Frames never overlap nor stand still.
#![no_main]
use libfuzzer_sys::fuzz_target;
use postern::wire::{demux, framing::Framing};

fuzz_target!(|bytes: &[u8]| {
    if bytes.len() >= demux::SNIFF_MAX {
        assert_ne!(demux::stream(bytes), demux::Sniff::NeedMore);
    }
    for framing in [Framing::Turn, Framing::Rfc4571] {
        let mut rest = bytes;
        while let Ok(Some(frame)) = framing.next(rest) {
            assert!(frame.start <= frame.end && frame.end <= frame.consumed && frame.consumed > 0);
            rest = &rest[frame.consumed..];
        }
    }
});
