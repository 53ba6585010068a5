//! Save and load in all their forms, and what other tools make of the results.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use oci::{Descriptor, Digest, Index, Layout, media_type};

use crate::archive::Delta;
use crate::tests::{Bench, Entry, KUBEFILE, MANIFEST, archive};
use crate::transfer_tests::noise;
use crate::{ClusterImage, Error, NoProgress, Save, Store, host_platform, load, load_stream, save};

/// A store with `app:1` and `app:2`, which differ in one manifest.
pub(crate) fn bench() -> (Bench, ClusterImage, ClusterImage) {
    let bench = Bench::new();
    bench.write("bin/big", &noise(40_000));
    let old = bench.build("app:1", KUBEFILE);
    bench.write("manifests/pod.yaml", &format!("{MANIFEST}# changed\n"));
    let new = bench.build("app:2", KUBEFILE);
    (bench, old, new)
}

pub(crate) fn empty(bench: &Bench, name: &str) -> Store {
    Store::open(&bench.dir.path().join(name)).unwrap()
}

pub(crate) fn holds(store: &Store, image: &ClusterImage) {
    let copy = ClusterImage::open(store, image.index.digest.as_str(), &host_platform()).unwrap();
    assert_eq!(copy.verify(true).problems, Vec::<String>::new());
    assert_eq!(copy.all_blobs(), image.all_blobs());
}

/// The store is as if nothing had ever been loaded.
pub(crate) fn is_untouched(store: &Store) {
    assert!(store.list().unwrap().is_empty());
    assert!(store.blobs().list().unwrap().is_empty());
    assert_eq!(fs::read_dir(store.root().join("tmp")).unwrap().count(), 0);
}

fn refusal(store: &Store, from: &Path) -> String {
    match load(store, from, None, &NoProgress) {
        Err(error @ (Error::Archive { .. } | Error::Io { .. })) => error.to_string(),
        Err(other) => panic!("{other}"),
        Ok(loaded) => panic!("{} was loaded: {loaded:?}", from.display()),
    }
}

/// Names and sizes of an archive's entries.
fn entries(file: &Path) -> BTreeMap<String, u64> {
    let mut archive = tar::Archive::new(fs::File::open(file).unwrap());
    let entries = archive.entries().unwrap().map(|entry| {
        let entry = entry.unwrap();
        (entry.path().unwrap().display().to_string(), entry.size())
    });
    entries.collect()
}

#[test]
fn a_delta_holds_exactly_the_blobs_that_the_base_lacks() {
    let (bench, old, new) = bench();
    let (whole, delta) = (bench.path("whole.tar"), bench.path("delta.tar"));
    save(&bench.store, "app:2", &whole, &NoProgress).unwrap();
    let saved = Save::new(&bench.store, "app:2", &["app:1".to_string()])
        .unwrap()
        .to_file(&delta, &NoProgress)
        .unwrap();
    let known: Vec<Digest> = old.all_blobs().into_iter().map(|blob| blob.digest).collect();
    let (kept, fresh): (Vec<_>, Vec<_>) = new
        .all_blobs()
        .into_iter()
        .partition(|blob| known.contains(&blob.digest));
    assert_eq!(fresh.len(), 4, "index, rootfs manifest, configuration, one layer");
    let path = |blob: &Descriptor| (format!("blobs/sha256/{}", blob.digest.hex()), blob.size);
    let mut found = entries(&delta);
    let record = found.remove("delta.json").unwrap();
    found.retain(|name, _| name.starts_with("blobs/"));
    assert_eq!(found, fresh.iter().map(path).collect());
    assert_eq!(
        (saved.blobs, saved.left_out),
        (4, kept.iter().map(|blob| blob.size).sum())
    );
    let payload: u64 = fresh.iter().map(|blob| blob.size).sum();
    assert!(
        saved.bytes < payload + record + 12 * 1024,
        "{} for {payload}",
        saved.bytes
    );
    assert!(saved.bytes < fs::metadata(&whole).unwrap().len() / 3);
    let again = bench.path("again.tar");
    Save::new(&bench.store, "app:2", &["app:1".to_string()])
        .unwrap()
        .to_file(&again, &NoProgress)
        .unwrap();
    assert_eq!(fs::read(&delta).unwrap(), fs::read(&again).unwrap());
}

