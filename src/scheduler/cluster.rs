//! The cluster as the scheduler sees it: nodes with what runs on them, kept up to date change by change.
//!
//! Plain data without locks or I/O. A pod that was given a node counts there at once (*assumed*), long before the API
//! server says so.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use component::ObjectKey;
use component::selector::Labels;
use k8s_openapi::api::core::v1::{Node, Pod, PodAffinityTerm, PodSpec, Taint};

use crate::resources::{Resources, max_pods, pod_requests, scored_requests};

/// A port of the host that a pod wants: address, protocol, number.
pub type HostPort = (String, String, i32);

/// A pod and what scheduling asks of it again and again.
#[derive(Debug)]
pub struct PodInfo {
    /// Namespace and name.
    pub key: ObjectKey,
    /// `metadata.uid`.
    pub uid: String,
    /// `spec.priority`.
    pub priority: i32,
    /// What it needs.
    pub requests: Resources,
    /// What it counts for in scores: CPU (thousandths) and memory (bytes).
    pub scored: (i64, i64),
    /// Ports of the host.
    pub ports: Vec<HostPort>,
    /// UID of the owner that manages it.
    pub owner: Option<String>,
    /// The pod itself (pruned).
    pub pod: Arc<Pod>,
}

impl PodInfo {
    /// What scheduling needs of a pod.
    pub fn new(pod: Arc<Pod>) -> Arc<Self> {
        let default = PodSpec::default();
        let spec = pod.spec.as_ref().unwrap_or(&default);
        let sidecars = spec
            .init_containers
            .iter()
            .flatten()
            .filter(|c| c.restart_policy.as_deref() == Some("Always"));
        let ports = spec
            .containers
            .iter()
            .chain(sidecars)
            .flat_map(|c| c.ports.iter().flatten())
            .filter_map(|p| {
                let number = p.host_port.filter(|n| *n > 0)?;
                let ip = p
                    .host_ip
                    .clone()
                    .filter(|ip| !ip.is_empty())
                    .unwrap_or_else(|| "0.0.0.0".into());
                Some((ip, p.protocol.clone().unwrap_or_else(|| "TCP".into()), number))
            })
            .collect();
        let owner = pod
            .metadata
            .owner_references
            .iter()
            .flatten()
            .find(|o| o.controller == Some(true))
            .map(|o| o.uid.clone());
        Arc::new(Self {
            key: ObjectKey::of(&*pod),
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            priority: spec.priority.unwrap_or(0),
            requests: pod_requests(spec),
            scored: scored_requests(spec),
            ports,
            owner,
            pod,
        })
    }

    /// `spec`; every pod has one.
    pub fn spec(&self) -> Option<&PodSpec> {
        self.pod.spec.as_ref()
    }

    /// `metadata.labels`.
    pub fn labels(&self) -> Option<&Labels> {
        self.pod.metadata.labels.as_ref()
    }

    /// Whether deletion has begun.
    pub fn is_deleting(&self) -> bool {
        self.pod.metadata.deletion_timestamp.is_some()
    }

    /// Terms that must hold: pods to be with, pods to be away from.
    pub fn required_terms(&self, anti: bool) -> &[PodAffinityTerm] {
        let Some(affinity) = self.spec().and_then(|s| s.affinity.as_ref()) else {
            return &[];
        };
        let terms = if anti {
            affinity
                .pod_anti_affinity
                .as_ref()
                .and_then(|a| a.required_during_scheduling_ignored_during_execution.as_deref())
        } else {
            affinity
                .pod_affinity
                .as_ref()
                .and_then(|a| a.required_during_scheduling_ignored_during_execution.as_deref())
        };
        terms.unwrap_or_default()
    }

