//! KUBEVERSION: which versions of Kubernetes an image fits.
//!
//! A range is alternatives joined by `||`; each is conditions joined by blanks or commas; a condition is `=`, `!=`, `>`, `>=`, `<`,
//! `<=`, `~` (same minor), `^` (same major) or nothing before a version, or `A - B`. What a version leaves out, or has as `x` or
//! `*`, may be anything: `1.30` is every 1.30.z, `>1.30` begins at 1.31.0.
//!
//! Distributors put their own marks after the release (`v1.30.4-gke.100`, `v1.30.4+k3s1`), so a pre-release part counts only
//! against a condition that has one itself.

use std::fmt;
use std::str::FromStr;

use semver::{Prerelease, Version};

/// A range as written, and what it means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KubeRange {
    text: String,
    alternatives: Vec<Vec<Condition>>,
}

/// Why a text is no range or no version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct RangeError(String);

/// Versions from one bound to another.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Condition {
    /// The first version that is inside; none: from the beginning.
    from: Option<Bound>,
    /// The first version that is not inside any more; none: without end.
    to: Option<Bound>,
    /// Whether what is inside is refused instead.
    negated: bool,
}

/// A place between two versions: before or after `version`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Bound {
    version: Version,
    after: bool,
}

/// A version of which some numbers may be left open.
struct Partial {
    numbers: Vec<u64>,
    pre: Prerelease,
}

/// Whether Kubernetes `version` (`v1.36.3`, `1.36`) lies in `range`.
///
/// # Errors
/// If either can't be understood.
pub fn kube_version_satisfies(range: &str, version: &str) -> Result<bool, RangeError> {
    range.parse::<KubeRange>()?.accepts(version)
}

impl KubeRange {
    /// Whether Kubernetes `version` lies in the range.
    ///
    /// # Errors
    /// If the version can't be understood.
    pub fn accepts(&self, version: &str) -> Result<bool, RangeError> {
        let partial = Partial::parse(version)?;
        if partial.numbers.is_empty() {
            return Err(RangeError(format!("{version:?} is no version")));
        }
        Ok(self.has(&partial.lowest()))
    }

    fn has(&self, version: &Version) -> bool {
        self.alternatives
            .iter()
            .any(|conditions| conditions.iter().all(|condition| condition.has(version)))
    }

    /// Whether any version can lie in the range: the lowest that does is zero, or stands at one of the bounds.
    fn can_be_met(&self) -> bool {
        let bounds = self.alternatives.iter().flatten();
        let bounds = bounds.flat_map(|condition| condition.from.iter().chain(&condition.to));
        let beyond = |bound: &Bound| match bound {
            Bound { version, after: false } => version.clone(),
            Bound { version, .. } if version.pre.is_empty() => {
                Version::new(version.major, version.minor, version.patch.saturating_add(1))
            }
            Bound { version, .. } => Version {
                // The next one there is.
                pre: Prerelease::new(&format!("{}.0", version.pre)).unwrap_or_default(),
                ..version.clone()
            },
        };
        // A bound without a mark takes every mark of its release for the release itself.
        let marked = |bound: &Bound| Version {
            pre: Prerelease::new("0").unwrap_or_default(),
            ..bound.version.clone()
        };
        std::iter::once(Version::new(0, 0, 0))
            .chain(bounds.flat_map(|bound| [beyond(bound), marked(bound)]))
            .any(|version| self.has(&version))
    }
}

impl fmt::Display for KubeRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for KubeRange {
    type Err = RangeError;
    fn from_str(text: &str) -> Result<KubeRange, RangeError> {
        let alternatives = text.split("||").map(alternative).collect::<Result<_, _>>()?;
        let range = KubeRange {
            text: text.trim().to_string(),
            alternatives,
        };
        match range.can_be_met() {
            true => Ok(range),
            false => Err(RangeError(format!("no version can lie in {:?}", range.text))),
        }
    }
}

const OPERATORS: [&str; 8] = [">=", "<=", "!=", "=", ">", "<", "~", "^"];

fn alternative(text: &str) -> Result<Vec<Condition>, RangeError> {
    let mut words = text.split([' ', '\t', ',']).filter(|word| !word.is_empty()).peekable();
    let mut conditions = Vec::new();
    while let Some(word) = words.next() {
        let operator = OPERATORS.iter().find(|operator| word.starts_with(**operator)).copied();
        let version = word.strip_prefix(operator.unwrap_or_default()).unwrap_or(word);
        // A blank may stand between the two.
        let version = match version {
            "" => words
                .next()
                .ok_or_else(|| RangeError(format!("a version is missing after {word:?}")))?,
            version => version,
        };
        let partial = Partial::parse(version)?;
        if words.next_if_eq(&"-").is_some() {
            let last = words
                .next()
                .filter(|_| operator.is_none())
                .ok_or_else(|| RangeError(format!("a range like {version:?} - … needs two plain versions")))?;
            conditions.push(Condition {
                from: Some(Bound::before(partial.lowest())),
                to: Partial::parse(last)?.end(),
                negated: false,
            });
        } else {
            conditions.push(partial.condition(operator.unwrap_or("=")));
        }
    }
    match conditions.is_empty() {
        true => Err(RangeError("a range like \">=1.30 <1.38\" is expected".to_string())),
        false => Ok(conditions),
    }
}

