//! The examples of `docs/kubefile.md` build as they stand there.

use std::path::Path;

use oci::Platform;

use crate::chart_tests::real_helm;
use crate::tests::Bench;
use crate::{AppKind, ClusterImage};

/// A fenced block: what follows the fence, and the text.
fn blocks(text: &str) -> Vec<(&str, String)> {
    let mut blocks = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let Some(info) = line.strip_prefix("```") else { continue };
        let inner: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
        blocks.push((info, inner.join("\n") + "\n"));
    }
    blocks
}

/// The value of `name=value` in a fence's info.
fn value<'i>(info: &'i str, name: &str) -> Option<&'i str> {
    let mut words = info.split_whitespace();
    words.find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}

fn platform(text: &str) -> Platform {
    let (os, architecture) = text.split_once('/').unwrap();
    Platform {
        architecture: architecture.to_string(),
        os: os.to_string(),
        variant: None,
    }
}

#[test]
fn the_examples_of_the_documentation_build() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/kubefile.md");
    let text = std::fs::read_to_string(path).unwrap();
    let blocks = blocks(&text);
    let bench = Bench::new();
    let mut files = blocks
        .iter()
        .filter_map(|(info, text)| Some((value(info, "file")?, text)));
    files.by_ref().for_each(|(name, text)| bench.write(name, text));
    let mut built = Vec::new();
    for (info, kubefile) in blocks.iter().filter(|(info, _)| info.starts_with("kubefile")) {
        let tag = value(info, "tag").unwrap();
        let mut options = bench.options(tag);
        if value(info, "needs") == Some("helm") {
            let Some(helm) = real_helm() else { continue };
            options.helm = Some(helm);
        }
        if let Some(platforms) = value(info, "platform") {
            options.platforms = platforms.split(',').map(platform).collect();
        } else {
            // Its program is in the examples for these two.
            options.platforms = vec![platform("linux/amd64")];
        }
        bench.write("Kubefile", kubefile);
        let platforms = options.platforms.clone();
        if let Err(error) = bench.try_build_with(options) {
            panic!("{tag}: {error}");
        }
        for platform in platforms {
            let image = ClusterImage::open(&bench.store, tag, &platform).unwrap();
            assert_eq!(image.carried.len(), 1, "{tag}");
        }
        built.push(tag);
    }
    assert!(built.len() >= 2, "{built:?}");
    let image = ClusterImage::open(&bench.store, "example/shop:1", &platform("linux/amd64")).unwrap();
    let kinds: Vec<_> = image.config.apps.values().map(|app| app.kind).collect();
    assert_eq!(kinds, [AppKind::Scripts, AppKind::Manifests]);
}
