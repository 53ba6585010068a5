//! Where objects live: keys, and the connection to etcd.

mod etcd;
pub use etcd::{Cas, Etcd, EtcdConfig, StoreError, Stored, prefix_end};

/// Everything the server owns in etcd lies below this prefix.
pub const ROOT: &str = "/registry/";

/// Name of an API group in keys; the legacy group has an empty name, which a path segment cannot be.
pub fn group_segment(group: &str) -> &str {
    if group.is_empty() { "core" } else { group }
}

/// Prefix of all objects of a resource: `/registry/<group>/<plural>/`.
pub fn prefix(group: &str, plural: &str) -> String {
    format!("{ROOT}{}/{plural}/", group_segment(group))
}
