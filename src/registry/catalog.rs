//! What of a store is served: the images of its `index.json`, by repository.
//!
//! A host's store holds more than images: the cluster image itself, with rootfs layers that carry configuration. Only content
//! that belongs to an image annotated with its full reference is listed here, and what was pushed through this registry
//! ([`PUSHED`]); only what is listed here is ever sent. The content itself is not held, only digests.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use oci::{Descriptor, Digest, Index, Layout, REF_NAME, Reference, media_type};
use serde::Deserialize;

/// The largest manifest that is read or served, in bytes (the spec asks for at least 4 MiB).
pub const MAX_MANIFEST: u64 = 8 << 20;

/// Marks the entries of `index.json` that came by a push: they are served as they are, whatever they hold.
pub const PUSHED: &str = "installer.internal/pushed";

/// How deep indexes may lie in indexes.
const MAX_DEPTH: usize = 4;

/// Artifact types of ours, such as a cluster image and its rootfs, are no container images.
const OWN_ARTIFACTS: &str = "application/vnd.installer.";

/// A digest in 32 bytes: a catalogue holds very many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id([u8; 32]);

impl From<&Digest> for Id {
    fn from(digest: &Digest) -> Self {
        let nibble = |byte: u8| {
            if byte.is_ascii_digit() {
                byte - b'0'
            } else {
                byte - b'a' + 10
            }
        };
        let mut id = [0; 32];
        for (byte, pair) in id.iter_mut().zip(digest.hex().as_bytes().chunks_exact(2)) {
            *byte = nibble(pair[0]) << 4 | nibble(pair[1]);
        }
        Self(id)
    }
}

impl Id {
    /// The 64 hexadecimal digits, as in the name of the blob's file.
    pub fn hex(&self) -> String {
        hex::encode(self.0)
    }
}

/// All repositories of a store.
#[derive(Debug, Default)]
pub struct Catalog {
    /// By full name: `docker.io/library/nginx`.
    pub repositories: BTreeMap<String, Repository>,
    /// Images that `index.json` names and whose manifest is not there (yet), or cannot be read.
    pub missing: Vec<String>,
    /// Every manifest and index that was read: content never changes under its digest, so none is read twice.
    documents: HashMap<Id, Arc<Document>>,
}

/// The content of one repository.
#[derive(Debug, Default)]
pub struct Repository {
    /// Manifest or index by tag, in the order in which tags are listed.
    pub tags: BTreeMap<String, Id>,
    manifests: HashMap<Id, Arc<Document>>,
    /// Configurations and layers.
    blobs: HashSet<Id>,
}

/// What is known of a manifest or index.
#[derive(Debug)]
pub struct Document {
    /// Its digest.
    pub digest: Digest,
    /// Its media type.
    pub media_type: Cow<'static, str>,
    /// Its size in bytes.
    pub size: u64,
    /// What it says it refers to, in the referrers API.
    pub subject: Option<Id>,
    /// Configuration and layers.
    pub blobs: Box<[Id]>,
    children: Box<[Child]>,
    /// Whether it is an artifact of ours.
    own: bool,
    /// Whether its entries are images of a cluster image.
    of_cluster: bool,
}

#[derive(Debug)]
struct Child {
    digest: Digest,
    media_type: Cow<'static, str>,
}

/// The fields of manifests and indexes that say what belongs to them.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Fields {
    media_type: Option<String>,
    artifact_type: Option<String>,
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Vec<Descriptor>,
    #[serde(default)]
    manifests: Vec<Descriptor>,
    subject: Option<Subject>,
}

/// A subject need not be here, so nothing is asked of it but its digest.
#[derive(Deserialize)]
struct Subject {
    digest: String,
}

