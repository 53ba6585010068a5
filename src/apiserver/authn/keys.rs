//! Keys of service account tokens: PEM in, JWT keys and a JWK set (RFC 7517) out. ES256 and RS256.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey};
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;
use serde_json::{Value, json};
use sha2::Digest as _;
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

/// A key that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// No readable PEM block of a supported kind.
    #[error("no PEM key of a supported kind (RSA, or ECDSA on P-256)")]
    Unsupported,
    /// The JWT library refuses it.
    #[error("unusable key: {0}")]
    Jwt(#[from] jsonwebtoken::errors::Error),
}

/// One public key.
pub struct Verifier {
    /// Key identifier: SHA-256 of the SubjectPublicKeyInfo, base64url.
    pub kid: String,
    /// Algorithm.
    pub algorithm: Algorithm,
    /// Key.
    pub key: DecodingKey,
    jwk: Value,
}

/// The signing key and all verifying ones.
pub struct Keys {
    /// Algorithm of the signing key.
    pub algorithm: Algorithm,
    /// Private key.
    pub signing: EncodingKey,
    /// Its identifier.
    pub kid: String,
    /// Public keys.
    pub verifiers: Vec<Verifier>,
}

impl Keys {
    /// Reads the signing key and further public keys. The signing key verifies too.
    ///
    /// # Errors
    /// [`KeyError`] for PEM that holds no usable key.
    pub fn new(signing: &[u8], public: &[Vec<u8>]) -> Result<Self, KeyError> {
        let own = verifier_of_private(signing)?;
        let key = match own.algorithm {
            Algorithm::RS256 => EncodingKey::from_rsa_pem(signing)?,
            _ => EncodingKey::from_ec_der(&pkcs8_of_ec(signing)?),
        };
        let (algorithm, kid) = (own.algorithm, own.kid.clone());
        let mut verifiers = vec![own];
        for pem in public {
            let v = match rustls_pki_types::SubjectPublicKeyInfoDer::from_pem_slice(pem) {
                Ok(spki) => verifier(spki.as_ref())?,
                Err(_) => verifier_of_private(pem)?,
            };
            if verifiers.iter().all(|k| k.kid != v.kid) {
                verifiers.push(v);
            }
        }
        Ok(Self {
            algorithm,
            signing: key,
            kid,
            verifiers,
        })
    }

    /// The public keys as a JWK set.
    pub fn jwks(&self) -> Value {
        json!({"keys": self.verifiers.iter().map(|v| &v.jwk).collect::<Vec<_>>()})
    }
}

/// Private keys carry their public half; rustls derives it.
fn verifier_of_private(pem: &[u8]) -> Result<Verifier, KeyError> {
    let der = PrivateKeyDer::from_pem_slice(pem).map_err(|_| KeyError::Unsupported)?;
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&der).map_err(|_| KeyError::Unsupported)?;
    verifier(key.public_key().ok_or(KeyError::Unsupported)?.as_ref())
}

/// PKCS#8 of an EC key; SEC1 (`EC PRIVATE KEY`) is wrapped, since the JWT library takes nothing else.
fn pkcs8_of_ec(pem: &[u8]) -> Result<Vec<u8>, KeyError> {
    match PrivateKeyDer::from_pem_slice(pem).map_err(|_| KeyError::Unsupported)? {
        PrivateKeyDer::Pkcs8(k) => Ok(k.secret_pkcs8_der().to_vec()),
        PrivateKeyDer::Sec1(k) => Ok(wrap_sec1(k.secret_sec1_der())),
        _ => Err(KeyError::Unsupported),
    }
}

/// PrivateKeyInfo (RFC 5208) around an ECPrivateKey (RFC 5915) on P-256.
fn wrap_sec1(sec1: &[u8]) -> Vec<u8> {
    const ALGORITHM: &[u8] = &[
        0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d,
        0x03, 0x01, 0x07,
    ];
    fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
        let mut out = vec![tag];
        let len = content.len();
        match len {
            0..=0x7f => out.push(len as u8),
            0x80..=0xff => out.extend([0x81, len as u8]),
            _ => out.extend([0x82, (len >> 8) as u8, len as u8]),
        }
        out.extend(content);
        out
    }
    let body = [&[0x02, 0x01, 0x00][..], ALGORITHM, &tlv(0x04, sec1)].concat();
    tlv(0x30, &body)
}

fn verifier(spki_der: &[u8]) -> Result<Verifier, KeyError> {
    let (_, spki) = SubjectPublicKeyInfo::from_der(spki_der).map_err(|_| KeyError::Unsupported)?;
    let kid = URL_SAFE_NO_PAD.encode(sha2::Sha256::digest(spki_der));
    let (algorithm, key, mut jwk) = match spki.parsed().map_err(|_| KeyError::Unsupported)? {
        PublicKey::RSA(rsa) => {
            let strip = |b: &[u8]| b.iter().copied().skip_while(|x| *x == 0).collect::<Vec<_>>();
            let (n, e) = (strip(rsa.modulus), strip(rsa.exponent));
            let jwk =
                json!({"kty": "RSA", "alg": "RS256", "n": URL_SAFE_NO_PAD.encode(&n), "e": URL_SAFE_NO_PAD.encode(&e)});
            (Algorithm::RS256, DecodingKey::from_rsa_raw_components(&n, &e), jwk)
        }
        PublicKey::EC(point) if point.data().len() == 65 && point.data()[0] == 4 => {
            let (x, y) = (
                URL_SAFE_NO_PAD.encode(&point.data()[1..33]),
                URL_SAFE_NO_PAD.encode(&point.data()[33..]),
            );
            let jwk = json!({"kty": "EC", "alg": "ES256", "crv": "P-256", "x": x, "y": y});
            (Algorithm::ES256, DecodingKey::from_ec_components(&x, &y)?, jwk)
        }
        _ => return Err(KeyError::Unsupported),
    };
    jwk["use"] = "sig".into();
    jwk["kid"] = kid.as_str().into();
    Ok(Verifier {
        kid,
        algorithm,
        key,
        jwk,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_p256_key_signs_what_its_published_half_verifies() {
        let pair = rcgen::KeyPair::generate().unwrap();
        let keys = Keys::new(pair.serialize_pem().as_bytes(), &[pair.public_key_pem().into_bytes()]).unwrap();
        assert_eq!(keys.verifiers.len(), 1);
        let jwt = jsonwebtoken::encode(
            &jsonwebtoken::Header::new(keys.algorithm),
            &json!({"exp": 4_000_000_000u64}),
            &keys.signing,
        )
        .unwrap();
        let jwk = serde_json::from_value(keys.jwks()["keys"][0].clone()).unwrap();
        let key = DecodingKey::from_jwk(&jwk).unwrap();
        jsonwebtoken::decode::<Value>(&jwt, &key, &jsonwebtoken::Validation::new(Algorithm::ES256)).unwrap();
    }

    #[test]
    fn rubbish_is_refused() {
        assert!(Keys::new(b"no key", &[]).is_err());
    }
}
