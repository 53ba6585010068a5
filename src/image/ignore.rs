//! Files that are no part of a build context: `.kubefileignore`, else `.dockerignore`, with Docker's patterns.
//!
//! A pattern is a path below the context of names with `*`, `?`, `[…]` and `\`; `**` stands for any number of folders. It matches a
//! path if it matches the path or a folder above it. `!` takes paths back in. Of the patterns that match the last one decides.

use std::path::Path;

use regex::RegexSet;

use crate::error::Error;

/// Names of the file, the first that exists.
const FILES: [&str; 2] = [".kubefileignore", ".dockerignore"];
/// A longer file is none, in bytes.
const LONGEST: u64 = 1 << 20;

/// The patterns of one context.
#[derive(Debug, Default)]
pub(crate) struct Ignore {
    file: String,
    rules: Vec<Rule>,
    patterns: RegexSet,
}

#[derive(Debug)]
struct Rule {
    text: String,
    line: usize,
    /// Begins with `!`.
    takes_in: bool,
}

/// Which patterns match a path or a folder above it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Matched(Vec<bool>);

impl Ignore {
    /// Reads the context's file, if it has one.
    pub(crate) fn read(context: &Path) -> Result<Ignore, Error> {
        for name in FILES {
            let path = context.join(name);
            match path.symlink_metadata() {
                Ok(meta) if meta.is_file() && meta.len() <= LONGEST => {
                    let text = std::fs::read_to_string(&path).map_err(Error::io("cannot read", &path))?;
                    return Ignore::parse(name, &text);
                }
                Ok(_) => {
                    let why = format!("it must be a regular file of at most {LONGEST} bytes");
                    return Err(Error::path(path.display().to_string(), why));
                }
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(Error::io("cannot read", &path)(error)),
            }
        }
        Ok(Ignore::default())
    }

    fn parse(file: &str, text: &str) -> Result<Ignore, Error> {
        let (mut rules, mut patterns) = (Vec::new(), Vec::new());
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.starts_with('#')) {
            let text = line.trim();
            let (takes_in, pattern) = match text.strip_prefix('!') {
                Some(pattern) => (true, pattern.trim()),
                None => (false, text),
            };
            let wrong = |why: &str| Error::path(format!("{file}:{}", index + 1), format!("{text:?}: {why}"));
            if takes_in && pattern.is_empty() {
                return Err(wrong("a pattern is missing after !"));
            }
            let pattern = clean(pattern);
            // The context itself is always there.
            if pattern.is_empty() {
                continue;
            }
            patterns.push(expression(&pattern).map_err(wrong)?);
            rules.push(Rule {
                text: text.to_string(),
                line: index + 1,
                takes_in,
            });
        }
        let patterns =
            RegexSet::new(patterns).map_err(|error| Error::path(file, format!("a pattern is malformed: {error}")))?;
        let file = file.to_string();
        Ok(Ignore { file, rules, patterns })
    }

    /// Which patterns match `path`, where `above` is the same of the folder it lies in.
    pub(crate) fn matched(&self, above: &Matched, path: &str) -> Matched {
        if self.rules.is_empty() {
            return Matched::default();
        }
        let mut matched = above.0.clone();
        matched.resize(self.rules.len(), false);
        for index in self.patterns.matches(path) {
            matched[index] = true;
        }
        Matched(matched)
    }

    /// The same for a path of which nothing is known yet.
    pub(crate) fn matched_from_top(&self, path: &str) -> Matched {
        let folders = path.match_indices('/').map(|(at, _)| &path[..at]);
        let matched = folders.fold(Matched::default(), |above, folder| self.matched(&above, folder));
        if path.is_empty() {
            matched
        } else {
            self.matched(&matched, path)
        }
    }

    /// Why a path is left out, if it is.
    pub(crate) fn excludes(&self, matched: &Matched) -> Option<String> {
        let last = matched.0.iter().rposition(|matched| *matched)?;
        let rule = &self.rules[last];
        (!rule.takes_in).then(|| {
            format!(
                "{}:{} leaves it out of the build context ({})",
                self.file, rule.line, rule.text
            )
        })
    }

    /// Whether something inside of a folder that is left out may be in.
    pub(crate) fn takes_in(&self) -> bool {
        self.rules.iter().any(|rule| rule.takes_in)
    }
}

