//! Who may do what: basic authentication (RFC 7617) against a file of users, read again when it changes.
//!
//! A client sends its password with every request, and bcrypt is slow on purpose. So a pair that was found right, or wrong, is
//! remembered for a while, as a MAC under a key that only this process has: neither passwords nor anything that could be tried
//! against a list of them is kept. Few hashes are computed at once, so that guessing costs the guesser time and not the others.

use std::{
    collections::HashMap,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use aws_lc_rs::{hmac, rand::SystemRandom};
use http::{HeaderMap, Method, header};
use tokio::{sync::Semaphore, task::spawn_blocking, time::timeout};

use crate::{
    answer::{Code, Refusal},
    htpasswd::{Malformed, Users, credentials},
    route::Route,
};

/// How long a right pair is remembered.
const RIGHT: Duration = Duration::from_secs(300);
/// How long a wrong pair is remembered.
const WRONG: Duration = Duration::from_secs(10);
/// Most pairs that are remembered.
const MOST: usize = 1024;
/// Hashes computed at once.
const HASHING: usize = 2;
/// How long a request waits for its turn to be hashed.
const TURN: Duration = Duration::from_secs(15);
/// The largest file of users that is read, in bytes.
const LARGEST: u64 = 4 << 20;

/// Why users cannot be known.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("{path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not one of users.
    #[error("{path}: {source}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Which line and why.
        source: Malformed,
    },
    /// The system gives no random numbers.
    #[error("no key can be made: {0}")]
    Random(aws_lc_rs::error::Unspecified),
}

/// Decides who may do what.
#[derive(Debug)]
pub struct Auth {
    file: PathBuf,
    anonymous_pull: bool,
    key: hmac::Key,
    known: Mutex<Known>,
    hashing: Semaphore,
}

#[derive(Debug)]
struct Known {
    users: Arc<Users>,
    stamp: Stamp,
    pairs: HashMap<[u8; 32], (bool, Instant)>,
}

/// What tells one version of the file from another.
type Stamp = Option<(u64, i64, i64, u64)>;

/// What a request is, as far as its right to be answered goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    Nothing,
    ToRead,
    ToSayWho,
}

fn need(route: Route<'_>, method: &Method) -> Need {
    match route {
        Route::Health => Need::Nothing,
        // Clients ask here whether they have to log in at all, and some never send credentials if not.
        Route::Base => Need::ToSayWho,
        _ if method == Method::GET || method == Method::HEAD => match route {
            Route::Uploads(_) | Route::Upload(..) => Need::ToSayWho,
            _ => Need::ToRead,
        },
        _ => Need::ToSayWho,
    }
}

