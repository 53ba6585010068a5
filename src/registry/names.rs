//! Which carried repository a request means.
//!
//! The store keeps every image under its full name, domain included. Requests name images in three ways: a runtime that uses us
//! as a mirror says the original domain in `?ns=`, and in the name as well where its mirror has a folder for each domain; a client that was told our own domain says only the path, and a person with
//! `curl` may write the full name. This file turns one into an ordered list of full names; it knows nothing of stores.
//!
//! What is pushed goes to the first of them that is a well-formed reference: under our own first domain, unless the name begins
//! with another one.

use oci::Reference;

/// The domain of what is pushed when this registry was told no domain of its own, and always one of its own.
pub const LOCAL: &str = "localhost";

/// The domain that Docker's tools leave out of image names.
const DOCKER: &str = "docker.io";

/// Full repository names that a request may mean, the most specific first. The first one that is carried is served.
///
/// `name` is the `<name>` of the path, `ns` the value of containerd's `?ns=` parameter, `own` the domains this registry answers
/// to itself (`sea.hub:5000`).
pub fn candidates(name: &str, ns: Option<&str>, own: &[String]) -> Vec<String> {
    let mut found = Vec::with_capacity(4);
    let mut push = |candidate: String| {
        if !found.contains(&candidate) {
            found.push(candidate);
        }
    };
    let is_own = |ns: &str| own.iter().any(|domain| domain == ns);
    match ns {
        Some(ns) if !is_own(ns) => {
            push(full(ns, name));
            // A runtime whose mirror keeps the images of each domain in a folder of its own (`/v2/quay.io` for quay.io) asks with
            // both.
            if let Some((first, rest)) = name.split_once('/').filter(|(first, _)| is_folder_of(first, ns)) {
                push(full(ns, rest));
                if is_domain(first) {
                    push(name.to_owned());
                }
                for domain in own {
                    push(format!("{domain}/{name}"));
                }
            }
        }
        ns => {
            if let Some(ns) = ns {
                push(format!("{ns}/{name}"));
            }
            if let Some((first, rest)) = name.split_once('/').filter(|(first, _)| is_domain(first)) {
                push(full(first, rest));
            }
            for domain in own {
                push(format!("{domain}/{name}"));
            }
            push(docker(name));
        }
    }
    found
}

/// The full repository name under which content is pushed, out of the [`candidates`]: the first one that can be part of a
/// reference, since references are what the store's index knows images by.
pub fn target(candidates: &[String]) -> Option<&String> {
    candidates.iter().find(|candidate| {
        candidate
            .parse::<Reference>()
            .is_ok_and(|reference| reference.repository() == **candidate)
    })
}

/// The name under which `_catalog` lists a full repository name: without our own domain, since a client of ours has said it
/// already by connecting.
pub fn listed<'a>(full: &'a str, own: &[String]) -> &'a str {
    own.iter()
        .find_map(|domain| {
            full.strip_prefix(domain.as_str())
                .and_then(|rest| rest.strip_prefix('/'))
        })
        .unwrap_or(full)
}

/// Whether `name` may stand in the path: the distribution spec's grammar, except that the first component may be a domain with a
/// port, because full names are accepted.
pub fn is_valid(name: &str) -> bool {
    if name.is_empty() || name.len() > 255 {
        return false;
    }
    let mut components = name.split('/').peekable();
    let Some(first) = components.next() else { return false };
    let first_is_domain = components.peek().is_some() && is_domain(first) && is_host_port(first);
    (first_is_domain || is_component(first)) && components.all(is_component)
}

/// Whether `tag` is a tag of the distribution spec: `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`.
pub fn is_tag(tag: &str) -> bool {
    let bytes = tag.as_bytes();
    let Some((first, rest)) = bytes.split_first() else {
        return false;
    };
    bytes.len() <= 128
        && (first.is_ascii_alphanumeric() || *first == b'_')
        && rest
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(byte))
}

fn full(domain: &str, path: &str) -> String {
    match is_docker(domain) {
        true => docker(path),
        false => format!("{domain}/{path}"),
    }
}

/// Whether a path component is the folder of a domain: the domain, with a hyphen before its port where that can't stand.
fn is_folder_of(component: &str, domain: &str) -> bool {
    component == domain || component == domain.replace(':', "-") || (is_docker(component) && is_docker(domain))
}

fn docker(path: &str) -> String {
    if path.contains('/') {
        format!("{DOCKER}/{path}")
    } else {
        format!("{DOCKER}/library/{path}")
    }
}

fn is_docker(domain: &str) -> bool {
    matches!(domain, DOCKER | "index.docker.io" | "registry-1.docker.io")
}

/// The rule by which every tool tells a domain from a path component.
fn is_domain(component: &str) -> bool {
    component == "localhost" || component.contains(['.', ':'])
}

