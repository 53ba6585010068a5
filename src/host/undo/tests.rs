//! Whatever was done, undoing it gives back the tree that was.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::Path,
    sync::Arc,
};

use proptest::prelude::*;

use super::*;
use crate::{
    effect::{Dir, Effect, File, HostsEntry},
    fsops::Root,
    proto::{RunEnd, Scope},
    system::Ran,
};

struct NoSystem;

impl System for NoSystem {
    fn run(&self, _: &[&str]) -> std::io::Result<Ran> {
        Ok(Ran::default())
    }
}

fn scope() -> Scope {
    Scope {
        cluster: "demo".into(),
        data_root: "/data/installer".into(),
    }
}

fn open(root: &Path) -> Gate {
    Gate::open(Root::at(root), scope(), Arc::new(NoSystem)).unwrap()
}

/// A host in a folder: some files, a link, a read-only folder, a kernel parameter.
fn host() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let at = |path: &str| dir.path().join(path);
    for folder in ["etc/d/e", "proc/sys/net", "run", "var/lib", "var/log"] {
        fs::create_dir_all(at(folder)).unwrap();
    }
    fs::write(at("etc/a"), "old a").unwrap();
    fs::write(at("etc/d/b"), vec![b'x'; 20_000]).unwrap();
    fs::write(at("etc/hosts"), "127.0.0.1 localhost\n").unwrap();
    fs::write(at("proc/sys/net/x"), "0\n").unwrap();
    symlink("a", at("etc/link")).unwrap();
    fs::set_permissions(at("etc/d/b"), fs::Permissions::from_mode(0o640)).unwrap();
    fs::set_permissions(at("etc/d/e"), fs::Permissions::from_mode(0o700)).unwrap();
    dir
}

fn tree(at: &Path) -> BTreeMap<String, String> {
    fn walk(at: &Path, base: &Path, out: &mut BTreeMap<String, String>) {
        for entry in fs::read_dir(at).unwrap().flatten() {
            let (path, meta) = (entry.path(), entry.path().symlink_metadata().unwrap());
            let content = match () {
                () if meta.is_symlink() => format!("→ {}", fs::read_link(&path).unwrap().display()),
                () if meta.is_dir() => "dir".to_owned(),
                () => String::from_utf8_lossy(&fs::read(&path).unwrap()).trim_end().to_owned(),
            };
            let mode = if meta.is_symlink() { 0 } else { meta.mode() };
            out.insert(
                path.strip_prefix(base).unwrap().display().to_string(),
                format!("{mode:o} {content}"),
            );
            if meta.is_dir() {
                walk(&path, base, out);
            }
        }
    }
    let mut out = BTreeMap::new();
    walk(at, at, &mut out);
    out.remove("run/installer.lock");
    out
}

fn path() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("/etc/a"),
        Just("/etc/d"),
        Just("/etc/d/b"),
        Just("/etc/d/e"),
        Just("/etc/d/e/new"),
        Just("/etc/link"),
        Just("/etc/new/deep/file"),
        Just("/etc/new"),
        Just("/opt/x/y"),
        Just("/var/lib/kubelet"),
        Just("/var/lib/kubelet/z"),
    ]
    .prop_map(str::to_owned)
}

