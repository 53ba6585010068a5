//! `installer diff`: what differs between two cluster images.

use crate::{context::Context, document::DocumentArg, failure::Exit, table};
use image::{Change, Difference, FileKind, FileShape, Store};
use oci::counted;

/// Flags of `diff`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name or digest of the old image
    #[arg(value_name = "OLD")]
    pub old: String,
    /// Name or digest of the new image
    #[arg(value_name = "NEW")]
    pub new: String,
    /// How to print.
    #[command(flatten)]
    pub format: DocumentArg,
}

/// Prints what differs.
pub fn run(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    let store = Store::open(&context.store)?;
    let difference = image::diff(&store, &args.old, &args.new)?;
    if !args.format.print(&context.out, &difference)? {
        for line in lines(&difference, args.format.is_wide()) {
            context.out.result(line);
        }
    }
    Ok(Exit::Done)
}

/// `+` is new, `-` is gone, `~` is different.
fn lines(difference: &Difference, wide: bool) -> Vec<String> {
    if difference.is_empty() {
        return vec!["the same image".to_string()];
    }
    let digest = |digest: &oci::Digest| match wide {
        true => digest.to_string(),
        false => digest.short().to_string(),
    };
    let mut lines: Vec<String> = Vec::new();
    for change in &difference.platforms {
        lines.push(line("platform", change, |_| String::new()));
    }
    for platform in &difference.content {
        lines.push(format!("{}:", platform.platform));
        let files = platform
            .files
            .iter()
            .map(|change| line("file", change, |file| shape(file, wide)));
        lines.extend(files);
        lines.extend(platform.images.iter().map(|change| line("image", change, digest)));
        let config = platform.config.iter();
        lines.extend(config.map(|change| line("config", change, |value| format!(" {value}"))));
    }
    let blobs = counted(difference.send_blobs, "blob");
    lines.push(format!("{} in {blobs} to send", table::size(difference.send_bytes)));
    lines
}

fn line<T>(what: &str, change: &Change<T>, shown: impl Fn(&T) -> String) -> String {
    let name = &change.name;
    let shown = |value: &T| shown(value).trim().to_string();
    let text = match (&change.before, &change.after) {
        (None, Some(new)) => format!("+ {what} {name} {}", shown(new)),
        (Some(old), None) => format!("- {what} {name} {}", shown(old)),
        (Some(old), Some(new)) => format!("~ {what} {name} {} -> {}", shown(old), shown(new)),
        (None, None) => String::new(),
    };
    text.trim_end().to_string()
}

fn shape(file: &FileShape, wide: bool) -> String {
    let mode = file.mode;
    match &file.kind {
        FileKind::Folder => format!("folder {mode:04o}"),
        FileKind::Link { target } => format!("-> {target}"),
        FileKind::File { digest, size, .. } => {
            let digest = if wide { digest.as_str() } else { digest.short() };
            format!("{mode:04o} {} {digest}", table::size(*size))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_one_line_with_a_sign() {
        let change = |before: Option<u8>, after: Option<u8>| Change {
            name: "x".to_string(),
            before,
            after,
        };
        for (before, after, expected) in [
            (None, Some(1), "+ file x 1"),
            (Some(1), None, "- file x 1"),
            (Some(1), Some(2), "~ file x 1 -> 2"),
        ] {
            assert_eq!(line("file", &change(before, after), u8::to_string), expected);
        }
    }
}
