//! Hooks around the reset of a host: those of the Clusterfile, and those of the image as they lie on the host itself, since the
//! image need not be on this machine any more.

use crate::{
    Error, Result,
    hooks::{self, Who},
    install::Options,
    paths, script,
    session::Session,
};
use clusterfile::{Clusterfile, Plugin, PluginAction};
use host::{
    Scope,
    facts::Query,
    proto::{Exec, ExecResult, Leftover},
};
use std::collections::BTreeMap;

/// How long looking for something on the host may take, in milliseconds.
const LOOK_MS: u64 = 10_000;
/// Largest file of plugins, in bytes.
const PLUGIN_LIMIT: u64 = 1 << 20;

/// The hooks of one host.
pub(super) struct Cleaner<'s> {
    session: &'s Session,
    options: &'s Options,
    scope: &'s Scope,
    name: String,
    before: Vec<Plugin>,
    after: Vec<Plugin>,
    env: BTreeMap<String, String>,
    rootfs: bool,
}

impl<'s> Cleaner<'s> {
    /// Finds out which hooks the host has. Needs the host to be opened.
    ///
    /// # Errors
    /// When the host does not answer, or its plugins cannot be read.
    pub(super) async fn new(
        session: &'s Session,
        clusterfile: &Clusterfile,
        scope: &'s Scope,
        options: &'s Options,
    ) -> Result<Self> {
        let facts = session.client.facts(&Query::default()).await;
        let name = facts
            .map_err(session.failed("looking at the host"))?
            .hostname
            .to_lowercase();
        let host = clusterfile.cluster.hosts.iter().find(|host| host.ip == session.ip);
        let who = Who {
            master: host.is_some_and(clusterfile::Host::is_master),
            ip: session.ip,
            name: &name,
        };
        let all = hooks::merged(of_host(session).await?, &clusterfile.plugins);
        let mut env = host.map_or_else(|| clusterfile.cluster.env.clone(), |host| host.env.clone());
        env.extend(script::caches(scope));
        if who.master {
            env.insert("KUBECONFIG".to_owned(), paths::ADMIN_CONF.to_owned());
        }
        for (key, value) in [
            ("ClusterName", scope.cluster.clone()),
            ("DataRoot", scope.data_root.clone()),
            ("HostIP", session.ip.to_string()),
            ("HostName", name.clone()),
        ] {
            env.insert(key.to_owned(), value);
        }
        // Where a reset was interrupted the hooks before it have run, and there is nothing left for them.
        let journal = session
            .client
            .journal()
            .await
            .map_err(session.failed("reading the journal"))?;
        let before = chosen(&all, PluginAction::PreCleanHost, who);
        Ok(Self {
            session,
            options,
            scope,
            before: if journal.undoing { Vec::new() } else { before },
            after: chosen(&all, PluginAction::PostCleanHost, who),
            env,
            rootfs: look(session, &["test", "-d", host::CURRENT]).await?.code == Some(0),
            name,
        })
    }

    /// Runs the hooks before the reset.
    ///
    /// # Errors
    /// When one fails.
    pub(super) async fn before(&self) -> Result<()> {
        let cwd = if self.rootfs { host::CURRENT } else { "/" };
        self.run(&self.before, PluginAction::PreCleanHost, cwd).await
    }

    /// Whether there are hooks after the reset.
    pub(super) fn has_after(&self) -> bool {
        !self.after.is_empty()
    }

    /// Runs the hooks after the reset; nothing of ours is on the host then.
    ///
    /// # Errors
    /// When one fails.
    pub(super) async fn after(&self) -> Result<()> {
        self.run(&self.after, PluginAction::PostCleanHost, "/").await
    }

    /// Which of the files that were left are not there any more: hooks take away what other hooks have made.
    ///
    /// # Errors
    /// When the host does not answer.
    pub(super) async fn gone(&self, left: &[Leftover]) -> Result<Vec<Leftover>> {
        let added = |left: &&Leftover| left.kind == "file" && left.how == "added";
        let names = left.iter().filter(added).map(|left| left.name.as_str());
        let script = "for path; do [ -e \"$path\" ] || [ -L \"$path\" ] || echo \"$path\"; done";
        let argv: Vec<&str> = ["sh", "-c", script, "sh"].into_iter().chain(names).collect();
        let said = look(self.session, &argv).await?.stdout;
        let is_gone = |left: &&Leftover| added(left) && said.lines().any(|path| path == left.name);
        Ok(left.iter().filter(is_gone).cloned().collect())
    }

    async fn run(&self, plugins: &[Plugin], action: PluginAction, cwd: &str) -> Result<()> {
        let observer = &*self.options.observer;
        for plugin in plugins {
            let job = hooks::job(plugin, action, self.env.clone(), cwd);
            script::run_text(self.session, &self.name, observer, self.scope, &plugin.data, job).await?;
        }
        Ok(())
    }
}

fn chosen(all: &[Plugin], action: PluginAction, who: Who<'_>) -> Vec<Plugin> {
    let here = |plugin: &&Plugin| plugin.actions.contains(&action) && hooks::covers(plugin, who);
    all.iter().filter(here).cloned().collect()
}

async fn look(session: &Session, argv: &[&str]) -> Result<ExecResult> {
    let exec = Exec {
        argv: argv.iter().map(|word| (*word).to_owned()).collect(),
        timeout_ms: LOOK_MS,
        ..Exec::default()
    };
    session
        .client
        .exec(exec)
        .await
        .map_err(session.failed("looking for hooks"))
}

/// The plugins in the rootfs as it lies on the host; none if there is none.
async fn of_host(session: &Session) -> Result<Vec<Plugin>> {
    let folder = format!("{}/{}", host::CURRENT, paths::source::PLUGINS);
    let listed = look(session, &["ls", "-1", &folder]).await?;
    if listed.code != Some(0) {
        return Ok(Vec::new());
    }
    let mut plugins = Vec::new();
    for file in listed.stdout.lines().filter(|file| hooks::is_plugin_file(file)) {
        let path = format!("{folder}{file}");
        let bytes = session.client.read_file(&path, PLUGIN_LIMIT).await;
        let bytes = bytes.map_err(session.failed(format!("reading {path}")))?;
        let text = String::from_utf8_lossy(&bytes);
        let parsed = Plugin::parse_all(&text, &path).map_err(|problems| Error::on(session.ip, problems.to_string()))?;
        plugins.extend(parsed);
    }
    Ok(plugins)
}
