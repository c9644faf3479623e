//! Data channels of one transport: SCTP over DTLS (RFC 8831) by the sans-IO crate `sctp-proto`, and DCEP (RFC 8832).
//!
//! The browser opens the association, and the channels too unless they are ours to open; each end writes on the same stream
//! ids. A channel is known by its label. What a slow receiver has not taken is bounded: lossy messages go first, then the association ends.

use crate::base::time::{Anchor, Instant};
use crate::wire::dcep::{self, Limit, Reliability};
use bytes::Bytes;
use sctp_proto::{
    Association, AssociationHandle, DatagramEvent, Endpoint, EndpointConfig, Event, Payload, PayloadProtocolIdentifier as Ppid,
    ReliabilityType, ServerConfig, Stream, StreamEvent, TransportConfig,
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
    /// We have opened it and the peer has not said yet that it knows.
    is_opening: bool,
}

/// A channel that we open: its label and how it treats loss and order.
pub type Wanted = (&'static str, Reliability);

pub struct Sctp {
    endpoint: Endpoint,
    association: Option<(AssociationHandle, Association)>,
    channels: Vec<Channel>,
    /// Channels that we open once there is an association, and the first of our stream ids: every other one is ours.
    wanted: (&'static [Wanted], u16),
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
            // Who was away for a minute does not wait for another.
            .with_rto_max_ms(2_000)
            .with_max_send_message_size(MESSAGE_MAX + STAMP_MAX)
            .with_max_receive_message_size(MESSAGE_MAX)
            .with_max_data_retransmits(None);
        let mut server = ServerConfig::new();
        server.transport = Arc::new(transport);
        Self {
            endpoint: Endpoint::new(Arc::new(endpoint), Some(Arc::new(server))),
            association: None,
            channels: Vec::new(),
            wanted: (&[], 0),
            anchor,
            // The crate wants an address; there is one peer, behind DTLS.
            peer: SocketAddr::from(([127, 0, 0, 1], 5000)),
        }
    }

    /// Has these channels opened by us. The DTLS client has the even stream ids, the server the odd ones (RFC 8832 §6).
    pub fn open_channels(&mut self, wanted: &'static [Wanted], is_dtls_client: bool) {
        self.wanted = (wanted, u16::from(!is_dtls_client));
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
        let channel = self.channels.iter().find(|c| c.label == label && !c.is_opening).ok_or(SctpDrop::NoChannel)?;
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
                        read(association, &mut self.channels, self.wanted.0, id, out);
                    }
                    Event::Stream(StreamEvent::Finished { id }) => self.channels.retain(|c| c.stream != id),
                    Event::Connected => open(association, &mut self.channels, self.wanted),
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
fn read(association: &mut Association, channels: &mut Vec<Channel>, wanted: &[Wanted], id: u16, out: &mut Vec<Effect>) {
    loop {
        let Ok(mut stream) = association.stream(id) else { return };
        let Ok(Some(chunks)) = stream.read_sctp() else { return };
        let mut bytes = vec![0; chunks.len()];
        if chunks.read(&mut bytes).is_err() {
            continue;
        }
        match chunks.ppi {
            Ppid::Dcep => match dcep::decode(&bytes) {
                Some(dcep::Message::Open { reliability, label }) => {
                    if channels.len() >= CHANNELS_MAX {
                        continue;
                    }
                    // The acknowledgement itself goes ordered and reliable (RFC 8832 §6).
                    let _ = stream.write_with_ppi(&dcep::ACK, Ppid::Dcep);
                    set_reliability(&mut stream, reliability);
                    channels.retain(|c| c.stream != id);
                    let is_lossy = reliability.limit != Limit::None;
                    channels.push(Channel { stream: id, label: label.to_owned(), is_lossy, is_opening: false });
                    out.push(Effect::Opened { label: label.to_owned() });
                }
                Some(dcep::Message::Ack) => {
                    if let Some(channel) = channels.iter_mut().find(|c| c.stream == id && c.is_opening) {
                        channel.is_opening = false;
                        if let Some((_, reliability)) = wanted.iter().find(|(label, _)| *label == channel.label) {
                            set_reliability(&mut stream, *reliability);
                        }
                        out.push(Effect::Opened { label: channel.label.clone() });
                    }
                }
                None => {}
            },
            Ppid::Binary | Ppid::String => {
                if let Some(channel) = channels.iter().find(|c| c.stream == id) {
                    out.push(Effect::Message { label: channel.label.clone(), bytes });
                }
            }
            _ => {}
        }
    }
}

/// Says which channels there are to be. Until the peer has answered, nothing else is written on them.
fn open(association: &mut Association, channels: &mut Vec<Channel>, (wanted, first): (&[Wanted], u16)) {
    for (at, (label, reliability)) in wanted.iter().enumerate() {
        let id = first + 2 * at as u16;
        let Ok(mut stream) = association.open_stream(id, Ppid::Binary) else { continue };
        if stream.write_with_ppi(&dcep::open(*reliability, label), Ppid::Dcep).is_ok() {
            let is_lossy = reliability.limit != Limit::None;
            channels.push(Channel { stream: id, label: (*label).to_owned(), is_lossy, is_opening: true });
        }
    }
}

fn set_reliability(stream: &mut Stream<'_>, Reliability { unordered, limit }: Reliability) {
    let (kind, value) = match limit {
        Limit::None => (ReliabilityType::Reliable, 0),
        Limit::Retransmits(n) => (ReliabilityType::Rexmit, n),
        Limit::LifetimeMs(ms) => (ReliabilityType::Timed, ms),
    };
    let _ = stream.set_reliability_params(unordered, kind, value);
}
