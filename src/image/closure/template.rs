//! Templates, rendered as far as their values are known before there is a cluster.

use clusterfile::{DEFAULT_REGISTRY_DOMAIN, DEFAULT_REGISTRY_PORT, Env};

/// Stands for a template's value that only the cluster knows.
pub(crate) const UNKNOWN: &str = "template-value";

/// Words that begin an action which leaves no text.
const CONTROL: [&str; 9] = [
    "if", "else", "end", "range", "with", "define", "block", "template", "/*",
];

/// Replaces `{{ … }}` so that the result parses and lines keep their numbers: known values in lines that speak of
/// images, a placeholder elsewhere, nothing for lines that hold only actions.
pub(super) fn render(text: &str, env: &Env) -> String {
    let mut rendered = String::with_capacity(text.len());
    for line in text.lines() {
        if !line.contains("{{") {
            rendered.push_str(line);
        } else if !is_only_actions(line) {
            rendered.push_str(&render_line(line, env));
        }
        rendered.push('\n');
    }
    rendered
}

fn is_only_actions(line: &str) -> bool {
    let mut rest = line.trim();
    // `{{ .X }}` alone may be a value; control words are not.
    while let Some(inner) = rest.strip_prefix("{{") {
        let Some((action, tail)) = inner.split_once("}}") else {
            return false;
        };
        let word = action
            .trim_matches(['-', ' '])
            .split_whitespace()
            .next()
            .unwrap_or_default();
        if !CONTROL.iter().any(|control| word.starts_with(control)) {
            return false;
        }
        rest = tail.trim_start();
    }
    rest.is_empty()
}

fn render_line(line: &str, env: &Env) -> String {
    let mut result = String::new();
    let mut rest = line;
    while let Some((before, after)) = rest.split_once("{{") {
        let Some((action, tail)) = after.split_once("}}") else {
            break;
        };
        result.push_str(before);
        let name = action.trim_matches(['-', ' ']).trim_start_matches('.');
        match line.contains("image").then(|| known_value(name, env)).flatten() {
            Some(value) => result.push_str(&value),
            None => result.push_str(UNKNOWN),
        }
        rest = tail;
    }
    result.push_str(rest);
    result
}

/// What a template variable will be, as far as it's known before there is a cluster.
pub(crate) fn known_value(name: &str, env: &Env) -> Option<String> {
    if let Some(value) = env.get(name) {
        return Some(value.clone());
    }
    match name {
        "RegistryDomain" | "LocalRegistryDomain" => Some(DEFAULT_REGISTRY_DOMAIN.to_string()),
        "RegistryPort" | "LocalRegistryPort" => Some(DEFAULT_REGISTRY_PORT.to_string()),
        "RegistryURL" | "LocalRegistryURL" => Some(format!("{DEFAULT_REGISTRY_DOMAIN}:{DEFAULT_REGISTRY_PORT}")),
        _ => None,
    }
}