impl Auth {
    /// Reads the users.
    ///
    /// # Errors
    /// When the file cannot be read or a line of it is refused.
    pub fn open(file: PathBuf, anonymous_pull: bool) -> Result<Self, Error> {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new()).map_err(Error::Random)?;
        let stamp = stamp(&file);
        let users = read(&file)?;
        if users.len() == 0 {
            tracing::warn!(file = %file.display(), "the file has no users: nobody can log in");
        }
        let known = Mutex::new(Known {
            users: Arc::new(users),
            stamp,
            pairs: HashMap::new(),
        });
        Ok(Self {
            file,
            anonymous_pull,
            key,
            known,
            hashing: Semaphore::new(HASHING),
        })
    }

    /// Whether a request may be answered.
    ///
    /// # Errors
    /// The refusal, which tells clients to log in.
    pub async fn admit(&self, route: Route<'_>, method: &Method, headers: &HeaderMap) -> Result<(), Refusal> {
        let need = need(route, method);
        if need == Need::Nothing {
            return Ok(());
        }
        let said = match headers.get(header::AUTHORIZATION) {
            None => None,
            Some(said) => {
                let pair = said.to_str().ok().and_then(credentials);
                Some(pair.ok_or_else(|| unauthorized("only basic authentication is understood"))?)
            }
        };
        // Some clients that have no credentials say so by empty ones.
        let said = said.filter(|(user, password)| !user.is_empty() || !password.is_empty());
        let Some((user, password)) = said else {
            let free = need == Need::ToRead && self.anonymous_pull;
            return if free {
                Ok(())
            } else {
                Err(unauthorized("no credentials"))
            };
        };
        if self.is_right(user, password).await? {
            Ok(())
        } else {
            Err(unauthorized("user or password is wrong"))
        }
    }

    async fn is_right(&self, user: String, password: String) -> Result<bool, Refusal> {
        self.refresh();
        let pair = self.pair(&user, &password);
        if let Some(right) = self.remembered(&pair) {
            return Ok(right);
        }
        let turn = timeout(TURN, self.hashing.acquire()).await.map_err(|_| {
            let refusal = Refusal::new(Code::TooManyRequests, "too many log-ins at once", "");
            refusal.with(header::RETRY_AFTER, "30")
        })?;
        let _turn = turn?;
        // Who waited for the same pair need not compute it again.
        if let Some(right) = self.remembered(&pair) {
            return Ok(right);
        }
        let users = Arc::clone(&self.known().users);
        let (checked, of) = (Arc::clone(&users), user.clone());
        let right = spawn_blocking(move || verify(&checked, &of, &password)).await?;
        if !right {
            tracing::warn!(?user, "a log-in was refused");
        }
        let mut known = self.known();
        // Found with users that may have been replaced meanwhile.
        if Arc::ptr_eq(&known.users, &users) {
            known.remember(pair, right);
        }
        Ok(right)
    }

    fn pair(&self, user: &str, password: &str) -> [u8; 32] {
        let mut mac = hmac::Context::with_key(&self.key);
        // The length keeps the two apart.
        mac.update(&(user.len() as u64).to_le_bytes());
        mac.update(user.as_bytes());
        mac.update(password.as_bytes());
        let mut pair = [0; 32];
        for (to, from) in pair.iter_mut().zip(mac.sign().as_ref()) {
            *to = *from;
        }
        pair
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remembered(&self, pair: &[u8; 32]) -> Option<bool> {
        let known = self.known();
        let (right, at) = known.pairs.get(pair)?;
        (at.elapsed() < patience(*right)).then_some(*right)
    }

    /// Reads the file again if it has changed; one that is refused changes nothing.
    fn refresh(&self) {
        let found = stamp(&self.file);
        let mut known = self.known();
        if found == known.stamp {
            return;
        }
        known.stamp = found;
        match read(&self.file) {
            Ok(users) => {
                tracing::info!(users = users.len(), "read the users again");
                known.users = Arc::new(users);
                known.pairs.clear();
            }
            Err(error) => tracing::error!(%error, "the users cannot be read again; the last ones still hold"),
        }
    }
}

impl Known {
    fn remember(&mut self, pair: [u8; 32], right: bool) {
        if self.pairs.len() >= MOST {
            self.pairs.retain(|_, (right, at)| at.elapsed() < patience(*right));
        }
        if self.pairs.len() >= MOST {
            self.pairs.clear();
        }
        self.pairs.insert(pair, (right, Instant::now()));
    }
}

fn patience(right: bool) -> Duration {
    if right { RIGHT } else { WRONG }
}

/// Compares a password with a user's hash. Takes as long for users there are not.
fn verify(users: &Users, user: &str, password: &str) -> bool {
    let hash = users.hash(user);
    let found = hash.or_else(|| users.any_hash()).is_some_and(|hash| {
        // A hash was found well-formed when the file was read.
        bcrypt::verify(password, hash).unwrap_or(false)
    });
    found && hash.is_some()
}

fn unauthorized(why: &str) -> Refusal {
    let refusal = Refusal::new(
        Code::Unauthorized,
        "log in with a user and password of this registry",
        why,
    );
    refusal.with(header::WWW_AUTHENTICATE, "Basic realm=\"registry\", charset=\"UTF-8\"")
}

fn stamp(file: &Path) -> Stamp {
    let file = fs::metadata(file).ok()?;
    Some((file.ino(), file.mtime(), file.mtime_nsec(), file.size()))
}