#[test]
fn a_delta_is_loaded_where_its_base_is_and_else_says_which_is_missing() {
    let (bench, old, new) = bench();
    let (base, delta) = (bench.path("base.tar"), bench.path("delta.tar"));
    save(&bench.store, "app:1", &base, &NoProgress).unwrap();
    Save::new(&bench.store, "app:2", &["app:1".to_string()])
        .unwrap()
        .to_file(&delta, &NoProgress)
        .unwrap();
    let other = empty(&bench, "other");
    let error = refusal(&other, &delta);
    let expected = format!("it holds only what is new since app:1 ({})", old.index.digest);
    assert!(
        error.contains(&expected) && error.contains("load or pull that first"),
        "{error}"
    );
    is_untouched(&other);
    load(&other, &base, None, &NoProgress).unwrap();
    let loaded = load(&other, &delta, None, &NoProgress).unwrap();
    assert_eq!(loaded.new_blobs, 4);
    holds(&other, &new);
    // Nothing to send is a delta too, and the same image needs nothing but itself.
    let nothing = bench.path("nothing.tar");
    let saved = Save::new(&bench.store, "app:2", &["app:2".to_string()])
        .unwrap()
        .to_file(&nothing, &NoProgress)
        .unwrap();
    assert_eq!(saved.blobs, 0);
    assert_eq!(load(&other, &nothing, None, &NoProgress).unwrap().new_blobs, 0);
    assert!(Save::new(&bench.store, "app:2", &["app:9".to_string()]).is_err());
}

#[test]
fn parts_are_what_sha256sum_says_and_are_loaded_by_their_list_or_the_first_of_them() {
    let (bench, _, new) = bench();
    let base = bench.path("media/app.tar");
    fs::create_dir(base.parent().unwrap()).unwrap();
    let save = Save::new(&bench.store, "app:2", &[]).unwrap();
    let saved = save.to_parts(&base, 7_000, &NoProgress).unwrap();
    assert_eq!(saved.bytes, save.archive_size().unwrap());
    assert_eq!(saved.files.len() as u64, saved.bytes.div_ceil(7_000) + 1);
    let output = Command::new("sha256sum")
        .args(["-c", "app.tar.sha256"])
        .current_dir(base.parent().unwrap())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let joined: Vec<u8> = saved.files[..saved.files.len() - 1]
        .iter()
        .flat_map(|part| fs::read(part).unwrap())
        .collect();
    let whole = bench.path("whole.tar");
    save.to_file(&whole, &NoProgress).unwrap();
    assert_eq!(joined, fs::read(&whole).unwrap(), "the parts are the archive");
    for (index, file) in [saved.files.last().unwrap(), &saved.files[0]].into_iter().enumerate() {
        let other = empty(&bench, &format!("other{index}"));
        load(&other, file, None, &NoProgress).unwrap();
        holds(&other, &new);
    }
}

#[test]
fn damage_in_any_part_is_named_by_the_part_and_nothing_is_stored() {
    let (bench, _, _) = bench();
    let base = bench.path("app.tar");
    let save = Save::new(&bench.store, "app:2", &[]).unwrap();
    let files = save.to_parts(&base, 9_001, &NoProgress).unwrap().files;
    let (list, parts) = files.split_last().unwrap();
    let other = empty(&bench, "other");
    let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_string();
    for part in parts {
        let good = fs::read(part).unwrap();
        for at in [0, 511, good.len() / 3, good.len() / 2, good.len() - 1] {
            let at = at.min(good.len() - 1);
            let mut damaged = good.clone();
            damaged[at] ^= 0x10;
            fs::write(part, damaged).unwrap();
            let error = refusal(&other, list);
            assert!(
                error.ends_with(&format!("damaged, by their checksums: {}", name(part))),
                "{at}: {error}"
            );
            is_untouched(&other);
        }
        fs::write(part, &good[..good.len() - 1]).unwrap();
        assert!(refusal(&other, list).ends_with(&name(part)));
        fs::remove_file(part).unwrap();
        let error = refusal(&other, list);
        assert!(
            error.ends_with(&format!("missing beside it: {}", name(part))),
            "{error}"
        );
        is_untouched(&other);
        fs::write(part, good).unwrap();
    }
    let listed = fs::read_to_string(list).unwrap();
    for (bad, expected) in [
        (
            listed.replace("app.tar.001", "../app.tar.001"),
            "line 2 is not a sha256 checksum",
        ),
        (
            listed
                .lines()
                .next()
                .unwrap()
                .replace("app.tar.000", "app.tar.000\n")
                .repeat(2),
            "it names app.tar.000 twice",
        ),
        (String::new(), "it names no part"),
        ("x".repeat(200), "line 1 is not"),
    ] {
        fs::write(list, bad).unwrap();
        let error = refusal(&other, list);
        assert!(error.contains(expected), "{error}");
    }
    is_untouched(&other);
}

