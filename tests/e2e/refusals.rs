//! Bad input is refused before anything changes, and the refusal says where, why and what to do.

use anyhow::{Context, Result, ensure};
use e2e::{Site, refused};
use lab::{Output, diff};
use std::fs;

#[test]
fn bad_input_changes_nothing_and_is_named() -> Result<()> {
    let site = Site::up(&["m1", "n1"])?;
    site.lab
        .hosts
        .iter()
        .try_for_each(|h| site.on(&h.name, "true").map(drop))?;
    let before = site.lab.snapshot(site.host("m1"))?;
    let apply = |what, says: &[&str]| {
        let out = site.installer(&["apply", "-f", "Clusterfile", "--yes"])?;
        refused(&out, what, says)
    };

    site.write_clusterfile(&["m1"], &["n1"], "")?;
    site.on("m1", "mkdir /etc/kubernetes && touch /etc/kubernetes/admin.conf")?;
    apply("leftovers of another cluster", &["m1", "/etc/kubernetes"])?;
    site.on("m1", "rm -r /etc/kubernetes")?;

    site.on(
        "n1",
        "systemd-run --quiet --unit=squatter systemd-socket-activate --listen=10250 /bin/true",
    )?;
    e2e::eventually("the port to be taken", || {
        site.on("n1", "ss -Hltn sport = :10250 | grep -q .")
    })?;
    apply("a port in use", &["n1", "10250", "squatter"])?;
    site.on("n1", "systemctl stop squatter")?;

    site.on("n1", "mkdir /small && mount -t tmpfs -o size=64m tmpfs /small")?;
    site.write_clusterfile(&["m1"], &["n1"], "dataRoot: /small/installer")?;
    apply("too little disk", &["n1", "MiB free below /small", "dataRoot"])?;
    site.on("n1", "umount /small && rmdir /small")?;

    let edit = |from: &str, to: &str| -> Result<()> {
        site.write_clusterfile(&["m1"], &["n1"], "")?;
        let text = fs::read_to_string(site.clusterfile())?;
        ensure!(text.contains(from), "{from:?} is in the Clusterfile");
        Ok(fs::write(site.clusterfile(), text.replacen(from, to, 1))?)
    };
    edit("hosts:", "hsots:")?;
    apply("an unknown field", &["Clusterfile:", "hsots", "hosts"])?;
    edit("kind: Cluster", "kind: Clutser")?;
    apply("an unknown kind", &["Clusterfile:", "Clutser", "Cluster"])?;
    edit("local/native:dev", "local/absent:dev")?;
    apply("an absent image", &["local/absent:dev"])?;
    edit(&site.ip("n1"), "10.89.0.99")?;
    apply("a host that is not there", &["10.89.0.99"])?;
    edit(&site.ip("n1"), &site.ip("m1"))?;
    apply("one address twice", &[&site.ip("m1")])?;

    site.write_clusterfile_with(&["m1"], &["n1"], "ssh: {user: root, passwd: wrong}")?;
    apply("a wrong password", &[&site.ip("m1"), "password"])?;

    site.write_clusterfile(&["m1"], &["n1"], "")?;
    let known = site.lab.known_hosts();
    let good = fs::read_to_string(&known)?;
    let mut lines: Vec<&str> = good.lines().collect();
    let (first, second) = (lines[0].to_owned(), lines[1].to_owned());
    let key = |line: &str| line.split_once(' ').map(|(_, key)| key.to_owned()).unwrap_or_default();
    let swapped = format!("{} {}", site.ip("m1"), key(&second));
    lines[0] = &swapped;
    fs::write(&known, lines.join("\n") + "\n")?;
    apply("a changed host key", &[&site.ip("m1"), "SHA256:"])?;
    fs::write(&known, "")?;
    apply("an unknown host key", &[&site.ip("m1"), "--accept-new-host-keys"])?;
    fs::write(&known, good)?;
    ensure!(!first.is_empty(), "the lab knows its hosts");

    site.on("n1", "hostname m1")?;
    apply("one host name twice", &["m1", &site.ip("n1")])?;
    site.on("n1", "hostname n1")?;

    let after = site.lab.snapshot(site.host("m1"))?;
    ensure!(
        diff(&before, &after).is_empty(),
        "m1 was changed: {:#?}",
        diff(&before, &after)
    );
    Ok(())
}

