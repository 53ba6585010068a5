//! One repository: its manifests, and the artifacts about them.

use bytes::Bytes;
use oci::{Descriptor, Digest, Index, media_type};
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Method, Response, StatusCode, Url};

use super::content::Content;
use super::{Access, Call, Failure, RemoteManifest, Repository};
use crate::error::Error;
use crate::manifest::MAX_JSON;

/// A registry that keeps the list of referrers answers with this header.
const SUBJECT: &str = "oci-subject";
const MANIFESTS: [&str; 4] = [
    media_type::INDEX,
    media_type::MANIFEST,
    media_type::DOCKER_LIST,
    media_type::DOCKER_MANIFEST,
];

impl Repository {
    /// `domain/path`.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    pub(super) fn base(&self) -> Result<Url, Error> {
        let host = match self.domain.as_str() {
            "docker.io" => "registry-1.docker.io",
            other => other,
        };
        let scheme = if self.remote.is_insecure(&self.domain) {
            "http"
        } else {
            "https"
        };
        Url::parse(&format!("{scheme}://{host}/v2/{}/", self.path)).map_err(|error| Error::Remote {
            action: format!("reach {}", self.name()),
            reason: error.to_string(),
        })
    }

    /// A request to `below` the repository. `{}` in `action` becomes the repository's name.
    pub(super) fn call(&self, method: Method, below: &str, action: impl Into<String>) -> Result<Call<'_>, Error> {
        let base = self.base()?;
        let url = base.join(below).map_err(|error| Error::Remote {
            action: format!("reach {}", self.name()),
            reason: error.to_string(),
        })?;
        let actions = match self.access {
            Access::Pull => "pull",
            Access::Push => "pull,push",
        };
        Ok(Call {
            repository: self,
            action: action.into(),
            method,
            url,
            headers: HeaderMap::new(),
            scopes: vec![format!("repository:{}:{actions}", self.path)],
            content: Content::Nothing,
        })
    }

    /// Sends the call until it is answered with one of `good`.
    pub(super) async fn request(&self, call: &Call<'_>, good: &[StatusCode]) -> Result<Response, Error> {
        let mut attempts = self.remote.retry.start();
        loop {
            let answer = match self.remote.send(call).await {
                Ok(response) => call.accept(response, good).await,
                Err(failure) => Err(failure),
            };
            match answer {
                Ok(response) => return Ok(response),
                Err(failure) => attempts.wait(failure).await?,
            }
        }
    }

    fn manifest_call(&self, method: Method, name: &str, action: &str) -> Result<Call<'_>, Error> {
        let mut call = self.call(method, &format!("manifests/{name}"), action)?;
        let accept = HeaderValue::from_str(&MANIFESTS.join(", "));
        call.headers.extend(accept.ok().map(|accept| (ACCEPT, accept)));
        Ok(call)
    }

    /// The manifest with a tag or digest; none if the repository doesn't have it.
    ///
    /// # Errors
    /// When the registry can't be reached or refuses, or what it sends is too large, no manifest, or doesn't have the
    /// digest that was asked for.
    pub async fn manifest(&self, name: &str) -> Result<Option<RemoteManifest>, Error> {
        let call = self.manifest_call(Method::GET, name, &format!("pull the manifest {name} from {{}}"))?;
        let mut attempts = self.remote.retry.start();
        let (bytes, told) = loop {
            match self.try_manifest(&call).await {
                Ok(None) => return Ok(None),
                Ok(Some(found)) => break found,
                Err(failure) => attempts.wait(failure).await?,
            }
        };
        let digest = Digest::of(&bytes);
        if let Ok(wanted) = name.parse::<Digest>()
            && wanted != digest
        {
            let what = format!("{} sent content with the digest {digest}", self.name());
            return Err(oci::Error::Corrupt { digest: wanted, what }.into());
        }
        let kind = manifest_kind(&bytes, told.as_deref()).map_err(|why| call.error(why))?;
        let descriptor = Descriptor::new(kind, digest, bytes.len() as u64);
        Ok(Some(RemoteManifest { descriptor, bytes }))
    }

    async fn try_manifest(&self, call: &Call<'_>) -> Result<Option<(Bytes, Option<String>)>, Failure> {
        let response = self.remote.send(call).await?;
        let response = call.accept(response, &[StatusCode::OK, StatusCode::NOT_FOUND]).await?;
        if response.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let told = response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
        let told = told.map(|kind| kind.split(';').next().unwrap_or_default().trim().to_string());
        Ok(Some((call.read(response, MAX_JSON).await?, told)))
    }

    /// Whether the repository has the manifest with this digest.
    ///
    /// # Errors
    /// When the registry can't be reached or refuses.
    pub async fn has_manifest(&self, digest: &Digest) -> Result<bool, Error> {
        let call = self.manifest_call(Method::HEAD, digest.as_str(), &format!("look for {digest} in {{}}"))?;
        let response = self.request(&call, &[StatusCode::OK, StatusCode::NOT_FOUND]).await?;
        Ok(response.status() == StatusCode::OK)
    }

    /// Gives the repository a manifest under a tag or its digest. What it names must be there already. True if the
    /// registry will list it among its subject's referrers.
    ///
    /// # Errors
    /// When the registry can't be reached or refuses.
    pub async fn put_manifest(&self, name: &str, media_type: &str, bytes: Bytes) -> Result<bool, Error> {
        let mut call = self.manifest_call(Method::PUT, name, &format!("push the manifest {name} to {{}}"))?;
        let kind = HeaderValue::from_str(media_type).map_err(|_| call.error("its media type is malformed".into()))?;
        call.headers.insert(CONTENT_TYPE, kind);
        call.content = Content::Bytes(bytes);
        let good = [StatusCode::CREATED, StatusCode::OK, StatusCode::ACCEPTED];
        let response = self.request(&call, &good).await?;
        Ok(response.headers().contains_key(SUBJECT))
    }

    /// The artifacts that refer to `subject` (signatures, for one): by the referrers interface, or where a registry
    /// lacks it by the tag that stands in for it.
    ///
    /// # Errors
    /// When the registry can't be reached or refuses, or what it sends is no index.
    pub async fn referrers(&self, subject: &Digest) -> Result<Vec<Descriptor>, Error> {
        let action = format!("list the referrers of {subject} in {{}}");
        let mut call = self.call(Method::GET, &format!("referrers/{subject}"), action)?;
        call.headers.insert(ACCEPT, HeaderValue::from_static(media_type::INDEX));
        // A registry that doesn't know the interface may say so in several ways.
        let unknown = [
            StatusCode::NOT_FOUND,
            StatusCode::METHOD_NOT_ALLOWED,
            StatusCode::BAD_REQUEST,
            StatusCode::NOT_IMPLEMENTED,
        ];
        let mut attempts = self.remote.retry.start();
        let found = loop {
            let answer = async {
                let response = self.remote.send(&call).await?;
                let response = call
                    .accept(response, &[&[StatusCode::OK], &unknown[..]].concat())
                    .await?;
                let kind = response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
                let is_index = kind.is_some_and(|kind| kind.starts_with(media_type::INDEX));
                if response.status() != StatusCode::OK || !is_index {
                    return Ok(None);
                }
                Ok(Some(call.read(response, MAX_JSON).await?))
            };
            match answer.await {
                Ok(found) => break found,
                Err(failure) => attempts.wait(failure).await?,
            }
        };
        let bytes = match found {
            Some(bytes) => bytes,
            None => match self.manifest(&fallback_tag(subject)).await? {
                Some(manifest) if manifest.descriptor.is_index() => manifest.bytes,
                _ => return Ok(Vec::new()),
            },
        };
        let index: Index = serde_json::from_slice(&bytes).map_err(|error| call.error(error.to_string()))?;
        Ok(index.manifests)
    }
}

