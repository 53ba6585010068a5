//! Who is asking: client certificates, service account tokens, bootstrap tokens, nobody; and impersonation.

mod bootstrap;
mod keys;
mod service_account;
mod x509;

use std::collections::BTreeMap;
use std::sync::Arc;

use http::HeaderMap;
use serde_json::{Value, json};

pub use keys::{KeyError, Keys};
pub use service_account::{Bound, TokenIssuer};
pub use x509::user_of_certificate;

use crate::cache::Cache;
use crate::error::{ApiError, Result};

/// Group of everybody who has proved an identity.
pub const AUTHENTICATED: &str = "system:authenticated";
/// Group of everybody who has not.
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
/// Name of those who have not.
pub const ANONYMOUS: &str = "system:anonymous";
/// Group that may do anything.
pub const MASTERS: &str = "system:masters";

/// An identity.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct User {
    /// Name.
    pub name: String,
    /// UID, if the authenticator knows one.
    pub uid: String,
    /// Groups.
    pub groups: Vec<String>,
    /// Further facts.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    /// Somebody without credentials.
    pub fn anonymous() -> Self {
        Self {
            name: ANONYMOUS.into(),
            groups: vec![UNAUTHENTICATED.into()],
            ..Self::default()
        }
    }

    /// Whether the user belongs to a group.
    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }

    /// `authentication.k8s.io/v1` UserInfo.
    pub fn info(&self) -> Value {
        let mut v = json!({"username": self.name, "groups": self.groups});
        if !self.uid.is_empty() {
            v["uid"] = self.uid.as_str().into();
        }
        if !self.extra.is_empty() {
            v["extra"] = json!(self.extra);
        }
        v
    }
}

/// All authenticators.
pub struct Authenticator {
    cache: Arc<Cache>,
    /// Signs and verifies service account tokens.
    pub tokens: TokenIssuer,
    bootstrap: bool,
    anonymous: bool,
}

impl Authenticator {
    /// Puts the authenticators together.
    pub fn new(cache: Arc<Cache>, tokens: TokenIssuer, bootstrap: bool, anonymous: bool) -> Self {
        Self {
            cache,
            tokens,
            bootstrap,
            anonymous,
        }
    }

    /// The identity behind a request: its connection's certificate, its bearer token, or nobody.
    ///
    /// # Errors
    /// 401 for credentials that are not valid, and for none where anonymous requests are refused.
    pub async fn authenticate(&self, certificate: Option<&User>, headers: &HeaderMap) -> Result<User> {
        if let Some(user) = certificate {
            return Ok(user.clone());
        }
        let header = headers.get(http::header::AUTHORIZATION);
        if let Some(token) = bearer(headers) {
            let (user, _) = self.token(&token, &[]).await.ok_or_else(ApiError::unauthorized)?;
            return Ok(user);
        }
        if header.is_none() && self.anonymous {
            Ok(User::anonymous())
        } else {
            Err(ApiError::unauthorized())
        }
    }

    /// The identity behind a token, and those of `audiences` (the server's own if empty) that it is meant for.
    pub async fn token(&self, token: &str, audiences: &[String]) -> Option<(User, Vec<String>)> {
        if token.split('.').count() == 3 {
            return self.tokens.verify(&self.cache, token, audiences).await;
        }
        if !self.bootstrap || !(audiences.is_empty() || audiences.iter().any(|a| self.tokens.audiences.contains(a))) {
            return None;
        }
        let user = bootstrap::verify(&self.cache, token)?;
        Some((user, self.tokens.audiences.clone()))
    }
}

/// The token of `Authorization: Bearer`, or of the web-socket protocol `base64url.bearer.authorization.k8s.io.TOKEN`.
fn bearer(headers: &HeaderMap) -> Option<String> {
    if let Some(value) = headers.get(http::header::AUTHORIZATION) {
        let (scheme, token) = value.to_str().ok()?.trim().split_once(' ')?;
        return scheme.eq_ignore_ascii_case("bearer").then(|| token.trim().to_owned());
    }
    let protocols = headers.get(http::header::SEC_WEBSOCKET_PROTOCOL)?.to_str().ok()?;
    let encoded = protocols
        .split(',')
        .find_map(|p| p.trim().strip_prefix("base64url.bearer.authorization.k8s.io."))?;
    use base64::Engine as _;
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(encoded).ok()?;
    String::from_utf8(bytes).ok()
}

