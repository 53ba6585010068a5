//! Container logs: the CRI line format, reading from the end, following, rotation.
//!
//! A line is `RFC3339Nano stdout|stderr F|P text`; `P` parts are joined with the next.

use crate::ctx::Ctx;
use crate::observed::State;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncSeekExt, BufReader};

/// A parsed line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line<'a> {
    /// As written.
    pub time: &'a [u8],
    /// Whether it came from standard error.
    pub stderr: bool,
    /// Whether the line goes on in the next.
    pub partial: bool,
    /// The text, without line end.
    pub text: &'a [u8],
}

/// Parses a line; `None` if it is not in the format.
pub fn parse(line: &[u8]) -> Option<Line<'_>> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let mut parts = line.splitn(4, |b| *b == b' ');
    let (time, stream, tag) = (parts.next()?, parts.next()?, parts.next()?);
    let stderr = match stream {
        b"stdout" => false,
        b"stderr" => true,
        _ => return None,
    };
    let partial = tag.split(|b| *b == b':').next()? == b"P";
    Some(Line {
        time,
        stderr,
        partial,
        text: parts.next().unwrap_or_default(),
    })
}

/// Offset of the last `lines` lines of a file.
pub fn tail_offset(file: &mut std::fs::File, lines: usize) -> std::io::Result<u64> {
    let end = file.seek(SeekFrom::End(0))?;
    if lines == 0 {
        return Ok(end);
    }
    const BLOCK: u64 = 8192;
    let (mut at, mut seen) = (end, 0usize);
    let mut buffer = vec![0u8; BLOCK as usize];
    while at > 0 {
        let from = at.saturating_sub(BLOCK);
        let block = &mut buffer[..(at - from) as usize];
        file.seek(SeekFrom::Start(from))?;
        file.read_exact(block)?;
        for i in (0..block.len()).rev() {
            let offset = from + i as u64;
            if block[i] == b'\n' && offset + 1 != end {
                seen += 1;
                if seen == lines {
                    return Ok(offset + 1);
                }
            }
        }
        at = from;
    }
    Ok(0)
}

/// Text of the last lines of a log, at most `bytes`; empty if it cannot be read.
pub fn tail_text(path: &Path, lines: usize, bytes: usize) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = std::fs::File::open(path)?;
        let from = tail_offset(&mut file, lines)?;
        // The format's own overhead is at most a few tens of bytes a line.
        let end = file.seek(SeekFrom::End(0))?;
        let from = from.max(end.saturating_sub((bytes + lines * 64) as u64 * 2));
        file.seek(SeekFrom::Start(from))?;
        let mut all = vec![];
        file.read_to_end(&mut all)?;
        Ok(all)
    };
    let Ok(raw) = read() else { return String::new() };
    let mut out = vec![];
    for line in raw.split_inclusive(|b| *b == b'\n') {
        if let Some(l) = parse(line) {
            out.extend_from_slice(l.text);
            if !l.partial {
                out.push(b'\n');
            }
        }
    }
    let from = out.len().saturating_sub(bytes);
    String::from_utf8_lossy(&out[from..]).into_owned()
}

/// Which part of a log is wanted, as in PodLogOptions.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Go on as it grows, until the container ends.
    pub follow: bool,
    /// Last lines only.
    pub tail: Option<usize>,
    /// Not older than this.
    pub since: Option<k8s_openapi::jiff::Timestamp>,
    /// With times.
    pub timestamps: bool,
    /// At most this many bytes.
    pub limit: Option<u64>,
    /// Only standard output (`false`) or error (`true`).
    pub stream: Option<bool>,
}

/// Turns parsed lines into output bytes; remembers what spans lines.
#[derive(Debug)]
pub struct Filter {
    options: Options,
    left: u64,
    continued: [bool; 2],
}

impl Filter {
    /// For options.
    pub fn new(options: Options) -> Filter {
        Filter {
            left: options.limit.unwrap_or(u64::MAX),
            options,
            continued: [false; 2],
        }
    }

    /// Whether the byte limit is reached.
    pub fn full(&self) -> bool {
        self.left == 0
    }

