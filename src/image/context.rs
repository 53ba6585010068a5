//! Build contexts: the folders COPY may read from, and nothing outside of them.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path, PathBuf};

use clusterfile::names::did_you_mean;

use crate::error::Error;
use crate::io;
use crate::tree::{Entry, Kind, Source};

/// The context folder and the named ones.
#[derive(Debug, Clone)]
pub(crate) struct Contexts {
    main: PathBuf,
    named: BTreeMap<String, PathBuf>,
}

impl Contexts {
    /// Resolves the folders; every one must exist.
    pub(crate) fn new(main: &Path, named: &BTreeMap<String, PathBuf>) -> Result<Contexts, Error> {
        let folder = |path: &Path| {
            let real = path
                .canonicalize()
                .map_err(Error::io("cannot use the build context", path))?;
            match real.is_dir() {
                true => Ok(real),
                false => Err(Error::path(
                    path.display().to_string(),
                    "a build context must be a folder",
                )),
            }
        };
        let named: Result<_, Error> = named
            .iter()
            .map(|(name, path)| Ok((name.clone(), folder(path)?)))
            .collect();
        Ok(Contexts {
            main: folder(main)?,
            named: named?,
        })
    }

    pub(crate) fn main(&self) -> &Path {
        &self.main
    }

    /// The same named contexts around another main one.
    pub(crate) fn with_main(&self, main: PathBuf) -> Contexts {
        Contexts {
            main,
            named: self.named.clone(),
        }
    }

    pub(crate) fn folder(&self, name: Option<&str>) -> Result<&Path, Error> {
        let Some(name) = name else { return Ok(&self.main) };
        self.named.get(name).map(PathBuf::as_path).ok_or_else(|| {
            let hint = did_you_mean(name, self.named.keys().map(String::as_str));
            Error::Refused(format!(
                "there is no build context {name:?}{hint}: give one with --build-context {name}=FOLDER"
            ))
        })
    }

    /// The one existing path that `path` names in the main context, links followed as long as they stay inside.
    pub(crate) fn inside(&self, path: &str) -> Result<PathBuf, Error> {
        resolve(&self.main, path)
    }

    /// The existing paths that a path or pattern (`*`, `?` in names) stands for, sorted, each with its last name.
    pub(crate) fn find(&self, name: Option<&str>, pattern: &str) -> Result<Vec<(String, PathBuf)>, Error> {
        let root = self.folder(name)?;
        if !pattern.contains(['*', '?']) {
            let name = plain_parts(pattern)?.pop().unwrap_or_default();
            return Ok(vec![(name, resolve(root, pattern)?)]);
        }
        let mut found = vec![root.to_path_buf()];
        for part in plain_parts(pattern)? {
            let mut next = Vec::new();
            for folder in &found {
                if !part.contains(['*', '?']) {
                    next.extend(
                        folder
                            .join(&part)
                            .symlink_metadata()
                            .is_ok()
                            .then(|| folder.join(&part)),
                    );
                } else if folder.is_dir() {
                    next.extend(
                        list(folder)?
                            .into_iter()
                            .filter(|(name, _)| matches(&part, name))
                            .map(|(_, path)| path),
                    );
                }
            }
            found = next;
        }
        if found.is_empty() {
            return Err(Error::path(pattern, "nothing in the build context matches"));
        }
        let real = |path: PathBuf| {
            let name = path
                .file_name()
                .map(|name| name.to_string_lossy().into_owned())
                .unwrap_or_default();
            Ok((name, stay_inside(root, &path, &path.display().to_string())?))
        };
        found.into_iter().map(real).collect()
    }
}

fn plain_parts(path: &str) -> Result<Vec<String>, Error> {
    let mut parts = Vec::new();
    for part in Path::new(path).components() {
        match part {
            Component::Normal(name) => parts.push(name.to_string_lossy().into_owned()),
            Component::CurDir | Component::RootDir => {}
            _ => return Err(Error::path(path, "it leads out of the build context")),
        }
    }
    Ok(parts)
}

fn resolve(root: &Path, path: &str) -> Result<PathBuf, Error> {
    let parts: PathBuf = plain_parts(path)?.iter().collect();
    let full = root.join(parts);
    if full.symlink_metadata().is_err() {
        return Err(Error::path(
            path,
            format!("there is no such file in the build context {}", root.display()),
        ));
    }
    stay_inside(root, &full, path)
}

fn stay_inside(root: &Path, full: &Path, shown: &str) -> Result<PathBuf, Error> {
    let real = full
        .canonicalize()
        .map_err(|error| Error::path(shown, format!("it can't be followed: {error}")))?;
    match real.starts_with(root) {
        true => Ok(real),
        false => Err(Error::path(
            shown,
            "it leads out of the build context by a symbolic link",
        )),
    }
}

/// Whether `name` matches a pattern of `*`, `?` and plain characters; names with a leading dot need one in the pattern.
fn matches(pattern: &str, name: &str) -> bool {
    fn go(pattern: &[char], name: &[char]) -> bool {
        match pattern.split_first() {
            None => name.is_empty(),
            Some(('*', rest)) => (0..=name.len()).any(|skip| go(rest, &name[skip..])),
            Some((c, rest)) => name
                .split_first()
                .is_some_and(|(n, tail)| (*c == '?' || c == n) && go(rest, tail)),
        }
    }
    let chars = |text: &str| text.chars().collect::<Vec<_>>();
    (!name.starts_with('.') || pattern.starts_with('.')) && go(&chars(pattern), &chars(name))
}

