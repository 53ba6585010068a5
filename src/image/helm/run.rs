//! Helm as a program: what it is given, how long it may take, and what it prints.

use std::ffi::OsStr;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::error::Error;

/// Helm renders in a fraction of a second.
const LONGEST: Duration = Duration::from_secs(120);
/// Nobody's chart renders to more, in bytes.
const LARGEST: u64 = 64 << 20;
/// Of what helm complains about, so many bytes are kept.
const COMPLAINT: u64 = 16 << 10;

/// A chart to be rendered.
#[derive(Debug)]
pub(super) struct Chart<'a> {
    /// The name in messages: the application and the chart.
    pub(super) shown: String,
    /// The release's name.
    pub(super) release: &'a str,
    /// Folder or packed chart on this machine.
    pub(super) path: PathBuf,
    /// Files of values on this machine, in the order in which they count.
    pub(super) values: Vec<PathBuf>,
}

/// A rendered template: its name in messages, and its documents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rendered {
    pub(crate) shown: String,
    pub(crate) text: String,
}

/// Renders a chart as it would be launched. `work` is a folder for helm's own files.
pub(super) fn render(helm: &Path, chart: &Chart<'_>, work: &Path) -> Result<Vec<Rendered>, Error> {
    let refused = |reason: String| Error::Chart {
        shown: chart.shown.clone(),
        reason,
    };
    let mut command = Command::new(helm);
    command
        .args(["template", chart.release])
        .arg(&chart.path)
        .args(["--namespace", "default", "--include-crds", "--skip-tests"])
        .args(
            chart
                .values
                .iter()
                .flat_map(|file| [OsStr::new("--values"), file.as_os_str()]),
        )
        .current_dir(work)
        .env_clear()
        .envs(
            [
                "HOME",
                "HELM_CACHE_HOME",
                "HELM_CONFIG_HOME",
                "HELM_DATA_HOME",
                "HELM_PLUGINS",
            ]
            .map(|name| (name, work)),
        )
        .env("KUBECONFIG", "/dev/null")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let (success, output, complaint) = run(command, helm)?;
    if !success {
        let complaint = String::from_utf8_lossy(&complaint).trim().to_string();
        let hint = match complaint.contains("missing in charts/") {
            true => {
                "\nthe build fetches nothing: put every subchart into the chart's charts/ folder (helm dependency build does)"
            }
            false => "",
        };
        return Err(refused(format!("helm can't render it: {complaint}{hint}")));
    }
    if output.len() as u64 > LARGEST {
        return Err(refused(format!("it renders to more than {LARGEST} bytes")));
    }
    let text = String::from_utf8(output).map_err(|_| refused("it renders to text that is not UTF-8".to_string()))?;
    Ok(split(&text, &chart.shown))
}

/// Runs to the end, or to the time limit: whether it succeeded, and what it printed to both sides.
fn run(mut command: Command, helm: &Path) -> Result<(bool, Vec<u8>, Vec<u8>), Error> {
    let cannot = |error| Error::io("cannot run", helm)(error);
    let mut child = command.spawn().map_err(cannot)?;
    let output = reader(child.stdout.take(), LARGEST + 1);
    let complaint = reader(child.stderr.take(), COMPLAINT);
    // Helm has ended, or soon will, once both ends are closed.
    let deadline = Instant::now() + LONGEST;
    let mut parts = Vec::new();
    for part in [output, complaint] {
        let left = deadline.saturating_duration_since(Instant::now());
        match part.recv_timeout(left) {
            Ok(bytes) => parts.push(bytes),
            Err(_) => {
                let _ = child.kill();
                let _ = child.wait();
                let why = format!("it did not end within {} seconds", LONGEST.as_secs());
                return Err(Error::path(helm.display().to_string(), why));
            }
        }
    }
    let status = child.wait().map_err(cannot)?;
    let complaint = parts.pop().unwrap_or_default();
    Ok((status.success(), parts.pop().unwrap_or_default(), complaint))
}

/// Reads one of a child's streams to its end in a thread of its own; beyond `limit` it is thrown away.
fn reader(stream: Option<impl Read + Send + 'static>, limit: u64) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut stream) = stream {
            // What was read until an error is what there is.
            let _ = stream.by_ref().take(limit).read_to_end(&mut bytes);
            let _ = std::io::copy(&mut stream, &mut std::io::sink());
        }
        let _ = sender.send(bytes);
    });
    receiver
}

