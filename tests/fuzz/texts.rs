//! What people write: Kubefiles, Clusterfiles, image references.

use std::path::Path;

use clusterfile::kubefile::{Dialect, Evaluator, lines};
use clusterfile::{Clusterfile, Env};
use oci::Reference;
use serde_json::Value;

/// A Kubefile and a Containerfile of the same text.
pub(crate) fn kubefile(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let count = text.lines().count() as u64 + 1;
    let args = Env::from([("A".to_string(), "1".to_string())]);
    for dialect in [Dialect::Kubefile, Dialect::Containerfile] {
        let found = lines(text, "F", dialect);
        let in_text = |problem: &clusterfile::Problem| problem.at.line <= count && !problem.message.is_empty();
        assert!(found.problems.iter().chain(&found.warnings).all(in_text), "{found:?}");
        let mut evaluator = Evaluator::new("F", dialect, &args);
        for line in &found.lines {
            assert!(line.number >= 1 && line.number <= count);
            assert!(dialect.instructions().contains(&line.keyword));
            let _ = (evaluator.instruction(line), line.text());
        }
        let problems = evaluator.take_problems();
        assert!(problems.iter().all(in_text), "{problems:?}");
        let _ = evaluator.variables();
    }
}

/// A Clusterfile: every finding has a place in the text, and what is stored of it holds no secret.
pub(crate) fn clusterfile(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    // YAML ends a line at a carriage return too.
    let count = text.split(['\n', '\r']).count() as u64;
    match Clusterfile::parse(text, "F", Path::new("/base")) {
        Ok(file) => {
            assert!(file.masters().next().is_some());
            assert!(file.networks(&Env::new()).is_ok());
            no_secrets(&file.without_secrets());
            for warning in &file.warnings {
                assert!(warning.at.line <= count);
            }
        }
        Err(problems) => {
            assert!(!problems.list().is_empty());
            for problem in problems.list() {
                assert!(problem.at.line <= count && !problem.message.is_empty(), "{problem}");
            }
        }
    }
}

fn no_secrets(value: &Value) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                assert!(
                    !["passwd", "pkPasswd", "sudoPasswd", "password"].contains(&name.as_str()),
                    "{name}"
                );
                no_secrets(value);
            }
        }
        Value::Array(items) => items.iter().for_each(no_secrets),
        _ => {}
    }
}

/// An image reference: both its forms mean the same, and none leads out of a folder.
pub(crate) fn reference(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(reference) = text.parse::<Reference>() else {
        return;
    };
    for form in [reference.to_string(), reference.familiar()] {
        let again = form.parse::<Reference>();
        assert!(
            again.as_ref().is_ok_and(|again| *again == reference),
            "{form}: {again:?}"
        );
    }
    for part in reference.path().split('/') {
        assert!(!part.is_empty() && part != "." && part != "..", "{reference}");
    }
    assert!(!reference.domain().contains('/') && !reference.tag_or_digest().contains('/'));
}
