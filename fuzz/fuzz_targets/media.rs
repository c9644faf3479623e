//! RTP, RTCP and payload descriptors, as they come out of a client that has keys.
#![no_main]
use libfuzzer_sys::fuzz_target;
use postern::wire::rtp::{Codec, Header};
use postern::wire::{rtcp, vp8};

fuzz_target!(|bytes: &[u8]| {
    for packet in rtcp::packets(bytes) {
        if let Ok(rtcp::Packet::SenderReport(_, blocks) | rtcp::Packet::ReceiverReport(blocks)) = packet {
            assert!(blocks.count() <= 31);
        }
    }
    for codec in [Codec::Vp8, Codec::Vp9, Codec::H264, Codec::H265, Codec::Av1] {
        codec.frame_info(bytes);
    }
    if let Some(descriptor) = vp8::Descriptor::read(bytes) {
        let mut copy = bytes.to_vec();
        descriptor.rewrite(&mut copy, 0x7FFF, 0xFF);
        assert_eq!(vp8::Descriptor::read(&copy).map(|d| d.len), Some(descriptor.len));
    }
    if let Ok(header) = Header::read(bytes) {
        let _ = header.payload(bytes);
        assert!(header.extensions(bytes).count() <= bytes.len());
        header.csrcs(bytes);
    }
});
