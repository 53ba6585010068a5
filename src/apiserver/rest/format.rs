//! Content negotiation: which encoding and which view of an object a client asks for.

use api::table::Include;
use http::HeaderMap;

use crate::error::{ApiError, Result};
use crate::request::Query;

/// Media type of Kubernetes' protobuf.
pub const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

/// Encoding on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// `application/json`
    Json,
    /// `application/yaml`
    Yaml,
    /// `application/vnd.kubernetes.protobuf`
    Protobuf,
}

/// What is shown of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    /// All of it.
    Whole,
    /// A row of a table (`meta.k8s.io/v1` or `v1beta1`).
    Table {
        /// Version of the table.
        version: &'static str,
        /// What travels with each row.
        include: Include,
    },
    /// Metadata only.
    Partial {
        /// Version of the metadata object.
        version: &'static str,
    },
}

/// Result of the negotiation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Format {
    /// Encoding.
    pub encoding: Encoding,
    /// View.
    pub view: View,
}

impl Encoding {
    /// Its media type.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Yaml => "application/yaml",
            Self::Protobuf => PROTOBUF,
        }
    }

    fn of(media: &str) -> Option<Self> {
        match media {
            "application/json" | "*/*" | "application/*" | "" => Some(Self::Json),
            "application/yaml" => Some(Self::Yaml),
            PROTOBUF => Some(Self::Protobuf),
            _ => None,
        }
    }
}

impl Format {
    /// JSON, whole objects.
    pub const JSON: Self = Self {
        encoding: Encoding::Json,
        view: View::Whole,
    };

    /// Chooses by `Accept`; the first acceptable entry wins. `list` says whether the answer is a list.
    ///
    /// # Errors
    /// 406 if nothing acceptable can be served, 400 for a malformed `includeObject`.
    pub fn negotiate(headers: &HeaderMap, query: &Query, list: bool) -> Result<Self> {
        Self::choose(headers, query, list, true)
    }

    /// As [`Format::negotiate`] for what is only answered, and has no table.
    ///
    /// # Errors
    /// As [`Format::negotiate`].
    pub fn negotiate_untabled(headers: &HeaderMap, query: &Query) -> Result<Self> {
        Self::choose(headers, query, false, false)
    }

    fn choose(headers: &HeaderMap, query: &Query, list: bool, tables: bool) -> Result<Self> {
        let accept = headers
            .get(http::header::ACCEPT)
            .and_then(|v| v.to_str().ok())
            .unwrap_or("*/*");
        for entry in accept.split(',') {
            match Self::entry(entry, query, list)? {
                Some(f) if tables || !matches!(f.view, View::Table { .. }) => return Ok(f),
                _ => {}
            }
        }
        Err(ApiError::not_acceptable(
            "application/json, application/yaml, application/vnd.kubernetes.protobuf",
        ))
    }

    fn entry(entry: &str, query: &Query, list: bool) -> Result<Option<Self>> {
        let mut parts = entry.split(';').map(str::trim);
        let Some(encoding) = parts.next().and_then(Encoding::of) else {
            return Ok(None);
        };
        let (mut shape, mut group, mut version) = ("", "", "");
        for (k, v) in parts.filter_map(|p| p.split_once('=')) {
            match k {
                "as" => shape = v,
                "g" => group = v,
                "v" => version = v,
                _ => {}
            }
        }
        let version = match version {
            "v1" => "v1",
            "v1beta1" => "v1beta1",
            _ if shape.is_empty() => "v1",
            _ => return Ok(None),
        };
        let view = match shape {
            "" => View::Whole,
            _ if group != "meta.k8s.io" => return Ok(None),
            "Table" if encoding != Encoding::Protobuf => {
                let include = query.get("includeObject").unwrap_or_default();
                View::Table {
                    version,
                    include: include.parse().map_err(ApiError::bad_request)?,
                }
            }
            "PartialObjectMetadata" if !list => View::Partial { version },
            "PartialObjectMetadataList" if list => View::Partial { version },
            // Watches of metadata name either shape.
            "PartialObjectMetadata" => View::Partial { version },
            _ => return Ok(None),
        };
        Ok(Some(Self { encoding, view }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(accept: &str, expected: Option<Format>) {
        let mut h = HeaderMap::new();
        h.insert("accept", accept.parse().unwrap());
        assert_eq!(
            Format::negotiate(&h, &Query::default(), true).ok(),
            expected,
            "{accept}"
        );
    }

    #[test]
    fn the_first_acceptable_entry_wins() {
        let table = View::Table {
            version: "v1",
            include: Include::Metadata,
        };
        check(
            "application/json;as=Table;v=v1;g=meta.k8s.io,application/json",
            Some(Format {
                encoding: Encoding::Json,
                view: table,
            }),
        );
        check(
            "application/json;as=Chair;v=v1;g=meta.k8s.io,application/json",
            Some(Format::JSON),
        );
        check("application/cbor,*/*", Some(Format::JSON));
        check(
            "application/vnd.kubernetes.protobuf,application/json",
            Some(Format {
                encoding: Encoding::Protobuf,
                view: View::Whole,
            }),
        );
        check(
            "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1",
            Some(Format {
                encoding: Encoding::Json,
                view: View::Partial { version: "v1" },
            }),
        );
        check("application/cbor", None);
    }

    #[test]
    fn what_has_no_table_falls_back_to_the_next_entry() {
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io";
        for (accept, expected) in [
            (table.to_owned(), None),
            (format!("{table},application/json"), Some(Format::JSON)),
        ] {
            let mut h = HeaderMap::new();
            h.insert("accept", accept.parse().unwrap());
            let chosen = Format::negotiate_untabled(&h, &Query::default());
            assert_eq!(chosen.map_err(|e| e.code), expected.ok_or(406), "{accept}");
        }
    }
}
