//! The kubeadm and kubelet kinds: what of them means something to the `native` distribution.
//!
//! Everything else in them is refused by name, because ignoring a setting is worse than not having it.

use serde::Serialize;
use serde_json::{Map, Value};

use crate::decode::{Decoder, Object};

/// The kinds read here.
pub const KINDS: [&str; 5] = [
    "ClusterConfiguration",
    "InitConfiguration",
    "JoinConfiguration",
    "KubeletConfiguration",
    "KubeProxyConfiguration",
];

/// Fields of `KubeletConfiguration` (kubelet.config.k8s.io/v1beta1) that the node agent reads.
pub const KUBELET_FIELDS: [&str; 26] = [
    "maxPods",
    "podPidsLimit",
    "containerLogMaxSize",
    "containerLogMaxFiles",
    "evictionHard",
    "evictionPressureTransitionPeriod",
    "imageGCHighThresholdPercent",
    "imageGCLowThresholdPercent",
    "imageMinimumGCAge",
    "imageMaximumGCAge",
    "kubeReserved",
    "systemReserved",
    "failSwapOn",
    "cpuCFSQuota",
    "serializeImagePulls",
    "maxParallelImagePulls",
    "resolvConf",
    "nodeStatusUpdateFrequency",
    "nodeStatusReportFrequency",
    "nodeLeaseDurationSeconds",
    "fileCheckFrequency",
    "syncFrequency",
    "runtimeRequestTimeout",
    "enableDebuggingHandlers",
    "allowedUnsafeSysctls",
    "seccompDefault",
];

const DISTRIBUTION: &str = "native";

/// What the kubeadm kinds said that the native distribution honours.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct KubeadmSettings {
    /// `ClusterConfiguration.networking.podSubnet`.
    pub pod_subnet: Option<String>,
    /// `ClusterConfiguration.networking.serviceSubnet`.
    pub service_subnet: Option<String>,
    /// `ClusterConfiguration.networking.dnsDomain`.
    pub dns_domain: Option<String>,
    /// `ClusterConfiguration.apiServer.certSANs`: extra names in the API server's certificate.
    pub cert_sans: Vec<String>,
    /// Honoured fields of `KubeletConfiguration`, as written.
    pub kubelet: Map<String, Value>,
}

impl KubeadmSettings {
    pub(crate) fn read(&mut self, decoder: &mut Decoder, document: Object<'_>, kind: &str, version: Option<&str>) {
        let group = match kind {
            "KubeletConfiguration" => "kubelet.config.k8s.io/",
            "KubeProxyConfiguration" => "kubeproxy.config.k8s.io/",
            _ => "kubeadm.k8s.io/",
        };
        if !version.is_some_and(|version| version.starts_with(group)) {
            decoder.problem(
                document.at(),
                format!("{kind} needs an apiVersion of the group {group}"),
            );
        }
        match kind {
            "ClusterConfiguration" => self.cluster(decoder, document),
            "KubeletConfiguration" => self.kubelet(decoder, document),
            "KubeProxyConfiguration" => self.proxy(decoder, document),
            _ => document.finish_foreign(decoder, kind, DISTRIBUTION),
        }
    }

    fn cluster(&mut self, decoder: &mut Decoder, mut document: Object<'_>) {
        const KIND: &str = "ClusterConfiguration";
        if let Some(mut networking) = document.object(decoder, "networking") {
            self.pod_subnet = networking.string(decoder, "podSubnet");
            self.service_subnet = networking.string(decoder, "serviceSubnet");
            self.dns_domain = networking.string(decoder, "dnsDomain");
            networking.finish_foreign(decoder, KIND, DISTRIBUTION);
        }
        if let Some(mut server) = document.object(decoder, "apiServer") {
            self.cert_sans = server
                .strings(decoder, "certSANs")
                .into_iter()
                .map(|(name, _)| name)
                .collect();
            server.finish_foreign(decoder, KIND, DISTRIBUTION);
        }
        document.finish_foreign(decoder, KIND, DISTRIBUTION);
    }

    fn kubelet(&mut self, decoder: &mut Decoder, mut document: Object<'_>) {
        for field in KUBELET_FIELDS {
            if let Some(node) = document.get(field) {
                self.kubelet.insert(field.to_string(), node.to_json());
            }
        }
        // The one driver we run with may be named; another one can't be had.
        document.word(decoder, "cgroupDriver", &[("systemd", ())]);
        document.finish_foreign(decoder, "KubeletConfiguration", DISTRIBUTION);
    }

    fn proxy(&mut self, decoder: &mut Decoder, mut document: Object<'_>) {
        if let Some(mode) = document.get("mode")
            && !matches!(mode.as_str(), Some("" | "nftables"))
        {
            let given = mode.as_str().unwrap_or("something else");
            decoder.problem(
                mode.at,
                format!("mode is {given:?}, but the native proxy works with nftables only"),
            );
        }
        document.finish_foreign(decoder, "KubeProxyConfiguration", DISTRIBUTION);
    }
}

/// Merges honoured kubelet fields over a base configuration, field by field.
pub fn merge_kubelet(base: &mut Map<String, Value>, settings: &KubeadmSettings) {
    for (field, value) in &settings.kubelet {
        base.insert(field.clone(), value.clone());
    }
}
