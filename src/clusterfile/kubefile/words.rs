//! Words of an instruction: quotes, escapes, `${VAR}`, in the grammar of Dockerfiles.
//!
//! ```text
//! word    = piece…                      until a blank
//! piece   = '…' | "…" | \c | $… | c     '…' is kept as it is; in "…" only \", \$ and \\ are escapes
//! $…      = $NAME | ${NAME} | ${NAME:-piece…} | ${NAME:+piece…} | ${NAME:?piece…}      the colon may be missing
//! ```
//! The text of an expansion is made of pieces too: its quotes are quotes, wherever the expansion itself stands.

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
    let mut lexer = Lexer::new(text, variables);
    let mut words = Vec::new();
    loop {
        lexer.skip_blanks();
        if lexer.peek().is_none() {
            return Ok(words);
        }
        let (at, mut word) = (lexer.at, String::new());
        while lexer.peek().is_some_and(|c| !c.is_whitespace()) {
            lexer.piece(&mut word, DEEPEST, true)?;
        }
        words.push(Word { text: word, at });
    }
}

/// Replaces variables and takes quotes away in a text that is a single word whatever blanks it has.
pub(crate) fn join(text: &str, variables: &Variables) -> Result<String, Fault> {
    let mut lexer = Lexer::new(text, variables);
    let mut word = String::new();
    while lexer.peek().is_some() {
        lexer.piece(&mut word, DEEPEST, true)?;
    }
    Ok(word)
}

/// Replaces the variables of an item of a list, whose own quotes and backslashes are those of JSON and gone already.
pub(crate) fn expand(text: &str, variables: &Variables) -> Result<String, Fault> {
    let mut lexer = Lexer::new(text, variables);
    let mut item = String::new();
    while let Some(c) = lexer.peek() {
        match c {
            '$' => lexer.variable(&mut item, DEEPEST, true)?,
            _ => item.extend(lexer.next()),
        }
    }
    Ok(item)
}

/// Where the first word ends, its quotes not looked into.
pub(crate) fn first_end(text: &str) -> usize {
    let mut quote = None;
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match (quote, c) {
            (None, c) if c.is_whitespace() => return at,
            (None, '\'' | '"') => quote = Some(c),
            (Some(open), c) if c == open => quote = None,
            (None | Some('"'), '\\') => drop(chars.next()),
            _ => {}
        }
    }
    text.len()
}

/// Reads a text once, from its beginning to its end.
struct Lexer<'t> {
    text: &'t str,
    /// The byte that is read next.
    at: usize,
    variables: &'t Variables,
}

/// What `${NAME…}` does with its text.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Operation {
    /// `-`: the text stands in for a value that is not there.
    Default,
    /// `+`: the text stands for a value that is there.
    Alternative,
    /// `?`: the text says why a value must be there.
    Required,
}

impl<'t> Lexer<'t> {
    fn new(text: &'t str, variables: &'t Variables) -> Self {
        Lexer { text, at: 0, variables }
    }

    fn rest(&self) -> &'t str {
        &self.text[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += c.len_utf8();
        Some(c)
    }

    fn skip_blanks(&mut self) {
        self.at += self.rest().len() - self.rest().trim_start().len();
    }

    /// One piece outside of quotes. What is not `needed` is only skipped: a variable in it need not be set.
    fn piece(&mut self, into: &mut String, depth: usize, needed: bool) -> Result<(), Fault> {
        let at = self.at;
        match self.peek() {
            Some('$') => return self.variable(into, depth, needed),
            Some('\'') => return self.single_quoted(into),
            Some('"') => return self.double_quoted(into, depth, needed),
            _ => {}
        }
        match self.next() {
            Some('\\') => {
                let escaped = self.next();
                into.push(escaped.ok_or_else(|| Fault::at(at, "it ends with a backslash"))?);
            }
            plain => into.extend(plain),
        }
        Ok(())
    }

    fn single_quoted(&mut self, into: &mut String) -> Result<(), Fault> {
        let open = self.at;
        let inner = &self.text[open + 1..];
        let Some(length) = inner.find('\'') else {
            return Err(Fault::at(open, "the quote ' is not closed"));
        };
        into.push_str(&inner[..length]);
        self.at = open + 1 + length + 1;
        Ok(())
    }

