//! Keys and signatures as their users meet them, and every way to tamper with them.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use image::{Artifact, Store};
use oci::{Descriptor, Digest, Index, Reference};
use pkcs8::pkcs5::{self, pbes2};
use pkcs8::{EncryptedPrivateKeyInfoRef, LineEnding, SecretDocument};

use crate::signature::KEY_ID;
use crate::{Fault, KeyError, KeyFile, PrivateKey, PublicKey, SIGNATURE, check, sign, write_pair};

struct Bench {
    dir: tempfile::TempDir,
    store: Store,
    index: Descriptor,
}

const NOW: i64 = 1_764_000_000;

impl Bench {
    fn new() -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        let index = index(&store, "one:1");
        Bench { dir, store, index }
    }

    fn sign(&self, name: &str, key: &PrivateKey) -> crate::Signed {
        let (reference, index) = self.store.resolve_named(name).unwrap();
        sign(&self.store, (reference, &index), key, NOW, "test").unwrap()
    }

    /// The artifact of the only signature, its descriptor included.
    fn artifact(&self) -> (Descriptor, Artifact) {
        let mut found = self.store.referrers(&self.index).unwrap();
        assert_eq!(found.len(), 1);
        let found = found.remove(0);
        let artifact = self.store.read_artifact(&found).unwrap();
        (found, artifact)
    }

    /// Puts another artifact in the place of the only signature.
    fn replace(&self, change: impl FnOnce(&mut Artifact)) {
        let (found, mut artifact) = self.artifact();
        change(&mut artifact);
        self.store.detach(&[found.digest]).unwrap();
        self.store.attach(&self.index, &artifact).unwrap();
    }

    fn fault(&self, key: &PublicKey) -> Fault {
        let verdict = check(&self.store, &self.index, std::slice::from_ref(key)).unwrap();
        assert!(verdict.good.is_empty(), "{verdict:?}");
        assert_eq!(verdict.faults.len(), 1);
        verdict.faults[0].clone()
    }
}

fn index(store: &Store, name: &str) -> Descriptor {
    let mut index = Index::default();
    index.annotations.insert("name".into(), name.into());
    let bytes = serde_json::to_vec(&index).unwrap();
    store.blobs().put(&bytes).unwrap();
    let index = Descriptor::of(oci::media_type::INDEX, &bytes);
    store.tag(&name.parse().unwrap(), &index).unwrap();
    index
}

fn keys() -> (PrivateKey, PublicKey) {
    let key = PrivateKey::generate().unwrap();
    let public = key.public("test key");
    (key, public)
}

#[test]
fn what_a_key_signs_its_public_half_verifies() {
    let (bench, (key, public)) = (Bench::new(), keys());
    let signed = bench.sign("one:1", &key);
    assert!(!signed.already);
    let verdict = check(&bench.store, &bench.index, std::slice::from_ref(&public)).unwrap();
    let good = verdict.accept(std::slice::from_ref(&public)).unwrap();
    assert_eq!(good.len(), 1);
    let payload = &good[0].payload;
    assert_eq!((&payload.digest, payload.timestamp), (&bench.index.digest, Some(NOW)));
    assert_eq!(payload.reference, "one:1".parse::<Reference>().ok());
    assert_eq!((&good[0].key, &good[0].artifact), (public.id(), &signed.artifact));
}

#[test]
fn signing_again_changes_nothing_but_another_name_is_vouched_for_too() {
    let (bench, (key, public)) = (Bench::new(), keys());
    let first = bench.sign("one:1", &key);
    let again = bench.sign("one:1", &key);
    assert!(again.already && again.artifact == first.artifact);
    bench
        .store
        .tag(&"corp.example/one:1".parse().unwrap(), &bench.index)
        .unwrap();
    assert!(!bench.sign("corp.example/one:1", &key).already);
    assert!(!bench.sign(bench.index.digest.as_str(), &key).already);
    let verdict = check(&bench.store, &bench.index, &[public]).unwrap();
    let mut names: Vec<_> = verdict.good.iter().map(|good| good.payload.reference.clone()).collect();
    names.sort();
    let expected = ["corp.example/one:1", "one:1"].map(|name| Some(name.parse().unwrap()));
    assert_eq!(names[0], None, "by digest no name is claimed");
    assert_eq!(names[1..], expected);
}

