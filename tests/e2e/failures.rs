//! What happens to a cluster when its parts die, and to an apply that is killed.

use anyhow::{Context, Result};
use e2e::{Site, eventually};
use std::{
    io::{BufRead as _, BufReader},
    process::Stdio,
};

const WEB: &str = include_str!("manifests/web.yaml");

/// The address of the service under test.
fn service_ip(site: &Site) -> Result<String> {
    Ok(site.get(&["service", "web"])?["spec"]["clusterIP"]
        .as_str()
        .context("the service has an address")?
        .to_owned())
}

/// Asks it from a host; bash opens the connection, for the hosts have no HTTP client.
fn answers(site: &Site, host: &str, ip: &str) -> Result<()> {
    let script =
        format!(r#"exec 3<>/dev/tcp/{ip}/80 && printf 'GET / HTTP/1.0\r\n\r\n' >&3 && head -1 <&3 | grep -q 200"#);
    site.lab
        .exec(site.host(host), &["timeout", "5", "bash", "-c", &script])?
        .ok()
        .map(drop)
}

#[test]
fn the_cluster_survives_kills_and_reboots() -> Result<()> {
    let site = Site::up(&["m1", "n1"])?;
    site.write_clusterfile(&["m1"], &["n1"], "image: local/e2e:dev")?;
    site.apply()?;
    site.wait_ready(2)?;
    site.apply_manifest(WEB)?;
    site.rollout("deployment/web")?;
    let ip = service_ip(&site)?;
    eventually("the service to answer", || answers(&site, "m1", &ip))?;

    for (what, pattern) in [
        ("node agent", "[c]lusterd agent"),
        ("container runtime", "[b]in/containerd "),
        ("API server", "[c]lusterd apiserver"),
        ("etcd", "[/]etcd --name"),
        ("controller manager", "[c]lusterd controller-manager"),
    ] {
        let host = "m1";
        // The brackets keep pkill from finding the shell that runs it.
        let kill = format!("pkill -9 -f '{pattern}'");
        site.on(host, &kill).with_context(|| format!("kill the {what}"))?;
        answers(&site, "n1", &ip).with_context(|| format!("workloads go on without the {what}"))?;
        site.wait_ready(2)
            .with_context(|| format!("after the {what} was killed"))?;
    }
    let name = format!("after{}", std::process::id());
    site.kubectl_ok(&["create", "configmap", &name])?;
    site.kubectl_ok(&["scale", "deployment/web", "--replicas=2"])?;
    site.rollout("deployment/web")?;

    for host in ["n1", "m1"] {
        site.lab.reboot(site.host(host))?;
    }
    site.wait_ready(2).context("after every host was rebooted")?;
    site.rollout("deployment/web")?;
    eventually("the service to answer after the reboot", || answers(&site, "n1", &ip))?;
    site.kubectl_ok(&["get", "configmap", &name]).map(drop)
}

#[test]
fn an_apply_that_is_killed_goes_on_where_it_stopped() -> Result<()> {
    let site = Site::up(&["m1", "n1"])?;
    site.write_clusterfile(&["m1"], &["n1"], "")?;
    // Killed at several points of its way: after so many lines of its event stream.
    for lines in [6, 20, 40] {
        let mut apply = site.installer_command()?;
        let mut child = apply
            .args(["apply", "-f", "Clusterfile", "--yes", "-o", "json"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let out = child.stdout.take().context("a pipe")?;
        for line in BufReader::new(out).lines().take(lines) {
            line?;
        }
        child.kill()?;
        child.wait()?;
    }
    site.apply()?;
    site.wait_ready(2)?;
    site.installer_ok(&["check", "-f", "Clusterfile"]).map(drop)
}
