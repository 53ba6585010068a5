//! Parameters of lists and watches, checked against each other as the API documentation («Resource versions»,
//! «Streaming lists») demands.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use crate::error::{ApiError, FieldError, Result};
use crate::request::Query;

/// Which state a read may show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum At {
    /// The newest one, by quorum.
    Newest,
    /// Whatever is at hand.
    Any,
    /// This revision or a newer one.
    NotOlderThan(i64),
    /// Exactly this revision.
    Exact(i64),
}

/// Parameters of a list or watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListOptions {
    /// State to show.
    pub at: At,
    /// Most items of a page; 0 for all.
    pub limit: usize,
    /// Where an earlier page ended.
    pub token: Option<Token>,
    /// Whether bookmarks are wanted.
    pub bookmarks: bool,
    /// Whether a watch begins with the state, closed by an annotated bookmark.
    pub initial_events: bool,
    /// Seconds after which the server ends a watch.
    pub timeout: Option<u64>,
}

/// A continue token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// Revision of all pages; −1: whatever is newest.
    pub rev: i64,
    /// First key of the next page, relative to the kind's prefix.
    pub start: String,
}

impl Token {
    /// The opaque form.
    pub fn encode(&self) -> String {
        URL_SAFE_NO_PAD.encode(json!({"v": "meta.k8s.io/v1", "rv": self.rev, "start": self.start}).to_string())
    }

    fn decode(text: &str) -> Result<Self> {
        let bad = || ApiError::bad_request("continue key is not valid");
        let bytes = URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).map_err(|_| bad())?;
        let v: Value = serde_json::from_slice(&bytes).map_err(|_| bad())?;
        let (Some(rev), Some(start)) = (v["rv"].as_i64(), v["start"].as_str()) else {
            return Err(bad());
        };
        if v["v"] != "meta.k8s.io/v1" || rev == 0 || rev < -1 || start.starts_with('/') || start.contains("..") {
            return Err(bad());
        }
        Ok(Self {
            rev,
            start: start.to_owned(),
        })
    }
}

fn refuse(error: FieldError) -> ApiError {
    ApiError::invalid("meta.k8s.io", "ListOptions", "", &[error])
}

fn forbidden(field: &str, why: &str) -> ApiError {
    refuse(FieldError::forbidden(field, why))
}

/// Parses a resource version.
///
/// # Errors
/// 400 for anything but a decimal number.
pub fn revision(text: &str) -> Result<i64> {
    text.parse::<i64>().ok().filter(|r| *r >= 0).ok_or_else(|| {
        ApiError::bad_request(format!(
            "resourceVersion: Invalid value: {text:?}: must be a non-negative integer"
        ))
    })
}

impl ListOptions {
    /// Reads and checks the parameters.
    ///
    /// # Errors
    /// 400 for malformed values, 422 for combinations that have no meaning.
    pub fn parse(query: &Query, watch: bool) -> Result<Self> {
        let version = query.get("resourceVersion");
        let matching = query.get("resourceVersionMatch");
        let token = query.get("continue").map(Token::decode).transpose()?;
        let initial = query.get("sendInitialEvents").map(|_| query.flag("sendInitialEvents"));
        let limit = match query.get("limit") {
            Some(l) => l
                .parse::<i64>()
                .map_err(|_| ApiError::bad_request(format!("invalid limit {l:?}")))?
                .max(0),
            None => 0,
        };
        if let Some(m) = matching {
            Self::check_match(m, version, token.is_some(), watch, initial)?;
        } else if initial.is_some() && watch {
            let why = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
            return Err(forbidden("resourceVersionMatch", why));
        }
        if initial.is_some() && !watch {
            return Err(forbidden(
                "sendInitialEvents",
                "sendInitialEvents is forbidden for list",
            ));
        }
        if token.is_some() && version.is_some_and(|v| v != "0") {
            return Err(ApiError::bad_request(
                "specifying resource version is not allowed when using continue",
            ));
        }
        let at = match (version, matching) {
            (None, _) => At::Newest,
            (Some("0"), _) => At::Any,
            (Some(v), Some("Exact")) => At::Exact(revision(v)?),
            // Before resourceVersionMatch existed, a page with a revision meant exactly that revision.
            (Some(v), None) if limit > 0 && !watch => At::Exact(revision(v)?),
            (Some(v), _) => At::NotOlderThan(revision(v)?),
        };
        let timeout = match query.get("timeoutSeconds") {
            Some(t) => {
                let seconds = t
                    .parse::<u64>()
                    .map_err(|_| ApiError::bad_request(format!("invalid timeoutSeconds {t:?}")))?;
                Some(seconds).filter(|s| *s > 0)
            }
            None => None,
        };
        Ok(Self {
            // The cache has everything at hand: pages would only cost more.
            limit: if at == At::Any && token.is_none() {
                0
            } else {
                limit as usize
            },
            at,
            token,
            bookmarks: query.flag("allowWatchBookmarks"),
            initial_events: initial.unwrap_or(false),
            timeout,
        })
    }

