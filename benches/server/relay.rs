//! Rows of the TURN server alone.

use super::Context;
use super::floor::{Floor, Source, Work};
use super::host::{anonymous_bytes, pin, until};
use super::net::Place;
use super::peers::Coturn;
use super::rooms::{PAIRS, PAUSE, SETTLE, WINDOW, in_turns};
use super::server::{Process, SECRET, Server, TURN};
use super::summary::Row;
use postern::load::{Direction, Login, RelayPlan, RelayReport, TurnPeer, Watch, run_relay};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::JoinHandle;
use std::time::Duration;

/// Payload of each packet, and of what the floor is fed with, bytes.
const PAYLOAD: usize = 1_200;
const ALLOCATIONS: u32 = 32;
/// Packets a second, one of them: the first at which hardly any are lost, by the floor and coturn (if it is measured) too.
const RATES: [u32; 5] = [150_000, 120_000, 90_000, 60_000, 40_000];
/// Share of a core that the floor may take of it: what feeds and drains all of them on the other one has more to do.
const FLOOR_LOAD: f64 = 0.6;

/// Users of a relay in a thread on core 1, who send nothing while they are not asked.
struct Users {
    watch: Arc<Watch>,
    /// Until they have left.
    thread: Option<JoinHandle<Result<RelayReport, String>>>,
}

impl Drop for Users {
    fn drop(&mut self) {
        let _ = self.go();
    }
}

impl Users {
    fn come(plan: RelayPlan) -> Result<Self, String> {
        let watch = Arc::new(Watch::default());
        watch.is_paused.store(true, Relaxed);
        let (theirs, allocations) = (Arc::clone(&watch), u64::from(plan.allocations));
        let within = Duration::from_secs_f64(30.0 + allocations as f64 / plan.allocations_a_second);
        let thread = std::thread::spawn(move || {
            pin(1)?;
            run_relay(&plan, &theirs, &mut |_| {})
        });
        let users = Self { watch, thread: Some(thread) };
        let came = until(within, "every allocation is made", || {
            users.watch.live.load(Relaxed) == allocations
                || users.watch.failed.load(Relaxed) > 0
                || users.thread.as_ref().is_some_and(JoinHandle::is_finished)
        });
        let failed = users.watch.failed.load(Relaxed);
        if let Err(why) = came.and_then(|()| if failed > 0 { Err(format!("{failed} allocations failed")) } else { Ok(()) }) {
            return Err(format!("{why}: {:?}", users.leave().map(|r| r.failures)));
        }
        Ok(users)
    }

    /// An error when nothing comes through.
    fn us_per_packet(&self, process: &Process) -> Result<f64, String> {
        let received = || self.watch.received.load(Relaxed);
        self.watch.is_paused.store(false, Relaxed);
        std::thread::sleep(SETTLE);
        let (cpu, before) = (process.cpu_s(), received());
        std::thread::sleep(WINDOW);
        let (cpu, packets) = (process.cpu_s() - cpu, received().saturating_sub(before));
        self.watch.is_paused.store(true, Relaxed);
        std::thread::sleep(PAUSE);
        if packets == 0 { Err("nothing comes through the relay".into()) } else { Ok(cpu * 1e6 / packets as f64) }
    }

    fn leave(mut self) -> Result<RelayReport, String> {
        self.go()
    }

    fn go(&mut self) -> Result<RelayReport, String> {
        self.watch.is_over.store(true, Relaxed);
        let thread = self.thread.take().ok_or("they have left")?;
        thread.join().map_err(|_| "the users' thread panicked".to_owned())?
    }
}

fn url(port: u16) -> String {
    format!("turn:127.0.0.1:{port}?transport=udp")
}

fn plan(direction: Direction, run: u32, rate: u32) -> RelayPlan {
    RelayPlan {
        url: url(TURN),
        address: None,
        authority: None,
        login: Login::time_limited(SECRET),
        allocations: ALLOCATIONS,
        allocations_a_second: 1_000.0,
        peer: TurnPeer::Own,
        direction,
        packets_a_second: f64::from(rate),
        run,
        payload_len: PAYLOAD,
        lasts: Duration::from_secs(3_600),
        pid: None,
    }
}

fn udp_name(direction: Direction, run: u32) -> String {
    let way = if direction == Direction::Up { "client to peer" } else { "peer to client" };
    let packets = if run == 1 { "single".to_owned() } else { format!("runs of {run}") };
    format!("UDP relay, {way}, {packets}")
}

