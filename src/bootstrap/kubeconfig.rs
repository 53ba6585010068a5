//! The administrator's kubeconfig for this machine: the master's own, with the master's address instead of its local balancer.

use crate::{Error, Result, cluster, install, install::Options, paths, wish};
use clusterfile::Clusterfile;
use host::Mode;
use kube::config::Kubeconfig;
use zeroize::Zeroizing;

/// Fetches it from the first master. All names in it are the cluster's, so that it can be merged with others.
///
/// # Errors
/// When the master cannot be reached or has none.
pub async fn fetch(clusterfile: &Clusterfile, options: &Options) -> Result<Zeroizing<String>> {
    let master = clusterfile
        .masters()
        .next()
        .ok_or_else(|| Error::Wish("the Clusterfile has no master".to_owned()))?;
    let sessions = install::connect(&[(master.ip, master.ssh.clone())], options, None).await?;
    let session = &sessions[0];
    session
        .client
        .open(&wish::scope(clusterfile), Mode::Read)
        .await
        .map_err(session.failed("opening the host"))?;
    let text = cluster::admin_kubeconfig(session).await?;
    let server = format!("https://{}:{}", master.ip, paths::API_PORT);
    named(&text, &clusterfile.cluster.name, &server)
}

/// Gives cluster, user and context the cluster's name, and the cluster its address.
///
/// # Errors
/// When `text` is no kubeconfig.
pub fn named(text: &str, name: &str, server: &str) -> Result<Zeroizing<String>> {
    let bad = |e: &dyn std::fmt::Display| Error::Wish(format!("the master's admin.conf is no kubeconfig: {e}"));
    let mut config = Kubeconfig::from_yaml(text).map_err(|e| bad(&e))?;
    let user = format!("{name}-admin");
    for entry in &mut config.clusters {
        entry.name = name.to_owned();
        if let Some(cluster) = &mut entry.cluster {
            cluster.server = Some(server.to_owned());
        }
    }
    for entry in &mut config.auth_infos {
        entry.name.clone_from(&user);
    }
    for entry in &mut config.contexts {
        entry.name = name.to_owned();
        if let Some(context) = &mut entry.context {
            context.cluster = name.to_owned();
            context.user = Some(user.clone());
        }
    }
    config.current_context = Some(name.to_owned());
    write(&config)
}

/// Lays `new` over the kubeconfig `old`: entries of the same name are replaced, its context becomes the current one.
///
/// # Errors
/// When one of them is no kubeconfig.
pub fn merged(old: &str, new: &str) -> Result<Zeroizing<String>> {
    let bad = |e: &dyn std::fmt::Display| Error::Wish(format!("it is no kubeconfig: {e}"));
    let new = Kubeconfig::from_yaml(new).map_err(|e| bad(&e))?;
    let mut old = if old.trim().is_empty() {
        Kubeconfig::default()
    } else {
        Kubeconfig::from_yaml(old).map_err(|e| bad(&e))?
    };
    old.clusters
        .retain(|entry| !new.clusters.iter().any(|n| n.name == entry.name));
    old.auth_infos
        .retain(|entry| !new.auth_infos.iter().any(|n| n.name == entry.name));
    old.contexts
        .retain(|entry| !new.contexts.iter().any(|n| n.name == entry.name));
    old.clusters.extend(new.clusters);
    old.auth_infos.extend(new.auth_infos);
    old.contexts.extend(new.contexts);
    old.current_context = new.current_context;
    old.kind.get_or_insert_with(|| "Config".to_owned());
    old.api_version.get_or_insert_with(|| "v1".to_owned());
    write(&old)
}

fn write(config: &Kubeconfig) -> Result<Zeroizing<String>> {
    let value = serde_json::to_value(config).map_err(|e| Error::Wish(e.to_string()))?;
    Ok(Zeroizing::new(crate::render::yaml(&value)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADMIN: &str = "apiVersion: v1\nkind: Config\nclusters:\n- name: demo\n  cluster: {server: 'https://127.0.0.1:6444'}\nusers:\n- name: kubernetes-admin\n  user: {}\ncontexts:\n- name: kubernetes-admin@demo\n  context: {cluster: demo, user: kubernetes-admin}\ncurrent-context: kubernetes-admin@demo\n";

    #[test]
    fn it_leads_to_the_master_and_merges_with_others() {
        let ours = named(ADMIN, "demo", "https://10.0.0.1:6443").unwrap();
        assert!(ours.contains("https://10.0.0.1:6443") && !ours.contains("127.0.0.1"));
        let other = named(ADMIN, "other", "https://10.9.0.1:6443").unwrap();
        let both = Kubeconfig::from_yaml(&merged(&other, &ours).unwrap()).unwrap();
        assert_eq!(both.clusters.len(), 2);
        assert_eq!(both.current_context.as_deref(), Some("demo"));
        let again = Kubeconfig::from_yaml(&merged(&merged(&other, &ours).unwrap(), &ours).unwrap()).unwrap();
        assert_eq!(again.clusters.len(), 2);
        assert!(merged("", &ours).is_ok());
    }
}
