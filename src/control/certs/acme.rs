//! Certificates that the server orders itself (ACME, RFC 8555), and renews in good time.
//!
//! Flow: 1. account, kept in `tls.state_dir`  2. order for `server.domain`  3. one challenge, answered on our own port:
//! TLS-ALPN-01 (RFC 8737) by a certificate for whoever asks for the protocol `acme-tls/1`, or HTTP-01 by a text over plain HTTP
//! 4. the certificate, kept and shown  5. sleep until a third of its life is left. What fails is tried again with growing pauses;
//! authorities lock out those who hurry.

use super::{Certificates, Findings, Loaded, certified};
use crate::config::{Challenge, Tls};
use crate::control::outbound::{self, Https};
use instant_acme::{
    Account, AccountCredentials, AuthorizationStatus, BodyWrapper, BytesResponse, ChallengeType, Error, HttpClient, Identifier, NewAccount,
    NewOrder, Order, OrderStatus, RetryPolicy,
};
use rcgen::{CertificateParams, CustomExtension, KeyPair};
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::Notify;

/// The protocol in which an authority asks for the answer (RFC 8737 §4).
pub const PROTOCOL: &[u8] = b"acme-tls/1";
/// Pauses between attempts: the first one, doubled each time, and the longest. Let's Encrypt allows five failures an hour.
const FIRST_PAUSE: Duration = Duration::from_secs(300);
const LONGEST_PAUSE: Duration = Duration::from_secs(12 * 3600);
/// How long the authority may take for one step.
const STEP: RetryPolicy = RetryPolicy::new().initial_delay(Duration::from_millis(500)).timeout(Duration::from_secs(90));
/// How long one attempt may take in all.
const ORDER_WITHIN: Duration = Duration::from_secs(600);
/// How often it is looked whether it is time: clocks are set, machines sleep.
const LOOK: Duration = Duration::from_secs(3600);

/// What is ordered, where, and how its challenge is answered.
pub struct Acme {
    domain: String,
    directory: String,
    contact: Vec<String>,
    authorities: Option<PathBuf>,
    challenge: Challenge,
    files: Files,
    hurry: Arc<Notify>,
}

/// Where all that is kept between runs.
struct Files {
    account: PathBuf,
    /// Key and chain in one file, so that they fit together.
    certificate: PathBuf,
}

impl Files {
    fn of(tls: &Tls, domain: &str) -> Self {
        let plain = |text: &str| text.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }).collect::<String>();
        // An account belongs to one directory.
        let directory = tls.acme_directory.split("://").last().unwrap_or_default();
        let dir = tls.state_dir.join("acme").join(plain(directory));
        Self { account: dir.join("account.json"), certificate: dir.join(format!("{}.pem", plain(domain))) }
    }
}

/// The certificate of an earlier run or, until one is there, one of our own making that nobody trusts.
pub(super) fn load(tls: &Tls, domain: &str) -> Result<Loaded, String> {
    let file = Files::of(tls, domain).certificate;
    match fs::read(&file) {
        Ok(pem) => match parse(&pem).and_then(|loaded| certified(parse(&pem)?).map(|_| loaded)) {
            Ok(loaded) => return Ok(loaded),
            Err(error) => {
                tracing::error!(file = %file.display(), error, "the certificate that was kept does not fit; another one is ordered")
            }
        },
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(format!("tls.state_dir: cannot read {}: {error}; the server's user has to own it", file.display())),
    }
    let failed = |e: rcgen::Error| format!("a certificate until one is ordered: {e}");
    let key = KeyPair::generate().map_err(failed)?;
    let cert = CertificateParams::new(vec![domain.to_owned()]).and_then(|p| p.self_signed(&key)).map_err(failed)?;
    let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(|e| format!("a certificate until one is ordered: {e}"))?;
    Ok(Loaded { chain: vec![cert.der().clone()], key, authority: None, is_placeholder: true })
}

/// Chain and key of one PEM file.
fn parse(pem: &[u8]) -> Result<Loaded, String> {
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|e| e.to_string())?;
    if chain.is_empty() {
        return Err("it holds no certificate".into());
    }
    let key = PrivateKeyDer::from_pem_slice(pem).map_err(|e| e.to_string())?;
    Ok(Loaded { chain, key, authority: None, is_placeholder: false })
}

impl Acme {
    /// `hurry` has it tried at once.
    pub fn new(tls: &Tls, domain: &str, hurry: Arc<Notify>) -> Self {
        Self {
            domain: domain.to_owned(),
            directory: tls.acme_directory.clone(),
            contact: tls.acme_contact.iter().map(|address| format!("mailto:{address}")).collect(),
            authorities: tls.acme_ca_file.clone(),
            challenge: tls.acme_challenge,
            files: Files::of(tls, domain),
            hurry,
        }
    }

