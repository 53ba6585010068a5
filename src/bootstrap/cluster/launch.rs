//! Launching applications and commands once the cluster works, each only when it is another one than last time.
//!
//! ```text
//! chart      begun is noted ──▶ helm upgrade --install --wait ──▶ done is noted
//! manifests  compared and applied ──▶ what an earlier version had is taken away ──▶ noted
//! scripts, commands                run on the first master ──▶ noted
//! ```
//!
//! Whatever is interrupted is begun again by the next apply.

use super::{
    helm::{self, Release},
    ledger::{self, Entry, Ledger, ObjectRef},
    objects, rollout,
};
use crate::{
    Error, Result,
    apps::{self, App, Kind},
    event::Event,
    phases::{Outcome, Phase},
    plan::ObjectChange,
    render,
    run::Run,
    script::{self, Job},
    site::Site,
};
use futures::{FutureExt as _, future::BoxFuture};
use host::{Content, Effect, effect::File};
use kube::Client;
use std::{collections::BTreeMap, sync::Arc, time::Duration};

/// What helm does beside waiting: hooks of the chart, writing objects.
const HELM_WORKS: Duration = Duration::from_secs(120);

/// Launches what the image, or the Clusterfile, wants launched.
pub fn applications(run: Arc<Run>, _: &'static Phase, _: Option<usize>) -> BoxFuture<'static, Result<Outcome>> {
    async move {
        let launcher = Launcher {
            client: &run.cluster()?.client,
            run: &run,
        };
        let ledger = ledger::load(launcher.client).await?;
        let mut outcome = Outcome::default();
        for app in &run.site.apps {
            outcome.changes += launcher.app(app, &ledger).await?;
        }
        outcome.changes += launcher.commands(&ledger).await?;
        launcher.tell_unwished(&ledger).await?;
        Ok(outcome)
    }
    .boxed()
}

/// Whether something is to be launched: it is another one than last time, or did not end well then.
fn is_due(entry: Option<&Entry>, digest: &oci::Digest) -> bool {
    entry.is_none_or(|entry| entry.begun || entry.digest != digest.as_str())
}

/// What there is to launch, compared with what was; for plans. Manifests are compared object by object elsewhere.
///
/// # Errors
/// When the API server does not answer, or a file of an application cannot be rendered.
pub async fn pending(site: &Site, client: &Client, ledger: &Ledger) -> Result<Vec<ObjectChange>> {
    let mut changes = Vec::new();
    let mut change = |what: String, entry: Option<&Entry>| {
        changes.push(ObjectChange {
            object: what,
            action: if entry.is_none() { "create" } else { "modify" },
        });
    };
    for app in site.apps.iter().filter(|app| app.kind != Kind::Manifests) {
        let entry = ledger.get(&ledger::app(&app.name));
        let deployed = match app.kind {
            Kind::Chart(_) => helm::look(client, &app.namespace, &app.name).await? == Release::Deployed,
            _ => true,
        };
        if is_due(entry, &apps::digest(site, app)?) || !deployed {
            change(title(app), entry);
        }
    }
    for app in site.apps.iter().filter(|app| app.kind == Kind::Manifests) {
        // Its objects are as wished, but were never seen to work.
        let entry = ledger.get(&ledger::app(&app.name)).filter(|entry| entry.begun);
        if entry.is_some() {
            change(title(app), entry);
        }
    }
    let entry = ledger.get(ledger::COMMANDS);
    if !site.commands.is_empty() && is_due(entry, &apps::commands_digest(site)) {
        change("launch commands".to_owned(), entry);
    }
    Ok(changes)
}

/// How an application is called: `application web (chart)`.
fn title(app: &App) -> String {
    format!("application {} ({})", app.name, app.kind.word())
}

struct Launcher<'r> {
    run: &'r Run,
    client: &'r Client,
}

