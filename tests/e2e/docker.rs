//! A host on which Debian's Docker works already: ours comes and goes, and Docker does not notice.

use anyhow::{Context, Result, ensure};
use e2e::{Site, eventually, repository};
use lab::diff;
use std::{fs, path::PathBuf, process::Command};

/// Docker and what it needs beyond a lab host's own packages.
const PACKAGES: [&str; 14] = [
    "docker.io",
    "containerd",
    "runc",
    "iptables",
    "tini",
    "netbase",
    "adduser",
    "libip4tc2",
    "libip6tc2",
    "libmnl0",
    "libnetfilter-conntrack3",
    "libnfnetlink0",
    "libnftnl11",
    "libxtables12",
];

/// An archive of the packages, fetched once.
fn packages() -> Result<PathBuf> {
    let archive = repository().join("target/lab/docker.tar");
    if archive.exists() {
        return Ok(archive);
    }
    let folder = tempfile::tempdir_in(repository().join("target"))?;
    let mut fetch = Command::new("apt-get");
    fetch
        .current_dir(folder.path())
        .args(["-qq", "-o", "APT::Sandbox::User=root", "download"]);
    lab::output(fetch.args(PACKAGES))?
        .ok()
        .context("cannot fetch Debian's docker.io")?;
    let partial = folder.path().join("all.tar");
    let script = "tar cf all.tar *.deb";
    lab::output(Command::new("sh").args(["-c", script]).current_dir(folder.path()))?.ok()?;
    fs::create_dir_all(repository().join("target/lab"))?;
    fs::rename(partial, &archive)?;
    Ok(archive)
}

/// Installs Docker as Debian does, with settings of its user's, and runs a web server with a port of the host.
fn install(site: &Site, host: &str) -> Result<()> {
    site.put(host, &packages()?, "/root/docker.tar")?;
    let busybox = lab::output(Command::new("sh").args(["-c", "command -v busybox"]))?.ok()?;
    site.put(host, busybox.trim().as_ref(), "/root/image/bin/busybox")?;
    let script = r#"set -e
        export DEBIAN_FRONTEND=noninteractive
        mkdir -p /root/debs /etc/docker
        tar xf /root/docker.tar -C /root/debs
        # The disks of lab hosts are overlays already. Groups that systemd does not know of it tidies up itself when nobody needs their controller.
        echo '{"storage-driver": "vfs", "log-driver": "json-file", "exec-opts": ["native.cgroupdriver=systemd"]}' > /etc/docker/daemon.json
        dpkg -i /root/debs/*.deb > /root/dpkg.log 2>&1 || { tail -20 /root/dpkg.log >&2; exit 1; }
        rm -r /root/debs /root/docker.tar
        mkdir /root/image/www && echo kept > /root/image/www/index.html
        tar c -C /root/image . | docker import - local/kept:1 > /dev/null
        docker run --detach --restart=always --name kept --publish 8081:80 local/kept:1 /bin/busybox httpd -f -p 80 -h /www > /dev/null"#;
    site.on(host, script)?;
    eventually("the container to answer", || {
        let said = site.http("m1", &site.ip(host), 8081)?;
        ensure!(said == "kept", "{said}");
        Ok(())
    })
}

/// All of Docker's that shall stay as it is: settings, units and their processes, the container and its process, packet filters.
fn look(site: &Site, host: &str) -> Result<Vec<String>> {
    let scripts = [
        "cat /etc/docker/daemon.json; stat -c %Y /etc/docker/daemon.json",
        "systemctl show -p MainPID -p ActiveState -p UnitFileState -p ActiveEnterTimestamp docker docker.socket containerd",
        "docker inspect -f '{{.State.Pid}} {{.State.StartedAt}} {{.RestartCount}} {{.NetworkSettings.IPAddress}}' kept",
        "iptables-save | grep -v '^#' | sed 's/\\[[0-9:]*\\]//'",
        "ip -4 -o address show docker0 | sed 's/ valid_lft.*//'",
        "docker images --no-trunc --quiet",
    ];
    scripts.iter().map(|script| site.on(host, script)).collect()
}

#[test]
fn a_docker_that_runs_already_goes_on_as_it_is() -> Result<()> {
    let site = Site::up(&["m1", "n1"])?;
    install(&site, "n1")?;
    site.write_clusterfile(&["m1"], &["n1"], "")?;
    // What Docker would drop of the cluster is told before, with the remedy that is then used.
    let plan = site.installer(&["plan", "-f", "Clusterfile"])?;
    ensure!(plan.code == 2, "{plan:?}");
    for rule in ["-s 100.64.0.0/16", "-d 100.64.0.0/16"] {
        let remedy = format!("iptables -I DOCKER-USER {rule} -j ACCEPT");
        ensure!(plan.stderr.contains(&remedy), "{remedy} is not told: {}", plan.stderr);
        site.on("n1", &remedy)?;
    }
    let (before, had) = (site.lab.snapshot(site.host("n1"))?, look(&site, "n1")?);
    site.apply()?;
    site.wait_ready(2)?;
    ensure!(
        look(&site, "n1")? == had,
        "apply changed Docker: {:#?} was {had:#?}",
        look(&site, "n1")?
    );
    ensure!(site.http("m1", &site.ip("n1"), 8081)? == "kept");
    site.installer_ok(&["reset", "-f", "Clusterfile", "--yes"])?;
    ensure!(
        look(&site, "n1")? == had,
        "reset changed Docker: {:#?} was {had:#?}",
        look(&site, "n1")?
    );
    ensure!(site.http("m1", &site.ip("n1"), 8081)? == "kept");
    let mut left = diff(&before, &site.lab.snapshot(site.host("n1"))?);
    // What they keep for themselves they tidy up themselves, whenever they like.
    left.retain(|line| !line.contains(" /var/lib/containerd/") && !line.contains(" /var/lib/docker/"));
    ensure!(left.is_empty(), "reset left: {left:#?}");
    Ok(())
}
