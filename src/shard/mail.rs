//! What the control plane and the shards tell each other, and shards among themselves. Plain data.

use crate::base::buf::PacketBuf;
use crate::base::id::{AllocationId, Carrier, PeerAddr, RelayedAddr, RoomId, SessionId, StreamId, TrackId, WorkerId};
use crate::engine::ice::Credentials;
use crate::engine::relay_table::{Allocation, Family, Tallies};
use crate::engine::srtp::Profile;
use crate::engine::turn::TurnConfig;
use crate::room::Word;
use crate::room::layers::Wanted;
use crate::room::speaker;
use crate::session::negotiate::Plan;
use crate::session::path::FrameQueue;
use crate::session::quality::Sample;
use crate::session::{End, Media};
use crate::wire::data_packet::Delivery;
use std::net::SocketAddr;
use std::sync::Arc;

/// Control plane to shard.
pub enum Command {
    /// A participant may connect: its credentials name this worker.
    Open {
        session: SessionId,
        room: RoomId,
        credentials: Credentials,
        identity: String,
        sid: String,
        can_publish_data: bool,
        /// Room messages go to this transport.
        hears_data: bool,
        /// The room protocol's channels are ours to open.
        opens_channels: bool,
    },
    /// What a participant may do has changed.
    Permit {
        session: SessionId,
        can_publish_data: bool,
    },
    /// Nobody is to get what comes of a track: it was muted by an administrator. To the worker that owns the publisher.
    Silence {
        track: TrackId,
        is_silenced: bool,
    },
    /// Who gets the packets of a participant's data track, under which handle each. To the worker that owns the publisher.
    RouteData {
        publisher: SessionId,
        handle: u16,
        /// Empty: nobody any longer.
        hearers: Vec<(WorkerId, SessionId, u16)>,
    },
    /// A room message of the server's own.
    Send {
        room: RoomId,
        delivery: Delivery,
        bytes: Vec<u8>,
    },
    Apply {
        session: SessionId,
        plan: Box<Plan>,
    },
    /// To the worker that owns the publisher.
    Publish {
        room: RoomId,
        session: SessionId,
        track: TrackId,
        is_video: bool,
    },
    /// To every worker that has members of the room.
    Unpublish {
        room: RoomId,
        track: TrackId,
    },
    Subscribe {
        room: RoomId,
        session: SessionId,
        track: TrackId,
        publisher: SessionId,
        is_video: bool,
        /// The worker that owns the publisher.
        home: WorkerId,
    },
    Unsubscribe {
        room: RoomId,
        session: SessionId,
        track: TrackId,
    },
    /// What a subscriber wants of a track (`UpdateTrackSettings`).
    Want {
        room: RoomId,
        session: SessionId,
        track: TrackId,
        /// `None` while it is paused.
        wanted: Option<Wanted>,
    },
    /// The workers that have members of the room.
    Spread {
        room: RoomId,
        workers: Vec<WorkerId>,
    },
    /// To be answered with [`Report::LastMessage`].
    TellLastMessage {
        session: SessionId,
    },
    /// A member leaves its room, with all that it publishes and hears; its transport stays.
    StepOut {
        session: SessionId,
    },
    /// It is back, as it was; what it publishes and hears is told anew.
    StepIn {
        session: SessionId,
    },
    Close {
        session: SessionId,
    },
    /// New settings of the relay.
    Relay(Arc<TurnConfig>),
    /// The server is about to end: nobody is lent a relay any more.
    Drain,
}

/// Which way a participant's packets take; what the page shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathKind {
    Udp,
    Tcp,
    RelayUdp,
    RelayTcp,
    RelayTls,
}

impl PathKind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
            Self::RelayUdp => "relay/udp",
            Self::RelayTcp => "relay/tcp",
            Self::RelayTls => "relay/tls",
        }
    }
}

