//! HTTP clients with the certificates they trust and show: one for all registries, and one for each that has a folder of
//! its own in `certs.d` (docker's and podman's convention: `HOST[:PORT]/*.crt` are authorities, `NAME.cert` with
//! `NAME.key` is shown to the registry).

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use reqwest::{Certificate, Client, ClientBuilder, Identity};

use super::{CONNECT, RemoteOptions, explain, redirect};
use crate::error::Error;

/// See the head of this file.
pub(super) struct Clients {
    authorities: Vec<Certificate>,
    folders: Vec<PathBuf>,
    /// By registry; the empty name is for all without certificates of their own.
    made: Mutex<HashMap<String, Client>>,
}

/// What a registry's folder holds.
#[derive(Default)]
struct Own {
    authorities: Vec<Certificate>,
    identity: Option<Identity>,
}

impl Clients {
    /// Reads the certificates that count for every registry.
    pub(super) fn new(options: &RemoteOptions) -> Result<Clients, Error> {
        let mut authorities = Vec::new();
        for file in &options.ca_files {
            authorities.extend(certificates(file)?);
        }
        Ok(Clients {
            authorities,
            folders: options.certs_dirs.clone(),
            made: Mutex::default(),
        })
    }

    /// The client for a registry.
    pub(super) fn of(&self, domain: &str) -> Result<Client, Error> {
        let folder = self
            .folders
            .iter()
            .map(|folder| folder.join(domain))
            .find(|folder| folder.is_dir());
        let name = folder.as_ref().map_or("", |_| domain);
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = made.get(name) {
            return Ok(client.clone());
        }
        let own = folder.map(|folder| own(&folder)).transpose()?.unwrap_or_default();
        let client = self.client(own)?;
        made.insert(name.to_string(), client.clone());
        Ok(client)
    }

    fn client(&self, own: Own) -> Result<Client, Error> {
        let authorities: Vec<Certificate> = self.authorities.iter().cloned().chain(own.authorities).collect();
        let builder = || match &own.identity {
            Some(identity) => builder().identity(identity.clone()),
            None => builder(),
        };
        let client = builder().tls_certs_merge(authorities.clone()).build();
        // A machine without any authority of its own can still speak to registries it was told of, and plain HTTP.
        let client = client.or_else(|_| builder().tls_certs_only(authorities).build());
        client.map_err(|error| Error::Remote {
            action: "prepare to speak HTTP".to_string(),
            reason: explain(&error),
        })
    }
}

fn builder() -> ClientBuilder {
    Client::builder()
        .user_agent(concat!("installer/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT)
        .tcp_keepalive(Duration::from_secs(30))
        .referer(false)
        .redirect(reqwest::redirect::Policy::custom(redirect))
}

fn certificates(file: &Path) -> Result<Vec<Certificate>, Error> {
    let pem = fs::read(file).map_err(Error::io("cannot read", file))?;
    match Certificate::from_pem_bundle(&pem) {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        _ => Err(Error::path(file.display().to_string(), "it holds no PEM certificates")),
    }
}

fn own(folder: &Path) -> Result<Own, Error> {
    let mut own = Own::default();
    let entries = fs::read_dir(folder).map_err(Error::io("cannot read", folder))?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.sort();
    for file in files {
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("crt") => own.authorities.extend(certificates(&file)?),
            Some("cert") => own.identity = Some(identity(&file)?),
            _ => {}
        }
    }
    Ok(own)
}

fn identity(file: &Path) -> Result<Identity, Error> {
    let key = file.with_extension("key");
    let mut pem = zeroize::Zeroizing::new(fs::read(file).map_err(Error::io("cannot read", file))?);
    let secret = zeroize::Zeroizing::new(fs::read(&key).map_err(Error::io("cannot read", &key))?);
    pem.push(b'\n');
    pem.extend_from_slice(&secret);
    let why = "it and its .key are no PEM certificate and key";
    Identity::from_pem(&pem).map_err(|_| Error::path(file.display().to_string(), why))
}
