//! Rows of the SFU: fan-out, calls through relays, memory, latency.

use super::Context;
use super::floor::{Floor, Source, Work};
use super::host::{anonymous_bytes, pin, until};
use super::net::Place;
use super::peers::LiveKit;
use super::server::{SECRET, Server};
use super::summary::Row;
use postern::control::auth::Keys;
use postern::load::{self, Path, Plan, Report, Rooms, Sending, Watch};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::JoinHandle;
use std::time::Duration;

/// Pairs of windows of each row in a pass: ours, then the floor.
pub const PAIRS: usize = 3;
pub const WINDOW: Duration = Duration::from_secs(1);
/// Before a window, and behind it until what is under way has come.
pub const SETTLE: Duration = Duration::from_millis(300);
pub const PAUSE: Duration = Duration::from_millis(100);

/// Payload of each picture's packets, and what RTP, its extensions and SRTP add.
const PAYLOAD: u32 = 1_100;
const AROUND: usize = 36;
const AUDIO_PAYLOAD: usize = 100;
/// Packets a second that a fan-out row may have.
const RATES: RangeInclusive<f64> = 35_000.0..=400_000.0;
/// Share of a core that the floor takes at that rate: the server then is busy for about half of the time. A hundred hearers of
/// single packets come nowhere near, and large runs not quite.
const FLOOR_LOAD: f64 = 0.35;

/// Who comes, to whom.
#[derive(Clone)]
pub struct Cast {
    rooms: u32,
    publishers: u32,
    subscribers: u32,
    media: Sending,
    path: Path,
    pub joins_a_second: f64,
}

pub const SILENT: Sending = Sending { audio: false, layers: 0, bitrate_bps: 0, frames_per_second: 30 };

impl Cast {
    pub fn new(rooms: u32, publishers: u32, subscribers: u32, media: Sending) -> Self {
        Self { rooms, publishers, subscribers, media, path: Path::Udp, joins_a_second: 250.0 }
    }

    pub fn people(&self) -> u64 {
        u64::from(self.rooms) * u64::from(self.publishers + self.subscribers)
    }
}

/// Simulated participants in a thread on core 1, who send nothing while they are not asked.
pub struct Crowd {
    watch: Arc<Watch>,
    /// Until it has left.
    thread: Option<JoinHandle<Result<Report, String>>>,
}

impl Drop for Crowd {
    fn drop(&mut self) {
        let _ = self.go();
    }
}

impl Crowd {
    /// Comes, and is there when this returns.
    fn come(place: &Place, url: String, authority: Option<std::path::PathBuf>, pid: u32, cast: &Cast) -> Result<Self, String> {
        let plan = Plan {
            url,
            address: None,
            authority,
            rooms: Rooms {
                calls: cast.rooms,
                at_once: cast.rooms,
                publishers: cast.publishers,
                subscribers: cast.subscribers,
                lasts: Duration::from_secs(3_600),
                settles: Duration::ZERO,
                joins_a_second: cast.joins_a_second,
                prefix: format!("bench-{}-", cast.path.name()),
            },
            media: cast.media,
            paths: vec![(cast.path, 1)],
            loss: 0.0,
            pid: Some(pid),
        };
        let watch = Arc::new(Watch::default());
        let (place, theirs) = (place.clone(), Arc::clone(&watch));
        let thread = std::thread::spawn(move || {
            pin(1)?;
            place.enter_clients()?;
            let keys = Keys::new(&BTreeMap::from([("devkey".to_owned(), SECRET.to_owned())]));
            load::run(&plan, &keys, &theirs, &mut |_| {})
        });
        let crowd = Self { watch, thread: Some(thread) };
        let within = Duration::from_secs_f64(30.0 + cast.people() as f64 / cast.joins_a_second);
        let came = until(within, "everybody is there", || {
            crowd.watch.live.load(Relaxed) == cast.people()
                || crowd.watch.failed.load(Relaxed) > 0
                || crowd.thread.as_ref().is_some_and(JoinHandle::is_finished)
        });
        let failed = crowd.watch.failed.load(Relaxed);
        if let Err(why) = came.and_then(|()| if failed > 0 { Err(format!("{failed} did not get in")) } else { Ok(()) }) {
            let report = crowd.leave();
            return Err(format!("{why}: {:?}", report.map(|r| r.failures)));
        }
        // Streams begin: key frames, first reports.
        std::thread::sleep(Duration::from_secs(1));
        crowd.watch.is_paused.store(true, Relaxed);
        Ok(crowd)
    }

