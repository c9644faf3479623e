//! The rules of the house, as tests: floors, headers, sizes, where `unsafe` may stand.

use std::fs;
use std::path::{Path, PathBuf};

/// Rooms by floor. A file may name rooms of lower floors and its own; config stands on the ground.
const FLOORS: &[(&str, u8)] = &[
    ("base", 0),
    ("config", 0),
    ("crypto", 1),
    ("wire", 1),
    ("engine", 2),
    ("session", 3),
    ("room", 3),
    ("shard", 4),
    ("io", 5),
    ("sim", 5),
    ("control", 5),
    ("cli", 6),
    ("load", 6),
    ("main", 6),
    ("lib", 6),
];

/// Files of one protocol's family may import each other; different families may not (docs/ARCHITECTURE.md).
const ENGINE_FAMILIES: &[&[&str]] =
    &[&["turn", "turn_auth", "relay_table", "relay_ports", "peer_policy", "flood"], &["rtp_out", "renumber"]];

/// Longest file, lines with its tests. Each longer one has its reason here.
const LINES_MAX: usize = 900;

fn sources() -> Vec<(PathBuf, String)> {
    fn walk(dir: &Path, out: &mut Vec<(PathBuf, String)>) {
        for entry in fs::read_dir(dir).expect("a readable folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                walk(&path, out);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(&path).expect("a readable file");
                out.push((path, text));
            }
        }
    }
    let mut out = Vec::new();
    walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut out);
    out
}

fn room_of(path: &Path) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let inner = path.strip_prefix(root).expect("below src");
    let first = inner.components().next().expect("a component").as_os_str().to_string_lossy().into_owned();
    first.trim_end_matches(".rs").to_owned()
}

fn floor_of(room: &str) -> u8 {
    FLOORS.iter().find(|(name, _)| *name == room).unwrap_or_else(|| panic!("{room} has no floor")).1
}

/// Every `crate::a::b` path of the code proper: tests below `#[cfg(test)]` may look sideways for an oracle.
fn paths(text: &str) -> Vec<Vec<String>> {
    let code = text.split("#[cfg(test)]").next().expect("a first part");
    let code: String = code.lines().filter(|l| !l.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    code.match_indices("crate::")
        .map(|(at, _)| {
            let rest = &code[at + "crate::".len()..];
            let end = rest.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':')).unwrap_or(rest.len());
            rest[..end].split("::").filter(|s| !s.is_empty()).map(str::to_owned).collect()
        })
        .collect()
}

#[test]
fn imports_go_downward() {
    let mut wrong = Vec::new();
    for (file, text) in sources() {
        let room = room_of(&file);
        if room == "lib" {
            continue;
        }
        for path in paths(&text) {
            let Some(target) = path.first().filter(|t| FLOORS.iter().any(|(name, _)| name == t)) else { continue };
            let is_below = floor_of(target) < floor_of(&room);
            if *target != room && !is_below {
                wrong.push(format!("{} names crate::{}", file.display(), path.join("::")));
            }
        }
    }
    assert!(wrong.is_empty(), "against the floors:\n{}", wrong.join("\n"));
}

#[test]
fn engines_do_not_know_each_other() {
    let mut wrong = Vec::new();
    for (file, text) in sources() {
        if room_of(&file) != "engine" {
            continue;
        }
        let inner = file.strip_prefix(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/engine")).expect("below engine");
        let own = inner.components().next().expect("a component").as_os_str().to_string_lossy().trim_end_matches(".rs").to_owned();
        for path in paths(&text).into_iter().filter(|p| p.first().is_some_and(|r| r == "engine")) {
            let Some(target) = path.get(1).filter(|t| **t != own) else { continue };
            let is_family = ENGINE_FAMILIES.iter().any(|f| f.contains(&own.as_str()) && f.contains(&target.as_str()));
            if !is_family {
                wrong.push(format!("{own} names {target}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_file_says_what_it_is_for() {
    for (file, text) in sources() {
        assert!(text.starts_with("//! "), "{} has no header", file.display());
    }
}

#[test]
fn files_stay_readable() {
    for (file, text) in sources() {
        let lines = text.lines().count();
        assert!(lines <= LINES_MAX, "{} has {lines} lines: would two rooms be more comfortable?", file.display());
    }
}

#[test]
fn unsafe_stands_in_one_place() {
    for (file, text) in sources() {
        let has = text
            .lines()
            .any(|l| !l.trim_start().starts_with("//") && (l.contains("unsafe {") || l.contains("unsafe impl") || l.contains("unsafe fn")));
        assert!(!has || file.ends_with("io/udp.rs"), "{} uses unsafe", file.display());
    }
}

#[test]
fn nothing_at_or_below_the_shard_awaits_locks_or_looks_at_the_clock() {
    const BANNED: &[&str] = &["async fn", ".await;", ".await?", "Mutex", "RwLock", "SystemTime", "Instant::now", "thread::"];
    for (file, text) in sources() {
        if floor_of(&room_of(&file)) > 4 || file.ends_with("tests.rs") {
            continue;
        }
        let code = text.split("#[cfg(test)]").next().expect("a first part");
        for word in BANNED {
            let found = code.lines().find(|l| !l.trim_start().starts_with("//") && l.contains(word));
            assert!(found.is_none(), "{} has {word}: {found:?}", file.display());
        }
    }
}