    /// Sees to it that a good certificate is shown, for as long as the server runs. `changed` is told of each new one.
    #[allow(clippy::disallowed_methods, reason = "certificates live by the wall clock")]
    pub async fn keep(self, certificates: Arc<Certificates>, changed: impl Fn()) {
        let mut pause = FIRST_PAUSE;
        loop {
            let now = SystemTime::now();
            let due = due(&certificates.findings(&self.domain, now), now);
            if let Ok(wait) = due.duration_since(now)
                && !wait.is_zero()
            {
                self.pause(wait.min(LOOK)).await;
                continue;
            }
            let outcome = tokio::time::timeout(ORDER_WITHIN, self.order(&certificates)).await;
            certificates.shown.forget_challenges();
            let problem = match outcome {
                Ok(Ok(())) => {
                    changed();
                    // One that clients refuse is not ordered again and again.
                    let found = certificates.findings(&self.domain, SystemTime::now());
                    if found.problems.is_empty() {
                        tracing::info!(domain = self.domain, "a certificate was ordered and is shown");
                        pause = FIRST_PAUSE;
                        continue;
                    }
                    found.problems.join("; ")
                }
                Ok(Err(problem)) => problem,
                Err(_) => format!("{} does not answer", self.directory),
            };
            let left = certificates.findings(&self.domain, now).expires.and_then(|at| at.duration_since(now).ok());
            // Nor may the pause outlast a short-lived one.
            let wait = left.map_or(pause, |left| pause.min((left / 4).max(FIRST_PAUSE)));
            tracing::error!(
                domain = self.domain,
                "no good certificate could be ordered: {problem}; the next attempt is in {} min, or at `postern reload`",
                wait.as_secs() / 60
            );
            self.pause(wait).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn pause(&self, wait: Duration) {
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = self.hurry.notified() => {}
        }
    }

    async fn order(&self, certificates: &Certificates) -> Result<(), String> {
        let account = self.account().await?;
        let names = [Identifier::Dns(self.domain.clone())];
        let mut order = account.new_order(&NewOrder::new(&names)).await.map_err(|error| {
            if matches!(&error, Error::Api(problem) if problem.r#type.as_deref().is_some_and(|t| t.ends_with(":accountDoesNotExist"))) {
                // The authority has forgotten us: the next attempt begins with a new account.
                let _ = fs::remove_file(&self.files.account);
            }
            self.said(&error)
        })?;
        let (chain, key) = self.fulfil(&mut order, certificates).await?;
        let pem = format!("{key}{chain}");
        certificates.show(certified(parse(pem.as_bytes())?)?);
        if let Err(error) = keep_file(&self.files.certificate, &pem) {
            tracing::error!("the certificate that was ordered is lost with the next start: {error}");
        }
        Ok(())
    }

    /// An error with its cause, which the crate's own words leave out.
    fn said(&self, error: &Error) -> String {
        match error {
            Error::Api(problem) => format!("the authority says: {problem}"),
            other => format!("{}: {}", self.directory, outbound::cause(other)),
        }
    }

    /// Answers the challenge and gets the certificate: its chain and its key, PEM.
    async fn fulfil(&self, order: &mut Order, certificates: &Certificates) -> Result<(String, String), String> {
        let said = |e: Error| self.said(&e);
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization.map_err(said)?;
            if authorization.status == AuthorizationStatus::Valid {
                continue;
            }
            let kind = match self.challenge {
                Challenge::TlsAlpn01 => ChallengeType::TlsAlpn01,
                Challenge::Http01 => ChallengeType::Http01,
            };
            let mut challenge = authorization.challenge(kind).ok_or("the authority does not offer tls.acme_challenge")?;
            let answer = challenge.key_authorization();
            match self.challenge {
                Challenge::TlsAlpn01 => {
                    certificates.shown.answer_tls(&self.domain, tls_answer(&self.domain, answer.digest().as_ref())?);
                }
                Challenge::Http01 => certificates.shown.answer_http(&challenge.token, answer.as_str()),
            }
            challenge.set_ready().await.map_err(said)?;
        }
        if order.poll_ready(&STEP).await.map_err(said)? != OrderStatus::Ready {
            return Err(self.why(order).await);
        }
        let key = order.finalize().await.map_err(said)?;
        let chain = order.poll_certificate(&STEP).await.map_err(said)?;
        Ok((chain, key))
    }

    /// What the authority says is wrong.
    async fn why(&self, order: &mut Order) -> String {
        let mut authorizations = order.authorizations();
        while let Some(Ok(authorization)) = authorizations.next().await {
            if let Some(problem) = authorization.challenges.iter().find_map(|c| c.error.as_ref()) {
                return format!("the authority says: {problem}");
            }
        }
        order
            .state()
            .error
            .as_ref()
            .map_or_else(|| "the authority gives no reason".into(), |problem| format!("the authority says: {problem}"))
    }

