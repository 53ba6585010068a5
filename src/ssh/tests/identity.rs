//! Against a real OpenSSH server: who it is, and who we are.

#![allow(clippy::unwrap_used, clippy::expect_used)] // a failing step fails the test

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, process::Stdio, time::Duration};

use ssh::{Auth, Become, Command, Connection, Error, ExitStatus, Pin};

mod server;
use server::{Server, keygen, refused};

#[tokio::test]
async fn unknown_changed_and_pinned_host_keys_are_judged() {
    let server = Server::start("").await;
    let mut config = server.config();
    config.host_key.accept_new = false;
    let shown = server.fingerprint("host_ed25519.pub");
    let unknown = refused(&config).await.to_string();
    assert!(
        unknown.contains(&shown) && unknown.contains("--accept-new-host-keys"),
        "{unknown}"
    );
    assert!(!server.at("known_hosts").exists());

    server.connect().await;
    Connection::connect(&config).await.expect("now it is known");

    // A file that knows only the RSA key makes the server show that one.
    let rsa = fs::read_to_string(server.at("host_rsa.pub")).unwrap();
    let line = |key: &str| format!("[127.0.0.1]:{} {key}", server.port);
    fs::write(server.at("known_hosts"), line(&rsa)).unwrap();
    Connection::connect(&config).await.expect("known by its RSA key");

    let stranger = fs::read_to_string(server.at("stranger.pub")).unwrap();
    fs::write(server.at("known_hosts"), line(&stranger)).unwrap();
    config.host_key.accept_new = true;
    let changed = refused(&config).await.to_string();
    let expected = server.fingerprint("stranger.pub");
    assert!(
        changed.contains("CHANGED")
            && changed.contains(&shown)
            && changed.contains(&expected)
            && changed.contains("known_hosts:1")
            && changed.contains("it shows ssh-ed25519"),
        "{changed}"
    );

    // What it says to do is what helps.
    let (_, command) = changed.split_once("remove the old entry: ").unwrap();
    let status = std::process::Command::new("sh")
        .args(["-c", command])
        .output()
        .unwrap()
        .status;
    assert!(status.success(), "{command}");
    Connection::connect(&config)
        .await
        .expect("the old entry is gone, so the host is new");
}

#[tokio::test]
async fn any_of_several_pinned_keys_will_do_and_no_other() {
    let server = Server::start("").await;
    let mut config = server.config();
    config.host_key.accept_new = false;
    let pin = |name: &str| fs::read_to_string(server.at(name)).unwrap().parse::<Pin>().unwrap();
    let shown = Pin::Fingerprint(server.fingerprint("host_ed25519.pub"));
    // The server has keys of both types, and shows one of a type that is pinned.
    for pins in [
        vec![shown],
        vec![pin("host_rsa.pub")],
        vec![pin("stranger.pub"), pin("host_ed25519.pub")],
        vec![pin("host_ed25519.pub"), pin("stranger.pub"), pin("key.pub")],
    ] {
        config.host_key.pinned = pins;
        Connection::connect(&config).await.expect("a pinned key");
    }
    config.host_key.pinned = vec![pin("stranger.pub"), pin("key.pub")];
    let error = refused(&config).await;
    assert!(matches!(error, Error::HostKeyChanged { .. }));
    let error = error.to_string();
    for part in ["stranger.pub", "key.pub", "host_ed25519.pub"] {
        assert!(error.contains(&server.fingerprint(part)), "{part} in {error}");
    }
    assert!(
        error.contains("pin the new key") && !server.at("known_hosts").exists(),
        "{error}"
    );
}

#[tokio::test]
async fn every_way_to_authenticate_is_tried_and_told() {
    let server = Server::start("").await;
    let key = |name: &str, passphrase: Option<&str>| Auth::KeyFile {
        path: server.at(name),
        certificate: None,
        passphrase: passphrase.map(Into::into),
    };
    let mut config = server.config();
    config.auth = vec![
        key("absent", None),
        key("locked", None),
        key("locked", Some("wrong")),
        key("stranger", None),
        Auth::Password("wrong-pw".into()),
    ];
    let error = refused(&config).await.to_string();
    for part in [
        "absent: no such file",
        "no passphrase is given",
        "passphrase is wrong",
        "stranger: refused",
        "password: refused",
        "publickey",
        "user 'root'",
    ] {
        assert!(error.contains(part), "{part} in {error}");
    }
    assert!(!error.contains("wrong-pw") && !format!("{config:?}").contains("wrong-pw"));
    config.auth = vec![key("stranger", None), key("locked", Some("open sesame"))];
    Connection::connect(&config).await.expect("the second key is right");
    // Where nothing could be shown to the server, it has refused nothing.
    config.auth = vec![key("absent", None)];
    let error = refused(&config).await;
    assert!(matches!(error, Error::NoCredential { .. }), "{error}");
    let error = error.to_string();
    assert!(
        error.contains("absent: no such file") && error.contains("ssh.pk"),
        "{error}"
    );
    assert!(
        !error.contains("authorized_keys") && !error.contains("not let in"),
        "{error}"
    );
    config.auth.clear();
    assert!(
        refused(&config)
            .await
            .to_string()
            .contains("No key, agent or password is configured")
    );
}