/// Cuts helm's output where it says which template the next document came from.
fn split(output: &str, shown: &str) -> Vec<Rendered> {
    let mut rendered: Vec<Rendered> = Vec::new();
    let mut lines = output.lines().peekable();
    while let Some(line) = lines.next() {
        let source = lines
            .peek()
            .filter(|_| line == "---")
            .and_then(|next| next.strip_prefix("# Source: "));
        if let Some(source) = source {
            // Helm begins with the chart's name, which is said already.
            let inner = source.split_once('/').map_or(source, |(_, inner)| inner);
            rendered.push(Rendered {
                shown: format!("{shown}/{inner}"),
                text: String::new(),
            });
            continue;
        }
        if rendered.is_empty() && !line.trim().is_empty() {
            rendered.push(Rendered {
                shown: shown.to_string(),
                text: String::new(),
            });
        }
        if let Some(last) = rendered.last_mut() {
            last.text.push_str(line);
            last.text.push('\n');
        }
    }
    rendered
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn output_is_cut_by_template() {
        let output = "\n---\n# Source: web/templates/a.yaml\nkind: A\n---\n# Source: web/charts/db/templates/b.yaml\n\
                      kind: B\ntext: |\n  ---\n  # Source: x\n";
        assert_eq!(
            split(output, "APP web: chart web"),
            [
                Rendered {
                    shown: "APP web: chart web/templates/a.yaml".into(),
                    text: "# Source: web/templates/a.yaml\nkind: A\n".into()
                },
                Rendered {
                    shown: "APP web: chart web/charts/db/templates/b.yaml".into(),
                    text: "# Source: web/charts/db/templates/b.yaml\nkind: B\ntext: |\n  ---\n  # Source: x\n".into()
                },
            ]
        );
        assert_eq!(split("", "x"), []);
        assert_eq!(split("kind: A\n", "x")[0].shown, "x");
    }

    #[test]
    fn helm_gets_no_home_no_cluster_and_no_environment() {
        let dir = tempfile::tempdir().unwrap();
        let helm = dir.path().join("helm");
        let script = "#!/bin/sh\necho 'kind: X'\nfor a in \"$@\"; do echo \"# arg $a\"; done\n/usr/bin/env | /usr/bin/sort | /bin/sed 's/^/# env /'\n";
        fs::write(&helm, script).unwrap();
        fs::set_permissions(&helm, fs::Permissions::from_mode(0o755)).unwrap();
        let chart = Chart {
            shown: "s".into(),
            release: "web",
            path: "/c".into(),
            values: vec!["/a".into(), "/b".into()],
        };
        let rendered = render(&helm, &chart, dir.path()).unwrap();
        let said = |kind: &str| {
            let lines = rendered[0].text.lines().filter_map(|line| line.strip_prefix(kind));
            lines.map(str::to_string).collect::<Vec<_>>()
        };
        assert_eq!(
            said("# arg ").join(" "),
            "template web /c --namespace default --include-crds --skip-tests --values /a --values /b"
        );
        let home = dir.path().display().to_string();
        for line in said("# env ") {
            let (name, value) = line.split_once('=').unwrap();
            let own = name == "PWD" || name.starts_with("HELM_") || name == "HOME";
            assert!(
                own && value == home || line == "KUBECONFIG=/dev/null" || name == "_" || name == "SHLVL",
                "{line}"
            );
        }
    }

    #[test]
    fn what_helm_complains_about_is_passed_on() {
        let dir = tempfile::tempdir().unwrap();
        let helm = dir.path().join("helm");
        fs::write(
            &helm,
            "#!/bin/sh\necho 'found, but missing in charts/ directory: redis' >&2\nexit 1\n",
        )
        .unwrap();
        fs::set_permissions(&helm, fs::Permissions::from_mode(0o755)).unwrap();
        let chart = Chart {
            shown: "APP web: chart web".into(),
            release: "web",
            path: "/c".into(),
            values: Vec::new(),
        };
        let error = render(&helm, &chart, dir.path()).unwrap_err().to_string();
        assert!(
            error.starts_with(
                "APP web: chart web: helm can't render it: found, but missing in charts/ directory: redis\n"
            ),
            "{error}"
        );
        assert!(error.contains("the build fetches nothing"), "{error}");
    }
}
