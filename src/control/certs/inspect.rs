//! What an administrator should know of a certificate before clients tell: its names, its times, its chain.

use rustls::pki_types::CertificateDer;
use std::time::{Duration, SystemTime};
use x509_cert::Certificate;
use x509_cert::der::{DateTime, Decode};
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::time::Time;

/// How long before its end a certificate is called old.
const OLD_WITHIN: Duration = Duration::from_secs(14 * 24 * 3600);

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Findings {
    /// From when until when the first certificate of the chain is valid.
    pub begins: Option<SystemTime>,
    pub expires: Option<SystemTime>,
    /// Clients will refuse it.
    pub problems: Vec<String>,
    /// They will soon, or some of them.
    pub warnings: Vec<String>,
}

pub(super) fn look(chain: &[CertificateDer<'_>], domain: &str, now: SystemTime) -> Findings {
    let mut found = Findings { begins: None, expires: None, problems: Vec::new(), warnings: Vec::new() };
    let parsed: Result<Vec<Certificate>, _> = chain.iter().map(|c| Certificate::from_der(c)).collect();
    let chain = match parsed {
        Ok(chain) => chain,
        Err(error) => {
            found.problems.push(format!("the certificate cannot be read: {error}"));
            return found;
        }
    };
    let Some(leaf) = chain.first() else { return found };
    let validity = leaf.tbs_certificate().validity();
    let (from, until) = (moment(validity.not_before), moment(validity.not_after));
    (found.begins, found.expires) = (Some(from), Some(until));
    if now < from {
        found.problems.push(format!(
            "the certificate is valid only from {}, and this machine's clock says {}: set the clock (timedatectl), or order anew",
            day(from),
            day(now)
        ));
    } else if now >= until {
        found.problems.push(format!("the certificate expired on {}: renew it, then `postern reload`", day(until)));
    } else if now + OLD_WITHIN >= until {
        found.warnings.push(format!("the certificate expires on {}: renew it, then `postern reload`", day(until)));
    }
    let names = names(leaf);
    if !names.iter().any(|name| is_for(name, domain)) {
        found.problems.push(format!("the certificate is for {}, not for server.domain {domain:?}", names.join(", ")));
    }
    let tbs = |c: &Certificate| (c.tbs_certificate().subject().clone(), c.tbs_certificate().issuer().clone());
    if chain.windows(2).any(|pair| tbs(&pair[0]).1 != tbs(&pair[1]).0) {
        found.problems.push("the certificates of tls.cert_file are not in order: the server's own first, then who signed each".into());
    } else if let [only] = chain.as_slice()
        && tbs(only).0 != tbs(only).1
    {
        found.warnings.push("tls.cert_file holds no intermediate certificate: many clients need it (often the file fullchain.pem)".into());
    }
    found
}

/// Names and addresses that a certificate is for.
fn names(leaf: &Certificate) -> Vec<String> {
    let extension = leaf.tbs_certificate().get_extension::<SubjectAltName>();
    let Ok(Some((_, SubjectAltName(names)))) = extension else { return vec!["nobody (it has no alternative names)".into()] };
    let name = |name: &GeneralName| match name {
        GeneralName::DnsName(name) => Some(name.to_string()),
        GeneralName::IpAddress(bytes) => match bytes.as_bytes() {
            [a, b, c, d] => Some(std::net::Ipv4Addr::new(*a, *b, *c, *d).to_string()),
            bytes => <[u8; 16]>::try_from(bytes).ok().map(|b| std::net::Ipv6Addr::from(b).to_string()),
        },
        _ => None,
    };
    names.iter().filter_map(name).collect()
}

/// Whether a name of a certificate covers a domain (RFC 6125 §6.4): a leading `*` stands for one label.
fn is_for(name: &str, domain: &str) -> bool {
    let wild = || Some((name.strip_prefix("*.")?, domain.split_once('.')?.1));
    name.eq_ignore_ascii_case(domain) || wild().is_some_and(|(name, rest)| name.eq_ignore_ascii_case(rest))
}

fn moment(time: Time) -> SystemTime {
    SystemTime::UNIX_EPOCH + time.to_unix_duration()
}

/// A moment as people write it, in UTC.
fn day(at: SystemTime) -> String {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    DateTime::from_unix_duration(since).map_or_else(|_| "an impossible time".into(), |t| t.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, Issuer, KeyPair};

    /// A chain of two: for these names, valid over these years.
    fn chain(names: &[&str], years: [i32; 2]) -> Vec<CertificateDer<'static>> {
        let (ca_key, key) = (KeyPair::generate().expect("a key"), KeyPair::generate().expect("a key"));
        let mut ca = CertificateParams::default();
        ca.distinguished_name.push(rcgen::DnType::CommonName, "ca");
        ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca_cert = ca.self_signed(&ca_key).expect("an authority");
        let mut params = CertificateParams::new(names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>()).expect("names");
        (params.not_before, params.not_after) = (rcgen::date_time_ymd(years[0], 1, 1), rcgen::date_time_ymd(years[1], 1, 1));
        let leaf = params.signed_by(&key, &Issuer::new(ca, ca_key)).expect("a leaf");
        vec![leaf.der().clone(), ca_cert.der().clone()]
    }

    #[test]
    fn what_clients_would_refuse_is_said_before() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_780_000_000); // 2026-05-28
        let good = chain(&["meet.example.eu"], [2026, 2027]);
        let rows = [
            ("good", good.clone(), &[][..], &[][..]),
            ("a wildcard", chain(&["*.example.eu"], [2026, 2027]), &[], &[]),
            ("another name", chain(&["example.eu"], [2026, 2027]), &["is for example.eu, not for server.domain"], &[]),
            ("expired", chain(&["meet.example.eu"], [2020, 2021]), &["expired on 2021-01-01"], &[]),
            ("not yet", chain(&["meet.example.eu"], [2030, 2031]), &["set the clock"], &[]),
            ("out of order", good.iter().rev().cloned().collect(), &["not for server.domain", "not in order"], &[]),
            ("alone", good[..1].to_vec(), &[], &["no intermediate"]),
        ];
        for (name, chain, problems, warnings) in rows {
            let found = look(&chain, "meet.example.eu", now);
            for (wants, got) in [(problems, &found.problems), (warnings, &found.warnings)] {
                assert_eq!(got.len(), wants.len(), "{name}: {found:?}");
                for (want, got) in wants.iter().zip(got) {
                    assert!(got.contains(want), "{name}: {got}");
                }
            }
        }
        let old = look(&good, "meet.example.eu", now + Duration::from_secs(210 * 24 * 3600));
        assert!(old.problems.is_empty() && old.warnings[0].contains("expires on 2027-01-01"), "{old:?}");
    }
}
