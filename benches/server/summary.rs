//! What was measured: as a table for people, as JSON for whoever compares runs.

use super::host;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Figures of one kind, each beside its floor.
pub struct Row {
    name: String,
    unit: &'static str,
    ours: Vec<f64>,
    /// What the least that must be done cost, in the same turn as each of ours; nothing where nothing has to cost anything.
    floor: Vec<f64>,
    pub peers: BTreeMap<String, Vec<f64>>,
    /// Where rows are measured at a rate that suits the machine.
    pub packets_a_second: Option<u32>,
}

impl Row {
    pub fn new(name: impl Into<String>, unit: &'static str, ours: f64) -> Self {
        Self { name: name.into(), unit, ours: vec![ours], floor: Vec::new(), peers: BTreeMap::new(), packets_a_second: None }
    }

    /// From pairs of figures that were measured one after the other.
    pub fn of_pairs(name: impl Into<String>, unit: &'static str, pairs: &[(f64, f64)]) -> Self {
        let (ours, floor) = pairs.iter().copied().unzip();
        Self { name: name.into(), unit, ours, floor, peers: BTreeMap::new(), packets_a_second: None }
    }

    /// What another pass found. When it had to go lower with its rate, what was found before is of no use beside it.
    fn merge(&mut self, other: Self) {
        if other.packets_a_second != self.packets_a_second {
            *self = other;
            return;
        }
        self.ours.extend(other.ours);
        self.floor.extend(other.floor);
        other.peers.into_iter().for_each(|(name, values)| self.peers.entry(name).or_default().extend(values));
    }

    fn ours(&self) -> f64 {
        host::median(self.ours.clone())
    }

    fn floor(&self) -> Option<f64> {
        (!self.floor.is_empty()).then(|| host::median(self.floor.clone()))
    }

    /// Median of the ratios of the pairs.
    fn ratio(&self) -> Option<f64> {
        let ratios: Vec<f64> = self.ours.iter().zip(&self.floor).map(|(ours, floor)| ours / floor).collect();
        (!ratios.is_empty()).then(|| host::median(ratios))
    }

    fn peers(&self) -> BTreeMap<&str, f64> {
        self.peers.iter().map(|(name, values)| (name.as_str(), host::median(values.clone()))).collect()
    }

    fn json(&self) -> Value {
        json!({
            "name": self.name, "unit": self.unit, "ours": self.ours(), "floor": self.floor(),
            "ratio_to_floor": self.ratio(), "peers": self.peers(), "packets_per_second": self.packets_a_second,
            "windows": self.ours.len(),
        })
    }

    fn line(&self) -> String {
        let or_dash = |v: Option<f64>| v.map_or_else(|| "-".to_owned(), number);
        let ratio = self.ratio().map_or_else(|| "-".to_owned(), |r| format!("{r:.2}"));
        let peers: Vec<String> = self.peers().iter().map(|(name, value)| format!("{name} {}", number(*value))).collect();
        format!(
            "{:<46} {:>9} {:>9} {ratio:>6}  {:<12} {}",
            self.name,
            number(self.ours()),
            or_dash(self.floor()),
            self.unit,
            peers.join(", ")
        )
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

    /// To what earlier passes found, if there were any.
    pub fn add(&mut self, row: Row) {
        eprintln!("  {}", row.line());
        match self.rows.iter_mut().find(|r| r.name == row.name) {
            Some(known) => known.merge(row),
            None => self.rows.push(row),
        }
    }

    pub fn not_measured(&mut self, name: &str, pass: usize, why: &str) {
        self.missing.insert(format!("{name}, pass {pass}"), why.to_owned());
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