/// A server whose PAM takes one password.
async fn pam_server(extra: &str) -> Server {
    Server::start_with(extra, |dir| {
        let check = dir.join("check");
        fs::write(&check, "#!/bin/sh\npassword=$(tr -d '\\0')\n[ \"$password\" = slow ] && sleep 5\n[ \"$password\" = right ]\n").unwrap();
        fs::set_permissions(&check, fs::Permissions::from_mode(0o755)).unwrap();
        let pam = format!(
            "auth required pam_exec.so quiet expose_authtok {}\naccount required pam_permit.so\nsession required pam_permit.so\n",
            check.display()
        );
        fs::write(dir.join("pam"), pam).unwrap();
        "UsePAM yes\nPasswordAuthentication no\nKbdInteractiveAuthentication yes".to_owned()
    })
    .await
}

#[tokio::test]
async fn a_password_answers_a_keyboard_interactive_prompt() {
    let server = pam_server("").await;
    let mut config = server.config();
    config.auth = vec![Auth::Password("right".into())];
    Connection::connect(&config).await.expect("PAM's prompt is answered");
    config.auth = vec![Auth::Password("wrong-pw".into())];
    let error = refused(&config).await.to_string();
    assert!(error.contains("password (keyboard-interactive): refused"), "{error}");
    assert!(!error.contains("wrong-pw"), "{error}");
    config.auth = vec![Auth::Password("slow".into())];
    config.auth_timeout = Duration::from_millis(700);
    let late = refused(&config).await;
    let during = |e: &Error| {
        matches!(
            e,
            Error::Timeout {
                during: "authenticating",
                ..
            }
        )
    };
    assert!(during(&late) && late.is_passing(), "{late}");
}

#[tokio::test]
async fn a_key_and_a_password_are_given_where_both_are_wanted() {
    let server = pam_server("AuthenticationMethods publickey,keyboard-interactive").await;
    let mut config = server.config();
    config.auth.push(Auth::Password("right".into()));
    Connection::connect(&config).await.expect("both are right");
    config.auth.pop();
    let error = refused(&config).await.to_string();
    assert!(error.contains("accepted, but the server wants one more"), "{error}");
}

/// Signs a public key with an authority: `SUBJECT-cert.pub` appears.
fn certify(dir: &Path, authority: &str, subject: &str, more: &[&str]) {
    let status = std::process::Command::new("ssh-keygen")
        .args(["-q", "-I", "test-id", "-s"])
        .arg(dir.join(authority))
        .args(more)
        .arg(dir.join(format!("{subject}.pub")))
        .status();
    assert!(status.unwrap().success());
}

/// A server that lets in whom an authority vouches for, and has no list of keys.
async fn authority_server() -> Server {
    Server::start_with("AuthorizedKeysFile none", |dir| {
        keygen(&dir.join("ca"), "ed25519", "");
        keygen(&dir.join("id_rsa"), "rsa", "");
        format!("TrustedUserCAKeys {}/ca.pub", dir.display())
    })
    .await
}

