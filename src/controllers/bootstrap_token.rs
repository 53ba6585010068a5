//! Bootstrap tokens are deleted when they expire.

use std::sync::Arc;
use std::time::Duration;

use component::{ApiErrorExt, Error, ObjectKey, Requeue};
use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::{DeleteParams, Preconditions};
use tracing::info;

use crate::context::{Context, known};

/// How long a token still lives; nothing if it has no (readable) end: such a one is left to its owner.
fn remaining(secret: &Secret, now: Timestamp) -> Option<Duration> {
    let text = std::str::from_utf8(&secret.data.as_ref()?.get("expiration")?.0).ok()?;
    let end: Timestamp = text.trim().parse().ok()?;
    Some(Duration::try_from(end.duration_since(now)).unwrap_or_default())
}

/// Starts the token cleaner.
pub(crate) fn start(ctx: &Arc<Context>) -> BoxFuture<'static, ()> {
    let queue = ctx.queue("token-cleaner");
    let add = Arc::clone(&queue);
    ctx.caches.bootstrap_tokens.on_change(move |c| {
        if !c.is_deleted() {
            add.add(ObjectKey::of(&**c.latest()));
        }
    });
    ctx.work(
        known!(ctx, bootstrap_tokens),
        queue,
        1,
        Arc::clone(ctx),
        |ctx, key| async move { reconcile(&ctx, &key).await },
    )
}

async fn reconcile(ctx: &Context, key: &ObjectKey) -> Result<Requeue, Error> {
    let Some(secret) = ctx.caches.bootstrap_tokens.get_key(key) else {
        return Ok(Requeue::Done);
    };
    match remaining(&secret, Timestamp::now()) {
        None => Ok(Requeue::Done),
        Some(left) if !left.is_zero() => Ok(Requeue::After(left)),
        Some(_) => {
            info!(secret = %key, "bootstrap token expired");
            let params = DeleteParams {
                preconditions: Some(Preconditions {
                    uid: secret.metadata.uid.clone(),
                    resource_version: None,
                }),
                ..DeleteParams::default()
            };
            let api: Api<Secret> = Api::namespaced(ctx.client.clone(), &key.namespace);
            match api.delete(&key.name, &params).await {
                Ok(_) => Ok(Requeue::Done),
                Err(e) if e.is_not_found() || e.is_conflict() => Ok(Requeue::Done),
                Err(e) => Err(e.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::ByteString;

    #[test]
    fn only_a_readable_end_counts() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        for (text, expected) in [
            (None, None),
            (Some("soon"), None),
            (Some("2026-01-01T00:01:00Z"), Some(Duration::from_secs(60))),
            (Some("2025-12-31T00:00:00Z"), Some(Duration::ZERO)),
        ] {
            let data = text.map(|t| [("expiration".to_owned(), ByteString(t.as_bytes().to_vec()))].into());
            let secret = Secret {
                data,
                ..Secret::default()
            };
            assert_eq!(remaining(&secret, now), expected, "{text:?}");
        }
    }
}
