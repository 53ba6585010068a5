//! What a plan starts, restarts, replaces or stops: what previews say of units, and what follows from files that change.
//!
//! A preview looks at each effect by itself. That a unit is restarted because something it reads *will* have changed is only to be seen
//! by looking at all effects of a host together.

use crate::paths;
use host::{
    Action, Change, Effect,
    effect::{Run, Unit},
};
use serde::Serialize;
use std::collections::BTreeSet;

/// Something that does not go on running as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Restart {
    /// `unit installer-agent.service`, `static pod etcd`.
    pub what: String,
    /// `start`, `restart`, `reload`, `replace` or `stop`.
    pub how: &'static str,
}

/// What `effects` restart on a host where applying them does `changes`; `also` are files that change otherwise. Pure.
pub fn of(effects: &[Effect], changes: &[Change], also: &[&str]) -> Vec<Restart> {
    let mut changed: BTreeSet<&str> = also.iter().copied().collect();
    for (effect, _) in effects.iter().zip(changes).filter(|(_, change)| change.changed()) {
        changed.extend(files(effect));
    }
    let mut restarts = Vec::new();
    for (effect, change) in effects.iter().zip(changes) {
        match effect {
            Effect::Unit(unit) => restarts.extend(of_unit(unit, change, &changed)),
            Effect::File(file) => restarts.extend(static_pod(&file.path, change.action)),
            Effect::Absent { path } => restarts.extend(static_pod(path, change.action)),
            _ => {}
        }
    }
    restarts
}

/// The files an effect is about.
fn files(effect: &Effect) -> Vec<&str> {
    match effect {
        Effect::File(file) => vec![&file.path],
        Effect::Link { path, .. } | Effect::Absent { path } | Effect::Key { path } => vec![path],
        Effect::Ca(ca) => vec![&ca.cert, &ca.key],
        Effect::Cert(cert) => vec![&cert.cert, &cert.key],
        Effect::ServiceAccountKey { key, public } => vec![key, public],
        Effect::Kubeconfig(config) => vec![&config.path],
        _ => Vec::new(),
    }
}

fn of_unit(unit: &Unit, change: &Change, changed: &BTreeSet<&str>) -> Option<Restart> {
    let restart = |how| {
        Some(Restart {
            what: format!("unit {}", unit.name),
            how,
        })
    };
    let said = ["restart", "start", "reload", "stop"]
        .into_iter()
        .find(|verb| change.changed() && change.detail.split(", ").any(|step| step == *verb));
    if let Some(how) = said.filter(|how| *how != "reload") {
        return restart(how);
    }
    let fired = unit.run == Run::Started && unit.triggers.iter().any(|path| changed.contains(path.as_str()));
    match (said, fired) {
        (Some(how), _) => restart(how),
        (None, true) if unit.reload => restart("reload"),
        (None, true) => restart("restart"),
        (None, false) => None,
    }
}

/// The node agent runs what lies in the folder of static pods.
fn static_pod(path: &str, action: Action) -> Option<Restart> {
    let file = path.strip_prefix(paths::STATIC_PODS)?.strip_prefix('/')?;
    let how = match action {
        Action::None => return None,
        Action::Create => "start",
        Action::Modify => "replace",
        Action::Remove => "stop",
    };
    Some(Restart {
        what: format!("static pod {}", file.strip_suffix(".yaml").unwrap_or(file)),
        how,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use host::effect::File;

    fn file(path: &str) -> Effect {
        Effect::File(File {
            path: path.into(),
            content: "x".into(),
            mode: 0o644,
            owner: None,
            secret: false,
        })
    }

    fn unit(name: &str, triggers: &[&str]) -> Effect {
        Effect::Unit(Unit::service(
            name,
            "x",
            triggers.iter().map(|&path| path.to_owned()).collect(),
        ))
    }

    fn change(action: Action, detail: &str) -> Change {
        Change {
            what: String::new(),
            action,
            detail: detail.into(),
            diff: None,
        }
    }

    #[test]
    fn what_a_unit_reads_restarts_it_whether_or_not_the_unit_itself_changes() {
        let same = || change(Action::None, "");
        let reloads = || {
            let Effect::Unit(unit) = unit("r.service", &["/etc/b"]) else {
                unreachable!()
            };
            Effect::Unit(Unit { reload: true, ..unit })
        };
        let table = [
            (
                vec![
                    (file("/etc/a"), change(Action::Modify, "content")),
                    (unit("a.service", &["/etc/a"]), same()),
                ],
                vec![],
                "unit a.service restart",
            ),
            (
                vec![(file("/etc/a"), same()), (unit("a.service", &["/etc/a"]), same())],
                vec![],
                "",
            ),
            (
                vec![
                    (file("/etc/a"), change(Action::Modify, "")),
                    (unit("b.service", &["/etc/b"]), same()),
                ],
                vec![],
                "",
            ),
            (
                vec![(unit("a.service", &[]), change(Action::Create, "write, enable, start"))],
                vec![],
                "unit a.service start",
            ),
            (
                vec![(unit("a.service", &[]), change(Action::Modify, "write, restart"))],
                vec![],
                "unit a.service restart",
            ),
            (
                vec![(unit("a.service", &[]), change(Action::Modify, "enable"))],
                vec![],
                "",
            ),
            (vec![(reloads(), same())], vec!["/etc/b"], "unit r.service reload"),
            (
                vec![(reloads(), change(Action::Modify, "write, restart"))],
                vec!["/etc/b"],
                "unit r.service restart",
            ),
            (
                vec![(
                    file("/etc/kubernetes/manifests/etcd.yaml"),
                    change(Action::Modify, "content"),
                )],
                vec![],
                "static pod etcd replace",
            ),
            (
                vec![(file("/etc/kubernetes/manifests/etcd.yaml"), change(Action::Create, ""))],
                vec![],
                "static pod etcd start",
            ),
        ];
        for (rows, also, expected) in table {
            let (effects, changes): (Vec<_>, Vec<_>) = rows.into_iter().unzip();
            let told: Vec<String> = of(&effects, &changes, &also)
                .iter()
                .map(|r| format!("{} {}", r.what, r.how))
                .collect();
            assert_eq!(told.join("; "), expected, "{effects:?}");
        }
    }
}
