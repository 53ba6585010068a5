//! How the program ends: exit codes, and the one place where an error is printed.

use crate::context::Context;
use bootstrap::event::Event;

/// How a command ended without an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done, or nothing to do.
    Done,
    /// `plan` found something to do.
    Changes,
    /// Preflight refused; nothing was changed. The findings are printed already.
    Refused,
    /// The cluster does not pass its checks. The failures are printed already.
    Unhealthy,
    /// A command run on hosts failed there. Printed already.
    Failed,
}

impl Exit {
    /// The code of the process.
    pub fn code(self) -> u8 {
        match self {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Changes => 2,
            Exit::Refused => 3,
            Exit::Unhealthy => 4,
        }
    }
}

/// Tells an error with its causes to whoever watches, and gives the exit code.
pub fn report(context: &Context, error: &anyhow::Error) -> u8 {
    let mut causes = causes(error);
    if !context.out.is_json() {
        context.out.error(&render(&causes));
    }
    let message = if causes.is_empty() {
        String::new()
    } else {
        causes.remove(0)
    };
    context.observer.event(Event::Error { message, causes });
    1
}

/// The messages of the chain, outermost first, without those that the one before says already.
fn causes(error: &anyhow::Error) -> Vec<String> {
    let mut causes: Vec<String> = Vec::new();
    for cause in error.chain() {
        let text = without_numbers(&cause.to_string());
        if causes.last().is_none_or(|last| !last.contains(&text)) {
            causes.push(text);
        }
    }
    causes
}

/// A message without the numbers by which the system knows its errors: the words before them say the same.
fn without_numbers(text: &str) -> String {
    let mut parts = text.split(" (os error ");
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.split_once(')') {
            Some((number, rest)) if number.parse::<i32>().is_ok() => plain.push_str(rest),
            _ => plain.push_str(&format!(" (os error {part}")),
        }
    }
    plain
}

fn render(causes: &[String]) -> String {
    let mut text = causes.first().cloned().unwrap_or_default();
    for cause in causes.iter().skip(1) {
        text.push_str("\n  because: ");
        text.push_str(cause);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_errors_are_left_out() {
        for (text, plain) in [
            (
                "a: No such file or directory (os error 2)",
                "a: No such file or directory",
            ),
            ("a: denied (os error 13); b (os error 2), c", "a: denied; b, c"),
            ("(os error 2)", "(os error 2)"),
            ("x (os error two)", "x (os error two)"),
            ("x (os error 2", "x (os error 2"),
        ] {
            assert_eq!(without_numbers(text), plain);
        }
    }

    #[test]
    fn a_cause_that_is_said_already_is_not_repeated() {
        let error = anyhow::anyhow!("disk full")
            .context("a.txt: disk full")
            .context("cannot save");
        assert_eq!(causes(&error), ["cannot save", "a.txt: disk full"]);
        assert_eq!(render(&causes(&error)), "cannot save\n  because: a.txt: disk full");
    }
}
