//! What every room of the running agent shares.

use crate::api_client::Api;
use crate::cgroup::Cgroups;
use crate::config::Config;
use crate::cri::Cri;
use crate::env::{Facts, ServiceInfo};
use crate::events::Events;
use crate::images::Images;
use crate::names::Paths;
use crate::objects::Objects;
use crate::relist::Relist;
use crate::volumes::Volumes;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use tokio::sync::watch;

/// Shared parts; all cheap to clone.
#[derive(Debug)]
pub struct Ctx {
    /// Configuration.
    pub config: Config,
    /// Folders.
    pub paths: Paths,
    /// Name of the node.
    pub node_name: String,
    /// Addresses of the node.
    pub host_ips: Vec<String>,
    /// Memory of the machine, bytes.
    pub memory: u64,
    /// CPUs of the machine.
    pub cpus: u32,
    /// The runtime.
    pub cri: Cri,
    /// What the runtime has.
    pub relist: Relist,
    /// Pulls.
    pub images: Images,
    /// Cgroups.
    pub cgroups: Cgroups,
    /// API server.
    pub api: Api,
    /// Referenced objects.
    pub objects: Objects,
    /// Volumes.
    pub volumes: Volumes,
    /// Events for people.
    pub events: Events,
    /// Whether pods can get addresses.
    pub network_ready: watch::Receiver<bool>,
    /// Services, once known.
    pub services: watch::Receiver<Option<Arc<Vec<ServiceInfo>>>>,
    /// What pods may use of the node.
    pub allocatable: BTreeMap<String, Quantity>,
    /// Shares that running burstable pods request, by UID.
    pub burstable: Mutex<BTreeMap<String, u64>>,
}

impl Ctx {
    /// Facts for the downward API.
    pub fn facts(&self, pod_ips: Vec<String>) -> Facts {
        Facts {
            pod_ips,
            host_ips: self.host_ips.clone(),
            allocatable: self.allocatable.clone(),
        }
    }

    /// Keeps the burstable class's weight at what its pods request. `None` takes the pod out.
    pub async fn weigh_burstable(&self, uid: &str, shares: Option<u64>) {
        let sum = {
            let mut all = self.burstable.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let before = match shares {
                Some(s) => all.insert(uid.to_owned(), s),
                None => all.remove(uid),
            };
            if before == shares {
                return;
            }
            all.values().sum::<u64>()
        };
        if let Err(e) = self.cgroups.set_burstable_shares(sum.clamp(2, 262_144)).await {
            tracing::warn!("weight of the burstable class: {e}");
        }
    }
}
