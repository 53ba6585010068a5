//! Bootstrap tokens (KEP-130): `id.secret`, kept as Secrets in `kube-system`.

use base64::Engine as _;
use serde_json::Value;

use super::{AUTHENTICATED, User};
use crate::cache::Cache;

fn well_formed(part: &str, len: usize) -> bool {
    part.len() == len && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
}

/// Compares without telling by its duration how much is equal.
fn equal(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |acc, (x, y)| acc | (x ^ y)) == 0
}

/// The user behind a token, if its Secret exists, has not expired and permits authentication.
pub(super) fn verify(cache: &Cache, token: &str) -> Option<User> {
    let (id, secret) = token.split_once('.')?;
    if !well_formed(id, 6) || !well_formed(secret, 16) {
        return None;
    }
    let object = cache
        .kind("", "secrets")?
        .get("kube-system", &format!("bootstrap-token-{id}"))?;
    user_of_secret(&object.value(), id, secret, jiff::Timestamp::now())
}

fn user_of_secret(object: &Value, id: &str, secret: &str, now: jiff::Timestamp) -> Option<User> {
    if object["type"] != "bootstrap.kubernetes.io/token" || object["metadata"].get("deletionTimestamp").is_some() {
        return None;
    }
    let data = |k: &str| -> Option<String> {
        let bytes = base64::engine::general_purpose::STANDARD
            .decode(object["data"][k].as_str()?)
            .ok()?;
        String::from_utf8(bytes).ok()
    };
    if data("token-id")? != id || !equal(data("token-secret")?.as_bytes(), secret.as_bytes()) {
        return None;
    }
    if data("usage-bootstrap-authentication")? != "true" {
        return None;
    }
    if let Some(expiration) = data("expiration")
        && expiration.parse::<jiff::Timestamp>().ok()? <= now
    {
        return None;
    }
    let mut groups = vec!["system:bootstrappers".to_owned()];
    for g in data("auth-extra-groups")
        .unwrap_or_default()
        .split(',')
        .filter(|g| !g.is_empty())
    {
        if !g.starts_with("system:bootstrappers:") {
            return None;
        }
        groups.push(g.to_owned());
    }
    groups.push(AUTHENTICATED.into());
    Some(User {
        name: format!("system:bootstrap:{id}"),
        groups,
        ..User::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn secret(patch: &[(&str, &str)]) -> Value {
        let mut data = json!({
            "token-id": "abcdef", "token-secret": "0123456789abcdef", "usage-bootstrap-authentication": "true",
            "auth-extra-groups": "system:bootstrappers:nodes",
        });
        for (k, v) in patch {
            data[*k] = (*v).into();
        }
        for v in data.as_object_mut().unwrap().values_mut() {
            *v = base64::engine::general_purpose::STANDARD
                .encode(v.as_str().unwrap())
                .into();
        }
        json!({"type": "bootstrap.kubernetes.io/token", "metadata": {}, "data": data})
    }

    fn check(patch: &[(&str, &str)]) -> Option<Vec<String>> {
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        user_of_secret(&secret(patch), "abcdef", "0123456789abcdef", now).map(|u| u.groups)
    }

    #[test]
    fn only_a_live_secret_that_permits_authentication_gives_an_identity() {
        assert_eq!(
            check(&[]).unwrap(),
            ["system:bootstrappers", "system:bootstrappers:nodes", AUTHENTICATED]
        );
        assert!(check(&[("expiration", "2026-01-01T00:00:01Z")]).is_some());
        assert!(check(&[("expiration", "2025-12-31T23:59:59Z")]).is_none());
        assert!(check(&[("expiration", "soon")]).is_none());
        assert!(check(&[("usage-bootstrap-authentication", "false")]).is_none());
        assert!(check(&[("token-secret", "0123456789abcdeX")]).is_none());
        assert!(check(&[("auth-extra-groups", "system:masters")]).is_none());
    }
}
