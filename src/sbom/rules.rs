//! The rules of SPDX 2.3 that a document of ours could break, as a judge for tests: written from the specification, not from the
//! code that it judges.

use std::collections::{BTreeMap, BTreeSet};

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use serde_json::Value;

/// Every broken rule, with the clause it stands in.
pub(crate) fn broken(document: &Value) -> Vec<String> {
    let mut judge = Judge {
        document,
        broken: Vec::new(),
    };
    judge.header();
    judge.ids();
    for package in list(document, "packages") {
        judge.package(package);
    }
    for file in list(document, "files") {
        judge.file(file);
    }
    judge.relationships();
    judge.licenses();
    judge.broken
}

struct Judge<'a> {
    document: &'a Value,
    broken: Vec<String>,
}

const DOCUMENT_FIELDS: &[&str] = &[
    "spdxVersion",
    "dataLicense",
    "SPDXID",
    "name",
    "documentNamespace",
    "creationInfo",
    "packages",
    "files",
    "hasExtractedLicensingInfos",
    "relationships",
    "comment",
    "externalDocumentRefs",
    "annotations",
    "snippets",
    "documentDescribes",
];
const PACKAGE_FIELDS: &[&str] = &[
    "SPDXID",
    "name",
    "versionInfo",
    "packageFileName",
    "supplier",
    "originator",
    "downloadLocation",
    "filesAnalyzed",
    "packageVerificationCode",
    "checksums",
    "homepage",
    "sourceInfo",
    "licenseConcluded",
    "licenseInfoFromFiles",
    "licenseDeclared",
    "licenseComments",
    "copyrightText",
    "summary",
    "description",
    "comment",
    "externalRefs",
    "attributionTexts",
    "primaryPackagePurpose",
    "releaseDate",
    "builtDate",
    "validUntilDate",
    "annotations",
    "hasFiles",
];
const FILE_FIELDS: &[&str] = &[
    "SPDXID",
    "fileName",
    "fileTypes",
    "checksums",
    "licenseConcluded",
    "licenseInfoInFiles",
    "licenseComments",
    "copyrightText",
    "comment",
    "noticeText",
    "fileContributors",
    "attributionTexts",
    "annotations",
];
const PURPOSES: &[&str] = &[
    "APPLICATION",
    "FRAMEWORK",
    "LIBRARY",
    "CONTAINER",
    "OPERATING-SYSTEM",
    "DEVICE",
    "FIRMWARE",
    "SOURCE",
    "ARCHIVE",
    "FILE",
    "INSTALL",
    "OTHER",
];
const RELATIONSHIPS: &[&str] = &["DESCRIBES", "CONTAINS", "GENERATED_FROM"];
/// The ids of SPDX's licence list that may come out of Debian's names.
const LICENSES: &[&str] = &[
    "0BSD",
    "Apache-1.0",
    "Apache-1.1",
    "Apache-2.0",
    "Artistic-1.0",
    "Artistic-2.0",
    "Beerware",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSD-4-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CC-BY-3.0",
    "CC-BY-4.0",
    "CC-BY-SA-3.0",
    "CC-BY-SA-4.0",
    "MIT",
    "FSFAP",
    "GFDL-1.2-only",
    "GFDL-1.2-or-later",
    "GFDL-1.3-only",
    "GFDL-1.3-or-later",
    "GPL-1.0-only",
    "GPL-1.0-or-later",
    "GPL-2.0-only",
    "GPL-2.0-or-later",
    "GPL-3.0-only",
    "GPL-3.0-or-later",
    "ISC",
    "LGPL-2.0-only",
    "LGPL-2.0-or-later",
    "LGPL-2.1-only",
    "LGPL-2.1-or-later",
    "LGPL-3.0-only",
    "LGPL-3.0-or-later",
    "MPL-1.1",
    "MPL-2.0",
    "OpenSSL",
    "PSF-2.0",
    "Unlicense",
    "WTFPL",
    "X11",
    "Zlib",
];

fn list<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    value[field].as_array().map_or(&[], Vec::as_slice)
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

impl<'a> Judge<'a> {
    fn rule(&mut self, holds: bool, clause: &str, what: impl std::fmt::Display) {
        if !holds {
            self.broken.push(format!("{clause}: {what}"));
        }
    }

    fn fields(&mut self, value: &Value, allowed: &[&str], clause: &str) {
        for (name, value) in value.as_object().into_iter().flatten() {
            self.rule(
                allowed.contains(&name.as_str()),
                clause,
                format!("unknown field {name}"),
            );
            self.rule(!value.is_null(), clause, format!("{name} is null"));
        }
    }

