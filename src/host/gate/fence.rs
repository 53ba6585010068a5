//! Putting up and taking down the fence ([`crate::fence`]).

use super::{Decision, Gate, Todo, change, unchanged};
use crate::{
    Error, Result,
    effect::{Action, Fence},
    fence::{TABLE, check, connections, rules},
    fsops,
    journal::Entry,
    netlink,
    system::must,
};

const WHAT: &str = "packet filter inet installer-airgap";

/// The table, if it is there.
fn there() -> Result<Option<netlink::Table>> {
    let tables = netlink::tables().map_err(|e| Error::failed(format!("nftables: {e}")))?;
    Ok(tables
        .into_iter()
        .find(|table| table.label() == format!("inet {TABLE}")))
}

impl Gate {
    pub(super) fn decide_fence(&self, fence: &Fence) -> Result<Decision> {
        check(fence)?;
        // A fence of this very run goes on counting.
        if self.root.is_real() && there()?.is_some() {
            let text = must(self.system.as_ref(), &["nft", "list", "table", "inet", TABLE])?;
            if text.contains(&format!("counter left_{} ", fence.token)) {
                return Ok(unchanged(WHAT));
            }
        }
        let detail = "for the time of this run nothing leaves the cluster's addresses";
        Ok((change(WHAT, Action::Create, detail), Some(Todo::Fence(fence.clone()))))
    }

    pub(super) fn put_fence(&mut self, fence: &Fence) -> Result<()> {
        self.note([Entry::Table { name: TABLE.to_owned() }])?;
        let read = |name: &str| Ok::<_, Error>(fsops::text(self.root.path(name)?));
        let (tcp, tcp6) = (read("/proc/net/tcp")?, read("/proc/net/tcp6")?);
        let open = connections(&[&tcp, &tcp6]);
        let file = self.home()?.join("airgap.nft");
        let path = file.to_string_lossy().into_owned();
        let put = |units| {
            fsops::write_atomic(&file, rules(fence, &open, units).as_bytes(), 0o600, None)?;
            must(self.system.as_ref(), &["nft", "-f", &path]).map(drop)
        };
        // Without control groups of version 2, or the kernel's part for them, users are named but no units.
        let done = put(true).or_else(|_| put(false));
        fsops::sweep(&file)?;
        done
    }

    pub(super) fn decide_no_fence(&self) -> Result<Decision> {
        if !self.root.is_real() || there()?.is_none() {
            return Ok(unchanged(WHAT));
        }
        Ok((change(WHAT, Action::Remove, ""), Some(Todo::NoFence)))
    }

    /// Takes the fence down; none is fine.
    pub(crate) fn remove_fence(&self) -> Result<()> {
        if !self.root.is_real() {
            return Ok(());
        }
        match there()? {
            Some(table) => {
                netlink::delete_table(&table).map_err(|e| Error::failed(format!("removing inet {TABLE}: {e}")))
            }
            None => Ok(()),
        }
    }
}
