//! The instructions that bring something into an image: their flags, sources and destinations.

use super::evaluate::{Evaluator, Parsed, app_name, json_list};
use super::instruction::{AddFlags, CopyFlags, ImageSource, Instruction, is_url};
use super::words::{Fault, Word};
use crate::names::did_you_mean;

/// A `--name` or `--name=value`.
struct Flag {
    name: String,
    value: Option<String>,
    at: usize,
}

impl Flag {
    fn of(word: Word) -> Flag {
        let (name, value) = match word.text.split_once('=') {
            Some((name, value)) => (name.to_string(), Some(value.to_string())),
            None => (word.text, None),
        };
        Flag {
            name,
            value,
            at: word.at,
        }
    }

    fn value(&self) -> Parsed<String> {
        let value = self.value.clone().filter(|value| !value.is_empty());
        value.ok_or_else(|| Fault::at(self.at, format!("{0} needs a value: {0}=…", self.name)))
    }

    fn unknown(&self, known: &[&str]) -> Fault {
        let why = match self.name.as_str() {
            "--chown" => "; every file of an image belongs to root".to_string(),
            "--link" | "--exclude" | "--parents" | "--keep-git-dir" | "--mount" => "; it is not supported".to_string(),
            name => did_you_mean(name, known.iter().copied()),
        };
        Fault::at(
            self.at,
            format!("unknown flag {}{why} (known: {})", self.name, known.join(", ")),
        )
    }

    fn mode(&self) -> Parsed<u32> {
        let mode = u32::from_str_radix(&self.value()?, 8)
            .ok()
            .filter(|mode| *mode <= 0o7777);
        mode.ok_or_else(|| Fault::at(self.at, "--chmod takes an octal mode such as 0755"))
    }

    fn checksum(&self) -> Parsed<String> {
        let value = self.value()?;
        let hex = value.strip_prefix("sha256:").unwrap_or_default().to_ascii_lowercase();
        match hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            true => Ok(format!("sha256:{hex}")),
            false => Err(Fault::at(
                self.at,
                "--checksum takes sha256: and 64 hexadecimal digits, as `sha256sum FILE` prints them",
            )),
        }
    }
}

/// What follows an instruction's flags.
struct Tail<'t> {
    text: &'t str,
    at: usize,
}

