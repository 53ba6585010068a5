//! Programs of the user, run on hosts: hooks, launch commands, scripts of applications. Their output is told line by line; one that
//! fails is told with its exit code and its last lines.

use crate::{
    Error, Result,
    event::{Event, Observer},
    paths,
    session::Session,
    site::{Seat, Site},
};
use host::{
    Content, Effect,
    effect::File,
    proto::{Exec, ExecResult, Stream},
};
use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

/// Lines of output that an error repeats.
const TAIL: usize = 10;

/// A program to run on a host.
#[derive(Debug, Clone)]
pub struct Job {
    /// What it is, for people: `hook tune (pre-init-host)`.
    pub what: String,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Its environment besides PATH.
    pub env: BTreeMap<String, String>,
    /// Working folder.
    pub cwd: String,
    /// When it is stopped.
    pub limit: Duration,
}

/// The words that run a script: those of its first line, if it says so, else a plain shell.
pub fn interpreter(text: &str, path: &str) -> Vec<String> {
    let first = text.lines().next().unwrap_or_default();
    let words: Vec<&str> = first
        .strip_prefix("#!")
        .map_or_else(|| vec!["/bin/sh"], |words| words.split_whitespace().collect());
    let words = if words.is_empty() { vec!["/bin/sh"] } else { words };
    words.into_iter().chain([path]).map(str::to_owned).collect()
}

/// What every program of the user sees of the cluster: all that templates see, and the way into the cluster where there is one.
pub fn environment(site: &Site, seat: &Seat) -> BTreeMap<String, String> {
    let mut env = site.variables(seat);
    if seat.master {
        env.insert("KUBECONFIG".to_owned(), paths::ADMIN_CONF.to_owned());
    }
    env.extend(caches(&site.scope));
    env
}

/// Clients keep what they learn of an API server in the home folder unless they are told otherwise; there a reset would leave it.
pub fn caches(scope: &host::Scope) -> BTreeMap<String, String> {
    let folder = |name: &str| format!("{}/cache/{name}", scope.dir());
    [
        ("KUBECACHEDIR", "kube"),
        ("HELM_CACHE_HOME", "helm"),
        ("HELM_CONFIG_HOME", "helm-config"),
        ("HELM_DATA_HOME", "helm-data"),
    ]
    .map(|(name, place)| (name.to_owned(), folder(place)))
    .into()
}

/// Runs a program to its end; `host` is how its host is called.
///
/// # Errors
/// When it cannot be run, ends with another code than 0, or is stopped because it takes too long.
pub async fn run(session: &Session, host: &str, observer: &dyn Observer, job: Job) -> Result<()> {
    let mut tail = Tail::default();
    let command = shell_line(&job.argv).map(str::to_owned);
    let mut absent = None;
    let exec = Exec {
        argv: job.argv,
        env: job.env,
        cwd: Some(job.cwd),
        timeout_ms: u64::try_from(job.limit.as_millis()).unwrap_or(u64::MAX),
        ..Exec::default()
    };
    let told = |stream: Stream, line: &str| {
        tail.push(line);
        if let (Stream::Stderr, Some(command), None) = (stream, &command, &absent) {
            absent = absent_program(command, line).map(str::to_owned);
        }
        observer.event(Event::Output {
            host: Some(host.to_owned()),
            what: job.what.clone(),
            stream,
            line: line.to_owned(),
        });
    };
    let ended = session.client.exec_telling(exec, told).await;
    let ended = ended.map_err(session.failed(format!("running {}", job.what)))?;
    tail.judge(format!("{host} ({})", session.ip), job.what, &ended, job.limit, absent)
}

/// The line that a shell runs, if the arguments are `/bin/sh -c LINE`.
fn shell_line(argv: &[String]) -> Option<&str> {
    match argv {
        [shell, flag, line] if shell == "/bin/sh" && flag == "-c" => Some(line),
        _ => None,
    }
}

/// The program that a command line runs to put its output in place (`$(NAME …)`), if a line of the shell's complaints says that
/// there is none. The shell goes on then, and may end with 0.
fn absent_program<'c>(command: &'c str, complaint: &str) -> Option<&'c str> {
    // dash: `/bin/sh: 1: NAME: not found`; bash: `/bin/sh: line 1: NAME: command not found`.
    let told = complaint.strip_prefix("/bin/sh: ")?;
    let told = told
        .strip_suffix(": not found")
        .or_else(|| told.strip_suffix(": command not found"))?;
    let name = told.rsplit(": ").next().filter(|name| !name.is_empty())?;
    command.match_indices(name).find_map(|(at, name)| {
        let before = command[..at].trim_end();
        let ends = command[at + name.len()..].chars().next();
        let is_whole = ends.is_none_or(|c| c.is_whitespace() || ")`;|&<>".contains(c));
        (is_whole && (before.ends_with("$(") || before.ends_with('`'))).then_some(name)
    })
}

/// Puts a script on the host, runs it there, and takes it away again, whether it went well or not.
///
/// # Errors
/// As [`run`]; also when the script cannot be put or removed.
pub async fn run_text(
    session: &Session,
    host: &str,
    observer: &dyn Observer,
    scope: &host::Scope,
    text: &str,
    job: Job,
) -> Result<()> {
    let name = oci::Digest::of(format!("{}\n{text}", job.what).as_bytes());
    let path = format!("{}/hooks/{}", scope.dir(), name.short());
    let put = Effect::File(File {
        path: path.clone(),
        content: Content::from(text),
        mode: 0o700,
        owner: None,
        secret: true,
    });
    let failed = |doing: &str| session.failed(format!("{doing} {}", job.what));
    session.client.apply(vec![put]).await.map_err(failed("putting"))?;
    let failed_to_remove = failed("removing");
    let argv = interpreter(text, &path);
    let ended = run(session, host, observer, Job { argv, ..job }).await;
    let removed = session.client.apply(vec![Effect::Absent { path }]).await;
    ended.and(removed.map(drop).map_err(failed_to_remove))
}

