//! From logical lines to typed instructions, with ARG and ENV in effect from where they stand.

use super::instruction::{Command, CopyFlags, ImageSource, Instruction, Variables};
use super::{Dialect, Line, words};
use crate::names::{is_dns_label, is_env_name};
use crate::problem::Problems;
use crate::yaml::Position;

/// Walks a file's lines and knows the variables at each of them.
#[derive(Debug, Clone)]
pub struct Evaluator {
    file: String,
    dialect: Dialect,
    build_args: Variables,
    args: Variables,
    env: Variables,
    seen_from: bool,
}

type Parsed<T> = Result<T, String>;

impl Evaluator {
    /// Begins a file; `build_args` are the values given on the command line.
    #[must_use]
    pub fn new(file: &str, dialect: Dialect, build_args: &Variables) -> Self {
        Evaluator {
            file: file.to_string(),
            dialect,
            build_args: build_args.clone(),
            args: Variables::new(),
            env: Variables::new(),
            seen_from: false,
        }
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
        let mut variables = self.args.clone();
        variables.extend(self.env.clone());
        variables
    }

    /// Understands one line.
    ///
    /// # Errors
    /// What is wrong with it, with file and line.
    pub fn instruction(&mut self, line: &Line) -> Result<Instruction, Problems> {
        let at = Position {
            line: line.number,
            column: 0,
        };
        self.parse(line)
            .map_err(|message| Problems::one(&self.file, at, format!("{}: {message}", line.keyword)))
    }

    fn parse(&mut self, line: &Line) -> Parsed<Instruction> {
        let rest = line.rest.as_str();
        if rest.is_empty() {
            return Err("arguments are missing".to_string());
        }
        if rest.starts_with("<<") {
            return Err("here-documents are not supported; use a script file or \\ at line ends".to_string());
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
            "ADD" => Err("is not supported yet; use COPY for files of the context".to_string()),
            "CSI" => Err("is not supported yet; use APP for its manifests".to_string()),
            "RUN" => Ok(Instruction::Run(command(rest)?)),
            "IMAGE" => self.image(rest),
            "CNI" => self
                .named_sources(rest)
                .map(|(name, sources)| Instruction::Cni { name, sources }),
            "APP" => self
                .named_sources(rest)
                .map(|(name, sources)| Instruction::App { name, sources }),
            "APPENV" => self.app_env(rest),
            "APPCMDS" => self.app_cmds(rest),
            "LAUNCH" => Ok(Instruction::Launch(self.list(rest)?)),
            "CMDS" => Ok(Instruction::Commands(
                json_list(rest)?.ok_or("a list [\"…\"] is expected")?,
            )),
            "CMD" if self.dialect == Dialect::Kubefile => Ok(Instruction::Commands(
                json_list(rest)?.unwrap_or_else(|| vec![rest.to_string()]),
            )),
            "CMD" => Ok(Instruction::Cmd(command(rest)?)),
            "ENTRYPOINT" => Ok(Instruction::Entrypoint(command(rest)?)),
            "KUBEVERSION" => Ok(Instruction::KubeVersion(self.expand(rest)?)),
            "WORKDIR" => self.work_dir(rest),
            "USER" => Ok(Instruction::User(self.expand(rest)?)),
            "EXPOSE" => self.expose(rest),
            other => Err(format!("{other} is not an instruction")),
        }
    }

    fn words(&self, text: &str) -> Parsed<Vec<String>> {
        words::split(text, &self.variables())
    }

    fn expand(&self, text: &str) -> Parsed<String> {
        words::expand(text, &self.variables())
    }

    /// A JSON list, or words.
    fn list(&self, rest: &str) -> Parsed<Vec<String>> {
        match json_list(rest)? {
            Some(list) => list.iter().map(|item| self.expand(item)).collect(),
            None => self.words(rest),
        }
    }