impl Document {
    fn parse(digest: &Digest, said: &str, bytes: &[u8]) -> Result<Self, oci::Error> {
        let fields: Fields = serde_json::from_slice(bytes).map_err(|source| oci::Error::Json {
            path: digest.to_string(),
            source,
        })?;
        let own = fields
            .artifact_type
            .is_some_and(|artifact_type| artifact_type.starts_with(OWN_ARTIFACTS));
        let named = fields
            .manifests
            .iter()
            .any(|entry| entry.annotations.contains_key(REF_NAME));
        let subject = fields.subject.and_then(|subject| subject.digest.parse().ok());
        Ok(Self {
            digest: digest.clone(),
            media_type: interned(fields.media_type.as_deref().unwrap_or(said)),
            size: bytes.len() as u64,
            subject: subject.as_ref().map(Id::from),
            blobs: fields
                .config
                .into_iter()
                .chain(fields.layers)
                .map(|content| Id::from(&content.digest))
                .collect(),
            // A cluster image is the only index whose entries carry full references: those of an image for several platforms
            // do not.
            of_cluster: own || named,
            own,
            children: fields
                .manifests
                .into_iter()
                .map(|child| Child {
                    media_type: interned(&child.media_type),
                    digest: child.digest,
                })
                .collect(),
        })
    }
}

const DOCUMENTS: [&str; 4] = [
    media_type::MANIFEST,
    media_type::INDEX,
    media_type::DOCKER_MANIFEST,
    media_type::DOCKER_LIST,
];

/// Whether content of this type says what else belongs to it.
fn is_document(media_type: &str) -> bool {
    DOCUMENTS.contains(&media_type)
}

/// Nearly all manifests have one of four types, which need no memory each.
fn interned(text: &str) -> Cow<'static, str> {
    match DOCUMENTS.into_iter().find(|known| *known == text) {
        Some(known) => Cow::Borrowed(known),
        None => Cow::Owned(text.to_owned()),
    }
}

impl Catalog {
    /// Reads `index.json` and the manifests it leads to, as far as `previous` does not know them. An image that cannot be read is
    /// left out and named in [`Catalog::missing`].
    ///
    /// # Errors
    /// When `index.json` itself cannot be read.
    pub fn load(layout: &Layout, previous: &Self) -> Result<Self, oci::Error> {
        Ok(Self::of(layout, &layout.read_index()?, previous))
    }

    /// The catalogue of an `index.json` that was read already.
    pub fn of(layout: &Layout, index: &Index, previous: &Self) -> Self {
        let mut loader = Loader {
            layout,
            previous,
            catalog: Self::default(),
        };
        let (pushed, carried): (Vec<_>, Vec<_>) = index.manifests.iter().partition(|entry| is_pushed(entry));
        loader.add_carried(carried.into_iter(), 0);
        // After the carried ones, because of one name what was pushed is meant.
        for entry in pushed {
            let added = loader.add_image(entry, true);
            loader.note(entry, added);
        }
        loader.catalog
    }

    /// The first of `names` that is carried.
    pub fn find(&self, names: &[String]) -> Option<&Repository> {
        names.iter().find_map(|name| self.repositories.get(name))
    }

    /// Everything that `index.json` leads to, served or not: what must not be removed.
    ///
    /// # Errors
    /// When something that is there cannot be read: then nothing is known to be needless.
    pub fn reachable(&self, layout: &Layout, index: &Index) -> Result<HashSet<Id>, oci::Error> {
        let mut found = HashSet::new();
        let entries = index.manifests.iter();
        let mut ahead: Vec<_> = entries
            .map(|entry| (entry.digest.clone(), is_document(&entry.media_type)))
            .collect();
        while let Some((digest, may_lead_on)) = ahead.pop() {
            let id = Id::from(&digest);
            if !found.insert(id) {
                continue;
            }
            let document = match self.documents.get(&id) {
                Some(document) => Arc::clone(document),
                None if !may_lead_on => continue,
                None => match layout.blobs().read(&digest, MAX_MANIFEST) {
                    Ok(bytes) => Arc::new(Document::parse(&digest, "", &bytes)?),
                    Err(oci::Error::Missing(_)) => continue,
                    Err(error) => return Err(error),
                },
            };
            found.extend(document.blobs.iter());
            let children = document.children.iter();
            ahead.extend(children.map(|child| (child.digest.clone(), is_document(&child.media_type))));
        }
        Ok(found)
    }

