//! Build contexts: the folders COPY may read from, and nothing outside of them.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use clusterfile::names::did_you_mean;

use crate::digests::Digests;
use crate::error::Error;
use crate::ignore::Ignore;
use crate::store::Store;
use crate::tree::Entry;
use crate::walk::{Links, Modes, Walk, list};

/// The context folder and the named ones.
#[derive(Debug, Clone)]
pub(crate) struct Contexts {
    main: Root,
    named: BTreeMap<String, Root>,
}

/// One context.
#[derive(Debug, Clone)]
struct Root {
    /// Without any symbolic link.
    path: PathBuf,
    ignore: Arc<Ignore>,
    digests: Arc<Digests>,
}

impl Root {
    fn new(store: &Store, path: &Path) -> Result<Root, Error> {
        let path = path
            .canonicalize()
            .map_err(Error::io("cannot use the build context", path))?;
        if !path.is_dir() {
            return Err(Error::path(
                path.display().to_string(),
                "a build context must be a folder",
            ));
        }
        Ok(Root {
            ignore: Ignore::read(&path)?.into(),
            digests: Digests::load(store, &path).into(),
            path,
        })
    }

    /// A path of the context as it is seen from the context's folder.
    fn relative(&self, path: &Path) -> Result<String, Error> {
        let relative = path.strip_prefix(&self.path).ok().and_then(Path::to_str);
        let why = "it is not in the build context, or its name is not UTF-8";
        Ok(relative
            .ok_or_else(|| Error::path(path.display().to_string(), why))?
            .to_string())
    }

    /// Why a path is no part of the context although it is there.
    fn left_out(&self, path: &Path) -> Result<Option<String>, Error> {
        let matched = self.ignore.matched_from_top(&self.relative(path)?);
        let may_hold = path.is_dir() && self.ignore.takes_in();
        Ok(self.ignore.excludes(&matched).filter(|_| !may_hold))
    }
}

impl Contexts {
    /// Resolves the folders; every one must exist.
    pub(crate) fn new(store: &Store, main: &Path, named: &BTreeMap<String, PathBuf>) -> Result<Contexts, Error> {
        let named: Result<_, Error> = named
            .iter()
            .map(|(name, path)| Ok((name.clone(), Root::new(store, path)?)))
            .collect();
        Ok(Contexts {
            main: Root::new(store, main)?,
            named: named?,
        })
    }

    pub(crate) fn main(&self) -> &Path {
        &self.main.path
    }

    /// The same named contexts around another main one.
    pub(crate) fn with_main(&self, store: &Store, main: &Path) -> Result<Contexts, Error> {
        Ok(Contexts {
            main: Root::new(store, main)?,
            named: self.named.clone(),
        })
    }

    /// Keeps the digests of what was read for the next build.
    pub(crate) fn remember(&self, store: &Store) {
        for root in self.named.values().chain([&self.main]) {
            root.digests.save(store);
        }
    }

    fn root(&self, name: Option<&str>) -> Result<&Root, Error> {
        let Some(name) = name else { return Ok(&self.main) };
        self.named.get(name).ok_or_else(|| {
            let hint = did_you_mean(name, self.named.keys().map(String::as_str));
            Error::Refused(format!(
                "there is no build context {name:?}{hint}: give one with --build-context {name}=FOLDER"
            ))
        })
    }

    /// The one existing path that `path` names in a context, links followed as long as they stay inside.
    pub(crate) fn inside(&self, name: Option<&str>, path: &str) -> Result<PathBuf, Error> {
        resolve(&self.root(name)?.path, path)
    }

    /// The existing paths that a path or pattern (`*`, `?` in names) stands for, sorted, each with its last name.
    pub(crate) fn find(&self, name: Option<&str>, pattern: &str) -> Result<Vec<(String, PathBuf)>, Error> {
        let root = self.root(name)?;
        if !pattern.contains(['*', '?']) {
            let name = plain_parts(pattern)?.pop().unwrap_or_default();
            let path = resolve(&root.path, pattern)?;
            return match root.left_out(&path)? {
                Some(why) => Err(Error::path(pattern, why)),
                None => Ok(vec![(name, path)]),
            };
        }
        let (mut found, mut reasons) = (Vec::new(), Vec::new());
        for path in matching(&root.path, pattern)? {
            let shown = path.display().to_string();
            let real = stay_inside(&root.path, &path, &shown)?;
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
            match root.left_out(&real)? {
                Some(why) => reasons.push(why),
                None => found.push((name.unwrap_or_default(), real)),
            }
        }
        match (found.is_empty(), reasons.pop()) {
            (false, _) => Ok(found),
            (true, None) => Err(Error::path(pattern, "nothing in the build context matches")),
            (true, Some(why)) => Err(Error::path(pattern, format!("nothing is left of what matches: {why}"))),
        }
    }

    /// What lies at a path that [`Contexts::find`] gave, without what is left out.
    pub(crate) fn walk(&self, name: Option<&str>, path: &Path) -> Result<Vec<(String, Entry)>, Error> {
        let root = self.root(name)?;
        let walk = Walk::new(Modes::Reduced, Links::Inside);
        walk.in_context(&root.ignore, &root.digests, &root.relative(path)?)
            .run(path)
    }
}

