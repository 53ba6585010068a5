//! OCI registries over HTTP (distribution-spec 1.1): requests with logins, retries and time-outs, manifests, referrers.
//!
//! Blobs come and go in the files below. Nothing here knows what a cluster image is.

mod auth;
mod content;
mod download;
mod login;
mod repository;
mod retry;
mod tls;
mod upload;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use clusterfile::Secret;
use oci::{Descriptor, Reference};
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use reqwest::{Method, Response, StatusCode, Url};

use crate::error::Error;
pub use auth::{Anonymous, Credentials, Login};
use auth::{Challenge, Proof, Proofs, TokenAnswer, challenge};
use content::Content;
pub(crate) use content::Meter;
pub use repository::fallback_tag;
pub(crate) use repository::manifest_kind;
pub use retry::Retry;
pub(crate) use retry::{Again, Failure};
use tls::Clients;
pub(crate) use upload::Sent;

/// Time for a connection, name look-up and TLS included.
const CONNECT: Duration = Duration::from_secs(20);
/// A registry may take so long to look at what it was sent before it answers.
const DIGESTION: Duration = Duration::from_secs(600);
/// Redirects followed in a row.
const REDIRECTS: usize = 5;
/// How the reason of a registry begins that could not be spoken to at all.
pub(crate) const UNREACHABLE: &str = "cannot connect: ";
/// More of an error's body is not read, in bytes.
const ERROR_BODY: u64 = 64 << 10;

/// How to speak to registries.
#[derive(Clone)]
pub struct RemoteOptions {
    /// Registries spoken to by plain HTTP, as `host[:port]`.
    pub insecure: Vec<String>,
    /// PEM files with certificate authorities to trust besides the system's.
    pub ca_files: Vec<PathBuf>,
    /// Folders like `/etc/docker/certs.d`, with certificates of single registries in folders named `HOST[:PORT]`.
    pub certs_dirs: Vec<PathBuf>,
    /// Who knows the logins.
    pub credentials: Arc<dyn Credentials>,
    /// When to try again.
    pub retry: Retry,
    /// A connection on which nothing moves for so long is given up.
    pub stall: Duration,
    /// Larger blobs are sent in pieces of this many bytes, so that a broken connection costs at most one.
    pub chunk: u64,
}

impl Default for RemoteOptions {
    fn default() -> Self {
        RemoteOptions {
            insecure: Vec::new(),
            ca_files: Vec::new(),
            certs_dirs: Vec::new(),
            credentials: Arc::new(Anonymous),
            retry: Retry::default(),
            stall: Duration::from_secs(60),
            chunk: 64 << 20,
        }
    }
}

/// All registries; one for a whole operation, so that connections and tokens are reused.
pub struct Remote {
    clients: Clients,
    insecure: BTreeSet<String>,
    credentials: Arc<dyn Credentials>,
    retry: Retry,
    stall: Duration,
    chunk: u64,
    proofs: Proofs,
}

/// What will be done with a repository: tokens are asked for no more than that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reading.
    Pull,
    /// Reading and writing.
    Push,
}

/// One repository of a registry.
#[derive(Clone)]
pub struct Repository {
    remote: Arc<Remote>,
    domain: String,
    path: String,
    access: Access,
}

/// A manifest as the registry has it, byte for byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteManifest {
    /// What it is, as itself or else the registry says; its digest and size.
    pub descriptor: Descriptor,
    /// The document.
    pub bytes: Bytes,
}

impl Remote {
    /// Prepares to speak to registries; connects to none.
    ///
    /// # Errors
    /// When a file of certificates can't be read or holds none.
    pub fn new(options: RemoteOptions) -> Result<Arc<Remote>, Error> {
        Ok(Arc::new(Remote {
            clients: Clients::new(&options)?,
            insecure: options.insecure.into_iter().collect(),
            credentials: options.credentials,
            retry: options.retry,
            stall: options.stall,
            chunk: options.chunk.max(1),
            proofs: Proofs::default(),
        }))
    }

