//! Where a row is measured: on loopback, or between two network namespaces of which the server's then sends into a device that
//! drops everything.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;
use std::sync::Arc;

/// Addresses of the server and its clients, and the namespaces that they are in.
#[derive(Clone)]
pub struct Place {
    pub server: IpAddr,
    namespaces: Option<Arc<Namespaces>>,
}

impl Place {
    pub fn loopback() -> Self {
        Self { server: IpAddr::V4(Ipv4Addr::LOCALHOST), namespaces: None }
    }

    /// Two namespaces that see each other, until [`Place::swing`].
    pub fn device() -> Result<Self, String> {
        let names = [format!("postern-bench-{}-s", std::process::id()), format!("postern-bench-{}-c", std::process::id())];
        let namespaces = Namespaces { names };
        let [server, clients] = &namespaces.names;
        for line in [
            format!("ip netns add {server}"),
            format!("ip netns add {clients}"),
            format!("ip -n {server} link add wire type veth peer name wire netns {clients}"),
            format!("ip -n {server} link add drop type ifb"),
            format!("ip -n {server} address add 10.91.0.1/24 dev wire"),
            format!("ip -n {clients} address add 10.91.0.2/24 dev wire"),
            format!("ip -n {server} link set lo up"),
            format!("ip -n {clients} link set lo up"),
            format!("ip -n {server} link set wire up"),
            format!("ip -n {clients} link set wire up"),
            format!("ip -n {server} address add 10.92.0.1/24 dev drop"),
            format!("ip -n {server} link set drop up"),
            // Clients have addresses of a net behind theirs.
            format!("ip -n {clients} address add 10.93.0.1/16 dev lo"),
            format!("ip -n {server} route add 10.93.0.0/16 via 10.91.0.2"),
            format!("ip -n {server} neighbour add 10.92.0.2 lladdr 02:00:00:00:00:02 dev drop nud permanent"),
        ] {
            run(&line)?;
        }
        Ok(Self { server: IpAddr::from([10, 91, 0, 1]), namespaces: Some(Arc::new(namespaces)) })
    }

    /// From now on everything for clients goes to the device that drops.
    pub fn swing(&self) -> Result<(), String> {
        let Some(namespaces) = &self.namespaces else { return Ok(()) };
        let server = &namespaces.names[0];
        run(&format!("ip -n {server} route replace 10.93.0.0/16 via 10.92.0.2 dev drop"))?;
        run(&format!("ip -n {server} route add 10.91.0.2/32 via 10.92.0.2 dev drop"))
    }

    /// An address of a client.
    pub fn client(&self, nth: usize) -> IpAddr {
        let (high, low) = ((nth / 250) as u8, (nth % 250) as u8 + 1);
        IpAddr::from(if self.namespaces.is_some() { [10, 93, high, low] } else { [127, 9, high, low] })
    }

    pub fn enter_server(&self) -> Result<(), String> {
        self.enter(0)
    }

    pub fn enter_clients(&self) -> Result<(), String> {
        self.enter(1)
    }

    fn enter(&self, which: usize) -> Result<(), String> {
        let Some(namespaces) = &self.namespaces else { return Ok(()) };
        let path = format!("/run/netns/{}", namespaces.names[which]);
        let file = File::open(&path).map_err(|e| format!("{path}: {e}"))?;
        nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).map_err(|e| format!("{path}: {e}"))
    }

    /// Calls `f` on a thread of its own in the server's namespace.
    pub fn at_server<R: Send>(&self, f: impl FnOnce() -> R + Send) -> Result<R, String> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| self.enter_server().map(|()| f()));
            thread.join().map_err(|_| "a thread of the server's namespace panicked".to_owned())?
        })
    }
}

struct Namespaces {
    names: [String; 2],
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = run(&format!("ip netns delete {name}"));
        }
    }
}

fn run(line: &str) -> Result<(), String> {
    let mut words = line.split(' ');
    let output = Command::new(words.next().unwrap_or_default()).args(words).output().map_err(|e| format!("{line}: {e}"))?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() { Ok(()) } else { Err(format!("{line}: {}", said.trim())) }
}
