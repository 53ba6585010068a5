//! Templates of the rootfs: `{{ .Name }}` is replaced by the variable's value, and nothing else is understood.
//!
//! Sealer's templates are Go's. What of that language a configuration file really uses is a name; anything more (a pipe, `if`,
//! `range`, trimming) is refused with its place instead of being passed through or half understood.

use std::collections::BTreeMap;

/// Names to values.
pub type Variables = BTreeMap<String, String>;

/// A construct that cannot be replaced.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}: {message}")]
pub struct TemplateError {
    /// The template, as a path below the rootfs.
    pub file: String,
    /// Line, counted from 1.
    pub line: usize,
    /// What is wrong.
    pub message: String,
}

/// Replaces every `{{ .Name }}` of `text`.
///
/// # Errors
/// All constructs that are not a known name, in the order of the text.
pub fn render(text: &str, file: &str, variables: &Variables) -> Result<String, Vec<TemplateError>> {
    let mut out = String::with_capacity(text.len() + 256);
    let mut errors = Vec::new();
    let mut rest = text;
    let mut line = 1;
    while let Some(start) = rest.find("{{") {
        let (before, after) = (&rest[..start], &rest[start + 2..]);
        out.push_str(before);
        line += before.matches('\n').count();
        let mut fail = |message| {
            errors.push(TemplateError {
                file: file.to_owned(),
                line,
                message,
            });
        };
        let Some(end) = after.find("}}") else {
            fail("`{{` without `}}`".to_owned());
            rest = "";
            break;
        };
        let inner = &after[..end];
        match value(inner, variables) {
            Ok(value) => out.push_str(value),
            Err(message) => fail(message),
        }
        line += inner.matches('\n').count();
        rest = &after[end + 2..];
    }
    out.push_str(rest);
    if errors.is_empty() { Ok(out) } else { Err(errors) }
}

fn value<'v>(inner: &str, variables: &'v Variables) -> Result<&'v str, String> {
    let name = inner
        .trim()
        .strip_prefix('.')
        .filter(|name| is_name(name))
        .ok_or_else(|| {
            format!("`{{{{{inner}}}}}`: only `{{{{ .Name }}}}` is understood, no other template construct")
        })?;
    variables.get(name).map(String::as_str).ok_or_else(|| {
        let nearest = clusterfile::names::nearest(name, variables.keys().map(String::as_str));
        let hint = nearest.map_or_else(String::new, |n| format!(", did you mean `.{n}`?"));
        format!("unknown variable `.{name}`{hint}")
    })
}

fn is_name(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with(|c: char| c.is_ascii_digit())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<String, String> {
        let variables = [("HostIP", "10.0.0.1"), ("PodCIDR", "100.64.0.0/16"), ("Empty", "")];
        let variables = variables.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        render(text, "etc/x.tmpl", &variables)
            .map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
    }

    #[test]
    fn names_are_replaced_and_all_else_stays() {
        assert_eq!(
            check("a={{ .HostIP }}\nb={{.PodCIDR}} { } {{ .Empty }}\n").unwrap(),
            "a=10.0.0.1\nb=100.64.0.0/16 { } \n"
        );
    }

    #[test]
    fn every_unknown_construct_is_named_with_its_line() {
        let error = check("x\n{{ .HostIp }}\n{{ if .HostIP }}y{{ end }}\n{{- .HostIP }}\n{{ .HostIP").unwrap_err();
        let lines: Vec<&str> = error.lines().collect();
        assert_eq!(
            lines[0],
            "etc/x.tmpl:2: unknown variable `.HostIp`, did you mean `.HostIP`?"
        );
        assert!(lines[1].starts_with("etc/x.tmpl:3: `{{ if .HostIP }}`"), "{error}");
        assert!(lines[2].starts_with("etc/x.tmpl:3: `{{ end }}`"), "{error}");
        assert!(lines[3].starts_with("etc/x.tmpl:4:"), "{error}");
        assert_eq!(lines[4], "etc/x.tmpl:5: `{{` without `}}`");
    }
}
