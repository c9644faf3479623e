//! Certificates: from files, ordered by ACME, or signed by an authority of our own that is kept between runs. They change
//! under a running server without touching a connection: whoever comes next is shown the new one.

pub mod acme;
mod authority;
mod inspect;

pub use inspect::Findings;

use crate::config::{Tls, TlsMode};
use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

/// TLS for both kinds of work behind one port.
pub struct Certificates {
    /// Workers: TURN and ICE over TLS. No protocol is negotiated, none is required.
    pub media: Arc<ServerConfig>,
    /// Control plane: HTTP/2 and HTTP/1.1.
    pub http: Arc<ServerConfig>,
    /// The authority that clients must trust, when it is our own.
    pub authority: Option<PathBuf>,
    pub shown: Arc<Shown>,
    /// What is shown is nothing that anybody trusts: a certificate is still to be ordered.
    is_placeholder: AtomicBool,
    /// When the files were written that it came from.
    written: Mutex<Written>,
}

/// What the next client is shown: the certificate, and to an authority the answers to its challenges.
#[derive(Debug)]
pub struct Shown {
    certificate: ArcSwap<CertifiedKey>,
    challenges: Mutex<Challenges>,
}

#[derive(Debug, Default)]
struct Challenges {
    /// By the name that is asked for (RFC 8737).
    tls: Option<(String, Arc<CertifiedKey>)>,
    /// By token (RFC 8555 §8.3).
    http: Option<(String, String)>,
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        if hello.alpn().is_some_and(|mut protocols| protocols.any(|p| p == acme::PROTOCOL)) {
            let name = hello.server_name()?;
            let challenges = self.challenges.lock().unwrap_or_else(PoisonError::into_inner);
            return challenges.tls.as_ref().filter(|(of, _)| name.eq_ignore_ascii_case(of)).map(|(_, answer)| Arc::clone(answer));
        }
        Some(self.certificate.load_full())
    }
}

impl Shown {
    fn change(&self, change: impl FnOnce(&mut Challenges)) {
        change(&mut self.challenges.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn answer_tls(&self, domain: &str, answer: Arc<CertifiedKey>) {
        self.change(|c| c.tls = Some((domain.to_owned(), answer)));
    }

    fn answer_http(&self, token: &str, answer: &str) {
        self.change(|c| c.http = Some((token.to_owned(), answer.to_owned())));
    }

    fn forget_challenges(&self) {
        self.change(|c| *c = Challenges::default());
    }

    /// The answer to an authority that asks over plain HTTP.
    pub fn http_answer(&self, token: &str) -> Option<String> {
        let challenges = self.challenges.lock().unwrap_or_else(PoisonError::into_inner);
        challenges.http.as_ref().filter(|(of, _)| of == token).map(|(_, answer)| answer.clone())
    }
}

/// A chain, its key, and the authority behind it when that is our own.
struct Loaded {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    authority: Option<PathBuf>,
    is_placeholder: bool,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Written {
    cert: Option<SystemTime>,
    key: Option<SystemTime>,
}

impl Written {
    fn of(tls: &Tls) -> Self {
        let written = |path: &Path| fs::metadata(path).and_then(|m| m.modified()).ok();
        match tls.mode {
            TlsMode::Files => Self { cert: written(&tls.cert_file), key: written(&tls.key_file) },
            TlsMode::SelfSigned | TlsMode::Acme => Self::default(),
        }
    }
}

/// Loads or makes the certificate for `names`, the first of which is the server's own.
pub fn load(tls: &Tls, names: &[String]) -> Result<Certificates, String> {
    let written = Written::of(tls);
    let loaded = load_as(tls, names)?;
    let (authority, is_placeholder) = (loaded.authority.clone(), AtomicBool::new(loaded.is_placeholder));
    let shown = Arc::new(Shown {
        certificate: ArcSwap::from(if tls.mode == TlsMode::Files { of_files(loaded)? } else { certified(loaded)? }),
        challenges: Mutex::default(),
    });
    let ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().map_err(|e| format!("TLS tickets: {e}"))?;
    let config = |alpn: &[&[u8]]| {
        let resolver: Arc<dyn ResolvesServerCert> = Arc::<Shown>::clone(&shown);
        let mut config = ServerConfig::builder().with_no_client_auth().with_cert_resolver(resolver);
        config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
        // Early data stays off: TURN requests must not be replayable.
        config.ticketer = Arc::clone(&ticketer);
        Arc::new(config)
    };
    let (media, http) = (config(&[]), config(&[b"h2", b"http/1.1", acme::PROTOCOL]));
    Ok(Certificates { media, http, authority, shown, is_placeholder, written: Mutex::new(written) })
}

impl Certificates {
    /// Takes what stands in the files now; whether it is another certificate. On an error the old one stays.
    pub fn reload(&self, tls: &Tls) -> Result<bool, String> {
        if tls.mode != TlsMode::Files {
            return Ok(false);
        }
        let written = Written::of(tls);
        let loaded = from_files(&tls.cert_file, &tls.key_file);
        let outcome = loaded.and_then(of_files).map(|key| self.shown.certificate.swap(Arc::clone(&key)).cert != key.cert);
        // What is wrong is said once, and looked at again when it is written anew.
        *self.written.lock().unwrap_or_else(PoisonError::into_inner) = written;
        outcome
    }

    /// Whether the files were written since they were read.
    pub fn have_changed(&self, tls: &Tls) -> bool {
        *self.written.lock().unwrap_or_else(PoisonError::into_inner) != Written::of(tls)
    }

    /// What an administrator should know of the certificate that is shown.
    pub fn findings(&self, domain: &str, now: SystemTime) -> Findings {
        if self.is_placeholder.load(Relaxed) {
            let problems = vec!["no certificate has been ordered yet: clients refuse the one that is shown until then".into()];
            return Findings { begins: None, expires: None, problems, warnings: Vec::new() };
        }
        inspect::look(&self.shown.certificate.load().cert, domain, now)
    }

    /// From now on clients are shown this one.
    fn show(&self, certificate: Arc<CertifiedKey>) {
        self.shown.certificate.store(certificate);
        self.is_placeholder.store(false, Relaxed);
    }
}

fn load_as(tls: &Tls, names: &[String]) -> Result<Loaded, String> {
    match tls.mode {
        TlsMode::Files => from_files(&tls.cert_file, &tls.key_file),
        TlsMode::SelfSigned => authority::sign(&tls.state_dir, names),
        TlsMode::Acme => acme::load(tls, names.first().map_or("", String::as_str)),
    }
}

fn from_files(cert_file: &Path, key_file: &Path) -> Result<Loaded, String> {
    let read = |key: &str, path: &Path| {
        let remedy = "; check the path, and that the server's user may read it (tls.mode = \"self-signed\" needs no file)";
        fs::read(path).map_err(|e| format!("{key}: cannot read {}: {e}{remedy}", path.display()))
    };
    let pem = read("tls.cert_file", cert_file)?;
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|e| format!("tls.cert_file: {} is no PEM file: {e}", cert_file.display()))?;
    if chain.is_empty() {
        return Err(format!("tls.cert_file: {} holds no certificate; give the PEM file with the whole chain", cert_file.display()));
    }
    let key = PrivateKeyDer::from_pem_slice(&read("tls.key_file", key_file)?)
        .map_err(|e| format!("tls.key_file: {} holds no private key: {e}", key_file.display()))?;
    Ok(Loaded { chain, key, authority: None, is_placeholder: false })
}

fn certified(loaded: Loaded) -> Result<Arc<CertifiedKey>, String> {
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let certified = CertifiedKey::from_der(loaded.chain, loaded.key, &provider);
    let certified = certified.map_err(|e| format!("the key does not belong to the certificate: {e}"))?;
    Ok(Arc::new(certified))
}

/// Writes a file that only this user may read.
fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes()))
}

