//! Merging and comparing real images.

use std::fs;
use std::os::unix::fs::symlink;

use crate::tests::{Bench, KUBEFILE, text};
use crate::{ClusterImage, Error, FileKind, MergeOptions, Merged, NoProgress, Prefer, diff, merge};

fn run(bench: &Bench, images: &[&str], prefer: Option<Prefer>) -> Result<(Merged, ClusterImage), Error> {
    let options = MergeOptions {
        images: images.iter().map(ToString::to_string).collect(),
        tag: "merged:1".parse().unwrap(),
        prefer,
        platforms: Vec::new(),
    };
    let merged = merge(&bench.store, &options, &NoProgress)?;
    let image = bench.open("merged:1");
    assert!(image.verify(true).problems.is_empty());
    assert_eq!(merged.digest, image.index.digest);
    Ok((merged, image))
}

fn paths(image: &ClusterImage) -> Vec<String> {
    image.list("").unwrap().into_iter().map(|entry| entry.path).collect()
}

/// `base:1`, and two images made from it: `left:1` adds an application, `right:1` changes and removes files.
fn family() -> Bench {
    let bench = Bench::new();
    bench.build("base:1", KUBEFILE);
    bench.write("left.yaml", "apiVersion: v1\nkind: ConfigMap\n");
    bench.build(
        "left:1",
        "FROM base:1\nENV LEFT=1\nAPP left left.yaml\nLAUNCH [\"web\", \"left\"]\nIMAGE a.b/left:1 FROM web\n",
    );
    bench.build(
        "right:1",
        "FROM base:1\nLABEL right=1\nRUN rm etc/m.txt; echo changed > bin/tool; echo r > bin/right\n",
    );
    bench
}

#[test]
fn children_of_one_image_merge_without_contradiction_and_share_its_layers() {
    let bench = family();
    for images in [["left:1", "right:1"], ["right:1", "left:1"]] {
        let (merged, image) = run(&bench, &images, None).unwrap();
        assert_eq!((merged.carried, merged.decided.len()), (2, 0));
        assert_eq!(text(&image, "bin/tool"), "changed\n", "who changed it has the say");
        let paths = paths(&image);
        assert!(
            !paths.contains(&"etc/m.txt".to_string()),
            "who removed it too: {paths:?}"
        );
        assert!(
            paths.contains(&"application/apps/left/left.yaml".to_string()) && paths.contains(&"bin/right".to_string())
        );
        assert_eq!(
            (image.config.env["LEFT"].as_str(), image.config.labels["right"].as_str()),
            ("1", "1")
        );
        assert_eq!(image.config.launch, ["web", "left"]);
        assert_eq!(image.config.apps.len(), 2);
        let own = |name: &str| bench.open(name).rootfs.layers;
        let shared = own("base:1").len();
        assert_eq!(image.rootfs.layers[..shared], own("base:1"));
        assert_eq!(image.rootfs.layers.len(), shared + 2, "no layer had to be made");
        let history = &bench.store.history("merged:1").unwrap()[0];
        assert_eq!(
            history.steps.iter().filter(|step| step.layer.is_some()).count(),
            image.rootfs.layers.len()
        );
        assert!(history.steps.iter().all(|step| !step.created_by.is_empty()));
    }
    let (merged, _) = run(&bench, &["base:1", "base:1"], None).unwrap();
    assert_eq!(
        merged.digest,
        bench.store.resolve("base:1").unwrap().digest,
        "an image merged with itself is itself"
    );
}

