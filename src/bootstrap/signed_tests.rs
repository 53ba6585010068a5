//! `spec.trust` as an apply meets it: whole images in a store, and hosts that must not be talked to.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use clusterfile::Clusterfile;
use futures::FutureExt as _;
use image::{BuildOptions, NoProgress, Store};
use tokio::net::TcpListener;
use trust::PrivateKey;

use crate::{
    event::{Event, Observer},
    install::{Options, prepare},
    session::Access,
    testing::rootfs_files,
};

const IMAGE: &str = "local/x:1";

#[derive(Default)]
struct Told(Mutex<Vec<String>>);

impl Observer for Told {
    fn event(&self, event: Event) {
        if let Event::Warning { message, .. } = event {
            self.0.lock().unwrap().push(message);
        }
    }
}

struct Bench {
    dir: tempfile::TempDir,
    store: Store,
    /// Where the Clusterfile's only host would be talked to.
    host: TcpListener,
    told: Arc<Told>,
}

/// How an apply ended: never well, since nobody speaks SSH at the host.
struct Ended {
    said: String,
    connected: bool,
}

impl Ended {
    fn refused_saying(&self, parts: &[&str]) {
        assert!(!self.connected, "a host was talked to: {}", self.said);
        for part in parts {
            assert!(self.said.contains(part), "{part:?} is not in: {}", self.said);
        }
    }

    fn accepted(&self) {
        assert!(self.connected, "{}", self.said);
    }
}

