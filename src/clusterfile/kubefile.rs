//! Kubefile (recipe of a cluster image) and Containerfile (recipe of a container image): one grammar, two sets of
//! instructions.
//!
//! [`lines`] cuts a text into logical lines and knows every instruction's name; [`Evaluator`] turns one line after the
//! other into an [`Instruction`] with its variables replaced. Nothing is executed here: that is the `image` crate's task.

mod evaluate;
mod form;
mod instruction;
mod lines;
mod sources;
mod version;
mod words;

pub use evaluate::Evaluator;
pub use instruction::{AddFlags, Command, CopyFlags, ImageSource, Instruction, is_url};
pub use lines::{Lines, lines};
pub use version::{KubeRange, kube_version_satisfies};

use crate::names::did_you_mean;
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        // Its file would lie among the crates, where the workspace takes every folder for one.
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_text_makes_the_parser_panic(text in "(?s)([A-Z]{2,10} [ -~]{0,40}\\\\?\n|.{0,40}){0,6}") {
            for dialect in [Dialect::Kubefile, Dialect::Containerfile] {
                let mut evaluator = Evaluator::new("f", dialect, &Default::default());
                for line in &lines(&text, "f", dialect).lines {
                    let _ = evaluator.instruction(line);
                }
            }
        }
    }
}
