#!/usr/bin/env python3
"""Writes messages.txt, the schema of every Kubernetes message that the API server knows, and descriptions.txt, what OpenAPI
says about each of them.

Field numbers and the markers that say how lists and maps are merged and owned come from the sources of the crate k8s-pb, JSON
names and descriptions from those of k8s-openapi (feature v1_36), which both are generated from Kubernetes' own definitions.
Run it by hand when the target version changes:

    python3 src/api/schema/generate.py K8S_PB_DIR K8S_OPENAPI_DIR
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


DOC = re.compile(r"^\s*/// ?(.*)$")
STRUCT = re.compile(r"^pub struct (\w+)")
MEMBER = re.compile(r"^    pub (?:r#)?(\w+):")


def comments(text):
    """Struct -> (lines of its comment, {field as Rust names it: lines of its comment})."""
    found, lines, fields = {}, [], {}
    for line in text.splitlines():
        if doc := DOC.match(line):
            lines.append(doc[1])
        elif struct := STRUCT.match(line):
            fields = {}
            found[struct[1]] = (lines, fields)
            lines = []
        elif member := MEMBER.match(line):
            fields[member[1].rstrip("_")] = lines
            lines = []
        elif not line.strip().startswith(("#[", ")]")) and not line.startswith("        "):
            lines = []
    return found


def markers(lines):
    """Kubernetes' `+name=value` lines: name -> values."""
    found = {}
    for line in lines:
        if marker := re.match(r"\+(\w+)(?:=(.*))?$", line):
            found.setdefault(marker[1], []).append(marker[2] or "")
    return found


def semantics(lines, kind):
    """The words that say how a field's value is merged by patches (its merge key) and owned (after @)."""
    said = markers(lines)
    words = []
    strategies = ",".join(said.get("patchStrategy", [])).split(",")
    key = said.get("patchMergeKey", [""])[0] or ("set" if "merge" in strategies and kind == "[]string" else "")
    patch = key + ("+retainKeys" if "retainKeys" in strategies else "")
    if patch:
        words.append(patch)
    owned = said.get("listType", said.get("mapType", said.get("structType", [""])))[0]
    if owned == "map":
        words.append("@" + ",".join(said["listMapKey"]))
    elif owned == "set" or owned == "atomic" and not kind.startswith("[]") or "granular" in said.get("structType", []):
        words.append("@" + owned)
    return " ".join(words)


def key_defaults(messages):
    """Fills in the defaults of fields by which items of lists are told apart: without them an item may leave its key out."""
    by_name = {name: fields for name, _, fields in messages}
    for _, _, fields in messages:
        for field in fields:
            owned = next((w for w in field["words"].split() if w.startswith("@")), "@set")
            if field["kind"].startswith("[]") and owned != "@set":
                for item in by_name[field["kind"][2:]]:
                    default = markers(item["comment"]).get("default", [""])[0]
                    if item["json"] in owned[1:].split(",") and default.startswith('"'):
                        item["default"] = "=" + default.strip('"')


def read(pb, names):
    """Every message: its name, whether it is owned as one, and its fields."""
    messages = []
    for module, prefix in MODULES.items():
        text = (pb / "src" / module / "mod.rs").read_text()
        said = comments(text)
        for struct in re.finditer(r"^pub struct (\w+) \{(\n.*?^|)\}", text, re.M | re.S):
            message = f"{prefix}.{struct.group(1)}"
            if message in SPECIAL:
                continue
            about, of_fields = said[struct.group(1)]
            message, known, required = names.get(message.lower(), (message, {}, set()))
            fields = []
            for f in FIELD.finditer(struct.group(2)):
                kind = field_type(f["attr"], rust_type(struct.group(2), f.end()), prefix)
                shape, base = re.match(r"(\[\]|\{\})?(.*)", kind).groups()
                kind = (shape or "") + names.get(base.lower(), (base,))[0]
                snake = f["name"].rstrip("_")
                json = known.get(normal(snake), camel(snake))
                if known and normal(snake) not in known and json not in INLINE.get(message, []):
                    continue  # gone in the target version
                fields.append({
                    "number": f["tag"], "json": json, "kind": kind, "comment": of_fields[snake], "default": "",
                    "mark": "^" if json in INLINE.get(message, []) else "!" if normal(snake) in required else "",
                    "words": semantics(of_fields[snake], kind)})
            if fields or struct.group(2).strip() == "":
                messages.append((message, "atomic" in markers(about).get("structType", []), fields))
    key_defaults(messages)
    return messages


def schema(messages):
    yield "# Generated by generate.py; do not edit. A message per block: its name (@atomic: owned as one), then fields as number,"
    yield "# JSON name (^ before it: its fields show in the holder; ! before it: required), type ([] list, {} map), and where they"
    yield "# apply: patch key, @ ownership (the keys of a list's items, set, atomic, granular), = default of a field that is such a key."
    for message, atomic, fields in messages:
        yield f"\n{message}{' @atomic' if atomic else ''}"
        for f in fields:
            yield " ".join(w for w in (f["number"], f["mark"] + f["json"], f["kind"], f["words"], f["default"]) if w)


def descriptions(messages, openapi, names):
    """A block per message: its name, its own description after a tab, then those of its fields as name, tab, text."""
    known = {name for name, _, _ in messages}
    found = {}
    for module, prefix in MODULES.items():
        for file in (openapi / "src/v1_36" / module).glob("*.rs"):
            for struct, (about, fields) in comments(file.read_text()).items():
                message = f"{prefix}.{struct}"
                if message in known:
                    json = names[message.lower()][1]
                    texts = {json.get(normal(f), f): lines for f, lines in fields.items()}
                    found[message] = {"": about} | dict(sorted(texts.items()))
    yield "# Generated by generate.py; do not edit. Descriptions of Kubernetes 1.36 (Apache License 2.0), a block per message: its"
    yield "# name, then a line each for itself and its fields: JSON name, tab, text in which a line break is \\n."
    for message in sorted(found):
        yield f"\n{message}"
        for field, lines in found[message].items():
            if lines:
                # The crate's comments are Markdown.
                text = re.sub(r"\\([<>\[\]_*`#])", r"\1", "\n".join(lines).strip())
                yield field + "\t" + text.replace("\\", "\\\\").replace("\n", "\\n")


def main():
    pb, openapi = Path(sys.argv[1]), Path(sys.argv[2])
    here = Path(__file__).parent
    names = json_names(openapi)
    messages = read(pb, names)
    for file, lines in (("messages.txt", schema(messages)), ("descriptions.txt", descriptions(messages, openapi, names))):
        (here / file).write_text("\n".join(lines) + "\n")


main()
