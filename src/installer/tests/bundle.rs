//! A bundle for support from a real OpenSSH server on loopback. Needs root and `/usr/sbin/sshd` (Debian: openssh-server).

#![allow(clippy::unwrap_used)] // a failing step fails the test

use std::{
    fs,
    net::TcpListener,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Serves connections for as long as the test runs; the port. The key to log in with is `key` in the folder.
fn sshd(dir: &Path) -> u16 {
    assert!(
        Path::new("/usr/sbin/sshd").exists(),
        "this test needs an OpenSSH server: apt-get install openssh-server"
    );
    fs::create_dir_all("/run/sshd").unwrap();
    for key in ["host", "key"] {
        let made = Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(dir.join(key))
            .status();
        assert!(made.unwrap().success());
    }
    let config = dir.join("config");
    let text = format!(
        "HostKey {0}/host\nAuthorizedKeysFile {0}/key.pub\nStrictModes no\nUsePAM no\nPermitRootLogin yes\nLogLevel QUIET\n",
        dir.display()
    );
    fs::write(&config, text).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (input, output) = (stream.try_clone().unwrap(), stream);
            let mut sshd = Command::new("/usr/sbin/sshd");
            sshd.arg("-i").arg("-f").arg(&config).stderr(Stdio::null());
            sshd.stdin(OwnedFd::from(input)).stdout(OwnedFd::from(output));
            let mut child = sshd.spawn().unwrap();
            std::thread::spawn(move || child.wait());
        }
    });
    port
}

fn files(dir: &Path, all: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap().flatten() {
        match entry.path() {
            path if path.is_dir() => files(&path, all),
            path => all.push(path),
        }
    }
}

#[test]
fn a_host_without_clusterd_is_still_asked_and_a_password_of_the_clusterfile_is_nowhere() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path();
    let port = sshd(dir);
    // Something that the host is sure to say is called a password here: it must not come through.
    let release = Command::new("uname").arg("-r").output().unwrap();
    let secret = String::from_utf8(release.stdout).unwrap().trim().to_owned();
    let clusterfile = format!(
        "apiVersion: sealer.io/v2\nkind: Cluster\nmetadata: {{name: demo}}\nspec:\n  image: a/b\n  ssh: {{port: {port}, pk: key, sudoPasswd: '{secret}'}}\n  hosts: [{{ips: [127.0.0.1], roles: [master]}}]\n"
    );
    fs::write(dir.join("Clusterfile"), clusterfile).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_installer"))
        .args([
            "--accept-new-host-keys",
            "--known-hosts",
            "known",
            "support-bundle",
            "-o",
            "b.tar.gz",
        ])
        .current_dir(dir)
        .env("HOME", dir)
        .env_remove("XDG_STATE_HOME")
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "clusterd is not there: {stderr}");
    assert!(stderr.contains("run installer apply first"), "{stderr}");
    fs::create_dir(dir.join("out")).unwrap();
    let tar = Command::new("tar")
        .args(["xzf", "../b.tar.gz", "--strip-components=1"])
        .current_dir(dir.join("out"))
        .status();
    assert!(tar.unwrap().success());
    let mut all = Vec::new();
    files(&dir.join("out"), &mut all);
    for path in &all {
        let text = fs::read_to_string(path).unwrap();
        assert!(!text.contains(&secret), "{} has the password", path.display());
    }
    let host = |name: &str| fs::read_to_string(dir.join("out/hosts/127.0.0.1").join(name)).unwrap();
    assert!(host("uname.txt").contains("Linux") && host("uname.txt").contains("(redacted)"));
    assert!(host("mounts.txt").contains("/proc") && host("disks.txt").contains("Filesystem"));
    assert!(host("clusterd.failed.txt").contains("nothing of this installer is there"));
    assert!(dir.join("out/cluster/not-reached.failed.txt").exists() && dir.join("out/summary.json").exists());
    // What is left out of the bundle is left out of the log as well.
    let mut logs = Vec::new();
    files(&dir.join(".local/state/installer/logs"), &mut logs);
    assert_eq!(logs.len(), 1);
    assert!(!fs::read_to_string(&logs[0]).unwrap().contains(&secret));
}