impl Evaluator {
    /// The leading words that begin with `--`, and the rest.
    fn flags<'t>(&self, rest: &'t str) -> Parsed<(Vec<Flag>, Tail<'t>)> {
        let mut flags = Vec::new();
        let mut at = 0;
        while rest[at..].starts_with("--") {
            let len = rest[at..].find(char::is_whitespace).unwrap_or(rest.len() - at);
            for word in self.words(&rest[at..at + len]).map_err(|fault| fault.shifted(at))? {
                flags.push(Flag::of(Word { at, ..word }));
            }
            at += len;
            at += rest[at..].len() - rest[at..].trim_start().len();
        }
        let text = &rest[at..];
        Ok((flags, Tail { text, at }))
    }

    /// The words of a tail, which may be written as a list.
    fn items(&self, tail: &Tail<'_>) -> Parsed<Vec<Word>> {
        let shift = |fault: Fault| fault.shifted(tail.at);
        let word = |text| Word { text, at: tail.at };
        match json_list(tail.text).map_err(shift)? {
            Some(list) => list
                .iter()
                .map(|item| self.expand(item).map(word))
                .collect::<Parsed<_>>()
                .map_err(|fault| Fault::at(tail.at, fault.message)),
            None => {
                let words = self.words(tail.text).map_err(shift)?;
                let moved = |word: Word| Word {
                    at: word.at + tail.at,
                    ..word
                };
                Ok(words.into_iter().map(moved).collect())
            }
        }
    }

    pub(super) fn copy(&self, rest: &str) -> Parsed<Instruction> {
        let (given, tail) = self.flags(rest)?;
        let mut flags = CopyFlags::default();
        for flag in given {
            match flag.name.as_str() {
                "--from" => flags.from = Some(flag.value()?),
                "--chmod" => flags.chmod = Some(flag.mode()?),
                _ => return Err(flag.unknown(&["--from", "--chmod"])),
            }
        }
        let (sources, destination) = self.sources_and_destination("COPY", &tail)?;
        if let Some(url) = sources.iter().find(|source| is_url(&source.text)) {
            return Err(Fault::at(url.at, "COPY takes files of the context; ADD fetches a URL"));
        }
        let sources = texts(sources);
        Ok(Instruction::Copy {
            flags,
            sources,
            destination,
        })
    }

    pub(super) fn add(&self, rest: &str) -> Parsed<Instruction> {
        let (given, tail) = self.flags(rest)?;
        let mut flags = AddFlags::default();
        for flag in given {
            match (flag.name.as_str(), flag.value.as_deref()) {
                ("--checksum", _) => flags.checksum = Some(flag.checksum()?),
                ("--chmod", _) => flags.chmod = Some(flag.mode()?),
                ("--unpack", None | Some("true")) => flags.unpack = Some(true),
                ("--unpack", Some("false")) => flags.unpack = Some(false),
                ("--unpack", _) => return Err(Fault::at(flag.at, "--unpack is true or false")),
                _ => return Err(flag.unknown(&["--checksum", "--unpack", "--chmod"])),
            }
        }
        let (sources, destination) = self.sources_and_destination("ADD", &tail)?;
        check_urls(&sources, flags.checksum.as_deref())?;
        let sources = texts(sources);
        Ok(Instruction::Add {
            flags,
            sources,
            destination,
        })
    }

    pub(super) fn image(&self, rest: &str) -> Parsed<Instruction> {
        let (given, tail) = self.flags(rest)?;
        let mut context = None;
        for flag in given {
            match flag.name.as_str() {
                "--from" => context = Some((flag.value()?, flag.at)),
                _ => return Err(flag.unknown(&["--from"])),
            }
        }
        let words = self.items(&tail)?;
        let (reference, source) = match words.as_slice() {
            [reference] => (reference, ImageSource::Registry),
            [reference, from, source] if from.text.eq_ignore_ascii_case("from") => (reference, image_source(source)?),
            _ => {
                return Err(Fault {
                    at: Some(tail.at),
                    ..self.form("IMAGE", "this is not understood")
                });
            }
        };
        if let (Some((_, at)), ImageSource::Registry | ImageSource::Docker(_)) = (&context, &source) {
            return Err(Fault::at(
                *at,
                "--from is for files of a build context, not for registries",
            ));
        }
        Ok(Instruction::Image {
            reference: reference.text.clone(),
            source,
            from: context.map(|(name, _)| name),
        })
    }

    pub(super) fn app(&self, rest: &str) -> Parsed<Instruction> {
        let (name, tail) = self.name(rest, "APP")?;
        let mut sources = Vec::new();
        let (mut values, mut checksum) = (Vec::new(), None);
        let mut words = self.items(&tail)?.into_iter();
        while let Some(word) = words.next() {
            if !word.text.starts_with("--") {
                sources.push(word);
                continue;
            }
            let mut flag = Flag::of(word);
            match flag.name.as_str() {
                "--checksum" => checksum = Some(flag.checksum()?),
                "--values" => {
                    // As helm has it, the file may be a word of its own.
                    flag.value = flag.value.or_else(|| words.next().map(|word| word.text));
                    values.push(local(&flag.value()?).to_string());
                }
                _ => return Err(flag.unknown(&["--values", "--checksum"])),
            }
        }
        if sources.is_empty() {
            return Err(self.form("APP", "sources are missing"));
        }
        check_urls(&sources, checksum.as_deref())?;
        if let Some(url) = sources.iter().find(|source| is_url(&source.text) && sources.len() > 1) {
            return Err(Fault::at(url.at, "a URL must be the application's only source"));
        }
        let sources = sources.iter().map(|source| local(&source.text).to_string()).collect();
        Ok(Instruction::App {
            name,
            sources,
            values,
            checksum,
        })
    }

    /// A plugin's name and its manifests.
    pub(super) fn plugin(&self, keyword: &str, rest: &str) -> Parsed<(String, Vec<String>)> {
        let (name, tail) = self.name(rest, keyword)?;
        let sources = self.items(&tail)?;
        if let Some(url) = sources
            .iter()
            .find(|source| source.text.contains("://") && local(&source.text) == source.text)
        {
            let message = format!(
                "{:?}: only files of the context are supported; fetch it with ADD",
                url.text
            );
            return Err(Fault::at(url.at, message));
        }
        if sources.is_empty() {
            return Err(self.form(keyword, "sources are missing after the name"));
        }
        Ok((
            name,
            sources.iter().map(|source| local(&source.text).to_string()).collect(),
        ))
    }

    fn sources_and_destination(&self, keyword: &str, tail: &Tail<'_>) -> Parsed<(Vec<Word>, String)> {
        let mut words = self.items(tail)?;
        let destination = words
            .pop()
            .filter(|_| !words.is_empty())
            .ok_or_else(|| self.form(keyword, "needs sources and a destination"))?;
        if words.len() > 1 && !destination.text.ends_with('/') && destination.text != "." {
            let message = format!(
                "with several sources the destination must end with /, as in {}/",
                destination.text
            );
            return Err(Fault::at(destination.at, message));
        }
        if let Some(empty) = words.iter().chain([&destination]).find(|word| word.text.is_empty()) {
            return Err(Fault::at(empty.at, "a path is empty"));
        }
        Ok((words, destination.text))
    }

    /// An application's name in front of the rest.
    fn name<'t>(&self, rest: &'t str, keyword: &str) -> Parsed<(String, Tail<'t>)> {
        let (name, text) = rest
            .split_once(char::is_whitespace)
            .ok_or_else(|| self.form(keyword, "sources are missing after the name"))?;
        let text = text.trim_start();
        let at = rest.len() - text.len();
        Ok((app_name(&self.expand(name)?)?, Tail { text, at }))
    }
}

