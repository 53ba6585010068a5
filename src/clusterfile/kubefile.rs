//! Kubefile (recipe of a cluster image) and Containerfile (recipe of a container image): one grammar, two sets of
//! instructions.
//!
//! [`lines`] cuts a text into logical lines and knows every instruction's name; [`Evaluator`] turns one line after the
//! other into an [`Instruction`] with its variables replaced. Nothing is executed here: that is the `image` crate's task.

mod evaluate;
mod instruction;
mod words;

pub use evaluate::Evaluator;
pub use instruction::{Command, CopyFlags, ImageSource, Instruction};

use crate::names::did_you_mean;
use crate::problem::{Problem, Problems};
use crate::yaml::Position;

/// Which instructions a file may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// A cluster image.
    Kubefile,
    /// An ordinary container image.
    Containerfile,
}

const KUBEFILE: &[&str] = &[
    "FROM",
    "ARG",
    "ENV",
    "LABEL",
    "COPY",
    "ADD",
    "RUN",
    "IMAGE",
    "CNI",
    "CSI",
    "APP",
    "APPENV",
    "APPCMDS",
    "LAUNCH",
    "CMDS",
    "CMD",
    "KUBEVERSION",
];
const CONTAINERFILE: &[&str] = &[
    "FROM",
    "ARG",
    "ENV",
    "LABEL",
    "COPY",
    "ADD",
    "RUN",
    "WORKDIR",
    "USER",
    "EXPOSE",
    "ENTRYPOINT",
    "CMD",
];

impl Dialect {
    /// The instructions of this dialect.
    #[must_use]
    pub fn instructions(self) -> &'static [&'static str] {
        match self {
            Dialect::Kubefile => KUBEFILE,
            Dialect::Containerfile => CONTAINERFILE,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Dialect::Kubefile => "Kubefile",
            Dialect::Containerfile => "Containerfile",
        }
    }
}

/// One logical line: continuations joined, comments gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Where it begins in the file, from 1.
    pub number: u64,
    /// The instruction's name in capitals, known to the dialect.
    pub keyword: &'static str,
    /// What follows the name, trimmed.
    pub rest: String,
}

impl Line {
    /// The line as it is shown to people and kept in an image's history.
    #[must_use]
    pub fn text(&self) -> String {
        format!("{} {}", self.keyword, self.rest)
    }
}

/// Cuts `text` into logical lines and checks that each begins with an instruction of the dialect.
///
/// # Errors
/// Every unknown instruction with the nearest known one; a first instruction other than FROM or ARG; no instruction.
pub fn lines(text: &str, file: &str, dialect: Dialect) -> Result<Vec<Line>, Problems> {
    let mut lines: Vec<Line> = Vec::new();
    let mut problems = Vec::new();
    for (number, logical) in join_continuations(text) {
        let (keyword, rest) = logical.split_once(char::is_whitespace).unwrap_or((&logical, ""));
        let at = Position {
            line: number,
            column: 0,
        };
        let upper = keyword.to_ascii_uppercase();
        match dialect.instructions().iter().find(|known| **known == upper) {
            Some(known) => lines.push(Line {
                number,
                keyword: known,
                rest: rest.trim().to_string(),
            }),
            None => {
                let message = unknown_instruction(keyword, &upper, dialect);
                problems.push(Problem {
                    file: file.to_string(),
                    at,
                    message,
                });
            }
        }
    }
    if let Some(first) = lines.iter().find(|line| line.keyword != "ARG")
        && first.keyword != "FROM"
        && problems.is_empty()
    {
        let at = Position {
            line: first.number,
            column: 0,
        };
        let message = format!(
            "the first instruction must be FROM, not {} (only ARG may come before)",
            first.keyword
        );
        problems.push(Problem {
            file: file.to_string(),
            at,
            message,
        });
    } else if lines.iter().all(|line| line.keyword == "ARG") && problems.is_empty() {
        let message = format!("this {} has no FROM", dialect.name());
        problems.push(Problem {
            file: file.to_string(),
            at: Position::default(),
            message,
        });
    }
    if problems.is_empty() {
        Ok(lines)
    } else {
        Err(Problems::new(problems))
    }
}