    fn check_match(m: &str, version: Option<&str>, token: bool, watch: bool, initial: Option<bool>) -> Result<()> {
        let field = "resourceVersionMatch";
        match m {
            "NotOlderThan" | "Exact" => {}
            _ => {
                let supported = ["Exact", "NotOlderThan", ""];
                return Err(refuse(FieldError::not_supported(field, m, &supported)));
            }
        }
        if watch {
            if initial.is_none() {
                return Err(forbidden(
                    field,
                    "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
                ));
            }
            if m != "NotOlderThan" {
                let why = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
                return Err(forbidden(field, why));
            }
            return Ok(());
        }
        if version.is_none() {
            return Err(forbidden(
                field,
                "resourceVersionMatch is forbidden unless resourceVersion is provided",
            ));
        }
        if token {
            return Err(forbidden(
                field,
                "resourceVersionMatch is forbidden when continue is provided",
            ));
        }
        if m == "Exact" && version == Some("0") {
            return Err(forbidden(
                field,
                "resourceVersionMatch \"Exact\" is forbidden for resourceVersion \"0\"",
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(query: &str, watch: bool, expected: std::result::Result<At, u16>) {
        let got = ListOptions::parse(&Query::parse(query), watch)
            .map(|o| o.at)
            .map_err(|e| e.code);
        assert_eq!(got, expected, "{query}");
    }

    #[test]
    fn the_state_to_show_follows_version_and_match() {
        check("", false, Ok(At::Newest));
        check("resourceVersion=0", false, Ok(At::Any));
        check("resourceVersion=5", false, Ok(At::NotOlderThan(5)));
        check("resourceVersion=5&limit=2", false, Ok(At::Exact(5)));
        check(
            "resourceVersion=5&resourceVersionMatch=NotOlderThan&limit=2",
            false,
            Ok(At::NotOlderThan(5)),
        );
        check("resourceVersion=5&resourceVersionMatch=Exact", false, Ok(At::Exact(5)));
        check("resourceVersionMatch=Exact", false, Err(422));
        check("resourceVersion=0&resourceVersionMatch=Exact", false, Err(422));
        check("resourceVersion=5&resourceVersionMatch=Newish", false, Err(422));
        check("resourceVersion=x", false, Err(400));
        check("sendInitialEvents=true&resourceVersion=0", false, Err(422));
        check("resourceVersionMatch=NotOlderThan", true, Err(422));
        check("sendInitialEvents=true", true, Err(422));
        check(
            "sendInitialEvents=true&resourceVersionMatch=NotOlderThan",
            true,
            Ok(At::Newest),
        );
        check("continue=rubbish", false, Err(400));
    }

    #[test]
    fn tokens_survive_their_trip() {
        let t = Token {
            rev: 7,
            start: "a/b\0".into(),
        };
        assert_eq!(Token::decode(&t.encode()).unwrap(), t);
    }
}
