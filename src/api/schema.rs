//! The schema of every message: JSON names, protobuf numbers, types, how patches merge its lists, and how its fields are owned.
//!
//! The data is `schema/messages.txt`, which `schema/generate.py` writes.

use std::collections::HashMap;
use std::sync::OnceLock;

/// Type of a field's value, or of each value in its list or map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    /// A string.
    String,
    /// A signed 32-bit integer.
    Int32,
    /// A signed 64-bit integer.
    Int64,
    /// A boolean.
    Bool,
    /// A floating-point number.
    Double,
    /// Bytes; base64 in JSON.
    Bytes,
    /// `resource.Quantity`: a string in JSON, a message with one string on the wire.
    Quantity,
    /// `intstr.IntOrString`.
    IntOrString,
    /// `metav1.Time`.
    Time,
    /// `metav1.MicroTime`.
    MicroTime,
    /// `runtime.RawExtension`: any JSON.
    Raw,
    /// `metav1.FieldsV1`: any JSON.
    Fields,
    /// A list of strings in JSON, a message with one repeated string on the wire.
    Strings,
    /// Another message; [`Type::message`] finds it.
    Message(usize),
}

/// How many values a field has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// One.
    One,
    /// A list.
    List,
    /// A map with string keys.
    Map,
}

/// How a strategic merge patch treats a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Merge {
    /// Field that identifies the items of a list of objects (`patchMergeKey`).
    pub key: Option<&'static str>,
    /// A list of scalars that is merged as a set.
    pub set: bool,
    /// Keys that the patch does not name are dropped (`retainKeys`).
    pub retain_keys: bool,
}

/// How the parts of a value are owned, and so how server-side apply merges them (`x-kubernetes-list-type`,
/// `x-kubernetes-map-type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ownership {
    /// As its type says: lists as one, maps and messages by their parts, unless the message is atomic everywhere.
    #[default]
    Natural,
    /// As one.
    Atomic,
    /// By its fields, although its message is atomic elsewhere.
    Granular,
    /// A list of scalars by its values.
    Set,
    /// A list of messages by its items, told apart by these fields (separated by commas).
    Keyed(&'static str),
}

/// A field of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    /// Protobuf field number.
    pub number: u32,
    /// JSON name.
    pub name: &'static str,
    /// Its own fields show in the holder's JSON.
    pub inline: bool,
    /// Kubernetes' OpenAPI calls it required.
    pub required: bool,
    /// One, list or map.
    pub shape: Shape,
    /// Type of the value or values.
    pub ty: Type,
    /// How a strategic merge patch treats it.
    pub merge: Merge,
    /// How its parts are owned.
    pub ownership: Ownership,
    /// Its value where it is left out; known only for fields by which items of a list are told apart.
    pub default: Option<&'static str>,
}

/// A message.
#[derive(Debug, PartialEq, Eq)]
pub struct Message {
    /// Its name, such as `core.v1.Pod`.
    pub name: &'static str,
    /// Whether it is owned as one wherever it stands.
    pub atomic: bool,
    /// Its fields in the order of Kubernetes' definitions.
    pub fields: Vec<Field>,
}

struct Schema {
    messages: Vec<Message>,
    index: HashMap<&'static str, usize>,
}

fn schema() -> &'static Schema {
    static SCHEMA: OnceLock<Schema> = OnceLock::new();
    SCHEMA.get_or_init(|| parse(include_str!("schema/messages.txt")))
}

fn parse(text: &'static str) -> Schema {
    let blocks = || {
        text.split("\n\n")
            .map(str::trim)
            .filter(|b| !b.is_empty() && !b.starts_with('#'))
    };
    let head = |block: &'static str| {
        let line = block.lines().next().unwrap_or_default();
        line.split_once(' ')
            .map_or((line, false), |(name, mark)| (name, mark == "@atomic"))
    };
    let index: HashMap<_, _> = blocks().enumerate().map(|(i, block)| (head(block).0, i)).collect();
    let messages = blocks()
        .map(|block| {
            let (name, atomic) = head(block);
            let fields = block.lines().skip(1).filter_map(|l| field(l, &index)).collect();
            Message { name, atomic, fields }
        })
        .collect();
    Schema { messages, index }
}

