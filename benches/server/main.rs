//! What the server costs, row by row, each beside its floor: a loop that does the least that must be done, measured in turns
//! with the server, against sinks that receive in the same way.
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

use summary::{Row, Summary};

/// One row: its name, and how it is measured.
type Measure = fn(&Context) -> Result<Vec<Row>, String>;

pub struct Context {
    pub with_peers: bool,
}

const ROWS: &[(&str, Measure)] = &[
    ("fan-out 1 to 100 single", |c| rooms::fan_out(c, 100, 1)),
    ("fan-out 1 to 100 runs of 4", |c| rooms::fan_out(c, 100, 4)),
    ("fan-out 1 to 100 runs of 8", |c| rooms::fan_out(c, 100, 8)),
    ("fan-out 1 to 1000 single", |c| rooms::fan_out(c, 1_000, 1)),
    ("fan-out 1 to 1000 runs of 4", |c| rooms::fan_out(c, 1_000, 4)),
    ("fan-out 1 to 1000 runs of 8", |c| rooms::fan_out(c, 1_000, 8)),
    ("fan-out 1 to 100 single, device", |c| rooms::fan_out_to_device(c, 100, 1)),
    ("fan-out 1 to 100 runs of 4, device", |c| rooms::fan_out_to_device(c, 100, 4)),
    ("fan-out 1 to 100 runs of 8, device", |c| rooms::fan_out_to_device(c, 100, 8)),
    ("fan-out 1 to 1000 single, device", |c| rooms::fan_out_to_device(c, 1_000, 1)),
    ("fan-out 1 to 1000 runs of 4, device", |c| rooms::fan_out_to_device(c, 1_000, 4)),
    ("fan-out 1 to 1000 runs of 8, device", |c| rooms::fan_out_to_device(c, 1_000, 8)),
    ("50 all to all", rooms::all_to_all),
    ("rooms through TURN", rooms::through_turn),
    ("UDP relay", relay::udp),
    ("join", joins::join),
    ("idle participant memory", rooms::idle_memory),
    ("subscription memory", rooms::subscription_memory),
    ("SFU-only allocation memory", relay::sfu_only_memory),
    ("real relay memory", relay::real_memory),
    ("two workers", rooms::two_workers),
    ("forwarding latency", rooms::latency),
];

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let context = Context { with_peers: std::env::args().any(|a| a == "--peers") };
    if let Err(error) = host::pin(1) {
        eprintln!("{error}: figures are of no use without two cores");
        std::process::exit(1);
    }
    let mut summary = Summary::begin();
    for (name, measure) in ROWS.iter().filter(|(name, _)| words.is_empty() || words.iter().all(|w| name.contains(w.as_str()))) {
        eprintln!("{name} …");
        match measure(&context) {
            Ok(rows) => rows.into_iter().for_each(|row| summary.add(row)),
            Err(error) => {
                eprintln!("  not measured: {error}");
                summary.not_measured(name, &error);
            }
        }
    }
    summary.end();
}
