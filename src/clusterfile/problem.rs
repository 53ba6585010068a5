//! What is wrong with a file: every finding with its place, so that a user repairs them all in one go.

use std::fmt;

use crate::yaml::Position;

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The file as the user named it.
    pub file: String,
    /// Where in the file; line 0 if it concerns the file as a whole.
    pub at: Position,
    /// What is wrong and, where known, what to do.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.at {
            Position { line: 0, .. } => write!(f, "{}: {}", self.file, self.message),
            Position { line, column: 0 } => write!(f, "{}:{line}: {}", self.file, self.message),
            Position { line, column } => write!(f, "{}:{line}:{column}: {}", self.file, self.message),
        }
    }
}

/// All findings of a file, in the order of its text; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// Sorts the findings by place.
    #[must_use]
    pub fn new(mut problems: Vec<Problem>) -> Self {
        problems.sort();
        problems.dedup();
        Problems(problems)
    }

    /// A single finding.
    #[must_use]
    pub fn one(file: &str, at: Position, message: impl Into<String>) -> Self {
        Problems(vec![Problem {
            file: file.to_string(),
            at,
            message: message.into(),
        }])
    }

    /// The findings.
    #[must_use]
    pub fn list(&self) -> &[Problem] {
        &self.0
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}
