//! What an operator does with a cluster besides making it, as docs/operations.md and docs/output.md say; that no secret is told on the
//! way; and that what others have on a host is none of our business.

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use e2e::{Site, eventually, is_ready};
use lab::{Output, PASSWORD, diff};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Command, Stdio},
};

fn ok(site: &Site, args: &[&str]) -> Result<String> {
    site.installer(args)?
        .ok()
        .with_context(|| format!("installer {args:?}"))
}

fn code(site: &Site, args: &[&str], code: i32) -> Result<Output> {
    let out = site.installer(args)?;
    ensure!(
        out.code == code,
        "installer {args:?} ended with {} and not {code}: {}{}",
        out.code,
        out.stdout,
        out.stderr
    );
    Ok(out)
}

#[test]
fn plans_status_drift_certificates_and_snapshots_serve_an_operator() -> Result<()> {
    let site = Site::up(&["m1", "n1"])?;
    let before = site.lab.snapshot(site.host("m1"))?;
    site.write_clusterfile(&["m1"], &["n1"], "")?;

    // A plan is applied as it is, or not at all.
    code(&site, &["plan", "--out", "stale.json"], 2)?;
    site.on("n1", "hostname elsewhere")?;
    let moved = code(&site, &["apply", "--plan", "stale.json", "--yes"], 3)?;
    ensure!(moved.stderr.contains("elsewhere"), "{}", moved.stderr);
    site.on("n1", "hostname n1")?;
    let untouched = diff(&before, &site.lab.snapshot(site.host("m1"))?);
    ensure!(untouched.is_empty(), "{untouched:#?}");
    code(&site, &["plan", "--out", "plan.json"], 2)?;
    ok(
        &site,
        &["apply", "--plan", "plan.json", "--yes", "--report", "report.html"],
    )?;
    let report = fs::read_to_string(site.file("report.html"))?;
    ensure!(
        report.contains("<svg") || report.contains("<table"),
        "the report shows nothing"
    );
    for host in ["m1", "n1"] {
        ensure!(report.contains(host), "{host} is not in the report");
    }
    let kubeconfig = ok(&site, &["kubeconfig"])?;
    fs::write(site.file("kubeconfig"), kubeconfig)?;
    code(&site, &["plan"], 0)?;

    let status: Value = serde_json::from_str(&ok(&site, &["status", "-o", "json"])?)?;
    ensure!(status["hosts"].as_array().map(Vec::len) == Some(2), "{status}");

    // What somebody changed is told and mended.
    code(&site, &["drift"], 0)?;
    site.on(
        "n1",
        "systemctl stop installer-lb && rm /etc/installer/containerd/certs.d/_default/hosts.toml",
    )?;
    site.kubectl_ok(&["scale", "deployment/dns", "-n", "kube-system", "--replicas=1"])?;
    let drift = code(&site, &["drift"], 2)?;
    for part in ["installer-lb", "hosts.toml", "dns"] {
        ensure!(drift.stdout.contains(part), "{part} is not told: {}", drift.stdout);
    }
    ok(&site, &["apply", "--yes"])?;
    code(&site, &["drift"], 0)?;

    let certificates = ok(&site, &["cert", "check"])?;
    ensure!(certificates.contains("apiserver"), "{certificates}");
    code(&site, &["cert", "check", "--days", "4000"], 4)?;

    // What is there is kept by a snapshot, and what came after it is not.
    site.kubectl_ok(&["create", "configmap", "kept"])?;
    ok(&site, &["etcd", "snapshot", "--out", "backup.db"])?;
    site.kubectl_ok(&["create", "configmap", "later"])?;
    ok(&site, &["etcd", "restore", "backup.db", "--yes"])?;
    site.kubectl_ok(&["get", "configmap", "kept"])?;
    ensure!(
        site.kubectl(&["get", "configmap", "later"])?.code != 0,
        "the restore kept what came later"
    );

    // The Clusterfile of a running cluster is the one it was made of.
    let key = site.lab.key().display().to_string();
    let made = ok(&site, &["gen", "--master", &site.ip("m1"), "--pk", &key])?;
    ensure!(
        made.contains(&site.ip("n1")) && made.contains("local/native:dev"),
        "{made}"
    );

    ok(&site, &["support-bundle", "-o", "bundle.tar.gz"])?;
    let listed = lab::output(Command::new("tar").arg("tzf").arg(site.file("bundle.tar.gz")))?.ok()?;
    for part in [site.ip("m1").as_str(), site.ip("n1").as_str(), "nodes"] {
        ensure!(listed.contains(part), "{part} is not in the bundle: {listed}");
    }
    ok(&site, &["reset", "--yes"])?;
    let left = diff(&before, &site.lab.snapshot(site.host("m1"))?);
    ensure!(left.is_empty(), "reset left: {left:#?}");
    Ok(())
}

