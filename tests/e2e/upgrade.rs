//! Another image for a cluster that is in use, as docs/operations.md says: host by host, and nobody who uses it notices.

use anyhow::{Context, Result, bail, ensure};
use e2e::{Site, eventually};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    fs,
    path::PathBuf,
    process::Stdio,
    sync::atomic::{AtomicBool, Ordering},
};

const HELD: &str = "installer.internal/held";
/// Only in the rootfs of the newer image. It lies among the libraries, so programs of the rootfs are restarted.
const NEWER: &str = "/opt/installer/lib/newer";

/// A cluster of the image of all tests, and a store that has a newer one as well.
fn array<'a>(of: &'a Value, name: &str) -> Result<&'a Vec<Value>> {
    of[name].as_array().with_context(|| format!("{name} of {of}"))
}

struct Upgrade {
    site: Site,
    store: PathBuf,
}

impl Upgrade {
    fn begin() -> Result<Self> {
        let site = Site::up(&["m1", "n1", "n2"])?;
        site.write_clusterfile(&["m1"], &["n1", "n2"], "image: local/e2e:dev")?;
        site.apply()?;
        site.wait_ready(3)?;
        let store = site.copy_store("store")?;
        fs::create_dir(site.file("newer"))?;
        fs::write(site.file("newer/newer"), "newer\n")?;
        fs::write(
            site.file("newer/Kubefile"),
            "FROM local/e2e:dev\nCOPY newer lib/newer\n",
        )?;
        let upgrade = Self { site, store };
        upgrade.ok(&["build", "-t", "local/newer:dev", "-f", "newer/Kubefile", "newer"])?;
        let wish = "image: local/newer:dev";
        upgrade.site.write_clusterfile(&["m1"], &["n1", "n2"], wish)?;
        upgrade.stage()?;
        Ok(upgrade)
    }

    /// What was staged needs not be sent later, and the cluster goes on as it was.
    fn stage(&self) -> Result<()> {
        self.ok(&["stage"])?;
        let status: Value = serde_json::from_str(&self.installer(&["status", "-o", "json"])?.ok()?)?;
        let plan: Value = serde_json::from_str(&self.installer(&["plan", "-o", "json"])?.stdout)?;
        for (host, planned) in array(&status, "hosts")?.iter().zip(array(&plan, "hosts")?) {
            ensure!(host["state"] == "whole" && host["image"] == "local/e2e:dev", "{host}");
            let changes = array(planned, "changes")?;
            ensure!(planned["bytes"] == 0 && !changes.is_empty(), "{planned}");
        }
        ensure!(self.newer()?.is_empty(), "something was done with it");
        Ok(())
    }

    fn installer(&self, args: &[&str]) -> Result<lab::Output> {
        lab::output(self.site.installer_with(&self.store)?.args(args))
    }

    fn ok(&self, args: &[&str]) -> Result<String> {
        let out = self.installer(args)?;
        let said = format!("{}{}", out.stdout, out.stderr);
        out.ok().with_context(|| format!("installer {args:?}"))?;
        Ok(said)
    }

    /// How many of the shop's pods must be there.
    fn budget(&self, least: u32) -> Result<()> {
        let patch = format!("{{\"spec\": {{\"minAvailable\": {least}}}}}");
        let patch = ["patch", "pdb", "web", "--type=merge", "-p", &patch];
        self.site.kubectl_ok(&patch)?;
        eventually("the budget to be judged anew", || {
            let budget = self.site.get(&["pdb", "web"])?;
            let (seen, wished) = (
                &budget["status"]["observedGeneration"],
                &budget["metadata"]["generation"],
            );
            ensure!(seen == wished && budget["status"]["currentHealthy"] == 4, "{budget}");
            Ok(())
        })
    }

    fn nodes(&self) -> Result<Vec<Value>> {
        let nodes = self.site.get(&["nodes"])?;
        Ok(nodes["items"].as_array().cloned().unwrap_or_default())
    }

    /// The names of the nodes of which something is so.
    fn those(&self, is: fn(&Value) -> bool) -> Result<BTreeSet<String>> {
        let nodes = self.nodes()?;
        let names = nodes.iter().filter(|node| is(node));
        Ok(names
            .filter_map(|node| node["metadata"]["name"].as_str().map(str::to_owned))
            .collect())
    }

    /// The hosts that have the newer rootfs.
    fn newer(&self) -> Result<Vec<&'static str>> {
        let mut newer = Vec::new();
        for host in ["m1", "n1", "n2"] {
            if self
                .site
                .on(host, &format!("test -e {NEWER} && echo yes || true"))?
                .trim()
                == "yes"
            {
                newer.push(host);
            }
        }
        Ok(newer)
    }

    /// Runs `work` while a user asks the shop all the time and an operator looks at the nodes; how often the shop answered.
    fn watched<T>(&self, shop: &str, work: impl FnOnce() -> Result<T>) -> Result<(T, usize)> {
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let user = scope.spawn(|| -> Result<usize> {
                let mut asked = 0;
                while !over.load(Ordering::SeqCst) {
                    let answer = self.site.http("m1", shop, 80);
                    answer.with_context(|| format!("request {asked} failed"))?;
                    asked += 1;
                }
                Ok(asked)
            });
            let operator = scope.spawn(|| -> Result<()> {
                while !over.load(Ordering::SeqCst) {
                    // While the control plane of the only master is replaced, it does not answer.
                    let held = self.those(is_held).unwrap_or_default();
                    ensure!(held.len() <= 1, "more than one node at a time: {held:?}");
                }
                Ok(())
            });
            let done = work();
            over.store(true, Ordering::SeqCst);
            let panicked = || anyhow::anyhow!("a thread of the test panicked");
            let asked = user.join().map_err(|_| panicked())??;
            operator.join().map_err(|_| panicked())??;
            Ok((done?, asked))
        })
    }
}

