//! One step on the way from an object to a field, and its form in `FieldsV1` (KEP-555): `f:name`, `k:{…}`, `v:…`, `i:n`.

use serde_json::Value;
use std::fmt;

/// One step. Values are kept as compact JSON, which makes them comparable.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Element {
    /// A field of a message or a key of a map.
    Field(Box<str>),
    /// The item of a list whose fields have these values, sorted by field.
    Keys(Box<[(Box<str>, Box<str>)]>),
    /// The item of a set that is this value.
    Value(Box<str>),
    /// The item at this place of a list. This server makes none, but others may.
    Index(i64),
}

impl Element {
    /// A field.
    pub fn field(name: &str) -> Self {
        Self::Field(name.into())
    }

    /// The item of a keyed list; fields that it leaves out count with their defaults, if these have one.
    ///
    /// # Errors
    /// Why it cannot be told apart from others.
    pub fn of_item<'a>(
        keys: &'a str,
        default: impl Fn(&str) -> Option<&'a str>,
        item: &Value,
    ) -> Result<Self, &'static str> {
        let Some(map) = item.as_object() else {
            return Err("associative list with keys may not have non-map elements");
        };
        let mut found: Vec<(Box<str>, Box<str>)> = Vec::new();
        for key in keys.split(',') {
            let text = match (map.get(key), default(key)) {
                (Some(value), _) => value.to_string(),
                (None, Some(default)) => Value::from(default).to_string(),
                (None, None) => continue,
            };
            found.push((key.into(), text.into()));
        }
        if found.is_empty() {
            return Err("associative list with keys has an element that omits all key fields");
        }
        found.sort();
        Ok(Self::Keys(found.into()))
    }

    /// The item of a set.
    ///
    /// # Errors
    /// Why it can be in no set.
    pub fn of_value(item: &Value) -> Result<Self, &'static str> {
        match item {
            Value::Object(_) | Value::Array(_) => Err("a set has an element that is no scalar"),
            Value::Null => Err("a set has an element that's an explicit null"),
            scalar => Ok(Self::Value(scalar.to_string().into())),
        }
    }

    /// The form in `FieldsV1`.
    pub fn encode(&self) -> String {
        match self {
            Self::Field(name) => format!("f:{name}"),
            Self::Keys(keys) => {
                let pairs: Vec<String> = keys.iter().map(|(k, v)| format!("{}:{v}", Value::from(&**k))).collect();
                format!("k:{{{}}}", pairs.join(","))
            }
            Self::Value(value) => format!("v:{value}"),
            Self::Index(i) => format!("i:{i}"),
        }
    }

    /// Reads the form in `FieldsV1`.
    pub fn decode(text: &str) -> Option<Self> {
        let (mark, rest) = text.split_once(':')?;
        match mark {
            "f" => Some(Self::field(rest)),
            "k" => {
                let Ok(Value::Object(map)) = serde_json::from_str(rest) else {
                    return None;
                };
                let mut keys: Vec<_> = map
                    .iter()
                    .map(|(k, v)| (k.as_str().into(), v.to_string().into()))
                    .collect();
                keys.sort();
                (!keys.is_empty()).then(|| Self::Keys(keys.into()))
            }
            "v" => {
                let value: Value = serde_json::from_str(rest).ok()?;
                Some(Self::Value(value.to_string().into()))
            }
            "i" => rest.parse().ok().map(Self::Index),
            _ => None,
        }
    }
}

/// As messages name it: `.name`, `[key="value"]`, `[="value"]`, `[3]`.
impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Field(name) => write!(f, ".{name}"),
            Self::Keys(keys) => {
                let pairs: Vec<String> = keys.iter().map(|(k, v)| format!("{k}={v}")).collect();
                write!(f, "[{}]", pairs.join(","))
            }
            Self::Value(value) => write!(f, "[={value}]"),
            Self::Index(i) => write!(f, "[{i}]"),
        }
    }
}

/// A whole way as messages name it: `.spec.containers[name="web"].image`.
pub fn display(path: &[Element]) -> String {
    path.iter().map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn elements_survive_their_wire_form() {
        let tcp = |key: &str| (key == "protocol").then_some("TCP");
        let port = Element::of_item("port,protocol", tcp, &json!({"port": 80})).unwrap();
        for (element, wire, shown) in [
            (Element::field("spec"), "f:spec", ".spec"),
            (Element::field("a:b/c"), "f:a:b/c", ".a:b/c"),
            (port, r#"k:{"port":80,"protocol":"TCP"}"#, r#"[port=80,protocol="TCP"]"#),
            (Element::of_value(&json!("x")).unwrap(), r#"v:"x""#, r#"[="x"]"#),
            (Element::Index(3), "i:3", "[3]"),
        ] {
            assert_eq!(element.encode(), wire);
            assert_eq!(element.to_string(), shown);
            assert_eq!(Element::decode(wire), Some(element));
        }
        assert_eq!(
            Element::decode(r#"k:{ "protocol": "TCP", "port": 80 }"#)
                .unwrap()
                .encode(),
            r#"k:{"port":80,"protocol":"TCP"}"#
        );
        for rubbish in ["", ".", "f", "x:y", "k:[]", "k:{}", "v:", "i:x"] {
            assert_eq!(Element::decode(rubbish), None, "{rubbish}");
        }
    }

    #[test]
    fn items_that_cannot_be_told_apart_are_refused() {
        assert!(Element::of_item("name", |_| None, &json!({"image": "x"})).is_err());
        assert!(Element::of_item("name", |_| None, &json!("x")).is_err());
        assert!(Element::of_value(&json!({})).is_err());
        assert!(Element::of_value(&json!(null)).is_err());
    }
}
