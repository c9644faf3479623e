//! Certificates: from files, or signed by an authority of our own that is kept between runs.

use crate::config::{Tls, TlsMode};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// TLS for both kinds of work behind one port.
pub struct Certificates {
    /// Workers: TURN and ICE over TLS. No protocol is negotiated, none is required.
    pub media: Arc<ServerConfig>,
    /// Control plane: HTTP/2 and HTTP/1.1.
    pub http: Arc<ServerConfig>,
    /// The authority that clients must trust, when it is our own.
    pub authority: Option<PathBuf>,
}

/// Loads or makes the certificate for `names`.
pub fn load(tls: &Tls, names: &[String]) -> Result<Certificates, String> {
    let (chain, key, authority) = match tls.mode {
        TlsMode::Files => {
            let (chain, key) = from_files(&tls.cert_file, &tls.key_file)?;
            (chain, key, None)
        }
        TlsMode::SelfSigned => {
            let (chain, key, authority) = self_signed(&tls.state_dir, names)?;
            (chain, key, Some(authority))
        }
        TlsMode::Acme => return Err("tls.mode = \"acme\" is not in this version; use \"files\" or \"self-signed\"".into()),
    };
    let media = server_config(chain.clone(), key.clone_key(), &[])?;
    let http = server_config(chain, key, &[b"h2", b"http/1.1"])?;
    Ok(Certificates { media, http, authority })
}

type Loaded = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn from_files(cert_file: &Path, key_file: &Path) -> Result<Loaded, String> {
    let read = |key: &str, path: &Path| fs::read(path).map_err(|e| format!("{key}: cannot read {}: {e}", path.display()));
    let pem = read("tls.cert_file", cert_file)?;
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|e| format!("tls.cert_file: {} is no PEM file: {e}", cert_file.display()))?;
    if chain.is_empty() {
        return Err(format!("tls.cert_file: {} holds no certificate", cert_file.display()));
    }
    let key = PrivateKeyDer::from_pem_slice(&read("tls.key_file", key_file)?)
        .map_err(|e| format!("tls.key_file: {} holds no private key: {e}", key_file.display()))?;
    Ok((chain, key))
}

fn server_config(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>, alpn: &[&[u8]]) -> Result<Arc<ServerConfig>, String> {
    let mut config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|e| format!("the certificate and its key do not fit together: {e}"))?;
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    // Early data stays off: TURN requests must not be replayable.
    config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().map_err(|e| format!("TLS tickets: {e}"))?;
    Ok(Arc::new(config))
}

/// A leaf for `names`, made at each start, under an authority that is made once.
fn self_signed(state_dir: &Path, names: &[String]) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>, PathBuf), String> {
    let failed = |e: rcgen::Error| format!("self-signed certificate: {e}");
    let (cert_path, key_path) = (state_dir.join("ca.pem"), state_dir.join("ca.key"));
    let (ca_pem, ca_key) = match (fs::read_to_string(&cert_path), fs::read_to_string(&key_path)) {
        (Ok(cert), Ok(key)) => {
            (cert, KeyPair::from_pem(&key).map_err(|e| format!("{}: {e}; delete it to make a new authority", key_path.display()))?)
        }
        _ => {
            let key = KeyPair::generate().map_err(failed)?;
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, "Postern development authority");
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            let cert = params.self_signed(&key).map_err(failed)?.pem();
            fs::create_dir_all(state_dir).map_err(|e| format!("tls.state_dir: cannot make {}: {e}", state_dir.display()))?;
            write(&cert_path, &cert, 0o644)?;
            write(&key_path, &key.serialize_pem(), 0o600)?;
            (cert, key)
        }
    };
    let issuer = Issuer::from_ca_cert_pem(&ca_pem, ca_key)
        .map_err(|e| format!("{}: {e}; delete it to make a new authority", cert_path.display()))?;
    let key = KeyPair::generate().map_err(failed)?;
    let mut params = CertificateParams::new(names.to_vec()).map_err(failed)?;
    params.distinguished_name.push(DnType::CommonName, names.first().map_or("postern", String::as_str));
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let leaf = params.signed_by(&key, &issuer).map_err(failed)?;
    let ca = CertificateDer::from_pem_slice(ca_pem.as_bytes()).map_err(|e| format!("{}: {e}", cert_path.display()))?;
    let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(|e| format!("self-signed certificate: {e}"))?;
    Ok((vec![leaf.der().clone(), ca], key, cert_path))
}

fn write(path: &Path, text: &str, mode: u32) -> Result<(), String> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(path);
    file.and_then(|mut f| f.write_all(text.as_bytes())).map_err(|e| format!("cannot write {}: {e}", path.display()))
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
        load(&tls, &names).expect("loaded");
        assert_eq!(fs::read(&first).expect("still there"), kept);
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
}
