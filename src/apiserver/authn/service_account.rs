//! Service account tokens: JWTs bound to a service account and, if asked, to a pod, secret or node, so that they die
//! with it. Claims as in KEP-1205 and KEP-4193.

use jsonwebtoken::{Header, Validation};
use serde_json::{Value, json};

use super::keys::Keys;
use super::{AUTHENTICATED, User};
use crate::cache::Cache;
use crate::error::{ApiError, Result};

const NAMESPACE: &str = "kubernetes.io";
/// Issuer of tokens kept in Secrets.
const LEGACY_ISSUER: &str = "kubernetes/serviceaccount";

/// An object whose end ends the token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bound {
    /// `pod`, `secret` or `node`: the claim's name.
    pub kind: &'static str,
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
}

/// Signs and verifies service account tokens.
pub struct TokenIssuer {
    keys: Keys,
    /// Accepted issuers; the first one is written into new tokens.
    pub issuers: Vec<String>,
    /// Audiences of this server.
    pub audiences: Vec<String>,
}

impl TokenIssuer {
    /// An issuer; without audiences the issuers are the audiences.
    pub fn new(keys: Keys, issuers: Vec<String>, audiences: Vec<String>) -> Self {
        let audiences = if audiences.is_empty() {
            issuers.clone()
        } else {
            audiences
        };
        Self {
            keys,
            issuers,
            audiences,
        }
    }

    /// Public keys, RFC 7517.
    pub fn jwks(&self) -> Value {
        self.keys.jwks()
    }

    /// Algorithms of the public keys.
    pub fn algorithms(&self) -> Vec<String> {
        let mut names: Vec<_> = self
            .keys
            .verifiers
            .iter()
            .map(|v| format!("{:?}", v.algorithm))
            .collect();
        names.sort();
        names.dedup();
        names
    }

    /// Signs a token for a service account (`account` is the object) that lives `seconds`.
    ///
    /// # Errors
    /// 500 if signing fails.
    pub fn issue(&self, account: &Value, audiences: &[String], seconds: u64, bound: &[Bound]) -> Result<String> {
        let meta = &account["metadata"];
        let now = jsonwebtoken::get_current_timestamp();
        let mut private = json!({
            "namespace": meta["namespace"],
            "serviceaccount": {"name": meta["name"], "uid": meta["uid"]},
        });
        for b in bound {
            private[b.kind] = json!({"name": b.name, "uid": b.uid});
        }
        let claims = json!({
            "iss": self.issuers.first(),
            "sub": format!("system:serviceaccount:{}:{}", text(&meta["namespace"]), text(&meta["name"])),
            "aud": audiences,
            "iat": now,
            "nbf": now,
            "exp": now + seconds,
            "jti": uuid::Uuid::new_v4().to_string(),
            NAMESPACE: private,
        });
        let mut header = Header::new(self.keys.algorithm);
        header.kid = Some(self.keys.kid.clone());
        header.typ = None;
        jsonwebtoken::encode(&header, &claims, &self.keys.signing).map_err(ApiError::internal)
    }

    /// The user of a token and those audiences of `wanted` (the server's own if empty) that it is meant for.
    pub(super) async fn verify(&self, cache: &Cache, token: &str, wanted: &[String]) -> Option<(User, Vec<String>)> {
        let claims = self.claims(token)?;
        if claims["iss"] == LEGACY_ISSUER {
            let user = legacy_user(cache, &claims, token)?;
            return audiences(&self.audiences, wanted, &self.audiences).map(|a| (user, a));
        }
        let meant = strings(&claims["aud"]);
        let matched = audiences(&meant, wanted, &self.audiences)?;
        if let Some(user) = user_of_claims(cache, &claims) {
            return Some((user, matched));
        }
        // A token may be used the moment after its account or pod was created: before refusing it, be sure that the
        // cache is not merely behind.
        cache.consistent().await.ok()?;
        user_of_claims(cache, &claims).map(|user| (user, matched))
    }

    fn claims(&self, token: &str) -> Option<Value> {
        let header = jsonwebtoken::decode_header(token).ok()?;
        let candidates =
            self.keys.verifiers.iter().filter(|v| {
                v.algorithm == header.alg && header.kid.as_ref().is_none_or(|k| k.is_empty() || *k == v.kid)
            });
        for v in candidates {
            let mut rules = Validation::new(v.algorithm);
            rules.validate_aud = false;
            rules.validate_nbf = true;
            rules.leeway = 10;
            rules.required_spec_claims.clear();
            let Ok(data) = jsonwebtoken::decode::<Value>(token, &v.key, &rules) else {
                continue;
            };
            let issuer = data.claims["iss"].as_str()?;
            let ours = self.issuers.iter().any(|i| i == issuer) && data.claims["exp"].is_u64();
            return (ours || issuer == LEGACY_ISSUER).then_some(data.claims);
        }
        None
    }
}

