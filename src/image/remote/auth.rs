//! Who we are to a registry: challenges, logins and tokens (RFC 9110 section 11, and the token protocol of the
//! distribution project).

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use clusterfile::Secret;

use crate::error::Error;

/// A way to prove who one is to a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Login {
    /// A name and a password or an access token that is used like one.
    Password {
        /// The name.
        user: String,
        /// The password.
        password: Secret,
    },
    /// A refresh token of the registry's token server.
    IdentityToken(Secret),
    /// A bearer token that is sent as it is.
    BearerToken(Secret),
}

/// Somebody who knows logins.
pub trait Credentials: Send + Sync {
    /// The login for a repository, named as in a reference (`docker.io/library/x`, `registry.corp:5000/team/x`); none
    /// means anonymous.
    ///
    /// # Errors
    /// When there is a login that can't be read.
    fn login(&self, repository: &str) -> Result<Option<Login>, Error>;
}

/// Knows no login.
#[derive(Debug, Clone, Copy, Default)]
pub struct Anonymous;

impl Credentials for Anonymous {
    fn login(&self, _: &str) -> Result<Option<Login>, Error> {
        Ok(None)
    }
}

/// What a registry wants to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String> },
}

/// The challenge to answer among those of a response's `WWW-Authenticate` headers: tokens before passwords.
pub(super) fn challenge<'a>(headers: impl Iterator<Item = &'a str>) -> Option<Challenge> {
    let mut basic = None;
    for header in headers {
        for (scheme, parameters) in challenges(header) {
            let get = |name: &str| {
                parameters
                    .iter()
                    .find(|(key, _)| key == name)
                    .map(|(_, value)| value.clone())
            };
            match (scheme.as_str(), get("realm")) {
                ("bearer", Some(realm)) => {
                    let service = get("service");
                    return Some(Challenge::Bearer { realm, service });
                }
                ("basic", _) => basic = Some(Challenge::Basic),
                _ => {}
            }
        }
    }
    basic
}

type Parameters = Vec<(String, String)>;

/// `Scheme a=b, c="d", Other e=f`: schemes and parameter names in lower case.
fn challenges(header: &str) -> Vec<(String, Parameters)> {
    let mut found: Vec<(String, Parameters)> = Vec::new();
    let mut rest = header;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let end = rest.find([' ', '\t', ',', '=']).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        if word.is_empty() {
            // Malformed; what was understood so far stands.
            return found;
        }
        match after.strip_prefix('=') {
            Some(after) => {
                let (value, after) = value(after);
                if let Some((_, parameters)) = found.last_mut() {
                    parameters.push((word.to_ascii_lowercase(), value));
                }
                rest = after;
            }
            None => {
                found.push((word.to_ascii_lowercase(), Vec::new()));
                rest = after;
            }
        }
        if rest.is_empty() {
            return found;
        }
    }
}

/// A token or a quoted string, and what follows it.
fn value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        return (text[..end].to_string(), &text[end..]);
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            other => value.push(other),
        }
    }
    (value, "")
}

/// The answer of a token server.
#[derive(serde::Deserialize)]
pub(super) struct TokenAnswer {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
}

impl TokenAnswer {
    pub(super) fn token(self) -> Option<Secret> {
        let found = [self.token, self.access_token]
            .into_iter()
            .find(|token| !token.is_empty());
        found.map(Secret::new)
    }
}

/// What is sent as `Authorization`.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Proof {
    Basic { user: String, password: Secret },
    Bearer(Secret),
}

/// Proofs that worked, by registry and scopes.
#[derive(Default)]
pub(super) struct Proofs(Mutex<HashMap<(String, String), Proof>>);

impl Proofs {
    pub(super) fn get(&self, registry: &str, scopes: &str) -> Option<Proof> {
        let proofs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        proofs.get(&(registry.to_string(), scopes.to_string())).cloned()
    }

    pub(super) fn set(&self, registry: &str, scopes: &str, proof: Proof) {
        let mut proofs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        proofs.insert((registry.to_string(), scopes.to_string()), proof);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bearer(realm: &str, service: Option<&str>) -> Option<Challenge> {
        Some(Challenge::Bearer {
            realm: realm.into(),
            service: service.map(Into::into),
        })
    }

    #[test]
    fn the_challenge_to_answer_is_found_among_several() {
        for (headers, expected) in [
            (&["Basic realm=\"x\""][..], Some(Challenge::Basic)),
            (
                &["Bearer realm=\"https://a.b/token\",service=\"a.b\",scope=\"repository:x:pull,push\""],
                bearer("https://a.b/token", Some("a.b")),
            ),
            (&["bearer realm=https://a.b/t"], bearer("https://a.b/t", None)),
            (&["Basic realm=\"x\", Bearer realm=\"r\""], bearer("r", None)),
            (
                &["Basic realm=x", "Bearer realm=\"a\\\"b, c\""],
                bearer("a\"b, c", None),
            ),
            (&["Negotiate"], None),
            (&["Bearer service=x"], None),
            (&["=", ""], None),
        ] {
            assert_eq!(challenge(headers.iter().copied()), expected, "{headers:?}");
        }
    }

    proptest! {
        #[test]
        fn any_header_is_read_without_a_panic(header in "[ -~é]{0,80}") {
            challenge([header.as_str()].into_iter());
        }
    }
}
