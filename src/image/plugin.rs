//! What CNI and CSI bring: manifests, which are applied as soon as the control plane answers, and nothing else.

use std::path::Path;

use crate::apps;
use crate::closure::IMAGE_LIST;
use crate::context::Contexts;
use crate::error::Error;
use crate::tree::Kind;

/// Everything that the instruction `keyword` brings for the plugin `name` is of use.
///
/// # Errors
/// The source that is not, and what to write instead.
pub(crate) fn check(contexts: &Contexts, keyword: &str, name: &str, sources: &[String]) -> Result<(), Error> {
    for source in sources {
        for (_, path) in contexts.find(None, source)? {
            check_chart(source, &path)?;
            let files = files(contexts, &path)?;
            if let Some(script) = files.iter().find(|file| file.ends_with(".sh")) {
                let what = match path.is_dir() {
                    true => format!("{script} in it"),
                    false => "it".to_string(),
                };
                let why = format!(
                    "{what} is a script, and nobody runs what {keyword} brings: bring the manifests that it applies; or make it an \
                     application that is launched when the cluster is up (APP {name} {source}, LAUNCH [\"{name}\"])"
                );
                return Err(Error::path(source, why));
            }
            if !files.iter().any(|file| apps::is_manifest(file) || *file == IMAGE_LIST) {
                let why = format!("{keyword} brings manifests (.yaml, .yml or .json, also as .tmpl), and it has none");
                return Err(Error::path(source, why));
            }
        }
    }
    Ok(())
}

fn check_chart(source: &str, path: &Path) -> Result<(), Error> {
    let is_packed =
        path.is_file() && apps::may_be_packed_chart(&path.to_string_lossy()) && apps::is_packed_chart(path)?;
    if is_packed || path.join(apps::CHART).exists() {
        let why = "it is a helm chart; the network and storage of a cluster are manifests here: render it with \
                   `helm template` first, or make it an APP";
        return Err(Error::path(source, why));
    }
    Ok(())
}

/// The names of the files that a path of a context stands for, below it if it is a folder.
fn files(contexts: &Contexts, path: &Path) -> Result<Vec<String>, Error> {
    let entries = contexts.walk(None, path)?.into_iter();
    let files = entries.filter(|(_, entry)| !matches!(entry.kind, Kind::Dir));
    let own = path.file_name().map(|name| name.to_string_lossy().into_owned());
    let name = |below: String| match below.is_empty() {
        true => own.clone().unwrap_or_default(),
        false => below,
    };
    Ok(files.map(|(below, _)| name(below)).collect())
}
