//! `installer save`: a cluster image as a file, files, a folder, or a stream.

use crate::{bar::Bar, context::Context, failure::Exit, table};
use anyhow::bail;
use image::{Save, Saved, Store};
use oci::counted;
use std::io::IsTerminal as _;
use std::path::PathBuf;

/// Flags of `save`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name or digest of the image
    #[arg(value_name = "IMAGE")]
    pub image: String,
    /// File or folder to write; `-` is standard output
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// What to write
    #[arg(long, value_enum, default_value_t = Form::OciArchive, value_name = "FORM")]
    pub format: Form,
    /// Write parts FILE.000, FILE.001, … of at most this size (700M, 4G, 4GiB), and their checksums FILE.sha256
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub split: Option<u64>,
    /// Leave out what this image has; whoever loads the file must have it. May be repeated
    #[arg(long, value_name = "IMAGE")]
    pub since: Vec<String>,
}

/// Forms of a saved image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Form {
    /// One tar archive that every OCI tool can read
    OciArchive,
    /// A folder that every OCI tool can read; one that is there gets only what it lacks
    OciDir,
}

/// `700M`, `4G` (powers of ten, as media are sold), `4GiB` (powers of two), or bytes.
fn size(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" => 1000,
        "m" | "mb" => 1_000_000,
        "g" | "gb" => 1_000_000_000,
        "t" | "tb" => 1_000_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "tib" => 1 << 40,
        _ => return Err("the form is a number with k, M, G, T, KiB, MiB, GiB or TiB".to_string()),
    };
    let number: u64 = number
        .parse()
        .map_err(|_| "the number is missing or too large".to_string())?;
    match number.checked_mul(factor) {
        Some(0) => Err("parts need a size".to_string()),
        Some(size) => Ok(size),
        None => Err("the number is too large".to_string()),
    }
}

/// Writes the image.
pub async fn run(args: Args, context: &Context) -> anyhow::Result<Exit> {
    let to_stdout = args.output.as_os_str() == "-";
    if to_stdout && (args.split.is_some() || args.format == Form::OciDir) {
        bail!("standard output takes one archive: leave out --split and --format, or name a file with -o");
    }
    if args.split.is_some() && args.format == Form::OciDir {
        bail!("a folder is not split: leave out --split or --format oci-dir");
    }
    if to_stdout && std::io::stdout().is_terminal() {
        bail!("an archive on a terminal helps nobody: name a file with -o, or redirect the output");
    }
    let store = Store::open(&context.store)?;
    let bar = Bar::new(&context.out, args.output.display().to_string());
    let image = args.image.clone();
    let saved = tokio::task::spawn_blocking(move || {
        let saved = write(&args, &store, to_stdout, &bar);
        bar.end(saved.is_ok());
        saved
    })
    .await??;
    tell(context, &image, &saved);
    Ok(Exit::Done)
}

fn write(args: &Args, store: &Store, to_stdout: bool, bar: &Bar) -> Result<Saved, image::Error> {
    let save = Save::new(store, &args.image, &args.since)?;
    match (args.format, args.split) {
        (Form::OciDir, _) => save.to_folder(&args.output, bar),
        (_, Some(size)) => save.to_parts(&args.output, size, bar),
        _ if to_stdout => save.to_stream(std::io::stdout().lock(), bar),
        _ => save.to_file(&args.output, bar),
    }
}

fn tell(context: &Context, image: &str, saved: &Saved) {
    let mut text = format!(
        "{image} saved, {} in {}",
        table::size(saved.bytes),
        counted(saved.blobs, "blob")
    );
    if saved.files.len() > 1 {
        text.push_str(&format!(", {}", counted(saved.files.len() - 1, "part")));
    }
    if saved.left_out > 0 {
        text.push_str(&format!(", {} left out", table::size(saved.left_out)));
    }
    context.out.note(text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_media_are_sold() {
        for (text, expected) in [
            ("700M", Some(700_000_000)),
            ("4G", Some(4_000_000_000)),
            ("4GiB", Some(4 << 30)),
            ("4gb", Some(4_000_000_000)),
            ("512", Some(512)),
            ("0", None),
            ("", None),
            ("G", None),
            ("4 G", None),
            ("4X", None),
            ("99999999999T", None),
        ] {
            assert_eq!(size(text).ok(), expected, "{text}");
        }
    }
}
