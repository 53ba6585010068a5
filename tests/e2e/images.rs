//! The way of a cluster image to a site without a network, as an operator goes it: built, signed, saved in parts, carried, loaded, verified, applied.

use anyhow::{Context, Result, ensure};
use e2e::Site;
use lab::diff;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The operator's own store of the site, which knows nothing but what was carried there.
struct Carried<'s> {
    site: &'s Site,
    store: PathBuf,
}

impl Carried<'_> {
    fn installer(&self, args: &[&str]) -> Result<lab::Output> {
        let mut command = Command::new(e2e::program("installer")?);
        command
            .current_dir(self.site.file(""))
            .arg("--store")
            .arg(&self.store)
            .arg("--known-hosts")
            .arg(self.site.lab.known_hosts());
        lab::output(command.args(args))
    }

    fn ok(&self, args: &[&str]) -> Result<String> {
        self.installer(args)?
            .ok()
            .with_context(|| format!("installer {args:?}"))
    }

    fn refused(&self, args: &[&str], says: &[&str]) -> Result<()> {
        let out = self.installer(args)?;
        let said = format!("{}{}", out.stdout, out.stderr);
        ensure!(out.code != 0, "{args:?} was accepted: {said}");
        for part in says {
            ensure!(said.contains(part), "{args:?}: {part:?} is not in: {said}");
        }
        Ok(())
    }
}

fn parts(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut parts: Vec<PathBuf> = fs::read_dir(dir)?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    parts.retain(|path| {
        path.extension()
            .is_some_and(|e| e.to_string_lossy().bytes().all(|b| b.is_ascii_digit()))
    });
    parts.sort();
    Ok(parts)
}

#[test]
fn a_signed_image_in_parts_becomes_a_cluster_and_an_altered_one_does_not() -> Result<()> {
    let site = Site::up(&["m1"])?;
    site.on("m1", "true")?;
    let before = site.lab.snapshot(site.host("m1"))?;
    let build = Carried {
        site: &site,
        store: site.file("build"),
    };
    // A copy, because signatures are written into it.
    lab::output(
        Command::new("cp")
            .arg("--recursive")
            .arg(e2e::store())
            .arg(&build.store),
    )?
    .ok()?;
    build.ok(&["key", "generate", "--out", "ops"])?;
    build.ok(&["key", "generate", "--out", "stranger"])?;
    build.ok(&["sign", "local/native:dev", "--key", "ops.key"])?;
    fs::create_dir(site.file("media"))?;
    build.ok(&["save", "local/native:dev", "-o", "media/native.tar", "--split", "40M"])?;

    let there = Carried {
        site: &site,
        store: site.file("there"),
    };
    let parts = parts(&site.file("media"))?;
    ensure!(parts.len() >= 3, "the image came in {} parts", parts.len());
    let name = |path: &Path| {
        path.file_name()
            .map(|n| n.to_string_lossy().into_owned())
            .unwrap_or_default()
    };
    let (second, lost) = (&parts[1], site.file("lost"));
    fs::rename(second, &lost)?;
    there.refused(&["load", "-i", "media/native.tar.sha256"], &[&name(second)])?;
    let good = fs::read(&lost)?;
    let mut bad = good.clone();
    let middle = bad.len() / 2;
    bad[middle] ^= 1;
    fs::write(second, &bad)?;
    there.refused(&["load", "-i", "media/native.tar.sha256"], &[&name(second)])?;
    fs::write(second, &good)?;
    there.ok(&["load", "-i", "media/native.tar.sha256"])?;
    let said = there.ok(&["verify", "local/native:dev", "--key", "ops.pub"])?;
    ensure!(said.contains("ops.pub"), "the signer is not told: {said}");

    let apply = ["apply", "-f", "Clusterfile", "--yes"];
    site.write_clusterfile(&["m1"], &[], "trust: {keys: [stranger.pub]}")?;
    there.refused(&apply, &["local/native:dev", "signature"])?;
    let touched = diff(&before, &site.lab.snapshot(site.host("m1"))?);
    ensure!(touched.is_empty(), "m1 was changed by a refused image: {touched:#?}");

    site.write_clusterfile(&["m1"], &[], "trust: {keys: [ops.pub]}")?;
    let said = there.ok(&apply)?;
    ensure!(said.contains("every probe passed"), "{said}");
    let again = there.ok(&apply)?;
    ensure!(again.contains("nothing to do"), "{again}");
    there.ok(&["reset", "-f", "Clusterfile", "--yes"])?;
    let left = diff(&before, &site.lab.snapshot(site.host("m1"))?);
    ensure!(left.is_empty(), "reset left: {left:#?}");
    Ok(())
}