/// Where a file of ours may hold a secret in a form that can be read: runtimes want it so, and root alone may read it.
const ALLOWED: &str = "/etc/installer/containerd/certs.d";

#[test]
fn no_secret_is_told_anywhere() -> Result<()> {
    let site = Site::up(&["m1", "n1"])?;
    let registry = "marked-b7c1-registry";
    fs::write(site.file("registry-password"), registry)?;
    fs::write(site.file("login-password"), PASSWORD)?;
    let spec = "ssh: {user: admin, passwdFile: login-password}\nenv: [APP_TOKEN=marked-9f02-token]\nregistry: {localRegistry: {username: ops, passwordFile: registry-password}}";
    site.write_clusterfile_with(&["m1"], &["n1"], spec)?;
    let base64 = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    let secrets: Vec<String> = [PASSWORD, registry, "marked-9f02-token"]
        .iter()
        .flat_map(|secret| [(*secret).to_owned(), base64(secret)])
        .chain([base64(&format!("ops:{registry}"))])
        .collect();
    let found_in = |text: &str| secrets.iter().find(|secret| text.contains(secret.as_str())).cloned();

    code(&site, &["plan", "--diff", "--out", "plan.json"], 2)?;
    let mut apply = site.installer_command()?;
    let out = fs::File::create(site.file("events.json"))?;
    let mut child = apply
        .args([
            "apply",
            "--yes",
            "-vvv",
            "-o",
            "json",
            "--report",
            "report.html",
            "--log-file",
            "log",
        ])
        .stdout(out.try_clone()?)
        .stderr(out)
        .stdin(Stdio::null())
        .spawn()?;
    // Command lines are for everybody to see, here and there.
    let mut seen = String::new();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        for host in ["m1", "n1"] {
            seen.push_str(&site.on(host, "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '; true")?);
        }
        let own =
            lab::output(Command::new("sh").args(["-c", "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '; true"]))?;
        seen.push_str(&own.stdout);
    };
    let events = fs::read_to_string(site.file("events.json"))?;
    ensure!(status.success(), "{events}");
    ensure!(found_in(&seen).is_none(), "{:?} is in a command line", found_in(&seen));
    ok(&site, &["support-bundle", "-o", "bundle.tar.gz"])?;
    let bundle = lab::output(Command::new("tar").arg("xzOf").arg(site.file("bundle.tar.gz")))?.ok()?;
    ensure!(found_in(&bundle).is_none(), "{:?} is in the bundle", found_in(&bundle));
    for file in ["plan.json", "events.json", "report.html", "log"] {
        let text = fs::read_to_string(site.file(file)).with_context(|| file.to_owned())?;
        ensure!(found_in(&text).is_none(), "{:?} is in {file}", found_in(&text));
    }
    fs::write(site.file("kubeconfig"), ok(&site, &["kubeconfig"])?)?;
    for kinds in [
        "secrets,configmaps",
        "pods,events,nodes",
        "deployments,daemonsets,leases",
    ] {
        let objects = site.kubectl_ok(&["get", kinds, "-A", "-o", "yaml"])?;
        ensure!(found_in(&objects).is_none(), "{:?} is in {kinds}", found_in(&objects));
    }
    let pattern = secrets.join("\n");
    fs::write(site.file("patterns"), pattern)?;
    for host in ["m1", "n1"] {
        site.put(host, &site.file("patterns"), "/root/patterns")?;
        let search = format!(
            "grep -rIlsF -f /root/patterns /etc /var/lib/installer /var/log /run --exclude-dir=certs.d; journalctl --no-pager | grep -F -f /root/patterns; find {ALLOWED} -type f ! -perm 600 | xargs -r grep -lF -f /root/patterns; rm /root/patterns; true"
        );
        let found = site.on(host, &search)?;
        ensure!(found.trim().is_empty(), "a secret is on {host} in {found}");
    }
    let store = Command::new("grep")
        .args(["-rlsF", "-f"])
        .arg(site.file("patterns"))
        .arg(e2e::store())
        .output()?;
    ensure!(
        store.stdout.is_empty(),
        "a secret is in the store: {}",
        String::from_utf8_lossy(&store.stdout)
    );
    ok(&site, &["reset", "--yes"]).map(drop)
}