    fn from(&mut self, rest: &str) -> Parsed<Instruction> {
        if self.seen_from {
            return Err("a second FROM is not supported; use --build-context for other inputs".to_string());
        }
        self.seen_from = true;
        match self.words(rest)?.as_slice() {
            [flag, ..] if flag.starts_with("--") => Err(format!("the flag {flag} is not supported")),
            [base] => Ok(Instruction::From { base: base.clone() }),
            _ => Err("exactly one image (or scratch) is expected".to_string()),
        }
    }

    fn arg(&mut self, rest: &str) -> Parsed<Instruction> {
        let words = self.words(rest)?;
        for word in &words {
            let (name, default) = match word.split_once('=') {
                Some((name, value)) => (name, Some(value.to_string())),
                None => (word.as_str(), None),
            };
            if !is_env_name(name) {
                return Err(format!("{name:?} can't be a variable's name"));
            }
            let known = self.args.get(name).cloned();
            let value = self.build_args.get(name).cloned().or(default).or(known);
            let missing = || format!("{name} has no default, so --build-arg {name}=VALUE is needed");
            self.args.insert(name.to_string(), value.ok_or_else(missing)?);
        }
        Ok(Instruction::Arg)
    }

    fn pairs(&self, rest: &str) -> Parsed<Vec<(String, String)>> {
        let pairs = self.label_pairs(rest)?;
        match pairs.iter().find(|(name, _)| !is_env_name(name)) {
            Some((name, _)) => Err(format!("{name:?} can't be a variable's name")),
            None => Ok(pairs),
        }
    }

    fn label_pairs(&self, rest: &str) -> Parsed<Vec<(String, String)>> {
        let words = self.words(rest)?;
        // The old form `ENV NAME some text` is recognised by its first word having no `=`.
        if let Some((name, text)) = rest.split_once(char::is_whitespace)
            && !name.contains('=')
        {
            let value = self.words(text)?.join(" ");
            return Ok(vec![(self.expand(name)?, value)]);
        }
        words
            .iter()
            .map(|word| match word.split_once('=') {
                Some((name, value)) if !name.is_empty() => Ok((name.to_string(), value.to_string())),
                _ => Err(format!("{word:?} is not of the form NAME=VALUE")),
            })
            .collect()
    }

    fn copy(&self, rest: &str) -> Parsed<Instruction> {
        let mut flags = CopyFlags::default();
        let mut rest = rest.trim_start();
        while rest.starts_with("--") {
            let (flag, tail) = rest
                .split_once(char::is_whitespace)
                .ok_or("sources and destination are missing")?;
            self.copy_flag(&self.expand(flag)?, &mut flags)?;
            rest = tail.trim_start();
        }
        let mut sources = self.list(rest)?;
        let destination = sources
            .pop()
            .filter(|_| !sources.is_empty())
            .ok_or("needs sources and a destination")?;
        if sources.len() > 1 && !destination.ends_with('/') && destination != "." {
            return Err(format!(
                "with several sources the destination must end with /, as in {destination}/"
            ));
        }
        Ok(Instruction::Copy {
            flags,
            sources,
            destination,
        })
    }

    fn copy_flag(&self, flag: &str, flags: &mut CopyFlags) -> Parsed<()> {
        match flag.split_once('=') {
            Some(("--from", name)) if !name.is_empty() => flags.from = Some(name.to_string()),
            Some(("--chmod", mode)) => {
                let mode = u32::from_str_radix(mode, 8).ok().filter(|mode| *mode <= 0o7777);
                flags.chmod = Some(mode.ok_or("--chmod takes an octal mode such as 0755")?);
            }
            _ => return Err(format!("unknown flag {flag} (known: --from=NAME, --chmod=MODE)")),
        }
        Ok(())
    }

