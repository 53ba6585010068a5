//! Proving who we are: every configured way in order, remembering what became of each for the error.

use std::{
    env,
    path::{Path, PathBuf},
    sync::Arc,
};

use russh::{
    MethodKind, MethodSet,
    client::{AuthResult, Handle, KeyboardInteractiveAuthResponse},
    keys::{
        Certificate, HashAlg, PrivateKey, PrivateKeyWithHashAlg, PublicKey,
        agent::{AgentIdentity, client::AgentClient},
        load_secret_key,
        ssh_key::public::KeyData,
    },
};

use crate::{Auth, Config, Error, Result, Secret, certificate, handler::Client, prompts::Prompts};

/// The attempts so far.
struct Attempts<'a> {
    config: &'a Config,
    tried: Vec<String>,
    offered: MethodSet,
    /// How many of them the server has judged.
    judged: usize,
    /// Keys it has judged.
    keys: Vec<KeyData>,
    /// Whether it ended the connection.
    hung_up: bool,
    /// Whether a key file is not what it should be.
    unreadable: bool,
}

/// Outcome of one attempt.
enum Outcome {
    In,
    Refused,
}

pub(crate) async fn authenticate(handle: &mut Handle<Client>, config: &Config) -> Result<()> {
    let mut attempts = Attempts {
        config,
        tried: Vec::new(),
        offered: MethodSet::empty(),
        judged: 0,
        keys: Vec::new(),
        hung_up: false,
        unreadable: false,
    };
    // `none` asks which methods there are; a server may also let us in at once.
    let first = handle.authenticate_none(&config.user).await;
    if let Outcome::In = attempts.note(first, "")? {
        return Ok(());
    }
    for auth in &config.auth {
        let outcome = match auth {
            Auth::KeyFile {
                path,
                certificate,
                passphrase,
            } => {
                let given = (certificate.as_deref(), passphrase.as_ref());
                attempts.key_file(handle, path, given).await?
            }
            Auth::Agent(socket) => attempts.agent(handle, socket.as_deref()).await?,
            Auth::Password(password) => attempts.password(handle, password).await?,
        };
        if let Outcome::In = outcome {
            return Ok(());
        }
    }
    Err(attempts.refused())
}

