#!/usr/bin/env python3
"""Writes messages.txt, the schema of every Kubernetes message that the API server knows.

Field numbers come from the sources of the crate k8s-pb, JSON names from those of k8s-openapi (feature v1_36), which both are
generated from Kubernetes' own definitions. Run it by hand when the target version changes:

    python3 src/api/schema/generate.py K8S_PB_DIR K8S_OPENAPI_DIR > src/api/schema/messages.txt

The list semantics of patches are below: they are tags in Kubernetes' Go sources that neither crate carries.
"""
import re
import sys
from pathlib import Path

MODULES = {
    "api/core/v1": "core.v1", "api/apps/v1": "apps.v1", "api/events/v1": "events.v1",
    "api/authentication/v1": "authentication.v1", "api/authorization/v1": "authorization.v1",
    "api/certificates/v1": "certificates.v1", "api/policy/v1": "policy.v1", "api/rbac/v1": "rbac.v1",
    "api/storage/v1": "storage.v1", "api/scheduling/v1": "scheduling.v1", "api/coordination/v1": "coordination.v1",
    "api/node/v1": "node.v1", "api/discovery/v1": "discovery.v1", "api/autoscaling/v1": "autoscaling.v1",
    "apimachinery/pkg/apis/meta/v1": "meta.v1",
}
# Messages that JSON writes as something else than an object.
SPECIAL = {
    "meta.v1.Time": "time", "meta.v1.MicroTime": "microtime", "meta.v1.FieldsV1": "fields",
    "meta.v1.Verbs": "strings", "authentication.v1.ExtraValue": "strings", "authorization.v1.ExtraValue": "strings",
    "certificates.v1.ExtraValue": "strings",
}
SCALARS = {"string": "string", "int32": "int32", "int64": "int64", "bool": "bool", "double": "double"}

# patchMergeKey, or "set" for lists of scalars that are merged; "+retainKeys" where that strategy holds too.
CONDITIONS = "type"
MERGE = {
    "meta.v1.ObjectMeta": {"finalizers": "set", "ownerReferences": "uid"},
    "core.v1.PodSpec": {
        "volumes": "name+retainKeys", "initContainers": "name", "containers": "name", "ephemeralContainers": "name",
        "imagePullSecrets": "name", "hostAliases": "ip", "topologySpreadConstraints": "topologyKey",
        "resourceClaims": "name+retainKeys", "schedulingGates": "name"},
    "core.v1.Container": {"ports": "containerPort", "env": "name", "volumeMounts": "mountPath", "volumeDevices": "devicePath"},
    "core.v1.ContainerStatus": {"volumeMounts": "mountPath", "allocatedResourcesStatus": "name"},
    "core.v1.PodStatus": {"conditions": CONDITIONS, "podIPs": "ip", "hostIPs": "ip", "resourceClaimStatuses": "name+retainKeys"},
    "core.v1.ServiceSpec": {"ports": "port"},
    "core.v1.ServiceStatus": {"conditions": CONDITIONS},
    "core.v1.ServiceAccount": {"secrets": "name"},
    "core.v1.NodeSpec": {"podCIDRs": "set"},
    "core.v1.NodeStatus": {"conditions": CONDITIONS, "addresses": "type"},
    "core.v1.NamespaceStatus": {"conditions": CONDITIONS},
    "core.v1.PersistentVolumeClaimStatus": {"conditions": CONDITIONS},
    "core.v1.ReplicationControllerStatus": {"conditions": CONDITIONS},
    "apps.v1.DeploymentSpec": {"strategy": "+retainKeys"},
    "apps.v1.DeploymentStatus": {"conditions": CONDITIONS},
    "apps.v1.ReplicaSetStatus": {"conditions": CONDITIONS},
    "apps.v1.DaemonSetStatus": {"conditions": CONDITIONS},
    "apps.v1.StatefulSetStatus": {"conditions": CONDITIONS},
    "policy.v1.PodDisruptionBudgetStatus": {"conditions": CONDITIONS},
    "storage.v1.CSINodeSpec": {"drivers": "name"},
}
MERGE["core.v1.EphemeralContainerCommon"] = MERGE["core.v1.Container"]
# Go embeds these structs, so JSON shows their fields in the message that holds them.
INLINE = {
    "core.v1.Volume": ["volumeSource"], "core.v1.PersistentVolumeSpec": ["persistentVolumeSource"],
    "core.v1.EphemeralContainer": ["ephemeralContainerCommon"], "core.v1.Probe": ["handler"],
    "core.v1.ConfigMapEnvSource": ["localObjectReference"], "core.v1.SecretEnvSource": ["localObjectReference"],
    "core.v1.ConfigMapKeySelector": ["localObjectReference"], "core.v1.SecretKeySelector": ["localObjectReference"],
    "core.v1.ConfigMapProjection": ["localObjectReference"], "core.v1.SecretProjection": ["localObjectReference"],
    "core.v1.ConfigMapVolumeSource": ["localObjectReference"],
}
# The messages behind them that JSON knows only as part of their holder.
INLINED = {
    "core.v1.Volume": "core.v1.VolumeSource", "core.v1.PersistentVolumeSpec": "core.v1.PersistentVolumeSource",
    "core.v1.EphemeralContainer": "core.v1.EphemeralContainerCommon", "core.v1.Probe": "core.v1.ProbeHandler",
}


