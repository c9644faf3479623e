//! `postern load` against the real binary: every way to it at once, with loss; TURN without a room.
#![allow(clippy::disallowed_methods, reason = "tests at the rim look at the clock")]

mod common;

use common::Server;
use std::process::{Command, Output};

fn load(server: &Server, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_postern"));
    command.arg("load").arg("--json").args(args).arg("--ca-file").arg(server.state.join("postern/ca.pem"));
    command.output().expect("it runs")
}

fn report(output: &Output) -> serde_json::Value {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stdout));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[test]
fn everybody_gets_everything_over_every_way_and_what_is_lost_comes_again() {
    let server = Server::start(2);
    let page = server.state.join("report.html");
    let url = format!("ws://localhost:{}", server.http.port());
    let output = load(
        &server,
        &[
            "--url",
            &url,
            "--publishers",
            "2",
            "--subscribers",
            "8",
            "--path",
            "udp,tcp,turn-udp,turn-tcp,turn-tls",
            "--loss",
            "2",
            "--duration",
            "4",
            "--html",
            &page.to_string_lossy(),
        ],
    );
    let report = report(&output);
    let count = |key: &str| report[key].as_u64().unwrap_or_else(|| panic!("{key}: {report:#}"));
    assert_eq!((count("streams_missing"), report["joins"]["count"].as_u64()), (0, Some(10)), "{report:#}");
    assert_eq!(server.metric("postern_joins_total{outcome=\"joined\"}"), 10);
    assert!(count("packets_received") > 10_000 && count("packets_thrown_away") > 100, "{report:#}");
    // Sound is not asked for again; of pictures nearly everything comes.
    assert!(count("packets_repaired") * 2 > count("packets_thrown_away"), "{report:#}");
    assert!(report["steady"]["packets_received_per_second"].as_f64().is_some_and(|n| n > 1_000.0), "{report:#}");
    let page = std::fs::read_to_string(page).expect("a page");
    assert!(page.starts_with("<!doctype html>") && page.matches("<svg").count() >= 5, "{page}");
    for direction in ["in", "out"] {
        let relayed = server.metric(&format!("postern_relay_packets_in_process_total{{direction=\"{direction}\"}} "));
        assert!(relayed > 100, "{direction}: {relayed}");
    }
}

#[test]
fn a_relay_is_loaded_without_a_room() {
    let server = Server::start(1);
    let opened = || server.metric("postern_turn_allocations_total{event=\"opened\"} ");
    for url in [
        format!("turn:localhost:{}?transport=udp", server.turn.port()),
        format!("turn:localhost:{}?transport=tcp", server.turn.port()),
        format!("turns:localhost:{}", server.edge.port()),
    ] {
        let before = opened();
        // Packets of nobody end at the SFU as strays: only their way there is looked at.
        let media = server.media.to_string();
        let args = ["--turn", &url, "--turn-secret", "secret", "--allocations", "10", "--turn-peer", "192.0.2.1:9"];
        let refused = load(&server, &args);
        let said = String::from_utf8_lossy(&refused.stdout);
        assert!(!refused.status.success() && said.contains("403"), "no peer but the SFU: {said}");
        let args = ["--turn", &url, "--turn-secret", "secret", "--allocations", "10", "--turn-peer", &media, "--duration", "1"];
        let report = report(&load(&server, &args));
        assert_eq!(report["allocations"]["count"].as_u64(), Some(10), "{report:#}");
        assert!(report["up"]["sent"].as_u64().is_some_and(|n| n > 2_000), "{report:#}");
        assert_eq!(opened() - before, 20, "those that had no peer, and those that had");
    }
    let args = ["--turn-user", "nobody", "--turn-password", "x", "--allocations", "2"];
    let url = format!("turn:localhost:{}", server.turn.port());
    let refused = load(&server, &[&args[..], &["--turn", &url]].concat());
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stdout).contains("401"));
}
