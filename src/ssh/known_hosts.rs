//! OpenSSH's `known_hosts` (sshd(8), «SSH_KNOWN_HOSTS FILE FORMAT»): who is known, by which keys.
//!
//! Deciding is pure; [`load`] and [`append`] are the only functions that touch files. `@cert-authority` lines are about certificates
//! only: see [`authorities`]. `@revoked` lines are about both.

use std::{
    fs,
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use aws_lc_rs::hmac;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use russh::keys::{Algorithm, HashAlg, PublicKey};

/// A file and its lines; an absent file is an empty one.
#[derive(Clone, Debug, Default)]
pub struct File {
    /// Where it lies.
    pub path: PathBuf,
    /// What it says.
    pub text: String,
}

/// What the files say about a key shown by a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is the host's key.
    Known,
    /// No line is about this host.
    Unknown,
    /// The host is known by other keys.
    Changed {
        /// By which.
        expected: Vec<Entry>,
    },
    /// The key is revoked for this host.
    Revoked {
        /// `file:line`.
        place: String,
    },
}

/// A key that a file names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: PublicKey,
    /// Which file.
    pub file: PathBuf,
    /// Which line, from 1.
    pub line: usize,
}

impl Entry {
    /// `file:line`.
    pub fn place(&self) -> String {
        format!("{}:{}", self.file.display(), self.line)
    }
}

impl std::fmt::Display for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} {} ({})",
            self.key.algorithm(),
            fingerprint(&self.key),
            self.place()
        )
    }
}

/// How a host is written in the file: `name`, or `[name]:port` if the port is not 22.
pub fn host_token(host: &str, port: u16) -> String {
    let host = host.to_ascii_lowercase();
    if port == 22 { host } else { format!("[{host}]:{port}") }
}

/// `SHA256:…` of a key.
pub fn fingerprint(key: &PublicKey) -> String {
    key.fingerprint(HashAlg::Sha256).to_string()
}

struct Line<'a> {
    revoked: bool,
    authority: bool,
    hosts: &'a str,
    entry: Entry,
}

/// Lines that cannot be understood are passed over, as OpenSSH does.
fn lines(files: &[File]) -> impl Iterator<Item = Line<'_>> {
    files.iter().flat_map(|file| {
        file.text.lines().enumerate().filter_map(|(number, line)| {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                return None;
            }
            let mut words = line.split_ascii_whitespace();
            let mut hosts = words.next()?;
            let marker = hosts.starts_with('@').then_some(hosts);
            if marker.is_some() {
                hosts = words.next()?;
            }
            let key = PublicKey::from_openssh(&format!("{} {}", words.next()?, words.next()?)).ok()?;
            let entry = Entry {
                key,
                file: file.path.clone(),
                line: number + 1,
            };
            Some(Line {
                revoked: marker == Some("@revoked"),
                authority: marker == Some("@cert-authority"),
                hosts,
                entry,
            })
        })
    })
}

fn matches(hosts: &str, token: &str) -> bool {
    if let Some(hashed) = hosts.strip_prefix("|1|") {
        return matches_hash(hashed, token).unwrap_or(false);
    }
    let mut found = false;
    for pattern in hosts.split(',') {
        match pattern.strip_prefix('!') {
            Some(not) if glob(&not.to_ascii_lowercase(), token) => return false,
            None if glob(&pattern.to_ascii_lowercase(), token) => found = true,
            _ => {}
        }
    }
    found
}

fn matches_hash(hashed: &str, token: &str) -> Option<bool> {
    let (salt, hash) = hashed.split_once('|')?;
    let (salt, hash) = (STANDARD.decode(salt).ok()?, STANDARD.decode(hash).ok()?);
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, &salt);
    Some(hmac::verify(&key, token.as_bytes(), &hash).is_ok())
}

/// `*` and `?` as in OpenSSH's patterns; brackets are literal.
pub(crate) fn glob(pattern: &str, text: &str) -> bool {
    let (p, t) = (pattern.as_bytes(), text.as_bytes());
    let (mut i, mut j, mut star) = (0, 0, None);
    while j < t.len() {
        match p.get(i) {
            Some(b'*') => {
                star = Some((i, j));
                i += 1;
            }
            Some(&c) if c == b'?' || c == t[j] => {
                i += 1;
                j += 1;
            }
            _ => match star {
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    i = at + 1;
                    j = from + 1;
                }
                None => return false,
            },
        }
    }
    p[i..].iter().all(|&c| c == b'*')
}

fn same(a: &PublicKey, b: &PublicKey) -> bool {
    a.key_data() == b.key_data()
}

