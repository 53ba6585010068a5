//! Reading through a cluster image's files, each layer once.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;

use oci::Digest;

use crate::error::Error;
use crate::extract::files_of_layer;
use crate::manifest::Manifest;
use crate::tree::WHITEOUT;
use crate::tree::{Kind, Source, follow, normalize};
use crate::view::{Carried, ClusterImage};

/// Largest file [`ClusterImage::carried_file`] gives, in bytes.
const LARGEST_FILE: u64 = 1 << 20;

impl ClusterImage {
    /// Streams the content of every regular file of the rootfs to `take`, in the order in which layers have them.
    ///
    /// # Errors
    /// If a layer can't be read, or `take` fails.
    pub fn read_files(&self, take: &mut dyn FnMut(&str, &mut dyn Read) -> Result<(), Error>) -> Result<(), Error> {
        self.read_some_files(&|_| true, take)
    }

    /// As [`Self::read_files`], for those whose path `is_wanted`; layers without any are not read.
    ///
    /// # Errors
    /// As [`Self::read_files`].
    pub fn read_some_files(
        &self,
        is_wanted: &dyn Fn(&str) -> bool,
        take: &mut dyn FnMut(&str, &mut dyn Read) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let tree = self.tree()?;
        let mut wanted: BTreeMap<&Digest, BTreeSet<String>> = BTreeMap::new();
        for (path, entry) in tree.0.iter().filter(|(path, _)| is_wanted(path)) {
            if let Kind::File {
                source: Source::Layer(layer),
                ..
            } = &entry.kind
            {
                wanted.entry(layer).or_default().insert(path.clone());
            }
        }
        for layer in &self.rootfs.layers {
            if let Some(paths) = wanted.remove(&layer.digest) {
                files_of_layer(self.store().blobs(), layer, &paths, &mut *take)?;
            }
        }
        Ok(())
    }

    /// Path and size of the regular file that a path of the rootfs leads to, links followed; `None` if it leads to none.
    ///
    /// # Errors
    /// If a layer can't be read, or a link leads out of the rootfs.
    pub fn leads_to(&self, path: &str) -> Result<Option<(String, u64)>, Error> {
        let tree = self.tree()?;
        let target = follow(&tree, &normalize(path)?)?;
        let Some(Kind::File { size, .. }) = tree.0.get(&target).map(|entry| &entry.kind) else {
            return Ok(None);
        };
        Ok(Some((target, *size)))
    }

    /// The content of a small file of a carried image, if it has it: the highest layer that brings it or takes it away decides.
    ///
    /// # Errors
    /// If a layer can't be read.
    pub fn carried_file(&self, carried: &Carried, path: &str) -> Result<Option<Vec<u8>>, Error> {
        if carried.manifest.is_index() {
            return Ok(None);
        }
        let path = normalize(path)?;
        let mut wanted = whiteouts(&path);
        wanted.insert(path.clone());
        let manifest: Manifest = self.store().read_json(&carried.manifest)?;
        for layer in manifest.layers.iter().rev() {
            let (mut content, mut hidden) = (None, false);
            files_of_layer(self.store().blobs(), layer, &wanted, |found, reader| {
                if found != path {
                    hidden = true;
                    return Ok(());
                }
                let mut bytes = Vec::new();
                reader
                    .take(LARGEST_FILE + 1)
                    .read_to_end(&mut bytes)
                    .map_err(Error::io("cannot read", found))?;
                if bytes.len() as u64 > LARGEST_FILE {
                    return Err(Error::path(found, format!("is larger than {LARGEST_FILE} bytes")));
                }
                content = Some(bytes);
                Ok(())
            })?;
            if content.is_some() || hidden {
                return Ok(content);
            }
        }
        Ok(None)
    }
}

/// The entries by which a layer would take a path, or a folder above it, away from lower layers (image-spec, `layer.md`).
fn whiteouts(path: &str) -> BTreeSet<String> {
    let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
    let hide = |end: usize| match path[..end].rsplit_once('/') {
        Some((folder, name)) => format!("{folder}/{WHITEOUT}{name}"),
        None => format!("{WHITEOUT}{}", &path[..end]),
    };
    ends.map(hide).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_hidden_by_itself_or_any_folder_above() {
        let expected = [".wh.a", "a/.wh.b", "a/b/.wh.c"].map(str::to_string);
        assert_eq!(whiteouts("a/b/c"), expected.into());
        assert_eq!(whiteouts("a"), [".wh.a".to_string()].into());
    }
}
