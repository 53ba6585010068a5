use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use clusterfile::Secret;

use super::*;

fn file(content: &str) -> (tempfile::TempDir, AuthFile) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("auth.json");
    std::fs::write(&path, content).unwrap();
    (dir, AuthFile::new(&path))
}

fn password(user: &str, password: &str) -> Option<Login> {
    Some(Login::Password {
        user: user.into(),
        password: Secret::new(password),
    })
}

#[test]
fn the_longest_key_that_fits_holds_however_it_is_written() {
    // dTpw = u:p, dTp0ZWFt = u:team, ZDpo = d:h, eDp5OnoAAA== = x:y:z and two zero bytes
    let (_dir, file) = file(
        r#"{"auths": {"quay.io": {"auth": "dTpw"}, "quay.io/team": {"auth": "dTp0ZWFt"}, "https://index.docker.io/v1/": {"auth": "ZDpo"},
            "http://a.b:5000/v2/": {"auth": "eDp5OnoAAA=="}, "token.io": {"identitytoken": "t"}, "bearer.io": {"registrytoken": "b"},
            "plain.io": {"username": "u", "password": "p"}, "empty.io": {}}, "HttpHeaders": {"X": "y"}}"#,
    );
    for (repository, expected) in [
        ("quay.io", password("u", "p")),
        ("quay.io/other/app", password("u", "p")),
        ("quay.io/team/app", password("u", "team")),
        ("quay.io/teams/app", password("u", "p")),
        ("docker.io/library/nginx", password("d", "h")),
        ("a.b:5000/x", password("x", "y:z")),
        ("token.io/x", Some(Login::IdentityToken(Secret::new("t")))),
        ("bearer.io/x", Some(Login::BearerToken(Secret::new("b")))),
        ("plain.io/x", password("u", "p")),
        ("empty.io/x", None),
        ("a.b/x", None),
    ] {
        assert_eq!(file.login(repository).unwrap(), expected, "{repository}");
    }
}

#[test]
fn files_are_asked_in_order_and_absent_ones_have_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let env = CredentialEnv {
        home: Some(dir.path().join("home")),
        runtime_dir: Some(dir.path().join("run")),
        ..CredentialEnv::default()
    };
    assert_eq!(env.files().login("a.b/x").unwrap(), None);
    let docker = dir.path().join("home/.docker/config.json");
    AuthFile::new(&docker)
        .store("a.b", "docker", &Secret::new("1"))
        .unwrap();
    assert_eq!(env.files().login("a.b/x").unwrap(), password("docker", "1"));
    AuthFile::new(&dir.path().join("run/containers/auth.json"))
        .store("a.b", "podman", &Secret::new("2"))
        .unwrap();
    assert_eq!(env.files().login("a.b/x").unwrap(), password("podman", "2"));
    AuthFile::new(&env.own_file())
        .store("a.b", "own", &Secret::new("3"))
        .unwrap();
    assert_eq!(env.files().login("a.b/x").unwrap(), password("own", "3"));
    assert_eq!(
        CredentialFiles::only(&docker).login("a.b").unwrap(),
        password("docker", "1")
    );
    let other = CredentialEnv {
        docker_config: Some(dir.path().join("home/.docker")),
        ..CredentialEnv::default()
    };
    assert_eq!(other.files().login("a.b").unwrap(), password("docker", "1"));
}