    fn image(&self, rest: &str) -> Parsed<Instruction> {
        let words = self.words(rest)?;
        let (reference, source) = match words.as_slice() {
            [reference] => (reference, ImageSource::Registry),
            [reference, from, source] if from.eq_ignore_ascii_case("from") => (reference, image_source(source)?),
            _ => {
                return Err("the form is IMAGE REFERENCE [FROM folder | oci-archive:FILE | docker://REFERENCE]".into());
            }
        };
        Ok(Instruction::Image {
            reference: reference.clone(),
            source,
        })
    }

    fn named_sources(&self, rest: &str) -> Parsed<(String, Vec<String>)> {
        let (name, rest) = rest.split_once(char::is_whitespace).ok_or("the form is NAME SOURCE…")?;
        let name = app_name(&self.expand(name)?)?;
        let sources = self.list(rest.trim_start())?;
        if let Some(bad) = sources
            .iter()
            .find(|source| source.contains("://") && !source.starts_with("local://"))
        {
            return Err(format!("{bad:?}: only files of the context are supported"));
        }
        let local = |source: String| source.strip_prefix("local://").map(str::to_string).unwrap_or(source);
        Ok((name, sources.into_iter().map(local).collect()))
    }

    fn app_env(&self, rest: &str) -> Parsed<Instruction> {
        let (name, rest) = rest
            .split_once(char::is_whitespace)
            .ok_or("the form is NAME KEY=VALUE…")?;
        Ok(Instruction::AppEnv {
            name: app_name(&self.expand(name)?)?,
            env: self.pairs(rest)?,
        })
    }

    fn app_cmds(&self, rest: &str) -> Parsed<Instruction> {
        let (name, rest) = rest
            .split_once(char::is_whitespace)
            .ok_or("the form is NAME [\"command\", …]")?;
        let commands = json_list(rest.trim_start())?.ok_or("a list [\"…\"] is expected after the name")?;
        Ok(Instruction::AppCmds {
            name: app_name(&self.expand(name)?)?,
            commands,
        })
    }

    fn work_dir(&self, rest: &str) -> Parsed<Instruction> {
        let path = self.expand(rest)?;
        if path.starts_with('/') {
            Ok(Instruction::WorkDir(path))
        } else {
            Err("must be an absolute path".to_string())
        }
    }

    fn expose(&self, rest: &str) -> Parsed<Instruction> {
        let mut ports = Vec::new();
        for word in self.words(rest)? {
            let (port, protocol) = word.split_once('/').unwrap_or((&word, "tcp"));
            if port.parse::<u16>().is_err() || !["tcp", "udp", "sctp"].contains(&protocol) {
                return Err(format!("{word:?} is not of the form PORT[/tcp|/udp]"));
            }
            ports.push(format!("{port}/{protocol}"));
        }
        Ok(Instruction::Expose(ports))
    }
}

fn app_name(name: &str) -> Parsed<String> {
    if is_dns_label(name) {
        Ok(name.to_string())
    } else {
        Err(format!(
            "{name:?} can't be an application's name (lower-case letters, digits, inner hyphens)"
        ))
    }
}

fn image_source(source: &str) -> Parsed<ImageSource> {
    if let Some(reference) = source.strip_prefix("docker://") {
        return Ok(ImageSource::Docker(reference.to_string()));
    }
    if let Some(file) = source.strip_prefix("oci-archive:") {
        let (file, name) = match file.split_once(':') {
            Some((file, name)) => (file, Some(name.to_string())),
            None => (file, None),
        };
        return Ok(ImageSource::OciArchive {
            file: file.to_string(),
            name,
        });
    }
    match source.split_once(':') {
        Some((transport, _)) => Err(format!(
            "the source {transport:?} is unknown (known: docker://, oci-archive:, a folder)"
        )),
        None => Ok(ImageSource::Folder(source.to_string())),
    }
}

fn command(rest: &str) -> Parsed<Command> {
    Ok(match json_list(rest)? {
        Some(list) if list.is_empty() => return Err("the list is empty".to_string()),
        Some(list) => Command::Exec(list),
        None => Command::Shell(rest.to_string()),
    })
}

