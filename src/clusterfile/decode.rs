//! From a located YAML tree to typed values, strictly: whatever no decoder asked for is an unknown field.
//!
//! A decoder notes what is wrong and goes on with a default, so one run reports every finding.

use crate::names::did_you_mean;
use crate::problem::{Problem, Problems};
use crate::secret::{Secret, SecretSource};
use crate::yaml::{Node, Position, Value};
use std::path::{Path, PathBuf};

/// Collects findings while decoding one file.
pub(crate) struct Decoder {
    file: String,
    base: PathBuf,
    problems: Vec<Problem>,
    warnings: Vec<Problem>,
}

impl Decoder {
    pub(crate) fn new(file: &str, base: &Path) -> Self {
        Decoder {
            file: file.to_string(),
            base: base.to_path_buf(),
            problems: Vec::new(),
            warnings: Vec::new(),
        }
    }

    pub(crate) fn problem(&mut self, at: Position, message: impl Into<String>) {
        self.problems.push(Problem {
            file: self.file.clone(),
            at,
            message: message.into(),
        });
    }

    pub(crate) fn warning(&mut self, at: Position, message: impl Into<String>) {
        self.warnings.push(Problem {
            file: self.file.clone(),
            at,
            message: message.into(),
        });
    }

    /// How many problems were found so far: whoever compares two counts knows whether something in between was refused, and
    /// says nothing that only follows from it.
    pub(crate) fn problem_count(&self) -> usize {
        self.problems.len()
    }

    /// The warnings if nothing is wrong, else every finding.
    pub(crate) fn finish(self) -> Result<Vec<Problem>, Problems> {
        if self.problems.is_empty() {
            Ok(self.warnings)
        } else {
            Err(Problems::new(self.problems))
        }
    }

    /// `FILE:LINE`, for messages that are said later.
    pub(crate) fn place(&self, at: Position) -> String {
        format!("{}:{}", self.file, at.line)
    }

    /// A path as the file means it: `~` is the operator's home, relative ones start at the file's folder.
    pub(crate) fn path(&self, text: &str) -> PathBuf {
        if let Some(rest) = text.strip_prefix("~/")
            && let Some(home) = std::env::var_os("HOME")
        {
            return PathBuf::from(home).join(rest);
        }
        self.base.join(text)
    }

    pub(crate) fn mismatch(&mut self, node: &Node, path: &str, wanted: &str) {
        let mut message = format!("{path} must be {wanted}, not {}", node.kind());
        if wanted.contains("string") && matches!(node.value, Value::Number(_) | Value::Bool(_)) {
            message.push_str(" (put it in quotes)");
        }
        self.problem(node.at, message);
    }

    pub(crate) fn string(&mut self, node: &Node, path: &str) -> Option<String> {
        let text = node.as_str().map(str::to_string);
        if text.is_none() {
            self.mismatch(node, path, "a string");
        }
        text
    }

    pub(crate) fn strings(&mut self, node: &Node, path: &str) -> Vec<(String, Position)> {
        let Value::List(items) = &node.value else {
            self.mismatch(node, path, "a list of strings");
            return Vec::new();
        };
        let item = |(index, item): (usize, &Node)| {
            self.string(item, &format!("{path}[{index}]"))
                .map(|text| (text, item.at))
        };
        items.iter().enumerate().filter_map(item).collect()
    }
}

/// A name that Sealer or Kubernetes knows and nobody here, and why, or what to write instead.
pub(crate) type Refused = (&'static str, &'static str);

/// Of more fields than this a message does not repeat all.
const LISTED: usize = 8;

/// One mapping being decoded.
pub(crate) struct Object<'n> {
    node: &'n Node,
    path: String,
    asked: Vec<&'static str>,
    refused: Vec<&'static str>,
}

impl<'n> Object<'n> {
    /// Begins with a mapping; anything else is noted, and then the object is empty.
    pub(crate) fn new(decoder: &mut Decoder, node: &'n Node, path: impl Into<String>) -> Self {
        let path = path.into();
        if !matches!(node.value, Value::Map(_)) {
            decoder.mismatch(node, if path.is_empty() { "the document" } else { &path }, "a mapping");
        }
        Object {
            node,
            path,
            asked: Vec::new(),
            refused: Vec::new(),
        }
    }

    pub(crate) fn at(&self) -> Position {
        self.node.at
    }

    /// How many fields the file gives it.
    pub(crate) fn len(&self) -> usize {
        self.node.entries().len()
    }

    /// The full name of one of this object's fields.
    pub(crate) fn name(&self, field: &str) -> String {
        if self.path.is_empty() {
            field.to_string()
        } else {
            format!("{}.{field}", self.path)
        }
    }

