//! Image configurations (image-spec 1.1, `config.md`), and what a cluster image says in its labels.

use std::collections::BTreeMap;

use clusterfile::Env;
use oci::{Digest, Platform};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::lock::Lock;

/// Times in images are all this one, so that the same inputs give the same bytes.
const EPOCH: &str = "1970-01-01T00:00:00Z";

/// An image's configuration. Unknown fields of foreign images are not kept: foreign bytes are never written again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageConfig {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) created: Option<String>,
    pub(crate) architecture: String,
    pub(crate) os: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) variant: Option<String>,
    #[serde(default)]
    pub(crate) config: RunConfig,
    pub(crate) rootfs: RootFs,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) history: Vec<History>,
}

/// How a container of the image runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct RunConfig {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) user: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) exposed_ports: Option<BTreeMap<String, BTreeMap<String, String>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) env: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) entrypoint: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cmd: Option<Vec<String>>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) working_dir: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) labels: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RootFs {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) diff_ids: Vec<Digest>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct History {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) created: Option<String>,
    #[serde(default)]
    pub(crate) created_by: String,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) empty_layer: bool,
}

impl ImageConfig {
    pub(crate) fn new(platform: &Platform) -> ImageConfig {
        ImageConfig {
            created: Some(EPOCH.to_string()),
            architecture: platform.architecture.clone(),
            os: platform.os.clone(),
            variant: platform.variant.clone(),
            config: RunConfig::default(),
            rootfs: RootFs {
                kind: "layers".to_string(),
                diff_ids: Vec::new(),
            },
            history: Vec::new(),
        }
    }

    /// Remembers an instruction, and the layer it made if any.
    pub(crate) fn record(&mut self, created_by: String, diff_id: Option<Digest>) {
        let empty_layer = diff_id.is_none();
        self.rootfs.diff_ids.extend(diff_id);
        self.history.push(History {
            created: Some(EPOCH.to_string()),
            created_by,
            empty_layer,
        });
    }

    pub(crate) fn env(&self) -> Env {
        let entries = self.config.env.iter().flatten();
        entries
            .filter_map(|entry| entry.split_once('='))
            .map(|(k, v)| (k.to_string(), v.to_string()))
            .collect()
    }

    pub(crate) fn set_env(&mut self, env: &Env) {
        let entries: Vec<String> = env.iter().map(|(name, value)| format!("{name}={value}")).collect();
        self.config.env = (!entries.is_empty()).then_some(entries);
    }
}

/// Labels with this prefix belong to the cluster image format.
pub(crate) const PREFIX: &str = "installer.internal/";

/// What a cluster image says about itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterConfig {
    /// `ENV`.
    pub env: Env,
    /// `LABEL`.
    pub labels: BTreeMap<String, String>,
    /// `LAUNCH`: applications launched unless the Clusterfile says otherwise.
    pub launch: Vec<String>,
    /// `CMDS`: commands run on the first master once the cluster is up, unless the Clusterfile's `cmd` overrides them.
    pub commands: Vec<String>,
    /// `APP`, `APPENV`, `APPCMDS`; files lie below `application/apps/<name>/`.
    pub apps: BTreeMap<String, AppMeta>,
    /// `CNI`: the network plugins whose manifests are among `manifests/`.
    pub cni: Vec<String>,
    /// `CSI`: the storage plugins whose manifests are among `manifests/`.
    pub csi: Vec<String>,
    /// `KUBEVERSION`: the versions of Kubernetes this image fits.
    pub kube_version: Option<String>,
    /// What the image names of this platform's files mean.
    #[serde(skip)]
    pub lock: Option<Lock>,
}

/// One application of a cluster image. Paths are below `application/apps/<name>/`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AppMeta {
    /// How it is launched if it has no commands.
    #[serde(default)]
    pub kind: AppKind,
    /// What is launched, in this order: a chart's folder (`.`) or archive, manifests, or scripts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<String>,
    /// Files of values for the chart, the last counts most; `*.tmpl` are rendered first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
    /// Its environment.
    #[serde(default, skip_serializing_if = "Env::is_empty")]
    pub env: Env,
    /// Its launch commands, run in its folder instead of what its kind would do.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub commands: Vec<String>,
}

