//! `installer drift`: what on hosts and in the cluster is not as it was applied last. What the Clusterfile says by now does not matter
//! here; what to do about drift is an apply's business.
//!
//! Hosts compare themselves with what they remember of their last run. The API server knows which fields of an object are ours; which
//! were ours after the last apply is in the cluster too ([`crate::cluster::ledger`]). What charts and commands launched is not looked at: helm and its charts own it.

use crate::{
    Error, Result,
    cluster::{Applier, Cluster, api, ledger, nodes, ownership, record, takeover, title},
    install::{self, Options},
    reset,
    status::on_all,
    wish,
};
use clusterfile::Clusterfile;
use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _, stream};
use host::{facts::Query, proto::DriftReport};
use k8s_openapi::api::core::v1::Node;
use kube::{Api, ResourceExt as _, api::ListParams};
use serde::Serialize;
use serde_json::Value;

/// Objects that are read at the same time.
const WIDTH: usize = 16;

/// See the head of this file.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Drift {
    /// Host by host, in the order of the Clusterfile.
    pub hosts: Vec<HostDrift>,
    /// What differs in the cluster.
    pub objects: Vec<ObjectDrift>,
    /// Why the API server did not answer, if it did not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api: Option<String>,
}

impl Drift {
    /// Whether everybody could be asked.
    pub fn complete(&self) -> bool {
        self.api.is_none() && self.hosts.iter().all(|host| host.error.is_none())
    }

    /// Whether anything differs.
    pub fn any(&self) -> bool {
        !self.objects.is_empty() || self.hosts.iter().any(|host| !host.report.items.is_empty())
    }
}

/// One host.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HostDrift {
    /// Its address.
    pub host: String,
    /// Why it could not be asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What differs there.
    #[serde(flatten)]
    pub report: DriftReport,
}

/// An object that is not as it was applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectDrift {
    /// `deployment kube-system/dns`.
    pub object: String,
    /// Whether it is gone.
    pub gone: bool,
    /// The fields that differ.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fields: Vec<String>,
}

/// Asks every host and the cluster.
pub async fn look(clusterfile: &Clusterfile, options: &Options) -> Drift {
    let scope = wish::scope(clusterfile);
    let targets = install::targets(clusterfile);
    let hosts = on_all(&targets, options, &scope, |session| {
        async move {
            let report = session.client.drift().await;
            let report = report.map_err(session.failed("comparing the host with what was applied"))?;
            let facts = session.client.facts(&Query::default()).await;
            let name = facts
                .map_err(session.failed("looking at the host"))?
                .hostname
                .to_lowercase();
            Ok((name, report))
        }
        .boxed()
    })
    .await;
    let joined = |answer: &Result<(String, DriftReport)>| match answer {
        Ok((name, report)) if report.since.is_some() => Some(name.clone()),
        _ => None,
    };
    let names: Vec<String> = hosts.iter().filter_map(|(_, answer)| joined(answer)).collect();
    let (objects, api) = match cluster(clusterfile, options, &names).await {
        Ok(objects) => (objects, None),
        Err(error) => (Vec::new(), Some(error.to_string())),
    };
    let hosts = hosts.into_iter().map(|(ip, answer)| {
        let (error, report) = match answer {
            Ok((_, report)) if report.since.is_some() => (None, report),
            Ok(_) => {
                let unknown =
                    "it does not remember what was applied to it: that was an older version, or no apply ended well";
                (Some(format!("{ip}: {unknown}")), DriftReport::default())
            }
            Err(error) => (Some(error.to_string()), DriftReport::default()),
        };
        HostDrift {
            host: ip.to_string(),
            error,
            report,
        }
    });
    Drift {
        hosts: hosts.collect(),
        objects,
        api,
    }
}

async fn cluster(clusterfile: &Clusterfile, options: &Options, hosts: &[String]) -> Result<Vec<ObjectDrift>> {
    let cluster = reset::open_cluster(clusterfile, options).await?;
    let mut drift = objects(&cluster).await?;
    drift.extend(of_nodes(&cluster, hosts).await?);
    Ok(drift)
}