#[test]
fn everything_that_contradicts_is_named_and_decided_only_when_asked() {
    let bench = Bench::new();
    bench.write("one/same", "same");
    bench.write("one/file", "one");
    bench.write("one/thing", "a file");
    bench.write("two/same", "same");
    bench.write("two/file", "two");
    bench.write("two/thing/inside", "a folder");
    bench.write("web2/Containerfile", "FROM scratch\nCOPY x /srv/y\n");
    bench.write("web2/x", "other");
    bench.build(
        "one:1",
        "FROM scratch\nENV A=1 B=1\nCOPY one /\nIMAGE a.b/web:v1 FROM web\n",
    );
    bench.build(
        "two:1",
        "FROM scratch\nENV A=2 B=1\nCOPY two /\nIMAGE a.b/web:v1 FROM web2\n",
    );
    let error = run(&bench, &["one:1", "two:1"], None).unwrap_err();
    let Error::Conflicts(conflicts) = &error else {
        panic!("{error}")
    };
    let named: Vec<(&str, &str)> = conflicts.iter().map(|c| (c.what.as_str(), c.name.as_str())).collect();
    assert_eq!(
        named,
        [
            ("env", "A"),
            ("file", "file"),
            ("file", "thing"),
            ("image", "a.b/web:v1")
        ]
    );
    let shown = error.to_string();
    assert!(
        shown.contains("env A (linux/") && shown.contains("one:1 has \"1\"; two:1 has \"2\""),
        "{shown}"
    );
    assert!(
        shown.contains("a folder with mode 0755") && shown.contains("--prefer"),
        "{shown}"
    );
    assert!(bench.store.resolve("merged:1").is_err());
    for (prefer, env, file, is_folder, web) in [
        (Prefer::First, "1", "one", false, "one:1"),
        (Prefer::Last, "2", "two", true, "two:1"),
    ] {
        let (merged, image) = run(&bench, &["one:1", "two:1"], Some(prefer)).unwrap();
        assert_eq!(merged.decided.len(), 4);
        assert_eq!(
            (image.config.env["A"].as_str(), text(&image, "file").as_str()),
            (env, file)
        );
        let thing = image.list("thing").unwrap();
        assert_eq!(thing[0].kind == FileKind::Folder, is_folder);
        assert_eq!(thing.len(), if is_folder { 2 } else { 1 }, "{thing:?}");
        assert_eq!(
            image.carried[0].manifest.digest,
            bench.open(web).carried[0].manifest.digest
        );
        assert!(image.rootfs.layers.len() <= 3);
    }
}

#[test]
fn what_one_image_removed_and_another_brought_itself_stays() {
    let bench = Bench::new();
    bench.write("f/x", "x");
    symlink("x", bench.path("f/link")).unwrap();
    // The second image's layers remove what only the first one should have.
    bench.build("one:1", "FROM scratch\nCOPY f keep\n");
    bench.build("two:1", "FROM scratch\nCOPY web/x two\nCOPY f keep\nRUN rm -r keep\n");
    let (_, image) = run(&bench, &["one:1", "two:1"], None).unwrap();
    assert_eq!(text(&image, "keep/x"), "x");
    assert_eq!(paths(&image), ["keep", "keep/link", "keep/x", "two"]);
    let restored = &bench.store.history("merged:1").unwrap()[0];
    assert_eq!(restored.steps.last().unwrap().created_by, "merge");
}

#[test]
fn images_that_cannot_be_merged_say_why() {
    let bench = family();
    for (images, expected) in [
        (&["left:1"][..], "at least two"),
        (&["left:1", "rihgt:1"], "did you mean"),
    ] {
        let error = run(&bench, images, None).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let mut options = bench.options("arm:1");
    options.platforms[0].architecture = "arm64".into();
    bench.write("Kubefile", "FROM scratch\nCOPY web/x x\n");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime
        .block_on(crate::build(&bench.store, options, std::sync::Arc::new(NoProgress)))
        .unwrap();
    let error = run(&bench, &["left:1", "arm:1"], None).unwrap_err().to_string();
    assert!(
        error.contains("left:1 has no content for linux/arm64") || error.contains("arm:1 has no content"),
        "{error}"
    );
}

#[test]
fn a_difference_names_files_images_and_fields_and_counts_what_is_to_send() {
    let bench = family();
    let found = diff(&bench.store, "base:1", "right:1").unwrap();
    let content = &found.content[0];
    let files: Vec<(&str, bool, bool)> = content
        .files
        .iter()
        .map(|c| (c.name.as_str(), c.before.is_some(), c.after.is_some()))
        .collect();
    assert_eq!(
        files,
        [
            ("bin/right", false, true),
            ("bin/tool", true, true),
            ("etc/m.txt", true, false)
        ]
    );
    let config: Vec<&str> = content.config.iter().map(|c| c.name.as_str()).collect();
    assert_eq!((config, content.images.len()), (vec!["labels.right"], 0));
    let left = diff(&bench.store, "base:1", "left:1").unwrap();
    let images: Vec<&str> = left.content[0].images.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(images, ["a.b/left:1"]);
    let file = bench.path("delta.tar");
    let save = crate::Save::new(&bench.store, "right:1", &["base:1".to_string()]).unwrap();
    let saved = save.to_file(&file, &NoProgress).unwrap();
    assert_eq!(
        saved.blobs, found.send_blobs,
        "what a delta holds is what the difference says"
    );
    assert!(found.send_bytes < saved.bytes && fs::metadata(&file).unwrap().len() == saved.bytes);
    let same = diff(&bench.store, "base:1", "base:1").unwrap();
    assert!(same.is_empty() && same.content.is_empty() && same.send_bytes == 0);
    let json = serde_json::to_value(&found).unwrap();
    assert_eq!(json["content"][0]["files"][0]["after"]["kind"]["file"]["size"], 2);
}
