//! The tree that every host starts from: Debian's own minimal system with systemd and sshd, and nothing a cluster needs.

use crate::{PASSWORD, run};
use anyhow::{Context, Result};
use sha2::Digest as _;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

const PACKAGES: &str = "systemd,systemd-sysv,dbus,openssh-server,iproute2,procps,kmod,sudo";

/// What is done to the fresh tree (`$1`): accounts, sshd, and no leftovers that hosts would share.
const CUSTOMIZE: &str = r#"
set -eu
echo "root:@PASSWORD@" | chroot "$1" chpasswd
for user in admin ops; do
    chroot "$1" useradd --create-home --shell /bin/bash "$user"
    echo "$user:@PASSWORD@" | chroot "$1" chpasswd
done
echo 'admin ALL=(ALL) ALL' > "$1/etc/sudoers.d/admin"
echo 'ops ALL=(ALL) NOPASSWD: ALL' > "$1/etc/sudoers.d/ops"
chmod 440 "$1"/etc/sudoers.d/admin "$1"/etc/sudoers.d/ops
# Control groups of version 1 do not tell the systemd of a host without a kernel of its own when they are empty, so that stopping
# containers takes as long as it may.
mkdir -p "$1/etc/systemd/system.conf.d"
printf '[Manager]\nDefaultTimeoutStopSec=10s\n' > "$1/etc/systemd/system.conf.d/lab.conf"
printf 'PermitRootLogin yes\nUseDNS no\nHostKey /etc/ssh/ssh_host_ed25519_key\nMaxStartups 100\n' > "$1/etc/ssh/sshd_config.d/lab.conf"
rm -f "$1"/etc/ssh/ssh_host_* "$1"/etc/machine-id "$1"/etc/resolv.conf "$1"/etc/hostname
: > "$1/etc/machine-id"
ln -sf /lib/systemd/system/multi-user.target "$1/etc/systemd/system/default.target"
for unit in getty.target systemd-timesyncd.service systemd-resolved.service apt-daily.timer apt-daily-upgrade.timer \
    dpkg-db-backup.timer e2scrub_all.timer fstrim.timer systemd-udevd.service systemd-udev-trigger.service \
    systemd-udevd-kernel.socket systemd-udevd-control.socket console-getty.service systemd-networkd.service \
    motd-news.timer systemd-tmpfiles-clean.timer e2scrub_reap.service; do
    ln -sf /dev/null "$1/etc/systemd/system/$unit"
done
"#;

/// Where the tree that fits this version of the recipe lies.
pub(crate) fn tree(state: &Path) -> PathBuf {
    let mut hasher = sha2::Sha256::new();
    hasher.update(PACKAGES);
    hasher.update(CUSTOMIZE);
    state.join(format!("base-{}", &hex::encode(hasher.finalize())[..12]))
}

/// Makes the tree if it is not there and returns its path.
pub(crate) fn ensure(state: &Path) -> Result<PathBuf> {
    let tree = tree(state);
    if tree.exists() {
        return Ok(tree);
    }
    eprintln!("making the lab's base tree with mmdebstrap (once, about 40 s)");
    let partial = tree.with_extension(format!("partial{}", std::process::id()));
    let hook = state.join(format!("customize{}.sh", std::process::id()));
    fs::write(&hook, CUSTOMIZE.replace("@PASSWORD@", PASSWORD))?;
    let result = bootstrap(&partial, &hook);
    fs::remove_file(&hook)?;
    if result.is_err() && partial.exists() {
        fs::remove_dir_all(&partial)?;
    }
    result?;
    match fs::rename(&partial, &tree) {
        // Another run was faster; its tree is as good.
        Err(_) if tree.exists() => fs::remove_dir_all(&partial)?,
        other => other?,
    }
    Ok(tree)
}

fn bootstrap(tree: &Path, hook: &Path) -> Result<()> {
    let release = fs::read_to_string("/etc/os-release").context("cannot tell this machine's release")?;
    let codename = release
        .lines()
        .find_map(|l| l.strip_prefix("VERSION_CODENAME="))
        .unwrap_or("bookworm")
        .trim_matches('"');
    let mut command = Command::new("mmdebstrap");
    command.args([
        "--variant=minbase",
        "--format=directory",
        &format!("--include={PACKAGES}"),
    ]);
    for unneeded in ["man", "doc", "locale", "info"] {
        command.arg(format!("--dpkgopt=path-exclude=/usr/share/{unneeded}/*"));
    }
    command.arg(format!("--customize-hook=sh {} \"$1\"", hook.display()));
    run::check(command.arg(codename).arg(tree)).context("mmdebstrap failed (apt-get install mmdebstrap)")
}
