//! From logical lines to typed instructions, with ARG and ENV in effect from where they stand.

use std::collections::BTreeSet;

use super::instruction::{Command, Instruction, Variables};
use super::words::{Fault, Word};
use super::{Dialect, Line, words};
use crate::names::{is_dns_label, is_env_name};
use crate::problem::Problems;

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

    /// Understands one line.
    ///
    /// # Errors
    /// What is wrong with it, with file, line and column.
    pub fn instruction(&mut self, line: &Line) -> Result<Instruction, Problems> {
        self.parse(line).map_err(|fault| {
            let at = fault.at.map_or(line.at(), |offset| line.place(offset));
            Problems::one(&self.file, at, format!("{}: {}", line.keyword, fault.message))
        })
    }

    fn parse(&mut self, line: &Line) -> Parsed<Instruction> {
        let rest = line.rest.as_str();
        if rest.is_empty() {
            return Err("arguments are missing".into());
        }
        if let Some(at) = here_document(line.keyword, rest) {
            let message = "here-documents are not supported; use a script file or \\ at line ends";
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
                .plugin(rest)
                .map(|(name, sources)| Instruction::Cni { name, sources }),
            "CSI" => self
                .plugin(rest)
                .map(|(name, sources)| Instruction::Csi { name, sources }),
            "APP" => self.app(rest),
            "APPENV" => self.app_env(rest),
            "APPCMDS" => self.app_cmds(rest),
            "LAUNCH" => Ok(Instruction::Launch(self.list(rest)?)),
            "CMDS" => Ok(Instruction::Commands(
                json_list(rest)?.ok_or("a list [\"…\"] is expected")?,
            )),
            "CMD" if self.dialect == Dialect::Kubefile => Ok(Instruction::OneCommand(
                json_list(rest)?.unwrap_or_else(|| vec![rest.to_string()]),
            )),
            "CMD" => Ok(Instruction::Cmd(command(rest)?)),
            "ENTRYPOINT" => Ok(Instruction::Entrypoint(command(rest)?)),
            "KUBEVERSION" => self.kube_version(rest),
            "WORKDIR" => self.work_dir(rest),
            "USER" => Ok(Instruction::User(self.expand(rest)?)),
            "EXPOSE" => self.expose(rest),
            other => Err(format!("{other} is not an instruction").into()),
        }
    }

    pub(super) fn words(&self, text: &str) -> Parsed<Vec<Word>> {
        words::split(text, &self.variables())
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
            _ => Err("exactly one image (or scratch) is expected".into()),
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
            Some((name, _)) => Err(format!("{name:?} can't be a variable's name").into()),
            None => Ok(pairs),
        }
    }

    fn label_pairs(&self, rest: &str) -> Parsed<Vec<(String, String)>> {
        let words = self.words(rest)?;
        // The old form `ENV NAME some text` is recognised by its first word having no `=`.
        if let Some((name, text)) = rest.split_once(char::is_whitespace)
            && !name.contains('=')
        {
            let text = self.words(text).map_err(|fault| fault.shifted(name.len() + 1))?;
            let value = text.into_iter().map(|word| word.text).collect::<Vec<_>>().join(" ");
            return Ok(vec![(self.expand(name)?, value)]);
        }
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

    fn app_env(&self, rest: &str) -> Parsed<Instruction> {
        let (name, rest) = rest
            .split_once(char::is_whitespace)
            .ok_or("the form is NAME KEY=VALUE…")?;
        Ok(Instruction::AppEnv {
            name: app_name(&self.expand(name)?)?,
            env: self.pairs(rest.trim_start())?,
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
mod tests {
    use super::*;
    use crate::kubefile::{AddFlags, CopyFlags, ImageSource, lines};

    fn last(text: &str, dialect: Dialect) -> Result<Instruction, String> {
        let lines = lines(text, "F", dialect).map_err(|e| e.to_string())?;
        let build_args = Variables::from([("V".to_string(), "v9".to_string())]);
        let given = Variables::from([("TARGETARCH".to_string(), "arm64".to_string())]);
        let mut evaluator = Evaluator::new("F", dialect, &build_args).with_given(&given);
        let mut result = Err("no line".to_string());
        for line in &lines {
            result = evaluator.instruction(line).map_err(|e| e.to_string());
        }
        result
    }

    fn kube(rest: &str) -> Instruction {
        last(&format!("FROM scratch\n{rest}"), Dialect::Kubefile).unwrap()
    }

    const SUM: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn files_and_images_are_understood() {
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
        let flags = AddFlags {
            checksum: Some(SUM.into()),
            unpack: Some(true),
            chmod: None,
        };
        assert_eq!(
            kube(&format!(
                "ADD --checksum={} --unpack https://a.b/c.tgz d/",
                SUM.to_uppercase().replace("SHA", "sha")
            )),
            Instruction::Add {
                flags,
                sources: vec!["https://a.b/c.tgz".into()],
                destination: "d/".into()
            }
        );
        let image = |source| Instruction::Image {
            reference: "a.b/c:v9".into(),
            source,
            from: None,
        };
        let (file, name) = ("x.tar".to_string(), Some("a.b/c:1".to_string()));
        for (text, source) in [
            ("", ImageSource::Registry),
            ("FROM images/c", ImageSource::Folder("images/c".into())),
            ("FROM docker://d.e/f", ImageSource::Docker("d.e/f".into())),
            (
                "FROM oci:lay",
                ImageSource::OciFolder {
                    folder: "lay".into(),
                    name: None,
                },
            ),
            (
                "from oci-archive:x.tar:a.b/c:1",
                ImageSource::OciArchive {
                    file: file.clone(),
                    name: name.clone(),
                },
            ),
            (
                "FROM docker-archive:x.tar:a.b/c:1",
                ImageSource::DockerArchive { file, name },
            ),
        ] {
            assert_eq!(
                kube(&format!("ARG V=v1\nIMAGE a.b/c:$V {text}")),
                image(source),
                "{text}"
            );
        }
    }

    #[test]
    fn applications_and_commands_are_understood() {
        assert_eq!(
            kube("APP web local://chart --values a.yaml --values=b.yaml.tmpl"),
            Instruction::App {
                name: "web".into(),
                sources: vec!["chart".into()],
                values: vec!["a.yaml".into(), "b.yaml.tmpl".into()],
                checksum: None,
            }
        );
        assert_eq!(
            kube("CSI disk a b"),
            Instruction::Csi {
                name: "disk".into(),
                sources: vec!["a".into(), "b".into()],
            }
        );
        assert_eq!(
            kube("CMDS [\"a b\", \"c\"]"),
            Instruction::Commands(vec!["a b".into(), "c".into()])
        );
        assert_eq!(kube("CMD a b"), Instruction::OneCommand(vec!["a b".into()]));
        assert_eq!(
            kube("RUN [ -f x ] && y"),
            Instruction::Run(Command::Shell("[ -f x ] && y".into()))
        );
        assert_eq!(kube("ENV A b c"), Instruction::Env(vec![("A".into(), "b c".into())]));
        assert_eq!(
            kube("LAUNCH web db"),
            Instruction::Launch(vec!["web".into(), "db".into()])
        );
        assert_eq!(
            kube("KUBEVERSION '>=1.30 <1.38'"),
            Instruction::KubeVersion(">=1.30 <1.38".parse().unwrap())
        );
        let contained = last("FROM scratch\nENTRYPOINT [\"/a\"]", Dialect::Containerfile).unwrap();
        assert_eq!(contained, Instruction::Entrypoint(Command::Exec(vec!["/a".into()])));
    }

    #[test]
    fn what_the_build_is_for_is_there_and_cannot_be_changed() {
        let expected = Instruction::Env(vec![("A".into(), "arm64".into())]);
        for text in [
            "ENV A=$TARGETARCH",
            "ARG TARGETARCH\nENV A=$TARGETARCH",
            "ARG TARGETARCH=x\nENV A=${TARGETARCH}",
        ] {
            assert_eq!(kube(text), expected, "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        for (text, expected) in [
            ("FROM a b", "F:1:1: FROM: exactly one image"),
            ("FROM a AS b", "F:1:8: FROM: AS names a build stage"),
            (
                "FROM --platform=x a",
                "F:1:6: FROM: the flag --platform=x is not supported",
            ),
            ("FROM scratch\nCOPY a", "F:2:1: COPY: needs sources and a destination"),
            (
                "FROM scratch\nCOPY a b c",
                "F:2:10: COPY: with several sources the destination must end with /, as in c/",
            ),
            (
                "FROM scratch\nCOPY --form=x a b",
                "F:2:6: COPY: unknown flag --form, did you mean \"--from\"?",
            ),
            (
                "FROM scratch\nCOPY --chown=1 a b",
                "F:2:6: COPY: unknown flag --chown; every file",
            ),
            (
                "FROM scratch\nCOPY --chmod=u+x a b",
                "F:2:6: COPY: --chmod takes an octal",
            ),
            (
                "FROM scratch\nCOPY http://x y",
                "F:2:6: COPY: COPY takes files of the context",
            ),
            ("FROM scratch\nCOPY '' y", "F:2:6: COPY: a path is empty"),
            (
                "FROM scratch\nARG X",
                "F:2:5: ARG: X has no default, so --build-arg X=VALUE is needed",
            ),
            (
                "FROM scratch\nENV A=1\nLABEL a=$AA",
                "F:3:9: LABEL: the variable \"AA\" is not set",
            ),
            (
                "FROM scratch\nCOPY a \\\n  $AA",
                "F:3:3: COPY: the variable \"AA\" is not set",
            ),
            (
                "FROM scratch\nADD http://x y",
                "F:2:5: ADD: a URL needs --checksum=sha256:",
            ),
            (
                "FROM scratch\nADD http://u:p@x/z y",
                "F:2:5: ADD: a URL with a user or password",
            ),
            (
                "FROM scratch\nADD git://x y",
                "F:2:5: ADD: \"git://x\" is not supported",
            ),
            (
                "FROM scratch\nADD --checksum=md5:1 x y",
                "F:2:5: ADD: --checksum takes sha256:",
            ),
            (
                "FROM scratch\nADD --unpack=yes x y",
                "F:2:5: ADD: --unpack is true or false",
            ),
            ("FROM scratch\nRUN <<EOF", "F:2:5: RUN: here-documents"),
            ("FROM scratch\nCOPY <<EOF x", "F:2:6: COPY: here-documents"),
            ("FROM scratch\nIMAGE a b", "F:2:7: IMAGE: the form is"),
            (
                "FROM scratch\nIMAGE a FROM ftp:x",
                "F:2:14: IMAGE: the source \"ftp\" is unknown",
            ),
            (
                "FROM scratch\nIMAGE a FROM oci:",
                "F:2:14: IMAGE: a path is missing after oci:",
            ),
            ("FROM scratch\nIMAGE --from=x a", "F:2:7: IMAGE: --from is for files"),
            ("FROM scratch\nAPP web", "F:2:1: APP: the form is NAME SOURCE"),
            (
                "FROM scratch\nAPP Web x",
                "F:2:5: APP: \"Web\" can't be an application's name",
            ),
            (
                "FROM scratch\nAPP web x --vales y",
                "F:2:11: APP: unknown flag --vales, did you mean \"--values\"?",
            ),
            (
                "FROM scratch\nAPP web x --values",
                "F:2:11: APP: --values needs a value",
            ),
            (
                "FROM scratch\nAPP web https://x/y",
                "F:2:9: APP: a URL needs --checksum",
            ),
            (
                "FROM scratch\nCNI x https://x/y",
                "F:2:7: CNI: \"https://x/y\": only files of the context",
            ),
            (
                "FROM scratch\nKUBEVERSION latest",
                "F:2:13: KUBEVERSION: \"latest\" is no version",
            ),
            ("FROM scratch\nCMDS [\"a\"", "F:2:1: CMDS: the list must look like"),
            ("FROM scratch\nFROM scratch", "F:2:1: FROM: a second FROM"),
            ("FROM scratch\nRUN", "F:2:1: RUN: arguments are missing"),
        ] {
            let error = last(text, Dialect::Kubefile).unwrap_err();
            assert!(error.starts_with(expected), "{text}: {error}");
        }
        let two = format!("FROM scratch\nADD --checksum={SUM} a b c/");
        assert!(last(&two, Dialect::Kubefile).unwrap_err().starts_with("F:2:"));
    }
}
