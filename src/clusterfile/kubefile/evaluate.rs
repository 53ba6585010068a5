//! From logical lines to typed instructions, with ARG and ENV in effect from where they stand.

use std::collections::BTreeSet;

use super::form::form;
use super::instruction::{Command, Instruction, Variables};
use super::words::{Fault, Word};
use super::{Dialect, Line, lines, words};
use crate::names::{is_dns_label, is_env_name};
use crate::problem::Problem;

/// Walks a file's lines and knows the variables at each of them.
#[derive(Debug, Clone)]
pub struct Evaluator {
    file: String,
    dialect: Dialect,
    build_args: Variables,
    given: Variables,
    args: Variables,
    env: Variables,
    declared: BTreeSet<String>,
    seen_from: bool,
    problems: Vec<Problem>,
    /// Variables that lines set which could not be understood.
    unknown: BTreeSet<String>,
    /// Whether FROM may have brought variables that are not known here.
    env_is_unknown: bool,
}

pub(super) type Parsed<T> = Result<T, Fault>;

impl Evaluator {
    /// Begins a file; `build_args` are the values given on the command line.
    #[must_use]
    pub fn new(file: &str, dialect: Dialect, build_args: &Variables) -> Self {
        Evaluator {
            file: file.to_string(),
            dialect,
            build_args: build_args.clone(),
            given: Variables::new(),
            args: Variables::new(),
            env: Variables::new(),
            declared: BTreeSet::new(),
            seen_from: false,
            problems: Vec::new(),
            unknown: BTreeSet::new(),
            env_is_unknown: false,
        }
    }

    /// Sets variables that are there without ARG, and that ARG can't give another value: what the build is for.
    #[must_use]
    pub fn with_given(mut self, given: &Variables) -> Self {
        self.given.clone_from(given);
        self
    }

    /// The names that ARG has declared so far.
    #[must_use]
    pub fn declared(&self) -> &BTreeSet<String> {
        &self.declared
    }

    /// Takes over the environment of the image named by FROM.
    pub fn inherit_env(&mut self, env: &Variables) {
        self.env.extend(env.clone());
    }

    /// ENV as it stands now.
    #[must_use]
    pub fn env(&self) -> &Variables {
        &self.env
    }

    /// ARG and ENV as they stand now, as RUN sees them; ENV wins.
    #[must_use]
    pub fn variables(&self) -> Variables {
        let mut variables = self.given.clone();
        variables.extend(self.args.clone());
        variables.extend(self.env.clone());
        variables
    }

    /// The image named by FROM could not be read: whatever is not set may come from there.
    pub fn env_is_unknown(&mut self) {
        self.env_is_unknown = true;
    }

    /// Understands one line. One that can't be understood is a problem ([`Evaluator::take_problems`]), unless that may only
    /// follow from an earlier one.
    pub fn instruction(&mut self, line: &Line) -> Option<Instruction> {
        match self.parse(line) {
            Ok(instruction) => Some(instruction),
            Err(fault) => {
                if !self.may_follow(&line.rest) {
                    self.problems.push(Problem {
                        file: self.file.clone(),
                        at: fault.at.map_or(line.at(), |offset| line.place(offset)),
                        message: format!("{}: {}", line.keyword, fault.message),
                    });
                }
                self.forget(line);
                None
            }
        }
    }

    /// What was wrong with lines since it was asked last, with file, line and column.
    pub fn take_problems(&mut self) -> Vec<Problem> {
        std::mem::take(&mut self.problems)
    }

