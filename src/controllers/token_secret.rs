//! Secrets of type `kubernetes.io/service-account-token`: filled with a token that does not expire, deleted with their
//! service account. Only for those who ask by creating such a Secret; nothing is created on its own.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use component::{ApiErrorExt, Error, ObjectKey, Requeue};
use futures::future::BoxFuture;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::context::{Context, known};
use crate::meta::{annotation, is_deleting, name, namespace, uid};

const ACCOUNT_NAME: &str = "kubernetes.io/service-account.name";
const ACCOUNT_UID: &str = "kubernetes.io/service-account.uid";

/// The key that signs tokens, and its identity as the API server computes it.
pub struct Signer {
    key: EncodingKey,
    algorithm: Algorithm,
    id: String,
}

impl Signer {
    /// From a private key in PEM: EC P-256 or RSA.
    ///
    /// # Errors
    /// If the key is of another kind, or no key.
    pub fn from_pem(pem: &str) -> Result<Self, Error> {
        let wrong = |e: &dyn std::fmt::Display| Error::Invalid(format!("service account key: {e}"));
        let pair = rcgen::KeyPair::from_pem(pem).map_err(|e| wrong(&e))?;
        let id = URL_SAFE_NO_PAD.encode(Sha256::digest(rcgen::PublicKeyData::subject_public_key_info(&pair)));
        let pkcs8 = pair.serialize_pem();
        if pair.is_compatible(&rcgen::PKCS_ECDSA_P256_SHA256) {
            let key = EncodingKey::from_ec_pem(pkcs8.as_bytes()).map_err(|e| wrong(&e))?;
            return Ok(Self {
                key,
                algorithm: Algorithm::ES256,
                id,
            });
        }
        let key = EncodingKey::from_rsa_pem(pem.as_bytes()).map_err(|e| wrong(&e))?;
        Ok(Self {
            key,
            algorithm: Algorithm::RS256,
            id,
        })
    }

    fn sign(&self, account: &ServiceAccount, secret: &str) -> Result<String, Error> {
        let (ns, name) = (namespace(&account.metadata), name(&account.metadata));
        let claims = json!({
            "iss": "kubernetes/serviceaccount",
            "kubernetes.io/serviceaccount/namespace": ns,
            "kubernetes.io/serviceaccount/secret.name": secret,
            "kubernetes.io/serviceaccount/service-account.name": name,
            "kubernetes.io/serviceaccount/service-account.uid": uid(&account.metadata),
            "sub": format!("system:serviceaccount:{ns}:{name}"),
        });
        let mut header = Header::new(self.algorithm);
        header.typ = None;
        header.kid = Some(self.id.clone());
        jsonwebtoken::encode(&header, &claims, &self.key)
            .map_err(|e| Error::Invalid(format!("cannot sign a token: {e}")))
    }
}

/// What to do about a token Secret.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Leave,
    Delete,
    Fill,
}

fn verdict(secret: &Secret, account: Option<&ServiceAccount>, ca: Option<&str>) -> Verdict {
    if annotation(&secret.metadata, ACCOUNT_NAME).is_none_or(str::is_empty) || is_deleting(&secret.metadata) {
        return Verdict::Leave;
    }
    let Some(account) = account else { return Verdict::Delete };
    let wanted = annotation(&secret.metadata, ACCOUNT_UID);
    if wanted.is_some_and(|w| !w.is_empty() && w != uid(&account.metadata)) {
        return Verdict::Delete;
    }
    let has = |key: &str| secret.data.as_ref().and_then(|d| d.get(key)).map(|v| v.0.as_slice());
    let ca_is_right = ca.is_none_or(|ca| has("ca.crt") == Some(ca.as_bytes()));
    let complete = ca_is_right
        && has("token").is_some_and(|t| !t.is_empty())
        && has("namespace") == Some(namespace(&secret.metadata).as_bytes())
        && wanted == Some(uid(&account.metadata));
    if complete { Verdict::Leave } else { Verdict::Fill }
}

/// Starts the token controller; it does nothing without `--service-account-private-key-file`.
pub(crate) fn start(ctx: &Arc<Context>) -> BoxFuture<'static, ()> {
    if ctx.options.token_signer.is_none() {
        return Box::pin(async {});
    }
    let queue = ctx.queue("serviceaccount-token");
    let add = Arc::clone(&queue);
    ctx.caches.account_tokens.on_change(move |c| {
        if !c.is_deleted() {
            add.add(ObjectKey::of(&**c.latest()));
        }
    });
    let (add, on) = (Arc::clone(&queue), Arc::clone(ctx));
    ctx.caches.service_accounts.on_change(move |c| {
        let account = c.latest();
        for secret in on.caches.account_tokens.list(namespace(&account.metadata)) {
            if annotation(&secret.metadata, ACCOUNT_NAME) == account.metadata.name.as_deref() {
                add.add(ObjectKey::of(&*secret));
            }
        }
    });
    ctx.work(
        known!(ctx, account_tokens, service_accounts),
        queue,
        2,
        Arc::clone(ctx),
        |ctx, key| async move { reconcile(&ctx, &key).await },
    )
}

