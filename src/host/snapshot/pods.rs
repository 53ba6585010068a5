//! What pods made on the host outside of folders of ours: paths of `hostPath` volumes that were not there. The agent notes them.

use std::{collections::BTreeSet, path::Path};

use super::origin::is_within;
use crate::{
    Error, MADE_BY_PODS, Result,
    fsops::{self, Root, There},
    proto::{Leftover, Origin},
};

/// Name below the journal's `saved`: an undo that is interrupted has taken the agent's folder away already when it begins again.
const KEPT: &str = "made-by-pods";
/// Largest size of such a list, in bytes.
const LIMIT: u64 = 4 << 20;

/// The paths that pods made, by what the agent noted and what is kept in the journal in `dir`.
///
/// # Errors
/// When a list is there and cannot be read.
pub(crate) fn made_by_pods(root: &Root, dir: &Path) -> Result<BTreeSet<String>> {
    let mut paths = BTreeSet::new();
    for list in [root.path(MADE_BY_PODS)?, dir.join("saved").join(KEPT)] {
        let bytes = fsops::read_small(&list, LIMIT)?.unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        // A last line may be torn: then its path counts as somebody else's.
        paths.extend(
            text.lines()
                .filter_map(|line| serde_json::from_str::<String>(line).ok()),
        );
    }
    Ok(paths)
}

/// As [`made_by_pods`], and keeps the paths in the journal.
///
/// # Errors
/// As [`made_by_pods`], and when the journal cannot be written.
pub(crate) fn keep_made_by_pods(root: &Root, dir: &Path) -> Result<BTreeSet<String>> {
    let paths = made_by_pods(root, dir)?;
    if !paths.is_empty() {
        let mut text = String::new();
        for path in &paths {
            text.push_str(&serde_json::to_string(path).map_err(|e| Error::invalid(e.to_string()))?);
            text.push('\n');
        }
        fsops::write_atomic(&dir.join("saved").join(KEPT), text.as_bytes(), 0o600, None)?;
    }
    Ok(paths)
}

/// Differences that no comparison told, because pods made them where nothing of ours ever is.
pub(crate) fn untold_of_pods(root: &Root, pods: &BTreeSet<String>, told: &[Leftover]) -> Vec<Leftover> {
    let is_there = |path: &str| {
        let there = root.path(path).and_then(|at| fsops::look(&at));
        !matches!(there, Ok(There::Nothing) | Err(_))
    };
    let is_told = |path: &str| {
        let files = told
            .iter()
            .filter(|one| one.kind == "file")
            .map(|one| one.name.as_str());
        files
            .into_iter()
            .any(|name| is_within(name, path) || is_within(path, name))
    };
    let untold = pods.iter().filter(|path| is_there(path) && !is_told(path));
    let added = untold.map(|path| Leftover {
        kind: "file".to_owned(),
        name: path.clone(),
        how: "added".to_owned(),
        origin: Origin::Pods,
    });
    added.collect()
}