    fn double_quoted(&mut self, into: &mut String, depth: usize, needed: bool) -> Result<(), Fault> {
        let open = self.at;
        self.at += 1;
        while let Some(c) = self.peek() {
            if c == '$' {
                self.variable(into, depth, needed)?;
                continue;
            }
            self.at += c.len_utf8();
            match c {
                '"' => return Ok(()),
                // Only what would mean something else is escaped.
                '\\' => match self.peek() {
                    Some('"' | '$' | '\\') => into.extend(self.next()),
                    _ => into.push('\\'),
                },
                _ => into.push(c),
            }
        }
        Err(Fault::at(open, "the quote \" is not closed"))
    }

    /// The value of the variable that starts with the `$` here.
    fn variable(&mut self, into: &mut String, depth: usize, needed: bool) -> Result<(), Fault> {
        let dollar = self.at;
        self.at += 1;
        if self.peek() == Some('{') {
            self.at += 1;
            let depth = depth
                .checked_sub(1)
                .ok_or_else(|| Fault::at(dollar, "too many ${ in each other"))?;
            return self.braced(into, dollar, depth, needed);
        }
        if self.rest().starts_with(|c: char| c.is_ascii_digit()) {
            into.push('$');
            return Ok(());
        }
        match self.name() {
            "" => into.push('$'),
            name if needed => into.push_str(self.value(name, dollar)?),
            _ => {}
        }
        Ok(())
    }

    /// What follows `${`, up to its brace.
    fn braced(&mut self, into: &mut String, dollar: usize, depth: usize, needed: bool) -> Result<(), Fault> {
        let name = self.name();
        let colon = self.rest().starts_with(':');
        self.at += usize::from(colon);
        let operation = match self.next() {
            None => return Err(Fault::at(dollar, "${ is not closed")),
            Some('}') if !colon => {
                if needed {
                    into.push_str(self.value(name, dollar)?);
                }
                return Ok(());
            }
            Some('-') => Operation::Default,
            Some('+') => Operation::Alternative,
            Some('?') => Operation::Required,
            Some(_) => return Err(self.not_understood(dollar)),
        };
        // With the colon an empty value counts as none.
        let value = self.variables.get(name).filter(|value| !colon || !value.is_empty());
        let needed_text = needed && (operation == Operation::Alternative) == value.is_some();
        let mut text = String::new();
        loop {
            match self.peek() {
                None => return Err(Fault::at(dollar, "${ is not closed")),
                Some('}') => break,
                Some(_) => self.piece(&mut text, depth, needed_text)?,
            }
        }
        self.at += 1;
        match (operation, value) {
            _ if !needed => {}
            (Operation::Default | Operation::Required, Some(value)) => into.push_str(value),
            (Operation::Default, None) | (Operation::Alternative, Some(_)) => into.push_str(&text),
            (Operation::Alternative, None) => {}
            (Operation::Required, None) if text.is_empty() => {
                return Err(Fault::at(dollar, format!("the variable {name:?} must be set")));
            }
            (Operation::Required, None) => return Err(Fault::at(dollar, format!("{name}: {text}"))),
        }
        Ok(())
    }

    fn not_understood(&self, dollar: usize) -> Fault {
        let shown = self.text[dollar..].split_inclusive('}').next().unwrap_or_default();
        let known = "${NAME}, ${NAME:-default}, ${NAME:+text}, ${NAME:?message}";
        match shown.ends_with('}') {
            true => Fault::at(dollar, format!("{shown} is not understood (known: {known})")),
            false => Fault::at(dollar, "${ is not closed"),
        }
    }