    /// Terms that should hold, with their weights; negative for pods to be away from.
    pub fn preferred_terms(&self) -> impl Iterator<Item = (i64, &PodAffinityTerm)> {
        let affinity = self.spec().and_then(|s| s.affinity.as_ref());
        let with = affinity
            .and_then(|a| a.pod_affinity.as_ref())
            .and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_deref())
            .unwrap_or_default();
        let away = affinity
            .and_then(|a| a.pod_anti_affinity.as_ref())
            .and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_deref())
            .unwrap_or_default();
        let with = with.iter().map(|t| (i64::from(t.weight), &t.pod_affinity_term));
        with.chain(away.iter().map(|t| (-i64::from(t.weight), &t.pod_affinity_term)))
    }

    fn has_pod_affinity(&self) -> bool {
        self.spec()
            .and_then(|s| s.affinity.as_ref())
            .is_some_and(|a| a.pod_affinity.is_some() || a.pod_anti_affinity.is_some())
    }
}

/// A node and what runs on it.
#[derive(Clone, Debug, Default)]
pub struct NodeInfo {
    /// `metadata.name`.
    pub name: String,
    /// The Node object (pruned); nothing if only its pods are known yet.
    pub node: Option<Arc<Node>>,
    /// What it offers.
    pub allocatable: Resources,
    /// How many pods it takes.
    pub max_pods: i64,
    /// What its pods need.
    pub requested: Resources,
    /// What its pods count for in scores: CPU and memory.
    pub scored: (i64, i64),
    /// Its pods by UID.
    pub pods: BTreeMap<String, Arc<PodInfo>>,
    /// Names of images it has, with their sizes in bytes.
    pub images: HashMap<String, i64>,
}

impl NodeInfo {
    /// Its taints.
    pub fn taints(&self) -> &[Taint] {
        self.node
            .as_ref()
            .and_then(|n| n.spec.as_ref())
            .and_then(|s| s.taints.as_deref())
            .unwrap_or_default()
    }

    /// The value of a label.
    pub fn label(&self, key: &str) -> Option<&str> {
        self.node
            .as_ref()?
            .metadata
            .labels
            .as_ref()?
            .get(key)
            .map(String::as_str)
    }

    /// Counts a pod here.
    pub fn add(&mut self, pod: Arc<PodInfo>) {
        self.requested.add(&pod.requests);
        self.scored = (self.scored.0 + pod.scored.0, self.scored.1 + pod.scored.1);
        if let Some(before) = self.pods.insert(pod.uid.clone(), pod) {
            self.discount(&before);
        }
    }

    /// Counts a pod here no longer.
    pub fn remove(&mut self, uid: &str) {
        if let Some(pod) = self.pods.remove(uid) {
            self.discount(&pod);
        }
    }

    fn discount(&mut self, pod: &PodInfo) {
        self.requested.subtract(&pod.requests);
        self.scored = (self.scored.0 - pod.scored.0, self.scored.1 - pod.scored.1);
    }

    fn describe(&mut self, node: Arc<Node>) {
        let status = node.status.as_ref();
        let allocatable = status.and_then(|s| s.allocatable.as_ref().or(s.capacity.as_ref()));
        self.allocatable = Resources::parse(allocatable);
        self.max_pods = max_pods(allocatable);
        self.images = status
            .iter()
            .flat_map(|s| s.images.iter().flatten())
            .flat_map(|i| i.names.iter().flatten().map(|n| (n.clone(), i.size_bytes.unwrap_or(0))))
            .collect();
        self.node = Some(node);
    }
}

/// All nodes and all pods that have one.
#[derive(Debug, Default)]
pub struct Cluster {
    nodes: Vec<NodeInfo>,
    by_name: HashMap<String, usize>,
    /// Where each pod counts, by UID.
    placed: HashMap<String, String>,
    /// UIDs of placed pods that want to be with or away from others.
    with_affinity: BTreeSet<String>,
    /// Pods for which room is being made, by node.
    nominated: HashMap<String, Vec<Arc<PodInfo>>>,
    /// Labels of namespaces.
    pub namespaces: HashMap<String, Labels>,
}

