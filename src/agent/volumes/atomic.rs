//! Files of a volume that change all at once. A hidden folder holds a generation; `..data` links to it; the visible names
//! link through `..data`. Renaming the link over the old one is the moment of change, so a reader sees old or new, never
//! a mixture. Nothing happens when nothing changed.

use crate::error::{Error, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

/// A file to be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Its bytes.
    pub data: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
    /// Owner, when it must differ from root.
    pub owner: Option<u32>,
}

/// Files by relative path.
pub type Files = BTreeMap<String, File>;

/// Whether a path may be written below a volume: relative, no `..`, and not ours.
pub fn check_path(path: &str) -> std::result::Result<(), String> {
    let p = Path::new(path);
    if path.is_empty()
        || path.len() > 4096
        || !p.components().all(|c| matches!(c, Component::Normal(_)))
        || path.starts_with("..")
    {
        return Err(format!("{path:?} is not a path inside the volume"));
    }
    Ok(())
}

/// Makes the volume show exactly `files`; whether anything changed. Files belong to `group` if one is given.
pub fn write(dir: &Path, files: &Files, group: Option<u32>) -> Result<bool> {
    for path in files.keys() {
        check_path(path).map_err(Error::Other)?;
    }
    std::fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
    let current = std::fs::read_link(dir.join("..data")).ok();
    if let Some(c) = &current
        && same(&dir.join(c), files)
    {
        return Ok(false);
    }
    let generation = format!(
        "..{}",
        k8s_openapi::jiff::Timestamp::now().strftime("%Y_%m_%d_%H_%M_%S.%N")
    );
    let new = dir.join(&generation);
    std::fs::create_dir(&new).map_err(Error::io("create", &new))?;
    chown(&new, None, group)?;
    std::fs::set_permissions(&new, PermissionsExt::from_mode(0o755)).map_err(Error::io("set permissions of", &new))?;
    for (path, file) in files {
        write_file(&new, path, file, group)?;
    }
    let temporary = dir.join("..data_tmp");
    let _ = std::fs::remove_file(&temporary);
    symlink(&generation, &temporary).map_err(Error::io("link", &temporary))?;
    let data = dir.join("..data");
    std::fs::rename(&temporary, &data).map_err(Error::io("rename", &data))?;
    link_visible(dir, files)?;
    if let Some(old) = current {
        let old = dir.join(old);
        std::fs::remove_dir_all(&old).map_err(Error::io("remove", &old))?;
    }
    Ok(true)
}

fn write_file(new: &Path, path: &str, file: &File, group: Option<u32>) -> Result<()> {
    let target = new.join(path);
    let mut folder = new.to_path_buf();
    for part in Path::new(path).parent().into_iter().flat_map(Path::components) {
        folder.push(part);
        if !folder.is_dir() {
            std::fs::create_dir(&folder).map_err(Error::io("create", &folder))?;
            std::fs::set_permissions(&folder, PermissionsExt::from_mode(0o755))
                .map_err(Error::io("set permissions of", &folder))?;
            chown(&folder, None, group)?;
        }
    }
    std::fs::write(&target, &file.data).map_err(Error::io("write", &target))?;
    chown(&target, file.owner, group)?;
    std::fs::set_permissions(&target, PermissionsExt::from_mode(file.mode))
        .map_err(Error::io("set permissions of", &target))
}

fn chown(path: &Path, owner: Option<u32>, group: Option<u32>) -> Result<()> {
    if owner.is_none() && group.is_none() {
        return Ok(());
    }
    std::os::unix::fs::lchown(path, owner, group).map_err(Error::io("change the owner of", path))
}

fn same(generation: &Path, files: &Files) -> bool {
    let mut seen = BTreeSet::new();
    if !list(generation, generation, &mut seen) || seen.len() != files.len() {
        return false;
    }
    files.iter().all(|(path, file)| {
        let target = generation.join(path);
        seen.contains(path)
            && std::fs::read(&target).is_ok_and(|d| d == file.data)
            && std::fs::metadata(&target).is_ok_and(|m| m.permissions().mode() & 0o777 == file.mode & 0o777)
    })
}

fn list(root: &Path, dir: &Path, out: &mut BTreeSet<String>) -> bool {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return false;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() {
            if !list(root, &path, out) {
                return false;
            }
        } else if let Ok(relative) = path.strip_prefix(root) {
            out.insert(relative.to_string_lossy().into_owned());
        }
    }
    true
}

/// First parts of the paths: what the volume's folder itself shows.
fn visible(files: &Files) -> BTreeSet<PathBuf> {
    files
        .keys()
        .filter_map(|p| Path::new(p).components().next())
        .map(|c| PathBuf::from(c.as_os_str()))
        .collect()
}

