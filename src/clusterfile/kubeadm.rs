//! The kubeadm and kubelet kinds: what of them means something to the `native` distribution.
//!
//! Everything else in them is refused by name, because ignoring a setting is worse than not having it.

use serde::Serialize;
use serde_json::{Map, Value};

use crate::decode::{Decoder, Object};
use crate::names::did_you_mean;
use crate::sealer;
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
const KUBELET: &str = "KubeletConfiguration";

/// Fields with the one value that the native distribution has; it may be named.
type Facts = &'static [(&'static str, Fact)];

/// The one value.
#[derive(Debug, Clone, Copy)]
enum Fact {
    Text(&'static str),
    Flag(bool),
    Number(u64),
}

impl From<Fact> for Value {
    fn from(fact: Fact) -> Self {
        match fact {
            Fact::Text(text) => text.into(),
            Fact::Flag(on) => on.into(),
            Fact::Number(number) => number.into(),
        }
    }
}

/// Of `KubeletConfiguration`.
const KUBELET_FACTS: [(&str, Fact); 6] = [
    ("cgroupDriver", Fact::Text("systemd")),
    ("staticPodPath", Fact::Text("/etc/kubernetes/manifests")),
    ("rotateCertificates", Fact::Flag(true)),
    ("port", Fact::Number(10250)),
    ("healthzPort", Fact::Number(10248)),
    ("healthzBindAddress", Fact::Text("127.0.0.1")),
];

const AUTHENTICATION: [(&str, Facts); 3] = [
    ("anonymous", &[("enabled", Fact::Flag(false))]),
    ("webhook", &[("enabled", Fact::Flag(true))]),
    ("x509", &[("clientCAFile", Fact::Text("/etc/kubernetes/pki/ca.crt"))]),
];
const AUTHORIZATION: Facts = &[("mode", Fact::Text("Webhook"))];
/// Of `InitConfiguration` and `JoinConfiguration`.
const API_PORT: Facts = &[("bindPort", Fact::Number(6443))];

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
        let refused = version.is_none() && !document.lacks("apiVersion");
        if !refused && !version.is_some_and(|version| version.starts_with(group)) {
            decoder.problem(
                document.at(),
                format!("{kind} needs an apiVersion of the group {group}"),
            );
        }
        match kind {
            "ClusterConfiguration" => self.cluster(decoder, document),
            "KubeletConfiguration" => self.kubelet(decoder, document),
            "KubeProxyConfiguration" => self.proxy(decoder, document),
            _ => member(decoder, document, kind),
        }
    }

    fn cluster(&mut self, decoder: &mut Decoder, mut document: Object<'_>) {
        const KIND: &str = "ClusterConfiguration";
        if let Some(mut networking) = document.object(decoder, "networking") {
            self.pod_subnet = networking.string(decoder, "podSubnet");
            self.service_subnet = networking.string(decoder, "serviceSubnet");
            self.dns_domain = networking.string(decoder, "dnsDomain");
            networking.finish_foreign(decoder, KIND, DISTRIBUTION, &sealer::KUBEADM);
        }
        if let Some(mut server) = document.object(decoder, "apiServer") {
            self.cert_sans = server
                .strings(decoder, "certSANs")
                .into_iter()
                .map(|(name, _)| name)
                .chain(std::mem::take(&mut self.cert_sans))
                .collect();
            server.finish_foreign(decoder, KIND, DISTRIBUTION, &sealer::KUBEADM);
        }
        document.finish_foreign(decoder, KIND, DISTRIBUTION, &sealer::KUBEADM);
    }

    fn kubelet(&mut self, decoder: &mut Decoder, mut document: Object<'_>) {
        for (field, form) in KUBELET_FIELDS {
            if let Some(node) = document.get(field) {
                check_form(decoder, node, field, form);
                self.kubelet.insert(field.to_string(), node.to_json());
            }
        }
        accept_facts(decoder, &mut document, &KUBELET_FACTS);
        if let Some(mut object) = document.object(decoder, "authentication") {
            for (field, facts) in AUTHENTICATION {
                inner_facts(decoder, &mut object, field, facts, KUBELET);
            }
            object.finish_foreign(decoder, KUBELET, DISTRIBUTION, &sealer::KUBEADM);
        }
        inner_facts(decoder, &mut document, "authorization", AUTHORIZATION, KUBELET);
        document.finish_foreign(decoder, KUBELET, DISTRIBUTION, &sealer::KUBEADM);
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
        document.finish_foreign(decoder, "KubeProxyConfiguration", DISTRIBUTION, &sealer::KUBEADM);
    }
}