/// Without `.`, `..` after a name, doubled and outer slashes.
fn clean(pattern: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in pattern.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// A pattern as a regular expression over whole paths.
fn expression(pattern: &str) -> Result<String, &'static str> {
    let mut result = String::from("(?s)^");
    let mut chars = pattern.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '*' if chars.next_if_eq(&'*').is_some() => {
                while chars.next_if_eq(&'*').is_some() {}
                chars.next_if_eq(&'/');
                // At the end everything below, else any number of whole folders.
                result.push_str(if chars.peek().is_none() { ".*" } else { "(.*/)?" });
            }
            '*' => result.push_str("[^/]*"),
            '?' => result.push_str("[^/]"),
            '[' => result.push_str(&class(&mut chars)?),
            '\\' => result.push_str(&literal(chars.next().ok_or("it ends with a backslash")?)),
            c => result.push_str(&literal(c)),
        }
    }
    result.push('$');
    Ok(result)
}

fn literal(c: char) -> String {
    regex::escape(&c.to_string())
}

/// What follows `[` up to `]`.
fn class(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Result<String, &'static str> {
    let mut result = String::from("[");
    // A slash is never in a class: names are matched one by one.
    let negated = chars.next_if_eq(&'^').is_some();
    if negated {
        result.push_str("^/");
    }
    let mut empty = true;
    loop {
        match chars.next().ok_or("[ is not closed")? {
            ']' if empty => return Err("[] holds nothing"),
            ']' => break,
            '-' if !empty && chars.peek().is_some_and(|next| *next != ']') => result.push('-'),
            '\\' => result.push_str(&class_char(chars.next().ok_or("it ends with a backslash")?)),
            c => result.push_str(&class_char(c)),
        }
        empty = false;
    }
    result.push(']');
    Ok(result)
}

