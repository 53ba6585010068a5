//! Results that are lists or trees: a table for people, wider if they like, one document for programs.

use crate::output::{Format, Output};
use serde::Serialize;

/// How a list or tree is printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum DocumentFormat {
    /// For people
    #[default]
    Text,
    /// For people with wide terminals: nothing is shortened
    Wide,
    /// One JSON document
    Json,
    /// One YAML document
    Yaml,
}

/// The `-o` flag of commands that print lists or trees.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub struct DocumentArg {
    /// How to print
    #[arg(short = 'o', long = "output", value_enum, default_value_t = DocumentFormat::Text, value_name = "FORMAT")]
    pub output: DocumentFormat,
}

impl DocumentArg {
    /// Prints the document if programs read it; false if people do.
    ///
    /// # Errors
    /// When it can't be encoded.
    pub fn print(self, out: &Output, document: &impl Serialize) -> anyhow::Result<bool> {
        match self.output {
            DocumentFormat::Text | DocumentFormat::Wide => return Ok(false),
            DocumentFormat::Json => out.raw(&(serde_json::to_string_pretty(document)? + "\n")),
            DocumentFormat::Yaml => out.raw(&serde_saphyr::to_string(document)?),
        }
        Ok(true)
    }

    /// Whether nothing is to be shortened.
    pub fn is_wide(self) -> bool {
        self.output == DocumentFormat::Wide
    }

    /// How errors are printed.
    pub fn format(self) -> Format {
        match self.output {
            DocumentFormat::Json => Format::Json,
            _ => Format::Text,
        }
    }
}
