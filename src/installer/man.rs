//! `installer man`: manual pages, one for each command.

use crate::{cli::Cli, context::Context, failure::Exit};
use anyhow::Context as _;
use clap::CommandFactory;
use std::path::{Path, PathBuf};

/// Flags of `man`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  installer man /usr/local/share/man/man1 && man installer-apply
  installer man . && man ./installer.1")]
pub struct Args {
    /// The folder; it is made if it is not there
    #[arg(value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    pub dir: PathBuf,
}

/// Writes the pages.
pub fn run(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    let pages = write(&args.dir).with_context(|| format!("cannot write manual pages to {}", args.dir.display()))?;
    context
        .out
        .note(format!("{} in {}", oci::counted(pages, "page"), args.dir.display()));
    Ok(Exit::Done)
}

fn write(dir: &Path) -> std::io::Result<usize> {
    std::fs::create_dir_all(dir)?;
    // What is the same in every build has no date.
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    let mut pages = 0;
    let mut waiting = vec![command];
    while let Some(command) = waiting.pop() {
        waiting.extend(command.get_subcommands().filter(|sub| !sub.is_hide_set()).cloned());
        page(command, dir)?;
        pages += 1;
    }
    Ok(pages)
}

/// Writes one page. Examples keep their lines, which the generator of the rest would fill and justify.
fn page(command: clap::Command, dir: &Path) -> std::io::Result<()> {
    let examples = command.get_after_help().map(ToString::to_string);
    let page = clap_mangen::Man::new(command.after_help(None::<&str>)).manual("installer");
    let mut text = Vec::new();
    page.render(&mut text)?;
    if let Some(examples) = examples {
        text.extend_from_slice(verbatim(&examples).as_bytes());
    }
    std::fs::write(dir.join(page.get_filename()), text)
}

/// A section of lines that stay as they are, for roff.
fn verbatim(text: &str) -> String {
    let title = if text.starts_with("Example") {
        "EXAMPLES"
    } else {
        "NOTES"
    };
    let mut section = format!(".SH {title}\n.nf\n");
    let text = text.trim_start_matches("Examples:").trim_start_matches("Example:");
    for line in text.trim_start_matches('\n').lines() {
        let line = line.replace('\\', "\\e").replace('-', "\\-").replace('\'', "\\(aq");
        let guard = if line.starts_with('.') { "\\&" } else { "" };
        section.push_str(&format!("{guard}{line}\n"));
    }
    section + ".fi\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn examples_keep_their_lines_and_command_nothing() {
        assert_eq!(
            verbatim("Examples:\n  a --b 'c' \\\n.so /etc/passwd\n\nend"),
            ".SH EXAMPLES\n.nf\n  a \\-\\-b \\(aqc\\(aq \\e\n\\&.so /etc/passwd\n\nend\n.fi\n"
        );
        assert!(verbatim("More").starts_with(".SH NOTES\n"));
    }

    #[test]
    fn every_command_has_a_page_that_man_can_read() {
        let dir = tempfile::tempdir().unwrap();
        let pages = write(dir.path()).unwrap();
        let command = Cli::command();
        assert!(pages > command.get_subcommands().count());
        for sub in command.get_subcommands() {
            let page = dir.path().join(format!("installer-{}.1", sub.get_name()));
            let text = std::fs::read_to_string(&page).unwrap();
            assert!(text.contains(".TH ") && text.contains(".SH NAME"), "{}", page.display());
            let about = sub.get_about().unwrap().to_string();
            let first: String = about.split_whitespace().take(2).collect::<Vec<_>>().join(" ");
            assert!(text.contains(&first), "{} lacks {first:?}", page.display());
        }
        let apply = std::fs::read_to_string(dir.path().join("installer-apply.1")).unwrap();
        assert!(apply.contains(".SH EXAMPLES\n.nf\n  installer apply  "), "{apply}");
        let key = std::fs::read_to_string(dir.path().join("installer-key-generate.1")).unwrap();
        assert!(key.contains("passphrase"));
    }
}
