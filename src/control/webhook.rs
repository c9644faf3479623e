//! Webhooks: what happens in rooms, told to other systems, in order for each room and address.
//!
//! `POST <url>`, `Content-Type: application/webhook+json`, the event as protojson; `Authorization` is a bare JWT whose claim
//! `sha256` is the base64 of the body's SHA-256. An address that does not answer 2xx is tried again with growing pauses, for
//! [`KEPT_FOR`] at most; what waits is bounded, and what is dropped is counted and told with the next event.

use super::auth::{Claims, Keys};
use super::metrics::Gauges;
use super::outbound::{self, Https};
use arc_swap::ArcSwap;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE};
use hyper::{Request, Uri};
use livekit_protocol as proto;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// Events between the rooms and the deliverer, and those that wait for one room and address.
const EVENTS_MAX: usize = 8_192;
const WAITING_MAX: usize = 200;
/// Deliveries to one address at a time.
const DELIVERIES_MAX: usize = 64;
/// An event that could not be told for so long is dropped.
const KEPT_FOR: Duration = Duration::from_secs(30);
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// How long a signature is good, seconds.
const SIGNED_FOR_S: u64 = 300;

/// Where rooms put their events. Without webhooks it swallows them.
#[derive(Clone)]
pub struct Events {
    queue: Option<mpsc::Sender<proto::WebhookEvent>>,
    gauges: Arc<Gauges>,
    /// Events that found the queue full since the last one that did not.
    missed: Arc<AtomicI32>,
}

impl Events {
    pub fn none(gauges: Arc<Gauges>) -> Self {
        Self { queue: None, gauges, missed: Arc::default() }
    }

    #[allow(clippy::disallowed_methods, reason = "the control plane may look at the clock")]
    pub fn push(&self, event: &str, room: proto::Room, participant: Option<proto::ParticipantInfo>, track: Option<proto::TrackInfo>) {
        let Some(queue) = &self.queue else { return };
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let mut event = proto::WebhookEvent {
            event: event.to_owned(),
            room: Some(room),
            participant,
            track,
            id: format!("EV_{}", crate::crypto::SecretRng::system().id_chars(12)),
            created_at: now.as_secs() as i64,
            ..Default::default()
        };
        *dropped_before(&mut event) = self.missed.swap(0, Relaxed);
        if let Err(refused) = queue.try_send(event) {
            let (mpsc::error::TrySendError::Full(mut event) | mpsc::error::TrySendError::Closed(mut event)) = refused;
            self.missed.fetch_add(*dropped_before(&mut event) + 1, Relaxed);
            self.gauges.webhooks_dropped.fetch_add(1, Relaxed);
        }
    }
}

/// How many events before this one it says were dropped.
#[allow(deprecated, reason = "receivers of some age read it, and nothing took its place")]
fn dropped_before(event: &mut proto::WebhookEvent) -> &mut i32 {
    &mut event.num_dropped
}

/// Whom to tell, and how to sign.
pub struct Deliverer {
    queue: mpsc::Receiver<proto::WebhookEvent>,
    teller: Arc<Teller>,
    lines: HashMap<(usize, String), Line>,
    /// Deliveries under way, by address.
    busy: Vec<usize>,
}

/// How one event fared.
struct Delivered {
    key: (usize, String),
    was_told: bool,
    /// What it told of events before it that were dropped.
    dropped_before: i32,
}

/// What one address is to be told of one room.
#[derive(Default)]
struct Line {
    waiting: VecDeque<(Instant, proto::WebhookEvent)>,
    is_busy: bool,
    dropped: i32,
}

struct Teller {
    urls: Vec<Uri>,
    /// The API key that signs; empty is the first one.
    signer: Arc<ArcSwap<String>>,
    keys: Keys,
    client: Https<Full<Bytes>>,
    gauges: Arc<Gauges>,
}

/// Sets up telling `urls`, signed by the key that `signer` names. The events' end, and the one that delivers.
pub fn start(
    urls: &[String],
    signer: &Arc<ArcSwap<String>>,
    keys: &Keys,
    gauges: &Arc<Gauges>,
) -> Result<(Events, Option<Deliverer>), String> {
    if urls.is_empty() {
        return Ok((Events::none(Arc::clone(gauges)), None));
    }
    let urls = urls.iter().map(|u| u.parse::<Uri>().map_err(|e| format!("webhooks.urls: {u:?}: {e}"))).collect::<Result<_, _>>()?;
    let client = outbound::client(None).map_err(|e| format!("webhooks: {e}"))?;
    let (sender, queue) = mpsc::channel(EVENTS_MAX);
    let teller = Teller { urls, signer: Arc::clone(signer), keys: keys.clone(), client, gauges: Arc::clone(gauges) };
    let busy = vec![0; teller.urls.len()];
    let deliverer = Deliverer { queue, teller: Arc::new(teller), lines: HashMap::new(), busy };
    Ok((Events { queue: Some(sender), gauges: Arc::clone(gauges), missed: Arc::default() }, Some(deliverer)))
}

