//! From a Clusterfile to a site: what this version can do is checked first, before any host is touched.

use crate::{
    Error, Result, apps, hooks, render,
    site::{self, Image, Seat, Seen, Site},
};
use clusterfile::{Clusterfile, ContainerRuntime, Registry, Strategy, kubefile::kube_version_satisfies};
use host::{Facts, Scope};
use std::sync::OnceLock;

/// The version of Kubernetes that the native distribution is.
pub const KUBERNETES: &str = "1.36.0";

/// Refuses what this version does not do, by name.
///
/// # Errors
/// All that is refused, in one message.
pub fn check(clusterfile: &Clusterfile) -> Result<()> {
    let cluster = &clusterfile.cluster;
    let mut refused: Vec<String> = Vec::new();
    let masters = clusterfile.masters().count();
    if masters > 1 {
        refused.push(format!(
            "{masters} masters: this version sets up one; give the others the role node"
        ));
    }
    if cluster.container_runtime == ContainerRuntime::Docker {
        refused.push("containerRuntime docker: this version brings its own containerd; a Docker that runs on a host is left alone".to_owned());
    }
    refused.extend(hooks::refused(&clusterfile.plugins));
    if refused.is_empty() {
        return Ok(());
    }
    Err(Error::Wish(format!(
        "this cannot be done:{}",
        refused.iter().map(|r| format!("\n  {r}")).collect::<String>()
    )))
}

/// Refuses what the wish and the image do not fit together in: the versions, the applications, the hooks, the files to be changed.
/// Nothing here needs a host.
///
/// # Errors
/// The first of these.
pub fn check_image(clusterfile: &Clusterfile, image: &Image) -> Result<()> {
    if let Some(range) = &image.kube_version {
        let bad = |message: String| Error::Image {
            image: image.reference.clone(),
            message,
        };
        let fits = kube_version_satisfies(range, KUBERNETES);
        if !fits.map_err(|error| bad(format!("its KUBEVERSION {range:?} cannot be understood: {error}")))? {
            return Err(bad(format!(
                "it fits Kubernetes {range} (KUBEVERSION), but this installer sets up {KUBERNETES}; use an image made for it"
            )));
        }
    }
    hooks::of_image(image)?;
    apps::launched(clusterfile, image)?;
    for config in apps::configs(clusterfile) {
        let path = &config.path;
        let refuse = |why: &str| Err(Error::Wish(format!("Config {}: {path}: {why}", config.name)));
        if config.strategy == Strategy::Merge && !render::merges(path) {
            return refuse("strategy merge works for YAML and JSON only; use strategy overwrite");
        }
        let other = image.content.keys().any(|known| {
            let known = known.strip_suffix(".tmpl").unwrap_or(known);
            known
                .strip_prefix(path.as_str())
                .is_some_and(|rest| rest.starts_with('/'))
        });
        if other {
            return refuse("it is a folder of the image");
        }
        if image.content.contains_key(path) && !image.files.contains_key(path) {
            return refuse(render::no_text(path));
        }
    }
    Ok(())
}

/// Scope of a Clusterfile on its hosts.
pub fn scope(clusterfile: &Clusterfile) -> Scope {
    Scope {
        cluster: clusterfile.cluster.name.clone(),
        data_root: clusterfile.cluster.data_root.display().to_string(),
    }
}

/// Where hosts pull images from.
pub fn registry(clusterfile: &Clusterfile) -> site::Registry {
    match &clusterfile.cluster.registry {
        Registry::LocalRegistry(local) => site::Registry {
            domain: local.domain.clone(),
            port: local.port,
            insecure: local.insecure,
            login: local.username.is_some(),
            external: false,
            alt_names: local.alt_names.clone(),
        },
        Registry::ExternalRegistry(external) => site::Registry {
            domain: external.domain.clone(),
            port: external.port,
            insecure: external.insecure,
            login: external.username.is_some(),
            external: true,
            alt_names: Vec::new(),
        },
    }
}