/// Shard to control plane.
#[derive(Debug)]
pub enum Report {
    Live {
        session: SessionId,
        profile: Profile,
    },
    Path {
        session: SessionId,
        kind: PathKind,
    },
    /// Nothing has come from a client for some seconds.
    Silent {
        session: SessionId,
        /// Media came just before.
        was_busy: bool,
    },
    /// Nothing has come for so long that nothing may be sent any more (RFC 7675).
    Unreachable {
        session: SessionId,
    },
    Ended {
        session: SessionId,
        end: End,
        /// For the log.
        detail: String,
    },
    /// The client's path takes nothing of a track any longer, or again.
    StreamState {
        session: SessionId,
        track: TrackId,
        is_paused: bool,
    },
    /// A client gets another layer of a picture.
    Layer {
        session: SessionId,
        track: TrackId,
        layer: u8,
    },
    /// A transport is no more; what it was like since its last sample.
    Closed {
        session: SessionId,
        rest: Sample,
    },
    /// What a transport was like lately.
    Quality {
        session: SessionId,
        sample: Sample,
    },
    /// A room message of a participant that is for the server itself.
    Data {
        session: SessionId,
        bytes: Vec<u8>,
    },
    Speakers {
        room: RoomId,
        changes: Vec<speaker::Change>,
    },
    /// The newest reliable message that came from a participant.
    LastMessage {
        session: SessionId,
        sequence: u32,
    },
}

/// What an accepted connection speaks, once told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamRole {
    Turn,
    Ice,
}

/// That a connection is TLS, and the name that its client asked for (RFC 6066 §3).
#[derive(Clone, Debug, Default)]
pub struct ServerName(pub Option<Box<str>>);

/// The shard's part of a connection; it moves with it.
pub struct StreamState {
    pub role: StreamRole,
    pub remote: SocketAddr,
    pub is_tls: bool,
    /// What the client asked for.
    pub server_name: Option<Box<str>>,
    pub queue: FrameQueue,
    pub has_moved: bool,
}

/// What goes along when a connection moves to its owner: its state, its allocation, and the message that named the owner.
pub struct StreamCargo {
    pub state: StreamState,
    pub allocation: Option<Box<Allocation>>,
    pub delivered: PacketBuf,
    /// For a delivery of the relay: the address it was sent to.
    pub peer: Option<PeerAddr>,
}

/// Shard to shard.
pub enum Parcel {
    /// A datagram that arrived on another worker's socket than its owner's.
    Datagram { carrier: Carrier, buf: PacketBuf },
    /// The owner has authenticated this tuple: send on what comes from it.
    Confirm { carrier: Carrier },
    /// The owner no longer knows this tuple.
    Withdraw { carrier: Carrier },
    /// A packet of a publisher here for hearers there; once for all of them.
    Media { room: RoomId, publisher: SessionId, media: Box<Media>, buf: PacketBuf },
    /// About a track that both have to do with.
    Word { room: RoomId, track: TrackId, word: Word },
    /// A room message of a participant here for those there.
    Data { room: RoomId, delivery: Delivery, bytes: Vec<u8> },
    /// A packet of a data track of a participant there for those here, each under its handle.
    DataTrack { hearers: Vec<(SessionId, u16)>, bytes: Vec<u8> },
    /// A UDP allocation goes to its owner, with the check that named it.
    Allocation { allocation: Box<Allocation>, delivered: PacketBuf, peer: PeerAddr },
    /// A packet of an allocation there for one here.
    Loop { from: RelayedAddr, to: RelayedAddr, buf: PacketBuf },
    /// The sender has a relay's port, or gave it back.
    Port { port: u16, is_held: bool },
    /// The sender opened an allocation, or ended one.
    Tally { tallies: Tallies, is_more: bool },
}

/// What a driver must do for a shard.
pub enum Effect {
    Report(Report),
    Parcel {
        to: WorkerId,
        parcel: Parcel,
    },
    /// Hand the connection to another worker; the shard here has forgotten it.
    MoveStream {
        stream: StreamId,
        to: WorkerId,
        cargo: Box<StreamCargo>,
    },
    CloseStream {
        stream: StreamId,
    },
    /// Bind a socket for an allocation, and tell by `Shard::relay_opened` what became of it.
    OpenRelay {
        allocation: AllocationId,
        at: RelayedAddr,
    },
    CloseRelay {
        allocation: AllocationId,
        family: Family,
    },
}
