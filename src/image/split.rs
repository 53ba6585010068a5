//! An archive in parts that fit on removable media: `NAME.000`, `NAME.001`, …, and `NAME.sha256`, which `sha256sum -c`
//! reads too.
//!
//! The list is written last: where it is, the parts are whole. Read back, the parts are one stream again, and each is
//! compared with the list as it passes.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use oci::{Digest, Hasher};
use tempfile::NamedTempFile;

use crate::error::Error;

/// More parts would need longer numbers, which sort badly.
const MOST_PARTS: u64 = 1000;
/// A list of so many parts is not larger than this, in bytes.
const LARGEST_LIST: u64 = 1 << 20;

/// The list's file for an archive that would be `base` in one piece.
fn list_path(base: &Path) -> PathBuf {
    let mut name = base.as_os_str().to_owned();
    name.push(".sha256");
    name.into()
}

fn part_path(base: &Path, number: usize) -> PathBuf {
    let mut name = base.as_os_str().to_owned();
    name.push(format!(".{number:03}"));
    name.into()
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The folder a file lies in.
pub(crate) fn folder_of(file: &Path) -> &Path {
    let parent = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    parent.unwrap_or(Path::new("."))
}

/// Gives a finished temporary file its name, durably and readable for everybody who may see the folder.
pub(crate) fn publish(file: NamedTempFile, path: &Path) -> Result<(), Error> {
    let cannot = |error| Error::io("cannot write", path)(error);
    file.as_file().sync_all().map_err(cannot)?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    fs::set_permissions(file.path(), mode).map_err(cannot)?;
    file.persist(path).map_err(|error| cannot(error.error))?;
    Ok(())
}

/// Writes one stream as parts. Dropped unfinished, it removes what it wrote.
pub(crate) struct PartsWriter {
    base: PathBuf,
    part_size: u64,
    current: Option<Part>,
    done: Vec<(PathBuf, Digest)>,
    /// Parts of an earlier archive of the same name.
    old: Vec<PathBuf>,
    finished: bool,
}

struct Part {
    file: NamedTempFile,
    hasher: Hasher,
    size: u64,
}

impl PartsWriter {
    /// Prepares to write `total` bytes as parts of at most `part_size`.
    pub(crate) fn new(base: &Path, part_size: u64, total: u64) -> Result<PartsWriter, Error> {
        let parts = total.div_ceil(part_size.max(1));
        if part_size == 0 || parts > MOST_PARTS {
            let smallest = total.div_ceil(MOST_PARTS);
            return Err(Error::Refused(format!(
                "parts of {part_size} bytes would be {parts}, more than {MOST_PARTS}; the smallest possible size is {smallest}"
            )));
        }
        let list = list_path(base);
        let old = Parts::read(&list).map(|parts| parts.parts.into_iter().map(|part| part.path).collect());
        match fs::remove_file(&list) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Error::io("cannot replace", &list)(error));
            }
            _ => {}
        }
        Ok(PartsWriter {
            base: base.to_path_buf(),
            part_size,
            current: None,
            done: Vec::new(),
            old: old.unwrap_or_default(),
            finished: false,
        })
    }

    fn end_part(&mut self) -> io::Result<()> {
        let Some(part) = self.current.take() else {
            return Ok(());
        };
        let path = part_path(&self.base, self.done.len());
        publish(part.file, &path).map_err(io::Error::other)?;
        self.done.push((path, part.hasher.finish()));
        Ok(())
    }

    /// Ends the last part and writes the list; gives all files, the list last.
    pub(crate) fn finish(mut self) -> Result<Vec<PathBuf>, Error> {
        let list = list_path(&self.base);
        let cannot = |error| Error::io("cannot write", &list)(error);
        self.end_part().map_err(cannot)?;
        let mut file = NamedTempFile::new_in(folder_of(&self.base)).map_err(cannot)?;
        for (path, digest) in &self.done {
            writeln!(file, "{}  {}", digest.hex(), file_name(path)).map_err(cannot)?;
        }
        publish(file, &list)?;
        self.finished = true;
        let mut files: Vec<PathBuf> = std::mem::take(&mut self.done)
            .into_iter()
            .map(|(path, _)| path)
            .collect();
        for old in self.old.iter().filter(|old| !files.contains(old)) {
            // Only confusing, not harmful.
            let _ = fs::remove_file(old);
        }
        files.push(list);
        Ok(files)
    }
}

impl Write for PartsWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.current.as_ref().is_some_and(|part| part.size == self.part_size) {
            self.end_part()?;
        }
        let part = match &mut self.current {
            Some(part) => part,
            none => none.insert(Part {
                file: NamedTempFile::new_in(folder_of(&self.base))?,
                hasher: Hasher::default(),
                size: 0,
            }),
        };
        let room = self.part_size - part.size;
        let size = usize::try_from(room).map_or(bytes.len(), |room| room.min(bytes.len()));
        let written = part.file.write(&bytes[..size])?;
        part.hasher.update(&bytes[..written]);
        part.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.current.as_mut().map_or(Ok(()), |part| part.file.flush())
    }
}

