//! Instructions for each packet on its way through a shard, counted by callgrind and compared with `benches/instructions.toml`: a
//! regression of more than 3 % is seen whatever else the machine does. Peers are str0m's; only what the shard does is counted.
//!
//! `cargo bench --bench instructions --features sim [-- --write]`; `--write` makes what is counted the new baseline.
#![allow(clippy::disallowed_methods, reason = "the anchor of a simulation")]

use postern::base::id::WorkerId;
use postern::base::time::Duration;
use postern::shard::counters::Counter;
use postern::sim::net::Net;
use postern::sim::{Arrival, Way, World};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Name, who is there, how they come, and what one packet is.
const SCENARIOS: &[(&str, usize, Way, Counter)] = &[
    ("fan_out_to_8", 9, Way::Udp, Counter::Forwarded),
    ("fan_out_to_8_relayed", 9, Way::RelayUdp, Counter::Forwarded),
    ("received_by_nobody", 1, Way::Udp, Counter::MediaIn),
];
/// What is compared begins after so many seconds of virtual time, and lasts so long.
const WARM_S: u64 = 6;
const MEASURED_S: u64 = 6;
const TOLERANCE: f64 = 0.03;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, mode, name, seconds] = &arguments[..]
        && mode == "--run"
    {
        return run(name, seconds.parse().expect("seconds"));
    }
    if let Err(error) = compare(arguments.iter().any(|a| a == "--write")) {
        eprintln!("{error}");
        std::process::exit(1);
    }
}

/// One scenario; how many packets passed.
fn run(name: &str, seconds: u64) {
    let (_, people, way, counter) = SCENARIOS.iter().find(|(n, ..)| *n == name).expect("a scenario");
    let mut world = World::new(1, 1, Net::new(1, 0, 0, 5..10));
    world.films = true;
    world.talkers = 1;
    world.join(&vec![Arrival { way: *way, ingress: WorkerId(0), owner: WorkerId(0) }; *people]);
    world.run(Duration::from_secs(seconds));
    println!("{}", world.shards[0].counters.get(*counter));
}

/// Packets and instructions of one run.
fn count(name: &str, seconds: u64, folder: &Path) -> Result<(f64, f64), String> {
    let out = folder.join(format!("{name}.{seconds}"));
    let binary = std::env::current_exe().map_err(|e| e.to_string())?;
    let mut command = Command::new("valgrind");
    command.arg("--tool=callgrind").arg(format!("--callgrind-out-file={}", out.display()));
    for function in ["postern::shard::Shard::handle_datagram", "postern::shard::Shard::wake"] {
        command.arg(format!("--toggle-collect={function}"));
    }
    let output = command.arg(binary).arg("--run").arg(name).arg(seconds.to_string()).output().map_err(|e| format!("valgrind: {e}"))?;
    let said = || String::from_utf8_lossy(&output.stderr).into_owned();
    let packets = String::from_utf8_lossy(&output.stdout).trim().parse().map_err(|_| said())?;
    let profile = std::fs::read_to_string(&out).map_err(|e| format!("{}: {e}", out.display()))?;
    let total = profile.lines().find_map(|l| l.strip_prefix("summary: ").or(l.strip_prefix("totals: "))?.trim().parse().ok());
    let total: f64 = total.ok_or_else(said)?;
    if total == 0.0 {
        Err(format!("{name}: no instructions were counted: are the names of functions still right?"))
    } else {
        Ok((packets, total))
    }
}

fn compiler() -> String {
    let output = Command::new("rustc").arg("--version").output().map(|o| o.stdout).unwrap_or_default();
    String::from_utf8_lossy(&output).trim().to_owned()
}

fn compare(writes: bool) -> Result<(), String> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    if Command::new("valgrind").arg("--version").output().is_err() {
        println!("valgrind is not installed: instructions are not counted");
        return Ok(());
    }
    let file = root.join("benches/instructions.toml");
    let baseline: toml::Table =
        std::fs::read_to_string(&file).unwrap_or_default().parse().map_err(|e| format!("{}: {e}", file.display()))?;
    let folder = root.join("target/instructions");
    std::fs::create_dir_all(&folder).map_err(|e| e.to_string())?;
    let is_comparable = baseline.get("compiler").and_then(toml::Value::as_str) == Some(&compiler());
    let (mut counted, mut worse) = (BTreeMap::new(), Vec::new());
    for (name, ..) in SCENARIOS {
        let (packets_before, before) = count(name, WARM_S, &folder)?;
        let (packets, after) = count(name, WARM_S + MEASURED_S, &folder)?;
        let each = (after - before) / (packets - packets_before);
        let known = baseline.get(*name).and_then(toml::Value::as_float).filter(|_| is_comparable);
        let change =
            known.map_or_else(|| "no baseline of this compiler".to_owned(), |known| format!("{:+.1} %", (each / known - 1.0) * 100.0));
        println!("{name:<24} {each:>8.0} instructions a packet, {change}");
        if known.is_some_and(|known| each > known * (1.0 + TOLERANCE)) {
            worse.push(*name);
        }
        counted.insert(*name, each.round());
    }
    if writes {
        let rows: String = counted.iter().map(|(name, each)| format!("{name} = {each:.1}\n")).collect();
        let text = format!(
            "# Instructions for each packet: cargo bench --bench instructions --features sim -- --write\ncompiler = \"{}\"\n{rows}",
            compiler()
        );
        std::fs::write(&file, text).map_err(|e| format!("{}: {e}", file.display()))?;
    } else if !worse.is_empty() {
        return Err(format!("more than {} % above the baseline: {}", TOLERANCE * 100.0, worse.join(", ")));
    }
    Ok(())
}