fn write(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

impl Bench {
    /// An image that has all an apply looks for before it connects.
    async fn new() -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        let context = dir.path().join("context");
        for (path, text) in rootfs_files() {
            write(&context.join(path), &text);
        }
        write(&context.join("clusterd"), "a program");
        let mut kubefile = "FROM scratch\nCOPY etc etc\nCOPY systemd systemd\nCOPY clusterd bin/clusterd\n".to_owned();
        for name in ["pause", "clusterd", "etcd"] {
            kubefile.push_str(&format!("IMAGE installer.internal/{name}:v0.1.0 FROM any\n"));
        }
        write(&context.join("Kubefile"), &kubefile);
        write(
            &context.join("any/Containerfile"),
            "FROM scratch\nCOPY Containerfile x\n",
        );
        let bench = Bench {
            dir,
            store,
            host: TcpListener::bind("127.0.0.1:0").await.unwrap(),
            told: Arc::default(),
        };
        bench.build().await;
        bench
    }

    async fn build(&self) {
        let context = self.path("context");
        let options = BuildOptions {
            kubefile: context.join("Kubefile"),
            context,
            build_contexts: BTreeMap::new(),
            build_args: BTreeMap::new(),
            tag: IMAGE.parse().unwrap(),
            platforms: vec![image::host_platform()],
            helm: None,
            pull: image::PullOptions::default(),
        };
        image::build(&self.store, options, Arc::new(NoProgress)).await.unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A new key, its public half in `NAME.pub` beside the Clusterfile.
    fn key(&self, name: &str) -> PrivateKey {
        let key = PrivateKey::generate().unwrap();
        trust::write_pair(&key, None, &self.path(name)).unwrap();
        key
    }

    fn sign(&self, key: &PrivateKey) {
        let (reference, index) = self.store.resolve_named(IMAGE).unwrap();
        trust::sign(&self.store, (reference, &index), key, 0, "test").unwrap();
    }

    fn digest(&self) -> String {
        self.store.resolve(IMAGE).unwrap().digest.to_string()
    }

    async fn apply(&self, trust: &str) -> Ended {
        let port = self.host.local_addr().unwrap().port();
        let text = format!(
            "apiVersion: sealer.io/v2\nkind: Cluster\nmetadata: {{name: demo}}\nspec:\n  image: {IMAGE}\n  \
             ssh: {{port: {port}, passwd: x}}\n  hosts: [{{ips: [127.0.0.1], roles: [master]}}]\n{trust}"
        );
        let clusterfile = Clusterfile::parse(&text, "Clusterfile", self.dir.path()).unwrap();
        let options = Options {
            access: Access {
                known_hosts: vec![self.path("known_hosts")],
                accept_new_host_keys: true,
                ..Access::default()
            },
            store: self.store.root().to_path_buf(),
            ignored: Vec::new(),
            prove_airgap: false,
            care: crate::rolling::Care::default(),
            direct: false,
            observer: self.told.clone(),
            launch_limit: std::time::Duration::from_secs(60),
            who: "test".into(),
        };
        let mut connected = false;
        // Whoever gets so far as to connect is shown out at once.
        let host = async {
            loop {
                drop(self.host.accept().await);
                connected = true;
            }
        };
        let ended: crate::Result<_> = tokio::select! {
            ended = prepare(&clusterfile, &options) => ended,
            () = host => unreachable!("a host listens for ever"),
        };
        let said = ended.err().map(|error| error.to_string()).unwrap_or_default();
        let connected = connected || self.host.accept().now_or_never().is_some();
        Ended { said, connected }
    }
}

#[tokio::test]
async fn an_image_nobody_trusted_vouches_for_is_refused_before_a_host_is_talked_to() {
    let bench = Bench::new().await;
    bench.key("ops");
    bench.apply("").await.accepted();
    let digest = bench.digest();
    let trust = "  trust: {keys: [ops.pub]}\n";
    let sign = "installer sign local/x:1 --key FILE";
    bench
        .apply(trust)
        .await
        .refused_saying(&[IMAGE, &digest, "has no signature", "ops.pub", sign]);
    let stranger = bench.key("stranger");
    bench.sign(&stranger);
    let id = stranger.public("").id().to_string();
    bench
        .apply(trust)
        .await
        .refused_saying(&[IMAGE, &digest, &id, "not one of the trusted", sign]);
}

#[tokio::test]
async fn a_signature_by_one_of_the_keys_lets_an_image_through() {
    let bench = Bench::new().await;
    let (ops, _) = (bench.key("ops"), bench.key("other"));
    bench.sign(&ops);
    bench
        .apply("  trust: {keys: [other.pub, ops.pub], required: true}\n")
        .await
        .accepted();
    let pem = ops.public("").to_pem().unwrap().replace('\n', "\n      ");
    bench
        .apply(&format!("  trust:\n    keys:\n    - |\n      {pem}\n"))
        .await
        .accepted();
    assert!(bench.told.0.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_signed_image_that_was_altered_is_refused_whatever_was_altered() {
    let bench = Bench::new().await;
    bench.sign(&bench.key("ops"));
    let trust = "  trust: {keys: [ops.pub]}\n";
    bench.apply(trust).await.accepted();
    let image = image::ClusterImage::open(&bench.store, IMAGE, &image::host_platform()).unwrap();
    let layer = bench.store.blobs().path(&image.rootfs.layers[0].digest);
    let good = std::fs::read(&layer).unwrap();
    let mut bad = good.clone();
    let last = bad.len() - 1;
    bad[last] ^= 1;
    std::fs::write(&layer, bad).unwrap();
    let layer_digest = image.rootfs.layers[0].digest.to_string();
    bench
        .apply(trust)
        .await
        .refused_saying(&[IMAGE, &layer_digest, "corrupt"]);
    std::fs::write(&layer, good).unwrap();
    // What earlier runs kept beside the store is covered by no signature, so it is not believed.
    let mut kept = 0;
    for entry in std::fs::read_dir(bench.store.root().join("cache")).unwrap().flatten() {
        if entry.path().is_file() {
            write(&entry.path(), r#"{"files": {}, "clusterd": null}"#);
            kept += 1;
        }
    }
    assert_eq!(kept, 2, "the text files, and the program");
    bench.apply(trust).await.accepted();
    // A newer image under the same name is another image.
    let signed = bench.digest();
    write(&bench.path("context/clusterd"), "another program");
    bench.build().await;
    assert_ne!(bench.digest(), signed);
    let digest = bench.digest();
    bench
        .apply(trust)
        .await
        .refused_saying(&[IMAGE, &digest, "has no signature"]);
}

#[tokio::test]
async fn an_image_of_which_only_a_carried_image_was_built_anew_is_the_same_rootfs() {
    let bench = Bench::new().await;
    let open = || {
        let opened = crate::image::open(&bench.path("store"), IMAGE, &image::host_platform(), None);
        opened.unwrap().image
    };
    let before = open();
    write(
        &bench.path("context/any/Containerfile"),
        "FROM scratch\nCOPY Containerfile y\n",
    );
    bench.build().await;
    let carried = open();
    assert_ne!(carried.digest, before.digest);
    assert_ne!(carried.layout, before.layout);
    assert_eq!(carried.rootfs, before.rootfs);
    write(&bench.path("context/clusterd"), "another program");
    bench.build().await;
    assert_ne!(open().rootfs.content, before.rootfs.content);
}

#[tokio::test]
async fn where_trust_is_not_required_only_tampering_is_refused() {
    let bench = Bench::new().await;
    let ops = bench.key("ops");
    let trust = "  trust: {keys: [ops.pub], required: false}\n";
    bench.apply(trust).await.accepted();
    let told = bench.told.0.lock().unwrap().clone();
    assert!(
        told.len() == 1 && told[0].contains(IMAGE) && told[0].contains("has no signature"),
        "{told:?}"
    );
    bench.sign(&ops);
    let (_, index) = bench.store.resolve_named(IMAGE).unwrap();
    let signature = bench.store.referrers(&index).unwrap().remove(0);
    let mut artifact = bench.store.read_artifact(&signature).unwrap();
    artifact.documents[1].bytes[5] ^= 1;
    bench.store.detach(&[signature.digest]).unwrap();
    bench.store.attach(&index, &artifact).unwrap();
    let digest = bench.digest();
    bench
        .apply(trust)
        .await
        .refused_saying(&[IMAGE, &digest, "was altered", "do not use it"]);
}

#[tokio::test]
async fn an_image_signed_under_another_name_is_warned_of() {
    let bench = Bench::new().await;
    let ops = bench.key("ops");
    let (_, index) = bench.store.resolve_named(IMAGE).unwrap();
    let old = "local/x:0.9".parse().unwrap();
    trust::sign(&bench.store, (Some(old), &index), &ops, 0, "test").unwrap();
    bench.apply("  trust: {keys: [ops.pub]}\n").await.accepted();
    let told = bench.told.0.lock().unwrap().clone();
    assert!(told.len() == 1 && told[0].contains("local/x:0.9"), "{told:?}");
}

#[tokio::test]
async fn a_key_that_cannot_be_read_is_named() {
    let bench = Bench::new().await;
    let refused = bench.apply("  trust: {keys: [none.pub]}\n").await;
    refused.refused_saying(&["spec.trust.keys", "none.pub"]);
    bench.key("ops");
    let refused = bench.apply("  trust: {keys: [ops.key]}\n").await;
    refused.refused_saying(&["spec.trust.keys", "ops.key", "it is a private key"]);
}
