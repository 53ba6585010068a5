//! Files of the rootfs that a cluster has otherwise than the image: templates, rendered, and what the Clusterfile says.
//!
//! Configuration that a phase writes to its own place (static pods, units, the runtime's and the agent's configuration) is not
//! among them. What is changed is noted on the host, so that a file gets its old content back when nobody changes it any more.

use crate::{
    Result, paths,
    paths::source,
    render,
    site::{Seat, Site},
};
use host::{Content, Effect, effect::File};
use std::collections::{BTreeMap, BTreeSet};

/// Where a host keeps the note: the rootfs' digest, then a path a line.
pub fn note_path(scope: &host::Scope) -> String {
    format!("{}/overlay", scope.dir())
}

/// What a host shall have otherwise than the image says, by path below the rootfs.
///
/// # Errors
/// When a template cannot be rendered or a file cannot be merged.
pub fn files(site: &Site, seat: &Seat) -> Result<BTreeMap<String, String>> {
    let first = site.seats[site.first_master()].ip == seat.ip;
    let mut changed = BTreeMap::new();
    for path in render::paths(site, "") {
        let template = path.strip_suffix(".tmpl");
        let configured = site.configs.iter().any(|config| render::names(config, path));
        let rendered = template.is_some() && !is_inside_chart(site, path);
        // Applications are launched from the first master, and need be nowhere else.
        let here = first || !path.starts_with(source::APPLICATIONS);
        if here && (configured || rendered) && !becomes_configuration(path) {
            changed.insert(template.unwrap_or(path).to_owned(), render::file(site, seat, path)?);
        }
    }
    Ok(changed)
}

/// Whether a file lies in a folder of a helm chart, whose templates are helm's. What lies beside `Chart.yaml` is not.
fn is_inside_chart(site: &Site, path: &str) -> bool {
    let mut folders = path.match_indices('/').map(|(end, _)| &path[..end]);
    let own = path.rfind('/');
    folders.any(|folder| Some(folder.len()) != own && site.image.content.contains_key(&format!("{folder}/Chart.yaml")))
}

/// Whether a phase turns the file into something elsewhere.
fn becomes_configuration(path: &str) -> bool {
    let plain = |path: &str| path.strip_suffix(".tmpl").unwrap_or(path).to_owned();
    let files = [source::CONTAINERD, source::KUBELET, source::SYSCTL, source::MODULES];
    let unit = |unit: &&str| plain(path) == format!("{}{unit}", source::UNITS);
    files.iter().any(|file| plain(file) == plain(path))
        || paths::unit::ALL.iter().any(unit)
        || path.starts_with(source::STATIC_PODS)
        || path.starts_with(source::MANIFESTS)
}

/// The effects that make a host's rootfs so.
///
/// # Errors
/// As [`files`].
pub fn effects(site: &Site, seat: &Seat) -> Result<Vec<Effect>> {
    let wanted = files(site, seat)?;
    let noted = noted(site, seat);
    let now: BTreeSet<&str> = wanted.keys().map(String::as_str).collect();
    let either: BTreeSet<&str> = noted.iter().map(String::as_str).chain(now.iter().copied()).collect();
    if either.is_empty() {
        return Ok(Vec::new());
    }
    // Noted before anything is changed, so that a killed apply leaves nothing that nobody knows of.
    let mut effects = vec![note(site, &either)];
    for (path, text) in &wanted {
        effects.push(file(site, path, text));
    }
    for path in either.difference(&now) {
        effects.push(match site.image.files.get(*path) {
            Some(text) => file(site, path, text),
            None => Effect::Absent { path: place(path) },
        });
    }
    if either != now {
        effects.push(note(site, &now));
    }
    Ok(effects)
}

fn place(path: &str) -> String {
    format!("{}/{path}", host::CURRENT)
}

fn file(site: &Site, path: &str, text: &str) -> Effect {
    let executable = [path.to_owned(), format!("{path}.tmpl")]
        .iter()
        .any(|path| site.image.content.get(path).is_some_and(|entry| entry.executable));
    Effect::File(File {
        path: place(path),
        content: Content::from(text),
        mode: if executable { 0o755 } else { 0o644 },
        owner: None,
        // Whatever a manifest of one says is not shown by a plan.
        secret: text.lines().any(|line| line.trim_end() == "kind: Secret"),
    })
}