    /// The account of an earlier run, or a new one.
    async fn account(&self) -> Result<Account, String> {
        let said = |e: Error| self.said(&e);
        let client = || Ok::<_, String>(Account::builder_with_http(Box::new(Outbound(outbound::client(self.authorities.as_deref())?))));
        let known = fs::read(&self.files.account).ok().and_then(|json| serde_json::from_slice::<AccountCredentials>(&json).ok());
        if let Some(credentials) = known {
            return client()?.from_credentials(credentials).await.map_err(said);
        }
        let contact: Vec<&str> = self.contact.iter().map(String::as_str).collect();
        let wish = NewAccount { contact: &contact, terms_of_service_agreed: true, only_return_existing: false };
        let (account, credentials) = client()?.create(&wish, self.directory.clone(), None).await.map_err(said)?;
        let json = serde_json::to_string(&credentials).map_err(|e| e.to_string())?;
        keep_file(&self.files.account, &json)?;
        Ok(account)
    }
}

/// When a new certificate should be ordered: at once, or when a third of its life is left.
fn due(found: &Findings, now: SystemTime) -> SystemTime {
    let lifetime = found.begins.zip(found.expires).filter(|_| found.problems.is_empty());
    lifetime.map_or(now, |(from, until)| until - until.duration_since(from).unwrap_or_default() / 3)
}

/// The certificate that answers TLS-ALPN-01 (RFC 8737 §3).
fn tls_answer(domain: &str, digest: &[u8]) -> Result<Arc<CertifiedKey>, String> {
    let failed = |e: rcgen::Error| format!("the answer's certificate: {e}");
    let key = KeyPair::generate().map_err(failed)?;
    let mut params = CertificateParams::new(vec![domain.to_owned()]).map_err(failed)?;
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let cert = params.self_signed(&key).map_err(failed)?;
    let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(|e| format!("the answer's certificate: {e}"))?;
    let key = any_supported_type(&key).map_err(|e| format!("the answer's certificate: {e}"))?;
    // Its extension is critical: whoever reads certificates to use them refuses it, and so it is not looked at once more.
    Ok(Arc::new(CertifiedKey::new(vec![cert.der().clone()], key)))
}

/// Whole or not at all, and for nobody else's eyes.
fn keep_file(path: &Path, text: &str) -> Result<(), String> {
    let failed = |e: std::io::Error| format!("tls.state_dir: cannot keep {}: {e}", path.display());
    let part = path.with_extension("part");
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).map_err(failed)?;
    }
    super::write_private(&part, text).map_err(failed)?;
    fs::File::open(&part).and_then(|file| file.sync_all()).map_err(failed)?;
    fs::rename(&part, path).map_err(failed)
}

/// Our client in the words of the ACME crate.
struct Outbound(Https<BodyWrapper<hyper::body::Bytes>>);

impl HttpClient for Outbound {
    fn request(
        &self,
        request: hyper::Request<BodyWrapper<hyper::body::Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let answer = self.0.request(request);
        Box::pin(async move {
            match answer.await {
                Ok(response) => Ok(BytesResponse::from(response)),
                Err(error) => Err(Error::Other(Box::new(error))),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_wrong_or_old_is_due() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let at = |s: i64| if s < 0 { now - Duration::from_secs(s.unsigned_abs()) } else { now + Duration::from_secs(s.unsigned_abs()) };
        let found = |begins: i64, expires: i64, problems: &[&str]| Findings {
            begins: Some(at(begins)),
            expires: Some(at(expires)),
            problems: problems.iter().map(|p| (*p).to_owned()).collect(),
            warnings: Vec::new(),
        };
        let rows = [
            ("new", found(0, 900, &[]), at(600)),
            ("old", found(-700, 200, &[]), at(-100)),
            ("for another name", found(0, 900, &["it is for another name"]), now),
            ("none", Findings { begins: None, expires: None, problems: Vec::new(), warnings: Vec::new() }, now),
        ];
        for (name, found, want) in rows {
            assert_eq!(due(&found, now), want, "{name}");
        }
    }

    #[test]
    fn what_was_kept_is_shown_and_what_is_broken_is_ordered_anew() {
        let dir = std::env::temp_dir().join(format!("postern-acme-{}", std::process::id()));
        let tls = Tls { state_dir: dir.clone(), ..Tls::default() };
        assert!(load(&tls, "a.example").expect("none yet").is_placeholder);
        let key = KeyPair::generate().expect("a key");
        let cert = CertificateParams::new(vec!["a.example".to_owned()]).and_then(|p| p.self_signed(&key)).expect("a certificate");
        let file = Files::of(&tls, "a.example").certificate;
        keep_file(&file, &(key.serialize_pem() + &cert.pem())).expect("kept");
        assert_eq!(load(&tls, "a.example").expect("kept").chain, [cert.der().clone()]);
        for broken in [String::new(), cert.pem(), KeyPair::generate().expect("a key").serialize_pem() + &cert.pem()] {
            fs::write(&file, broken).expect("written");
            assert!(load(&tls, "a.example").expect("it starts all the same").is_placeholder);
        }
        fs::remove_dir_all(dir).expect("removed");
    }
}
