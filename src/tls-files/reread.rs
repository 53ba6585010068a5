//! A value that is made from files, and made anew once one of them has changed.
//!
//! The files are looked at whenever the value is asked for: three calls of `stat` for a TLS handshake are cheap, and what
//! was written before a connection begins is in force for it.

use std::fmt::{self, Debug};
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use crate::Error;

/// What of a file changes with its content; nothing where the file cannot be looked at.
type Stamp = Option<(u64, u64, u64, i64, i64)>;

type Make<T> = Box<dyn Fn() -> Result<T, Error> + Send + Sync>;

struct State<T> {
    stamps: Vec<Stamp>,
    value: Arc<T>,
}

/// A value that follows its files.
pub struct Reread<T> {
    paths: Vec<PathBuf>,
    make: Make<T>,
    state: Mutex<State<T>>,
}

impl<T> Reread<T> {
    /// Makes the value from files for the first time.
    ///
    /// # Errors
    /// That of `make`.
    pub fn new(
        paths: Vec<PathBuf>,
        make: impl Fn() -> Result<T, Error> + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        // First the stamps, then the content: what is written in between is noticed the next time.
        let stamps = stamps(&paths);
        let value = Arc::new(make()?);
        Ok(Self {
            paths,
            make: Box::new(make),
            state: Mutex::new(State { stamps, value }),
        })
    }

    /// The value of the files as they are now; the one before where they cannot be used.
    pub fn current(&self) -> Arc<T> {
        let stamps = stamps(&self.paths);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if stamps != state.stamps {
            // Files that cannot be used are looked at again when they change again.
            state.stamps = stamps;
            match (self.make)() {
                Ok(value) => {
                    tracing::info!(files = ?self.paths, "TLS files have changed and were read again");
                    state.value = Arc::new(value);
                }
                Err(error) => {
                    tracing::warn!(%error, files = ?self.paths, "changed TLS files cannot be used; those before stay in force");
                }
            }
        }
        Arc::clone(&state.value)
    }
}

impl<T> Debug for Reread<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reread")
            .field("paths", &self.paths)
            .finish_non_exhaustive()
    }
}

fn stamps(paths: &[PathBuf]) -> Vec<Stamp> {
    let stamp = |m: Metadata| (m.dev(), m.ino(), m.size(), m.mtime(), m.mtime_nsec());
    paths.iter().map(|p| std::fs::metadata(p).ok().map(stamp)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_made_once_for_each_state_of_its_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("number");
        let made = Arc::new(Mutex::new(0));
        std::fs::write(&path, "1").unwrap();
        let (from, counter) = (path.clone(), Arc::clone(&made));
        let read = move || {
            *counter.lock().unwrap() += 1;
            let text = std::fs::read_to_string(&from).unwrap_or_default();
            text.parse::<u32>()
                .map_err(|_| Error::Rustls(rustls::Error::NoCertificatesPresented))
        };
        let value = Reread::new(vec![path.clone()], read).unwrap();
        assert_eq!((*value.current(), *value.current(), *made.lock().unwrap()), (1, 1, 1));
        std::fs::write(&path, "22").unwrap();
        assert_eq!((*value.current(), *value.current(), *made.lock().unwrap()), (22, 22, 2));
        std::fs::write(&path, "rubbish").unwrap();
        assert_eq!((*value.current(), *value.current(), *made.lock().unwrap()), (22, 22, 3));
        std::fs::rename(dir.path().join("number"), dir.path().join("away")).unwrap();
        assert_eq!(*value.current(), 22);
    }
}
