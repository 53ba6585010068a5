//! One run of a probe: exec in the container, an HTTP GET (`http`), a TCP connect, a gRPC health check. No thresholds
//! here, and no retries but those for the prober's own errors.

use super::{Outcome, http};
use crate::cri::Cri;
use k8s_openapi::api::core::v1::{Container, GRPCAction, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use std::time::Duration;
use tokio::net::TcpStream;

/// Where a probe goes.
#[derive(Debug, Clone)]
pub struct Target {
    /// Runtime's id of the container.
    pub container_id: String,
    /// The pod's address (the node's with host network).
    pub ip: String,
}

/// Longest part of a body or of output that is shown.
const SHOWN: usize = 1024;

/// Runs a probe once within its time limit.
pub async fn probe(cri: &Cri, target: &Target, container: &Container, probe: &Probe) -> Outcome {
    let limit = Duration::from_secs(probe.timeout_seconds.unwrap_or(1).max(1).unsigned_abs().into());
    for attempt in 0..3 {
        let outcome = once(cri, target, container, probe, limit).await;
        match outcome {
            Outcome::Unknown(_) if attempt < 2 => {}
            done => return done,
        }
    }
    Outcome::Unknown("not run".into())
}

async fn once(cri: &Cri, target: &Target, container: &Container, probe: &Probe, limit: Duration) -> Outcome {
    let work = async {
        if let Some(exec) = &probe.exec {
            return self::exec(
                cri,
                &target.container_id,
                exec.command.clone().unwrap_or_default(),
                limit,
            )
            .await;
        }
        if let Some(get) = &probe.http_get {
            return http::get(target, container, get, "kube-probe/1.36").await;
        }
        if let Some(tcp) = &probe.tcp_socket {
            let host = tcp
                .host
                .clone()
                .filter(|h| !h.is_empty())
                .unwrap_or_else(|| target.ip.clone());
            return match port(&tcp.port, container) {
                Ok(port) => tcp_connect(&host, port).await,
                Err(e) => Outcome::Failure(e),
            };
        }
        match &probe.grpc {
            Some(action) => grpc(target, action).await,
            None => Outcome::Unknown("the probe has no action".into()),
        }
    };
    // The runtime enforces whole seconds on exec by itself; a little more here lets its own message through.
    let outer = if probe.exec.is_some() {
        limit + Duration::from_secs(2)
    } else {
        limit
    };
    match tokio::time::timeout(outer, work).await {
        Ok(outcome) => outcome,
        Err(_) => Outcome::Failure(format!("timed out after {} s", limit.as_secs())),
    }
}

/// A port by number, or by its name in the container.
pub fn port(port: &IntOrString, container: &Container) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(n) => *n,
        IntOrString::String(name) => match container
            .ports
            .iter()
            .flatten()
            .find(|p| p.name.as_deref() == Some(name))
        {
            Some(p) => p.container_port,
            None => name
                .parse()
                .map_err(|_| format!("couldn't find port: {name} in container {}", container.name))?,
        },
    };
    u16::try_from(number)
        .ok()
        .filter(|n| *n > 0)
        .ok_or_else(|| format!("invalid port number: {number}"))
}

async fn exec(cri: &Cri, id: &str, command: Vec<String>, limit: Duration) -> Outcome {
    match cri.exec_sync(id, command, limit).await {
        Ok(answer) if answer.exit_code == 0 => Outcome::Success,
        Ok(answer) => {
            let mut text = String::from_utf8_lossy(&answer.stdout).into_owned();
            text.push_str(&String::from_utf8_lossy(&answer.stderr));
            Outcome::Failure(shorten(text.trim_end()))
        }
        Err(crate::error::Error::Runtime {
            code: tonic::Code::DeadlineExceeded,
            ..
        }) => Outcome::Failure(format!("command timed out after {} s", limit.as_secs())),
        Err(crate::error::Error::Runtime {
            code: tonic::Code::Unknown | tonic::Code::NotFound,
            message,
            ..
        }) => Outcome::Failure(shorten(&message)),
        Err(e) => Outcome::Unknown(e.to_string()),
    }
}

fn shorten(text: &str) -> String {
    text.chars().take(SHOWN).collect()
}

/// Host and port as one text, with brackets around IPv6.
pub(super) fn connect_target(host: &str, port: u16) -> String {
    if host.contains(':') && !host.starts_with('[') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

pub(super) async fn connect(host: &str, port: u16) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect(connect_target(host, port)).await?;
    stream.set_nodelay(true)?;
    // A probe a second leaves many sockets in TIME_WAIT otherwise.
    let _ = rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::from_secs(1)));
    Ok(stream)
}

async fn tcp_connect(host: &str, port: u16) -> Outcome {
    match connect(host, port).await {
        Ok(_) => Outcome::Success,
        Err(e) => Outcome::Failure(format!("dial tcp {}: {e}", connect_target(host, port))),
    }
}

async fn grpc(target: &Target, action: &GRPCAction) -> Outcome {
    use tonic::transport::Endpoint;
    let Ok(port) = u16::try_from(action.port) else {
        return Outcome::Failure(format!("invalid port number: {}", action.port));
    };
    let address = format!("http://{}", connect_target(&target.ip, port));
    let endpoint = match Endpoint::from_shared(address).and_then(|e| e.user_agent("kube-probe/1.36")) {
        Ok(e) => e,
        Err(e) => return Outcome::Failure(e.to_string()),
    };
    let channel = match endpoint.connect().await {
        Ok(c) => c,
        Err(e) => {
            let place = connect_target(&target.ip, port);
            return Outcome::Failure(format!("failed to connect service at {place}: {e}"));
        }
    };
    let mut client = tonic::client::Grpc::new(channel);
    if let Err(e) = client.ready().await {
        return Outcome::Failure(e.to_string());
    }
    let request = tonic::Request::new(HealthCheckRequest {
        service: action.service.clone().unwrap_or_default(),
    });
    let path = ::http::uri::PathAndQuery::from_static("/grpc.health.v1.Health/Check");
    let codec = tonic_prost::ProstCodec::<HealthCheckRequest, HealthCheckResponse>::default();
    match client.unary(request, path, codec).await {
        Ok(answer) if answer.get_ref().status == 1 => Outcome::Success,
        Ok(answer) => Outcome::Failure(format!(
            "service unhealthy (responded with status {})",
            answer.get_ref().status
        )),
        Err(e) => Outcome::Failure(format!("rpc failed: {}", e.message())),
    }
}

/// `grpc.health.v1.HealthCheckRequest`.
#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

/// `grpc.health.v1.HealthCheckResponse`; 1 is SERVING.
#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}
