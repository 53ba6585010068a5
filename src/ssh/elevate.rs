//! Becoming root by sudo without a terminal.
//!
//! sudo reads the password from the program's own stdin (`-S`), but only if it wants one at all; writing it blindly would hand it to the
//! program. So the way is found once per connection with the harmless program `true`, `-k` (cached credentials are not used) makes every later call
//! behave the same, and the password is written only after sudo's prompt, a word nobody else would print, has appeared on stderr.

use crate::{Command, Connection, Output, Result, Secret, process::ExitStatus};

/// What is noted when sudo does not take the password.
pub(crate) const ASKED_AGAIN: &str = "sudo asked for the password again: it is wrong";
/// What sudo says, in its first locale, when it does not run the program.
const REFUSALS: [&str; 8] = [
    "sudo: a password is required",
    "sudo: interactive authentication is required",
    "sudo: no tty present",
    "must have a tty",
    "incorrect password attempt",
    "is not allowed to execute",
    "is not in the sudoers file",
    "may not run sudo",
];

/// How commands become root on this connection.
#[derive(Clone, Debug)]
pub(crate) enum Method {
    /// We are root.
    Direct,
    /// sudo asks for nothing.
    Sudo,
    /// sudo asks for the password.
    SudoPassword(Secret),
}

impl Method {
    /// The vector that runs `argv` as root; `prompt` is what sudo shall ask with.
    pub(crate) fn wrap(&self, argv: &[String], prompt: &str) -> Vec<String> {
        let sudo: &[&str] = match self {
            Self::Direct => &[],
            Self::Sudo => &["env", "LC_ALL=C", "sudo", "-k", "-n", "--"],
            Self::SudoPassword(_) => &["env", "LC_ALL=C", "sudo", "-k", "-S", "-p", prompt, "--"],
        };
        sudo.iter()
            .map(|&word| word.to_owned())
            .chain(argv.iter().cloned())
            .collect()
    }

    pub(crate) fn password(&self) -> Option<&Secret> {
        match self {
            Self::SudoPassword(password) => Some(password),
            _ => None,
        }
    }
}

/// Finds the way for a login that is not root.
pub(crate) async fn find(connection: &Connection, password: Option<&Secret>) -> Result<Method> {
    let truth = Command::new(["true"]).timeout(std::time::Duration::from_secs(30));
    let plain = connection.exec_as(&truth, &Method::Sudo).await?;
    if plain.status.success() {
        return Ok(Method::Sudo);
    }
    let wants_password =
        plain.stderr.contains("password is required") || plain.stderr.contains("interactive authentication");
    let failure = |reason: String| connection.no_root(truth.argv(), reason);
    if !wants_password {
        // Where nothing can be run, sudo cannot either.
        connection.prove_shell().await?;
        return Err(failure(explain(&plain.status, &plain.stderr)));
    }
    let Some(password) = password else {
        return Err(failure(
            "sudo wants a password and none is given; give one, or allow NOPASSWD in sudoers".to_owned(),
        ));
    };
    let method = Method::SudoPassword(password.clone());
    let proven = connection.exec_as(&truth, &method).await?;
    if proven.status.success() {
        Ok(method)
    } else {
        Err(failure(explain(&proven.status, &proven.stderr)))
    }
}

/// Whether sudo did not take the password.
pub(crate) fn asked_again(stderr: &str) -> bool {
    stderr.contains(ASKED_AGAIN)
}

/// Why sudo did not run a program, if that is how it ended.
pub(crate) fn refusal(method: &Method, output: &Output) -> Option<String> {
    let refused = match (method, &output.status) {
        (Method::Direct, _) => false,
        (_, ExitStatus::Lost(_)) => asked_again(&output.stderr),
        (_, ExitStatus::Code(1)) => REFUSALS.iter().any(|words| output.stderr.contains(words)),
        _ => false,
    };
    refused.then(|| explain(&output.status, &output.stderr))
}