impl Cluster {
    /// Nodes that exist.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeInfo> {
        self.nodes.iter().filter(|n| n.node.is_some())
    }

    /// All slots, also of nodes known by their pods only.
    pub fn slots(&self) -> &[NodeInfo] {
        &self.nodes
    }

    /// A node by name.
    pub fn node(&self, name: &str) -> Option<&NodeInfo> {
        self.by_name.get(name).map(|i| &self.nodes[*i])
    }

    fn slot(&mut self, name: &str) -> &mut NodeInfo {
        let index = *self.by_name.entry(name.to_owned()).or_insert_with(|| {
            self.nodes.push(NodeInfo {
                name: name.to_owned(),
                ..NodeInfo::default()
            });
            self.nodes.len() - 1
        });
        &mut self.nodes[index]
    }

    fn drop_if_empty(&mut self, name: &str) {
        let Some(&index) = self.by_name.get(name) else { return };
        if self.nodes[index].node.is_none() && self.nodes[index].pods.is_empty() {
            self.by_name.remove(name);
            self.nodes.swap_remove(index);
            if let Some(moved) = self.nodes.get(index) {
                self.by_name.insert(moved.name.clone(), index);
            }
        }
    }

    /// A node appeared or changed.
    pub fn set_node(&mut self, node: Arc<Node>) {
        let name = node.metadata.name.clone().unwrap_or_default();
        self.slot(&name).describe(node);
    }

    /// A node is gone; pods that are still said to be there are kept apart until they go too.
    pub fn remove_node(&mut self, name: &str) {
        if let Some(&index) = self.by_name.get(name) {
            self.nodes[index].node = None;
        }
        self.drop_if_empty(name);
    }

    /// Counts a pod on a node, assumed or confirmed; it counts nowhere else from now on.
    pub fn place(&mut self, pod: Arc<PodInfo>, node: &str) {
        if self.placed.get(&pod.uid).is_some_and(|n| n != node) {
            self.forget(&pod.uid);
        }
        self.placed.insert(pod.uid.clone(), node.to_owned());
        if pod.has_pod_affinity() {
            self.with_affinity.insert(pod.uid.clone());
        } else {
            self.with_affinity.remove(&pod.uid);
        }
        self.slot(node).add(pod);
    }

    /// Counts a pod nowhere any more; where it was.
    pub fn forget(&mut self, uid: &str) -> Option<String> {
        let node = self.placed.remove(uid)?;
        self.with_affinity.remove(uid);
        if let Some(&index) = self.by_name.get(&node) {
            self.nodes[index].remove(uid);
        }
        self.drop_if_empty(&node);
        Some(node)
    }

    /// Whether a pod counts somewhere.
    pub fn is_placed(&self, uid: &str) -> bool {
        self.placed.contains_key(uid)
    }

    /// Placed pods that want to be with or away from others, with their nodes.
    pub fn pods_with_affinity(&self) -> impl Iterator<Item = (&Arc<PodInfo>, &NodeInfo)> {
        self.with_affinity.iter().filter_map(|uid| {
            let node = self.node(self.placed.get(uid)?)?;
            Some((node.pods.get(uid)?, node))
        })
    }

    /// Room is being made for a pod on a node.
    pub fn nominate(&mut self, pod: Arc<PodInfo>, node: &str) {
        self.withdraw(&pod.uid);
        self.nominated.entry(node.to_owned()).or_default().push(pod);
    }

    /// No room is being made for a pod any more.
    pub fn withdraw(&mut self, uid: &str) {
        self.nominated.retain(|_, pods| {
            pods.retain(|p| p.uid != uid);
            !pods.is_empty()
        });
    }

    /// Pods for which room is being made on a node, of at least that priority and other than `uid`.
    pub fn nominated<'a>(&'a self, node: &str, priority: i32, uid: &'a str) -> impl Iterator<Item = &'a Arc<PodInfo>> {
        self.nominated
            .get(node)
            .into_iter()
            .flatten()
            .filter(move |p| p.priority >= priority && p.uid != uid)
    }
}