    pub fn to(place: &Place, server: &Server, cast: &Cast) -> Result<Self, String> {
        Self::come(place, server.url(), Some(server.authority.clone()), server.process.pid(), cast)
    }

    /// Lets the participants send while `f` runs.
    fn sending<R>(&self, f: impl FnOnce() -> R) -> R {
        self.watch.is_paused.store(false, Relaxed);
        std::thread::sleep(SETTLE);
        let found = f();
        self.watch.is_paused.store(true, Relaxed);
        std::thread::sleep(PAUSE);
        found
    }

    /// What a call costs in its first seconds, when pictures begin and bandwidth is looked for, is not what it costs later.
    fn warm_up(&self) {
        self.sending(|| std::thread::sleep(WINDOW * 5));
    }

    /// Processor time for each packet that `count` tells, us.
    fn us_per_packet(&self, cpu_s: impl Fn() -> f64, count: impl Fn() -> u64) -> Result<f64, String> {
        let (cpu, packets) = self.sending(|| {
            let (cpu, before) = (cpu_s(), count());
            std::thread::sleep(WINDOW);
            (cpu_s() - cpu, count().saturating_sub(before))
        });
        if packets == 0 { Err("no packets come through".into()) } else { Ok(cpu * 1e6 / packets as f64) }
    }

    /// How long packets took.
    fn latency(&self, window: Duration) -> load::Spread {
        self.sending(|| {
            self.watch.take_latency();
            std::thread::sleep(window);
            self.watch.take_latency()
        })
    }

    fn received(&self) -> u64 {
        self.watch.received.load(Relaxed)
    }

    pub fn leave(mut self) -> Result<Report, String> {
        self.go()
    }

    fn go(&mut self) -> Result<Report, String> {
        self.watch.is_over.store(true, Relaxed);
        let thread = self.thread.take().ok_or("they have left")?;
        thread.join().map_err(|_| "the participants' thread panicked".to_owned())?
    }
}

/// Pictures of `run` packets to so many, as often as fits the rate.
fn pictures_at(rate: u32, hearers: u32, run: u32) -> (Sending, Source) {
    let fps = (rate / (hearers * run)).clamp(1, 250);
    let media = Sending { audio: false, layers: 1, bitrate_bps: run * PAYLOAD * 8 * fps, frames_per_second: fps };
    (media, Source { every: Duration::from_secs(1) / fps, run: run as usize, len: PAYLOAD as usize + AROUND })
}

/// The same at a rate that suits the machine: a server that has hardly any time left sleeps less, and each packet costs it less.
fn pictures(context: &Context, hearers: u32, run: u32) -> Result<(Sending, Source), String> {
    let rate = context.rate(&fan_out_name(hearers, run), || {
        let fitting = |at: f64| {
            let (_, source) = pictures_at(at as u32, hearers, run);
            let us = Floor::at_ease(Work::FanOut { hearers: hearers as usize }, vec![source])?;
            Ok::<_, String>((1e6 * FLOOR_LOAD / us).clamp(*RATES.start(), *RATES.end()))
        };
        // At the lowest rate a large picture comes seldom, and to a cold cache: the second answer is the better one.
        Ok(fitting(fitting(*RATES.start())?)? as u32)
    })?;
    Ok(pictures_at(rate, hearers, run))
}

fn fan_out_name(hearers: u32, run: u32) -> String {
    let packets = if run == 1 { "single".to_owned() } else { format!("runs of {run}") };
    format!("fan-out 1 to {hearers} {packets}")
}