/// A program of Debian's from this machine.
fn debian(name: &str) -> Result<String> {
    let found = lab::output(Command::new("sh").args(["-c", &format!("command -v {name}")]))?;
    Ok(found
        .ok()
        .with_context(|| format!("{name} is not installed"))?
        .trim()
        .to_owned())
}

/// An archive with an image that is nothing but busybox.
fn busybox(dir: &Path) -> Result<()> {
    let script = "umoci init --layout made; umoci new --image made:x; umoci insert --image made:x /bin/busybox /bin/busybox; \
        umoci config --image made:x --config.entrypoint /bin/busybox; skopeo copy --quiet oci:made:x docker-archive:keep.tar:local.test/keep:1";
    let mut command = Command::new("sh");
    lab::output(command.args(["-ec", script]).current_dir(dir))?
        .ok()
        .map(drop)
}

/// While the cluster is there its host gets a program of its owner, and a pod makes a folder on it.
fn the_host_lives_on(site: &Site) -> Result<()> {
    site.on("n1", "cp /bin/true /usr/local/bin/mine")?;
    site.apply_manifest(
        "apiVersion: v1
kind: Pod
metadata: {name: shop}
spec:
  nodeName: n1
  terminationGracePeriodSeconds: 1
  containers:
  - {name: c, image: 'installer.internal/pause:v0.1.0', volumeMounts: [{name: data, mountPath: /data}]}
  volumes: [{name: data, hostPath: {path: /srv/shop/data, type: DirectoryOrCreate}}]
",
    )?;
    eventually("the pod to run", || {
        let pod = site.get(&["pod", "shop"])?;
        ensure!(is_ready(&pod), "{pod}");
        Ok(())
    })
}

