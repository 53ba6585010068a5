//! Against OpenSSH's own reading of its configuration: `ssh -G`. Needs `ssh` (Debian: openssh-client).

#![allow(clippy::unwrap_used)] // a failing step fails the test

use std::{fs, path::Path, process::Command};

use ssh::{Aliases, Hop};

/// What `ssh -G` says for `name`: all values of a setting.
fn theirs(config: &Path, name: &str, setting: &str) -> Vec<String> {
    let output = Command::new("ssh")
        .arg("-G")
        .arg("-F")
        .arg(config)
        .arg(name)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let of = |line: &str| line.strip_prefix(setting)?.strip_prefix(' ').map(str::to_owned);
    text.lines().filter_map(of).collect()
}

fn hop(hop: &Hop) -> String {
    let user = hop.user.as_ref().map(|user| format!("{user}@")).unwrap_or_default();
    let port = hop.port.map(|port| format!(":{port}")).unwrap_or_default();
    format!("{user}{}{port}", hop.host)
}

#[test]
fn a_configuration_means_what_it_means_to_openssh() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::write(at("1.inc"), "User included\nHost b*\n  Port 1\n").unwrap();
    fs::write(at("2.inc"), "Port 2\nUserKnownHostsFile /kh/2 \"/kh/with blank\"\n").unwrap();
    let text = format!(
        "# comment\nuser=first # of all\nHost a* !ab 10.0.0.?\n\tHostName = %h.example\n  IdentityFile \"/k/a b\"\n  ProxyJump me@j1:2200,j2\n\
         Host b* \"c d\"\n  Include {0}/*.inc\n  Port 9\n  HostName \"b-%n\"\nHost ab\n  ProxyJump none\nMatch all\n  Port 2222\n  \
         IdentityFile /k/all\n  ProxyJump hub\n  UserKnownHostsFile /kh/all\n",
        dir.path().display()
    );
    // `ssh -G` tells its defaults too, so every name is given every setting.
    fs::write(at("config"), text.replace("%n", "x")).unwrap();
    let (aliases, warnings) = Aliases::load(&at("config")).unwrap();
    assert!(warnings.is_empty(), "{warnings:?}");
    for name in ["a1", "ab", "b1", "bb", "c", "10.0.0.7", "10.0.0.77", "hub"] {
        let ours = aliases.lookup(name, None);
        let theirs = |setting| theirs(&at("config"), name, setting);
        let paths = |paths: &[std::path::PathBuf]| paths.iter().map(|p| p.display().to_string()).collect::<Vec<_>>();
        assert_eq!(vec![ours.host_name.clone()], theirs("hostname"), "{name}");
        assert_eq!(vec![ours.port.unwrap().to_string()], theirs("port"), "{name}");
        assert_eq!(ours.user.iter().cloned().collect::<Vec<_>>(), theirs("user"), "{name}");
        assert_eq!(paths(&ours.identity_files), theirs("identityfile"), "{name}");
        assert_eq!(
            vec![paths(&ours.known_hosts).join(" ")],
            theirs("userknownhostsfile"),
            "{name}"
        );
        let hops: Vec<String> = ours.jumps.iter().flatten().map(hop).collect();
        let jump = if hops.is_empty() {
            Vec::new()
        } else {
            vec![hops.join(",")]
        };
        // OpenSSH leaves out a jump through itself only when it connects.
        let expected = if name == "hub" { Vec::new() } else { theirs("proxyjump") };
        assert_eq!(jump, expected, "{name}");
    }
}