fn effect() -> impl Strategy<Value = Effect> {
    prop_oneof![
        (path(), "[a-z]{0,6}", prop_oneof![Just(0o600), Just(0o644), Just(0o755)]).prop_map(|(path, content, mode)| {
            Effect::File(File {
                path,
                content: content.into_bytes().into(),
                mode,
                owner: None,
                secret: false,
            })
        }),
        (path(), any::<bool>(), prop_oneof![Just(0o700), Just(0o755)])
            .prop_map(|(path, owned, mode)| Effect::Dir(Dir { path, mode, owned })),
        // Relative, so that nothing is written through it outside the test's folder.
        (path(), "[b-z]{1,5}").prop_map(|(path, target)| Effect::Link { path, target }),
        path().prop_map(|path| Effect::Absent { path }),
        "[a-z]{1,5}".prop_map(|name| Effect::Hosts {
            entries: vec![HostsEntry {
                ip: "10.0.0.1".into(),
                names: vec![name]
            }]
            .into()
        }),
        "[0-9]".prop_map(|value| Effect::Sysctl {
            key: "net.x".into(),
            value
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn undo_restores_the_tree_exactly(effects in proptest::collection::vec(effect(), 1..14), reopen in 0usize..14) {
        let dir = host();
        let before = tree(dir.path());
        let mut gate = open(dir.path());
        for (n, effect) in effects.iter().enumerate() {
            if n == reopen {
                gate = open(dir.path());
            }
            // Effects that contradict the tree (a file where a folder is) are refused; what they did before that is undone as well.
            if let Ok(change) = gate.apply(effect) {
                let again = gate.preview(effect).unwrap();
                prop_assert!(!again.changed(), "{:?} is not idempotent: {:?} then {:?}", effect, change, again);
            }
        }
        let undone = undo(&mut gate).unwrap();
        prop_assert_eq!(&undone.failed, &Vec::<String>::new());
        prop_assert_eq!(&undone.left, &Vec::new());
        prop_assert_eq!(tree(dir.path()), before);
    }

    #[test]
    fn a_preview_says_exactly_what_apply_does(effects in proptest::collection::vec(effect(), 1..8)) {
        let dir = host();
        let mut gate = open(dir.path());
        for effect in &effects {
            let (before, preview) = (tree(dir.path()), gate.preview(effect));
            let untouched = tree(dir.path());
            prop_assert_eq!(&before, &untouched);
            match (preview, gate.apply(effect)) {
                (Ok(preview), Ok(change)) => prop_assert_eq!(preview, change),
                (Err(_), Err(_)) => {}
                (preview, applied) => {
                    // Parents in the way are found only when they are needed.
                    prop_assert!(applied.is_err(), "{:?}: {:?} / {:?}", effect, preview, applied);
                }
            }
        }
    }
}

#[test]
fn what_programs_put_into_owned_folders_goes_and_what_was_there_stays() {
    let dir = host();
    fs::create_dir_all(dir.path().join("var/lib/etcd")).unwrap();
    fs::write(dir.path().join("var/lib/etcd/theirs"), "x").unwrap();
    let before = tree(dir.path());
    let mut gate = open(dir.path());
    for path in ["/var/lib/etcd", "/var/lib/kubelet"] {
        gate.apply(&Effect::Dir(Dir {
            path: path.into(),
            mode: 0o700,
            owned: true,
        }))
        .unwrap();
    }
    fs::create_dir_all(dir.path().join("var/lib/etcd/member/wal")).unwrap();
    fs::create_dir_all(dir.path().join("var/lib/kubelet/pods/x")).unwrap();
    fs::create_dir_all(dir.path().join("run/installer/containerd")).unwrap();
    let undone = undo(&mut gate).unwrap();
    assert_eq!((undone.failed, undone.left), (vec![], vec![]));
    assert_eq!(tree(dir.path()), before);
}

/// The agent's serving key is made before its folder becomes ours, its client certificate comes without the journal.
#[test]
fn keys_that_programs_wrote_go_from_folders_that_were_there_before_at_any_depth() {
    for was in ["", "pki", "pki/old"] {
        let dir = host();
        let kubelet = dir.path().join("var/lib/kubelet");
        fs::create_dir_all(kubelet.join(was)).unwrap();
        fs::create_dir_all(dir.path().join("var/lib/etcd/lost+found")).unwrap();
        if !was.is_empty() {
            fs::write(kubelet.join("pki/theirs.pem"), "theirs").unwrap();
        }
        let before = tree(dir.path());
        let mut gate = open(dir.path());
        gate.apply(&Effect::File(File {
            path: "/var/lib/kubelet/pki/kubelet.key".into(),
            content: "secret".into(),
            mode: 0o600,
            owner: None,
            secret: true,
        }))
        .unwrap();
        for path in ["/var/lib/kubelet", "/var/lib/etcd"] {
            let owned = Effect::Dir(Dir {
                path: path.into(),
                mode: 0o750,
                owned: true,
            });
            gate.apply(&owned).unwrap();
        }
        fs::write(kubelet.join("pki/kubelet-client-1.pem"), "secret").unwrap();
        symlink("kubelet-client-1.pem", kubelet.join("pki/kubelet-client-current.pem")).unwrap();
        fs::create_dir_all(kubelet.join("pods/x")).unwrap();
        fs::create_dir_all(dir.path().join("var/lib/etcd/member/wal")).unwrap();
        let undone = undo(&mut gate).unwrap();
        assert_eq!((undone.failed, undone.left), (vec![], vec![]), "with {was:?}");
        assert_eq!(tree(dir.path()), before, "with {was:?}");
    }
}

#[test]
fn the_proof_looks_inside_folders_that_were_there_before() {
    let dir = host();
    let kubelet = dir.path().join("var/lib/kubelet/pki");
    fs::create_dir_all(&kubelet).unwrap();
    for name in ["changed.pem", "removed.pem"] {
        fs::write(kubelet.join(name), "theirs").unwrap();
    }
    let system = NoSystem;
    let look = || snapshot::take(&Root::at(dir.path()), &system);
    let before = look();
    fs::write(kubelet.join("changed.pem"), "ours").unwrap();
    fs::remove_file(kubelet.join("removed.pem")).unwrap();
    fs::write(kubelet.join("added.pem"), "ours").unwrap();
    let told: Vec<String> = snapshot::compare(&before, &look(), "/data/installer/demo")
        .into_iter()
        .map(|left| format!("{} {}", left.name.rsplit('/').next().unwrap_or_default(), left.how))
        .collect();
    assert_eq!(told, ["added.pem added", "changed.pem changed", "removed.pem removed"]);
}

#[test]
fn what_is_ours_goes_from_a_home_that_was_there_before() {
    let dir = host();
    let home = dir.path().join("data/installer/demo");
    fs::create_dir_all(home.join("lost+found")).unwrap();
    fs::create_dir_all(home.join("theirs")).unwrap();
    let before = tree(dir.path());
    let mut gate = open(dir.path());
    assert!(gate.begin_run(mark("one"), true).unwrap(), "nothing of ours was there");
    gate.apply(&Effect::Dir(Dir {
        path: "/data/installer/demo/containerd".into(),
        mode: 0o700,
        owned: true,
    }))
    .unwrap();
    fs::create_dir_all(home.join("theirs/ours")).unwrap();
    fs::create_dir_all(home.join("blobs/sha256")).unwrap();
    fs::write(home.join("containerd/key"), "secret").unwrap();
    let undone = undo(&mut gate).unwrap();
    assert_eq!((undone.failed, undone.left), (vec![], vec![]));
    assert_eq!(tree(dir.path()), before);
}

#[test]
fn the_program_goes_although_its_folder_has_something_else_in_it() {
    let dir = host();
    let folder = dir.path().join("var/lib/installer");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("notes"), "theirs").unwrap();
    let before = tree(dir.path());
    fs::write(folder.join("clusterd"), "program").unwrap();
    let mut gate = open(dir.path());
    gate.apply(&Effect::Link {
        path: "/etc/new".into(),
        target: "x".into(),
    })
    .unwrap();
    undo(&mut gate).unwrap();
    assert_eq!(tree(dir.path()), before);
}

/// What pods made is known to an undo that was interrupted, too, after the agent's folder is gone.
#[test]
fn what_pods_and_others_made_is_told_and_not_called_ours() {
    let dir = host();
    for folder in ["usr/local/bin", "mnt/disk"] {
        fs::create_dir_all(dir.path().join(folder)).unwrap();
    }
    let mut gate = open(dir.path());
    let link = |path: &str| Effect::Link {
        path: path.into(),
        target: "x".into(),
    };
    gate.apply(&link("/usr/local/bin/kubectl")).unwrap();
    fs::create_dir_all(dir.path().join("var/lib/kubelet")).unwrap();
    let noted = "\"/srv/shop/data\"\n\"/var/lib/shop\"\n\"/mnt/disk/db\"\n\"/mnt/disk/gone\"\n\"/var/li";
    fs::write(dir.path().join(crate::MADE_BY_PODS.trim_start_matches('/')), noted).unwrap();
    for folder in ["srv/shop/data", "var/lib/shop/db", "mnt/disk/db/1"] {
        fs::create_dir_all(dir.path().join(folder)).unwrap();
    }
    fs::write(dir.path().join("usr/local/bin/theirs"), "x").unwrap();
    for _ in 0..2 {
        gate.journal().unwrap().record([Entry::Undo]).unwrap();
        snapshot::keep_made_by_pods(&gate.root, &journal::dir(&gate.root, &gate.scope).unwrap()).unwrap();
        let _ = fs::remove_dir_all(dir.path().join("var/lib/kubelet"));
    }
    let undone = undo(&mut gate).unwrap();
    let told: Vec<String> = undone
        .left
        .iter()
        .map(|left| format!("{} {:?}", left.name, left.origin))
        .collect();
    assert_eq!(
        told,
        [
            "/srv Pods",
            "/usr/local/bin/theirs Others",
            "/var/lib/shop Pods",
            "/mnt/disk/db Pods"
        ]
    );
    assert!(dir.path().join("srv/shop/data").exists() && dir.path().join("var/lib/shop/db").exists());
}

#[test]
fn a_folder_that_is_a_disk_of_its_own_keeps_nothing_of_us() {
    let dir = host();
    let folder = dir.path().join("var/lib/installer");
    fs::create_dir_all(folder.join("lost+found")).unwrap();
    let before = tree(dir.path());
    fs::write(folder.join("clusterd"), "x").unwrap();
    let mut gate = open(dir.path());
    gate.apply(&Effect::Dir(Dir {
        path: "/etc/new".into(),
        mode: 0o700,
        owned: true,
    }))
    .unwrap();
    undo(&mut gate).unwrap();
    assert_eq!(tree(dir.path()), before);
}

#[test]
fn a_crash_between_record_and_change_does_no_harm() {
    let dir = host();
    let before = tree(dir.path());
    let mut gate = open(dir.path());
    let journal = gate.journal().unwrap();
    journal
        .record([
            Entry::Absent {
                path: "/etc/never-made".into(),
            },
            Entry::NoDir {
                path: "/etc/never".into(),
                owned: true,
            },
            Entry::Tree {
                path: "/etc/d".into(),
                saved: "99".into(),
            },
            Entry::File {
                path: "/etc/a".into(),
                mode: 0o644,
                owner: owner_of(&dir.path().join("etc/a")),
                old: Old::Here("old a".into()),
            },
        ])
        .unwrap();
    drop(gate);
    let mut gate = open(dir.path());
    assert_eq!(undo(&mut gate).unwrap().failed, Vec::<String>::new());
    assert_eq!(tree(dir.path()), before);
}

#[test]
fn an_interrupted_undo_forbids_changes_until_it_is_finished() {
    let dir = host();
    let before = tree(dir.path());
    let mut gate = open(dir.path());
    let file = Effect::File(File {
        path: "/etc/new".into(),
        content: "x".into(),
        mode: 0o644,
        owner: None,
        secret: false,
    });
    gate.apply(&file).unwrap();
    gate.journal().unwrap().record([Entry::Undo]).unwrap();
    drop(gate);
    let mut gate = open(dir.path());
    assert!(gate.undoing().unwrap());
    undo(&mut gate).unwrap();
    assert_eq!(tree(dir.path()), before);
}

#[test]
fn what_somebody_else_left_in_a_folder_of_ours_is_told_not_deleted() {
    let dir = host();
    let mut gate = open(dir.path());
    let file = Effect::File(File {
        path: "/etc/new/x".into(),
        content: "x".into(),
        mode: 0o644,
        owner: None,
        secret: false,
    });
    gate.apply(&file).unwrap();
    fs::write(dir.path().join("etc/new/theirs"), "y").unwrap();
    let left: Vec<String> = undo(&mut gate)
        .unwrap()
        .left
        .into_iter()
        .map(|l| format!("{} {}", l.name, l.how))
        .collect();
    assert_eq!(left, ["/etc/new added", "/etc/new/theirs added"]);
    assert!(dir.path().join("etc/new/theirs").exists());
}

fn owner_of(path: &Path) -> (u32, u32) {
    let meta = fs::metadata(path).unwrap();
    (meta.uid(), meta.gid())
}

fn mark(who: &str) -> crate::proto::RunMark {
    crate::proto::RunMark {
        who: who.into(),
        at_ms: 1,
        ..Default::default()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn undoing_a_run_goes_back_to_its_beginning_and_undoing_all_still_goes_back_to_the_first(
        earlier in proptest::collection::vec(effect(), 1..8),
        later in proptest::collection::vec(effect(), 1..8),
        again in proptest::collection::vec(effect(), 0..6),
        crash in any::<bool>(),
    ) {
        let dir = host();
        let first = tree(dir.path());
        let mut gate = open(dir.path());
        prop_assert!(gate.begin_run(mark("one"), true).unwrap());
        for effect in &earlier {
            let _ = gate.apply(effect);
        }
        gate.end_run(RunEnd::Done).unwrap();
        // One run more before, so that folders and files are known to the journal of the installation.
        prop_assert!(!gate.begin_run(mark("two"), true).unwrap());
        let applied = fs::read(dir.path().join("data/installer/demo/applied.json")).unwrap();
        let without_ours = |mut tree: BTreeMap<String, String>| {
            tree.retain(|path, _| !path.starts_with("data/"));
            tree
        };
        let between = without_ours(tree(dir.path()));
        for (n, effect) in later.iter().enumerate() {
            if crash && n == later.len() / 2 {
                drop(gate);
                gate = open(dir.path());
            }
            let _ = gate.apply(effect);
        }
        let undone = undo_run(&mut gate).unwrap();
        prop_assert_eq!(&undone.failed, &Vec::<String>::new());
        prop_assert_eq!(without_ours(tree(dir.path())), between);
        prop_assert_eq!(fs::read(dir.path().join("data/installer/demo/applied.json")).unwrap(), applied);
        prop_assert!(undo_run(&mut gate).unwrap().done.is_empty(), "a run is undone once");
        for effect in &again {
            let _ = gate.apply(effect);
        }
        let undone = undo(&mut gate).unwrap();
        prop_assert_eq!(&undone.failed, &Vec::<String>::new());
        prop_assert_eq!(tree(dir.path()), first);
    }
}

#[test]
fn a_run_that_ended_well_cannot_be_undone_alone_and_one_that_failed_can() {
    let dir = host();
    let mut gate = open(dir.path());
    let file = |content: &str| {
        Effect::File(File {
            path: "/etc/a".into(),
            content: content.into(),
            mode: 0o644,
            owner: None,
            secret: false,
        })
    };
    let content = || fs::read_to_string(dir.path().join("etc/a")).unwrap();
    assert!(gate.begin_run(mark("install"), false).unwrap());
    gate.apply(&file("one")).unwrap();
    gate.end_run(RunEnd::Done).unwrap();
    assert!(undo_run(&mut gate).unwrap_err().to_string().contains("no run"));
    assert!(!gate.begin_run(mark("change"), true).unwrap());
    gate.apply(&file("two")).unwrap();
    gate.end_run(RunEnd::Failed).unwrap();
    assert_eq!(content(), "two");
    undo_run(&mut gate).unwrap();
    assert_eq!(content(), "one");
    let log = journal::read(&journal::dir(&gate.root, &gate.scope).unwrap())
        .unwrap()
        .unwrap();
    let runs = log.run_notes();
    let [first, last] = runs.as_slice() else {
        panic!("{runs:?}")
    };
    assert_eq!((first.mark.who.as_str(), first.ended), ("install", Some(RunEnd::Done)));
    assert_eq!((last.mark.who.as_str(), last.ended), ("change", Some(RunEnd::Undone)));
}

/// Says what a unit is like, and notes what is done to it.
#[derive(Default)]
struct Units(std::sync::Mutex<Vec<String>>);

impl System for Units {
    fn run(&self, argv: &[&str]) -> std::io::Result<Ran> {
        if argv.contains(&"show") {
            return Ok(Ran {
                code: 0,
                stdout: "LoadState=loaded\nActiveState=active\nSubState=running\nUnitFileState=enabled\n".into(),
                ..Ran::default()
            });
        }
        self.0.lock().unwrap().push(argv.join(" "));
        Ok(Ran::default())
    }
}

#[test]
fn a_unit_that_ran_before_the_run_runs_with_its_old_files_afterwards() {
    let dir = host();
    let units = Arc::new(Units::default());
    let mut gate = Gate::open(Root::at(dir.path()), scope(), Arc::<Units>::clone(&units)).unwrap();
    gate.begin_run(mark("install"), false).unwrap();
    gate.note([Entry::Absent { path: "/etc/x".into() }]).unwrap();
    gate.end_run(RunEnd::Done).unwrap();
    gate.begin_run(mark("change"), true).unwrap();
    gate.note([
        Entry::Unit {
            name: "old.service".into(),
            ours: false,
            enabled: "enabled".into(),
            active: true,
        },
        Entry::Unit {
            name: "new.service".into(),
            ours: true,
            enabled: String::new(),
            active: false,
        },
    ])
    .unwrap();
    undo_run(&mut gate).unwrap();
    let done = units.0.lock().unwrap().join("\n");
    assert_eq!(
        done,
        "systemctl stop -- new.service\nsystemctl disable -- new.service\nsystemctl daemon-reload\nsystemctl enable -- old.service\nsystemctl restart -- old.service"
    );
}

#[test]
fn a_folder_taken_away_in_a_run_that_was_undone_may_be_taken_away_again_in_parts() {
    let dir = host();
    let first = tree(dir.path());
    let mut gate = open(dir.path());
    let absent = |path: &str| Effect::Absent { path: path.into() };
    assert!(gate.begin_run(mark("one"), true).unwrap());
    gate.end_run(RunEnd::Done).unwrap();
    assert!(!gate.begin_run(mark("two"), true).unwrap());
    gate.apply(&absent("/etc/d")).unwrap();
    undo_run(&mut gate).unwrap();
    gate.apply(&absent("/etc/d/e")).unwrap();
    gate.apply(&absent("/etc/d")).unwrap();
    let undone = undo(&mut gate).unwrap();
    assert_eq!(undone.failed, Vec::<String>::new());
    assert_eq!(tree(dir.path()), first);
}

#[test]
fn where_all_runtimes_keep_their_containers_only_what_is_empty_and_new_goes() {
    // before, beside ours → whether the folder goes
    for (before, beside, goes) in [(false, false, true), (false, true, false), (true, false, false)] {
        let dir = host();
        let runc = dir.path().join("run/containerd/runc");
        fs::create_dir_all(if before { &runc } else { runc.parent().unwrap() }).unwrap();
        let mut gate = open(dir.path());
        gate.apply(&Effect::Dir(Dir {
            path: "/etc/new".into(),
            mode: 0o700,
            owned: true,
        }))
        .unwrap();
        fs::create_dir_all(runc.join("k8s.io/x")).unwrap();
        if beside {
            fs::create_dir_all(runc.join("moby/x")).unwrap();
        }
        undo(&mut gate).unwrap();
        assert_eq!(!runc.exists(), goes, "before {before}, beside {beside}");
        assert!(!runc.join("k8s.io").exists());
        assert!(!beside || runc.join("moby/x").exists());
    }
}
