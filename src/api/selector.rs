//! Label selectors (object and text form) and field selectors.

use serde_json::Value;

/// A selector that cannot be read or is not supported; the text is for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SelectorError(pub String);

/// One condition on a label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Requirement {
    /// The label has one of the values.
    In(String, Vec<String>),
    /// The label is absent or has none of the values.
    NotIn(String, Vec<String>),
    /// The label is there.
    Exists(String),
    /// The label is absent.
    DoesNotExist(String),
    /// The label is a number above this.
    GreaterThan(String, i64),
    /// The label is a number below this.
    LessThan(String, i64),
}

/// All conditions must hold; none means everything matches.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
}

impl LabelSelector {
    /// Whether everything matches.
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    /// Whether labels, looked up by key, match.
    pub fn matches<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.requirements.iter().all(|requirement| match requirement {
            Requirement::In(key, values) => label(key).is_some_and(|v| values.iter().any(|x| x == v)),
            Requirement::NotIn(key, values) => label(key).is_none_or(|v| values.iter().all(|x| x != v)),
            Requirement::Exists(key) => label(key).is_some(),
            Requirement::DoesNotExist(key) => label(key).is_none(),
            Requirement::GreaterThan(key, bound) => number(label(key)).is_some_and(|n| n > *bound),
            Requirement::LessThan(key, bound) => number(label(key)).is_some_and(|n| n < *bound),
        })
    }

    /// Whether `metadata.labels` of an object match.
    pub fn matches_object(&self, object: &Value) -> bool {
        self.matches(|key| object["metadata"]["labels"][key].as_str())
    }

    /// Reads a `metav1.LabelSelector`; null selects nothing in Kubernetes, which the caller must decide.
    ///
    /// # Errors
    /// When an operator is unknown or its values do not fit.
    pub fn from_object(selector: &Value) -> Result<Self, SelectorError> {
        let mut requirements = Vec::new();
        for (key, value) in selector["matchLabels"].as_object().into_iter().flatten() {
            let value = value
                .as_str()
                .ok_or_else(|| SelectorError(format!("value of label {key:?} is no string")))?;
            requirements.push(Requirement::In(key.clone(), vec![value.to_owned()]));
        }
        for e in selector["matchExpressions"].as_array().into_iter().flatten() {
            let key = e["key"].as_str().unwrap_or_default().to_owned();
            let values = crate::metadata::strings(&e["values"]);
            requirements.push(match (e["operator"].as_str().unwrap_or_default(), values.is_empty()) {
                ("In", false) => Requirement::In(key, values),
                ("NotIn", false) => Requirement::NotIn(key, values),
                ("Exists", true) => Requirement::Exists(key),
                ("DoesNotExist", true) => Requirement::DoesNotExist(key),
                ("In" | "NotIn", true) => {
                    return Err(SelectorError(
                        "for 'in', 'notin' operators, values set can't be empty".to_owned(),
                    ));
                }
                ("Exists" | "DoesNotExist", false) => {
                    return Err(SelectorError(
                        "values set must be empty for exists and does not exist".to_owned(),
                    ));
                }
                (other, _) => {
                    return Err(SelectorError(format!(
                        "{other:?} is not a valid label selector operator"
                    )));
                }
            });
        }
        Ok(Self { requirements })
    }

    /// A plain map, as in a Service's `spec.selector`.
    pub fn from_map(map: &Value) -> Self {
        let pairs = map.as_object().into_iter().flatten();
        let requirements = pairs
            .map(|(k, v)| Requirement::In(k.clone(), vec![v.as_str().unwrap_or_default().to_owned()]))
            .collect();
        Self { requirements }
    }

    /// Reads the text form: `a=b,c!=d,e in (f,g),h notin (i),j,!k,l>1`.
    ///
    /// # Errors
    /// When it does not follow the grammar.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let requirements = split(text).into_iter().map(requirement).collect::<Result<_, _>>()?;
        Ok(Self { requirements })
    }
}

impl std::fmt::Display for LabelSelector {
    /// The text form.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (i, requirement) in self.requirements.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            match requirement {
                Requirement::In(key, values) if values.len() == 1 => write!(f, "{key}={}", values[0])?,
                Requirement::In(key, values) => write!(f, "{key} in ({})", values.join(","))?,
                Requirement::NotIn(key, values) if values.len() == 1 => write!(f, "{key}!={}", values[0])?,
                Requirement::NotIn(key, values) => write!(f, "{key} notin ({})", values.join(","))?,
                Requirement::Exists(key) => f.write_str(key)?,
                Requirement::DoesNotExist(key) => write!(f, "!{key}")?,
                Requirement::GreaterThan(key, bound) => write!(f, "{key}>{bound}")?,
                Requirement::LessThan(key, bound) => write!(f, "{key}<{bound}")?,
            }
        }
        Ok(())
    }
}

fn number(text: Option<&str>) -> Option<i64> {
    text?.parse().ok()
}

/// Splits at commas outside parentheses.
fn split(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut start, mut depth) = (0, 0_usize);
    for (i, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    if text.trim().is_empty() { Vec::new() } else { parts }
}

