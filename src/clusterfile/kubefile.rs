//! Kubefile (recipe of a cluster image) and Containerfile (recipe of a container image): one grammar, two sets of
//! instructions.
//!
//! [`lines`] cuts a text into logical lines and knows every instruction's name; [`Evaluator`] turns one line after the
//! other into an [`Instruction`] with its variables replaced. Nothing is executed here: that is the `image` crate's task.

mod evaluate;
mod instruction;
mod sources;
mod version;
mod words;

pub use evaluate::Evaluator;
pub use instruction::{AddFlags, Command, CopyFlags, ImageSource, Instruction, is_url};
pub use version::{KubeRange, kube_version_satisfies};

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
    /// Where the name stands.
    at: Position,
    /// Where parts of `rest` stand: the part's first byte, and that byte's place in the file.
    parts: Vec<(usize, Position)>,
}

impl Line {
    /// The line as it is shown to people and kept in an image's history.
    #[must_use]
    pub fn text(&self) -> String {
        format!("{} {}", self.keyword, self.rest)
    }

    /// Where the instruction's name stands.
    #[must_use]
    pub fn at(&self) -> Position {
        self.at
    }

    /// Where a byte of [`Line::rest`] stands in the file.
    #[must_use]
    pub fn place(&self, offset: usize) -> Position {
        let Some((start, at)) = self.parts.iter().rev().find(|(start, _)| *start <= offset) else {
            return self.at;
        };
        let before = self.rest.get(*start..offset).unwrap_or_default();
        Position {
            line: at.line,
            column: at.column + before.chars().count() as u64,
        }
    }

    /// Where `word` stands as it is written; the instruction's own place if it comes out of a variable.
    #[must_use]
    pub fn place_of(&self, word: &str) -> Position {
        let ends = |c: Option<char>| c.is_none_or(|c| c.is_whitespace() || "\"'=,[]:".contains(c));
        let found = self.rest.match_indices(word).find(|(offset, _)| {
            ends(self.rest[..*offset].chars().next_back()) && ends(self.rest[offset + word.len()..].chars().next())
        });
        match found {
            Some((offset, _)) if !word.is_empty() => self.place(offset),
            _ => self.at,
        }
    }
}

/// Cuts `text` into logical lines and checks that each begins with an instruction of the dialect.
///
/// # Errors
/// Every unknown instruction with the nearest known one; a first instruction other than FROM or ARG; no instruction.
pub fn lines(text: &str, file: &str, dialect: Dialect) -> Result<Vec<Line>, Problems> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut lines: Vec<Line> = Vec::new();
    let mut problems: Vec<Problem> = escape_directive(text, file).into_iter().collect();
    for logical in join_continuations(text) {
        match logical.line(dialect) {
            Ok(line) => lines.push(line),
            Err(message) => problems.push(Problem {
                file: file.to_string(),
                at: logical.place(0),
                message,
            }),
        }
    }
    if problems.is_empty() {
        problems.extend(check_from(&lines, file, dialect));
    }
    if problems.is_empty() {
        Ok(lines)
    } else {
        Err(Problems::new(problems))
    }
}

/// FROM comes first, and comes.
fn check_from(lines: &[Line], file: &str, dialect: Dialect) -> Option<Problem> {
    let (at, message) = match lines.iter().find(|line| line.keyword != "ARG") {
        None => (Position::default(), format!("this {} has no FROM", dialect.name())),
        Some(first) if first.keyword == "FROM" => return None,
        Some(first) => {
            let message = format!(
                "the first instruction must be FROM, not {} (only ARG may come before)",
                first.keyword
            );
            (first.at, message)
        }
    };
    Some(Problem {
        file: file.to_string(),
        at,
        message,
    })
}

