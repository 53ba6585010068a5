//! What an image brings to run, and where its images come from: charts, manifests, scripts and hooks; a registry with a login; a registry of somebody else.

use anyhow::{Context, Result, ensure};
use e2e::{Site, eventually, refused, repository};
use lab::{Output, diff};
use serde_json::Value;
use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

const LOGIN: &str = "ops";
const SECRET: &str = "marked-secret-of-the-registry";

/// Hooks that tell that they ran, in a file which the last of them checks and removes.
fn hooks() -> String {
    let hook = |name: &str, script: &str| {
        format!(
            "---\napiVersion: sealer.io/v2\nkind: Plugin\nmetadata: {{name: {name}}}\nspec: {{type: SHELL, action: {name}, data: '{script}'}}\n"
        )
    };
    let told = [
        "pre-install",
        "post-install",
        "pre-init-host",
        "post-init-host",
        "pre-join",
        "post-join",
        "pre-clean-host",
    ];
    let told = told.map(|action| hook(action, &format!("echo {action} $HostName >> /var/lib/hooks.log")));
    let last = hook(
        "post-clean-host",
        "grep -q pre-clean-host /var/lib/hooks.log && rm /var/lib/hooks.log",
    );
    told.concat() + &last
}

/// A site whose operator has built the image of `tests/e2e/shop`.
struct Shop {
    site: Site,
    store: PathBuf,
}

impl Shop {
    fn open(hosts: &[&str]) -> Result<Self> {
        let site = Site::up(hosts)?;
        let store = site.copy_store("store")?;
        fs::write(site.file("password"), SECRET)?;
        let fixtures = repository().join("tests/e2e");
        for (from, to) in [("shop", "shop"), ("image/web-v1", "shop/web")] {
            lab::output(
                Command::new("cp")
                    .arg("--recursive")
                    .arg(fixtures.join(from))
                    .arg(site.file(to)),
            )?
            .ok()?;
        }
        Ok(Self { site, store })
    }

    fn installer(&self, args: &[&str]) -> Result<Output> {
        lab::output(self.site.installer_with(&self.store)?.args(args))
    }

    fn ok(&self, args: &[&str]) -> Result<String> {
        let out = self.installer(args)?;
        let said = format!("{}{}", out.stdout, out.stderr);
        ensure!(!said.contains(SECRET), "installer {args:?} told the password: {said}");
        out.ok().with_context(|| format!("installer {args:?}"))?;
        Ok(said)
    }

    /// Builds the image anew, with another page in the container image of the same name.
    fn build(&self, page: &str) -> Result<()> {
        fs::write(self.site.file("shop/web/www/index.html"), format!("{page}\n"))?;
        let debian = format!("debian={}", repository().join("target/debian").display());
        let context = ["--build-context", &debian];
        let args = [
            "build",
            "-t",
            "local/shop:1",
            "-f",
            "shop/Kubefile",
            context[0],
            context[1],
            "shop",
        ];
        self.ok(&args).map(drop)
    }

    /// Writes the wish: with these nodes, this much of the chart, and these further fields of the cluster.
    fn wish(&self, nodes: &[&str], values: &str, spec: &str) -> Result<()> {
        let spec = format!("image: local/shop:1\n{spec}");
        self.site.write_clusterfile(&["m1"], nodes, &spec)?;
        let settings = format!(
            "---\napiVersion: sealer.io/v2\nkind: Application\nmetadata: {{name: settings}}\nspec:\n  configs:\n  - name: shop\n    namespace: market\n    files: [{{path: values.yaml, strategy: merge, data: '{values}'}}]\n"
        );
        let path = self.site.clusterfile();
        let text = fs::read_to_string(&path)?;
        Ok(fs::write(path, format!("{text}{settings}{}", hooks()))?)
    }

    fn apply(&self) -> Result<String> {
        let said = self.ok(&["apply", "-f", "Clusterfile", "--yes"])?;
        let kubeconfig = self.installer(&["kubeconfig", "-f", "Clusterfile"])?.ok()?;
        fs::write(self.site.file("kubeconfig"), kubeconfig)?;
        Ok(said)
    }

    fn nothing_to_do(&self) -> Result<()> {
        let said = self.apply()?;
        ensure!(said.contains("nothing to do"), "{said}");
        Ok(())
    }

    fn helm(&self, args: &[&str]) -> Result<String> {
        let mut helm = Command::new(repository().join("target/tools/helm"));
        helm.env("KUBECONFIG", self.site.file("kubeconfig"))
            .env("HOME", self.site.file(""))
            .args(["--namespace", "market"]);
        lab::output(helm.args(args))?.ok()
    }

    /// The revision of the release, and its state.
    fn release(&self) -> Result<(u64, String)> {
        let status: Value = serde_json::from_str(&self.helm(&["status", "shop", "-o", "json"])?)?;
        let state = status["info"]["status"].as_str().unwrap_or_default();
        Ok((status["version"].as_u64().unwrap_or_default(), state.to_owned()))
    }

