//! Floor 3: who hears whom on one worker. Ids and frame info only, never bytes.
//!
//! A room may have members on several workers. A publication lives where its publisher does; on every other worker that
//! has hearers of it stands a shadow. The shadow says which layers its hearers need, the home sends it those once, and says
//! which layers are live; key frames are asked for by each and coalesced by both.

pub mod layers;
pub mod speaker;

use crate::base::id::{SessionId, TrackId, WorkerId};
use crate::base::time::{Duration, Instant};
use crate::wire::rtp::FrameInfo;
use layers::{LAYERS_MAX, Selector, Verdict, Wanted};
use speaker::Speakers;
use std::collections::BTreeMap;

/// Key frames of one layer are asked for at most this often; everybody who waits is served by the same one.
const KEY_FRAME_INTERVAL: Duration = Duration::from_millis(500);
/// A request that comes so soon behind the start of a key frame was sent before that arrived: receivers repeat theirs until they
/// have decoded one.
const KEY_FRAME_CROSSED: Duration = Duration::from_millis(250);
/// Everybody who hears a layer pays for a newcomer's key frame: for every so many of them newcomers wait for each other once
/// more as long, up to a limit.
const HEARERS_PER_INTERVAL: u32 = 16;
const KEY_FRAME_INTERVALS_MAX: u32 = 4;
/// A layer that has been silent for so long is not there, as long as another one is.
const LAYER_SILENT: Duration = Duration::from_millis(1500);
/// Nor is one that misses so many frames of another in a row, for so long and for so many of its own intervals: its encoder
/// has given it up. Only where payloads tell where frames start.
const FRAMES_MISSED: u8 = 4;
const LAYER_MISSED: Duration = Duration::from_millis(400);
const INTERVALS_MISSED: u32 = 3;

/// One participant's transport, as the others know it. A participant with two is two members with one sid.
#[derive(Clone)]
pub struct Member {
    pub session: SessionId,
    pub identity: String,
    pub sid: String,
    pub can_publish_data: bool,
    /// Room messages reach the participant over this transport.
    pub hears_data: bool,
    /// Its transport has keys and a way: before that nothing is routed to it, or its streams would begin unheard.
    pub is_live: bool,
}

struct Subscription {
    session: SessionId,
    is_live: bool,
    selector: Selector,
}

#[derive(Clone, Copy, Default)]
struct Layer {
    last_packet: Option<Instant>,
    /// Frames that each other layer has begun since then.
    missed: [u8; LAYERS_MAX],
    /// When its newest frame began, and how long after the one before.
    last_frame: Option<Instant>,
    interval: Duration,
    key_frame_asked: Option<Instant>,
    /// One was missed again too soon to be asked for: what was asked for before may come too late for that.
    is_key_frame_due: bool,
    /// When its newest key frame began.
    key_frame_at: Option<Instant>,
}

impl Layer {
    fn arrived(&mut self, now: Instant, starts_frame: bool) {
        (self.last_packet, self.missed) = (Some(now), [0; LAYERS_MAX]);
        if starts_frame {
            self.interval = self.last_frame.replace(now).map_or(Duration::ZERO, |before| now.since(before));
        }
    }

    /// How long it may be silent.
    fn silence(&self) -> Duration {
        if self.missed.iter().all(|missed| *missed < FRAMES_MISSED) {
            return LAYER_SILENT;
        }
        (INTERVALS_MISSED * self.interval).clamp(LAYER_MISSED, LAYER_SILENT)
    }
}

/// Where a publication lives.
enum Home {
    /// Here. Shadows that need something of it, and the live layers that they were told.
    Here { shadows: Vec<Shadow>, told: u8 },
    /// On another worker: the live layers that it told, and what it was told that is needed here.
    Elsewhere { worker: WorkerId, live: u8, told: Option<u8> },
}

