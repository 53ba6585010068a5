//! The token with which node agents join: short-lived, known to this process and to the hosts that have not joined yet, and taken
//! away when they have (bootstrap tokens: kubernetes.io/docs/reference/access-authn-authz/bootstrap-tokens).

use rand::Rng as _;
use serde_json::{Value, json};
use std::time::Duration;
use zeroize::Zeroizing;

/// How long a token is good if nobody takes it away: an apply that is killed leaves it behind.
const LIFE: Duration = Duration::from_secs(2 * 3600);
/// Whoever joins with it is of this group.
pub const GROUP: &str = "system:bootstrappers:kubeadm:default-node-token";

/// A new token, `[a-z0-9]{6}.[a-z0-9]{16}`.
pub fn generate() -> Zeroizing<String> {
    const LETTERS: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    let mut rng = rand::rng();
    let mut letters = |count: usize| -> String {
        (0..count)
            .map(|_| char::from(LETTERS[rng.random_range(0..LETTERS.len())]))
            .collect()
    };
    Zeroizing::new(format!("{}.{}", letters(6), letters(16)))
}

/// The Secret's name for a token.
pub fn secret_name(token: &str) -> String {
    format!("bootstrap-token-{}", token.split('.').next().unwrap_or_default())
}

/// The Secret that makes the API server accept a token.
pub fn secret(token: &str, now: jiff::Timestamp) -> Value {
    let (id, secret) = token.split_once('.').unwrap_or((token, ""));
    let expiration = now.checked_add(LIFE).unwrap_or(now);
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "bootstrap.kubernetes.io/token",
        "metadata": {"name": secret_name(token), "namespace": "kube-system"},
        "stringData": {
            "token-id": id,
            "token-secret": secret,
            "description": "node agents join with it while installer apply runs",
            "expiration": expiration.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            "usage-bootstrap-authentication": "true",
            "usage-bootstrap-signing": "true",
            "auth-extra-groups": GROUP,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_have_kubernetes_form_and_an_end() {
        let token = generate();
        let (id, secret_part) = token.split_once('.').unwrap();
        assert_eq!((id.len(), secret_part.len()), (6, 16));
        assert_ne!(generate(), token);
        let secret = secret(&token, "2026-01-01T00:00:00Z".parse().unwrap());
        assert_eq!(secret["metadata"]["name"], format!("bootstrap-token-{id}"));
        assert_eq!(secret["stringData"]["expiration"], "2026-01-01T02:00:00Z");
    }
}
