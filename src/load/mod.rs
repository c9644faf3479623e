//! Floor 6: simulated participants in any number, for any server that speaks the LiveKit protocol with one peer connection,
//! and simulated users of any TURN server.
//!
//! One thread holds them all: a socket, a batch, one turn after the other, as a worker does. Each participant is a real client:
//! signalling over a WebSocket, ICE with checks of its own, DTLS, SRTP, reports. Nothing here knows the server's sessions or rooms.
//!
//! ```text
//! signal      a task each: joins, offers, leaves       --News-->  stage
//! stream      a task each: the TCP or TLS connection   --Bytes->  stage
//! stage       rooms that begin and end, who is in them, what was measured
//! sockets     UDP, shared on loopback; runs leave as one message
//! way         how a participant's datagrams travel: bare, framed, through an allocation (turn)
//! peer        ICE, DTLS and SRTP of one participant, as a value
//! camera      what it sends: Opus, VP8 in up to three layers, with the moment of sending in each packet
//! ear         what it receives: continuity, how long each packet took, what it reports and asks for again
//! relay       allocations alone, without a room: client to peer and back
//! report      what a run came to; page: the same with plots
//! ```

mod agenda;
mod camera;
mod ear;
mod offer;
mod page;
mod peer;
mod relay;
mod report;
mod signal;
mod sockets;
mod stage;
mod stream;
mod turn;
mod usage;
mod way;

pub use ear::Spread;
pub use relay::{Direction, RelayPlan, RelayReport, TurnPeer, run as run_relay};
pub use report::{Report, Window};
pub use signal::{relay_url, strangers};
pub use turn::Login;
pub use usage::Usage;

use crate::control::auth::Keys;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
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
    /// Paths and their shares; participants take them in turn.
    pub paths: Vec<(Path, u32)>,
    /// Share of received media packets that are thrown away, 0 to 1.
    pub loss: f64,
    /// A process whose use of processor and memory is told.
    pub pid: Option<u32>,
}

/// How a participant's packets reach the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Path {
    Udp,
    /// ICE-TCP (RFC 6544) to a passive candidate.
    Tcp,
    TurnUdp,
    TurnTcp,
    TurnTls,
}

impl Path {
    pub const ALL: [Path; 5] = [Path::Udp, Path::Tcp, Path::TurnUdp, Path::TurnTcp, Path::TurnTls];

    pub fn name(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
            Self::TurnUdp => "turn-udp",
            Self::TurnTcp => "turn-tcp",
            Self::TurnTls => "turn-tls",
        }
    }
}

/// Who comes when, and for how long.
#[derive(Clone, Debug)]
pub struct Rooms {
    /// Rooms in all, and at a time.
    pub calls: u32,
    pub at_once: u32,
    pub publishers: u32,
    pub subscribers: u32,
    /// How long each room lasts once everybody's media is connected, and has settled for so long: that is not measured.
    pub lasts: Duration,
    pub settles: Duration,
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
    pub frames_per_second: u32,
}

impl Sending {
    /// Tracks of one publisher.
    fn tracks(self) -> usize {
        usize::from(self.audio) + usize::from(self.layers > 0)
    }
}

/// What a run tells while it goes on, and what it is told.
#[derive(Debug, Default)]
pub struct Watch {
    pub live: AtomicU64,
    pub sent: AtomicU64,
    pub received: AtomicU64,
    pub failed: AtomicU64,
    /// How long the packets took that came since whoever watches has emptied it.
    latency: Mutex<Spread>,
    /// Nobody sends media while this is set.
    pub is_paused: AtomicBool,
    /// The run ends at once.
    pub is_over: AtomicBool,
}

impl Watch {
    fn is_paused(&self) -> bool {
        self.is_paused.load(Ordering::Relaxed)
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    fn took(&self, time: Duration) {
        self.latency.lock().unwrap_or_else(PoisonError::into_inner).add(time);
    }

    pub fn take_latency(&self) -> Spread {
        std::mem::take(&mut *self.latency.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Runs the plan to its end; `progress` is told a line each second.
pub fn run(plan: &Plan, keys: &Keys, watch: &Watch, progress: &mut dyn FnMut(&str)) -> Result<Report, String> {
    runtime()?.block_on(stage::run(plan, keys, watch, progress))
}

fn runtime() -> Result<tokio::runtime::Runtime, String> {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| format!("runtime: {e}"))
}