fn field(line: &'static str, index: &HashMap<&'static str, usize>) -> Option<Field> {
    let mut words = line.split(' ');
    let number = words.next()?.parse().ok()?;
    let marked = words.next()?;
    let shaped = words.next()?;
    let (shape, ty) = match (shaped.strip_prefix("[]"), shaped.strip_prefix("{}")) {
        (Some(ty), _) => (Shape::List, ty),
        (_, Some(ty)) => (Shape::Map, ty),
        _ => (Shape::One, shaped),
    };
    let ty = match ty {
        "string" => Type::String,
        "int32" => Type::Int32,
        "int64" => Type::Int64,
        "bool" => Type::Bool,
        "double" => Type::Double,
        "bytes" => Type::Bytes,
        "quantity" => Type::Quantity,
        "intorstring" => Type::IntOrString,
        "time" => Type::Time,
        "microtime" => Type::MicroTime,
        "raw" => Type::Raw,
        "fields" => Type::Fields,
        "strings" => Type::Strings,
        message => Type::Message(*index.get(message)?),
    };
    let mut field = Field {
        number,
        name: marked.trim_start_matches(['^', '!']),
        inline: marked.starts_with('^'),
        required: marked.starts_with('!'),
        shape,
        ty,
        merge: Merge::default(),
        ownership: Ownership::default(),
        default: None,
    };
    for word in words {
        match (word.strip_prefix('@'), word.strip_prefix('=')) {
            (Some(how), _) => field.ownership = ownership(how),
            (_, Some(value)) => field.default = Some(value),
            _ => field.merge = merge(word),
        }
    }
    Some(field)
}

fn ownership(text: &'static str) -> Ownership {
    match text {
        "atomic" => Ownership::Atomic,
        "granular" => Ownership::Granular,
        "set" => Ownership::Set,
        keys => Ownership::Keyed(keys),
    }
}

fn merge(text: &'static str) -> Merge {
    let (key, retain_keys) = text
        .strip_suffix("+retainKeys")
        .map_or((text, false), |key| (key, true));
    Merge {
        key: Some(key).filter(|k| !k.is_empty() && *k != "set"),
        set: key == "set",
        retain_keys,
    }
}

/// All messages.
pub fn messages() -> &'static [Message] {
    &schema().messages
}

/// A message by name, such as `core.v1.Pod`.
pub fn message(name: &str) -> Option<&'static Message> {
    let schema = schema();
    schema.index.get(name).and_then(|i| schema.messages.get(*i))
}

/// The message that an object's `apiVersion` and `kind` name. Options and Status travel under every group's version.
pub fn message_of(api_version: &str, kind: &str) -> Option<&'static Message> {
    let (group, version) = crate::kinds::split_api_version(api_version);
    let short = match group {
        "" => "core",
        "meta.k8s.io" => "meta",
        group => group.split('.').next().unwrap_or(group),
    };
    message(&format!("{short}.{version}.{kind}")).or_else(|| message(&format!("meta.v1.{kind}")))
}

impl Type {
    /// The message, if it is one.
    pub fn message(&self) -> Option<&'static Message> {
        match self {
            Self::Message(i) => schema().messages.get(*i),
            _ => None,
        }
    }
}

