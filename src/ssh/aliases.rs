//! The user's own SSH configuration (ssh_config(5)), as far as it says how a host is reached.
//!
//! Read are `Host` with its patterns, `Match all`, `Include`, and the settings of [`Alias`]; the first value counts, as in OpenSSH.
//! Other settings are passed over. Other `Match` blocks are passed over as a whole, with a warning, because what they ask for (the
//! outcome of programs, the local user) is not known here; to take their settings for everybody's would be worse.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::known_hosts::glob;

mod limits;

use limits::Limit;
pub use limits::Limits;

/// Files that include each other, at most.
const DEPTH: usize = 16;

/// What the files say. Cheap to clone; the default says nothing.
#[derive(Clone, Debug, Default)]
pub struct Aliases {
    rules: Arc<Vec<Rule>>,
    home: Option<PathBuf>,
}

/// How a host is reached, where the files say it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Alias {
    /// Name or address to connect to; by it the host's key is known too.
    pub host_name: String,
    /// TCP port of its sshd.
    pub port: Option<u16>,
    /// Login name.
    pub user: Option<String>,
    /// Private keys to try, in this order.
    pub identity_files: Vec<PathBuf>,
    /// Hosts to go through, outermost first; an empty list says that there are none.
    pub jumps: Option<Vec<Hop>>,
    /// Files of known host keys; empty: the usual one.
    pub known_hosts: Vec<PathBuf>,
    /// `file:line` of a `ProxyCommand`, which we do not run.
    pub command: Option<String>,
    /// How long it may be silent.
    pub limits: Limits,
}

/// A host to go through, as it is written: `[user@]host[:port]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hop {
    /// Login name.
    pub user: Option<String>,
    /// Name, address or alias.
    pub host: String,
    /// Port.
    pub port: Option<u16>,
}

/// The configuration cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("SSH configuration {place}: {message}; correct it, or name another file with --ssh-config (none for no file)")]
pub struct AliasError {
    /// `file` or `file:line`.
    pub place: String,
    /// What is wrong.
    pub message: String,
}

#[derive(Clone, Debug)]
enum Setting {
    HostName(String),
    Port(u16),
    User(String),
    IdentityFile(String),
    ProxyJump(Vec<Hop>),
    ProxyCommand,
    KnownHosts(Vec<String>),
    Limit(Limit),
}

/// Patterns of one `Host` line.
type Patterns = Vec<String>;

#[derive(Clone, Debug)]
struct Rule {
    /// All of these lines must match: that of the block, and those of the blocks that include its file.
    scope: Vec<Patterns>,
    setting: Setting,
    place: String,
}

/// What is gathered while files are read.
struct Reader<'a> {
    home: Option<&'a Path>,
    rules: Vec<Rule>,
    warnings: Vec<String>,
}

impl Aliases {
    /// Reads a file and what it includes; the second value is what was passed over and might matter.
    ///
    /// # Errors
    /// When a file cannot be read, or a line makes no sense.
    pub fn load(path: &Path) -> Result<(Self, Vec<String>), AliasError> {
        let home = std::env::var_os("HOME").map(PathBuf::from);
        let mut reader = Reader {
            home: home.as_deref(),
            rules: Vec::new(),
            warnings: Vec::new(),
        };
        reader.file(path, &[], 0)?;
        let (rules, warnings) = (Arc::new(reader.rules), reader.warnings);
        Ok((Self { rules, home }, warnings))
    }

    /// What the files say about `name`. A `user` who is known already counts before theirs.
    pub fn lookup(&self, name: &str, user: Option<&str>) -> Alias {
        let mut host_name = None;
        let (mut files, mut known) = (Vec::new(), None);
        let mut alias = Alias {
            user: user.map(str::to_owned),
            ..Alias::default()
        };
        for rule in self.rules.iter().filter(|rule| rule.is_about(name)) {
            match &rule.setting {
                Setting::HostName(value) => host_name = host_name.or(Some(value)),
                Setting::Port(value) => alias.port = alias.port.or(Some(*value)),
                Setting::User(value) => alias.user = alias.user.or_else(|| Some(value.clone())),
                Setting::IdentityFile(value) => files.push(value),
                Setting::Limit(limit) => limit.add_to(&mut alias.limits),
                Setting::KnownHosts(values) => known = known.or(Some(values)),
                // Of the two ways around, the one said first counts.
                Setting::ProxyJump(_) | Setting::ProxyCommand if alias.jumps.is_some() || alias.command.is_some() => {}
                Setting::ProxyJump(hops) => alias.jumps = Some(hops.clone()),
                Setting::ProxyCommand => alias.command = Some(rule.place.clone()),
            }
        }
        alias.host_name =
            host_name.map_or_else(|| name.to_owned(), |text| substitute(text, &[('h', name), ('n', name)]));
        // A host is not reached through itself: such a setting is for the others that its pattern matches.
        let itself = |hops: &Vec<Hop>| matches!(hops.as_slice(), [hop] if hop.host == name);
        alias.jumps = alias.jumps.filter(|hops| !itself(hops));
        let port = alias.port.unwrap_or(22).to_string();
        let local_user = std::env::var("USER").unwrap_or_default();
        let uid = rustix::process::getuid().as_raw().to_string();
        let here = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let here_short = here.split('.').next().unwrap_or_default();
        let home = self.home.as_deref().and_then(Path::to_str).unwrap_or_default();
        let tokens = [
            ('d', home),
            ('h', alias.host_name.as_str()),
            ('i', &uid),
            ('k', name),
            ('L', here_short),
            ('l', &here),
            ('n', name),
            ('p', &port),
            ('r', alias.user.as_deref().unwrap_or_default()),
            ('u', &local_user),
        ];
        let paths = |texts: &[&String]| -> Vec<PathBuf> {
            let real = texts.iter().filter(|text| !is_none(text) && **text != "/dev/null");
            real.map(|text| self.path(&variables(&substitute(text, &tokens))))
                .collect()
        };
        let identity_files = paths(&files);
        let known_hosts = paths(&known.iter().copied().flatten().collect::<Vec<_>>());
        Alias {
            identity_files,
            known_hosts,
            ..alias
        }
    }

