//! Everything that is wrong with a recipe, told at once.

use clusterfile::yaml::Position;
use clusterfile::{Problem, Problems};

use crate::error::Error;

/// What was found so far.
#[derive(Debug, Default)]
pub(crate) struct Mistakes {
    problems: Vec<Problem>,
    errors: Vec<Error>,
}

impl Mistakes {
    /// Adds findings that know their place.
    pub(crate) fn extend(&mut self, problems: impl IntoIterator<Item = Problem>) {
        self.problems.extend(problems);
    }

    /// Adds an error that says its place, if it has one.
    pub(crate) fn add(&mut self, error: Error) {
        self.errors.push(error);
    }

    /// Adds the error of a result, and gives its value.
    pub(crate) fn value<T>(&mut self, result: Result<T, Error>) -> Option<T> {
        result.map_err(|error| self.add(error)).ok()
    }

    /// # Errors
    /// What was found; a single error as it is. `file` is where those belong that say no place.
    pub(crate) fn none(mut self, file: &str) -> Result<(), Error> {
        if self.problems.is_empty() && self.errors.len() < 2 {
            return self.errors.pop().map_or(Ok(()), Err);
        }
        for error in self.errors {
            match error {
                Error::Recipe(problems) => self.problems.extend(problems.list().iter().cloned()),
                Error::Step { file, at, source } => self.problems.push(Problem {
                    file,
                    at,
                    message: source.to_string(),
                }),
                other => self.problems.push(Problem {
                    file: file.to_string(),
                    at: Position::default(),
                    message: other.to_string(),
                }),
            }
        }
        Err(Problems::new(self.problems).into())
    }
}
