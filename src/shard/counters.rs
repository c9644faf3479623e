//! What a shard counts: one writer, read by whoever scrapes. Every drop has its name here.

use crate::engine::ice::IceDrop;
use crate::engine::srtp::SrtpError;
use crate::engine::turn::{Refusal, TurnDrop};
use crate::session::SessionDrop;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

macro_rules! counters {
    ($($(#[$doc:meta])* $variant:ident $family:literal $label:literal),* $(,)?) => {
        /// One number of a shard.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Counter {
            $($(#[$doc])* $variant),*
        }

        impl Counter {
            pub const ALL: &[Counter] = &[$(Counter::$variant),*];

            /// Metric family, without the `postern_` before and the `_total` after it.
            pub fn family(self) -> &'static str {
                match self { $(Counter::$variant => $family),* }
            }

            /// Value of the family's label; empty when it has none.
            pub fn label(self) -> &'static str {
                match self { $(Counter::$variant => $label),* }
            }
        }
    };
}

counters! {
    /// Datagrams from UDP sockets, redirected ones not counted again.
    DatagramsIn "datagrams_received" "",
    /// What they came from the kernel in: several of one length may be one message.
    MessagesIn "udp_messages_received" "",
    /// Frames from TCP and TLS connections.
    FramesIn "stream_frames_received" "",
    DatagramsOut "datagrams_sent" "",
    /// What they were handed to the kernel in: several of one length are one message.
    MessagesOut "udp_messages_sent" "",
    FramesOut "stream_frames_sent" "",
    /// Datagrams and frames that got a STUN or TURN answer, or were taken by a handshake or a data channel.
    Answered "packets_consumed" "answered",
    /// Media and feedback that a session took.
    MediaIn "packets_consumed" "media",
    /// Given to the worker that owns them.
    Redirected "packets_consumed" "redirected",
    /// Relayed for a client: to a peer, to another allocation, or from there.
    Relayed "packets_consumed" "relayed",
    /// Held or swallowed by an engine without an answer: handshake fragments, indications that only deliver.
    Absorbed "packets_consumed" "absorbed",
    /// Media packets written for a hearer.
    Forwarded "media_packets_forwarded" "",
    /// RTP with its headers: what was unprotected, repaired packets too; and what was protected, without what is sent again.
    MediaBytesIn "media_bytes" "in",
    MediaBytesOut "media_bytes" "out",
    /// Payloads that came through our own relay to the SFU by a function call.
    RelayedIn "relay_packets_in_process" "in",
    RelayedOut "relay_packets_in_process" "out",
    /// Payloads to and from peers through relays' own sockets, and from one allocation to another.
    RelayedToPeer "relay_packets" "to_peer",
    RelayedFromPeer "relay_packets" "from_peer",
    RelayedBetween "relay_packets" "between_allocations",
    /// Checks sent on without noting their tuple.
    RedirectTableFull "redirect_table_full" "",
    KeyFramesAsked "key_frame_requests" "",
    /// Why: a hearer's stream starts or changes its layer; a hearer lost the picture; the publisher did not repair a loss.
    KeyFrameStart "key_frame_causes" "stream_start",
    KeyFrameHearer "key_frame_causes" "picture_lost",
    KeyFrameRepair "key_frame_causes" "repair_failed",
    KeyFrameThinned "key_frame_causes" "path_was_behind",
    /// Packets of pictures that were left out because a connection was behind.
    ThinnedPackets "thinned_packets" "",
    /// Media packets given to another worker that has hearers of them.
    RingMedia "ring_media_packets" "",
    /// Of those, what a full ring did not take.
    RingDropEnhancement "ring_media_drops" "enhancement",
    RingDropFrame "ring_media_drops" "frame",
    RingDropSound "ring_media_drops" "sound",
    /// Packets asked for again from publishers.
    Nacked "nacks_sent" "",
    /// Packets sent to hearers under transport-wide numbers, as they told.
    FeedbackReceived "transport_feedback_packets" "received",
    FeedbackLost "transport_feedback_packets" "lost",
    /// Lost packets of sound that came again as redundancy of later ones.
    Recovered "redundancy_recovered_packets" "",
    /// Packets sent again to hearers that missed them.
    Resent "retransmissions" "sent",
    /// On its way already, too old, or never sent.
    ResendRefused "retransmissions" "refused",
    /// Asked for when the store had lost it.
    ResendNotStored "retransmissions" "not_stored",
    /// More than its share of the path.
    ResendCapped "retransmissions" "rate_capped",
    /// Packets that the memory limit kept from being kept long enough.
    StoreFull "packet_store_full" "",
    AllocationsOpened "turn_allocations" "opened",
    AllocationsClosed "turn_allocations" "closed",
    AllocationsMoved "turn_allocations" "moved",
    StreamsMoved "streams_moved" "",
    DataMessages "data_messages_forwarded" "",
    SessionsOpened "sessions" "opened",
    SessionsClosed "sessions" "closed",
    /// Ended because working for them panicked.
    SessionsPanicked "sessions" "panicked",

    RefusedConnectionsFull "connection_refusals" "connections_per_worker",
    RefusedPerAddress "connection_refusals" "connections_per_address",
    RefusedHalfOpen "connection_refusals" "half_open_per_address",
    /// The system lends us no more files: connections wait, and the next try is a second later.
    RefusedNoFiles "connection_refusals" "out_of_files",
    RefusedHttpBusy "connection_refusals" "http_busy",
    ClosedSlowOpening "connection_refusals" "slow_opening",
    ClosedUnknownOpening "connection_refusals" "unknown_opening",
    ClosedProxy "connection_refusals" "proxy_header",
    ClosedTls "connection_refusals" "tls_failed",
    ClosedUnused "connection_refusals" "unused",
    ClosedSlowFrame "connection_refusals" "slow_frame",
    ClosedFraming "connection_refusals" "framing_lost",

    RefusedTryAlternate "turn_refusals" "300_try_alternate",
    RefusedBadRequest "turn_refusals" "400_bad_request",
    RefusedUnauthenticated "turn_refusals" "401_unauthenticated",
    RefusedPeerForbidden "turn_refusals" "403_peer_forbidden",
    RefusedBinding "turn_refusals" "403_binding_over_tcp",
    RefusedUnknownAttribute "turn_refusals" "420_unknown_attribute",
    RefusedNoAllocation "turn_refusals" "437_allocation_mismatch",
    RefusedStaleNonce "turn_refusals" "438_stale_nonce",
    RefusedFamilyUnsupported "turn_refusals" "440_family_unsupported",
    RefusedWrongCredentials "turn_refusals" "441_wrong_credentials",
    RefusedTransport "turn_refusals" "442_transport_unsupported",
    RefusedFamilyMismatch "turn_refusals" "443_family_mismatch",
    RefusedQuota "turn_refusals" "486_quota_reached",
    RefusedSourceQuota "turn_refusals" "486_address_quota_reached",
    RefusedCapacity "turn_refusals" "508_capacity_reached",
    RefusedNoPort "turn_refusals" "508_no_port",
    RefusedPermissions "turn_refusals" "508_too_many_permissions",
    RefusedChannels "turn_refusals" "508_too_many_channels",
    RefusedNoSocket "turn_refusals" "508_no_socket",
    RefusedDraining "turn_refusals" "508_draining",

    DropUnknownKind "drops" "unknown_kind",
    DropQuic "drops" "quic_not_enabled",
    DropMalformedStun "drops" "malformed_stun",
    DropStunMethod "drops" "unknown_stun_method",
    DropFingerprint "drops" "bad_stun_fingerprint",
    DropNotARequest "drops" "stun_not_a_request",
    DropTurnOnMediaPort "drops" "stun_without_ufrag_on_media_port",
    DropUnknownUfrag "drops" "unknown_ufrag",
    DropUnknownTuple "drops" "unknown_tuple",
    DropUncheckedPath "drops" "unchecked_path",
    DropIceUnauthentic "drops" "ice_unauthentic",
    DropIceRefused "drops" "ice_refused",
    DropHeadStart "drops" "relay_head_start",
    DropRingFull "drops" "ring_full",
    DropBeforeKeys "drops" "srtp_before_keys",
    DropSrtpMalformed "drops" "srtp_malformed",
    DropSrtpReplayed "drops" "srtp_replayed",
    DropSrtpUnauthentic "drops" "srtp_unauthentic",
    DropSrtpSources "drops" "srtp_too_many_sources",
    DropUnknownSource "drops" "rtp_unknown_source",
    DropMalformedRtp "drops" "rtp_malformed",
    DropDuplicateRtp "drops" "rtp_duplicate",
    DropOldRtp "drops" "rtp_too_old",
    DropTurnMalformed "drops" "turn_malformed",
    DropTurnNoAllocation "drops" "turn_no_allocation",
    DropTurnNoPermission "drops" "turn_no_permission",
    DropTurnUnbound "drops" "turn_channel_unbound",
    DropTurnPeer "drops" "turn_peer_not_sfu",
    /// Our own address at a port that is nobody's relay, or that we listen on.
    DropTurnPeerOwn "drops" "turn_peer_is_this_server",
    DropTurnRationed "drops" "turn_stranger_rationed",
    DropTurnGuessRationed "drops" "turn_wrong_password_rationed",
    DropTurnNoSocket "drops" "turn_socket_not_open",
    DropTurnTooFast "drops" "turn_over_bandwidth",
    /// Credentials of one participant, the session of another.
    DropRelayOfAnother "drops" "relay_of_another_participant",
    DropRelayNoRoute "drops" "relay_no_route",
    DropRelayMovedTwice "drops" "relay_owner_changed_again",
    DropTooLong "drops" "packet_too_long",
    DropNoSource "drops" "source_unanswerable",
    DropStreamQueue "drops" "stream_queue_full",
    DropUnknownStream "drops" "unknown_stream",
    DropSilenced "drops" "silenced_track",
    DropDataMalformed "drops" "data_malformed",
    DropDataForbidden "drops" "data_forbidden",
    /// Of a participant that has dropped out.
    DropDataAbsent "drops" "data_absent",
    DropDataQueue "drops" "data_queue_full",
    /// A reliable message that came before, sent again after a resume.
    DropDataRepeated "drops" "data_repeated",
    /// For a participant who has no channel, and has not just arrived.
    DropDataNoChannel "drops" "data_no_channel",
    /// Of a data track that nobody subscribes to, or that was not published.
    DropDataTrackUnknown "drops" "data_track_unknown",
    /// Working on it panicked; its session was ended.
    DropSessionPanicked "drops" "session_panicked",
    DropSendFailed "drops" "udp_send_failed",
}

/// One shard's numbers. Written by its worker alone, so a plain load and store is enough.
#[derive(Clone)]
pub struct Counters(Arc<[AtomicU64]>);

impl Default for Counters {
    fn default() -> Self {
        Self(Counter::ALL.iter().map(|_| AtomicU64::new(0)).collect())
    }
}

impl Counters {
    pub fn add(&self, counter: Counter, n: u64) {
        let cell = &self.0[counter as usize];
        cell.store(cell.load(Relaxed) + n, Relaxed);
    }

    pub fn count(&self, counter: Counter) {
        self.add(counter, 1);
    }

    pub fn get(&self, counter: Counter) -> u64 {
        self.0[counter as usize].load(Relaxed)
    }

    /// Sum of a family, or of one label of it.
    pub fn sum(&self, family: &str) -> u64 {
        Counter::ALL.iter().filter(|c| c.family() == family).map(|c| self.get(*c)).sum()
    }
}

impl From<SessionDrop> for Counter {
    fn from(drop: SessionDrop) -> Self {
        match drop {
            SessionDrop::Ice(IceDrop::NotForUs) => Self::DropUnknownUfrag,
            SessionDrop::Ice(IceDrop::Unauthentic) => Self::DropIceUnauthentic,
            SessionDrop::Ice(IceDrop::Refused) => Self::DropIceRefused,
            SessionDrop::Ice(IceDrop::HeadStart) => Self::DropHeadStart,
            SessionDrop::BeforeKeys => Self::DropBeforeKeys,
            SessionDrop::Srtp(SrtpError::Malformed) => Self::DropSrtpMalformed,
            SessionDrop::Srtp(SrtpError::Replayed) => Self::DropSrtpReplayed,
            SessionDrop::Srtp(SrtpError::Unauthentic) => Self::DropSrtpUnauthentic,
            SessionDrop::Srtp(SrtpError::TooManySources) => Self::DropSrtpSources,
            SessionDrop::UnknownSource => Self::DropUnknownSource,
            SessionDrop::MalformedRtp => Self::DropMalformedRtp,
            SessionDrop::Duplicate => Self::DropDuplicateRtp,
            SessionDrop::TooOld => Self::DropOldRtp,
            SessionDrop::UncheckedPath => Self::DropUncheckedPath,
        }
    }
}

impl From<TurnDrop> for Counter {
    fn from(drop: TurnDrop) -> Self {
        match drop {
            TurnDrop::Malformed => Self::DropTurnMalformed,
            TurnDrop::UnknownMethod => Self::DropStunMethod,
            TurnDrop::BadFingerprint => Self::DropFingerprint,
            TurnDrop::NotARequest => Self::DropNotARequest,
            TurnDrop::NoAllocation => Self::DropTurnNoAllocation,
            TurnDrop::NoPermission => Self::DropTurnNoPermission,
            TurnDrop::ChannelUnbound => Self::DropTurnUnbound,
            TurnDrop::PeerNotSfu => Self::DropTurnPeer,
            TurnDrop::PeerIsOwn => Self::DropTurnPeerOwn,
            TurnDrop::Rationed => Self::DropTurnRationed,
            TurnDrop::GuessRationed => Self::DropTurnGuessRationed,
            TurnDrop::NoSocket => Self::DropTurnNoSocket,
            TurnDrop::TooFast => Self::DropTurnTooFast,
        }
    }
}

impl From<Refusal> for Counter {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::TryAlternate(_) => Self::RefusedTryAlternate,
            Refusal::BadRequest => Self::RefusedBadRequest,
            Refusal::Unauthenticated => Self::RefusedUnauthenticated,
            Refusal::PeerForbidden => Self::RefusedPeerForbidden,
            Refusal::BindingForbidden => Self::RefusedBinding,
            Refusal::UnknownAttribute => Self::RefusedUnknownAttribute,
            Refusal::NoAllocation => Self::RefusedNoAllocation,
            Refusal::StaleNonce => Self::RefusedStaleNonce,
            Refusal::FamilyUnsupported => Self::RefusedFamilyUnsupported,
            Refusal::WrongCredentials => Self::RefusedWrongCredentials,
            Refusal::TransportUnsupported => Self::RefusedTransport,
            Refusal::FamilyMismatch => Self::RefusedFamilyMismatch,
            Refusal::UserQuotaReached => Self::RefusedQuota,
            Refusal::SourceQuotaReached => Self::RefusedSourceQuota,
            Refusal::CapacityReached => Self::RefusedCapacity,
            Refusal::NoPort => Self::RefusedNoPort,
            Refusal::TooManyPermissions => Self::RefusedPermissions,
            Refusal::TooManyChannels => Self::RefusedChannels,
            Refusal::NoSocket => Self::RefusedNoSocket,
            Refusal::Draining => Self::RefusedDraining,
        }
    }
}