struct Shadow {
    worker: WorkerId,
    /// Layers that its hearers need, one bit each.
    demand: u8,
    /// Those that they needed before.
    before: u8,
}

/// A published track and those who hear it.
pub struct Publication {
    pub publisher: SessionId,
    is_video: bool,
    home: Home,
    layers: [Layer; LAYERS_MAX],
    subscriptions: Vec<Subscription>,
}

/// What one worker tells another about a track that both have to do with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// A shadow to its home: layers that are needed here, one bit each.
    Demand(u8),
    /// A home to its shadow: layers that are live, one bit each.
    Live(u8),
    /// A shadow to its home: its hearers miss a key frame of this layer.
    KeyFrame(u8),
    /// A home to its shadow: the track was silenced for a while.
    Restart,
}

impl Publication {
    fn new(publisher: SessionId, is_video: bool, home: Home) -> Self {
        Self { publisher, is_video, home, layers: [Layer::default(); LAYERS_MAX], subscriptions: Vec::new() }
    }

    fn restart(&mut self) {
        self.subscriptions.iter_mut().for_each(|s| s.selector.restart());
    }

    fn live_layers(&self, now: Instant) -> u8 {
        if let Home::Elsewhere { live, .. } = self.home {
            return live;
        }
        let is_live = |l: &Layer| l.last_packet.is_some_and(|at| now.since(at) < l.silence());
        self.layers.iter().enumerate().filter(|(_, l)| is_live(l)).fold(0, |set, (i, _)| set | 1 << i)
    }

    /// Of a shadow: its home and what that should be told now about the needs here, if it was not.
    fn news(&mut self) -> Option<(WorkerId, Word)> {
        let Home::Elsewhere { worker, live, told } = &mut self.home else { return None };
        let demand = self.subscriptions.iter_mut().filter(|s| s.is_live).fold(0, |set, s| set | s.selector.demand(*live));
        (told.replace(demand) != Some(demand)).then_some((*worker, Word::Demand(demand)))
    }

    fn demand_of_shadows(&self) -> u8 {
        match &self.home {
            Home::Here { shadows, .. } => shadows.iter().fold(0, |set, s| set | s.demand),
            Home::Elsewhere { .. } => 0,
        }
    }

    /// Whether a request for a key frame of `layer` should leave now; if not, it leaves later unless one comes.
    fn may_ask(&mut self, now: Instant, layer: u8) -> bool {
        let may = self.may_ask_every(now, layer, KEY_FRAME_INTERVAL);
        if let Some(state) = self.layers.get_mut(usize::from(layer)) {
            let has_crossed = state.key_frame_at.is_some_and(|at| now.since(at) < KEY_FRAME_CROSSED);
            state.is_key_frame_due = !may && !has_crossed;
        }
        may
    }

    /// Whether a request that had to wait leaves with this packet of the layer.
    fn is_due(&mut self, now: Instant, layer: u8, starts_key_frame: bool) -> bool {
        let Some(state) = self.layers.get_mut(usize::from(layer)) else { return false };
        if starts_key_frame {
            (state.key_frame_at, state.is_key_frame_due) = (Some(now), false);
        }
        state.is_key_frame_due && self.may_ask(now, layer)
    }

    /// The same for those who do not see the layer yet.
    fn may_start(&mut self, now: Instant, layer: u8) -> bool {
        let hearers = self.subscriptions.iter().filter(|s| s.selector.current() == Some(layer)).count() as u32;
        self.may_ask_every(now, layer, KEY_FRAME_INTERVAL * (1 + hearers / HEARERS_PER_INTERVAL).min(KEY_FRAME_INTERVALS_MAX))
    }

    fn may_ask_every(&mut self, now: Instant, layer: u8, interval: Duration) -> bool {
        let Some(state) = self.layers.get_mut(usize::from(layer)) else { return false };
        if state.key_frame_asked.is_some_and(|at| now.since(at) < interval) {
            return false;
        }
        state.key_frame_asked = Some(now);
        true
    }
}

