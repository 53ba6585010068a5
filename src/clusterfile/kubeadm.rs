//! The kubeadm and kubelet kinds: what of them means something to the `native` distribution.
//!
//! Everything else in them is refused by name, because ignoring a setting is worse than not having it.

use serde::Serialize;
use serde_json::{Map, Value};

use crate::decode::{Decoder, Object};
use crate::names::did_you_mean;
use crate::yaml::{self, Node};

/// The kinds read here.
pub const KINDS: [&str; 5] = [
    "ClusterConfiguration",
    "InitConfiguration",
    "JoinConfiguration",
    "KubeletConfiguration",
    "KubeProxyConfiguration",
];

/// What a field of `KubeletConfiguration` holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Bool,
    Int,
    Text,
    Texts,
    /// Names to amounts.
    Amounts,
    /// Eviction signals to thresholds.
    Thresholds,
}

/// Fields of `KubeletConfiguration` (kubelet.config.k8s.io/v1beta1) that the node agent reads.
const KUBELET_FIELDS: [(&str, Form); 26] = [
    ("maxPods", Form::Int),
    ("podPidsLimit", Form::Int),
    ("containerLogMaxSize", Form::Text),
    ("containerLogMaxFiles", Form::Int),
    ("evictionHard", Form::Thresholds),
    ("evictionPressureTransitionPeriod", Form::Text),
    ("imageGCHighThresholdPercent", Form::Int),
    ("imageGCLowThresholdPercent", Form::Int),
    ("imageMinimumGCAge", Form::Text),
    ("imageMaximumGCAge", Form::Text),
    ("kubeReserved", Form::Amounts),
    ("systemReserved", Form::Amounts),
    ("failSwapOn", Form::Bool),
    ("cpuCFSQuota", Form::Bool),
    ("serializeImagePulls", Form::Bool),
    ("maxParallelImagePulls", Form::Int),
    ("resolvConf", Form::Text),
    ("nodeStatusUpdateFrequency", Form::Text),
    ("nodeStatusReportFrequency", Form::Text),
    ("nodeLeaseDurationSeconds", Form::Int),
    ("fileCheckFrequency", Form::Text),
    ("syncFrequency", Form::Text),
    ("runtimeRequestTimeout", Form::Text),
    ("enableDebuggingHandlers", Form::Bool),
    ("allowedUnsafeSysctls", Form::Texts),
    ("seccompDefault", Form::Bool),
];

/// Signals of `evictionHard` that the node agent watches.
const SIGNALS: [&str; 6] = [
    "memory.available",
    "nodefs.available",
    "nodefs.inodesFree",
    "imagefs.available",
    "imagefs.inodesFree",
    "pid.available",
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
        for (field, form) in KUBELET_FIELDS {
            if let Some(node) = document.get(field) {
                check_form(decoder, node, field, form);
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

/// What the agent would refuse is better refused here, before it stops on every host.
fn check_form(decoder: &mut Decoder, node: &Node, field: &str, form: Form) {
    let whole = |number: &serde_json::Number| number.is_i64() || number.is_u64();
    match (form, &node.value) {
        (Form::Bool, yaml::Value::Bool(_)) | (Form::Text, yaml::Value::String(_)) => {}
        (Form::Int, yaml::Value::Number(number)) if whole(number) => {}
        (Form::Bool, _) => decoder.mismatch(node, field, "true or false"),
        (Form::Int, _) => decoder.mismatch(node, field, "a whole number"),
        (Form::Text, _) => decoder.mismatch(node, field, "a string"),
        (Form::Texts, _) => drop(decoder.strings(node, field)),
        (Form::Amounts | Form::Thresholds, yaml::Value::Map(entries)) => {
            for (key, value) in entries {
                let text = decoder.string(value, &format!("{field}.{}", key.name));
                if form == Form::Thresholds {
                    check_threshold(decoder, key, value, text.as_deref());
                }
            }
        }
        (Form::Amounts | Form::Thresholds, _) => decoder.mismatch(node, field, "a mapping"),
    }
}

fn check_threshold(decoder: &mut Decoder, key: &yaml::Key, value: &Node, text: Option<&str>) {
    let signal = &key.name;
    if !SIGNALS.contains(&signal.as_str()) {
        let hint = did_you_mean(signal, SIGNALS);
        let known = SIGNALS.join(", ");
        decoder.problem(
            key.at,
            format!("evictionHard: {signal:?} is no signal{hint} (known: {known})"),
        );
    }
    if let Some(text) = text.filter(|text| !is_threshold(text)) {
        let forms = "neither an amount (100Mi) nor a percentage (5%)";
        decoder.problem(value.at, format!("evictionHard.{signal}: {text:?} is {forms}"));
    }
}

/// A percentage of 0 to 100, or a whole number with one of Kubernetes' suffixes.
fn is_threshold(text: &str) -> bool {
    if let Some(percent) = text.strip_suffix('%') {
        return percent
            .parse()
            .is_ok_and(|percent: f64| (0.0..=100.0).contains(&percent));
    }
    let digits = text.bytes().take_while(|b| b.is_ascii_digit() || *b == b'.').count();
    let (number, suffix) = text.split_at(digits);
    let known = ["", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    number.parse::<f64>().is_ok() && known.contains(&suffix)
}

/// Merges honoured kubelet fields over a base configuration, field by field.
pub fn merge_kubelet(base: &mut Map<String, Value>, settings: &KubeadmSettings) {
    for (field, value) in &settings.kubelet {
        base.insert(field.clone(), value.clone());
    }
}
