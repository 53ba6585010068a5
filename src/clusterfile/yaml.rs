//! YAML as a tree that remembers where each node stood, so that every complaint can name line and column.
//!
//! This is deliberately not a typed decoder: strictness (unknown fields, suggestions) lives in `decode`, and the
//! closure proof of the `image` crate walks manifests of any shape with the same tree.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

/// A place in a text file; both counts start at 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Position {
    /// Line, from 1; 0 if unknown.
    pub line: u64,
    /// Column in characters, from 1; 0 if unknown.
    pub column: u64,
}

/// One YAML node with the place where it begins.
#[derive(Clone, PartialEq)]
pub struct Node {
    /// What the node holds.
    pub value: Value,
    /// Where it begins.
    pub at: Position,
}

/// The content of a [`Node`].
#[derive(Clone, PartialEq)]
pub enum Value {
    /// Nothing (`~`, `null`, or an empty value).
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number; whole numbers stay whole.
    Number(serde_json::Number),
    /// A string.
    String(String),
    /// A list.
    List(Vec<Node>),
    /// A mapping in the order of the text.
    Map(Vec<(Key, Node)>),
}

/// A mapping's key.
#[derive(Clone, PartialEq, Eq)]
pub struct Key {
    /// The key's text.
    pub name: String,
    /// Where it begins.
    pub at: Position,
}

/// Why a text is no YAML.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
#[error("{message}")]
pub struct SyntaxError {
    /// Where the parser stopped.
    pub at: Position,
    /// What it says, without the text itself: the text may hold secrets.
    pub message: String,
}

/// Parses all documents of `text`; empty documents are skipped.
///
/// # Errors
/// The first syntax error, duplicate key or exceeded limit, with its place.
pub fn parse(text: &str) -> Result<Vec<Node>, SyntaxError> {
    let options = serde_saphyr::options! {
        with_snippet: false,
        budget: serde_saphyr::budget! { max_events: 4_000_000, max_nodes: 2_000_000, max_documents: 10_000 },
    };
    let documents: Vec<Node> =
        serde_saphyr::from_multiple_with_options(text, options).map_err(|error| syntax_error(&error, text))?;
    Ok(documents.into_iter().filter(|node| node.value != Value::Null).collect())
}

fn syntax_error(error: &serde_saphyr::Error, source: &str) -> SyntaxError {
    let at = error
        .location()
        .map(|at| Position {
            line: at.line(),
            column: at.column(),
        })
        .unwrap_or_default();
    let text = error.without_snippet().to_string();
    // The place is reported in front, so the parser's own suffix would say it twice.
    let message = match text.rfind(" at line ").or_else(|| text.rfind("\n at line ")) {
        Some(cut) if text.get(cut..).is_some_and(|tail| tail.len() < 48) => text[..cut].trim_end().to_string(),
        _ => text,
    };
    let message = message.trim_end_matches(':').to_string();
    match tab_in_indentation(source, at, &message) {
        Some(at) => SyntaxError {
            at,
            message: "a tab cannot indent a line: YAML takes spaces only".to_string(),
        },
        None => SyntaxError { at, message },
    }
}

/// Where the tab is that the parser stumbled over: it tells the place where the value before it began, or one behind it.
fn tab_in_indentation(source: &str, stopped: Position, message: &str) -> Option<Position> {
    let indented = |line: &str| {
        let text = line.trim_start();
        let indentation = line.get(..line.len() - text.len())?;
        let column = indentation.chars().position(|c| c == '\t')?;
        (!text.is_empty() && !text.starts_with('#')).then_some(column as u64 + 1)
    };
    let from = stopped.line.checked_sub(1)?;
    // What it says of something else can only be about a tab in the very line.
    let lines = if message.contains("tab") { usize::MAX } else { 1 };
    let lines = source.lines().zip(1..).skip(usize::try_from(from).ok()?).take(lines);
    let mut tabs = lines.filter_map(|(line, number)| indented(line).map(|column| (number, column)));
    tabs.next().map(|(line, column)| Position { line, column })
}