    /// The output for one raw line.
    pub fn line(&mut self, raw: &[u8]) -> Vec<u8> {
        let Some(l) = parse(raw) else { return vec![] };
        let continued = std::mem::replace(&mut self.continued[usize::from(l.stderr)], l.partial);
        if self.options.stream.is_some_and(|s| s != l.stderr) {
            return vec![];
        }
        if let Some(since) = self.options.since {
            let time = std::str::from_utf8(l.time)
                .ok()
                .and_then(|t| t.parse::<k8s_openapi::jiff::Timestamp>().ok());
            if time.is_some_and(|t| t < since) {
                return vec![];
            }
        }
        let mut out = vec![];
        if self.options.timestamps && !continued {
            out.extend_from_slice(l.time);
            out.push(b' ');
        }
        out.extend_from_slice(l.text);
        if !l.partial {
            out.push(b'\n');
        }
        let take = usize::try_from(self.left).unwrap_or(usize::MAX).min(out.len());
        out.truncate(take);
        self.left -= take as u64;
        out
    }
}

/// Sends a container's log piece by piece. `alive` tells whether the container still runs.
pub async fn stream(
    path: PathBuf,
    options: Options,
    alive: impl Fn() -> bool,
    sender: tokio::sync::mpsc::Sender<bytes::Bytes>,
) -> std::io::Result<()> {
    let follow = options.follow;
    let mut file = std::fs::File::open(&path)?;
    let from = match options.tail {
        Some(lines) => tail_offset(&mut file, lines)?,
        None => 0,
    };
    let mut filter = Filter::new(options);
    let mut reader = open_at(&path, from).await?;
    let mut line = vec![];
    let mut last_look = false;
    loop {
        let read = reader.read_until(b'\n', &mut line).await?;
        if read > 0 && line.ends_with(b"\n") {
            let out = filter.line(&line);
            line.clear();
            last_look = false;
            if !out.is_empty() && sender.send(out.into()).await.is_err() || filter.full() {
                return Ok(());
            }
            continue;
        }
        if !follow {
            let out = filter.line(&line);
            if !out.is_empty() {
                let _ = sender.send(out.into()).await;
            }
            return Ok(());
        }
        // At the end: a renamed file was rotated, its successor begins at 0; a dead container writes no more.
        if rotated(&reader, &path) && line.is_empty() {
            reader = open_at(&path, 0).await?;
            continue;
        }
        if !alive() {
            if last_look {
                return Ok(());
            }
            last_look = true;
            continue;
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(200)) => {}
            () = sender.closed() => return Ok(()),
        }
    }
}

async fn open_at(path: &Path, offset: u64) -> std::io::Result<BufReader<tokio::fs::File>> {
    let mut file = tokio::fs::File::open(path).await?;
    file.seek(SeekFrom::Start(offset)).await?;
    Ok(BufReader::new(file))
}

fn rotated(reader: &BufReader<tokio::fs::File>, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let (Ok(own), Ok(now)) = (rustix::fs::fstat(reader.get_ref()), std::fs::metadata(path)) else {
        return false;
    };
    own.st_ino != now.ino()
}

/// Rotates logs that have grown too large, for ever.
pub async fn rotate(ctx: Arc<Ctx>) {
    let max = ctx.config.log_max_bytes().unwrap_or(10 << 20);
    let mut ticks = tokio::time::interval(Duration::from_secs(10));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        for p in ctx.relist.snapshot().values() {
            for c in p
                .observed
                .containers
                .iter()
                .filter(|c| c.state == State::Running && !c.log_path.is_empty())
            {
                let path = PathBuf::from(&c.log_path);
                if std::fs::metadata(&path).is_ok_and(|m| m.len() > max)
                    && let Err(e) = rotate_one(&ctx, &path, &c.id).await
                {
                    tracing::warn!(log = c.log_path, "rotation: {e}");
                }
            }
        }
    }
}

