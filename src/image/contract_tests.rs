//! What other programs make of our images, and we of theirs: skopeo, umoci, Debian's docker-registry, the kernel's tmpfs.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use oci::Digest;

use crate::archive_tests::{bench, empty, holds, is_untouched};
use crate::tests::{Bench, KUBEFILE};
use crate::transfer_tests::{self, noise, pull_from, push_to, reference, same};
use crate::{Artifact, NoProgress, Save, Store, load, save};

#[test]
fn other_tools_read_what_was_saved() {
    let (bench, _, new) = bench();
    let (file, folder) = (bench.path("app.tar"), bench.path("layout"));
    let save = Save::new(&bench.store, "app:2", &[]).unwrap();
    save.to_file(&file, &NoProgress).unwrap();
    save.to_folder(&folder, &NoProgress).unwrap();
    for source in [
        format!("oci-archive:{}:app:2", file.display()),
        format!("oci:{}:app:2", folder.display()),
    ] {
        let Ok(output) = Command::new("skopeo").args(["inspect", "--raw", &source]).output() else {
            eprintln!("skopeo is not installed; not compared");
            break;
        };
        assert_eq!(
            Digest::of(&output.stdout),
            new.index.digest,
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let carried = crate::manifest::listed_beside(&bench.store.read_json(&new.index).unwrap());
        assert!(!carried.is_empty());
        for entry in carried {
            let name = entry.annotations[oci::REF_NAME].clone();
            let place = source.replace(":app:2", &format!(":{name}"));
            let raw = Command::new("skopeo")
                .args(["inspect", "--raw", &place])
                .output()
                .unwrap();
            assert_eq!(
                Digest::of(&raw.stdout),
                entry.digest,
                "{name}: {}",
                String::from_utf8_lossy(&raw.stderr)
            );
        }
        let copy = format!("oci:{}:x", bench.path("copy").display());
        let output = Command::new("skopeo")
            .args(["--insecure-policy", "copy", "--all", &source, &copy])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    // skopeo's own archive comes back in.
    let theirs = bench.path("theirs.tar");
    let (from, to) = (
        format!("oci:{}:app:2", folder.display()),
        format!("oci-archive:{}:local/theirs:1", theirs.display()),
    );
    if let Ok(output) = Command::new("skopeo")
        .args(["--insecure-policy", "copy", "--all", &from, &to])
        .output()
    {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let other = empty(&bench, "other");
        let loaded = load(&other, &theirs, None, &NoProgress).unwrap();
        assert_eq!(loaded.images[0].0.familiar(), "local/theirs:1");
        holds(&other, &new);
    }
    // umoci reads layouts, but cannot choose from an index: skopeo takes the rootfs out for it. Debian's umoci knows no
    // zstd, so it is not asked to unpack.
    let plain = bench.path("plain");
    let Ok(listed) = Command::new("umoci").args(["ls", "--layout"]).arg(&folder).output() else {
        eprintln!("umoci is not installed; not compared");
        return;
    };
    assert_eq!(String::from_utf8_lossy(&listed.stdout).trim(), "app:2\na.b/web:v1");
    let to = format!("oci:{}:x", plain.display());
    let output = Command::new("skopeo")
        .args(["--insecure-policy", "copy", &from, &to])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let image = format!("{}:x", plain.display());
    let output = Command::new("umoci")
        .args(["stat", "--json", "--image", &image])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let stat: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let digests: Vec<&str> = stat["history"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|step| step["layer"]["digest"].as_str())
        .collect();
    let layers: Vec<&str> = new.rootfs.layers.iter().map(|layer| layer.digest.as_str()).collect();
    assert_eq!(digests, layers, "{stat}");
}

/// A small file system of its own, gone with the value; none unless root may make one.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn new(path: PathBuf, kilobytes: u32) -> Option<SmallDisk> {
        fs::create_dir_all(&path).unwrap();
        let options = format!("size={kilobytes}k");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(&path)
            .output();
        match mounted {
            Ok(output) if output.status.success() => Some(SmallDisk(path)),
            _ => {
                eprintln!("no tmpfs may be mounted; a full disk is not tried");
                None
            }
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_is_named_nothing_half_is_left_and_with_more_room_it_goes_on() {
    let bench = Bench::new();
    bench.write("bin/big", &noise(2_000_000));
    let image = bench.build("app:1", KUBEFILE);
    let file = bench.path("app.tar");
    save(&bench.store, "app:1", &file, &NoProgress).unwrap();
    let Some(disk) = SmallDisk::new(bench.dir.path().join("disk"), 600) else {
        return;
    };
    let store = Store::open(&disk.0.join("store")).unwrap();
    let error = load(&store, &file, None, &NoProgress).unwrap_err().to_string();
    assert!(
        error.contains("No space left on device") && error.contains("disk/store"),
        "{error}"
    );
    is_untouched(&store);
    for target in [disk.0.join("x.tar"), disk.0.join("y.tar")] {
        let error = save(&bench.store, "app:1", &target, &NoProgress)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("No space left on device") && error.contains("disk/"),
            "{error}"
        );
        assert!(!target.exists());
    }
    let parts = Save::new(&bench.store, "app:1", &[])
        .unwrap()
        .to_parts(&disk.0.join("p.tar"), 100_000, &NoProgress);
    assert!(parts.unwrap_err().to_string().contains("No space left on device"));
    let names: Vec<_> = fs::read_dir(&disk.0)
        .unwrap()
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    assert_eq!(names, ["store"], "what was begun is gone");
    let grown = Command::new("mount")
        .args(["-o", "remount,size=8m"])
        .arg(&disk.0)
        .status()
        .unwrap();
    assert!(grown.success());
    load(&store, &file, None, &NoProgress).unwrap();
    holds(&store, &image);
}

/// Debian's docker-registry on a port of its own; it ends with the value.
struct DockerRegistry {
    child: Child,
    address: String,
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl DockerRegistry {
    /// None if it isn't installed.
    fn start(dir: &std::path::Path) -> Option<DockerRegistry> {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap().to_string();
        drop(free);
        let storage = dir.join("registry");
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '{address}'}}\n",
            storage.display()
        );
        std::fs::write(dir.join("registry.yml"), config).unwrap();
        let mut command = Command::new("docker-registry");
        command
            .arg("serve")
            .arg(dir.join("registry.yml"))
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let Ok(child) = command.spawn() else {
            eprintln!("docker-registry is not installed; not compared");
            return None;
        };
        let registry = DockerRegistry { child, address };
        let start = Instant::now();
        while std::net::TcpStream::connect(&registry.address).is_err() {
            assert!(
                start.elapsed() < Duration::from_secs(20),
                "docker-registry does not listen"
            );
            std::thread::yield_now();
        }
        Some(registry)
    }
}

