//! The examples of docs/signing.md, run as a reader would: no hosts are needed.

use anyhow::{Context, Result, ensure};
use std::{fmt::Write as _, fs, process::Command};

/// A command of the documentation, and what it shows of what comes out.
#[derive(Debug, Default)]
struct Example {
    command: String,
    /// Lines that come out in this order, others between them; `…` stands for anything.
    shows: Vec<String>,
    code: i32,
}

/// The commands of all blocks marked `console`.
fn examples(text: &str) -> Vec<Example> {
    let mut examples: Vec<Example> = Vec::new();
    let mut inside = false;
    for line in text.lines() {
        match line {
            "```console" => inside = true,
            "```" => inside = false,
            _ if !inside => {}
            _ => match (line.strip_prefix("$ "), examples.last_mut()) {
                (Some(command), _) => examples.push(Example {
                    command: command.to_owned(),
                    ..Example::default()
                }),
                (None, Some(example)) => {
                    let code = line
                        .strip_prefix('[')
                        .and_then(|rest| rest.strip_suffix(']')?.parse().ok());
                    match code {
                        Some(code) => example.code = code,
                        None => example.shows.push(line.to_owned()),
                    }
                }
                (None, None) => {}
            },
        }
    }
    examples
}

/// Whether a line is as shown.
fn fits(shown: &str, line: &str) -> bool {
    let mut parts = shown.split('…');
    let Some(mut rest) = parts.next().and_then(|first| line.strip_prefix(first)) else {
        return false;
    };
    let mut open = false;
    for part in parts {
        open = part.is_empty();
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    open || rest.is_empty()
}

#[test]
fn every_example_of_the_documentation_does_what_it_shows() -> Result<()> {
    let installer = e2e::program("installer")?;
    let text = fs::read_to_string(e2e::repository().join("docs/signing.md"))?;
    let examples = examples(&text);
    ensure!(examples.len() > 15, "only {} examples were found", examples.len());
    let dir = tempfile::tempdir()?;
    fs::write(dir.path().join("Kubefile"), "FROM scratch\nCOPY note etc/note\n")?;
    fs::write(dir.path().join("note"), "hello")?;
    // One shell, so that what is exported stays; each command's output and code in files of their own.
    let mut script = String::new();
    for (number, example) in examples.iter().enumerate() {
        writeln!(
            script,
            "{{ {}\n}} > out.{number} 2>&1; echo $? > code.{number}",
            example.command
        )?;
    }
    let path = format!(
        "{}:{}",
        installer.parent().context("a folder")?.display(),
        std::env::var("PATH")?
    );
    let status = Command::new("bash")
        .args(["-uc", &script])
        .current_dir(dir.path())
        .env("PATH", path)
        .env("INSTALLER_STORE", dir.path().join("store"))
        .env_remove("SOURCE_DATE_EPOCH")
        .status()?;
    ensure!(status.success(), "the shell ended with {status}");
    for (number, example) in examples.iter().enumerate() {
        let read = |what: &str| fs::read_to_string(dir.path().join(format!("{what}.{number}")));
        let (out, code) = (read("out")?, read("code")?);
        ensure!(
            code.trim() == example.code.to_string(),
            "{example:?} ended with {code}: {out}"
        );
        let mut lines = out.lines();
        for shown in &example.shows {
            ensure!(
                lines.any(|line| fits(shown, line)),
                "{:?}: {shown:?} is not in: {out}",
                example.command
            );
        }
    }
    Ok(())
}

#[test]
fn shown_lines_are_compared_with_gaps() {
    for (shown, line, good) in [
        ("a", "a", true),
        ("a", "ab", false),
        ("a…", "abc", true),
        ("a…c", "abc", true),
        ("a…c", "abcd", false),
        ("…: … blobs", "x: 3 blobs", true),
        ("key sha256:…", "key sha512:1", false),
    ] {
        assert_eq!(fits(shown, line), good, "{shown} {line}");
    }
}
