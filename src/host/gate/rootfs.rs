//! Deciding about the rootfs in use and the image layout, and switching them.

use super::{Decision, Gate, Todo, change, unchanged};
use crate::{
    CURRENT, Error, Result,
    effect::{Action, Rootfs},
    fsops::{self, There},
    proto::FaultKind,
    unpack,
};

impl Gate {
    /// `<dataRoot>/<cluster>/rootfs/<hex12>` as the host names it.
    fn rootfs_dir(&self, rootfs: &Rootfs) -> String {
        format!("{}/rootfs/{}", self.scope.dir(), rootfs.content.short())
    }

    pub(super) fn decide_rootfs(&self, rootfs: &Rootfs) -> Result<Decision> {
        let dir = self.rootfs_dir(rootfs);
        let what = format!("rootfs {}", rootfs.content.short());
        let mut steps = Vec::new();
        if !matches!(fsops::look(&self.root.path(&dir)?)?, There::Dir(_)) {
            steps.push("unpack".to_owned());
        }
        if rootfs.switch {
            let (link, todo) = self.decide_link(CURRENT, &dir)?;
            if todo.is_some() {
                steps.push(format!("{CURRENT} {}", link.detail));
            }
        }
        if steps.is_empty() {
            return Ok(unchanged(what));
        }
        let action = if steps[0] == "unpack" {
            Action::Create
        } else {
            Action::Modify
        };
        Ok((
            change(what, action, steps.join(", ")),
            Some(Todo::Rootfs(rootfs.clone())),
        ))
    }

    pub(super) fn unpack(&mut self, rootfs: &Rootfs) -> Result<()> {
        let dir = self.rootfs_dir(rootfs);
        let at = self.root.path(&dir)?;
        if !matches!(fsops::look(&at)?, There::Dir(_)) {
            // Nothing may be unpacked before the home is recorded as ours.
            self.journal()?;
            unpack::rootfs(self.layout()?.blobs(), &rootfs.layers, &at, &self.closing)?;
        }
        if rootfs.switch {
            self.put_link(CURRENT, &dir)?;
        }
        Ok(())
    }

    pub(super) fn decide_layout(&self, index: &oci::Index) -> Result<Decision> {
        let layout = self.layout()?;
        let what = layout.index_path().display().to_string();
        if layout.index_path().exists() && layout.read_index()? == *index {
            return Ok(unchanged(what));
        }
        let action = if layout.index_path().exists() {
            Action::Modify
        } else {
            Action::Create
        };
        let detail = oci::counted(index.manifests.len(), "manifest");
        let todo = match index.manifests.iter().find(|d| !layout.blobs().has(&d.digest, d.size)) {
            None => Todo::Layout(index.clone()),
            Some(missing) => Todo::Refuse(Error::new(
                FaultKind::NotFound,
                format!(
                    "the index names blob {} which this host lacks; send the blobs first",
                    missing.digest
                ),
            )),
        };
        Ok((change(what, action, detail), Some(todo)))
    }

    pub(super) fn put_layout(&mut self, index: &oci::Index) -> Result<()> {
        self.journal()?;
        self.note_of_run(&format!("{}/index.json", self.scope.dir()))?;
        let layout = oci::Layout::create(self.home()?)?;
        layout.write_index(index).map_err(Error::from)
    }
}