fn list(folder: &Path) -> Result<Vec<(String, PathBuf)>, Error> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::io("cannot read", folder))? {
        let entry = entry.map_err(Error::io("cannot read", folder))?;
        let name = entry.file_name().into_string();
        let name = name.map_err(|name| Error::path(name.to_string_lossy(), "the name is not UTF-8"))?;
        entries.push((name, entry.path()));
    }
    entries.sort();
    Ok(entries)
}

/// Whether modes are taken as they are or reduced to what version control keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Modes {
    /// 0755 for folders and executables, 0644 for the rest: the same in every checkout, whatever its umask.
    Reduced,
    /// As on disk.
    Exact,
}

/// Whether symbolic links may point anywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Links {
    /// Only relative ones that stay below the walked folder.
    Inside,
    /// Any.
    Any,
}

/// Everything below `root` (or `root` itself, under the empty path, if it's a file), parents before children.
pub(crate) fn walk(root: &Path, modes: Modes, links: Links) -> Result<Vec<(String, Entry)>, Error> {
    let mut entries = Vec::new();
    let meta = root.symlink_metadata().map_err(Error::io("cannot read", root))?;
    if meta.is_dir() {
        walk_folder(root, "", modes, links, &mut entries)?;
    } else {
        entries.push((String::new(), entry(root, "", &meta, modes, links)?));
    }
    Ok(entries)
}

fn walk_folder(
    folder: &Path,
    prefix: &str,
    modes: Modes,
    links: Links,
    entries: &mut Vec<(String, Entry)>,
) -> Result<(), Error> {
    for (name, path) in list(folder)? {
        let relative = if prefix.is_empty() {
            name
        } else {
            format!("{prefix}/{name}")
        };
        let meta = path.symlink_metadata().map_err(Error::io("cannot read", &path))?;
        entries.push((relative.clone(), entry(&path, &relative, &meta, modes, links)?));
        if meta.is_dir() {
            walk_folder(&path, &relative, modes, links, entries)?;
        }
    }
    Ok(())
}

fn entry(path: &Path, relative: &str, meta: &fs::Metadata, modes: Modes, links: Links) -> Result<Entry, Error> {
    let exact = meta.permissions().mode() & 0o7777;
    let kind = if meta.is_dir() {
        Kind::Dir
    } else if meta.is_symlink() {
        let target = fs::read_link(path).map_err(Error::io("cannot read", path))?;
        if links == Links::Inside && !link_stays_inside(relative, &target) {
            let reason = format!("the symbolic link to {} leads out of its folder", target.display());
            return Err(Error::path(path.display().to_string(), reason));
        }
        Kind::Link {
            target: target.to_string_lossy().into_owned(),
        }
    } else if meta.is_file() {
        let mut file = fs::File::open(path).map_err(Error::io("cannot read", path))?;
        let (digest, size) = io::digest(&mut file).map_err(Error::io("cannot read", path))?;
        Kind::File {
            digest,
            size,
            source: Source::Disk(path.to_path_buf()),
        }
    } else {
        return Err(Error::path(
            path.display().to_string(),
            "only files, folders and symbolic links are allowed",
        ));
    };
    let mode = match modes {
        Modes::Exact => exact,
        Modes::Reduced if matches!(kind, Kind::Dir) || exact & 0o111 != 0 => 0o755,
        Modes::Reduced => 0o644,
    };
    Ok(Entry { mode, kind })
}

/// Whether a link at `relative` with this target stays below the folder that `relative` starts at.
fn link_stays_inside(relative: &str, target: &Path) -> bool {
    let mut depth = relative.matches('/').count();
    for part in target.components() {
        match part {
            Component::Normal(_) => depth += 1,
            Component::CurDir => {}
            Component::ParentDir if depth > 0 => depth -= 1,
            _ => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn contexts() -> (tempfile::TempDir, Contexts) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("context");
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(root.join("a/b/x.yaml"), "x").unwrap();
        fs::write(root.join("a/b/.y.yaml"), "y").unwrap();
        fs::write(dir.path().join("outside"), "z").unwrap();
        let contexts = Contexts::new(&root, &BTreeMap::from([("bin".into(), root.join("a"))])).unwrap();
        (dir, contexts)
    }

    #[test]
    fn patterns_find_visible_files_and_names_must_exist() {
        let (_dir, contexts) = contexts();
        assert_eq!(contexts.find(None, "a/*/*.yaml").unwrap().len(), 1);
        assert_eq!(contexts.find(Some("bin"), "b/x.yaml").unwrap().len(), 1);
        for (name, path, expected) in [
            (None, "a/c", "no such file"),
            (None, "../outside", "leads out"),
            (None, "a/../../outside", "leads out"),
            (None, "*.txt", "matches"),
            (Some("bni"), "x", "did you mean \"bin\""),
        ] {
            let error = contexts.find(name, path).unwrap_err().to_string();
            assert!(error.contains(expected), "{path}: {error}");
        }
    }

    #[test]
    fn links_out_of_the_context_are_refused() {
        let (dir, contexts) = contexts();
        let root = contexts.main().to_path_buf();
        symlink(dir.path().join("outside"), root.join("a/link")).unwrap();
        symlink("..", root.join("a/up")).unwrap();
        assert!(
            contexts
                .find(None, "a/link")
                .unwrap_err()
                .to_string()
                .contains("leads out")
        );
        assert!(contexts.find(None, "a/up/../outside").is_err());
        assert!(
            walk(&root.join("a"), Modes::Reduced, Links::Inside)
                .unwrap_err()
                .to_string()
                .contains("leads out")
        );
        fs::remove_file(root.join("a/link")).unwrap();
        assert!(
            walk(&root.join("a"), Modes::Reduced, Links::Inside).is_err(),
            "a/up leaves a"
        );
        assert!(
            walk(&root, Modes::Reduced, Links::Inside).is_ok(),
            "within the whole context it stays inside"
        );
    }
}
