//! The container runtime: started by its unit, and there only when its CRI is. containerd runs on without the plugin when that fails to
//! start, and all that a node agent would say of it is that there is no such service.

use crate::{
    Error, Result, paths,
    phases::{Outcome, Phase},
    run::Run,
    session::Session,
};
use futures::{FutureExt as _, future::BoxFuture};
use host::proto::Exec;
use std::sync::Arc;

/// How long it may take to say which plugins it has.
const ANSWER_MS: u64 = 30_000;

/// Starts it, and sees that it has its CRI.
pub fn start(run: Arc<Run>, phase: &'static Phase, place: Option<usize>) -> BoxFuture<'static, Result<Outcome>> {
    async move {
        let index = place.unwrap_or_default();
        let outcome = run.apply(phase, index).await?;
        has_cri(&run.sessions[index]).await.map(|()| outcome)
    }
    .boxed()
}

async fn has_cri(session: &Session) -> Result<()> {
    let argv = [
        paths::CTR,
        "--address",
        paths::CONTAINERD_SOCKET,
        "plugins",
        "ls",
        "-d",
        "id==cri",
    ];
    let exec = Exec {
        argv: argv.map(str::to_owned).to_vec(),
        timeout_ms: ANSWER_MS,
        ..Exec::default()
    };
    let asked = session.client.exec(exec).await;
    let asked = asked.map_err(session.failed("asking the container runtime for its plugins"))?;
    let wrong = if asked.code == Some(0) {
        trouble(&asked.stdout)
    } else {
        let last = asked.stderr.lines().last().unwrap_or("no reason given");
        Some(format!("it does not answer: {last}"))
    };
    match wrong {
        None => Ok(()),
        Some(wrong) => {
            let unit = paths::unit::CONTAINERD;
            Err(Error::on(
                session.ip,
                format!(
                    "the container runtime runs without its CRI: {wrong}{}; see journalctl -u {unit}, then apply again",
                    remedy(&wrong)
                ),
            ))
        }
    }
}

/// What is wrong with the plugin, by what `ctr plugins ls -d` says of it.
fn trouble(listing: &str) -> Option<String> {
    let mut lines = listing.lines().map(str::trim);
    if !lines.clone().any(|line| line.split_whitespace().eq(["ID:", "cri"])) {
        return Some("this containerd has none".to_owned());
    }
    lines.find(|line| *line == "Error:")?;
    let message = lines.find_map(|line| line.strip_prefix("Message:"));
    Some(message.unwrap_or("no reason given").trim().to_owned())
}

/// What to do about the reasons that we know.
fn remedy(wrong: &str) -> &'static str {
    // Its watches of folders: a host with many sessions and units has used up those of its user (inotify(7)).
    if wrong.contains("fsnotify") || wrong.contains("too many open files") {
        "; raise fs.inotify.max_user_instances (sysctl), and restart the unit"
    } else {
        ""
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runtime_without_its_cri_is_told_with_the_reason() {
        let good = "Type:          io.containerd.grpc.v1\nID:            cri\nRequires:     \n               io.containerd.event.v1\nPlatforms:     linux/amd64\nExports:      \n               CRIVersion           v1\n";
        assert_eq!(trouble(good), None);
        let bad = "Type:          io.containerd.grpc.v1\nID:            cri\nPlatforms:     linux/amd64\nError:        \n               Code:        Unknown\n               Message:     failed to create CRI service: failed to create fsnotify watcher: too many open files\n";
        let reason = trouble(bad).unwrap();
        assert!(reason.starts_with("failed to create CRI service"), "{reason}");
        assert!(remedy(&reason).contains("max_user_instances"));
        assert_eq!(trouble("").as_deref(), Some("this containerd has none"));
        assert_eq!(remedy("no such snapshotter"), "");
    }
}