    fn path(&self, text: &str) -> PathBuf {
        expand_home(text, self.home.as_deref())
    }
}

fn expand_home(text: &str, home: Option<&Path>) -> PathBuf {
    match (text.strip_prefix("~/"), home) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => PathBuf::from(text),
    }
}

fn is_none(text: &str) -> bool {
    text.eq_ignore_ascii_case("none")
}

/// `%x` for the tokens given, `%%` for a percent sign; others stay.
fn substitute(text: &str, tokens: &[(char, &str)]) -> String {
    let mut out = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('%') => out.push('%'),
            Some(letter) => match tokens.iter().find(|(known, _)| *known == letter) {
                Some((_, value)) => out.push_str(value),
                None => out.extend(['%', letter]),
            },
            None => out.push('%'),
        }
    }
    out
}

/// `${NAME}` for variables of the environment that are set; others stay, so that an error about the path names them.
fn variables(text: &str) -> String {
    let (mut out, mut rest) = (String::new(), text);
    while let Some((before, after)) = rest.split_once("${") {
        let value = after
            .split_once('}')
            .and_then(|(name, after)| Some((std::env::var(name).ok()?, after)));
        out.push_str(before);
        match value {
            Some((value, after)) => {
                out.push_str(&value);
                rest = after;
            }
            None => {
                out.push_str("${");
                rest = after;
            }
        }
    }
    out.push_str(rest);
    out
}

impl Rule {
    fn is_about(&self, name: &str) -> bool {
        self.scope.iter().all(|patterns| is_meant(patterns, name))
    }
}

/// One pattern must match, and none with `!` before it.
fn is_meant(patterns: &[String], name: &str) -> bool {
    let mut meant = false;
    for pattern in patterns {
        match pattern.strip_prefix('!') {
            Some(not) if glob(not, name) => return false,
            None if glob(pattern, name) => meant = true,
            _ => {}
        }
    }
    meant
}

impl Reader<'_> {
    fn file(&mut self, path: &Path, scope: &[Patterns], depth: usize) -> Result<(), AliasError> {
        let fail = |place: String, message: String| AliasError { place, message };
        let shown = path.display().to_string();
        if depth > DEPTH {
            return Err(fail(shown, format!("more than {DEPTH} files include each other")));
        }
        let text = fs::read(path).map_err(|e| fail(shown.clone(), e.to_string()))?;
        // Nothing: the lines of a block that is passed over.
        let mut here = Some(scope.to_vec());
        for (number, line) in String::from_utf8_lossy(&text).lines().enumerate() {
            let place = format!("{shown}:{}", number + 1);
            let Some((keyword, words)) = split(line).map_err(|message| fail(place.clone(), message))? else {
                continue;
            };
            let inner = |patterns: Patterns| Some([scope, &[patterns]].concat());
            match (keyword.as_str(), &here) {
                ("host", _) => here = inner(words),
                ("match", _) if words.len() == 1 && words[0].eq_ignore_ascii_case("all") => {
                    here = inner(vec!["*".to_owned()]);
                }
                ("match", _) => {
                    self.warnings.push(format!(
                        "{place}: Match {} is not understood; the settings of this block are passed over",
                        words.join(" ")
                    ));
                    here = None;
                }
                (_, None) => {}
                ("include", Some(here)) => {
                    for pattern in &words {
                        for file in self.included(pattern) {
                            self.file(&file, here, depth + 1)?;
                        }
                    }
                }
                (_, Some(here)) => {
                    if let Some(setting) = setting(&keyword, words).map_err(|message| fail(place.clone(), message))? {
                        let scope = here.clone();
                        self.rules.push(Rule { scope, setting, place });
                    }
                }
            }
        }
        Ok(())
    }

    /// Files that a path with wildcards names, in order; what is not there is not included.
    fn included(&self, pattern: &str) -> Vec<PathBuf> {
        let path = expand_home(&variables(pattern), self.home);
        let path = match self.home {
            Some(home) => home.join(".ssh").join(path),
            None => path,
        };
        let mut found = vec![PathBuf::new()];
        for part in &path {
            let wild = part.to_str().filter(|text| text.contains(['*', '?']));
            found = match wild {
                None => found.iter().map(|base| base.join(part)).collect(),
                Some(pattern) => found.iter().flat_map(|base| entries(base, pattern)).collect(),
            };
        }
        found.retain(|path| path.is_file());
        found
    }
}