    fn replicas(&self) -> Result<u64> {
        let deployment = self.site.get(&["deployment", "shop", "-n", "market"])?;
        Ok(deployment["status"]["readyReplicas"].as_u64().unwrap_or_default())
    }

    /// Applies, and is killed when a line of the events says so.
    fn killed_at(&self, text: &str) -> Result<()> {
        let mut apply = self.site.installer_with(&self.store)?;
        let mut child = apply
            .args(["apply", "-f", "Clusterfile", "--yes", "-o", "json"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let lines = BufReader::new(child.stdout.take().context("a pipe")?).lines();
        let mut seen = false;
        for line in lines {
            if line?.contains(text) {
                seen = true;
                break;
            }
        }
        child.kill()?;
        child.wait()?;
        ensure!(seen, "the apply ended before {text:?}");
        Ok(())
    }
}

const REGISTRY: &str = "registry: {localRegistry: {username: ops, passwordFile: password}}";

#[test]
fn charts_manifests_scripts_and_hooks_live_as_documented() -> Result<()> {
    let shop = Shop::open(&["m1", "n1", "n2"])?;
    let site = &shop.site;
    let before = [
        ("m1", site.lab.snapshot(site.host("m1"))?),
        ("n1", site.lab.snapshot(site.host("n1"))?),
    ];
    shop.build("first")?;

    // An image that is not carried: helm waits in vain, and the pod is named.
    shop.wish(&["n1"], "image: {tag: none}", REGISTRY)?;
    let said = shop.installer(&["apply", "-f", "Clusterfile", "--yes", "--launch-timeout", "20"])?;
    refused(
        &said,
        "a chart with an image that is not there",
        &["shop", "ImagePull", "market"],
    )?;
    shop.wish(&["n1"], "replicaCount: 1", REGISTRY)?;
    shop.apply()?;
    ensure!(shop.release()?.1 == "deployed", "{:?}", shop.release()?);
    let seeded = site.get(&["configmap", "seeded"])?;
    ensure!(
        seeded["data"]["by"] == "kubefile",
        "the script had another environment: {seeded}"
    );
    shop.nothing_to_do()?;
    let log = |host: &str| site.on(host, "cat /var/lib/hooks.log");
    let told = log("m1")?;
    for action in ["pre-install", "pre-init-host", "post-init-host", "post-install"] {
        ensure!(told.contains(&format!("{action} m1")), "{action} did not run: {told}");
    }

    a_login_is_needed(&shop)?;

    // A node joins: its hooks run there, those of the cluster on the master.
    shop.wish(&["n1", "n2"], "replicaCount: 2", REGISTRY)?;
    let (first, _) = shop.release()?;
    shop.killed_at("running application shop")?;
    shop.apply()?;
    let (second, state) = shop.release()?;
    ensure!(
        second > first && state == "deployed" && shop.replicas()? == 2,
        "revision {second} is {state}"
    );
    let joined = log("n2")?;
    ensure!(
        joined.contains("pre-init-host n2") && !joined.contains("install"),
        "{joined}"
    );
    let told = log("m1")?;
    ensure!(told.contains("pre-join m1") && told.contains("post-join m1"), "{told}");
    ensure!(told.matches("pre-install m1").count() <= 2, "{told}");

    // What the user rolls back stays rolled back, until the wish changes.
    shop.helm(&["rollback", "shop", &first.to_string(), "--wait"])?;
    shop.nothing_to_do()?;
    shop.wish(
        &["n1", "n2"],
        "{replicaCount: 2, settings: {greeting: welcome}}",
        REGISTRY,
    )?;
    shop.apply()?;
    let notes = shop.helm(&["get", "notes", "shop"])?;
    ensure!(notes.contains("welcome") && shop.replicas()? == 2, "{notes}");

    // Another image under the same name.
    shop.build("second")?;
    shop.apply()?;
    let page = eventually("the new page", || {
        let ip = site.get(&["service", "wall"])?["spec"]["clusterIP"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let page = site.http("n1", &ip, 80)?;
        ensure!(page == "second", "the page is {page}");
        Ok(page)
    })?;
    ensure!(page == "second", "{page}");
    shop.nothing_to_do()?;

    shop.ok(&["reset", "-f", "Clusterfile", "--yes"])?;
    for (host, before) in before {
        let left = diff(&before, &site.lab.snapshot(site.host(host))?);
        ensure!(left.is_empty(), "reset left on {host}: {left:#?}");
    }
    Ok(())
}

/// From the operator's machine: podman pulls and runs a carried image over TLS with the login, skopeo gets the digest that the archive has, and neither does without.
fn a_login_is_needed(shop: &Shop) -> Result<()> {
    let site = &shop.site;
    let registry = format!("{}:5000", site.ip("m1"));
    let image = format!("{registry}/example.internal/web:1");
    fs::create_dir_all(site.file("certs"))?;
    fs::write(
        site.file("certs/ca.crt"),
        site.on("m1", "cat /etc/kubernetes/pki/ca.crt")?,
    )?;
    let certificates = format!("--cert-dir={}", site.file("certs").display());
    let login = format!("--creds={LOGIN}:{SECRET}");

    let skopeo = |args: &[&str]| lab::output(Command::new("skopeo").args(args));
    let source = format!("docker://{image}");
    let refusal = skopeo(&["inspect", "--no-creds", &certificates, &source])?;
    refused(&refusal, "a pull without login", &["unauthorized"])?;
    let format = ["--format", "{{.Digest}}"];
    let served = skopeo(&["inspect", &certificates, &login, format[0], format[1], &source])?.ok()?;
    shop.ok(&["save", "local/shop:1", "-o", "shop.tar"])?;
    let archived = format!("oci-archive:{}:example.internal/web:1", site.file("shop.tar").display());
    let archived = skopeo(&["inspect", format[0], format[1], &archived])?.ok()?;
    ensure!(served == archived, "the registry has {served}, the archive {archived}");

    let podman = |args: &[&str]| {
        let folder = |name: &str| site.file(&format!("podman/{name}"));
        let mut command = Command::new("podman");
        for (flag, name) in [("--root", "root"), ("--runroot", "run"), ("--tmpdir", "tmp")] {
            command.arg(flag).arg(folder(name));
        }
        command.args([
            "--storage-driver=vfs",
            "--cgroup-manager=cgroupfs",
            "--events-backend=file",
        ]);
        lab::output(command.args(args))
    };
    podman(&["pull", "--quiet", &certificates, &login, &image])?.ok()?;
    // podman's own limits are more than a container or a small machine may have.
    let limits = ["--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024"];
    let run = [
        "run",
        "--rm",
        "--network=none",
        limits[0],
        limits[1],
        &image,
        "cat",
        "/www/index.html",
    ];
    let said = podman(&run)?.ok()?;
    ensure!(said.trim() == "first", "the container said {said}");
    Ok(())
}

/// A registry of Debian's on a host of its own, with TLS and a login.
fn registry_on(site: &Site, host: &str) -> Result<()> {
    let ip = site.ip(host);
    let found = lab::output(Command::new("sh").args(["-c", "command -v docker-registry"]))?.ok()?;
    site.put(host, Path::new(found.trim()), "/srv/docker-registry")?;
    let file = |name: &str| site.file(name).display().to_string();
    let certificate = lab::output(Command::new("openssl").args([
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=registry",
        "-addext",
        "basicConstraints=critical,CA:FALSE",
        "-addext",
        &format!("subjectAltName=IP:{ip}"),
        "-keyout",
        &file("registry.key"),
        "-out",
        &file("registry.crt"),
    ]))?;
    certificate.ok()?;
    let hash = bcrypt::hash(SECRET, 4)?;
    fs::write(site.file("htpasswd"), format!("{LOGIN}:{hash}\n"))?;
    fs::write(
        site.file("registry.yml"),
        "version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: /srv/data}}\nauth: {htpasswd: {realm: lab, path: /srv/htpasswd}}\nhttp: {addr: ':5443', tls: {certificate: /srv/registry.crt, key: /srv/registry.key}}\n",
    )?;
    for name in ["registry.key", "registry.crt", "htpasswd", "registry.yml"] {
        site.put(host, &site.file(name), &format!("/srv/{name}"))?;
    }
    site.on(
        host,
        "systemd-run --quiet --unit=registry /srv/docker-registry serve /srv/registry.yml",
    )?;
    eventually("the registry to listen", || {
        std::net::TcpStream::connect((ip.as_str(), 5443))
            .map(drop)
            .map_err(Into::into)
    })
}

#[test]
fn a_registry_of_somebody_else_serves_a_cluster() -> Result<()> {
    let shop = Shop::open(&["m1", "n1", "hub"])?;
    let site = &shop.site;
    registry_on(site, "hub")?;
    let before = site.lab.snapshot(site.host("m1"))?;
    let spec = |password: &str| {
        format!(
            "registry: {{externalRegistry: {{domain: {}, port: 5443, caFile: registry.crt, username: {LOGIN}, passwordFile: {password}}}}}",
            site.ip("hub")
        )
    };
    fs::write(site.file("wrong"), "not it")?;
    shop.build("first")?;
    shop.wish(&["n1"], "replicaCount: 1", &spec("wrong"))?;
    refused(
        &shop.installer(&["apply", "-f", "Clusterfile", "--yes"])?,
        "a wrong password",
        &["401"],
    )?;
    shop.wish(&["n1"], "replicaCount: 1", &spec("password"))?;
    shop.apply()?;
    ensure!(
        shop.release()?.1 == "deployed" && shop.replicas()? == 1,
        "{:?}",
        shop.release()?
    );
    let listening = site.on("m1", "ss -Hltn sport = :5000")?;
    ensure!(listening.trim().is_empty(), "a registry of our own runs: {listening}");
    shop.nothing_to_do()?;
    shop.ok(&["reset", "-f", "Clusterfile", "--yes"])?;
    let left = diff(&before, &site.lab.snapshot(site.host("m1"))?);
    ensure!(left.is_empty(), "reset left: {left:#?}");
    Ok(())
}