/// The same, in the words of the settings.
fn of_files(loaded: Loaded) -> Result<Arc<CertifiedKey>, String> {
    certified(loaded).map_err(|e| format!("tls.key_file does not belong to tls.cert_file: {e}; give both of one order"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_is_made_once_and_kept() {
        let dir = std::env::temp_dir().join(format!("postern-certs-{}", std::process::id()));
        let tls = Tls { mode: TlsMode::SelfSigned, state_dir: dir.clone(), ..Tls::default() };
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let first = load(&tls, &names).expect("made").authority.expect("our own");
        let kept = fs::read(&first).expect("written");
        let again = load(&tls, &names).expect("loaded");
        assert_eq!(fs::read(&first).expect("still there"), kept);
        #[allow(clippy::disallowed_methods, reason = "a test at the rim")]
        let now = SystemTime::now();
        assert_eq!(again.findings("localhost", now).problems, Vec::<String>::new());
        fs::write(dir.join("ca.key"), "rubbish").expect("written");
        let error = load(&tls, &names).map(|_| ()).expect_err("rubbish");
        assert!(error.contains("delete it"), "{error}");
        fs::remove_dir_all(dir).expect("removed");
    }

    #[test]
    fn files_are_named_when_they_are_wrong() {
        let missing = Tls { cert_file: "/nonexistent.pem".into(), ..Tls::default() };
        let error = load(&missing, &[]).map(|_| ()).expect_err("missing");
        assert!(error.contains("tls.cert_file") && error.contains("/nonexistent.pem"), "{error}");
    }

    #[test]
    fn what_is_written_anew_is_shown_and_what_is_wrong_is_not() {
        let dir = std::env::temp_dir().join(format!("postern-swap-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("made");
        let tls = Tls { cert_file: dir.join("chain.pem"), key_file: dir.join("key.pem"), ..Tls::default() };
        let write = |names: &[&str]| {
            let key = rcgen::KeyPair::generate().expect("a key");
            let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
            let cert = rcgen::CertificateParams::new(names).and_then(|p| p.self_signed(&key)).expect("a certificate");
            fs::write(&tls.cert_file, cert.pem()).expect("written");
            fs::write(&tls.key_file, key.serialize_pem()).expect("written");
            cert.der().clone()
        };
        let first = write(&["a.example"]);
        let certificates = load(&tls, &[]).expect("loaded");
        let shown = || certificates.shown.certificate.load().cert[0].clone();
        assert_eq!(shown(), first);
        let second = write(&["b.example"]);
        assert_eq!(certificates.reload(&tls), Ok(true));
        assert_eq!(certificates.reload(&tls), Ok(false), "the same again");
        assert_eq!(shown(), second);
        assert!(!certificates.have_changed(&tls));
        fs::write(&tls.key_file, rcgen::KeyPair::generate().expect("a key").serialize_pem()).expect("written");
        let error = certificates.reload(&tls).expect_err("another key");
        assert!(error.contains("tls.key_file does not belong to tls.cert_file"), "{error}");
        assert_eq!(shown(), second, "the old one stays");
        fs::remove_dir_all(dir).expect("removed");
    }
}
