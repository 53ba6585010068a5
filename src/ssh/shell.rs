//! The login shell: whatever we run goes through it, and it need not be a POSIX shell.

use std::time::Duration;

use crate::{
    Command, Connection, Error, Output, Result,
    elevate::{Method, PromptFilter},
    quote::quote,
};

/// How long a login shell may take to run one small program.
const SHELL_TIMEOUT: Duration = Duration::from_secs(15);
/// How much of what a login shell says is told, in characters.
const TOLD: usize = 300;
/// A POSIX shell that decodes its `$0` and runs it. It has no character that a login shell takes for more than itself
/// between single quotes.
const DECODER: &str = r#"eval "$(printf %b "$(echo "$0" | tr = "\134")")""#;

/// The string that carries `argv` through any login shell. Between single quotes csh minds line ends and `!`, fish
/// minds backslashes: where there is one of these, the whole is encoded, and decoded by a POSIX shell.
///
/// # Errors
/// As [`quote`].
pub(crate) fn line(argv: &[String]) -> Result<String> {
    let line = quote(argv)?;
    let risky = |word: &String| word.contains(['\n', '!', '\\']);
    if !argv.iter().any(risky) {
        return Ok(line);
    }
    let mut encoded = String::new();
    for byte in format!("exec {line}").bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'_' | b'-' => encoded.push(char::from(byte)),
            // `printf %b` knows bytes by a backslash, a zero and three digits.
            _ => encoded.push_str(&format!("=0{byte:03o}")),
        }
    }
    quote(&["sh", "-c", DECODER, &encoded])
}

impl Connection {
    /// Proves that the login shell runs programs, whatever else it prints.
    ///
    /// # Errors
    /// [`Error::Shell`] with what it said instead; else what befalls the connection.
    pub async fn prove_shell(&self) -> Result<()> {
        let word = PromptFilter::fresh_prompt();
        let command = Command::new(["echo", &word]).timeout(SHELL_TIMEOUT);
        let reason = match self.exec_as(&command, &Method::Direct).await {
            Ok(output) if String::from_utf8_lossy(&output.stdout).contains(&word) => return Ok(()),
            Ok(output) => instead(&output),
            Err(Error::Timeout { .. }) => {
                let seconds = SHELL_TIMEOUT.as_secs();
                format!("it did not run `echo` within {seconds} s, so it waits for something")
            }
            Err(other) => return Err(other),
        };
        Err(Error::Shell {
            host: self.target().to_owned(),
            user: self.user().to_owned(),
            reason,
        })
    }
}

/// What a shell did that did not run the program.
fn instead(output: &Output) -> String {
    let said = [output.stderr.as_str(), &String::from_utf8_lossy(&output.stdout)].join(" ");
    let said = plain(&said);
    match said.as_str() {
        "" => format!("it ended with {} and said nothing", output.status),
        said => format!("it ended with {} and said {said:?}", output.status),
    }
}

/// One line of what somebody else wrote, fit to be told.
pub fn plain(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    let mut text: String = words.join(" ").chars().filter(|c| !c.is_control()).collect();
    if let Some((end, _)) = text.char_indices().nth(TOLD) {
        text.truncate(end);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn argv(words: &[&str]) -> Vec<String> {
        words.iter().map(|&word| word.to_owned()).collect()
    }

    #[test]
    fn plain_lines_stay_readable_and_others_have_nothing_a_shell_could_mind() {
        assert_eq!(line(&argv(&["mkdir", "-p", "/a b"])).unwrap(), "mkdir -p '/a b'");
        for risky in ["a\nb", "wow!", "a\\b"] {
            let line = line(&argv(&["printf", "%s", risky])).unwrap();
            assert!(!line.contains(['\n', '!']) && line.matches('\\').count() == 1, "{line}");
        }
    }

    #[test]
    fn what_is_encoded_comes_out_as_it_went_in() {
        let every: String = (1..=0x7f_u8).map(char::from).chain("äß€".chars()).collect();
        let words = ["printf", "%s|", &every, "", "\n", "!!", "\\n", "=0101", "-n", "100%s"];
        let line = line(&argv(&words)).unwrap();
        let expected: String = words[2..].iter().map(|word| format!("{word}|")).collect();
        for shell in ["/bin/sh", "/bin/bash"] {
            let output = std::process::Command::new(shell).args(["-c", &line]).output().unwrap();
            assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{shell}");
        }
    }

    #[test]
    fn what_a_shell_said_is_told_in_one_line_of_bounded_length() {
        let output = |stdout: &str, stderr: &str| Output {
            status: crate::ExitStatus::Code(1),
            stdout: stdout.into(),
            stderr: stderr.into(),
        };
        for (said, expected) in [
            (output("", ""), "it ended with exit code 1 and said nothing"),
            (
                output("go\x1b away\n", ""),
                "it ended with exit code 1 and said \"go away\"",
            ),
        ] {
            assert_eq!(instead(&said), expected);
        }
        assert!(instead(&output(&"long ".repeat(1000), "")).len() < 2 * TOLD);
    }
}
