//! Takes secrets out of what is written for others to read: logs and bundles for support. Pure.
//!
//! Two ways, one after the other: what is known to be a secret (passwords of the Clusterfile) wherever it stands, and what looks like
//! one (private keys, tokens, hashes of passwords, fields and flags whose name speaks of a secret). Rather too much than too little.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use clusterfile::{Clusterfile, Registry, SecretSource, Ssh, is_secret_name};
use regex::{Captures, Regex};
use serde_json::Value;
use std::{borrow::Cow, sync::LazyLock};
use zeroize::Zeroizing;

/// What stands where a secret stood.
pub const MARK: &str = "(redacted)";
/// Known secrets shorter than this would take away half of every text; they are found by the names of their fields only.
const SHORTEST: usize = 4;

/// The patterns, each with what is left of it.
static PATTERNS: LazyLock<Vec<(Regex, &'static str)>> = LazyLock::new(|| {
    // Names end in the word, so that `secretName` and `token-file` are none.
    const WORD: &str =
        r"(?:passw(?:or)?d|passphrase|secret|token|credentials?|private[-_]?key|client-key-data|api[-_]?key|htpasswd)";
    let patterns = [
        // PEM, on lines of its own or with the line ends of JSON; one that was cut off ends with the text.
        (
            r"(?s)-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----.*?(?:-----END [A-Z0-9 ]*PRIVATE KEY-----|\z)".to_owned(),
            "(redacted private key)",
        ),
        // One whose beginning was cut off.
        (
            r"(?s)\A.*-----END [A-Z0-9 ]*PRIVATE KEY-----".to_owned(),
            "(redacted private key)",
        ),
        (r"eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]{8,}".to_owned(), MARK),
        // Tokens with which nodes join.
        (r"\b[a-z0-9]{6}\.[a-z0-9]{16}\b".to_owned(), MARK),
        (r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{8,}".to_owned(), "$1 (redacted)"),
        // Hashes of passwords, as crypt(3) and bcrypt write them.
        (r"\$(?:1|2[abxy]|5|6|y|7)\$[./A-Za-z0-9$,=]{8,}".to_owned(), MARK),
        (r"(\w://[^/\s:@]*):[^/\s@]+@".to_owned(), "$1:(redacted)@"),
        // Quoted values, also with the backslashes of JSON in JSON.
        (
            format!(r#"(?i)([\w.-]*{WORD}\\*["']?\s*[:=]\s*)(\\*["'])(?:[^"'\\]|\\[^"'])*"#),
            "${1}${2}(redacted)",
        ),
        (format!(r#"(?i)([\w.-]*{WORD}["']?\s*[:=]\s*)[^\s"'\\,;}})\]]+"#), "${1}(redacted)"),
        (format!(r#"(?i)(--?[\w.-]*{WORD})(\s+)[^\s"'-][^\s"']*"#), "${1}${2}(redacted)"),
        // Entries of an environment, as pods have them.
        (
            r#"(?i)(name\\*"\s*:\s*\\*"[^"\\]*(?:passw|passphrase|secret|token|credential|private_?key)[^"\\]*\\*"\s*,\s*\\*"value\\*"\s*:\s*\\*")[^"\\]*"#.to_owned(),
            "${1}(redacted)",
        ),
    ];
    let compiled = patterns
        .into_iter()
        .filter_map(|(pattern, left)| Some((Regex::new(&pattern).ok()?, left)));
    compiled.collect()
});

/// Base64 of PEM; whether it is a private key is seen when it is decoded.
static ENCODED: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"LS0tLS1CRUdJTi[A-Za-z0-9+/]+={0,2}").ok());

/// See the head of this file.
#[derive(Default)]
pub struct Redactor {
    known: Vec<Zeroizing<String>>,
}

impl Redactor {
    /// One that knows the secrets of a Clusterfile. Those that cannot be read are left out: nobody else can have read them either.
    pub fn of(clusterfile: &Clusterfile) -> Self {
        let mut redactor = Self::default();
        redactor.know(clusterfile);
        redactor
    }

    /// Learns the secrets of a Clusterfile too.
    pub fn know(&mut self, clusterfile: &Clusterfile) {
        let cluster = &clusterfile.cluster;
        let ways = cluster.hosts.iter().map(|host| &host.ssh).chain([&cluster.ssh]);
        let mut sources: Vec<&SecretSource> = ways.flat_map(ssh_secrets).collect();
        sources.push(match &cluster.registry {
            Registry::LocalRegistry(registry) => &registry.password,
            Registry::ExternalRegistry(registry) => &registry.password,
        });
        for secret in sources.into_iter().filter_map(|source| source.resolve().ok().flatten()) {
            self.add(secret.expose());
        }
        let envs = cluster.hosts.iter().map(|host| &host.env).chain([&cluster.env]);
        for (_, value) in envs.flatten().filter(|(name, _)| is_secret_name(name)) {
            self.add(value);
        }
    }

    /// Learns one more.
    pub fn add(&mut self, secret: &str) {
        if secret.chars().count() < SHORTEST {
            return;
        }
        // As it stands in JSON, in a URL, in base64: whoever prints it may have written it so.
        let json = Value::from(secret).to_string();
        let forms = [
            secret.to_owned(),
            json.trim_matches('"').to_owned(),
            STANDARD.encode(secret),
        ];
        for form in forms {
            if !self.known.iter().any(|known| **known == form) {
                self.known.push(Zeroizing::new(form));
            }
        }
        // One that is a part of another must not leave the other's rest.
        self.known.sort_by_key(|known| std::cmp::Reverse(known.len()));
    }

    /// The text without secrets.
    pub fn text<'t>(&self, text: &'t str) -> Cow<'t, str> {
        let mut text = Cow::Borrowed(text);
        for secret in &self.known {
            if text.contains(secret.as_str()) {
                text = Cow::Owned(text.replace(secret.as_str(), MARK));
            }
        }
        if let Some(encoded) = &*ENCODED {
            text = replaced(text, |text| encoded.replace_all(text, encoded_key));
        }
        for (pattern, left) in &*PATTERNS {
            text = replaced(text, |text| pattern.replace_all(text, *left));
        }
        text
    }

    /// A document without secrets: by the names of its fields, and every text in it as [`Redactor::text`].
    pub fn json(&self, value: Value) -> Value {
        match value {
            Value::String(text) => Value::String(self.text(&text).into_owned()),
            Value::Array(items) => Value::Array(self.items(items)),
            Value::Object(fields) => {
                let of_secret = fields.get("name").and_then(Value::as_str).is_some_and(is_secret_name);
                let field = |(name, value): (String, Value)| {
                    let hidden = (of_secret && name == "value") || names_secret(&name);
                    let value = match value {
                        Value::String(_) | Value::Number(_) if hidden => Value::from(MARK),
                        // It repeats the whole object as text.
                        _ if name == "kubectl.kubernetes.io/last-applied-configuration" => Value::from(MARK),
                        value => self.json(value),
                    };
                    (name, value)
                };
                Value::Object(fields.into_iter().map(field).collect())
            }
            scalar => scalar,
        }
    }

    /// The value after a flag that speaks of a secret goes too.
    fn items(&self, items: Vec<Value>) -> Vec<Value> {
        let mut after_flag = false;
        let item = |item: Value| {
            let hidden = std::mem::take(&mut after_flag);
            let text = item.as_str().unwrap_or_default();
            after_flag = text.starts_with('-') && !text.contains('=') && names_secret(text);
            if hidden && item.is_string() && !text.starts_with('-') {
                Value::from(MARK)
            } else {
                self.json(item)
            }
        };
        items.into_iter().map(item).collect()
    }
}

/// Keeps what was borrowed where nothing was replaced.
fn replaced<'t>(text: Cow<'t, str>, replace: impl for<'a> Fn(&'a str) -> Cow<'a, str>) -> Cow<'t, str> {
    match replace(&text) {
        Cow::Borrowed(_) => text,
        Cow::Owned(new) => Cow::Owned(new),
    }
}

