//! Words of an instruction: quotes, escapes, `${VAR}`.

use super::instruction::Variables;

/// What is wrong with an instruction, and at which byte of its arguments; none means as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) at: Option<usize>,
    pub(crate) message: String,
}

impl Fault {
    pub(crate) fn at(at: usize, message: impl Into<String>) -> Fault {
        Fault {
            at: Some(at),
            message: message.into(),
        }
    }

    /// The same fault of a text that begins `by` bytes further on.
    pub(crate) fn shifted(self, by: usize) -> Fault {
        Fault {
            at: self.at.map(|at| at + by),
            ..self
        }
    }
}

impl From<String> for Fault {
    fn from(message: String) -> Fault {
        Fault { at: None, message }
    }
}

impl From<&str> for Fault {
    fn from(message: &str) -> Fault {
        message.to_string().into()
    }
}

/// A word with its variables replaced, and the byte it begins at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Word {
    pub(crate) text: String,
    pub(crate) at: usize,
}

/// How deep `${A:-${B:-…}}` may go.
const DEEPEST: usize = 16;

/// Splits `text` at blanks outside of quotes and replaces variables; `'…'` keeps everything as it is.
pub(crate) fn split(text: &str, variables: &Variables) -> Result<Vec<Word>, Fault> {
    let mut words = Vec::new();
    let mut word: Option<Word> = None;
    let mut chars = text.char_indices().peekable();
    let mut quote: Option<(char, usize)> = None;
    while let Some((at, c)) = chars.next() {
        if quote.is_none() && c.is_whitespace() {
            words.extend(word.take());
            continue;
        }
        let into = &mut word
            .get_or_insert_with(|| Word {
                text: String::new(),
                at,
            })
            .text;
        match (quote, c) {
            (None, '\'' | '"') => quote = Some((c, at)),
            (Some((open, _)), c) if c == open => quote = None,
            (Some(('\'', _)), c) => into.push(c),
            (_, '\\') => {
                let (_, next) = chars.next().ok_or_else(|| Fault::at(at, "it ends with a backslash"))?;
                // Between double quotes only what would mean something else is escaped, as in a shell.
                if quote.is_some() && !"\"$\\".contains(next) {
                    into.push('\\');
                }
                into.push(next);
            }
            (_, '$') => {
                let (value, end) = variable(text, at, variables, DEEPEST)?;
                into.push_str(&value);
                while chars.next_if(|(at, _)| *at < end).is_some() {}
            }
            (_, c) => into.push(c),
        }
    }
    if let Some((open, at)) = quote {
        return Err(Fault::at(at, format!("the quote {open} is not closed")));
    }
    words.extend(word);
    Ok(words)
}

/// Replaces the variables of one text that is a single word whatever blanks it has.
pub(crate) fn expand(text: &str, variables: &Variables) -> Result<String, Fault> {
    expand_below(text, variables, DEEPEST)
}

fn expand_below(text: &str, variables: &Variables, depth: usize) -> Result<String, Fault> {
    let mut result = String::new();
    let mut rest = 0;
    while let Some(found) = text[rest..].find('$') {
        let at = rest + found;
        result.push_str(&text[rest..at]);
        let (value, end) = variable(text, at, variables, depth)?;
        result.push_str(&value);
        rest = end;
    }
    result.push_str(&text[rest..]);
    Ok(result)
}

/// The value of the variable that starts with the `$` at `at`, and where it ends.
fn variable(text: &str, at: usize, variables: &Variables, depth: usize) -> Result<(String, usize), Fault> {
    let rest = &text[at + 1..];
    if let Some(inner) = rest.strip_prefix('{') {
        let close = closing(inner).ok_or_else(|| Fault::at(at, "${ is not closed"))?;
        let depth = depth
            .checked_sub(1)
            .ok_or_else(|| Fault::at(at, "too many ${ in each other"))?;
        let value = braced(&inner[..close], variables, depth);
        // Faults of a nested text are shown where the outer one begins.
        let value = value.map_err(|fault| Fault::at(at, fault.message))?;
        return Ok((value, at + 2 + close + 1));
    }
    let len = rest
        .find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .unwrap_or(rest.len());
    if len == 0 || rest.starts_with(|c: char| c.is_ascii_digit()) {
        return Ok(("$".to_string(), at + 1));
    }
    let value = lookup(&rest[..len], variables).map_err(|message| Fault::at(at, message))?;
    Ok((value, at + 1 + len))
}