/// Who gets one packet, and which key frames are missing.
#[derive(Default)]
pub struct Routed {
    /// Hearers, each with how the packet passes to it; none with [`Verdict::Drop`].
    pub hearers: Vec<(SessionId, Verdict)>,
    /// Layers of this track whose publisher should be asked for a key frame.
    pub key_frames: Vec<u8>,
    /// A layer whose key frame was missed again, too soon to be asked for then.
    pub again: Option<u8>,
    /// Somebody hears or awaits the layer of this packet.
    pub is_watched: bool,
    /// Workers whose hearers need it.
    pub shadows: Vec<WorkerId>,
    /// What other workers should be told about the track.
    pub words: Vec<(WorkerId, Word)>,
}

#[derive(Default)]
pub struct Room {
    members: Vec<Member>,
    publications: BTreeMap<TrackId, Publication>,
    pub speakers: Speakers,
    /// Other workers that have members of this room.
    pub elsewhere: Vec<WorkerId>,
}

impl Room {
    pub fn join(&mut self, member: Member) {
        self.leave(member.session);
        self.members.push(member);
    }

    /// Takes a participant out, with what it heard and published; the tracks that are no more.
    pub fn leave(&mut self, session: SessionId) -> Vec<TrackId> {
        self.members.retain(|m| m.session != session);
        let gone: Vec<TrackId> = self.publications.iter().filter(|(_, p)| p.publisher == session).map(|(id, _)| *id).collect();
        for track in &gone {
            self.publications.remove(track);
        }
        for publication in self.publications.values_mut() {
            publication.subscriptions.retain(|s| s.session != session);
        }
        self.speakers.forget(session);
        gone
    }

    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    pub fn member(&self, session: SessionId) -> Option<&Member> {
        self.members.iter().find(|m| m.session == session)
    }

    /// Receivers of a room message: those named, or everybody but the sender.
    pub fn data_receivers<'a>(&'a self, from: Option<SessionId>, destinations: &'a [&str]) -> impl Iterator<Item = SessionId> + 'a {
        let named = move |m: &Member| destinations.is_empty() || destinations.iter().any(|d| *d == m.identity || *d == m.sid);
        let from = from.and_then(|from| self.member(from)).map(|m| m.sid.as_str());
        self.members.iter().filter(move |m| m.hears_data && Some(m.sid.as_str()) != from && named(m)).map(|m| m.session)
    }

    /// What a participant may send has changed.
    pub fn permit(&mut self, session: SessionId, can_publish_data: bool) {
        if let Some(member) = self.members.iter_mut().find(|m| m.session == session) {
            member.can_publish_data = can_publish_data;
        }
    }

    pub fn publish(&mut self, track: TrackId, publisher: SessionId, is_video: bool) {
        let home = Home::Here { shadows: Vec::new(), told: 0 };
        self.publications.entry(track).or_insert_with(|| Publication::new(publisher, is_video, home));
    }

    /// A track of a participant that another worker owns.
    pub fn publish_elsewhere(&mut self, track: TrackId, publisher: SessionId, is_video: bool, worker: WorkerId) {
        let home = Home::Elsewhere { worker, live: 0, told: None };
        self.publications.entry(track).or_insert_with(|| Publication::new(publisher, is_video, home));
    }

    /// The worker that owns the publisher, when that is another.
    pub fn home_of(&self, track: TrackId) -> Option<WorkerId> {
        match self.publications.get(&track)?.home {
            Home::Elsewhere { worker, .. } => Some(worker),
            Home::Here { .. } => None,
        }
    }

    /// Whether its publisher lives here.
    pub fn is_home_of(&self, track: TrackId) -> bool {
        self.publications.get(&track).is_some_and(|p| matches!(p.home, Home::Here { .. }))
    }

