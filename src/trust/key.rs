//! Ed25519 keys in the files every tool reads: private ones as PKCS#8 (RFC 5958, RFC 8410), with a passphrase as PBES2
//! (RFC 8018) of scrypt (RFC 7914) and AES-256-CBC; public ones as SubjectPublicKeyInfo (RFC 5280); both as PEM (RFC 7468).

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use aws_lc_rs::rand;
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use oci::Digest;
use pkcs8::der::pem::{LineEnding, PemLabel as _};
use pkcs8::pkcs5::{self, pbes2, scrypt};
use pkcs8::spki::SubjectPublicKeyInfoRef;
use pkcs8::{EncryptedPrivateKeyInfoRef, ObjectIdentifier, PrivateKeyInfoRef, SecretDocument};
use zeroize::Zeroizing;

/// `id-Ed25519` (RFC 8410).
const ED25519_OID: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");
/// What stands before the 32 bytes of a public key in its DER form: the sequence, the algorithm, the bit string.
const SPKI_HEAD: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
const PUBLIC_LABEL: &str = "PUBLIC KEY";
/// A key file larger than this is none, in bytes.
const LARGEST_FILE: u64 = 64 << 10;
/// N = 2^14, r = 8, p = 5: 16 MiB, which OpenSSL's own limit lets it read, and five passes over them.
const SCRYPT: (u8, u32, u32) = (14, 8, 5);
/// A key file that wants more memory than this to be opened was made to do harm, in bytes.
const MOST_MEMORY: u64 = 1 << 30;

/// Why a key can't be had. No variant ever holds a secret.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The system refused.
    #[error("{what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The text is no key of the kind asked for.
    #[error("{place} is no {wanted}: {why}")]
    NotAKey {
        /// The file, or where the text stands.
        place: String,
        /// `Ed25519 public key` or `Ed25519 private key`.
        wanted: &'static str,
        /// What it is instead.
        why: String,
    },
    /// The file is there already.
    #[error("{0} is there already; a key is never overwritten: choose another name or move it away")]
    Exists(PathBuf),
    /// The key is protected and no passphrase was given.
    #[error("the private key {0} is protected by a passphrase, and none was given")]
    Locked(PathBuf),
    /// The passphrase is wrong.
    #[error("the passphrase does not open the private key {0}")]
    Passphrase(PathBuf),
    /// The cryptographic library failed.
    #[error("{0} failed in the cryptographic library")]
    Crypto(&'static str),
}

impl KeyError {
    fn io(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> KeyError {
        move |source| KeyError::Io {
            what,
            path: path.to_path_buf(),
            source,
        }
    }
}

/// A key that signatures are verified with.
#[derive(Debug, Clone)]
pub struct PublicKey {
    bytes: [u8; 32],
    id: Digest,
    origin: String,
}

impl PartialEq for PublicKey {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

impl Eq for PublicKey {}

impl PublicKey {
    fn new(bytes: [u8; 32], origin: &str) -> PublicKey {
        let der = [&SPKI_HEAD[..], &bytes].concat();
        PublicKey {
            bytes,
            id: Digest::of(&der),
            origin: origin.to_string(),
        }
    }

    /// Reads PEM text; `origin` says in messages where it stands.
    ///
    /// # Errors
    /// [`KeyError::NotAKey`] with what the text is instead.
    pub fn from_pem(text: &str, origin: &str) -> Result<PublicKey, KeyError> {
        let refused = |why: String| KeyError::NotAKey {
            place: origin.to_string(),
            wanted: "Ed25519 public key",
            why,
        };
        let (label, document) =
            SecretDocument::from_pem(text.trim()).map_err(|error| refused(format!("it is no PEM text ({error})")))?;
        if label.ends_with("PRIVATE KEY") {
            return Err(refused(
                "it is a private key; give the public one beside it".to_string(),
            ));
        }
        if label != PUBLIC_LABEL {
            return Err(refused(format!("it is a {label}")));
        }
        let info = SubjectPublicKeyInfoRef::try_from(document.as_bytes());
        let info = info.map_err(|error| refused(format!("it is damaged ({error})")))?;
        if info.algorithm.oid != ED25519_OID {
            return Err(refused(format!(
                "its algorithm is {}, only Ed25519 ({ED25519_OID}) is supported",
                info.algorithm.oid
            )));
        }
        let bytes: [u8; 32] = info.subject_public_key.raw_bytes().try_into().map_err(|_| {
            let length = info.subject_public_key.raw_bytes().len();
            refused(format!("it has {} instead of 32", oci::counted(length, "byte")))
        })?;
        Ok(PublicKey::new(bytes, origin))
    }

    /// Reads a file with PEM text.
    ///
    /// # Errors
    /// When it can't be read or is no public key.
    pub fn read(path: &Path) -> Result<PublicKey, KeyError> {
        PublicKey::from_pem(&read_text(path)?, &path.display().to_string())
    }