    fn header(&mut self) {
        let document = self.document;
        self.fields(document, DOCUMENT_FIELDS, "6");
        self.rule(text(document, "spdxVersion") == "SPDX-2.3", "6.1", "version");
        self.rule(text(document, "dataLicense") == "CC0-1.0", "6.2", "data licence");
        self.rule(text(document, "SPDXID") == "SPDXRef-DOCUMENT", "6.3", "id");
        self.rule(!text(document, "name").is_empty(), "6.4", "name");
        let namespace = text(document, "documentNamespace");
        let plain = |c: char| c.is_ascii_alphanumeric() || "-._~:/?[]@!$&'()*+,;=%".contains(c);
        let is_uri = namespace
            .split_once("://")
            .is_some_and(|(scheme, rest)| !scheme.is_empty() && !rest.is_empty());
        self.rule(is_uri && namespace.chars().all(plain), "6.5", namespace);
        let created = text(&document["creationInfo"], "created");
        let shape: String = created
            .chars()
            .map(|c| if c.is_ascii_digit() { '9' } else { c })
            .collect();
        self.rule(shape == "9999-99-99T99:99:99Z", "6.9", created);
        let creators = list(&document["creationInfo"], "creators");
        self.rule(!creators.is_empty(), "6.8", "no creator");
        for creator in creators.iter().filter_map(Value::as_str) {
            let known = ["Person: ", "Organization: ", "Tool: "]
                .iter()
                .any(|kind| creator.starts_with(kind));
            self.rule(known, "6.8", creator);
        }
    }

    fn ids(&mut self) {
        let mut seen = BTreeSet::from(["SPDXRef-DOCUMENT"]);
        for element in list(self.document, "packages")
            .iter()
            .chain(list(self.document, "files"))
        {
            let id = text(element, "SPDXID");
            let rest = id.strip_prefix("SPDXRef-").unwrap_or_default();
            let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'.' || b == b'-';
            self.rule(!rest.is_empty() && rest.bytes().all(plain), "3.2", id);
            self.rule(seen.insert(id), "3.2", format!("{id} twice"));
        }
    }

