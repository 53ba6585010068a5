use super::*;
use crate::testing::site;
use host::facts::{Disk, Installed, Listener, Route};

const NOW: i64 = 1_700_000_000_000;

fn ready() -> Site {
    let mut site = site();
    for seat in &mut site.seats {
        seat.facts.time_ms = NOW;
    }
    site
}

fn looked() -> Looked {
    Looked {
        now_ms: NOW,
        ..Looked::default()
    }
}

fn found(change: impl FnOnce(&mut Site)) -> Vec<(&'static str, Severity)> {
    let mut site = ready();
    change(&mut site);
    look(&site, &looked(), &[])
        .iter()
        .map(|finding| (finding.check, finding.severity))
        .collect()
}

#[test]
fn good_hosts_have_no_findings() {
    assert_eq!(found(|_| {}), []);
}

#[test]
fn each_trouble_is_found_by_its_name() {
    use Severity::{Error, Warning};
    type Case = (&'static str, Severity, fn(&mut Site));
    let cases: &[Case] = &[
        ("arch", Error, |s| s.seats[1].facts.arch = "arm64".into()),
        ("systemd", Error, |s| s.seats[1].facts.systemd.version = 0),
        ("cgroups", Error, |s| s.seats[1].facts.cgroup.controllers.clear()),
        ("kernel", Error, |s| {
            let _ = s.seats[1].facts.features.insert("overlay".into(), false);
        }),
        ("memory", Error, |s| s.seats[0].facts.memory_total = 100 << 20),
        ("disk", Error, |s| {
            s.seats[0].facts.disks.push(Disk {
                path: "/x".into(),
                free: 1 << 20,
                ..Disk::default()
            })
        }),
        ("swap", Warning, |s| s.seats[0].facts.swaps.push("/dev/sda2".into())),
        ("clock", Error, |s| s.seats[0].facts.time_ms += 120_000),
        ("clock", Warning, |s| s.seats[0].facts.time_ms -= 8_000),
        ("names", Error, |s| s.seats[1].name = "m1".into()),
        ("names", Error, |s| s.seats[1].name = "under_score".into()),
        ("names", Error, |s| s.seats[1].name = "localhost".into()),
        ("names", Error, |s| s.seats[1].name = "n".repeat(64)),
        ("machine-id", Error, |s| s.seats[1].facts.machine_id = "id-m1".into()),
        ("address", Error, |s| s.seats[1].facts.addresses.clear()),
        ("cidr", Error, |s| {
            s.seats[1].facts.routes.push(Route {
                destination: "100.64.3.0/24".into(),
                ..Route::default()
            })
        }),
        ("ports", Error, |s| {
            s.seats[0].facts.listeners.push(Listener {
                port: 6443,
                process: "nginx".into(),
                ..Listener::default()
            })
        }),
        ("leftovers", Error, |s| {
            s.seats[1].facts.leftovers.push("/etc/kubernetes".into())
        }),
        ("leftovers", Error, |s| {
            s.seats[1].facts.installed.push(Installed {
                cluster: "other".into(),
                ..Installed::default()
            });
        }),
    ];
    type Warned = (&'static str, fn(&mut Site));
    let warned: &[Warned] = &[
        ("fsync", |s| s.seats[0].facts.fsync_us = Some(40_000)),
        ("entropy", |s| s.seats[1].facts.entropy = 60),
        ("dns", |s| s.seats[1].facts.nameservers = vec!["10.0.0.53".into(); 4]),
        ("dns", |s| s.seats[1].facts.nameservers = vec!["127.0.0.53".into()]),
        ("dns", |s| {
            s.seats[1].facts.nameservers = vec!["127.0.0.53".into()];
            s.seats[1].facts.resolved_nameservers = vec!["10.0.0.53".into(); 4];
        }),
        ("firewall", |s| s.seats[1].facts.firewalls.push("ufw".into())),
        ("firewall", |s| {
            let _ = s.seats[1]
                .facts
                .runtimes
                .insert("docker".into(), "/run/docker.sock".into());
        }),
        ("time-zone", |s| {
            for (seat, zone) in s.seats.iter_mut().zip(["UTC", "Europe/Paris"]) {
                seat.facts.time_zone = zone.into();
            }
        }),
        ("mtu", |s| {
            for (seat, mtu) in s.seats.iter_mut().zip([1500, 9000]) {
                seat.facts.addresses[0].mtu = mtu;
            }
        }),
    ];
    for (check, change) in warned {
        assert_eq!(found(change), [(*check, Warning)], "{check}");
    }
    assert_eq!(
        found(|s| s.seats[1].facts.fsync_us = Some(40_000)),
        [],
        "nodes have no etcd"
    );
    for (check, severity, change) in cases {
        assert_eq!(found(change), [(*check, *severity)], "{check}");
    }
}

#[test]
fn a_host_of_ours_may_have_what_we_made() {
    let found = found(|site| {
        let facts = &mut site.seats[0].facts;
        facts.installed.push(Installed {
            cluster: "demo".into(),
            ..Installed::default()
        });
        facts.leftovers.push("/etc/kubernetes".into());
        facts.listeners.push(Listener {
            port: 6443,
            ..Listener::default()
        });
        facts.routes.push(Route {
            destination: "100.64.1.0/24".into(),
            ..Route::default()
        });
    });
    assert_eq!(found, []);
}

#[test]
fn two_hosts_with_a_name_that_none_may_have_are_told_once_each() {
    let found = found(|site| {
        for seat in &mut site.seats {
            seat.name = "localhost".into();
        }
    });
    assert_eq!(found, [("names", Severity::Error); 2]);
}

#[test]
fn systemd_resolved_is_no_trouble_where_its_own_servers_are_known() {
    let resolved = |site: &mut Site| {
        for seat in &mut site.seats {
            seat.facts.nameservers = vec!["127.0.0.53".into()];
            seat.facts.resolved_nameservers = vec!["10.0.0.53".into()];
        }
    };
    assert_eq!(found(resolved), []);
    let chosen = |site: &mut Site| {
        site.seats[1].facts.nameservers = vec!["127.0.0.1".into()];
        let file = "/etc/installer/resolv.conf".into();
        let _ = site.kubeadm.kubelet.insert("resolvConf".into(), file);
    };
    assert_eq!(
        found(chosen),
        [],
        "a file that the Clusterfile names is not looked into"
    );
}

/// Ten of a hundred GiB are free below the data root, so many of a hundred below the agent's folder.
fn with_disks(site: &mut Site, agent: u64) {
    for (path, free) in [("/var/lib/installer", 10), ("/var/lib/kubelet", agent)] {
        let facts = &mut site.seats[1].facts;
        facts.disks.retain(|disk| disk.path != path);
        facts.disks.push(Disk {
            path: path.into(),
            total: 100 << 30,
            free: free << 30,
            inodes: 1000,
            free_inodes: 500,
            ..Disk::default()
        });
    }
}

#[test]
fn a_disk_on_which_the_agent_would_evict_is_told_by_its_thresholds() {
    let causes = |change: &dyn Fn(&mut Site)| -> Vec<(Severity, String)> {
        let mut site = ready();
        change(&mut site);
        let findings = look(&site, &looked(), &[]);
        assert!(findings.iter().all(|finding| finding.check == "disk"), "{findings:?}");
        findings.into_iter().map(|f| (f.severity, f.cause)).collect()
    };
    let image = "10 % of the bytes below /var/lib/installer are free, imagefs.available is 15%";
    let both = format!(
        "the node agent would evict pods at once: {image}; 9 % of the bytes below /var/lib/kubelet are free, nodefs.available is 10%"
    );
    let told = causes(&|site| with_disks(site, 9));
    assert_eq!(told.len(), 1);
    for part in both
        .trim_start_matches("the node agent would evict pods at once: ")
        .split("; ")
    {
        assert!(told[0].0 == Severity::Error && told[0].1.contains(part), "{told:?}");
    }
    let told = causes(&|site| {
        with_disks(site, 50);
        site.seats[1].facts.disks[1].free_inodes = 40;
    });
    assert!(
        told[0].1.contains("4 % of the inodes below /var/lib/kubelet"),
        "{told:?}"
    );
    // What follows from a disk that is too small for what is sent is not told beside it.
    let told = causes(&|site| {
        with_disks(site, 50);
        let disks = &mut site.seats[1].facts.disks;
        (disks[0].total, disks[0].free) = (64 << 20, 5 << 20);
    });
    assert_eq!(told.len(), 1, "{told:?}");
    // Thresholds of the Clusterfile take the place of all others.
    let chosen = |threshold: &'static str| {
        causes(&move |site: &mut Site| {
            with_disks(site, 9);
            let hard = serde_json::json!({"imagefs.available": threshold});
            let _ = site.kubeadm.kubelet.insert("evictionHard".into(), hard);
        })
    };
    assert_eq!(chosen("5Gi"), []);
    assert!(chosen("11Gi")[0].1.ends_with("imagefs.available is 11Gi"));
    // An apply may be what mends a host that is installed.
    let told = causes(&|site| {
        with_disks(site, 9);
        site.seats[1].facts.installed.push(Installed {
            cluster: "demo".into(),
            ..Installed::default()
        });
    });
    assert_eq!(told[0].0, Severity::Warning);
}

#[test]
fn a_disk_that_what_is_sent_would_fill_is_told() {
    let mut site = ready();
    with_disks(&mut site, 50);
    site.seats[1].facts.disks[0].free = 17 << 30;
    let sending = [(site.seats[1].ip, 3_u64 << 30)].into();
    let findings = look(&site, &Looked { sending, ..looked() }, &[]);
    assert!(
        findings[0]
            .cause
            .contains("14 % of the bytes below /var/lib/installer are free after what is sent"),
        "{findings:?}"
    );
}

#[test]
fn a_host_of_another_cluster_is_one_finding() {
    let mut site = ready();
    let facts = &mut site.seats[1].facts;
    facts.installed.push(Installed {
        cluster: "other".into(),
        ..Installed::default()
    });
    for (port, process) in [(10250, "clusterd"), (10256, "clusterd"), (6444, "clusterd")] {
        facts.listeners.push(Listener {
            port,
            process: process.into(),
            address: "0.0.0.0".into(),
            ..Listener::default()
        });
    }
    for n in 0..8 {
        facts.routes.push(Route {
            destination: format!("100.64.{n}.0/24"),
            ..Route::default()
        });
    }
    let findings = look(&site, &looked(), &[]);
    let [finding] = findings.as_slice() else {
        panic!("{findings:?}")
    };
    assert!(
        finding.cause.starts_with("the host belongs to the cluster \"other\""),
        "{finding:?}"
    );
    assert!(
        finding
            .cause
            .contains("clusterd uses ports 6444, 10250, 10256 on 0.0.0.0"),
        "{finding:?}"
    );
    assert!(
        finding.cause.contains("routes 100.64.0.0/24, 100.64.1.0/24"),
        "{finding:?}"
    );
}

#[test]
fn an_ignored_check_is_only_a_warning() {
    let mut site = ready();
    site.seats[0].facts.arch = "arm64".into();
    let all = look(&site, &looked(), &["arch".to_owned()]);
    assert!(!refuses(&all) && all.len() == 1);
}

#[test]
fn a_node_of_another_authority_is_told() {
    let found = found(|site| {
        for (index, ca) in ["new", "old"].into_iter().enumerate() {
            let seat = &mut site.seats[index];
            seat.facts.installed.push(Installed {
                cluster: "demo".into(),
                ..Installed::default()
            });
            seat.seen.ca = Some(ca.into());
        }
    });
    assert_eq!(found, [("foreign-ca", Severity::Error)]);
}

#[test]
fn closed_ways_are_told_with_all_else_and_may_be_ignored() {
    let mut site = ready();
    site.seats[0].facts.arch = "arm64".into();
    let ways = wanted_ways(&site)
        .into_iter()
        .map(|way| (way, host::proto::Knocked::Silent));
    let looked = Looked {
        ways: ways.collect(),
        ..looked()
    };
    let checks = |ignored: &[String]| -> Vec<_> {
        let findings = look(&site, &looked, ignored).into_iter();
        findings.map(|f| (f.name, f.check, f.severity)).collect()
    };
    use Severity::{Error, Warning};
    let told = |name: &str, check, severity| (name.to_owned(), check, severity);
    assert_eq!(
        checks(&[]),
        [
            told("m1", "arch", Error),
            told("m1", "firewall", Error),
            told("n1", "firewall", Error)
        ]
    );
    assert_eq!(
        checks(&["firewall".to_owned()])[1..],
        [told("m1", "firewall", Warning), told("n1", "firewall", Warning)]
    );
}

#[test]
fn a_docker_that_is_installed_and_does_not_run_is_no_trouble() {
    let installed = |site: &mut Site| {
        let _ = site.seats[1]
            .facts
            .runtimes
            .insert("docker".into(), "/usr/bin/dockerd".into());
    };
    assert_eq!(found(installed), []);
}