    /// Whether any repository has the blob.
    pub fn has_blob(&self, id: &Id) -> bool {
        self.repositories
            .values()
            .any(|repository| repository.blobs.contains(id))
    }
}

/// Whether an entry of `index.json` came by a push.
pub fn is_pushed(entry: &Descriptor) -> bool {
    entry.annotations.contains_key(PUSHED)
}

impl Repository {
    /// The manifest that a tag or digest names.
    pub fn manifest(&self, reference: &str) -> Option<&Arc<Document>> {
        match reference.parse::<Digest>() {
            Ok(digest) => self.manifests.get(&Id::from(&digest)),
            Err(_) => self.manifests.get(self.tags.get(reference)?),
        }
    }

    /// Whether a configuration or layer belongs to a manifest of this repository.
    pub fn has_blob(&self, id: &Id) -> bool {
        self.blobs.contains(id)
    }

    /// Whether a manifest or index is in this repository.
    pub fn has_manifest(&self, id: &Id) -> bool {
        self.manifests.contains_key(id)
    }

    /// The manifests and indexes whose subject is `id`, sorted by digest.
    pub fn referrers(&self, id: &Id) -> Vec<&Arc<Document>> {
        let mut found: Vec<_> = self
            .manifests
            .values()
            .filter(|document| document.subject.as_ref() == Some(id))
            .collect();
        found.sort_unstable_by_key(|document| &document.digest);
        found
    }

    /// A manifest or index of this repository that cannot do without `id`.
    pub fn needing(&self, id: &Id) -> Option<&Arc<Document>> {
        self.manifests.values().find(|document| {
            document.blobs.contains(id) || document.children.iter().any(|child| Id::from(&child.digest) == *id)
        })
    }

    fn merge(&mut self, other: Self, reference: &Reference, digest: &Digest) {
        self.manifests.extend(other.manifests);
        self.blobs.extend(other.blobs);
        if let Some(tag) = reference.tag() {
            self.tags.insert(tag.to_owned(), digest.into());
        }
    }
}

/// A catalogue in the making.
struct Loader<'a> {
    layout: &'a Layout,
    previous: &'a Catalog,
    catalog: Catalog,
}

