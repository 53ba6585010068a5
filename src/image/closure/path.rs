//! Paths into an object: the part of JSONPath (RFC 9535) that names fields.

use std::fmt;

use clusterfile::yaml::Node;
use serde::{Deserialize, Serialize};

/// Longer paths and deeper ones are refused: no object has such fields.
const LONGEST: usize = 512;

/// A path such as `.spec.components[*].image`, `$..image` or `.spec['a.b/c']`.
///
/// `$` and the braces of kubectl's form `{.spec.image}` may be left out. Filters, slices and unions are not supported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct FieldPath {
    text: String,
    steps: Vec<Step>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Field(String),
    Index(usize),
    /// `.*` and `[*]`.
    Every,
    /// `..name`: the field at any depth.
    Anywhere(String),
}

impl FieldPath {
    /// Every node the path leads to, in the order of the text; fields that are absent are no error.
    pub(crate) fn find<'a>(&self, root: &'a Node) -> Vec<&'a Node> {
        let mut nodes = vec![root];
        for step in &self.steps {
            let mut next = Vec::new();
            for node in nodes {
                step.take(node, &mut next);
            }
            nodes = next;
        }
        nodes
    }
}

impl Step {
    fn take<'a>(&self, node: &'a Node, found: &mut Vec<&'a Node>) {
        match self {
            Step::Field(name) => found.extend(node.get(name)),
            Step::Index(index) => found.extend(node.items().get(*index)),
            Step::Every => {
                found.extend(node.items());
                found.extend(node.entries().iter().map(|(_, value)| value));
            }
            Step::Anywhere(name) => {
                found.extend(node.get(name));
                let below = node.entries().iter().map(|(_, value)| value).chain(node.items());
                below.for_each(|child| self.take(child, found));
            }
        }
    }
}

impl TryFrom<String> for FieldPath {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let bad = |why: &str| format!("{text:?} is not a path to a field: {why}");
        if text.len() > LONGEST {
            return Err(bad("it is too long"));
        }
        let inner = text.strip_prefix('{').and_then(|inner| inner.strip_suffix('}'));
        let mut rest = inner.unwrap_or(&text).trim();
        rest = rest.strip_prefix('$').unwrap_or(rest);
        let mut steps = Vec::new();
        while !rest.is_empty() {
            let (step, after) = step(rest).map_err(&bad)?;
            steps.push(step);
            rest = after;
        }
        match steps.is_empty() {
            true => Err(bad("it names no field")),
            false => Ok(FieldPath { steps, text }),
        }
    }
}

fn step(text: &str) -> Result<(Step, &str), &'static str> {
    if let Some(after) = text.strip_prefix("..") {
        let (name, rest) = name(after)?;
        return Ok((Step::Anywhere(name), rest));
    }
    if let Some(after) = text.strip_prefix('.') {
        return match after.strip_prefix('*') {
            Some(rest) => Ok((Step::Every, rest)),
            None if after.starts_with('[') => step(after),
            None => name(after).map(|(name, rest)| (Step::Field(name), rest)),
        };
    }
    let inner = text.strip_prefix('[').ok_or("a field begins with . or [")?;
    for quote in ['\'', '"'] {
        if let Some(quoted) = inner.strip_prefix(quote) {
            let end = quoted.find(quote).ok_or("a quoted name has no end")?;
            let rest = quoted[end + 1..].strip_prefix(']').ok_or("] is missing after a name")?;
            return Ok((Step::Field(quoted[..end].to_string()), rest));
        }
    }
    let (content, rest) = inner.split_once(']').ok_or("] is missing")?;
    match (content, content.parse()) {
        ("*", _) => Ok((Step::Every, rest)),
        (_, Ok(index)) => Ok((Step::Index(index), rest)),
        _ => Err("within [ ] only *, a number or a quoted name is supported"),
    }
}

fn name(text: &str) -> Result<(String, &str), &'static str> {
    let end = text.find(['.', '[']).unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    let plain = |c: char| c.is_alphanumeric() || "_-/".contains(c);
    match !name.is_empty() && name.chars().all(plain) {
        true => Ok((name.to_string(), rest)),
        false => Err("a name is made of letters, digits, _, - and /; others are written ['…']"),
    }
}

impl From<FieldPath> for String {
    fn from(path: FieldPath) -> String {
        path.text
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn paths_lead_to_the_fields_they_name() {
        let text = "spec: {image: a, list: [{image: b}, {image: c, x: {image: d}}], 'e.f/g': h, map: {k: {image: i}}}";
        let document = &clusterfile::yaml::parse(text).unwrap()[0];
        for (path, expected) in [
            (".spec.image", "a"),
            ("$.spec.image", "a"),
            ("{.spec.image}", "a"),
            (".spec.list[*].image", "b c"),
            (".spec.list[1].image", "c"),
            (".spec.list[7].image", ""),
            (".spec.map.*.image", "i"),
            (".spec['e.f/g']", "h"),
            (".spec.[\"e.f/g\"]", "h"),
            ("$..image", "a b c d i"),
            (".spec.none.image", ""),
        ] {
            let path = FieldPath::try_from(path.to_string()).unwrap();
            let found: Vec<_> = path.find(document).iter().filter_map(|node| node.as_str()).collect();
            assert_eq!(found.join(" "), expected, "{path}");
        }
    }

    #[test]
    fn what_is_not_supported_is_refused() {
        for bad in [
            "",
            "$",
            "spec.image",
            ".",
            "..",
            ".a..",
            ".a[",
            ".a[1:2]",
            ".a[?(@.b)]",
            ".a['b",
            ".a['b'",
            ".a b",
            ".a[-1]",
        ] {
            assert!(FieldPath::try_from(bad.to_string()).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_judged_without_a_panic(text in "[$.{}\\[\\]'\"*a-c0-9é -]{0,24}") {
            if let Ok(path) = FieldPath::try_from(text.clone()) {
                prop_assert_eq!(path.to_string(), text);
            }
        }
    }
}
