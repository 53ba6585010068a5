//! The way of a cluster image to a site without a network, as an operator goes it: built, signed, saved in parts, carried, loaded, verified, applied.

use anyhow::{Context, Result, ensure};
use e2e::Site;
use lab::diff;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// The operator's own store of the site, which knows nothing but what was carried there.
struct Carried<'s> {
    site: &'s Site,
    store: PathBuf,
}

impl Carried<'_> {
    fn installer(&self, args: &[&str]) -> Result<lab::Output> {
        lab::output(self.site.installer_with(&self.store)?.args(args))
    }

    fn ok(&self, args: &[&str]) -> Result<String> {
        self.installer(args)?
            .ok()
            .with_context(|| format!("installer {args:?}"))
    }

    fn refused(&self, args: &[&str], says: &[&str]) -> Result<()> {
        e2e::refused(&self.installer(args)?, &format!("{args:?}"), says)
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
        // A copy, because signatures are written into it.
        store: site.copy_store("build")?,
    };
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
