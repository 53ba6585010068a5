//! From what the Clusterfile says about a host to the way there, and to how one becomes root on it.

use crate::{Error, Result, bandwidth::Bandwidth, way::Way};
use clusterfile::{Jump, Ssh};
use ssh::{Alias, Aliases, Auth, Become, Hop, HostKeyPolicy};
use std::{net::Ipv4Addr, path::PathBuf};

/// The login name where nobody says another.
const USER: &str = "root";
/// How many jump hosts may lead to each other by the SSH configuration.
const JUMPS: usize = 8;

/// How hosts are reached, beyond what the Clusterfile says.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// Files of known host keys; empty: the user's own.
    pub known_hosts: Vec<PathBuf>,
    /// Whether unknown host keys are accepted and remembered.
    pub accept_new_host_keys: bool,
    /// What may be sent to all hosts together.
    pub bandwidth: Option<Bandwidth>,
    /// The user's own SSH configuration. What the Clusterfile says counts before it.
    pub aliases: Aliases,
}

/// The way to a host of the Clusterfile.
///
/// # Errors
/// When a secret cannot be had, a pinned key is malformed, or the SSH configuration says something that we cannot do.
pub fn way(ip: Ipv4Addr, ssh: &Ssh, access: &Access) -> Result<Way> {
    let host = ip.to_string();
    if ssh.connection == clusterfile::Connection::Local {
        return Ok(Way::Local(ip));
    }
    let alias = access.aliases.lookup(&host, ssh.user.as_deref());
    let user = alias.user.clone().unwrap_or_else(|| USER.to_owned());
    let hops = match &ssh.proxy_jump {
        Some(jumps) => Some(jumps.iter().map(hop).collect()),
        None => alias.jumps.clone(),
    };
    let planning = Planning {
        host: &host,
        user: &user,
        auth: auth(&host, ssh, &[])?,
        access,
    };
    let mut config = planning.config(&alias, ssh.port);
    config.auth = auth(&host, ssh, &alias.identity_files)?;
    config.jump = match hops {
        Some(hops) => planning.chain(&hops, 0)?,
        None => planning.no_command(&alias).map(|()| None)?,
    };
    let pin = |key: &String| {
        key.parse()
            .map_err(|e: String| Error::on(&host, format!("hostKey: {e}")))
    };
    config.host_key.pinned = ssh.host_key.iter().map(pin).collect::<Result<_>>()?;
    Ok(Way::Remote(Box::new(config)))
}

fn hop(jump: &Jump) -> Hop {
    Hop {
        user: jump.user.clone(),
        host: jump.host.clone(),
        port: jump.port,
    }
}

/// What all connections on the way to one host share.
struct Planning<'a> {
    host: &'a str,
    user: &'a str,
    auth: Vec<Auth>,
    access: &'a Access,
}

impl Planning<'_> {
    fn config(&self, alias: &Alias, port: Option<u16>) -> ssh::Config {
        let mut config = ssh::Config::new(&alias.host_name, alias.user.as_deref().unwrap_or(self.user));
        config.port = port.or(alias.port).unwrap_or(config.port);
        alias.limits.apply(&mut config);
        config.host_key = HostKeyPolicy {
            known_hosts: if self.access.known_hosts.is_empty() {
                alias.known_hosts.clone()
            } else {
                self.access.known_hosts.clone()
            },
            pinned: Vec::new(),
            accept_new: self.access.accept_new_host_keys,
        };
        config
    }

    /// The innermost of the hops, with the others underneath. What the SSH configuration says about the way to the outermost is followed.
    fn chain(&self, hops: &[Hop], depth: usize) -> Result<Option<Box<ssh::Config>>> {
        if depth > JUMPS {
            let message = format!("the SSH configuration goes through more than {JUMPS} jump hosts; is it a circle?");
            return Err(Error::on(self.host, message));
        }
        let mut under = None;
        for (place, hop) in hops.iter().enumerate() {
            let alias = self.access.aliases.lookup(&hop.host, hop.user.as_deref());
            if place == 0 {
                under = match &alias.jumps {
                    Some(hops) => self.chain(hops, depth + 1)?,
                    None => self.no_command(&alias).map(|()| None)?,
                };
            }
            let mut config = self.config(&alias, hop.port);
            // Keys that are named for the jump host go first.
            config.auth = alias.identity_files.iter().map(|path| key(path.clone())).collect();
            config.auth.extend(self.auth.clone());
            config.jump = under;
            under = Some(Box::new(config));
        }
        Ok(under)
    }

    fn no_command(&self, alias: &Alias) -> Result<()> {
        match &alias.command {
            None => Ok(()),
            Some(place) => Err(Error::on(
                self.host,
                format!(
                    "{} is reached by the ProxyCommand of {place}, which is not supported: say ProxyJump there, ssh.proxyJump in the Clusterfile ([] for a \
                     direct way), or --ssh-config none",
                    alias.host_name
                ),
            )),
        }
    }
}

fn key(path: PathBuf) -> Auth {
    Auth::KeyFile {
        path,
        certificate: None,
        passphrase: None,
    }
}