pub fn fan_out(context: &Context, hearers: u32, run: u32) -> Result<Vec<Row>, String> {
    let place = Place::loopback();
    let (media, source) = pictures(context, hearers, run)?;
    let cast = Cast::new(1, 1, hearers, media);
    let server = Server::start(place.server, 1)?;
    let crowd = Crowd::to(&place, &server, &cast)?;
    let floor = Floor::start(&place, Work::FanOut { hearers: hearers as usize }, vec![source])?;
    let ours = || crowd.us_per_packet(|| server.process.cpu_s(), || crowd.received());
    let pairs = in_turns(PAIRS, ours, || floor.us_per_packet(WINDOW))?;
    let report = crowd.leave()?;
    sound(&report)?;
    let mut row = Row::of_pairs(fan_out_name(hearers, run), "us/packet", &pairs);
    row.packets_a_second = Some(media.frames_per_second * run * hearers);
    drop((floor, server));
    if context.with_peers {
        beside(&mut row, "livekit", of_livekit(&place, &cast));
    }
    Ok(vec![row])
}

/// So many pairs of windows, in turns. A virtual machine that stands still for a moment loses the floor's packets: such a pair is told
/// of and measured again; when that happens to more than a third of them, the load is too much.
pub fn in_turns<A, B>(
    count: usize,
    ours: impl Fn() -> Result<A, String>,
    floor: impl Fn() -> Result<B, String>,
) -> Result<Vec<(A, B)>, String> {
    let (mut pairs, mut bad) = (Vec::new(), 0);
    while pairs.len() < count {
        match ours().and_then(|ours| Ok((ours, floor()?))) {
            Ok(pair) => pairs.push(pair),
            Err(why) if bad < count / 3 => {
                bad += 1;
                eprintln!("  one pair more: {why}");
            }
            Err(why) => return Err(why),
        }
    }
    Ok(pairs)
}

/// A figure is of no use when somebody dropped out, or much of what it counts was lost on the way.
fn sound(report: &Report) -> Result<(), String> {
    let (lost, received) = (report.heard.lost, report.heard.received);
    match () {
        () if !report.failures.is_empty() => Err(format!("{:?}", report.failures)),
        () if lost * 100 > received => Err(format!("{lost} of {received} packets were lost")),
        () => Ok(()),
    }
}

/// What another server came to. One that does not carry the load is told of, and takes nothing from our own figure.
fn beside(row: &mut Row, peer: &str, outcome: Result<Vec<f64>, String>) {
    match outcome {
        Ok(us) => _ = row.peers.insert(peer.into(), us),
        Err(why) => eprintln!("  {peer} was not measured: {why}"),
    }
}

fn of_livekit(place: &Place, cast: &Cast) -> Result<Vec<f64>, String> {
    let server = LiveKit::start()?;
    let crowd = Crowd::come(place, server.url(), None, server.process.pid(), cast)?;
    let windows = (0..PAIRS).map(|_| crowd.us_per_packet(|| server.process.cpu_s(), || crowd.received()));
    let windows = windows.collect::<Result<_, String>>()?;
    sound(&crowd.leave()?)?;
    Ok(windows)
}

/// The same with a device behind the server that drops everything: nobody pays for receiving. The participants go on blindly.
pub fn fan_out_to_device(context: &Context, hearers: u32, run: u32) -> Result<Vec<Row>, String> {
    let (media, source) = pictures(context, hearers, run)?;
    let place = Place::device()?;
    let server = place.at_server(|| Server::start(place.server, 1))??;
    let crowd = Crowd::to(&place, &server, &Cast::new(1, 1, hearers, media))?;
    let floor = Floor::start(&place, Work::FanOut { hearers: hearers as usize }, vec![source])?;
    place.swing()?;
    floor.arrives.store(false, Relaxed);
    let sent = || place.at_server(|| server.counter("postern_datagrams_sent_total ")).unwrap_or(0);
    let pairs = in_turns(PAIRS, || crowd.us_per_packet(|| server.process.cpu_s(), sent), || floor.us_per_packet(WINDOW))?;
    let heard = floor.received();
    floor.us_per_packet(PAUSE)?;
    if floor.received() > heard {
        return Err("packets still arrive: the device does not drop them".into());
    }
    drop(server);
    crowd.leave()?;
    let mut row = Row::of_pairs(format!("{}, device", fan_out_name(hearers, run)), "us/packet", &pairs);
    row.packets_a_second = Some(media.frames_per_second * run * hearers);
    Ok(vec![row])
}

