//! From the text of a file and the environment to checked settings. What is refused is named with its place, what was
//! found, what is accepted, and what to do.

use super::{Config, Impossible};
use std::fmt;
use toml::de::{DeTable, DeValue, Error};

/// What the environment's settings begin with: `POSTERN_<SECTION>_<KEY>`, or `POSTERN_<SECTION>` for a whole section.
const PREFIX: &str = "POSTERN_";
/// Sections whose keys are names that people choose: the environment, which knows no small letters, sets them as a whole.
const NAMED_FREELY: [&str; 1] = ["keys"];
/// Sections that hold secrets: nothing of their values is ever said.
const SECRET: [&str; 3] = ["keys", "turn", "admin"];

/// Why settings were refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The parser's words: line, column, the line itself, what is accepted.
    #[error("{0}")]
    Syntax(String),
    #[error("{variable} in the environment: {why}")]
    Environment { variable: String, why: String },
    #[error("{place}{what}")]
    Impossible { place: Place, what: Impossible },
}

/// Where a setting stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    Line(usize),
    Variable(String),
    /// It was left out.
    Nowhere,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(line) => write!(f, "line {line}: "),
            Self::Variable(name) => write!(f, "{name} in the environment: "),
            Self::Nowhere => Ok(()),
        }
    }
}

impl Config {
    /// Reads and checks a TOML text.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        Self::read(text, &[])
    }

    /// Reads and checks a TOML text; what the environment sets comes over it.
    pub fn read(text: &str, environment: &[(String, String)]) -> Result<Self, ConfigError> {
        let mut config: Config = toml::from_str(text).map_err(|e| refused(text, &e))?;
        let mut table: toml::Table = toml::from_str(text).map_err(|e| refused(text, &e))?;
        let mut overlaid = Vec::new();
        for (variable, value) in environment {
            let Some((section, key)) = named(variable, value) else { continue };
            let why = |why: String| ConfigError::Environment { variable: variable.clone(), why };
            if NAMED_FREELY.contains(&section) && key.is_some() {
                return Err(why(format!("set {PREFIX}{}='{{ name = \"secret\" }}' as a whole", section.to_ascii_uppercase())));
            }
            (table, config) = overlay(&table, section, key.as_deref(), value).map_err(|e| {
                why(format!(
                    "{}{}",
                    if SECRET.contains(&section) { said(e.message()) } else { e.message().to_owned() },
                    remedy(e.message())
                ))
            })?;
            overlaid.push((format!("{section}.{}", key.unwrap_or_default()), variable.clone()));
        }
        config.check().map_err(|what| ConfigError::Impossible { place: place_of(text, &overlaid, what.key), what })?;
        Ok(config)
    }
}

/// The parser's words: the place, what is accepted, and the line itself where that can hold no secret.
fn refused(text: &str, error: &Error) -> ConfigError {
    let at = error.span().map_or(0, |span| span.start.min(text.len()));
    let line = 1 + text.get(..at).unwrap_or_default().matches('\n').count();
    let words = match harmless(text, line) {
        Some(()) => error.to_string(),
        None => format!("line {line}: {}", said(error.message())),
    };
    ConfigError::Syntax(format!("{words}{}", remedy(error.message())))
}

/// Whether a line stands in a section that holds no secrets, by a plain header, and sets a key that is known there.
fn harmless(text: &str, line: usize) -> Option<()> {
    let lines: Vec<&str> = text.lines().take(line).collect();
    let section = lines.iter().rev().find_map(|line| line.trim().strip_prefix('[')?.split_once(']').map(|(name, _)| name))?;
    let known = super::defaults(section);
    let key = lines.last()?.split(['=', '.']).next()?.trim();
    (!SECRET.contains(&section) && known.contains_key(key)).then_some(())
}

/// The parser's message. What it quotes of a value is left out; names of keys are not.
fn said(message: &str) -> String {
    let is_of_names = ["unknown field", "duplicate key", "missing field"].iter().any(|begin| message.starts_with(begin));
    let quotes = |c: char| c == '"' || c == '`';
    match (message.find(quotes), message.rfind(quotes)) {
        (Some(first), Some(last)) if !is_of_names => format!("{}...{}", &message[..first], &message[last + 1..]),
        _ => message.to_owned(),
    }
}