/// The last lines of what a program wrote.
#[derive(Default)]
struct Tail(VecDeque<String>);

impl Tail {
    fn push(&mut self, line: &str) {
        if line.trim().is_empty() {
            return;
        }
        if self.0.len() == TAIL {
            self.0.pop_front();
        }
        self.0.push_back(line.to_owned());
    }

    /// `absent` is a program that the shell should have put the output of in place, and did not find.
    fn judge(
        self,
        host: String,
        what: String,
        ended: &ExecResult,
        limit: Duration,
        absent: Option<String>,
    ) -> Result<()> {
        let how = match ended.code {
            Some(0) => match absent {
                None => return Ok(()),
                Some(name) => format!(
                    "ended with code 0, but its shell found no program {name} to put its output in place of $({name}); if it is \
                     a variable, write ${{{name}}}"
                ),
            },
            Some(code) => format!("ended with code {code}"),
            None => format!("was stopped because it took longer than {} s", limit.as_secs()),
        };
        Err(Error::Ran {
            host,
            what,
            how,
            tail: self.0.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_says_itself_what_runs_it() {
        for (text, expected) in [
            ("#!/usr/bin/env bash -e\necho", "/usr/bin/env bash -e /x"),
            ("#!\necho", "/bin/sh /x"),
            ("echo #!/bin/bash", "/bin/sh /x"),
            ("", "/bin/sh /x"),
        ] {
            assert_eq!(interpreter(text, "/x").join(" "), expected, "{text}");
        }
    }

    fn judged(lines: usize, ended: ExecResult) -> Option<String> {
        let mut tail = Tail::default();
        for line in 0..lines {
            tail.push(&format!("line {line}"));
            tail.push("  ");
        }
        let limit = Duration::from_secs(60);
        let judged = tail.judge(
            "m1 (10.0.0.1)".into(),
            "hook tune (pre-install)".into(),
            &ended,
            limit,
            None,
        );
        judged.err().map(|error| error.to_string())
    }

    #[test]
    fn a_failure_names_host_program_code_and_the_last_lines() {
        let code = |code| ExecResult {
            code,
            timed_out: code.is_none(),
            ..ExecResult::default()
        };
        assert_eq!(judged(3, code(Some(0))), None);
        let text = judged(12, code(Some(3))).unwrap();
        assert!(
            text.starts_with("m1 (10.0.0.1): hook tune (pre-install) ended with code 3; its last lines:\n  line 2\n"),
            "{text}"
        );
        assert!(text.ends_with("line 11"), "{text}");
        let late = judged(0, code(None)).unwrap();
        assert!(late.ends_with("took longer than 60 s; it wrote nothing"), "{late}");
    }

    /// What the shell of this machine says of a command line.
    fn absent(command: &str) -> Option<String> {
        let argv = ["/bin/sh", "-c", command].map(str::to_owned);
        let line = shell_line(&argv).unwrap();
        let ran = std::process::Command::new(&argv[0]).args(&argv[1..]).output().unwrap();
        let complaints = String::from_utf8(ran.stderr).unwrap();
        complaints
            .lines()
            .find_map(|said| absent_program(line, said))
            .map(str::to_owned)
    }

    #[test]
    fn a_program_that_a_shell_does_not_find_for_a_substitution_is_seen() {
        for (command, expected) in [
            ("echo name=$(NAME_OF_NOTHING)", Some("NAME_OF_NOTHING")),
            ("echo \"$( NAME_OF_NOTHING -x )\"; true", Some("NAME_OF_NOTHING")),
            ("echo `NAME_OF_NOTHING`", Some("NAME_OF_NOTHING")),
            ("echo $(echo x)", None),
            ("echo $(NAME_OF_NOTHING 2> /dev/null)", None),
            ("NAME_OF_NOTHING || echo it is not there", None),
        ] {
            assert_eq!(absent(command).as_deref(), expected, "{command}");
        }
        let bash = "/bin/sh: line 1: NAME: command not found";
        assert_eq!(absent_program("echo $(NAME)", bash), Some("NAME"));
        for other in [
            "NAME: not found",
            "/bin/sh: 1: OTHER: not found",
            "Error: NAME: not found",
        ] {
            assert_eq!(absent_program("echo $(NAME)", other), None, "{other}");
        }
        let ended = ExecResult {
            code: Some(0),
            ..ExecResult::default()
        };
        let (limit, name) = (Duration::from_secs(60), Some("NAME".to_owned()));
        let judged = Tail::default().judge("m1".into(), "launch command".into(), &ended, limit, name);
        let told = judged.unwrap_err().to_string();
        assert!(
            told.contains("found no program NAME") && told.contains("write ${NAME}"),
            "{told}"
        );
    }

    #[test]
    fn programs_on_masters_have_the_way_into_the_cluster() {
        let site = crate::testing::site();
        let env = |index: usize| environment(&site, &site.seats[index]);
        assert_eq!(env(0)["KUBECONFIG"], "/etc/kubernetes/admin.conf");
        assert!(!env(1).contains_key("KUBECONFIG"));
        assert_eq!(
            (env(1)["HostIP"].as_str(), env(1)["KUBECACHEDIR"].as_str()),
            ("10.0.0.2", "/var/lib/installer/demo/cache/kube")
        );
    }
}
