//! `postern load`: simulated participants, for any server that speaks the LiveKit protocol.

use super::credentials::Credentials;
use clap::builder::RangedU64ValueParser;
use postern::control::auth::Keys;
use postern::load::{Plan, Rooms, Sending, run};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

#[derive(clap::Args)]
pub struct Args {
    /// The server, as apps name it.
    #[arg(long, default_value = "ws://127.0.0.1:7880")]
    url: String,
    /// Where it is, when its name does not say: address and port.
    #[arg(long)]
    address: Option<SocketAddr>,
    /// A PEM file with the authority that signed its certificate, besides the public ones.
    #[arg(long)]
    ca_file: Option<PathBuf>,
    /// Rooms at a time.
    #[arg(long, default_value_t = 1)]
    rooms: u32,
    /// Rooms in all, one after the other; as many as at a time, if not given.
    #[arg(long)]
    calls: Option<u32>,
    /// Participants of each room that send, and that only receive. All receive.
    #[arg(long, default_value_t = 2)]
    publishers: u32,
    #[arg(long, default_value_t = 0)]
    subscribers: u32,
    /// How long each room lasts once all have come, seconds.
    #[arg(long, default_value_t = 30.0)]
    duration: f64,
    /// Participants that come in a second.
    #[arg(long, default_value_t = 50.0)]
    join_rate: f64,
    /// Layers of each picture, 0 to 3; 0 sends sound alone.
    #[arg(long, default_value_t = 3, value_parser = RangedU64ValueParser::<u8>::new().range(0..=3))]
    layers: u8,
    /// Bits a second of the best layer.
    #[arg(long, default_value_t = 1_500_000)]
    video_bitrate: u32,
    /// No sound.
    #[arg(long)]
    no_audio: bool,
    /// The server's process, whose use of processor and memory is told.
    #[arg(long)]
    pid: Option<u32>,
    /// The report as JSON.
    #[arg(long)]
    json: bool,
    /// What rooms are called, before their number.
    #[arg(long, default_value = "load-")]
    room_prefix: String,
    #[command(flatten)]
    credentials: Credentials,
}

pub fn execute(args: &Args) -> Result<(), String> {
    let keys = args.credentials.keys()?;
    if args.publishers + args.subscribers == 0 || args.rooms == 0 {
        return Err("somebody has to come: --rooms, and --publishers or --subscribers, from 1 on".into());
    }
    if !(args.duration > 0.0 && args.duration.is_finite() && args.join_rate > 0.0) {
        return Err("--duration and --join-rate are more than 0".into());
    }
    let plan = Plan {
        url: args.url.clone(),
        address: args.address,
        authority: args.ca_file.clone(),
        rooms: Rooms {
            calls: args.calls.unwrap_or(args.rooms),
            at_once: args.rooms,
            publishers: args.publishers,
            subscribers: args.subscribers,
            lasts: Duration::from_secs_f64(args.duration),
            joins_a_second: args.join_rate,
            prefix: args.room_prefix.clone(),
        },
        media: Sending { audio: !args.no_audio, layers: args.layers, bitrate_bps: args.video_bitrate },
        pid: args.pid,
    };
    let report = run(&plan, &Keys::new(&keys), &mut |line| eprintln!("{line}"))?;
    if args.json {
        println!("{:#}", report.json());
    } else {
        print!("{}", report.text());
    }
    if report.has_failed() { Err("not everybody got what was sent to them".into()) } else { Ok(()) }
}