/// Whether a folder lies there itself, not a link to one.
fn is_folder(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|m| m.is_dir())
}

fn link_visible(dir: &Path, files: &Files) -> Result<()> {
    let wanted = visible(files);
    for name in &wanted {
        let link = dir.join(name);
        // An empty folder was made for a subPath whose key was missing then.
        if is_folder(&link) {
            std::fs::remove_dir(&link).map_err(Error::io("remove", &link))?;
        }
        if std::fs::symlink_metadata(&link).is_err() {
            symlink(Path::new("..data").join(name), &link).map_err(Error::io("link", &link))?;
        }
    }
    for entry in std::fs::read_dir(dir).map_err(Error::io("read", dir))?.flatten() {
        let name = entry.file_name();
        let path = entry.path();
        if !name.to_string_lossy().starts_with("..") && !wanted.contains(Path::new(&name)) && !is_folder(&path) {
            std::fs::remove_file(&path).map_err(Error::io("remove", &path))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn files(list: &[(&str, &str)]) -> Files {
        list.iter()
            .map(|(p, d)| {
                (
                    (*p).to_owned(),
                    File {
                        data: d.as_bytes().to_vec(),
                        mode: 0o644,
                        owner: None,
                    },
                )
            })
            .collect()
    }

    #[test]
    fn content_is_swapped_as_a_whole_and_only_when_it_changed() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().join("v");
        assert!(write(&dir, &files(&[("a", "1"), ("sub/b", "2")]), None).unwrap());
        assert_eq!(std::fs::read_to_string(dir.join("a")).unwrap(), "1");
        assert_eq!(std::fs::read_to_string(dir.join("sub/b")).unwrap(), "2");
        let before = std::fs::read_link(dir.join("..data")).unwrap();
        assert!(!write(&dir, &files(&[("a", "1"), ("sub/b", "2")]), None).unwrap());
        assert_eq!(std::fs::read_link(dir.join("..data")).unwrap(), before);
        assert!(write(&dir, &files(&[("c", "3")]), None).unwrap());
        assert!(!dir.join("a").exists() && !dir.join("sub").exists() && !dir.join(before).exists());
        assert_eq!(std::fs::read_to_string(dir.join("c")).unwrap(), "3");
    }

    #[test]
    fn a_changed_mode_is_a_change() {
        let tmp = tempfile::tempdir().unwrap();
        let mut f = files(&[("a", "1")]);
        assert!(write(tmp.path(), &f, None).unwrap());
        f.get_mut("a").unwrap().mode = 0o400;
        assert!(write(tmp.path(), &f, None).unwrap());
        assert_eq!(
            std::fs::metadata(tmp.path().join("a")).unwrap().permissions().mode() & 0o777,
            0o400
        );
    }

    #[test]
    fn a_folder_made_for_a_missing_key_gives_way_to_the_key() {
        let tmp = tempfile::tempdir().unwrap();
        assert!(write(tmp.path(), &files(&[("a", "1")]), None).unwrap());
        std::fs::create_dir(tmp.path().join("b")).unwrap();
        assert!(write(tmp.path(), &files(&[("a", "2")]), None).unwrap());
        assert!(tmp.path().join("b").is_dir(), "a container may have it mounted");
        assert!(write(tmp.path(), &files(&[("a", "2"), ("b", "3")]), None).unwrap());
        assert_eq!(std::fs::read_to_string(tmp.path().join("b")).unwrap(), "3");
    }

    #[test]
    fn paths_that_leave_the_volume_are_refused() {
        for path in ["", "/a", "../a", "a/../b", "..data", "./a"] {
            assert!(check_path(path).is_err(), "{path:?}");
        }
        for path in ["a", "a/b", "a..b", ".a"] {
            assert!(check_path(path).is_ok(), "{path:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn after_any_sequence_the_volume_shows_the_last_files(steps in proptest::collection::vec(proptest::collection::btree_map("[a-c](/[d-f])?", "[a-z]{0,4}", 0..4), 1..5)) {
            let tmp = tempfile::tempdir().unwrap();
            for step in &steps {
                let clash = step.keys().any(|k| step.keys().any(|o| o.starts_with(&format!("{k}/"))));
                prop_assume!(!clash);
                let f: Files = step.iter().map(|(p, d)| (p.clone(), File { data: d.clone().into_bytes(), mode: 0o600, owner: None })).collect();
                write(tmp.path(), &f, None).unwrap();
                for (p, d) in step {
                    prop_assert_eq!(&std::fs::read_to_string(tmp.path().join(p)).unwrap(), d);
                }
                let shown = std::fs::read_dir(tmp.path()).unwrap().flatten().filter(|e| !e.file_name().to_string_lossy().starts_with("..")).count();
                prop_assert_eq!(shown, visible(&f).len());
            }
        }
    }
}