    /// The repository a reference lies in.
    #[must_use]
    pub fn repository(self: &Arc<Self>, reference: &Reference, access: Access) -> Repository {
        Repository {
            remote: Arc::clone(self),
            domain: reference.domain().to_string(),
            path: reference.path().to_string(),
            access,
        }
    }

    fn is_insecure(&self, domain: &str) -> bool {
        self.insecure.contains(domain)
    }

    /// Sends a request, proving who we are if the registry wants it. Any answer but «who are you?» is a success here.
    async fn send(&self, call: &Call<'_>) -> Result<Response, Failure> {
        let scopes = call.scopes.join(" ");
        let ours = call.url.origin() == call.repository.base()?.origin();
        let known = ours
            .then(|| self.proofs.get(&call.repository.domain, &scopes))
            .flatten();
        let response = self.once(call, known.as_ref()).await?;
        if response.status() != StatusCode::UNAUTHORIZED || !ours {
            return Ok(response);
        }
        let headers = response.headers().get_all(WWW_AUTHENTICATE);
        let challenge = challenge(headers.iter().filter_map(|header| header.to_str().ok()));
        let Some(challenge) = challenge else {
            return Ok(response);
        };
        let proof = match self.prove(call, challenge).await? {
            // The same password again would be refused again.
            Some(proof) if !matches!(proof, Proof::Basic { .. }) || known.as_ref() != Some(&proof) => proof,
            _ => return Ok(response),
        };
        let response = self.once(call, Some(&proof)).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            self.proofs.set(&call.repository.domain, &scopes, proof);
        }
        Ok(response)
    }

    async fn once(&self, call: &Call<'_>, proof: Option<&Proof>) -> Result<Response, Failure> {
        let moved = Arc::new(AtomicU64::new(0));
        let result = self.exchange(call, proof, &moved).await;
        let taken = result.as_ref().is_ok_and(|response| response.status().is_success());
        if let (Content::Blob { meter, .. }, false) = (&call.content, taken) {
            meter.take_back(moved.load(Ordering::Relaxed));
        }
        result
    }

    async fn exchange(
        &self,
        call: &Call<'_>,
        proof: Option<&Proof>,
        moved: &Arc<AtomicU64>,
    ) -> Result<Response, Failure> {
        let http = self.clients.of(&call.repository.domain)?;
        let mut request = http
            .request(call.method.clone(), call.url.clone())
            .headers(call.headers.clone());
        request = match proof {
            Some(Proof::Basic { user, password }) => request.basic_auth(user, Some(password.expose())),
            Some(Proof::Bearer(token)) => request.bearer_auth(token.expose()),
            None => request,
        };
        let (body, size) = call.content.body(moved).await?;
        if let Some(body) = body {
            request = request.header(reqwest::header::CONTENT_LENGTH, size).body(body);
        }
        let mut answer = std::pin::pin!(request.send());
        loop {
            let before = moved.load(Ordering::Relaxed);
            let patience = if before >= size && size > 0 {
                DIGESTION
            } else {
                self.stall
            };
            match tokio::time::timeout(patience, &mut answer).await {
                Ok(Ok(response)) => return Ok(response),
                Ok(Err(error)) => return Err(call.transport(&error)),
                Err(_) if moved.load(Ordering::Relaxed) > before => {}
                Err(_) => return Err(call.stalled()),
            }
        }
    }

    /// A proof that answers the challenge; none if the registry wants one and we have no login.
    async fn prove(&self, call: &Call<'_>, challenge: Challenge) -> Result<Option<Proof>, Failure> {
        let login = self.credentials.login(&call.repository.name())?;
        match (challenge, login) {
            (_, Some(Login::BearerToken(token))) => Ok(Some(Proof::Bearer(token))),
            (Challenge::Basic, Some(Login::Password { user, password })) => Ok(Some(Proof::Basic { user, password })),
            (Challenge::Basic, _) => Ok(None),
            (Challenge::Bearer { realm, service }, login) => {
                let token = self.token(call, &realm, service.as_deref(), login).await?;
                Ok(Some(Proof::Bearer(token)))
            }
        }
    }

    async fn token(
        &self,
        call: &Call<'_>,
        realm: &str,
        service: Option<&str>,
        login: Option<Login>,
    ) -> Result<Secret, Failure> {
        let refused = |why: &str| Failure::from(call.error(format!("its token server {realm:?} {why}")));
        let mut url = Url::parse(realm).map_err(|_| refused("has no valid address"))?;
        let secure = url.scheme() == "https" || (url.scheme() == "http" && self.is_insecure(&call.repository.domain));
        if !secure {
            return Err(refused("does not speak HTTPS, and would be told the password"));
        }
        let mut pairs: Vec<(&str, &str)> = call.scopes.iter().map(|scope| ("scope", scope.as_str())).collect();
        pairs.extend(service.map(|service| ("service", service)));
        let scope = call.scopes.join(" ");
        let http = self.clients.of(&call.repository.domain)?;
        let request = match &login {
            Some(Login::IdentityToken(refresh)) => {
                let mut form = vec![
                    ("grant_type", "refresh_token"),
                    ("client_id", "installer"),
                    ("scope", &scope),
                ];
                form.extend([
                    ("service", service.unwrap_or_default()),
                    ("refresh_token", refresh.expose()),
                ]);
                let form = Url::parse_with_params("form:", form).map_err(|_| refused("cannot be asked"))?;
                let kind = HeaderValue::from_static("application/x-www-form-urlencoded");
                let body = form.query().unwrap_or_default().to_string();
                http.post(url).header(CONTENT_TYPE, kind).body(body)
            }
            login => {
                url.query_pairs_mut().extend_pairs(pairs);
                let request = http.get(url);
                match login {
                    Some(Login::Password { user, password }) => request.basic_auth(user, Some(password.expose())),
                    _ => request,
                }
            }
        };
        let response = match tokio::time::timeout(self.stall, request.send()).await {
            Ok(response) => response.map_err(|error| call.transport(&error))?,
            Err(_) => return Err(call.stalled()),
        };
        let response = call.accept(response, &[StatusCode::OK]).await?;
        let bytes = call.read(response, ERROR_BODY * 4).await?;
        let answer: TokenAnswer = serde_json::from_slice(&bytes).map_err(|_| refused("gave no token"))?;
        answer.token().ok_or_else(|| refused("gave no token"))
    }
}

