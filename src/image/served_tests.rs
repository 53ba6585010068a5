//! Objects that no API server of the target version serves, at build and in finished images.

use crate::progress::NoProgress;
use crate::tests::Bench;
use crate::verify;

const OLD: &str = "# a PDB\napiVersion: policy/v1beta1\nkind: PodDisruptionBudget\nmetadata: {name: a}\n";
const TWO: &str =
    "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n---\nkind: Ingress\napiVersion: extensions/v1beta1\n";
const CUSTOM: &str =
    "apiVersion: a.b/v1\nkind: C\nmetadata: {name: a}\n---\napiVersion: a.b/v1\nkind: C\nmetadata: {name: b}\n";

#[test]
fn a_build_names_every_object_of_a_version_that_is_gone() {
    let bench = Bench::new();
    bench.write("m/old.yaml", OLD);
    bench.write("m/two.yaml.tmpl", TWO);
    bench.write("app/old.yaml", OLD);
    bench.write("etc/old.yaml", OLD);
    let error = bench.refusal("FROM scratch\nCOPY m manifests\nCOPY etc etc/kubernetes\nAPP web local://app\n");
    let mut lines: Vec<&str> = error.lines().collect();
    lines.sort_unstable();
    assert_eq!(
        lines,
        [
            "app/old.yaml:2: policy/v1beta1 PodDisruptionBudget: Kubernetes does not serve this version since 1.25; write policy/v1",
            "m/old.yaml:2: policy/v1beta1 PodDisruptionBudget: Kubernetes does not serve this version since 1.25; write policy/v1",
            "m/two.yaml.tmpl:6: extensions/v1beta1 Ingress: Kubernetes does not serve this version since 1.22; write networking.k8s.io/v1",
        ]
    );
}

#[test]
fn what_may_not_be_applied_or_not_be_served_is_a_warning_of_build_and_verify() {
    let bench = Bench::new();
    bench.write("m/custom.yaml", CUSTOM);
    bench.write("app/old.yaml", OLD);
    bench.write("app/custom.yaml", CUSTOM);
    bench.write("app/go.sh", "kubectl apply -f old.yaml\n");
    let recipe = "FROM scratch\nCOPY m manifests\nAPP web local://app\nAPPCMDS web [\"sh go.sh\"]\n";
    let (_, warned) = bench.build_warned(recipe);
    let custom = "a.b/v1 C: this distribution's API server knows no such kind, and custom ones are not supported";
    let old = "policy/v1beta1 PodDisruptionBudget: Kubernetes does not serve this version since 1.25; write policy/v1";
    assert_eq!(
        warned,
        [format!("app/old.yaml:2: {old}"), format!("m/custom.yaml:1: {custom}")]
    );
    let found = verify(&bench.store, "t:1", &NoProgress).unwrap();
    assert!(found.is_good(), "{found:?}");
    let expected = [
        format!("application/apps/web/old.yaml:2: {old}"),
        format!("manifests/custom.yaml:1: {custom}"),
    ];
    assert_eq!(found.platforms[0].warnings, expected);
}