/// Whether every field of a mapping is a string.
pub(crate) fn is_mapping_of_strings(node: &Node) -> bool {
    let strings = |(_, value): &(yaml::Key, Node)| matches!(value.value, yaml::Value::String(_) | yaml::Value::Null);
    matches!(node.value, yaml::Value::Map(_)) && node.entries().iter().all(strings)
}

/// Accepts fields that say what is so anyway, and refuses them when they say something else.
fn accept_facts(decoder: &mut Decoder, object: &mut Object<'_>, facts: &[(&'static str, Fact)]) {
    for (field, fact) in facts {
        let wanted = Value::from(*fact);
        if let Some(node) = object.get(field)
            && node.to_json() != wanted
        {
            decoder.problem(node.at, format!("{} can only be {wanted} here", object.name(field)));
        }
    }
}

/// The same in a mapping of `object`, where nothing else is honoured.
fn inner_facts(decoder: &mut Decoder, object: &mut Object<'_>, field: &'static str, facts: Facts, kind: &str) {
    if let Some(mut inner) = object.object(decoder, field) {
        accept_facts(decoder, &mut inner, facts);
        inner.finish_foreign(decoder, kind, DISTRIBUTION, &sealer::KUBEADM);
    }
}

/// `InitConfiguration` and `JoinConfiguration`: nothing in them can be chosen, but what is so may be said.
fn member(decoder: &mut Decoder, mut document: Object<'_>, kind: &str) {
    inner_facts(decoder, &mut document, "localAPIEndpoint", API_PORT, kind);
    if let Some(mut object) = document.object(decoder, "controlPlane") {
        inner_facts(decoder, &mut object, "localAPIEndpoint", API_PORT, kind);
        object.finish_foreign(decoder, kind, DISTRIBUTION, &sealer::KUBEADM);
    }
    if let Some(registration) = document.object(decoder, "nodeRegistration") {
        registration.finish_foreign(decoder, kind, DISTRIBUTION, &sealer::KUBEADM);
    }
    accept_facts(
        decoder,
        &mut document,
        &[("caCertPath", Fact::Text("/etc/kubernetes/pki/ca.crt"))],
    );
    document.finish_foreign(decoder, kind, DISTRIBUTION, &sealer::KUBEADM);
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
    if let Some(text) = text.filter(|text| threshold(text, 0).is_none()) {
        let forms = "neither an amount (100Mi) nor a percentage (5%)";
        decoder.problem(value.at, format!("evictionHard.{signal}: {text:?} is {forms}"));
    }
}

/// How much a threshold of `evictionHard` is of a capacity: a percentage of 0 to 100, or a number with one of Kubernetes' suffixes.
/// Nothing if it is neither.
#[must_use]
pub fn threshold(text: &str, capacity: u64) -> Option<u64> {
    if let Some(percent) = text.strip_suffix('%') {
        let percent: f64 = percent.parse().ok()?;
        if !(0.0..=100.0).contains(&percent) {
            return None;
        }
        return Some((capacity as f64 * percent / 100.0) as u64);
    }
    let digits = text.bytes().take_while(|b| b.is_ascii_digit() || *b == b'.').count();
    let (number, suffix) = text.split_at(digits);
    let factor = match suffix.strip_suffix('i') {
        Some(binary) => 1024_f64.powi(power(binary, "KMGTPE")?),
        None if suffix.is_empty() => 1.0,
        None => 1000_f64.powi(power(suffix, "kMGTPE")?),
    };
    number.parse().ok().map(|number: f64| (number * factor) as u64)
}

/// The place of a suffix among `known`, from 1.
fn power(suffix: &str, known: &str) -> Option<i32> {
    let place = known
        .chars()
        .zip(1..)
        .find(|(c, _)| suffix.strip_prefix(*c) == Some(""));
    place.map(|(_, place)| place)
}

/// Merges honoured kubelet fields over a base configuration, field by field.
pub fn merge_kubelet(base: &mut Map<String, Value>, settings: &KubeadmSettings) {
    for (field, value) in &settings.kubelet {
        base.insert(field.clone(), value.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::threshold;

    #[test]
    fn thresholds_are_percentages_or_amounts() {
        for (text, amount) in [
            ("10%", Some(100)),
            ("0%", Some(0)),
            ("100Mi", Some(100 << 20)),
            ("1.5k", Some(1500)),
            ("2G", Some(2_000_000_000)),
            ("7", Some(7)),
            ("101%", None),
            ("1K", None),
            ("1ki", None),
            ("1MiB", None),
            ("", None),
            ("x", None),
        ] {
            assert_eq!(threshold(text, 1000), amount, "{text}");
        }
    }
}
