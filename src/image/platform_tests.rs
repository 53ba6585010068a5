//! Builds for several platforms at once.

use std::fs;

use oci::{Index, Platform};

use crate::tests::{Bench, text};
use crate::{Built, ClusterImage, Error, host_platform, save};

/// A platform that this machine is not.
fn other() -> Platform {
    let architecture = match host_platform().architecture.as_str() {
        "arm64" => "amd64",
        _ => "arm64",
    };
    Platform {
        architecture: architecture.to_string(),
        ..host_platform()
    }
}

impl Bench {
    fn build_for(&self, tag: &str, platforms: Vec<Platform>, kubefile: &str) -> Result<Built, Error> {
        self.write("Kubefile", kubefile);
        let mut options = self.options(tag);
        options.platforms = platforms;
        self.try_build_with(options)
    }
}

const BOTH: &str = "FROM scratch\nCOPY prog-${TARGETARCH} bin/prog\nCOPY manifests manifests\nENV FOR=$TARGETPLATFORM\nIMAGE a.b/web:v1 FROM web\n";

fn both(bench: &Bench) -> Vec<Platform> {
    for platform in [host_platform(), other()] {
        bench.write(&format!("prog-{}", platform.architecture), &platform.architecture);
        bench.write(&format!("web/x-{}", platform.architecture), &platform.architecture);
    }
    bench.write(
        "web/Containerfile",
        "FROM scratch\nARG TARGETARCH\nCOPY x-${TARGETARCH} /x\n",
    );
    vec![host_platform(), other()]
}

#[test]
fn one_index_holds_all_platforms() {
    let bench = Bench::new();
    let platforms = both(&bench);
    let built = bench.build_for("t:1", platforms.clone(), BOTH).unwrap();
    assert_eq!((built.platforms.len(), built.carried), (2, 1));
    for platform in &platforms {
        let image = ClusterImage::open(&bench.store, "t:1", platform).unwrap();
        assert_eq!(text(&image, "bin/prog"), platform.architecture);
        assert_eq!(image.config.env["FOR"], format!("linux/{}", platform.architecture));
        let [web] = image.carried.as_slice() else {
            panic!("{:?}", image.carried)
        };
        assert_eq!(web.manifest.platform.as_ref(), Some(platform));
        assert!(image.verify(true).problems.is_empty());
    }
    let turned = bench
        .build_for("t:2", platforms.iter().rev().cloned().collect(), BOTH)
        .unwrap();
    assert_eq!(
        turned.digest, built.digest,
        "the order on the command line means nothing"
    );
    let alone = bench.build_for("t:3", vec![other()], BOTH).unwrap();
    let index: Index = bench.store.read_json(&bench.store.resolve("t:1").unwrap()).unwrap();
    let single: Index = bench.store.read_json(&bench.store.resolve("t:3").unwrap()).unwrap();
    assert_eq!(alone.platforms, [format!("linux/{}", other().architecture)]);
    assert!(
        single.manifests.iter().all(|entry| index.manifests.contains(entry)),
        "each platform's part is the same alone"
    );
    // A base is taken for each platform, and its archive can be saved and carried on.
    let child = bench
        .build_for("t:4", platforms, "FROM t:1\nCOPY web/x extra\n")
        .unwrap();
    assert_eq!((child.platforms.len(), child.carried), (2, 1));
    save(&bench.store, "t:4", &bench.path("both.tar"), &crate::NoProgress).unwrap();
}

#[test]
fn what_fails_for_one_platform_is_said_with_it() {
    let bench = Bench::new();
    let platforms = both(&bench);
    let arch = other().architecture;
    let refusal = |kubefile: &str| {
        let error = bench
            .build_for("t:9", platforms.clone(), kubefile)
            .unwrap_err()
            .to_string();
        error.replace(&format!("{}/", bench.context().display()), "")
    };
    let for_other = format!("\n(building for linux/{arch})");
    let error = refusal("FROM scratch\nRUN true\n");
    assert!(
        error.starts_with("Kubefile:2:1: RUN works with the programs of this machine"),
        "{error}"
    );
    assert!(error.ends_with(&for_other), "{error}");
    fs::remove_file(bench.path(&format!("prog-{arch}"))).unwrap();
    let error = refusal(BOTH);
    assert!(
        error.starts_with(&format!("Kubefile:2:1: prog-{arch}: there is no such file")),
        "{error}"
    );
    assert!(error.ends_with(&for_other), "{error}");
    // An image that names its platform is believed.
    bench.build("one:1", "FROM scratch\nIMAGE a.b/web:v1 FROM web\n");
    let image = bench.open("one:1");
    let layout = bench.path("layout");
    let index = Index {
        manifests: vec![image.carried[0].manifest.clone()],
        ..Index::default()
    };
    let target = oci::Layout::create(&layout).unwrap();
    for blob in &image.carried[0].blobs {
        fs::copy(
            bench.store.blobs().path(&blob.digest),
            target.blobs().path(&blob.digest),
        )
        .unwrap();
    }
    target.write_index(&index).unwrap();
    let error = refusal("FROM scratch\nIMAGE a.b/web:v1 FROM oci:layout\n");
    let host = host_platform().architecture;
    assert!(
        error.contains(&format!("it is an image for linux/{host}, not for linux/{arch}")),
        "{error}"
    );
    assert!(error.ends_with(&for_other), "{error}");
    let error = refusal("FROM one:1\n");
    assert!(
        error.starts_with(&format!("Kubefile:1:6: image one:1 has no content for linux/{arch}")),
        "{error}"
    );
    // Only one of the platforms lacks an image.
    bench.write(&format!("m-{host}/x.yaml"), "apiVersion: v1\nkind: ConfigMap\n");
    bench.write(
        &format!("m-{arch}/x.yaml"),
        "apiVersion: v1\nkind: Pod\nspec: {containers: [{image: a.b/gone:1}]}\n",
    );
    let error = refusal("FROM scratch\nCOPY m-$ARCH manifests\n");
    assert!(
        error.starts_with(&format!("m-{arch}/x.yaml:3: the image a.b/gone:1 is not carried")),
        "{error}"
    );
    assert!(error.ends_with(&for_other), "{error}");
    let twice = bench
        .build_for("t:9", vec![other(), other()], BOTH)
        .unwrap_err()
        .to_string();
    assert_eq!(twice, format!("the platform linux/{arch} is given twice"));
    assert!(bench.store.resolve("t:9").is_err(), "nothing has got the name");
}
