//! Hooks: scripts of the Clusterfile (kind Plugin) and of the image's `plugins/` that run on hosts at certain moments of an apply.
//!
//! | moment | where without `scope` | when |
//! | --- | --- | --- |
//! | pre-install, post-install | first master | until the cluster has been installed once |
//! | pre-init-host, post-init-host | every host | until the host has joined |
//! | pre-join, post-join | first master | when hosts join a cluster that is there; with `scope` on the joining hosts it names |
//! | pre-clean-host, post-clean-host | every host | when the host is reset ([`crate::reset`]) |
//!
//! An apply that was interrupted may run a hook again, so a hook must bear that. Hooks of one moment on one host run one after the
//! other in the order of their names.

use crate::{
    Error, Result,
    cluster::ledger,
    event::Event,
    paths::source,
    phases::{On, Outcome, Phase},
    run::Run,
    script::{self, Job},
    site::{Image, Seat, Site},
};
use clusterfile::{Plugin, PluginAction, Role, Scope};
use futures::{FutureExt as _, future::BoxFuture};
use std::{collections::BTreeMap, net::Ipv4Addr, sync::Arc, time::Duration};

/// How long a hook may take.
pub const LIMIT: Duration = Duration::from_secs(10 * 60);

/// Moments this version knows nothing of.
const UNSUPPORTED: [PluginAction; 5] = [
    PluginAction::PreUninstall,
    PluginAction::PostUninstall,
    PluginAction::UpgradeCluster,
    PluginAction::RollbackCluster,
    PluginAction::UpgradeHost,
];

/// What cannot be done of these plugins, by name.
pub fn refused(plugins: &[Plugin]) -> Vec<String> {
    let all = plugins
        .iter()
        .flat_map(|plugin| plugin.actions.iter().map(move |action| (plugin, action)));
    all.filter(|(_, action)| UNSUPPORTED.contains(action))
        .map(|(plugin, action)| {
            format!(
                "Plugin {}: hooks of the moment {action} are not supported; use pre-clean-host and post-clean-host, LAUNCH or CMDS, or remove it",
                plugin.name
            )
        })
        .collect()
}

/// The plugins of an image's `plugins/` folder.
///
/// # Errors
/// When a file there is no plugin, or one of them cannot be done.
pub fn of_image(image: &Image) -> Result<Vec<Plugin>> {
    let bad = |message: String| Error::Image {
        image: image.reference.clone(),
        message,
    };
    let inside = image.content.keys().filter(|path| path.starts_with(source::PLUGINS));
    if let Some(library) = inside.clone().find(|path| path.ends_with(".so")) {
        return Err(bad(format!(
            "{library}: plugins that are programs are not supported; write a plugin of type SHELL"
        )));
    }
    let mut plugins = Vec::new();
    for path in inside.filter(|path| is_plugin_file(path)) {
        let text = image.files.get(path).ok_or_else(|| bad(format!("{path} is no text")))?;
        plugins.extend(Plugin::parse_all(text, path).map_err(|problems| bad(problems.to_string()))?);
    }
    match refused(&plugins).as_slice() {
        [] => Ok(plugins),
        refused => Err(bad(refused.join("; "))),
    }
}

/// Whether a file of `plugins/` is to hold plugins; others are what their scripts use.
pub fn is_plugin_file(path: &str) -> bool {
    path.ends_with(".yaml") || path.ends_with(".yml")
}

/// The plugins of both sources, by name; the Clusterfile's win.
pub fn merged(image: Vec<Plugin>, clusterfile: &[Plugin]) -> Vec<Plugin> {
    let own = |plugin: &Plugin| clusterfile.iter().any(|other| other.name == plugin.name);
    let mut plugins: Vec<Plugin> = image.into_iter().filter(|plugin| !own(plugin)).collect();
    plugins.extend(clusterfile.iter().cloned());
    plugins.sort_by(|a, b| a.name.cmp(&b.name));
    plugins
}

/// Who a host is, as far as a scope can name it.
#[derive(Debug, Clone, Copy)]
pub struct Who<'w> {
    /// Its roles.
    pub master: bool,
    /// Its address.
    pub ip: Ipv4Addr,
    /// Its own name.
    pub name: &'w str,
}

impl<'w> From<&'w Seat> for Who<'w> {
    fn from(seat: &'w Seat) -> Self {
        Self {
            master: seat.master,
            ip: seat.ip,
            name: &seat.name,
        }
    }
}

fn names(scope: &Scope, who: Who<'_>) -> bool {
    match scope {
        Scope::Role(role) => who.master == (*role == Role::Master),
        Scope::Address(ip) => *ip == who.ip,
        Scope::Name(name) => name.eq_ignore_ascii_case(who.name),
    }
}

/// Whether a plugin's scope names the host; an empty one names all.
pub fn covers(plugin: &Plugin, who: Who<'_>) -> bool {
    plugin.scope.is_empty() || plugin.scope.iter().any(|scope| names(scope, who))
}

