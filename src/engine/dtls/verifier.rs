//! Signatures of handshakes: the crate's own verifier, and what encoders bring beside browsers. GStreamer before 1.26 makes
//! its certificate with RSA, FFmpeg over GnuTLS with P-224, which NIST still allows (SP 800-186 §3.2.1).

use crate::crypto;
use aws_lc_rs::signature::{RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384, UnparsedPublicKey};
use dimpl::CryptoError;
use dimpl::crypto::aws_lc_rs::default_provider;
use dimpl::crypto::{CryptoProvider, HashAlgorithm, SignatureAlgorithm, SignatureVerifier};
use p224::ecdsa::signature::hazmat::PrehashVerifier;
use p224::ecdsa::{DerSignature, VerifyingKey};
use x509_cert::Certificate;
use x509_cert::der::Decode;
use x509_cert::der::asn1::ObjectIdentifier;

const RSA_ENCRYPTION: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const SECP224R1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.33");

/// The crate's provider with a verifier that knows more.
pub(super) fn provider() -> CryptoProvider {
    CryptoProvider { signature_verification: &Verifier, ..default_provider() }
}

#[derive(Debug)]
struct Verifier;

impl SignatureVerifier for Verifier {
    fn verify_signature(
        &self,
        certificate: &[u8],
        data: &[u8],
        signature: &[u8],
        hash: HashAlgorithm,
        algorithm: SignatureAlgorithm,
    ) -> Result<(), CryptoError> {
        if algorithm == SignatureAlgorithm::RSA {
            return verify_rsa(certificate, data, signature, hash);
        }
        match default_provider().signature_verification.verify_signature(certificate, data, signature, hash, algorithm) {
            Err(CryptoError::UnsupportedEcCurve) => verify_p224(certificate, data, signature, hash),
            outcome => outcome,
        }
    }
}

/// RSASSA-PKCS1-v1_5 with a key of 2,048 bits or more (RFC 8017 §8.2.2, RFC 5246 §7.4.8).
fn verify_rsa(certificate: &[u8], data: &[u8], signature: &[u8], hash: HashAlgorithm) -> Result<(), CryptoError> {
    let parameters = match hash {
        HashAlgorithm::SHA256 => &RSA_PKCS1_2048_8192_SHA256,
        HashAlgorithm::SHA384 => &RSA_PKCS1_2048_8192_SHA384,
        _ => return Err(CryptoError::UnsupportedSignatureAlgorithm(SignatureAlgorithm::RSA)),
    };
    let certificate = Certificate::from_der(certificate).map_err(|_| CryptoError::CertificateParseFailed)?;
    let key = certificate.tbs_certificate().subject_public_key_info();
    if key.algorithm.oid != RSA_ENCRYPTION {
        return Err(CryptoError::UnsupportedSignatureAlgorithm(SignatureAlgorithm::RSA));
    }
    let key = key.subject_public_key.as_bytes().ok_or(CryptoError::InvalidSubjectPublicKey)?;
    UnparsedPublicKey::new(parameters, key).verify(data, signature).map_err(|_| CryptoError::InvalidSubjectPublicKey)
}