/// Ways to authenticate: the key, then the agent, then the password; without any of them the usual key files. Of a host whose login the
/// Clusterfile leaves open, the keys of the SSH configuration are tried first.
fn auth(host: &str, ssh: &Ssh, configured: &[PathBuf]) -> Result<Vec<Auth>> {
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
    } else if ssh.passwd.is_none() {
        auth.extend(configured.iter().cloned().map(key));
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

#[cfg(test)]
mod tests {
    use super::*;
    use clusterfile::Clusterfile;
    use std::path::Path;

    fn ssh(text: &str) -> Ssh {
        let text = format!(
            "apiVersion: sealer.io/v2\nkind: Cluster\nmetadata: {{name: demo}}\nspec:\n  image: i\n  ssh: {text}\n  \
             hosts: [{{ips: [10.0.0.1], roles: [master]}}]\n"
        );
        let file = Clusterfile::parse(&text, "Clusterfile", Path::new("/work")).unwrap();
        file.cluster.hosts[0].ssh.clone()
    }

    fn access(config: &str) -> Access {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), config).unwrap();
        Access {
            aliases: Aliases::load(file.path()).unwrap().0,
            ..Access::default()
        }
    }

    /// `user@host:port [keys] < the jump host underneath`.
    fn shown(config: &ssh::Config) -> String {
        let named = config.auth.iter().filter_map(|auth| match auth {
            Auth::KeyFile { path, .. } if path.starts_with("/k") => Some(path.display().to_string()),
            Auth::KeyFile { .. } => None,
            Auth::Agent(_) => Some("agent".to_owned()),
            Auth::Password(_) => Some("password".to_owned()),
        });
        let keys = named.collect::<Vec<_>>().join(" ");
        let under = config.jump.as_ref().map(|jump| format!(" < {}", shown(jump)));
        let under = under.unwrap_or_default();
        format!("{}@{}:{} [{keys}]{under}", config.user, config.host, config.port)
    }

    fn judged(clusterfile: &str, config: &str) -> String {
        match way(Ipv4Addr::new(10, 0, 0, 1), &ssh(clusterfile), &access(config)) {
            Ok(Way::Remote(config)) => shown(&config),
            Ok(Way::Local(ip)) => format!("local {ip}"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn the_clusterfile_counts_before_the_ssh_configuration_and_both_before_defaults() {
        const CONFIG: &str = "Host 10.0.0.*\nHostName h.example\nUser ann\nPort 2200\nIdentityFile /k/ann\nProxyJump b\n\
             Host b\nHostName b.example\nPort 2222\nIdentityFile /k/b\n";
        let table = [
            ("{}", "", "root@10.0.0.1:22 [agent]"),
            (
                "{}",
                CONFIG,
                "ann@h.example:2200 [/k/ann agent] < ann@b.example:2222 [/k/b agent]",
            ),
            (
                "{user: root, port: 22, pk: /k/mine}",
                CONFIG,
                "root@h.example:22 [/k/mine] < root@b.example:2222 [/k/b /k/mine]",
            ),
            ("{passwd: x, proxyJump: []}", CONFIG, "ann@h.example:2200 [password]"),
            (
                "{proxyJump: \"carl@b:7,c\"}",
                CONFIG,
                "ann@h.example:2200 [/k/ann agent] < ann@c:22 [agent] < carl@b.example:7 [/k/b agent]",
            ),
            ("{connection: local}", CONFIG, "local 10.0.0.1"),
            // The outermost jump host's own way is followed, and nobody jumps through himself.
            (
                "{proxyJump: \"x,y\"}",
                "Host x y\nProxyJump z\nHost *\nProxyJump z\n",
                "root@10.0.0.1:22 [agent] < root@y:22 [agent] < root@x:22 [agent] < root@z:22 [agent]",
            ),
        ];
        for (clusterfile, config, expected) in table {
            assert_eq!(judged(clusterfile, config), expected, "{clusterfile} with {config}");
        }
    }

    #[test]
    fn ways_that_we_cannot_go_are_refused_with_their_place() {
        for (clusterfile, config, expected) in [
            ("{}", "ProxyCommand nc %h %p\n", ":1, which is not supported"),
            (
                "{proxyJump: b}",
                "Host b\nProxyCommand nc %h %p\n",
                "b is reached by the ProxyCommand",
            ),
            (
                "{}",
                "Host a 10.*\nProxyJump b\nHost b\nProxyJump a\n",
                "is it a circle?",
            ),
            ("{passwdEnv: NO_SUCH_VARIABLE_HERE}", "", "NO_SUCH_VARIABLE_HERE"),
        ] {
            let error = judged(clusterfile, config);
            assert!(error.contains("10.0.0.1") && error.contains(expected), "{error}");
        }
        // Who says another way need not go that one.
        assert_eq!(
            judged("{proxyJump: []}", "ProxyCommand nc %h %p\n"),
            "root@10.0.0.1:22 [agent]"
        );
    }

    #[test]
    fn root_is_become_by_whoever_is_not_root() {
        let ip = Ipv4Addr::LOCALHOST;
        let become_of = |user: &str, text: &str| match elevate(ip, user, &ssh(text)).unwrap() {
            Become::User => "as is".to_owned(),
            Become::Root { password } => password.map_or("sudo".to_owned(), |p| format!("sudo {}", p.expose())),
        };
        for (user, text, expected) in [
            ("root", "{}", "as is"),
            ("root", "{sudo: true}", "as is"),
            ("ann", "{}", "sudo"),
            ("ann", "{sudo: false}", "as is"),
            ("ann", "{passwd: p}", "sudo p"),
            ("ann", "{passwd: p, sudoPasswd: s}", "sudo s"),
        ] {
            assert_eq!(become_of(user, text), expected, "{user} with {text}");
        }
    }
}
