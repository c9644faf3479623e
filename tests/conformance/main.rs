//! The relay against its RFCs, a row a rule: on a shard, whose clock can be turned, and again on the real binary over UDP, TCP
//! and TLS. Answers are read by the `stun` crate, so that our codec cannot agree with a mistake of its own. What is
//! deliberately not offered stands in `skipped.toml`.
#![allow(clippy::disallowed_methods, reason = "tests at the rim look at the clock")]

#[path = "../common/mod.rs"]
mod common;
mod guard;
#[allow(dead_code, reason = "each file of tests uses its part")]
mod lab;
mod real;
mod rows;
#[allow(dead_code, reason = "each file of tests uses its part")]
mod shard;

use lab::{Lab, Transport};
use rows::ROWS;
use std::collections::BTreeSet;

fn run(transport: Transport, new: impl Fn() -> Lab) {
    let mut failed = Vec::new();
    for (name, check) in ROWS {
        let mut lab = new();
        if !lab.can_wait() && name.ends_with("(time)") {
            continue;
        }
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check(&mut lab))).is_err() {
            failed.push(*name);
        }
    }
    assert!(failed.is_empty(), "{transport:?}: {failed:#?}");
}

#[test]
fn on_a_shard_over_udp() {
    run(Transport::Udp, || Lab::on(shard::ShardWire::new(Transport::Udp)));
}

#[test]
fn on_a_shard_over_a_stream() {
    run(Transport::Tcp, || Lab::on(shard::ShardWire::new(Transport::Tcp)));
}

#[test]
fn on_the_binary_over_udp_tcp_and_tls() {
    let server = common::Server::open(2);
    for transport in [Transport::Udp, Transport::Tcp, Transport::EdgeTcp, Transport::EdgeTls] {
        run(transport, || real::lab(&server, transport));
    }
    assert_eq!(server.metric("postern_sessions_total{event=\"panicked\"}"), 0);
    assert_eq!(server.metric("postern_drops_total{reason=\"session_panicked\"}"), 0);
}

/// Every attack of the list (S1 to S40) has a test with its number: a row, or a test function in `tests` or `src`.
#[test]
fn no_attack_is_forgotten() {
    /// `s12_to_s15` and `s30_and_s35`; rows have `S9`.
    fn numbers(name: &str, mark: &str, found: &mut BTreeSet<u32>) {
        let (mut last, mut is_range) = (None, false);
        for word in name.split(|c: char| !c.is_ascii_alphanumeric()) {
            if let Some(n) = word.strip_prefix(mark).and_then(|n| n.parse::<u32>().ok()) {
                found.extend(last.filter(|_| is_range).unwrap_or(n)..=n);
                last = Some(n);
            }
            is_range = word == "to";
        }
    }
    fn tests_of(text: &str, found: &mut BTreeSet<u32>) {
        let mut is_test = false;
        for line in text.lines().map(str::trim_start) {
            is_test |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
            if let Some(name) = line.trim_start_matches("async ").strip_prefix("fn ").and_then(|rest| rest.split('(').next())
                && std::mem::take(&mut is_test)
            {
                numbers(name, "s", found);
            }
        }
    }
    fn walk(folder: &std::path::Path, found: &mut BTreeSet<u32>) {
        for entry in std::fs::read_dir(folder).expect("a readable folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|e| e == "rs") {
                tests_of(&std::fs::read_to_string(&path).expect("a readable file"), found);
            }
        }
    }
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = BTreeSet::new();
    for folder in ["src", "tests"] {
        walk(&root.join(folder), &mut found);
    }
    ROWS.iter().for_each(|(name, _)| numbers(name, "S", &mut found));
    let missing: Vec<u32> = (1..=40).filter(|n| !found.contains(n)).collect();
    assert!(missing.is_empty(), "no test bears the number of {missing:?}");
}

/// Every row of RFC 8489 and RFC 8656 that the relay has to do with is a test here or has a reason not to be.
#[test]
fn no_row_is_forgotten() {
    let skipped: toml::Table = include_str!("skipped.toml").parse().expect("TOML");
    let mut numbers: BTreeSet<u32> = BTreeSet::new();
    for (name, _) in ROWS {
        let list = name.split(' ').next().expect("a number");
        numbers.extend(list.split(',').map(|n| n.parse::<u32>().expect("names begin with the rows that they cover")));
    }
    for (number, reason) in &skipped {
        assert!(numbers.insert(number.parse().expect("a number")), "{number} is tested and skipped");
        assert!(reason.as_str().is_some_and(|r| r.len() > 20), "{number} has no reason");
    }
    let missing: Vec<u32> = (1..=99).filter(|n| !numbers.contains(n)).collect();
    assert!(missing.is_empty(), "neither tested nor skipped: {missing:?}");
}
