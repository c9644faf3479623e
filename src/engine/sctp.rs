//! Data channels of one transport: SCTP over DTLS (RFC 8831) by the sans-IO crate `sctp-proto`, and DCEP (RFC 8832).
//!
//! The browser opens the association and the channels; each end writes on the same stream ids. A channel is known by its
//! label. What a slow receiver has not taken is bounded: lossy messages go first, then the association ends.

use crate::base::time::{Anchor, Instant};
use crate::wire::dcep::{self, Limit, Reliability};
use bytes::Bytes;
use sctp_proto::{
    Association, AssociationHandle, DatagramEvent, Endpoint, EndpointConfig, Event, Payload, PayloadProtocolIdentifier as Ppid,
    ReliabilityType, ServerConfig, StreamEvent, TransportConfig,
};
use std::net::SocketAddr;
use std::sync::Arc;

/// Largest message either way, bytes; announced as `a=max-message-size`.
pub const MESSAGE_MAX: u32 = 65_535;
/// What the server adds to a room message: the sender's identity and sid.
const STAMP_MAX: u32 = 1024;
/// SCTP packet without UDP and DTLS around it, bytes.
const PACKET_MAX: u32 = 1_120;
/// Bytes that wait for a slow receiver before lossy messages are dropped.
const LOSSY_QUEUE_MAX: usize = 256 * 1024;
/// Bytes that wait for a slow receiver before it is given up.
const RELIABLE_QUEUE_MAX: usize = 4 * 1024 * 1024;
/// Channels of one association.
const CHANNELS_MAX: usize = 64;

#[derive(Debug, PartialEq, Eq)]
pub enum Effect {
    /// A packet for the DTLS association.
    Send(Bytes),
    Opened {
        label: String,
    },
    Message {
        label: String,
        bytes: Vec<u8>,
    },
    /// The association is over.
    Lost,
    /// The receiver does not take what is reliable: it has to be given up.
    Stalled,
}

/// Why a message was not taken for sending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SctpDrop {
    NoChannel,
    QueueFull,
    TooLong,
}

struct Channel {
    stream: u16,
    label: String,
    is_lossy: bool,
}

pub struct Sctp {
    endpoint: Endpoint,
    association: Option<(AssociationHandle, Association)>,
    channels: Vec<Channel>,
    anchor: Anchor,
    peer: SocketAddr,
}

impl Sctp {
    pub fn new(anchor: Anchor) -> Self {
        let mut endpoint = EndpointConfig::new();
        endpoint.max_payload_size(PACKET_MAX);
        let transport = TransportConfig::default()
            .with_rto_initial_ms(500)
            .with_rto_min_ms(200)
            .with_max_send_message_size(MESSAGE_MAX + STAMP_MAX)
            .with_max_receive_message_size(MESSAGE_MAX)
            .with_max_data_retransmits(None);
        let mut server = ServerConfig::new();
        server.transport = Arc::new(transport);
        Self {
            endpoint: Endpoint::new(Arc::new(endpoint), Some(Arc::new(server))),
            association: None,
            channels: Vec::new(),
            anchor,
            // The crate wants an address; there is one peer, behind DTLS.
            peer: SocketAddr::from(([127, 0, 0, 1], 5000)),
        }
    }

    /// Takes one SCTP packet as DTLS decrypted it.
    pub fn handle(&mut self, now: Instant, packet: Vec<u8>, out: &mut Vec<Effect>) {
        let at = self.anchor.to_std(now);
        match self.endpoint.handle(at, self.peer, None, None, Bytes::from(packet)) {
            Some((handle, DatagramEvent::NewAssociation(association))) => {
                // A peer that starts again replaces what it had.
                self.channels.clear();
                self.association = Some((handle, association));
            }
            Some((handle, DatagramEvent::AssociationEvent(event))) => {
                if let Some((known, association)) = &mut self.association
                    && *known == handle
                {
                    association.handle_event(event);
                }
            }
            None => {}
        }
        self.drain(now, out);
    }

