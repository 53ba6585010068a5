//! The one place that turns an argument vector into the string SSH carries.

use crate::{Error, Result};

/// Quotes `argv` for a POSIX shell, which is what sshd hands the string to. Plain words stay as they are, everything else goes in
/// single quotes.
///
/// # Errors
/// An empty vector, and NUL bytes, which no argument can hold.
pub fn quote<S: AsRef<str>>(argv: &[S]) -> Result<String> {
    if argv.is_empty() {
        return Err(Error::Command("it is empty"));
    }
    let mut line = String::new();
    for (position, word) in argv.iter().enumerate() {
        let word = word.as_ref();
        if word.contains('\0') {
            return Err(Error::Command("an argument holds a NUL byte"));
        }
        if position > 0 {
            line.push(' ');
        }
        push_word(&mut line, word, position == 0);
    }
    Ok(line)
}

/// A `=` in the first word would be an assignment to the shell, so only later words may carry it bare.
fn push_word(line: &mut String, word: &str, first: bool) {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./:@%+,".contains(c) || (c == '=' && !first);
    if !word.is_empty() && word.chars().all(plain) {
        line.push_str(word);
        return;
    }
    line.push('\'');
    for c in word.chars() {
        match c {
            '\'' => line.push_str(r"'\''"),
            c => line.push(c),
        }
    }
    line.push('\'');
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn words_are_quoted_only_when_needed() {
        let table: &[(&[&str], &str)] = &[
            (&["ls", "-l", "/a_b.c"], "ls -l /a_b.c"),
            (&["a b"], "'a b'"),
            (&["echo", ""], "echo ''"),
            (&["echo", "it's"], r"echo 'it'\''s'"),
            (
                &["echo", "$(rm -rf /)", "`x`", "a;b", "a\nb"],
                "echo '$(rm -rf /)' '`x`' 'a;b' 'a\nb'",
            ),
            (&["dd", "of=/x"], "dd of=/x"),
            (&["A=b", "c"], "'A=b' c"),
            (&["~root", "*"], "'~root' '*'"),
        ];
        for (argv, expected) in table {
            assert_eq!(quote(argv).unwrap(), *expected);
        }
    }

    #[test]
    fn what_cannot_be_an_argument_is_refused() {
        assert!(quote::<&str>(&[]).is_err());
        assert!(quote(&["a\0b"]).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_real_shell_reads_back_the_same_words(words in proptest::collection::vec("[^\0]{0,12}", 1..5)) {
            let mut argv = vec!["printf".to_owned(), "%s\\0".to_owned()];
            argv.extend(words.iter().cloned());
            let out = std::process::Command::new("sh").arg("-c").arg(quote(&argv).unwrap()).output().unwrap();
            let expected: Vec<u8> = words.iter().flat_map(|w| w.bytes().chain([0])).collect();
            prop_assert_eq!(out.stdout, expected);
        }
    }
}
