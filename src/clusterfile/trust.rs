//! Reading `spec.trust`: whose signature the image needs.

use crate::cluster::{Trust, TrustedKey};
use crate::decode::{Decoder, Object};

/// How every PEM text begins (RFC 7468).
const PEM: &str = "-----BEGIN ";

pub(crate) fn read(decoder: &mut Decoder, mut object: Object<'_>) -> Trust {
    let mut keys = Vec::new();
    let before = decoder.problem_count();
    for (text, at) in object.strings(decoder, "keys") {
        let name = object.name("keys");
        let text = text.trim();
        if !text.starts_with(PEM) {
            if text.is_empty() || text.contains('\n') {
                let what = "a key is the path of a PEM file, or PEM text that begins with -----BEGIN PUBLIC KEY-----";
                decoder.problem(at, format!("{name}: {what}"));
            }
            keys.push(TrustedKey::File(decoder.path(text)));
        } else if text.lines().next().is_some_and(|line| line.contains("PRIVATE KEY")) {
            // The text is not repeated: it is a secret.
            decoder.problem(
                at,
                format!("{name}: this is a private key; put the public one here, and keep this one safe"),
            );
        } else {
            let (pem, place) = (text.to_string(), decoder.place(at));
            keys.push(TrustedKey::Inline { pem, place });
        }
    }
    if keys.is_empty() && object.is_mapping() && decoder.problem_count() == before {
        decoder.problem(
            object.at(),
            format!(
                "{} names no key: without one no image could be trusted",
                object.name("keys")
            ),
        );
    }
    let required = object.boolean(decoder, "required").unwrap_or(true);
    object.finish(decoder);
    Trust { keys, required }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::{Clusterfile, Trust, TrustedKey};

    fn parse(trust: &str) -> Result<Option<Trust>, String> {
        let text = format!(
            "apiVersion: sealer.io/v2\nkind: Cluster\nmetadata: {{name: demo}}\nspec:\n  image: i\n  \
             hosts: [{{ips: [10.0.0.1], roles: [master]}}]\n{trust}"
        );
        let file = Clusterfile::parse(&text, "Clusterfile", Path::new("/work"));
        file.map(|file| file.cluster.trust)
            .map_err(|problems| problems.to_string())
    }

    #[test]
    fn keys_are_files_beside_the_clusterfile_or_text_in_it() {
        assert_eq!(parse("").unwrap(), None);
        let trust = parse(
            "  trust:\n    keys:\n    - keys/ops.pub\n    - |\n      -----BEGIN PUBLIC KEY-----\n      MCow\n      \
             -----END PUBLIC KEY-----\n",
        );
        let trust = trust.unwrap().unwrap();
        assert!(trust.required, "unless it says otherwise");
        assert_eq!(trust.keys[0], TrustedKey::File("/work/keys/ops.pub".into()));
        let TrustedKey::Inline { pem, place } = &trust.keys[1] else {
            panic!("inline")
        };
        assert_eq!(pem, "-----BEGIN PUBLIC KEY-----\nMCow\n-----END PUBLIC KEY-----");
        assert!(place.starts_with("Clusterfile:1"), "{place}");
        assert!(
            !parse("  trust: {keys: [k], required: false}\n")
                .unwrap()
                .unwrap()
                .required
        );
    }

    #[test]
    fn the_example_of_the_documentation_is_understood() {
        let text = include_str!("../../docs/signing.md");
        let start = text.find("```yaml\nspec:\n  image: local/demo:1\n").unwrap();
        let example = text[start..].split("```").nth(1).unwrap();
        let trust = example.strip_prefix("yaml\nspec:\n  image: local/demo:1\n").unwrap();
        let trust = parse(trust).unwrap().unwrap();
        assert_eq!((trust.keys.len(), trust.required), (2, true));
    }

    #[test]
    fn what_cannot_be_meant_is_named_with_its_place() {
        let private = "  trust: {keys: [\"-----BEGIN PRIVATE KEY-----\\nMC4CAQ\"]}\n";
        for (text, expected) in [
            ("  trust: {}\n", "Clusterfile:7:10: spec.trust.keys names no key"),
            (
                "  trust: {keys: []}\n",
                "Clusterfile:7:10: spec.trust.keys names no key",
            ),
            (
                "  trust: {key: [a]}\n",
                "Clusterfile:7:11: unknown field \"spec.trust.key\", did you mean \"keys\"?",
            ),
            (
                "  trust: {keys: a}\n",
                "Clusterfile:7:17: spec.trust.keys must be a list of strings",
            ),
            (
                "  trust: {keys: [a], required: yes please}\n",
                "Clusterfile:7:32: spec.trust.required must be true or false",
            ),
            (
                "  trust: {keys: [\"\"]}\n",
                "Clusterfile:7:18: spec.trust.keys: a key is the path of a PEM file",
            ),
            (
                "  trust: {keys: [\"a\\nb\"]}\n",
                "Clusterfile:7:18: spec.trust.keys: a key is the path",
            ),
            (private, "Clusterfile:7:18: spec.trust.keys: this is a private key"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.lines().any(|line| line.starts_with(expected)), "{text}\n{error}");
            assert!(!error.contains("MC4CAQ"), "{error}");
        }
    }
}
