//! Requests that stock kubectl 1.36 wrote, byte for byte, and the objects that they are. Zeros of fields that are always there are
//! kept.

use serde_json::Value;

use super::{decode, encode};
use base64::{Engine as _, prelude::BASE64_STANDARD};

/// (body in base64, object)
const CAPTURED: &[(&str, &str)] = &[
    (
        "azhzAAoPCgJ2MRIJTmFtZXNwYWNlEhkKEQoBeBIAGgAiACoAMgA4AEIAEgAaAgoAGgAiAA==",
        r#"{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"x"},"spec":{}}"#,
    ),
    (
        "azhzAAoPCgJ2MRIJQ29uZmlnTWFwEhsKEQoBYxIAGgAiACoAMgA4AEIAEgYKAWESAWIaACIA",
        r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"c"},"data":{"a":"b"}}"#,
    ),
    (
        "azhzAAoMCgJ2MRIGU2VjcmV0Eh0KEQoBcxIAGgAiACoAMgA4AEIAEgYKAWESAWIaABoAIgA=",
        r#"{"apiVersion":"v1","kind":"Secret","metadata":{"name":"s"},"data":{"a":"Yg=="}}"#,
    ),
    (
        "azhzAAoNCgJ2MRIHU2VydmljZRJpCh8KA3dlYhIAGgAiACoAMgA4AEIAWgoKA2FwcBIDd2ViEkIKGwoHODAtODA4MBIDVENQGFAiBwgAEJA/GgAoABIKCgNhcHASA3dlYhoAIglDbHVzdGVySVA6AEIAUgBaAGAAaAAaAgoAGgAiAA==",
        r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"web","labels":{"app":"web"}},"spec":{"ports":[{"name":"80-8080","protocol":"TCP","port":80,"targetPort":8080}],"selector":{"app":"web"},"type":"ClusterIP"}}"#,
    ),
    (
        "azhzAAoVCgdhcHBzL3YxEgpEZXBsb3ltZW50ErYBCh8KA3dlYhIAGgAiACoAMgA4AEIAWgoKA2FwcBIDd2ViEoQBCAASDAoKCgNhcHASA3dlYhpqChwKABIAGgAiACoAMgA4AEIAWgoKA2FwcBIDd2ViEkoSLAoDd2ViEgV3ZWI6MSoAMgoKABAAGFAiACoAQgBqAHIAgAEAiAEAkAEAogEAGgAyAEIASgBSAFgAYABoAIIBAIoBAJoBAMIBACICCgAoADgAGgwIABAAGAAgACgAOAAaACIA",
        r#"{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"web","labels":{"app":"web"}},"spec":{"replicas":0,"selector":{"matchLabels":{"app":"web"}},"template":{"metadata":{"labels":{"app":"web"}},"spec":{"containers":[{"name":"web","image":"web:1","ports":[{"containerPort":80}]}]}}}}"#,
    ),
    (
        "azhzAAoyChdhdXRob3JpemF0aW9uLms4cy5pby92MRIXU2VsZlN1YmplY3RBY2Nlc3NSZXZpZXcSPAoQCgASABoAIgAqADIAOABCABIeChwKB2RlZmF1bHQSA2dldBoAIgAqBHBvZHMyADoAGggIABIAGgAgABoAIgA=",
        r#"{"apiVersion":"authorization.k8s.io/v1","kind":"SelfSubjectAccessReview","spec":{"resourceAttributes":{"namespace":"default","verb":"get","resource":"pods"}},"status":{"allowed":false}}"#,
    ),
    (
        "azhzAAogCglwb2xpY3kvdjESE1BvZERpc3J1cHRpb25CdWRnZXQSMwoRCgFwEgAaACIAKgAyADgAQgASEgoGCAAQABoAEggKBgoBYRIBYhoKCAAYACAAKAAwABoAIgA=",
        r#"{"apiVersion":"policy/v1","kind":"PodDisruptionBudget","metadata":{"name":"p"},"spec":{"minAvailable":0,"selector":{"matchLabels":{"a":"b"}}}}"#,
    ),
    (
        "azhzAAoyChxyYmFjLmF1dGhvcml6YXRpb24uazhzLmlvL3YxEhJDbHVzdGVyUm9sZUJpbmRpbmcSWwoRCgFiEgAaACIAKgAyADgAQgASGQoOU2VydmljZUFjY291bnQSABoCc2EiAXgaKwoZcmJhYy5hdXRob3JpemF0aW9uLms4cy5pbxILQ2x1c3RlclJvbGUaAXIaACIA",
        r#"{"apiVersion":"rbac.authorization.k8s.io/v1","kind":"ClusterRoleBinding","metadata":{"name":"b"},"subjects":[{"kind":"ServiceAccount","name":"sa","namespace":"x"}],"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"ClusterRole","name":"r"}}"#,
    ),
    (
        "azhzAAolChRzY2hlZHVsaW5nLms4cy5pby92MRINUHJpb3JpdHlDbGFzcxIvChEKAXASABoAIgAqADIAOABCABAAGAAiACoUUHJlZW1wdExvd2VyUHJpb3JpdHkaACIA",
        r#"{"apiVersion":"scheduling.k8s.io/v1","kind":"PriorityClass","metadata":{"name":"p"},"preemptionPolicy":"PreemptLowerPriority"}"#,
    ),
    (
        "azhzAAooChhhdXRoZW50aWNhdGlvbi5rOHMuaW8vdjESDFRva2VuUmVxdWVzdBIaChAKABIAGgAiACoAMgA4AEIAEgAaBAoAEgAaACIA",
        r#"{"apiVersion":"authentication.k8s.io/v1","kind":"TokenRequest","spec":{}}"#,
    ),
];

/// Null and empty fields say nothing.
fn plain(v: Value) -> Value {
    match v {
        Value::Object(m) => {
            let kept = m.into_iter().map(|(k, v)| (k, plain(v)));
            Value::Object(
                kept.filter(|(_, v)| !v.is_null() && *v != serde_json::json!({}))
                    .collect(),
            )
        }
        Value::Array(l) => l.into_iter().map(plain).collect(),
        other => other,
    }
}

#[test]
fn what_stock_kubectl_writes_is_read() {
    for (bytes, object) in CAPTURED {
        let decoded = decode(&BASE64_STANDARD.decode(bytes).unwrap()).unwrap();
        let expected: Value = serde_json::from_str(object).unwrap();
        assert_eq!(plain(decoded.clone()), plain(expected));
        assert_eq!(plain(decode(&encode(&decoded).unwrap()).unwrap()), plain(decoded));
    }
}
