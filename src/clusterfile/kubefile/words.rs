//! Words of an instruction: quotes, escapes, `${VAR}`.

use super::instruction::Variables;

/// Splits `text` at blanks outside of quotes and replaces variables; `'…'` keeps everything as it is.
pub(crate) fn split(text: &str, variables: &Variables) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = text.char_indices().peekable();
    let mut quote: Option<char> = None;
    while let Some((at, c)) = chars.next() {
        match (quote, c) {
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (Some(open), c) if c == open => quote = None,
            (Some('\''), c) => word.get_or_insert_default().push(c),
            (_, '\\') => {
                let next = chars.next().map(|(_, next)| next).ok_or("it ends with a backslash")?;
                word.get_or_insert_default().push(next);
            }
            (_, '$') => {
                let (value, end) = variable(text, at, variables)?;
                word.get_or_insert_default().push_str(&value);
                while chars.next_if(|(at, _)| *at < end).is_some() {}
            }
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    if let Some(open) = quote {
        return Err(format!("the quote {open} is not closed"));
    }
    words.extend(word);
    Ok(words)
}

/// Replaces the variables of one text that is a single word whatever blanks it has.
pub(crate) fn expand(text: &str, variables: &Variables) -> Result<String, String> {
    let mut result = String::new();
    let mut rest = 0;
    while let Some(found) = text[rest..].find('$') {
        let at = rest + found;
        result.push_str(&text[rest..at]);
        let (value, end) = variable(text, at, variables)?;
        result.push_str(&value);
        rest = end;
    }
    result.push_str(&text[rest..]);
    Ok(result)
}

/// The value of the variable that starts with the `$` at `at`, and where it ends.
fn variable(text: &str, at: usize, variables: &Variables) -> Result<(String, usize), String> {
    let rest = &text[at + 1..];
    if let Some(inner) = rest.strip_prefix('{') {
        let close = inner.find('}').ok_or("${ is not closed")?;
        return Ok((braced(&inner[..close], variables)?, at + 2 + close + 1));
    }
    let len = rest
        .find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .unwrap_or(rest.len());
    if len == 0 || rest.starts_with(|c: char| c.is_ascii_digit()) {
        return Ok(("$".to_string(), at + 1));
    }
    Ok((lookup(&rest[..len], variables)?, at + 1 + len))
}

fn braced(inner: &str, variables: &Variables) -> Result<String, String> {
    let set = |name: &str| variables.get(name).filter(|value| !value.is_empty());
    if let Some((name, default)) = inner.split_once(":-") {
        return Ok(set(name).map_or(default, String::as_str).to_string());
    }
    if let Some((name, other)) = inner.split_once(":+") {
        return Ok(set(name).map_or("", |_| other).to_string());
    }
    lookup(inner, variables)
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
            ("a\\ b \\$A", vec!["a b", "$A"]),
            ("'' x", vec!["", "x"]),
            ("1$ $1", vec!["1$", "$1"]),
        ] {
            assert_eq!(split(text, &variables).unwrap(), expected, "{text}");
        }
        for bad in ["'a", "${A", "$B", "a\\"] {
            assert!(split(bad, &variables).is_err(), "{bad}");
        }
        assert_eq!(expand("a $A b", &variables).unwrap(), "a 1 2 b");
    }
}
