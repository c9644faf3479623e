//! RTP, RTCP and payload descriptors, as they come out of a client that has keys.
#![no_main]
use libfuzzer_sys::fuzz_target;
use postern::wire::rtp::{Codec, Header};
use postern::wire::{dependency, h264, rtcp, red, twcc, vp8, vp9};

fuzz_target!(|bytes: &[u8]| {
    for packet in rtcp::packets(bytes) {
        match packet {
            Ok(rtcp::Packet::SenderReport(_, blocks) | rtcp::Packet::ReceiverReport(blocks)) => assert!(blocks.count() <= 31),
            Ok(rtcp::Packet::Nack { lost, .. }) => assert!(lost.sequences().count() <= bytes.len() / 4 * 17),
            Ok(rtcp::Packet::Extended { blocks, .. }) => assert!(blocks.count() <= bytes.len() / 4),
            Ok(rtcp::Packet::Bye(sources)) => assert!(sources.count() <= 31),
            Ok(rtcp::Packet::TransportCc(packet)) => {
                if let Some(feedback) = twcc::Feedback::read(packet) {
                    assert!(feedback.count() <= 65_535);
                }
            }
            _ => {}
        }
    }
    // A structure, then a frame that refers to it.
    let (first, second) = bytes.split_at(bytes.len() / 2);
    let mut known = None;
    dependency::read(first, &mut known);
    dependency::read(second, &mut known);
    h264::has_parameter_sets(bytes);
    for codec in [Codec::Vp8, Codec::Vp9, Codec::H264, Codec::H265, Codec::Av1] {
        codec.frame_info(bytes);
    }
    if let Some(descriptor) = vp8::Descriptor::read(bytes) {
        let mut copy = bytes.to_vec();
        descriptor.rewrite(&mut copy, 0x7FFF, 0xFF);
        assert_eq!(vp8::Descriptor::read(&copy).map(|d| d.len), Some(descriptor.len));
    }
    if let Some(ids) = vp9::Ids::read(bytes) {
        let mut copy = bytes.to_vec();
        ids.rewrite(&mut copy, 0x7FFF, 0xFF);
        assert_eq!(vp9::Ids::read(&copy).map(|ids| ids.picture_id.is_some()), Some(ids.picture_id.is_some()));
    }
    if let Some(redundant) = red::Redundant::read(bytes) {
        assert!(redundant.newest.end == bytes.len() && redundant.earlier().iter().all(|e| e.payload.end <= bytes.len()));
        let mut copy = bytes.to_vec();
        red::set_payload_type(&mut copy, 127);
        assert_eq!(red::Redundant::read(&copy), Some(redundant));
    }
    if let Ok(header) = Header::read(bytes) {
        let _ = header.payload(bytes);
        assert!(header.extensions(bytes).count() <= bytes.len());
        header.csrcs(bytes);
    }
});