/// Builders for tests and measurements.
#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{Container, NodeSpec, NodeStatus, ResourceRequirements};
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

    fn quantities(list: &[(&str, &str)]) -> BTreeMap<String, Quantity> {
        list.iter()
            .map(|(k, v)| ((*k).to_owned(), Quantity((*v).to_owned())))
            .collect()
    }

    pub(crate) fn labels(list: &[(&str, &str)]) -> Labels {
        list.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    /// A node with its hostname label.
    pub(crate) fn node(name: &str, cpu: &str, memory: &str, more: &[(&str, &str)]) -> Node {
        let mut node = Node::default();
        node.metadata.name = Some(name.into());
        let mut all = labels(more);
        all.insert("kubernetes.io/hostname".into(), name.into());
        node.metadata.labels = Some(all);
        node.spec = Some(NodeSpec::default());
        let allocatable = quantities(&[("cpu", cpu), ("memory", memory), ("pods", "110")]);
        node.status = Some(NodeStatus {
            allocatable: Some(allocatable),
            ..NodeStatus::default()
        });
        node
    }

    /// A pod in `default` that asks for CPU and memory.
    pub(crate) fn pod(name: &str, cpu: &str, memory: &str) -> Pod {
        let mut pod = Pod::default();
        pod.metadata.name = Some(name.into());
        pod.metadata.namespace = Some("default".into());
        pod.metadata.uid = Some(format!("uid-{name}"));
        let requests = quantities(&[("cpu", cpu), ("memory", memory)]);
        let resources = ResourceRequirements {
            requests: Some(requests),
            ..ResourceRequirements::default()
        };
        let container = Container {
            name: "c".into(),
            resources: Some(resources),
            ..Container::default()
        };
        pod.spec = Some(PodSpec {
            containers: vec![container],
            ..PodSpec::default()
        });
        pod
    }

    pub(crate) fn info(pod: Pod) -> Arc<PodInfo> {
        PodInfo::new(Arc::new(pod))
    }

    pub(crate) fn cluster(nodes: Vec<Node>) -> Cluster {
        let mut cluster = Cluster::default();
        nodes.into_iter().for_each(|n| cluster.set_node(Arc::new(n)));
        cluster
    }

    #[test]
    fn pods_count_once_wherever_they_were_seen_last() {
        let mut cluster = cluster(vec![node("a", "4", "1Gi", &[]), node("b", "4", "1Gi", &[])]);
        let pod = info(pod("p", "1", "1Mi"));
        cluster.place(Arc::clone(&pod), "a");
        cluster.place(Arc::clone(&pod), "a");
        assert_eq!(cluster.node("a").unwrap().requested.milli_cpu, 1000);
        cluster.place(Arc::clone(&pod), "b");
        assert_eq!(cluster.node("a").unwrap().requested.milli_cpu, 0);
        assert_eq!(cluster.node("b").unwrap().scored.0, 1000);
        cluster.forget(&pod.uid);
        assert_eq!(cluster.node("b").unwrap().requested, Resources::default());
    }

    #[test]
    fn pods_may_be_seen_before_their_node_and_outlive_it() {
        let mut cluster = Cluster::default();
        cluster.place(info(pod("p", "1", "1Mi")), "late");
        assert_eq!(cluster.nodes().count(), 0);
        cluster.set_node(Arc::new(node("late", "4", "1Gi", &[])));
        assert_eq!(cluster.node("late").unwrap().requested.milli_cpu, 1000);
        cluster.remove_node("late");
        assert_eq!(cluster.nodes().count(), 0);
        cluster.forget("uid-p");
        assert!(cluster.node("late").is_none());
        assert!(cluster.slots().is_empty());
    }
}