/// Refuses scopes that name none of the hosts.
///
/// # Errors
/// Names plugin and scope.
pub fn check_scopes(plugins: &[Plugin], seats: &[Seat]) -> Result<()> {
    for plugin in plugins {
        let unknown = plugin.scope.iter().find(|scope| match scope {
            Scope::Role(_) => false,
            scope => !seats.iter().any(|seat| names(scope, seat.into())),
        });
        if let Some(scope) = unknown {
            let known = ["master", "node"]
                .into_iter()
                .chain(seats.iter().map(|seat| seat.name.as_str()));
            let hint = clusterfile::names::did_you_mean(&scope.to_string(), known);
            return Err(Error::Wish(format!(
                "Plugin {}: spec.scope {:?} is neither master nor node, nor an address or name of a host{hint}",
                plugin.name,
                scope.to_string()
            )));
        }
    }
    Ok(())
}

/// The plugins that run on a host at a moment of this apply, in order.
pub fn on(site: &Site, index: usize, action: PluginAction) -> Vec<&Plugin> {
    let here = |plugin: &&Plugin| plugin.actions.contains(&action) && hosts(site, plugin, action).contains(&index);
    site.hooks.iter().filter(here).collect()
}

/// The hosts on which any hook of a moment runs in this apply.
pub fn places(site: &Site, action: PluginAction) -> Vec<usize> {
    (0..site.seats.len())
        .filter(|index| !on(site, *index, action).is_empty())
        .collect()
}

fn hosts(site: &Site, plugin: &Plugin, action: PluginAction) -> Vec<usize> {
    let first = site.first_master();
    let fresh = !site.seats[first].seen.joined;
    let joins = |index: &usize| !site.seats[*index].seen.joined;
    let all = 0..site.seats.len();
    let covered = all.clone().filter(|index| covers(plugin, (&site.seats[*index]).into()));
    let first_or_covered = |covered: Vec<usize>| if plugin.scope.is_empty() { vec![first] } else { covered };
    match action {
        PluginAction::PreInstall if fresh => first_or_covered(covered.collect()),
        PluginAction::PostInstall if !site.recorded => first_or_covered(covered.collect()),
        PluginAction::PreInitHost | PluginAction::PostInitHost => covered.filter(joins).collect(),
        PluginAction::PreJoin | PluginAction::PostJoin if !fresh && all.clone().any(|index| joins(&index)) => {
            first_or_covered(covered.filter(joins).collect())
        }
        _ => Vec::new(),
    }
}