/// The tag under which registries without the referrers interface keep the list (distribution-spec 1.1).
#[must_use]
pub fn fallback_tag(subject: &Digest) -> String {
    subject.as_str().replacen(':', "-", 1)
}

/// What a manifest is: what it says itself, else what the registry says.
pub(crate) fn manifest_kind(bytes: &[u8], told: Option<&str>) -> Result<String, String> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Head {
        media_type: Option<String>,
        manifests: Option<serde::de::IgnoredAny>,
        config: Option<serde::de::IgnoredAny>,
    }
    let head: Head = serde_json::from_slice(bytes).map_err(|error| format!("it is no manifest: {error}"))?;
    let told = told.filter(|told| MANIFESTS.contains(told)).map(str::to_string);
    let kind = match (head.media_type, told, head.manifests, head.config) {
        (Some(kind), ..) => kind,
        (None, Some(told), ..) => told,
        (None, None, Some(_), _) => media_type::INDEX.to_string(),
        (None, None, None, Some(_)) => media_type::MANIFEST.to_string(),
        _ => return Err("it is no manifest of a known type".to_string()),
    };
    match MANIFESTS.contains(&kind.as_str()) {
        true => Ok(kind),
        false => Err(format!("its manifest is of the unsupported type {kind:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_says_itself_what_it_is() {
        for (text, told, expected) in [
            (
                r#"{"mediaType":"application/vnd.oci.image.index.v1+json"}"#,
                Some(media_type::MANIFEST),
                Ok(media_type::INDEX),
            ),
            (r#"{"manifests":[]}"#, None, Ok(media_type::INDEX)),
            (
                r#"{"manifests":[]}"#,
                Some(media_type::DOCKER_LIST),
                Ok(media_type::DOCKER_LIST),
            ),
            (r#"{"config":{}}"#, Some("text/plain"), Ok(media_type::MANIFEST)),
            ("{}", None, Err("it is no manifest of a known type")),
            (
                r#"{"mediaType":"x/y"}"#,
                None,
                Err("its manifest is of the unsupported type \"x/y\""),
            ),
        ] {
            let kind = manifest_kind(text.as_bytes(), told);
            assert_eq!(kind.as_deref().map_err(String::as_str), expected, "{text}");
        }
        assert!(manifest_kind(b"<html>", None).is_err());
    }
}
