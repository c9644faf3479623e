//! What was measured: as a table for people, as JSON for whoever compares runs.

use super::host;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// One figure beside its floor.
pub struct Row {
    pub name: String,
    pub unit: &'static str,
    pub ours: f64,
    /// What the least that must be done costs, in the same unit; `None` where nothing has to cost anything.
    pub floor: Option<f64>,
    /// Median of the ratios of the pairs.
    pub ratio: Option<f64>,
    pub peers: BTreeMap<String, f64>,
    /// Where rows are measured at a rate that suits the machine.
    pub packets_a_second: Option<u32>,
}

impl Row {
    pub fn new(name: impl Into<String>, unit: &'static str, ours: f64) -> Self {
        Self { name: name.into(), unit, ours, floor: None, ratio: None, peers: BTreeMap::new(), packets_a_second: None }
    }

    /// From pairs of figures that were measured one after the other.
    pub fn of_pairs(name: impl Into<String>, unit: &'static str, pairs: &[(f64, f64)]) -> Self {
        let median = |of: fn(&(f64, f64)) -> f64| host::median(pairs.iter().map(of).collect());
        Self { floor: Some(median(|p| p.1)), ratio: Some(median(|p| p.0 / p.1)), ..Self::new(name, unit, median(|p| p.0)) }
    }

    fn json(&self) -> Value {
        json!({
            "name": self.name, "unit": self.unit, "ours": self.ours, "floor": self.floor,
            "ratio_to_floor": self.ratio, "peers": self.peers, "packets_per_second": self.packets_a_second,
        })
    }

    fn line(&self) -> String {
        let or_dash = |v: Option<f64>| v.map_or_else(|| "-".to_owned(), number);
        let ratio = self.ratio.map_or_else(|| "-".to_owned(), |r| format!("{r:.2}"));
        let peers: Vec<String> = self.peers.iter().map(|(name, value)| format!("{name} {}", number(*value))).collect();
        format!("{:<46} {:>9} {:>9} {ratio:>6}  {:<12} {}", self.name, number(self.ours), or_dash(self.floor), self.unit, peers.join(", "))
    }
}

fn number(value: f64) -> String {
    match value.abs() {
        v if v >= 1_000.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.3}"),
    }
}

pub struct Summary {
    rows: Vec<Row>,
    missing: BTreeMap<String, String>,
    load_before: String,
    began: std::time::Instant,
}

impl Summary {
    pub fn begin() -> Self {
        Self { rows: Vec::new(), missing: BTreeMap::new(), load_before: host::load_average(), began: std::time::Instant::now() }
    }

    pub fn add(&mut self, row: Row) {
        eprintln!("  {}", row.line());
        self.rows.push(row);
    }

    pub fn not_measured(&mut self, name: &str, why: &str) {
        self.missing.insert(name.to_owned(), why.to_owned());
    }

    /// Prints the table and writes the file.
    pub fn end(&self) {
        println!("{:<46} {:>9} {:>9} {:>6}  {:<12} peers", "row", "ours", "floor", "ratio", "unit");
        self.rows.iter().for_each(|row| println!("{}", row.line()));
        self.missing.iter().for_each(|(name, why)| println!("{name}: not measured: {why}"));
        let took = self.began.elapsed().as_secs();
        println!("{}; load before {}, after {}; {took} s", host::describe(), self.load_before, host::load_average());
        let summary = json!({
            "results": self.rows.iter().map(Row::json).collect::<Vec<_>>(),
            "not_measured": self.missing,
            "machine": host::describe(),
            "load_average": { "before": self.load_before, "after": host::load_average() },
            "seconds": took,
        });
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench");
        let written = std::fs::create_dir_all(&folder).and_then(|()| std::fs::write(folder.join("summary.json"), format!("{summary:#}\n")));
        match written {
            Ok(()) => println!("target/bench/summary.json"),
            Err(error) => eprintln!("the summary is not written: {error}"),
        }
    }
}