impl Partial {
    fn parse(text: &str) -> Result<Partial, RangeError> {
        let wrong = || RangeError(format!("{:?} is no version", text.chars().take(60).collect::<String>()));
        let plain = text.strip_prefix('v').unwrap_or(text);
        let plain = plain.split_once('+').map_or(plain, |(plain, _)| plain);
        let (numbers, pre) = plain
            .split_once('-')
            .map_or((plain, None), |(numbers, pre)| (numbers, Some(pre)));
        let mut known = Vec::new();
        let mut open = false;
        let parts: Vec<&str> = numbers.split('.').collect();
        for part in &parts {
            if ["x", "X", "*"].contains(part) {
                open = true;
            } else if open || part.is_empty() || !part.bytes().all(|b| b.is_ascii_digit()) {
                return Err(wrong());
            } else {
                known.push(part.parse().map_err(|_| wrong())?);
            }
        }
        let pre = match pre {
            Some(pre) if known.len() == 3 && !pre.is_empty() => Prerelease::new(pre).map_err(|_| wrong())?,
            Some(_) => return Err(wrong()),
            None => Prerelease::EMPTY,
        };
        match parts.len() > 3 {
            true => Err(wrong()),
            false => Ok(Partial { numbers: known, pre }),
        }
    }

    /// The lowest version this can be.
    fn lowest(&self) -> Version {
        let number = |index: usize| self.numbers.get(index).copied().unwrap_or(0);
        Version {
            pre: self.pre.clone(),
            ..Version::new(number(0), number(1), number(2))
        }
    }

    /// What comes right after all that this can be; none where it can be anything.
    fn end(&self) -> Option<Bound> {
        match self.numbers.len() {
            3 => Some(Bound {
                version: self.lowest(),
                after: true,
            }),
            kept => self.next(kept),
        }
    }

    /// The first version whose first `kept` numbers are higher.
    fn next(&self, kept: usize) -> Option<Bound> {
        let number = |index: usize| self.numbers.get(index).copied().unwrap_or(0);
        let version = match kept {
            0 => return None,
            1 => Version::new(number(0).saturating_add(1), 0, 0),
            _ => Version::new(number(0), number(1).saturating_add(1), 0),
        };
        Some(Bound::before(version))
    }

    fn condition(&self, operator: &str) -> Condition {
        let first = || (!self.numbers.is_empty()).then(|| Bound::before(self.lowest()));
        let (from, to) = match operator {
            ">" => (self.end(), None),
            ">=" => (first(), None),
            "<" => (None, first()),
            "<=" => (None, self.end()),
            "~" => (first(), self.next(self.numbers.len().min(2))),
            "^" => (first(), self.next(self.numbers.len().min(1))),
            _ => (first(), self.end()),
        };
        // Nothing is above or below everything.
        let empty = self.numbers.is_empty() && [">", "<"].contains(&operator);
        Condition {
            from,
            to,
            negated: operator == "!=" || empty,
        }
    }
}

impl Bound {
    fn before(version: Version) -> Bound {
        Bound { version, after: false }
    }

    /// Whether `version` lies before this bound.
    fn is_above(&self, version: &Version) -> bool {
        let release;
        let version = if self.version.pre.is_empty() {
            release = Version::new(version.major, version.minor, version.patch);
            &release
        } else {
            version
        };
        match version.cmp_precedence(&self.version) {
            std::cmp::Ordering::Less => true,
            std::cmp::Ordering::Equal => self.after,
            std::cmp::Ordering::Greater => false,
        }
    }
}