/// Runs a moment's hooks on a host.
pub fn run(run: Arc<Run>, phase: &'static Phase, place: Option<usize>) -> BoxFuture<'static, Result<Outcome>> {
    async move {
        let (On::Hooks(action), Some(index)) = (phase.on, place) else {
            return Ok(Outcome::default());
        };
        let once = (action == PluginAction::PostInstall).then(|| format!("{action}.{}", run.host_name(index)));
        if let Some(key) = &once
            && is_installed(&run, key).await?
        {
            return Ok(Outcome::default());
        }
        let mut outcome = Outcome::default();
        for plugin in on(&run.site, index, action) {
            one(&run, index, plugin, action).await?;
            outcome.changes += 1;
        }
        if let Some(key) = &once {
            let done = ledger::Entry {
                kind: "hook".to_owned(),
                ..ledger::Entry::default()
            };
            ledger::save(&run.cluster()?.client, key, &done).await?;
        }
        Ok(outcome)
    }
    .boxed()
}

/// Whether the cluster was installed to the end before, or an interrupted apply has run these hooks.
async fn is_installed(run: &Run, key: &str) -> Result<bool> {
    let client = &run.cluster()?.client;
    Ok(crate::cluster::record::exists(client).await? || ledger::load(client).await?.contains_key(key))
}

async fn one(run: &Run, index: usize, plugin: &Plugin, action: PluginAction) -> Result<()> {
    let (seat, host) = (&run.site.seats[index], run.host_name(index));
    let mut env = script::environment(&run.site, seat);
    let joining = run.site.seats.iter().filter(|seat| !seat.seen.joined);
    let joining: Vec<String> = joining.map(|seat| seat.ip.to_string()).collect();
    env.insert("JoiningHosts".to_owned(), joining.join(" "));
    run.observer.event(Event::Note {
        host: Some(host.clone()),
        message: format!("running {}", title(plugin, action)),
    });
    let job = job(plugin, action, env, host::CURRENT);
    let session = &run.sessions[index];
    script::run_text(session, &host, &*run.observer, &run.site.scope, &plugin.data, job).await
}

/// A hook as a program to run.
pub fn job(plugin: &Plugin, action: PluginAction, env: BTreeMap<String, String>, cwd: &str) -> Job {
    Job {
        what: title(plugin, action),
        argv: Vec::new(),
        env,
        cwd: cwd.to_owned(),
        limit: LIMIT,
    }
}

/// How a hook is called: `hook tune (pre-init-host)`.
pub fn title(plugin: &Plugin, action: PluginAction) -> String {
    format!("hook {} ({action})", plugin.name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{add_file, seat, site};
    use PluginAction::{PostInitHost, PostInstall, PostJoin, PreInitHost, PreInstall, PreJoin};

    fn plugin(name: &str, scope: &[Scope]) -> Plugin {
        Plugin {
            name: name.into(),
            actions: vec![PreInstall, PostInstall, PreInitHost, PostInitHost, PreJoin, PostJoin],
            scope: scope.to_vec(),
            data: "true".into(),
        }
    }

    /// Where a hook of every moment runs: master m1 (0), nodes n1 (1) and n2 (2).
    fn places_of(joined: &[usize], recorded: bool, scope: &[Scope]) -> Vec<(PluginAction, Vec<usize>)> {
        let mut site = site();
        site.seats.push(seat("10.0.0.3", "n2", false));
        for index in joined {
            site.seats[*index].seen.joined = true;
        }
        site.recorded = recorded;
        site.hooks = vec![plugin("p", scope)];
        let all = [PreInstall, PostInstall, PreInitHost, PostInitHost, PreJoin, PostJoin];
        all.into_iter()
            .map(|action| (action, places(&site, action)))
            .filter(|(_, places)| !places.is_empty())
            .collect()
    }

    #[test]
    fn hooks_run_where_and_when_their_moment_says() {
        let node = [Scope::Role(Role::Node)];
        let n2 = [Scope::Name("N2".into())];
        for (what, got, expected) in [
            (
                "a new cluster",
                places_of(&[], false, &[]),
                vec![
                    (PreInstall, vec![0]),
                    (PostInstall, vec![0]),
                    (PreInitHost, vec![0, 1, 2]),
                    (PostInitHost, vec![0, 1, 2]),
                ],
            ),
            (
                "a new cluster, nodes only",
                places_of(&[], false, &node),
                vec![
                    (PreInstall, vec![1, 2]),
                    (PostInstall, vec![1, 2]),
                    (PreInitHost, vec![1, 2]),
                    (PostInitHost, vec![1, 2]),
                ],
            ),
            ("nothing to do", places_of(&[0, 1, 2], true, &[]), vec![]),
            (
                "an install that was interrupted",
                places_of(&[0, 1, 2], false, &[]),
                vec![(PostInstall, vec![0])],
            ),
            (
                "a host joins",
                places_of(&[0, 1], true, &[]),
                vec![
                    (PreInitHost, vec![2]),
                    (PostInitHost, vec![2]),
                    (PreJoin, vec![0]),
                    (PostJoin, vec![0]),
                ],
            ),
            (
                "a host joins, and is named",
                places_of(&[0, 1], true, &n2),
                vec![
                    (PreInitHost, vec![2]),
                    (PostInitHost, vec![2]),
                    (PreJoin, vec![2]),
                    (PostJoin, vec![2]),
                ],
            ),
            ("another one joins", places_of(&[0, 2], true, &n2), vec![]),
        ] {
            assert_eq!(got, expected, "{what}");
        }
    }

    #[test]
    fn plugins_of_the_image_and_the_clusterfile_run_in_the_order_of_their_names() {
        let mut of_image = plugin("b", &[]);
        of_image.data = "image".into();
        let merged = merged(vec![of_image, plugin("c", &[])], &[plugin("b", &[]), plugin("a", &[])]);
        let names: Vec<(&str, &str)> = merged.iter().map(|p| (p.name.as_str(), p.data.as_str())).collect();
        assert_eq!(names, [("a", "true"), ("b", "true"), ("c", "true")]);
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_name() {
        let text = |action: &str| {
            format!(
                "apiVersion: sealer.io/v1\nkind: Plugin\nmetadata: {{name: p}}\nspec: {{action: {action}, data: x}}\n"
            )
        };
        let of_image = |path: &str, content: &str| {
            let mut site = site();
            add_file(&mut site, path, content, false);
            super::of_image(&site.image).map_err(|error| error.to_string())
        };
        assert_eq!(of_image("plugins/p.yaml", &text("pre-install")).unwrap().len(), 1);
        assert_eq!(of_image("plugins/lib.sh", "x").unwrap(), []);
        for (path, content, why) in [
            (
                "plugins/p.yaml",
                text("upgrade"),
                "Plugin p: hooks of the moment upgrade-cluster are not supported",
            ),
            (
                "plugins/p.yaml",
                text("pre-uninstall|pre-install"),
                "moment pre-uninstall",
            ),
            ("plugins/p.yaml", text("nonsense"), "plugins/p.yaml:4:"),
            (
                "plugins/label.so",
                String::new(),
                "plugins/label.so: plugins that are programs",
            ),
        ] {
            let error = of_image(path, &content).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        let site = site();
        let error = check_scopes(&[plugin("p", &[Scope::Name("mster".into())])], &site.seats)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("\"mster\"") && error.contains("did you mean \"master\"?"),
            "{error}"
        );
        assert!(check_scopes(&[plugin("p", &[Scope::Name("n1".into())])], &site.seats).is_ok());
    }
}
