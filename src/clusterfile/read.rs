//! Reading a Clusterfile: documents by kind, and kind `Cluster` itself.

use std::path::{Path, PathBuf};

use crate::cluster::{
    Cluster, Clusterfile, ContainerRuntime, DEFAULT_DATA_ROOT, DEFAULT_REGISTRY_PORT, Env, ExternalRegistry, HostAlias,
    LocalRegistry, Registry,
};
use crate::decode::{Decoder, Object};
use crate::extra::required_string;
use crate::names::{COMPUTED_VARIABLES, did_you_mean, is_env_name};
use crate::problem::Problems;
use crate::ssh::{self, SshOverlay};
use crate::yaml::{self, Node, Position};
use crate::{extra, first, hosts, kubeadm, plugin, sealer, trust, validate};

/// Why a Clusterfile can't be had.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file can't be read.
    #[error("{}", unreadable(.path, .source))]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The file says something wrong.
    #[error(transparent)]
    Problems(#[from] Problems),
}

fn unreadable(path: &Path, source: &std::io::Error) -> String {
    match source.kind() {
        std::io::ErrorKind::NotFound => format!(
            "there is no file {}: name the Clusterfile with -f FILE; installer gen prints that of a cluster that runs",
            path.display()
        ),
        _ => format!("cannot read the Clusterfile {}: {source}", path.display()),
    }
}

/// `apiVersion`s of Sealer's v2 kinds; all mean the same.
const SEALER_VERSIONS: [&str; 2] = ["sealer.io/v2", "sealer.cloud/v2"];
/// Kinds that look the same in all of Sealer's versions.
const OLD_KINDS: [&str; 2] = ["Config", "Plugin"];
const SEALER_KINDS: [&str; 4] = ["Cluster", "Config", "Plugin", "Application"];

impl Clusterfile {
    /// Reads and parses a file.
    ///
    /// # Errors
    /// If it can't be read, or every finding in it.
    pub fn load(path: &Path) -> Result<Self, LoadError> {
        let text = std::fs::read_to_string(path).map_err(|source| LoadError::Read {
            path: path.to_path_buf(),
            source,
        })?;
        let base = path.parent().unwrap_or(Path::new("."));
        Ok(Clusterfile::parse(&text, &path.display().to_string(), base)?)
    }

    /// Parses `text`; `file` is its name in messages, and relative paths in it start at `base`.
    ///
    /// # Errors
    /// Every finding, with its place.
    pub fn parse(text: &str, file: &str, base: &Path) -> Result<Self, Problems> {
        let documents = yaml::parse(text).map_err(|error| Problems::one(file, error.at, error.message))?;
        let mut decoder = Decoder::new(file, base);
        let documents: Vec<Node> = documents
            .into_iter()
            .flat_map(|document| match is_first_form(&document) {
                true => first::to_second(&mut decoder, &document),
                false => vec![document],
            })
            .collect();
        let first_refused = decoder.problem_count() > 0;
        let mut parts = Parts::default();
        for document in &documents {
            parts.read(&mut decoder, document);
        }
        let Some((cluster, mut places)) = parts.cluster else {
            // A document whose kind was refused may have been meant as one.
            if !parts.kind_refused {
                decoder.problem(Position::default(), "there is no document of kind Cluster");
            }
            return Err(decoder.finish().err().unwrap_or_else(|| Problems::new(Vec::new())));
        };
        places.hosts_refused |= first_refused;
        places.blocks_refused |= first_refused || parts.blocks_refused;
        let clusterfile = Clusterfile {
            cluster,
            configs: parts.configs,
            plugins: parts.plugins,
            applications: parts.applications,
            kubeadm: parts.kubeadm,
            warnings: Vec::new(),
            file: file.to_owned(),
            documents,
        };
        validate::check(&mut decoder, &clusterfile, &places);
        let warnings = decoder.finish()?;
        Ok(Clusterfile {
            warnings,
            ..clusterfile
        })
    }
}