    /// What homes should be told since needs here may have changed.
    pub fn news(&mut self) -> Vec<(TrackId, WorkerId, Word)> {
        self.publications.iter_mut().filter_map(|(track, p)| p.news().map(|(to, word)| (*track, to, word))).collect()
    }

    /// Another worker said something about a track. What is to be answered; a layer whose key frame should be asked for.
    pub fn heard(&mut self, now: Instant, track: TrackId, from: WorkerId, word: Word) -> (Option<Word>, Option<u8>) {
        let Some(publication) = self.publications.get_mut(&track) else { return (None, None) };
        match (word, &mut publication.home) {
            (Word::Demand(demand), Home::Here { shadows, told }) => {
                let before = shadows.iter().find(|s| s.worker == from).map_or(0, |s| s.demand);
                shadows.retain(|s| s.worker != from);
                shadows.push(Shadow { worker: from, demand, before });
                // Told each time: a shadow that has come back has forgotten.
                (Some(Word::Live(*told)), None)
            }
            (Word::Live(now_live), Home::Elsewhere { live, .. }) => {
                *live = now_live;
                (publication.news().map(|(_, word)| word), None)
            }
            (Word::KeyFrame(layer), Home::Here { .. }) => {
                let may = publication.may_ask(now, layer);
                (None, may.then_some(layer))
            }
            (Word::Restart, Home::Elsewhere { .. }) => {
                publication.restart();
                (publication.news().map(|(_, word)| word), None)
            }
            (Word::Demand(_) | Word::KeyFrame(_), Home::Elsewhere { .. }) | (Word::Live(_) | Word::Restart, Home::Here { .. }) => {
                (None, None)
            }
        }
    }

    /// A track was silenced for a while: to its hearers it goes on as after a pause. What shadows are to be told.
    pub fn restart(&mut self, track: TrackId) -> Vec<(WorkerId, Word)> {
        let Some(publication) = self.publications.get_mut(&track) else { return Vec::new() };
        publication.restart();
        match &publication.home {
            Home::Here { shadows, .. } => shadows.iter().map(|s| (s.worker, Word::Restart)).collect(),
            Home::Elsewhere { .. } => Vec::new(),
        }
    }

    pub fn unpublish(&mut self, track: TrackId) {
        self.publications.remove(&track);
    }