impl Launcher<'_> {
    /// Brings one application to where it should be; how many things were changed.
    async fn app(&self, app: &App, ledger: &Ledger) -> Result<usize> {
        let key = ledger::app(&app.name);
        let entry = ledger.get(&key);
        if entry.is_some_and(|entry| entry.kind == "chart") && !matches!(app.kind, Kind::Chart(_)) {
            let namespace = entry.map_or(apps::NAMESPACE, |entry| &entry.namespace);
            return Err(Error::Wish(format!(
                "{}: it was installed as a chart before; run helm uninstall {} --namespace {namespace} first, so that nothing is there twice",
                title(app),
                app.name
            )));
        }
        if app.kind == Kind::Manifests {
            return self.manifests(app, &key, entry).await;
        }
        let digest = apps::digest(&self.run.site, app)?;
        if let Some(old) = entry.filter(|entry| entry.kind == "manifests") {
            // What was applied object by object is taken away before something else makes its own.
            objects::apply_and_prune(self.run, &key, &[], Some(old)).await?;
        }
        let done = Entry {
            kind: app.kind.word().to_owned(),
            digest: digest.to_string(),
            ..Entry::default()
        };
        match &app.kind {
            Kind::Manifests => Ok(0),
            Kind::Chart(chart) => self.chart(app, chart, &key, entry, done).await,
            _ if !is_due(entry, &digest) => Ok(0),
            Kind::Commands(lines) => {
                for line in lines {
                    self.shell(app, line).await?;
                }
                ledger::save(self.client, &key, &done).await.map(|()| 1)
            }
            Kind::Scripts(names) => {
                for name in names {
                    self.script(app, name).await?;
                }
                ledger::save(self.client, &key, &done).await.map(|()| 1)
            }
        }
    }

    /// Applies the objects, and waits for what they run.
    async fn manifests(&self, app: &App, key: &str, entry: Option<&Entry>) -> Result<usize> {
        let objects = objects::application(&self.run.site, app)?;
        let is_new = entry.is_none_or(|entry| entry.begun);
        if !is_new && objects::pending(self.client.clone(), &objects).await?.is_empty() {
            let (changes, _) = objects::apply_and_prune(self.run, key, &objects, entry).await?;
            return Ok(changes);
        }
        // What is interrupted before everything runs is waited for by the next apply.
        let begun = Entry {
            kind: app.kind.word().to_owned(),
            begun: true,
            ..entry.cloned().unwrap_or_default()
        };
        ledger::save(self.client, key, &begun).await?;
        self.note(format!("applying {}", title(app)));
        let (changes, noted) = objects::apply_and_prune(self.run, key, &objects, Some(&begun)).await?;
        rollout::wait(self.client, &title(app), &objects, self.run.launch_limit).await?;
        let done = Entry { begun: false, ..noted };
        ledger::save(self.client, key, &done).await.map(|()| changes)
    }

    async fn chart(&self, app: &App, chart: &str, key: &str, entry: Option<&Entry>, done: Entry) -> Result<usize> {
        let done = Entry {
            namespace: app.namespace.clone(),
            ..done
        };
        self.check_place(app, entry)?;
        let release = helm::look(self.client, &app.namespace, &app.name).await?;
        if release == Release::Deployed && entry == Some(&done) {
            return Ok(0);
        }
        if let Release::Pending {
            revision,
            status,
            secret,
        } = &release
        {
            if !entry.is_some_and(|entry| entry.begun) {
                return Err(Error::Wish(format!(
                    "{}: revision {revision} of the release {} in the namespace {} is {status}: somebody else works on it, or was killed. Wait for it, or take it back with helm rollback",
                    title(app),
                    app.name,
                    app.namespace
                )));
            }
            // It was ours, and the host's lock says that it runs no more.
            self.note(format!(
                "{}: an interrupted helm left revision {revision} {status}; beginning anew",
                title(app)
            ));
            helm::forget(self.client, &app.namespace, secret).await?;
        }
        let begun = Entry {
            begun: true,
            ..done.clone()
        };
        ledger::save(self.client, key, &begun).await?;
        self.helm(app, chart).await?;
        ledger::save(self.client, key, &done).await.map(|()| 1)
    }

    /// A release cannot move; a second one beside the first would be a surprise.
    fn check_place(&self, app: &App, entry: Option<&Entry>) -> Result<()> {
        let before = entry.filter(|entry| entry.kind == "chart" && entry.namespace != app.namespace);
        before.map_or(Ok(()), |before| {
            Err(Error::Wish(format!(
                "{}: its release {} is in the namespace {}, and a release cannot move to {}; run helm uninstall {} --namespace {} first",
                title(app),
                app.name,
                before.namespace,
                app.namespace,
                app.name,
                before.namespace
            )))
        })
    }

    async fn helm(&self, app: &App, chart: &str) -> Result<()> {
        let site = &self.run.site;
        let (mut files, values) = apps::values(site, app, chart);
        if let Some(values) = values {
            files.push(self.put_values(app, &render::yaml(&values)?).await?);
        }
        let folder = apps::folder(&app.name);
        let path = format!("{}/{folder}{chart}", host::CURRENT);
        let limit = self.run.launch_limit;
        let argv = helm::upgrade(&app.name, path.trim_end_matches('/'), &app.namespace, &files, limit);
        let mut env = script::caches(&site.scope);
        env.insert("KUBECONFIG".to_owned(), crate::paths::ADMIN_CONF.to_owned());
        let job = Job {
            what: title(app),
            argv,
            env,
            cwd: host::CURRENT.to_owned(),
            limit: limit + HELM_WORKS,
        };
        let Err(error) = self.on_first(job).await else {
            return Ok(());
        };
        let blockers = match helm::blockers(self.client, &app.namespace).await {
            Ok(blockers) => blockers,
            Err(_) => return Err(error),
        };
        Err(Error::Blocked {
            source: Box::new(error),
            place: format!("the namespace {}", app.namespace),
            blockers,
        })
    }

    /// Values may hold passwords: they go into a file, never into arguments.
    async fn put_values(&self, app: &App, text: &str) -> Result<String> {
        let path = format!("{}/applications/{}.yaml", self.run.site.scope.dir(), app.name);
        let session = &self.run.sessions[self.run.site.first_master()];
        let file = Effect::File(File {
            path: path.clone(),
            content: Content::from(text),
            mode: 0o600,
            owner: None,
            secret: true,
        });
        let doing = format!("writing the values of {}", title(app));
        session.client.apply(vec![file]).await.map_err(session.failed(doing))?;
        Ok(path)
    }

    /// A line of the user's own, for a shell.
    async fn shell(&self, app: &App, line: &str) -> Result<()> {
        let argv = ["/bin/sh", "-c", line].map(str::to_owned).to_vec();
        self.process(app, format!("command `{line}` of application {}", app.name), argv)
            .await
    }

    async fn script(&self, app: &App, name: &str) -> Result<()> {
        let below = format!("{}{name}", apps::folder(&app.name));
        let path = format!("{}/{below}", host::CURRENT);
        let files = &self.run.site.image.files;
        let text = files.get(&below).or_else(|| files.get(&format!("{below}.tmpl")));
        let argv = text.map_or_else(|| vec![path.clone()], |text| script::interpreter(text, &path));
        self.process(app, format!("{name} of application {}", app.name), argv)
            .await
    }

    async fn process(&self, app: &App, what: String, argv: Vec<String>) -> Result<()> {
        let mut env = self.environment();
        env.extend(app.env.clone());
        self.on_first(Job {
            what,
            argv,
            env,
            cwd: format!("{}/{}", host::CURRENT, apps::folder(&app.name).trim_end_matches('/')),
            limit: self.run.launch_limit,
        })
        .await
    }

    /// The launch commands, all of them when anything about them is another than last time.
    async fn commands(&self, ledger: &Ledger) -> Result<usize> {
        let site = &self.run.site;
        let digest = apps::commands_digest(site);
        if site.commands.is_empty() || !is_due(ledger.get(ledger::COMMANDS), &digest) {
            return Ok(0);
        }
        for line in &site.commands {
            self.on_first(Job {
                what: format!("launch command `{line}`"),
                argv: ["/bin/sh", "-c", line].map(str::to_owned).to_vec(),
                env: self.environment(),
                cwd: host::CURRENT.to_owned(),
                limit: self.run.launch_limit,
            })
            .await?;
        }
        let done = Entry {
            kind: "commands".to_owned(),
            digest: digest.to_string(),
            ..Entry::default()
        };
        ledger::save(self.client, ledger::COMMANDS, &done).await?;
        Ok(site.commands.len())
    }

    fn environment(&self) -> BTreeMap<String, String> {
        let site = &self.run.site;
        script::environment(site, &site.seats[site.first_master()])
    }

    async fn on_first(&self, job: Job) -> Result<()> {
        let index = self.run.site.first_master();
        self.note(format!("running {}", job.what));
        script::run(
            &self.run.sessions[index],
            &self.run.host_name(index),
            &*self.run.observer,
            job,
        )
        .await
    }

    fn note(&self, message: String) {
        self.run.observer.event(Event::Note { host: None, message });
    }

    /// What was launched once and is not named any more stays: taking it away is not for an apply to decide. That is told once.
    async fn tell_unwished(&self, before: &Ledger) -> Result<()> {
        if unwished(before, &self.run.site.apps).is_empty() {
            return Ok(());
        }
        // What was launched meanwhile is noted there.
        let ledger = ledger::load(self.client).await?;
        for (key, name, entry) in unwished(&ledger, &self.run.site.apps) {
            let told_unwished = !entry.told_unwished;
            let now = Entry {
                told_unwished,
                ..entry.clone()
            };
            ledger::save(self.client, key, &now).await?;
            if !told_unwished {
                continue;
            }
            let remedy = match entry.kind.as_str() {
                "chart" => format!(
                    "; helm uninstall {name} --namespace {} would remove it",
                    entry.namespace
                ),
                _ => String::new(),
            };
            self.note(format!(
                "the application {name} was launched before and is not wished any more; it stays{remedy}"
            ));
        }
        Ok(())
    }
}

