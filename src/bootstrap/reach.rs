//! From what the Clusterfile says about a host to the way there, and to how one becomes root on it.

use crate::{Error, Result, bandwidth::Bandwidth, way::Way};
use clusterfile::{Jump, Ssh};
use ssh::{Auth, Become, HostKeyPolicy};
use std::{net::Ipv4Addr, path::PathBuf};

/// The login name where nobody says another.
const USER: &str = "root";

/// How hosts are reached, beyond what the Clusterfile says.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// Files of known host keys; empty: the user's own.
    pub known_hosts: Vec<PathBuf>,
    /// Whether unknown host keys are accepted and remembered.
    pub accept_new_host_keys: bool,
    /// What may be sent to all hosts together.
    pub bandwidth: Option<Bandwidth>,
}

/// The way to a host of the Clusterfile.
///
/// # Errors
/// When a secret cannot be had, or a pinned key is malformed.
pub fn way(ip: Ipv4Addr, ssh: &Ssh, access: &Access) -> Result<Way> {
    let host = ip.to_string();
    if ssh.connection == clusterfile::Connection::Local {
        return Ok(Way::Local(host));
    }
    let auth = auth(&host, ssh)?;
    let user = ssh.user.as_deref().unwrap_or(USER);
    let base = |name: &str, port: Option<u16>, user: &str| {
        let mut config = ssh::Config::new(name, user);
        config.port = port.unwrap_or(config.port);
        config.auth = auth.clone();
        config.host_key = HostKeyPolicy {
            known_hosts: access.known_hosts.clone(),
            pinned: Vec::new(),
            accept_new: access.accept_new_host_keys,
        };
        config
    };
    let jump_config = |jump: &Jump| base(&jump.host, jump.port, jump.user.as_deref().unwrap_or(user));
    let jump = ssh.proxy_jump.iter().flatten().fold(None, |outer, jump| {
        let mut config = jump_config(jump);
        config.jump = outer;
        Some(Box::new(config))
    });
    let mut config = base(&host, ssh.port, user);
    config.jump = jump;
    let pin = |key: &String| {
        key.parse()
            .map_err(|e: String| Error::on(&host, format!("hostKey: {e}")))
    };
    config.host_key.pinned = ssh.host_key.iter().map(pin).collect::<Result<_>>()?;
    Ok(Way::Remote(Box::new(config)))
}

/// Ways to authenticate: the key, then the agent, then the password; without any of them the usual key files.
fn auth(host: &str, ssh: &Ssh) -> Result<Vec<Auth>> {
    let secret = |source: &clusterfile::SecretSource| {
        let secret = source.resolve().map_err(|source| Error::Secret {
            host: host.to_owned(),
            source,
        })?;
        Ok::<_, Error>(secret.map(|secret| ssh::Secret::new(secret.expose())))
    };
    let mut auth = Vec::new();
    if let Some(path) = &ssh.pk {
        auth.push(Auth::KeyFile {
            path: path.clone(),
            certificate: ssh.certificate.clone(),
            passphrase: secret(&ssh.pk_passwd)?,
        });
    }
    if ssh.agent {
        auth.push(Auth::Agent(None));
        if ssh.pk.is_none() {
            auth.extend(usual_keys());
        }
    }
    if let Some(password) = secret(&ssh.passwd)? {
        auth.push(Auth::Password(password));
    }
    Ok(auth)
}

fn usual_keys() -> Vec<Auth> {
    let Some(home) = std::env::var_os("HOME").map(PathBuf::from) else {
        return Vec::new();
    };
    let paths = ["id_ed25519", "id_ecdsa", "id_rsa"].map(|name| home.join(".ssh").join(name));
    let there = paths.into_iter().filter(|path| path.exists());
    let key = |path| Auth::KeyFile {
        path,
        certificate: None,
        passphrase: None,
    };
    there.map(key).collect()
}

/// How one becomes root where one is logged in as `user`.
///
/// # Errors
/// When the password for sudo cannot be had.
pub fn elevate(host: Ipv4Addr, user: &str, ssh: &Ssh) -> Result<Become> {
    if user == USER || ssh.sudo == Some(false) {
        return Ok(Become::User);
    }
    let source = if ssh.sudo_passwd.is_none() {
        &ssh.passwd
    } else {
        &ssh.sudo_passwd
    };
    let secret = source.resolve().map_err(|source| Error::Secret {
        host: host.to_string(),
        source,
    })?;
    Ok(Become::Root {
        password: secret.map(|secret| ssh::Secret::new(secret.expose())),
    })
}