fn is_held(node: &Value) -> bool {
    node["metadata"]["annotations"].get(HELD).is_some()
}

fn is_cordoned(node: &Value) -> bool {
    node["spec"]["unschedulable"] == true
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn hosts_change_one_after_the_other_and_no_request_fails() -> Result<()> {
    let upgrade = Upgrade::begin()?;
    let site = &upgrade.site;
    site.apply_manifest(include_str!("manifests/shop.yaml"))?;
    site.rollout("deployment/web")?;
    let shop = site.get(&["service", "web"])?["spec"]["clusterIP"]
        .as_str()
        .context("an address")?
        .to_owned();
    eventually("the shop to open", || site.http("m1", &shop, 80))?;
    // What others have cordoned is theirs.
    site.kubectl_ok(&["cordon", "m1"])?;
    let plan = upgrade.installer(&["plan", "-f", "Clusterfile"])?;
    ensure!(plan.code == 2, "{plan:?}");
    let turns = "one after the other: m1 (drained), n1 (drained), n2 (drained)";
    ensure!(plan.stdout.contains(turns), "{}", plan.stdout);

    // A budget that allows nothing stops it before a node that it guards is changed. The DNS of m1 needs its grace to leave.
    upgrade.budget(4)?;
    let apply = ["apply", "-f", "Clusterfile", "--yes"];
    let stopped = upgrade.installer(&[&apply[..], &["--drain-timeout", "25"]].concat())?;
    let said = format!("{}{}", stopped.stdout, stopped.stderr);
    ensure!(stopped.code == 1, "{said}");
    for part in ["n1", "pod default/web-", "budget web", "--no-drain"] {
        ensure!(said.contains(part), "{part:?} is not told: {said}");
    }
    ensure!(upgrade.newer()? == ["m1"], "{:?} were changed", upgrade.newer()?);
    ensure!(
        upgrade.those(is_cordoned)? == set(&["m1"]),
        "a node stays cordoned in vain"
    );

    // It is killed while it holds a node.
    let mut child = site
        .installer_with(&upgrade.store)?
        .args(apply)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let held = eventually("a node to be held", || {
        let held = upgrade.those(is_held)?;
        if held.is_empty() {
            bail!("none is");
        }
        Ok(held)
    });
    child.kill()?;
    child.wait()?;
    ensure!(held? == set(&["n1"]), "it begins with n1");
    ensure!(upgrade.those(is_cordoned)? == set(&["m1", "n1"]), "n1 is not cordoned");

    upgrade.budget(3)?;
    let (said, asked) = upgrade.watched(&shop, || upgrade.ok(&apply))?;
    ensure!(said.contains("every probe passed"), "{said}");
    ensure!(asked > 20, "the shop was asked {asked} times only");
    println!("{asked} requests, none failed");
    ensure!(upgrade.newer()? == ["m1", "n1", "n2"], "{:?}", upgrade.newer()?);
    ensure!(upgrade.those(is_held)?.is_empty(), "a node is still held");
    ensure!(
        upgrade.those(is_cordoned)? == set(&["m1"]),
        "what others cordoned stays so"
    );
    let again = upgrade.ok(&apply)?;
    ensure!(again.contains("nothing to do"), "{again}");

    // What restarts nothing disturbs nobody: a label more.
    let text = fs::read_to_string(site.clusterfile())?;
    fs::write(
        site.clusterfile(),
        text.replace("roles: [node]", "roles: [node], labels: {shelf: a}"),
    )?;
    let plan = upgrade.installer(&["plan", "-f", "Clusterfile"])?;
    ensure!(plan.code == 2 && !plan.stdout.contains("one after"), "{}", plan.stdout);
    carried_alone(&upgrade)
}

/// A carried image that was built anew is no reason to touch a host beyond those that serve it.
fn carried_alone(upgrade: &Upgrade) -> Result<()> {
    let site = &upgrade.site;
    fs::create_dir(site.file("extra"))?;
    fs::write(
        site.file("extra/Containerfile"),
        "FROM scratch\nCOPY Containerfile ./\n",
    )?;
    fs::write(
        site.file("Kubefile.extra"),
        "FROM local/newer:dev\nIMAGE local.test/extra:1 FROM extra\n",
    )?;
    upgrade.ok(&["build", "-t", "local/extra:dev", "-f", "Kubefile.extra", "."])?;
    let text = fs::read_to_string(site.clusterfile())?;
    fs::write(site.clusterfile(), text.replace("local/newer:dev", "local/extra:dev"))?;
    let plan = upgrade.installer(&["plan", "-f", "Clusterfile", "-o", "json"])?;
    let plan: Value = serde_json::from_str(&plan.stdout)?;
    for host in array(&plan, "hosts")? {
        let changes = array(host, "changes")?;
        ensure!(array(host, "restarts")?.is_empty(), "something is restarted: {host}");
        ensure!(host["name"] == "m1" || changes.is_empty(), "a worker changes: {host}");
        let is_rootfs = |change: &Value| change.to_string().contains("rootfs");
        ensure!(!changes.iter().any(is_rootfs), "the rootfs changes: {host}");
    }
    Ok(())
}
