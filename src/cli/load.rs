//! `postern load`: simulated participants, for any server that speaks the LiveKit protocol, and for any TURN server.

use super::credentials::Credentials;
use clap::builder::RangedU64ValueParser;
use postern::control::auth::Keys;
use postern::load::{Direction, Login, Path, Plan, RelayPlan, Rooms, Sending, TurnPeer, Watch, relay_url, run, run_relay};
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
    /// How long each room lasts once everybody's media is connected, seconds.
    #[arg(long, default_value_t = 30.0)]
    duration: f64,
    /// How long is waited before that, until joining has died away, seconds.
    #[arg(long, default_value_t = 0.0)]
    settle: f64,
    /// Participants, or allocations, that come in a second.
    #[arg(long, default_value_t = 50.0)]
    join_rate: f64,
    /// The server's process, whose use of processor and memory is told.
    #[arg(long)]
    pid: Option<u32>,
    /// The report as JSON.
    #[arg(long)]
    json: bool,
    /// The report as a page with plots, in this file.
    #[arg(long)]
    html: Option<PathBuf>,
    #[command(flatten)]
    rooms: RoomArgs,
    #[command(flatten)]
    turn: TurnArgs,
    #[command(flatten)]
    credentials: Credentials,
}

#[derive(clap::Args)]
#[command(next_help_heading = "Rooms")]
struct RoomArgs {
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
    /// Layers of each picture, 0 to 3; 0 sends sound alone.
    #[arg(long, default_value_t = 3, value_parser = RangedU64ValueParser::<u8>::new().range(0..=3))]
    layers: u8,
    /// Bits a second of the best layer.
    #[arg(long, default_value_t = 1_500_000)]
    video_bitrate: u32,
    /// Pictures a second.
    #[arg(long, default_value_t = 30, value_parser = RangedU64ValueParser::<u32>::new().range(1..=1_000))]
    fps: u32,
    /// No sound.
    #[arg(long)]
    no_audio: bool,
    /// Ways to the server and their shares: udp, tcp, turn-udp, turn-tcp, turn-tls; as `udp`, or `udp=7,turn-tls=3`.
    #[arg(long, default_value = "udp", value_parser = paths)]
    path: Paths,
    /// Received packets that are thrown away, per cent: they are asked for again, as browsers do.
    #[arg(long, default_value_t = 0.0)]
    loss: f64,
    /// What rooms are called, before their number.
    #[arg(long, default_value = "load-")]
    room_prefix: String,
}

#[derive(clap::Args)]
#[command(next_help_heading = "TURN alone")]
struct TurnArgs {
    /// A TURN server, as `turn:host:port?transport=udp` or `tcp`, or `turns:host:port`: allocations and packets through them instead of rooms.
    #[arg(long)]
    turn: Option<String>,
    #[arg(long, default_value = "", requires = "turn")]
    turn_user: String,
    #[arg(long, default_value = "", requires = "turn")]
    turn_password: String,
    /// A secret shared with the server, from which user and password for a day are made.
    #[arg(long, requires = "turn", conflicts_with_all = ["turn_user", "turn_password"])]
    turn_secret: Option<String>,
    #[arg(long, default_value_t = 32, requires = "turn")]
    allocations: u32,
    /// Where packets go: `own`, a socket of this tool's, or an address that does not answer.
    #[arg(long, default_value = "own", requires = "turn", value_parser = peer)]
    turn_peer: TurnPeer,
    /// Which way they go: client to peer, peer to client, both, or none at all.
    #[arg(long, default_value = "up", requires = "turn")]
    direction: Direction,
    /// Packets a second in each direction, of all allocations together.
    #[arg(long, default_value_t = 10_000.0, requires = "turn")]
    packet_rate: f64,
    /// Packets of one allocation that leave together.
    #[arg(long, default_value_t = 1, requires = "turn", value_parser = RangedU64ValueParser::<u32>::new().range(1..=32))]
    run_length: u32,
    /// Payload of each, bytes.
    #[arg(long, default_value_t = 1_200, requires = "turn", value_parser = RangedU64ValueParser::<usize>::new().range(16..=1_400))]
    packet_size: usize,
}

/// A mix of paths. A type of its own: clap takes a bare `Vec` for an option that may be given several times.
type Paths = std::sync::Arc<[(Path, u32)]>;