async fn rotate_one(ctx: &Ctx, path: &Path, id: &str) -> crate::error::Result<()> {
    use crate::error::Error;
    let stamp = k8s_openapi::jiff::Timestamp::now().strftime("%Y%m%d-%H%M%S");
    let rotated = PathBuf::from(format!("{}.{stamp}", path.display()));
    std::fs::rename(path, &rotated).map_err(Error::io("rename", path))?;
    if let Err(e) = ctx.cri.reopen_log(id).await {
        // Without a successor the container would go on writing into the renamed file: put it back.
        std::fs::rename(&rotated, path).map_err(Error::io("rename", &rotated))?;
        return Err(e);
    }
    let keep = ctx.config.container_log_max_files.saturating_sub(1) as usize;
    let (Some(dir), Some(name)) = (
        path.parent(),
        path.file_name().map(|n| format!("{}.", n.to_string_lossy())),
    ) else {
        return Ok(());
    };
    let mut old: Vec<PathBuf> = std::fs::read_dir(dir)
        .map_err(Error::io("read", dir))?
        .flatten()
        .filter(|e| e.file_name().to_string_lossy().starts_with(&name))
        .map(|e| e.path())
        .collect();
    old.sort();
    for path in old.iter().rev().skip(keep) {
        std::fs::remove_file(path).map_err(Error::io("remove", path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn lines_are_parsed() {
        for (raw, expected) in [
            (
                &b"2024-01-01T00:00:00.5Z stdout F hello world\n"[..],
                Some((false, false, &b"hello world"[..])),
            ),
            (b"2024-01-01T00:00:00.5Z stderr P part", Some((true, true, b"part"))),
            (b"2024-01-01T00:00:00.5Z stdout F\n", Some((false, false, b""))),
            (b"2024-01-01T00:00:00.5Z stdout F:x y\n", Some((false, false, b"y"))),
            (b"garbage", None),
            (b"t stdin F x", None),
        ] {
            assert_eq!(parse(raw).map(|l| (l.stderr, l.partial, l.text)), expected);
        }
    }

    fn log(lines: &[&str]) -> tempfile::NamedTempFile {
        let mut f = tempfile::NamedTempFile::new().unwrap();
        for l in lines {
            writeln!(f, "{l}").unwrap();
        }
        f
    }

    #[test]
    fn the_tail_is_found_from_the_end() {
        let long = "x".repeat(9000);
        let f = log(&["one", &long, "three"]);
        let mut file = std::fs::File::open(f.path()).unwrap();
        let text_at = |offset: u64| {
            let mut s = String::new();
            let mut file = std::fs::File::open(f.path()).unwrap();
            file.seek(SeekFrom::Start(offset)).unwrap();
            file.read_to_string(&mut s).unwrap();
            s
        };
        assert_eq!(text_at(tail_offset(&mut file, 1).unwrap()), "three\n");
        assert!(text_at(tail_offset(&mut file, 2).unwrap()).starts_with("xxx"));
        assert_eq!(tail_offset(&mut file, 3).unwrap(), 0);
        assert_eq!(tail_offset(&mut file, 9).unwrap(), 0);
        assert_eq!(text_at(tail_offset(&mut file, 0).unwrap()), "");
    }

    #[test]
    fn the_filter_joins_parts_and_honours_limits() {
        let mut f = Filter::new(Options {
            timestamps: true,
            limit: Some(12),
            ..Options::default()
        });
        assert_eq!(f.line(b"2024-01-01T00:00:00Z stdout P ab\n").len(), 12);
        assert!(f.full());
        let since = "2024-01-02T00:00:00Z".parse().unwrap();
        let mut f = Filter::new(Options {
            since: Some(since),
            ..Options::default()
        });
        assert_eq!(f.line(b"2024-01-01T00:00:00Z stdout F old\n"), b"");
        assert_eq!(f.line(b"2024-01-03T00:00:00Z stdout P a\n"), b"a");
        assert_eq!(f.line(b"2024-01-03T00:00:00Z stdout F b\n"), b"b\n");
    }

    #[test]
    fn the_text_of_the_tail_has_no_format_left() {
        let f = log(&["2024-01-01T00:00:00Z stdout F a", "2024-01-01T00:00:00Z stderr F b"]);
        assert_eq!(tail_text(f.path(), 80, 2048), "a\nb\n");
        assert_eq!(tail_text(f.path(), 1, 2048), "b\n");
    }
}
