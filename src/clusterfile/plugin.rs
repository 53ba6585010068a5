//! Kind `Plugin`: scripts that run on hosts at certain moments.

use std::fmt;
use std::net::Ipv4Addr;
use std::path::Path;

use serde::Serialize;

use crate::cluster::Role;
use crate::decode::{Decoder, Object};
use crate::extra::{required_spec, required_string};
use crate::names::{did_you_mean, is_dns_subdomain};
use crate::net::expand_range;
use crate::problem::Problems;
use crate::read::{check_version, metadata_name};
use crate::sealer;
use crate::yaml::{self, Position};

/// A script and when and where it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Plugin {
    /// `metadata.name`.
    pub name: String,
    /// When it runs; at least one moment.
    pub actions: Vec<PluginAction>,
    /// On which hosts; empty means what is usual for the moment.
    pub scope: Vec<Scope>,
    /// The shell script.
    pub data: String,
}

/// Hosts meant by a [`Plugin`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Every host of this role.
    Role(Role),
    /// The host with this address.
    Address(Ipv4Addr),
    /// The host that calls itself so.
    Name(String),
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Scope::Role(Role::Master) => f.write_str("master"),
            Scope::Role(Role::Node) => f.write_str("node"),
            Scope::Address(ip) => ip.fmt(f),
            Scope::Name(name) => f.write_str(name),
        }
    }
}

/// When a [`Plugin`] runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PluginAction {
    /// Before the first master is set up.
    PreInstall,
    /// After the cluster has been verified.
    PostInstall,
    /// Before a cluster is removed.
    PreUninstall,
    /// After a cluster was removed.
    PostUninstall,
    /// Before a host is prepared.
    PreInitHost,
    /// After a host was prepared.
    PostInitHost,
    /// Before hosts join a cluster that exists.
    PreJoin,
    /// After hosts joined a cluster that exists.
    PostJoin,
    /// Before a host is reset.
    PreCleanHost,
    /// After a host was reset.
    PostCleanHost,
    /// When the cluster is upgraded.
    UpgradeCluster,
    /// When an upgrade is taken back.
    RollbackCluster,
    /// When a host is upgraded.
    UpgradeHost,
}

const ACTIONS: &[(&str, PluginAction)] = &[
    ("pre-install", PluginAction::PreInstall),
    ("post-install", PluginAction::PostInstall),
    ("pre-uninstall", PluginAction::PreUninstall),
    ("post-uninstall", PluginAction::PostUninstall),
    ("pre-init-host", PluginAction::PreInitHost),
    ("post-init-host", PluginAction::PostInitHost),
    ("pre-join", PluginAction::PreJoin),
    ("post-join", PluginAction::PostJoin),
    ("pre-clean-host", PluginAction::PreCleanHost),
    ("post-clean-host", PluginAction::PostCleanHost),
    ("upgrade-cluster", PluginAction::UpgradeCluster),
    ("rollback-cluster", PluginAction::RollbackCluster),
    ("upgrade-host", PluginAction::UpgradeHost),
    // Sealer's names of the same moments.
    ("pre-scaleup", PluginAction::PreJoin),
    ("post-scaleup", PluginAction::PostJoin),
    ("upgrade", PluginAction::UpgradeCluster),
    ("rollback", PluginAction::RollbackCluster),
];

impl fmt::Display for PluginAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = ACTIONS.iter().find(|(_, action)| action == self);
        f.write_str(name.map_or("", |(name, _)| name))
    }
}

impl Plugin {
    /// Reads the plugins of a file that holds nothing else, such as one of an image's `plugins/` folder; `file` is its name in
    /// messages.
    ///
    /// # Errors
    /// Every finding, with its place.
    pub fn parse_all(text: &str, file: &str) -> Result<Vec<Plugin>, Problems> {
        let documents = yaml::parse(text).map_err(|error| Problems::one(file, error.at, error.message))?;
        let mut decoder = Decoder::new(file, Path::new("."));
        let mut plugins = Vec::new();
        for node in &documents {
            let mut document = Object::new(&mut decoder, node, "");
            let before = decoder.problem_count();
            let kind = required_string(&mut decoder, &mut document, "kind");
            let version = document.string(&mut decoder, "apiVersion");
            if decoder.problem_count() > before {
                continue;
            }
            if kind != "Plugin" {
                decoder.problem(node.at, format!("kind is {kind:?}, but only Plugin is known here"));
                continue;
            }
            check_version(&mut decoder, node, &kind, version.as_deref());
            plugins.push(plugin(&mut decoder, document));
        }
        decoder.finish().map(|_| plugins)
    }
}