/// Objects of manifests, those that let nodes join, and the stored Clusterfile.
///
/// # Errors
/// When the API server does not answer.
pub(crate) async fn objects(cluster: &Cluster) -> Result<Vec<ObjectDrift>> {
    let client = &cluster.client;
    let applier = Applier::new(client.clone());
    let mut expected: Vec<Expected> = api::bindings().into_iter().map(Expected::whole).collect();
    for entry in ledger::load(client).await?.into_values() {
        expected.extend(Expected::noted(entry));
    }
    let looked = expected.iter().map(|expected| expected.drift(&applier));
    let found: Vec<Option<ObjectDrift>> = stream::iter(looked).buffered(WIDTH).try_collect().await?;
    let mut drift: Vec<ObjectDrift> = found.into_iter().flatten().collect();
    if !record::exists(client).await? {
        drift.push(ObjectDrift {
            object: format!("configmap kube-system/{}", record::NAME),
            gone: true,
            fields: Vec::new(),
        });
    }
    Ok(drift)
}

/// An object that was applied, and what is known of it.
struct Expected {
    /// All of it, or only what names it.
    object: Value,
    is_whole: bool,
    /// What was ours after the last apply, and the fields of that, where they were noted.
    owned: Option<String>,
    fields: Option<Value>,
    /// What was applied, as versions before noted it.
    applied: Option<String>,
}

impl Expected {
    fn whole(object: Value) -> Self {
        Self {
            object,
            is_whole: true,
            owned: None,
            fields: None,
            applied: None,
        }
    }

    fn noted(entry: ledger::Entry) -> impl Iterator<Item = Self> {
        let mut fields = ownership::unpack(&entry.fields).into_iter();
        let (mut owned, mut applied) = (entry.owned.into_iter(), entry.applied.into_iter());
        entry.objects.into_iter().map(move |object| Self {
            object: object.to_object(),
            is_whole: false,
            owned: owned.next(),
            fields: fields.next(),
            applied: applied.next(),
        })
    }

    async fn drift(&self, applier: &Applier) -> Result<Option<ObjectDrift>> {
        let fields = match applier.live(&self.object).await? {
            None => None,
            Some(live) => match &self.owned {
                Some(owned) => Some(ownership::drifted(&live, owned, self.fields.as_ref())),
                None if takeover::is_due(&live) => Some(takeover::drifted(&live, self.applied.as_deref())),
                None if self.is_whole => applier.differences(&self.object).await?,
                // It was taken over, but that apply did not come so far as to note it.
                None => Some(Vec::new()),
            },
        };
        let gone = fields.is_none();
        let fields = fields.unwrap_or_default();
        Ok((gone || !fields.is_empty()).then(|| ObjectDrift {
            object: title(&self.object),
            gone,
            fields,
        }))
    }
}

/// Nodes that are gone, and labels and taints of ours that somebody took away.
async fn of_nodes(cluster: &Cluster, hosts: &[String]) -> Result<Vec<ObjectDrift>> {
    let api: Api<Node> = Api::all(cluster.client.clone());
    let listed = api.list(&ListParams::default()).await;
    let nodes = listed.map_err(Error::api("listing nodes"))?.items;
    let missing = hosts
        .iter()
        .filter(|name| !nodes.iter().any(|node| node.name_any() == **name));
    let mut drift: Vec<ObjectDrift> = missing
        .map(|name| ObjectDrift {
            object: format!("node {name}"),
            gone: true,
            fields: Vec::new(),
        })
        .collect();
    for node in &nodes {
        let fields = nodes::lost_metadata(node);
        if !fields.is_empty() {
            drift.push(ObjectDrift {
                object: format!("node {}", node.name_any()),
                gone: false,
                fields,
            });
        }
    }
    Ok(drift)
}