impl Attempts<'_> {
    fn lost(&self, error: impl std::fmt::Display) -> Error {
        Error::Lost {
            host: self.config.target(),
            reason: format!("{error} while authenticating"),
        }
    }

    fn note(&mut self, result: Result<AuthResult, russh::Error>, what: &str) -> Result<Outcome> {
        match result {
            Ok(AuthResult::Success) => Ok(Outcome::In),
            Ok(AuthResult::Failure {
                remaining_methods,
                partial_success,
            }) => {
                // The last that is known of a server that answers no more are not its methods. After `none`, they may
                // be.
                let over = remaining_methods.is_empty() && !partial_success && !what.is_empty();
                if over {
                    return self.hang_up(what);
                }
                self.offered = remaining_methods;
                if !what.is_empty() {
                    self.judged += 1;
                    let verdict = if partial_success {
                        "accepted, but the server wants one more"
                    } else {
                        "refused"
                    };
                    self.tried.push(format!("{what}: {verdict}"));
                }
                Ok(Outcome::Refused)
            }
            // The server hangs up after too many attempts: that is a refusal with a story, not a network fault.
            Err(_) if self.judged > 0 => self.hang_up(what),
            Err(e) => Err(self.lost(e)),
        }
    }

    fn hang_up(&mut self, what: &str) -> Result<Outcome> {
        self.judged += 1;
        self.hung_up = true;
        self.tried.push(format!("{what}: refused, and the server hung up"));
        Err(self.refused())
    }

    fn offers(&self, kind: MethodKind) -> bool {
        self.offered.contains(&kind)
    }

    async fn key_file(
        &mut self,
        handle: &mut Handle<Client>,
        path: &Path,
        (certificate, passphrase): (Option<&Path>, Option<&Secret>),
    ) -> Result<Outcome> {
        let what = format!("key {}", path.display());
        if !self.offers(MethodKind::PublicKey) {
            self.tried.push(format!("{what}: not offered"));
            return Ok(Outcome::Refused);
        }
        let key = match load_secret_key(path, passphrase.map(Secret::expose)) {
            Ok(key) => key,
            Err(e) => {
                self.unreadable = true;
                self.tried
                    .push(format!("{what}: {}", key_trouble(&e, passphrase.is_some())));
                return Ok(Outcome::Refused);
            }
        };
        self.keys.push(key.public_key().key_data().clone());
        let hash = rsa_hash(handle).await.filter(|_| key.algorithm().is_rsa());
        if let Outcome::In = self.with_certificate(handle, path, certificate, (&key, hash)).await? {
            return Ok(Outcome::In);
        }
        if !self.offers(MethodKind::PublicKey) {
            return Ok(Outcome::Refused);
        }
        let key = PrivateKeyWithHashAlg::new(Arc::new(key), hash);
        let result = handle.authenticate_publickey(&self.config.user, key).await;
        self.note(result, &what)
    }

    /// Offers the certificate of a key file, if there is one.
    async fn with_certificate(
        &mut self,
        handle: &mut Handle<Client>,
        key_path: &Path,
        named: Option<&Path>,
        (key, hash): (&PrivateKey, Option<HashAlg>),
    ) -> Result<Outcome> {
        let path = named.map_or_else(|| certificate::beside(key_path), Path::to_path_buf);
        if named.is_none() && !path.exists() {
            return Ok(Outcome::Refused);
        }
        let what = format!("certificate {}", path.display());
        let found = match certificate::load(&path, key.public_key().key_data(), certificate::now()) {
            Ok(found) => found,
            Err(fault) => {
                self.tried.push(format!("{what}: {fault}"));
                return Ok(Outcome::Refused);
            }
        };
        let what = format!("{what} ({})", names(&found));
        let signed = handle
            .authenticate_certificate_with(&self.config.user, found, hash, &mut certificate::Own(key))
            .await;
        self.signed(signed, &what)
    }

    /// What became of an attempt somebody else signed.
    fn signed<E: std::fmt::Display>(&mut self, result: Result<AuthResult, E>, what: &str) -> Result<Outcome> {
        match result {
            Ok(result) => self.note(Ok(result), what),
            Err(e) => {
                self.tried.push(format!("{what}: it could not be used to sign ({e})"));
                Ok(Outcome::Refused)
            }
        }
    }

    async fn agent(&mut self, handle: &mut Handle<Client>, socket: Option<&Path>) -> Result<Outcome> {
        let Some(socket) = socket
            .map(Path::to_path_buf)
            .or_else(|| env::var_os("SSH_AUTH_SOCK").map(PathBuf::from))
        else {
            self.tried
                .push("agent: none runs here (SSH_AUTH_SOCK is not set)".to_owned());
            return Ok(Outcome::Refused);
        };
        let mut agent = match AgentClient::connect_uds(&socket).await {
            Ok(agent) => agent,
            Err(e) => {
                self.tried
                    .push(format!("agent: not reachable at {} ({e})", socket.display()));
                return Ok(Outcome::Refused);
            }
        };
        let mut identities = match agent.request_identities().await {
            Ok(identities) if identities.is_empty() => {
                self.tried.push("agent: it holds no keys (ssh-add)".to_owned());
                return Ok(Outcome::Refused);
            }
            Ok(identities) => identities,
            Err(e) => {
                self.tried.push(format!("agent: {e}"));
                return Ok(Outcome::Refused);
            }
        };
        // A server takes only so many tries: what was judged already is left out, and what is named somewhere comes
        // first.
        let named = named_keys(self.config);
        let key_of = |identity: &AgentIdentity| identity.public_key().key_data().clone();
        identities.retain(|identity| {
            matches!(identity, AgentIdentity::Certificate { .. }) || !self.keys.contains(&key_of(identity))
        });
        identities.sort_by_key(|identity| !named.contains(&key_of(identity)));
        let rsa = rsa_hash(handle).await;
        for identity in identities {
            if !self.offers(MethodKind::PublicKey) {
                break;
            }
            let user = &self.config.user;
            let hash = rsa.filter(|_| identity.public_key().algorithm().is_rsa());
            let (result, what) = match identity {
                AgentIdentity::PublicKey { key, comment } => (
                    handle.authenticate_publickey_with(user, key, hash, &mut agent).await,
                    format!("agent key {comment}"),
                ),
                AgentIdentity::Certificate { certificate, comment } => {
                    let what = format!("agent certificate {comment} ({})", names(&certificate));
                    if let Some(fault) = certificate::user_fault(&certificate, certificate::now()) {
                        self.tried.push(format!("{what}: {fault}"));
                        continue;
                    }
                    let result = handle.authenticate_certificate_with(user, certificate, hash, &mut agent);
                    (result.await, what)
                }
            };
            if let Outcome::In = self.signed(result, &what)? {
                return Ok(Outcome::In);
            }
        }
        Ok(Outcome::Refused)
    }

    async fn password(&mut self, handle: &mut Handle<Client>, password: &Secret) -> Result<Outcome> {
        if self.offers(MethodKind::Password) {
            let result = handle.authenticate_password(&self.config.user, password.expose()).await;
            return self.note(result, "password");
        }
        if !self.offers(MethodKind::KeyboardInteractive) {
            self.tried.push("password: not offered".to_owned());
            return Ok(Outcome::Refused);
        }
        self.keyboard_interactive(handle, password).await
    }

    async fn keyboard_interactive(&mut self, handle: &mut Handle<Client>, password: &Secret) -> Result<Outcome> {
        const WHAT: &str = "password (keyboard-interactive)";
        let mut prompted = Prompts::new(password);
        let mut reply = handle
            .authenticate_keyboard_interactive_start(&self.config.user, None)
            .await;
        loop {
            match reply {
                Ok(KeyboardInteractiveAuthResponse::Success) => return Ok(Outcome::In),
                Ok(KeyboardInteractiveAuthResponse::Failure {
                    remaining_methods,
                    partial_success,
                }) => {
                    let failure = AuthResult::Failure {
                        remaining_methods,
                        partial_success,
                    };
                    let outcome = self.note(Ok(failure), WHAT)?;
                    if let (Some(prompt), Some(told)) = (&prompted.unanswered, self.tried.last_mut()) {
                        told.push_str(&format!("; it asked '{prompt}', which only a person can answer"));
                    }
                    return Ok(outcome);
                }
                Ok(KeyboardInteractiveAuthResponse::InfoRequest { prompts, .. }) => {
                    let Some(answers) = prompted.answer(&prompts) else {
                        self.tried.push(format!("{WHAT}: it does not stop asking"));
                        return Err(self.refused());
                    };
                    reply = handle.authenticate_keyboard_interactive_respond(answers).await;
                }
                Err(e) => return self.note(Err(e), WHAT),
            }
        }
    }

    /// What to do about it.
    fn hint(&self) -> String {
        let password_refused = |t: &String| t.starts_with("password") && t.ends_with("refused");
        if self.config.auth.is_empty() {
            "No key, agent or password is configured for this host."
        } else if self.hung_up && self.judged > 1 {
            return format!(
                "The server gave up after {} tries (MaxAuthTries there): name the right key (ssh.pk, or IdentityFile in \
                 the SSH configuration), or take others out of the agent (ssh-add -d).",
                self.judged
            );
        } else if self.unreadable {
            "First correct the key that cannot be used (ssh.pk, or IdentityFile in the SSH configuration)."
        } else if self.judged == 0 && self.offers(MethodKind::PublicKey) {
            "Name a key (ssh.pk), start an agent that holds one (ssh-add), or give a password."
        } else if self.tried.iter().any(password_refused) {
            "Check the user name and the password (root may be allowed in by key only: PermitRootLogin)."
        } else if !self.offers(MethodKind::PublicKey) && !self.offered.is_empty() {
            "The server accepts no keys: give a password."
        } else {
            "Put the public key into the user's ~/.ssh/authorized_keys, or give another key or a password."
        }
        .to_owned()
    }

    fn refused(&self) -> Error {
        let offered: Vec<&str> = self.offered.iter().map(|m| m.into()).collect();
        if self.judged == 0 && !self.tried.is_empty() && self.offers(MethodKind::PublicKey) {
            return Error::NoCredential {
                host: self.config.target(),
                user: self.config.user.clone(),
                tried: self.tried.join("; "),
                hint: self.hint(),
            };
        }
        Error::Auth {
            host: self.config.target(),
            user: self.config.user.clone(),
            tried: if self.tried.is_empty() {
                "nothing".to_owned()
            } else {
                self.tried.join("; ")
            },
            offered: if offered.is_empty() {
                "nothing more".to_owned()
            } else {
                offered.join(", ")
            },
            hint: self.hint(),
        }
    }
}

