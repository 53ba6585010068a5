//! What can go wrong with cluster images, in words for the person at the terminal.

use std::path::{Path, PathBuf};

use clusterfile::Problems;
use clusterfile::kubefile::Line;
use clusterfile::yaml::Position;
use oci::{Platform, Reference};

use crate::manifest::platform_text;
use crate::merge::Conflict;

/// An error shows no more contradictions than this.
const MOST_LINES: usize = 40;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The recipe is wrong.
    #[error(transparent)]
    Recipe(#[from] Problems),
    /// OCI content is wrong or cannot be read or written.
    #[error(transparent)]
    Oci(#[from] oci::Error),
    /// The operating system refused.
    #[error("{what} {path}: {source}")]
    Io {
        /// What was tried: `cannot read`, `cannot write`, …
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// An instruction of a recipe failed.
    #[error("{file}:{}:{}: {source}", at.line, at.column)]
    Step {
        /// The recipe.
        file: String,
        /// The instruction's place, or that of the word in it that is wrong.
        at: Position,
        /// Why it failed.
        source: Box<Error>,
    },
    /// A build for several platforms failed for one of them.
    #[error("{source}\n(building for {platform})")]
    Platform {
        /// As `os/architecture`.
        platform: String,
        /// Why it failed.
        source: Box<Error>,
    },
    /// A RUN command failed.
    #[error("the command failed ({status}){}", tail_text(.tail))]
    Command {
        /// Exit status or signal.
        status: String,
        /// The last lines it printed.
        tail: Vec<String>,
    },
    /// The store has no such image.
    #[error("image {reference} is not in the store {}{}", store.display(), not_found(reference, hint))]
    NotFound {
        /// What was asked for.
        reference: String,
        /// The store's folder.
        store: PathBuf,
        /// `, did you mean …?` or nothing.
        hint: String,
    },
    /// The image has nothing for the platform.
    #[error("image {reference} has no content for {platform}; it has {available}")]
    NoPlatform {
        /// The image.
        reference: String,
        /// The platform asked for, as `os/architecture`.
        platform: String,
        /// The platforms it has.
        available: String,
    },
    /// Manifests or runtime configuration name images that the cluster image doesn't carry.
    #[error("{}", missing_text(.0))]
    NotClosed(Vec<MissingImage>),
    /// A path leads out of its folder, or is otherwise not allowed.
    #[error("{path}: {reason}")]
    Path {
        /// The path as written.
        path: String,
        /// Why it is refused.
        reason: String,
    },
    /// An archive is not what it should be; nothing was taken from it.
    #[error("{archive} is refused: {reason}")]
    Archive {
        /// The archive's file.
        archive: PathBuf,
        /// What is wrong, with the entry's name.
        reason: String,
    },
    /// A registry could not give an image.
    #[error("cannot pull {reference}: {reason}")]
    Pull {
        /// The image.
        reference: String,
        /// The registry's or network's answer.
        reason: String,
    },
    /// A registry refused something or could not be reached.
    #[error("cannot {action}: {reason}")]
    Remote {
        /// What was tried, with the repository.
        action: String,
        /// The registry's or network's answer.
        reason: String,
    },
    /// Several images can't become one.
    #[error("{}", conflicts_text(.0))]
    Conflicts(Vec<Conflict>),
    /// A URL could not be fetched.
    #[error("cannot fetch {url}: {reason}")]
    Fetch {
        /// The URL.
        url: String,
        /// The server's or network's answer.
        reason: String,
    },
    /// A helm chart could not be rendered.
    #[error("{shown}: {reason}")]
    Chart {
        /// The chart with its application.
        shown: String,
        /// Why.
        reason: String,
    },
    /// What was asked for cannot be done.
    #[error("{0}")]
    Refused(String),
}

/// A reference that nothing in the cluster image answers.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct MissingImage {
    /// The rootfs file that names it, with its origin in the context where known.
    pub file: String,
    /// Its line there, from 1.
    pub line: u64,
    /// The reference as written.
    pub reference: String,
    /// The carried reference most like it.
    pub nearest: Option<Reference>,
    /// Set where the text is no reference at all, or can't be read: why.
    pub malformed: Option<String>,
    /// Why it could not be pulled either, where that was tried or forbidden.
    pub pull: Option<String>,
}

impl Error {
    pub(crate) fn io(what: &'static str, path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Error {
        move |source| Error::Io {
            what,
            path: path.as_ref().to_path_buf(),
            source,
        }
    }

    /// Adds the recipe's place: the word that the error speaks of, or the whole instruction.
    pub(crate) fn at(self, file: &str, line: &Line) -> Error {
        match self {
            // These name their place themselves.
            Error::Recipe(_) | Error::NotClosed(_) | Error::Step { .. } | Error::Platform { .. } => self,
            source => Error::Step {
                file: file.to_string(),
                at: source.subject().map_or(line.at(), |subject| line.place_of(subject)),
                source: Box::new(source),
            },
        }
    }

    /// What the error speaks of, as it may stand in a recipe.
    fn subject(&self) -> Option<&str> {
        match self {
            Error::Path { path, .. } => Some(path),
            Error::NotFound { reference, .. } | Error::NoPlatform { reference, .. } | Error::Pull { reference, .. } => {
                Some(reference)
            }
            Error::Fetch { url, .. } => Some(url),
            Error::Oci(oci::Error::BadReference(text, _)) => Some(text),
            _ => None,
        }
    }

    /// Adds the platform, where there are several.
    pub(crate) fn building_for(self, platform: &Platform) -> Error {
        Error::Platform {
            platform: platform_text(platform),
            source: Box::new(self),
        }
    }

    pub(crate) fn path(path: impl Into<String>, reason: impl Into<String>) -> Error {
        Error::Path {
            path: path.into(),
            reason: reason.into(),
        }
    }
}

/// What to do about images that are not carried.
const REMEDIES: &str = "\
every image a cluster needs must be inside its cluster image. Either build where its registry can be reached (without \
--no-pull; `installer login` for private ones), or bring it along: `IMAGE REFERENCE FROM oci-archive:FILE`, \
docker-archive:FILE, oci:FOLDER or FOLDER-WITH-CONTAINERFILE in the Kubefile";

/// What to do about an image that is not there.
fn not_found(reference: &str, hint: &str) -> String {
    let ways = format!(
        "installer load -i FILE, installer pull {reference} or installer build -t {reference} brings it there, installer images lists what is"
    );
    match hint {
        "" => format!("; {ways}"),
        hint => format!("{hint} ({ways})"),
    }
}

fn tail_text(tail: &[String]) -> String {
    tail.iter().map(|line| format!("\n  {line}")).collect()
}

fn conflicts_text(conflicts: &[Conflict]) -> String {
    let mut lines: Vec<String> = conflicts.iter().take(MOST_LINES).map(ToString::to_string).collect();
    if conflicts.len() > MOST_LINES {
        lines.push(format!("and {} more", conflicts.len() - MOST_LINES));
    }
    format!(
        "the images contradict each other; `--prefer first` or `--prefer last` would decide:\n  {}",
        lines.join("\n  ")
    )
}

fn missing_text(missing: &[MissingImage]) -> String {
    let line = |m: &MissingImage| {
        if let Some(reason) = &m.malformed {
            return format!("{}:{}: {reason}", m.file, m.line);
        }
        let (pull, near) = (m.pull.as_ref(), m.nearest.as_ref());
        let pull = pull
            .map(|why| format!(" and cannot be pulled: {why}"))
            .unwrap_or_default();
        let near = near
            .map(|name| format!(", nearest carried one: {name}"))
            .unwrap_or_default();
        format!(
            "{}:{}: the image {} is not carried{pull}{near}",
            m.file, m.line, m.reference
        )
    };
    let mut text: Vec<String> = missing.iter().map(line).collect();
    if missing.iter().any(|missing| missing.malformed.is_none()) {
        text.push(REMEDIES.into());
    }
    text.join("\n")
}