#[tokio::test]
async fn a_users_certificate_is_offered_with_its_key() {
    let server = authority_server().await;
    let mut config = server.config();
    refused(&config).await;
    let with = |key: &str, certificate: Option<&str>| {
        vec![Auth::KeyFile {
            path: server.at(key),
            certificate: certificate.map(|name| server.at(name)),
            passphrase: None,
        }]
    };
    for key in ["key", "id_rsa"] {
        certify(server.dir.path(), "ca", key, &["-n", "root"]);
        config.auth = with(key, None);
        Connection::connect(&config)
            .await
            .expect("the certificate beside the key");
    }
    fs::rename(server.at("key-cert.pub"), server.at("elsewhere")).unwrap();
    config.auth = with("key", Some("elsewhere"));
    Connection::connect(&config).await.expect("a certificate by its name");

    certify(server.dir.path(), "ca", "key", &["-n", "ann,bob"]);
    certify(server.dir.path(), "ca", "stranger", &["-n", "root", "-V", "-2d:-1d"]);
    for (key, certificate, expected) in [
        ("key", None, "for ann, bob): refused"),
        ("stranger", None, "it has expired"),
        ("stranger", Some("elsewhere"), "it is for another key"),
        ("key", Some("absent"), "absent: no such file"),
    ] {
        config.auth = with(key, certificate);
        let error = refused(&config).await.to_string();
        assert!(error.contains(expected), "{expected} in {error}");
    }
}

#[tokio::test]
async fn keys_and_certificates_of_the_agent_are_offered() {
    let server = authority_server().await;
    let socket = server.at("agent");
    let mut agent = agent(&socket).await;
    let add = |key: &str| add(&socket, &server.at(key));
    let mut config = server.config();
    config.auth = vec![Auth::Agent(Some(socket.clone()))];
    assert!(refused(&config).await.to_string().contains("it holds no keys"));
    assert!(add("stranger"));
    assert!(refused(&config).await.to_string().contains("agent key test: refused"));
    certify(server.dir.path(), "ca", "id_rsa", &["-n", "root"]);
    assert!(add("id_rsa"));
    Connection::connect(&config).await.expect("the agent's certificate");
    agent.kill().await.unwrap();
    let error = refused(&config).await.to_string();
    assert!(
        error.contains("agent: not reachable") && error.contains(socket.to_str().unwrap()),
        "{error}"
    );
}