/// The public keys that belong to the key files of a configuration, as far as they lie beside these, or are these.
fn named_keys(config: &Config) -> Vec<KeyData> {
    let read = |path: &Path| {
        let text = std::fs::read_to_string(path).ok()?;
        let key = PublicKey::from_openssh(text.trim()).ok()?;
        Some(key.key_data().clone())
    };
    let of = |auth: &Auth| match auth {
        Auth::KeyFile { path, .. } => {
            let mut beside = path.as_os_str().to_owned();
            beside.push(".pub");
            read(Path::new(&beside)).or_else(|| read(path))
        }
        _ => None,
    };
    config.auth.iter().filter_map(of).collect()
}

/// The hash by which the server lets RSA keys sign.
async fn rsa_hash(handle: &Handle<Client>) -> Option<HashAlg> {
    handle.best_supported_rsa_hash().await.ok().flatten().flatten()
}

/// For whom a certificate is, for messages.
fn names(certificate: &Certificate) -> String {
    match certificate.valid_principals() {
        [] => format!("'{}' for nobody in particular", certificate.key_id()),
        names => format!("'{}' for {}", certificate.key_id(), names.join(", ")),
    }
}

fn key_trouble(error: &russh::keys::Error, had_passphrase: bool) -> String {
    use russh::keys::Error as E;
    match error {
        E::KeyIsEncrypted => "it is encrypted and no passphrase is given".to_owned(),
        E::IO(e) if e.kind() == std::io::ErrorKind::NotFound => "no such file".to_owned(),
        E::IO(e) => e.to_string(),
        _ if had_passphrase => "the passphrase is wrong, or the file is damaged".to_owned(),
        _ => "it cannot be read as a private key".to_owned(),
    }
}
