//! Names: which are allowed, and which known one an unknown one probably meant.

/// The known name most like `word`, if one is near enough to be a likely slip of the pen.
#[must_use]
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = word.to_lowercase();
    let length = word.chars().count();
    let limit = (length / 3).max(2);
    // At least half of the letters are right: short words are near to many.
    let is_near = |distance: usize, name: &str| distance <= limit && 2 * distance <= length.max(name.chars().count());
    known
        .into_iter()
        .filter(|name| !name.is_empty())
        .map(|name| (strsim::damerau_levenshtein(&lower, &name.to_lowercase()), name))
        .filter(|(distance, name)| is_near(*distance, name))
        .min()
        .map(|(_, name)| name)
}

/// `, did you mean "x"?`, or nothing if no known name is near.
#[must_use]
pub fn did_you_mean<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    nearest(word, known)
        .map(|name| format!(", did you mean {name:?}?"))
        .unwrap_or_default()
}

/// Whether `name` is an RFC 1123 label as Kubernetes means it: lower case, digits, inner hyphens, at most 63.
#[must_use]
pub fn is_dns_label(name: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    !name.is_empty() && name.len() <= 63 && name.chars().all(inner) && !name.starts_with('-') && !name.ends_with('-')
}

/// Whether `name` is an RFC 1123 subdomain: labels joined by dots, at most 253 in all.
#[must_use]
pub fn is_dns_subdomain(name: &str) -> bool {
    name.len() <= 253 && name.split('.').all(is_dns_label)
}

/// Whether `key` is a label or taint key: an optional DNS prefix and `/`, then at most 63 of `[A-Za-z0-9._-]`.
#[must_use]
pub fn is_qualified_name(key: &str) -> bool {
    match key.split_once('/') {
        Some((prefix, name)) => {
            is_dns_subdomain(prefix) && !prefix.is_empty() && is_label_text(name) && !name.is_empty()
        }
        None => !key.is_empty() && is_label_text(key),
    }
}

/// Whether `value` is a label or taint value: empty, or at most 63 of `[A-Za-z0-9._-]` beginning and ending alphanumeric.
#[must_use]
pub fn is_label_text(value: &str) -> bool {
    value.is_empty()
        || (value.len() <= 63
            && value.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
            && value.starts_with(|c: char| c.is_ascii_alphanumeric())
            && value.ends_with(|c: char| c.is_ascii_alphanumeric()))
}

/// Variables that the installer fills for templates and hooks, whatever a Clusterfile says of them. `PodCIDR`, `SvcCIDR` and `DNSDomain`
/// are not among them: those are asked of the Clusterfile.
pub const COMPUTED_VARIABLES: [&str; 21] = [
    "ApiServerFlags",
    "Arch",
    "ClusterName",
    "ContainerRuntime",
    "DNSSvcIP",
    "DataRoot",
    "EtcdInitialCluster",
    "EtcdInitialClusterState",
    "HostIP",
    "HostIPFamily",
    "HostName",
    "KubeSvcIP",
    "LocalRegistryDomain",
    "LocalRegistryPort",
    "LocalRegistryURL",
    "RegisterFlags",
    "RegistryDomain",
    "RegistryPort",
    "RegistryTlsFlags",
    "RegistryURL",
    "RootfsDigest",
];

/// Whether `name` can be an environment variable's and template's name.
#[must_use]
pub fn is_env_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_find_their_name_and_strangers_do_not() {
        let known = ["hosts", "image", "registry", "env", "ssh"];
        for (word, expected) in [
            ("hsots", Some("hosts")),
            ("Image", Some("image")),
            ("regsitry", Some("registry")),
            ("volumes", None),
        ] {
            assert_eq!(nearest(word, known), expected, "{word}");
        }
        for (word, expected) in [("bb", Some("b")), ("jbo", Some("job")), ("x", None), ("bo", Some("b"))] {
            assert_eq!(nearest(word, ["b", "job"]), expected, "{word}");
        }
    }

    #[test]
    fn names_follow_rfc_1123_and_the_label_grammar() {
        for (name, good) in [
            ("demo", true),
            ("a-b", true),
            ("-a", false),
            ("A", false),
            ("", false),
            ("a.b", false),
        ] {
            assert_eq!(is_dns_label(name), good, "{name}");
        }
        for (key, good) in [
            ("disk", true),
            ("a.io/x", true),
            ("/x", false),
            ("a.io/", false),
            ("a b", false),
        ] {
            assert_eq!(is_qualified_name(key), good, "{key}");
        }
    }
}
