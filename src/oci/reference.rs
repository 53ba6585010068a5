//! Image references as users write them (distribution's `reference` grammar), with the registry domain always kept.

use crate::{Digest, Error};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// A normalised image reference: `domain/path[:tag][@digest]`.
///
/// `nginx` means `docker.io/library/nginx:latest`, as for every other tool.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Reference {
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

const DEFAULT_DOMAIN: &str = "docker.io";

impl Reference {
    /// The registry's name with its port, if any: `docker.io`, `sea.hub:5000`.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The repository within the registry: `library/nginx`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// `domain/path`.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// The tag; absent only where a digest is given.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest the reference is pinned to.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// What a registry is asked for: the digest if there is one, else the tag.
    pub fn tag_or_digest(&self) -> &str {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.as_str(),
            (None, Some(tag)) => tag,
            (None, None) => "latest",
        }
    }

    /// The same name as users write it: without `docker.io/` and `library/`, where that leaves no doubt.
    pub fn familiar(&self) -> String {
        let full = self.to_string();
        let Some(short) = full.strip_prefix("docker.io/") else {
            return full;
        };
        let short = short.strip_prefix("library/").unwrap_or(short);
        // What is left may begin with what looks like another domain.
        match short.parse::<Self>() {
            Ok(same) if same == *self => short.to_owned(),
            _ => full,
        }
    }
}

fn is_domain(first: &str) -> bool {
    first == "localhost" || first.contains(['.', ':']) || first.chars().any(|c| c.is_ascii_uppercase())
}

fn valid_domain(domain: &str) -> bool {
    let (name, port) = domain.split_once(':').map_or((domain, None), |(n, p)| (n, Some(p)));
    let label = |l: &str| {
        !l.is_empty()
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    name.split('.').all(label) && port.is_none_or(|p| !p.is_empty() && p.parse::<u16>().is_ok())
}

fn valid_component(component: &str) -> bool {
    let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let bytes = component.as_bytes();
    edge(bytes.first().copied())
        && edge(bytes.last().copied())
        && bytes
            .iter()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-'))
        && !component.contains("..")
}

fn valid_tag(tag: &str) -> bool {
    (1..=128).contains(&tag.len())
        && !tag.starts_with(['.', '-'])
        && tag
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

impl FromStr for Reference {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        let bad = |why| Error::BadReference(text.chars().take(200).collect(), why);
        if text.len() > 512 {
            return Err(bad("it is longer than 512 characters"));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (
                rest,
                Some(digest.parse().map_err(|_| bad("the digest after @ is malformed"))?),
            ),
            None => (text, None),
        };
        let (rest, tag) = match rest.rsplit_once(':') {
            Some((rest, tag)) if !tag.contains('/') => (rest, Some(tag)),
            _ => (rest, None),
        };
        let (domain, path) = match rest.split_once('/') {
            Some((first, path)) if is_domain(first) => (first.to_owned(), path.to_owned()),
            Some(_) => (DEFAULT_DOMAIN.to_owned(), rest.to_owned()),
            None => (DEFAULT_DOMAIN.to_owned(), rest.to_owned()),
        };
        let domain = if domain == "index.docker.io" {
            DEFAULT_DOMAIN.to_owned()
        } else {
            domain
        };
        let path = if domain == DEFAULT_DOMAIN && !path.contains('/') {
            format!("library/{path}")
        } else {
            path
        };
        if !valid_domain(&domain) {
            return Err(bad("the registry's name is malformed"));
        }
        if path.len() > 255 || !path.split('/').all(valid_component) {
            return Err(bad(
                "a repository is made of lowercase letters, digits and single separators . _ - between them",
            ));
        }
        if tag.is_some_and(|tag| !valid_tag(tag)) {
            return Err(bad(
                "a tag is at most 128 letters, digits, . _ - and does not start with . or -",
            ));
        }
        let tag = match (tag, &digest) {
            (Some(tag), _) => Some(tag.to_owned()),
            (None, None) => Some("latest".to_owned()),
            (None, Some(_)) => None,
        };
        Ok(Self {
            domain,
            path,
            tag,
            digest,
        })
    }
}

impl TryFrom<String> for Reference {
    type Error = Error;
    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<Reference> for String {
    fn from(reference: Reference) -> Self {
        reference.to_string()
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.domain, self.path)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_normalise_like_every_other_tool_does() {
        let hex = "a".repeat(64);
        for (text, expected) in [
            ("nginx", "docker.io/library/nginx:latest".to_owned()),
            ("nginx:1.27", "docker.io/library/nginx:1.27".to_owned()),
            ("local/native:dev", "docker.io/local/native:dev".to_owned()),
            ("quay.io/a/b", "quay.io/a/b:latest".to_owned()),
            ("sea.hub:5000/a/b:tag", "sea.hub:5000/a/b:tag".to_owned()),
            ("localhost/x", "localhost/x:latest".to_owned()),
            ("index.docker.io/library/x:1", "docker.io/library/x:1".to_owned()),
            ("docker.io/nginx", "docker.io/library/nginx:latest".to_owned()),
            (&format!("a.b/c@sha256:{hex}"), format!("a.b/c@sha256:{hex}")),
            (&format!("a.b/c:1@sha256:{hex}"), format!("a.b/c:1@sha256:{hex}")),
        ] {
            assert_eq!(text.parse::<Reference>().unwrap().to_string(), expected, "{text}");
        }
    }

    #[test]
    fn malformed_names_are_refused() {
        for bad in [
            "",
            "/",
            "A",
            "a//b",
            "a/../b",
            "a:",
            "a:-x",
            "a b",
            "x.y:port/z",
            "a@sha256:12",
            ".a/b",
            "-x.y/z",
            "a_/b",
        ] {
            assert!(bad.parse::<Reference>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn familiar_form_hides_only_the_defaults() {
        for (full, short) in [
            ("docker.io/library/nginx:1", "nginx:1"),
            ("docker.io/local/native:dev", "local/native:dev"),
            ("quay.io/a:1", "quay.io/a:1"),
            ("docker.io/a.b/c:1", "docker.io/a.b/c:1"),
            ("docker.io/localhost/c:1", "docker.io/localhost/c:1"),
            ("docker.io/library/a/b:1", "docker.io/library/a/b:1"),
        ] {
            assert_eq!(full.parse::<Reference>().unwrap().familiar(), short);
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_is_stable(text in "[ -~]{0,80}") {
            if let Ok(reference) = text.parse::<Reference>() {
                prop_assert_eq!(&reference.to_string().parse::<Reference>().unwrap(), &reference);
                prop_assert_eq!(reference.familiar().parse::<Reference>().unwrap(), reference);
            }
        }
    }
}
