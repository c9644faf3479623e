//! Who asked to come in, and what became of it.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

/// What may become of a join; the errors that refuse one name theirs.
pub(super) const JOINS: [&str; 17] = [
    "joined",
    "resumed",
    "told_to_rejoin",
    "token_missing",
    "token_malformed",
    "token_unknown_key",
    "token_expired",
    "token_not_yet_valid",
    "token_bad_signature",
    "token_incomplete",
    "token_revoked",
    "not_allowed",
    "bad_request",
    "rationed",
    "room_missing",
    "room_full",
    "draining",
];
/// Why a request over HTTP is turned away before anything of it is looked at.
pub(super) const REFUSALS: [&str; 2] = ["foreign_origin", "address_rationed"];

type ByWord = Family<[(&'static str, &'static str); 1], Counter>;

/// Counted by the control plane.
#[derive(Debug)]
pub struct Entrance {
    joins: ByWord,
    refusals: ByWord,
}

impl Default for Entrance {
    /// All words are there from the start: a rate needs the zero before the one.
    fn default() -> Self {
        let of = |label, words: &[&'static str]| {
            let family = ByWord::default();
            words.iter().for_each(|word| drop(family.get_or_create(&[(label, *word)])));
            family
        };
        Self { joins: of("outcome", &JOINS), refusals: of("reason", &REFUSALS) }
    }
}

impl Entrance {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register("postern_joins", "those who wanted to join, by what became of it", self.joins.clone());
        let text = "requests over HTTP that were turned away before anything of them was looked at";
        registry.register("postern_http_refusals", text, self.refusals.clone());
    }

    pub fn join(&self, outcome: &'static str) {
        debug_assert!(JOINS.contains(&outcome), "{outcome}");
        self.joins.get_or_create(&[("outcome", outcome)]).inc();
    }

    pub fn refused(&self, reason: &'static str) {
        debug_assert!(REFUSALS.contains(&reason), "{reason}");
        self.refusals.get_or_create(&[("reason", reason)]).inc();
    }
}