fn requirement(part: &str) -> Result<Requirement, SelectorError> {
    let part = part.trim();
    let bad = |why: &str| SelectorError(format!("unable to parse requirement: {why}: {part:?}"));
    if let Some(key) = part.strip_prefix('!') {
        return Ok(Requirement::DoesNotExist(key_of(key, part)?));
    }
    if let Some((head, values)) = part.split_once('(') {
        let values = values.strip_suffix(')').ok_or_else(|| bad("expected ')'"))?;
        let values: Vec<String> = values.split(',').map(|v| v.trim().to_owned()).collect();
        let (key, operator) = head
            .trim()
            .rsplit_once(char::is_whitespace)
            .ok_or_else(|| bad("expected 'in' or 'notin'"))?;
        for value in &values {
            value_of(value, part)?;
        }
        return match operator {
            "in" => Ok(Requirement::In(key_of(key, part)?, values)),
            "notin" => Ok(Requirement::NotIn(key_of(key, part)?, values)),
            _ => Err(bad("expected 'in' or 'notin'")),
        };
    }
    if let Some((key, value)) = part.split_once("!=") {
        return Ok(Requirement::NotIn(key_of(key, part)?, vec![value_of(value, part)?]));
    }
    if let Some((key, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
        return Ok(Requirement::In(key_of(key, part)?, vec![value_of(value, part)?]));
    }
    let bound = |v: &str| {
        v.trim()
            .parse::<i64>()
            .map_err(|_| bad("for 'gt', 'lt' operators, the value must be an integer"))
    };
    if let Some((key, value)) = part.split_once('>') {
        return Ok(Requirement::GreaterThan(key_of(key, part)?, bound(value)?));
    }
    if let Some((key, value)) = part.split_once('<') {
        return Ok(Requirement::LessThan(key_of(key, part)?, bound(value)?));
    }
    Ok(Requirement::Exists(key_of(part, part)?))
}

fn key_of(key: &str, part: &str) -> Result<String, SelectorError> {
    let key = key.trim();
    let (prefix, name) = key.split_once('/').map_or((None, key), |(p, n)| (Some(p), n));
    let ok = |text: &str, limit: usize, more: &[u8]| {
        let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
        let bytes = text.as_bytes();
        bytes.len() <= limit
            && edge(bytes.first())
            && edge(bytes.last())
            && bytes.iter().all(|b| b.is_ascii_alphanumeric() || more.contains(b))
    };
    if ok(name, 63, b"-_.") && prefix.is_none_or(|p| ok(p, 253, b"-.")) {
        return Ok(key.to_owned());
    }
    Err(SelectorError(format!(
        "unable to parse requirement: invalid label key {key:?} in {part:?}"
    )))
}

fn value_of(value: &str, part: &str) -> Result<String, SelectorError> {
    let value = value.trim();
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let edge = |b: Option<&u8>| b.is_none_or(u8::is_ascii_alphanumeric);
    let bytes = value.as_bytes();
    if bytes.len() <= 63 && bytes.iter().all(|b| inner(*b)) && edge(bytes.first()) && edge(bytes.last()) {
        return Ok(value.to_owned());
    }
    Err(SelectorError(format!(
        "unable to parse requirement: invalid label value {value:?} in {part:?}"
    )))
}

/// Conditions on fields: `metadata.name=x,spec.nodeName!=y`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldSelector {
    terms: Vec<(String, bool, String)>,
}

impl FieldSelector {
    /// Reads the text form; backslash escapes `,`, `=` and itself. `supported` are the paths that the kind can be selected by.
    ///
    /// # Errors
    /// When a term has no operator or names a field that is not supported.
    pub fn parse(text: &str, supported: &[&str]) -> Result<Self, SelectorError> {
        let mut terms = Vec::new();
        for term in unescaped_split(text).into_iter().filter(|t| !t.is_empty()) {
            let (field, equal, value) = term_of(&term)?;
            if !supported.contains(&field.as_str()) {
                return Err(SelectorError(format!("field label not supported: {field}")));
            }
            terms.push((field, equal, value));
        }
        Ok(Self { terms })
    }

    /// Whether everything matches.
    pub fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }

    /// Whether fields, looked up by path (absent ones are empty), match.
    pub fn matches<'a>(&self, field: impl Fn(&str) -> &'a str) -> bool {
        self.terms
            .iter()
            .all(|(path, equal, value)| (field(path) == value) == *equal)
    }

    /// The value that a field must have, if the selector demands exactly one.
    pub fn required(&self, path: &str) -> Option<&str> {
        self.terms
            .iter()
            .find(|(p, equal, _)| p == path && *equal)
            .map(|(_, _, v)| v.as_str())
    }
}

fn unescaped_split(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c == ',' {
            parts.push(String::new());
            continue;
        }
        let Some(last) = parts.last_mut() else { continue };
        last.push(c);
        if c == '\\' {
            last.extend(chars.next());
        }
    }
    parts
}