/// Dockerfiles may choose another escape character in their first comments; ignoring that would misread the file.
fn escape_directive(text: &str, file: &str) -> Option<Problem> {
    for (index, line) in text.lines().enumerate() {
        let comment = line.trim().strip_prefix('#')?;
        let (name, value) = comment.split_once('=')?;
        if name.trim().eq_ignore_ascii_case("escape") && value.trim() != "\\" {
            return Some(Problem {
                file: file.to_string(),
                at: Position {
                    line: index as u64 + 1,
                    column: 1,
                },
                message: "the escape character is always \\; the escape directive is not supported".to_string(),
            });
        }
    }
    None
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

/// A logical line before its first word is known to be an instruction.
#[derive(Debug, Default)]
struct Logical {
    text: String,
    /// As [`Line::parts`], of `text`.
    parts: Vec<(usize, Position)>,
}

impl Logical {
    fn push(&mut self, number: u64, text: &str) {
        let at = Position {
            line: number,
            column: 1,
        };
        self.parts.push((self.text.len(), at));
        self.text.push_str(text);
    }

    /// Where the text's first word, or what follows it from `offset` on, stands.
    fn place(&self, offset: usize) -> Position {
        let offset = offset.max(self.text.len() - self.text.trim_start().len());
        let Some((start, at)) = self.parts.iter().rev().find(|(start, _)| *start <= offset) else {
            return Position::default();
        };
        Position {
            line: at.line,
            column: at.column + self.text[*start..offset].chars().count() as u64,
        }
    }

    fn line(&self, dialect: Dialect) -> Result<Line, String> {
        let trimmed = self.text.trim();
        let (keyword, rest) = trimmed.split_once(char::is_whitespace).unwrap_or((trimmed, ""));
        let upper = keyword.to_ascii_uppercase();
        let known = dialect.instructions().iter().find(|known| **known == upper);
        let keyword = known.ok_or_else(|| unknown_instruction(keyword, &upper, dialect))?;
        let rest = rest.trim();
        // `rest` is a part of `text`: what stands before it there is what its offsets lack.
        let cut = if rest.is_empty() {
            self.text.len()
        } else {
            self.text.trim_end().len() - rest.len()
        };
        let first = (0, self.place(cut.min(self.text.len())));
        let later = self.parts.iter().filter(|(start, _)| *start > cut);
        let parts = std::iter::once(first).chain(later.map(|(start, at)| (start - cut, *at)));
        Ok(Line {
            number: self.place(0).line,
            keyword,
            rest: rest.to_string(),
            at: self.place(0),
            parts: parts.collect(),
        })
    }
}

/// Physical lines joined where they end with a backslash, without comments and empty lines.
fn join_continuations(text: &str) -> Vec<Logical> {
    let mut result = Vec::new();
    let mut pending: Option<Logical> = None;
    for (index, physical) in text.lines().enumerate() {
        let trimmed = physical.trim();
        if trimmed.starts_with('#') || (trimmed.is_empty() && pending.is_none()) {
            continue;
        }
        let mut logical = pending.take().unwrap_or_default();
        let number = index as u64 + 1;
        match physical.trim_end().strip_suffix('\\') {
            Some(part) => {
                logical.push(number, part);
                pending = Some(logical);
            }
            None => {
                logical.push(number, physical.trim_end());
                result.push(logical);
            }
        }
    }
    result.extend(pending);
    result.retain(|logical| !logical.text.trim().is_empty());
    result
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
            "Kubefile:2:1: unknown instruction \"CPOY\", did you mean \"COPY\"?\n\
             Kubefile:3:1: ENTRYPOINT belongs in a Containerfile, not in a Kubefile\n\
             Kubefile:4:1: unknown instruction \"FOO\", did you mean \"FROM\"?"
        );
    }

    #[test]
    fn from_comes_first() {
        for (text, expected) in [
            (
                "COPY a b\nFROM scratch\n",
                "Kubefile:1:1: the first instruction must be FROM, not COPY",
            ),
            ("ARG X=1\n", "Kubefile: this Kubefile has no FROM"),
            ("", "Kubefile: this Kubefile has no FROM"),
        ] {
            let error = lines(text, "Kubefile", Dialect::Kubefile).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
        assert!(lines("ARG X=1\nFROM scratch\n", "Kubefile", Dialect::Kubefile).is_ok());
    }

    #[test]
    fn every_byte_of_a_line_knows_its_place_across_continuations() {
        let text = "FROM scratch\n  COPY é b \\\n    # a comment\n    ccc d/\n";
        let lines = lines(text, "f", Dialect::Kubefile).unwrap();
        let place = |word: &str| {
            let at = lines[1].place_of(word);
            (at.line, at.column)
        };
        assert_eq!((lines[1].at().line, lines[1].at().column), (2, 3));
        assert_eq!(place("é"), (2, 8));
        assert_eq!(place("b"), (2, 10), "columns count characters");
        assert_eq!(place("ccc"), (4, 5));
        assert_eq!(place("d/"), (4, 9));
        assert_eq!(place("cc"), (2, 3), "a part of a word is not the word");
    }

    #[test]
    fn another_escape_character_is_refused_and_a_byte_order_mark_is_not_text() {
        let error = lines("# syntax=x\n# escape=`\nFROM scratch\n", "f", Dialect::Kubefile).unwrap_err();
        assert!(error.to_string().starts_with("f:2:1: the escape character"), "{error}");
        for good in [
            "# escape=\\\nFROM scratch\n",
            "\u{feff}FROM scratch\n",
            "# a note\n# escape=`\nFROM scratch\n",
        ] {
            assert!(lines(good, "f", Dialect::Kubefile).is_ok(), "{good}");
        }
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
