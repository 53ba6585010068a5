//! What is pushed to one host, beside what a user would otherwise push files with: as fast as this machine can, and over a slow link.

use super::mb;
use anyhow::{Context, Result};
use lab::{Host, Lab};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Where rsync lies on a host that has none of its own.
const RSYNC: &str = "/var/lib/rsync";

impl super::Bench {
    /// The default image to one host.
    pub(crate) fn push(&self, lab: &Lab) -> Result<()> {
        let payload = self.path("image.tar");
        if !payload.exists() {
            super::timed(self.installer().args(["save", super::IMAGE, "-o"]).arg(&payload))?;
        }
        let bytes = fs::metadata(&payload)?.len();
        bring_rsync(lab, &lab.hosts[0])?;
        let limited = format!("{} Mbit/s", self.link);
        for (what, rate) in [("unlimited", None), (limited.as_str(), Some(self.link))] {
            println!("\n## {:.1} MB to one host, {what}", mb(bytes));
            self.limit(lab, rate)?;
            let ours = self.bring(lab, &lab.hosts[..1], &[])?;
            let ours = ours.bytes as f64 / ours.blobs.as_secs_f64();
            line("installer", ours, ours, rate);
            let rivals: [(&str, super::Copying); 3] = [("scp", scp), ("rsync", rsync), ("tar | ssh", tar_over_ssh)];
            for (name, how) in rivals {
                let took = self.copy(lab, &payload, &lab.hosts[..1], how)?;
                line(name, bytes as f64 / took.as_secs_f64(), ours, rate);
            }
        }
        self.limit(lab, None)?;
        Ok(fs::remove_dir_all(rsync_dir(lab, &lab.hosts[0]))?)
    }
}

/// `link` in megabits a second.
fn line(name: &str, rate: f64, ours: f64, link: Option<u64>) {
    print!("{name:<34} {:>7.1} MB/s   {:>5.2} × its rate", rate / 1e6, ours / rate);
    if let Some(link) = link {
        print!("   {:.3} of the link's", rate * 8.0 / (link as f64 * 1e6));
    }
    println!();
}

fn rsync_dir(lab: &Lab, host: &Host) -> PathBuf {
    lab.host_dir(host).join("varlib/rsync")
}

/// Hosts are bare: this machine's rsync, with its loader and libraries, goes where the product puts nothing.
fn bring_rsync(lab: &Lab, host: &Host) -> Result<()> {
    let dir = rsync_dir(lab, host);
    fs::create_dir_all(&dir)?;
    let listed = lab::output(Command::new("ldd").arg("/usr/bin/rsync"))?
        .ok()
        .context("ldd")?;
    let files = listed.split_whitespace().filter(|word| word.starts_with('/'));
    for file in files.chain(["/usr/bin/rsync"]) {
        let name = Path::new(file).file_name().context("a file has a name")?;
        let name = match name.to_string_lossy() {
            loader if loader.starts_with("ld-") => "loader".to_owned(),
            name => name.into_owned(),
        };
        fs::copy(file, dir.join(name))?;
    }
    Ok(())
}

fn ssh_options(lab: &Lab) -> Vec<String> {
    let known = format!("UserKnownHostsFile={}", lab.known_hosts().display());
    ["-q", "-i", &lab.key().display().to_string(), "-o", &known]
        .map(str::to_owned)
        .to_vec()
}

pub(crate) fn scp(lab: &Lab, payload: &Path, host: &Host) -> Command {
    let mut command = Command::new("scp");
    command
        .args(ssh_options(lab))
        .arg(payload)
        .arg(format!("root@{}:/var/lib/payload", host.ip));
    command
}

fn rsync(lab: &Lab, payload: &Path, host: &Host) -> Command {
    let mut command = Command::new("rsync");
    command
        .args(["--whole-file", "-e", &format!("ssh {}", ssh_options(lab).join(" "))])
        .arg(format!(
            "--rsync-path={RSYNC}/loader --library-path {RSYNC} {RSYNC}/rsync"
        ))
        .arg(payload)
        .arg(format!("root@{}:/var/lib/payload", host.ip));
    command
}

fn tar_over_ssh(lab: &Lab, payload: &Path, host: &Host) -> Command {
    let mut command = Command::new("sh");
    let script = "dir=$1 file=$2 to=$3; shift 3; tar -C \"$dir\" -c \"$file\" | ssh \"$@\" \"$to\" tar -x -C /var/lib";
    let file = payload.file_name().unwrap_or_default();
    command
        .args(["-c", script, "sh"])
        .arg(payload.parent().unwrap_or(Path::new(".")))
        .arg(file);
    command.arg(format!("root@{}", host.ip)).args(ssh_options(lab));
    command
}
