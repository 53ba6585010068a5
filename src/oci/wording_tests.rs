//! Messages count as English does: whatever counts something in them uses [`crate::counted`], so that no user reads "1 hosts".

use std::{fs, path::Path};

/// Crates whose messages people read.
const CRATES: [&str; 11] = [
    "bootstrap",
    "clusterfile",
    "host",
    "image",
    "installer",
    "oci",
    "registry",
    "sbom",
    "ssh",
    "trust",
    "clusterd",
];
/// What messages count.
const NOUNS: &str = "\
    hosts nodes masters files blobs images objects changes findings probes checks layers pods entries \
    seconds phases members keys tags errors bytes bits packets addresses certificates instructions \
    references attempts stages charts manifests problems days minutes hours times snapshots items parts \
    units versions differences warnings signatures documents releases packages pages ports routes \
    servers applications arguments lines links processes events revisions volumes";
/// Counts that are never one: limits, and what is only told when there are several.
const NEVER_ONE: [&str; 21] = [
    "more than",
    "at most {limit} bytes",
    "{needed} bytes of memory",
    "{bytes} bytes are needed for the store",
    "parts of {part_size} bytes",
    "within {} seconds",
    "for {} seconds",
    "{0} seconds since 1970",
    "{masters} masters survive",
    "{masters} masters: this version",
    "of the {hosts} hosts",
    "{count} images of the store",
    "a document of {size} bytes",
    "a message of {} bytes is too large",
    "frame of {length} bytes is not acceptable",
    "header of {size} bytes",
    "announced were {} bytes",
    // Of documents.
    "says that it has {} bytes",
    "has {said} bytes, but it has {found}",
    "it has {size} bytes, and a list of parts at most",
    "{} entries have the form NAME=VALUE",
];

/// Source without its tests, as pairs of line number and text.
fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let end = text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len());
    let code = text[..end].lines().zip(1..).map(|(line, number)| (number, line));
    code.filter(|(_, line)| !line.trim_start().starts_with("//") && !line.contains("assert"))
}

fn sources(folder: &Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let (path, name) = (entry.path(), entry.file_name().into_string().unwrap());
        if path.is_dir() && !["tests", "target"].contains(&name.as_str()) {
            sources(&path, found);
        } else if name.ends_with(".rs") && !name.contains("tests") {
            found.push(path);
        }
    }
}

/// Whether a count stands before a noun in the plural: `{count} hosts`, `{} more hosts`.
fn counts(line: &str) -> bool {
    line.split('{').skip(1).any(|part| {
        let Some((field, rest)) = part.split_once("} ") else {
            return false;
        };
        // A constant is a limit.
        if field.chars().all(|c| c.is_ascii_uppercase() || c == '_') && !field.is_empty() {
            return false;
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || "_.()".contains(c);
        let rest = ["more ", "other "]
            .iter()
            .find_map(|word| rest.strip_prefix(word))
            .unwrap_or(rest);
        let noun = rest
            .split(|c: char| !c.is_ascii_alphabetic())
            .next()
            .unwrap_or_default();
        field.chars().all(plain) && NOUNS.split(' ').any(|known| known == noun)
    })
}

#[test]
fn every_count_in_a_message_has_its_singular() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut files = Vec::new();
    for name in CRATES {
        sources(&source.join(name), &mut files);
    }
    assert!(files.len() > 200, "only {} were found", files.len());
    let mut wrong = Vec::new();
    for path in files {
        let text = fs::read_to_string(&path).unwrap();
        for (number, line) in lines(&text) {
            if counts(line) && !NEVER_ONE.iter().any(|part| line.contains(part)) {
                wrong.push(format!("{}:{number}: {}", path.display(), line.trim()));
            }
        }
    }
    assert!(wrong.is_empty(), "use oci::counted:\n{}", wrong.join("\n"));
}