    pub(crate) fn get(&mut self, field: &'static str) -> Option<&'n Node> {
        self.asked.push(field);
        self.node.get(field)
    }

    /// Whether it is a mapping; if not, that was told, and nothing can be missing in it.
    pub(crate) fn is_mapping(&self) -> bool {
        matches!(self.node.value, Value::Map(_))
    }

    /// Whether it is a mapping that does not give the field. A value that was refused is not missing.
    pub(crate) fn lacks(&self, field: &str) -> bool {
        self.is_mapping() && self.node.get(field).is_none()
    }

    pub(crate) fn object(&mut self, decoder: &mut Decoder, field: &'static str) -> Option<Object<'n>> {
        let name = self.name(field);
        self.get(field).map(|node| Object::new(decoder, node, name))
    }

    pub(crate) fn list(&mut self, decoder: &mut Decoder, field: &'static str) -> &'n [Node] {
        let name = self.name(field);
        match self.get(field) {
            Some(Node {
                value: Value::List(items),
                ..
            }) => items,
            Some(node) => {
                decoder.mismatch(node, &name, "a list");
                &[]
            }
            None => &[],
        }
    }

    pub(crate) fn string(&mut self, decoder: &mut Decoder, field: &'static str) -> Option<String> {
        let name = self.name(field);
        self.get(field).and_then(|node| decoder.string(node, &name))
    }

    pub(crate) fn strings(&mut self, decoder: &mut Decoder, field: &'static str) -> Vec<(String, Position)> {
        let name = self.name(field);
        self.get(field)
            .map(|node| decoder.strings(node, &name))
            .unwrap_or_default()
    }

    pub(crate) fn boolean(&mut self, decoder: &mut Decoder, field: &'static str) -> Option<bool> {
        let name = self.name(field);
        match self.get(field)? {
            Node {
                value: Value::Bool(value),
                ..
            } => Some(*value),
            node => {
                decoder.mismatch(node, &name, "true or false");
                None
            }
        }
    }

    /// A port, as a number or (as Sealer writes it) a string.
    pub(crate) fn port(&mut self, decoder: &mut Decoder, field: &'static str) -> Option<u16> {
        let name = self.name(field);
        let node = self.get(field)?;
        let port = match &node.value {
            Value::Number(number) => number.as_u64().and_then(|n| u16::try_from(n).ok()),
            Value::String(text) => text.parse().ok(),
            _ => None,
        };
        if port.is_none_or(|port| port == 0) {
            decoder.problem(node.at, format!("{name} must be a port from 1 to 65535"));
            return None;
        }
        port
    }

    /// A path, resolved as [`Decoder::path`] says.
    pub(crate) fn path(&mut self, decoder: &mut Decoder, field: &'static str) -> Option<PathBuf> {
        self.string(decoder, field).map(|text| decoder.path(&text))
    }

    /// One of the `known` words, matched exactly.
    pub(crate) fn word<T: Copy>(
        &mut self,
        decoder: &mut Decoder,
        field: &'static str,
        known: &[(&'static str, T)],
    ) -> Option<T> {
        let name = self.name(field);
        let node = self.get(field)?;
        let text = decoder.string(node, &name)?;
        pick(decoder, node.at, &name, &text, known)
    }

    /// A secret in one of its three spellings: inline, from a file, from the environment.
    pub(crate) fn secret(
        &mut self,
        decoder: &mut Decoder,
        inline: &'static str,
        file: &'static str,
        env: &'static str,
    ) -> SecretSource {
        let given: Vec<SecretSource> = [
            self.string(decoder, inline)
                .map(|text| SecretSource::Inline(Secret::new(text))),
            self.path(decoder, file).map(SecretSource::File),
            self.string(decoder, env).map(SecretSource::Env),
        ]
        .into_iter()
        .flatten()
        .collect();
        if given.len() > 1 {
            decoder.problem(
                self.at(),
                format!("{} takes only one of {inline}, {file} and {env}", self.path),
            );
        }
        given.into_iter().next().unwrap_or_default()
    }

    /// Refuses fields that are known to mean nothing here, with the reason. What is empty says nothing, so it may stay.
    pub(crate) fn refuse(&mut self, decoder: &mut Decoder, fields: &[Refused]) {
        for (field, why) in fields {
            self.refused.push(field);
            if let Some((key, node)) = self.node.entry(field)
                && !node.is_empty()
            {
                decoder.problem(key.at, format!("{} is not supported: {why}", self.name(field)));
            }
        }
    }

    fn is_known(&self, field: &str) -> bool {
        self.asked.contains(&field) || self.refused.contains(&field)
    }

    /// Ends the object: every field nobody asked for is unknown.
    pub(crate) fn finish(self, decoder: &mut Decoder) {
        for (key, _) in self.node.entries() {
            if !self.is_known(&key.name) {
                let hint = did_you_mean(&key.name, self.asked.iter().copied());
                decoder.problem(key.at, format!("unknown field {:?}{hint}", self.name(&key.name)));
            }
        }
    }

    /// Ends an object of a foreign kind: a field nobody asked for has no meaning to `distribution`.
    /// Where `reasons` knows the field's full name, it says why.
    pub(crate) fn finish_foreign(self, decoder: &mut Decoder, kind: &str, distribution: &str, reasons: &[Refused]) {
        for (key, node) in self.node.entries() {
            if self.asked.contains(&key.name.as_str()) || node.is_empty() {
                continue;
            }
            let name = self.name(&key.name);
            let hint = match reasons.iter().find(|(field, _)| *field == name) {
                Some((_, why)) => format!(": {why}"),
                None => did_you_mean(&key.name, self.asked.iter().copied()),
            };
            let honoured = match self.asked.len() {
                0 => String::new(),
                1..=LISTED => format!(" (honoured here: {})", self.asked.join(", ")),
                others => format!(" ({others} others are; take it out)"),
            };
            decoder.problem(
                key.at,
                format!("{kind} field {name:?} is not honoured by the {distribution} distribution{hint}{honoured}"),
            );
        }
    }
}

/// Finds `text` among the `known` words, or notes the nearest one.
pub(crate) fn pick<T: Copy>(
    decoder: &mut Decoder,
    at: Position,
    name: &str,
    text: &str,
    known: &[(&'static str, T)],
) -> Option<T> {
    if let Some((_, value)) = known.iter().find(|(word, _)| *word == text) {
        return Some(*value);
    }
    let words: Vec<&str> = known.iter().map(|(word, _)| *word).collect();
    let hint = did_you_mean(text, words.iter().copied());
    decoder.problem(at, format!("{name} is {text:?}{hint} (known: {})", words.join(", ")));
    None
}