/// Section and key that a variable names; `None` for what is no setting. Kubernetes sets variables of its own for each service
/// (`POSTERN_TURN_SERVICE_HOST`, `POSTERN_TURN_PORT_3478_TCP`): they are none.
fn named(variable: &str, value: &str) -> Option<(&'static str, Option<String>)> {
    let name = variable.strip_prefix(PREFIX)?.to_ascii_lowercase();
    let is_of_service = ["_service_host", "_service_port"].iter().any(|part| name.contains(part));
    let is_of_port = name.contains("_port_") && (name.contains("_tcp") || name.contains("_udp"));
    let is_link = name.ends_with("_port") && (value.starts_with("tcp://") || value.starts_with("udp://"));
    if is_of_service || is_of_port || is_link {
        return None;
    }
    super::SECTIONS.iter().find_map(|section| {
        let rest = name.strip_prefix(section)?;
        if rest.is_empty() { Some((*section, None)) } else { Some((*section, Some(rest.strip_prefix('_')?.to_owned()))) }
    })
}

/// Settings with one more: as TOML where that fits, else as bare text.
fn overlay(table: &toml::Table, section: &str, key: Option<&str>, value: &str) -> Result<(toml::Table, Config), Error> {
    let with = |value: toml::Value| {
        let mut table = table.clone();
        match key {
            None => drop(table.insert(section.to_owned(), value)),
            Some(key) => {
                let section = table.entry(section).or_insert_with(|| toml::Table::new().into());
                section.as_table_mut().map(|section| section.insert(key.to_owned(), value));
            }
        }
        Ok((table.clone(), table.try_into::<Config>()?))
    };
    let as_toml = toml::from_str::<toml::Table>(&format!("value = {value}")).ok().and_then(|mut t| t.remove("value"));
    let as_text = || with(toml::Value::String(value.to_owned()));
    match as_toml {
        Some(value) => with(value).or_else(|error| as_text().map_err(|_| error)),
        None => as_text(),
    }
}

/// What was probably meant by a key that is unknown here.
fn remedy(message: &str) -> String {
    let mut quoted = message.split('`').skip(1).step_by(2);
    let (true, Some(found)) = (message.starts_with("unknown field"), quoted.next()) else { return String::new() };
    let alike = quoted.map(|known| (strsim::damerau_levenshtein(found, known), known)).min().filter(|(distance, _)| *distance <= 3);
    let elsewhere = super::SECTIONS.iter().find(|section| super::defaults(section).contains_key(found));
    match (elsewhere, alike) {
        (Some(section), _) => format!("\nremedy: `{found}` belongs under [{section}]\n"),
        (None, Some((_, known))) => format!("\nremedy: did you mean `{known}`?\n"),
        (None, None) => String::new(),
    }
}