impl Condition {
    fn has(&self, version: &Version) -> bool {
        let below = self.from.as_ref().is_some_and(|from| from.is_above(version));
        let beyond = self.to.as_ref().is_some_and(|to| !to.is_above(version));
        (!below && !beyond) != self.negated
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ranges_mean_what_they_say() {
        for (range, inside, outside) in [
            ("1.30", vec!["v1.30.0", "1.30.9"], vec!["1.29.9", "1.31.0"]),
            ("=1.30.2", vec!["1.30.2"], vec!["1.30.3", "1.30.1"]),
            ("1", vec!["1.0.0", "1.99.1"], vec!["2.0.0", "0.9.0"]),
            ("*", vec!["0.0.0", "9.9.9"], vec![]),
            ("1.x", vec!["1.5.5"], vec!["2.0.0"]),
            ("1.30.*", vec!["1.30.7"], vec!["1.31.0"]),
            (">=1.30", vec!["1.30.0", "1.31.2", "1.30"], vec!["1.29.12"]),
            (">1.30", vec!["1.31.0"], vec!["1.30.5"]),
            (">1.30.5", vec!["1.30.6"], vec!["1.30.5"]),
            ("<1.30", vec!["1.29.9"], vec!["1.30.0"]),
            ("<=1.30", vec!["1.30.99", "1.2.0"], vec!["1.31.0"]),
            ("<=1.30.1", vec!["1.30.1"], vec!["1.30.2"]),
            ("!=1.30", vec!["1.29.0", "1.31.0"], vec!["1.30.0", "1.30.4"]),
            ("~1.30.2", vec!["1.30.2", "1.30.9"], vec!["1.30.1", "1.31.0"]),
            ("~1", vec!["1.7.0"], vec!["2.0.0"]),
            ("^1.30", vec!["1.30.0", "1.99.0"], vec!["2.0.0", "1.29.0"]),
            (">=1.30 <1.38", vec!["1.30.0", "1.37.9"], vec!["1.38.0", "1.29.0"]),
            (">= 1.30, < 1.38, != 1.33.1", vec!["1.33.0"], vec!["1.33.1", "1.38.1"]),
            ("1.28 - 1.30", vec!["1.28.0", "1.30.9"], vec!["1.27.9", "1.31.0"]),
            ("1.28.1 - 1.30.2", vec!["1.28.1", "1.30.2"], vec!["1.28.0", "1.30.3"]),
            ("1.28 || >=1.30", vec!["1.28.3", "1.31.0"], vec!["1.29.0"]),
        ] {
            for (versions, expected) in [(inside, true), (outside, false)] {
                for version in versions {
                    assert_eq!(
                        kube_version_satisfies(range, version),
                        Ok(expected),
                        "{range} {version}"
                    );
                }
            }
        }
    }

    #[test]
    fn marks_after_a_release_count_only_where_the_range_has_some() {
        for (range, version, expected) in [
            (">=1.30.4", "v1.30.4-gke.100", true),
            (">=1.30.4", "v1.30.4+k3s1", true),
            ("<1.31", "v1.31.0-alpha.1", false),
            (">=1.31.0-0", "v1.31.0-alpha.1", true),
            (">=1.31.0-beta.1", "v1.31.0-alpha.1", false),
            (">=1.31.0-beta.1", "v1.31.0-rc.0", true),
            ("<1.31.0-rc.1", "v1.31.0", false),
        ] {
            assert_eq!(
                kube_version_satisfies(range, version),
                Ok(expected),
                "{range} {version}"
            );
        }
    }

    #[test]
    fn what_is_no_range_is_refused() {
        for (range, why) in [
            ("", "is expected"),
            ("1.30 ||", "is expected"),
            (">=", "a version is missing"),
            ("latest", "\"latest\" is no version"),
            ("1.2.3.4", "is no version"),
            ("1..3", "is no version"),
            ("1.x.3", "is no version"),
            ("1.30-rc.1", "is no version"),
            (">=1.30 - 1.31", "needs two plain versions"),
            (">1.38 <1.30", "no version can lie in"),
            ("=1.30 !=1.30", "no version can lie in"),
            (">1.30.1-rc.1 <1.30.1-rc.1", "no version can lie in"),
            ("<0", "no version can lie in"),
            (">*", "no version can lie in"),
            ("99999999999999999999", "is no version"),
        ] {
            let error = range.parse::<KubeRange>().unwrap_err().to_string();
            assert!(error.contains(why), "{range}: {error}");
        }
        assert!(kube_version_satisfies(">=1.30", "x").is_err());
        assert!(kube_version_satisfies(">=1.30", "*").is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn parsing_never_panics_and_what_parses_prints_itself(text in "[v<>=!~^0-9x*., |-]{0,24}|.{0,24}") {
            if let Ok(range) = text.parse::<KubeRange>() {
                prop_assert_eq!(range.to_string().parse::<KubeRange>(), Ok(range));
            }
        }

        #[test]
        fn a_lower_and_an_upper_bound_cut_the_line(low in (0u64..3, 0u64..3), high in (0u64..3, 0u64..3), v in (0u64..3, 0u64..3)) {
            let text = |(major, minor): (u64, u64)| format!("{major}.{minor}");
            let accepted = kube_version_satisfies(&format!(">={} <{}", text(low), text(high)), &text(v));
            prop_assert_eq!(accepted.unwrap_or(false), low <= v && v < high);
        }
    }
}
