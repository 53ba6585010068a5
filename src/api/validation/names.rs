//! The forms of names, keys and values (`apimachinery/pkg/util/validation`). Each function returns what is wrong.

/// Text of a check that a regular expression failed.
fn regex_text(message: &str, expression: &str, examples: &[&str]) -> String {
    let mut out = message.to_owned();
    if !examples.is_empty() {
        let list: Vec<String> = examples.iter().map(|e| format!("'{e}'")).collect();
        out.push_str(&format!(
            " (e.g. {}, regex used for validation is '{expression}')",
            list.join(",  or ")
        ));
    } else {
        out.push_str(&format!(" (regex used for validation is '{expression}')"));
    }
    out
}

fn alnum(b: u8) -> bool {
    b.is_ascii_alphanumeric()
}

fn lower_alnum(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit()
}

fn bounded(s: &str, max: usize, out: &mut Vec<String>) {
    if s.len() > max {
        out.push(format!("must be no more than {max} bytes"));
    }
}

fn is_label(s: &str) -> bool {
    let b = s.as_bytes();
    !b.is_empty() && b.iter().all(|&c| lower_alnum(c) || c == b'-') && lower_alnum(b[0]) && lower_alnum(b[b.len() - 1])
}

/// RFC 1123 label, at most 63 bytes.
pub fn dns1123_label(s: &str) -> Vec<String> {
    let mut out = Vec::new();
    bounded(s, 63, &mut out);
    if !is_label(s) {
        out.push(regex_text(
            "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character",
            "[a-z0-9]([-a-z0-9]*[a-z0-9])?",
            &["my-name", "123-abc"],
        ));
    }
    out
}

/// Name of a sysctl, written with dots or with slashes.
pub fn sysctl(s: &str) -> Vec<String> {
    let part = |p: &str| {
        let b = p.as_bytes();
        let edge = |c: Option<&u8>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        edge(b.first()) && edge(b.last()) && b.iter().all(|c| edge(Some(c)) || matches!(c, b'-' | b'_'))
    };
    if s.len() <= 253 && s.split(['.', '/']).all(part) {
        return Vec::new();
    }
    vec![r"must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$".to_owned()]
}

/// RFC 1123 subdomain, at most 253 bytes.
pub fn dns1123_subdomain(s: &str) -> Vec<String> {
    let mut out = Vec::new();
    bounded(s, 253, &mut out);
    if !s.split('.').all(is_label) {
        out.push(regex_text(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character",
            r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*",
            &["example.com"],
        ));
    }
    out
}

/// RFC 1035 label, at most 63 bytes.
pub fn dns1035_label(s: &str) -> Vec<String> {
    let mut out = Vec::new();
    bounded(s, 63, &mut out);
    if !is_label(s) || !s.as_bytes()[0].is_ascii_lowercase() {
        out.push(regex_text(
            "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character",
            "[a-z]([-a-z0-9]*[a-z0-9])?",
            &["my-name", "abc-123"],
        ));
    }
    out
}

/// A name that is one segment of a path (RBAC objects allow `system:x`).
pub fn path_segment(s: &str) -> Vec<String> {
    let mut out = Vec::new();
    if matches!(s, "." | "..") {
        out.push(format!("may not be '{s}'"));
    }
    for c in ["/", "%"] {
        if s.contains(c) {
            out.push(format!("may not contain '{c}'"));
        }
    }
    out
}

fn name_part(s: &str) -> bool {
    let b = s.as_bytes();
    !b.is_empty()
        && b.iter().all(|&c| alnum(c) || matches!(c, b'-' | b'_' | b'.'))
        && alnum(b[0])
        && alnum(b[b.len() - 1])
}

const NAME_EXPRESSION: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";

/// `prefix/name` or `name`: keys of labels, annotations, taints, resources.
pub fn qualified_name(s: &str) -> Vec<String> {
    let mut out = Vec::new();
    let (prefix, name) = match s.split_once('/') {
        None => (None, s),
        Some((p, n)) if !n.contains('/') => (Some(p), n),
        Some(_) => {
            out.push(regex_text(
                "a qualified name must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character",
                NAME_EXPRESSION,
                &["MyName", "my.name", "123-abc"],
            ) + " with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')");
            return out;
        }
    };
    match prefix {
        Some("") => out.push("prefix part must be non-empty".to_owned()),
        Some(p) => out.extend(dns1123_subdomain(p).into_iter().map(|e| format!("prefix part {e}"))),
        None => {}
    }
    if name.is_empty() {
        out.push("name part must be non-empty".to_owned());
    } else if name.len() > 63 {
        out.push("name part must be no more than 63 bytes".to_owned());
    }
    if !name_part(name) {
        out.push(regex_text(
            "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character",
            NAME_EXPRESSION,
            &["MyName", "my.name", "123-abc"],
        ));
    }
    out
}