impl Deliverer {
    /// Delivers until the rooms are gone and everything is told or dropped.
    pub async fn run(mut self) {
        let mut deliveries: JoinSet<Delivered> = JoinSet::new();
        let mut is_open = true;
        while is_open || !deliveries.is_empty() {
            tokio::select! {
                event = self.queue.recv(), if is_open => match event {
                    Some(event) => self.take(&event),
                    None => is_open = false,
                },
                Some(outcome) = deliveries.join_next() => outcome.into_iter().for_each(|delivered| self.ended(delivered)),
            }
            self.start_some(&mut deliveries);
        }
    }

    #[allow(clippy::disallowed_methods, reason = "the control plane may look at the clock")]
    fn take(&mut self, event: &proto::WebhookEvent) {
        let room = event.room.as_ref().map(|r| r.name.clone()).unwrap_or_default();
        for url in 0..self.teller.urls.len() {
            let line = self.lines.entry((url, room.clone())).or_default();
            if line.waiting.len() >= WAITING_MAX {
                line.waiting.pop_front();
                line.dropped += 1;
                self.teller.gauges.webhooks_dropped.fetch_add(1, Relaxed);
            }
            line.waiting.push_back((Instant::now(), event.clone()));
        }
    }

    fn ended(&mut self, Delivered { key, was_told, dropped_before }: Delivered) {
        self.busy[key.0] -= 1;
        let Some(line) = self.lines.get_mut(&key) else { return };
        line.is_busy = false;
        if was_told {
            self.teller.gauges.webhooks_delivered.fetch_add(1, Relaxed);
        } else {
            // What this event should have told of others is told by the next one.
            line.dropped += 1 + dropped_before;
            self.teller.gauges.webhooks_dropped.fetch_add(1, Relaxed);
        }
        if line.waiting.is_empty() && line.dropped == 0 {
            self.lines.remove(&key);
        }
    }

    fn start_some(&mut self, deliveries: &mut JoinSet<Delivered>) {
        for (key, line) in &mut self.lines {
            // An address that does not answer holds up none but its own.
            if line.is_busy || self.busy[key.0] >= DELIVERIES_MAX {
                continue;
            }
            let Some((since, mut event)) = line.waiting.pop_front() else { continue };
            *dropped_before(&mut event) += std::mem::take(&mut line.dropped);
            let dropped_before = *dropped_before(&mut event);
            line.is_busy = true;
            self.busy[key.0] += 1;
            let (teller, key) = (Arc::clone(&self.teller), key.clone());
            deliveries.spawn(async move {
                let was_told = teller.tell(key.0, since, &event).await;
                Delivered { key, was_told, dropped_before }
            });
        }
        // Rooms with nothing left to say; what they dropped is remembered for the next event, within limits.
        let is_full = self.lines.len() > EVENTS_MAX;
        self.lines.retain(|_, line| line.is_busy || !line.waiting.is_empty() || (line.dropped > 0 && !is_full));
    }
}

impl Teller {
    /// Tells one event, again and again until it is taken or too old.
    #[allow(clippy::disallowed_methods, reason = "the control plane may look at the clock")]
    async fn tell(&self, url: usize, since: Instant, event: &proto::WebhookEvent) -> bool {
        let (Some(url), Ok(body)) = (self.urls.get(url), serde_json::to_vec(event)) else { return false };
        let body = Bytes::from(body);
        let mut pause = FIRST_PAUSE;
        loop {
            let problem = match self.post(url, &body).await {
                Ok(()) => return true,
                Err(problem) => problem,
            };
            if since.elapsed() + pause >= KEPT_FOR {
                tracing::warn!(event = event.event, %url, problem, "a webhook was not delivered; the event is dropped");
                return false;
            }
            tracing::debug!(event = event.event, %url, problem, "a webhook is tried again");
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
    }

    async fn post(&self, url: &Uri, body: &Bytes) -> Result<(), String> {
        let request = Request::post(url)
            .header(CONTENT_TYPE, "application/webhook+json")
            .header(AUTHORIZATION, self.signature(body).ok_or("webhooks.api_key names no key")?)
            .body(Full::new(body.clone()))
            .map_err(|e| e.to_string())?;
        let answer = tokio::time::timeout(ANSWER_WITHIN, self.client.request(request)).await;
        let response = answer.map_err(|_| "no answer in time".to_owned())?.map_err(|e| outbound::cause(&e))?;
        if response.status().is_success() { Ok(()) } else { Err(format!("status {}", response.status())) }
    }

    #[allow(clippy::disallowed_methods, reason = "the control plane may look at the clock")]
    fn signature(&self, body: &[u8]) -> Option<String> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let sha256 = STANDARD.encode(crate::crypto::digest("sha-256", body)?);
        let named = Some(self.signer.load().to_string()).filter(|key| !key.is_empty());
        let iss = named.or_else(|| self.keys.first())?;
        self.keys.sign(&Claims { iss, exp: now + SIGNED_FOR_S, nbf: Some(now), sha256, ..Claims::default() })
    }
}