#[test]
fn docker_registry_and_skopeo_take_what_is_pushed() {
    let (bench, other, image) = transfer_tests::bench();
    let Some(registry) = DockerRegistry::start(bench.dir.path()) else {
        return;
    };
    let note = Artifact {
        artifact_type: "application/vnd.test.note".to_string(),
        ..Artifact::default()
    };
    bench.store.attach(&image.index, &note).unwrap();
    let pushed = push_to(&bench.store, "app:1", &registry.address, "team/app:1").unwrap();
    assert_eq!((pushed.present, pushed.mounted, pushed.artifacts), (0, 0, 1));
    let again = push_to(&bench.store, "app:1", &registry.address, "team/app:1").unwrap();
    assert_eq!(
        again.bytes,
        bench.store.attached(&image.index).unwrap()[0].manifest.size,
        "the artifact's manifest alone"
    );
    let name = reference(&registry.address, "team/app:1");
    bench.store.tag(&name, &image.index).unwrap();
    let mounted = push_to(&bench.store, "app:1", &registry.address, "team/copy:1").unwrap();
    assert!(mounted.mounted > 0, "{mounted:?}");
    let pulled = pull_from(&other, &registry.address, "team/copy:1").unwrap();
    assert_eq!((pulled.digest, pulled.artifacts), (image.index.digest.clone(), 1));
    same(&image, &other);
    let skopeo = |args: &[&str]| Command::new("skopeo").args(args).output();
    let source = format!("docker://{}/team/app:1", registry.address);
    let Ok(raw) = skopeo(&["inspect", "--raw", "--tls-verify=false", &source]) else {
        eprintln!("skopeo is not installed; not compared");
        return;
    };
    assert_eq!(
        Digest::of(&raw.stdout),
        image.index.digest,
        "{}",
        String::from_utf8_lossy(&raw.stderr)
    );
    let copy = format!("oci:{}:app", bench.path("skopeo").display());
    let copied = skopeo(&[
        "--insecure-policy",
        "copy",
        "--all",
        "--src-tls-verify=false",
        &source,
        &copy,
    ])
    .unwrap();
    assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
    // And what skopeo pushes is pulled.
    let target = format!("docker://{}/team/skopeo:1", registry.address);
    let copied = skopeo(&[
        "--insecure-policy",
        "copy",
        "--all",
        "--dest-tls-verify=false",
        &copy,
        &target,
    ])
    .unwrap();
    assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
    let fresh = Store::open(&bench.dir.path().join("fresh")).unwrap();
    pull_from(&fresh, &registry.address, "team/skopeo:1").unwrap();
    same(&image, &fresh);
}