pub fn all_to_all(context: &Context) -> Result<Vec<Row>, String> {
    const PEOPLE: u32 = 50;
    const FPS: u32 = 15;
    const RUN: u32 = 3;
    let place = Place::loopback();
    let media = Sending { audio: true, layers: 3, bitrate_bps: RUN * PAYLOAD * 8 * FPS, frames_per_second: FPS };
    let cast = Cast::new(1, PEOPLE, 0, media);
    let server = Server::start(place.server, 1)?;
    let crowd = Crowd::to(&place, &server, &cast)?;
    let voice = Source { every: Duration::from_millis(20), run: 1, len: AUDIO_PAYLOAD + AROUND };
    let picture = Source { every: Duration::from_secs(1) / FPS, run: RUN as usize, len: PAYLOAD as usize + AROUND };
    let sources = (0..PEOPLE).flat_map(|_| [voice, picture]).collect();
    let floor = Floor::start(&place, Work::FanOut { hearers: PEOPLE as usize - 1 }, sources)?;
    crowd.warm_up();
    let ours = || crowd.us_per_packet(|| server.process.cpu_s(), || crowd.received());
    let pairs = in_turns(PAIRS, ours, || floor.us_per_packet(WINDOW))?;
    let report = crowd.leave()?;
    sound(&report)?;
    let mut row = Row::of_pairs("50 all to all, sound and simulcast", "us/packet", &pairs);
    drop((floor, server));
    if context.with_peers {
        beside(&mut row, "livekit", of_livekit(&place, &cast));
    }
    Ok(vec![row])
}

/// Rooms with two who send and fifty who listen, over each way through TURN; the floor is the same rooms over UDP. All are there all
/// the time, and those who are paused go on with checks and reports beside whose turn it is.
pub fn through_turn(_: &Context) -> Result<Vec<Row>, String> {
    const ROUNDS: usize = 6;
    const PATHS: [Path; 3] = [Path::TurnUdp, Path::TurnTcp, Path::TurnTls];
    let place = Place::loopback();
    let media = Sending { audio: true, layers: 1, bitrate_bps: 1_500_000, frames_per_second: 30 };
    let direct_cast = Cast::new(8, 2, 50, media);
    let server = Server::start(place.server, 1)?;
    let come = |path: &Path| {
        let crowd = Crowd::to(&place, &server, &Cast { path: *path, ..direct_cast.clone() });
        crowd.map_err(|why| format!("{}: {why}", path.name()))
    };
    let direct = come(&Path::Udp)?;
    let through = PATHS.iter().map(come).collect::<Result<Vec<_>, _>>()?;
    through.iter().chain([&direct]).for_each(Crowd::warm_up);
    let of = |crowd: &Crowd| crowd.us_per_packet(|| server.process.cpu_s(), || crowd.received());
    let ours = || through.iter().map(of).collect::<Result<Vec<f64>, _>>();
    let rounds = in_turns(ROUNDS, ours, || of(&direct))?;
    through.into_iter().chain([direct]).try_for_each(|crowd| sound(&crowd.leave()?))?;
    let row = |(at, path): (usize, &Path)| {
        let pairs: Vec<(f64, f64)> = rounds.iter().map(|(through, direct)| (through[at], *direct)).collect();
        Row::of_pairs(format!("SFU through {}, to direct UDP", path.name()), "us/packet", &pairs)
    };
    Ok(PATHS.iter().enumerate().map(row).collect())
}

/// Memory of a server for each of many who are there and do nothing.
pub fn idle_memory(_: &Context) -> Result<Vec<Row>, String> {
    let cast = Cast::new(100, 0, 20, SILENT);
    Ok(vec![Row::new("memory per idle participant", "KiB", grown(&cast)? / 1_024.0 / cast.people() as f64)])
}

/// Memory that grows while a cast comes, bytes.
fn grown(cast: &Cast) -> Result<f64, String> {
    let place = Place::loopback();
    let server = Server::start(place.server, 1)?;
    let before = anonymous_bytes(server.process.pid());
    let crowd = Crowd::to(&place, &server, cast)?;
    crowd.watch.is_paused.store(false, Relaxed);
    std::thread::sleep(WINDOW);
    let after = anonymous_bytes(server.process.pid());
    crowd.leave()?;
    Ok(after - before)
}

