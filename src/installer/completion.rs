//! `installer completion`: lets a shell complete this command line, names of images and addresses of hosts included.
//!
//! The script that is printed asks this program at every TAB ([`answer`]), so it knows what the store and the Clusterfile hold then.

use crate::{cli::Cli, context::default_store, failure::Exit};
use anyhow::Context as _;
use bootstrap::preflight;
use clap::{Arg, CommandFactory};
use clap_complete::{
    Shell,
    engine::{ArgValueCompleter, CompletionCandidate},
    env::{CompleteEnv, Shells},
};
use clusterfile::{Clusterfile, Role};
use image::Store;
use std::{
    ffi::{OsStr, OsString},
    path::PathBuf,
};

/// The variable by which the script asks.
const VARIABLE: &str = "INSTALLER_COMPLETE";

/// Flags of `completion`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  source <(installer completion bash)                                     in this shell
  installer completion bash > /etc/bash_completion.d/installer            for everybody
  installer completion zsh > \"${fpath[1]}/_installer\"
  installer completion fish > ~/.config/fish/completions/installer.fish")]
pub struct Args {
    /// The shell
    #[arg(value_enum)]
    pub shell: Shell,
}

/// Prints the script.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    let shells = Shells::builtins();
    let name = args.shell.to_string();
    let completer = shells
        .completer(&name)
        .with_context(|| format!("there is no completion for {name}"))?;
    let mut stdout = std::io::stdout().lock();
    completer.write_registration(VARIABLE, "installer", "installer", "installer", &mut stdout)?;
    Ok(Exit::Done)
}

/// Answers the script, and ends the program, if it is the script that runs us.
pub fn answer() {
    CompleteEnv::with_factory(command)
        .var(VARIABLE)
        .bin("installer")
        .complete();
}

/// The command line, with what completes its values.
fn command() -> clap::Command {
    Cli::command().mut_subcommands(|command| {
        let name = command.get_name().to_owned();
        let command = command.mut_args(|arg| match candidates(&name, &arg) {
            Some(completer) => arg.add(completer),
            None => arg,
        });
        command.mut_subcommands(|sub| {
            let name = sub.get_name().to_owned();
            sub.mut_args(|arg| match candidates(&name, &arg) {
                Some(completer) => arg.add(completer),
                None => arg,
            })
        })
    })
}

/// What completes an argument's values, if they are names that we know.
fn candidates(command: &str, arg: &Arg) -> Option<ArgValueCompleter> {
    let value = arg
        .get_value_names()
        .and_then(|names| names.first())
        .map_or("", |name| name.as_str());
    match (command, arg.get_id().as_str(), value) {
        // These are not there yet.
        ("pull" | "build", ..) | ("join" | "run", "nodes" | "masters", _) => None,
        (_, "nodes" | "masters", _) => Some(ArgValueCompleter::new(hosts)),
        (_, "ignore_preflight", _) => Some(ArgValueCompleter::new(preflight_checks)),
        (_, _, "IMAGE" | "OLD" | "NEW") => Some(ArgValueCompleter::new(images)),
        _ => None,
    }
}

fn preflight_checks(current: &OsStr) -> Vec<CompletionCandidate> {
    let names = preflight::CHECKS.iter().chain(&["all"]);
    matching(current, names.map(|name| ((*name).to_owned(), String::new())))
}

/// The images of the store the command line names.
fn images(current: &OsStr) -> Vec<CompletionCandidate> {
    let words: Vec<OsString> = std::env::args_os().collect();
    let store = flag(&words, &["--store"])
        .or_else(|| std::env::var_os("INSTALLER_STORE"))
        .map_or_else(default_store, PathBuf::from);
    // A store that is not there is not made for this.
    if !store.is_dir() {
        return Vec::new();
    }
    let images = Store::open(&store).and_then(|store| store.list()).unwrap_or_default();
    let named = images.into_iter().map(|image| {
        let help = image.platforms.join(", ");
        (image.name, help)
    });
    matching(current, named)
}

/// The hosts of the Clusterfile the command line names.
fn hosts(current: &OsStr) -> Vec<CompletionCandidate> {
    let words: Vec<OsString> = std::env::args_os().collect();
    let file = flag(&words, &["--file", "-f"]).map_or_else(|| PathBuf::from("Clusterfile"), PathBuf::from);
    let Ok(clusterfile) = Clusterfile::load(&file) else {
        return Vec::new();
    };
    let named = clusterfile.cluster.hosts.iter().map(|host| {
        let roles = host
            .roles
            .iter()
            .map(|role| if *role == Role::Master { "master" } else { "node" });
        (host.ip.to_string(), roles.collect::<Vec<_>>().join(", "))
    });
    matching(current, named)
}

fn matching(current: &OsStr, named: impl Iterator<Item = (String, String)>) -> Vec<CompletionCandidate> {
    let current = current.to_string_lossy();
    let fitting = named.filter(|(name, _)| name.starts_with(&*current));
    fitting
        .map(|(name, help)| CompletionCandidate::new(name).help(Some(help.into())))
        .collect()
}

/// The value of a flag among words, as `--flag value`, `--flag=value`, `-fvalue`; the last one counts.
fn flag(words: &[OsString], names: &[&str]) -> Option<OsString> {
    let mut found = None;
    for (index, word) in words.iter().enumerate() {
        let Some(word) = word.to_str() else { continue };
        for name in names {
            let rest = word.strip_prefix(name);
            match rest {
                Some("") => found = words.get(index + 1).cloned().or(found),
                Some(rest) if name.starts_with("--") => {
                    found = rest.strip_prefix('=').map(OsString::from).or(found);
                }
                Some(rest) => found = Some(rest.trim_start_matches('=').into()),
                None => {}
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_found_however_they_are_written() {
        for (words, expected) in [
            ("installer check -f a.yaml --nodes", Some("a.yaml")),
            ("installer check -fa.yaml", Some("a.yaml")),
            ("installer check --file=a.yaml -f b.yaml", Some("b.yaml")),
            ("installer check --file a.yaml", Some("a.yaml")),
            ("installer check --files a.yaml", None),
            ("installer check -f", None),
        ] {
            let words: Vec<OsString> = words.split(' ').map(OsString::from).collect();
            assert_eq!(
                flag(&words, &["--file", "-f"]),
                expected.map(OsString::from),
                "{words:?}"
            );
        }
    }

    #[test]
    fn the_command_line_with_its_completers_is_consistent() {
        command().debug_assert();
    }
}
