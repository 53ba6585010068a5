//! The CNI configuration of this node (CNI specification 0.4.0, which every runtime and plugin in use understands).
//!
//! `ptp` gives each pod a pair of links of its own; there is no bridge, so a packet between two pods of a node is routed like any
//! other. Addresses given out are noted below `/run`: after a reboot no pod is left that could hold one.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
};

use crate::Cidr;

/// The file's name: the first in order, so that it wins over what a distribution may have left.
const FILE: &str = "10-installer.conflist";
/// Where `host-local` notes addresses.
pub const ADDRESSES: &str = "/run/installer/cni";

/// The configuration's text.
pub fn text(pods: Cidr, mtu: u32) -> String {
    let document = serde_json::json!({
        "cniVersion": "0.4.0",
        "name": "installer",
        "plugins": [{
            "type": "ptp",
            "mtu": mtu,
            "ipMasq": false,
            "ipam": {
                "type": "host-local",
                "dataDir": ADDRESSES,
                "ranges": [[{"subnet": pods.to_string()}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }],
    });
    format!("{document:#}\n")
}

/// The file's path in the folder of CNI configurations.
pub fn path(dir: &Path) -> PathBuf {
    dir.join(FILE)
}

/// Replaces the file in one step, if it differs. Tells whether it did.
pub fn write(dir: &Path, text: &str) -> io::Result<bool> {
    let path = path(dir);
    if std::fs::read(&path).is_ok_and(|present| present == text.as_bytes()) {
        return Ok(false);
    }
    std::fs::create_dir_all(dir)?;
    // Runtimes read *.conf, *.conflist and *.json: not this name.
    let new = dir.join(format!(".{FILE}.new"));
    let mut file = std::fs::File::create(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&new, &path)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_is_what_the_plugins_read() {
        let document: serde_json::Value = serde_json::from_str(&text("100.64.1.0/24".parse().unwrap(), 1450)).unwrap();
        assert_eq!(document["name"], "installer");
        let plugin = &document["plugins"][0];
        assert_eq!(
            (plugin["type"].as_str(), plugin["mtu"].as_u64()),
            (Some("ptp"), Some(1450))
        );
        assert_eq!(plugin["ipam"]["ranges"][0][0]["subnet"], "100.64.1.0/24");
    }

    #[test]
    fn the_file_is_written_only_when_it_differs_and_leaves_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let net_d = dir.path().join("net.d");
        assert!(write(&net_d, "a").unwrap());
        assert!(!write(&net_d, "a").unwrap());
        assert!(write(&net_d, "b").unwrap());
        let names: Vec<_> = std::fs::read_dir(&net_d)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(names, [FILE]);
    }
}