/// Value of a label.
pub fn label_value(s: &str) -> Vec<String> {
    let mut out = Vec::new();
    bounded(s, 63, &mut out);
    if !s.is_empty() && !name_part(s) {
        out.push(regex_text(
            "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character",
            "(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?",
            &["MyValue", "my_value", "12345"],
        ));
    }
    out
}

/// Key of a ConfigMap or Secret.
pub fn config_map_key(s: &str) -> Vec<String> {
    let mut out = Vec::new();
    bounded(s, 253, &mut out);
    if s.is_empty() || !s.bytes().all(|c| alnum(c) || matches!(c, b'-' | b'_' | b'.')) {
        out.push(regex_text(
            "a valid config key must consist of alphanumeric characters, '-', '_' or '.'",
            "[-._a-zA-Z0-9]+",
            &["key.name", "KEY_NAME", "key-name"],
        ));
    }
    if matches!(s, "." | "..") || s.starts_with("..") {
        out.push(if matches!(s, "." | "..") {
            format!("must not be '{s}'")
        } else {
            "must not start with '..'".to_owned()
        });
    }
    out
}

/// Name of an environment variable: any printable ASCII but `=`.
pub fn env_var_name(s: &str) -> Vec<String> {
    if !s.is_empty() && s.bytes().all(|c| (0x20..0x7f).contains(&c) && c != b'=') {
        return Vec::new();
    }
    vec![regex_text(
        "a valid environment variable name must consist only of printable ASCII characters other than '='",
        "[ -<>-~]+",
        &[],
    )]
}

/// Name of a port (IANA service name).
pub fn port_name(s: &str) -> Vec<String> {
    let mut out = Vec::new();
    if s.len() > 15 {
        out.push("must be no more than 15 bytes".to_owned());
    }
    if !s.bytes().all(|c| lower_alnum(c) || c == b'-') || s.is_empty() {
        out.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned());
    }
    if !s.bytes().any(|c| c.is_ascii_lowercase()) {
        out.push("must contain at least one letter (a-z)".to_owned());
    }
    if s.contains("--") {
        out.push("must not contain consecutive hyphens".to_owned());
    }
    if s.starts_with('-') || s.ends_with('-') {
        out.push("must not begin or end with a hyphen".to_owned());
    }
    out
}

/// An IP address of either family, without leading zeros.
pub fn ip(s: &str) -> Vec<String> {
    if s.parse::<std::net::IpAddr>().is_ok() {
        return Vec::new();
    }
    vec!["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".to_owned()]
}

/// A range of addresses.
pub fn cidr(s: &str) -> Vec<String> {
    let parsed = s.split_once('/').and_then(|(address, bits)| {
        let most = match address.parse::<std::net::IpAddr>().ok()? {
            std::net::IpAddr::V4(_) => 32,
            std::net::IpAddr::V6(_) => 128,
        };
        let digits = !bits.is_empty() && bits.bytes().all(|b| b.is_ascii_digit());
        bits.parse::<u32>().ok().filter(|n| digits && *n <= most)
    });
    if parsed.is_some() {
        return Vec::new();
    }
    vec!["must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)".to_owned()]
}

/// Name of an HTTP header.
pub fn http_header_name(s: &str) -> Vec<String> {
    if !s.is_empty() && s.bytes().all(|c| alnum(c) || c == b'-') {
        return Vec::new();
    }
    vec![regex_text(
        "a valid HTTP header must consist of alphanumeric characters or '-'",
        "[-A-Za-z0-9]+",
        &["X-Header-Name"],
    )]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(f: fn(&str) -> Vec<String>, good: &[&str], bad: &[&str]) {
        for s in good {
            assert!(f(s).is_empty(), "{s}: {:?}", f(s));
        }
        for s in bad {
            assert!(!f(s).is_empty(), "{s} passes");
        }
    }

    #[test]
    fn names_follow_their_grammar() {
        check(
            dns1123_label,
            &["a", "0a", "a-b"],
            &["", "A", "-a", "a-", "a.b", &"a".repeat(64)],
        );
        check(
            dns1123_subdomain,
            &["a.b", "1.2", &"a".repeat(253)],
            &["a..b", ".a", "a_b", &"a".repeat(254)],
        );
        check(dns1035_label, &["a", "a1"], &["1a", "a.b", ""]);
        check(path_segment, &["system:node", "a b"], &["..", "a/b", "a%"]);
        check(
            qualified_name,
            &["a", "x.io/A_b.c"],
            &["", "/a", "a/", "a/b/c", "X.io/a", "-a"],
        );
        check(label_value, &["", "a", "A_b.c"], &["-a", "a-", "a b", &"a".repeat(64)]);
        check(config_map_key, &["a.b", ".a", "A_"], &["", "..", "a/b", "..x"]);
        check(env_var_name, &["A", "a.b-c", "1 2"], &["", "a=b", "ä"]);
        check(
            port_name,
            &["http", "a-1"],
            &["", "1", "a--b", "-a", "A", "much-too-long-name"],
        );
        check(ip, &["10.0.0.1", "::1"], &["10.0.0.01", "x", ""]);
    }
}