    /// The key as PEM text.
    ///
    /// # Errors
    /// [`KeyError::Crypto`], which no key leads to.
    pub fn to_pem(&self) -> Result<String, KeyError> {
        let der = [&SPKI_HEAD[..], &self.bytes].concat();
        pkcs8::der::pem::encode_string(PUBLIC_LABEL, LineEnding::LF, &der)
            .map_err(|_| KeyError::Crypto("writing a public key"))
    }

    /// The key's name wherever it must be short: the digest of its DER form, as
    /// `openssl pkey -pubin -outform DER | sha256sum` gives it.
    #[must_use]
    pub fn id(&self) -> &Digest {
        &self.id
    }

    /// Where the key was read.
    #[must_use]
    pub fn origin(&self) -> &str {
        &self.origin
    }

    pub(crate) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, &self.bytes)
            .verify(message, signature)
            .is_ok()
    }
}

/// A key that signs.
pub struct PrivateKey(Ed25519KeyPair);

impl std::fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PrivateKey(of {:?})", self.0.public_key())
    }
}

impl PrivateKey {
    /// Makes a new key.
    ///
    /// # Errors
    /// [`KeyError::Crypto`] if the system gives no randomness.
    pub fn generate() -> Result<PrivateKey, KeyError> {
        let pair = Ed25519KeyPair::generate().map_err(|_| KeyError::Crypto("making a key"))?;
        Ok(PrivateKey(pair))
    }

    /// The public half; `origin` says in messages where it comes from.
    #[must_use]
    pub fn public(&self, origin: &str) -> PublicKey {
        let mut bytes = [0; 32];
        // The length is a property of the algorithm.
        bytes.copy_from_slice(&self.0.public_key().as_ref()[..32]);
        PublicKey::new(bytes, origin)
    }

    /// The key as PEM text, protected if a passphrase is given.
    ///
    /// # Errors
    /// [`KeyError::Crypto`].
    pub fn to_pem(&self, passphrase: Option<&str>) -> Result<Zeroizing<String>, KeyError> {
        let failed = |_| KeyError::Crypto("writing a private key");
        let der = self
            .0
            .to_pkcs8v1()
            .map_err(|_| KeyError::Crypto("writing a private key"))?;
        let info = PrivateKeyInfoRef::try_from(der.as_ref()).map_err(failed)?;
        let Some(passphrase) = passphrase else {
            let document = SecretDocument::encode_msg(&info);
            let document = document.map_err(|_| KeyError::Crypto("writing a private key"))?;
            let text = document.to_pem(PrivateKeyInfoRef::PEM_LABEL, LineEnding::LF);
            return text.map_err(|_| KeyError::Crypto("writing a private key"));
        };
        let (mut salt, mut iv) = ([0; 16], [0; 16]);
        rand::fill(&mut salt)
            .and_then(|()| rand::fill(&mut iv))
            .map_err(|_| KeyError::Crypto("making randomness"))?;
        let protect = || KeyError::Crypto("protecting a private key");
        let cost = scrypt::Params::new(SCRYPT.0, SCRYPT.1, SCRYPT.2).map_err(|_| protect())?;
        let scheme = pbes2::Parameters::generate_scrypt_aes256cbc(cost, &salt, iv).map_err(|_| protect())?;
        let document = info.encrypt_with_params(scheme, passphrase).map_err(|_| protect())?;
        document
            .to_pem(EncryptedPrivateKeyInfoRef::PEM_LABEL, LineEnding::LF)
            .map_err(|_| protect())
    }

    pub(crate) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        let signature = self.0.try_sign(message).map_err(|_| KeyError::Crypto("signing"))?;
        Ok(signature.as_ref().to_vec())
    }
}

/// A private key's file, read but not yet opened.
pub struct KeyFile {
    path: PathBuf,
    document: SecretDocument,
    encrypted: bool,
    mode: u32,
}

impl KeyFile {
    /// Reads the file.
    ///
    /// # Errors
    /// When it can't be read or holds no private key.
    pub fn read(path: &Path) -> Result<KeyFile, KeyError> {
        let text = read_text(path)?;
        let refused = |why: String| not_private(path, why);
        let (label, document) =
            SecretDocument::from_pem(text.trim()).map_err(|error| refused(format!("it is no PEM text ({error})")))?;
        let encrypted = label == EncryptedPrivateKeyInfoRef::PEM_LABEL;
        if label == PUBLIC_LABEL {
            return Err(refused(
                "it is a public key; give the private one beside it".to_string(),
            ));
        }
        if !encrypted && label != PrivateKeyInfoRef::PEM_LABEL {
            return Err(refused(format!("it is a {label}; only PKCS#8 is read")));
        }
        let mode = fs::metadata(path)
            .map_err(KeyError::io("cannot read", path))?
            .permissions()
            .mode();
        Ok(KeyFile {
            path: path.to_path_buf(),
            document,
            encrypted,
            mode,
        })
    }

