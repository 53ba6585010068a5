//! The instructions of Kubefile and Containerfile, typed.

use std::collections::BTreeMap;

use super::version::KubeRange;

/// One instruction with its variables replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Instruction {
    /// `FROM scratch` or `FROM REFERENCE`.
    From {
        /// The reference, or `scratch`.
        base: String,
    },
    /// `ARG NAME[=DEFAULT]`: done by the evaluator.
    Arg,
    /// `ENV NAME=VALUE…`.
    Env(Vec<(String, String)>),
    /// `LABEL NAME=VALUE…`.
    Label(Vec<(String, String)>),
    /// `COPY [flags] SRC… DEST`.
    Copy {
        /// `--from` and `--chmod`.
        flags: CopyFlags,
        /// Paths or patterns in the context.
        sources: Vec<String>,
        /// Where they go; a trailing `/` means a folder.
        destination: String,
    },
    /// `ADD [flags] SRC… DEST`: files of the context with archives unpacked, or what a URL gives.
    Add {
        /// `--checksum`, `--unpack` and `--chmod`.
        flags: AddFlags,
        /// Paths, patterns or URLs.
        sources: Vec<String>,
        /// Where they go; a trailing `/` means a folder.
        destination: String,
    },
    /// `RUN command`.
    Run(Command),
    /// `IMAGE [--from=NAME] REFERENCE [FROM SOURCE]`.
    Image {
        /// The name under which the cluster carries it.
        reference: String,
        /// Where it comes from.
        source: ImageSource,
        /// `--from=NAME`: the build context that has the source's file or folder.
        from: Option<String>,
    },
    /// `CNI NAME SRC…`: manifests of the network plugin.
    Cni {
        /// The plugin's name.
        name: String,
        /// Paths in the context.
        sources: Vec<String>,
    },
    /// `CSI NAME SRC…`: manifests of a storage plugin.
    Csi {
        /// The plugin's name.
        name: String,
        /// Paths in the context.
        sources: Vec<String>,
    },
    /// `APP NAME [--checksum=DIGEST] SRC… [--values FILE]…`: an application's files.
    App {
        /// The application's name.
        name: String,
        /// Paths in the context, or one URL.
        sources: Vec<String>,
        /// Files of values for its chart, in the order in which they count.
        values: Vec<String>,
        /// The digest of the only source, needed where that is a URL.
        checksum: Option<String>,
    },
    /// `APPENV NAME NAME=VALUE…`.
    AppEnv {
        /// The application's name.
        name: String,
        /// Its environment.
        env: Vec<(String, String)>,
    },
    /// `APPCMDS NAME ["command", …]`.
    AppCmds {
        /// The application's name.
        name: String,
        /// Its launch commands.
        commands: Vec<String>,
    },
    /// `LAUNCH ["app", …]`: applications launched unless the Clusterfile says otherwise.
    Launch(Vec<String>),
    /// `CMDS ["command", …]`: commands run on the first master after the cluster is up.
    Commands(Vec<String>),
    /// A Kubefile's `CMD command`: one more of the same.
    OneCommand(Vec<String>),
    /// `KUBEVERSION RANGE`: the Kubernetes versions this image fits.
    KubeVersion(KubeRange),
    /// `WORKDIR PATH`.
    WorkDir(String),
    /// `USER NAME[:GROUP]`.
    User(String),
    /// `EXPOSE PORT[/PROTOCOL]…`.
    Expose(Vec<String>),
    /// `ENTRYPOINT`.
    Entrypoint(Command),
    /// A Containerfile's `CMD`.
    Cmd(Command),
}

/// Flags of COPY.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CopyFlags {
    /// `--from=NAME`: a named build context instead of the context.
    pub from: Option<String>,
    /// `--chmod=MODE`: the mode of copied files, in octal.
    pub chmod: Option<u32>,
}

/// Flags of ADD.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AddFlags {
    /// `--checksum=sha256:…`: the digest of the only source; always there for a URL.
    pub checksum: Option<String>,
    /// `--unpack[=true|false]`: whether an archive is unpacked. By default a local one is, a fetched one isn't.
    pub unpack: Option<bool>,
    /// `--chmod=MODE`: the mode of added files, in octal. What comes out of an archive keeps its own.
    pub chmod: Option<u32>,
}

/// Whether a source of ADD or APP is fetched.
#[must_use]
pub fn is_url(source: &str) -> bool {
    source.starts_with("http://") || source.starts_with("https://")
}

/// A command in one of its two forms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// A line for `/bin/sh -c`.
    Shell(String),
    /// A program and its arguments.
    Exec(Vec<String>),
}

/// Where a carried image comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageSource {
    /// The registry that its own reference names.
    Registry,
    /// Another reference in a registry.
    Docker(String),
    /// A folder of the context with a Containerfile, or one that is an OCI image layout.
    Folder(String),
    /// A folder of the context that is an OCI image layout.
    OciFolder {
        /// Folder of the context.
        folder: String,
        /// `org.opencontainers.image.ref.name` within the layout.
        name: Option<String>,
    },
    /// An OCI archive of the context.
    OciArchive {
        /// File of the context.
        file: String,
        /// `org.opencontainers.image.ref.name` within the archive.
        name: Option<String>,
    },
    /// What `docker save` writes.
    DockerArchive {
        /// File of the context.
        file: String,
        /// One of the archive's `RepoTags`.
        name: Option<String>,
    },
}

impl ImageSource {
    /// The file or folder of a build context; none for what comes from a registry.
    #[must_use]
    pub fn path(&self) -> Option<&str> {
        match self {
            ImageSource::Registry | ImageSource::Docker(_) => None,
            ImageSource::Folder(path)
            | ImageSource::OciFolder { folder: path, .. }
            | ImageSource::OciArchive { file: path, .. }
            | ImageSource::DockerArchive { file: path, .. } => Some(path),
        }
    }
}

/// Variables by name.
pub(crate) type Variables = BTreeMap<String, String>;
