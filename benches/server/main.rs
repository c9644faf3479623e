//! What the server costs, row by row, each beside its floor: a loop that does the least that must be done, measured in turns
//! with the server, against sinks that receive in the same way. All rows but memory are measured in several passes with servers of
//! their own: where a server's memory lies is chance, and a neighbour of this machine who is busy for a minute does not spoil a row.
//!
//! `cargo bench --bench server [-- words of rows' names]`; `--peers` measures other servers as well. Writes
//! `target/bench/summary.json` and a table. The server is pinned to core 0, what loads it to core 1.

#![allow(clippy::disallowed_methods, reason = "a bench measures by the clock")]

mod floor;
mod host;
mod joins;
mod net;
mod peers;
mod relay;
mod rooms;
mod server;
mod summary;

use Often::{EachPass, Once};
use postern::load::Direction;
use std::cell::RefCell;
use std::collections::HashMap;
use summary::{Row, Summary};

/// One row, or some that are measured together.
type Measure = fn(&Context) -> Result<Vec<Row>, String>;

/// In how many passes something is measured: memory hardly varies.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Often {
    Once,
    EachPass,
}

/// All of them take nineteen minutes.
const PASSES: usize = 3;

pub struct Context {
    pub with_peers: bool,
    /// Packets a second, by what is sent: the same in all passes.
    rates: RefCell<HashMap<String, u32>>,
}

impl Context {
    /// The rate that was found or settled before.
    pub fn rate(&self, name: &str, find: impl FnOnce() -> Result<u32, String>) -> Result<u32, String> {
        if let Some(rate) = self.rates.borrow().get(name) {
            return Ok(*rate);
        }
        let rate = find()?;
        self.settle(name, rate);
        Ok(rate)
    }

    pub fn settle(&self, name: &str, rate: u32) {
        self.rates.borrow_mut().insert(name.to_owned(), rate);
    }
}

const ROWS: &[(&str, Often, Measure)] = &[
    ("fan-out 1 to 100 single", EachPass, |c| rooms::fan_out(c, 100, 1)),
    ("fan-out 1 to 100 runs of 4", EachPass, |c| rooms::fan_out(c, 100, 4)),
    ("fan-out 1 to 100 runs of 8", EachPass, |c| rooms::fan_out(c, 100, 8)),
    ("fan-out 1 to 1000 single", EachPass, |c| rooms::fan_out(c, 1_000, 1)),
    ("fan-out 1 to 1000 runs of 4", EachPass, |c| rooms::fan_out(c, 1_000, 4)),
    ("fan-out 1 to 1000 runs of 8", EachPass, |c| rooms::fan_out(c, 1_000, 8)),
    ("fan-out 1 to 100 single, device", EachPass, |c| rooms::fan_out_to_device(c, 100, 1)),
    ("fan-out 1 to 100 runs of 4, device", EachPass, |c| rooms::fan_out_to_device(c, 100, 4)),
    ("fan-out 1 to 100 runs of 8, device", EachPass, |c| rooms::fan_out_to_device(c, 100, 8)),
    ("fan-out 1 to 1000 single, device", EachPass, |c| rooms::fan_out_to_device(c, 1_000, 1)),
    ("fan-out 1 to 1000 runs of 4, device", EachPass, |c| rooms::fan_out_to_device(c, 1_000, 4)),
    ("fan-out 1 to 1000 runs of 8, device", EachPass, |c| rooms::fan_out_to_device(c, 1_000, 8)),
    ("50 all to all", EachPass, rooms::all_to_all),
    ("rooms through TURN", EachPass, rooms::through_turn),
    ("UDP relay, client to peer, single", EachPass, |c| relay::udp(c, Direction::Up, 1)),
    ("UDP relay, client to peer, runs of 4", EachPass, |c| relay::udp(c, Direction::Up, 4)),
    ("UDP relay, peer to client, single", EachPass, |c| relay::udp(c, Direction::Down, 1)),
    ("UDP relay, peer to client, runs of 4", EachPass, |c| relay::udp(c, Direction::Down, 4)),
    ("join", EachPass, joins::join),
    ("idle participant memory", Once, rooms::idle_memory),
    ("subscription memory", Once, rooms::subscription_memory),
    ("SFU-only allocation memory", EachPass, relay::sfu_only_memory),
    ("real relay memory", Once, relay::real_memory),
    ("two workers", EachPass, rooms::two_workers),
    ("forwarding latency", EachPass, rooms::latency),
];

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let context = Context { with_peers: std::env::args().any(|a| a == "--peers"), rates: RefCell::default() };
    if let Err(error) = host::pin(1) {
        eprintln!("{error}: figures are of no use without two cores");
        std::process::exit(1);
    }
    let mut summary = Summary::begin();
    for pass in 1..=PASSES {
        eprintln!("pass {pass} of {PASSES}");
        for (name, often, measure) in ROWS {
            let is_wanted = words.iter().all(|w| name.contains(w.as_str()));
            if !is_wanted || (*often == Once && pass > 1) {
                continue;
            }
            eprintln!("{name} …");
            match measure(&context) {
                Ok(rows) => rows.into_iter().for_each(|row| summary.add(row)),
                Err(error) => {
                    eprintln!("  not measured: {error}");
                    summary.not_measured(name, pass, &error);
                }
            }
        }
    }
    summary.end();
}