    /// Queues one message on the channel with this label.
    pub fn send(&mut self, now: Instant, label: &str, message: &[u8], out: &mut Vec<Effect>) -> Result<(), SctpDrop> {
        let channel = self.channels.iter().find(|c| c.label == label).ok_or(SctpDrop::NoChannel)?;
        let (_, association) = self.association.as_mut().ok_or(SctpDrop::NoChannel)?;
        // Of all channels together: what is reliable and waits makes no room for what is not.
        let queued: usize = self.channels.iter().filter_map(|c| association.stream(c.stream).ok()?.buffered_amount().ok()).sum();
        let mut stream = association.stream(channel.stream).map_err(|_| SctpDrop::NoChannel)?;
        if queued > if channel.is_lossy { LOSSY_QUEUE_MAX } else { RELIABLE_QUEUE_MAX } {
            if !channel.is_lossy {
                out.push(Effect::Stalled);
            }
            return Err(SctpDrop::QueueFull);
        }
        stream.write_with_ppi(message, Ppid::Binary).map_err(|_| SctpDrop::TooLong)?;
        self.drain(now, out);
        Ok(())
    }

    pub fn wake(&mut self, now: Instant, out: &mut Vec<Effect>) {
        let at = self.anchor.to_std(now);
        if let Some((_, association)) = &mut self.association {
            if association.poll_timeout().is_some_and(|due| due <= at) {
                association.handle_timeout(at);
            }
            self.drain(now, out);
        }
    }

    pub fn deadline(&self) -> Option<Instant> {
        let (_, association) = self.association.as_ref()?;
        Some(self.anchor.from_std(association.poll_timeout()?))
    }

    fn drain(&mut self, now: Instant, out: &mut Vec<Effect>) {
        let at = self.anchor.to_std(now);
        while let Some(transmit) = self.endpoint.poll_transmit() {
            push_packets(transmit.payload, out);
        }
        let mut is_lost = false;
        if let Some((handle, association)) = &mut self.association {
            while let Some(event) = association.poll() {
                match event {
                    Event::Stream(StreamEvent::Readable { id } | StreamEvent::Opened { id }) => {
                        read(association, &mut self.channels, id, out);
                    }
                    Event::Stream(StreamEvent::Finished { id }) => self.channels.retain(|c| c.stream != id),
                    Event::AssociationLost { .. } | Event::HandshakeFailed { .. } => is_lost = true,
                    _ => {}
                }
            }
            while let Some(event) = association.poll_endpoint_event() {
                if let Some(answer) = self.endpoint.handle_event(*handle, event) {
                    association.handle_event(answer);
                }
            }
            while let Some(transmit) = association.poll_transmit(at) {
                push_packets(transmit.payload, out);
            }
        }
        if is_lost {
            self.association = None;
            self.channels.clear();
            out.push(Effect::Lost);
        }
    }
}

fn push_packets(payload: Payload, out: &mut Vec<Effect>) {
    if let Payload::RawEncode(packets) = payload {
        out.extend(packets.into_iter().map(Effect::Send));
    }
}

/// Everything that waits on one stream: DCEP opens the channel, the rest is for the room.
fn read(association: &mut Association, channels: &mut Vec<Channel>, id: u16, out: &mut Vec<Effect>) {
    loop {
        let Ok(mut stream) = association.stream(id) else { return };
        let Ok(Some(chunks)) = stream.read_sctp() else { return };
        let mut bytes = vec![0; chunks.len()];
        if chunks.read(&mut bytes).is_err() {
            continue;
        }
        match chunks.ppi {
            Ppid::Dcep => {
                let Some(dcep::Message::Open { reliability, label }) = dcep::decode(&bytes) else { continue };
                if channels.len() >= CHANNELS_MAX {
                    continue;
                }
                let (kind, value) = match reliability.limit {
                    Limit::None => (ReliabilityType::Reliable, 0),
                    Limit::Retransmits(n) => (ReliabilityType::Rexmit, n),
                    Limit::LifetimeMs(ms) => (ReliabilityType::Timed, ms),
                };
                let Reliability { unordered, .. } = reliability;
                // The acknowledgement itself goes ordered and reliable (RFC 8832 §6).
                let _ = stream.write_with_ppi(&dcep::ACK, Ppid::Dcep);
                let _ = stream.set_reliability_params(unordered, kind, value);
                channels.retain(|c| c.stream != id);
                channels.push(Channel { stream: id, label: label.to_owned(), is_lossy: reliability.limit != Limit::None });
                out.push(Effect::Opened { label: label.to_owned() });
            }
            Ppid::Binary | Ppid::String => {
                if let Some(channel) = channels.iter().find(|c| c.stream == id) {
                    out.push(Effect::Message { label: channel.label.clone(), bytes });
                }
            }
            _ => {}
        }
    }
}
