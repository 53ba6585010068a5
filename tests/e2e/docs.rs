//! The pages about a cluster's life, run as they stand by a reader who follows them one after the other: docs/first-cluster.md,
//! docs/security.md, docs/growing.md, docs/recovering.md. Only the addresses are others.

use anyhow::{Context, Result, ensure};
use e2e::{Example, Site, eventually, examples};
use lab::PASSWORD;
use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::TcpStream,
    os::unix::fs::symlink,
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// A reader at a machine whose home is a folder of its own.
struct Reader {
    site: Site,
    home: PathBuf,
    /// How long the examples took.
    took: Duration,
}

impl Reader {
    fn new() -> Result<Self> {
        let site = Site::up(&["m1", "n1", "n2"])?;
        let home = site.file("home");
        fs::create_dir_all(home.join(".ssh"))?;
        fs::copy(site.lab.key(), home.join(".ssh/id_ed25519"))?;
        // Only the programs a reader has: ours, and kubectl.
        let programs = home.join("programs");
        fs::create_dir(&programs)?;
        symlink(e2e::program("installer")?, programs.join("installer"))?;
        symlink(e2e::repository().join("target/tools/kubectl"), programs.join("kubectl"))?;
        let variables = format!(
            "export HOME='{0}' PATH=\"{0}/programs:$PATH\" INSTALLER_STORE='{1}'\nunset XDG_STATE_HOME XDG_CONFIG_HOME XDG_DATA_HOME SSH_AUTH_SOCK\n",
            home.display(),
            e2e::store().display()
        );
        fs::write(home.join("variables"), variables)?;
        let took = Duration::ZERO;
        Ok(Self { site, home, took })
    }

    /// A page's examples, with the addresses of the lab.
    fn page(&self, name: &str) -> Result<Vec<Example>> {
        let text = fs::read_to_string(e2e::repository().join("docs").join(name))?;
        let ip = self.site.ip("m1");
        let (network, _) = ip.rsplit_once('.').context("an address has a last number")?;
        let found = examples(&text.replace("192.0.2.", &format!("{network}.")));
        ensure!(found.len() >= 5, "{name} has only {} examples", found.len());
        Ok(found)
    }

    /// Runs a script in the reader's shell, which keeps its variables; what it showed.
    fn run(&self, script: &str) -> Result<String> {
        let script = format!(
            ". \"{0}\"\nset -euxo pipefail\n{script}\nset +x\nexport -p > \"{0}\"\n",
            self.home.join("variables").display()
        );
        let mut command = Command::new("bash");
        lab::output(command.args(["-c", &script]).current_dir(&self.home))?.ok()
    }

    /// Runs all examples of a page; `before` does what a reader cannot, below a heading.
    fn follow(&mut self, page: &str, before: fn(&Self, &str) -> Result<()>) -> Result<()> {
        let mut last = String::new();
        for example in self.page(page)? {
            let place = format!("{page}: {}", example.heading);
            if example.heading != last {
                before(self, &example.heading).context(place.clone())?;
            }
            let start = Instant::now();
            self.run(&example.script).context(place.clone())?;
            println!("{:>6.1} s  {place}", start.elapsed().as_secs_f64());
            self.took += start.elapsed();
            last = example.heading;
        }
        Ok(())
    }
}

fn nothing(_: &Reader, _: &str) -> Result<()> {
    Ok(())
}

/// Lab hosts share the machine's disk: how full that is shall not decide a test.
fn roomy(reader: &Reader, heading: &str) -> Result<()> {
    if heading != "Plan and apply" {
        return Ok(());
    }
    let more = "---\napiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nevictionHard: {memory.available: 100Mi, nodefs.available: 1%, imagefs.available: 1%}\n";
    let path = reader.home.join("Clusterfile");
    let text = fs::read_to_string(&path)?;
    fs::write(path, format!("{text}{more}"))?;
    Ok(())
}

/// The host dies, and comes back as it was.
fn dies(reader: &Reader, heading: &str) -> Result<()> {
    let host = reader.site.host("n2");
    match heading {
        "A host that is gone for good" => reader.site.lab.kill(host),
        "A host that comes back" => {
            reader.site.lab.start(host)?;
            eventually("the host to answer again", || {
                Ok(TcpStream::connect_timeout(&(host.ip, 22).into(), Duration::from_secs(1)).map(drop)?)
            })
        }
        _ => Ok(()),
    }
}

/// An apply that lets a host join is killed on its way.
fn killed(reader: &Reader, heading: &str) -> Result<()> {
    if heading != "Run it again" {
        return Ok(());
    }
    reader.run(&format!("installer reset --nodes {} --yes", reader.site.ip("n2")))?;
    let variables = reader.home.join("variables").display().to_string();
    let mut apply = Command::new("bash")
        .args(["-c", &format!(". '{variables}'; exec installer apply --yes -o json")])
        .current_dir(&reader.home)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let events = BufReader::new(apply.stdout.take().context("a pipe")?);
    let mut reached = false;
    for line in events.lines() {
        let line = line?;
        if line.contains("\"phaseStarted\"") && line.contains("\"runtime\"") {
            reached = true;
            break;
        }
    }
    apply.kill()?;
    apply.wait()?;
    ensure!(reached, "the apply did not come to the runtime of the host that joins");
    Ok(())
}

#[test]
fn a_reader_who_follows_the_pages_gets_what_they_say() -> Result<()> {
    let mut reader = Reader::new()?;
    reader.follow("first-cluster.md", roomy)?;

    // The way in by password, which that page shows as a file of its own.
    fs::write(reader.home.join("login-password"), PASSWORD)?;
    let text = fs::read_to_string(reader.home.join("Clusterfile"))?;
    let by_key = "ssh: {user: root, pk: ~/.ssh/id_ed25519}";
    ensure!(text.contains(by_key), "{text}");
    let by_password = text.replace(by_key, "ssh: {user: admin, passwdFile: login-password}");
    fs::write(reader.home.join("by-password.yaml"), by_password)?;
    let roots = reader.run("installer exec -f by-password.yaml -- id -u")?;
    ensure!(roots.lines().filter(|line| line.ends_with('0')).count() == 2, "{roots}");

    reader.follow("security.md", nothing)?;
    reader.follow("growing.md", dies)?;
    reader.follow("recovering.md", killed)?;
    println!("{:>6.1} s  in all", reader.took.as_secs_f64());
    Ok(())
}

#[test]
fn examples_are_found_below_their_headings() {
    let page = "# A\n\n```sh\none\ntwo\n```\n\n```yaml\n# no heading\n```\n\n## B c\n\n```sh\nthree\n```\n```\n```sh\n";
    let found: Vec<(String, String)> = examples(page).into_iter().map(|e| (e.heading, e.script)).collect();
    let pair = |heading: &str, script: &str| (heading.to_owned(), script.to_owned());
    assert_eq!(found, [pair("A", "one\ntwo\n"), pair("B c", "three\n")]);
}