/// One thing an impersonator wants to be, as the authorizer is asked about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Impersonated {
    /// Group of the virtual resource.
    pub group: &'static str,
    /// `users`, `groups`, `serviceaccounts`, `uids` or `userextras`.
    pub resource: &'static str,
    /// Key of an extra.
    pub subresource: String,
    /// Namespace of a service account.
    pub namespace: String,
    /// The name.
    pub name: String,
}

/// What the `Impersonate-*` headers ask for: the identity, and all that must be allowed first. `None` without them.
///
/// # Errors
/// 400 for headers that name groups or extras but no user.
pub fn impersonation(headers: &HeaderMap) -> Result<Option<(User, Vec<Impersonated>)>> {
    let text = |k: &str| {
        headers
            .get(k)
            .and_then(|v| v.to_str().ok())
            .unwrap_or_default()
            .to_owned()
    };
    let name = text("impersonate-user");
    let uid = text("impersonate-uid");
    let groups: Vec<String> = headers
        .get_all("impersonate-group")
        .iter()
        .filter_map(|v| v.to_str().ok())
        .map(str::to_owned)
        .collect();
    let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (k, v) in headers {
        if let (Some(key), Ok(value)) = (k.as_str().strip_prefix("impersonate-extra-"), v.to_str()) {
            let key = percent_encoding::percent_decode_str(key)
                .decode_utf8_lossy()
                .to_lowercase();
            extra.entry(key).or_default().push(value.to_owned());
        }
    }
    if name.is_empty() {
        if groups.is_empty() && extra.is_empty() && uid.is_empty() {
            return Ok(None);
        }
        return Err(ApiError::bad_request("requested to impersonate without naming a user"));
    }
    let mut asked = Vec::new();
    let one = |group, resource, name: &str| Impersonated {
        group,
        resource,
        subresource: String::new(),
        namespace: String::new(),
        name: name.to_owned(),
    };
    let mut user = User {
        name: name.clone(),
        uid: uid.clone(),
        groups: groups.clone(),
        extra: extra.clone(),
    };
    match name
        .strip_prefix("system:serviceaccount:")
        .and_then(|s| s.split_once(':'))
    {
        Some((ns, sa)) => {
            asked.push(Impersonated {
                namespace: ns.to_owned(),
                ..one("", "serviceaccounts", sa)
            });
            if user.groups.is_empty() {
                user.groups = vec!["system:serviceaccounts".into(), format!("system:serviceaccounts:{ns}")];
            }
        }
        None => asked.push(one("", "users", &name)),
    }
    asked.extend(groups.iter().map(|g| one("", "groups", g)));
    if !uid.is_empty() {
        asked.push(one("authentication.k8s.io", "uids", &uid));
    }
    for (key, values) in &extra {
        for v in values {
            asked.push(Impersonated {
                subresource: key.clone(),
                ..one("authentication.k8s.io", "userextras", v)
            });
        }
    }
    let own = if name == ANONYMOUS {
        UNAUTHENTICATED
    } else {
        AUTHENTICATED
    };
    if !user.in_group(own) {
        user.groups.push(own.into());
    }
    Ok(Some((user, asked)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impersonating_a_service_account_asks_for_it_and_gives_its_groups() {
        let mut h = HeaderMap::new();
        h.insert("impersonate-user", "system:serviceaccount:a:b".parse().unwrap());
        let (user, asked) = impersonation(&h).unwrap().unwrap();
        assert_eq!(
            user.groups,
            ["system:serviceaccounts", "system:serviceaccounts:a", AUTHENTICATED]
        );
        assert_eq!(
            (asked[0].resource, asked[0].namespace.as_str(), asked[0].name.as_str()),
            ("serviceaccounts", "a", "b")
        );
    }

    #[test]
    fn groups_without_a_user_are_refused() {
        let mut h = HeaderMap::new();
        h.insert("impersonate-group", "x".parse().unwrap());
        assert_eq!(impersonation(&h).unwrap_err().code, 400);
        assert!(impersonation(&HeaderMap::new()).unwrap().is_none());
    }
}
