//! A cluster's life as an operator sees it: up, again, larger, smaller, gone.

use anyhow::{Result, ensure};
use e2e::{Site, eventually, is_ready};
use lab::{PASSWORD, Snapshot, diff};
use std::collections::BTreeMap;

fn snapshots(site: &Site) -> Result<BTreeMap<String, Snapshot>> {
    site.lab
        .hosts
        .iter()
        .map(|host| Ok((host.name.clone(), site.lab.snapshot(host)?)))
        .collect()
}

/// What a host has that it did not have before, or lost.
fn left_over(site: &Site, before: &BTreeMap<String, Snapshot>, host: &str) -> Result<Vec<String>> {
    Ok(diff(&before[host], &site.lab.snapshot(site.host(host))?))
}

#[test]
fn a_cluster_comes_up_grows_shrinks_and_leaves_nothing() -> Result<()> {
    let site = Site::up(&["m1", "n1", "n2"])?;
    // The first login makes what every login makes; it is not the installer's.
    site.lab
        .hosts
        .iter()
        .try_for_each(|h| site.on(&h.name, "true").map(drop))?;
    let before = snapshots(&site)?;

    site.write_clusterfile(&["m1"], &["n1"], "")?;
    site.apply()?;
    site.wait_ready(2)?;
    system_pods_are_those_of_any_cluster(&site)?;
    let again = site.installer_ok(&["apply", "-f", "Clusterfile", "--yes"])?;
    ensure!(again.contains("nothing to do"), "a second apply says: {again}");
    ensure!(
        site.installer(&["plan", "-f", "Clusterfile"])?.code == 0,
        "a plan of a converged cluster is empty"
    );
    site.installer_ok(&["check", "-f", "Clusterfile"])?;

    // What goes to each host on its own is no more than that takes.
    site.on("n1", "cmp /var/lib/installer/clusterd /opt/installer/bin/clusterd-host")?;

    site.installer_ok(&["join", "-f", "Clusterfile", "--nodes", &site.ip("n2")])?;
    site.wait_ready(3)?;
    a_node_that_the_clusterfile_lacks_is_not_forgotten(&site)?;

    site.write_clusterfile(&["m1"], &["n2"], "")?;
    site.installer_ok(&["apply", "-f", "Clusterfile", "--yes"])?;
    let hosts = site.on("n2", "cat /etc/hosts")?;
    ensure!(
        !hosts.contains(&site.ip("n1")),
        "a node that left is still named: {hosts}"
    );
    let plan = site.installer(&["plan", "-f", "Clusterfile"])?;
    ensure!(plan.code == 0, "something is left to do: {plan:?}");
    ensure!(
        site.kubectl(&["get", "node", "n1"])?.code != 0,
        "the node is gone from the cluster"
    );
    let bound = site.kubectl_ok(&["get", "pods", "-A", "--field-selector=spec.nodeName=n1", "-o", "name"])?;
    ensure!(bound.is_empty(), "pods are left on the node that is gone: {bound}");
    ensure!(
        left_over(&site, &before, "n1")?.is_empty(),
        "reset of n1 left {:#?}",
        left_over(&site, &before, "n1")?
    );
    site.wait_ready(2)?;

    site.installer_ok(&["reset", "-f", "Clusterfile", "--yes"])?;
    for host in ["m1", "n2"] {
        ensure!(
            left_over(&site, &before, host)?.is_empty(),
            "reset of {host} left {:#?}",
            left_over(&site, &before, host)?
        );
    }
    Ok(())
}

/// n2 is in the cluster and not in the Clusterfile.
fn a_node_that_the_clusterfile_lacks_is_not_forgotten(site: &Site) -> Result<()> {
    let n2 = site.ip("n2");
    let named = |what: &str| -> Result<()> {
        let hosts = site.on("n1", "cat /etc/hosts")?;
        ensure!(
            hosts.contains(&format!("{n2} n2")),
            "{what} took its name away: {hosts}"
        );
        Ok(())
    };
    named("join")?;
    let reset = site.installer(&["reset", "-f", "Clusterfile", "--yes"])?;
    ensure!(reset.code != 0, "the others are reset: {reset:?}");
    for part in [
        &n2,
        "n2",
        "nothing was done",
        "--update-clusterfile",
        "--leave-unlisted",
    ] {
        ensure!(reset.stderr.contains(part), "{part:?} is not told: {}", reset.stderr);
    }
    site.wait_ready(3)?;
    let apply = site.installer_ok(&["apply", "-f", "Clusterfile"])?;
    ensure!(apply.contains("they stay"), "{apply}");
    named("apply")?;
    let before = std::fs::read_to_string(site.clusterfile())?;
    site.installer_ok(&["join", "-f", "Clusterfile", "--nodes", &n2, "--update-clusterfile"])?;
    let after = std::fs::read_to_string(site.clusterfile())?;
    ensure!(after.contains(&n2), "it is not in the Clusterfile: {after}");
    let kept: Vec<&str> = after.lines().filter(|line| !line.contains(&n2)).collect();
    ensure!(kept == before.lines().collect::<Vec<_>>(), "{before} became {after}");
    Ok(())
}

fn system_pods_are_those_of_any_cluster(site: &Site) -> Result<()> {
    let pods = site.get(&["pods", "-n", "kube-system"])?;
    let pods = pods["items"].as_array().cloned().unwrap_or_default();
    let names: Vec<&str> = pods.iter().filter_map(|p| p["metadata"]["name"].as_str()).collect();
    for part in ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"] {
        ensure!(
            names.contains(&format!("{part}-m1").as_str()),
            "{part}-m1 is not among {names:?}"
        );
    }
    for (prefix, count) in [("network-", 2), ("proxy-", 2), ("dns-", 2)] {
        ensure!(
            names.iter().filter(|n| n.starts_with(prefix)).count() == count,
            "{count} {prefix} pods in {names:?}"
        );
    }
    for pod in &pods {
        ensure!(is_ready(pod), "{} is not ready", pod["metadata"]["name"]);
        for status in pod["status"]["containerStatuses"].as_array().into_iter().flatten() {
            ensure!(status["restartCount"] == 0, "{} was restarted", pod["metadata"]["name"]);
        }
    }
    Ok(())
}

#[test]
fn passwords_sudo_and_an_insecure_registry_serve_as_well() -> Result<()> {
    let site = Site::up(&["m1", "n1"])?;
    let spec = format!(
        "ssh: {{user: admin, passwd: {PASSWORD}}}\nregistry: {{localRegistry: {{domain: sea.hub, port: 5000, insecure: true}}}}"
    );
    site.write_clusterfile_with(&["m1"], &["n1"], &spec)?;
    site.apply()?;
    site.wait_ready(2)?;
    site.installer_ok(&["check", "-f", "Clusterfile"])?;
    let hosts = site.on("n1", "cat /etc/installer/containerd/certs.d/_default/hosts.toml")?;
    ensure!(hosts.contains("http://"), "the runtime speaks plain HTTP: {hosts}");
    for host in ["m1", "n1"] {
        let leaked = site.on(
            host,
            &format!("grep -rIls '{PASSWORD}' /etc /var/lib/installer /run 2>/dev/null || true"),
        )?;
        ensure!(leaked.trim().is_empty(), "the password is in {leaked} on {host}");
    }
    site.installer_ok(&["reset", "-f", "Clusterfile", "--yes"])?;
    eventually("the units to be gone", || {
        let units = site.on("m1", "systemctl list-unit-files --no-legend 'installer-*' || true")?;
        ensure!(units.trim().is_empty(), "{units}");
        Ok(())
    })
}