/// Whether each host, in the Clusterfile's order, runs the private registry: every master, or only the first; none if somebody else
/// runs one.
pub fn registry_hosts(clusterfile: &Clusterfile) -> Vec<bool> {
    let everywhere = match &clusterfile.cluster.registry {
        Registry::LocalRegistry(local) => local.ha,
        Registry::ExternalRegistry(_) => return vec![false; clusterfile.cluster.hosts.len()],
    };
    let mut first = true;
    let on = |host: &clusterfile::Host| {
        let runs = host.is_master() && (everywhere || first);
        first &= !host.is_master();
        runs
    };
    clusterfile.cluster.hosts.iter().map(on).collect()
}

/// Puts wish, image and hosts together; `found` is in the order of the Clusterfile's hosts.
///
/// # Errors
/// When the address plan is none, the image has no such application, or the hosts are those of a cluster that gets its images from
/// elsewhere.
pub fn site(clusterfile: &Clusterfile, image: Image, found: Vec<(Facts, Seen)>) -> Result<Site> {
    let cluster = &clusterfile.cluster;
    let networks = clusterfile
        .networks(&image.env)
        .map_err(|e| Error::Wish(e.to_string()))?;
    let (Some(kubernetes_ip), Some(dns_ip)) = (networks.kubernetes_service_ip(), networks.dns_service_ip()) else {
        return Err(Error::Wish(format!(
            "the service block {} is too small",
            networks.service_cidr
        )));
    };
    let registry = registry(clusterfile);
    // One host that says so is enough: on the others somebody may have removed what says it.
    let own = found.iter().any(|(_, seen)| seen.joined && seen.mirrored);
    let joined = found.iter().find(|(_, seen)| seen.joined);
    if let Some((facts, _)) = joined.filter(|_| own == registry.external) {
        let (is, shall) = match registry.external {
            true => ("its own registry", "somebody else's"),
            false => ("somebody else's registry", "its own"),
        };
        return Err(Error::on(
            &facts.hostname,
            format!(
                "the cluster that is there pulls from {is}; that it shall pull from {shall} is not supported: reset it first"
            ),
        ));
    }
    let registries = registry_hosts(clusterfile);
    let seats = cluster
        .hosts
        .iter()
        .zip(registries)
        .zip(found)
        .map(|((host, registry), (facts, seen))| Seat {
            ip: host.ip,
            name: facts.hostname.to_lowercase(),
            master: host.is_master(),
            registry,
            labels: host.labels.clone(),
            taints: host.taints.clone(),
            env: host.env.clone(),
            facts,
            seen,
        });
    let seats: Vec<Seat> = seats.collect();
    let hooks = hooks::merged(hooks::of_image(&image)?, &clusterfile.plugins);
    hooks::check_scopes(&hooks, &seats)?;
    Ok(Site {
        scope: scope(clusterfile),
        networks,
        kubernetes_ip,
        dns_ip,
        registry,
        aliases: cluster.host_aliases.clone(),
        kubeadm: clusterfile.kubeadm.clone(),
        configs: apps::configs(clusterfile),
        hooks,
        apps: apps::launched(clusterfile, &image)?,
        commands: commands(clusterfile, &image),
        fence: None,
        recorded: false,
        seats,
        staying: Vec::new(),
        names: OnceLock::new(),
        image,
    })
}

