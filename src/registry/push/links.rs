//! Which pushed blobs a repository has although no manifest of it names them (yet).
//!
//! A link is an empty file `links/<blob>/<repository>`, so it outlives a restart and needs no memory. Its age is the time since the
//! blob was pushed or last asked for; old links are removed by [`crate::push::sweep`]. Only blobs that have or had a link are ever
//! removed from a store: what came another way belongs to somebody else.

use std::{
    fs::{self, File},
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use oci::Digest;

use crate::catalog::Id;

/// The links of a store.
#[derive(Debug, Clone)]
pub struct Links {
    dir: PathBuf,
}

/// The repositories that a blob is linked to.
#[derive(Debug)]
pub struct Linked {
    /// The blob.
    pub digest: Digest,
    /// How old each link is.
    pub ages: Vec<(PathBuf, Duration)>,
}

impl Links {
    /// The links in a folder, which is made when the first link is.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    fn of_blob(&self, id: &Id) -> PathBuf {
        self.dir.join(id.hex())
    }

    fn path(&self, id: &Id, repository: &str) -> PathBuf {
        // Repositories have longer names than files may have.
        self.of_blob(id).join(Digest::of(repository.as_bytes()).hex())
    }

    /// Links a blob to a repository, or makes its link new again.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn add(&self, id: &Id, repository: &str) -> io::Result<()> {
        fs::create_dir_all(self.of_blob(id))?;
        let file = File::create(self.path(id, repository))?;
        file.set_modified(SystemTime::now())
    }

    /// Makes a link new again; `false` if there is none.
    ///
    /// # Errors
    /// When it is there and cannot be changed.
    pub fn renew(&self, id: &Id, repository: &str) -> io::Result<bool> {
        match File::options().append(true).open(self.path(id, repository)) {
            Ok(file) => file.set_modified(SystemTime::now()).map(|()| true),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether the repository has the blob by a link.
    pub fn has(&self, id: &Id, repository: &str) -> bool {
        self.path(id, repository).is_file()
    }

    /// Whether any repository has the blob by a link.
    pub fn any(&self, id: &Id) -> bool {
        fs::read_dir(self.of_blob(id)).is_ok_and(|mut entries| entries.next().is_some())
    }

    /// Takes a link away; `false` if there is none.
    ///
    /// # Errors
    /// When it is there and cannot be removed.
    pub fn remove(&self, id: &Id, repository: &str) -> io::Result<bool> {
        self.unlink(&self.path(id, repository))
    }

    /// Removes one of [`Linked::ages`]' files; `false` if it is gone.
    ///
    /// # Errors
    /// When it is there and cannot be removed.
    pub fn unlink(&self, link: &Path) -> io::Result<bool> {
        match fs::remove_file(link) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Removes a blob's empty folder; `false` if the blob has links. Nobody may add links meanwhile.
    pub fn tidy(&self, id: &Id) -> bool {
        fs::remove_dir(self.of_blob(id)).is_ok() || !self.any(id)
    }

    /// All linked blobs with the ages of their links.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn list(&self) -> io::Result<Vec<Linked>> {
        let now = SystemTime::now();
        let mut found = Vec::new();
        for folder in entries(&self.dir)? {
            let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let Ok(digest) = format!("sha256:{name}").parse() else {
                continue;
            };
            let mut ages = Vec::new();
            for link in entries(&folder)? {
                let modified = fs::metadata(&link)?.modified()?;
                ages.push((link, now.duration_since(modified).unwrap_or_default()));
            }
            found.push(Linked { digest, ages });
        }
        Ok(found)
    }
}

/// The paths in a folder; an absent folder has none.
///
/// # Errors
/// When the folder cannot be read.
pub fn entries(dir: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(dir) {
        Ok(entries) => entries.map(|entry| entry.map(|entry| entry.path())).collect(),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_belongs_to_the_repositories_it_is_linked_to() {
        let dir = tempfile::tempdir().unwrap();
        let links = Links::new(dir.path().join("links"));
        let digest = Digest::of(b"blob");
        let id = Id::from(&digest);
        assert!(!links.any(&id) && links.list().unwrap().is_empty());
        let long = "a/".repeat(120) + "b";
        links.add(&id, "localhost/a").unwrap();
        links.add(&id, &long).unwrap();
        assert!(links.has(&id, "localhost/a") && links.has(&id, &long) && !links.has(&id, "localhost/b"));
        let listed = links.list().unwrap();
        assert_eq!((listed.len(), listed[0].ages.len(), &listed[0].digest), (1, 2, &digest));
        assert!(links.remove(&id, "localhost/a").unwrap());
        assert!(!links.remove(&id, "localhost/a").unwrap());
        assert!(links.any(&id));
        links.unlink(&links.list().unwrap()[0].ages[0].0).unwrap();
        assert!(!links.any(&id) && links.tidy(&id) && links.list().unwrap().is_empty());
    }

    #[test]
    fn a_link_is_renewed_only_where_there_is_one() {
        let dir = tempfile::tempdir().unwrap();
        let links = Links::new(dir.path());
        let id = Id::from(&Digest::of(b"blob"));
        assert!(!links.renew(&id, "localhost/a").unwrap());
        links.add(&id, "localhost/a").unwrap();
        let link = File::options()
            .append(true)
            .open(links.path(&id, "localhost/a"))
            .unwrap();
        link.set_modified(SystemTime::now() - Duration::from_secs(100)).unwrap();
        assert!(links.list().unwrap()[0].ages[0].1 >= Duration::from_secs(100));
        assert!(links.renew(&id, "localhost/a").unwrap());
        assert!(links.list().unwrap()[0].ages[0].1 < Duration::from_secs(100));
        assert!(!links.tidy(&id), "a link is there");
    }
}
