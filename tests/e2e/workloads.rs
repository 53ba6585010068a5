//! Workloads behave as Kubernetes documents them.

use anyhow::{Context, Result, bail, ensure};
use e2e::{Site, eventually};
use serde_json::Value;
use std::collections::BTreeSet;

type Check = fn(&Site) -> Result<()>;

#[test]
fn workloads_behave_as_documented() -> Result<()> {
    let site = Site::up(&["m1", "n1", "n2"])?;
    site.write_clusterfile(&["m1"], &["n1", "n2"], "image: local/e2e:dev")?;
    site.apply()?;
    site.wait_ready(3)?;
    site.apply_manifest(include_str!("manifests/probes.yaml"))
        .context("probes.yaml")?;
    site.apply_manifest(include_str!("manifests/pods.yaml"))
        .context("pods.yaml")?;
    site.apply_manifest(include_str!("manifests/web.yaml"))
        .context("web.yaml")?;
    site.rollout("deployment/web")?;
    let checks: &[(&str, Check)] = &[
        ("a service balances from every node and by name", a_service_balances),
        ("an unready pod gets no traffic", an_unready_pod_gets_no_traffic),
        (
            "a load balancer is told which nodes have endpoints",
            a_balancer_is_told_where_endpoints_are,
        ),
        (
            "init containers run in order before the main one",
            init_containers_run_in_order,
        ),
        ("a DaemonSet reaches every node", a_daemon_set_reaches_every_node),
        ("restart policies are kept", restart_policies_are_kept),
        ("a memory limit kills", a_memory_limit_kills),
        ("configuration reaches containers", configuration_reaches_containers),
        ("logs and exec work", logs_and_exec_work),
        ("a rolling update fails no request", a_rolling_update_fails_no_request),
        ("liveness probes restart", liveness_probes_restart),
    ];
    let mut failed = Vec::new();
    for (what, check) in checks {
        match check(&site) {
            Ok(()) => println!("ok: {what}"),
            Err(error) => {
                println!("FAILED: {what}: {error:#}");
                failed.push(*what);
            }
        }
    }
    if failed.is_empty() {
        Ok(())
    } else {
        bail!("{} of {} failed: {failed:?}", failed.len(), checks.len())
    }
}

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn web_pods(site: &Site) -> Result<Vec<Value>> {
    let pods = site.get(&["pods", "-l", "app=web"])?;
    Ok(pods["items"].as_array().cloned().unwrap_or_default())
}

fn a_service_balances(site: &Site) -> Result<()> {
    let names: BTreeSet<String> = web_pods(site)?
        .iter()
        .map(|p| text(p, "/metadata/name").to_owned())
        .collect();
    ensure!(names.len() == 3, "three pods, not {names:?}");
    let service = site.get(&["service", "web"])?;
    let ip = text(&service, "/spec/clusterIP").to_owned();
    let node_port = service["spec"]["ports"][0]["nodePort"]
        .as_u64()
        .and_then(|p| u16::try_from(p).ok())
        .context("a node port")?;
    for host in ["m1", "n1", "n2"] {
        let mut seen = BTreeSet::new();
        eventually("every pod to have answered", || {
            seen.insert(site.http(host, &ip, 80)?);
            ensure!(seen == names, "{host} has seen {seen:?} of {names:?}");
            Ok(())
        })?;
        site.http(host, &site.ip("n2"), node_port)?;
    }
    let name = "web.default.svc.cluster.local";
    for host in ["m1", "n1", "n2"] {
        let answer = site.resolve(host, name)?;
        ensure!(answer == ip, "{host} resolves {name} as {answer:?}, not {ip}");
    }
    Ok(())
}

fn ready_addresses(site: &Site) -> Result<BTreeSet<String>> {
    let slices = site.get(&["endpointslices", "-l", "kubernetes.io/service-name=web"])?;
    let endpoints = slices["items"]
        .as_array()
        .into_iter()
        .flatten()
        .flat_map(|s| s["endpoints"].as_array().into_iter().flatten());
    let ready = endpoints.filter(|e| e["conditions"]["ready"] == true);
    Ok(ready
        .map(|e| e["addresses"][0].as_str().unwrap_or_default().to_owned())
        .collect())
}

