//! The TCP or TLS connection of one simulated participant: a task that carries bytes, both ways, with bounded queues.

use super::signal::Front;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// Read at a time.
const READ: usize = 64 * 1024;
/// Messages that wait for a connection that does not take them.
const WAITING_MAX: usize = 1_024;
/// Written at once at most.
const WRITE: usize = 64 * 1024;

/// What a connection tells, for the participant with this id.
pub enum Bytes {
    Opened,
    Read(Vec<u8>),
    Closed(String),
}

pub type Inlet = mpsc::Sender<(u64, Bytes)>;

/// A bidirectional stream of bytes, with or without TLS.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Where a connection goes; with a name, TLS is spoken and the certificate must have that name.
#[derive(Clone, Debug)]
pub struct Target {
    pub address: SocketAddr,
    pub tls_name: Option<String>,
}

/// Opens a connection; what is put into the returned queue is written. Dropping it closes the connection.
pub fn open(id: u64, front: &Front, target: Target, inlet: Inlet) -> mpsc::Sender<Vec<u8>> {
    let (outlet, queue) = mpsc::channel(WAITING_MAX);
    let front = front.clone();
    tokio::spawn(async move {
        let why = match tokio::time::timeout(CONNECT_WITHIN, connect(&front, &target)).await {
            Ok(Ok(stream)) => carry(id, stream, queue, &inlet).await,
            Ok(Err(error)) => error,
            Err(_) => format!("{}: no connection within {} s", target.address, CONNECT_WITHIN.as_secs()),
        };
        let _ = inlet.send((id, Bytes::Closed(why))).await;
    });
    outlet
}

/// A connection, with TLS where the target has a name.
pub async fn connect(front: &Front, target: &Target) -> Result<Box<dyn Stream>, String> {
    let tcp = TcpStream::connect(target.address).await.map_err(|e| format!("{}: {e}", target.address))?;
    let _ = tcp.set_nodelay(true);
    match &target.tls_name {
        None => Ok(Box::new(tcp)),
        Some(name) => Ok(Box::new(front.secure(tcp, name).await?)),
    }
}

/// Why it ended.
async fn carry(id: u64, stream: Box<dyn Stream>, mut queue: mpsc::Receiver<Vec<u8>>, inlet: &Inlet) -> String {
    let (mut reader, mut writer) = tokio::io::split(stream);
    if inlet.send((id, Bytes::Opened)).await.is_err() {
        return String::new();
    }
    let writes = async move {
        let mut waiting = Vec::new();
        while let Some(first) = queue.recv().await {
            waiting.clear();
            waiting.extend_from_slice(&first);
            while waiting.len() < WRITE {
                let Ok(next) = queue.try_recv() else { break };
                waiting.extend_from_slice(&next);
            }
            if let Err(error) = writer.write_all(&waiting).await {
                return format!("connection: {error}");
            }
        }
        let _ = writer.shutdown().await;
        String::new()
    };
    let reads = async move {
        let mut room = vec![0; READ];
        loop {
            match reader.read(&mut room).await {
                Ok(0) => return "the server closed the connection".to_owned(),
                Ok(n) => {
                    if inlet.send((id, Bytes::Read(room[..n].to_vec()))).await.is_err() {
                        return String::new();
                    }
                }
                Err(error) => return format!("connection: {error}"),
            }
        }
    };
    tokio::select! {
        why = writes => why,
        why = reads => why,
    }
}