    /// Whether a line uses a variable that an earlier one would have set if it had been understood.
    fn may_follow(&self, rest: &str) -> bool {
        let known = self.variables();
        rest.split('$').skip(1).any(|text| {
            let text = text.strip_prefix('{').unwrap_or(text);
            let name = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).next();
            let name = name.unwrap_or_default();
            self.unknown.contains(name) || (self.env_is_unknown && !name.is_empty() && !known.contains_key(name))
        })
    }

    /// Remembers what a line would have done that could not be understood.
    fn forget(&mut self, line: &Line) {
        let words = line.rest.split_whitespace();
        let names = words.map(|word| word.split('=').next().unwrap_or_default());
        let names = names.map(|name| name.trim_matches(['"', '\'']).to_string());
        let names: Vec<String> = names.filter(|name| is_env_name(name)).collect();
        match line.keyword {
            "FROM" => self.env_is_unknown = true,
            "ENV" => self.unknown.extend(names),
            "ARG" => {
                self.declared.extend(names.iter().cloned());
                self.unknown.extend(names);
            }
            _ => {}
        }
    }

    fn parse(&mut self, line: &Line) -> Parsed<Instruction> {
        let rest = line.rest.as_str();
        if rest.is_empty() {
            return Err(self.form(line.keyword, "arguments are missing"));
        }
        if let Some(at) = here_document(line.keyword, rest) {
            let message = lines::here_document(line.keyword);
            let message = message
                .split_once(": ")
                .map_or(message.as_str(), |(_, message)| message);
            return Err(Fault::at(at, message));
        }
        match line.keyword {
            "FROM" => self.from(rest),
            "ARG" => self.arg(rest),
            "ENV" => {
                let pairs = self.pairs(rest)?;
                self.env.extend(pairs.iter().cloned());
                Ok(Instruction::Env(pairs))
            }
            "LABEL" => Ok(Instruction::Label(self.label_pairs(rest)?)),
            "COPY" => self.copy(rest),
            "ADD" => self.add(rest),
            "RUN" => Ok(Instruction::Run(command(rest)?)),
            "IMAGE" => self.image(rest),
            "CNI" => self
                .plugin("CNI", rest)
                .map(|(name, sources)| Instruction::Cni { name, sources }),
            "CSI" => self
                .plugin("CSI", rest)
                .map(|(name, sources)| Instruction::Csi { name, sources }),
            "APP" => self.app(rest),
            "APPENV" => self.app_env(rest),
            "APPCMDS" => self.app_cmds(rest),
            "LAUNCH" => Ok(Instruction::Launch(self.list(rest)?)),
            "CMDS" => Ok(Instruction::Commands(
                json_list(rest)?.ok_or_else(|| self.form("CMDS", "a list is expected"))?,
            )),
            "CMD" if self.dialect == Dialect::Kubefile => Ok(Instruction::OneCommand(
                json_list(rest)?.unwrap_or_else(|| vec![rest.to_string()]),
            )),
            "CMD" => Ok(Instruction::Cmd(command(rest)?)),
            "ENTRYPOINT" => Ok(Instruction::Entrypoint(command(rest)?)),
            "KUBEVERSION" => self.kube_version(rest),
            "WORKDIR" => self.work_dir(rest),
            "USER" => Ok(Instruction::User(self.join(rest)?)),
            "EXPOSE" => self.expose(rest),
            other => Err(format!("{other} is not an instruction").into()),
        }
    }

    pub(super) fn words(&self, text: &str) -> Parsed<Vec<Word>> {
        words::split(text, &self.variables())
    }

    /// A fault that says how the instruction is written.
    pub(super) fn form(&self, keyword: &str, message: &str) -> Fault {
        format!("{message}; the form is {}", form(self.dialect, keyword)).into()
    }

    /// One word whatever blanks it has.
    fn join(&self, text: &str) -> Parsed<String> {
        words::join(text, &self.variables())
    }

    pub(super) fn expand(&self, text: &str) -> Parsed<String> {
        words::expand(text, &self.variables())
    }

    /// A JSON list, or words.
    fn list(&self, rest: &str) -> Parsed<Vec<String>> {
        match json_list(rest)? {
            Some(list) => list.iter().map(|item| self.expand(item)).collect(),
            None => Ok(self.words(rest)?.into_iter().map(|word| word.text).collect()),
        }
    }

    fn kube_version(&self, rest: &str) -> Parsed<Instruction> {
        // Quotes are allowed around the whole range, since < and > look like a shell's.
        let text = self
            .words(rest)?
            .into_iter()
            .map(|word| word.text)
            .collect::<Vec<_>>()
            .join(" ");
        let range = text.parse().map_err(|error| Fault::at(0, format!("{error}")))?;
        Ok(Instruction::KubeVersion(range))
    }

    fn from(&mut self, rest: &str) -> Parsed<Instruction> {
        if self.seen_from {
            return Err("a second FROM is not supported: an image has one base; other files come with --build-context and COPY \
                        --from"
                .into());
        }
        self.seen_from = true;
        let words = self.words(rest)?;
        match words.as_slice() {
            [flag, ..] if flag.text.starts_with("--") => {
                let message = format!(
                    "the flag {} is not supported; the build's --platform decides",
                    flag.text
                );
                Err(Fault::at(flag.at, message))
            }
            [base] => Ok(Instruction::From {
                base: base.text.clone(),
            }),
            [_, word, _] if word.text.eq_ignore_ascii_case("as") => {
                let message = "AS names a build stage, and there is only one: several FROM are not supported";
                Err(Fault::at(word.at, message))
            }
            _ => Err(self.form("FROM", "exactly one image (or scratch) is expected")),
        }
    }

    fn arg(&mut self, rest: &str) -> Parsed<Instruction> {
        for Word { text, at } in &self.words(rest)? {
            let (name, default) = match text.split_once('=') {
                Some((name, value)) => (name, Some(value.to_string())),
                None => (text.as_str(), None),
            };
            if !is_env_name(name) {
                return Err(Fault::at(*at, format!("{name:?} can't be a variable's name")));
            }
            self.declared.insert(name.to_string());
            if self.given.contains_key(name) {
                continue;
            }
            let known = self.args.get(name).cloned();
            let value = self.build_args.get(name).cloned().or(default).or(known);
            let missing = || {
                Fault::at(
                    *at,
                    format!("{name} has no default, so --build-arg {name}=VALUE is needed"),
                )
            };
            self.args.insert(name.to_string(), value.ok_or_else(missing)?);
        }
        Ok(Instruction::Arg)
    }

    fn pairs(&self, rest: &str) -> Parsed<Vec<(String, String)>> {
        let pairs = self.label_pairs(rest)?;
        match pairs.iter().find(|(name, _)| !is_env_name(name)) {
            Some((name, _)) => {
                let message = format!("{name:?} can't be a variable's name");
                Err(rest
                    .find(name.as_str())
                    .map_or(message.clone().into(), |at| Fault::at(at, message)))
            }
            None => Ok(pairs),
        }
    }

    fn label_pairs(&self, rest: &str) -> Parsed<Vec<(String, String)>> {
        // The old form `ENV NAME some text` is recognised by its first word having no `=`.
        let (name, text) = rest.split_at(words::first_end(rest));
        if !name.contains('=') && !text.is_empty() {
            let at = rest.len() - text.trim_start().len();
            let value = self.join(text.trim_start()).map_err(|fault| fault.shifted(at))?;
            return Ok(vec![(self.join(name)?, value)]);
        }
        let words = self.words(rest)?;
        words
            .iter()
            .map(|word| match word.text.split_once('=') {
                Some((name, value)) if !name.is_empty() => Ok((name.to_string(), value.to_string())),
                _ => Err(Fault::at(
                    word.at,
                    format!("{:?} is not of the form NAME=VALUE", word.text),
                )),
            })
            .collect()
    }

    fn app_env(&self, whole: &str) -> Parsed<Instruction> {
        let (name, rest) = whole
            .split_once(char::is_whitespace)
            .ok_or_else(|| self.form("APPENV", "the variables are missing"))?;
        let rest = rest.trim_start();
        let at = whole.len() - rest.len();
        Ok(Instruction::AppEnv {
            name: app_name(&self.join(name)?)?,
            env: self.pairs(rest).map_err(|fault| fault.shifted(at))?,
        })
    }

    fn app_cmds(&self, rest: &str) -> Parsed<Instruction> {
        let (name, rest) = rest
            .split_once(char::is_whitespace)
            .ok_or_else(|| self.form("APPCMDS", "the commands are missing"))?;
        let commands = json_list(rest.trim_start())?;
        let commands = commands.ok_or_else(|| self.form("APPCMDS", "a list is expected after the name"))?;
        Ok(Instruction::AppCmds {
            name: app_name(&self.join(name)?)?,
            commands,
        })
    }

    fn work_dir(&self, rest: &str) -> Parsed<Instruction> {
        let path = self.join(rest)?;
        if path.starts_with('/') {
            Ok(Instruction::WorkDir(path))
        } else {
            Err("must be an absolute path".into())
        }
    }

    fn expose(&self, rest: &str) -> Parsed<Instruction> {
        let mut ports = Vec::new();
        for Word { text, at } in self.words(rest)? {
            let (port, protocol) = text.split_once('/').unwrap_or((&text, "tcp"));
            if port.parse::<u16>().is_err() || !["tcp", "udp", "sctp"].contains(&protocol) {
                return Err(Fault::at(at, format!("{text:?} is not of the form PORT[/tcp|/udp]")));
            }
            ports.push(format!("{port}/{protocol}"));
        }
        Ok(Instruction::Expose(ports))
    }
}