/// Applications of which it is to be noted that nobody wishes them any more, or that somebody does again: key, name and entry.
fn unwished<'l>(ledger: &'l Ledger, apps: &[App]) -> Vec<(&'l str, &'l str, &'l Entry)> {
    let launched = ledger
        .iter()
        .filter_map(|(key, entry)| Some((key.as_str(), key.strip_prefix("app.")?, entry)));
    let is_wished = |name: &str| apps.iter().any(|app| app.name == name);
    launched
        .filter(|(_, name, entry)| is_wished(name) == entry.told_unwished)
        .collect()
}

/// What an earlier version of the image, or of an application, had and nobody wishes any more: for plans.
pub fn leaving(site: &Site, ledger: &Ledger) -> Result<Vec<ObjectRef>> {
    let wanted = objects::all_wanted(site)?;
    let manifests = site.apps.iter().filter(|app| app.kind == Kind::Manifests);
    let keys = manifests
        .map(|app| ledger::app(&app.name))
        .chain([ledger::MANIFESTS.to_owned()]);
    let entries = keys.filter_map(|key| ledger.get(&key));
    let gone = entries.flat_map(|entry| ledger::superfluous(&entry.objects, &wanted).0);
    Ok(gone.cloned().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_wishes_any_more_is_told_once_until_somebody_wishes_it_again() {
        let app = |name: &str| App {
            name: name.into(),
            env: BTreeMap::new(),
            namespace: String::new(),
            kind: Kind::Manifests,
        };
        let mut ledger = Ledger::new();
        for key in ["app.shop", "app.web", "manifests"] {
            ledger.insert(key.into(), Entry::default());
        }
        let told = |ledger: &Ledger, apps: &[App]| -> Vec<String> {
            let unwished = unwished(ledger, apps).into_iter();
            unwished.map(|(_, name, _)| name.to_owned()).collect()
        };
        assert_eq!(told(&ledger, &[app("web"), app("shop")]), [""; 0]);
        assert_eq!(told(&ledger, &[app("web")]), ["shop"]);
        ledger.get_mut("app.shop").unwrap().told_unwished = true;
        assert_eq!(told(&ledger, &[app("web")]), [""; 0], "once is enough");
        assert_eq!(
            told(&ledger, &[app("web"), app("shop")]),
            ["shop"],
            "and is told anew after this"
        );
    }

    #[test]
    fn a_thing_is_launched_when_it_is_new_another_or_was_not_finished() {
        let (one, other) = (oci::Digest::of(b"1"), oci::Digest::of(b"2"));
        let entry = |begun| Entry {
            digest: one.to_string(),
            begun,
            ..Entry::default()
        };
        assert!(is_due(None, &one));
        assert!(!is_due(Some(&entry(false)), &one));
        assert!(is_due(Some(&entry(false)), &other));
        assert!(is_due(Some(&entry(true)), &one));
    }
}
