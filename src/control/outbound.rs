//! HTTP clients of ours, towards webhooks and certificate authorities. Names are looked up without the C library, which a
//! static binary cannot do with confidence.

use hickory_resolver::TokioResolver;
use hyper::body::Body;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::rt::TokioExecutor;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::error::Error;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

const CONNECT_WITHIN: Duration = Duration::from_secs(10);

pub type Https<B> = Client<HttpsConnector<HttpConnector<Resolver>>, B>;

/// A client that trusts the system's authorities, or those of a PEM file instead. The error says what cannot be read.
pub fn client<B>(authorities: Option<&Path>) -> Result<Https<B>, String>
where
    B: Body + Send,
    B::Data: Send,
{
    let mut http = HttpConnector::new_with_resolver(Resolver::system()?);
    http.enforce_http(false);
    http.set_connect_timeout(Some(CONNECT_WITHIN));
    let builder = HttpsConnectorBuilder::new();
    let builder = match authorities {
        None => {
            builder.with_native_roots().map_err(|e| format!("the system's certificates cannot be read: {e}; install ca-certificates"))?
        }
        Some(file) => {
            let mut roots = rustls::RootCertStore::empty();
            add_from(&mut roots, file)?;
            builder.with_tls_config(rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth())
        }
    };
    let https = builder.https_or_http().enable_http1().wrap_connector(http);
    Ok(Client::builder(TokioExecutor::new()).pool_max_idle_per_host(8).build(https))
}

/// Which authorities are trusted: the system's, and those of a PEM file besides.
pub fn trusted(authorities: Option<&Path>) -> Result<rustls::RootCertStore, String> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(file) = authorities {
        add_from(&mut roots, file)?;
    }
    Ok(roots)
}

fn add_from(roots: &mut rustls::RootCertStore, file: &Path) -> Result<(), String> {
    let unread = |e: &dyn std::fmt::Display| format!("{}: {e}", file.display());
    for certificate in CertificateDer::pem_file_iter(file).map_err(|e| unread(&e))? {
        roots.add(certificate.map_err(|e| unread(&e))?).map_err(|e| unread(&e))?;
    }
    Ok(())
}

/// An address of a name; IPv4 comes first.
pub async fn look_up(name: &str) -> Result<IpAddr, String> {
    if name == "localhost" {
        return Ok(IpAddr::from([127, 0, 0, 1]));
    }
    if let Ok(ip) = name.parse() {
        return Ok(ip);
    }
    let found = Resolver::system()?.0.lookup_ip(name).await.map_err(|e| format!("{name}: {e}"))?;
    found.iter().min_by_key(IpAddr::is_ipv6).ok_or_else(|| format!("{name} has no address"))
}

/// What lies at the bottom of an error: clients themselves only say that something failed.
pub fn cause(error: &dyn Error) -> String {
    let mut deepest = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest.to_string()
}

#[derive(Clone)]
pub struct Resolver(Arc<TokioResolver>);

impl Resolver {
    fn system() -> Result<Self, String> {
        let built = TokioResolver::builder_tokio().and_then(|b| b.build());
        Ok(Self(Arc::new(built.map_err(|e| format!("names cannot be resolved: {e}; check /etc/resolv.conf"))?)))
    }
}

impl tower::Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = std::io::Error;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let resolver = Arc::clone(&self.0);
        Box::pin(async move {
            let found = resolver.lookup_ip(name.as_str()).await.map_err(std::io::Error::other)?;
            let addresses: Vec<SocketAddr> = found.iter().map(|ip| SocketAddr::new(ip, 0)).collect();
            Ok(addresses.into_iter())
        })
    }
}