#[test]
fn one_trusted_key_among_several_signatures_is_enough() {
    let bench = Bench::new();
    let ((a, a_public), (b, b_public), (_, c_public)) = (keys(), keys(), keys());
    bench.sign("one:1", &a);
    bench.sign("one:1", &b);
    for (trusted, good) in [
        (vec![a_public.clone()], 1),
        (vec![a_public.clone(), b_public.clone()], 2),
        (vec![c_public.clone(), b_public.clone()], 1),
        (vec![c_public.clone()], 0),
    ] {
        let verdict = check(&bench.store, &bench.index, &trusted).unwrap();
        assert_eq!(verdict.good.len(), good);
        assert!(!verdict.is_suspicious());
        assert_eq!(verdict.accept(&trusted).is_ok(), good > 0);
    }
    let error = check(&bench.store, &bench.index, std::slice::from_ref(&c_public)).unwrap();
    let text = error.accept(std::slice::from_ref(&c_public)).unwrap_err().to_string();
    for part in [
        bench.index.digest.as_str(),
        a_public.id().as_str(),
        c_public.id().as_str(),
        "test key",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
}

#[test]
fn an_unsigned_image_is_named_with_the_keys_it_lacks() {
    let (bench, (_, public)) = (Bench::new(), keys());
    let verdict = check(&bench.store, &bench.index, std::slice::from_ref(&public)).unwrap();
    let text = verdict.accept(std::slice::from_ref(&public)).unwrap_err().to_string();
    assert_eq!(
        text,
        format!(
            "{} has no signature\nit must be signed by the key {} (test key)",
            bench.index.digest,
            public.id()
        )
    );
}

#[test]
fn a_flipped_bit_in_signature_or_payload_is_found() {
    for (document, at) in [(0, 30), (0, 100), (1, 0), (1, 63)] {
        let (bench, (key, public)) = (Bench::new(), keys());
        bench.sign("one:1", &key);
        bench.replace(|artifact| artifact.documents[document].bytes[at] ^= 1);
        assert!(
            matches!(bench.fault(&public), Fault::Altered { .. }),
            "document {document}, byte {at}"
        );
    }
}

#[test]
fn a_signature_of_another_image_is_refused_with_the_digest_it_names() {
    let (bench, (key, public)) = (Bench::new(), keys());
    let other = index(&bench.store, "two:1");
    bench.sign("two:1", &key);
    let stolen = bench.store.referrers(&other).unwrap().remove(0);
    let artifact = bench.store.read_artifact(&stolen).unwrap();
    bench.store.attach(&bench.index, &artifact).unwrap();
    let Fault::OtherImage { names, .. } = bench.fault(&public) else {
        panic!("another image's signature")
    };
    assert_eq!(names, other.digest);
}

#[test]
fn a_signature_that_claims_a_trusted_key_but_is_by_another_is_refused() {
    let (bench, (mallory, _), (_, public)) = (Bench::new(), keys(), keys());
    bench.sign("one:1", &mallory);
    bench.replace(|artifact| {
        artifact.annotations.insert(KEY_ID.into(), public.id().to_string());
    });
    assert!(matches!(bench.fault(&public), Fault::Altered { .. }));
}

#[test]
fn what_is_no_signature_is_named_and_spoils_no_good_one() {
    let table: &[fn(&mut Artifact)] = &[
        |artifact| artifact.documents.clear(),
        |artifact| drop(artifact.documents.pop()),
        |artifact| {
            let twice = artifact.documents[1].clone();
            artifact.documents.push(twice);
        },
        |artifact| artifact.documents[0].media_type = "text/plain".into(),
    ];
    for change in table {
        let (bench, (key, public)) = (Bench::new(), keys());
        bench.sign("one:1", &key);
        bench.replace(*change);
        assert!(matches!(bench.fault(&public), Fault::Malformed { .. }));
        bench.sign("one:1", &key);
        let verdict = check(&bench.store, &bench.index, &[public]).unwrap();
        assert_eq!((verdict.good.len(), verdict.faults.len()), (1, 1));
        assert!(verdict.is_suspicious());
    }
}

#[test]
fn bytes_the_key_signed_for_another_purpose_vouch_for_nothing() {
    let (bench, (key, public)) = (Bench::new(), keys());
    bench.sign("one:1", &key);
    bench.replace(|artifact| {
        let text = String::from_utf8(artifact.documents[0].bytes.clone()).unwrap();
        artifact.documents[0].bytes = text.replace("installer cluster image signature", "love letter").into();
        artifact.documents[1].bytes = key.sign(&artifact.documents[0].bytes).unwrap();
    });
    let fault = bench.fault(&public);
    assert!(
        matches!(&fault, Fault::Malformed { why, .. } if why.contains("love letter")),
        "{fault}"
    );
}

#[test]
fn other_artifacts_are_no_signatures() {
    let (bench, (key, public)) = (Bench::new(), keys());
    bench.sign("one:1", &key);
    bench.replace(|artifact| artifact.artifact_type = "application/vnd.other".into());
    let verdict = check(&bench.store, &bench.index, &[public]).unwrap();
    assert!(verdict.good.is_empty() && verdict.faults.is_empty());
}

#[test]
fn a_missing_document_is_a_fault_of_that_signature() {
    let (bench, (key, public)) = (Bench::new(), keys());
    bench.sign("one:1", &key);
    let (_, artifact) = bench.artifact();
    let payload = Digest::of(&artifact.documents[0].bytes);
    bench.store.blobs().remove(&payload).unwrap();
    let fault = bench.fault(&public).to_string();
    assert!(fault.contains(payload.as_str()) && fault.contains("missing"), "{fault}");
}

#[test]
fn key_files_are_private_never_overwritten_and_open_again() {
    let dir = tempfile::tempdir().unwrap();
    let name = dir.path().join("ops.2026");
    for passphrase in [None, Some("päss word")] {
        let (key, public) = keys();
        let (private_file, public_file) = write_pair(&key, passphrase, &name).unwrap();
        assert!(private_file.ends_with("ops.2026.key") && public_file.ends_with("ops.2026.pub"));
        let mode = std::fs::metadata(&private_file).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        assert!(matches!(write_pair(&key, None, &name), Err(KeyError::Exists(_))));
        let file = KeyFile::read(&private_file).unwrap();
        assert_eq!((file.is_encrypted(), file.is_exposed()), (passphrase.is_some(), false));
        assert_eq!(file.open(passphrase).unwrap().public(""), public);
        assert_eq!(PublicKey::read(&public_file).unwrap(), public);
        if passphrase.is_some() {
            assert!(matches!(file.open(None), Err(KeyError::Locked(_))));
            assert!(matches!(file.open(Some("wrong")), Err(KeyError::Passphrase(_))));
            assert!(matches!(file.open(Some("")), Err(KeyError::Passphrase(_))));
        }
        std::fs::remove_file(private_file).unwrap();
        std::fs::remove_file(public_file).unwrap();
    }
    std::fs::write(dir.path().join("half.key"), "x").unwrap();
    assert!(write_pair(&keys().0, None, &dir.path().join("half")).is_err());
    assert!(!dir.path().join("half.pub").exists(), "half a pair is not left");
}

#[test]
fn what_is_no_key_is_refused_with_what_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let (private, public) = write_pair(&keys().0, None, &dir.path().join("k")).unwrap();
    let read = |path: &Path| std::fs::read_to_string(path).unwrap();
    let error = PublicKey::read(&private).unwrap_err().to_string();
    assert!(
        error.contains("it is a private key") && error.contains("k.key"),
        "{error}"
    );
    assert!(!error.contains(read(&private).lines().nth(1).unwrap()));
    let error = KeyFile::read(&public).err().unwrap().to_string();
    assert!(error.contains("it is a public key"), "{error}");
    assert!(
        PublicKey::read(&dir.path().join("none"))
            .unwrap_err()
            .to_string()
            .contains("none")
    );
    let good = read(&public);
    for (text, expected) in [
        ("".to_string(), "no PEM text"),
        ("ssh-ed25519 AAAAC3Nz".to_string(), "no PEM text"),
        (good.replace("PUBLIC KEY", "CERTIFICATE"), "it is a CERTIFICATE"),
        (good.replace("MCow", "MCox"), "it is damaged"),
        (good.replace("K2Vw", "K2Vv"), "its algorithm is 1.3.101.111"),
    ] {
        let error = PublicKey::from_pem(&text, "spec.trust.keys[0]")
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("spec.trust.keys[0]") && error.contains(expected),
            "{text}\n{error}"
        );
    }
    assert_eq!(
        PublicKey::from_pem(&good.replace('\n', "\r\n"), "x").unwrap(),
        PublicKey::read(&public).unwrap()
    );
}