/// How an application is launched.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AppKind {
    /// Its manifests are applied.
    #[default]
    Manifests,
    /// Its helm chart is installed, or upgraded, as the release of its name, in the namespace `default`.
    Chart,
    /// Its shell scripts are run.
    Scripts,
    /// Only its commands tell; without any it is never launched.
    Files,
}

impl ClusterConfig {
    pub(crate) fn from_image(config: &ImageConfig) -> Result<ClusterConfig, Error> {
        let mut cluster = ClusterConfig {
            env: config.env(),
            ..ClusterConfig::default()
        };
        for (name, value) in config.config.labels.iter().flatten() {
            let json = |source| oci::Error::Json {
                path: format!("label {name}"),
                source,
            };
            match name.strip_prefix(PREFIX) {
                Some("launch") => cluster.launch = serde_json::from_str(value).map_err(json)?,
                Some("commands") => cluster.commands = serde_json::from_str(value).map_err(json)?,
                Some("apps") => cluster.apps = serde_json::from_str(value).map_err(json)?,
                Some("cni") => cluster.cni = serde_json::from_str(value).map_err(json)?,
                Some("csi") => cluster.csi = serde_json::from_str(value).map_err(json)?,
                Some("lock") => cluster.lock = Some(serde_json::from_str(value).map_err(json)?),
                Some("kube-version") => cluster.kube_version = Some(value.clone()),
                _ => {
                    cluster.labels.insert(name.clone(), value.clone());
                }
            }
        }
        Ok(cluster)
    }

    pub(crate) fn write_to(&self, config: &mut ImageConfig) -> Result<(), Error> {
        let mut labels = self.labels.clone();
        let mut own = |name: &str, value: Option<serde_json::Result<String>>| -> Result<(), Error> {
            if let Some(value) = value {
                let name = format!("{PREFIX}{name}");
                let value = value.map_err(|source| oci::Error::Json {
                    path: name.clone(),
                    source,
                })?;
                labels.insert(name, value);
            }
            Ok(())
        };
        own(
            "launch",
            (!self.launch.is_empty()).then(|| serde_json::to_string(&self.launch)),
        )?;
        own(
            "commands",
            (!self.commands.is_empty()).then(|| serde_json::to_string(&self.commands)),
        )?;
        own(
            "apps",
            // Sorted by name, as whoever merges images writes it too.
            (!self.apps.is_empty()).then(|| serde_json::to_value(&self.apps).map(|apps| apps.to_string())),
        )?;
        own("cni", (!self.cni.is_empty()).then(|| serde_json::to_string(&self.cni)))?;
        own("csi", (!self.csi.is_empty()).then(|| serde_json::to_string(&self.csi)))?;
        own("lock", self.lock.as_ref().map(serde_json::to_string))?;
        own("kube-version", self.kube_version.clone().map(Ok))?;
        config.set_env(&self.env);
        config.config.labels = (!labels.is_empty()).then_some(labels);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_cluster_image_says_survives_its_labels() {
        let mut cluster = ClusterConfig {
            launch: vec!["web".into()],
            cni: vec!["x".into()],
            csi: vec!["y".into()],
            ..Default::default()
        };
        cluster.env.insert("A".into(), "b=c".into());
        cluster.labels.insert("vendor".into(), "me".into());
        cluster.apps.insert(
            "web".into(),
            AppMeta {
                kind: AppKind::Chart,
                files: vec![".".into()],
                values: vec!["v.yaml".into()],
                commands: vec!["kubectl apply -f .".into()],
                ..Default::default()
            },
        );
        cluster.kube_version = Some(">=1.30".into());
        let mut config = ImageConfig::new(&crate::manifest::host_platform());
        cluster.write_to(&mut config).unwrap();
        assert_eq!(ClusterConfig::from_image(&config).unwrap(), cluster);
    }
}