fn an_unready_pod_gets_no_traffic(site: &Site) -> Result<()> {
    let pods = web_pods(site)?;
    let (name, address) = (text(&pods[0], "/metadata/name"), text(&pods[0], "/status/podIP"));
    site.kubectl_ok(&["exec", name, "--", "rm", "/tmp/ready"])?;
    eventually("the pod to leave the endpoints", || {
        let ready = ready_addresses(site)?;
        ensure!(!ready.contains(address) && ready.len() == 2, "{ready:?}");
        Ok(())
    })?;
    let ip = text(&site.get(&["service", "web"])?, "/spec/clusterIP").to_owned();
    eventually("traffic to stop going there", || {
        let answers = (0..20)
            .map(|_| site.http("n1", &ip, 80))
            .collect::<Result<BTreeSet<_>>>()?;
        ensure!(!answers.contains(name), "{answers:?}");
        Ok(())
    })?;
    site.kubectl_ok(&["exec", name, "--", "touch", "/tmp/ready"])?;
    eventually("the pod to come back", || {
        ensure!(ready_addresses(site)?.len() == 3, "not yet");
        Ok(())
    })
}

const BALANCED: &str = r#"{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "balanced"}, "spec": {
    "type": "LoadBalancer", "externalTrafficPolicy": "Local", "selector": {"app": "web"}, "ports": [{"port": 80}]}}"#;

fn a_balancer_is_told_where_endpoints_are(site: &Site) -> Result<()> {
    site.apply_manifest(BALANCED)?;
    let port = site.get(&["service", "balanced"])?["spec"]["healthCheckNodePort"].clone();
    let told = || {
        for host in ["m1", "n1", "n2"] {
            let here = |p: &&Value| text(p, "/status/hostIP") == site.ip(host) && e2e::is_ready(p);
            let count = web_pods(site)?.iter().filter(here).count();
            let ask = format!(
                "exec 3<>/dev/tcp/{}/{port} && printf 'GET /healthz HTTP/1.0\\r\\n\\r\\n' >&3 && cat <&3",
                site.ip(host)
            );
            let answer = site.on("m1", &format!("timeout 5 bash -c {ask:?}"))?;
            let status = if count > 0 { " 200 " } else { " 503 " };
            let counted = format!("\"localEndpoints\": {count},");
            ensure!(
                answer.contains(status) && answer.contains(&counted),
                "{host} with {count}: {answer}"
            );
        }
        Ok(())
    };
    eventually("every node to tell its endpoints", told)?;
    let pods = web_pods(site)?;
    let name = text(&pods[0], "/metadata/name");
    site.kubectl_ok(&["exec", name, "--", "rm", "/tmp/ready"])?;
    eventually("the pod to be unready", || {
        ensure!(!e2e::is_ready(&site.get(&["pod", name])?), "still ready");
        Ok(())
    })?;
    eventually("its node to tell that it has one less", told)?;
    site.kubectl_ok(&["exec", name, "--", "touch", "/tmp/ready"])?;
    eventually("the pod to come back", || {
        ensure!(ready_addresses(site)?.len() == 3, "not yet");
        Ok(())
    })
}

fn restarts(site: &Site, pod: &str) -> Result<i64> {
    Ok(
        site.get(&["pod", pod])?["status"]["containerStatuses"][0]["restartCount"]
            .as_i64()
            .unwrap_or(-1),
    )
}

fn liveness_probes_restart(site: &Site) -> Result<()> {
    for pod in ["liveness-exec", "liveness-http", "liveness-tcp"] {
        eventually(&format!("{pod} to be restarted"), || {
            ensure!(restarts(site, pod)? >= 1, "not yet");
            Ok(())
        })?;
        let events = site.kubectl_ok(&[
            "get",
            "events",
            "--field-selector",
            &format!("involvedObject.name={pod}"),
        ])?;
        ensure!(events.contains("Unhealthy"), "{pod}: {events}");
    }
    ensure!(restarts(site, "steady")? == 0, "a pod whose probes pass is left alone");
    Ok(())
}

