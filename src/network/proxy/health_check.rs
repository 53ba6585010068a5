//! The ports on which load balancers ask each node whether it has endpoints of a service (`healthCheckNodePort`), so that
//! they send nothing to nodes that would drop it. Whatever path is asked for, the answer is the same.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    sync::{Arc, Mutex, PoisonError},
};

use component::serving::{self, Reply};
use http::{HeaderName, HeaderValue, StatusCode, header};
use tokio::{net::TcpListener, task::JoinHandle};

use super::model::HealthCheck;
use crate::start::Health;

/// Connections at once on one port.
const MAX_CONNECTIONS: usize = 64;
/// Tells a balancer that weighs nodes how much each takes.
const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// The health checks that are answered.
pub(super) struct HealthChecks {
    proxy: Arc<Health>,
    open: BTreeMap<u16, Open>,
}

struct Open {
    shown: Arc<Mutex<HealthCheck>>,
    task: JoinHandle<()>,
}

impl HealthChecks {
    /// None yet. `proxy`: whether the proxy itself is well.
    pub(super) fn new(proxy: Arc<Health>) -> Self {
        Self {
            proxy,
            open: BTreeMap::new(),
        }
    }

    /// Answers exactly these, by port. A port that is taken is logged, and tried again the next time.
    pub(super) async fn set(&mut self, mut wanted: BTreeMap<u16, HealthCheck>) {
        let closed: Vec<u16> = self
            .open
            .keys()
            .filter(|port| !wanted.contains_key(port))
            .copied()
            .collect();
        for port in closed {
            if let Some(open) = self.open.remove(&port) {
                open.task.abort();
                // The port is free when the task has ended.
                _ = open.task.await;
            }
        }
        for (port, open) in &self.open {
            if let Some(check) = wanted.remove(port) {
                *open.shown.lock().unwrap_or_else(PoisonError::into_inner) = check;
            }
        }
        for (port, check) in wanted {
            match TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await {
                Ok(listener) => _ = self.open.insert(port, self.answer(listener, check)),
                Err(error) => tracing::error!(
                    namespace = check.namespace,
                    service = check.name,
                    port,
                    %error,
                    "the health check of a service cannot be answered"
                ),
            }
        }
    }

    fn answer(&self, listener: TcpListener, check: HealthCheck) -> Open {
        let shown = Arc::new(Mutex::new(check));
        let (served, proxy) = (Arc::clone(&shown), Arc::clone(&self.proxy));
        let task = tokio::spawn(serving::accept(listener, MAX_CONNECTIONS, move |stream, _| {
            let (shown, proxy) = (Arc::clone(&served), Arc::clone(&proxy));
            serving::converse(stream, move |_| {
                let check = shown.lock().unwrap_or_else(PoisonError::into_inner).clone();
                std::future::ready(reply(&check, proxy.is_good()))
            })
        }));
        Open { shown, task }
    }
}

impl Drop for HealthChecks {
    fn drop(&mut self) {
        self.open.values().for_each(|open| open.task.abort());
    }
}

fn reply(check: &HealthCheck, proxy_is_good: bool) -> Reply {
    let count = check.local_endpoints;
    let service = format!(
        "\t\"service\": {{\n\t\t\"namespace\": {:?},\n\t\t\"name\": {:?}\n\t}},",
        check.namespace, check.name
    );
    Reply {
        status: if count > 0 && proxy_is_good {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        },
        headers: vec![
            (header::CONTENT_TYPE, HeaderValue::from_static("application/json")),
            (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
            (WEIGHT, HeaderValue::from(count)),
        ],
        text: format!("{{\n{service}\n\t\"localEndpoints\": {count},\n\t\"serviceProxyHealthy\": {proxy_is_good}\n}}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    async fn get(port: u16) -> Result<(u16, Value, String), std::io::ErrorKind> {
        let failed = |error: std::io::Error| error.kind();
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.map_err(failed)?;
        let request = b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        stream.write_all(request).await.map_err(failed)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.map_err(failed)?;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let weight = head
            .lines()
            .find_map(|line| line.strip_prefix("x-load-balancing-endpoint-weight: "));
        Ok((
            status,
            serde_json::from_str(body).unwrap(),
            weight.unwrap_or_default().to_owned(),
        ))
    }

    fn check(local_endpoints: usize) -> HealthCheck {
        HealthCheck {
            namespace: "ns".into(),
            name: "web".into(),
            local_endpoints,
        }
    }

    #[tokio::test]
    async fn a_balancer_is_told_whether_this_node_has_endpoints() {
        let free = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
        let port = free.local_addr().unwrap().port();
        let health = Arc::new(Health::new("not yet"));
        let mut checks = HealthChecks::new(Arc::clone(&health));
        // Taken: tried again when it is free.
        checks.set(BTreeMap::from([(port, check(1))])).await;
        drop(free);
        for (endpoints, proxy, status) in [
            (1, Err("down"), 503),
            (1, Ok(()), 200),
            (0, Ok(()), 503),
            (2, Ok(()), 200),
        ] {
            health.set(proxy.map_err(str::to_owned));
            checks.set(BTreeMap::from([(port, check(endpoints))])).await;
            let body = json!({"service": {"namespace": "ns", "name": "web"}, "localEndpoints": endpoints, "serviceProxyHealthy": proxy.is_ok()});
            assert_eq!(
                get(port).await,
                Ok((status, body, endpoints.to_string())),
                "{endpoints} {proxy:?}"
            );
        }
        checks.set(BTreeMap::new()).await;
        assert_eq!(get(port).await, Err(std::io::ErrorKind::ConnectionRefused));
    }
}