/// An agent of OpenSSH that listens at `socket`.
async fn agent(socket: &Path) -> tokio::process::Child {
    let agent = tokio::process::Command::new("ssh-agent")
        .arg("-D")
        .arg("-a")
        .arg(socket)
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    tokio::time::timeout(Duration::from_secs(10), async {
        while !socket.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("the agent listens");
    agent
}

fn add(socket: &Path, key: &Path) -> bool {
    let output = std::process::Command::new("ssh-add")
        .env("SSH_AUTH_SOCK", socket)
        .arg(key)
        .output()
        .unwrap();
    output.status.success()
}

#[tokio::test]
async fn of_an_agent_with_many_keys_the_one_that_is_named_comes_first() {
    let server = Server::start("").await;
    let socket = server.at("agent");
    let _agent = agent(&socket).await;
    for number in 1..=9 {
        let stranger = server.at(&format!("stranger-{number}"));
        keygen(&stranger, "ed25519", "");
        assert!(add(&socket, &stranger));
    }
    assert!(add(&socket, &server.at("key")));
    let mut config = server.config();
    config.auth = vec![Auth::Agent(Some(socket.clone()))];
    // OpenSSH's own limit.
    let error = refused(&config).await.to_string();
    assert!(
        error.contains("gave up after 6 tries") && error.contains("ssh.pk"),
        "{error}"
    );
    assert_eq!(error.matches("agent key test: refused").count(), 6, "{error}");

    // Its private part is with the agent alone.
    fs::remove_file(server.at("key")).unwrap();
    let named = |name: &str| Auth::KeyFile {
        path: server.at(name),
        certificate: None,
        passphrase: None,
    };
    for name in ["key", "key.pub"] {
        config.auth = vec![named(name), Auth::Agent(Some(socket.clone()))];
        Connection::connect(&config).await.expect("the key that is named");
    }
    // A key that was refused already is no further try.
    config.auth = vec![
        named("stranger-1"),
        named("stranger-2"),
        Auth::Agent(Some(socket.clone())),
    ];
    let error = refused(&config).await.to_string();
    assert_eq!(error.matches("agent key test: refused").count(), 4, "{error}");
}

#[tokio::test]
async fn the_program_that_sudo_refuses_is_named() {
    let server = Server::start_with("", |dir| {
        let passwd = dir.join("passwd");
        let users = "ann:x:0:0:ann:/:/bin/sh\nsshd:x:109:65534::/run/sshd:/usr/sbin/nologin\n";
        fs::write(&passwd, users).unwrap();
        fs::write(dir.join("setup"), format!("mount --bind {} /etc/passwd\n", passwd.display())).unwrap();
        // Says what sudo says, in its first locale.
        let sudo = "#!/bin/sh\nwhile [ \"$1\" != -- ]; do shift; done; shift\n[ \"$1\" != true ] || exit 0\n\
                    echo \"sudo: unable to resolve host h: Name or service not known\" >&2\n[ \"$1\" != false ] || exit 1\n\
                    echo \"Sorry, user ann is not allowed to execute '/usr/bin/$1' as root on h.\" >&2; exit 1\n";
        fs::create_dir(dir.join("bin")).unwrap();
        fs::write(dir.join("bin/sudo"), sudo).unwrap();
        fs::set_permissions(dir.join("bin/sudo"), fs::Permissions::from_mode(0o755)).unwrap();
        format!("SetEnv PATH={}/bin:/usr/bin:/bin", dir.display())
    })
    .await;
    let mut config = server.config();
    config.user = "ann".into();
    let connection = Connection::connect(&config).await.unwrap();
    let run = async |program: &str| {
        let root = Become::Root { password: None };
        connection.exec(&Command::new([program, "x"]).elevate(root)).await
    };
    let error = run("mkdir").await.unwrap_err();
    assert!(matches!(error, Error::Sudo { .. }), "{error}");
    let error = error.to_string();
    assert!(
        error.contains("to run mkdir") && error.contains("sudoers does not allow it"),
        "{error}"
    );
    // A program that fails by itself is none that sudo refused.
    assert_eq!(run("false").await.unwrap().status, ExitStatus::Code(1));
}

#[tokio::test]
async fn a_hosts_certificate_is_believed_by_its_authority_only() {
    let certified = |key: &'static str, more: &'static [&'static str]| {
        Server::start_with("", move |dir| {
            keygen(&dir.join("ca"), "ed25519", "");
            let all = [&["-h"], more].concat();
            certify(dir, "ca", key, &all);
            format!("HostCertificate {}/{key}-cert.pub", dir.display())
        })
    };
    let server = certified("host_ed25519", &["-n", "127.0.0.1"]).await;
    let mut config = server.config();
    config.host_key.accept_new = false;
    let known = |server: &Server, marker: &str, hosts: &str, key: &str| {
        let key = fs::read_to_string(server.at(key)).unwrap();
        format!("{marker} {hosts} {key}")
    };
    let trust = |server: &Server, lines: &[String]| fs::write(server.at("known_hosts"), lines.concat()).unwrap();
    let authority = known(&server, "@cert-authority", "127.*", "ca.pub");
    trust(&server, std::slice::from_ref(&authority));
    Connection::connect(&config)
        .await
        .expect("the authority vouches for it");
    assert_eq!(fs::read_to_string(server.at("known_hosts")).unwrap(), authority);

    let rsa = certified("host_rsa", &["-n", "127.0.0.1"]).await;
    let mut rsa_config = rsa.config();
    rsa_config.host_key.accept_new = false;
    trust(&rsa, &[known(&rsa, "@cert-authority", "127.*", "ca.pub")]);
    Connection::connect(&rsa_config)
        .await
        .expect("RSA keys have certificates too");

    // An authority for other hosts, or another authority, says nothing about this one.
    for lines in [
        [known(&server, "@cert-authority", "10.*", "ca.pub")],
        [known(&server, "@cert-authority", "127.*", "stranger.pub")],
    ] {
        trust(&server, &lines);
        let error = refused(&config).await;
        assert!(matches!(error, Error::HostKeyUnknown { .. }), "{error}");
    }
    for revoked in ["ca.pub", "host_ed25519.pub"] {
        trust(&server, &[authority.clone(), known(&server, "@revoked", "*", revoked)]);
        let error = refused(&config).await;
        assert!(matches!(error, Error::HostKeyRevoked { .. }), "{error}");
    }

    for (more, expected) in [
        (&["-n", "other.example"][..], "it is for other.example"),
        (&["-n", "127.0.0.1", "-V", "-3d:-2d"][..], "it has expired 2 days ago"),
    ] {
        let server = certified("host_ed25519", more).await;
        let mut config = server.config();
        config.host_key.accept_new = true;
        trust(&server, &[known(&server, "@cert-authority", "*", "ca.pub")]);
        let error = refused(&config).await.to_string();
        assert!(
            error.contains(expected)
                && error.contains(&server.fingerprint("ca.pub"))
                && error.contains("known_hosts:1"),
            "{error}"
        );
    }
}