impl Loader<'_> {
    fn add_carried<'a>(&mut self, entries: impl Iterator<Item = &'a Descriptor>, depth: usize) {
        for entry in entries {
            let added = self.add_one_carried(entry, depth);
            self.note(entry, added);
        }
    }

    fn note(&mut self, entry: &Descriptor, added: Result<(), oci::Error>) {
        if let Err(error) = added {
            let name = entry
                .annotations
                .get(REF_NAME)
                .map_or(entry.digest.as_str(), String::as_str);
            self.catalog.missing.push(format!("{name}: {error}"));
        }
    }

    fn add_one_carried(&mut self, entry: &Descriptor, depth: usize) -> Result<(), oci::Error> {
        if entry.is_index() && depth < MAX_DEPTH && self.document(&entry.digest, &entry.media_type)?.of_cluster {
            let bytes = self.layout.blobs().read(&entry.digest, MAX_MANIFEST)?;
            let index: Index = serde_json::from_slice(&bytes).map_err(|source| oci::Error::Json {
                path: entry.digest.to_string(),
                source,
            })?;
            self.add_carried(index.manifests.iter(), depth + 1);
            return Ok(());
        }
        let own = entry
            .artifact_type
            .as_deref()
            .is_some_and(|artifact_type| artifact_type.starts_with(OWN_ARTIFACTS));
        if own { Ok(()) } else { self.add_image(entry, false) }
    }

    /// Adds an image to the repository that its entry names; entries without a full reference are none of ours.
    fn add_image(&mut self, entry: &Descriptor, as_pushed: bool) -> Result<(), oci::Error> {
        let Some(reference) = entry.reference() else {
            return Ok(());
        };
        let mut found = Repository::default();
        if self.collect(&mut found, &entry.digest, &entry.media_type, as_pushed, 0)? {
            let repository = self.catalog.repositories.entry(reference.repository()).or_default();
            repository.merge(found, &reference, &entry.digest);
        }
        Ok(())
    }

    /// Adds a manifest or index with all that belongs to it; `false` if it is none of a container image.
    fn collect(
        &mut self,
        found: &mut Repository,
        digest: &Digest,
        media_type: &str,
        as_pushed: bool,
        depth: usize,
    ) -> Result<bool, oci::Error> {
        let document = self.document(digest, media_type)?;
        if document.own && !as_pushed {
            return Ok(false);
        }
        found.blobs.extend(document.blobs.iter());
        found.manifests.insert(digest.into(), Arc::clone(&document));
        for child in &document.children {
            // An image may be carried for some of its platforms only.
            if depth < MAX_DEPTH && self.layout.blobs().size(&child.digest).is_some() {
                self.collect(found, &child.digest, &child.media_type, as_pushed, depth + 1)?;
            }
        }
        Ok(true)
    }

    fn document(&mut self, digest: &Digest, media_type: &str) -> Result<Arc<Document>, oci::Error> {
        let id = Id::from(digest);
        if let Some(document) = self.catalog.documents.get(&id) {
            return Ok(Arc::clone(document));
        }
        let known = self.previous.documents.get(&id);
        let document = match known.filter(|known| self.layout.blobs().has(digest, known.size)) {
            Some(known) => Arc::clone(known),
            None => {
                let bytes = self.layout.blobs().read(digest, MAX_MANIFEST)?;
                Arc::new(Document::parse(digest, media_type, &bytes)?)
            }
        };
        self.catalog.documents.insert(id, Arc::clone(&document));
        Ok(document)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Store;

    fn load(store: &Store) -> Catalog {
        Catalog::load(&store.layout, &Catalog::default()).unwrap()
    }

    #[test]
    fn only_images_with_a_full_reference_are_served() {
        let store = Store::new();
        let carried = store.image(b"layer of a carried image");
        let rootfs = store.image(b"layer of the rootfs");
        let index = Index {
            manifests: vec![rootfs.clone(), Store::named(&carried, "quay.io/a/b:1")],
            ..Index::default()
        };
        let cluster = store.index(&index);
        store.list(vec![Store::named(&cluster, "local/native:dev"), rootfs.clone()]);

        let catalog = load(&store);
        assert_eq!(catalog.repositories.keys().collect::<Vec<_>>(), ["quay.io/a/b"]);
        let repository = &catalog.repositories["quay.io/a/b"];
        assert_eq!(
            repository.manifest("1").map(|found| &found.digest),
            Some(&carried.digest)
        );
        assert!(repository.manifest(rootfs.digest.as_str()).is_none());
        assert!(!repository.has_blob(&Id::from(&Digest::of(b"layer of the rootfs"))));
        assert!(catalog.missing.is_empty());
        let index = store.layout.read_index().unwrap();
        let needed = catalog.reachable(&store.layout, &index).unwrap();
        assert!(needed.contains(&Id::from(&Digest::of(b"layer of the rootfs"))));
    }

    #[test]
    fn a_pushed_cluster_image_is_served_as_it_is_and_names_no_other_repository() {
        let store = Store::new();
        let carried = store.image(b"layer of a carried image");
        let index = Index {
            artifact_type: Some(format!("{OWN_ARTIFACTS}cluster-image.v1")),
            manifests: vec![Store::named(&carried, "quay.io/a/b:1")],
            ..Index::default()
        };
        let mut cluster = Store::named(&store.index(&index), "localhost/native:dev");
        cluster.annotations.insert(PUSHED.into(), "true".into());
        store.list(vec![cluster.clone()]);

        let catalog = load(&store);
        assert_eq!(catalog.repositories.keys().collect::<Vec<_>>(), ["localhost/native"]);
        let repository = &catalog.repositories["localhost/native"];
        assert!(repository.has_manifest(&Id::from(&carried.digest)));
        assert_eq!(repository.tags.keys().collect::<Vec<_>>(), ["dev"]);
    }

    #[test]
    fn what_was_pushed_is_meant_where_a_carried_image_has_the_same_name() {
        let store = Store::new();
        let (carried, pushed) = (store.image(b"carried"), store.image(b"pushed"));
        let cluster = store.index(&Index {
            manifests: vec![Store::named(&carried, "a.b/c:1")],
            ..Index::default()
        });
        let mut entry = Store::named(&pushed, "a.b/c:1");
        entry.annotations.insert(PUSHED.into(), "true".into());
        store.list(vec![entry, Store::named(&cluster, "local/native:dev")]);
        let catalog = load(&store);
        let found = catalog.repositories["a.b/c"].manifest("1");
        assert_eq!(found.map(|found| &found.digest), Some(&pushed.digest));
    }

    #[test]
    fn an_image_for_several_platforms_is_served_with_the_platforms_that_are_there() {
        let store = Store::new();
        let here = store.image(b"amd64");
        let absent = Descriptor::of(media_type::MANIFEST, b"never stored");
        let index = store.index(&Index {
            manifests: vec![here.clone(), absent.clone()],
            ..Index::default()
        });
        store.list(vec![Store::named(&index, "docker.io/library/multi:1")]);

        let catalog = load(&store);
        let repository = &catalog.repositories["docker.io/library/multi"];
        assert_eq!(
            repository.manifest("1").map(|found| &*found.media_type),
            Some(media_type::INDEX)
        );
        assert!(repository.manifest(here.digest.as_str()).is_some());
        assert!(repository.manifest(absent.digest.as_str()).is_none());
        assert_eq!(
            repository.needing(&Id::from(&here.digest)).map(|found| &found.digest),
            Some(&index.digest)
        );
    }

    #[test]
    fn a_missing_or_damaged_image_does_not_hide_the_others() {
        let store = Store::new();
        let good = store.image(b"good");
        let bad = store.image(b"bad");
        std::fs::write(store.layout.blobs().path(&bad.digest), b"{}").unwrap();
        let gone = Descriptor::of(media_type::MANIFEST, b"gone");
        store.list(vec![
            Store::named(&bad, "a.b/bad:1"),
            Store::named(&gone, "a.b/gone:1"),
            Store::named(&good, "a.b/good:1"),
        ]);
        let catalog = load(&store);
        assert_eq!(catalog.repositories.keys().collect::<Vec<_>>(), ["a.b/good"]);
        assert_eq!(catalog.missing.len(), 2, "{:?}", catalog.missing);
    }

    #[test]
    fn what_is_known_is_not_read_again_unless_it_is_gone() {
        let store = Store::new();
        let image = store.image(b"layer");
        store.list(vec![Store::named(&image, "a.b/c:1")]);
        let first = load(&store);
        let again = Catalog::load(&store.layout, &first).unwrap();
        let document = |catalog: &Catalog| Arc::clone(catalog.repositories["a.b/c"].manifest("1").unwrap());
        assert!(Arc::ptr_eq(&document(&first), &document(&again)));
        store.layout.blobs().remove(&image.digest).unwrap();
        let gone = Catalog::load(&store.layout, &again).unwrap();
        assert!(gone.repositories.is_empty() && gone.missing.len() == 1);
    }

    #[test]
    fn references_pinned_to_a_digest_need_no_tag() {
        let store = Store::new();
        let image = store.image(b"pinned");
        store.list(vec![Store::named(&image, &format!("a.b/c@{}", image.digest))]);
        let catalog = load(&store);
        let repository = &catalog.repositories["a.b/c"];
        assert!(repository.tags.is_empty() && repository.manifest(image.digest.as_str()).is_some());
    }

    #[test]
    fn a_digest_and_its_short_form_are_the_same() {
        let digest = Digest::of(b"x");
        assert_eq!(Id::from(&digest).hex(), digest.hex());
    }
}
