//! `image-paths.yaml`: where custom resources name images.
//!
//! ```yaml
//! - apiVersion: example.com/v1      # or example.com/* for every version
//!   kind: Database
//!   paths: [".spec.image", ".spec.backup.images[*]"]
//! ```
//! A rule says all there is to say about a custom kind; `paths: []` says that it names no images.

use std::path::Path;

use clusterfile::names::did_you_mean;
use clusterfile::yaml::{self, Node, Value};
use clusterfile::{Problem, Problems};
use serde::{Deserialize, Serialize};

use super::path::FieldPath;
use crate::error::Error;
use crate::io;

/// The file's name at the top of the build context.
pub(crate) const NAME: &str = "image-paths.yaml";
/// Sealer's file of references with passwords.
const SEALERS_LOGINS: &str = "imageListWithAuth.yaml";

const FIELDS: [&str; 3] = ["apiVersion", "kind", "paths"];

/// Where objects of one kind name images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Rule {
    api_version: String,
    kind: String,
    paths: Vec<FieldPath>,
}

/// All rules of an image; of two for the same kind the later one holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Rules(Vec<Rule>);

impl Rules {
    /// The rules of a build context; a context without the file has none.
    ///
    /// # Errors
    /// [`Error::Recipe`] with everything that is wrong with the file; also for a file with logins, which would end up in
    /// the image or be forgotten.
    pub(crate) fn of_context(context: &Path) -> Result<Rules, Error> {
        if context.join(SEALERS_LOGINS).symlink_metadata().is_ok() {
            let message = "logins don't belong in a build context: list the references in manifests/imageList, and store each \
                           login with `installer login REGISTRY[/PATH]`";
            return Err(Problems::one(SEALERS_LOGINS, Default::default(), message).into());
        }
        let path = context.join(NAME);
        match path.symlink_metadata() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Rules::default()),
            Err(error) => return Err(Error::io("cannot read", &path)(error)),
            Ok(meta) if !meta.is_file() => return Err(Error::path(NAME, "it is no regular file")),
            Ok(_) => {}
        }
        let file = std::fs::File::open(&path).map_err(Error::io("cannot read", &path))?;
        Ok(Rules::parse(&io::read_text(NAME, file)?)?)
    }

    fn parse(text: &str) -> Result<Rules, Problems> {
        let documents = yaml::parse(text).map_err(|error| Problems::one(NAME, error.at, error.message))?;
        let mut problems = Vec::new();
        let mut rules = Vec::new();
        for document in &documents {
            if !matches!(document.value, Value::List(_)) {
                problems.push(problem(document, "a list of rules is expected"));
            }
            rules.extend(document.items().iter().filter_map(|node| rule(node, &mut problems)));
        }
        match problems.is_empty() {
            true => Ok(Rules(rules)),
            false => Err(Problems::new(problems)),
        }
    }

    /// Adds the rules of an image built on top; where both speak of a kind, they hold.
    pub(crate) fn extend(&mut self, later: Rules) {
        let is_same = |one: &Rule, other: &Rule| one.api_version == other.api_version && one.kind == other.kind;
        self.0.retain(|rule| !later.0.iter().any(|other| is_same(rule, other)));
        self.0.extend(later.0);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The paths for a kind; none if no rule speaks of it.
    pub(super) fn paths(&self, api_version: &str, kind: &str) -> Option<&[FieldPath]> {
        let fits = |rule: &&Rule| {
            let version = match rule.api_version.strip_suffix("/*") {
                Some(group) => api_version.split_once('/').is_some_and(|(other, _)| other == group),
                None => rule.api_version == api_version,
            };
            version && rule.kind == kind
        };
        self.0.iter().rev().find(fits).map(|rule| rule.paths.as_slice())
    }
}

fn problem(node: &Node, message: impl Into<String>) -> Problem {
    Problem {
        file: NAME.to_string(),
        at: node.at,
        message: message.into(),
    }
}

fn rule(node: &Node, problems: &mut Vec<Problem>) -> Option<Rule> {
    let before = problems.len();
    for (key, value) in node.entries() {
        if !FIELDS.contains(&key.name.as_str()) {
            let hint = did_you_mean(&key.name, FIELDS);
            problems.push(problem(value, format!("unknown field {:?}{hint}", key.name)));
        }
    }
    let text = |field: &str, problems: &mut Vec<Problem>| match node.get(field).and_then(Node::as_str) {
        Some(text) if !text.is_empty() => text.to_string(),
        _ => {
            problems.push(problem(node, format!("a rule needs the text field {field:?}")));
            String::new()
        }
    };
    let api_version = text("apiVersion", problems);
    let kind = text("kind", problems);
    let list = node.get("paths").filter(|list| matches!(list.value, Value::List(_)));
    if list.is_none() {
        problems.push(problem(node, "a rule needs the list \"paths\""));
    }
    let mut paths = Vec::new();
    for item in list.map(Node::items).unwrap_or_default() {
        let text = item.as_str().ok_or_else(|| format!("{} is no path", item.kind()));
        match text.map(str::to_string).and_then(FieldPath::try_from) {
            Ok(path) => paths.push(path),
            Err(why) => problems.push(problem(item, why)),
        }
    }
    (problems.len() == before).then_some(Rule {
        api_version,
        kind,
        paths,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_found_by_kind_and_version_and_the_last_one_holds() {
        let mut rules = Rules::parse(
            "- {apiVersion: a.b/v1, kind: X, paths: [.one]}\n- {apiVersion: a.b/*, kind: Z, paths: [.two, .three]}\n",
        )
        .unwrap();
        rules.extend(Rules::parse("- {apiVersion: a.b/v1, kind: X, paths: []}").unwrap());
        for (version, kind, expected) in [
            ("a.b/v1", "X", Some(0)),
            ("a.b/v2", "X", None),
            ("a.b/v2", "Z", Some(2)),
            ("a.bc/v2", "Z", None),
            ("a.b", "Z", None),
        ] {
            assert_eq!(rules.paths(version, kind).map(<[_]>::len), expected, "{version} {kind}");
        }
        let kept = serde_json::to_string(&rules).unwrap();
        assert_eq!(serde_json::from_str::<Rules>(&kept).unwrap(), rules);
    }

    #[test]
    fn everything_wrong_is_named_with_its_place() {
        let text =
            "- {apiVersion: a.b/v1, kind: X, path: [.a]}\n- kind: Z\n  apiVersion: a.b/v1\n  paths: ['a[', .b]\n- 7\n";
        let problems = Rules::parse(text).unwrap_err().to_string();
        for expected in [
            "image-paths.yaml:1:39: unknown field \"path\", did you mean \"paths\"?",
            "image-paths.yaml:1:3: a rule needs the list \"paths\"",
            "image-paths.yaml:4:11: \"a[\" is not a path to a field",
            "image-paths.yaml:5:3: a rule needs the text field \"kind\"",
        ] {
            assert!(problems.contains(expected), "{expected} in:\n{problems}");
        }
        assert!(Rules::parse("a: b").is_err());
    }

    #[test]
    fn a_file_with_logins_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Rules::of_context(dir.path()).unwrap().is_empty());
        std::fs::write(dir.path().join(SEALERS_LOGINS), "- password: hunter2\n").unwrap();
        let error = Rules::of_context(dir.path()).unwrap_err().to_string();
        assert!(
            error.contains("installer login") && !error.contains("hunter2"),
            "{error}"
        );
    }
}