/// ECDSA over P-224 (FIPS 186-5 §6.4.2).
fn verify_p224(certificate: &[u8], data: &[u8], signature: &[u8], hash: HashAlgorithm) -> Result<(), CryptoError> {
    let certificate = Certificate::from_der(certificate).map_err(|_| CryptoError::CertificateParseFailed)?;
    let key = certificate.tbs_certificate().subject_public_key_info();
    let curve = key.algorithm.parameters.as_ref().ok_or(CryptoError::MissingEcCurveParameter)?;
    if curve.decode_as::<ObjectIdentifier>().map_err(|_| CryptoError::InvalidEcCurveParameter)? != SECP224R1 {
        return Err(CryptoError::UnsupportedEcCurve);
    }
    let point = key.subject_public_key.as_bytes().ok_or(CryptoError::InvalidSubjectPublicKey)?;
    let key = VerifyingKey::from_sec1_bytes(point).map_err(|_| CryptoError::InvalidSubjectPublicKey)?;
    let digest = match hash {
        HashAlgorithm::SHA256 => crypto::digest("sha-256", data),
        HashAlgorithm::SHA384 => crypto::digest("sha-384", data),
        _ => None,
    };
    let digest = digest.ok_or(CryptoError::UnsupportedEcCurve)?;
    let signature = DerSignature::from_bytes(signature).map_err(|_| CryptoError::InvalidSubjectPublicKey)?;
    // The curve and not the signature is what was asked about, so the crate has no name for this one.
    key.verify_prehash(&digest, &signature).map_err(|_| CryptoError::InvalidSubjectPublicKey)
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::encoding::AsDer;
    use p224::ecdsa::SigningKey;
    use p224::ecdsa::signature::hazmat::PrehashSigner;

    /// A certificate that GnuTLS made for FFmpeg, and the key that this test signs with in its place.
    const CERTIFICATE: &[u8] = include_bytes!("../../../tests/vectors/ffmpeg_p224.der");

    fn with_key_of(signer: &SigningKey) -> Vec<u8> {
        let point = signer.verifying_key().to_encoded_point(false);
        let mut certificate = CERTIFICATE.to_vec();
        // The public key stands behind its curve: BIT STRING, 58 bytes, none unused.
        let curve = [0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x21];
        let at = certificate.windows(7).position(|w| w == curve).expect("the curve") + 7 + 3;
        certificate[at..at + 57].copy_from_slice(point.as_bytes());
        certificate
    }

    #[test]
    fn signatures_of_ffmpeg_are_checked() {
        let signer = SigningKey::from_slice(&[7; 28]).expect("a key");
        let certificate = with_key_of(&signer);
        for (hash, name) in [(HashAlgorithm::SHA256, "sha-256"), (HashAlgorithm::SHA384, "sha-384")] {
            let signature: DerSignature = signer.sign_prehash(&crypto::digest(name, b"what was said").expect("known")).expect("signed");
            let verify =
                |data: &[u8], signature: &[u8]| Verifier.verify_signature(&certificate, data, signature, hash, SignatureAlgorithm::ECDSA);
            assert_eq!(verify(b"what was said", signature.as_bytes()), Ok(()));
            assert!(verify(b"what was not said", signature.as_bytes()).is_err());
            assert!(verify(b"what was said", &[0; 8]).is_err());
        }
    }

    #[test]
    fn signatures_of_gstreamer_are_checked() {
        let key = aws_lc_rs::rsa::KeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048).expect("a key");
        let pkcs8: aws_lc_rs::encoding::Pkcs8V1Der<'_> = key.as_der().expect("PKCS #8");
        let pkcs8 = rustls::pki_types::PrivateKeyDer::try_from(pkcs8.as_ref().to_vec()).expect("PKCS #8");
        let own = rcgen::KeyPair::from_der_and_sign_algo(&pkcs8, &rcgen::PKCS_RSA_SHA256).expect("a key");
        let certificate = rcgen::CertificateParams::default().self_signed(&own).expect("a certificate");
        let mut signature = vec![0; key.public_modulus_len()];
        let random = aws_lc_rs::rand::SystemRandom::new();
        key.sign(&aws_lc_rs::signature::RSA_PKCS1_SHA256, &random, b"what was said", &mut signature).expect("signed");
        let verify =
            |certificate: &[u8], data: &[u8], hash| Verifier.verify_signature(certificate, data, &signature, hash, SignatureAlgorithm::RSA);
        assert_eq!(verify(certificate.der(), b"what was said", HashAlgorithm::SHA256), Ok(()));
        assert!(verify(certificate.der(), b"what was not said", HashAlgorithm::SHA256).is_err());
        assert!(verify(certificate.der(), b"what was said", HashAlgorithm::SHA384).is_err());
        assert!(verify(CERTIFICATE, b"what was said", HashAlgorithm::SHA256).is_err(), "a key of another kind");
    }

    #[test]
    fn the_crates_own_curves_are_as_before() {
        let own = dimpl::certificate::generate_self_signed_certificate().expect("a certificate");
        let provider = default_provider();
        let mut key = provider.key_provider.load_private_key(&own.private_key).expect("a key");
        let mut signature = dimpl::crypto::Buf::new();
        key.sign(b"data", HashAlgorithm::SHA256, &mut signature).expect("signed");
        let verify =
            |data: &[u8]| Verifier.verify_signature(&own.certificate, data, &signature, HashAlgorithm::SHA256, SignatureAlgorithm::ECDSA);
        assert_eq!(verify(b"data"), Ok(()));
        assert!(verify(b"other").is_err());
    }
}