    pub fn tracks(&self) -> impl Iterator<Item = TrackId> + '_ {
        self.publications.keys().copied()
    }

    pub fn publication(&self, track: TrackId) -> Option<&Publication> {
        self.publications.get(&track)
    }

    /// The transport of a member has keys and a way. `false` when that was known.
    pub fn go_live(&mut self, session: SessionId) -> bool {
        let Some(member) = self.members.iter_mut().find(|m| m.session == session && !m.is_live) else { return false };
        member.is_live = true;
        for publication in self.publications.values_mut() {
            for subscription in publication.subscriptions.iter_mut().filter(|s| s.session == session) {
                subscription.is_live = true;
            }
        }
        true
    }

    pub fn subscribe(&mut self, track: TrackId, session: SessionId) {
        let is_live = self.member(session).is_some_and(|m| m.is_live);
        if let Some(publication) = self.publications.get_mut(&track)
            && !publication.subscriptions.iter().any(|s| s.session == session)
        {
            publication.subscriptions.push(Subscription { session, is_live, selector: Selector::new(publication.is_video) });
        }
    }

    pub fn unsubscribe(&mut self, track: TrackId, session: SessionId) {
        if let Some(publication) = self.publications.get_mut(&track) {
            publication.subscriptions.retain(|s| s.session != session);
        }
    }

    /// What a hearer wants of a track; `None` is nothing.
    pub fn set_wanted(&mut self, track: TrackId, session: SessionId, wanted: Option<Wanted>) {
        if let Some(publication) = self.publications.get_mut(&track)
            && let Some(subscription) = publication.subscriptions.iter_mut().find(|s| s.session == session)
        {
            subscription.selector.set_wanted(wanted);
        }
    }

    /// The hearer lost the picture: the layer it watches, when a request for it should leave now.
    pub fn key_frame_wanted(&mut self, now: Instant, track: TrackId, session: SessionId) -> Option<u8> {
        let publication = self.publications.get_mut(&track)?;
        let subscription = publication.subscriptions.iter().find(|s| s.session == session)?;
        let layer = subscription.selector.current()?;
        publication.may_ask(now, layer).then_some(layer)
    }

    /// Routes one packet. `routed` is reused from call to call.
    pub fn route(&mut self, now: Instant, track: TrackId, layer: u8, frame: FrameInfo, routed: &mut Routed) {
        routed.hearers.clear();
        routed.key_frames.clear();
        routed.again = None;
        routed.is_watched = false;
        routed.shadows.clear();
        routed.words.clear();
        let Some(publication) = self.publications.get_mut(&track) else { return };
        let starts_frame = frame.starts_frame && !frame.is_late;
        for (at, state) in publication.layers.iter_mut().enumerate() {
            if at == usize::from(layer) {
                state.arrived(now, starts_frame);
            } else if let Some(missed) = state.missed.get_mut(usize::from(layer)).filter(|_| starts_frame) {
                *missed = missed.saturating_add(1);
            }
        }
        let live = publication.live_layers(now);
        let (mut missing, mut has_hearers) = (0u8, false);
        for subscription in publication.subscriptions.iter_mut().filter(|s| s.is_live) {
            match subscription.selector.decide(live, layer, frame) {
                Verdict::Drop => {}
                verdict => {
                    has_hearers |= verdict != Verdict::Late;
                    routed.hearers.push((subscription.session, verdict));
                }
            }
            if let Some(layer) = subscription.selector.awaits() {
                missing |= 1 << layer;
            }
        }
        let of_shadows = publication.demand_of_shadows();
        routed.is_watched = has_hearers || (missing | of_shadows) & 1 << layer != 0;
        if let Home::Here { shadows, told } = &mut publication.home {
            // What is repaired of a layer that they have left may still fill a gap.
            let needs = |s: &&Shadow| (if frame.is_late { s.demand | s.before } else { s.demand }) & 1 << layer != 0;
            routed.shadows.extend(shadows.iter().filter(needs).map(|s| s.worker));
            if std::mem::replace(told, live) != live {
                routed.words.extend(shadows.iter().map(|s| (s.worker, Word::Live(live))));
            }
        }
        routed.words.extend(publication.news());
        if publication.is_due(now, layer, frame.starts_key_frame && !frame.is_late) {
            routed.again = Some(layer);
        }
        for layer in (0..LAYERS_MAX as u8).filter(|l| missing & 1 << l != 0) {
            if publication.may_start(now, layer) {
                routed.key_frames.push(layer);
            }
        }
    }

    /// The publisher says that a layer is over: whoever hears it need not wait until that shows.
    pub fn layer_ended(&mut self, track: TrackId, layer: u8) {
        if let Some(state) = self.publications.get_mut(&track).and_then(|p| p.layers.get_mut(usize::from(layer))) {
            state.last_packet = None;
        }
    }

    /// What the publisher could not repair is missed by everybody who watches the layer: whether a key frame should be
    /// asked for now.
    pub fn picture_lost(&mut self, now: Instant, track: TrackId, layer: u8) -> bool {
        let Some(publication) = self.publications.get_mut(&track) else { return false };
        let is_watched = publication.subscriptions.iter().any(|s| s.selector.current() == Some(layer))
            || publication.demand_of_shadows() & 1 << layer != 0;
        is_watched && publication.may_ask(now, layer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACK: TrackId = TrackId(1);
    const START: Verdict = Verdict::Start { spatial_max: 2, temporal_max: layers::TEMPORAL_ALL };
    const KEY: FrameInfo = FrameInfo {
        starts_key_frame: true,
        starts_frame: true,
        ends_frame: true,
        spatial_id: None,
        temporal_id: 0,
        is_switching_up: false,
        is_late: false,
    };

    fn room_of(hearers: u64) -> Room {
        let mut room = Room::default();
        for session in 0..=hearers {
            let identity = format!("p{session}");
            room.join(Member {
                session: SessionId(session),
                identity: identity.clone(),
                sid: identity,
                can_publish_data: true,
                hears_data: true,
                is_live: true,
            });
        }
        room.publish(TRACK, SessionId(0), true);
        for session in 1..=hearers {
            room.subscribe(TRACK, SessionId(session));
        }
        room
    }

    /// A room on two workers: what one has to say is handed to the other until nobody has anything.
    fn converse(now: Instant, rooms: &mut [Room; 2]) {
        loop {
            let mut said: Vec<(usize, WorkerId, TrackId, Word)> = Vec::new();
            for (at, room) in rooms.iter_mut().enumerate() {
                said.extend(room.news().into_iter().map(|(track, _, word)| (1 - at, WorkerId(at as u8), track, word)));
            }
            if said.is_empty() {
                return;
            }
            while let Some((to, from, track, word)) = said.pop() {
                if let (Some(answer), _) = rooms[to].heard(now, track, from, word) {
                    said.push((usize::from(from.0), WorkerId(to as u8), track, answer));
                }
            }
        }
    }

    #[test]
    fn a_shadow_gets_what_its_hearers_need_and_can_come_back() {
        let now = Instant::from_millis;
        let member = |session| Member {
            session: SessionId(session),
            identity: String::new(),
            sid: String::new(),
            can_publish_data: true,
            hears_data: true,
            is_live: true,
        };
        let mut rooms = [Room::default(), Room::default()];
        let mut routed = Routed::default();
        rooms[0].join(member(0));
        rooms[0].publish(TRACK, SessionId(0), true);
        for at in 0..3 {
            rooms[0].route(now(at), TRACK, at as u8, FrameInfo::default(), &mut routed);
        }
        assert!(routed.shadows.is_empty());
        for round in 0..2 {
            rooms[1].join(member(9));
            rooms[1].publish_elsewhere(TRACK, SessionId(0), true, WorkerId(0));
            rooms[1].subscribe(TRACK, SessionId(9));
            converse(now(10), &mut rooms);
            rooms[0].route(now(11), TRACK, 2, KEY, &mut routed);
            assert_eq!(routed.shadows, [WorkerId(1)], "round {round}: the best layer");
            rooms[0].route(now(11), TRACK, 0, KEY, &mut routed);
            assert!(routed.shadows.is_empty(), "round {round}: and no other");
            rooms[1].route(now(12), TRACK, 2, KEY, &mut routed);
            assert_eq!(routed.hearers, [(SessionId(9), START)]);
            rooms[1].set_wanted(TRACK, SessionId(9), Some(Wanted { layer_max: 0, ..Wanted::ALL }));
            converse(now(13), &mut rooms);
            for layer in [0, 2] {
                rooms[0].route(now(14), TRACK, layer, FrameInfo::default(), &mut routed);
                assert_eq!(routed.shadows, [WorkerId(1)], "both, until the switch");
            }
            rooms[1].leave(SessionId(9));
            converse(now(15), &mut rooms);
            rooms[0].route(now(16), TRACK, 2, KEY, &mut routed);
            assert!(routed.shadows.is_empty());
            rooms[1] = Room::default();
        }
    }

    #[test]
    fn a_better_layer_that_comes_later_is_told_needed_and_asked_for() {
        let now = Instant::from_millis;
        let mut rooms = [Room::default(), room_of(1)];
        rooms[1].unpublish(TRACK);
        rooms[0].publish(TRACK, SessionId(0), true);
        rooms[1].publish_elsewhere(TRACK, SessionId(0), true, WorkerId(0));
        rooms[1].subscribe(TRACK, SessionId(1));
        let mut routed = Routed::default();
        rooms[0].route(now(0), TRACK, 1, FrameInfo::default(), &mut routed);
        converse(now(0), &mut rooms);
        rooms[1].route(now(1), TRACK, 1, KEY, &mut routed);
        rooms[0].route(now(1_000), TRACK, 2, FrameInfo::default(), &mut routed);
        for (_, word) in std::mem::take(&mut routed.words) {
            let (answer, _) = rooms[1].heard(now(1_000), TRACK, WorkerId(0), word);
            rooms[0].heard(now(1_000), TRACK, WorkerId(1), answer.expect("a need"));
        }
        rooms[0].route(now(1_010), TRACK, 2, FrameInfo::default(), &mut routed);
        assert_eq!(routed.shadows, [WorkerId(1)]);
        rooms[1].route(now(1_011), TRACK, 2, FrameInfo::default(), &mut routed);
        assert_eq!(routed.key_frames, [2]);
    }

    #[test]
    fn one_key_frame_serves_all_who_wait() {
        let mut room = room_of(3);
        let mut routed = Routed::default();
        let mut asked = 0;
        for ms in 0..400 {
            room.route(Instant::from_millis(ms), TRACK, 0, FrameInfo::default(), &mut routed);
            asked += routed.key_frames.len();
            assert!(routed.hearers.is_empty());
        }
        assert_eq!(asked, 1);
        room.route(Instant::from_millis(401), TRACK, 0, KEY, &mut routed);
        assert_eq!(routed.hearers.len(), 3);
        assert!(routed.hearers.iter().all(|(_, verdict)| matches!(verdict, Verdict::Start { .. })));
    }

    #[test]
    fn a_picture_lost_again_too_soon_is_asked_for_later_unless_one_comes() {
        let at = Instant::from_millis;
        // (when it is wanted again, whether a key frame comes by itself, what is asked for)
        for (wanted_at, key_comes, want) in [(320, false, vec![510]), (320, true, vec![]), (100, false, vec![])] {
            let mut room = room_of(1);
            let mut routed = Routed::default();
            room.route(at(0), TRACK, 0, KEY, &mut routed);
            assert_eq!(room.key_frame_wanted(at(10), TRACK, SessionId(1)), Some(0));
            room.route(at(60), TRACK, 0, KEY, &mut routed);
            let mut asked = Vec::new();
            for ms in (70..2_000).step_by(10) {
                if ms == wanted_at {
                    assert_eq!(room.key_frame_wanted(at(ms), TRACK, SessionId(1)), None, "asked for just now");
                }
                let is_key = key_comes && ms == 400;
                room.route(at(ms), TRACK, 0, if is_key { KEY } else { FrameInfo::default() }, &mut routed);
                assert!(routed.key_frames.is_empty());
                asked.extend(routed.again.map(|_| ms));
            }
            assert_eq!(asked, want, "wanted at {wanted_at} ms");
        }
    }

    #[test]
    fn newcomers_of_a_busy_room_share_their_key_frames() {
        // (hearers, newcomers' requests in four seconds of one newcomer each 100 ms)
        for (hearers, most) in [(1, 8), (40, 3), (200, 2)] {
            let mut room = room_of(hearers);
            let (mut routed, mut asked) = (Routed::default(), 0);
            room.route(Instant::from_millis(0), TRACK, 0, KEY, &mut routed);
            for step in 0..400u64 {
                if step % 10 == 0 {
                    // Away and back: a newcomer to the stream.
                    room.unsubscribe(TRACK, SessionId(1));
                    room.subscribe(TRACK, SessionId(1));
                }
                room.route(Instant::from_millis(10_000 + 10 * step), TRACK, 0, FrameInfo::default(), &mut routed);
                asked += routed.key_frames.len();
            }
            assert_eq!(asked, most, "{hearers} hearers");
        }
    }

    #[test]
    fn a_layer_that_its_encoder_has_given_up_is_noticed_by_the_frames_of_the_others() {
        let mut room = room_of(1);
        let mut routed = Routed::default();
        let frame = FrameInfo { starts_frame: true, ..FrameInfo::default() };
        let mut route = |ms, layer, frame| {
            room.route(Instant::from_millis(ms), TRACK, layer, frame, &mut routed);
            (routed.hearers.len(), routed.key_frames.clone())
        };
        for layer in 0..3 {
            route(0, layer, KEY);
        }
        assert_eq!(route(33, 2, frame), (1, vec![]), "the best one passes");
        for (ms, want) in [(66, vec![]), (300, vec![]), (420, vec![]), (440, vec![1]), (460, vec![])] {
            let asked: Vec<u8> = [0, 1].into_iter().flat_map(|layer| route(ms, layer, frame).1).collect();
            assert_eq!(asked, want, "{ms} ms");
        }
        assert_eq!(route(480, 1, KEY).0, 1);
    }

    #[test]
    fn a_slow_layer_is_not_given_up_between_its_frames() {
        let mut room = room_of(1);
        let mut routed = Routed::default();
        let frame = FrameInfo { starts_frame: true, ..FrameInfo::default() };
        room.set_wanted(TRACK, SessionId(1), Some(Wanted { layer_max: 0, ..Wanted::ALL }));
        for step in 0..300u64 {
            let now = Instant::from_millis(step * 33);
            let is_first = step == 0;
            // Three frames a second below, thirty above.
            if step % 10 == 0 {
                room.route(now, TRACK, 0, if is_first { KEY } else { frame }, &mut routed);
                assert_eq!(routed.hearers.len(), 1, "{step}");
            }
            room.route(now, TRACK, 2, frame, &mut routed);
            assert!(routed.key_frames.is_empty() && routed.hearers.is_empty(), "{step}: {:?}", routed.key_frames);
        }
    }

    #[test]
    fn nothing_starts_before_its_hearer_has_keys() {
        let mut room = room_of(1);
        let late = Member {
            session: SessionId(9),
            identity: "late".into(),
            sid: "late".into(),
            can_publish_data: true,
            hears_data: true,
            is_live: false,
        };
        room.join(late);
        room.subscribe(TRACK, SessionId(9));
        let mut routed = Routed::default();
        room.route(Instant::from_millis(0), TRACK, 0, KEY, &mut routed);
        assert_eq!(routed.hearers, [(SessionId(1), START)]);
        room.go_live(SessionId(9));
        room.route(Instant::from_millis(900), TRACK, 0, FrameInfo::default(), &mut routed);
        assert_eq!(routed.key_frames, [0], "it needs a picture of its own to start from");
        room.route(Instant::from_millis(901), TRACK, 0, KEY, &mut routed);
        assert_eq!(routed.hearers, [(SessionId(1), Verdict::Forward { spatial_max: 2 }), (SessionId(9), START)]);
    }

    #[test]
    fn messages_reach_the_named_and_never_the_sender() {
        let room = room_of(2);
        let to = |destinations: &[&str]| room.data_receivers(Some(SessionId(0)), destinations).map(|s| s.0).collect::<Vec<_>>();
        assert_eq!(to(&[]), [1, 2]);
        assert_eq!(to(&["p2", "p0", "nobody"]), [2]);
    }

    #[test]
    fn who_leaves_is_forgotten() {
        let mut room = room_of(2);
        room.leave(SessionId(1));
        let mut routed = Routed::default();
        room.route(Instant::from_millis(0), TRACK, 0, KEY, &mut routed);
        assert_eq!(routed.hearers, [(SessionId(2), START)]);
        room.leave(SessionId(0));
        assert!(room.publication(TRACK).is_none());
        room.leave(SessionId(2));
        assert!(room.is_empty());
    }
}