/// Redirects lead to storage elsewhere, but never from HTTPS to plain HTTP.
fn redirect(attempt: reqwest::redirect::Attempt<'_>) -> reqwest::redirect::Action {
    let from = attempt.previous().last().map(|url| url.scheme().to_string());
    if from.as_deref() == Some("https") && attempt.url().scheme() != "https" {
        return attempt.error("the registry redirects from HTTPS to plain HTTP");
    }
    if attempt.previous().len() > REDIRECTS {
        return attempt.error("the registry redirects in circles");
    }
    attempt.follow()
}

/// An error of the HTTP client with its causes, without the address: that may hold a signature.
fn explain(error: &reqwest::Error) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(error);
    while let Some(inner) = cause {
        let text = inner.to_string();
        if parts.last().is_none_or(|last| !last.contains(&text)) {
            parts.push(text);
        }
        cause = inner.source();
    }
    // The library's own words for it; ours come first.
    parts.retain(|part| part != "client error (Connect)");
    let reason = match (error.is_timeout(), parts.is_empty()) {
        (true, _) => "no connection in time".to_string(),
        (_, true) => "the request failed".to_string(),
        _ => parts.join(": "),
    };
    match error.is_connect() {
        true => format!("{UNREACHABLE}{reason}"),
        false => reason,
    }
}

/// One request, which may be sent more than once.
struct Call<'a> {
    repository: &'a Repository,
    /// What is done, for errors: `pull the blob …`.
    action: String,
    method: Method,
    url: Url,
    headers: HeaderMap,
    scopes: Vec<String>,
    content: Content<'a>,
}