fn phase(site: &Site, pod: &str, wanted: &str) -> Result<()> {
    eventually(&format!("{pod} to be {wanted}"), || {
        let object = site.get(&["pod", pod])?;
        ensure!(text(&object, "/status/phase") == wanted, "it is {}", object["status"]);
        Ok(())
    })
}

fn init_containers_run_in_order(site: &Site) -> Result<()> {
    phase(site, "init-order", "Succeeded")?;
    let log = site.kubectl_ok(&["logs", "init-order", "-c", "main"])?;
    ensure!(log.trim() == "first\nsecond\nmain", "{log}");
    Ok(())
}

fn a_daemon_set_reaches_every_node(site: &Site) -> Result<()> {
    site.rollout("daemonset/everywhere")?;
    let pods = site.get(&["pods", "-l", "app=everywhere"])?;
    let nodes: BTreeSet<_> = pods["items"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|p| text(p, "/spec/nodeName").to_owned())
        .collect();
    ensure!(nodes == ["m1", "n1", "n2"].map(str::to_owned).into(), "{nodes:?}");
    Ok(())
}

fn restart_policies_are_kept(site: &Site) -> Result<()> {
    phase(site, "never-fails", "Failed")?;
    phase(site, "never-succeeds", "Succeeded")?;
    phase(site, "on-failure", "Succeeded")?;
    ensure!(restarts(site, "never-fails")? == 0, "Never means never");
    ensure!(restarts(site, "on-failure")? == 2, "it fails twice and is then done");
    eventually("the pod that always ends to be started again", || {
        ensure!(restarts(site, "always")? >= 1, "not yet");
        Ok(())
    })
}

fn a_memory_limit_kills(site: &Site) -> Result<()> {
    eventually("the pod to be killed", || {
        let pod = site.get(&["pod", "greedy"])?;
        let status = &pod["status"]["containerStatuses"][0];
        let reasons = [
            &status["state"]["terminated"]["reason"],
            &status["lastState"]["terminated"]["reason"],
        ];
        ensure!(reasons.iter().any(|r| *r == "OOMKilled"), "{status}");
        Ok(())
    })
}

fn configuration_reaches_containers(site: &Site) -> Result<()> {
    phase(site, "configured", "Succeeded")?;
    let log = site.kubectl_ok(&["logs", "configured"])?;
    for expected in [
        "env=blue",
        "file=blue",
        "secret=s3cret",
        "name=configured",
        "token=yes",
        "limit=67108864",
    ] {
        ensure!(log.lines().any(|l| l == expected), "{expected} is not in: {log}");
    }
    Ok(())
}

fn logs_and_exec_work(site: &Site) -> Result<()> {
    let pods = web_pods(site)?;
    let name = text(&pods[0], "/metadata/name");
    let out = site.kubectl(&["exec", name, "--", "sh", "-c", "echo out; echo err >&2; exit 7"])?;
    ensure!(
        (out.code, out.stdout.trim()) == (7, "out") && out.stderr.contains("err"),
        "{out:?}"
    );
    let log = site.kubectl_ok(&["logs", "init-order", "-c", "main", "--tail=1"])?;
    ensure!(log.trim() == "main", "{log}");
    Ok(())
}

fn a_rolling_update_fails_no_request(site: &Site) -> Result<()> {
    let ip = text(&site.get(&["service", "web"])?, "/spec/clusterIP").to_owned();
    site.kubectl_ok(&["set", "image", "deployment/web", "web=installer.internal/web:v2"])?;
    let mut asked = 0;
    eventually("the rollout to finish", || {
        for _ in 0..10 {
            site.http("n1", &ip, 80)
                .with_context(|| format!("request {asked} failed"))
                .unwrap_or_else(|e| panic!("{e:#}"));
            asked += 1;
        }
        let status = site.get(&["deployment", "web"])?["status"].clone();
        ensure!(
            status["updatedReplicas"] == 3 && status["replicas"] == 3 && status["readyReplicas"] == 3,
            "{status}"
        );
        Ok(())
    })?;
    println!("   {asked} requests during the update");
    Ok(())
}