/// What `files` say about `key` shown by `host`. A host that is known only by keys of other types counts as changed: the key exchange asks
/// for the known types first, so an honest server would have shown one of them.
pub fn check(files: &[File], host: &str, port: u16, key: &PublicKey) -> Verdict {
    let verdict = check_token(files, &host_token(host, port), key);
    if verdict == Verdict::Unknown && port != 22 && check_token(files, &host_token(host, 22), key) == Verdict::Known {
        return Verdict::Known;
    }
    verdict
}

fn check_token(files: &[File], token: &str, key: &PublicKey) -> Verdict {
    let about: Vec<Line<'_>> = lines(files)
        .filter(|l| !l.authority && matches(l.hosts, token))
        .collect();
    if let Some(line) = about.iter().find(|l| l.revoked && same(&l.entry.key, key)) {
        return Verdict::Revoked {
            place: line.entry.place(),
        };
    }
    let valid: Vec<&Line<'_>> = about.iter().filter(|l| !l.revoked).collect();
    if valid.is_empty() {
        Verdict::Unknown
    } else if valid.iter().any(|l| same(&l.entry.key, key)) {
        Verdict::Known
    } else {
        Verdict::Changed {
            expected: valid.iter().map(|l| l.entry.clone()).collect(),
        }
    }
}

/// The lines about a host, also those that name it without its port.
fn about<'f>(files: &'f [File], host: &str, port: u16) -> impl Iterator<Item = Line<'f>> {
    let tokens = [host_token(host, port), host_token(host, 22)];
    lines(files).filter(move |l| tokens.iter().any(|token| matches(l.hosts, token)))
}

/// The authorities whose certificates prove that a host is this one (`@cert-authority`).
pub fn authorities(files: &[File], host: &str, port: u16) -> Vec<Entry> {
    about(files, host, port)
        .filter(|l| l.authority)
        .map(|l| l.entry)
        .collect()
}

/// Where a key, of a host or of an authority, is revoked for this host.
pub fn revoked(files: &[File], host: &str, port: u16, key: &PublicKey) -> Option<String> {
    about(files, host, port)
        .find(|l| l.revoked && same(&l.entry.key, key))
        .map(|l| l.entry.place())
}

/// Types of the keys by which the host is known, to ask for them first.
pub fn known_types(files: &[File], host: &str, port: u16) -> Vec<Algorithm> {
    let tokens = [host_token(host, port), host_token(host, 22)];
    let types_of = |token: &String| -> Vec<Algorithm> {
        lines(files)
            .filter(|l| !l.authority && !l.revoked && matches(l.hosts, token))
            .map(|l| l.entry.key.algorithm())
            .collect()
    };
    tokens
        .iter()
        .map(types_of)
        .find(|found| !found.is_empty())
        .unwrap_or_default()
}

