//! Logins for registries, in the file format of docker and podman.
//!
//! `installer login` writes a file of its own, as podman does; the files of podman and docker are read after it, with the
//! helper programs they name. A key is a registry (`quay.io`, `registry.corp:5000`) or a path in it (`quay.io/team`); the
//! longest one that fits a repository holds. Secrets are wiped after use and never printed.

mod file;
mod helper;

use std::path::{Path, PathBuf};

use oci::Reference;

use crate::error::Error;
use crate::remote::{Credentials, Login};
pub use file::AuthFile;

/// The files that are asked for a login, in their order.
#[derive(Debug, Clone, Default)]
pub struct CredentialFiles(Vec<PathBuf>);

/// What of the process' environment says where those files are.
#[derive(Debug, Clone, Default)]
pub struct CredentialEnv {
    /// `HOME`.
    pub home: Option<PathBuf>,
    /// `XDG_CONFIG_HOME`.
    pub config_home: Option<PathBuf>,
    /// `XDG_RUNTIME_DIR`.
    pub runtime_dir: Option<PathBuf>,
    /// `DOCKER_CONFIG`: the folder of docker's `config.json`.
    pub docker_config: Option<PathBuf>,
}

impl CredentialEnv {
    /// The environment of this process.
    #[must_use]
    pub fn of_process() -> CredentialEnv {
        let folder = |name| {
            std::env::var_os(name)
                .map(PathBuf::from)
                .filter(|path| path.is_absolute())
        };
        CredentialEnv {
            home: folder("HOME"),
            config_home: folder("XDG_CONFIG_HOME"),
            runtime_dir: folder("XDG_RUNTIME_DIR"),
            docker_config: std::env::var_os("DOCKER_CONFIG").map(PathBuf::from),
        }
    }

    fn home(&self) -> PathBuf {
        self.home.clone().unwrap_or_else(|| PathBuf::from("/root"))
    }

    /// The file that `installer login` writes: `${XDG_CONFIG_HOME:-~/.config}/installer/auth.json`.
    #[must_use]
    pub fn own_file(&self) -> PathBuf {
        let config = self.config_home.clone().unwrap_or_else(|| self.home().join(".config"));
        config.join("installer/auth.json")
    }

    /// Our own file, podman's, and docker's.
    #[must_use]
    pub fn files(&self) -> CredentialFiles {
        let docker = self
            .docker_config
            .clone()
            .unwrap_or_else(|| self.home().join(".docker"));
        let podman = self
            .runtime_dir
            .as_ref()
            .map(|folder| folder.join("containers/auth.json"));
        let files = [self.own_file()]
            .into_iter()
            .chain(podman)
            .chain([docker.join("config.json")]);
        CredentialFiles(files.collect())
    }
}

impl CredentialFiles {
    /// One file alone, as `--authfile` asks for.
    #[must_use]
    pub fn only(file: &Path) -> CredentialFiles {
        CredentialFiles(vec![file.to_path_buf()])
    }
}

impl Credentials for CredentialFiles {
    fn login(&self, repository: &str) -> Result<Option<Login>, Error> {
        for path in &self.0 {
            let login = AuthFile::new(path).login(repository)?;
            if login.is_some() {
                return Ok(login);
            }
        }
        Ok(None)
    }
}

/// A registry or a path in it, as a key of a file of logins: `https://` and the API's path are taken off, Docker Hub's
/// several names are one.
///
/// # Errors
/// When the text names no registry.
pub fn registry_key(text: &str) -> Result<String, Error> {
    let key = normalized(text);
    let reference: Option<Reference> = format!("{key}/x").parse().ok();
    let host = key.split('/').next().unwrap_or_default();
    match reference.is_some_and(|reference| reference.domain() == host) {
        true => Ok(key),
        false => Err(Error::Refused(format!(
            "{text:?} is no registry: the form is HOST[:PORT][/PATH], such as quay.io or registry.corp:5000/team"
        ))),
    }
}

/// A key as tools write it, in one form.
fn normalized(key: &str) -> String {
    let plain = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://"));
    let plain = plain.unwrap_or(key).trim_end_matches('/');
    let plain = plain
        .strip_suffix("/v1")
        .or_else(|| plain.strip_suffix("/v2"))
        .unwrap_or(plain);
    let (host, rest) = plain
        .split_once('/')
        .map_or((plain, None), |(host, rest)| (host, Some(rest)));
    let host = match host {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        other => other,
    };
    rest.map_or_else(|| host.to_string(), |rest| format!("{host}/{rest}"))
}

#[cfg(test)]
mod tests;