#[test]
fn a_key_file_cannot_ask_for_all_memory() {
    let dir = tempfile::tempdir().unwrap();
    let (private, _) = write_pair(&keys().0, Some("x"), &dir.path().join("k")).unwrap();
    let text = std::fs::read_to_string(&private).unwrap();
    let (_, document) = SecretDocument::from_pem(&text).unwrap();
    let mut sealed = EncryptedPrivateKeyInfoRef::try_from(document.as_bytes()).unwrap();
    let pkcs5::EncryptionScheme::Pbes2(scheme) = &mut sealed.encryption_algorithm else {
        panic!("PBES2")
    };
    let pbes2::Kdf::Scrypt(cost) = &mut scheme.kdf else {
        panic!("scrypt")
    };
    cost.cost_parameter = 1 << 40;
    let greedy = SecretDocument::encode_msg(&sealed).unwrap();
    let pem = greedy.to_pem("ENCRYPTED PRIVATE KEY", LineEnding::LF).unwrap();
    std::fs::write(&private, pem.as_bytes()).unwrap();
    let error = KeyFile::read(&private)
        .unwrap()
        .open(Some("x"))
        .unwrap_err()
        .to_string();
    assert!(error.contains("bytes of memory") && error.contains("k.key"), "{error}");
}

/// OpenSSL as an independent judge of our files, and we of its.
#[test]
fn openssl_reads_our_keys_and_verifies_our_signatures() {
    let (bench, (key, public)) = (Bench::new(), keys());
    let at = |name: &str| bench.dir.path().join(name);
    let openssl = |args: &[&str]| {
        let output = Command::new("openssl")
            .args(args)
            .current_dir(bench.dir.path())
            .output();
        let output = output.expect("openssl is installed (make deps)");
        assert!(
            output.status.success(),
            "{args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    write_pair(&key, None, &at("plain")).unwrap();
    write_pair(&key, Some("secret"), &at("locked")).unwrap();
    for args in [
        &["pkey", "-in", "plain.key", "-pubout"][..],
        &["pkey", "-in", "locked.key", "-passin", "pass:secret", "-pubout"],
        &["pkey", "-pubin", "-in", "plain.pub", "-pubout"],
    ] {
        assert_eq!(
            PublicKey::from_pem(&openssl(args), "openssl").unwrap(),
            public,
            "{args:?}"
        );
    }
    bench.sign("one:1", &key);
    let (found, artifact) = bench.artifact();
    assert_eq!(found.artifact_type.as_deref(), Some(SIGNATURE));
    for document in &artifact.documents {
        std::fs::write(at(&document.title), &document.bytes).unwrap();
    }
    let verify = "pkeyutl -verify -pubin -inkey plain.pub -rawin -in payload.json -sigfile payload.sig";
    openssl(&verify.split(' ').collect::<Vec<_>>());
    openssl(&["genpkey", "-algorithm", "ed25519", "-out", "theirs.key"]);
    openssl(&["pkey", "-in", "theirs.key", "-pubout", "-out", "theirs.pub"]);
    let theirs = KeyFile::read(&at("theirs.key")).unwrap().open(None).unwrap();
    let theirs_public = PublicKey::read(&at("theirs.pub")).unwrap();
    assert_eq!(theirs.public(""), theirs_public);
    bench.sign("one:1", &theirs);
    assert_eq!(
        check(&bench.store, &bench.index, &[theirs_public]).unwrap().good.len(),
        1
    );
    openssl(&[
        "genpkey",
        "-algorithm",
        "EC",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-out",
        "ec.key",
    ]);
    let error = KeyFile::read(&at("ec.key"))
        .unwrap()
        .open(None)
        .unwrap_err()
        .to_string();
    assert!(error.contains("only Ed25519"), "{error}");
}
