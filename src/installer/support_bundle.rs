//! `installer support-bundle`: one file with what helps to find a fault, from every host that answers.

use crate::{
    cluster_args::ClusterArgs,
    context::Context,
    failure::Exit,
    table::{Table, size},
};
use anyhow::Context as _;
use bootstrap::support::{self, File, Part};
use std::{
    io::Write,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};
use tokio::sync::mpsc;

/// Logs of earlier runs on this machine that are added, and bytes of each.
const LOGS: usize = 5;
const LOG: usize = 1 << 20;
/// Files on their way from hosts to the bundle.
const QUEUE: usize = 16;

/// Flags of `support-bundle`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  installer support-bundle                            installer-support-CLUSTER-TIME.tar.gz, here
  installer support-bundle -f prod.yaml -o prod.tar.gz

Inside: who answered, the Clusterfile without secrets; of each host the journals of our
units, kernel log, routes, nftables, containerd's state, facts, what the installer changed,
logs of the pods of kube-system; of the cluster nodes, pods and events. No Secrets and no
ConfigMaps. Passwords of the Clusterfile, private keys, tokens and what else looks like a
secret are taken out; still, look before you hand it on. At most 16 MiB a host.

Exit codes: 0 everybody answered, 1 somebody did not (the bundle is written all the same)")]
pub struct Args {
    /// Which cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// The bundle; one that is there is not overwritten
    #[arg(short, long, value_name = "FILE.tar.gz", value_hint = clap::ValueHint::FilePath)]
    pub out: Option<PathBuf>,
}

/// Collects and writes.
pub async fn run(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    let clusterfile = args.cluster.load(context)?;
    let name = &clusterfile.cluster.name;
    let options = args.cluster.options(context, "support-bundle", name, None);
    let now = jiff::Timestamp::now();
    let stem = format!("installer-support-{name}-{}", now.strftime("%Y%m%dT%H%M%SZ"));
    let path = args
        .out
        .clone()
        .unwrap_or_else(|| PathBuf::from(format!("{stem}.tar.gz")));
    let cannot = format!(
        "cannot write the bundle {}: choose a file that is not there yet, with -o",
        path.display()
    );
    let file = created(&path).context(cannot.clone())?;
    let (queue, files) = mpsc::channel(QUEUE);
    context.out.note(format!(
        "asking {}",
        oci::counted(clusterfile.cluster.hosts.len(), "host")
    ));
    let writing = tokio::task::spawn_blocking({
        let stem = stem.clone();
        move || Bundle::new(file, &stem, now.as_second()).filled(files)
    });
    let parts = support::collect(&clusterfile, &options, queue).await;
    let mut bundle = writing.await?.context(cannot.clone())?;
    for log in context.log.before().iter().take(LOGS) {
        let name = log.file_name().unwrap_or_default().to_string_lossy();
        // One that is gone by now belonged to a run that is forgotten.
        if let Ok(text) = std::fs::read_to_string(log) {
            let text = support::cut(&context.log.clean(&text), LOG);
            bundle
                .put(&format!("installer/logs/{name}"), &text)
                .context(cannot.clone())?;
        }
    }
    let summary = serde_json::json!({
        "cluster": name,
        "time": now.to_string(),
        "installer": env!("CARGO_PKG_VERSION"),
        "parts": parts,
    });
    let summary = serde_json::to_string_pretty(&summary)? + "\n";
    bundle
        .put("summary.json", &summary)
        .and_then(|()| bundle.end())
        .context(cannot)?;
    Ok(told(context, &path, &parts))
}

fn told(context: &Context, path: &Path, parts: &[Part]) -> Exit {
    let mut table = Table::new(["", "FROM", "FILES", "SIZE", ""]);
    for part in parts {
        let mark = match part.problem {
            None => console::style("✔").green(),
            Some(_) => console::style("✘").red(),
        };
        let problem = part
            .problem
            .as_deref()
            .and_then(|problem| problem.lines().next())
            .unwrap_or("");
        table.row([
            mark.to_string(),
            part.name.clone(),
            part.files.to_string(),
            size(part.bytes as u64),
            problem.to_owned(),
        ]);
    }
    context.out.note(table.to_string().trim_end());
    context.out.result(path.display().to_string());
    let all = parts.iter().all(|part| part.problem.is_none());
    if all { Exit::Done } else { Exit::Failed }
}

fn created(path: &Path) -> std::io::Result<std::fs::File> {
    std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

/// A packed archive, all of it in one folder.
struct Bundle<W: Write> {
    archive: tar::Builder<flate2::write::GzEncoder<W>>,
    folder: String,
    time: u64,
}

impl<W: Write> Bundle<W> {
    fn new(file: W, folder: &str, time: i64) -> Self {
        let packed = flate2::write::GzEncoder::new(file, flate2::Compression::default());
        Self {
            archive: tar::Builder::new(packed),
            folder: folder.to_owned(),
            time: u64::try_from(time).unwrap_or(0),
        }
    }

    /// Takes files until nobody sends any more.
    fn filled(mut self, mut files: mpsc::Receiver<File>) -> std::io::Result<Self> {
        while let Some(file) = files.blocking_recv() {
            self.put(&file.path, &file.text)?;
        }
        Ok(self)
    }

    fn put(&mut self, path: &str, text: &str) -> std::io::Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(self.time);
        let path = format!("{}/{path}", self.folder);
        self.archive.append_data(&mut header, path, text.as_bytes())
    }

    fn end(&mut self) -> std::io::Result<()> {
        self.archive.finish()?;
        let packed = self.archive.get_mut();
        packed.try_finish()?;
        packed.get_mut().flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{io::Read as _, process::Command};

    #[test]
    fn what_is_collected_is_what_tar_unpacks() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("b.tar.gz");
        let (queue, files) = mpsc::channel(4);
        for index in 0..3 {
            let file = File {
                path: format!("hosts/10.0.0.{index}/{}.log", "long".repeat(40)),
                text: format!("text {index}\n"),
            };
            queue.try_send(file).unwrap();
        }
        drop(queue);
        let mut bundle = Bundle::new(created(&path).unwrap(), "demo", 7).filled(files).unwrap();
        bundle.put("summary.json", "{}").unwrap();
        bundle.end().unwrap();
        assert!(created(&path).is_err(), "a bundle is never overwritten");
        let unpacked = Command::new("tar")
            .arg("xzf")
            .arg(&path)
            .arg("-C")
            .arg(dir.path())
            .status()
            .unwrap();
        assert!(unpacked.success());
        let mut text = String::new();
        let inside = dir
            .path()
            .join(format!("demo/hosts/10.0.0.2/{}.log", "long".repeat(40)));
        std::fs::File::open(inside).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "text 2\n");
        assert!(dir.path().join("demo/summary.json").exists());
    }
}
