//! The HTTPS server that kubelets and people probe: `/healthz`, `/livez`, `/readyz`, `/metrics`.
//!
//! Probes need no credentials. `/metrics` is given to peers on the same host, and to whoever's bearer token the API
//! server authenticates and authorises to `get` that path.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use http::{Request, StatusCode, header};
use hyper::body::Incoming;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{NonResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;
use crate::{Error, serving, tls};

const MAX_CONNECTIONS: usize = 64;
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// How long a leader may be without a renewal before it counts as hung.
const STALE_LEADER: Duration = Duration::from_secs(35);

/// What the checks look at; written by the leader election.
#[derive(Debug, Default)]
pub struct Health {
    /// Seconds since the epoch of the last renewal; 0 while not leading.
    renewed: AtomicI64,
}

impl Health {
    pub(crate) fn renewed(&self, when: Option<jiff::Timestamp>) {
        self.renewed.store(when.map_or(0, |t| t.as_second()), Ordering::Relaxed);
    }

    fn leader_is_well(&self) -> bool {
        let renewed = self.renewed.load(Ordering::Relaxed);
        renewed == 0 || jiff::Timestamp::now().as_second() - renewed < STALE_LEADER.as_secs().cast_signed()
    }
}

/// A bound, not yet serving health server. That the port is bound proves that no other copy of the component runs here.
pub struct Server {
    listener: TcpListener,
    tls: tls::Serving,
    addr: SocketAddr,
}

impl Server {
    /// Binds `addr`; without files the certificate is self-signed and lives in memory only.
    ///
    /// # Errors
    /// If the port is taken or the certificate unusable.
    pub async fn bind(addr: SocketAddr, files: Option<(&Path, &Path)>) -> Result<Self, Error> {
        let (listener, addr) = serving::listen(addr).await?;
        Ok(Self {
            listener,
            tls: tls::Serving::new(files)?,
            addr,
        })
    }

    /// Where it listens (the real port, if 0 was asked for).
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Serves until `stop`.
    pub async fn serve(self, health: Arc<Health>, metrics: Metrics, client: Client, stop: CancellationToken) {
        let shared = Arc::new(Shared {
            health,
            metrics,
            client,
        });
        let (tls, cut) = (self.tls, stop.clone());
        let accepting = serving::accept(self.listener, MAX_CONNECTIONS, move |tcp, peer| {
            let (tls, shared, stop) = (TlsAcceptor::from(tls.current()), Arc::clone(&shared), cut.clone());
            async move {
                let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE_TIME, tls.accept(tcp)).await else {
                    return;
                };
                let answering = serving::converse(stream, |request| answer(Arc::clone(&shared), peer, request));
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = answering => {}
                }
            }
        });
        tokio::select! {
            () = stop.cancelled() => {}
            () = accepting => {}
        }
    }
}

struct Shared {
    health: Arc<Health>,
    metrics: Metrics,
    client: Client,
}

async fn answer(shared: Arc<Shared>, peer: SocketAddr, request: Request<Incoming>) -> (StatusCode, String) {
    let path = request.uri().path().trim_end_matches('/');
    let verbose = request
        .uri()
        .query()
        .is_some_and(|q| q.split('&').any(|p| p.starts_with("verbose")));
    match path {
        "/healthz" | "/livez" | "/readyz" => probe(&path[1..], shared.health.leader_is_well(), verbose),
        "/metrics" => match allowed(&shared.client, peer, request.headers().get(header::AUTHORIZATION)).await {
            Ok(()) => (StatusCode::OK, shared.metrics.render()),
            Err(status) => (status, status.canonical_reason().unwrap_or_default().to_owned()),
        },
        _ => (StatusCode::NOT_FOUND, "404 page not found\n".to_owned()),
    }
}

fn probe(name: &str, leader_is_well: bool, verbose: bool) -> (StatusCode, String) {
    let mut text = String::new();
    if verbose || !leader_is_well {
        text.push_str("[+]ping ok\n");
        text.push_str(if leader_is_well {
            "[+]leaderElection ok\n"
        } else {
            "[-]leaderElection failed: lease not renewed\n"
        });
    }
    match (leader_is_well, verbose) {
        (true, false) => (StatusCode::OK, "ok".to_owned()),
        (true, true) => (StatusCode::OK, text + name + " check passed\n"),
        (false, _) => (StatusCode::INTERNAL_SERVER_ERROR, text + name + " check failed\n"),
    }
}

async fn allowed(
    client: &Client,
    peer: SocketAddr,
    authorization: Option<&header::HeaderValue>,
) -> Result<(), StatusCode> {
    if peer.ip().to_canonical().is_loopback() {
        return Ok(());
    }
    let token = authorization
        .and_then(|v| v.to_str().ok())
        .and_then(|v| v.strip_prefix("Bearer "))
        .ok_or(StatusCode::UNAUTHORIZED)?;
    let review = TokenReview {
        spec: TokenReviewSpec {
            token: token.to_owned(),
            ..TokenReviewSpec::default()
        },
        ..TokenReview::default()
    };
    let review = Api::<TokenReview>::all(client.clone())
        .create(&PostParams::default(), &review)
        .await
        .map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
    let status = review.status.unwrap_or_default();
    let user = status
        .user
        .filter(|_| status.authenticated == Some(true))
        .ok_or(StatusCode::UNAUTHORIZED)?;
    let access = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: user.username,
            uid: user.uid,
            groups: user.groups,
            extra: user.extra,
            non_resource_attributes: Some(NonResourceAttributes {
                path: Some("/metrics".into()),
                verb: Some("get".into()),
            }),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    };
    let access = Api::<SubjectAccessReview>::all(client.clone())
        .create(&PostParams::default(), &access)
        .await
        .map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
    if access.status.is_some_and(|s| s.allowed) {
        Ok(())
    } else {
        Err(StatusCode::FORBIDDEN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leader_without_renewal_is_unhealthy_and_a_follower_is_not() {
        let health = Health::default();
        assert!(health.leader_is_well());
        health.renewed(Some(jiff::Timestamp::now()));
        assert!(health.leader_is_well());
        health.renewed(jiff::Timestamp::from_second(1).ok());
        assert!(!health.leader_is_well());
        assert_eq!(probe("healthz", false, false).0, StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(probe("healthz", true, false), (StatusCode::OK, "ok".to_owned()));
    }
}