impl Call<'_> {
    fn error(&self, reason: String) -> Error {
        Error::Remote {
            action: self.action.replace("{}", &self.repository.name()),
            reason,
        }
    }

    fn transport(&self, error: &reqwest::Error) -> Failure {
        let reason = explain(error);
        let certificate = reason.contains("certificate") || reason.contains("UnknownIssuer");
        let plain = ["InvalidContentType", "wrong version", "corrupt message"];
        let hint = if reason.contains("CaUsedAsEndEntity") {
            "; the server shows the certificate of an authority as its own. Let that authority sign one for it, or make one that signs \
             itself with basicConstraints=CA:FALSE"
        } else if certificate {
            "; name its certificate authority with --registry-ca FILE"
        } else if plain.iter().any(|text| reason.contains(text)) {
            "; if the registry speaks plain HTTP, say --insecure-registry HOST[:PORT]"
        } else {
            ""
        };
        // A name that is not known now won't be in a moment; a redirect is refused for good.
        let hopeless = error.is_redirect() || error.is_builder() || error.is_dns();
        let again = match hint.is_empty() && !hopeless {
            true => Again::After(None),
            false => Again::No,
        };
        Failure {
            error: self.error(format!("{reason}{hint}")),
            again,
        }
    }

    fn stalled(&self) -> Failure {
        Failure {
            error: self.error("nothing moved for too long".to_string()),
            again: Again::After(None),
        }
    }

    /// The response if its status is one of `good`, else what the registry says is wrong.
    async fn accept(&self, response: Response, good: &[StatusCode]) -> Result<Response, Failure> {
        if good.contains(&response.status()) {
            return Ok(response);
        }
        let status = response.status();
        let after = response
            .headers()
            .get(RETRY_AFTER)
            .and_then(|header| header.to_str().ok());
        let after = after.and_then(|text| text.parse().ok()).map(Duration::from_secs);
        let body = self.read(response, ERROR_BODY).await.unwrap_or_default();
        let transient = status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED;
        let transient = transient || [StatusCode::TOO_MANY_REQUESTS, StatusCode::REQUEST_TIMEOUT].contains(&status);
        let hint = self.repository.advice(status);
        Err(Failure {
            error: self.error(format!("{status}{}{hint}", reasons(&body))),
            again: if transient { Again::After(after) } else { Again::No },
        })
    }

    /// Reads a small body.
    async fn read(&self, mut response: Response, limit: u64) -> Result<Bytes, Failure> {
        let mut bytes = Vec::new();
        while let Some(chunk) = self.chunk(&mut response).await? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() as u64 > limit {
                let why = format!("the answer has more than the {limit} bytes allowed");
                return Err(self.error(why).into());
            }
        }
        Ok(bytes.into())
    }

    async fn chunk(&self, response: &mut Response) -> Result<Option<Bytes>, Failure> {
        match tokio::time::timeout(self.repository.remote.stall, response.chunk()).await {
            Ok(chunk) => chunk.map_err(|error| self.transport(&error)),
            Err(_) => Err(self.stalled()),
        }
    }
}

/// `: denied: requested access to the resource is denied`, from the distribution specification's error document.
fn reasons(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Errors {
        errors: Vec<Reason>,
    }
    #[derive(serde::Deserialize)]
    struct Reason {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let Ok(Errors { errors }) = serde_json::from_slice(body) else {
        return String::new();
    };
    let printable = |text: &str| -> String { text.chars().filter(|c| !c.is_control()).take(300).collect() };
    let line = |reason: &Reason| format!(": {} ({})", printable(&reason.message), printable(&reason.code));
    errors.iter().take(3).map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_registry_says_is_shown_without_control_characters() {
        let body = br#"{"errors":[{"code":"DENIED","message":"no\u001b[31m access"}]}"#;
        assert_eq!(reasons(body), ": no[31m access (DENIED)");
        assert_eq!(reasons(b"<html>"), "");
    }
}