impl Drop for PartsWriter {
    fn drop(&mut self) {
        if !self.finished {
            for (path, _) in &self.done {
                let _ = fs::remove_file(path);
            }
        }
    }
}

/// The parts a list names, all of them there.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) list: PathBuf,
    parts: Vec<ListedPart>,
}

#[derive(Debug)]
struct ListedPart {
    path: PathBuf,
    name: String,
    digest: Digest,
}

impl Parts {
    /// The parts if `file` is a list of parts, or the first part beside one; none if it's something else.
    pub(crate) fn find(file: &Path) -> Result<Option<Parts>, Error> {
        let name = file_name(file);
        let list = if name.ends_with(".sha256") {
            file.to_path_buf()
        } else if let Some((_, number)) = name.rsplit_once('.')
            && number.len() == 3
            && number.bytes().all(|b| b.is_ascii_digit())
        {
            list_path(&file.with_extension(""))
        } else {
            return Ok(None);
        };
        if !list.exists() {
            if list == file {
                return Err(Error::io("cannot open", file)(io::ErrorKind::NotFound.into()));
            }
            let why = format!(
                "it is one part of several, but their list {} is not beside it; to do without, give all parts in their \
                 order to `load -i -`",
                list.display()
            );
            return Err(archive(file, why));
        }
        let parts = Parts::read(&list)?;
        let missing: Vec<&str> = parts
            .parts
            .iter()
            .filter(|part| !part.path.is_file())
            .map(|p| p.name.as_str())
            .collect();
        if !missing.is_empty() {
            return Err(archive(&list, format!("missing beside it: {}", missing.join(", "))));
        }
        Ok(Some(parts))
    }

    fn read(list: &Path) -> Result<Parts, Error> {
        let file = File::open(list).map_err(Error::io("cannot open", list))?;
        let size = file.metadata().map_err(Error::io("cannot read", list))?.len();
        if size > LARGEST_LIST {
            return Err(archive(
                list,
                format!("it has {size} bytes, and a list of parts at most {LARGEST_LIST}"),
            ));
        }
        let mut parts = Vec::new();
        for (index, line) in BufReader::new(file.take(LARGEST_LIST)).lines().enumerate() {
            let line = line.map_err(Error::io("cannot read", list))?;
            if line.is_empty() {
                continue;
            }
            let (digest, name) = list_line(&line).ok_or_else(|| {
                let why = format!(
                    "line {} is not a sha256 checksum, two blanks and a plain file name",
                    index + 1
                );
                archive(list, why)
            })?;
            if parts.iter().any(|part: &ListedPart| part.name == name) {
                return Err(archive(list, format!("it names {name} twice")));
            }
            let path = folder_of(list).join(&name);
            parts.push(ListedPart { path, name, digest });
        }
        if parts.is_empty() {
            return Err(archive(list, "it names no part"));
        }
        let list = list.to_path_buf();
        Ok(Parts { list, parts })
    }

    /// Bytes of all parts.
    pub(crate) fn size(&self) -> u64 {
        let sizes = self
            .parts
            .iter()
            .map(|part| fs::metadata(&part.path).map_or(0, |meta| meta.len()));
        sizes.sum()
    }

    pub(crate) fn reader(self) -> PartsReader {
        PartsReader {
            parts: self,
            next: 0,
            current: None,
            damaged: Vec::new(),
        }
    }
}

/// `<64 hex digits>  <name>`, as `sha256sum` writes it (a `*` before the name means binary).
fn list_line(line: &str) -> Option<(Digest, String)> {
    let (hex, name) = line.trim_end_matches('\r').split_once(' ')?;
    let name = name.strip_prefix([' ', '*'])?;
    let plain = !name.is_empty() && !name.contains(['/', '\0']) && name != "." && name != "..";
    let digest = format!("sha256:{hex}").parse().ok()?;
    plain.then(|| (digest, name.to_string()))
}

fn archive(path: &Path, reason: impl Into<String>) -> Error {
    Error::Archive {
        archive: path.to_path_buf(),
        reason: reason.into(),
    }
}

/// The parts as one stream. A damaged part ends it with an error.
pub(crate) struct PartsReader {
    parts: Parts,
    next: usize,
    current: Option<(File, Hasher)>,
    damaged: Vec<String>,
}

impl PartsReader {
    /// Reads what is left, and gives the names of all damaged parts.
    pub(crate) fn damaged(mut self) -> Vec<String> {
        let mut buffer = vec![0; crate::io::CHUNK];
        // An error ends a part, and reading goes on with the next.
        while self.next < self.parts.parts.len() || self.current.is_some() {
            let _ = self.read(&mut buffer);
        }
        self.damaged
    }

