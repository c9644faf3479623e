//! An authority of our own for hosts without a certificate: made once, kept between runs.

use super::Loaded;
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::fs;
use std::path::Path;

/// A leaf for `names`, made at each start, under the authority in `state_dir`.
pub(super) fn sign(state_dir: &Path, names: &[String]) -> Result<Loaded, String> {
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
            let failed = |path: &Path, e: std::io::Error| format!("tls.state_dir: cannot write {}: {e}", path.display());
            fs::write(&cert_path, &cert).map_err(|e| failed(&cert_path, e))?;
            super::write_private(&key_path, &key.serialize_pem()).map_err(|e| failed(&key_path, e))?;
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
    Ok(Loaded { chain: vec![leaf.der().clone(), ca], key, authority: Some(cert_path), is_placeholder: false })
}