fn paths(text: &str) -> Result<Paths, String> {
    let share = |part: &str| {
        let (name, share) = part.split_once('=').unwrap_or((part, "1"));
        let path = Path::ALL.into_iter().find(|p| p.name() == name.trim());
        let path = path.ok_or_else(|| format!("{name}: accepted are {}", Path::ALL.map(Path::name).join(", ")))?;
        let share = share.trim().parse().ok().filter(|n| *n > 0).ok_or_else(|| format!("{share}: a share is a number from 1 on"))?;
        Ok((path, share))
    };
    text.split(',').map(share).collect()
}

fn peer(text: &str) -> Result<TurnPeer, String> {
    match text {
        "own" => Ok(TurnPeer::Own),
        address => address.parse().map(TurnPeer::At).map_err(|_| "write own, or an address and port as 192.0.2.1:443".into()),
    }
}

pub fn execute(args: &Args) -> Result<(), String> {
    let is_time = |seconds: f64| (0.0..=1e6).contains(&seconds);
    if !(args.duration > 0.0 && is_time(args.duration) && args.join_rate > 0.0) {
        return Err("--duration and --join-rate are more than 0".into());
    }
    if !is_time(args.settle) {
        return Err("--settle is a number of seconds, from 0 on".into());
    }
    match &args.turn.turn {
        Some(url) => relay(args, url),
        None => rooms(args),
    }
}

fn rooms(args: &Args) -> Result<(), String> {
    let RoomArgs { rooms, calls, publishers, subscribers, layers, loss, .. } = args.rooms;
    let keys = args.credentials.keys()?;
    if publishers + subscribers == 0 || rooms == 0 {
        return Err("somebody has to come: --rooms, and --publishers or --subscribers, from 1 on".into());
    }
    if !(0.0..100.0).contains(&loss) {
        return Err(format!("--loss {loss}: accepted is 0 to less than 100, per cent"));
    }
    let plan = Plan {
        url: args.url.clone(),
        address: args.address,
        authority: args.ca_file.clone(),
        rooms: Rooms {
            calls: calls.unwrap_or(rooms),
            at_once: rooms,
            publishers,
            subscribers,
            lasts: Duration::from_secs_f64(args.duration),
            settles: Duration::from_secs_f64(args.settle),
            joins_a_second: args.join_rate,
            prefix: args.rooms.room_prefix.clone(),
        },
        media: Sending { audio: !args.rooms.no_audio, layers, bitrate_bps: args.rooms.video_bitrate, frames_per_second: args.rooms.fps },
        paths: args.rooms.path.to_vec(),
        loss: loss / 100.0,
        pid: args.pid,
    };
    let report = run(&plan, &Keys::new(&keys), &Watch::default(), &mut |line| eprintln!("{line}"))?;
    if let Some(file) = &args.html {
        let title = format!("postern load: {rooms} rooms of {publishers} who send and {subscribers} who listen, {}", args.url);
        std::fs::write(file, report.html(&title)).map_err(|e| format!("{}: {e}", file.display()))?;
    }
    if args.json {
        println!("{:#}", report.json());
    } else {
        print!("{}", report.text());
    }
    if report.has_failed() { Err("not everybody got what was sent to them".into()) } else { Ok(()) }
}

fn relay(args: &Args, url: &str) -> Result<(), String> {
    let turn = &args.turn;
    if turn.allocations == 0 || !(0.01..=1e8).contains(&turn.packet_rate) {
        return Err("--allocations is 1 or more, --packet-rate 0.01 or more".into());
    }
    if relay_url(url).is_none() {
        return Err(format!("--turn {url}: write turn:host:port?transport=udp, turn:host:port?transport=tcp or turns:host:port"));
    }
    if args.html.is_some() {
        return Err("--html is for rooms; with --turn, take --json".into());
    }
    let plan = RelayPlan {
        url: url.to_owned(),
        address: args.address,
        authority: args.ca_file.clone(),
        login: match &turn.turn_secret {
            Some(secret) => Login::time_limited(secret),
            None => Login { username: turn.turn_user.clone(), password: turn.turn_password.clone() },
        },
        allocations: turn.allocations,
        allocations_a_second: args.join_rate,
        peer: turn.turn_peer,
        direction: turn.direction,
        packets_a_second: turn.packet_rate,
        run: turn.run_length,
        payload_len: turn.packet_size,
        lasts: Duration::from_secs_f64(args.duration),
        pid: args.pid,
    };
    let report = run_relay(&plan, &Watch::default(), &mut |line| eprintln!("{line}"))?;
    if args.json {
        println!("{:#}", report.json());
    } else {
        print!("{}", report.text());
    }
    if report.has_failed() { Err("not every allocation was made, or nothing came through".into()) } else { Ok(()) }
}