fn is_host_port(text: &str) -> bool {
    let (host, port) = text.split_once(':').unwrap_or((text, "0"));
    let is_label = |label: &str| {
        let whole = !label.is_empty() && !label.starts_with('-') && !label.ends_with('-');
        whole && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    host.split('.').all(is_label) && port.parse::<u16>().is_ok()
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_component(component: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = component.as_bytes();
    let (Some(&first), Some(&last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    if !alphanumeric(first) || !alphanumeric(last) {
        return false;
    }
    bytes
        .split(|byte| alphanumeric(*byte))
        .all(|separator| match separator {
            [] => true,
            [b'.'] | [b'_'] | [b'_', b'_'] => true,
            dashes => dashes.iter().all(|byte| *byte == b'-'),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, ns: Option<&str>, expected: &[&str]) {
        let own = ["sea.hub:5000".to_owned(), "10.0.0.1:5000".to_owned()];
        assert_eq!(candidates(name, ns, &own), expected, "{name} ns={ns:?}");
    }

    #[test]
    fn a_mirror_request_means_exactly_the_namespace_it_names() {
        check("a/b", Some("quay.io"), &["quay.io/a/b"]);
        check("library/nginx", Some("docker.io"), &["docker.io/library/nginx"]);
        check("nginx", Some("registry-1.docker.io"), &["docker.io/library/nginx"]);
        check("pause", Some("installer.internal"), &["installer.internal/pause"]);
        check("x", Some("corp:8443"), &["corp:8443/x"]);
    }

    #[test]
    fn a_mirror_request_may_carry_its_namespace_in_the_name_as_well() {
        for (name, ns, expected) in [
            (
                "quay.io/a/b",
                "quay.io",
                &[
                    "quay.io/quay.io/a/b",
                    "quay.io/a/b",
                    "sea.hub:5000/quay.io/a/b",
                    "10.0.0.1:5000/quay.io/a/b",
                ][..],
            ),
            (
                "docker.io/library/nginx",
                "docker.io",
                &[
                    "docker.io/docker.io/library/nginx",
                    "docker.io/library/nginx",
                    "sea.hub:5000/docker.io/library/nginx",
                    "10.0.0.1:5000/docker.io/library/nginx",
                ],
            ),
            (
                "r.corp-8443/x",
                "r.corp:8443",
                &[
                    "r.corp:8443/r.corp-8443/x",
                    "r.corp:8443/x",
                    "r.corp-8443/x",
                    "sea.hub:5000/r.corp-8443/x",
                    "10.0.0.1:5000/r.corp-8443/x",
                ],
            ),
            ("quay.io/a", "ghcr.io", &["ghcr.io/quay.io/a"]),
            ("quay.iox/a", "quay.io", &["quay.io/quay.iox/a"]),
        ] {
            let found: Vec<String> =
                candidates(name, Some(ns), &["sea.hub:5000".to_owned(), "10.0.0.1:5000".to_owned()]);
            assert_eq!(found, expected, "{name} ns={ns}");
        }
    }

    #[test]
    fn our_own_domain_as_namespace_is_like_none() {
        let expected = ["sea.hub:5000/a/b", "10.0.0.1:5000/a/b", "docker.io/a/b"];
        check("a/b", Some("sea.hub:5000"), &expected);
        check("a/b", None, &expected);
    }

    #[test]
    fn what_is_pushed_goes_under_our_first_domain_unless_it_names_another() {
        let own = ["sea.hub:5000".to_owned(), LOCAL.to_owned()];
        for (name, ns, expected) in [
            ("app", None, "sea.hub:5000/app"),
            ("team/app", None, "sea.hub:5000/team/app"),
            ("quay.io/team/app", None, "quay.io/team/app"),
            ("docker.io/nginx", None, "docker.io/library/nginx"),
            ("localhost/app", None, "localhost/app"),
            ("app", Some("quay.io"), "quay.io/app"),
            ("app", Some("localhost"), "localhost/app"),
            ("under_score.d/app", None, "sea.hub:5000/under_score.d/app"),
        ] {
            let found = candidates(name, ns, &own);
            assert_eq!(target(&found).map(String::as_str), Some(expected), "{name} ns={ns:?}");
        }
        assert_eq!(target(&candidates("app", Some("a b"), &own)), None);
    }

    #[test]
    fn without_a_namespace_a_full_name_wins_and_docker_is_the_last_resort() {
        check(
            "quay.io/a/b",
            None,
            &[
                "quay.io/a/b",
                "sea.hub:5000/quay.io/a/b",
                "10.0.0.1:5000/quay.io/a/b",
                "docker.io/quay.io/a/b",
            ],
        );
        check(
            "nginx",
            None,
            &["sea.hub:5000/nginx", "10.0.0.1:5000/nginx", "docker.io/library/nginx"],
        );
        check(
            "docker.io/nginx",
            None,
            &[
                "docker.io/library/nginx",
                "sea.hub:5000/docker.io/nginx",
                "10.0.0.1:5000/docker.io/nginx",
                "docker.io/docker.io/nginx",
            ],
        );
    }

    #[test]
    fn the_catalogue_leaves_out_only_our_own_domain() {
        let own = ["sea.hub:5000".to_owned()];
        assert_eq!(listed("sea.hub:5000/a/b", &own), "a/b");
        assert_eq!(listed("quay.io/a/b", &own), "quay.io/a/b");
        assert_eq!(listed("sea.hub:50001/a", &own), "sea.hub:50001/a");
    }

    #[test]
    fn names_follow_the_grammar() {
        for good in [
            "nginx",
            "a/b/c",
            "a-b--c",
            "a__b",
            "a.b/c",
            "quay.io/a",
            "sea.hub:5000/a",
            "localhost/a",
            "0/1",
        ] {
            assert!(is_valid(good), "{good}");
        }
        for bad in [
            "", "/", "a/", "/a", "A", "a..b", "a___b", "-a", "a-", "a b", "a/../b", "..", "host:x/a", "a/b:1",
            "a:5000", "./a/b", "../a", "../a/b", "a..b/c", "-a.b/c", "a.b-/c", ".:5/a",
        ] {
            assert!(!is_valid(bad), "{bad}");
        }
    }

    #[test]
    fn tags_follow_the_grammar() {
        assert!(is_tag("v0.1.0") && is_tag("_x") && is_tag(&"a".repeat(128)));
        assert!(!is_tag("") && !is_tag(".x") && !is_tag("a/b") && !is_tag(&"a".repeat(129)) && !is_tag("sha256:ab"));
    }
}