/// Where a here-document begins, if the instruction has one.
fn here_document(keyword: &str, rest: &str) -> Option<usize> {
    let opens = |text: &str| {
        let word = text.strip_prefix("<<").map(|word| word.trim_start_matches('-'));
        word.is_some_and(|word| word.starts_with(|c: char| c.is_ascii_alphabetic() || "'\"_".contains(c)))
    };
    match keyword {
        // In the middle of a command it is the shell's own, which has its text on the same line or nowhere.
        "RUN" => opens(rest).then_some(0),
        "COPY" | "ADD" => {
            let starts = rest
                .char_indices()
                .filter(|(at, c)| *c == '<' && !rest[..*at].ends_with('<'));
            starts.map(|(at, _)| at).find(|at| opens(&rest[*at..]))
        }
        _ => None,
    }
}

pub(super) fn app_name(name: &str) -> Parsed<String> {
    if is_dns_label(name) {
        Ok(name.to_string())
    } else {
        let message = format!("{name:?} can't be an application's name (lower-case letters, digits, inner hyphens)");
        Err(Fault::at(0, message))
    }
}

fn command(rest: &str) -> Parsed<Command> {
    Ok(match json_list(rest)? {
        Some(list) if list.is_empty() => return Err("the list is empty".into()),
        Some(list) => Command::Exec(list),
        None => Command::Shell(rest.to_string()),
    })
}

/// The list of the exec form `["a", "b"]`; none if the text doesn't begin with one.
pub(super) fn json_list(rest: &str) -> Parsed<Option<Vec<String>>> {
    // `[ -f x ]` is a shell command, so only a bracket followed by a string or nothing opens a list.
    let opens = rest
        .strip_prefix('[')
        .map(str::trim_start)
        .is_some_and(|tail| tail.starts_with(['"', ']']));
    if !opens {
        return Ok(None);
    }
    serde_json::from_str(rest)
        .map(Some)
        .map_err(|_| "the list must look like [\"a\", \"b\"]".into())
}

#[cfg(test)]
mod tests;