/// Whether a field holds a secret: its name ends in what a secret is called. `secretName`, `tokenExpirationSeconds` do not.
fn names_secret(name: &str) -> bool {
    let name: String = name
        .to_lowercase()
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .collect();
    const WORDS: [&str; 9] = [
        "password",
        "passwd",
        "passphrase",
        "secret",
        "token",
        "credential",
        "privatekey",
        "clientkeydata",
        "apikey",
    ];
    WORDS.iter().any(|word| name.ends_with(word))
}

fn ssh_secrets(ssh: &Ssh) -> [&SecretSource; 3] {
    [&ssh.passwd, &ssh.pk_passwd, &ssh.sudo_passwd]
}

fn encoded_key(found: &Captures<'_>) -> String {
    let text = &found[0];
    // What was cut off may not end with a whole group.
    let whole = text.trim_end_matches('=');
    let whole = &whole[..whole.len() - whole.len() % 4];
    let decoded = STANDARD.decode(whole).unwrap_or_default();
    let head = String::from_utf8_lossy(&decoded[..decoded.len().min(80)]).into_owned();
    match head.lines().next().is_some_and(|line| line.contains("PRIVATE KEY")) {
        true => "(redacted private key)".to_owned(),
        false => text.to_owned(),
    }
}

#[cfg(test)]
#[path = "redact_tests.rs"]
mod tests;
