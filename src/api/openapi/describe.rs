//! What Kubernetes says about its types and fields: `schema/descriptions.txt`, which `schema/generate.py` writes. It is read where
//! it lies and only when a document is written.

use std::collections::HashMap;

/// The descriptions of messages.
pub(super) struct Descriptions(HashMap<&'static str, &'static str>);

impl Descriptions {
    /// Finds each message's place in the text.
    pub(super) fn read() -> Self {
        let blocks = include_str!("../schema/descriptions.txt").split("\n\n");
        Self(blocks.filter_map(|block| block.trim().split_once('\n')).collect())
    }

    /// About a message itself.
    pub(super) fn of_message(&self, message: &str) -> Option<String> {
        self.of_field(message, "")
    }

    /// About a field.
    pub(super) fn of_field(&self, message: &str, field: &str) -> Option<String> {
        let lines = self.0.get(message)?.lines();
        let mut pairs = lines.filter_map(|line| line.split_once('\t'));
        pairs.find(|(name, _)| *name == field).map(|(_, text)| unescape(text))
    }
}

fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => out.push(match chars.next() {
                Some('n') => '\n',
                Some(other) => other,
                None => '\\',
            }),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::kinds;

    #[test]
    fn every_kind_is_described() {
        let all = Descriptions::read();
        for kind in kinds() {
            assert!(all.of_message(kind.message).is_some(), "{}", kind.message);
        }
        let port = all.of_field("core.v1.ServicePort", "appProtocol").unwrap();
        assert!(port.contains("\n* Un-prefixed protocol names"), "{port}");
        assert_eq!(all.of_field("core.v1.ServicePort", "none"), None);
    }
}