#[test]
fn a_login_is_kept_for_its_owner_only_and_leaves_the_rest_of_the_file_alone() {
    let (dir, file) =
        file(r#"{"auths": {"https://a.b/v1/": {"auth": "eDp4"}, "c.d": {"auth": "eDp4"}}, "other": [1]}"#);
    std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(0o644)).unwrap();
    file.store("a.b", "me", &Secret::new("s:e")).unwrap();
    assert_eq!(file.login("a.b/x").unwrap(), password("me", "s:e"));
    assert_eq!(file.login("c.d/x").unwrap(), password("x", "x"));
    assert_eq!(file.keys().unwrap(), ["a.b", "c.d"]);
    let text = std::fs::read_to_string(file.path()).unwrap();
    assert!(text.contains("\"other\"") && !text.contains("https://"), "{text}");
    let mode = std::fs::metadata(file.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(file.forget("a.b").unwrap() && !file.forget("a.b").unwrap());
    assert_eq!(file.login("a.b").unwrap(), None);

    let new = AuthFile::new(&dir.path().join("x/y/auth.json"));
    assert!(!new.forget("a.b").unwrap() && !new.path().exists());
    new.store("a.b/team", "me", &Secret::new("")).unwrap();
    let folder = std::fs::metadata(dir.path().join("x/y")).unwrap().permissions().mode();
    assert_eq!(folder & 0o777, 0o700);
    assert!(new.store("a.b", "a:b", &Secret::new("x")).is_err());
}

#[test]
fn a_malformed_file_is_refused_without_showing_what_it_holds() {
    for content in [
        r#"{"auths": "hunter2"}"#,
        r#"{"auths": {"a.b": {"auth": 7, "x": "hunter2"}}}"#,
        r#"{"auths": {"a.b": {"auth": "hunter2!"}}}"#,
        r#"{"auths": {"a.b": {"auth": "aHVudGVyMg=="}}}"#,
        r#"{"auths": {"a.b": {"auth": "hunter2""#,
        "hunter2",
    ] {
        let (_dir, file) = file(content);
        let error = file.login("a.b/x").unwrap_err().to_string();
        assert!(
            error.contains("auth.json: ") && !error.contains("hunter2") && !error.contains("aHVu"),
            "{error}"
        );
    }
    let (_dir, file) = file(" \n");
    assert_eq!(file.login("a.b").unwrap(), None);
}

#[test]
fn keys_are_registries_and_paths_in_them() {
    for (text, key) in [
        ("quay.io", "quay.io"),
        ("https://quay.io/", "quay.io"),
        ("https://index.docker.io/v1/", "docker.io"),
        ("registry.corp:5000/team/a", "registry.corp:5000/team/a"),
        ("localhost", "localhost"),
    ] {
        assert_eq!(registry_key(text).unwrap(), key, "{text}");
    }
    for bad in ["", "team", "a b", "quay.io:x", "quay.io/Team", "user@quay.io"] {
        assert!(registry_key(bad).is_err(), "{bad}");
    }
}

/// A helper that lies in PATH under an own name; a test's own process has only one PATH, so all cases share it.
#[test]
fn helper_programs_are_asked_and_not_waited_for_forever() {
    let dir = tempfile::tempdir().unwrap();
    let helper = |name: &str, script: &str| {
        let path = dir.path().join(format!("docker-credential-{name}"));
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    helper(
        "good",
        r#"[ "$1" = get ] && read -r host; printf '{"ServerURL":"%s","Username":"%s","Secret":"s"}' "$host" "$host""#,
    );
    helper("token", r#"echo '{"Username":"<token>","Secret":"t"}'"#);
    helper("none", "echo 'credentials not found in native keychain'; exit 1");
    helper("broken", "echo 'no bus'; exit 3");
    helper("babble", "echo hunter2");
    helper("hang", "exec 1>&-; exec sleep 60");
    helper("deaf", "exec sleep 60");
    let name = |program: &str| {
        dir.path()
            .join(format!("docker-credential-{program}"))
            .display()
            .to_string()
    };
    let run = |program: &str, host: &str, patience| {
        helper::login_by(&name(program), program, host, Path::new("f.json"), patience)
    };
    let long = Duration::from_secs(20);
    assert_eq!(run("good", "a.b", long).unwrap(), password("a.b", "s"));
    assert_eq!(
        run("good", "docker.io", long).unwrap(),
        password("https://index.docker.io/v1/", "s")
    );
    assert_eq!(
        run("token", "a.b", long).unwrap(),
        Some(Login::IdentityToken(Secret::new("t")))
    );
    assert_eq!(run("none", "a.b", long).unwrap(), None);
    for (program, expected) in [
        ("broken", "failed (exit status: 3): no bus"),
        ("babble", "gave no login"),
        ("absent", "cannot be run"),
    ] {
        let error = run(program, "a.b", long).unwrap_err().to_string();
        assert!(
            error.contains(expected) && error.contains("f.json") && !error.contains("hunter2"),
            "{error}"
        );
    }
    for program in ["hang", "deaf"] {
        let start = Instant::now();
        let error = run(program, "a.b", Duration::from_millis(300)).unwrap_err().to_string();
        assert!(error.contains("in time"), "{error}");
        assert!(start.elapsed() < Duration::from_secs(15));
    }
    let (_dir, file) = file(r#"{"credHelpers": {"a.b": "../x"}, "credsStore": "installer-test-absent"}"#);
    assert!(
        file.login("a.b/x")
            .unwrap_err()
            .to_string()
            .contains("is no name of a program")
    );
    assert!(
        file.login("c.d/x")
            .unwrap_err()
            .to_string()
            .contains("docker-credential-installer-test-absent")
    );
    assert!(
        file.store("c.d", "u", &Secret::new("p")).is_err(),
        "the helper has the say"
    );
}
