//! What is said of a host that cannot be talked to: why, and the remedy that fits.

use super::{Finding, Severity};
use crate::Error;
use std::net::Ipv4Addr;

/// The finding of a host that cannot be talked to. Nothing passes over it.
pub(crate) fn unreached(ip: Ipv4Addr, error: &Error) -> Finding {
    let host = ip.to_string();
    let (cause, remedy) = match error {
        Error::Ssh(error) => of_transport(error),
        _ => None,
    }
    .unwrap_or_else(|| {
        // The host stands in front of the finding.
        let cause = without_host(&error.to_string(), &host);
        (
            cause,
            "look at the host, then run it again; or take it out of the Clusterfile".to_owned(),
        )
    });
    Finding {
        name: host.clone(),
        host,
        check: "reach",
        severity: Severity::Error,
        cause,
        remedy,
    }
}

/// Cause and remedy of what the transport says; nothing where it knows no remedy.
fn of_transport(error: &ssh::Error) -> Option<(String, String)> {
    let owned = |cause: String, remedy: &str| Some((cause, remedy.to_owned()));
    match error {
        ssh::Error::Resolve { source, .. } => owned(
            format!("the name cannot be resolved ({source})"),
            "check the spelling, or use an address",
        ),
        ssh::Error::Refused { .. } => owned(
            "it refuses the connection".to_owned(),
            "start sshd there; where it listens on another port, write that into ssh.port",
        ),
        ssh::Error::Timeout { during, limit, .. } => owned(
            format!("no answer within {} s while {during}", limit.as_secs_f32()),
            "see that the host is up and that no firewall drops the packets; or take it out of the Clusterfile",
        ),
        ssh::Error::Unreachable { source, .. } => owned(
            format!("unreachable ({source})"),
            "check the address and this machine's routes",
        ),
        ssh::Error::HostKeyUnknown {
            algorithm, fingerprint, ..
        } => owned(
            format!("its host key is not known ({algorithm} {fingerprint})"),
            "compare the fingerprint with the host's own, then accept it with --accept-new-host-keys, or pin it with hostKey in the Clusterfile",
        ),
        ssh::Error::Auth {
            user,
            tried,
            offered,
            hint,
            ..
        } => owned(
            format!("user '{user}' was not let in. Tried: {tried}. The server offers: {offered}"),
            hint,
        ),
        ssh::Error::NoCredential { user, tried, hint, .. } => owned(
            format!("there is nothing to log in with as user '{user}': {tried}"),
            hint,
        ),
        ssh::Error::Shell { user, reason, .. } => owned(
            format!("the login shell of user '{user}' runs no programs: {reason}"),
            "log in as another user (ssh.user), or have this one's shell and its start-up files mended there",
        ),
        _ => None,
    }
}

/// A message that begins with the host, perhaps with its port, without that.
fn without_host(message: &str, host: &str) -> String {
    let rest = message.strip_prefix(host).and_then(|rest| {
        let port = rest.strip_prefix(':').unwrap_or(rest);
        let port = port.trim_start_matches(|c: char| c.is_ascii_digit());
        port.strip_prefix(": ").or_else(|| rest.strip_prefix(": "))
    });
    rest.unwrap_or(message).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_host_is_named_once_and_the_remedy_fits() {
        let host = || "10.0.0.7:2222".to_owned();
        let ip = Ipv4Addr::new(10, 0, 0, 7);
        for (error, cause, remedy) in [
            (
                Error::from(ssh::Error::Refused { host: host() }),
                "it refuses the connection",
                "start sshd there",
            ),
            (
                ssh::Error::Timeout {
                    host: host(),
                    during: "connecting",
                    limit: Duration::from_secs(10),
                }
                .into(),
                "no answer within 10 s while connecting",
                "no firewall drops",
            ),
            (
                ssh::Error::HostKeyUnknown {
                    host: host(),
                    algorithm: "ssh-ed25519".into(),
                    fingerprint: "SHA256:abc".into(),
                }
                .into(),
                "its host key is not known (ssh-ed25519 SHA256:abc)",
                "--accept-new-host-keys",
            ),
            (
                ssh::Error::Auth {
                    host: host(),
                    user: "ann".into(),
                    tried: "the agent's keys".into(),
                    offered: "publickey".into(),
                    hint: "name a key in ssh.pk".into(),
                }
                .into(),
                "user 'ann' was not let in. Tried: the agent's keys. The server offers: publickey",
                "name a key in ssh.pk",
            ),
            (
                ssh::Error::Sudo {
                    host: host(),
                    user: "ann".into(),
                    program: "/bin/true".into(),
                    reason: "it asks for a password".into(),
                }
                .into(),
                "user 'ann' cannot become root to run /bin/true: it asks for a password",
                "look at the host",
            ),
            (
                Error::on(ip, "cannot run clusterd: No space left on device"),
                "cannot run clusterd: No space left on device",
                "look at the host",
            ),
        ] {
            let finding = unreached(ip, &error);
            assert_eq!((finding.host.as_str(), finding.name.as_str()), ("10.0.0.7", "10.0.0.7"));
            assert_eq!(finding.cause, cause);
            assert!(finding.remedy.contains(remedy), "{}", finding.remedy);
        }
    }
}