fn note(site: &Site, paths: &BTreeSet<&str>) -> Effect {
    let mut text = format!("{}\n", site.image.rootfs.content);
    for path in paths {
        text.push_str(path);
        text.push('\n');
    }
    Effect::File(File {
        path: note_path(&site.scope),
        content: Content::from(text),
        mode: 0o600,
        owner: None,
        secret: false,
    })
}

/// What is changed already in this same rootfs; another one is as the image has it.
fn noted(site: &Site, seat: &Seat) -> BTreeSet<String> {
    let mut lines = seat.seen.overlay.as_deref().unwrap_or_default().lines();
    if lines.next() != Some(site.image.rootfs.content.as_str()) {
        return BTreeSet::new();
    }
    lines.filter(|path| stays_inside(path)).map(str::to_owned).collect()
}

fn stays_inside(path: &str) -> bool {
    !path.is_empty() && !path.starts_with('/') && !path.split('/').any(|part| part == "..")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{add_file, site};
    use clusterfile::{Config, Strategy};

    fn config(path: &str, strategy: Strategy, data: &str) -> Config {
        Config {
            name: "c".into(),
            path: path.into(),
            strategy,
            data: data.into(),
        }
    }

    fn shown(effects: &[Effect]) -> Vec<String> {
        let show = |effect: &Effect| match effect {
            Effect::File(file) => {
                let text = String::from_utf8_lossy(file.content.bytes()).replace('\n', "|");
                format!("{} {:o} {text}", file.path, file.mode)
            }
            Effect::Absent { path } => format!("{path} absent"),
            other => format!("{other:?}"),
        };
        effects.iter().map(show).collect()
    }

    #[test]
    fn nothing_is_changed_in_a_rootfs_that_needs_no_change() {
        let site = site();
        assert_eq!(effects(&site, &site.seats[0]).unwrap(), []);
    }

    #[test]
    fn templates_and_the_clusterfiles_files_are_put_and_configuration_is_not() {
        let mut site = site();
        add_file(&mut site, "scripts/go.sh.tmpl", "echo {{ .HostIP }}", true);
        add_file(&mut site, "etc/app/x.yaml", "a: 1\nb: 1\n", false);
        add_file(&mut site, "charts/c/Chart.yaml", "name: c\n", false);
        add_file(&mut site, "charts/c/values.yaml.tmpl", "ip: {{ .HostIP }}\n", false);
        add_file(&mut site, "charts/c/files/x.tmpl", "{{ .Values.x }}\n", false);
        site.configs.push(config("etc/app/x.yaml", Strategy::Merge, "b: 2\n"));
        site.configs.push(config(
            "etc/kubelet/config.yaml",
            Strategy::Merge,
            "failSwapOn: false\n",
        ));
        site.configs
            .push(config("manifests/more.yaml", Strategy::Overwrite, "kind: X\n"));
        let digest = site.image.rootfs.content.to_string();
        assert_eq!(
            shown(&effects(&site, &site.seats[1]).unwrap()),
            [
                format!(
                    "/var/lib/installer/demo/overlay 600 {digest}|charts/c/values.yaml|etc/app/x.yaml|scripts/go.sh|"
                ),
                "/opt/installer/charts/c/values.yaml 644 ip: 10.0.0.2|".to_owned(),
                "/opt/installer/etc/app/x.yaml 644 a: 1|b: 2|".to_owned(),
                "/opt/installer/scripts/go.sh 755 echo 10.0.0.2".to_owned(),
            ]
        );
    }

    #[test]
    fn what_is_changed_no_more_becomes_what_the_image_has() {
        let mut site = site();
        add_file(&mut site, "etc/app/x.yaml", "a: 1\n", false);
        let digest = site.image.rootfs.content.to_string();
        site.seats[1].seen.overlay = Some(format!("{digest}\netc/app/x.yaml\netc/app/new\n../../etc/passwd\n"));
        assert_eq!(
            shown(&effects(&site, &site.seats[1]).unwrap()),
            [
                format!("/var/lib/installer/demo/overlay 600 {digest}|etc/app/new|etc/app/x.yaml|"),
                "/opt/installer/etc/app/new absent".to_owned(),
                "/opt/installer/etc/app/x.yaml 644 a: 1|".to_owned(),
                format!("/var/lib/installer/demo/overlay 600 {digest}|"),
            ]
        );
        site.seats[1].seen.overlay = Some(format!("sha256:{}\netc/app/x.yaml\n", "0".repeat(64)));
        assert_eq!(
            effects(&site, &site.seats[1]).unwrap(),
            [],
            "another rootfs is as the image has it"
        );
    }
}