/// Where a key such as `turn.peers` stands; of one that was left out, its section.
fn place_of(text: &str, overlaid: &[(String, String)], key: &str) -> Place {
    let is_it = |set: &String| *set == key || set.strip_suffix('.').is_some_and(|section| key.split('.').next() == Some(section));
    if let Some((_, variable)) = overlaid.iter().rev().find(|(set, _)| is_it(set)) {
        return Place::Variable(variable.clone());
    }
    let Ok(root) = DeTable::parse(text) else { return Place::Nowhere };
    let mut table = Some(root.get_ref());
    let mut place = Place::Nowhere;
    for part in key.split('.') {
        let Some((name, value)) = table.and_then(|t| t.iter().find(|(name, _)| name.get_ref() == part)) else { break };
        place = Place::Line(1 + text[..name.span().start].matches('\n').count());
        table = if let DeValue::Table(inner) = value.get_ref() { Some(inner) } else { None };
    }
    place
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: &str = "keys = { a = \"b\" }\n";

    #[test]
    fn what_is_wrong_is_named_with_its_place_and_a_remedy() {
        let rows = [
            ("[server]\ndomian = \"x\"", &["line 2", "domian", "did you mean `domain`?"][..]),
            ("[network]\ndomain = \"x\"", &["line 2", "`domain` belongs under [server]"]),
            ("[network]\nmedia_udp_port = 70000", &["line 2", "u16"]),
            ("[network]\npublic_addresses = [\"meet.example.eu\"]", &["line 2", "an IP address such as"]),
            ("[turn]\nallocations_per_user = true", &["line 2", "invalid type: boolean"]),
            ("[keys]\na = \"b\"\na = \"c\"", &["line 3", "duplicate key"]),
            ("[keys]\na = 5", &["line 2: invalid type: integer ..., expected a string"]),
            ("", &["keys: no API key; run `postern keys`"]),
            ("[network]\n\nturn_ports = [443]\n[keys]\na = \"b\"", &["line 3: network.turn_ports: 443 is also network.media_udp_port"]),
            (
                "[keys]\na = \"b\"\n[turn]\ndenied_peers = [\"10.0.0.0/40\"]",
                &["line 4: turn.denied_peers: \"10.0.0.0/40\"", "10.20.0.0/16"],
            ),
        ];
        for (text, wants) in rows {
            let error = Config::parse(text).expect_err(text).to_string();
            for want in wants {
                assert!(error.contains(want), "{text:?} gave {error:?}, without {want:?}");
            }
        }
    }

    #[test]
    fn secrets_are_never_said() {
        let texts = [
            "[keys]\na = \"hush",
            "[keys]\na = hush",
            "[keys]\na = [\"hush\"]",
            "keys = { a = \"hush\", a = \"hush\" }",
            "keys = \"hush\"",
            "[turn]\nshared_secrets = \"hush\"",
            "[turn]\nusers = [\"hush\"]",
            "[turn]\nusers.ada = [\"hush\"]",
            "[turn]\nshared_secret = [\"hush\"]",
            "[server]\nkeys = { a = \"hush\" }",
            "[[\"keys\"]]\na = \"hush",
            "key = { a = \"hush\" }",
            "[keys]\na = \"hu\\\"sh\" \"hush\"",
            "[turn]\nshared_secrets = [\n  \"hush\",\n  5,\n  hush,\n]",
            "[turn.users]\na = [\"hush\"]",
        ];
        for text in texts {
            let error = Config::parse(text).expect_err(text).to_string();
            assert!(!error.contains("hush"), "{error}");
            assert!(error.contains("line "), "{error}");
        }
        for (variable, value) in [("POSTERN_KEYS", "a=hush"), ("POSTERN_TURN_SHARED_SECRETS", "hush"), ("POSTERN_TURN_USERS", "[\"hush\"]")]
        {
            let error = read(KEYS, &[(variable, value)]).expect_err(variable);
            assert!(!error.contains("hush") && error.contains(variable), "{error}");
        }
    }

    fn read(text: &str, environment: &[(&str, &str)]) -> Result<Config, String> {
        let owned: Vec<_> = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Config::read(text, &owned).map_err(|e| e.to_string())
    }

    #[test]
    fn the_environment_comes_over_the_file() {
        let environment = [
            ("POSTERN_SERVER_DOMAIN", "meet.example.eu"),
            ("POSTERN_NETWORK_MEDIA_UDP_PORT", "7443"),
            ("POSTERN_NETWORK_PUBLIC_ADDRESSES", "[\"203.0.113.7\"]"),
            ("POSTERN_TURN_SHARED_SECRETS", "[\"123\"]"),
            ("POSTERN_TURN_REALM", "123"),
            ("POSTERN_KEYS", "{ c = \"d\" }"),
            ("POSTERN_LOG_LEVEL", "debug"),
            ("POSTERN_HOME", "is no setting"),
            ("POSTERN_TURN_SERVICE_HOST", "10.0.0.1"),
            ("POSTERN_TURN_PORT", "tcp://10.0.0.1:3478"),
            ("POSTERN_ADMIN_PORT_7881_TCP_ADDR", "10.0.0.1"),
            ("PATH", "/bin"),
        ];
        let config = read(&format!("{KEYS}[network]\nmedia_udp_port = 9\nturn_ports = [3479]"), &environment).expect("it fits");
        assert_eq!((config.server.domain.as_str(), config.network.media_udp_port), ("meet.example.eu", 7443));
        assert_eq!((config.turn.realm.as_str(), config.network.turn_ports), ("123", vec![3479]));
        assert_eq!(config.keys.into_iter().collect::<Vec<_>>(), [("c".to_owned(), "d".to_owned())]);
        assert_eq!(config.log.level, "debug");
    }

    #[test]
    fn a_variable_that_does_not_fit_is_named() {
        let rows = [
            ("POSTERN_SERVER_DOMIAN", "x", "POSTERN_SERVER_DOMIAN in the environment: unknown field `domian`"),
            ("POSTERN_NETWORK_MEDIA_UDP_PORT", "high", "POSTERN_NETWORK_MEDIA_UDP_PORT in the environment: invalid type"),
            ("POSTERN_NETWORK_TURN_PORTS", "[443]", "POSTERN_NETWORK_TURN_PORTS in the environment: network.turn_ports: 443"),
            ("POSTERN_KEYS_MINE", "x", "set POSTERN_KEYS="),
            ("POSTERN_KEYS", "{}", "POSTERN_KEYS in the environment: keys: no API key"),
        ];
        for (variable, value, want) in rows {
            let error = read(KEYS, &[(variable, value)]).expect_err(variable);
            assert!(error.contains(want), "{variable}={value} gave {error:?}");
        }
    }
}
