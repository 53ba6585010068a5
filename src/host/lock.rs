//! One installer at a time per host.
//!
//! The lock is the kernel's (`flock`), so it cannot outlive its holder; the file only says who holds it and goes when it is released.

use std::{
    fs::{self, File, TryLockError},
    io::{Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::PathBuf,
    time::{Duration, Instant},
};

use crate::{Error, Result, fsops::Root, proto::FaultKind};

/// Held until dropped.
#[derive(Debug)]
pub(crate) struct HostLock {
    file: File,
    path: PathBuf,
}

impl HostLock {
    /// Takes the lock; a holder that is just ending is waited for up to `patience`.
    pub(crate) fn take(root: &Root, who: &str, patience: Duration) -> Result<Self> {
        let path = root.path("/run/installer.lock")?;
        let begun = Instant::now();
        loop {
            let mut file = fs::OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&path)
                .map_err(Error::io(&path))?;
            match file.try_lock() {
                // The holder before us removed the file between our opening and locking it: that lock protects nothing.
                Ok(())
                    if fs::metadata(&path)
                        .is_ok_and(|now| file.metadata().is_ok_and(|ours| ours.ino() == now.ino())) =>
                {
                    file.set_len(0)
                        .and_then(|()| file.write_all(format!("{who} (pid {})", std::process::id()).as_bytes()))
                        .map_err(Error::io(&path))?;
                    return Ok(Self { file, path });
                }
                Ok(()) => {}
                Err(TryLockError::WouldBlock) if begun.elapsed() > patience => {
                    let mut holder = String::new();
                    let _ = file.read_to_string(&mut holder);
                    return Err(Error::new(
                        FaultKind::Locked,
                        format!(
                            "another installer works on this host: {}; wait for it, or stop it",
                            holder.trim()
                        ),
                    ));
                }
                Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(20)),
                Err(TryLockError::Error(e)) => return Err(Error::io(&path)(e)),
            }
        }
    }
}

impl Drop for HostLock {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
        let _ = self.file.unlock();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_installer_is_told_who_is_first() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("run")).unwrap();
        let root = Root::at(dir.path());
        let first = HostLock::take(&root, "apply of demo by ann@laptop", Duration::ZERO).unwrap();
        let error = HostLock::take(&root, "bob", Duration::from_millis(30))
            .unwrap_err()
            .to_string();
        assert!(error.contains("ann@laptop"), "{error}");
        drop(first);
        HostLock::take(&root, "bob", Duration::ZERO).unwrap();
        assert!(!dir.path().join("run/installer.lock").exists());
    }
}