fn term_of(term: &str) -> Result<(String, bool, String), SelectorError> {
    let (field, equal, value) = term
        .split_once("!=")
        .map(|(f, v)| (f, false, v))
        .or_else(|| term.split_once("==").map(|(f, v)| (f, true, v)))
        .or_else(|| term.split_once('=').map(|(f, v)| (f, true, v)))
        .ok_or_else(|| SelectorError(format!("invalid selector: '{term}'; can't understand '{term}'")))?;
    let mut plain = String::new();
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(c @ ('\\' | ',' | '=')) => plain.push(c),
                _ => {
                    return Err(SelectorError(format!(
                        "invalid field selector: invalid escape sequence in {value:?}"
                    )));
                }
            },
            c => plain.push(c),
        }
    }
    Ok((field.to_owned(), equal, plain))
}

/// The field paths that objects of a kind can be selected by.
pub fn selectable_fields(group: &str, plural: &str) -> &'static [&'static str] {
    match (group, plural) {
        ("", "pods") => &[
            "metadata.name",
            "metadata.namespace",
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.podIPs",
            "status.nominatedNodeName",
        ],
        ("", "nodes") => &["metadata.name", "spec.unschedulable"],
        ("", "events") => &[
            "metadata.name",
            "metadata.namespace",
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
            "source",
            "type",
        ],
        ("events.k8s.io", "events") => &[
            "metadata.name",
            "metadata.namespace",
            "reason",
            "regarding.kind",
            "regarding.namespace",
            "regarding.name",
            "regarding.uid",
            "regarding.apiVersion",
            "regarding.resourceVersion",
            "regarding.fieldPath",
            "reportingController",
            "type",
        ],
        ("", "secrets") => &["metadata.name", "metadata.namespace", "type"],
        ("", "namespaces") => &["metadata.name", "status.phase"],
        ("", "services") => &["metadata.name", "metadata.namespace", "spec.clusterIP", "spec.type"],
        ("", "replicationcontrollers") | ("apps", "replicasets") => {
            &["metadata.name", "metadata.namespace", "status.replicas"]
        }
        ("certificates.k8s.io", "certificatesigningrequests") => &["metadata.name", "spec.signerName"],
        _ => &["metadata.name", "metadata.namespace"],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn label_selectors_select() {
        let object = json!({"metadata": {"labels": {"app": "web", "tier": "front", "n": "5"}}});
        for (text, expected) in [
            ("", true),
            ("app=web", true),
            ("app==web,tier=front", true),
            ("app=web,tier=back", false),
            ("app!=db", true),
            ("absent!=x", true),
            ("app in (db, web)", true),
            ("app notin (db,web)", false),
            ("absent notin (a)", true),
            ("app", true),
            ("!app", false),
            ("!absent", true),
            ("n>4", true),
            ("n<5", false),
            ("app in (web),!absent,tier", true),
            ("example.com/x=", false),
        ] {
            assert_eq!(
                LabelSelector::parse(text).unwrap().matches_object(&object),
                expected,
                "{text}"
            );
        }
    }

    #[test]
    fn malformed_label_selectors_are_refused() {
        for bad in [
            "a=b=c", "a in b", "a in (b", "=b", "a b", "-a=b", "a/b/c=d", ",", "a>x", "a=-",
        ] {
            assert!(LabelSelector::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn selector_objects_select() {
        let object = json!({"metadata": {"labels": {"app": "web"}}});
        let matches = |s: Value| LabelSelector::from_object(&s).map(|s| s.matches_object(&object));
        assert_eq!(matches(json!({"matchLabels": {"app": "web"}})), Ok(true));
        assert_eq!(
            matches(json!({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["web"]}]})),
            Ok(false)
        );
        assert_eq!(
            matches(json!({"matchExpressions": [{"key": "app", "operator": "Exists"}]})),
            Ok(true)
        );
        assert!(matches(json!({"matchExpressions": [{"key": "app", "operator": "In"}]})).is_err());
        assert!(matches(json!({"matchExpressions": [{"key": "app", "operator": "Like", "values": ["x"]}]})).is_err());
    }

    #[test]
    fn field_selectors_select_and_refuse_what_is_not_supported() {
        let supported = selectable_fields("", "pods");
        let field = |path: &str| if path == "spec.nodeName" { "n,1" } else { "" };
        let matches = |text: &str| FieldSelector::parse(text, supported).map(|s| s.matches(field));
        assert_eq!(matches(r"spec.nodeName=n\,1"), Ok(true));
        assert_eq!(matches("spec.nodeName!=n2,status.phase="), Ok(true));
        assert_eq!(matches("spec.nodeName==x"), Ok(false));
        assert!(matches("spec.unknown=x").is_err());
        assert!(matches("spec.nodeName").is_err());
        assert_eq!(
            FieldSelector::parse("metadata.name=a", supported)
                .unwrap()
                .required("metadata.name"),
            Some("a")
        );
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parsers_panic(text in "\\PC{0,60}") {
            let _ = LabelSelector::parse(&text);
            let _ = FieldSelector::parse(&text, selectable_fields("", "pods"));
        }
    }
}
