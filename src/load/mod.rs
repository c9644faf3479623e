//! Floor 6: simulated participants in any number, for any server that speaks the LiveKit protocol with one peer connection.
//!
//! One thread holds them all: a socket, a batch, one turn after the other, as a worker does. Each participant is a real client:
//! signalling over a WebSocket, ICE with checks of its own, DTLS, SRTP. Nothing here knows the server's sessions or rooms.
//!
//! ```text
//! signal      a task each: joins, offers, leaves       --News-->  stage
//! stage       rooms that begin and end, who is in them, what was measured
//! peer        ICE, DTLS and SRTP of one participant, as a value
//! camera      what it sends: Opus, VP8 in up to three layers, with the moment of sending in each packet
//! ear         what it receives: continuity, and how long each packet took
//! ```

mod camera;
mod ear;
mod offer;
mod peer;
mod report;
mod signal;
mod stage;

pub use report::Report;

use crate::control::auth::Keys;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// What is to be simulated.
#[derive(Clone, Debug)]
pub struct Plan {
    /// `ws://` or `wss://`, with the name or address of the server.
    pub url: String,
    /// Where that is, when its name does not say.
    pub address: Option<SocketAddr>,
    /// An authority that is trusted besides the public ones.
    pub authority: Option<PathBuf>,
    pub rooms: Rooms,
    pub media: Sending,
    /// A process whose use of processor and memory is told.
    pub pid: Option<u32>,
}

/// Who comes when, and for how long.
#[derive(Clone, Debug)]
pub struct Rooms {
    /// Rooms in all, and at a time.
    pub calls: u32,
    pub at_once: u32,
    pub publishers: u32,
    pub subscribers: u32,
    /// How long each room lasts, from its first participant on.
    pub lasts: Duration,
    /// Participants that come in a second.
    pub joins_a_second: f64,
    pub prefix: String,
}

/// What each publisher sends.
#[derive(Clone, Copy, Debug)]
pub struct Sending {
    pub audio: bool,
    /// Layers of the picture, 0 to 3, and the bitrate of the best, bits a second.
    pub layers: u8,
    pub bitrate_bps: u32,
}

impl Sending {
    /// Tracks of one publisher.
    fn tracks(self) -> usize {
        usize::from(self.audio) + usize::from(self.layers > 0)
    }
}

/// Runs the plan to its end; `progress` is told a line each second.
pub fn run(plan: &Plan, keys: &Keys, progress: &mut dyn FnMut(&str)) -> Result<Report, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| format!("runtime: {e}"))?;
    runtime.block_on(stage::run(plan, keys, progress))
}
