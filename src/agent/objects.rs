//! ConfigMaps, Secrets and tokens that pods refer to, fetched one by one and kept for a short while. There is never a
//! watch on all secrets: the agent only ever reads what its own pods name.

use crate::api_client::{Api, limited};
use crate::error::{Error, Result};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, ServiceAccount};
use kube::Resource;
use serde::de::DeserializeOwned;
use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

type Key = (String, String);

#[derive(Debug, Clone)]
struct Entry<T> {
    value: Option<Arc<T>>,
    at: Instant,
}

/// The cache.
#[derive(Debug, Clone)]
pub struct Objects {
    api: Api,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    maps: HashMap<Key, Entry<ConfigMap>>,
    secrets: HashMap<Key, Entry<Secret>>,
    tokens: HashMap<TokenKey, Token>,
}

/// Where objects of a kind are kept.
type Kept<K> = fn(&mut Inner) -> &mut HashMap<Key, Entry<K>>;

/// Which token: pod UID, audience, seconds.
type TokenKey = (String, String, i64);

#[derive(Debug, Clone)]
struct Token {
    text: String,
    refresh_at: k8s_openapi::jiff::Timestamp,
}

/// Entries older than this are dropped at the next sweep.
const KEEP: Duration = Duration::from_secs(300);

impl Objects {
    /// An empty cache.
    pub fn new(api: Api) -> Objects {
        Objects {
            api,
            inner: Arc::default(),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// A ConfigMap not older than `age`; `None` if the API server has none.
    pub async fn config_map(&self, namespace: &str, name: &str, age: Duration) -> Result<Option<Arc<ConfigMap>>> {
        self.object(|inner| &mut inner.maps, namespace, name, age).await
    }

    /// A Secret not older than `age`; `None` if the API server has none.
    pub async fn secret(&self, namespace: &str, name: &str, age: Duration) -> Result<Option<Arc<Secret>>> {
        self.object(|inner| &mut inner.secrets, namespace, name, age).await
    }

    async fn object<K>(&self, kept: Kept<K>, namespace: &str, name: &str, age: Duration) -> Result<Option<Arc<K>>>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
    {
        let key = (namespace.to_owned(), name.to_owned());
        if let Some(e) = kept(&mut self.lock())
            .get(&key)
            .filter(|e| e.value.is_some() && e.at.elapsed() < age)
        {
            return Ok(e.value.clone());
        }
        let api: kube::Api<K> = kube::Api::namespaced(self.api.client()?, namespace);
        let value = limited(async { Ok(api.get_opt(name).await?) })
            .await?
            .map(|mut object| {
                object.meta_mut().managed_fields = None;
                Arc::new(object)
            });
        let entry = Entry {
            value: value.clone(),
            at: Instant::now(),
        };
        kept(&mut self.lock()).insert(key, entry);
        Ok(value)
    }

    /// A token for the pod's service account, renewed at 80 % of its life.
    pub async fn token(&self, pod: &Pod, audience: Option<&str>, seconds: i64) -> Result<String> {
        let uid = crate::names::uid(pod).to_owned();
        let key = (uid.clone(), audience.unwrap_or_default().to_owned(), seconds);
        let now = k8s_openapi::jiff::Timestamp::now();
        if let Some(t) = self.lock().tokens.get(&key).filter(|t| now < t.refresh_at) {
            return Ok(t.text.clone());
        }
        let account = pod
            .spec
            .as_ref()
            .and_then(|s| s.service_account_name.as_deref())
            .unwrap_or("default");
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: audience.map(|a| vec![a.to_owned()]),
                expiration_seconds: Some(seconds),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".into()),
                    kind: Some("Pod".into()),
                    name: pod.metadata.name.clone(),
                    uid: Some(uid),
                }),
            }),
            ..Default::default()
        };
        let api: kube::Api<ServiceAccount> = kube::Api::namespaced(self.api.client()?, crate::names::namespace(pod));
        let answer: TokenRequest = limited(async {
            Ok(api
                .create_subresource("token", account, &Default::default(), &request)
                .await?)
        })
        .await?;
        let status = answer
            .status
            .ok_or_else(|| Error::Other("the answer to a TokenRequest has no status".into()))?;
        let text = status
            .token
            .ok_or_else(|| Error::Other("the answer to a TokenRequest has no token".into()))?;
        let life = status
            .expiration_timestamp
            .map_or(seconds, |t| t.0.as_second() - now.as_second());
        let refresh = k8s_openapi::jiff::Timestamp::from_second(now.as_second() + life * 8 / 10).unwrap_or(now);
        self.lock().tokens.insert(
            key,
            Token {
                text: text.clone(),
                refresh_at: refresh,
            },
        );
        Ok(text)
    }

    /// Forgets a pod's tokens.
    pub fn forget(&self, uid: &str) {
        self.lock().tokens.retain(|(u, ..), _| u != uid);
    }

    /// Drops what has not been asked for in a while.
    pub fn sweep(&self) {
        let mut inner = self.lock();
        inner.maps.retain(|_, e| e.at.elapsed() < KEEP);
        inner.secrets.retain(|_, e| e.at.elapsed() < KEEP);
    }
}