pub(crate) fn plugin(decoder: &mut Decoder, mut document: Object<'_>) -> Plugin {
    let name = metadata_name(decoder, &mut document);
    let mut plugin = Plugin {
        name,
        actions: Vec::new(),
        scope: Vec::new(),
        data: String::new(),
    };
    if let Some(mut spec) = required_spec(decoder, &mut document) {
        if let Some(why) = refused_type(&mut spec) {
            decoder.problem(why.0, why.1);
            return plugin;
        }
        spec.refuse(decoder, &sealer::PLUGIN);
        let at = spec.get("action").map_or(spec.at(), |node| node.at);
        let text = required_string(decoder, &mut spec, "action");
        plugin.actions = actions(decoder, at, &text);
        let at = spec.get("scope").map_or(spec.at(), |node| node.at);
        let text = spec.string(decoder, "scope").unwrap_or_default();
        plugin.scope = scope(decoder, at, &text);
        plugin.data = required_string(decoder, &mut spec, "data");
        spec.finish(decoder);
    }
    document.finish(decoder);
    plugin
}

/// Why a plugin's type is none of ours.
fn refused_type(spec: &mut Object<'_>) -> Option<(Position, String)> {
    let node = spec.get("type")?;
    let name = node.as_str().unwrap_or(node.kind());
    let why = match sealer::PLUGIN_TYPES.iter().find(|(known, _)| *known == name) {
        Some((_, why)) => why,
        None if name == "SHELL" => return None,
        None if name.eq_ignore_ascii_case("SHELL") => "did you mean \"SHELL\"?",
        None => "write a script, of type SHELL",
    };
    Some((node.at, format!("spec.type {name:?} is not supported: {why}")))
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split([',', '|']).map(str::trim).filter(|word| !word.is_empty())
}

fn actions(decoder: &mut Decoder, at: Position, text: &str) -> Vec<PluginAction> {
    let mut actions = Vec::new();
    for word in words(text) {
        match sealer::OLD_ACTIONS.iter().find(|(old, _)| *old == word) {
            Some((_, instead)) => {
                decoder.problem(at, format!("spec.action {word:?} is of Sealer before 0.9: {instead}"));
            }
            None => actions.extend(crate::decode::pick(decoder, at, "spec.action", word, ACTIONS)),
        }
    }
    actions.sort_unstable();
    actions.dedup();
    actions
}

fn scope(decoder: &mut Decoder, at: Position, text: &str) -> Vec<Scope> {
    let mut scope = Vec::new();
    for word in words(text) {
        match word {
            "master" => scope.push(Scope::Role(Role::Master)),
            "node" => scope.push(Scope::Role(Role::Node)),
            _ if word.starts_with(|c: char| c.is_ascii_digit()) && word.contains('.') => match expand_range(word) {
                Ok(addresses) => scope.extend(addresses.into_iter().map(Scope::Address)),
                Err(error) => decoder.problem(at, format!("spec.scope: {error}")),
            },
            _ if is_dns_subdomain(&word.to_lowercase()) => scope.push(Scope::Name(word.to_lowercase())),
            _ => {
                let hint = did_you_mean(word, ["master", "node"]);
                let forms = "a role, an address or a host's name (several are separated by | or ,)";
                decoder.problem(at, format!("spec.scope: {word:?} is neither {forms}{hint}"));
            }
        }
    }
    scope.sort();
    scope.dedup();
    scope
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(spec: &str) -> Result<Vec<Plugin>, String> {
        let text = format!("apiVersion: sealer.io/v1\nkind: Plugin\nmetadata: {{name: p}}\nspec: {spec}\n");
        Plugin::parse_all(&text, "plugins/p.yaml").map_err(|problems| problems.to_string())
    }

    #[test]
    fn several_moments_and_every_sort_of_host_can_be_named() {
        let plugins =
            parse("{type: SHELL, action: \"pre-install|post-scaleup\", scope: \"node, 10.0.0.2-10.0.0.3|DB-1.corp\", data: x}")
                .unwrap();
        assert_eq!(plugins[0].actions, [PluginAction::PreInstall, PluginAction::PostJoin]);
        let scope: Vec<String> = plugins[0].scope.iter().map(ToString::to_string).collect();
        assert_eq!(scope, ["node", "10.0.0.2", "10.0.0.3", "db-1.corp"]);
    }

    #[test]
    fn what_is_no_plugin_is_refused_with_its_place() {
        for (spec, expected) in [
            (
                "{action: pre-instal, data: x}",
                "plugins/p.yaml:4:16: spec.action is \"pre-instal\", did you mean \"pre-install\"?",
            ),
            ("{data: x}", "plugins/p.yaml:4:7: spec.action is missing"),
            (
                "{action: pre-join, scope: 10.0.0.0/8, data: x}",
                "plugins/p.yaml:4:33: spec.scope: \"10.0.0.0/8\" is a block",
            ),
            (
                "{action: pre-join, scope: ma$ter, data: x}",
                "plugins/p.yaml:4:33: spec.scope: \"ma$ter\" is neither",
            ),
            (
                "{type: HOSTNAME, action: pre-join, data: x}",
                "plugins/p.yaml:4:14: spec.type \"HOSTNAME\" is not supported: name the hosts",
            ),
        ] {
            let error = parse(spec).unwrap_err();
            assert!(error.lines().any(|line| line.starts_with(expected)), "{spec}: {error}");
        }
        let other = Plugin::parse_all("apiVersion: v1\nkind: Pod\n", "plugins/x.yaml").unwrap_err();
        assert!(other.to_string().contains("only Plugin is known here"), "{other}");
    }
}