#[test]
fn an_archive_goes_through_a_pipe() {
    let (bench, _, new) = bench();
    let mut bytes = Vec::new();
    let saved = Save::new(&bench.store, "app:2", &[])
        .unwrap()
        .to_stream(&mut bytes, &NoProgress)
        .unwrap();
    assert_eq!(saved.bytes, bytes.len() as u64);
    let file = bench.path("whole.tar");
    save(&bench.store, "app:2", &file, &NoProgress).unwrap();
    assert_eq!(bytes, fs::read(&file).unwrap());
    let other = empty(&bench, "other");
    let name = Path::new("standard input");
    for cut in [0, 1000, bytes.len() / 2, bytes.len() - 2000] {
        let error = load_stream(&other, &bytes[..cut], name, None, &NoProgress)
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("standard input is refused"), "{error}");
        is_untouched(&other);
    }
    load_stream(&other, bytes.as_slice(), name, None, &NoProgress).unwrap();
    holds(&other, &new);
    // A pipe that has a name is written to, not replaced.
    let fifo = bench.path("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o644.into(), 0).unwrap();
    let read = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut read = Vec::new();
            fs::File::open(&fifo).unwrap().read_to_end(&mut read).unwrap();
            read
        });
        save(&bench.store, "app:2", &fifo, &NoProgress).unwrap();
        reader.join().unwrap()
    });
    assert_eq!(read, bytes);
}