#[test]
fn a_build_names_what_is_wrong_with_its_kubefile() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let build = |text: &str| -> Result<Output> {
        fs::write(dir.path().join("Kubefile"), text)?;
        let mut command = std::process::Command::new(e2e::program("installer")?);
        command.current_dir(dir.path()).args([
            "--store",
            "store",
            "build",
            "--no-pull",
            "-t",
            "local/x:1",
            "-f",
            "Kubefile",
            ".",
        ]);
        lab::output(&mut command)
    };
    fs::write(
        dir.path().join("pod.yaml"),
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: c, image: example.com/absent:1}]}\n",
    )?;
    for (what, text, says) in [
        (
            "an unknown instruction",
            "FROM scratch\nCOYP a b\n",
            &["Kubefile:2", "COYP", "COPY"][..],
        ),
        ("a missing file", "FROM scratch\nCOPY absent bin/\n", &["absent"]),
        ("a path that escapes", "FROM scratch\nCOPY ../etc bin/\n", &["../etc"]),
        ("an absent base", "FROM local/absent:1\n", &["local/absent:1"]),
        (
            "an image that is not carried",
            "FROM scratch\nCOPY pod.yaml manifests/\n",
            &["example.com/absent:1", "pod.yaml:4", "--no-pull", "FROM oci-archive:"],
        ),
    ] {
        refused(&build(text)?, what, says)?;
    }
    Ok(())
}

/// A byte of the largest blob is turned over in a copy of the operator's store.
#[test]
fn a_damaged_image_is_not_sent() -> Result<()> {
    let site = Site::up(&["m1"])?;
    site.on("m1", "true")?;
    let before = site.lab.snapshot(site.host("m1"))?;
    let store = site.copy_store("store")?;
    let blobs = fs::read_dir(store.join("blobs/sha256"))?.collect::<Result<Vec<_>, _>>()?;
    let (_, name, path) = blobs
        .iter()
        .filter_map(|entry| {
            Some((
                entry.metadata().ok()?.len(),
                entry.file_name().into_string().ok()?,
                entry.path(),
            ))
        })
        .max()
        .context("the store has blobs")?;
    let mut bytes = fs::read(&path)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, bytes)?;
    site.write_clusterfile(&["m1"], &[], "")?;
    let mut command = site.installer_with(&store)?;
    let out = lab::output(command.args(["apply", "-f", "Clusterfile", "--yes"]))?;
    refused(
        &out,
        "an image with a damaged blob",
        &["local/native:dev", "damaged", &name],
    )?;
    let after = site.lab.snapshot(site.host("m1"))?;
    let changed = diff(&before, &after);
    ensure!(changed.is_empty(), "m1 was changed: {changed:#?}");
    Ok(())
}

/// Links and parent folders in an archive's names lead nowhere outside of the store.
#[test]
fn an_archive_with_entries_that_escape_is_refused() -> Result<()> {
    let dir = tempfile::tempdir()?;
    fs::write(dir.path().join("inner"), "x")?;
    for (what, transform) in [
        ("a parent folder", "s,^inner$,../escaped,"),
        ("a parent folder below", "s,^inner$,blobs/sha256/../../../escaped,"),
        ("an absolute path", "s,^inner$,/tmp/installer-escaped,"),
    ] {
        let file = dir.path().join("image.tar");
        let mut tar = std::process::Command::new("tar");
        tar.arg("-C")
            .arg(dir.path())
            .args(["-P", "--transform", transform, "-cf"]);
        lab::output(tar.arg(&file).arg("inner"))?.ok()?;
        let mut command = std::process::Command::new(e2e::program("installer")?);
        let store = dir.path().join("a/b/store");
        command.arg("--store").arg(&store).args(["load", "-i"]).arg(&file);
        refused(&lab::output(&mut command)?, what, &["escaped"])?;
        let escaped = [
            dir.path().join("a/escaped"),
            dir.path().join("a/b/escaped"),
            "/tmp/installer-escaped".into(),
        ];
        ensure!(!escaped.iter().any(|path| path.exists()), "{what}: a file was written");
    }
    Ok(())
}

#[test]
fn a_damaged_archive_is_refused() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let archive = dir.path().join("image.tar");
    let installer = |store: &std::path::Path, args: &[&str]| -> Result<Output> {
        let mut command = std::process::Command::new(e2e::program("installer")?);
        command.arg("--store").arg(store).args(args);
        lab::output(&mut command)
    };
    let file = archive.to_string_lossy().into_owned();
    installer(&e2e::store(), &["save", "local/native:dev", "-o", &file])?.ok()?;
    let mut bytes = fs::read(&archive)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&archive, bytes)?;
    let out = installer(&dir.path().join("store"), &["load", "-i", &file])?;
    refused(&out, "an archive with a flipped bit", &["sha256:"])
}
