//! One file of logins: docker's `config.json`, podman's `auth.json`, or ours.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clusterfile::Secret;
use rustix::fs::{FlockOperation, flock};
use serde::Deserialize;
use serde_json::{Map, Value};
use zeroize::{Zeroize as _, Zeroizing};

use super::{helper, normalized};
use crate::error::Error;
use crate::remote::Login;

/// A larger file is no file of logins, in bytes.
const LARGEST: u64 = 4 << 20;

/// What is understood of a file; other fields are left as they are.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Content {
    auths: BTreeMap<String, Auth>,
    cred_helpers: BTreeMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Auth {
    /// `user:password` in base64.
    auth: Option<Secret>,
    username: Option<String>,
    password: Option<Secret>,
    identitytoken: Option<Secret>,
    registrytoken: Option<Secret>,
}

/// A file of logins; it need not exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthFile {
    path: PathBuf,
}

impl AuthFile {
    /// Names the file; touches nothing.
    #[must_use]
    pub fn new(path: &Path) -> AuthFile {
        AuthFile {
            path: path.to_path_buf(),
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The login for a repository (`quay.io/team/app`) or registry; an absent file has none.
    ///
    /// # Errors
    /// When the file or a login in it can't be understood, or its helper program fails.
    pub fn login(&self, repository: &str) -> Result<Option<Login>, Error> {
        let Some(text) = self.read()? else {
            return Ok(None);
        };
        let content: Content = serde_json::from_slice(&text).map_err(|error| self.malformed(&error))?;
        let repository = normalized(repository);
        let host = repository.split('/').next().unwrap_or_default();
        let helper = content.cred_helpers.iter().find(|(key, _)| normalized(key) == host);
        if let Some((_, program)) = helper {
            return helper::login(program, host, &self.path);
        }
        let auths: BTreeMap<String, &Auth> = content
            .auths
            .iter()
            .map(|(key, auth)| (normalized(key), auth))
            .collect();
        let mut name = repository.as_str();
        loop {
            let login = auths
                .get(name)
                .map(|auth| self.login_of(name, auth))
                .transpose()?
                .flatten();
            match (login, name.rsplit_once('/')) {
                (Some(login), _) => return Ok(Some(login)),
                (None, Some((parent, _))) => name = parent,
                (None, None) => break,
            }
        }
        match &content.creds_store {
            Some(program) => helper::login(program, host, &self.path),
            None => Ok(None),
        }
    }

    fn login_of(&self, key: &str, auth: &Auth) -> Result<Option<Login>, Error> {
        let filled = |secret: &Option<Secret>| secret.clone().filter(|secret| !secret.expose().is_empty());
        if let Some(token) = filled(&auth.identitytoken) {
            return Ok(Some(Login::IdentityToken(token)));
        }
        if let Some(token) = filled(&auth.registrytoken) {
            return Ok(Some(Login::BearerToken(token)));
        }
        if let (Some(user), Some(password)) = (&auth.username, filled(&auth.password)) {
            let user = user.clone();
            return Ok(Some(Login::Password { user, password }));
        }
        let Some(encoded) = filled(&auth.auth) else {
            return Ok(None);
        };
        let bad = || self.refused(format!("the login of {key} is not USER:PASSWORD in base64"));
        let decoded = Zeroizing::new(STANDARD.decode(encoded.expose().trim()).map_err(|_| bad())?);
        let text = std::str::from_utf8(&decoded).map_err(|_| bad())?;
        let (user, password) = text.split_once(':').ok_or_else(bad)?;
        // Docker fills up the text with zero bytes.
        Ok(Some(Login::Password {
            user: user.to_string(),
            password: Secret::new(password.trim_end_matches('\0')),
        }))
    }

    /// The registries and paths the file has logins for.
    ///
    /// # Errors
    /// When the file can't be understood.
    pub fn keys(&self) -> Result<Vec<String>, Error> {
        let Some(text) = self.read()? else {
            return Ok(Vec::new());
        };
        let content: Content = serde_json::from_slice(&text).map_err(|error| self.malformed(&error))?;
        Ok(content.auths.keys().map(|key| normalized(key)).collect())
    }

    /// Stores a login under `key`, which comes from [`super::registry_key`]. Only the file's owner may read it.
    ///
    /// # Errors
    /// When the file can't be understood or written, or leaves this registry to a helper program.
    pub fn store(&self, key: &str, user: &str, password: &Secret) -> Result<(), Error> {
        if user.contains(':') {
            return Err(Error::Refused("a user's name can't hold a colon".to_string()));
        }
        let host = key.split('/').next().unwrap_or_default();
        self.change(|document| {
            let helpers = document.get("credHelpers").and_then(Value::as_object);
            let named = helpers.and_then(|helpers| helpers.iter().find(|(key, _)| normalized(key) == host));
            if let Some(program) = named.map(|(_, program)| program).or_else(|| document.get("credsStore")) {
                return Err(self.refused(format!(
                    "it leaves the logins of {host} to docker-credential-{}: use that, or another --authfile",
                    program.as_str().unwrap_or_default()
                )));
            }
            let pair = Zeroizing::new(format!("{user}:{}", password.expose()));
            let auths = document.entry("auths").or_insert_with(|| Value::Object(Map::new()));
            let auths = auths
                .as_object_mut()
                .ok_or_else(|| self.refused("its \"auths\" is no object"))?;
            remove(auths, key);
            auths.insert(
                key.to_string(),
                serde_json::json!({"auth": STANDARD.encode(pair.as_bytes())}),
            );
            Ok(true)
        })
        .map(|_| ())
    }

    /// Forgets the login of `key`; `false` if there was none.
    ///
    /// # Errors
    /// When the file can't be understood or written.
    pub fn forget(&self, key: &str) -> Result<bool, Error> {
        if self.read()?.is_none() {
            return Ok(false);
        }
        self.change(|document| {
            let auths = document.get_mut("auths").and_then(Value::as_object_mut);
            Ok(auths.is_some_and(|auths| remove(auths, key)))
        })
    }

    /// Replaces the file by what `change` makes of it, if that says so.
    fn change(&self, change: impl FnOnce(&mut Map<String, Value>) -> Result<bool, Error>) -> Result<bool, Error> {
        // Through a link the file itself is replaced, not the link.
        let path = self.path.canonicalize().unwrap_or_else(|_| self.path.clone());
        let folder = path.parent().unwrap_or(Path::new("/"));
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.map_err(Error::io("cannot make", folder))?;
        let lock = path.with_extension("lock");
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&lock);
        let file = file.map_err(Error::io("cannot lock", &lock))?;
        flock(&file, FlockOperation::LockExclusive).map_err(|error| Error::io("cannot lock", &lock)(error.into()))?;
        let mut document = match self.read()? {
            Some(text) => serde_json::from_slice(&text).map_err(|error| self.malformed(&error))?,
            None => Map::new(),
        };
        let changed = change(&mut document);
        let written = match &changed {
            Ok(true) => write(&path, folder, &document),
            _ => Ok(()),
        };
        document.values_mut().for_each(wipe);
        written.and(changed)
    }

    fn read(&self) -> Result<Option<Zeroizing<Vec<u8>>>, Error> {
        let cannot = |error| Error::io("cannot read", &self.path)(error);
        let file = match fs::File::open(&self.path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(cannot)?,
        };
        let mut text = Zeroizing::new(Vec::new());
        file.take(LARGEST + 1).read_to_end(&mut text).map_err(cannot)?;
        match text.len() as u64 > LARGEST {
            true => Err(self.refused(format!("it has more than {LARGEST} bytes"))),
            // An empty file is what `touch` leaves.
            false if text.iter().all(u8::is_ascii_whitespace) => Ok(None),
            false => Ok(Some(text)),
        }
    }

    fn refused(&self, why: impl Into<String>) -> Error {
        Error::path(self.path.display().to_string(), why)
    }

    /// The parser's own words may hold a secret.
    fn malformed(&self, error: &serde_json::Error) -> Error {
        let (line, column) = (error.line(), error.column());
        self.refused(format!(
            "line {line}, column {column}: it is no file of logins in docker's format"
        ))
    }
}

/// Removes every spelling of a key.
fn remove(auths: &mut Map<String, Value>, key: &str) -> bool {
    let same: Vec<String> = auths.keys().filter(|other| normalized(other) == key).cloned().collect();
    same.iter()
        .filter_map(|same| auths.remove(same))
        .for_each(|mut value| wipe(&mut value));
    !same.is_empty()
}

fn wipe(value: &mut Value) {
    match value {
        Value::String(text) => text.zeroize(),
        Value::Array(items) => items.iter_mut().for_each(wipe),
        Value::Object(fields) => fields.values_mut().for_each(wipe),
        _ => {}
    }
}

fn write(path: &Path, folder: &Path, document: &Map<String, Value>) -> Result<(), Error> {
    let cannot = |error| Error::io("cannot write", path)(error);
    let mut text = Zeroizing::new(Vec::with_capacity(64 << 10));
    serde_json::to_writer_pretty(&mut *text, document).map_err(|error| cannot(error.into()))?;
    // Temporary files are made for their owner only.
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(cannot)?;
    file.write_all(&text)
        .and_then(|()| file.as_file().sync_all())
        .map_err(cannot)?;
    file.persist(path).map_err(|error| cannot(error.error))?;
    Ok(())
}
