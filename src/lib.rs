//! Postern: a STUN server, a TURN relay and an SFU in one process.
//!
//! # The house
//!
//! Imports go downward only; rooms of one floor do not import each other. `tests/tidy.rs` holds every path to it.
//!
//! ```text
//!  6  main.rs, cli | load    commands | simulated participants, for any server
//!  5  io  | sim | control    two drivers of a shard; the control plane stands beside and speaks by mail
//!  4  shard             one core's share of the server: who owns this packet, timers, egress, mail
//!  3  session | room    one participant's transport | who hears whom
//!  2  engine            one protocol a file: ice, turn, dtls, srtp, sctp, rtp in and out
//!  1  wire | crypto     bytes <-> values | keyed maths
//!  0  base | config     time, ids, buffers, dice | checked settings
//! ```
//!
//! Nothing at or below [`shard`] awaits, locks, reads a clock or draws ambient chance: a [`shard::Shard`] is a function of its
//! config, its seed and its inputs. Whoever drives it says what time it is.
//!
//! # A packet's way
//!
//! A browser's video packet, sent straight to UDP 443:
//!
//! 1. `io/udp.rs` takes it from the kernel in a batch, with the address it was sent to, into a [`base::buf::PacketBuf`];
//!    `Worker::udp_turn` in `io/mod.rs` gives the batch one `now` and calls [`shard::Shard::handle_datagram`].
//! 2. `Shard::datagram` looks at what the port speaks. On the media port `Shard::media` asks [`wire::demux`] for its kind. STUN goes
//!    by its ufrag before any look-up of tuples; the rest by its tuple in [`shard::table`]. If another worker owns it, it crosses
//!    the ring as a [`shard::mail::Parcel`] and enters that worker at this very point.
//! 3. `Shard::rtp` hands it to the owner's [`session::Session::handle_rtp`], where [`engine::srtp`] decrypts it in place,
//!    [`engine::rtp_in`] takes note of it and of what is missing, and the codec's descriptor tells whether it starts a key
//!    frame. It comes back as [`session::Media`] and waits, in its buffer, for the end of the turn.
//! 4. `Shard::fan_out` asks [`room::Room::route`] who hears it and in which layer ([`room::layers`]), and which other workers do:
//!    those get it once, over their ring, and go on from here. Then it goes hearer by hearer, and last into `shard/store.rs`.
//! 5. For each hearer `Shard::forward` opens a slot in [`shard::egress`], dressed for that hearer's route, and
//!    [`session::Session::forward`] writes into it: numbers by [`engine::rtp_out`], extension ids of this hearer, encrypted by
//!    its own keys.
//! 6. At the end of the turn `Worker::flush` sends all datagrams by `sendmmsg`, neighbours of one length as one message; frames for TCP and TLS wait in their
//!    connection's queue ([`session::path::FrameQueue`]) in plaintext until that connection takes them.
//!
//! A relayed packet comes in one step earlier: `Shard::turn_message` gives it to [`engine::turn`], which answers with a delivery to
//! the SFU's own address; that re-enters `Shard::media` as [`base::id::PathId::Relayed`], in the same turn, by a function call. No
//! socket, no port, no second trip through the kernel. The first check that names another worker's session takes the allocation,
//! and over TCP or TLS its connection, to that worker for good.
//!
//! A connection's first bytes are told apart in `io/stream.rs`; what speaks HTTP goes to [`control`] as it is. The control plane
//! answers offers with the pure [`session::negotiate`], and tells a shard the outcome as a [`session::negotiate::Plan`].

pub mod base;
pub mod config;

pub mod crypto;
pub mod wire;

pub mod engine;

pub mod room;
pub mod session;

pub mod shard;

pub mod control;
pub mod io;
#[cfg(feature = "sim")]
pub mod sim;

pub mod load;