    fn bad(&mut self, index: usize, why: &str) -> io::Error {
        let name = self.parts.parts[index].name.clone();
        let error = io::Error::other(format!("part {name} is damaged: {why}"));
        self.damaged.push(name);
        error
    }
}

impl Read for PartsReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            let Some((file, hasher)) = &mut self.current else {
                let Some(part) = self.parts.parts.get(self.next) else {
                    return Ok(0);
                };
                let opened = File::open(&part.path);
                self.next += 1;
                match opened {
                    Ok(file) => self.current = Some((file, Hasher::default())),
                    Err(error) => return Err(self.bad(self.next - 1, &error.to_string())),
                }
                continue;
            };
            match file.read(buffer) {
                Ok(0) => {
                    let found = std::mem::take(hasher).finish();
                    self.current = None;
                    if found != self.parts.parts[self.next - 1].digest {
                        let why = format!("its checksum is {}", found.hex());
                        return Err(self.bad(self.next - 1, &why));
                    }
                }
                Ok(read) => {
                    hasher.update(&buffer[..read]);
                    return Ok(read);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.current = None;
                    return Err(self.bad(self.next - 1, &error.to_string()));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn write(base: &Path, part_size: u64, content: &[u8]) -> Result<Vec<PathBuf>, Error> {
        let mut writer = PartsWriter::new(base, part_size, content.len() as u64)?;
        writer.write_all(content).map_err(Error::io("cannot write", base))?;
        writer.finish()
    }

    fn read(file: &Path) -> Result<Vec<u8>, Vec<String>> {
        let mut reader = Parts::find(file).unwrap().unwrap().reader();
        let mut content = Vec::new();
        match reader.read_to_end(&mut content) {
            Ok(_) => Ok(content),
            Err(_) => Err(reader.damaged()),
        }
    }

    proptest! {
        #[test]
        fn parts_are_the_stream_again(content in proptest::collection::vec(any::<u8>(), 1..4000), size in 5u64..700) {
            let dir = tempfile::tempdir().unwrap();
            let base = dir.path().join("a.tar");
            let files = write(&base, size, &content).unwrap();
            prop_assert_eq!(files.len() as u64, (content.len() as u64).div_ceil(size) + 1);
            for file in &files[..files.len() - 1] {
                prop_assert!(fs::metadata(file).unwrap().len() <= size);
            }
            prop_assert_eq!(read(&files[0]).unwrap(), content.clone());
            prop_assert_eq!(read(files.last().unwrap()).unwrap(), content);
        }
    }

    #[test]
    fn every_damaged_or_missing_part_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("a.tar");
        let files = write(&base, 10, &[7; 45]).unwrap();
        assert_eq!(files.len(), 6);
        for (index, content) in [(1, &b"short"[..]), (3, b"0123456789")] {
            fs::write(&files[index], content).unwrap();
        }
        assert_eq!(read(&files[0]).unwrap_err(), ["a.tar.001", "a.tar.003"]);
        fs::remove_file(&files[2]).unwrap();
        fs::remove_file(&files[4]).unwrap();
        let error = Parts::find(&files[0]).unwrap_err().to_string();
        assert!(
            error.contains("a.tar.sha256 is refused: missing beside it: a.tar.002, a.tar.004"),
            "{error}"
        );
        fs::remove_file(dir.path().join("a.tar.sha256")).unwrap();
        let error = Parts::find(&files[0]).unwrap_err().to_string();
        assert!(
            error.contains("their list") && error.contains("is not beside it"),
            "{error}"
        );
        assert!(Parts::find(&base).unwrap().is_none());
    }

    #[test]
    fn a_list_names_only_plain_files_beside_it() {
        let hex = "a".repeat(64);
        for (line, good) in [
            (format!("{hex}  a.tar.000"), true),
            (format!("{hex} *a.tar.000\r"), true),
            (format!("{hex}  ../a"), false),
            (format!("{hex}  /etc/passwd"), false),
            (format!("{hex}  .."), false),
            (format!("{hex} a"), false),
            (format!("{hex}  "), false),
            ("abc  a".to_string(), false),
        ] {
            assert_eq!(list_line(&line).is_some(), good, "{line}");
        }
    }

    #[test]
    fn a_shorter_archive_takes_the_place_of_a_longer_one_and_a_broken_off_one_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("a.tar");
        write(&base, 10, &[1; 45]).unwrap();
        let files = write(&base, 10, &[2; 15]).unwrap();
        assert_eq!(read(&files[0]).unwrap(), [2; 15]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
        let mut writer = PartsWriter::new(&base, 10, 100).unwrap();
        writer.write_all(&[3; 35]).unwrap();
        drop(writer);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        let error = write(&base, 1, &[0; 2000]).unwrap_err().to_string();
        assert!(error.contains("the smallest possible size is 2"), "{error}");
    }
}
