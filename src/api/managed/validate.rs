//! Whether a configuration fits its kind: fields there are, values of their type, items that can be told apart.

use super::parts::Parts;
use super::path::{Element, display};
use crate::schema::{Field, Message, Shape, Type};
use serde_json::Value;
use std::collections::BTreeSet;

/// Most errors that are told.
const MOST: usize = 32;

/// What is wrong with a configuration, each with its path.
pub(super) fn errors(message: &'static Message, config: &Value) -> Vec<String> {
    let mut walk = Walk {
        path: Vec::new(),
        errors: Vec::new(),
    };
    walk.message(message, config);
    walk.errors
}

struct Walk {
    path: Vec<Element>,
    errors: Vec<String>,
}

impl Walk {
    fn refuse(&mut self, why: &str) {
        if self.errors.len() < MOST {
            let path = display(&self.path);
            self.errors.push(if path.is_empty() {
                why.to_owned()
            } else {
                format!("{path}: {why}")
            });
        }
    }

    fn at(&mut self, element: Element, f: impl FnOnce(&mut Self)) {
        self.path.push(element);
        f(self);
        self.path.pop();
    }

    fn message(&mut self, message: &'static Message, value: &Value) {
        let Some(map) = value.as_object() else {
            if !value.is_null() {
                self.refuse(&format!("expected map, got {}", Kind(value)));
            }
            return;
        };
        for (name, inner) in map {
            self.at(Element::field(name), |walk| match message.field(name) {
                Some(field) => walk.field(field, inner),
                // Every object may say what it is.
                None if matches!(name.as_str(), "apiVersion" | "kind") => {}
                None => walk.refuse("field not declared in schema"),
            });
        }
    }

    fn field(&mut self, field: &'static Field, value: &Value) {
        match (field.shape, value) {
            (_, Value::Null) => {}
            (Shape::One, _) => self.value(field.ty, value),
            (Shape::Map, Value::Object(map)) => {
                for (key, inner) in map {
                    self.at(Element::field(key), |walk| walk.value(field.ty, inner));
                }
            }
            (Shape::List, Value::Array(items)) => self.items(field, items),
            (Shape::Map, _) => self.refuse(&format!("expected map, got {}", Kind(value))),
            (Shape::List, _) => self.refuse(&format!("expected list, got {}", Kind(value))),
        }
    }

    fn items(&mut self, field: &'static Field, items: &[Value]) {
        let parts = Parts::of(field);
        let mut seen = BTreeSet::new();
        for (i, item) in items.iter().enumerate() {
            let element = match parts {
                Parts::Leaf => Ok(Element::Index(i64::try_from(i).unwrap_or(i64::MAX))),
                _ => parts.item(item),
            };
            match element {
                Err(why) => self.refuse(&format!("element {i}: {why}")),
                Ok(element) => {
                    if !seen.insert(element.clone()) {
                        self.refuse(&format!("duplicate entries for key {element}"));
                    }
                    self.at(element, |walk| walk.value(field.ty, item));
                }
            }
        }
    }

    fn value(&mut self, ty: Type, value: &Value) {
        let (fits, wanted) = match ty {
            _ if value.is_null() => return,
            Type::Message(_) => {
                if let Some(message) = ty.message() {
                    self.message(message, value);
                }
                return;
            }
            Type::Raw | Type::Fields => return,
            Type::String | Type::Bytes | Type::Time | Type::MicroTime => (value.is_string(), "string"),
            Type::Int32 | Type::Int64 | Type::Double => (value.is_number(), "numeric (int or float)"),
            Type::Bool => (value.is_boolean(), "boolean"),
            Type::Quantity | Type::IntOrString => (!value.is_object() && !value.is_array(), "any scalar"),
            Type::Strings => (value.is_array(), "list"),
        };
        if !fits {
            self.refuse(&format!("expected {wanted}, got {}", Kind(value)));
        }
    }
}

/// The kind of a JSON value, and a short one itself.
struct Kind<'a>(&'a Value);

impl std::fmt::Display for Kind<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Value::Null => f.write_str("null"),
            Value::Bool(b) => write!(f, "{b}"),
            Value::Number(n) => write!(f, "{n}"),
            Value::String(s) => write!(f, "{:?}", s.chars().take(64).collect::<String>()),
            Value::Array(_) => f.write_str("a list"),
            Value::Object(_) => f.write_str("a map"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::message;
    use serde_json::json;

    #[test]
    fn what_does_not_fit_is_named_with_its_path() {
        let check = |spec: Value, expected: &[&str]| {
            let found = errors(
                message("core.v1.Pod").unwrap(),
                &json!({"apiVersion": "v1", "kind": "Pod", "spec": spec}),
            );
            assert_eq!(found, expected);
        };
        check(
            json!({"containers": [{"name": "a", "image": "x", "ports": [{"containerPort": 80}]}], "hostNetwork": null}),
            &[],
        );
        check(json!({"foo": 1}), &[".spec.foo: field not declared in schema"]);
        check(
            json!({"containers": [{"name": "a", "foo": 1}, {"name": "a"}, {"image": "x"}]}),
            &[
                r#".spec.containers[name="a"].foo: field not declared in schema"#,
                r#".spec.containers: duplicate entries for key [name="a"]"#,
                ".spec.containers: element 2: associative list with keys has an element that omits all key fields",
            ],
        );
        check(
            json!({"hostNetwork": "yes", "priority": "1", "nodeName": 5, "containers": {}, "nodeSelector": [], "securityContext": "x"}),
            &[
                ".spec.containers: expected list, got a map",
                r#".spec.hostNetwork: expected boolean, got "yes""#,
                ".spec.nodeName: expected string, got 5",
                ".spec.nodeSelector: expected map, got a list",
                r#".spec.priority: expected numeric (int or float), got "1""#,
                r#".spec.securityContext: expected map, got "x""#,
            ],
        );
        check(
            json!({"tolerations": [{"foo": 1}]}),
            &[".spec.tolerations[0].foo: field not declared in schema"],
        );
    }
}
