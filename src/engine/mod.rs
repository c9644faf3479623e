//! Floor 2: one protocol a file. Every engine has the same verbs: `handle` takes an input, `wake` does what is due,
//! `deadline` says when to wake and why. Effects go into a sink that the caller passes; nobody calls upward.

pub mod dtls;
pub mod flood;
pub mod ice;
pub mod peer_policy;
pub mod relay_ports;
pub mod relay_table;
pub mod renumber;
pub mod rtp_in;
pub mod rtp_out;
pub mod sctp;
pub mod sent;
pub mod srtp;
pub mod turn;
pub mod turn_auth;
