//! The program as users and shells run it.

#![allow(clippy::unwrap_used)] // a failing step fails the test

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_installer");

const CLUSTERFILE: &str = "apiVersion: sealer.io/v2\nkind: Cluster\nmetadata: {name: demo}\nspec:\n  image: local/none:v1\n  ssh: {port: 1, passwd: Pl4nted}\n  hosts: [{ips: [127.0.0.1], roles: [master]}, {ips: [127.0.0.2, 127.0.0.3], roles: [node]}]\n";

/// A home of its own with a Clusterfile and a store with one image.
fn home() -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("Clusterfile"), CLUSTERFILE).unwrap();
    home
}

fn command(home: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(PROGRAM);
    command
        .args(args)
        .current_dir(home)
        .env_clear()
        .env("HOME", home)
        .env("PATH", std::env::var("PATH").unwrap());
    command
}

fn run(home: &Path, args: &[&str]) -> Output {
    command(home, args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn build(home: &Path, name: &str) {
    fs::create_dir_all(home.join("image")).unwrap();
    fs::write(home.join("image/Kubefile"), "FROM scratch\nCOPY Kubefile etc/hello\n").unwrap();
    let built = run(home, &["build", "-t", name, "image"]);
    assert!(built.status.success(), "{}", text(&built.stderr));
}

/// What bash offers, with the script of `completion bash` sourced, for the last of these words.
fn offered(home: &Path, words: &[&str]) -> Vec<String> {
    let script = r#"
        set -eu
        source <(installer completion bash)
        [[ $(complete -p installer) =~ -F\ ([^ ]+) ]]
        COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}; COMP_TYPE=9; COMP_KEY=9
        COMPREPLY=()
        # bash tells the function the program, the word that is typed, and the one before.
        "${BASH_REMATCH[1]}" installer "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}" 2>/dev/null || true
        printf '%s\n' "${COMPREPLY[@]}"
    "#;
    let programs = Path::new(PROGRAM).parent().unwrap();
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    let mut bash = Command::new("bash");
    bash.args(["--norc", "-c", script, "bash", "installer"])
        .args(words)
        .current_dir(home);
    let output = bash.env_clear().env("HOME", home).env("PATH", path).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
        .lines()
        .map(|line| line.trim_end().to_owned())
        .filter(|line| !line.is_empty())
        .collect()
}

#[test]
fn bash_completes_commands_flags_images_and_hosts() {
    let home = home();
    build(home.path(), "local/shop:v1");
    build(home.path(), "local/web:v2");
    fs::write(
        home.path().join("other.yaml"),
        CLUSTERFILE.replace("127.0.0.1", "10.9.9.9"),
    )
    .unwrap();
    let cases: [(&[&str], &[&str]); 10] = [
        (&["app"], &["apply"]),
        (&["apply", "--rep"], &["--report"]),
        (&["check", "-o", "j"], &["json"]),
        (&["inspect", "local/"], &["local/shop:v1", "local/web:v2"]),
        (&["diff", "local/shop:v1", "local/w"], &["local/web:v2"]),
        (
            &["exec", "--nodes", "127.0.0."],
            &["127.0.0.1", "127.0.0.2", "127.0.0.3"],
        ),
        (&["exec", "-f", "other.yaml", "--nodes", "10."], &["10.9.9.9"]),
        (&["reset", "--nodes", "127.0.0.1,127.0.0.2"], &["127.0.0.1,127.0.0.2"]),
        (&["run", "local/s"], &["local/shop:v1"]),
        (&["apply", "--ignore-preflight", "swap,mem"], &["swap,memory"]),
    ];
    for (words, expected) in cases {
        assert_eq!(offered(home.path(), words), expected, "{words:?}");
    }
    // Hosts that are about to join are in no Clusterfile.
    assert!(
        !offered(home.path(), &["join", "--nodes", "127."])
            .iter()
            .any(|word| word.starts_with("127"))
    );
}

#[test]
fn scripts_are_there_for_other_shells_too() {
    let home = home();
    for shell in ["zsh", "fish", "elvish", "powershell"] {
        let output = run(home.path(), &["completion", shell]);
        assert!(
            output.status.success() && text(&output.stdout).contains("INSTALLER_COMPLETE"),
            "{shell}"
        );
    }
}

#[test]
fn man_writes_pages_that_a_formatter_reads() {
    let home = home();
    assert!(run(home.path(), &["man", "man"]).status.success());
    let page = fs::read_to_string(home.path().join("man/installer-support-bundle.1")).unwrap();
    assert!(page.contains(".SH EXAMPLES") && page.contains("SYNOPSIS"), "{page}");
    // Where there is a formatter it has nothing to complain of.
    if let Ok(formatted) = Command::new("groff")
        .args(["-man", "-Tutf8", "-ww"])
        .arg(home.path().join("man/installer.1"))
        .output()
    {
        assert!(
            formatted.status.success() && formatted.stderr.is_empty(),
            "{}",
            text(&formatted.stderr)
        );
    }
}

#[test]
fn a_failed_apply_leaves_a_log_a_report_and_a_whole_stream_of_events() {
    let home = home();
    let args = ["apply", "-o", "json", "--report", "r.html", "--log-file", "l.log"];
    let output = run(home.path(), &args);
    assert_eq!(output.status.code(), Some(1));
    let stdout = text(&output.stdout);
    let events: Vec<serde_json::Value> = stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let names: Vec<&str> = events.iter().map(|event| event["event"].as_str().unwrap()).collect();
    assert_eq!(
        (names.first(), names.last()),
        (Some(&"started"), Some(&"ended")),
        "{stdout}"
    );
    assert!(
        names.contains(&"error") && events.last().unwrap()["exit"] == 1,
        "{stdout}"
    );
    assert!(
        fs::read_to_string(home.path().join("r.html"))
            .unwrap()
            .contains("Why it failed")
    );
    let log = fs::read_to_string(home.path().join("l.log")).unwrap();
    assert!(log.contains(r#""event":"error""#) && !log.contains("Pl4nted"), "{log}");
    let kept: Vec<_> = fs::read_dir(home.path().join(".local/state/installer/logs"))
        .unwrap()
        .flatten()
        .collect();
    assert_eq!(kept.len(), 1);
    assert_eq!(fs::read_to_string(kept[0].path()).unwrap(), log);
}

#[test]
fn an_interrupted_command_ends_its_stream() {
    use std::io::{BufRead as _, BufReader, Read as _};
    let home = home();
    // Somebody who takes connections and never says a word.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let text = CLUSTERFILE.replace("port: 1,", &format!("port: {port},"));
    fs::write(home.path().join("Clusterfile"), text).unwrap();
    let mut command = command(home.path(), &["check", "-o", "json"]);
    let mut child = command
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let mut first = String::new();
    lines.read_line(&mut first).unwrap();
    assert!(first.contains("\"started\""), "{first}");
    // It is connected: now it waits.
    let (_held, _) = silent.accept().unwrap();
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    let mut rest = String::new();
    lines.read_to_string(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let last = rest.lines().last().unwrap();
    assert!(
        rest.contains("interrupted") && last.contains("\"ended\"") && last.contains("\"exit\":130"),
        "{rest}"
    );
}

#[test]
fn quiet_says_errors_only_and_tells_of_no_log() {
    let home = home();
    // An even number of masters is warned of.
    fs::write(
        home.path().join("Clusterfile"),
        CLUSTERFILE.replace("[127.0.0.1]", "[127.0.0.1, 127.0.0.4]"),
    )
    .unwrap();
    let loud = text(&run(home.path(), &["apply"]).stderr);
    for word in ["warning:", "error:", "log: "] {
        assert!(loud.contains(word), "{loud}");
    }
    let quiet = run(home.path(), &["-q", "apply"]);
    let stderr = text(&quiet.stderr);
    assert_eq!(quiet.status.code(), Some(1));
    assert!(stderr.starts_with("error:"), "{stderr}");
    assert!(!stderr.contains("log: ") && !stderr.contains("warning:"), "{stderr}");
    let events = text(&run(home.path(), &["-q", "apply", "-o", "json"]).stdout);
    assert!(
        events.contains(r#""event":"warning""#),
        "programs are told all the same: {events}"
    );
    let verbose = text(&run(home.path(), &["-vv", "apply"]).stderr);
    assert!(
        verbose.contains("DEBUG") && !verbose.contains(r#""event""#),
        "{verbose}"
    );
    assert!(quiet.stdout.is_empty());
    assert_eq!(
        run(home.path(), &["-q", "-v", "apply"]).status.code(),
        Some(2),
        "both make no sense"
    );
}

#[test]
fn files_that_cannot_be_written_are_refused_before_anything_is_done() {
    let home = home();
    for (flag, file) in [("--report", "none/r.html"), ("--log-file", "none/l.log")] {
        let output = run(home.path(), &["apply", flag, file]);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr.contains(file) && stderr.contains("choose a file"), "{stderr}");
        assert!(!stderr.contains("local/none"), "{stderr}");
    }
}

#[test]
fn no_log_is_kept_of_what_only_looks_at_this_machine() {
    let home = home();
    for args in [vec!["version"], vec!["images"], vec!["completion", "bash"]] {
        assert!(run(home.path(), &args).status.success());
    }
    assert!(!home.path().join(".local/state").exists());
}

#[test]
fn run_writes_a_clusterfile_that_gen_users_can_read_and_never_overwrites_one() {
    let home = home();
    let args = [
        "run",
        "local/shop:v1",
        "--masters",
        "10.0.0.1",
        "--nodes",
        "10.0.0.2",
        "--dry-run",
        "--clusterfile",
        "new.yaml",
    ];
    let output = run(home.path(), &args);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(
        fs::read_to_string(home.path().join("new.yaml"))
            .unwrap()
            .contains("name: shop")
    );
    assert!(run(home.path(), &args).status.success(), "the same again is no error");
    let output = run(
        home.path(),
        &[
            "run",
            "local/shop:v2",
            "--masters",
            "10.0.0.1",
            "--dry-run",
            "--clusterfile",
            "new.yaml",
        ],
    );
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("says something else"));
}

#[test]
fn gen_says_where_to_ask() {
    let home = home();
    for (args, remedy) in [
        (vec!["gen"], "--master IP"),
        (vec!["gen", "--user", "ann"], "need --master IP"),
        (
            vec!["gen", "--master", "127.0.0.1", "--port", "1"],
            "is sshd running there",
        ),
    ] {
        let output = run(home.path(), &args);
        assert_eq!(output.status.code(), Some(1));
        assert!(
            text(&output.stderr).contains(remedy),
            "{args:?}: {}",
            text(&output.stderr)
        );
    }
}

#[test]
fn a_support_bundle_is_written_although_nobody_answers() {
    let home = home();
    let output = run(home.path(), &["support-bundle", "-o", "b.tar.gz"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "b.tar.gz\n");
    let unpacked = Command::new("tar")
        .args(["xzf", "b.tar.gz", "--strip-components=1"])
        .current_dir(home.path())
        .status()
        .unwrap();
    assert!(unpacked.success());
    let summary: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(home.path().join("summary.json")).unwrap()).unwrap();
    assert_eq!(summary["parts"].as_array().unwrap().len(), 4);
    assert!(home.path().join("hosts/127.0.0.3/not-reached.failed.txt").exists());
    let inside = fs::read_to_string(home.path().join("installer/clusterfile.json")).unwrap();
    assert!(inside.contains("local/none:v1") && !inside.contains("Pl4nted"));
    assert_eq!(
        run(home.path(), &["support-bundle", "-o", "b.tar.gz"]).status.code(),
        Some(1),
        "never overwritten"
    );
}

#[test]
fn what_is_not_there_is_told_once_with_what_to_do() {
    let home = home();
    let error = text(&run(home.path(), &["plan"]).stderr);
    assert_eq!(error.matches("local/none:v1 is not in the store").count(), 1, "{error}");
    for way in [
        "installer load -i FILE",
        "installer pull local/none:v1",
        "installer build -t local/none:v1",
    ] {
        assert!(error.contains(way), "{way}: {error}");
    }
    build(home.path(), "local/nine:v1");
    let error = text(&run(home.path(), &["plan"]).stderr);
    assert!(error.contains("did you mean \"local/nine:v1\"?"), "{error}");
    let error = text(&run(home.path(), &["plan", "-f", "none.yaml"]).stderr);
    assert!(
        error.contains("there is no file none.yaml: name the Clusterfile with -f FILE") && !error.contains("os error"),
        "{error}"
    );
}

#[test]
fn what_goes_to_a_file_has_no_colours() {
    let home = home();
    let output = run(home.path(), &["-vvv", "plan"]);
    let error = text(&output.stderr);
    assert!(error.lines().count() > 1, "nothing was told: {error}");
    assert!(!error.contains('\u{1b}'), "{error:?}");
}
