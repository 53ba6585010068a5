//! Changes of `index.json` by pushes and deletions: pure, so that they can be tried out.
//!
//! A tag of a repository is an entry annotated with the full reference `domain/path:tag`, as in any OCI image layout. A manifest
//! that no tag names (any more) stays as an entry annotated with `domain/path@digest`: it can be pulled until it is deleted.

use oci::{Descriptor, Digest, Index, REF_NAME, Reference};

use crate::catalog::PUSHED;

/// Lets `tags` of a repository name a manifest; without tags it is only known by its digest.
///
/// What a tag named before stays, known by its digest.
pub fn put(index: &mut Index, repository: &str, tags: &[String], manifest: &Descriptor) {
    for tag in tags {
        untag(index, repository, tag);
        index.manifests.push(entry(manifest, &format!("{repository}:{tag}")));
    }
    let by_digest = untagged(repository, &manifest.digest);
    if tags.is_empty() {
        if !names(index, repository, &manifest.digest) {
            index.manifests.push(entry(manifest, &by_digest));
        }
    } else {
        index
            .manifests
            .retain(|entry| reference_text(entry) != Some(&by_digest));
    }
}

/// Takes a tag away; its manifest stays, known by its digest. `false` if there is no such tag.
pub fn untag(index: &mut Index, repository: &str, tag: &str) -> bool {
    let is_it = |entry: &Descriptor| is_of(entry, repository, |reference| reference.tag() == Some(tag));
    let Some(found) = index.manifests.iter().find(|entry| is_it(entry)).cloned() else {
        return false;
    };
    index.manifests.retain(|entry| !is_it(entry));
    if !names(index, repository, &found.digest) {
        let by_digest = entry(&found, &untagged(repository, &found.digest));
        index.manifests.push(by_digest);
    }
    true
}

/// Takes a manifest away with all tags of this repository that name it. `false` if there is none.
pub fn remove(index: &mut Index, repository: &str, digest: &Digest) -> bool {
    let before = index.manifests.len();
    index
        .manifests
        .retain(|entry| entry.digest != *digest || !is_of(entry, repository, |_| true));
    index.manifests.len() < before
}

/// Whether an entry of this repository has the digest.
fn names(index: &Index, repository: &str, digest: &Digest) -> bool {
    index
        .manifests
        .iter()
        .any(|entry| entry.digest == *digest && is_of(entry, repository, |_| true))
}

fn is_of(entry: &Descriptor, repository: &str, matches: impl Fn(&Reference) -> bool) -> bool {
    // Cheap first: most entries are of other repositories, and every name in an index ends with its last component.
    let last = repository.rsplit('/').next().unwrap_or(repository);
    reference_text(entry).is_some_and(|text| text.contains(last))
        && entry
            .reference()
            .is_some_and(|reference| reference.repository() == repository && matches(&reference))
}

fn reference_text(entry: &Descriptor) -> Option<&String> {
    entry.annotations.get(REF_NAME)
}

fn untagged(repository: &str, digest: &Digest) -> String {
    format!("{repository}@{digest}")
}

fn entry(manifest: &Descriptor, reference: &str) -> Descriptor {
    let mut entry = Descriptor::new(manifest.media_type.clone(), manifest.digest.clone(), manifest.size);
    entry.artifact_type.clone_from(&manifest.artifact_type);
    entry.annotations.insert(REF_NAME.to_owned(), reference.to_owned());
    entry.annotations.insert(PUSHED.to_owned(), "true".to_owned());
    entry
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci::media_type;
    use proptest::prelude::*;

    const REPOSITORY: &str = "localhost/a/b";

    fn manifest(content: &str) -> Descriptor {
        Descriptor::of(media_type::MANIFEST, content.as_bytes())
    }

    fn texts(index: &Index) -> Vec<&str> {
        let mut texts: Vec<_> = index
            .manifests
            .iter()
            .filter_map(reference_text)
            .map(String::as_str)
            .collect();
        texts.sort_unstable();
        texts
    }

    fn tags(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_moved_tag_leaves_the_old_manifest_by_digest() {
        let (old, new) = (manifest("old"), manifest("new"));
        let mut index = Index::default();
        put(&mut index, REPOSITORY, &tags(&["1"]), &old);
        put(&mut index, REPOSITORY, &tags(&["1", "latest"]), &new);
        let by_digest = format!("{REPOSITORY}@{}", old.digest);
        assert_eq!(texts(&index), ["localhost/a/b:1", "localhost/a/b:latest", &by_digest]);
        put(&mut index, REPOSITORY, &tags(&["again"]), &old);
        assert!(!texts(&index).contains(&by_digest.as_str()), "a tag names it again");
    }

    #[test]
    fn tags_go_one_by_one_and_a_manifest_with_all_of_its_tags() {
        let image = manifest("image");
        let mut index = Index::default();
        put(&mut index, REPOSITORY, &tags(&["1", "2"]), &image);
        put(&mut index, "localhost/a/other", &tags(&["1"]), &image);
        assert!(untag(&mut index, REPOSITORY, "1"));
        assert!(!untag(&mut index, REPOSITORY, "1"));
        assert_eq!(texts(&index), ["localhost/a/b:2", "localhost/a/other:1"]);
        assert!(remove(&mut index, REPOSITORY, &image.digest));
        assert!(!remove(&mut index, REPOSITORY, &image.digest));
        assert_eq!(texts(&index), ["localhost/a/other:1"]);
    }

    #[test]
    fn entries_of_others_are_known_however_they_are_written() {
        let image = manifest("image");
        let mut index = Index::default();
        let mut short = image.clone();
        short.annotations.insert(REF_NAME.to_owned(), "nginx".to_owned());
        index.manifests.push(short);
        put(
            &mut index,
            "docker.io/library/nginx",
            &tags(&["latest"]),
            &manifest("new"),
        );
        assert_eq!(index.manifests.len(), 2);
        assert!(remove(&mut index, "docker.io/library/nginx", &image.digest));
    }

    proptest! {
        #[test]
        fn no_change_loses_a_manifest_or_names_a_tag_twice(steps in proptest::collection::vec((0u8..4, 0u8..3, 0u8..2), 0..40)) {
            let mut index = Index::default();
            let mut expected = std::collections::BTreeSet::new();
            for (content, tag, action) in steps {
                let image = manifest(&content.to_string());
                if action == 0 {
                    put(&mut index, REPOSITORY, &tags(&[&tag.to_string()]), &image);
                    expected.insert(image.digest.clone());
                } else {
                    untag(&mut index, REPOSITORY, &tag.to_string());
                }
                let there: std::collections::BTreeSet<_> =
                    index.manifests.iter().map(|entry| entry.digest.clone()).collect();
                prop_assert_eq!(&there, &expected);
                let mut names = texts(&index);
                names.dedup();
                prop_assert_eq!(names.len(), index.manifests.len());
            }
        }
    }
}
