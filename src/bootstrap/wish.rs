//! From a Clusterfile to a site: what this version can do is checked first, before any host is touched.

use crate::{
    Error, Result,
    site::{Image, Launch, Seat, Seen, Site},
};
use clusterfile::{Clusterfile, ContainerRuntime, LocalRegistry, Registry};
use host::{Facts, Scope};

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
    match &cluster.registry {
        Registry::ExternalRegistry(_) => {
            refused.push(
                "registry.externalRegistry: this version runs the private registry itself; use registry.localRegistry"
                    .to_owned(),
            );
        }
        Registry::LocalRegistry(local) if local.username.is_some() => {
            refused.push(
                "registry.localRegistry.username: the private registry of this version asks for no login; leave it out"
                    .to_owned(),
            );
        }
        Registry::LocalRegistry(_) => {}
    }
    for plugin in &clusterfile.plugins {
        refused.push(format!(
            "Plugin {}: this version runs no hooks; use LAUNCH or CMDS of the Kubefile, or remove it",
            plugin.name
        ));
    }
    for application in &clusterfile.applications {
        if !application.configs.is_empty() {
            refused.push(format!(
                "Application {}: settings of applications are not done yet; remove its configs",
                application.name
            ));
        }
    }
    if refused.is_empty() {
        return Ok(());
    }
    Err(Error::Wish(format!(
        "this cannot be done:{}",
        refused.iter().map(|r| format!("\n  {r}")).collect::<String>()
    )))
}

/// Scope of a Clusterfile on its hosts.
pub fn scope(clusterfile: &Clusterfile) -> Scope {
    Scope {
        cluster: clusterfile.cluster.name.clone(),
        data_root: clusterfile.cluster.data_root.display().to_string(),
    }
}

/// Which registry the cluster has; [`check`] has refused all others.
pub fn registry(clusterfile: &Clusterfile) -> LocalRegistry {
    match &clusterfile.cluster.registry {
        Registry::LocalRegistry(local) => local.clone(),
        Registry::ExternalRegistry(_) => LocalRegistry::default(),
    }
}

/// Whether each host, in the Clusterfile's order, runs the private registry: every master, or only the first.
pub fn registry_hosts(clusterfile: &Clusterfile) -> Vec<bool> {
    let everywhere = registry(clusterfile).ha;
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
/// When the address plan is none, or the image has no such application.
pub fn site(clusterfile: &Clusterfile, mut image: Image, found: Vec<(Facts, Seen)>) -> Result<Site> {
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
    image.launch = launch(clusterfile, &image)?;
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
    Ok(Site {
        scope: scope(clusterfile),
        networks,
        kubernetes_ip,
        dns_ip,
        registry: registry(clusterfile),
        aliases: cluster.host_aliases.clone(),
        kubeadm: clusterfile.kubeadm.clone(),
        configs: clusterfile.configs.clone(),
        seats: seats.collect(),
        image,
    })
}

/// The image's choice of applications and commands, unless the Clusterfile says otherwise.
fn launch(clusterfile: &Clusterfile, image: &Image) -> Result<Launch> {
    let mut launch = image.launch.clone();
    let named: Vec<String> = clusterfile
        .applications
        .iter()
        .flat_map(|a| a.launch_apps.clone())
        .collect();
    for names in [&clusterfile.cluster.app_names, &named] {
        if !names.is_empty() {
            launch.apps.clone_from(names);
        }
    }
    if !clusterfile.cluster.cmd.is_empty() {
        launch.commands.clone_from(&clusterfile.cluster.cmd);
    }
    for app in &launch.apps {
        let folder = format!("{}{app}/", crate::paths::source::APPLICATIONS);
        // Without files the image is not here, and nothing is launched either.
        if !image.files.is_empty() && !image.files.keys().any(|path| path.starts_with(&folder)) {
            return Err(Error::Image {
                image: image.reference.clone(),
                message: format!("it has no application {app:?}"),
            });
        }
    }
    Ok(launch)
}