#[test]
fn what_others_have_on_a_host_stays_as_it_is() -> Result<()> {
    let site = Site::up(&["m1", "n1"])?;
    // A container runtime of the user's own with a container that runs, a unit, a packet filter, a mount, a kernel setting, a file of settings.
    for name in ["containerd", "containerd-shim-runc-v2", "ctr", "runc"] {
        site.put("n1", Path::new(&debian(name)?), &format!("/usr/local/bin/{name}"))?;
    }
    busybox(&site.file(""))?;
    site.put("n1", &site.file("keep.tar"), "/srv/keep.tar")?;
    site.on(
        "n1",
        "set -e
        printf '[Service]\\nExecStart=/usr/local/bin/containerd\\nDelegate=yes\\nKillMode=process\\n[Install]\\nWantedBy=multi-user.target\\n' > /etc/systemd/system/containerd.service
        printf '[Service]\\nExecStart=/bin/sleep infinity\\n[Install]\\nWantedBy=multi-user.target\\n' > /etc/systemd/system/mine.service
        systemctl daemon-reload; systemctl enable --now --quiet containerd mine
        mkdir -p /mnt/mine /etc/docker && mount -t tmpfs mine /mnt/mine && echo text > /mnt/mine/file
        echo '{\"log-driver\": \"journald\"}' > /etc/docker/daemon.json
        echo 'net.ipv4.conf.all.log_martians = 1' > /etc/sysctl.d/10-mine.conf
        # Folders that the cluster uses as well.
        mkdir -p /var/lib/kubelet /var/lib/etcd /etc/kubernetes /var/log/pods
        for i in $(seq 100); do ctr version > /dev/null 2>&1 && break; sleep 0.1; done
        ctr image import --snapshotter native /srv/keep.tar > /dev/null
        # In a group that systemd knows of: others it tidies up itself when nobody needs their controller any more.
        ctr run --detach --runc-systemd-cgroup --cgroup system.slice:ctr:keep --snapshotter native local.test/keep:1 keep /bin/busybox sleep 100000",
    )?;
    let nft = site.file("mine.nft");
    fs::write(
        &nft,
        "table inet mine { chain input { type filter hook input priority 0; tcp dport 9 counter drop; }; }\n",
    )?;
    let load = |text: &str| -> Result<String> {
        let pid = site.lab.init_pid(site.host("n1")).context("n1 runs")?.to_string();
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &pid, "--net", "--", "nft"])
            .args(text.split(' '));
        lab::output(&mut command)?.ok()
    };
    load(&format!("-f {}", nft.display()))?;
    let pid = || {
        site.on(
            "n1",
            "ctr task list | awk '$1 == \"keep\" && $3 == \"RUNNING\" {print $2}'",
        )
    };
    let running = pid()?;
    ensure!(!running.trim().is_empty(), "the user's container does not run");
    let look = || -> Result<(String, String, String)> {
        Ok((
            pid()?,
            load("list table inet mine")?,
            site.on(
                "n1",
                "ctr image ls -q; systemctl is-active containerd mine; cat /mnt/mine/file /etc/docker/daemon.json /etc/sysctl.d/10-mine.conf; systemctl show -p MainPID containerd mine",
            )?,
        ))
    };
    let (before, had) = (site.lab.snapshot(site.host("n1"))?, look()?);

    site.write_clusterfile(&["m1"], &["n1"], "")?;
    site.apply()?;
    ensure!(
        look()? == had,
        "apply changed what others have: {:?} was {had:?}",
        look()?
    );
    the_host_lives_on(&site)?;
    let reset = ok(&site, &["reset", "--yes"])?;
    for part in [
        "nothing is left",
        "/srv/shop added by a pod",
        "/usr/local/bin/mine added by somebody else",
    ] {
        ensure!(reset.contains(part), "{part:?} is not told: {reset}");
    }
    site.on("n1", "test -d /srv/shop/data && rm -r /srv/shop /usr/local/bin/mine")?;
    let keys = "grep -rls 'PRIVATE KEY' /var/lib/kubelet /etc/kubernetes || true";
    let keys = site.on("n1", keys)?;
    ensure!(keys.trim().is_empty(), "keys are left: {keys}");
    ensure!(
        look()? == had,
        "reset changed what others have: {:?} was {had:?}",
        look()?
    );
    let mut left = diff(&before, &site.lab.snapshot(site.host("n1"))?);
    // What a runtime keeps for itself it tidies up itself, whenever it likes.
    left.retain(|line| !line.contains(" /var/lib/containerd/io.containerd."));
    ensure!(left.is_empty(), "reset left: {left:#?}");
    Ok(())
}