def normal(name):
    return name.replace("_", "").lower()


def json_names(openapi):
    """Message in lower case -> (its name, {normalised field: JSON name}, required fields)."""
    found = {}
    for module, prefix in MODULES.items():
        for file in sorted((openapi / "src/v1_36" / module).glob("*.rs")):
            text = file.read_text()
            struct = re.search(r"^pub struct (\w+)", text, re.M)
            if struct:
                names = re.findall(r'"([^"]+)" => Field::Key_', text)
                required = set(re.findall(r"^    pub (?:r#)?(\w+): (?!Option<)", text, re.M))
                name = f"{prefix}.{struct.group(1)}"
                found[name.lower()] = (name, {normal(n.replace("$", "")): n for n in names}, {normal(r) for r in required})
    for holder, part in INLINED.items():
        found[part.lower()] = (part, found[holder.lower()][1], set())
    return found


def camel(snake):
    head, *rest = snake.split("_")
    return head + "".join(part.capitalize() for part in rest)


def resolve(path, own):
    """The name of the message that a Rust type path points at."""
    path = path.replace("super::", "").replace("crate::", "")
    if "util::intstr" in path:
        return "intorstring"
    if "api::resource" in path:
        return "quantity"
    if "runtime::RawExtension" in path:
        return "raw"
    if "::" not in path:
        name = f"{own}.{path}"
    else:
        parts = path.split("::")
        name = ".".join(parts[-3:])
    return SPECIAL.get(name, name)


FIELD = re.compile(r'#\[prost\((?P<attr>[^\]]*?)tag = "(?P<tag>\d+)"[^\]]*\)\]\s*pub (?:r#)?(?P<name>\w+):')


def rust_type(text, at):
    """The type that begins at `at`: up to the comma that is in no brackets."""
    depth = 0
    for end in range(at, len(text)):
        depth += (text[end] == "<") - (text[end] == ">")
        if text[end] == "," and depth == 0:
            return re.sub(r"\s+", "", text[at:end]).replace(",>", ">")
    raise ValueError(text[at:at + 80])


def field_type(attr, rust, own):
    inner = re.sub(r"^::core::option::Option<(.*)>$", r"\1", rust)
    if "btree_map" in attr:
        value = re.search(r'btree_map = "string, (\w+)"', attr).group(1)
        if value == "message":
            value = resolve(re.search(r",(.*)>$", inner).group(1), own)
        return "{}" + {"bytes": "bytes"}.get(value, value)
    repeated = "repeated" in attr
    if repeated:
        inner = re.search(r"Vec<(.*)>$", inner).group(1)
    kind = attr.split(",")[0].strip()
    if kind == "message":
        inner = re.sub(r"^::prost::alloc::boxed::Box<(.*)>$", r"\1", inner)
        base = resolve(inner, own)
    elif kind.startswith("bytes"):
        base = "bytes"
    else:
        base = SCALARS[kind]
    return ("[]" if repeated else "") + base


def main():
    pb, openapi = Path(sys.argv[1]), Path(sys.argv[2])
    names = json_names(openapi)
    print("# Generated by generate.py; do not edit. A message per block: its name, then fields as")
    print("# number, JSON name (^ before it: its fields show in the holder; ! before it: required), type ([] list, {} map), patch key.")
    for module, prefix in MODULES.items():
        text = (pb / "src" / module / "mod.rs").read_text()
        for struct in re.finditer(r"^pub struct (\w+) \{(.*?)^\}", text, re.M | re.S):
            message = f"{prefix}.{struct.group(1)}"
            if message in SPECIAL:
                continue
            message, known, required = names.get(message.lower(), (message, {}, set()))
            lines = []
            for f in FIELD.finditer(struct.group(2)):
                kind = field_type(f["attr"], rust_type(struct.group(2), f.end()), prefix)
                shape, base = re.match(r"(\[\]|\{\})?(.*)", kind).groups()
                kind = (shape or "") + names.get(base.lower(), (base,))[0]
                snake = f["name"].rstrip("_")
                json = known.get(normal(snake), camel(snake))
                if known and normal(snake) not in known and json not in INLINE.get(message, []):
                    continue  # gone in the target version
                mark = "^" if json in INLINE.get(message, []) else "!" if normal(snake) in required else ""
                merge = MERGE.get(message, {}).get(json, "")
                lines.append(f"{f['tag']} {mark}{json} {kind} {merge}".rstrip())
            if lines or struct.group(2).strip() == "":
                print(f"\n{message}")
                print("\n".join(lines))


main()
