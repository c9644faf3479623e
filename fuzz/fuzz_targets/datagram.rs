//! First bytes, STUN, ChannelData, ClientHello fragments: what a stranger can send to a UDP port.
#![no_main]
use libfuzzer_sys::fuzz_target;
use postern::wire::{demux, dtls::HelloAssembler, stun::Message, turn};

fuzz_target!(|bytes: &[u8]| {
    demux::datagram(bytes);
    let _ = turn::channel_data(bytes);
    HelloAssembler::default().push(bytes);
    if let Ok(message) = Message::decode(bytes) {
        for (_, value) in message.attributes() {
            message.xor_address(value);
        }
        if let Some(integrity) = message.integrity() {
            assert_eq!(integrity.tag.len(), 20);
        }
    }
});