fn matching(root: &Path, pattern: &str) -> Result<Vec<PathBuf>, Error> {
    let mut found = vec![root.to_path_buf()];
    for part in plain_parts(pattern)? {
        let mut next = Vec::new();
        for folder in &found {
            let path = folder.join(&part);
            if !part.contains(['*', '?']) {
                next.extend(path.symlink_metadata().is_ok().then_some(path));
            } else if folder.is_dir() {
                let entries = list(folder)?.into_iter();
                next.extend(entries.filter(|(name, _)| matches(&part, name)).map(|(_, path)| path));
            }
        }
        found = next;
    }
    Ok(found)
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    struct Bench {
        dir: tempfile::TempDir,
        store: Store,
    }

    impl Bench {
        fn new() -> Bench {
            let dir = tempfile::tempdir().unwrap();
            let store = Store::open(&dir.path().join("store")).unwrap();
            let bench = Bench { dir, store };
            bench.write("a/b/x.yaml", "x");
            bench.write("a/b/.y.yaml", "y");
            bench.write("../outside", "z");
            bench
        }

        fn root(&self) -> PathBuf {
            self.dir.path().join("context")
        }

        fn write(&self, name: &str, text: &str) {
            let path = self.root().join(name);
            fs::create_dir_all(self.root()).unwrap();
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn contexts(&self) -> Contexts {
            let named = BTreeMap::from([("bin".into(), self.root().join("a"))]);
            Contexts::new(&self.store, &self.root(), &named).unwrap()
        }

        fn walked(&self, path: &str) -> Result<Vec<String>, String> {
            let contexts = self.contexts();
            let (_, path) = contexts.find(None, path).map_err(|e| e.to_string())?.remove(0);
            let entries = contexts.walk(None, &path).map_err(|e| e.to_string())?;
            Ok(entries.into_iter().map(|(path, _)| path).collect())
        }
    }

    #[test]
    fn patterns_find_visible_files_and_names_must_exist() {
        let bench = Bench::new();
        let contexts = bench.contexts();
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
        let bench = Bench::new();
        let root = bench.root();
        symlink(bench.dir.path().join("outside"), root.join("a/link")).unwrap();
        symlink("..", root.join("a/up")).unwrap();
        for path in ["a/link", "a/up/../outside", "a"] {
            assert!(bench.walked(path).unwrap_err().contains("leads out"), "{path}");
        }
        fs::remove_file(root.join("a/link")).unwrap();
        assert!(bench.walked("a").is_err(), "a/up leaves a");
        assert!(bench.walked(".").is_ok(), "within the whole context it stays inside");
    }

    #[test]
    fn what_is_left_out_is_not_there() {
        let bench = Bench::new();
        bench.write("a/b/keep/k", "k");
        bench.write("a/b/keep/no", "n");
        bench.write("a/gone/x", "x");
        bench.write(".dockerignore", "a\n");
        assert_eq!(
            bench.walked("a").unwrap_err(),
            "a: .dockerignore:1 leaves it out of the build context (a)"
        );
        bench.write(
            ".kubefileignore",
            "# the other file is not read\n**/no\na/gone\na/b\n!a/b/keep\n**/no\n",
        );
        assert_eq!(bench.walked("a").unwrap(), ["b", "b/keep", "b/keep/k"]);
        assert!(
            bench
                .walked("a/b/x.yaml")
                .unwrap_err()
                .contains(".kubefileignore:4 leaves it out")
        );
        assert_eq!(bench.walked("a/b/keep").unwrap(), ["k"]);
        assert_eq!(bench.walked("a/*/keep").unwrap(), ["k"]);
        assert!(
            bench
                .walked("a/b/*.yaml")
                .unwrap_err()
                .contains("nothing is left of what matches")
        );
        bench.write("a/b/keep/.dockerignore", "k");
        assert!(
            bench.walked("a/b/keep").unwrap().contains(&"k".to_string()),
            "only a context's own file counts"
        );
    }

    #[test]
    fn a_changed_file_is_read_again_and_an_unchanged_one_is_not() {
        let bench = Bench::new();
        let path = bench.root().join("a/b/x.yaml");
        let digest = |contexts: &Contexts| {
            let entries = contexts.walk(None, &path).unwrap();
            match &entries[0].1.kind {
                crate::tree::Kind::File { digest, .. } => digest.clone(),
                other => panic!("{other:?}"),
            }
        };
        // A file that was left alone for a while.
        let stamp = crate::digests::Stamp::of(&fs::metadata(&path).unwrap());
        let contexts = bench.contexts();
        contexts
            .main
            .digests
            .put("a/b/x.yaml", stamp, oci::Digest::of(b"as remembered"));
        contexts.remember(&bench.store);
        assert_eq!(digest(&bench.contexts()), oci::Digest::of(b"as remembered"));
        let modified = fs::metadata(&path).unwrap().modified().unwrap();
        // Same size, same time of modification; the inode of the old file is taken, so that the new one has another.
        let _old = fs::File::open(&path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "y").unwrap();
        fs::File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_modified(modified)
            .unwrap();
        assert_eq!(digest(&bench.contexts()), oci::Digest::of(b"y"));
    }
}
