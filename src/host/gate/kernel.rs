//! Deciding about and changing kernel parameters, modules and swap.

use std::{os::unix::fs::MetadataExt as _, path::PathBuf};

use super::{Decision, Gate, Todo, change, unchanged};
use crate::{Error, Result, effect::Action, fsops, journal::Entry, system::must};

impl Gate {
    fn sysctl_path(&self, key: &str) -> Result<PathBuf> {
        // Interface names may hold dots; as in sysctl(8) a key with slashes is taken literally.
        let relative = if key.contains('/') {
            key.to_owned()
        } else {
            key.replace('.', "/")
        };
        self.root.path(&format!("/proc/sys/{relative}"))
    }

    pub(super) fn decide_sysctl(&self, key: &str, value: &str) -> Result<Decision> {
        let what = format!("sysctl {key}");
        let path = self.sysctl_path(key)?;
        let Some(old) = fsops::read_small(&path, 64 << 10)? else {
            let why = Error::invalid(format!("the kernel has no parameter {key} (is its module loaded?)"));
            return Ok((
                change(what, Action::Modify, format!("→ {value}")),
                Some(Todo::Refuse(why)),
            ));
        };
        let old = String::from_utf8_lossy(&old).trim().to_owned();
        // The kernel shows several numbers with tabs.
        if old.split_whitespace().eq(value.split_whitespace()) {
            return Ok(unchanged(what));
        }
        let todo = Todo::Sysctl {
            key: key.to_owned(),
            value: value.to_owned(),
        };
        Ok((change(what, Action::Modify, format!("{old} → {value}")), Some(todo)))
    }

    pub(super) fn set_sysctl(&mut self, key: &str, value: &str) -> Result<()> {
        let path = self.sysctl_path(key)?;
        let old = fsops::text(&path).trim().to_owned();
        self.note([Entry::Sysctl {
            key: key.to_owned(),
            value: old,
        }])?;
        std::fs::write(&path, value).map_err(Error::io(&path))
    }

    pub(super) fn decide_module(&self, name: &str) -> Result<Decision> {
        let what = format!("module {name}");
        if name.is_empty()
            || !name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
        {
            return Err(Error::invalid(format!("'{name}' is no module name")));
        }
        if crate::facts::kernel::module_present(&self.root, name) {
            return Ok(unchanged(what));
        }
        Ok((
            change(what, Action::Create, "load"),
            Some(Todo::Module { name: name.to_owned() }),
        ))
    }

    pub(super) fn load_module(&mut self, name: &str) -> Result<()> {
        self.note([Entry::Module { name: name.to_owned() }])?;
        must(self.system.as_ref(), &["modprobe", "--", name]).map(drop)
    }

    pub(super) fn decide_swap(&self) -> Result<Decision> {
        let areas = self.swap_areas()?;
        let fstab = self.fstab_without_swap()?;
        if areas.is_empty() && fstab.is_none() {
            return Ok(unchanged("swap"));
        }
        let names: Vec<&str> = areas.iter().map(|(name, _)| name.as_str()).collect();
        Ok((change("swap", Action::Remove, names.join(" ")), Some(Todo::SwapOff)))
    }

    pub(super) fn swap_off(&mut self) -> Result<()> {
        let areas = self.swap_areas()?;
        if let Some(fstab) = self.fstab_without_swap()? {
            let path = self.root.path("/etc/fstab")?;
            let mode = std::fs::metadata(&path).map_err(Error::io(&path))?.mode();
            self.put_file("/etc/fstab", fstab.as_bytes(), mode, None)?;
        }
        if areas.is_empty() {
            return Ok(());
        }
        self.note([Entry::Swap { areas: areas.clone() }])?;
        for (area, _) in areas {
            must(self.system.as_ref(), &["swapoff", &area])?;
        }
        Ok(())
    }

    /// `/proc/swaps`: device or file, and priority.
    fn swap_areas(&self) -> Result<Vec<(String, i32)>> {
        let text = fsops::text(self.root.path("/proc/swaps")?);
        let area = |line: &str| {
            let mut words = line.split_whitespace();
            let name = words.next()?;
            Some((fsops::unescape(name), words.next_back()?.parse().ok()?))
        };
        Ok(text.lines().skip(1).filter_map(area).collect())
    }

    /// `/etc/fstab` with its swap lines commented out, if it has any.
    fn fstab_without_swap(&self) -> Result<Option<String>> {
        let text = fsops::text(self.root.path("/etc/fstab")?);
        let new = comment_swap(&text);
        Ok((new != text).then_some(new))
    }
}

fn comment_swap(fstab: &str) -> String {
    let is_swap = |line: &str| !line.trim_start().starts_with('#') && line.split_whitespace().nth(2) == Some("swap");
    fstab
        .split_inclusive('\n')
        .map(|line| {
            if is_swap(line) {
                format!("# installer: {line}")
            } else {
                line.to_owned()
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_swap_lines_of_fstab_become_comments() {
        let fstab = "UUID=1 / ext4 defaults 0 1\n/swap none swap sw 0 0\n# /old none swap\nUUID=2 swap ext4 x 0 0\n";
        let expected = "UUID=1 / ext4 defaults 0 1\n# installer: /swap none swap sw 0 0\n# /old none swap\nUUID=2 swap ext4 x 0 0\n";
        assert_eq!(comment_swap(fstab), expected);
        assert_eq!(comment_swap(expected), expected);
    }
}