fn class_char(c: char) -> String {
    match c.is_alphanumeric() {
        true => c.to_string(),
        false => format!("\\x{{{:x}}}", u32::from(c)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn excluded(text: &str, path: &str) -> bool {
        let ignore = Ignore::parse("i", text).unwrap();
        ignore.excludes(&ignore.matched_from_top(path)).is_some()
    }

    #[test]
    fn patterns_match_as_dockers_do() {
        for (pattern, path, expected) in [
            ("a", "a", true),
            ("a", "a/b/c", true),
            ("a", "b/a", false),
            ("a", "ab", false),
            ("/a/", "a", true),
            ("./a//b/../c", "a/c", true),
            ("../a", "a", false),
            ("*", "a/b", true),
            ("*.go", "a.go", true),
            ("*.go", "d/a.go", false),
            ("*/*.go", "d/a.go", true),
            ("?.go", "a.go", true),
            ("?.go", "ab.go", false),
            ("a?b", "a/b", false),
            ("**", "a/b", true),
            ("**/a", "a", true),
            ("**/a", "x/y/a", true),
            ("**/a", "x/ya", false),
            ("**/*.go", "x/y/a.go", true),
            ("a/**", "a/b/c", true),
            ("a/**", "a", false),
            ("a/**/z", "a/z", true),
            ("a/**/z", "a/b/c/z", true),
            ("a/**/z", "a/bz", false),
            ("a**", "abc/d", true),
            ("**/", "a", true),
            ("***/a", "b/a", true),
            ("[ab]x", "ax", true),
            ("[a-c]x", "bx", true),
            ("[^a-c]x", "bx", false),
            ("[^a]x", "/x", false),
            ("[a-]x", "-x", true),
            ("\\*", "*", true),
            ("\\*", "a", false),
            ("a.b", "axb", false),
            ("a+(b){1}|c$^", "a+(b){1}|c$^", true),
            ("é", "é", true),
            (".", "a", false),
            ("# a", "# a", false),
            (" a ", "a", true),
            ("", "a", false),
        ] {
            assert_eq!(excluded(pattern, path), expected, "{pattern} {path}");
        }
    }

    #[test]
    fn the_last_match_decides() {
        let text = "*.md\n!README*.md\nREADME-secret.md\n";
        for (path, expected) in [
            ("a.md", true),
            ("README.md", false),
            ("README-secret.md", true),
            ("b", false),
        ] {
            assert_eq!(excluded(text, path), expected, "{path}");
        }
        assert!(excluded("*.md\nREADME-secret.md\n!README*.md\n", "a.md"));
        assert!(!excluded("*.md\nREADME-secret.md\n!README*.md\n", "README-secret.md"));
        assert!(excluded("a\n!a/b\n", "a/c"));
        assert!(
            !excluded("a\n!a/b\n", "a/b/c"),
            "what is below a path taken in is in too"
        );
        assert!(!excluded("*\n!a\n", "a/b"));
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
        for (text, expected) in [
            ("a\n!\n", "i:2: \"!\": a pattern is missing"),
            ("[a", "i:1: \"[a\": [ is not closed"),
            ("x[]", "i:1: \"x[]\": [] holds nothing"),
            ("\n\na\\", "i:3: \"a\\\\\": it ends with a backslash"),
            ("[z-a]", "i: a pattern is malformed"),
        ] {
            let error = Ignore::parse("i", text).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{text}: {error}");
        }
        let ignore = Ignore::parse("i", "# no\n*.go").unwrap();
        let why = ignore.excludes(&ignore.matched_from_top("a.go")).unwrap();
        assert_eq!(why, "i:2 leaves it out of the build context (*.go)");
    }

    /// The meaning of a pattern without classes and escapes, told by trying everything.
    fn matches(pattern: &[char], path: &[char]) -> bool {
        match pattern {
            [] => path.is_empty(),
            ['*', '*', '/', rest @ ..] => {
                (0..=path.len()).any(|at| (at == 0 || path[at - 1] == '/') && matches(rest, &path[at..]))
            }
            ['*', rest @ ..] => (0..=path.len()).any(|at| !path[..at].contains(&'/') && matches(rest, &path[at..])),
            ['?', rest @ ..] => path.first().is_some_and(|c| *c != '/') && matches(rest, &path[1..]),
            [c, rest @ ..] => path.first() == Some(c) && matches(rest, &path[1..]),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn patterns_mean_the_same_as_by_trying_everything(
            pattern in "(\\*\\*/)?[a*?]{1,3}(/(\\*\\*/)?[ab?]{1,2}){0,2}", path in "[ab]{1,2}(/[ab]{1,2}){0,3}",
        ) {
            prop_assume!(!pattern.contains("***") && !pattern.replace("**/", "").contains("**"));
            let chars = |text: &str| text.chars().collect::<Vec<_>>();
            let prefixes = path.match_indices('/').map(|(at, _)| &path[..at]).chain([path.as_str()]);
            let expected = prefixes.into_iter().any(|prefix| matches(&chars(&pattern), &chars(prefix)));
            prop_assert_eq!(excluded(&pattern, &path), expected, "{} {}", pattern, path);
        }

        #[test]
        fn no_file_makes_it_panic(text in "(?s)[!#*?\\[\\]a-c/\\\\\n^-]{0,40}", path in "[a-c/]{0,10}") {
            if let Ok(ignore) = Ignore::parse("i", &text) {
                let _ = ignore.excludes(&ignore.matched_from_top(&path));
            }
        }
    }
}
