//! Arguments and environment variables that look like references of a registry, though nothing says that they are images.
//!
//! A program may ask for such an image at run time, and then it is not there. Whether it does, only its author knows: this is
//! for warnings. An annotation says it ([`super::document`]).

use clusterfile::yaml::Node;
use oci::Reference;

use super::document::{IMAGE_ARGS, IMAGE_ENV, IMAGES};
use super::template::UNKNOWN;

/// A text that may be an image's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Suspect {
    pub(super) line: u64,
    pub(super) reference: Reference,
    /// Where it stands: `the argument --image`.
    pub(super) place: String,
    /// The annotation that says that it is one.
    pub(super) annotation: String,
}

/// Those of one container.
pub(super) fn of_container(container: &Node) -> Vec<Suspect> {
    let mut found = Vec::new();
    let words = ["command", "args"].iter().filter_map(|field| container.get(field));
    let words: Vec<&Node> = words.flat_map(|list| list.items()).collect();
    let mut flag_before = None;
    for word in words {
        let Some(text) = word.as_str() else { continue };
        let flag = text.starts_with('-').then_some(text);
        let (flag, value) = match (flag.and_then(|flag| flag.split_once('=')), flag, flag_before.take()) {
            (Some((flag, value)), ..) => (Some(flag), value),
            (None, Some(flag), _) => {
                flag_before = Some(flag);
                continue;
            }
            (None, None, before) => (before, text),
        };
        found.extend(argument(word.at.line, flag, value));
    }
    for entry in container.get("env").map(Node::items).unwrap_or_default() {
        let text = |field: &str| entry.get(field).and_then(|node| Some((node.at.line, node.as_str()?)));
        if let (Some((_, name)), Some((line, value))) = (text("name"), text("value"))
            && says_image(name)
            && let Some(reference) = reference(value, true)
        {
            found.push(Suspect {
                line,
                reference,
                place: format!("the variable {name}"),
                annotation: format!("{IMAGE_ENV}: {name:?}"),
            });
        }
    }
    found
}

fn argument(line: u64, flag: Option<&str>, value: &str) -> Option<Suspect> {
    let reference = reference(value, flag.is_some_and(says_image))?;
    let (place, annotation) = match flag {
        Some(flag) => (format!("the argument {flag}"), format!("{IMAGE_ARGS}: {flag:?}")),
        None => ("an argument".to_string(), format!("{IMAGES}: {value:?}")),
    };
    Some(Suspect {
        line,
        reference,
        place,
        annotation,
    })
}

/// Whether the word `image` is part of a flag's or variable's name.
fn says_image(name: &str) -> bool {
    let mut words = name.split(|c: char| !c.is_ascii_alphanumeric());
    words.any(|word| word.eq_ignore_ascii_case("image"))
}

/// The reference that a text looks like: it has a tag or a digest, and a registry's domain unless it is `called` an image.
fn reference(text: &str, called: bool) -> Option<Reference> {
    if text.contains("://") || text.contains(UNKNOWN) {
        return None;
    }
    let last = text.rsplit('/').next().unwrap_or_default();
    let domain = text.split_once('/').map(|(domain, _)| domain);
    let has_domain = domain.is_some_and(|domain| {
        let host = domain.split(':').next().unwrap_or_default();
        let is_address = host.parse::<std::net::IpAddr>().is_ok();
        domain.contains(['.', ':']) && !is_address && !host.is_empty()
    });
    let is_versioned = last.contains([':', '@']);
    (is_versioned && (has_domain || called))
        .then(|| text.parse().ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn suspects(yaml: &str) -> Vec<String> {
        let document = clusterfile::yaml::parse(yaml).unwrap().remove(0);
        let shown = |found: Suspect| {
            let (line, place, reference) = (found.line, found.place, found.reference.familiar());
            format!("{line} {place} {reference} {}", found.annotation)
        };
        of_container(&document).into_iter().map(shown).collect()
    }

    #[test]
    fn arguments_and_variables_that_look_like_references_are_found() {
        let found = suspects(
            "command: [/operator, quay.io/a/first:v1]\nargs:\n- --reloader=quay.io/a/reloader:v0.1\n- --sidecar-image\n- busybox:1\n\
             - --config=/etc/a.b/c:d\n- corp:5000/x@sha256:0000000000000000000000000000000000000000000000000000000000000000\n\
             env:\n- {name: RELATED_IMAGE_X, value: registry.k8s.io/x:1}\n- {name: IMAGE, value: team/app:2}\n",
        );
        assert_eq!(
            found,
            [
                "1 an argument quay.io/a/first:v1 installer.internal/images: \"quay.io/a/first:v1\"",
                "3 the argument --reloader quay.io/a/reloader:v0.1 installer.internal/image-args: \"--reloader\"",
                "5 the argument --sidecar-image busybox:1 installer.internal/image-args: \"--sidecar-image\"",
                "7 an argument corp:5000/x@sha256:0000000000000000000000000000000000000000000000000000000000000000 \
                 installer.internal/images: \"corp:5000/x@sha256:0000000000000000000000000000000000000000000000000000000000000000\"",
                "9 the variable RELATED_IMAGE_X registry.k8s.io/x:1 installer.internal/image-env: \"RELATED_IMAGE_X\"",
                "10 the variable IMAGE team/app:2 installer.internal/image-env: \"IMAGE\"",
            ]
        );
    }

    #[test]
    fn what_is_something_else_is_not_taken_for_a_reference() {
        let found = suspects(
            "command: [sh, -c, \"docker pull quay.io/a/b:1\"]\nargs:\n- --upstream=http://a.b/c:1\n- --listen=10.0.0.1:80\n- --to=10.0.0.1:80/x:1\n\
             - --path=a.b/c\n- --image-pull-policy=Always\n- --address=a.b:8080\n- --image=quay.io/a/template-value:1\n- --images-dir=a:1\n- 7\n\
             env:\n- {name: USE_IMAGE, value: \"true\"}\n- {name: HELPER, value: busybox:1}\n- {name: A_IMAGE, valueFrom: {}}\n",
        );
        assert_eq!(found, Vec::<String>::new());
    }
}
