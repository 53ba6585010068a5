//! The schemas of messages.

use super::describe::Descriptions;
use super::{Dialect, definition_name, group_version_kind};
use crate::kinds::{Kind, groups, kinds};
use crate::schema::{Field, Message, Ownership, Shape, Type, message, message_of, messages};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// Types that are no messages but have definitions of their own.
const SPECIAL: &[(Type, &str)] = &[
    (Type::Quantity, "io.k8s.apimachinery.pkg.api.resource.Quantity"),
    (Type::IntOrString, "io.k8s.apimachinery.pkg.util.intstr.IntOrString"),
    (Type::Time, "io.k8s.apimachinery.pkg.apis.meta.v1.Time"),
    (Type::MicroTime, "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime"),
    (Type::Raw, "io.k8s.apimachinery.pkg.runtime.RawExtension"),
    (Type::Fields, "io.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1"),
];

/// Those of these kinds, their lists, what travels through their subresources, and all that these lead to.
pub(super) fn of(dialect: Dialect, served: &[&'static Kind]) -> impl Iterator<Item = (String, Value)> {
    let mut needed = BTreeSet::from(["meta.v1.DeleteOptions", "meta.v1.Status"]);
    for kind in served {
        needed.insert(kind.message);
        needed.extend(message(&format!("{}List", kind.message)).map(|m| m.name));
        needed.extend(
            kind.subresources
                .iter()
                .filter_map(|s| travelling(s.group, s.version, s.kind)),
        );
    }
    definitions(dialect, closure(needed))
}

/// Those of every message.
pub(super) fn all(dialect: Dialect) -> impl Iterator<Item = (String, Value)> {
    definitions(dialect, messages().iter().map(|m| m.name).collect())
}

/// The message of an object that travels through a subresource; options travel as parameters.
pub(super) fn travelling(group: &str, version: &str, kind: &str) -> Option<&'static str> {
    let known = message_of(&crate::kinds::join_api_version(group, version), kind)?;
    (!kind.ends_with("Options")).then_some(known.name)
}

