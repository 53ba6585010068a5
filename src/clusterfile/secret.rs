//! Secrets: where they come from, and a value that never prints itself.

use std::fmt;
use std::path::PathBuf;

use zeroize::Zeroize;

/// A secret text. It is wiped when dropped, and neither `Debug` nor `Serialize` shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes a secret text.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Secret(text.into())
    }

    /// The text itself; for the one place that must hand it on.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

impl serde::Serialize for Secret {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_none()
    }
}

// Its error messages must come from a format that does not quote what it read.
impl<'de> serde::Deserialize<'de> for Secret {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Secret)
    }
}

/// Where a secret is to be read from, decided while parsing and read only when needed.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize)]
pub enum SecretSource {
    /// No secret was given.
    #[default]
    None,
    /// Written in the Clusterfile itself.
    Inline(Secret),
    /// The first line of a file.
    File(PathBuf),
    /// An environment variable of the operator's process.
    Env(String),
}

/// Why a secret cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file cannot be read.
    #[error("cannot read the secret file {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The environment variable is not set.
    #[error("the environment variable {0} that should hold a secret is not set")]
    Env(String),
}

impl SecretSource {
    /// Whether nothing was given.
    #[must_use]
    pub fn is_none(&self) -> bool {
        matches!(self, SecretSource::None)
    }

    /// Reads the secret now.
    ///
    /// # Errors
    /// If the file cannot be read or the variable isn't set.
    pub fn resolve(&self) -> Result<Option<Secret>, SecretError> {
        match self {
            SecretSource::None => Ok(None),
            SecretSource::Inline(secret) => Ok(Some(secret.clone())),
            SecretSource::File(path) => {
                let mut text = std::fs::read_to_string(path).map_err(|source| SecretError::File {
                    path: path.clone(),
                    source,
                })?;
                let secret = Secret::new(text.lines().next().unwrap_or_default());
                text.zeroize();
                Ok(Some(secret))
            }
            SecretSource::Env(name) => match std::env::var(name) {
                Ok(text) => Ok(Some(Secret::new(text))),
                Err(_) => Err(SecretError::Env(name.clone())),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_prints_nothing_of_itself() {
        let source = SecretSource::Inline(Secret::new("hunter2"));
        assert!(!format!("{source:?}").contains("hunter2"));
        assert!(!serde_json::to_string(&source).unwrap().contains("hunter2"));
    }

    #[test]
    fn a_file_gives_its_first_line_and_a_missing_one_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pw");
        std::fs::write(&path, "s3cret\nrest\n").unwrap();
        assert_eq!(SecretSource::File(path).resolve().unwrap().unwrap().expose(), "s3cret");
        let error = SecretSource::File(dir.path().join("none")).resolve().unwrap_err();
        assert!(error.to_string().contains("none"));
        assert!(SecretSource::Env("INSTALLER_TEST_UNSET".into()).resolve().is_err());
    }
}
