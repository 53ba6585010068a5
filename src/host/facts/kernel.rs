//! Which features the kernel has: loaded, built in, or loadable.

use std::{collections::BTreeMap, fs::File, io::Read as _};

use crate::fsops::{Root, text};

/// Features by module and by configuration option.
const FEATURES: &[(&str, &str)] = &[
    ("overlay", "CONFIG_OVERLAY_FS"),
    ("vxlan", "CONFIG_VXLAN"),
    ("nf_tables", "CONFIG_NF_TABLES"),
    ("veth", "CONFIG_VETH"),
    ("br_netfilter", "CONFIG_BRIDGE_NETFILTER"),
    ("nf_conntrack", "CONFIG_NF_CONNTRACK"),
    ("nft_nat", "CONFIG_NFT_NAT"),
    ("nft_masq", "CONFIG_NFT_MASQ"),
];

/// What the kernel says about itself.
struct Kernel {
    filesystems: String,
    builtin: String,
    loadable: String,
    config: String,
}

/// Feature → whether it can be had.
pub(super) fn features(root: &Root) -> BTreeMap<String, bool> {
    let kernel = Kernel::read(root);
    FEATURES
        .iter()
        .map(|(module, option)| {
            let there = loaded(root, module) || kernel.built_in(module, option) || mentions(&kernel.loadable, module);
            ((*module).to_owned(), there)
        })
        .collect()
}

/// Whether a module is loaded or part of the kernel.
pub(crate) fn module_present(root: &Root, module: &str) -> bool {
    let option = FEATURES
        .iter()
        .find(|(name, _)| *name == module)
        .map_or("", |(_, option)| option);
    loaded(root, module) || Kernel::read(root).built_in(module, option)
}

fn loaded(root: &Root, module: &str) -> bool {
    let name = module.replace('-', "_");
    root.path(&format!("/sys/module/{name}")).is_ok_and(|p| p.exists())
}

/// Lines begin with the module's file; its name may be written with dashes.
fn mentions(list: &str, module: &str) -> bool {
    let names = [format!("/{module}.ko"), format!("/{}.ko", module.replace('_', "-"))];
    list.lines()
        .filter_map(|line| line.split(':').next())
        .any(|file| names.iter().any(|n| file.contains(n)))
}

impl Kernel {
    fn read(root: &Root) -> Self {
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        let read = |path: String| root.path(&path).map(text).unwrap_or_default();
        let mut config = String::new();
        if let Some(file) = root.path("/proc/config.gz").ok().and_then(|path| File::open(path).ok()) {
            let _ = flate2::read::GzDecoder::new(file)
                .take(4 << 20)
                .read_to_string(&mut config);
        }
        if config.is_empty() {
            config = read(format!("/boot/config-{release}"));
        }
        Self {
            filesystems: read("/proc/filesystems".to_owned()),
            builtin: read(format!("/lib/modules/{release}/modules.builtin")),
            loadable: read(format!("/lib/modules/{release}/modules.dep")),
            config,
        }
    }

    fn built_in(&self, module: &str, option: &str) -> bool {
        mentions(&self.builtin, module)
            || self.filesystems.split_whitespace().any(|f| f == module)
            || (!option.is_empty() && self.config.lines().any(|l| l.strip_suffix("=y") == Some(option)))
    }
}