fn texts(words: Vec<Word>) -> Vec<String> {
    words.into_iter().map(|word| word.text).collect()
}

/// Sealer's mark for a file of the context says nothing here.
fn local(source: &str) -> &str {
    source.strip_prefix("local://").unwrap_or(source)
}

/// What is fetched must be known beforehand, or the same recipe would one day give something else, or nothing.
fn check_urls(sources: &[Word], checksum: Option<&str>) -> Parsed<()> {
    for Word { text, at } in sources {
        let at = *at;
        let remote = ["git@", "git://", "ssh://", "ftp://", "helm://", "oci://", "s3://"];
        if remote.iter().any(|scheme| text.starts_with(scheme)) {
            return Err(Fault::at(
                at,
                format!("{text:?} is not supported: give a file, or an http:// or https:// URL"),
            ));
        }
        if !is_url(text) {
            continue;
        }
        let authority = text.split_once("://").map_or("", |(_, rest)| rest);
        let authority = authority.split(['/', '?', '#']).next().unwrap_or_default();
        if authority.is_empty() {
            return Err(Fault::at(at, "the URL names no host"));
        }
        if authority.contains('@') {
            let message = "a URL with a user or password would lay them open in the image's history; fetch the file yourself \
                           and COPY it";
            return Err(Fault::at(at, message));
        }
        if checksum.is_none() {
            let message = "a URL needs --checksum=sha256:…, or the build could not be repeated";
            return Err(Fault::at(at, message));
        }
    }
    match (checksum, sources) {
        (Some(_), [_, second, ..]) => Err(Fault::at(second.at, "--checksum is for exactly one source")),
        _ => Ok(()),
    }
}

fn image_source(word: &Word) -> Parsed<ImageSource> {
    let source = word.text.as_str();
    if let Some(reference) = source.strip_prefix("docker://") {
        return Ok(ImageSource::Docker(reference.to_string()));
    }
    let Some((transport, rest)) = source.split_once(':') else {
        return Ok(ImageSource::Folder(source.to_string()));
    };
    let (file, name) = match rest.split_once(':') {
        Some((file, name)) => (file.to_string(), Some(name.to_string())),
        None => (rest.to_string(), None),
    };
    if file.is_empty() {
        return Err(Fault::at(word.at, format!("a path is missing after {transport}:")));
    }
    Ok(match transport {
        "oci" => ImageSource::OciFolder { folder: file, name },
        "oci-archive" => ImageSource::OciArchive { file, name },
        "docker-archive" => ImageSource::DockerArchive { file, name },
        _ => {
            let known = ["docker", "oci", "oci-archive", "docker-archive"];
            let hint = did_you_mean(transport, known);
            return Err(Fault::at(
                word.at,
                format!(
                    "the source {transport:?} is unknown{hint} (known: docker://, oci:, oci-archive:, docker-archive:, a folder)"
                ),
            ));
        }
    })
}
