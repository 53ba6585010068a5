//! Files of users and their passwords' bcrypt hashes, as `htpasswd -B` of Apache writes them. Pure, but for the hashing itself.

use std::collections::HashMap;

/// bcrypt takes twice as long for each further step of its cost; more than this would keep honest clients waiting for minutes.
const MOST_COST: u32 = 16;

/// The users of a file.
#[derive(Default)]
pub struct Users(HashMap<String, String>);

/// Why a line of a file is refused. Hashes are never shown.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct Malformed {
    /// The line, counted from 1.
    pub line: usize,
    /// What is wrong with it and what to do.
    pub what: &'static str,
}

impl std::fmt::Debug for Users {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Users {
    /// Reads lines `USER:HASH`; empty ones and those that begin with `#` say nothing.
    ///
    /// # Errors
    /// At the first line that is malformed or whose hash is not bcrypt's.
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        let mut users = HashMap::new();
        for (line, content) in text.lines().enumerate() {
            let malformed = |what| Malformed { line: line + 1, what };
            let content = content.trim();
            if content.is_empty() || content.starts_with('#') {
                continue;
            }
            let (user, hash) = content.split_once(':').ok_or(malformed("expected USER:HASH"))?;
            if user.is_empty() {
                return Err(malformed("the user has no name"));
            }
            let cost = cost(hash).ok_or(malformed("only bcrypt hashes are taken: htpasswd -B writes them"))?;
            if cost > MOST_COST {
                return Err(malformed(
                    "checking this hash would take minutes: choose a cost of at most 16",
                ));
            }
            if users.insert(user.to_owned(), hash.to_owned()).is_some() {
                return Err(malformed("the user is in the file twice"));
            }
        }
        Ok(Self(users))
    }

    /// Number of users.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The hash of a user's password.
    pub fn hash(&self, user: &str) -> Option<&str> {
        self.0.get(user).map(String::as_str)
    }

    /// The hash that takes the place of an unknown user's: any one of the file, so that the answer takes as long.
    pub fn any_hash(&self) -> Option<&str> {
        self.0.values().next().map(String::as_str)
    }
}

/// The cost of a well-formed bcrypt hash: `$2y$NN$` and 53 characters.
fn cost(hash: &str) -> Option<u32> {
    let rest = ["$2a$", "$2b$", "$2x$", "$2y$"]
        .iter()
        .find_map(|prefix| hash.strip_prefix(prefix))?;
    let (cost, rest) = rest.split_once('$')?;
    let well_formed = cost.len() == 2
        && rest.len() == 53
        && rest
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'.' || byte == b'/');
    let cost = cost.parse().ok().filter(|cost| (4..=31).contains(cost))?;
    well_formed.then_some(cost)
}

/// User and password of an `Authorization` header's value (RFC 7617).
pub fn credentials(header: &str) -> Option<(String, String)> {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let (scheme, encoded) = header.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = String::from_utf8(STANDARD.decode(encoded.trim()).ok()?).ok()?;
    let (user, password) = decoded.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "$2y$05$.S2xAkIvOBdAAoUBSu2NOebVNzLSQ7Ix2jOPXOFYWZ0G9dBMgWJaa";

    #[test]
    fn users_are_read_and_everything_but_bcrypt_is_refused() {
        let users = Users::parse(&format!("# people\n\nalice:{HASH}\r\nbob:{HASH}\n")).unwrap();
        assert_eq!(
            (users.len(), users.hash("bob"), users.hash("eve")),
            (2, Some(HASH), None)
        );
        assert_eq!(users.any_hash(), Some(HASH));
        assert!(!format!("{users:?}").contains("$2y$"));
        for (text, line) in [
            ("alice".to_owned(), 1),
            (format!("alice:{HASH}\nbob:$apr1$x$y"), 2),
            ("alice:{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=".to_owned(), 1),
            ("alice:plain".to_owned(), 1),
            (format!(":{HASH}"), 1),
            (format!("alice:{HASH}x"), 1),
            (format!("alice:{}", HASH.replace("$05$", "$17$")), 1),
            (format!("alice:{}", HASH.replace("$05$", "$03$")), 1),
            (format!("alice:{HASH}\nalice:{HASH}"), 2),
        ] {
            assert_eq!(
                Users::parse(&text).map_err(|malformed| malformed.line).err(),
                Some(line),
                "{text}"
            );
        }
    }

    #[test]
    fn credentials_are_read_as_the_rfc_says() {
        let expected = |user: &str, password: &str| Some((user.to_owned(), password.to_owned()));
        for (header, found) in [
            ("Basic YTpi", expected("a", "b")),
            ("basic YTpi", expected("a", "b")),
            ("Basic YTpiOmM=", expected("a", "b:c")),
            ("Basic Og==", expected("", "")),
            ("Basic YQ==", None),
            ("Basic !", None),
            ("Bearer YTpi", None),
            ("Basic", None),
        ] {
            assert_eq!(credentials(header), found, "{header}");
        }
    }
}