impl Node {
    /// The value below `key`, if this is a mapping that has it and it isn't null.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Node> {
        self.entry(key)
            .map(|(_, node)| node)
            .filter(|node| node.value != Value::Null)
    }

    /// Key and value of `key`, null or not.
    #[must_use]
    pub fn entry(&self, key: &str) -> Option<(&Key, &Node)> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|(k, _)| k.name == key).map(|(k, v)| (k, v)),
            _ => None,
        }
    }

    /// The string this node holds.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        match &self.value {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    /// The items of this list; empty for anything else.
    #[must_use]
    pub fn items(&self) -> &[Node] {
        match &self.value {
            Value::List(items) => items,
            _ => &[],
        }
    }

    /// The entries of this mapping; empty for anything else.
    #[must_use]
    pub fn entries(&self) -> &[(Key, Node)] {
        match &self.value {
            Value::Map(entries) => entries,
            _ => &[],
        }
    }

    /// Whether the node says nothing: null, or a list or mapping without entries.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        match &self.value {
            Value::Null => true,
            Value::List(items) => items.is_empty(),
            Value::Map(entries) => entries.is_empty(),
            _ => false,
        }
    }

    /// The same data without places.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        match &self.value {
            Value::Null => serde_json::Value::Null,
            Value::Bool(b) => serde_json::Value::Bool(*b),
            Value::Number(n) => serde_json::Value::Number(n.clone()),
            Value::String(s) => serde_json::Value::String(s.clone()),
            Value::List(items) => items.iter().map(Node::to_json).collect(),
            Value::Map(entries) => {
                serde_json::Value::Object(entries.iter().map(|(k, v)| (k.name.clone(), v.to_json())).collect())
            }
        }
    }

    /// What kind of node this is, in words for an error message.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match &self.value {
            Value::Null => "nothing",
            Value::Bool(_) => "a boolean",
            Value::Number(_) => "a number",
            Value::String(_) => "a string",
            Value::List(_) => "a list",
            Value::Map(_) => "a mapping",
        }
    }
}

// A tree may hold passwords, so it never prints its scalars.
impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}:{}", self.kind(), self.at.line, self.at.column)
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Value>::deserialize(deserializer)?;
        let at = Position {
            line: spanned.referenced.line(),
            column: spanned.referenced.column(),
        };
        Ok(Node {
            value: spanned.value,
            at,
        })
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<String>::deserialize(deserializer)?;
        let at = Position {
            line: spanned.referenced.line(),
            column: spanned.referenced.column(),
        };
        Ok(Key {
            name: spanned.value,
            at,
        })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        Value::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(serde_json::Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_string()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(Value::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = access.next_entry()? {
            entries.push(entry);
        }
        Ok(Value::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_of_keys_and_values_survive_several_documents() {
        let documents = parse("a: 1\n---\nb:\n  - x: [yes, 2]\n").unwrap();
        assert_eq!(documents.len(), 2);
        let (key, value) = documents[1].entry("b").unwrap();
        assert_eq!((key.at.line, key.at.column), (3, 1));
        let x = value.items()[0].get("x").unwrap();
        assert_eq!((x.at.line, x.at.column), (4, 8));
        assert_eq!(x.items().len(), 2);
    }

    #[test]
    fn duplicate_keys_and_bad_indentation_are_errors_with_places() {
        let error = parse("a: 1\nb: 2\na: 3\n").unwrap_err();
        assert_eq!(error.at.line, 3, "{error}");
        assert!(error.message.contains("duplicate"), "{error}");
        assert!(!error.message.contains("line"), "{error}");
        assert!(parse("a: [1, 2\nb: }").is_err());
    }

    #[test]
    fn a_tab_is_told_where_it_stands() {
        for (text, line, column) in [
            ("a: 1\nspec:\n\timage: x\n", 3, 1),
            ("a: 1\nspec:\n  image: x\n\thosts: y\n", 4, 1),
            ("a: 1\nspec:\n  image: x\n  \thosts: y\n", 4, 3),
            ("a: 1\nspec:\n  image: x\n\n# more\n\t# here\n\thosts: y\n", 7, 1),
            ("spec:\n  hosts:\n  - a\n\t- b\n", 4, 1),
            ("a: |\n\tx\nb: 2\n", 2, 1),
            ("a: |\n  x\n\ty\nb: 2\n", 3, 1),
            ("a: \"x\n\ty\"\n", 2, 1),
        ] {
            let error = parse(text).unwrap_err();
            assert_eq!((error.at.line, error.at.column), (line, column), "{text:?}: {error}");
            assert!(error.message.contains("a tab cannot indent"), "{text:?}: {error}");
        }
        // Another mistake stays what it is, though there are tabs.
        for (text, line) in [
            ("a: x: y\nb: |\n  z\n  \tz\n", 1),
            ("a: {x: 1,\n\ty: 2\n\nc: 3\n", 4),
            ("a: [1,\n\t2\n", 1),
        ] {
            let error = parse(text).unwrap_err();
            assert!(
                error.at.line >= line && !error.message.contains("a tab cannot"),
                "{text:?}: {error:?}"
            );
        }
        assert!(parse("a:\t1\nb: [1,\n\t2]\nc: |\n  x\n  \ty\n").is_ok());
    }

    #[test]
    fn empty_documents_are_skipped_and_nothing_prints_scalars() {
        assert_eq!(parse("---\n---\n# only a comment\n").unwrap().len(), 0);
        let node = &parse("passwd: hunter2\n").unwrap()[0];
        assert!(!format!("{node:?}").contains("hunter2"));
    }
}
