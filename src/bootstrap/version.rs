//! KUBEVERSION of an image: whether a version of Kubernetes lies in a range such as `>=1.30, <1.38 || 1.28`.
//!
//! What a version leaves out, or has as `x` or `*`, may be anything: `1.30` is every 1.30.z, `>1.30` begins at 1.31.0.

/// A release; what stands behind it (`-rc.1`, `+k3s1`) does not count.
type Release = (u64, u64, u64);

/// Versions from the first on, up to but without the second; none is without end.
type Span = (Release, Option<Release>);

const OPERATORS: [&str; 8] = [">=", "<=", "!=", "=", ">", "<", "~", "^"];

/// Whether Kubernetes `version` (`v1.36.3`, `1.36`) lies in `range`: alternatives joined by `||`, each of them conditions joined by
/// blanks or commas.
///
/// # Errors
/// When either cannot be understood, with the part that cannot.
pub fn kube_version_satisfies(range: &str, version: &str) -> Result<bool, String> {
    let (version, _) = span(version, 3)?;
    let mut fits = false;
    for alternative in range.split("||") {
        fits |= satisfies_all(alternative, version)?;
    }
    Ok(fits)
}

fn satisfies_all(conditions: &str, version: Release) -> Result<bool, String> {
    let mut fits = true;
    let mut any = false;
    let mut words = conditions.split([' ', '\t', ',']).filter(|word| !word.is_empty());
    while let Some(word) = words.next() {
        let operator = OPERATORS.iter().find(|operator| word.starts_with(**operator)).copied();
        let rest = operator.map_or(word, |operator| &word[operator.len()..]);
        // A blank may stand between the two.
        let text = if rest.is_empty() {
            words.next().unwrap_or_default()
        } else {
            rest
        };
        fits &= satisfies(operator.unwrap_or("="), text, version)?;
        any = true;
    }
    if any {
        Ok(fits)
    } else {
        Err("a range like \">=1.30 <1.38\" is expected".to_owned())
    }
}

fn satisfies(operator: &str, text: &str, version: Release) -> Result<bool, String> {
    let (low, end) = span(text, 3)?;
    let below = |end: Option<Release>| end.is_none_or(|end| version < end);
    Ok(match operator {
        ">=" => version >= low,
        "<" => version < low,
        ">" => !below(end),
        "<=" => below(end),
        "!=" => version < low || !below(end),
        "~" => version >= low && below(span(text, 2)?.1),
        "^" => version >= low && below(span(text, 1)?.1),
        _ => version >= low && below(end),
    })
}

/// What a text with at most `kept` of its numbers may mean; its beginning has all of them.
fn span(text: &str, kept: usize) -> Result<Span, String> {
    let wrong = || format!("{text:?} is no version");
    let plain = text.strip_prefix('v').unwrap_or(text);
    let plain = plain.split(['-', '+']).next().unwrap_or_default();
    let parts: Vec<&str> = plain.split('.').collect();
    let known: Vec<u64> = parts
        .iter()
        .take_while(|part| !["x", "X", "*"].contains(part))
        .map(|part| part.parse().map_err(|_| wrong()))
        .collect::<Result<_, _>>()?;
    if parts.len() > 3 || parts[known.len()..].iter().any(|part| !["x", "X", "*"].contains(part)) {
        return Err(wrong());
    }
    let number = |index: usize| known.get(index).copied().unwrap_or(0);
    let end = match known.len().min(kept) {
        0 => None,
        1 => Some((number(0) + 1, 0, 0)),
        2 => Some((number(0), number(1) + 1, 0)),
        _ => Some((number(0), number(1), number(2) + 1)),
    };
    Ok(((number(0), number(1), number(2)), end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_mean_what_they_say() {
        for (range, inside, outside) in [
            ("1.30", &["v1.30.0", "1.30.9"][..], &["1.29.9", "1.31.0"][..]),
            ("1.x", &["1.0.0", "1.99.1"], &["2.0.0"]),
            ("*", &["0.0.0", "9.9.9"], &[]),
            (">1.30", &["1.31.0"], &["1.30.5"]),
            ("<=1.30", &["1.30.99"], &["1.31.0"]),
            ("!=1.30", &["1.29.0", "1.31.0"], &["1.30.4"]),
            ("~1.30.2", &["1.30.2", "1.30.9"], &["1.30.1", "1.31.0"]),
            ("^1.30", &["1.30.0", "1.99.0"], &["2.0.0", "1.29.0"]),
            (">= 1.30, < 1.38", &["1.37.9", "1.30.0-rc.1"], &["1.38.0", "1.29.0"]),
            ("1.28 || >=1.30", &["1.28.3", "1.31.0"], &["1.29.0"]),
        ] {
            for version in inside {
                assert_eq!(kube_version_satisfies(range, version), Ok(true), "{range} {version}");
            }
            for version in outside {
                assert_eq!(kube_version_satisfies(range, version), Ok(false), "{range} {version}");
            }
        }
        for range in ["", "1.30 ||", ">=", "latest", "1.2.3.4", "1..3", "1.x.3"] {
            assert!(kube_version_satisfies(range, "1.36.0").is_err(), "{range}");
        }
    }
}
