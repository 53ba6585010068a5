use super::*;
use crate::{
    Effect, Scope,
    fsops::Root,
    gate::Gate,
    journal,
    system::{Ran, System},
};
use std::{
    io::{self, BufRead as _, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::fd::AsFd as _,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

fn fence(allowed: &[&str]) -> Fence {
    Fence {
        token: "run1".into(),
        allowed: allowed.iter().map(|&block| block.to_owned()).collect(),
    }
}

const TCP: &str = "  sl  local_address rem_address   st\n\
                   0: 00000000:0016 00000000:0000 0A 0\n\
                   1: 0100000A:0016 0902000A:D431 01 0\n\
                   2: 0100000A:C000 08080808:01BB 01 0\n\
                   3: 0100007F:C001 0100007F:0016 01 0\n";
const TCP6: &str = "  sl\n   0: 0000000000000000FFFF00000100000A:0016 0000000000000000FFFF00000702000A:D432 01 0\n";

#[test]
fn who_has_begun_a_connection_is_seen_by_who_listens() {
    let told: Vec<String> = connections(&[TCP, TCP6])
        .iter()
        .map(|c| format!("{} {} {} {}", c.remote, c.local_port, c.remote_port, c.theirs))
        .collect();
    assert_eq!(
        told,
        [
            "8.8.8.8 49152 443 false",
            "10.0.2.7 22 54322 true",
            "10.0.2.9 22 54321 true"
        ]
    );
}

#[test]
fn only_addresses_and_plain_names_get_into_rules() {
    assert!(check(&fence(&["10.0.0.1", "100.64.0.0/16"])).is_ok());
    for wrong in ["10.0.0.1 }; }", "fe80::1", "10.0.0.0/33", "10.0.0.0/", ""] {
        assert!(check(&fence(&[wrong])).is_err(), "{wrong}");
    }
    assert!(
        check(&fence(&[])).is_err(),
        "a host that may reach nothing is no cluster's"
    );
    let token = "a\" }".to_owned();
    let wrong = Fence {
        token,
        ..fence(&["10.0.0.1"])
    };
    assert!(check(&wrong).is_err());
}

#[test]
fn rules_hold_what_may_pass_before_what_may_not() {
    let text = rules(
        &fence(&["10.0.0.1", "100.64.0.0/16"]),
        &connections(&[TCP, TCP6]),
        false,
    );
    let at = |part: &str| text.find(part).unwrap_or_else(|| panic!("no {part} in {text}"));
    assert!(at("elements = { 10.0.0.1, 100.64.0.0/16 }") < at("chain leave"));
    assert!(at("elements = { 10.0.2.7 . 22 . 54322, 10.0.2.9 . 22 . 54321 }") < at("chain leave"));
    let order = ["@theirs4 accept", "@ours4 goto own", "ct direction reply accept"].map(at);
    assert!(order.is_sorted(), "{text}");
    assert!(!text.contains("cgroupv2") && !text.contains("theirs6"), "{text}");
}

/// Keeps what it is asked, and what the journal said then; the first attempt fails.
struct Nft {
    journal: std::path::PathBuf,
    asked: Mutex<Vec<(String, bool)>>,
}

impl System for Nft {
    fn run(&self, argv: &[&str]) -> io::Result<Ran> {
        if argv.first() != Some(&"nft") {
            return Ok(Ran::default());
        }
        assert_eq!(argv[1], "-f");
        let journaled = std::fs::read_to_string(&self.journal)?.contains(TABLE);
        let mut asked = self.asked.lock().unwrap();
        asked.push((std::fs::read_to_string(argv[2])?, journaled));
        let code = i32::from(asked.len() == 1);
        Ok(Ran { code, ..Ran::default() })
    }
}

#[test]
fn the_fence_is_in_the_journal_before_it_is_put_up_and_not_in_what_a_run_left() {
    let dir = tempfile::tempdir().unwrap();
    for folder in ["run", "etc", "proc/net"] {
        std::fs::create_dir_all(dir.path().join(folder)).unwrap();
    }
    let root = Root::at(dir.path());
    let scope = Scope {
        cluster: "demo".into(),
        data_root: "/data".into(),
    };
    let system = Arc::new(Nft {
        journal: journal::dir(&root, &scope).unwrap().join("log"),
        asked: Mutex::default(),
    });
    let mut gate = Gate::open(root, scope, Arc::clone(&system) as Arc<dyn System>).unwrap();
    let mark = crate::proto::RunMark {
        who: "ann".into(),
        ..Default::default()
    };
    gate.begin_run(mark, true).unwrap();
    let change = gate.apply(&Effect::Fence(fence(&["10.0.0.1"]))).unwrap();
    assert!(change.changed());
    let asked = system.asked.lock().unwrap();
    assert_eq!(
        asked.len(),
        2,
        "a kernel without control groups gets rules without them"
    );
    assert!(asked.iter().all(|(_, journaled)| *journaled));
    assert!(asked[0].0.contains("cgroupv2") && !asked[1].0.contains("cgroupv2"));
    drop(asked);
    gate.end_run(crate::proto::RunEnd::Done).unwrap();
    assert_eq!(gate.drift().unwrap().compared, 0);
}

/// A network namespace, and a process that keeps it.
struct Namespace(Child);

impl Namespace {
    fn new(script: &str) -> Self {
        let mut child = Command::new("unshare")
            .args([
                "-n",
                "sh",
                "-ec",
                &format!("ip link set lo up\n{script}\necho ready; exec cat"),
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        io::BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line, "ready\n", "needs root and ip");
        Self(child)
    }

    /// Does something in there.
    fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let namespace = std::fs::File::open(format!("/proc/{}/ns/net", self.0.id())).unwrap();
        thread::scope(|scope| {
            let moved = scope.spawn(|| {
                let kind = Some(rustix::thread::LinkNameSpaceType::Network);
                rustix::thread::move_into_link_name_space(namespace.as_fd(), kind).unwrap();
                work()
            });
            moved.join().unwrap()
        })
    }

    fn run(&self, argv: &[&str]) -> String {
        let out = self.inside(|| Command::new(argv[0]).args(&argv[1..]).output().unwrap());
        assert!(
            out.status.success(),
            "{argv:?}: {}",
            String::from_utf8_lossy(&out.stderr)
        );
        String::from_utf8(out.stdout).unwrap()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// Both ends of a new connection.
fn connect(from: &Namespace, to: &Namespace, listener: &TcpListener) -> io::Result<(TcpStream, TcpStream)> {
    let at = listener.local_addr()?;
    let near = from.inside(|| TcpStream::connect_timeout(&at, Duration::from_secs(5)))?;
    let (far, _) = to.inside(|| listener.accept())?;
    for end in [&near, &far] {
        end.set_read_timeout(Some(Duration::from_secs(5)))?;
    }
    Ok((near, far))
}

/// Whether both ends hear each other.
fn talks((near, far): &mut (TcpStream, TcpStream)) -> bool {
    let mut byte = [0];
    near.write_all(b"?").is_ok()
        && far.read_exact(&mut byte).is_ok()
        && far.write_all(b"!").is_ok()
        && near.read_exact(&mut byte).is_ok()
}

#[test]
fn a_real_kernel_lets_pass_what_the_cluster_and_others_begin_and_names_the_rest() {
    let outside = Namespace::new("");
    let host = Namespace::new(&format!(
        "ip link add d0 type veth peer name d1 netns {}\nip addr add 192.0.2.1/24 dev d0\nip link set d0 up",
        outside.0.id()
    ));
    outside.run(&[
        "sh",
        "-ec",
        "ip addr add 192.0.2.9/24 dev d1; ip addr add 192.0.2.7/24 dev d1; ip link set d1 up",
    ]);
    let listen = |place: &Namespace, at: &str| place.inside(|| TcpListener::bind(at).unwrap());
    let (ours, stranger, member) = (
        listen(&host, "192.0.2.1:0"),
        listen(&outside, "192.0.2.9:0"),
        listen(&outside, "192.0.2.7:0"),
    );
    let mut operator = connect(&outside, &host, &ours).unwrap();
    let mut phoning = connect(&host, &outside, &stranger).unwrap();
    assert!(talks(&mut operator) && talks(&mut phoning));

    let tcp = std::fs::read_to_string(format!("/proc/{}/net/tcp", host.0.id())).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("rules");
    let put = |units| {
        std::fs::write(
            &file,
            rules(&fence(&["192.0.2.1", "192.0.2.7"]), &connections(&[&tcp]), units),
        )
        .unwrap();
        host.run(&["nft", "-f", file.to_str().unwrap()]);
    };
    put(true);
    // Again: it takes its own place.
    put(false);

    assert!(talks(&mut operator), "what others had begun goes on");
    assert!(talks(&mut connect(&outside, &host, &ours).unwrap()), "others may begin");
    assert!(
        talks(&mut connect(&host, &outside, &member).unwrap()),
        "the cluster is reached"
    );
    let listing = || -> serde_json::Value {
        let text = host.run(&["nft", "-j", "list", "table", "inet", TABLE]);
        serde_json::from_str(&text).unwrap()
    };
    let left = || -> u64 {
        let all = listing();
        let counters = all["nftables"].as_array().unwrap().iter();
        counters.filter_map(|item| item["counter"]["packets"].as_u64()).sum()
    };
    assert_eq!(left(), 0);
    connect(&host, &outside, &stranger).expect_err("nothing else is");
    let after = left();
    assert!(after > 0);
    let text = listing().to_string();
    let port = stranger.local_addr().unwrap().port();
    let user = rustix::process::geteuid().as_raw();
    for noted in [
        "[\"192.0.2.9\",\"tcp\"]".to_owned(),
        format!("[\"192.0.2.9\",\"tcp\",{port}]"),
        format!("[\"192.0.2.9\",{user}]"),
        "[\"192.0.2.9\",\"192.0.2.1\"]".to_owned(),
    ] {
        assert!(text.contains(&noted), "no {noted} in {text}");
    }
    // A connection of ours from before is no reply to anybody.
    let _ = phoning.0.write_all(b"?");
    let mut byte = [0];
    phoning.1.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert!(phoning.1.read_exact(&mut byte).is_err());
    assert!(left() > after);
}