/// What each voice that somebody hears adds, publications included: twenty in a room who all speak, against twenty who do not.
pub fn subscription_memory(_: &Context) -> Result<Vec<Row>, String> {
    const ROOMS: u32 = 20;
    const PEOPLE: u32 = 20;
    let speaking = Sending { audio: true, ..SILENT };
    let with = grown(&Cast::new(ROOMS, PEOPLE, 0, speaking))?;
    let without = grown(&Cast::new(ROOMS, PEOPLE, 0, SILENT))?;
    let subscriptions = f64::from(ROOMS * PEOPLE * (PEOPLE - 1));
    Ok(vec![Row::new("memory per voice that is heard, of 20 in a room", "KiB", (with - without) / 1_024.0 / subscriptions)])
}

/// One large room on two workers; the floor is the same room on one.
pub fn two_workers(context: &Context) -> Result<Vec<Row>, String> {
    const HEARERS: u32 = 400;
    const ROUNDS: usize = 4;
    const BESIDE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
    let place = Place::loopback();
    let (media, _) = pictures(context, HEARERS, 4)?;
    let cast = Cast::new(1, 1, HEARERS, media);
    let [one, two] = [Server::start(place.server, 1)?, Server::start(BESIDE, 2)?];
    let [on_one, on_two] = [Crowd::to(&place, &one, &cast)?, Crowd::to(&place, &two, &cast)?];
    let of = |crowd: &Crowd, server: &Server| crowd.us_per_packet(|| server.process.cpu_s(), || crowd.received());
    let pairs = in_turns(ROUNDS, || of(&on_two, &two), || of(&on_one, &one))?;
    [on_one, on_two].into_iter().try_for_each(|crowd| sound(&crowd.leave()?))?;
    let mut row = Row::of_pairs("1 to 400 on two workers, to one", "us/packet", &pairs);
    row.packets_a_second = Some(media.frames_per_second * 4 * HEARERS);
    Ok(vec![row])
}

/// How long a packet takes at about half load; the floor sends the same number on and is measured by the same clock. Those who are
/// paused go on with checks and reports, one in a few milliseconds, beside the floor. A tail swings more than a mean: more pairs than
/// other rows have, none so long that the machine's own pauses fall into each.
pub fn latency(context: &Context) -> Result<Vec<Row>, String> {
    const HEARERS: u32 = 500;
    const ROUNDS: usize = 24;
    const SHORT: Duration = Duration::from_millis(200);
    const QUANTILES: [(f64, &str); 3] = [(0.5, "p50"), (0.99, "p99"), (0.999, "p99.9")];
    let place = Place::loopback();
    let (media, source) = pictures(context, HEARERS, 1)?;
    let server = Server::start(place.server, 1)?;
    let floor = Floor::start(&place, Work::FanOut { hearers: HEARERS as usize }, vec![source])?;
    let us = |spread: &load::Spread| match spread.count {
        0 => Err("no packets come through".to_owned()),
        _ => Ok(QUANTILES.map(|(q, _)| spread.quantile(q).map_or(f64::NAN, |d| d.as_secs_f64() * 1e6))),
    };
    let crowd = Crowd::to(&place, &server, &Cast::new(1, 1, HEARERS, media))?;
    // Signalling tells everybody of everybody: that dies away first.
    std::thread::sleep(WINDOW * 5);
    let of_floor = || floor.us_per_packet(SHORT).and_then(|_| us(&floor.latency()));
    let pairs = in_turns(ROUNDS, || us(&crowd.latency(SHORT)), of_floor)?;
    sound(&crowd.leave()?)?;
    let row = |(at, (_, name)): (usize, &(f64, &str))| {
        let of_quantile: Vec<(f64, f64)> = pairs.iter().map(|(ours, floor)| (ours[at], floor[at])).collect();
        let mut row = Row::of_pairs(format!("forwarding latency at half load, {name}"), "us", &of_quantile);
        row.packets_a_second = Some(media.frames_per_second * HEARERS);
        row
    };
    Ok(QUANTILES.iter().enumerate().map(row).collect())
}
