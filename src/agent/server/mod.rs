//! The agent's servers: HTTPS for the API server (logs, exec, statistics) and plain `/healthz` on the loopback address.

mod auth;
mod pods;
mod spdy;
mod stats;
mod streams;
mod translate;

use crate::args::Args;
use crate::ctx::Ctx;
use crate::error::{Error, Result};
use crate::manager::Pods;
use crate::node::RuntimeState;
use crate::observed::SECOND;
use crate::tls::serving;
use auth::{Authority, Peer};
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::{any, get};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::net::SocketAddr;
use std::sync::Arc;
use tls_files::Reread;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tower::ServiceExt;

/// What handlers share.
#[derive(Debug)]
pub struct Shared {
    /// The agent.
    pub ctx: Arc<Ctx>,
    /// Its pods.
    pub pods: Pods,
    /// Who may.
    pub authority: Authority,
    /// How the runtime is.
    pub runtime: watch::Receiver<RuntimeState>,
}

/// Most connections at once.
const CONNECTIONS: usize = 512;

/// Starts both servers; errors are those of listening and of certificates.
pub async fn start(
    ctx: &Arc<Ctx>,
    args: &Args,
    pods: Pods,
    registered: watch::Receiver<bool>,
    runtime: watch::Receiver<RuntimeState>,
    tasks: &mut JoinSet<Result<()>>,
) -> Result<()> {
    let config = &ctx.config;
    if config.healthz_port != 0 {
        let listener = listen(SocketAddr::new(config.healthz_bind_address, config.healthz_port)).await?;
        let app = Router::new().route("/healthz", get(healthz)).with_state(ctx.clone());
        tasks.spawn(async move {
            axum::serve(listener, app)
                .await
                .map_err(|e| Error::Other(format!("healthz: {e}")))
        });
    }
    if config.port == 0 {
        return Ok(());
    }
    let mut names = vec![ctx.node_name.clone()];
    names.extend(ctx.host_ips.iter().cloned());
    let plan = serving::Plan {
        files: config.tls_cert_file.clone().zip(config.tls_private_key_file.clone()),
        pki: args.cert_dir.clone().unwrap_or_else(|| args.root_dir.join("pki")),
        node: ctx.node_name.clone(),
        names,
        bootstrap: config.server_tls_bootstrap,
    };
    let current = plan.first()?;
    let listener = listen(SocketAddr::new(config.address, config.port)).await?;
    let tls = auth::server_config(config, plan.files.clone(), current.clone())?;
    let authority = Authority::new(ctx.api.clone(), ctx.node_name.clone(), config);
    let shared = Arc::new(Shared {
        ctx: ctx.clone(),
        pods,
        authority,
        runtime,
    });
    let api = ctx.api.clone();
    tasks.spawn(async move {
        plan.keep(current, api, registered).await;
        Ok(())
    });
    tasks.spawn(serve(listener, tls, router(shared)));
    Ok(())
}

async fn listen(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .map_err(|e| Error::Other(format!("listen on {address}: {e}")))
}

fn router(shared: Arc<Shared>) -> Router {
    let mut app = Router::new()
        .route("/healthz", get(healthz_shared))
        .route("/pods", get(pods::list))
        .route("/runningpods/", get(pods::running))
        .route("/stats/summary", get(stats::summary))
        .route("/metrics", get(stats::metrics))
        .route("/metrics/resource", get(stats::resource))
        .route("/metrics/probes", get(stats::empty))
        .route("/metrics/cadvisor", get(stats::empty));
    if shared.ctx.config.enable_debugging_handlers {
        app = app
            .route("/containerLogs/{namespace}/{pod}/{container}", get(pods::logs))
            .route("/exec/{namespace}/{pod}/{container}", any(streams::exec))
            .route("/exec/{namespace}/{pod}/{uid}/{container}", any(streams::exec_uid))
            .route("/attach/{namespace}/{pod}/{container}", any(streams::attach))
            .route("/attach/{namespace}/{pod}/{uid}/{container}", any(streams::attach_uid))
            .route("/portForward/{namespace}/{pod}", any(streams::port_forward))
            .route("/portForward/{namespace}/{pod}/{uid}", any(streams::port_forward_uid));
    }
    app.layer(axum::middleware::from_fn_with_state(shared.clone(), auth::check))
        .with_state(shared)
}

async fn serve(listener: TcpListener, tls: Reread<rustls::ServerConfig>, app: Router) -> Result<()> {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else {
            return Ok(());
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(e) => {
                // Out of descriptors, most likely: the next try must not spin.
                tracing::warn!("accept: {e}");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        let acceptor = tokio_rustls::TlsAcceptor::from(tls.current());
        let app = app.clone();
        tokio::spawn(async move {
            let _slot = slot;
            let _ = stream.set_nodelay(true);
            let handshake = tokio::time::timeout(std::time::Duration::from_secs(10), acceptor.accept(stream)).await;
            let Ok(Ok(stream)) = handshake else { return };
            let peer = Peer::of(stream.get_ref().1);
            let service = hyper::service::service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
                request.extensions_mut().insert(peer.clone());
                app.clone().oneshot(request)
            });
            let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            if let Err(e) = builder
                .serve_connection_with_upgrades(TokioIo::new(stream), service)
                .await
            {
                tracing::debug!("connection: {e}");
            }
        });
    }
}

fn health(ctx: &Ctx) -> (StatusCode, String) {
    let age = ctx.relist.age() / SECOND;
    if age > 180 {
        return (
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("the container runtime has not answered for {age} s\n"),
        );
    }
    (StatusCode::OK, "ok".into())
}

async fn healthz(State(ctx): State<Arc<Ctx>>) -> impl IntoResponse {
    health(&ctx)
}

async fn healthz_shared(State(shared): State<Arc<Shared>>) -> impl IntoResponse {
    health(&shared.ctx)
}
