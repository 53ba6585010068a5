//! `installer run`: Sealer's short way. Flags become a Clusterfile, and that is applied; from then on it is a cluster like any other.

use crate::{
    apply,
    cluster_args::{ClusterArgs, PreflightArgs, read_aliases},
    context::Context,
    failure::Exit,
    join::addresses,
    output::FormatArg,
    recording::ReportArg,
    ssh_args::{SshArgs, SshFields, here},
};
use anyhow::{Context as _, bail, ensure};
use bootstrap::install::OnFailure;
use clusterfile::{Clusterfile, is_secret_name};
use serde::Serialize;
use std::{
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

/// Flags of `run`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  installer run local/native:dev --masters 10.0.0.1 --nodes 10.0.0.2-10.0.0.4
  installer run local/native:dev --masters 10.0.0.1 --user ann --sudo-passwd-env SUDO_PASSWD
  installer run local/native:dev --masters 10.0.0.1 --dry-run    only write the Clusterfile

What the flags say is written to a Clusterfile. Keep that file: apply, check, join and
reset take it. It holds no secrets, only the names of files and variables they are in.
The same command can be run again; to change the cluster, change the file and apply it.")]
pub struct Args {
    /// The cluster image
    #[arg(value_name = "IMAGE")]
    pub image: String,
    /// Addresses or ranges a-b of the masters
    #[arg(long, required = true, value_name = "IP", value_delimiter = ',')]
    pub masters: Vec<String>,
    /// Addresses or ranges a-b of the nodes
    #[arg(long, value_name = "IP", value_delimiter = ',')]
    pub nodes: Vec<String>,
    /// Name of the cluster [default: the last part of the image's name]
    #[arg(long)]
    pub name: Option<String>,
    /// Where the Clusterfile is written; one that says something else is not overwritten
    #[arg(long, default_value = "Clusterfile", value_name = "FILE")]
    pub clusterfile: PathBuf,
    /// How hosts are reached.
    #[command(flatten)]
    pub ssh: SshArgs,
    /// Variable for the image's templates; several
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// Command that is run when the cluster is up, instead of the image's; several
    #[arg(long, value_name = "COMMAND")]
    pub cmd: Vec<String>,
    /// Applications to launch, instead of the image's choice
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub app_names: Vec<String>,
    /// Only write the Clusterfile
    #[arg(long)]
    pub dry_run: bool,
    /// What preflight may pass over.
    #[command(flatten)]
    pub preflight: PreflightArgs,
    /// Remove nodes that are not named without asking
    #[arg(short, long)]
    pub yes: bool,
    /// The report.
    #[command(flatten)]
    pub report: ReportArg,
    /// How to print.
    #[command(flatten)]
    pub format: FormatArg,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    api_version: &'static str,
    kind: &'static str,
    metadata: Metadata,
    spec: Spec,
}

#[derive(Serialize)]
struct Metadata {
    name: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    image: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    env: Vec<String>,
    #[serde(skip_serializing_if = "is_default")]
    ssh: SshFields,
    hosts: Vec<Hosts>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    cmd: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    app_names: Vec<String>,
}

fn is_default(ssh: &SshFields) -> bool {
    *ssh == SshFields::default()
}

#[derive(Serialize)]
struct Hosts {
    ips: Vec<String>,
    roles: [&'static str; 1],
}

/// Writes the Clusterfile and applies it.
pub async fn run(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    let text = text(args, &here()?)?;
    let path = &args.clusterfile;
    let base = path.parent().unwrap_or(Path::new("."));
    let clusterfile =
        Clusterfile::parse(&text, &path.display().to_string(), base).context("what the flags say is no Clusterfile")?;
    write(path, &text)?;
    context.out.note(format!("the Clusterfile is {}", path.display()));
    if args.dry_run {
        return Ok(Exit::Done);
    }
    context.log.know(&clusterfile);
    read_aliases(context)?;
    let cluster = ClusterArgs { file: path.clone() };
    let how = apply::How {
        command: "run",
        yes: args.yes,
        on_failure: OnFailure::Keep,
        prove_airgap: false,
        care: bootstrap::rolling::Care::default(),
        plan: None,
    };
    apply::bring_up(&cluster, &args.preflight, context, &clusterfile, &how).await
}

/// The Clusterfile's text. Pure.
fn text(args: &Args, here: &Path) -> anyhow::Result<String> {
    let (masters, nodes) = (addresses(&args.masters)?, addresses(&args.nodes)?);
    if let Some(both) = masters.iter().find(|ip| nodes.contains(ip)) {
        bail!("{both} is named by --masters and by --nodes: name it once");
    }
    for entry in &args.env {
        let name = entry.split('=').next().unwrap_or_default();
        ensure!(
            !is_secret_name(name),
            "--env {name}: what looks like a secret is not written to a Clusterfile from the command line, where others see it; \
             use --dry-run, add it to the file by hand, and apply that"
        );
    }
    let name = match &args.name {
        Some(name) => name.clone(),
        None => name_of(&args.image)?,
    };
    let hosts = |texts: &[String], role| Hosts {
        ips: texts.to_vec(),
        roles: [role],
    };
    let mut all = vec![hosts(&args.masters, "master")];
    all.extend((!args.nodes.is_empty()).then(|| hosts(&args.nodes, "node")));
    let document = Document {
        api_version: "sealer.io/v2",
        kind: "Cluster",
        metadata: Metadata { name },
        spec: Spec {
            image: args.image.clone(),
            env: args.env.clone(),
            ssh: args.ssh.fields(here),
            hosts: all,
            cmd: args.cmd.clone(),
            app_names: args.app_names.clone(),
        },
    };
    Ok(serde_saphyr::to_string(&document)?)
}

/// `registry.example/team/shop:v1` is a cluster called `shop`.
fn name_of(image: &str) -> anyhow::Result<String> {
    let last = image.rsplit('/').next().unwrap_or_default();
    let name = last.split(['@', ':']).next().unwrap_or_default();
    let name = name.to_lowercase().replace(['_', '.'], "-");
    ensure!(
        clusterfile::names::is_dns_label(&name),
        "no name for the cluster can be made of the image {image}: give it one with --name"
    );
    Ok(name)
}

/// Makes the file; one that is there and says the same stays.
fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    let cannot = || format!("cannot write the Clusterfile {}", path.display());
    match std::fs::read_to_string(path) {
        Ok(old) if old == text => return Ok(()),
        Ok(_) => bail!(
            "{} is there already and says something else: change it and run installer apply -f {}, or write another one with \
             --clusterfile FILE",
            path.display(),
            path.display()
        ),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(cannot),
    }
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .with_context(cannot)?;
    file.write_all(text.as_bytes()).with_context(cannot)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser as _;
    use clusterfile::SecretSource;

    fn args(line: &str) -> Args {
        match Cli::try_parse_from(line.split(' ')).unwrap().command {
            Command::Run(args) => args,
            other => panic!("{other:?}"),
        }
    }

    fn parsed(text: &str) -> Clusterfile {
        Clusterfile::parse(text, "Clusterfile", Path::new("/elsewhere")).unwrap()
    }

    #[test]
    fn flags_become_a_clusterfile_that_says_the_same() {
        let args = args(
            "installer run reg.example:5000/team/My_Shop:v1 --masters 10.0.0.1 --nodes 10.0.0.2-10.0.0.4,10.0.0.9 --user ann --port 2222 --pk keys/id --passwd-env PW --sudo-passwd-file /pw --proxy-jump me@b1,b2:23 -e A=1 --app-names x,y --cmd date",
        );
        let text = text(&args, Path::new("/here")).unwrap();
        let file = parsed(&text);
        let cluster = &file.cluster;
        assert_eq!((cluster.name.as_str(), cluster.hosts.len()), ("my-shop", 5));
        assert_eq!(cluster.image, args.image);
        assert!(cluster.hosts[0].is_master() && !cluster.hosts[4].is_master());
        let ssh = &cluster.ssh;
        assert_eq!(
            (ssh.user.as_deref(), ssh.port, ssh.proxy_jump.as_ref().map(Vec::len)),
            (Some("ann"), Some(2222), Some(2))
        );
        assert_eq!(ssh.pk.as_deref(), Some(Path::new("/here/keys/id")));
        assert_eq!(ssh.passwd, SecretSource::Env("PW".into()));
        assert_eq!(ssh.sudo_passwd, SecretSource::File("/pw".into()));
        assert_eq!(
            (cluster.env["A"].as_str(), cluster.cmd.len(), cluster.app_names.len()),
            ("1", 1, 2)
        );
    }

    #[test]
    fn without_flags_nothing_is_said_that_is_the_default() {
        let args = args("installer run local/native:dev --masters 10.0.0.1");
        let text = text(&args, Path::new("/")).unwrap();
        assert!(
            !text.contains("ssh") && !text.contains("env") && !text.contains("cmd"),
            "{text}"
        );
        assert_eq!(parsed(&text).cluster.name, "native");
    }

    #[test]
    fn what_makes_no_cluster_is_refused_with_what_to_do() {
        for (line, reason) in [
            ("installer run a/b --masters 10.0.0.1 --nodes 10.0.0.1", "name it once"),
            ("installer run a/b --masters 10.0.0.1 -e DB_PASSWORD=x", "--dry-run"),
            ("installer run a/-- --masters 10.0.0.1", "--name"),
            ("installer run a/b --masters 10.0.0", "10.0.0"),
        ] {
            let error = text(&args(line), Path::new("/")).unwrap_err().to_string();
            assert!(error.contains(reason), "{line}: {error}");
        }
    }

    #[test]
    fn a_clusterfile_of_somebody_else_is_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("Clusterfile");
        write(&path, "a: 1\n").unwrap();
        write(&path, "a: 1\n").unwrap();
        let error = write(&path, "a: 2\n").unwrap_err().to_string();
        assert!(
            error.contains("--clusterfile") && error.contains("installer apply"),
            "{error}"
        );
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "a: 1\n");
    }
}
