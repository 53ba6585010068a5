//! The login of a registry: read where the Clusterfile says it is, handed to those who need it, and never printed or stored in
//! the cluster.

use crate::{Error, Result, site::Site};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bcrypt::{BcryptError, Version};
use clusterfile::{Clusterfile, Registry, Secret};
use std::{collections::BTreeMap, net::Ipv4Addr};
use zeroize::Zeroizing;

/// Work that a password file's hash costs, as a power of two: `htpasswd -B` has 5, which is little by now.
const COST: u32 = 10;

/// A user and a password.
#[derive(Debug, Clone)]
pub struct Login {
    /// The user.
    pub user: String,
    /// The password.
    pub password: Secret,
}

impl Login {
    /// The value of an `Authorization` header (RFC 7617).
    pub fn basic(&self) -> Zeroizing<String> {
        let pair = Zeroizing::new(format!("{}:{}", self.user, self.password.expose()));
        Zeroizing::new(format!("Basic {}", STANDARD.encode(pair.as_bytes())))
    }

    /// A line of a password file; another one each time.
    pub(crate) fn line(&self) -> Result<String> {
        let hash =
            bcrypt::non_truncating_hash_with_result(self.password.expose(), COST).map_err(|error| refused(&error))?;
        Ok(format!("{}:{}\n", self.user, hash.format_for_version(Version::TwoY)))
    }

    /// Whether a password file holds this login and no other.
    fn is_in(&self, file: &str) -> bool {
        let Some((user, hash)) = file.trim_end().split_once(':') else {
            return false;
        };
        user == self.user && bcrypt::non_truncating_verify(self.password.expose(), hash).unwrap_or(false)
    }
}

fn refused(error: &BcryptError) -> Error {
    let why = match error {
        BcryptError::Truncation(_) => "it is longer than the 71 bytes a password file can keep".to_owned(),
        other => other.to_string(),
    };
    Error::Wish(format!(
        "the password of spec.registry.localRegistry cannot be used: {why}"
    ))
}

/// The login of the Clusterfile's registry, if it has one. Reads files and the environment.
///
/// # Errors
/// When the password cannot be had, or cannot be used.
pub fn resolve(clusterfile: &Clusterfile) -> Result<Option<Login>> {
    let (user, password) = match &clusterfile.cluster.registry {
        Registry::LocalRegistry(local) => (&local.username, &local.password),
        Registry::ExternalRegistry(external) => (&external.username, &external.password),
    };
    let Some(user) = user else { return Ok(None) };
    let secret = password.resolve().map_err(|source| Error::Secret {
        host: "spec.registry".to_owned(),
        source,
    })?;
    let unusable = |what: &str| Error::Wish(format!("spec.registry: {what}"));
    if user.is_empty() || user.contains([':', '\n', '\r']) || user.trim() != user || user.starts_with('#') {
        return Err(unusable(
            "a username is not empty, has neither a colon nor a line's end, and does not begin with # or a blank",
        ));
    }
    match secret.filter(|secret| !secret.expose().is_empty()) {
        Some(password) => Ok(Some(Login {
            user: user.clone(),
            password,
        })),
        None => Err(unusable("the password is empty")),
    }
}

/// The password file of each host of the private registry: the one it has, if it is still right.
///
/// # Errors
/// When the password cannot be kept in one.
pub fn password_files(site: &Site, login: Option<&Login>) -> Result<BTreeMap<Ipv4Addr, String>> {
    let Some(login) = login.filter(|_| !site.registry.external) else {
        return Ok(BTreeMap::new());
    };
    let mut good: Vec<&str> = Vec::new();
    let mut fresh: Option<String> = None;
    let mut files = BTreeMap::new();
    for seat in site.registries() {
        let file = match seat.seen.htpasswd.as_deref() {
            Some(seen) if good.contains(&seen) => seen.to_owned(),
            Some(seen) if login.is_in(seen) => {
                good.push(seen);
                seen.to_owned()
            }
            _ => match &fresh {
                Some(line) => line.clone(),
                None => fresh.insert(login.line()?).clone(),
            },
        };
        files.insert(seat.ip, file);
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{clusterfile, site};

    fn login(password: &str) -> Login {
        Login {
            user: "puller".into(),
            password: Secret::new(password),
        }
    }

    #[test]
    fn a_password_file_is_kept_while_it_is_right_and_made_anew_when_it_is_not() {
        let mut site = site();
        site.registry.login = true;
        let master = site.seats[0].ip;
        let first = password_files(&site, Some(&login("s3cret"))).unwrap();
        let line = first[&master].clone();
        assert!(line.starts_with("puller:$2y$10$") && line.ends_with('\n'), "{line}");
        assert!(!line.contains("s3cret") && first.len() == 1);
        site.seats[0].seen.htpasswd = Some(line.clone());
        assert_eq!(password_files(&site, Some(&login("s3cret"))).unwrap()[&master], line);
        assert_ne!(password_files(&site, Some(&login("other"))).unwrap()[&master], line);
        let long = password_files(&site, Some(&login(&"x".repeat(73))))
            .unwrap_err()
            .to_string();
        assert!(long.contains("longer than the 71 bytes"), "{long}");
        assert!(password_files(&site, None).unwrap().is_empty());
    }

    #[test]
    fn the_login_comes_from_where_the_clusterfile_says_and_is_never_shown() {
        let found = |registry: &str| resolve(&clusterfile(&format!("  registry: {registry}\n")));
        let login = found("{localRegistry: {username: puller, password: s3cret}}")
            .unwrap()
            .unwrap();
        assert_eq!(&**login.basic(), "Basic cHVsbGVyOnMzY3JldA==");
        assert!(!format!("{login:?}").contains("s3cret"));
        assert!(found("{localRegistry: {}}").unwrap().is_none());
        for (registry, why) in [
            ("{localRegistry: {username: 'a:b', password: x}}", "colon"),
            (
                "{externalRegistry: {domain: r.corp, username: a, password: ''}}",
                "the password is empty",
            ),
            (
                "{localRegistry: {username: a, passwordFile: /nonexistent/file}}",
                "/nonexistent/file",
            ),
        ] {
            let error = found(registry).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