/// Reads the files.
///
/// # Errors
/// With the path, when one exists and cannot be read.
pub fn load(paths: &[PathBuf]) -> Result<Vec<File>, (PathBuf, io::Error)> {
    paths
        .iter()
        .map(|path| match fs::read(path) {
            Ok(bytes) => Ok(File {
                path: path.clone(),
                text: String::from_utf8_lossy(&bytes).into_owned(),
            }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(File {
                path: path.clone(),
                text: String::new(),
            }),
            Err(e) => Err((path.clone(), e)),
        })
        .collect()
}

/// Adds a line for the host, unless the file has it already. One write under a lock, so that many connections (and other
/// programs that append) do not mix.
///
/// # Errors
/// When the file cannot be made, locked or written.
pub fn append(path: &Path, host: &str, port: u16, key: &PublicKey) -> io::Result<()> {
    if let Some(dir) = path.parent().filter(|d| !d.as_os_str().is_empty() && !d.exists()) {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    }
    let mut file = fs::OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)?;
    file.lock()?;
    let mut text = Vec::new();
    file.seek(io::SeekFrom::Start(0))?;
    file.read_to_end(&mut text)?;
    let known = File {
        path: path.to_owned(),
        text: String::from_utf8_lossy(&text).into_owned(),
    };
    if check_token(std::slice::from_ref(&known), &host_token(host, port), key) == Verdict::Known {
        return Ok(());
    }
    let openssh = key.to_openssh().map_err(io::Error::other)?;
    let mut words = openssh.split_ascii_whitespace();
    let (kind, data) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let newline = if text.is_empty() || text.ends_with(b"\n") {
        ""
    } else {
        "\n"
    };
    file.write_all(format!("{newline}{} {kind} {data}\n", host_token(host, port)).as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti";
    const B: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";

    fn key(text: &str) -> PublicKey {
        PublicKey::from_openssh(text).unwrap()
    }

    fn verdict(text: String, host: &str, port: u16, shown: &str) -> &'static str {
        match check(
            &[File {
                path: "kh".into(),
                text,
            }],
            host,
            port,
            &key(shown),
        ) {
            Verdict::Known => "known",
            Verdict::Unknown => "unknown",
            Verdict::Changed { .. } => "changed",
            Verdict::Revoked { .. } => "revoked",
        }
    }

    fn hashed(token: &str) -> String {
        let salt = [7u8; 20];
        let tag = hmac::sign(
            &hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, &salt),
            token.as_bytes(),
        );
        format!("|1|{}|{}", STANDARD.encode(salt), STANDARD.encode(tag))
    }

    #[test]
    fn a_key_is_judged_as_openssh_does() {
        let h = hashed("h");
        let h_port = hashed("[h]:2222");
        let table: &[(String, &str, u16, &str, &str)] = &[
            (String::new(), "h", 22, A, "unknown"),
            (format!("h {A}"), "h", 22, A, "known"),
            (format!("H {A} comment"), "h", 22, A, "known"),
            (format!("h {A}"), "h", 22, B, "changed"),
            (format!("h {B}\nh {A}"), "h", 22, A, "known"),
            (format!("x,h,y {A}"), "h", 22, A, "known"),
            (format!("*.example,!bad.example {A}"), "good.example", 22, A, "known"),
            (format!("*.example,!bad.example {A}"), "bad.example", 22, A, "unknown"),
            (format!("10.0.0.? {A}"), "10.0.0.5", 22, A, "known"),
            (format!("[h]:2222 {A}"), "h", 2222, A, "known"),
            (format!("[h]:2222 {A}"), "h", 22, A, "unknown"),
            (format!("h {A}"), "h", 2222, A, "known"),
            (format!("h {A}"), "h", 2222, B, "unknown"),
            (format!("{h} {A}"), "h", 22, A, "known"),
            (format!("{h} {A}"), "h", 22, B, "changed"),
            (format!("{h} {A}"), "i", 22, A, "unknown"),
            (format!("{h_port} {A}"), "h", 2222, A, "known"),
            (format!("@revoked * {A}\nh {A}"), "h", 22, A, "revoked"),
            (format!("h {A}\n@revoked h {B}"), "h", 22, A, "known"),
            (format!("@cert-authority h {A}"), "h", 22, A, "unknown"),
            (
                format!("# h {A}\n\nnonsense\nh ssh-ed25519 ???\n"),
                "h",
                22,
                A,
                "unknown",
            ),
        ];
        for (text, host, port, shown, expected) in table {
            assert_eq!(
                verdict(text.clone(), host, *port, shown),
                *expected,
                "{text} / {host}:{port}"
            );
        }
    }

    #[test]
    fn a_changed_key_names_the_place_and_the_fingerprints() {
        let files = [File {
            path: "kh".into(),
            text: format!("\nh {A}\n"),
        }];
        let Verdict::Changed { expected } = check(&files, "h", 22, &key(B)) else {
            panic!()
        };
        let told: Vec<String> = expected.iter().map(ToString::to_string).collect();
        assert_eq!(told, [format!("ssh-ed25519 {} (kh:2)", fingerprint(&key(A)))]);
        assert_eq!(known_types(&files, "h", 22), [Algorithm::Ed25519]);
    }

    #[test]
    fn authorities_and_revocations_are_found_by_the_hosts_they_are_for() {
        let text = format!(
            "@cert-authority *.example,!bad.example {A}\n@revoked * {B}\nh {A}\n@cert-authority [h]:2222 {B}\n"
        );
        let files = [File {
            path: "kh".into(),
            text,
        }];
        let table: &[(&str, u16, &[&str])] = &[
            ("a.example", 22, &["kh:1"]),
            ("a.example", 2222, &["kh:1"]),
            ("bad.example", 22, &[]),
            ("h", 22, &[]),
            ("h", 2222, &["kh:4"]),
        ];
        for (host, port, expected) in table {
            let places: Vec<String> = authorities(&files, host, *port).iter().map(Entry::place).collect();
            assert_eq!(places, *expected, "{host}:{port}");
        }
        assert_eq!(revoked(&files, "any", 2222, &key(B)).as_deref(), Some("kh:2"));
        assert_eq!(revoked(&files, "any", 22, &key(A)), None);
    }

    #[test]
    fn appending_keeps_what_is_there_and_repeats_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/known_hosts");
        append(&path, "a", 22, &key(A)).unwrap();
        fs::write(
            &path,
            format!("{} # no newline", fs::read_to_string(&path).unwrap().trim_end()),
        )
        .unwrap();
        append(&path, "b", 2222, &key(B)).unwrap();
        append(&path, "b", 2222, &key(B)).unwrap();
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            format!("a {A} # no newline\n[b]:2222 {B}\n")
        );
    }
}