/// Entries of a folder whose names match; a leading dot only by a dot.
fn entries(folder: &Path, pattern: &str) -> Vec<PathBuf> {
    let read = || -> io::Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if glob(pattern, &name) && (pattern.starts_with('.') || !name.starts_with('.')) {
                found.push(entry.path());
            }
        }
        found.sort();
        Ok(found)
    };
    read().unwrap_or_default()
}

/// The keyword in lower case and its words; nothing for blank lines and comments.
fn split(line: &str) -> Result<Option<(String, Vec<String>)>, String> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    let end = line.find(|c: char| c.is_whitespace() || c == '=').unwrap_or(line.len());
    let rest = line[end..].trim_start();
    let rest = rest.strip_prefix('=').unwrap_or(rest);
    let words = words(rest)?;
    if words.is_empty() {
        return Err(format!("{} has no value", &line[..end]));
    }
    Ok(Some((line[..end].to_ascii_lowercase(), words)))
}

/// Words between blanks; quotes keep blanks together, and a `#` before a word begins a comment.
fn words(text: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut chars = text.chars().peekable();
    loop {
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        match chars.peek() {
            None | Some('#') => return Ok(words),
            Some(_) => {}
        }
        let (mut word, mut quote) = (String::new(), None);
        while let Some(c) = chars.next_if(|c| quote.is_some() || !c.is_whitespace()) {
            match (c, quote) {
                ('"' | '\'', None) => quote = Some(c),
                (_, Some(open)) if c == open => quote = None,
                ('\\', _) => {
                    let escaped = chars.next_if(|c| matches!(c, '"' | '\'' | '\\') || (*c == ' ' && quote.is_none()));
                    word.push(escaped.unwrap_or('\\'));
                }
                _ => word.push(c),
            }
        }
        if quote.is_some() {
            return Err("a quotation mark is not closed".to_owned());
        }
        words.push(word);
    }
}

fn setting(keyword: &str, words: Vec<String>) -> Result<Option<Setting>, String> {
    let one = |words: Vec<String>| match <[String; 1]>::try_from(words) {
        Ok([word]) => Ok(word),
        Err(_) => Err(format!("{keyword} takes one value")),
    };
    Ok(Some(match keyword {
        "hostname" => Setting::HostName(one(words)?),
        "port" => Setting::Port(port(&one(words)?).ok_or("port must be a number from 1 to 65535")?),
        "user" => Setting::User(one(words)?),
        "identityfile" => Setting::IdentityFile(one(words)?),
        "userknownhostsfile" => Setting::KnownHosts(words),
        "proxycommand" if is_none(&words[0]) => Setting::ProxyJump(Vec::new()),
        "proxycommand" => Setting::ProxyCommand,
        "proxyjump" => Setting::ProxyJump(hops(&one(words)?)?),
        _ => return Ok(Limit::read(keyword, &words[0])?.map(Setting::Limit)),
    }))
}

fn port(text: &str) -> Option<u16> {
    text.parse().ok().filter(|port| *port != 0)
}

fn hops(text: &str) -> Result<Vec<Hop>, String> {
    if is_none(text) {
        return Ok(Vec::new());
    }
    text.split(',')
        .map(|text| {
            hop(text.trim()).ok_or_else(|| format!("proxyjump: {text:?} is not of the form [user@]host[:port]"))
        })
        .collect()
}

fn hop(text: &str) -> Option<Hop> {
    let text = text.strip_prefix("ssh://").unwrap_or(text).trim_end_matches('/');
    let (user, rest) = match text.rsplit_once('@') {
        Some((user, rest)) => (Some(user.to_owned()), rest),
        None => (None, text),
    };
    // Addresses with colons come in brackets if a port follows.
    let (host, after) = match rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, after)) => (
            host,
            Some(after.strip_prefix(':').unwrap_or(after)).filter(|port| !port.is_empty()),
        ),
        None if rest.matches(':').count() > 1 => (rest, None),
        None => rest
            .split_once(':')
            .map_or((rest, None), |(host, port)| (host, Some(port))),
    };
    let port = match after {
        Some(text) => Some(port(text)?),
        None => None,
    };
    let good = !host.is_empty() && user.as_deref() != Some("");
    good.then(|| Hop {
        user,
        host: host.to_owned(),
        port,
    })
}

#[cfg(test)]
mod tests;
