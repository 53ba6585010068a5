//! Volumes of the type `hostPath`: their type is checked, and what is not there is made where the type says so.
//!
//! What is made outlives the pod, on purpose. A list of it tells whoever takes the cluster off the host that a pod made it.

use std::{
    io::Write as _,
    os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _, PermissionsExt},
    path::{Path, PathBuf},
};

use k8s_openapi::api::core::v1::HostPathVolumeSource;

/// Largest size of the list, in bytes: paths after that are not noted.
const LIST_LIMIT: u64 = 1 << 20;

/// Makes a volume ready; `list` is where paths that are made are noted.
///
/// # Errors
/// When it is of another type, or cannot be made.
pub(super) fn prepare(source: &HostPathVolumeSource, list: &Path) -> Result<(), String> {
    let path = Path::new(&source.path);
    let kind = source.type_.as_deref().unwrap_or_default();
    // As upstream: for a volume without a type the runtime makes a missing folder.
    let makes = match kind {
        "" | "DirectoryOrCreate" => Some(true),
        "FileOrCreate" => Some(false),
        _ => None,
    };
    if let Some(is_folder) = makes.filter(|_| !path.exists()) {
        if let Err(error) = note(&topmost_missing(path), list) {
            // The pod is worth more than the note: the path counts as somebody else's then.
            tracing::warn!("{} cannot be noted in {}: {error}", source.path, list.display());
        }
        make(path, is_folder).map_err(|e| format!("hostPath {}: {e}", source.path))?;
    }
    let found = std::fs::metadata(path).map(|meta| meta.file_type());
    let ok = match (kind, &found) {
        ("", Ok(_)) => true,
        ("Directory" | "DirectoryOrCreate", Ok(t)) => t.is_dir(),
        ("File" | "FileOrCreate", Ok(t)) => t.is_file(),
        ("Socket", Ok(t)) => t.is_socket(),
        ("CharDevice", Ok(t)) => t.is_char_device(),
        ("BlockDevice", Ok(t)) => t.is_block_device(),
        _ => false,
    };
    match ok {
        true => Ok(()),
        false => Err(format!("hostPath type check failed: {} is not a {kind}", source.path)),
    }
}

fn make(path: &Path, is_folder: bool) -> std::io::Result<()> {
    if is_folder {
        std::fs::create_dir_all(path)?;
        return std::fs::set_permissions(path, PermissionsExt::from_mode(0o755));
    }
    std::fs::OpenOptions::new().create(true).append(true).open(path)?;
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o644))
}

/// The outermost of the folders that are made on the way to `path`, or `path` itself. Where its parents are links it is where they lead.
fn topmost_missing(path: &Path) -> PathBuf {
    let mut missing = path.to_path_buf();
    while let Some(parent) = missing.parent() {
        if let Ok(real) = parent.canonicalize() {
            return missing.file_name().map_or(real.clone(), |name| real.join(name));
        }
        missing = parent.to_path_buf();
    }
    missing
}

/// Adds a path to the list, a JSON string a line, once.
fn note(path: &Path, list: &Path) -> std::io::Result<()> {
    let line = format!("{}\n", serde_json::Value::from(path.to_string_lossy()));
    let size = std::fs::metadata(list).map_or(0, |meta| meta.len());
    if size + line.len() as u64 > LIST_LIMIT {
        return Err(std::io::Error::other("the list is full"));
    }
    let known = std::fs::read_to_string(list).unwrap_or_default();
    if known.split_inclusive('\n').any(|known| known == line) {
        return Ok(());
    }
    if let Some(folder) = list.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let mut file = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(list)?;
    file.write_all(line.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(path: &Path, kind: &str) -> HostPathVolumeSource {
        HostPathVolumeSource {
            path: path.display().to_string(),
            type_: Some(kind.to_owned()),
        }
    }

    #[test]
    fn what_is_made_for_a_pod_is_noted_once_and_what_was_there_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let list = root.join("kubelet/made-by-pods");
        std::fs::create_dir_all(root.join("there")).unwrap();
        std::os::unix::fs::symlink("there", root.join("link")).unwrap();
        for (path, kind) in [
            ("there", "DirectoryOrCreate"),
            ("a/b/c", "DirectoryOrCreate"),
            ("a/b/c/file", "FileOrCreate"),
            ("link/new", ""),
            ("one", ""),
            ("one", ""),
        ] {
            prepare(&volume(&root.join(path), kind), &list).unwrap();
        }
        std::fs::remove_dir(root.join("one")).unwrap();
        prepare(&volume(&root.join("one"), "DirectoryOrCreate"), &list).unwrap();
        let text = std::fs::read_to_string(&list).unwrap();
        let noted: Vec<String> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let expected = ["a", "a/b/c/file", "there/new", "one"];
        let expected: Vec<String> = expected.map(|path| root.join(path).display().to_string()).into();
        assert_eq!(noted, expected);
        assert!(prepare(&volume(&root.join("never"), "Directory"), &list).is_err());
        assert!(!root.join("never").exists());
    }
}
