//! skopeo and umoci, as people use them.

use std::path::Path;

use oci::{Index, Layout, REF_NAME};

use super::{Server, large, listed, open_args, run, run_beside};
use crate::testing::Store;

async fn skopeo(line: String) -> Result<String, String> {
    run_beside(format!("skopeo {line}")).await
}

const PUSH: &str = "copy --all --quiet --preserve-digests --dest-tls-verify=false";
const PULL: &str = "copy --all --quiet --preserve-digests --src-tls-verify=false";
const INSECURE: &str = "--tls-verify=false";

#[tokio::test(flavor = "multi_thread")]
async fn skopeo_pushes_lists_copies_and_deletes() {
    let source = Store::new();
    let content = large();
    let image = source.image(&content);
    let mut entry = image.clone();
    entry.platform = Some(oci::Platform {
        architecture: "amd64".into(),
        os: "linux".into(),
        variant: None,
    });
    let multi = source.index(&Index {
        manifests: vec![entry],
        ..Index::default()
    });
    source.list(vec![Store::named(&image, "one"), Store::named(&multi, "multi")]);
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(open_args(dir.path())).await;
    let at = format!("docker://{}", server.address);
    let from = format!("oci:{}", source.layout.root().display());
    for (name, tag) in [("one", "team/app:1"), ("multi", "team/app:multi")] {
        skopeo(format!("{PUSH} {from}:{name} {at}/{tag}")).await.unwrap();
    }
    skopeo(format!("{PUSH} --src-tls-verify=false {at}/team/app:1 {at}/other:x"))
        .await
        .unwrap();
    let tags = skopeo(format!("list-tags {INSECURE} {at}/team/app")).await.unwrap();
    assert!(tags.contains("\"1\"") && tags.contains("\"multi\""), "{tags}");
    let found = skopeo(format!("inspect --raw {INSECURE} {at}/team/app:multi"))
        .await
        .unwrap();
    assert_eq!(oci::Digest::of(found.as_bytes()), multi.digest);

    let back = dir.path().join("back");
    skopeo(format!("{PULL} {at}/team/app:multi oci:{}:x", back.display()))
        .await
        .unwrap();
    let copied = Layout::open(&back);
    copied
        .blobs()
        .verify(&oci::Digest::of(&content), content.len() as u64)
        .unwrap();

    skopeo(format!("delete {INSECURE} {at}/other:x")).await.unwrap();
    let gone = skopeo(format!("inspect --raw {INSECURE} {at}/other:x")).await;
    assert!(gone.unwrap_err().contains("manifest unknown"));
    server.stop().await;
}

/// An image layout with one image `x` of one file, made by umoci.
fn made_by_umoci(layout: &Path, content: &Path) {
    let (layout, content) = (layout.display(), content.display());
    run(&format!("umoci init --layout {layout}")).unwrap();
    run(&format!("umoci new --image {layout}:x")).unwrap();
    run(&format!("umoci insert --image {layout}:x {content} /etc/content")).unwrap();
    run(&format!("umoci config --image {layout}:x --config.label made=here")).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_umoci_made_comes_back_as_umoci_reads_it() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("content");
    std::fs::write(&file, large()).unwrap();
    let made = dir.path().join("made");
    made_by_umoci(&made, &file);
    let store = dir.path().join("store");
    let server = Server::start(open_args(&store)).await;
    let there = format!("docker://{}/umoci:x", server.address);
    skopeo(format!("{PUSH} oci:{}:x {there}", made.display()))
        .await
        .unwrap();

    // The served folder itself is a layout to umoci: it lists it, and finds nothing to collect.
    let names = run(&format!("umoci ls --layout {}", store.display())).unwrap();
    assert_eq!(names.trim(), "localhost/umoci:x");
    let before = Layout::open(&store).blobs().list().unwrap();
    run(&format!("umoci gc --layout {}", store.display())).unwrap();
    assert_eq!(Layout::open(&store).blobs().list().unwrap(), before);

    let back = dir.path().join("back").display().to_string();
    skopeo(format!("{PULL} {there} oci:{back}:x")).await.unwrap();
    let bundle = dir.path().join("bundle");
    run(&format!(
        "umoci unpack --rootless --image {back}:x {}",
        bundle.display()
    ))
    .unwrap();
    assert!(std::fs::read(bundle.join("rootfs/etc/content")).unwrap() == large());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_umoci_wrote_is_served_and_pushed_to() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("content");
    std::fs::write(&file, b"content").unwrap();
    let store = dir.path().join("store");
    made_by_umoci(&store, &file);
    let layout = Layout::open(&store);
    let mut index = layout.read_index().unwrap();
    index.manifests[0]
        .annotations
        .insert(REF_NAME.into(), "localhost/umoci:x".into());
    layout.write_index(&index).unwrap();
    let server = Server::start(open_args(&store)).await;
    let target = server.target();
    assert_eq!(target.status("GET", "/v2/umoci/manifests/x").await, 200);
    target.push_image("umoci", Some("x"), b"newer").await;
    let old = &index.manifests[0].digest;
    assert_eq!(
        listed(&layout),
        ["localhost/umoci:x".to_owned(), format!("localhost/umoci@{old}")]
    );
    assert_eq!(
        target.status("DELETE", &format!("/v2/umoci/manifests/{old}")).await,
        202
    );
    assert_eq!(listed(&layout), ["localhost/umoci:x"]);
    server.stop().await;
}