fn text(v: &Value) -> &str {
    v.as_str().unwrap_or_default()
}

fn strings(v: &Value) -> Vec<String> {
    match v {
        Value::String(s) => vec![s.clone()],
        Value::Array(a) => a.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        _ => Vec::new(),
    }
}

/// Audiences that token and request have in common; `None` if there are none.
fn audiences(meant: &[String], wanted: &[String], own: &[String]) -> Option<Vec<String>> {
    let wanted = if wanted.is_empty() { own } else { wanted };
    let common: Vec<_> = wanted.iter().filter(|w| meant.contains(w)).cloned().collect();
    (!common.is_empty()).then_some(common)
}

fn exists(cache: &Cache, plural: &str, namespace: &str, reference: &Value) -> bool {
    let object = cache
        .kind("", plural)
        .and_then(|k| k.get(namespace, text(&reference["name"])));
    object.is_some_and(|o| &*o.uid == text(&reference["uid"]))
}

fn account(namespace: &str, name: &str, uid: &str) -> User {
    User {
        name: format!("system:serviceaccount:{namespace}:{name}"),
        uid: uid.to_owned(),
        groups: vec![
            "system:serviceaccounts".into(),
            format!("system:serviceaccounts:{namespace}"),
            AUTHENTICATED.into(),
        ],
        ..User::default()
    }
}

fn user_of_claims(cache: &Cache, claims: &Value) -> Option<User> {
    let private = &claims[NAMESPACE];
    let namespace = private["namespace"].as_str()?;
    let sa = &private["serviceaccount"];
    if claims["sub"] != format!("system:serviceaccount:{namespace}:{}", text(&sa["name"])) {
        return None;
    }
    if !exists(cache, "serviceaccounts", namespace, sa) {
        return None;
    }
    let mut user = account(namespace, text(&sa["name"]), text(&sa["uid"]));
    let mut note = |k: &str, v: &str| {
        user.extra
            .insert(format!("authentication.kubernetes.io/{k}"), vec![v.to_owned()])
    };
    if let Some(jti) = claims["jti"].as_str() {
        note("credential-id", &format!("JTI={jti}"));
    }
    if private["pod"].is_object() {
        if !exists(cache, "pods", namespace, &private["pod"]) {
            return None;
        }
        note("pod-name", text(&private["pod"]["name"]));
        note("pod-uid", text(&private["pod"]["uid"]));
    }
    if private["secret"].is_object() && !exists(cache, "secrets", namespace, &private["secret"]) {
        return None;
    }
    if private["node"].is_object() {
        // A token bound to a pod names the pod's node only for information.
        if !private["pod"].is_object() && !exists(cache, "nodes", "", &private["node"]) {
            return None;
        }
        note("node-name", text(&private["node"]["name"]));
        note("node-uid", text(&private["node"]["uid"]));
    }
    Some(user)
}

/// Tokens of Secrets of type `kubernetes.io/service-account-token` do not expire; they live as long as the Secret.
fn legacy_user(cache: &Cache, claims: &Value, token: &str) -> Option<User> {
    let claim = |k: &str| claims[format!("kubernetes.io/serviceaccount/{k}")].as_str();
    let (namespace, name, uid) = (
        claim("namespace")?,
        claim("service-account.name")?,
        claim("service-account.uid")?,
    );
    if !exists(cache, "serviceaccounts", namespace, &json!({"name": name, "uid": uid})) {
        return None;
    }
    let secret = cache
        .kind("", "secrets")?
        .get(namespace, claim("secret.name")?)?
        .value();
    use base64::Engine as _;
    let held = base64::engine::general_purpose::STANDARD
        .decode(secret["data"]["token"].as_str()?)
        .ok()?;
    (held == token.as_bytes()).then(|| account(namespace, name, uid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn audiences_must_meet() {
        let s = |v: &[&str]| v.iter().map(|s| s.to_string()).collect::<Vec<_>>();
        assert_eq!(audiences(&s(&["a", "b"]), &[], &s(&["b"])), Some(s(&["b"])));
        assert_eq!(audiences(&s(&["a"]), &s(&["a", "c"]), &s(&["b"])), Some(s(&["a"])));
        assert_eq!(audiences(&s(&["a"]), &[], &s(&["b"])), None);
    }
}
