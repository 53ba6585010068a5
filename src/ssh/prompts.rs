//! What a `keyboard-interactive` conversation (RFC 4256) is answered with: one secret, once.
//!
//! A server that asks for more (a one-time code, a new password) or wants the answer shown on a screen is not given the password a
//! second time or in the open; empty answers let it end the conversation by itself.

use russh::client::Prompt;

use crate::Secret;

/// Requests a server may make in one conversation.
const MAX_ROUNDS: usize = 10;
/// Characters of a prompt that are shown in errors.
const SHOWN: usize = 60;

/// One conversation.
pub(crate) struct Prompts<'a> {
    password: &'a Secret,
    given: bool,
    rounds: usize,
    /// The first prompt we had no answer for.
    pub(crate) unanswered: Option<String>,
}

impl<'a> Prompts<'a> {
    pub(crate) fn new(password: &'a Secret) -> Self {
        Self {
            password,
            given: false,
            rounds: 0,
            unanswered: None,
        }
    }

    /// One answer for each prompt of a request; `None` when there have been too many requests.
    pub(crate) fn answer(&mut self, prompts: &[Prompt]) -> Option<Vec<String>> {
        self.rounds += 1;
        if self.rounds > MAX_ROUNDS {
            return None;
        }
        let one_secret = prompts.iter().filter(|prompt| !prompt.echo).count() == 1;
        let give = one_secret && !self.given;
        let answers = prompts.iter().map(|prompt| {
            if give && !prompt.echo {
                self.given = true;
                return self.password.expose().to_owned();
            }
            self.unanswered.get_or_insert_with(|| shown(&prompt.prompt));
            String::new()
        });
        Some(answers.collect())
    }
}

/// A server's text without anything a terminal would obey.
fn shown(prompt: &str) -> String {
    let text: String = prompt.chars().filter(|c| !c.is_control()).take(SHOWN).collect();
    text.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompts(texts: &[&str]) -> Vec<Prompt> {
        // A plus sign: what is typed would be shown.
        let prompt = |text: &&str| Prompt {
            prompt: text.trim_start_matches('+').to_owned(),
            echo: text.starts_with('+'),
        };
        texts.iter().map(prompt).collect()
    }

    #[test]
    fn the_password_is_given_once_and_never_to_a_prompt_that_echoes() {
        type Conversation<'a> = &'a [(&'a [&'a str], &'a [&'a str])];
        let table: &[(Conversation<'_>, Option<&str>)] = &[
            (&[(&["Password: "], &["pw"])], None),
            (&[(&[], &[]), (&["Passwort:"], &["pw"]), (&[], &[])], None),
            (&[(&["+login:", "Password:"], &["", "pw"])], Some("login:")),
            (&[(&["+Password:"], &[""])], Some("Password:")),
            (&[(&["New:", "Again:"], &["", ""])], Some("New:")),
            (
                &[(&["Password:"], &["pw"]), (&["Code\x1b[2J:"], &[""])],
                Some("Code[2J:"),
            ),
            (&[(&["Password:"], &["pw"]), (&["Password:"], &[""])], Some("Password:")),
        ];
        let secret = Secret::new("pw");
        for (conversation, unanswered) in table {
            let mut state = Prompts::new(&secret);
            for (asked, expected) in *conversation {
                assert_eq!(state.answer(&prompts(asked)).unwrap(), *expected, "{asked:?}");
            }
            assert_eq!(state.unanswered.as_deref(), *unanswered);
        }
    }

    #[test]
    fn a_server_that_never_stops_asking_is_left() {
        let secret = Secret::new("pw");
        let mut state = Prompts::new(&secret);
        let rounds = (0..100).take_while(|_| state.answer(&[]).is_some()).count();
        assert_eq!(rounds, MAX_ROUNDS);
    }
}
