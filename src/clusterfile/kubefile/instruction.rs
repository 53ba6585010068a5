//! The instructions of Kubefile and Containerfile, typed.

use std::collections::BTreeMap;

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
    /// `RUN command`.
    Run(Command),
    /// `IMAGE REFERENCE [FROM SOURCE]`.
    Image {
        /// The name under which the cluster carries it.
        reference: String,
        /// Where it comes from.
        source: ImageSource,
    },
    /// `CNI NAME SRC…`: manifests of the network plugin.
    Cni {
        /// The plugin's name.
        name: String,
        /// Paths in the context.
        sources: Vec<String>,
    },
    /// `APP NAME SRC…`: an application's files.
    App {
        /// The application's name.
        name: String,
        /// Paths in the context.
        sources: Vec<String>,
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
    /// `CMDS ["command", …]` or a Kubefile's `CMD command`: commands run on the first master after the cluster is up.
    Commands(Vec<String>),
    /// `KUBEVERSION RANGE`: the Kubernetes versions this image fits.
    KubeVersion(String),
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
    /// A folder of the context with a Containerfile.
    Folder(String),
    /// An OCI archive or layout folder of the context, optionally with the name inside it.
    OciArchive {
        /// File of the context.
        file: String,
        /// `org.opencontainers.image.ref.name` within the archive.
        name: Option<String>,
    },
}

/// Variables by name.
pub(crate) type Variables = BTreeMap<String, String>;