/// Where the brace that is open at the beginning of `inner` closes.
fn closing(inner: &str) -> Option<usize> {
    let mut open = 0;
    for (at, c) in inner.char_indices() {
        match c {
            '{' => open += 1,
            '}' if open == 0 => return Some(at),
            '}' => open -= 1,
            _ => {}
        }
    }
    None
}

fn braced(inner: &str, variables: &Variables, depth: usize) -> Result<String, Fault> {
    let end = inner
        .find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .unwrap_or(inner.len());
    let (name, operation) = inner.split_at(end);
    if operation.is_empty() {
        return Ok(lookup(name, variables)?);
    }
    // With the colon an empty value counts as none.
    let (colon, operation) = match operation.strip_prefix(':') {
        Some(operation) => (true, operation),
        None => (false, operation),
    };
    let value = variables.get(name).filter(|value| !colon || !value.is_empty());
    let mut chars = operation.chars();
    let kind = chars.next();
    let text = chars.as_str();
    match (kind, value) {
        (Some('-'), Some(value)) | (Some('?'), Some(value)) => Ok(value.clone()),
        (Some('-'), None) | (Some('+'), Some(_)) => expand_below(text, variables, depth),
        (Some('+'), None) => Ok(String::new()),
        (Some('?'), None) if text.is_empty() => Err(format!("the variable {name:?} must be set").into()),
        (Some('?'), None) => Err(format!("{name}: {}", expand_below(text, variables, depth)?).into()),
        _ => Err(format!(
            "${{{inner}}} is not understood (known: ${{NAME}}, ${{NAME:-default}}, ${{NAME:+text}}, ${{NAME:?message}})"
        )
        .into()),
    }
}

fn lookup(name: &str, variables: &Variables) -> Result<String, String> {
    let value = variables.get(name).cloned();
    value.ok_or_else(|| {
        let hint = crate::names::did_you_mean(name, variables.keys().map(String::as_str));
        format!("the variable {name:?} is not set by ARG, ENV or --build-arg{hint}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_follow_quotes_escapes_and_variables() {
        let variables = Variables::from([("A".into(), "1 2".into()), ("E".into(), String::new())]);
        for (text, expected) in [
            ("a  b", vec!["a", "b"]),
            ("x=$A y='$A'", vec!["x=1 2", "y=$A"]),
            ("\"a b\"c", vec!["a bc"]),
            ("${A}z ${E:-d} ${A:+yes}", vec!["1 2z", "d", "yes"]),
            ("${E-d}x ${N-d} ${E+set} ${N+set}x", vec!["x", "d", "set", "x"]),
            ("${N:-${E:-$A}} ${A:?no}", vec!["1 2", "1 2"]),
            ("a\\ b \\$A", vec!["a b", "$A"]),
            ("\"a\\b \\\" \\$A\"", vec!["a\\b \" $A"]),
            ("'' x", vec!["", "x"]),
            ("1$ $1", vec!["1$", "$1"]),
        ] {
            let words: Vec<_> = split(text, &variables)
                .unwrap()
                .into_iter()
                .map(|word| word.text)
                .collect();
            assert_eq!(words, expected, "{text}");
        }
        assert_eq!(expand("a $A b", &variables).unwrap(), "a 1 2 b");
    }

    #[test]
    fn faults_know_their_byte() {
        for (bad, at, message) in [
            ("x 'a", 2, "the quote ' is not closed"),
            ("xx${A", 2, "${ is not closed"),
            ("a  $B", 3, "the variable \"B\" is not set by ARG, ENV or --build-arg"),
            ("a\\", 1, "it ends with a backslash"),
            ("${A#x}", 0, "${A#x} is not understood"),
            ("b ${A:?give it}", 2, "A: give it"),
            ("b ${A:-${A:-$C}}", 2, "the variable \"C\" is not set"),
        ] {
            let fault = split(bad, &Variables::new()).unwrap_err();
            assert_eq!(fault.at, Some(at), "{bad}");
            assert!(fault.message.starts_with(message), "{bad}: {}", fault.message);
        }
        let deep = format!("{}{}", "${A:-".repeat(40), "}".repeat(40));
        assert!(
            expand(&deep, &Variables::new())
                .unwrap_err()
                .message
                .contains("too many")
        );
    }
}