    /// Whether a passphrase is needed.
    #[must_use]
    pub fn is_encrypted(&self) -> bool {
        self.encrypted
    }

    /// Whether others than the owner may read the file.
    #[must_use]
    pub fn is_exposed(&self) -> bool {
        self.mode & 0o077 != 0
    }

    /// Opens the key; an unprotected one needs no passphrase.
    ///
    /// # Errors
    /// [`KeyError::Locked`], [`KeyError::Passphrase`], or [`KeyError::NotAKey`] for other algorithms.
    pub fn open(&self, passphrase: Option<&str>) -> Result<PrivateKey, KeyError> {
        let damaged = |why: String| not_private(&self.path, why);
        if !self.encrypted {
            return self.parse(self.document.as_bytes());
        }
        let passphrase = passphrase.ok_or_else(|| KeyError::Locked(self.path.clone()))?;
        let sealed = EncryptedPrivateKeyInfoRef::try_from(self.document.as_bytes());
        let sealed = sealed.map_err(|error| damaged(format!("it is damaged ({error})")))?;
        if let pkcs5::EncryptionScheme::Pbes2(scheme) = &sealed.encryption_algorithm
            && let pbes2::Kdf::Scrypt(cost) = &scheme.kdf
            && memory(cost) > MOST_MEMORY
        {
            let needed = memory(cost);
            return Err(damaged(format!(
                "opening it would take {needed} bytes of memory, more than {MOST_MEMORY}"
            )));
        }
        // Whatever a wrong passphrase makes of the bytes, it is no PKCS#8.
        let wrong = || KeyError::Passphrase(self.path.clone());
        let document = sealed.decrypt(passphrase).map_err(|_| wrong())?;
        PrivateKeyInfoRef::try_from(document.as_bytes()).map_err(|_| wrong())?;
        self.parse(document.as_bytes())
    }

    fn parse(&self, der: &[u8]) -> Result<PrivateKey, KeyError> {
        let damaged = |why: String| not_private(&self.path, why);
        let info = PrivateKeyInfoRef::try_from(der).map_err(|error| damaged(format!("it is damaged ({error})")))?;
        if info.algorithm.oid != ED25519_OID {
            let oid = info.algorithm.oid;
            return Err(damaged(format!(
                "its algorithm is {oid}, only Ed25519 ({ED25519_OID}) is supported"
            )));
        }
        let pair = Ed25519KeyPair::from_pkcs8(der).map_err(|error| damaged(format!("it is damaged ({error})")))?;
        Ok(PrivateKey(pair))
    }
}

/// What scrypt needs (RFC 7914, section 2), in bytes.
fn memory(cost: &pbes2::ScryptParams) -> u64 {
    let block = 128 * u64::from(cost.block_size);
    block.saturating_mul(cost.cost_parameter.saturating_add(u64::from(cost.parallelization)))
}

fn not_private(path: &Path, why: String) -> KeyError {
    KeyError::NotAKey {
        place: path.display().to_string(),
        wanted: "Ed25519 private key",
        why,
    }
}

fn read_text(path: &Path) -> Result<Zeroizing<String>, KeyError> {
    let mut text = Zeroizing::new(String::new());
    let file = File::open(path).map_err(KeyError::io("cannot read the key", path))?;
    file.take(LARGEST_FILE)
        .read_to_string(&mut text)
        .map_err(KeyError::io("cannot read the key", path))?;
    Ok(text)
}

/// Writes `NAME.key`, which only the owner may read, and `NAME.pub`. Neither may be there already.
///
/// # Errors
/// When a file is there or can't be written; nothing is left then.
pub fn write_pair(key: &PrivateKey, passphrase: Option<&str>, name: &Path) -> Result<(PathBuf, PathBuf), KeyError> {
    let with = |ending: &str| {
        let mut path = name.as_os_str().to_owned();
        path.push(ending);
        PathBuf::from(path)
    };
    let (private, public) = (with(".key"), with(".pub"));
    let text = key.to_pem(passphrase)?;
    let public_text = key.public("").to_pem()?;
    create(&public, public_text.as_bytes(), 0o644)?;
    if let Err(error) = create(&private, text.as_bytes(), 0o600) {
        // A public key without its private one would only mislead; that it stays where it can't be removed does no harm.
        let _ = fs::remove_file(&public);
        return Err(error);
    }
    Ok((private, public))
}

fn create(path: &Path, bytes: &[u8], mode: u32) -> Result<(), KeyError> {
    let opened = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    let mut file = opened.map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => KeyError::Exists(path.to_path_buf()),
        _ => KeyError::io("cannot write", path)(error),
    })?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    written.map_err(|error| {
        let _ = fs::remove_file(path);
        KeyError::io("cannot write", path)(error)
    })
}
