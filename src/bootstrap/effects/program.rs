//! What a unit runs from the rootfs: its program and the libraries that programs load. Only that decides whether it has to be restarted.

use crate::{
    image::{TEXTS, resolve},
    site::Site,
};
use std::collections::BTreeMap;

/// Links that are followed from one program to the next.
const MAX_LINKS: usize = 8;
/// Folders of libraries.
const LIBRARIES: [&str; 2] = ["lib", "lib64"];

/// Names all that the unit with this text runs; `None` where it runs nothing of the rootfs, or something that is not in it.
pub(super) fn digest(site: &Site, unit: &str) -> Option<oci::Digest> {
    let mut parts: BTreeMap<&str, &str> = BTreeMap::new();
    for program in programs(unit) {
        let path = program.strip_prefix(host::CURRENT)?.strip_prefix('/')?;
        add_program(site, path, &mut parts)?;
    }
    if parts.is_empty() {
        return None;
    }
    let libraries = site.image.content.iter().filter(|(path, _)| is_library(path));
    parts.extend(libraries.map(|(path, entry)| (path.as_str(), entry.content.as_str())));
    let lines: Vec<String> = parts
        .iter()
        .map(|(path, content)| format!("{path} {content}\n"))
        .collect();
    Some(oci::Digest::of(lines.concat().as_bytes()))
}

/// The programs that a unit starts (`systemd.service(5)`: some characters in front of the path are settings of their own).
fn programs(unit: &str) -> impl Iterator<Item = &str> {
    let commands = unit.lines().filter_map(|line| {
        let (key, value) = line.trim().split_once('=')?;
        ["ExecStart", "ExecStartPre", "ExecStartPost"]
            .contains(&key.trim())
            .then_some(value)
    });
    commands.filter_map(|command| {
        let program = command.split_whitespace().next()?;
        Some(program.trim_start_matches(['@', '-', ':', '+', '!', '|']))
    })
}

/// The program, and each link on the way to it.
fn add_program<'s>(site: &'s Site, path: &str, parts: &mut BTreeMap<&'s str, &'s str>) -> Option<()> {
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        let (name, entry) = site.image.content.get_key_value(&path)?;
        parts.insert(name, &entry.content);
        match entry.content.strip_prefix("link to ") {
            Some(target) => path = resolve(&path, target),
            None => return Some(()),
        }
    }
    None
}

fn is_library(path: &str) -> bool {
    let mut folders = path.split('/');
    // Folders of configuration have charts and the like in them.
    let own = folders.clone().next().is_some_and(|top| TEXTS.contains(&top));
    folders.next_back();
    !own && folders.any(|folder| LIBRARIES.contains(&folder))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        effects::{Learned, agent, runtime},
        site::Entry,
        testing::site,
    };
    use host::Effect;

    fn programs_of(unit: &str) -> Vec<&str> {
        programs(unit).collect()
    }

    #[test]
    fn what_a_unit_starts_is_found_with_its_settings_in_front() {
        let unit = "[Service]\nEnvironment=PATH=/x\nExecStartPre=-/opt/installer/bin/a b\nExecStart=+/opt/installer/bin/c --d\n";
        assert_eq!(programs_of(unit), ["/opt/installer/bin/a", "/opt/installer/bin/c"]);
    }

    /// The units of the agent and of the runtime on a node whose rootfs has this.
    fn units(content: &[(&str, &str)]) -> [String; 2] {
        let mut site = site();
        for (path, content) in content {
            let entry = Entry {
                content: (*content).to_owned(),
                executable: true,
            };
            site.image.content.insert((*path).to_owned(), entry);
        }
        // Whatever else is another rootfs.
        site.image.rootfs.content = oci::Digest::of(format!("{content:?}").as_bytes());
        let learned = Learned::default();
        let all = [
            agent(&site, &site.seats[1], &learned),
            runtime(&site, &site.seats[1], &learned),
        ];
        all.map(|effects| {
            let unit = effects.unwrap().into_iter().find_map(|effect| match effect {
                Effect::Unit(unit) => unit.content,
                _ => None,
            });
            unit.unwrap()
        })
    }

    #[test]
    fn a_unit_changes_when_what_it_runs_does_and_at_nothing_else() {
        let base = [
            ("bin/clusterd", "link to ../usr/local/bin/clusterd"),
            ("usr/local/bin/clusterd", "sha256:1"),
            ("bin/containerd", "sha256:2"),
            ("lib/libc.so.6", "sha256:3"),
            ("bin/kubectl", "sha256:4"),
            ("manifests/dns.yaml", "sha256:5"),
            ("charts/lib/x.yaml", "sha256:6"),
        ];
        let before = units(&base);
        // what changes → whether the agent and the runtime are restarted
        for (path, expected) in [
            ("usr/local/bin/clusterd", [true, false]),
            ("bin/containerd", [false, true]),
            ("lib/libc.so.6", [true, true]),
            ("bin/kubectl", [false, false]),
            ("manifests/dns.yaml", [false, false]),
            ("charts/lib/x.yaml", [false, false]),
        ] {
            let changed = base.map(|(name, content)| (name, if name == path { "sha256:9" } else { content }));
            let after = units(&changed);
            let restarts = [before[0] != after[0], before[1] != after[1]];
            assert_eq!(restarts, expected, "{path}");
        }
        // What is not known is taken for changed.
        assert_ne!(units(&base[3..4]), units(&base[3..5]));
    }
}
