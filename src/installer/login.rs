//! `installer login`: a login for a registry, tried and stored for later builds and pulls.

use crate::{context::Context, failure::Exit, registry_args::RegistryArgs};
use anyhow::{Context as _, bail};
use clusterfile::Secret;
use image::{AuthFile, Credentials, Login, Remote, registry_key};
use std::{
    io::{IsTerminal, Read},
    sync::Arc,
};
use zeroize::Zeroizing;

/// A longer password is a mistake, in bytes.
const LONGEST: u64 = 64 << 10;

/// Flags of `login`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  installer login quay.io -u me                                     asks for the password
  installer login registry.corp:5000/team -u robot --password-stdin < token

The login is stored for its owner only (mode 0600), in the file format of docker and podman.")]
pub struct Args {
    /// The registry, or a path in it that has a login of its own
    #[arg(value_name = "HOST[:PORT][/PATH]")]
    pub registry: String,
    /// Name of the user
    #[arg(short, long, value_name = "USER")]
    pub username: String,
    /// Read the password from standard input
    #[arg(long)]
    pub password_stdin: bool,
    /// How to speak to the registry.
    #[command(flatten)]
    pub registries: RegistryArgs,
}

/// The one login that is tried.
struct Tried(Login);

impl Credentials for Tried {
    fn login(&self, _: &str) -> Result<Option<Login>, image::Error> {
        Ok(Some(self.0.clone()))
    }
}

/// Tries the login, and stores it if the registry takes it.
pub async fn run(args: Args, context: &Context) -> anyhow::Result<Exit> {
    let key = registry_key(&args.registry)?;
    let password = if args.password_stdin {
        from_stdin()?
    } else {
        ask(&args.username, &key)?
    };
    if password.expose().is_empty() {
        bail!("the password is empty");
    }
    log_in(&args, &key, password, context).await
}

async fn log_in(args: &Args, key: &str, password: Secret, context: &Context) -> anyhow::Result<Exit> {
    let mut options = args.registries.remote();
    options.credentials = Arc::new(Tried(Login::Password {
        user: args.username.clone(),
        password: password.clone(),
    }));
    Remote::new(options)?.check_login(key).await?;
    let file = AuthFile::new(&args.registries.own_file());
    file.store(key, &args.username, &password)?;
    context.out.note(format!(
        "the login of {} for {key} is stored in {}",
        args.username,
        file.path().display()
    ));
    Ok(Exit::Done)
}

fn from_stdin() -> anyhow::Result<Secret> {
    password(std::io::stdin())
}

/// All of what is given: half a password is none.
fn password(input: impl Read) -> anyhow::Result<Secret> {
    let mut text = Zeroizing::new(String::new());
    input
        .take(LONGEST + 1)
        .read_to_string(&mut text)
        .context("cannot read the password from standard input")?;
    if text.len() as u64 > LONGEST {
        bail!("the password on standard input has more than {LONGEST} bytes; give the password alone");
    }
    Ok(Secret::new(text.trim_end_matches(['\r', '\n'])))
}

fn ask(user: &str, registry: &str) -> anyhow::Result<Secret> {
    if !std::io::stdin().is_terminal() {
        bail!("standard input is no terminal: give the password with --password-stdin");
    }
    let terminal = console::Term::stderr();
    terminal.write_str(&format!("Password of {user} for {registry}: "))?;
    Ok(Secret::new(terminal.read_secure_line()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_taken_whole_or_not_at_all() {
        let of = |bytes: usize| password(std::io::repeat(b'x').take(bytes as u64));
        let most = LONGEST as usize;
        assert_eq!(of(most).unwrap().expose().len(), most);
        assert!(of(most + 1).unwrap_err().to_string().contains("more than 65536 bytes"));
        assert_eq!(password(&b"hunter2\r\n"[..]).unwrap().expose(), "hunter2");
    }
    use crate::{cli::Cli, cli::Command, logout};
    use clap::Parser as _;
    use std::{
        io::{BufRead as _, BufReader, Write as _},
        net::TcpListener,
    };

    /// A registry that lets in who comes as `me` with the password `s3cret`.
    fn registry() -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let lines = BufReader::new(stream.try_clone().unwrap())
                    .lines()
                    .map_while(Result::ok);
                let head: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
                let good = head.iter().any(|line| line.ends_with("Basic bWU6czNjcmV0"));
                let status = if good {
                    "200 OK"
                } else {
                    "401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"x\""
                };
                let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        address
    }

    #[tokio::test]
    async fn only_a_login_that_the_registry_takes_is_stored_and_logout_forgets_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("auth.json");
        let (address, authfile) = (registry(), file.display().to_string());
        let parse = |words: &[&str]| {
            let words = ["installer", "--quiet"].iter().chain(words);
            let cli = Cli::try_parse_from(words.chain(&["--authfile", authfile.as_str()])).unwrap();
            let out = crate::output::Output::new(cli.command.format(), true, 0);
            let context = Context::new(&cli, out, crate::log::Log::default()).unwrap();
            (cli.command, context)
        };
        let words = [
            "login",
            &address,
            "-u",
            "me",
            "--password-stdin",
            "--insecure-registry",
            &address,
        ];
        let (Command::Login(args), context) = parse(&words) else {
            panic!("it is a login")
        };
        let error = log_in(&args, &address, Secret::new("hunter2"), &context)
            .await
            .unwrap_err();
        let error = format!("{error:#}");
        assert!(error.contains("was refused") && !error.contains("hunter2"), "{error}");
        assert!(!file.exists());
        let exit = log_in(&args, &address, Secret::new("s3cret"), &context).await.unwrap();
        assert_eq!(exit, Exit::Done);
        assert_eq!(AuthFile::new(&file).keys().unwrap(), std::slice::from_ref(&address));

        let (Command::Logout(args), context) = parse(&["logout", &address]) else {
            panic!("it is a logout")
        };
        assert_eq!(logout::run(&args, &context).unwrap(), Exit::Done);
        assert!(AuthFile::new(&file).keys().unwrap().is_empty());
        assert!(
            logout::run(&args, &context)
                .unwrap_err()
                .to_string()
                .contains("has no login")
        );
    }
}