fn unknown_instruction(keyword: &str, upper: &str, dialect: Dialect) -> String {
    let other = match dialect {
        Dialect::Kubefile => Dialect::Containerfile,
        Dialect::Containerfile => Dialect::Kubefile,
    };
    if other.instructions().contains(&upper) {
        return format!("{upper} belongs in a {}, not in a {}", other.name(), dialect.name());
    }
    let hint = did_you_mean(upper, dialect.instructions().iter().copied());
    let shown: String = keyword.chars().take(40).collect();
    format!("unknown instruction {shown:?}{hint}")
}

/// Logical lines with the number of their first physical line.
fn join_continuations(text: &str) -> Vec<(u64, String)> {
    let mut result = Vec::new();
    let mut pending: Option<(u64, String)> = None;
    for (index, physical) in text.lines().enumerate() {
        let trimmed = physical.trim();
        if trimmed.starts_with('#') || (trimmed.is_empty() && pending.is_none()) {
            continue;
        }
        let (start, mut logical) = pending.take().unwrap_or((index as u64 + 1, String::new()));
        match physical.trim_end().strip_suffix('\\') {
            Some(part) => {
                logical.push_str(part);
                pending = Some((start, logical));
            }
            None => {
                logical.push_str(physical.trim_end());
                result.push((start, logical));
            }
        }
    }
    result.extend(pending);
    result
        .into_iter()
        .map(|(number, line)| (number, line.trim().to_string()))
        .filter(|(_, line)| !line.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parsed(text: &str) -> Vec<(u64, &'static str, String)> {
        let lines = lines(text, "Kubefile", Dialect::Kubefile).unwrap();
        lines
            .into_iter()
            .map(|line| (line.number, line.keyword, line.rest))
            .collect()
    }

    #[test]
    fn continuations_and_comments_keep_the_first_line_number() {
        let text = "# head\n\nfrom scratch\nRUN a \\\n  # inside\n  b\nCOPY x y\n";
        assert_eq!(
            parsed(text),
            [
                (3, "FROM", "scratch".into()),
                (4, "RUN", "a   b".into()),
                (7, "COPY", "x y".into())
            ]
        );
    }

    #[test]
    fn every_unknown_instruction_is_named_with_its_nearest() {
        let error = lines(
            "FROM scratch\nCPOY a b\nENTRYPOINT x\nFOO\n",
            "Kubefile",
            Dialect::Kubefile,
        )
        .unwrap_err();
        assert_eq!(
            error.to_string(),
            "Kubefile:2: unknown instruction \"CPOY\", did you mean \"COPY\"?\n\
             Kubefile:3: ENTRYPOINT belongs in a Containerfile, not in a Kubefile\n\
             Kubefile:4: unknown instruction \"FOO\", did you mean \"FROM\"?"
        );
    }

    #[test]
    fn from_comes_first() {
        for (text, expected) in [
            (
                "COPY a b\nFROM scratch\n",
                "Kubefile:1: the first instruction must be FROM, not COPY",
            ),
            ("ARG X=1\n", "Kubefile: this Kubefile has no FROM"),
            ("", "Kubefile: this Kubefile has no FROM"),
        ] {
            let error = lines(text, "Kubefile", Dialect::Kubefile).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
        assert!(lines("ARG X=1\nFROM scratch\n", "Kubefile", Dialect::Kubefile).is_ok());
    }

    proptest! {
        // Its file would lie among the crates, where the workspace takes every folder for one.
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_text_makes_the_parser_panic(text in "(?s)([A-Z]{2,10} [ -~]{0,40}\\\\?\n|.{0,40}){0,6}") {
            for dialect in [Dialect::Kubefile, Dialect::Containerfile] {
                if let Ok(lines) = lines(&text, "f", dialect) {
                    let mut evaluator = Evaluator::new("f", dialect, &Default::default());
                    for line in &lines {
                        let _ = evaluator.instruction(line);
                    }
                }
            }
        }
    }
}
