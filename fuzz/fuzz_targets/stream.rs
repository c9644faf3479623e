//! What a stranger can write to a TCP port: the sniffing front, PROXY headers and both framings. Frames never overlap nor stand still.
#![no_main]
use libfuzzer_sys::fuzz_target;
use postern::wire::{demux, framing::Framing, proxy};

fuzz_target!(|bytes: &[u8]| {
    if bytes.len() >= demux::SNIFF_MAX {
        assert_ne!(demux::stream(bytes), demux::Sniff::NeedMore);
    }
    if let proxy::Proxied::For { len, .. } = proxy::header(bytes) {
        assert!(len <= bytes.len());
    }
    for framing in [Framing::Turn, Framing::Rfc4571] {
        let mut rest = bytes;
        while let Ok(Some(frame)) = framing.next(rest) {
            assert!(frame.start <= frame.end && frame.end <= frame.consumed && frame.consumed > 0);
            rest = &rest[frame.consumed..];
        }
    }
});