/// The list of the exec form `["a", "b"]`; none if the text doesn't begin with one.
fn json_list(rest: &str) -> Parsed<Option<Vec<String>>> {
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
        .map_err(|_| "the list must look like [\"a\", \"b\"]".to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubefile::lines;

    fn last(text: &str, dialect: Dialect) -> Result<Instruction, String> {
        let lines = lines(text, "F", dialect).map_err(|e| e.to_string())?;
        let build_args = Variables::from([("V".to_string(), "v9".to_string())]);
        let mut evaluator = Evaluator::new("F", dialect, &build_args);
        let mut result = Err("no line".to_string());
        for line in &lines {
            result = evaluator.instruction(line).map_err(|e| e.to_string());
        }
        result
    }

    #[test]
    fn instructions_are_understood() {
        let kube = |rest: &str| last(&format!("FROM scratch\n{rest}"), Dialect::Kubefile).unwrap();
        let copy = kube("COPY --from=bin --chmod=0755 a b bin/");
        let flags = CopyFlags {
            from: Some("bin".into()),
            chmod: Some(0o755),
        };
        assert_eq!(
            copy,
            Instruction::Copy {
                flags,
                sources: vec!["a".into(), "b".into()],
                destination: "bin/".into()
            }
        );
        assert_eq!(
            kube("ARG V=v1\nIMAGE a.b/c:$V FROM images/c"),
            Instruction::Image {
                reference: "a.b/c:v9".into(),
                source: ImageSource::Folder("images/c".into())
            }
        );
        assert_eq!(
            kube("CMDS [\"a b\", \"c\"]"),
            Instruction::Commands(vec!["a b".into(), "c".into()])
        );
        assert_eq!(
            kube("RUN [ -f x ] && y"),
            Instruction::Run(Command::Shell("[ -f x ] && y".into()))
        );
        assert_eq!(kube("ENV A b c"), Instruction::Env(vec![("A".into(), "b c".into())]));
        assert_eq!(
            kube("LAUNCH web db"),
            Instruction::Launch(vec!["web".into(), "db".into()])
        );
        let contained = last("FROM scratch\nENTRYPOINT [\"/a\"]", Dialect::Containerfile).unwrap();
        assert_eq!(contained, Instruction::Entrypoint(Command::Exec(vec!["/a".into()])));
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        for (text, expected) in [
            ("FROM a b", "F:1: FROM: exactly one image"),
            ("FROM scratch\nCOPY a", "F:2: COPY: needs sources and a destination"),
            (
                "FROM scratch\nCOPY a b c",
                "F:2: COPY: with several sources the destination must end with /, as in c/",
            ),
            ("FROM scratch\nCOPY --form=x a b", "F:2: COPY: unknown flag --form=x"),
            (
                "FROM scratch\nARG X",
                "F:2: ARG: X has no default, so --build-arg X=VALUE is needed",
            ),
            (
                "FROM scratch\nENV A=1\nLABEL a=$AA",
                "F:3: LABEL: the variable \"AA\" is not set",
            ),
            ("FROM scratch\nADD http://x y", "F:2: ADD: is not supported yet"),
            ("FROM scratch\nRUN <<EOF", "F:2: RUN: here-documents"),
            ("FROM scratch\nIMAGE a b", "F:2: IMAGE: the form is"),
            (
                "FROM scratch\nIMAGE a FROM ftp:x",
                "F:2: IMAGE: the source \"ftp\" is unknown",
            ),
            ("FROM scratch\nCMDS [\"a\"", "F:2: CMDS: the list must look like"),
            ("FROM scratch\nFROM scratch", "F:2: FROM: a second FROM"),
            ("FROM scratch\nRUN", "F:2: RUN: arguments are missing"),
        ] {
            let error = last(text, Dialect::Kubefile).unwrap_err();
            assert!(error.starts_with(expected), "{text}: {error}");
        }
    }
}