/// sudo's own words, turned into cause and remedy.
pub(crate) fn explain(status: &ExitStatus, stderr: &str) -> String {
    let says = |text: &str| stderr.contains(text);
    if *status == ExitStatus::Code(127) || says("sudo: command not found") || says("'sudo': No such file") {
        "sudo is not installed there; log in as root, or install sudo".to_owned()
    } else if says("asked for the password again") || says("incorrect password") || says("Sorry, try again") {
        "the sudo password is wrong".to_owned()
    } else if says("not in the sudoers file") || says("not allowed to execute") || says("may not run sudo") {
        "sudoers does not allow it; add the user to sudoers or log in as root".to_owned()
    } else if says("password is required") || says("interactive authentication") {
        "sudoers wants a password for it, and not for every program; allow it without (NOPASSWD), or give one"
            .to_owned()
    } else if says("must have a tty") || says("requiretty") {
        "sudoers demands a terminal; remove `Defaults requiretty` for this user".to_owned()
    } else {
        let last = stderr.lines().rfind(|l| !l.trim().is_empty()).unwrap_or("no message");
        format!("sudo ended with {status}: {last}")
    }
}

/// Takes sudo's prompt out of stderr, also when it comes in pieces.
pub(crate) struct PromptFilter {
    prompt: Vec<u8>,
    held: Vec<u8>,
    seen: bool,
}

impl PromptFilter {
    pub(crate) fn new(prompt: &str) -> Self {
        Self {
            prompt: prompt.as_bytes().to_vec(),
            held: Vec::new(),
            seen: false,
        }
    }

    /// A word that no program prints by chance.
    pub(crate) fn fresh_prompt() -> String {
        let mut random = [0u8; 12];
        // A prompt that is guessable in the worst case is still only a prompt.
        let _ = aws_lc_rs::rand::fill(&mut random);
        let hex: String = random.iter().map(|b| format!("{b:02x}")).collect();
        format!("sudo-prompt-{hex}:")
    }

    /// Whether the prompt came since the last [`Self::reset`].
    pub(crate) fn seen(&self) -> bool {
        self.seen
    }

    pub(crate) fn reset(&mut self) {
        self.seen = false;
    }

    /// Takes bytes of stderr, returns those to show.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.held.extend_from_slice(bytes);
        while let Some(at) = self.held.windows(self.prompt.len()).position(|w| w == self.prompt) {
            self.held.drain(at..at + self.prompt.len());
            self.seen = true;
        }
        // Keep back what could be the beginning of a prompt.
        let keep = (1..self.prompt.len())
            .rev()
            .find(|&n| self.held.ends_with(&self.prompt[..n]))
            .unwrap_or(0);
        let shown = self.held.len() - keep;
        self.held.drain(..shown).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prompt_is_taken_out_wherever_it_is_cut() {
        let text = b"lecture\nPROMPT:rest PROMPT";
        for cut in 0..text.len() {
            let mut filter = PromptFilter::new("PROMPT:");
            let mut shown = filter.feed(&text[..cut]);
            shown.extend(filter.feed(&text[cut..]));
            assert!(filter.seen());
            assert_eq!(shown, b"lecture\nrest ", "cut at {cut}");
        }
    }

    #[test]
    fn sudo_is_never_given_the_password_as_an_argument() {
        let method = Method::SudoPassword("hunter2".into());
        let argv = method.wrap(&["id".to_owned()], "P:");
        assert_eq!(argv, ["env", "LC_ALL=C", "sudo", "-k", "-S", "-p", "P:", "--", "id"]);
    }

    #[test]
    fn refusals_of_sudo_name_cause_and_remedy() {
        let table = [
            (127, "sh: sudo: not found", "not installed"),
            (1, "Sorry, try again.", "password is wrong"),
            (1, "bob is not in the sudoers file.", "sudoers does not allow"),
            (1, "sudo: sorry, you must have a tty to run sudo", "requiretty"),
            (1, "sudo: a password is required\n", "not for every program"),
            (1, "sudo: unknown trouble\n", "unknown trouble"),
        ];
        for (code, stderr, expected) in table {
            let said = explain(&ExitStatus::Code(code), stderr);
            assert!(said.contains(expected), "{said}");
        }
    }
}