/// One way, one by one or in runs, beside a loop that receives, cuts the header off and sends.
pub fn udp(context: &Context, direction: Direction, run: u32) -> Result<Vec<Row>, String> {
    let (name, lowest) = (udp_name(direction, run), RATES[RATES.len() - 1]);
    let bearable = context.rate(&name, || {
        let us = Floor::at_ease(Work::Relay, sources(run, lowest))?;
        Ok((1e6 * FLOOR_LOAD / us) as u32)
    })?;
    let mut failed = Vec::new();
    for rate in RATES.into_iter().filter(|rate| *rate == lowest || *rate <= bearable) {
        match udp_at(context, direction, run, rate) {
            Ok(row) => {
                context.settle(&name, rate);
                return Ok(vec![row]);
            }
            Err(why) => {
                failed.push(format!("at {rate} packets a second: {why}"));
                eprintln!("  not {}", failed[failed.len() - 1]);
            }
        }
    }
    Err(failed.join("; "))
}

/// What the floor is fed with: as many ways as there are allocations.
fn sources(run: u32, rate: u32) -> Vec<Source> {
    let every = Duration::from_secs_f64(f64::from(run * ALLOCATIONS) / f64::from(rate));
    vec![Source { every, run: run as usize, len: PAYLOAD }; ALLOCATIONS as usize]
}

fn udp_at(context: &Context, direction: Direction, run: u32, rate: u32) -> Result<Row, String> {
    let place = Place::loopback();
    let server = Server::open(place.server)?;
    let users = Users::come(plan(direction, run, rate))?;
    let coturn = if context.with_peers { Some(Coturn::start()?) } else { None };
    let its_users = coturn.as_ref().map(|_| Users::come(RelayPlan { url: url(Coturn::PORT), ..plan(direction, run, rate) })).transpose()?;
    let floor = Floor::start(&place, Work::Relay, sources(run, rate))?;
    let ours = || {
        let peer = coturn.as_ref().zip(its_users.as_ref()).map(|(coturn, users)| users.us_per_packet(&coturn.process));
        Ok((users.us_per_packet(&server.process)?, peer.transpose()?))
    };
    let pairs = in_turns(PAIRS, ours, || floor.us_per_packet(WINDOW))?;
    sound(&users.leave()?)?;
    if let Some(users) = its_users {
        sound(&users.leave()?).map_err(|why| format!("coturn: {why}"))?;
    }
    let (ours, floors): (Vec<(f64, Option<f64>)>, Vec<f64>) = pairs.into_iter().unzip();
    let beside_floor: Vec<(f64, f64)> = ours.iter().zip(floors).map(|((ours, _), floor)| (*ours, floor)).collect();
    let mut row = Row::of_pairs(udp_name(direction, run), "us/packet", &beside_floor);
    row.packets_a_second = Some(rate);
    if context.with_peers {
        row.peers.insert("coturn".into(), ours.iter().filter_map(|(_, coturn)| *coturn).collect());
    }
    Ok(row)
}

fn sound(report: &RelayReport) -> Result<(), String> {
    let lost = report.up.lost() + report.down.lost();
    let sent = report.up.sent + report.down.sent;
    if lost * 100 > sent { Err(format!("{lost} of {sent} packets were lost")) } else { Ok(()) }
}

/// Allocations with sockets of their own, and no packets.
pub fn real_memory(context: &Context) -> Result<Vec<Row>, String> {
    const MANY: u32 = 5_000;
    let idle = || RelayPlan { allocations: MANY, ..plan(Direction::Idle, 1, 0) };
    let place = Place::loopback();
    let server = Server::open(place.server)?;
    let before = anonymous_bytes(server.process.pid());
    let users = Users::come(idle())?;
    let after = anonymous_bytes(server.process.pid());
    users.leave()?;
    drop(server);
    let mut row = Row::new("memory per real relay", "bytes", (after - before) / f64::from(MANY));
    if context.with_peers {
        let coturn = Coturn::start()?;
        let before = anonymous_bytes(coturn.process.pid());
        let users = Users::come(RelayPlan { url: url(Coturn::PORT), ..idle() })?;
        let after = anonymous_bytes(coturn.process.pid());
        users.leave()?;
        row.peers.insert("coturn".into(), vec![(after - before) / f64::from(MANY)]);
    }
    Ok(vec![row])
}

/// Allocations whose peer is the SFU, which bind no socket.
pub fn sfu_only_memory(_: &Context) -> Result<Vec<Row>, String> {
    const MANY: u32 = 100_000;
    let place = Place::loopback();
    let server = Server::start(place.server, 1)?;
    let before = anonymous_bytes(server.process.pid());
    let cpu = server.process.cpu_s();
    let idle = RelayPlan {
        allocations: MANY,
        allocations_a_second: 10_000.0,
        peer: TurnPeer::At(server.media()),
        direction: Direction::Idle,
        ..plan(Direction::Idle, 1, 0)
    };
    let users = Users::come(idle)?;
    let (after, cpu) = (anonymous_bytes(server.process.pid()), server.process.cpu_s() - cpu);
    users.leave()?;
    Ok(vec![
        Row::new("memory per SFU-only allocation", "bytes", (after - before) / f64::from(MANY)),
        Row::new("Allocate and ChannelBind, with the challenge", "us", cpu * 1e6 / f64::from(MANY)),
    ])
}