impl Message {
    /// The field with this JSON name; fields that show through from an inlined message count.
    pub fn field(&'static self, name: &str) -> Option<&'static Field> {
        self.fields
            .iter()
            .find_map(|field| match field.ty.message().filter(|_| field.inline) {
                Some(inner) => inner.field(name),
                None => (field.name == name).then_some(field),
            })
    }

    /// All fields that JSON shows.
    pub fn json_fields(&'static self) -> Vec<&'static Field> {
        let shown = |field: &'static Field| match field.ty.message().filter(|_| field.inline) {
            Some(inner) => inner.json_fields(),
            None => vec![field],
        };
        self.fields.iter().flat_map(shown).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn the_data_is_consistent() {
        let lines = include_str!("schema/messages.txt")
            .lines()
            .filter(|l| l.starts_with(|c: char| c.is_ascii_digit()));
        assert_eq!(
            lines.count(),
            messages().iter().map(|m| m.fields.len()).sum::<usize>(),
            "a line was not understood"
        );
        for message in messages() {
            let mut numbers = HashSet::new();
            let mut names = HashSet::new();
            for field in &message.fields {
                assert!(numbers.insert(field.number), "{} {}", message.name, field.number);
            }
            for field in message.json_fields() {
                assert!(names.insert(field.name), "{} {}", message.name, field.name);
                if let Some(key) = field.merge.key {
                    assert!(
                        field.ty.message().unwrap().field(key).is_some(),
                        "{} {}",
                        message.name,
                        field.name
                    );
                }
                if let Ownership::Keyed(keys) = field.ownership {
                    let item = field.ty.message().unwrap();
                    assert!(
                        field.shape == Shape::List && keys.split(',').all(|key| item.field(key).is_some()),
                        "{} {}",
                        message.name,
                        field.name
                    );
                }
            }
        }
    }

    #[test]
    fn ownership_is_that_of_kubernetes() {
        let field = |message: &str, name: &str| *super::message(message).unwrap().field(name).unwrap();
        for (message, name, expected) in [
            ("core.v1.PodSpec", "containers", Ownership::Keyed("name")),
            ("core.v1.Container", "ports", Ownership::Keyed("containerPort,protocol")),
            (
                "core.v1.EphemeralContainer",
                "ports",
                Ownership::Keyed("containerPort,protocol"),
            ),
            ("core.v1.ServiceSpec", "ports", Ownership::Keyed("port,protocol")),
            ("core.v1.ServiceSpec", "selector", Ownership::Atomic),
            ("core.v1.PodSpec", "tolerations", Ownership::Natural),
            ("core.v1.PersistentVolumeSpec", "claimRef", Ownership::Granular),
            ("meta.v1.ObjectMeta", "finalizers", Ownership::Set),
            ("meta.v1.ObjectMeta", "ownerReferences", Ownership::Keyed("uid")),
            ("meta.v1.ObjectMeta", "labels", Ownership::Natural),
        ] {
            assert_eq!(field(message, name).ownership, expected, "{message} {name}");
        }
        assert!(super::message("meta.v1.LabelSelector").unwrap().atomic);
        assert!(!super::message("core.v1.PodSpec").unwrap().atomic);
        assert_eq!(field("core.v1.ContainerPort", "protocol").default, Some("TCP"));
        assert_eq!(field("core.v1.LocalObjectReference", "name").default, Some(""));
        assert_eq!(field("core.v1.ContainerPort", "containerPort").default, None);
    }

    #[test]
    fn every_kind_has_its_message_and_its_list() {
        for kind in crate::kinds::kinds() {
            assert!(message(kind.message).is_some(), "{}", kind.message);
            assert_eq!(message_of(&kind.api_version(), kind.kind).unwrap().name, kind.message);
            if kind.stored() {
                assert!(message(&format!("{}List", kind.message)).is_some(), "{}", kind.message);
            }
        }
    }

    #[test]
    fn inlined_fields_show_in_their_holder() {
        let volume = message("core.v1.Volume").unwrap();
        assert_eq!(
            volume.field("hostPath").unwrap().ty.message().unwrap().name,
            "core.v1.HostPathVolumeSource"
        );
        assert!(volume.field("volumeSource").is_none());
        assert_eq!(message("core.v1.Probe").unwrap().field("exec").unwrap().number, 1);
        assert_eq!(
            message("core.v1.PodSpec")
                .unwrap()
                .field("containers")
                .unwrap()
                .merge
                .key,
            Some("name")
        );
    }
}
