//! Images: pulling with a bound and a back-off, and knowing when each was last used. Removing unused ones is `gc`'s.

use crate::backoff::{FIRST, LONGEST};
use crate::cri::Cri;
use crate::error::Result;
use crate::observed::{Nanos, now};
use crate::security::ImageUser;
use crate::start::StartError;
use k8s_cri::v1::{AuthConfig, PodSandboxConfig};
use k8s_openapi::api::core::v1::{Container, Secret};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use tokio::sync::Semaphore;

/// The puller.
#[derive(Debug, Clone)]
pub struct Images {
    cri: Cri,
    slots: Arc<Semaphore>,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// Failed pulls by image: delay and when it may be tried again, and the last error.
    failed: HashMap<String, (Nanos, Nanos, String)>,
    /// When an image id was last seen in use.
    used: HashMap<String, Nanos>,
}

/// An image that is there.
#[derive(Debug, Clone)]
pub struct Ready {
    /// What a container is created from.
    pub reference: String,
    /// Its user.
    pub user: ImageUser,
    /// Whether it was pulled now.
    pub pulled: bool,
}

impl Images {
    /// At most `parallel` pulls at once.
    pub fn new(cri: Cri, parallel: usize) -> Images {
        Images {
            cri,
            slots: Arc::new(Semaphore::new(parallel.max(1))),
            state: Arc::default(),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Makes sure that a container's image is there, as its pull policy says.
    pub async fn ensure(
        &self,
        c: &Container,
        secrets: &[Arc<Secret>],
        sandbox: &PodSandboxConfig,
    ) -> Result<Ready, StartError> {
        let image = c.image.as_deref().unwrap_or_default();
        let name = normalise(image).map_err(|m| {
            StartError::new(
                "InvalidImageName",
                format!("Failed to apply default image tag {image:?}: {m}"),
            )
        })?;
        let inspect = |e: crate::error::Error| {
            StartError::new("ImageInspectError", format!("Failed to inspect image {image:?}: {e}"))
        };
        let policy = c
            .image_pull_policy
            .as_deref()
            .unwrap_or_else(|| crate::spec::default_pull_policy(image));
        let present = self.cri.image(&name).await.map_err(inspect)?;
        match (policy, present) {
            ("Never", None) => Err(StartError::new(
                "ErrImageNeverPull",
                format!("Container image {image:?} is not present with pull policy of Never"),
            )),
            ("Never" | "IfNotPresent", Some(found)) => {
                self.lock().failed.remove(&name);
                Ok(Ready {
                    reference: found.id.clone(),
                    user: user(&found),
                    pulled: false,
                })
            }
            _ => self.pull(&name, secrets, sandbox).await,
        }
    }

    async fn pull(&self, name: &str, secrets: &[Arc<Secret>], sandbox: &PodSandboxConfig) -> Result<Ready, StartError> {
        if let Some((delay, at, error)) = self.lock().failed.get(name).cloned()
            && at > now()
        {
            let text = format!("Back-off pulling image {name:?}: {error}");
            return Err(StartError {
                retry_at: Some(at),
                delay,
                ..StartError::new("ImagePullBackOff", text)
            });
        }
        let _slot = self
            .slots
            .acquire()
            .await
            .map_err(|_| StartError::new("ErrImagePull", "the agent is stopping".into()))?;
        let mut result = Err(String::new());
        let mut tried: Vec<Option<AuthConfig>> = credentials(name, secrets).into_iter().map(Some).collect();
        tried.push(None);
        for auth in tried {
            match self.cri.pull_image(name, auth, Some(sandbox.clone())).await {
                Ok(reference) => {
                    result = Ok(reference);
                    break;
                }
                Err(e) => result = Err(e.to_string()),
            }
        }
        match result {
            Ok(reference) => {
                self.lock().failed.remove(name);
                let found = self.cri.image(name).await.ok().flatten();
                let user = found.as_ref().map(user).unwrap_or_default();
                Ok(Ready {
                    reference: found.map(|f| f.id).unwrap_or(reference),
                    user,
                    pulled: true,
                })
            }
            Err(error) => {
                let mut state = self.lock();
                let delay = state.failed.get(name).map_or(FIRST, |(d, at, _)| {
                    if now() - at > 2 * LONGEST {
                        FIRST
                    } else {
                        (d * 2).min(LONGEST)
                    }
                });
                state
                    .failed
                    .insert(name.to_owned(), (delay, now() + delay, error.clone()));
                Err(StartError::new(
                    "ErrImagePull",
                    format!("failed to pull image {name:?}: {error}"),
                ))
            }
        }
    }

    /// Notes that images are in use now.
    pub fn mark_used(&self, ids: impl Iterator<Item = String>) {
        let at = now();
        self.lock().used.extend(ids.map(|id| (id, at)));
    }

    /// When an image was last in use; an image never seen before counts as used now.
    pub fn last_used(&self, id: &str) -> Nanos {
        *self.lock().used.entry(id.to_owned()).or_insert_with(now)
    }

    /// Forgets images that are gone.
    pub fn retain(&self, keep: impl Fn(&str) -> bool) {
        self.lock().used.retain(|id, _| keep(id));
    }
}

fn user(image: &k8s_cri::v1::Image) -> ImageUser {
    ImageUser {
        uid: image.uid.as_ref().map(|u| u.value),
        name: image.username.clone(),
    }
}

/// Checks an image name and adds `:latest` where there is neither tag nor digest.
pub fn normalise(image: &str) -> Result<String, String> {
    let bad = || "couldn't parse image name: invalid reference format".to_owned();
    let (name, digest) = match image.split_once('@') {
        Some((n, d)) => (n, Some(d)),
        None => (image, None),
    };
    if let Some(d) = digest {
        let (algorithm, hex) = d.split_once(':').ok_or_else(bad)?;
        if algorithm != "sha256" && algorithm != "sha512"
            || hex.len() < 32
            || !hex.bytes().all(|b| b.is_ascii_hexdigit())
        {
            return Err(bad());
        }
    }
    let last = name.rsplit('/').next().unwrap_or(name);
    let (path, tag) = match last.split_once(':') {
        Some((_, t)) => (&name[..name.len() - t.len() - 1], Some(t)),
        None => (name, None),
    };
    let tag_ok = |t: &str| {
        !t.is_empty()
            && t.len() <= 128
            && !t.starts_with(['.', '-'])
            && t.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
    };
    let mut parts = path.split('/').peekable();
    let first = parts.peek().copied().unwrap_or_default();
    let host = path.contains('/') && (first.contains(['.', ':']) || first == "localhost");
    if host {
        parts.next();
    }
    let part_ok = |p: &str| {
        !p.is_empty()
            && p.bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b))
            && p.as_bytes()[0].is_ascii_alphanumeric()
            && p.as_bytes()[p.len() - 1].is_ascii_alphanumeric()
    };
    let mut any = false;
    for p in parts {
        any = true;
        if !part_ok(p) {
            return Err(bad());
        }
    }
    if !any || tag.is_some_and(|t| !tag_ok(t)) {
        return Err(bad());
    }
    Ok(if tag.is_none() && digest.is_none() {
        format!("{image}:latest")
    } else {
        image.to_owned()
    })
}