#[test]
fn what_compresses_archives_is_named() {
    let bench = Bench::new();
    let other = empty(&bench, "other");
    let file = bench.path("x.tar.gz");
    fs::create_dir_all(bench.context()).unwrap();
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&[0; 10_000]).unwrap();
    for (bytes, expected) in [
        (encoder.finish().unwrap(), "gzip -dc FILE | installer load -i -"),
        (zstd::encode_all(&[0; 10_000][..], 1).unwrap(), "zstd -dc FILE"),
    ] {
        fs::write(&file, bytes).unwrap();
        let error = refusal(&other, &file);
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_folder_gets_only_what_it_lacks_and_comes_back_whole() {
    let (bench, old, new) = bench();
    let folder = bench.path("media/layout");
    let first = Save::new(&bench.store, "app:1", &[])
        .unwrap()
        .to_folder(&folder, &NoProgress)
        .unwrap();
    assert_eq!(first.bytes, old.all_blobs().iter().map(|blob| blob.size).sum::<u64>());
    let second = Save::new(&bench.store, "app:2", &[])
        .unwrap()
        .to_folder(&folder, &NoProgress)
        .unwrap();
    assert_eq!(second.blobs, 4);
    let again = Save::new(&bench.store, "app:2", &[])
        .unwrap()
        .to_folder(&folder, &NoProgress)
        .unwrap();
    assert_eq!((again.blobs, again.bytes), (0, 0));
    let other = empty(&bench, "other");
    let loaded = load(&other, &folder, None, &NoProgress).unwrap();
    assert_eq!(loaded.images.len(), 2);
    holds(&other, &old);
    holds(&other, &new);
    assert!(
        Save::new(&bench.store, "app:2", &["app:1".into()])
            .unwrap()
            .to_folder(&folder, &NoProgress)
            .is_err()
    );
}

#[test]
fn a_folder_with_damage_missing_blobs_or_links_out_is_refused() {
    let (bench, _, new) = bench();
    let folder = bench.path("layout");
    Save::new(&bench.store, "app:2", &[])
        .unwrap()
        .to_folder(&folder, &NoProgress)
        .unwrap();
    let other = empty(&bench, "other");
    let secret = bench.path("secret");
    fs::write(&secret, "secret").unwrap();
    for blob in new.all_blobs() {
        let path = folder.join("blobs/sha256").join(blob.digest.hex());
        let good = fs::read(&path).unwrap();
        let mut damaged = good.clone();
        damaged[good.len() / 2] ^= 1;
        fs::write(&path, damaged).unwrap();
        let error = refusal(&other, &folder);
        assert!(error.contains(blob.digest.as_str()), "{error}");
        fs::remove_file(&path).unwrap();
        assert!(refusal(&other, &folder).contains(blob.digest.as_str()));
        for target in [secret.as_path(), Path::new("/dev/zero"), &folder] {
            symlink(target, &path).unwrap();
            assert!(refusal(&other, &folder).contains(blob.digest.as_str()));
            fs::remove_file(&path).unwrap();
        }
        fs::write(&path, good).unwrap();
        is_untouched(&other);
    }
    fs::remove_file(folder.join("oci-layout")).unwrap();
    assert!(refusal(&other, &folder).contains("it is no OCI image layout"));
}

#[test]
fn whatever_byte_of_the_store_is_damaged_no_archive_is_made_and_the_blob_is_named() {
    let (bench, _, new) = bench();
    let file = bench.path("x.tar");
    for blob in new.all_blobs() {
        let path = bench.store.blobs().path(&blob.digest);
        let good = fs::read(&path).unwrap();
        for at in [0, good.len() / 2, good.len() - 1] {
            let mut damaged = good.clone();
            damaged[at] ^= 1;
            fs::write(&path, damaged).unwrap();
            let error = save(&bench.store, "app:2", &file, &NoProgress).unwrap_err().to_string();
            assert!(error.contains(blob.digest.as_str()), "{error}");
            assert!(!file.exists());
            let image = Save::new(&bench.store, "app:2", &[]);
            let parts = image.and_then(|image| image.to_parts(&file, 10_000, &NoProgress));
            assert!(parts.is_err());
        }
        fs::write(&path, good).unwrap();
    }
    let left: Vec<_> = fs::read_dir(bench.context())
        .unwrap()
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    assert!(
        !left.iter().any(|name| name.to_string_lossy().contains("x.tar")),
        "{left:?}"
    );
}

fn index_with(entries: &[(&str, &Descriptor)]) -> Vec<u8> {
    let named = entries.iter().map(|(name, entry)| {
        let mut entry = (*entry).clone();
        entry.annotations.insert(oci::REF_NAME.into(), (*name).into());
        entry
    });
    serde_json::to_vec(&Index {
        manifests: named.collect(),
        ..Index::default()
    })
    .unwrap()
}

#[test]
fn hostile_documents_are_refused_with_their_reason() {
    use tar::EntryType::{GNULongName, Regular};
    let (bench, _, _) = bench();
    let other = empty(&bench, "other");
    let file = bench.path("bad.tar");
    let huge_document = vec![b' '; (crate::manifest::MAX_JSON + 1) as usize];
    let huge = Descriptor::of(media_type::INDEX, &huge_document);
    let liar = Index {
        manifests: vec![Descriptor::new(media_type::LAYER_TAR, Digest::of(b"l"), u64::MAX)],
        ..Index::default()
    };
    let liar = serde_json::to_vec(&liar).unwrap();
    let lying = Descriptor::of(media_type::INDEX, &liar);
    let long = vec![b'a'; 1 << 20];
    let needs = serde_json::to_vec(&Delta {
        since: vec![],
        needs: vec![],
    })
    .unwrap();
    let blob = |bytes: &[u8]| format!("blobs/sha256/{}", Digest::of(bytes).hex());
    let two_names = index_with(&[
        ("x:1", &Descriptor::of(media_type::INDEX, b"1")),
        ("x:1", &Descriptor::of(media_type::INDEX, b"2")),
    ]);
    let (huge_index, lying_index) = (index_with(&[("x:1", &huge)]), index_with(&[("x:1", &lying)]));
    let liar_name = blob(&liar);
    for (entries, expected) in [
        (
            vec![Entry("index.json", Regular, &two_names)],
            "two images have one name: docker.io/library/x:1 is both sha256:",
        ),
        (
            vec![
                Entry(&blob(&huge_document), Regular, &huge_document),
                Entry("index.json", Regular, &huge_index),
            ],
            "a document of 16777217 bytes is too large",
        ),
        (
            vec![
                Entry(&liar_name, Regular, &liar),
                Entry("index.json", Regular, &lying_index),
            ],
            "it claims 18446744073709551615 bytes",
        ),
        (vec![Entry("delta.json", Regular, b"{}")], "delta.json: missing field"),
        (vec![Entry("delta.json", Regular, &needs)], "it has no index.json"),
        (
            vec![Entry("@LongLink", GNULongName, &long)],
            "a name or extended header of 1048576 bytes",
        ),
    ] {
        let mut all = vec![Entry("oci-layout", Regular, b"{}")];
        all.extend(entries);
        archive(&file, &all);
        let error = refusal(&other, &file);
        assert!(error.contains(expected), "expected {expected}\ngot {error}");
        is_untouched(&other);
    }
    // A claimed size is refused before anything is read.
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_path("index.json").unwrap();
    header.set_size(1 << 40);
    header.set_mode(0o644);
    header.set_cksum();
    builder.append(&header, &b"{}"[..]).unwrap();
    let bytes = builder.into_inner().unwrap();
    let error = load_stream(&other, bytes.as_slice(), Path::new("pipe"), None, &NoProgress)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("index.json has 1099511627776 bytes, more than"),
        "{error}"
    );
    fs::write(&file, &bytes).unwrap();
    assert!(refusal(&other, &file).contains("more than the file has"));
}