fn read(path: &Path) -> Result<Users, Error> {
    use io::Read as _;
    let failed = |source| Error::Read {
        path: path.to_owned(),
        source,
    };
    let mut text = String::new();
    let file = fs::File::open(path).map_err(failed)?;
    file.take(LARGEST).read_to_string(&mut text).map_err(failed)?;
    Users::parse(&text).map_err(|source| Error::Malformed {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::{Engine as _, engine::general_purpose::STANDARD};

    const BLOB: Route<'_> = Route::Blob("a", "sha256:x");

    fn line(user: &str, password: &str) -> String {
        format!("{user}:{}\n", bcrypt::hash(password, 4).unwrap())
    }

    async fn admitted(auth: &Auth, route: Route<'_>, method: Method, login: Option<(&str, &str)>) -> bool {
        let mut headers = HeaderMap::new();
        if let Some((user, password)) = login {
            let value = format!("Basic {}", STANDARD.encode(format!("{user}:{password}")));
            headers.insert(header::AUTHORIZATION, value.parse().unwrap());
        }
        match auth.admit(route, &method, &headers).await {
            Ok(()) => true,
            Err(refusal) => {
                assert_eq!(refusal.code(), Code::Unauthorized);
                assert!(refusal.answer().headers().contains_key(header::WWW_AUTHENTICATE));
                false
            }
        }
    }

    #[tokio::test]
    async fn only_who_is_in_the_file_gets_in() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("htpasswd");
        fs::write(&file, line("alice", "right") + &line("bob", "bob's")).unwrap();
        let auth = Auth::open(file, false).unwrap();
        for (login, expected) in [
            (Some(("alice", "right")), true),
            (Some(("alice", "right")), true),
            (Some(("alice", "wrong")), false),
            (Some(("alice", "wrong")), false),
            (Some(("alice", "bob's")), false),
            (Some(("eve", "right")), false),
            (Some(("", "")), false),
            (None, false),
        ] {
            assert_eq!(admitted(&auth, BLOB, Method::GET, login).await, expected, "{login:?}");
        }
        assert!(admitted(&auth, Route::Health, Method::GET, None).await);
        assert_eq!(
            auth.known().pairs.len(),
            4,
            "the two that came twice were computed once"
        );
        let text = format!("{:?}", auth.known());
        assert!(!text.contains("right") && !text.contains("wrong"), "{text}");
    }

    #[tokio::test]
    async fn pulling_may_be_free_where_pushing_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("htpasswd");
        fs::write(&file, line("alice", "right")).unwrap();
        let auth = Auth::open(file, true).unwrap();
        for (route, method, expected) in [
            (BLOB, Method::GET, true),
            (BLOB, Method::HEAD, true),
            (BLOB, Method::DELETE, false),
            (Route::Tags("a"), Method::GET, true),
            (Route::Manifest("a", "1"), Method::PUT, false),
            (Route::Uploads("a"), Method::POST, false),
            (Route::Upload("a", "1"), Method::GET, false),
            (Route::Base, Method::GET, false),
        ] {
            assert_eq!(
                admitted(&auth, route, method.clone(), None).await,
                expected,
                "{method} {route:?}"
            );
        }
        assert!(admitted(&auth, BLOB, Method::GET, Some(("", ""))).await);
        let wrong = Some(("alice", "wrong"));
        assert!(
            !admitted(&auth, BLOB, Method::GET, wrong).await,
            "a wrong password is told"
        );
    }

    #[tokio::test]
    async fn a_changed_file_holds_at_once_and_a_broken_one_never() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("htpasswd");
        fs::write(&file, line("alice", "old")).unwrap();
        let auth = Auth::open(file.clone(), false).unwrap();
        assert!(admitted(&auth, BLOB, Method::GET, Some(("alice", "old"))).await);
        fs::write(&file, line("alice", "new") + "# and a comment").unwrap();
        assert!(!admitted(&auth, BLOB, Method::GET, Some(("alice", "old"))).await);
        assert!(admitted(&auth, BLOB, Method::GET, Some(("alice", "new"))).await);
        fs::write(&file, "nonsense").unwrap();
        assert!(admitted(&auth, BLOB, Method::GET, Some(("alice", "new"))).await);
        assert!(Auth::open(file, false).is_err());
    }

    #[tokio::test]
    async fn what_is_remembered_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("htpasswd");
        fs::write(&file, "").unwrap();
        let auth = Auth::open(file, false).unwrap();
        for number in 0..MOST + 2 {
            assert!(!admitted(&auth, BLOB, Method::GET, Some(("eve", &number.to_string()))).await);
        }
        assert!(auth.known().pairs.len() <= MOST);
    }
}