async fn reconcile(ctx: &Context, key: &ObjectKey) -> Result<Requeue, Error> {
    let Some(secret) = ctx.caches.account_tokens.get_key(key) else {
        return Ok(Requeue::Done);
    };
    let wanted = annotation(&secret.metadata, ACCOUNT_NAME).unwrap_or_default();
    let mut account = ctx
        .caches
        .service_accounts
        .get(&key.namespace, wanted)
        .map(|a| (*a).clone());
    if account.is_none() && !wanted.is_empty() {
        // Deleting is final: ask the server before.
        account = Api::<ServiceAccount>::namespaced(ctx.client.clone(), &key.namespace)
            .get_opt(wanted)
            .await?;
    }
    let api: Api<Secret> = Api::namespaced(ctx.client.clone(), &key.namespace);
    let result = match verdict(&secret, account.as_ref(), ctx.options.root_ca.as_deref()) {
        Verdict::Leave => return Ok(Requeue::Done),
        Verdict::Delete => {
            let params = DeleteParams {
                preconditions: Some(Preconditions {
                    uid: secret.metadata.uid.clone(),
                    resource_version: secret.metadata.resource_version.clone(),
                }),
                ..DeleteParams::default()
            };
            api.delete(&key.name, &params).await.map(|_| ())
        }
        Verdict::Fill => {
            let (Some(signer), Some(account)) = (&ctx.options.token_signer, &account) else {
                return Ok(Requeue::Done);
            };
            let patch = fill(&secret, account, signer, ctx.options.root_ca.as_deref())?;
            api.patch(&key.name, &PatchParams::default(), &Patch::Merge(patch))
                .await
                .map(|_| ())
        }
    };
    match result {
        Ok(()) => Ok(Requeue::Done),
        Err(e) if e.is_not_found() => Ok(Requeue::Done),
        Err(e) => Err(e.into()),
    }
}

fn fill(
    secret: &Secret,
    account: &ServiceAccount,
    signer: &Signer,
    ca: Option<&str>,
) -> Result<serde_json::Value, Error> {
    let mut data: BTreeMap<&str, ByteString> = BTreeMap::new();
    if secret
        .data
        .as_ref()
        .is_none_or(|d| d.get("token").is_none_or(|t| t.0.is_empty()))
    {
        data.insert(
            "token",
            ByteString(signer.sign(account, name(&secret.metadata))?.into_bytes()),
        );
    }
    if let Some(ca) = ca {
        data.insert("ca.crt", ByteString(ca.as_bytes().to_vec()));
    }
    data.insert("namespace", ByteString(namespace(&secret.metadata).as_bytes().to_vec()));
    Ok(json!({
        "metadata": {
            "resourceVersion": secret.metadata.resource_version,
            "annotations": {ACCOUNT_UID: uid(&account.metadata)},
        },
        "data": data,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_filled_for_its_account_and_dies_with_it() {
        let account = |uid: &str| {
            let mut account = ServiceAccount::default();
            account.metadata.namespace = Some("ns".into());
            account.metadata.name = Some("sa".into());
            account.metadata.uid = Some(uid.into());
            account
        };
        let mut secret = Secret::default();
        secret.metadata.name = Some("s".into());
        secret.metadata.namespace = Some("ns".into());
        assert_eq!(verdict(&secret, None, None), Verdict::Leave);
        secret.metadata.annotations = Some([(ACCOUNT_NAME.to_owned(), "sa".to_owned())].into());
        assert_eq!(verdict(&secret, None, None), Verdict::Delete);
        assert_eq!(verdict(&secret, Some(&account("1")), None), Verdict::Fill);
        let signer = Signer::from_pem(&rcgen::KeyPair::generate().unwrap().serialize_pem()).unwrap();
        let patch = fill(&secret, &account("1"), &signer, Some("CA")).unwrap();
        secret.data = Some(serde_json::from_value(patch["data"].clone()).unwrap());
        secret
            .metadata
            .annotations
            .as_mut()
            .unwrap()
            .insert(ACCOUNT_UID.into(), "1".into());
        assert_eq!(verdict(&secret, Some(&account("1")), Some("CA")), Verdict::Leave);
        assert_eq!(verdict(&secret, Some(&account("2")), Some("CA")), Verdict::Delete);
        let token = String::from_utf8(secret.data.unwrap()["token"].0.clone()).unwrap();
        let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap();
        let claims: serde_json::Value = serde_json::from_slice(&claims).unwrap();
        assert_eq!(claims["sub"], "system:serviceaccount:ns:sa");
    }
}
