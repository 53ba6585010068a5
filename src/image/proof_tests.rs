//! Whole builds: what is found is pulled, locked and proved again.

use std::sync::Arc;

use oci::{Index, Reference};

use crate::manifest::{CLUSTER_IMAGE, is_rootfs};
use crate::pull::PullOptions;
use crate::registry_double::{Double, Kind};
use crate::remote::{RemoteOptions, Retry};
use crate::tests::Bench;
use crate::{BuildOptions, Built, ClusterImage, Error, NoProgress, build, load, save, verify};

const KUBEFILE: &str = "FROM scratch\nCOPY manifests manifests\n";

/// Builds with registries that are asked.
fn online(bench: &Bench, registry: &Double, tag: &str) -> Result<Built, Error> {
    let remote = RemoteOptions {
        insecure: vec![registry.address.clone()],
        retry: Retry {
            tries: 1,
            ..Retry::default()
        },
        ..RemoteOptions::default()
    };
    build_with(bench, tag, PullOptions { remote, offline: false })
}

fn build_with(bench: &Bench, tag: &str, pull: PullOptions) -> Result<Built, Error> {
    let options = BuildOptions {
        pull,
        ..bench.options(tag)
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime
        .unwrap()
        .block_on(build(&bench.store, options, Arc::new(NoProgress)))
}

fn offline() -> PullOptions {
    PullOptions {
        offline: true,
        ..PullOptions::default()
    }
}

fn pod(image: &str) -> String {
    format!("apiVersion: v1\nkind: Pod\nspec:\n  containers:\n  - image: {image}\n")
}

/// The lock as `reference [as other] places`, digests left out.
fn locked(image: &ClusterImage) -> Vec<String> {
    let lock = image.config.lock.as_ref().unwrap();
    let line = |(reference, locked): (&Reference, &crate::Locked)| {
        let other = locked
            .carried_as
            .as_ref()
            .map(|name| format!(" as {name}"))
            .unwrap_or_default();
        format!("{reference}{other} {:?}", locked.named)
    };
    lock.images.iter().map(line).collect()
}

#[test]
fn what_manifests_name_is_pulled_locked_and_found_again_offline() {
    let (bench, registry) = (Bench::new(), Double::start(Kind::default()));
    let image = registry.image("team/app", "v1", b"layer");
    let (tag, pinned) = (
        format!("{}/team/app:v1", registry.address),
        format!("{}/team/app@{}", registry.address, image.index),
    );
    bench.write("Kubefile", KUBEFILE);
    bench.write("manifests/pod.yaml", &pod(&tag));
    bench.write("manifests/imageList", &format!("# needed by scripts\n{pinned}\n"));
    let built = online(&bench, &registry, "t:1").unwrap();
    assert_eq!(built.carried, 2);
    let opened = bench.open("t:1");
    assert_eq!(
        locked(&opened),
        [
            format!("{pinned} {{manifests/imageList:2}}"),
            format!("{tag} {{manifests/pod.yaml:5}}"),
        ]
    );
    let carried = |name: &str| opened.carried(&name.parse().unwrap()).unwrap();
    for (name, served) in [(&tag, &image.manifest), (&pinned, &image.index)] {
        assert_eq!(carried(name).manifest.digest, image.manifest);
        let descriptor = carried(name).served();
        assert_eq!(
            (&descriptor.digest, descriptor.reference()),
            (served, name.parse().ok())
        );
        bench.store.blobs().verify(served, descriptor.size).unwrap();
    }
    assert!(
        opened.all_blobs().iter().any(|blob| blob.digest == image.index),
        "hosts get the index too"
    );

    // The registry is gone; what the store's images carry is known, and gives the same image.
    assert_eq!(build_with(&bench, "t:2", offline()).unwrap().digest, built.digest);
    let found = verify(&bench.store, "t:1", &NoProgress).unwrap();
    assert!(found.is_good(), "{found:?}");
    assert_eq!(
        (
            found.platforms.len(),
            found.platforms[0].named,
            found.platforms[0].carried
        ),
        (1, 2, 2)
    );
    let text = serde_json::to_string(&opened.describe()).unwrap();
    assert!(text.contains("manifests/imageList:2"), "inspect shows the lock");
}

#[test]
fn what_cannot_be_found_fails_with_every_place_and_what_to_do() {
    let (bench, registry) = (Bench::new(), Double::start(Kind::default()));
    registry.image("team/app", "v1", b"layer");
    let base = format!("{}/team/app", registry.address);
    bench.write("Kubefile", &format!("{KUBEFILE}IMAGE {base}:v1\n"));
    bench.write("manifests/pod.yaml", &pod(&format!("{base}:v2")));
    bench.write("manifests/imageList", "installer.internal/none:v1\n");
    let error = online(&bench, &registry, "t:1").unwrap_err().to_string();
    for expected in [
        format!(
            "manifests/pod.yaml:5: the image {base}:v2 is not carried and cannot be pulled: {} has no such image (v2 is not found), \
             nearest carried one: {base}:v1\n",
            registry.address
        ),
        "manifests/imageList:1: the image installer.internal/none:v1 is not carried\n".to_string(),
        "without --no-pull".to_string(),
        "FROM oci-archive:".to_string(),
    ] {
        assert!(error.contains(&expected), "{expected} in {error}");
    }
    bench.write("Kubefile", KUBEFILE);
    let error = build_with(&bench, "t:1", offline()).unwrap_err().to_string();
    assert!(
        error.contains("manifests/pod.yaml:5: ") && error.contains("--no-pull is set"),
        "{error}"
    );
    bench.write("Kubefile", &format!("{KUBEFILE}IMAGE {base}:v1\n"));
    let error = build_with(&bench, "t:1", offline()).unwrap_err().to_string();
    assert!(
        error.contains("Kubefile:3:7: cannot pull ") && error.contains("--no-pull"),
        "{error}"
    );
}

#[test]
fn lines_of_the_recipe_and_rules_are_inherited_and_kept() {
    let bench = Bench::new();
    let custom = "apiVersion: a.b/v1\nkind: Db\nspec:\n  image: a.b/web:v1\n";
    bench.write("manifests/pod.yaml", custom);
    bench.write(
        "image-paths.yaml",
        "- {apiVersion: a.b/v1, kind: Db, paths: [.spec.image]}\n",
    );
    let base = bench.build("base:1", &format!("{KUBEFILE}IMAGE a.b/web:v1 FROM web\n"));
    assert_eq!(locked(&base), ["a.b/web:v1 {Kubefile:3, manifests/pod.yaml:4}"]);
    std::fs::remove_file(bench.path("image-paths.yaml")).unwrap();
    bench.write("more/db.yaml", custom);
    let image = bench.build("t:1", "ARG X=1\nFROM base:1\nCOPY more/db.yaml manifests/more.yaml\n");
    assert_eq!(
        locked(&image),
        ["a.b/web:v1 {Kubefile:2, manifests/pod.yaml:4, more/db.yaml:4}"]
    );
    assert!(verify(&bench.store, "t:1", &NoProgress).unwrap().is_good());
    bench.write(
        "image-paths.yaml",
        "- {apiVersion: a.b/v1, kind: Db, path: [.spec.image]}\n",
    );
    let error = bench.refusal(KUBEFILE);
    assert!(
        error.contains("image-paths.yaml:1:") && error.contains("did you mean \"paths\"?"),
        "{error}"
    );
}

#[test]
fn an_image_that_contradicts_its_lock_is_refused_everywhere() {
    let bench = Bench::new();
    let kubefile = format!("{KUBEFILE}IMAGE a.b/web:v1 FROM web\n");
    let image = bench.build("t:1", &kubefile);
    bench.write("web/x", "changed");
    let other = bench.build("t:2", &kubefile);
    // The rootfs of one with the container image of the other.
    let list: Index = bench.store.read_json(&image.index).unwrap();
    let strange: Index = bench.store.read_json(&other.index).unwrap();
    let rootfs = list.manifests.into_iter().filter(is_rootfs);
    let carried = strange.manifests.into_iter().filter(|entry| !is_rootfs(entry));
    let mixed = Index {
        artifact_type: Some(CLUSTER_IMAGE.to_string()),
        manifests: rootfs.chain(carried).collect(),
        ..Index::default()
    };
    let mixed = bench.store.put_json(oci::media_type::INDEX, &mixed).unwrap();
    bench.store.tag(&"t:3".parse().unwrap(), &mixed).unwrap();
    let found = verify(&bench.store, "t:3", &NoProgress).unwrap();
    assert!(
        !found.is_good() && found.platforms[0].problems[0].contains("the lock says"),
        "{found:?}"
    );
    assert!(!bench.open("t:3").check_closure().is_empty());
    assert!(bench.open("t:1").check_closure().is_empty());
    let file = bench.path("x.tar");
    saved(&bench, "t:3", &file);
    let error = load(&bench.store, &file, None, &NoProgress).unwrap_err().to_string();
    assert!(
        error.contains("not what its lock says") && error.contains("a.b/web:v1"),
        "{error}"
    );
    saved(&bench, "t:1", &file);
    load(&bench.store, &file, None, &NoProgress).unwrap();
}

fn saved(bench: &Bench, name: &str, file: &std::path::Path) {
    save(&bench.store, name, file, &NoProgress).unwrap();
}

#[test]
fn damage_is_found_by_verify_and_named() {
    let bench = Bench::new();
    let image = bench.build("t:1", &format!("{KUBEFILE}IMAGE a.b/web:v1 FROM web\n"));
    let layer = &image.carried[0].blobs[2];
    std::fs::write(bench.store.blobs().path(&layer.digest), b"x").unwrap();
    let found = verify(&bench.store, "t:1", &NoProgress).unwrap();
    assert_eq!(found.problems.len(), 1, "{found:?}");
    assert!(found.problems[0].contains(layer.digest.as_str()));
    assert!(found.platforms[0].problems.is_empty(), "the lock is not to blame");
}