/// Credentials for an image from pull secrets, most specific first.
fn credentials(image: &str, secrets: &[Arc<Secret>]) -> Vec<AuthConfig> {
    let first = image.split('/').next().unwrap_or_default();
    let host = if image.contains('/') && (first.contains(['.', ':']) || first == "localhost") {
        first
    } else {
        "docker.io"
    };
    let mut out: Vec<(usize, AuthConfig)> = vec![];
    for secret in secrets {
        let data = secret.data.as_ref();
        let (bytes, wrapped) = match (
            data.and_then(|d| d.get(".dockerconfigjson")),
            data.and_then(|d| d.get(".dockercfg")),
        ) {
            (Some(b), _) => (b, true),
            (None, Some(b)) => (b, false),
            _ => continue,
        };
        let Ok(value) = serde_json::from_slice::<serde_json::Value>(&bytes.0) else {
            continue;
        };
        let entries = if wrapped {
            value.get("auths").cloned().unwrap_or_default()
        } else {
            value
        };
        for (server, entry) in entries.as_object().into_iter().flatten() {
            let bare = server
                .trim_start_matches("https://")
                .trim_start_matches("http://")
                .trim_end_matches('/');
            let bare = bare.trim_end_matches("/v1").trim_end_matches("/v2");
            let alias = host == "docker.io" && bare.ends_with("docker.io");
            if !(image.starts_with(bare) && image[bare.len()..].starts_with(['/', ':', '@']) || bare == host || alias) {
                continue;
            }
            let text = |k: &str| entry.get(k).and_then(|v| v.as_str()).unwrap_or_default().to_owned();
            let auth = AuthConfig {
                username: text("username"),
                password: text("password"),
                auth: text("auth"),
                server_address: String::new(),
                identity_token: text("identitytoken"),
                registry_token: text("registrytoken"),
            };
            out.push((bare.len(), auth));
        }
    }
    out.sort_by_key(|(len, _)| std::cmp::Reverse(*len));
    out.into_iter().map(|(_, a)| a).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_names_are_checked_and_completed() {
        for (image, expected) in [
            ("busybox", Some("busybox:latest")),
            ("r:5000/a/b:1", Some("r:5000/a/b:1")),
            (
                "installer.internal/pause:v0.1.0",
                Some("installer.internal/pause:v0.1.0"),
            ),
            (
                "a@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
                Some("a@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"),
            ),
            ("FAILED_IMAGE", None),
            ("a//b", None),
            ("", None),
            ("a:", None),
            ("a b", None),
        ] {
            assert_eq!(normalise(image).ok().as_deref(), expected, "{image}");
        }
    }

    #[test]
    fn credentials_match_their_registry_only() {
        let json = r#"{"auths":{"https://r.example:5000":{"username":"u","password":"p"},"other":{"username":"x"}}}"#;
        let secret = Secret {
            data: Some([(".dockerconfigjson".to_owned(), k8s_openapi::ByteString(json.into()))].into()),
            ..Default::default()
        };
        let secrets = [Arc::new(secret)];
        assert_eq!(credentials("r.example:5000/a:1", &secrets)[0].username, "u");
        assert!(credentials("elsewhere/a:1", &secrets).is_empty());
    }
}