/// The image's commands, unless the Clusterfile has some: those of the cluster before those of applications.
fn commands(clusterfile: &Clusterfile, image: &Image) -> Vec<String> {
    let documents = clusterfile.applications.iter().map(|application| &application.cmds);
    let mut wished = std::iter::once(&clusterfile.cluster.cmd).chain(documents);
    wished
        .find(|commands| !commands.is_empty())
        .unwrap_or(&image.launch.commands)
        .clone()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{add_file, clusterfile, site};

    fn checked(more: &str, change: impl FnOnce(&mut Site)) -> Result<(), String> {
        let mut site = site();
        add_file(&mut site, "etc/app/x.yaml.tmpl", "a: 1\n", false);
        let binary = site::Entry {
            content: "sha256:1".into(),
            executable: true,
        };
        site.image.content.insert("bin/tool".into(), binary);
        change(&mut site);
        let clusterfile = clusterfile(more);
        check(&clusterfile)
            .and_then(|()| check_image(&clusterfile, &site.image))
            .map_err(|error| error.to_string())
    }

    fn document(kind: &str, spec: &str) -> String {
        format!("---\napiVersion: sealer.io/v2\nkind: {kind}\nmetadata: {{name: d}}\nspec: {spec}\n")
    }

    #[test]
    fn what_cannot_be_is_refused_before_any_host_is_asked() {
        for (more, why) in [
            (
                document("Plugin", "{action: upgrade, data: x}"),
                "Plugin d: hooks of the moment upgrade-cluster",
            ),
            (
                document("Config", "{path: etc/a.toml, strategy: merge, data: x}"),
                "works for YAML and JSON only",
            ),
            (
                document("Config", "{path: bin/tool, data: x}"),
                "Config d: bin/tool: it is no text",
            ),
            (
                document("Config", "{path: etc/app, data: x}"),
                "Config d: etc/app: it is a folder of the image",
            ),
            (document("Application", "{launchApps: [web]}"), "no application \"web\""),
            (
                "  containerRuntime: {type: docker}\n".to_owned(),
                "containerRuntime docker",
            ),
        ] {
            let error = checked(&more, |_| {}).unwrap_err();
            assert!(error.contains(why), "{more}: {error}");
        }
        for more in [
            document("Config", "{path: etc/app/x.yaml, strategy: merge, data: 'a: 2'}"),
            document("Config", "{path: etc/new.conf, data: x}"),
            document("Plugin", "{action: pre-install|post-clean-host, scope: node, data: x}"),
            "  registry: {externalRegistry: {domain: r.corp, insecure: true}}\n".to_owned(),
            "  registry: {localRegistry: {username: u, password: p}}\n".to_owned(),
        ] {
            assert_eq!(checked(&more, |_| {}), Ok(()), "{more}");
        }
    }

    #[test]
    fn an_image_for_another_kubernetes_is_refused() {
        let with = |range: &str| checked("", |site| site.image.kube_version = Some(range.to_owned()));
        assert_eq!(with(">=1.30"), Ok(()));
        let error = with("<1.30").unwrap_err();
        assert!(
            error.contains("it fits Kubernetes <1.30 (KUBEVERSION), but this installer sets up 1.36.0"),
            "{error}"
        );
        assert!(with("latest").unwrap_err().contains("cannot be understood"));
    }

    #[test]
    fn a_cluster_does_not_change_whose_registry_it_pulls_from() {
        let external = "  registry: {externalRegistry: {domain: r.corp}}\n";
        let made = |more: &str, joined: bool, mirrored: bool| {
            let site = site();
            let found = site.seats.iter().map(|seat| {
                let seen = Seen {
                    joined,
                    mirrored,
                    ..Seen::default()
                };
                (seat.facts.clone(), seen)
            });
            super::site(&clusterfile(more), site.image.clone(), found.collect())
        };
        assert!(
            made(external, true, true)
                .unwrap_err()
                .to_string()
                .contains("not supported: reset it first")
        );
        assert!(
            made("", true, false)
                .unwrap_err()
                .to_string()
                .contains("somebody else's registry")
        );
        let mut one = site();
        let found = one.seats.iter_mut().enumerate().map(|(index, seat)| {
            let seen = Seen {
                joined: true,
                mirrored: index == 0,
                ..Seen::default()
            };
            (seat.facts.clone(), seen)
        });
        let found = found.collect();
        assert!(super::site(&clusterfile(""), one.image.clone(), found).is_ok());
        for (more, joined, mirrored) in [("", true, true), (external, true, false), ("", false, false)] {
            let site = made(more, joined, mirrored).unwrap();
            assert_eq!(site.registries().count(), usize::from(!site.registry.external));
        }
    }

    #[test]
    fn commands_come_from_the_nearest_who_has_some() {
        let mut image = site().image;
        image.launch.commands = vec!["image".into()];
        let of = |more: &str| commands(&clusterfile(more), &image);
        let application = document("Application", "{cmds: [app]}");
        assert_eq!(of(""), ["image"]);
        assert_eq!(of(&application), ["app"]);
        assert_eq!(of(&format!("  cmd: [own]\n{application}")), ["own"]);
    }
}