    fn package(&mut self, package: &Value) {
        let id = text(package, "SPDXID");
        self.fields(package, PACKAGE_FIELDS, "7");
        self.rule(!text(package, "name").is_empty(), "7.1", id);
        self.rule(!text(package, "downloadLocation").is_empty(), "7.7", id);
        self.checksums(package, "7.10");
        let supplier = package.get("supplier").and_then(Value::as_str).unwrap_or("NOASSERTION");
        let known =
            supplier == "NOASSERTION" || supplier.starts_with("Organization: ") || supplier.starts_with("Person: ");
        self.rule(known, "7.5", supplier);
        if let Some(purpose) = package.get("primaryPackagePurpose").and_then(Value::as_str) {
            self.rule(PURPOSES.contains(&purpose), "7.24", purpose);
        }
        for reference in list(package, "externalRefs") {
            let (kind, locator) = (text(reference, "referenceType"), text(reference, "referenceLocator"));
            self.rule(
                text(reference, "referenceCategory") == "PACKAGE-MANAGER" && kind == "purl",
                "7.21",
                id,
            );
            let good = locator.starts_with("pkg:") && locator.contains('@') && !locator.contains(char::is_whitespace);
            self.rule(good, "annex F.3", locator);
        }
        let contained = self.contained_files(id);
        if package.get("filesAnalyzed") == Some(&Value::Bool(false)) {
            let none =
                package.get("packageVerificationCode").is_none() && package.get("licenseInfoFromFiles").is_none();
            self.rule(
                none && contained.is_empty(),
                "7.8",
                format!("{id} has file information"),
            );
        } else {
            let mut sums: Vec<&str> = contained.iter().map(|file| sha1(file)).collect();
            sums.sort_unstable();
            let code = hex::encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, sums.concat().as_bytes()));
            let said = text(&package["packageVerificationCode"], "packageVerificationCodeValue");
            self.rule(said == code, "7.9", format!("{id}: {said} is not {code}"));
            self.rule(!contained.is_empty(), "7.9", format!("{id} has no files"));
        }
    }

    fn contained_files(&self, package: &str) -> Vec<&'a Value> {
        let document = self.document;
        let files: BTreeMap<&str, &'a Value> = list(document, "files")
            .iter()
            .map(|file| (text(file, "SPDXID"), file))
            .collect();
        let contains = |relationship: &&Value| {
            text(relationship, "spdxElementId") == package && text(relationship, "relationshipType") == "CONTAINS"
        };
        let related = list(document, "relationships").iter().filter(contains);
        related
            .filter_map(|relationship| files.get(text(relationship, "relatedSpdxElement")).copied())
            .collect()
    }

    fn file(&mut self, file: &Value) {
        let id = text(file, "SPDXID");
        self.fields(file, FILE_FIELDS, "8");
        self.rule(text(file, "fileName").starts_with("./"), "8.1", id);
        self.checksums(file, "8.4");
        self.rule(is_hex(sha1(file), 40), "8.4", format!("{id} has no SHA1"));
        self.rule(!list(file, "licenseInfoInFiles").is_empty(), "8.6", id);
    }

    fn checksums(&mut self, element: &Value, clause: &str) {
        for checksum in list(element, "checksums") {
            let length = match text(checksum, "algorithm") {
                "SHA1" => 40,
                "SHA256" => 64,
                _ => 0,
            };
            let good = is_hex(text(checksum, "checksumValue"), length);
            self.rule(good, clause, format!("{}: {checksum}", text(element, "SPDXID")));
        }
    }

    fn relationships(&mut self) {
        let document = self.document;
        let elements = list(document, "packages").iter().chain(list(document, "files"));
        let known: BTreeSet<&str> = elements
            .map(|element| text(element, "SPDXID"))
            .chain(["SPDXRef-DOCUMENT"])
            .collect();
        let mut seen = BTreeSet::new();
        for relationship in list(document, "relationships") {
            let (from, to) = (
                text(relationship, "spdxElementId"),
                text(relationship, "relatedSpdxElement"),
            );
            let kind = text(relationship, "relationshipType");
            self.rule(RELATIONSHIPS.contains(&kind), "11.1", kind);
            self.rule(
                known.contains(from) && known.contains(to),
                "11.1",
                format!("{from} {kind} {to}"),
            );
            self.rule(
                seen.insert((from, kind, to)),
                "11.1",
                format!("{from} {kind} {to} twice"),
            );
        }
        let describes = seen
            .iter()
            .any(|(from, kind, _)| *from == "SPDXRef-DOCUMENT" && *kind == "DESCRIBES");
        self.rule(describes, "11.1", "the document describes nothing");
        let related: BTreeSet<&str> = seen.iter().map(|(_, _, to)| *to).collect();
        for id in known.into_iter().filter(|id| *id != "SPDXRef-DOCUMENT") {
            self.rule(related.contains(id), "11.1", format!("{id} belongs to nothing"));
        }
    }

    fn licenses(&mut self) {
        let extracted = list(self.document, "hasExtractedLicensingInfos");
        let mut told: BTreeSet<&str> = BTreeSet::new();
        for license in extracted {
            let id = text(license, "licenseId");
            let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'.' || b == b'-';
            let rest = id.strip_prefix("LicenseRef-").unwrap_or_default();
            self.rule(!rest.is_empty() && rest.bytes().all(plain), "10.1", id);
            self.rule(!text(license, "extractedText").is_empty(), "10.2", id);
            self.rule(told.insert(id), "10.1", format!("{id} twice"));
        }
        let mut used = BTreeSet::new();
        for package in list(self.document, "packages") {
            let expression = text(package, "licenseDeclared");
            if matches!(expression, "NOASSERTION" | "NONE") {
                continue;
            }
            let words = expression.split(['(', ')', ' ']).filter(|word| !word.is_empty());
            let mut wants_id = true;
            for word in words {
                let operator = matches!(word, "AND" | "OR");
                self.rule(operator != wants_id, "annex D", expression);
                if !operator {
                    used.insert(word);
                    self.rule(
                        LICENSES.contains(&word) || told.contains(word),
                        "annex D",
                        format!("unknown licence {word}"),
                    );
                }
                wants_id = operator;
            }
            self.rule(!wants_id && balanced(expression), "annex D", expression);
        }
        for id in told {
            self.rule(used.contains(id), "10.1", format!("{id} is used by nothing"));
        }
    }
}

fn sha1(file: &Value) -> &str {
    let sums = list(file, "checksums").iter();
    let found = sums.into_iter().find(|checksum| text(checksum, "algorithm") == "SHA1");
    found.map_or("", |checksum| text(checksum, "checksumValue"))
}

fn balanced(expression: &str) -> bool {
    let mut depth = 0;
    expression.chars().all(|c| {
        depth += match c {
            '(' => 1,
            ')' => -1,
            _ => 0,
        };
        depth >= 0
    }) && depth == 0
}