/// All messages that these lead to.
fn closure(mut needed: BTreeSet<&'static str>) -> BTreeSet<&'static str> {
    let mut queue: Vec<&'static str> = needed.iter().copied().collect();
    while let Some(name) = queue.pop() {
        let fields = message(name).map(Message::json_fields).unwrap_or_default();
        for inner in fields.iter().filter_map(|f| f.ty.message()) {
            if needed.insert(inner.name) {
                queue.push(inner.name);
            }
        }
    }
    needed
}

fn definitions(dialect: Dialect, names: BTreeSet<&'static str>) -> impl Iterator<Item = (String, Value)> {
    let writer = Writer {
        dialect,
        descriptions: Descriptions::read(),
        kinds: kinds_of_messages(),
    };
    let special = SPECIAL
        .iter()
        .map(move |(ty, name)| ((*name).to_owned(), special(dialect, *ty)));
    let described = names.into_iter().filter_map(message);
    described
        .map(move |m| (definition_name(m.name), writer.message(m)))
        .chain(special)
}

fn kinds_of_messages() -> BTreeMap<String, Vec<Value>> {
    let mut found: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    let mut add = |message: String, group: &str, version: &str, kind: &str| {
        let gvk = group_version_kind(group, version, kind);
        let list = found.entry(message).or_default();
        if !list.contains(&gvk) {
            list.push(gvk);
        }
    };
    for kind in kinds() {
        add(kind.message.to_owned(), kind.group, kind.version, kind.kind);
        add(
            format!("{}List", kind.message),
            kind.group,
            kind.version,
            &kind.list_kind(),
        );
        for sub in kind.subresources {
            if let Some(message) = travelling(sub.group, sub.version, sub.kind) {
                add(message.to_owned(), sub.group, sub.version, sub.kind);
            }
        }
    }
    add("meta.v1.Status".to_owned(), "", "v1", "Status");
    add("meta.v1.DeleteOptions".to_owned(), "", "v1", "DeleteOptions");
    for (group, version) in groups()
        .iter()
        .flat_map(|(g, versions)| versions.iter().map(move |v| (g, v)))
    {
        add("meta.v1.DeleteOptions".to_owned(), group, version, "DeleteOptions");
    }
    found
}

fn special(dialect: Dialect, ty: Type) -> Value {
    let string = |format: &str| json!({"type": "string", "format": format});
    match ty {
        Type::Time | Type::MicroTime => string("date-time"),
        Type::IntOrString if dialect == Dialect::V2 => string("int-or-string"),
        Type::IntOrString => json!({"oneOf": [{"type": "integer"}, {"type": "string"}], "format": "int-or-string"}),
        Type::Quantity if dialect == Dialect::V3 => json!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
        Type::Quantity => json!({"type": "string"}),
        _ => json!({"type": "object"}),
    }
}

/// Whether a message's objects say what they are, although its fields do not include that.
fn typed(message: &'static Message) -> bool {
    let own = message.fields.iter().any(|f| matches!(f.name, "apiVersion" | "kind"));
    let object = message.field("metadata").and_then(|f| f.ty.message());
    let is_object = object.is_some_and(|m| matches!(m.name, "meta.v1.ObjectMeta" | "meta.v1.ListMeta"));
    let template = matches!(
        message.name,
        "core.v1.PodTemplateSpec" | "core.v1.PersistentVolumeClaimTemplate"
    );
    !own && (is_object && !template || matches!(message.name, "meta.v1.DeleteOptions" | "meta.v1.Status"))
}

struct Writer {
    dialect: Dialect,
    descriptions: Descriptions,
    kinds: BTreeMap<String, Vec<Value>>,
}

impl Writer {
    fn message(&self, message: &'static Message) -> Value {
        let fields = message.json_fields();
        let mut properties = Map::new();
        if typed(message) {
            for name in ["apiVersion", "kind"] {
                let about = self.descriptions.of_field("meta.v1.DeleteOptions", name);
                properties.insert(name.to_owned(), self.with(json!({"type": "string"}), about, Map::new()));
            }
        }
        for field in &fields {
            properties.insert(field.name.to_owned(), self.field(message, field));
        }
        let required = fields
            .iter()
            .filter(|f| f.required && f.name != "metadata")
            .map(|f| f.name);
        let required: Vec<&str> = required.collect();
        let mut schema = json!({"type": "object", "properties": properties});
        if let Some(about) = self.descriptions.of_message(message.name) {
            schema["description"] = about.into();
        }
        if !required.is_empty() {
            schema["required"] = json!(required);
        }
        if message.atomic {
            schema["x-kubernetes-map-type"] = "atomic".into();
        }
        if let Some(gvk) = self.kinds.get(message.name) {
            schema["x-kubernetes-group-version-kind"] = gvk.clone().into();
        }
        schema
    }

    fn field(&self, holder: &Message, field: &Field) -> Value {
        let inner = self.value(field.ty);
        let schema = match field.shape {
            Shape::One => inner,
            Shape::List => json!({"type": "array", "items": inner}),
            Shape::Map => json!({"type": "object", "additionalProperties": inner}),
        };
        let about = self.descriptions.of_field(holder.name, field.name);
        self.with(schema, about, extensions(field))
    }

    /// A schema with more to say about it. In v3 one that is only a reference may have no neighbours, so it goes one level down.
    fn with(&self, schema: Value, about: Option<String>, extensions: Map<String, Value>) -> Value {
        if about.is_none() && extensions.is_empty() {
            return schema;
        }
        let wrapped = self.dialect == Dialect::V3 && schema.get("$ref").is_some();
        let mut schema = if wrapped { json!({"allOf": [schema]}) } else { schema };
        if let Some(about) = about {
            schema["description"] = about.into();
        }
        for (name, value) in extensions {
            schema[name] = value;
        }
        schema
    }

    fn value(&self, ty: Type) -> Value {
        if let Some((_, name)) = SPECIAL.iter().find(|(special, _)| *special == ty) {
            return self.dialect.reference(name);
        }
        match ty {
            Type::Int32 => json!({"type": "integer", "format": "int32"}),
            Type::Int64 => json!({"type": "integer", "format": "int64"}),
            Type::Bool => json!({"type": "boolean"}),
            Type::Double => json!({"type": "number", "format": "double"}),
            Type::Bytes => json!({"type": "string", "format": "byte"}),
            Type::Strings => json!({"type": "array", "items": {"type": "string"}}),
            Type::Message(_) => ty
                .message()
                .map_or(Value::Null, |m| self.dialect.reference(&definition_name(m.name))),
            _ => json!({"type": "string"}),
        }
    }
}

/// How patches merge a field and how its parts are owned.
fn extensions(field: &Field) -> Map<String, Value> {
    let mut out = Map::new();
    let mut say = |name: &str, value: Value| drop(out.insert(name.to_owned(), value));
    let merge = field.merge;
    match (merge.key.is_some() || merge.set, merge.retain_keys) {
        (true, true) => say("x-kubernetes-patch-strategy", "merge,retainKeys".into()),
        (true, false) => say("x-kubernetes-patch-strategy", "merge".into()),
        (false, true) => say("x-kubernetes-patch-strategy", "retainKeys".into()),
        (false, false) => {}
    }
    if let Some(key) = merge.key {
        say("x-kubernetes-patch-merge-key", key.into());
    }
    match (field.shape, field.ownership) {
        (Shape::List, Ownership::Keyed(keys)) => {
            say("x-kubernetes-list-map-keys", keys.split(',').collect());
            say("x-kubernetes-list-type", "map".into());
        }
        (Shape::List, Ownership::Set) => say("x-kubernetes-list-type", "set".into()),
        (Shape::List, _) => say("x-kubernetes-list-type", "atomic".into()),
        (_, Ownership::Atomic) => say("x-kubernetes-map-type", "atomic".into()),
        (_, Ownership::Granular) => say("x-kubernetes-map-type", "granular".into()),
        _ => {}
    }
    if let Some(default) = field.default {
        say("default", default.into());
    }
    out
}
