//! Reading `ssh:` of a cluster and of a host, the host's over the cluster's.

use crate::cluster::{Connection, Jump, Ssh};
use crate::decode::{Decoder, Object};
use crate::secret::SecretSource;
use crate::yaml::{Node, Value};
use std::path::PathBuf;

/// What one `ssh:` mapping says; absent fields fall through to the cluster's, then to the defaults.
#[derive(Debug, Clone, Default)]
pub(crate) struct SshOverlay {
    connection: Option<Connection>,
    user: Option<String>,
    port: Option<u16>,
    passwd: SecretSource,
    pk: Option<PathBuf>,
    certificate: Option<PathBuf>,
    pk_passwd: SecretSource,
    agent: Option<bool>,
    sudo: Option<bool>,
    sudo_passwd: SecretSource,
    proxy_jump: Option<Vec<Jump>>,
    host_key: Option<Vec<String>>,
}

pub(crate) fn read(decoder: &mut Decoder, mut object: Object<'_>) -> SshOverlay {
    if object.boolean(decoder, "encrypted") == Some(true) {
        let message = "encrypted passwords are not supported; use passwdFile or passwdEnv instead";
        decoder.problem(object.at(), format!("{}: {message}", object.name("encrypted")));
    }
    let ways = [("ssh", Connection::Ssh), ("local", Connection::Local)];
    let overlay = SshOverlay {
        connection: object.word(decoder, "connection", &ways),
        user: object.string(decoder, "user"),
        port: object.port(decoder, "port"),
        passwd: object.secret(decoder, "passwd", "passwdFile", "passwdEnv"),
        pk: object.path(decoder, "pk"),
        certificate: object.path(decoder, "certificate"),
        pk_passwd: object.secret(decoder, "pkPasswd", "pkPasswdFile", "pkPasswdEnv"),
        agent: object.boolean(decoder, "agent"),
        sudo: object.boolean(decoder, "sudo"),
        sudo_passwd: object.secret(decoder, "sudoPasswd", "sudoPasswdFile", "sudoPasswdEnv"),
        proxy_jump: jumps(decoder, &mut object),
        host_key: host_keys(decoder, &mut object),
    };
    if overlay.connection == Some(Connection::Local) && object.len() > 1 {
        let message = "local means this machine itself, so the other fields of ssh mean nothing";
        decoder.problem(object.at(), format!("{}: {message}", object.name("connection")));
    }
    if overlay.certificate.is_some() && object.lacks("pk") {
        let message = "it goes with the key that it is for: name that in pk";
        decoder.problem(object.at(), format!("{}: {message}", object.name("certificate")));
    }
    object.finish(decoder);
    overlay
}

impl SshOverlay {
    /// `self` where it says something, else `base`.
    pub(crate) fn over(self, base: &SshOverlay) -> SshOverlay {
        let secret = |own: SecretSource, base: &SecretSource| if own.is_none() { base.clone() } else { own };
        // A host that names its own way in must not be tried with the cluster's key or password as well.
        let own_login = self.pk.is_some() || !self.passwd.is_none();
        SshOverlay {
            connection: self.connection.or(base.connection),
            user: self.user.or_else(|| base.user.clone()),
            port: self.port.or(base.port),
            passwd: if own_login { self.passwd } else { base.passwd.clone() },
            pk_passwd: if self.pk.is_some() {
                self.pk_passwd
            } else {
                secret(self.pk_passwd, &base.pk_passwd)
            },
            certificate: if own_login {
                self.certificate
            } else {
                base.certificate.clone()
            },
            pk: if own_login { self.pk } else { base.pk.clone() },
            agent: self.agent.or(base.agent),
            sudo: self.sudo.or(base.sudo),
            sudo_passwd: secret(self.sudo_passwd, &base.sudo_passwd),
            proxy_jump: self.proxy_jump.or_else(|| base.proxy_jump.clone()),
            host_key: self.host_key.or_else(|| base.host_key.clone()),
        }
    }

    /// With every default filled in.
    pub(crate) fn resolve(self) -> Ssh {
        Ssh {
            connection: self.connection.unwrap_or_default(),
            sudo: self.sudo,
            user: self.user,
            port: self.port,
            agent: self.agent.unwrap_or(self.passwd.is_none() && self.pk.is_none()),
            passwd: self.passwd,
            pk: self.pk,
            certificate: self.certificate,
            pk_passwd: self.pk_passwd,
            sudo_passwd: self.sudo_passwd,
            proxy_jump: self.proxy_jump,
            host_key: self.host_key.unwrap_or_default(),
        }
    }
}

/// A string or a list of strings.
fn one_or_more<'n>(
    decoder: &mut Decoder,
    object: &mut Object<'n>,
    field: &'static str,
) -> Option<(Vec<String>, &'n Node)> {
    let name = object.name(field);
    let node = object.get(field)?;
    let texts = match &node.value {
        Value::List(_) => decoder.strings(node, &name).into_iter().map(|(text, _)| text).collect(),
        _ => vec![decoder.string(node, &name)?],
    };
    Some((texts, node))
}

fn jumps(decoder: &mut Decoder, object: &mut Object<'_>) -> Option<Vec<Jump>> {
    let (texts, node) = one_or_more(decoder, object, "proxyJump")?;
    let mut jumps = Vec::new();
    for text in texts.iter().flat_map(|text| text.split(',')) {
        match parse_jump(text.trim()) {
            Some(jump) => jumps.push(jump),
            None => decoder.problem(
                node.at,
                format!(
                    "{}: {text:?} is not of the form [user@]host[:port]",
                    object.name("proxyJump")
                ),
            ),
        }
    }
    Some(jumps)
}

fn parse_jump(text: &str) -> Option<Jump> {
    let (user, rest) = match text.split_once('@') {
        Some((user, rest)) => (Some(user.to_string()).filter(|u| !u.is_empty()).map(Some)?, rest),
        None => (None, text),
    };
    let (host, port) = match rest.rsplit_once(':') {
        Some((host, port)) => (host, Some(port.parse().ok().filter(|port| *port != 0)?)),
        None => (rest, None),
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    (!host.is_empty() && host.chars().all(plain)).then(|| Jump {
        user,
        host: host.to_string(),
        port,
    })
}

fn host_keys(decoder: &mut Decoder, object: &mut Object<'_>) -> Option<Vec<String>> {
    let (texts, node) = one_or_more(decoder, object, "hostKey")?;
    for text in &texts {
        let mut parts = text.split_whitespace();
        let kind_is_known = parts
            .next()
            .is_some_and(|kind| kind.starts_with("ssh-") || kind.starts_with("ecdsa-sha2-") || kind.starts_with("sk-"));
        if !kind_is_known || parts.next().is_none_or(|key| !key.starts_with("AAAA")) {
            decoder.problem(
                node.at,
                format!(
                    "{} must be a public key as in /etc/ssh/ssh_host_*_key.pub",
                    object.name("hostKey")
                ),
            );
        }
    }
    Some(texts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jumps_have_user_host_and_port() {
        for (text, expected) in [
            ("bastion", Some((None, "bastion", None))),
            ("me@10.0.0.1:2222", Some((Some("me"), "10.0.0.1", Some(2222)))),
            ("@x", None),
            ("a b", None),
            ("x:0", None),
            ("", None),
        ] {
            let jump = parse_jump(text);
            let got = jump.as_ref().map(|j| (j.user.as_deref(), j.host.as_str(), j.port));
            assert_eq!(got, expected, "{text}");
        }
    }
}
