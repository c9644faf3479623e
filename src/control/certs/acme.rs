//! Certificates that the server orders itself (ACME, RFC 8555), and renews in good time.
//!
//! Flow: 1. account, kept in `tls.state_dir`  2. order for `server.domain`  3. one challenge, answered on our own port:
//! TLS-ALPN-01 (RFC 8737) by a certificate for whoever asks for the protocol `acme-tls/1`, or HTTP-01 by a text over plain HTTP
//! 4. the certificate, kept and shown  5. sleep until a third of its life is left. What fails is tried again with growing pauses;
//! authorities lock out those who hurry.

use super::{Certificates, Loaded, certified, inspect};
use crate::config::{Challenge, Tls};
use crate::control::outbound::{self, Https};
use instant_acme::{
    Account, AccountCredentials, AuthorizationStatus, BodyWrapper, BytesResponse, ChallengeType, HttpClient, Identifier, NewAccount,
    NewOrder, Order, OrderStatus, RetryPolicy,
};
use rcgen::{CertificateParams, CustomExtension, KeyPair};
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use std::fs;
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
    /// Somebody wants it tried at once.
    pub hurry: Arc<Notify>,
}

/// Where all that is kept between runs.
struct Files {
    account: PathBuf,
    chain: PathBuf,
    key: PathBuf,
}

impl Files {
    fn of(tls: &Tls, domain: &str) -> Self {
        let plain = |text: &str| text.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }).collect::<String>();
        let host = tls.acme_directory.split("://").last().unwrap_or_default().split('/').next().unwrap_or_default();
        let dir = tls.state_dir.join("acme").join(plain(host));
        let domain = plain(domain);
        Self { account: dir.join("account.json"), chain: dir.join(format!("{domain}.pem")), key: dir.join(format!("{domain}.key")) }
    }
}

/// The certificate of an earlier run or, until one is there, one of our own making that nobody trusts.
pub(super) fn load(tls: &Tls, domain: &str) -> Result<Loaded, String> {
    let files = Files::of(tls, domain);
    if let (Ok(chain), Ok(key)) = (fs::read(&files.chain), fs::read(&files.key)) {
        return parse(&chain, &key).map_err(|e| format!("{}: {e}; delete it to order anew", files.chain.display()));
    }
    let failed = |e: rcgen::Error| format!("a certificate until one is ordered: {e}");
    let key = KeyPair::generate().map_err(failed)?;
    let cert = CertificateParams::new(vec![domain.to_owned()]).and_then(|p| p.self_signed(&key)).map_err(failed)?;
    let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(|e| format!("a certificate until one is ordered: {e}"))?;
    Ok(Loaded { chain: vec![cert.der().clone()], key, authority: None })
}

fn parse(chain: &[u8], key: &[u8]) -> Result<Loaded, String> {
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(chain).collect::<Result<_, _>>().map_err(|e| e.to_string())?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|e| e.to_string())?;
    Ok(Loaded { chain, key, authority: None })
}

impl Acme {
    pub fn new(tls: &Tls, domain: &str) -> Self {
        Self {
            domain: domain.to_owned(),
            directory: tls.acme_directory.clone(),
            contact: tls.acme_contact.iter().map(|address| format!("mailto:{address}")).collect(),
            authorities: tls.acme_ca_file.clone(),
            challenge: tls.acme_challenge,
            files: Files::of(tls, domain),
            hurry: Arc::default(),
        }
    }

    /// Sees to it that a good certificate is shown, for as long as the server runs.
    #[allow(clippy::disallowed_methods, reason = "certificates live by the wall clock")]
    pub async fn keep(self, certificates: Arc<Certificates>) {
        let mut pause = FIRST_PAUSE;
        loop {
            let due = self.due(&certificates);
            let wait = due.duration_since(SystemTime::now()).unwrap_or_default();
            if !wait.is_zero() {
                tokio::select! {
                    () = tokio::time::sleep(wait.min(LOOK)) => {}
                    () = self.hurry.notified() => {}
                }
                continue;
            }
            match self.order(&certificates).await {
                Ok(()) => {
                    tracing::info!(domain = self.domain, "a certificate was ordered and is shown");
                    pause = FIRST_PAUSE;
                }
                Err(error) => {
                    tracing::error!(
                        domain = self.domain,
                        "no certificate could be ordered: {error}; does the name point here, and is the port open to the internet? The next attempt is in {} min, or at `postern reload`",
                        pause.as_secs() / 60
                    );
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        () = self.hurry.notified() => {}
                    }
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    /// When a new one should be ordered: at once, or when a third of its life is left.
    #[allow(clippy::disallowed_methods, reason = "certificates live by the wall clock")]
    fn due(&self, certificates: &Certificates) -> SystemTime {
        let now = SystemTime::now();
        let chain = certificates.chain();
        let is_ours = chain.len() < 2 && fs::metadata(&self.files.chain).is_err();
        let lifetime = inspect::lifetime(&chain).filter(|_| !is_ours && inspect::look(&chain, &self.domain, now).problems.is_empty());
        lifetime.map_or(now, |(from, until)| until - until.duration_since(from).unwrap_or_default() / 3)
    }

    async fn order(&self, certificates: &Certificates) -> Result<(), String> {
        let account = self.account().await?;
        let names = [Identifier::Dns(self.domain.clone())];
        let mut order = account.new_order(&NewOrder::new(&names)).await.map_err(|e| e.to_string())?;
        let outcome = self.fulfil(&mut order, certificates).await;
        certificates.shown.forget_challenges();
        let (chain, key) = outcome?;
        let fresh = certified(parse(chain.as_bytes(), key.as_bytes())?)?;
        // Shown even if it cannot be kept: the next start orders once more.
        let kept = keep_file(&self.files.chain, &chain).and_then(|()| keep_file(&self.files.key, &key));
        certificates.shown.certificate.store(fresh);
        kept
    }

    /// Answers the challenge and gets the certificate: its chain and its key, PEM.
    async fn fulfil(&self, order: &mut Order, certificates: &Certificates) -> Result<(String, String), String> {
        let said = |e: instant_acme::Error| e.to_string();
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
        let said = |e: instant_acme::Error| format!("{}: {e}", self.directory);
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
    fs::rename(&part, path).map_err(failed)
}

/// Our client in the words of the ACME crate.
struct Outbound(Https<BodyWrapper<hyper::body::Bytes>>);

impl HttpClient for Outbound {
    fn request(
        &self,
        request: hyper::Request<BodyWrapper<hyper::body::Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, instant_acme::Error>> + Send>> {
        let answer = self.0.request(request);
        Box::pin(async move {
            match answer.await {
                Ok(response) => Ok(BytesResponse::from(response)),
                Err(error) => Err(instant_acme::Error::Other(Box::new(error))),
            }
        })
    }
}
