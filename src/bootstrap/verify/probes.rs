//! What a node itself can reach.

use super::{
    Check, certificate, dns,
    system::{PodTarget, Targets},
};
use crate::{
    paths,
    session::Session,
    site::{Seat, Site},
};
use host::proto::{Condition, Exec, HttpGet};
use std::{collections::HashSet, time::Duration};
use tokio::time::{Instant, MissedTickBehavior};

/// Between two tries of something that is not announced when it comes.
const AGAIN: Duration = Duration::from_millis(200);
const PULL_MS: u64 = 30_000;

/// All probes from one node.
pub(super) async fn from(site: &Site, seat: &Seat, session: &Session, pods: Targets, deadline: Instant) -> Vec<Check> {
    let host = Some(seat.name.as_str());
    let certificate = async {
        match seat.master {
            true => Some(certificate::api_server(site, seat, session, deadline).await),
            false => None,
        }
    };
    let (dns, service, cross, registry, certificate) = tokio::join!(
        cluster_dns(site, session, deadline),
        service(site, session, deadline),
        cross_node(seat, session, pods, deadline),
        registry(site, session, deadline),
        certificate,
    );
    let mut checks = vec![
        Check::new("dns", host, dns),
        Check::new("service", host, service),
        Check::new("cross-node", host, cross),
        Check::new("registry", host, registry),
    ];
    checks.extend(certificate.map(|result| Check::new("certificate", host, result)));
    checks
}

fn left(deadline: Instant) -> Duration {
    deadline
        .saturating_duration_since(Instant::now())
        .max(Duration::from_secs(1))
}

/// Tries until it works or time is up; the last failure tells why.
pub(super) async fn until<F: Future<Output = Result<String, String>>>(
    deadline: Instant,
    mut attempt: impl FnMut() -> F,
) -> Result<String, String> {
    let mut ticks = tokio::time::interval(AGAIN);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let tried = tokio::time::timeout(Duration::from_secs(5), attempt()).await;
        match tried.unwrap_or_else(|_| Err("no answer within 5 s".to_owned())) {
            Ok(detail) => return Ok(detail),
            Err(reason) if Instant::now() >= deadline => return Err(reason),
            Err(_) => {}
        }
    }
}

async fn cluster_dns(site: &Site, session: &Session, deadline: Instant) -> Result<String, String> {
    let name = format!("kubernetes.default.svc.{}", site.networks.dns_domain);
    let server = site.dns_ip.to_string();
    until(deadline, || async {
        let stream = session.connection.connect_stream(&server, 53).await;
        let stream = stream.map_err(|e| format!("cluster DNS at {server} cannot be reached: {e}"))?;
        let address = dns::ask(stream, &name)
            .await
            .map_err(|e| format!("cluster DNS at {server}, {name}: {e}"))?;
        if address == site.kubernetes_ip {
            Ok(format!("{name} is {address}"))
        } else {
            Err(format!("{name} is {address}, expected {}", site.kubernetes_ip))
        }
    })
    .await
}

async fn service(site: &Site, session: &Session, deadline: Instant) -> Result<String, String> {
    let url = format!("https://{}:443/livez", site.kubernetes_ip);
    answers(session, url, Some(paths::CA_CERT.to_owned()), deadline).await
}

async fn answers(session: &Session, url: String, ca: Option<String>, deadline: Instant) -> Result<String, String> {
    let get = HttpGet {
        url: url.clone(),
        ca,
        timeout_ms: 3_000,
        ..HttpGet::default()
    };
    match session.client.wait_for(Condition::Http(get), left(deadline)).await {
        Ok(_) => Ok(format!("{url} answers")),
        Err(error) => Err(format!("{url} does not answer: {error}")),
    }
}

/// The first pod of every other node.
fn one_per_other_node(own: &str, pods: &[PodTarget]) -> Vec<PodTarget> {
    let mut nodes = HashSet::new();
    let others = pods.iter().filter(|pod| pod.node != own);
    others.filter(|pod| nodes.insert(&pod.node)).cloned().collect()
}

/// Until the pod is not one to be asked any more.
async fn gone(pods: &mut Targets, pod: &PodTarget) {
    // Who is not told anything any more asks on.
    if pods.wait_for(|pods| !pods.contains(pod)).await.is_err() {
        std::future::pending().await
    }
}

async fn cross_node(seat: &Seat, session: &Session, mut pods: Targets, deadline: Instant) -> Result<String, String> {
    let mut seen: Vec<PodTarget> = Vec::new();
    loop {
        let chosen = one_per_other_node(&seat.name, &pods.borrow());
        let next = chosen.into_iter().find(|pod| !seen.iter().any(|s| s.node == pod.node));
        let Some(pod) = next else { break };
        tokio::select! {
            answer = answers(session, pod.url.clone(), None, deadline) => {
                answer.map_err(|e| format!("pod {} on {}: {e}", pod.name, pod.node))?;
                seen.push(pod);
            }
            // Pods come and go while a cluster settles; another one of that node will do, or none if it has none any more.
            () = gone(&mut pods, &pod) => {}
        }
    }
    let seen: Vec<String> = seen.iter().map(|pod| format!("{} on {}", pod.name, pod.node)).collect();
    match seen.as_slice() {
        [] => Ok("no pod with an HTTP probe runs on another node".to_owned()),
        seen => Ok(format!("reached {}", seen.join(", "))),
    }
}

/// Pulls as the container runtime does, by the same configuration. The smallest image is the one that every node has anyway, so
/// nothing new is left on the node.
async fn registry(site: &Site, session: &Session, deadline: Instant) -> Result<String, String> {
    let Some(image) = site
        .image
        .carried
        .iter()
        .map(|carried| &carried.reference)
        .find(|r| r.path().ends_with("pause"))
        .or(site.image.carried.first().map(|carried| &carried.reference))
    else {
        return Ok("the cluster image carries no image".to_owned());
    };
    let name = image.to_string();
    until(deadline, || async {
        let argv = [
            paths::CTR,
            "--address",
            paths::CONTAINERD_SOCKET,
            "--namespace",
            "k8s.io",
            "images",
            "pull",
            "--hosts-dir",
            paths::CERTS_D,
            &name,
        ];
        let exec = Exec {
            argv: argv.iter().map(|arg| (*arg).to_owned()).collect(),
            timeout_ms: PULL_MS,
            ..Exec::default()
        };
        let result = session.client.exec(exec).await.map_err(|e| e.to_string())?;
        if result.code == Some(0) {
            return asks_for_login(site, session, &name).await;
        }
        let last = result.stderr.lines().last().unwrap_or("no reason given").to_owned();
        Err(format!("{name} cannot be pulled: {last}"))
    })
    .await
}

/// A registry that shall ask for a login does so, of whoever comes without one.
async fn asks_for_login(site: &Site, session: &Session, name: &str) -> Result<String, String> {
    if !site.registry.login || site.registry.external {
        return Ok(format!("{name} can be pulled"));
    }
    for seat in site.registries() {
        let url = format!("{}://{}:{}/v2/", site.registry.scheme(), seat.ip, site.registry.port);
        let get = HttpGet {
            url: url.clone(),
            ca: (!site.registry.insecure).then(|| paths::REGISTRY_CA.to_owned()),
            timeout_ms: 3_000,
            ..HttpGet::default()
        };
        let answer = session.client.http_get(get).await.map_err(|e| format!("{url}: {e}"))?;
        if answer.status != 401 {
            return Err(format!(
                "{url} answers {} to somebody without a login, not 401",
                answer.status
            ));
        }
    }
    Ok(format!("{name} can be pulled, with the login only"))
}