#[test]
fn one_name_for_two_carried_contents_is_refused() {
    let (bench, _, new) = bench();
    let folder = bench.path("layout");
    Save::new(&bench.store, "app:2", &[])
        .unwrap()
        .to_folder(&folder, &NoProgress)
        .unwrap();
    let layout = Layout::open(&folder);
    let mut index: Index = serde_json::from_slice(&layout.blobs().read(&new.index.digest, 1 << 20).unwrap()).unwrap();
    // The rootfs manifest poses as a second content of the carried name.
    let mut entry = new.rootfs.manifest.clone();
    entry.annotations = new.carried[0].manifest.annotations.clone();
    entry.platform = new.carried[0].manifest.platform.clone();
    index.manifests.push(entry);
    let bytes = serde_json::to_vec(&index).unwrap();
    layout.blobs().put(&bytes).unwrap();
    fs::write(
        layout.index_path(),
        index_with(&[("x:1", &Descriptor::of(media_type::INDEX, &bytes))]),
    )
    .unwrap();
    let other = empty(&bench, "other");
    let error = refusal(&other, &folder);
    assert!(error.contains("two images have one name: a.b/web:v1"), "{error}");
    is_untouched(&other);
}

#[test]
fn a_layer_that_unpacks_to_more_than_it_declares_is_refused_by_name() {
    let (bench, _, new) = bench();
    // The same layer, declared smaller: what a bomb looks like.
    let list: Index = bench.store.read_index(&new.index).unwrap();
    let mut manifest: crate::manifest::Manifest = bench.store.read_json(&new.rootfs.manifest).unwrap();
    let big = manifest.layers.iter().position(|layer| layer.size > 4096).unwrap();
    manifest.layers[big]
        .annotations
        .insert(crate::UNCOMPRESSED_SIZE.into(), "4096".into());
    let mut rootfs = bench.store.put_json(media_type::MANIFEST, &manifest).unwrap();
    rootfs.platform = new.rootfs.manifest.platform.clone();
    rootfs.annotations = new.rootfs.manifest.annotations.clone();
    let manifests = list.manifests.into_iter().map(|entry| {
        if entry == new.rootfs.manifest {
            rootfs.clone()
        } else {
            entry
        }
    });
    let index = Index {
        manifests: manifests.collect(),
        ..Index::default()
    };
    let index = bench.store.put_json(media_type::INDEX, &index).unwrap();
    bench.store.tag(&"bomb:1".parse().unwrap(), &index).unwrap();
    fs::remove_dir_all(bench.store.root().join("cache")).unwrap();
    let store = Store::open(bench.store.root()).unwrap();
    let image = ClusterImage::open(&store, "bomb:1", &host_platform()).unwrap();
    for error in [
        image.list("").unwrap_err(),
        bench.try_build_from("FROM bomb:1\nRUN true\n").unwrap_err(),
    ] {
        let text = error.to_string();
        assert!(text.contains(manifest.layers[big].digest.hex()), "{text}");
        assert!(
            text.contains("it unpacks to more than the 4096 bytes it may have"),
            "{text}"
        );
    }
}