    /// The name that begins here; it may be empty.
    fn name(&mut self) -> &'t str {
        let rest = self.rest();
        let length = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        let name = &rest[..length.unwrap_or(rest.len())];
        self.at += name.len();
        name
    }

    fn value(&self, name: &str, dollar: usize) -> Result<&'t str, Fault> {
        let value = self.variables.get(name).map(String::as_str);
        value.ok_or_else(|| {
            let hint = crate::names::did_you_mean(name, self.variables.keys().map(String::as_str));
            let message = format!("the variable {name:?} is not set by ARG, ENV or --build-arg{hint}");
            Fault::at(dollar, message)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split_texts(text: &str, variables: &Variables) -> Vec<String> {
        split(text, variables)
            .unwrap()
            .into_iter()
            .map(|word| word.text)
            .collect()
    }

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
            ("é${A}é é", vec!["é1 2é", "é"]),
        ] {
            assert_eq!(split_texts(text, &variables), expected, "{text}");
        }
        assert_eq!(expand("a $A b", &variables).unwrap(), "a 1 2 b");
        assert_eq!(expand("it's \"$A\" \\x", &variables).unwrap(), "it's \"1 2\" \\x");
        assert_eq!(expand("${N:-'b c'}", &variables).unwrap(), "b c");
        assert_eq!(join(" a  'b  c'  $A", &variables).unwrap(), " a  b  c  1 2");
    }

    /// What buildkit's lexer gives for the same texts.
    #[test]
    fn quotes_in_the_text_of_an_expansion_are_quotes() {
        let variables = Variables::from([("A".into(), "1 2".into()), ("HOME".into(), "/root".into())]);
        for (text, expected) in [
            ("${NAME:-\"kibana\"}", vec!["kibana"]),
            ("a${X:-'b c'}d", vec!["ab cd"]),
            ("${H:-'$HOME'}", vec!["$HOME"]),
            ("${H:-\"$HOME\"}", vec!["/root"]),
            ("${H:-$HOME/x}", vec!["/root/x"]),
            ("\"${X:-'b'}\" \"${X:-\"b\"}\"", vec!["b", "b"]),
            ("${X:-b c} d", vec!["b c", "d"]),
            ("${X:-\"}\"}z", vec!["}z"]),
            ("${X:-'}'}z ${X:-\\}}z", vec!["}z", "}z"]),
            ("${X:-{}}", vec!["{}"]),
            ("${X:-} ${X-''}", vec!["", ""]),
            ("${A:-'no'} ${A:+\"it is $A\"}", vec!["1 2", "it is 1 2"]),
            ("${X:-${Y:-\"a b\"}}", vec!["a b"]),
            ("'${X:-\"a\"}'", vec!["${X:-\"a\"}"]),
        ] {
            assert_eq!(split_texts(text, &variables), expected, "{text}");
        }
    }

    #[test]
    fn what_is_not_needed_need_not_be_set() {
        let variables = Variables::from([("A".into(), "1".into())]);
        assert_eq!(split_texts("${A:-$N} ${N:+$M}x ${A:?$N}", &variables), ["1", "x", "1"]);
    }

    #[test]
    fn the_first_word_ends_outside_of_its_quotes() {
        for (text, first) in [
            ("a b", "a"),
            ("\"a b\"=c d", "\"a b\"=c"),
            ("'a \\' b", "'a \\'"),
            ("a\\ b c", "a\\ b"),
            ("\"a\\\" b\" c", "\"a\\\" b\""),
            ("'a b", "'a b"),
        ] {
            assert_eq!(&text[..first_end(text)], first);
        }
    }

    #[test]
    fn faults_know_their_byte() {
        for (bad, at, message) in [
            ("x 'a", 2, "the quote ' is not closed"),
            ("x \"a", 2, "the quote \" is not closed"),
            ("xx${A", 2, "${ is not closed"),
            ("xx${A:-'a'", 2, "${ is not closed"),
            ("xx${A:-'a}", 7, "the quote ' is not closed"),
            ("a  $B", 3, "the variable \"B\" is not set by ARG, ENV or --build-arg"),
            ("a\\", 1, "it ends with a backslash"),
            ("${A#x}", 0, "${A#x} is not understood"),
            ("${A:}", 0, "${A:} is not understood"),
            ("b ${A:?give it}", 2, "A: give it"),
            ("b ${A:?'give it'}", 2, "A: give it"),
            ("b ${A:-${A:-$C}}", 12, "the variable \"C\" is not set"),
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
