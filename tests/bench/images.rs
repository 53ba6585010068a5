//! An image of 2 GB in generated layers: built, built again, saved and loaded, beside what a user would otherwise run over the same files.

use crate::{mb, noise};
use anyhow::{Context, Result, ensure};
use std::{
    fs::{self, File},
    io::{BufWriter, Write as _},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

const LAYERS: usize = 8;
/// Files of a layer, and the size of each in bytes: half of them text, half of them noise, as programs are something between.
const FILES: usize = 32;
const FILE_BYTES: usize = 8 << 20;
const BYTES: u64 = (LAYERS * FILES * FILE_BYTES) as u64;

/// What a command took.
#[derive(Debug, Clone, Copy)]
struct Cost {
    took: Duration,
    /// Peak of resident memory in MB, its children's added.
    peak: f64,
}

/// The program, its store, and a folder for everything else.
pub struct Images<'b> {
    /// `installer`.
    pub installer: &'b Path,
    /// Where things are made.
    pub dir: &'b Path,
}

impl Images<'_> {
    /// Makes the layers, and measures.
    ///
    /// # Errors
    /// When zstd, tar or buildah is not installed, or something fails.
    pub fn compare(&self) -> Result<()> {
        let context = self.dir.join("layers");
        generate(&context)?;
        let build = self.build(&context)?;
        let tar = self.shell("tar -C \"$1\" -c . | zstd -q -T2 -3 >\"$2/rival.tar.zst\"", &context)?;
        line("build", build, "tar | zstd -T2 -3", tar);
        fs::remove_file(self.dir.join("rival.tar.zst"))?;
        let buildah = self.shell(BUILDAH, &context)?;
        line("build", build, "buildah build + push", buildah);
        self.shell("rm -rf \"$2/buildah\"", &context)?;
        let again = self.build(&context)?;
        println!(
            "{:<34} {:>7.2} s   {:>5.0} MB peak",
            "the same build again",
            again.took.as_secs_f64(),
            again.peak
        );

        let archive = self.dir.join("layers.tar");
        let save = cost(self.command(&["save", "local/layers:1", "-o"]).arg(&archive))?;
        let cat = self.shell("cat \"$2\"/store/blobs/sha256/* >\"$2/copy\"", &context)?;
        line("save", save, "cat", cat);
        let mut load = self.command(&["load", "-i"]);
        load.env("INSTALLER_STORE", self.dir.join("loaded"));
        let load = cost(load.arg(&archive))?;
        let cat = self.shell("cat \"$2/layers.tar\" >\"$2/copy\"; sync \"$2/copy\"", &context)?;
        line("load", load, "cat and sync", cat);
        for file in ["copy", "layers.tar"] {
            fs::remove_file(self.dir.join(file))?;
        }
        for folder in ["layers", "loaded", "store"] {
            fs::remove_dir_all(self.dir.join(folder))?;
        }
        Ok(())
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(self.installer);
        command.env("INSTALLER_STORE", self.dir.join("store")).args(args);
        command
    }

    fn build(&self, context: &Path) -> Result<Cost> {
        let mut build = self.command(&["build", "-t", "local/layers:1", "-f"]);
        cost(build.arg(context.join("Kubefile")).arg(context))
    }

    /// `$1` is the context, `$2` the folder.
    fn shell(&self, script: &str, context: &Path) -> Result<Cost> {
        let mut command = Command::new("sh");
        cost(command.args(["-ec", script, "sh"]).arg(context).arg(self.dir))
    }
}

/// Builds the same layers, and writes them out compressed as ours are.
const BUILDAH: &str = "
b=\"$2/buildah\"; mkdir -p \"$b\"
run() { buildah --root \"$b/root\" --runroot \"$b/run\" --storage-driver overlay \"$@\"; }
run build -q --layers -f \"$1/Kubefile\" -t layers \"$1\" >/dev/null
run push -q --compression-format zstd --compression-level 3 layers \"oci:$b/out:layers\"";

fn generate(context: &Path) -> Result<()> {
    let mut recipe = String::from("FROM scratch\n");
    let mut word = 1_u64;
    for layer in 0..LAYERS {
        let folder = context.join(format!("layer{layer}"));
        fs::create_dir_all(&folder)?;
        for file in 0..FILES {
            let to = folder.join(format!("{file:02}"));
            if file % 2 == 0 {
                text(&to, &mut word)?;
            } else {
                fs::write(&to, noise(FILE_BYTES, (layer * FILES + file) as u64))?;
            }
        }
        recipe.push_str(&format!("COPY layer{layer} /data/layer{layer}/\n"));
    }
    Ok(fs::write(context.join("Kubefile"), recipe)?)
}

/// Words that come again, as in logs and sources.
fn text(to: &Path, word: &mut u64) -> Result<()> {
    let mut file = BufWriter::new(File::create(to)?);
    let mut written = 0;
    while written < FILE_BYTES {
        *word = word
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let line = format!("{:x} {:x}\n", *word >> 40, *word >> 52);
        file.write_all(line.as_bytes())?;
        written += line.len();
    }
    Ok(file.flush()?)
}

/// Runs a command, and watches the memory of it and of its children.
fn cost(command: &mut Command) -> Result<Cost> {
    let shown = format!("{command:?}");
    let start = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context(shown.clone())?;
    let mut peak: f64 = 0.0;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        peak = peak.max(resident(child.id()));
        std::thread::sleep(Duration::from_millis(10));
    };
    let took = start.elapsed();
    let mut complaint = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        std::io::Read::read_to_string(&mut stderr, &mut complaint)?;
    }
    ensure!(status.success(), "{shown}: {status}\n{complaint}");
    Ok(Cost { took, peak })
}

/// Peaks of a process and of its children, in MB; those that ended have none.
fn resident(process: u32) -> f64 {
    let own = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = own.lines().find(|line| line.starts_with("VmHWM:")).unwrap_or_default();
    let kib: f64 = line
        .split_whitespace()
        .nth(1)
        .and_then(|n| n.parse().ok())
        .unwrap_or(0.0);
    let tasks = fs::read_dir(format!("/proc/{process}/task"))
        .into_iter()
        .flatten()
        .flatten();
    let children = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let below: f64 = children
        .flat_map(|list| {
            list.split_whitespace()
                .filter_map(|id| id.parse().ok())
                .map(resident)
                .collect::<Vec<_>>()
        })
        .sum();
    kib * 1024.0 / 1e6 + below
}

fn line(what: &str, ours: Cost, name: &str, rival: Cost) {
    let rate = |cost: Cost| mb(BYTES) / cost.took.as_secs_f64();
    println!(
        "{what:<34} {:>7.0} MB/s {:>5.0} MB peak   {name} {:>7.0} MB/s {:>5.0} MB   {:>5.2} ×",
        rate(ours),
        ours.peak,
        rate(rival),
        rival.peak,
        rate(ours) / rate(rival)
    );
}