#[test]
fn all_that_is_wrong_with_all_hosts_is_told_at_once_and_nothing_is_touched() -> Result<()> {
    let site = Site::up(&["m1", "n1", "n2"])?;
    let before = site.lab.snapshot(site.host("m1"))?;
    site.write_clusterfile(&["m1"], &["n1", "n2"], "dataRoot: /data/installer")?;
    for host in ["m1", "n1", "n2"] {
        site.on(host, "mkdir /data")?;
    }
    site.on("n1", "mount -t tmpfs -o size=64m tmpfs /data")?;
    site.on("n2", "mkdir -p /etc/kubernetes && touch /etc/kubernetes/kubelet.conf")?;
    site.on(
        "m1",
        "systemd-run --quiet --unit=squatter systemd-socket-activate --listen=6443 /bin/true",
    )?;
    e2e::eventually("the port to be taken", || {
        site.on("m1", "ss -Hltn sport = :6443 | grep -q .")
    })?;
    let out = code(&site, &["apply", "--yes"], 3)?;
    let said = format!("{}{}", out.stdout, out.stderr);
    for part in [
        "MiB free below /data",
        "/etc/kubernetes",
        "port 6443",
        "squatter",
        "n1",
        "n2",
        "m1",
    ] {
        ensure!(said.contains(part), "{part:?} is not told: {said}");
    }
    // One that cannot be reached is named too, and the others are left alone.
    site.lab.kill(site.host("n1"))?;
    let out = code(&site, &["apply", "--yes"], 3)?;
    let said = format!("{}{}", out.stdout, out.stderr);
    for part in [site.ip("n1").as_str(), "[reach]", "port 6443", "/etc/kubernetes"] {
        ensure!(said.contains(part), "{part:?} is not told: {said}");
    }
    site.on("m1", "systemctl stop squatter; rmdir /data")?;
    let touched = diff(&before, &site.lab.snapshot(site.host("m1"))?);
    ensure!(touched.is_empty(), "m1 was touched: {touched:#?}");
    Ok(())
}

#[test]
fn four_hosts_with_a_fault_each_are_told_together_with_what_to_do_and_none_is_touched() -> Result<()> {
    let site = Site::up(&["m1", "n1", "n2", "n3"])?;
    site.write_clusterfile(&["m1"], &["n1", "n2", "n3"], "dataRoot: /data/installer")?;
    // Lab hosts have one kernel and so one clock; programs of the debug profile believe this file.
    site.on("m1", "echo 600000 > /run/lock/installer-fault.clock")?;
    site.on("n1", "mkdir /data && mount -t tmpfs -o size=64m tmpfs /data")?;
    let closed = site.file("closed.nft");
    let rule = "table inet closed { chain input { type filter hook input priority 0; tcp dport 10250 drop; }; }\n";
    fs::write(&closed, rule)?;
    let pid = site.lab.init_pid(site.host("n2")).context("n2 runs")?.to_string();
    let mut nft = Command::new("nsenter");
    nft.args(["--target", &pid, "--net", "--", "nft", "-f"]).arg(&closed);
    lab::output(&mut nft)?.ok()?;
    site.lab.kill(site.host("n3"))?;

    let snapshots = || -> Result<Vec<_>> {
        let hosts = ["m1", "n1", "n2"].into_iter();
        hosts.map(|host| site.lab.snapshot(site.host(host))).collect()
    };
    let before = snapshots()?;
    let out = code(&site, &["apply", "--yes", "-o", "json"], 3)?;
    let mut found = BTreeMap::new();
    for line in out.stdout.lines() {
        let event: Value = serde_json::from_str(line)?;
        let finding = &event["finding"];
        if finding["severity"] == "error" {
            ensure!(
                finding["remedy"].as_str().is_some_and(|text| !text.is_empty()),
                "{line}"
            );
            let text = |field: &str| finding[field].as_str().unwrap_or_default().to_owned();
            found.insert((text("host"), text("check")), text("cause"));
        }
    }
    let expected = [
        ("m1", "clock", "600"),
        ("n1", "disk", "MiB free below /data"),
        ("n2", "firewall", "10250"),
        ("n3", "reach", ""),
    ];
    for (host, check, part) in expected {
        let cause = found.get(&(site.ip(host), check.to_owned()));
        ensure!(
            cause.is_some_and(|cause| cause.contains(part)),
            "{host} {check}: {found:?}"
        );
    }
    ensure!(
        found.len() == expected.len(),
        "more is wrong than was made wrong: {found:?}"
    );
    for (before, after) in before.iter().zip(snapshots()?) {
        let touched = diff(before, &after);
        ensure!(touched.is_empty(), "a host was touched: {touched:#?}");
    }
    Ok(())
}
