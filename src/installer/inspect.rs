//! `installer inspect`: all that an image says about itself.

use crate::{bar::Bar, context::Context, document::DocumentArg, failure::Exit, table};
use image::{Description, FileKind, PlatformDescription, Store};
use oci::counted;
use std::collections::BTreeMap;

/// Flags of `inspect`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name or digest of the image
    #[arg(value_name = "IMAGE")]
    pub image: String,
    /// How to print.
    #[command(flatten)]
    pub format: DocumentArg,
    /// List the files of the rootfs too
    #[arg(long)]
    pub files: bool,
    /// Read every blob and compare it with its digest
    #[arg(long)]
    pub verify: bool,
}

/// Prints a description; fails if `--verify` finds damage.
pub fn run(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    let store = Store::open(&context.store)?;
    let mut exit = Exit::Done;
    let mut verified = None;
    if args.verify {
        let bar = Bar::new(&context.out, &args.image);
        let report = store.verify(&args.image, &bar)?;
        bar.end(report.problems.is_empty());
        for problem in &report.problems {
            context.out.warn(problem);
        }
        if !report.problems.is_empty() {
            exit = Exit::Failed;
        }
        verified = Some(report);
    }
    let text = !matches!(
        args.format.output,
        crate::document::DocumentFormat::Json | crate::document::DocumentFormat::Yaml
    );
    // The tree tells how many files there are in each folder.
    let description = match store.describe(&args.image, args.files || text) {
        Err(_) if exit == Exit::Failed => return Ok(exit),
        other => other?,
    };
    let mut document = serde_json::to_value(&description)?;
    if let Some(report) = &verified {
        document["verified"] = serde_json::to_value(report)?;
    }
    if !args.format.print(&context.out, &document)? {
        let tree = tree(&description, args.files, args.format.is_wide());
        context.out.result(tree.render());
    }
    Ok(exit)
}

/// A line and what hangs below it.
#[derive(Debug, Default)]
struct Node {
    text: String,
    below: Vec<Node>,
}

impl Node {
    fn new(text: impl Into<String>) -> Node {
        let text = text.into();
        Node {
            text,
            below: Vec::new(),
        }
    }

    fn with(text: impl Into<String>, below: impl IntoIterator<Item = String>) -> Node {
        Node {
            text: text.into(),
            below: below.into_iter().map(Node::new).collect(),
        }
    }

    fn render(&self) -> String {
        let mut lines = vec![self.text.clone()];
        self.lines("", &mut lines);
        lines.join("\n")
    }

    fn lines(&self, indent: &str, lines: &mut Vec<String>) {
        for (index, node) in self.below.iter().enumerate() {
            let last = index + 1 == self.below.len();
            let (branch, more) = if last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
            lines.push(format!("{indent}{branch}{}", node.text));
            node.lines(&format!("{indent}{more}"), lines);
        }
    }
}

fn tree(image: &Description, files: bool, wide: bool) -> Node {
    let name = match image.names.as_slice() {
        [] => image.digest.to_string(),
        names => format!("{} {}", names.join(", "), image.digest),
    };
    let size = table::size(image.size);
    let created = image.created.as_ref().map(|created| format!(", created {created}"));
    let blobs = counted(image.blobs, "blob");
    let mut root = Node::new(format!("{name}, {size} in {blobs}{}", created.unwrap_or_default()));
    for platform in &image.platforms {
        root.below.push(platform_node(platform, files, wide));
    }
    if !image.artifacts.is_empty() {
        let shown = |artifact: &image::ArtifactDescription| {
            let subject = artifact.subject.short();
            format!("{} {} about {subject}", artifact.artifact_type, artifact.digest)
        };
        root.below
            .push(Node::with("artifacts", image.artifacts.iter().map(shown)));
    }
    root
}

fn platform_node(platform: &PlatformDescription, files: bool, wide: bool) -> Node {
    let mut node = Node::new(&platform.platform);
    let mut add = |name: &str, lines: Vec<String>| {
        if !lines.is_empty() {
            node.below.push(Node::with(name, lines));
        }
    };
    let config = &platform.config;
    let pairs = |map: &BTreeMap<String, String>| map.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let env: BTreeMap<String, String> = config.env.clone().into_iter().collect();
    add("env", pairs(&env));
    add("labels", pairs(&config.labels));
    add("applications", config.apps.keys().cloned().collect());
    add("launch", config.launch.clone());
    add("commands", config.commands.clone());
    add("network plugins", config.cni.clone());
    add("kubernetes", config.kube_version.iter().cloned().collect());
    let locked = platform.lock.as_ref().and_then(|lock| lock.get("images")?.as_object());
    add(
        "lock",
        locked
            .iter()
            .map(|images| counted(images.len(), "image name"))
            .collect(),
    );
    node.below.push(rootfs_node(platform, files));
    let digest = |digest: &oci::Digest| match wide {
        true => digest.to_string(),
        false => digest.short().to_string(),
    };
    let images = platform.images.iter();
    let images = images.map(|image| {
        format!(
            "{} {} {}",
            image.reference,
            digest(&image.digest),
            table::size(image.size)
        )
    });
    let count = counted(platform.images.len(), "image");
    node.below.push(Node::with(count, images));
    node
}

fn rootfs_node(platform: &PlatformDescription, files: bool) -> Node {
    let rootfs = &platform.rootfs;
    let size: u64 = rootfs.layers.iter().map(|layer| layer.size).sum();
    let text = format!(
        "rootfs, {} in {}, {} unpacked",
        table::size(size),
        counted(rootfs.layers.len(), "layer"),
        table::size(rootfs.uncompressed_size)
    );
    if files {
        let shown = |file: &image::FileEntry| match &file.kind {
            FileKind::Folder => format!("{}/", file.path),
            FileKind::File { size, .. } => format!("{} {:04o} {}", file.path, file.mode, table::size(*size)),
            FileKind::Link { target } => format!("{} -> {target}", file.path),
        };
        return Node::with(text, platform.files.iter().map(shown));
    }
    let mut folders: BTreeMap<String, (usize, u64)> = BTreeMap::new();
    for file in &platform.files {
        let (name, size) = match (file.path.split_once('/'), &file.kind) {
            (Some((top, _)), FileKind::File { size, .. }) => (format!("{top}/"), *size),
            (Some((top, _)), FileKind::Link { .. }) => (format!("{top}/"), 0),
            (None, FileKind::File { size, .. }) => (file.path.clone(), *size),
            (None, FileKind::Link { .. }) => (file.path.clone(), 0),
            (_, FileKind::Folder) => continue,
        };
        let folder = folders.entry(name).or_default();
        folder.0 += 1;
        folder.1 += size;
    }
    let shown = |(name, (count, size)): (String, (usize, u64))| match name.ends_with('/') {
        true => format!("{name} {}, {}", counted(count, "file"), table::size(size)),
        false => format!("{name} {}", table::size(size)),
    };
    Node::with(text, folders.into_iter().map(shown))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_drawn_with_its_branches() {
        let mut root = Node::new("root");
        root.below.push(Node::with("a", ["b".to_string(), "c".to_string()]));
        root.below.push(Node::with("d", ["e".to_string()]));
        assert_eq!(root.render(), "root\n├─ a\n│  ├─ b\n│  └─ c\n└─ d\n   └─ e");
    }
}
