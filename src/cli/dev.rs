//! `postern dev`: a whole server without a config.

use super::run::{self, Extras};
use postern::config::{Admin, Config, Network, Server, Tls, TlsMode, Turn};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Args {
    /// Address of every listener; 0.0.0.0 opens them to the LAN.
    #[arg(long, default_value = "127.0.0.1")]
    bind: IpAddr,
    /// Plain ws:// and http://.
    #[arg(long, default_value_t = 7880)]
    port: u16,
    /// TLS, TURN/TLS, TURN/TCP and ICE-TCP.
    #[arg(long, default_value_t = 7443)]
    edge_port: u16,
    /// Media over UDP.
    #[arg(long, default_value_t = 7443)]
    media_port: u16,
    /// STUN and TURN, UDP and TCP.
    #[arg(long, default_value_t = 3478)]
    turn_port: u16,
    #[arg(long, default_value_t = 7881)]
    admin_port: u16,
    /// Worker threads; 0 is one per core.
    #[arg(long, default_value_t = 0)]
    workers: u8,
    /// error, warn, info, debug or trace.
    #[arg(long, default_value = "info")]
    log_level: String,
}

pub fn execute(args: &Args) -> Result<(), String> {
    let mut config = Config {
        server: Server {
            domain: "localhost".into(),
            workers: args.workers,
            drain_deadline_s: 0,
            runtime_dir: state_dir(),
            ..Server::default()
        },
        network: Network {
            bind_addresses: vec![args.bind],
            edge_tcp_ports: vec![args.edge_port],
            media_udp_port: args.media_port,
            turn_ports: vec![args.turn_port],
            ..Network::default()
        },
        tls: Tls { mode: TlsMode::SelfSigned, state_dir: state_dir(), ..Tls::default() },
        keys: BTreeMap::from([("devkey".to_owned(), "secret".to_owned())]),
        turn: Turn { shared_secrets: vec!["secret".into()], ..Turn::default() },
        admin: Admin { listen: SocketAddr::from(([127, 0, 0, 1], args.admin_port)), ..Admin::default() },
        ..Config::default()
    };
    config.log.level.clone_from(&args.log_level);
    run::serve(config, Extras { plain_http: Some(SocketAddr::new(args.bind, args.port)), is_dev: true, config_file: None })
}

/// Where the development authority lives: XDG's place for state, else below the home directory.
fn state_dir() -> PathBuf {
    let base = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|h| PathBuf::from(h).join(".local/state"));
    base.or_else(home).unwrap_or_else(std::env::temp_dir).join("postern")
}