impl Clusterfile {
    /// Where it names an application, as `FILE:LINE:COLUMN: FIELD`: the first place, in `appNames`, `launchApps` or `configs`.
    #[must_use]
    pub fn place_of_app(&self, name: &str) -> Option<String> {
        let named = |(field, node): (&'static str, &Node)| (node.as_str() == Some(name)).then_some((field, node.at));
        self.documents.iter().find_map(|document| {
            let (kind, spec) = (document.get("kind")?.as_str()?, document.get("spec")?);
            let items = |field| spec.get(field).map(Node::items).unwrap_or_default().iter();
            let place = match kind {
                "Cluster" => items("appNames").map(|item| ("spec.appNames", item)).find_map(named),
                "Application" => items("launchApps")
                    .map(|item| ("spec.launchApps", item))
                    .chain(items("configs").filter_map(|config| Some(("spec.configs", config.get("name")?))))
                    .find_map(named),
                _ => None,
            };
            place.map(|(field, at)| format!("{}:{}:{}: {field}", self.file, at.line, at.column))
        })
    }
}

fn is_first_form(document: &Node) -> bool {
    let says = |field: &str| document.get(field).and_then(Node::as_str);
    says("kind") == Some("Cluster")
        && says("apiVersion").is_some_and(|version| sealer::FIRST_CLUSTER.contains(&version))
}

#[derive(Default)]
struct Parts {
    cluster: Option<(Cluster, Places)>,
    configs: Vec<extra::Config>,
    plugins: Vec<plugin::Plugin>,
    applications: Vec<extra::Application>,
    kubeadm: kubeadm::KubeadmSettings,
    /// Whether a document's kind was refused.
    kind_refused: bool,
    /// Whether `ClusterConfiguration.networking` was refused.
    blocks_refused: bool,
}

/// Where things stood that are validated as a whole.
#[derive(Default)]
pub(crate) struct Places {
    pub(crate) name: Position,
    pub(crate) hosts: Position,
    pub(crate) addresses: Vec<Position>,
    pub(crate) env: Position,
    /// Whether any group of hosts is written down, and one with the role master, though its addresses may be refused.
    pub(crate) names_group: bool,
    pub(crate) names_master: bool,
    /// Whether something was refused that may have named hosts or their roles: then nobody knows whether one lacks.
    pub(crate) hosts_refused: bool,
    /// The same of the blocks of pods and services.
    pub(crate) blocks_refused: bool,
}

impl Parts {
    fn read(&mut self, decoder: &mut Decoder, node: &Node) {
        let mut document = Object::new(decoder, node, "");
        if document.lacks("kind") {
            decoder.problem(node.at, "kind is missing");
        }
        let (Some(kind), version) = (document.string(decoder, "kind"), document.string(decoder, "apiVersion")) else {
            self.kind_refused = true;
            return;
        };
        if kubeadm::KINDS.contains(&kind.as_str()) {
            let networking = node.get("networking");
            self.blocks_refused |= networking.is_some_and(|networking| !kubeadm::is_mapping_of_strings(networking));
            return self.kubeadm.read(decoder, document, &kind, version.as_deref());
        }
        let kind_at = node.get("kind").map_or(node.at, |kind| kind.at);
        if let Some((_, why)) = sealer::KINDS.iter().find(|(refused, _)| *refused == kind) {
            decoder.problem(kind_at, format!("kind {kind} is not supported: {why}"));
            return;
        }
        if !SEALER_KINDS.contains(&kind.as_str()) {
            self.kind_refused = true;
            let known = SEALER_KINDS.iter().chain(kubeadm::KINDS.iter()).copied();
            let hint = did_you_mean(&kind, known.clone());
            let known: Vec<&str> = known.collect();
            decoder.problem(
                kind_at,
                format!("unknown kind {kind:?}{hint} (known: {})", known.join(", ")),
            );
            return;
        }
        check_version(decoder, node, &kind, version.as_deref());
        document.refuse(decoder, &sealer::DOCUMENT);
        match kind.as_str() {
            "Config" => self.configs.push(extra::config(decoder, document)),
            "Plugin" => self.plugins.push(plugin::plugin(decoder, document)),
            "Application" => self.applications.push(extra::application(decoder, document)),
            _ if self.cluster.is_some() => decoder.problem(kind_at, "there is a second document of kind Cluster"),
            _ => self.cluster = Some(cluster(decoder, document)),
        }
    }
}

pub(crate) fn check_version(decoder: &mut Decoder, node: &Node, kind: &str, version: Option<&str>) {
    let at = node.get("apiVersion").map_or(node.at, |version| version.at);
    match version {
        Some(version) if SEALER_VERSIONS.contains(&version) => {}
        Some(version) if sealer::OLD_VERSIONS.contains(&version) && OLD_KINDS.contains(&kind) => {}
        Some(version) => {
            decoder.problem(
                at,
                format!("apiVersion {version:?} is not supported (use {})", SEALER_VERSIONS[0]),
            );
        }
        // What is given and no string was refused already.
        None if node.get("apiVersion").is_some() => {}
        // Only a Cluster means something else in another version.
        None if kind != "Cluster" => {
            decoder.warning(at, format!("apiVersion is missing; {} is meant", SEALER_VERSIONS[0]));
        }
        None => decoder.problem(at, format!("apiVersion is missing (use {})", SEALER_VERSIONS[0])),
    }
}

/// `metadata.name`, required; nothing else of metadata means anything to us.
pub(crate) fn metadata_name(decoder: &mut Decoder, document: &mut Object<'_>) -> String {
    let Some(mut metadata) = document.object(decoder, "metadata") else {
        decoder.problem(document.at(), "metadata.name is missing");
        return String::new();
    };
    let name = required_string(decoder, &mut metadata, "name");
    metadata.refuse(decoder, &sealer::METADATA);
    metadata.finish(decoder);
    name
}

/// `env`, a list of `NAME=VALUE`.
pub(crate) fn env_entries(decoder: &mut Decoder, object: &mut Object<'_>) -> Env {
    let mut env = Env::new();
    for (entry, at) in object.strings(decoder, "env") {
        match entry.split_once('=') {
            Some((name, value)) if is_env_name(name) => {
                if env.insert(name.to_string(), value.to_string()).is_some() {
                    let message = "is given twice, but a variable has one value here";
                    decoder.problem(at, format!("{}: {name} {message}", object.name("env")));
                }
                warn_computed(decoder, at, &object.name("env"), name);
            }
            // The value may be a secret, so only the name is repeated.
            Some((name, _)) => {
                let why = "templates and shells know letters, digits and _ only";
                decoder.problem(
                    at,
                    format!("{}: {name:?} can't be a variable's name: {why}", object.name("env")),
                );
            }
            None => decoder.problem(at, format!("{} entries have the form NAME=VALUE", object.name("env"))),
        }
    }
    env
}

/// A variable that the installer fills itself, as Sealer does, has no other value.
fn warn_computed(decoder: &mut Decoder, at: Position, field: &str, name: &str) {
    if COMPUTED_VARIABLES.contains(&name) {
        decoder.warning(
            at,
            format!("{field}: {name} is filled by the installer, so this value is not used"),
        );
    }
}

fn cluster(decoder: &mut Decoder, mut document: Object<'_>) -> (Cluster, Places) {
    let mut places = Places {
        name: document.at(),
        hosts: document.at(),
        env: document.at(),
        ..Places::default()
    };
    let name = metadata_name(decoder, &mut document);
    let mut cluster = Cluster {
        name,
        image: String::new(),
        trust: None,
        env: Env::new(),
        ssh: SshOverlay::default().resolve(),
        data_root: PathBuf::from(DEFAULT_DATA_ROOT),
        container_runtime: ContainerRuntime::Containerd,
        host_aliases: Vec::new(),
        registry: Registry::LocalRegistry(LocalRegistry::default()),
        hosts: Vec::new(),
        cmd: Vec::new(),
        app_names: Vec::new(),
    };
    match document.object(decoder, "spec") {
        Some(spec) => read_spec(decoder, spec, &mut cluster, &mut places),
        None => {
            decoder.problem(document.at(), "spec is missing");
            places.hosts_refused = true;
        }
    }
    document.finish(decoder);
    (cluster, places)
}

fn read_spec(decoder: &mut Decoder, mut spec: Object<'_>, cluster: &mut Cluster, places: &mut Places) {
    let at = |node: Option<&Node>, or: Position| node.map_or(or, |node| node.at);
    places.hosts_refused = !spec.is_mapping();
    let before = decoder.problem_count();
    cluster.image = spec.string(decoder, "image").unwrap_or_default();
    if decoder.problem_count() > before || !spec.is_mapping() {
        // It was refused already.
    } else if cluster.image.trim().is_empty() {
        decoder.problem(
            at(spec.get("image"), spec.at()),
            "spec.image is missing: which cluster image shall be installed?",
        );
    } else if cluster.image.contains(char::is_whitespace) {
        decoder.problem(
            at(spec.get("image"), spec.at()),
            format!("spec.image {:?} has a space in it", cluster.image),
        );
    }
    cluster.trust = spec.object(decoder, "trust").map(|object| trust::read(decoder, object));
    places.env = at(spec.get("env"), spec.at());
    let before = decoder.problem_count();
    cluster.env = env_entries(decoder, &mut spec);
    places.blocks_refused = decoder.problem_count() > before;
    let overlay = spec
        .object(decoder, "ssh")
        .map(|object| ssh::read(decoder, object))
        .unwrap_or_default();
    cluster.ssh = overlay.clone().resolve();
    if let Some(root) = spec.string(decoder, "dataRoot") {
        if !root.starts_with('/') || root.split('/').any(|part| part == "..") {
            decoder.problem(
                at(spec.get("dataRoot"), spec.at()),
                "spec.dataRoot must be an absolute path without ..",
            );
        }
        cluster.data_root = PathBuf::from(root);
    }
    if let Some(mut runtime) = spec.object(decoder, "containerRuntime") {
        let known = [
            ("containerd", ContainerRuntime::Containerd),
            ("docker", ContainerRuntime::Docker),
        ];
        cluster.container_runtime = runtime
            .word(decoder, "type", &known)
            .unwrap_or(ContainerRuntime::Containerd);
        runtime.finish(decoder);
    }
    cluster.host_aliases = host_aliases(decoder, &mut spec);
    if let Some(object) = spec.object(decoder, "registry") {
        cluster.registry = registry(decoder, object);
    }
    places.hosts = at(spec.get("hosts"), spec.at());
    cluster.hosts = hosts::read(decoder, &mut spec, &overlay, &cluster.env, places);
    let texts = |list: Vec<(String, Position)>| list.into_iter().map(|(text, _)| text).collect();
    cluster.cmd = texts(spec.strings(decoder, "cmd"));
    cluster.app_names = texts(spec.strings(decoder, "appNames"));
    spec.refuse(decoder, &sealer::SPEC);
    spec.finish(decoder);
}

fn host_aliases(decoder: &mut Decoder, spec: &mut Object<'_>) -> Vec<HostAlias> {
    let mut aliases = Vec::new();
    for (index, node) in spec.list(decoder, "hostAliases").iter().enumerate() {
        let mut object = Object::new(decoder, node, format!("spec.hostAliases[{index}]"));
        let ip = required_string(decoder, &mut object, "ip");
        let hostnames: Vec<String> = object
            .strings(decoder, "hostnames")
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        if let Some(bad) = hostnames
            .iter()
            .find(|name| !crate::names::is_dns_subdomain(&name.to_lowercase()))
        {
            decoder.problem(
                node.at,
                format!("{}: {bad:?} is no host name", object.name("hostnames")),
            );
        }
        match ip.parse() {
            Ok(ip) => aliases.push(HostAlias { ip, hostnames }),
            // What is missing or no string was told.
            Err(_) if ip.is_empty() => {}
            Err(_) => decoder.problem(node.at, format!("{} {ip:?} is no IP address", object.name("ip"))),
        }
        object.finish(decoder);
    }
    aliases
}

fn registry(decoder: &mut Decoder, mut object: Object<'_>) -> Registry {
    let local = object.object(decoder, "localRegistry");
    let external = object.object(decoder, "externalRegistry");
    if local.is_some() && external.is_some() {
        decoder.problem(
            object.at(),
            "spec.registry takes localRegistry or externalRegistry, not both",
        );
    }
    object.finish(decoder);
    match (external, local) {
        (Some(external), _) => Registry::ExternalRegistry(external_registry(decoder, external)),
        (None, Some(local)) => Registry::LocalRegistry(local_registry(decoder, local)),
        (None, None) => Registry::LocalRegistry(LocalRegistry::default()),
    }
}

fn registry_domain(decoder: &mut Decoder, object: &mut Object<'_>) -> Option<String> {
    let domain = object.string(decoder, "domain")?;
    let is_address = domain.parse::<std::net::Ipv4Addr>().is_ok();
    if !is_address && !crate::names::is_dns_subdomain(&domain) {
        decoder.problem(
            object.at(),
            format!("{} {domain:?} is no host name", object.name("domain")),
        );
    }
    Some(domain)
}

fn local_registry(decoder: &mut Decoder, mut object: Object<'_>) -> LocalRegistry {
    let defaults = LocalRegistry::default();
    let mut registry = LocalRegistry {
        domain: registry_domain(decoder, &mut object).unwrap_or(defaults.domain),
        port: object.port(decoder, "port").unwrap_or(defaults.port),
        insecure: object.boolean(decoder, "insecure").unwrap_or(defaults.insecure),
        ha: object.boolean(decoder, "ha").unwrap_or(defaults.ha),
        username: object.string(decoder, "username"),
        password: object.secret(decoder, "password", "passwordFile", "passwordEnv"),
        alt_names: Vec::new(),
    };
    check_credentials(decoder, &mut object);
    if let Some(mut cert) = object.object(decoder, "cert") {
        if let Some(mut names) = cert.object(decoder, "subjectAltName") {
            registry
                .alt_names
                .extend(names.strings(decoder, "dnsNames").into_iter().map(|(name, _)| name));
            registry
                .alt_names
                .extend(names.strings(decoder, "ips").into_iter().map(|(name, _)| name));
            names.finish(decoder);
        }
        cert.finish(decoder);
    }
    object.finish(decoder);
    registry
}

fn external_registry(decoder: &mut Decoder, mut object: Object<'_>) -> ExternalRegistry {
    if object.lacks("domain") {
        decoder.problem(object.at(), format!("{} is missing", object.name("domain")));
    }
    let domain = registry_domain(decoder, &mut object);
    let registry = ExternalRegistry {
        domain: domain.unwrap_or_default(),
        port: object.port(decoder, "port").unwrap_or(DEFAULT_REGISTRY_PORT),
        insecure: object.boolean(decoder, "insecure").unwrap_or(false),
        username: object.string(decoder, "username"),
        password: object.secret(decoder, "password", "passwordFile", "passwordEnv"),
        ca_file: object.path(decoder, "caFile"),
    };
    check_credentials(decoder, &mut object);
    if registry.insecure && registry.ca_file.is_some() {
        decoder.problem(
            object.at(),
            format!("{} means plain HTTP, which needs no caFile", object.name("insecure")),
        );
    }
    object.finish(decoder);
    registry
}

fn check_credentials(decoder: &mut Decoder, object: &mut Object<'_>) {
    let has_password = ["password", "passwordFile", "passwordEnv"]
        .into_iter()
        .any(|field| object.get(field).is_some());
    if object.get("username").is_some() != has_password {
        decoder.problem(
            object.at(),
            format!("{} and a password go together", object.name("username")),
        );
    }
}
