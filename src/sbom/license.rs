//! From the short names of Debian's copyright files (DEP-5) to SPDX licence expressions (SPDX 2.3, annex D).

use std::collections::BTreeMap;

use crate::spdx::{ExtractedLicense, NO_ASSERTION};

/// Debian's short names that mean exactly one licence of SPDX's list. Compared without regard to case.
const KNOWN: &[(&str, &str)] = &[
    ("0BSD", "0BSD"),
    ("Apache-1.0", "Apache-1.0"),
    ("Apache-1.1", "Apache-1.1"),
    ("Apache-2.0", "Apache-2.0"),
    ("Artistic", "Artistic-1.0"),
    ("Artistic-2.0", "Artistic-2.0"),
    ("Beerware", "Beerware"),
    ("BSD-2-clause", "BSD-2-Clause"),
    ("BSD-2-clause-NetBSD", "BSD-2-Clause"),
    ("BSD-3-clause", "BSD-3-Clause"),
    ("BSD-4-clause", "BSD-4-Clause"),
    ("BSL-1.0", "BSL-1.0"),
    ("CC0", "CC0-1.0"),
    ("CC0-1.0", "CC0-1.0"),
    ("CC-BY-3.0", "CC-BY-3.0"),
    ("CC-BY-4.0", "CC-BY-4.0"),
    ("CC-BY-SA-3.0", "CC-BY-SA-3.0"),
    ("CC-BY-SA-4.0", "CC-BY-SA-4.0"),
    ("Expat", "MIT"),
    ("FSFAP", "FSFAP"),
    ("GFDL-1.2", "GFDL-1.2-only"),
    ("GFDL-1.2+", "GFDL-1.2-or-later"),
    ("GFDL-1.3", "GFDL-1.3-only"),
    ("GFDL-1.3+", "GFDL-1.3-or-later"),
    ("GPL-1", "GPL-1.0-only"),
    ("GPL-1+", "GPL-1.0-or-later"),
    ("GPL-2", "GPL-2.0-only"),
    ("GPL-2+", "GPL-2.0-or-later"),
    ("GPL-3", "GPL-3.0-only"),
    ("GPL-3+", "GPL-3.0-or-later"),
    ("ISC", "ISC"),
    ("LGPL-2", "LGPL-2.0-only"),
    ("LGPL-2+", "LGPL-2.0-or-later"),
    ("LGPL-2.1", "LGPL-2.1-only"),
    ("LGPL-2.1+", "LGPL-2.1-or-later"),
    ("LGPL-3", "LGPL-3.0-only"),
    ("LGPL-3+", "LGPL-3.0-or-later"),
    ("MPL-1.1", "MPL-1.1"),
    ("MPL-2.0", "MPL-2.0"),
    ("OpenSSL", "OpenSSL"),
    ("PSF-2", "PSF-2.0"),
    ("Unlicense", "Unlicense"),
    ("WTFPL", "WTFPL"),
    ("X11", "X11"),
    ("Zlib", "Zlib"),
];

/// Collects the licences that SPDX's list doesn't have.
#[derive(Default)]
pub(crate) struct Licenses {
    /// The short name and the first package that uses it, by licence id.
    other: BTreeMap<String, (String, String)>,
}

impl Licenses {
    /// All of a package's licences in one expression: its parts are under different ones, so all of them apply.
    pub(crate) fn expression(&mut self, package: &str, names: &[String]) -> String {
        let mut all = Vec::new();
        for name in names {
            // "A and B" is split, since all apply; "A or B" stays together.
            for part in split(name, " and ") {
                let part = part.trim_end_matches(',');
                let choices: Vec<String> = split(part, " or ")
                    .map(|choice| self.one(package, choice.trim_end_matches(',')))
                    .collect();
                let text = match choices.as_slice() {
                    [one] => one.clone(),
                    several => format!("({})", several.join(" OR ")),
                };
                if !all.contains(&text) {
                    all.push(text);
                }
            }
        }
        match all.is_empty() {
            true => NO_ASSERTION.to_string(),
            false => all.join(" AND "),
        }
    }

    fn one(&mut self, package: &str, name: &str) -> String {
        if let Some((_, id)) = KNOWN.iter().find(|(debian, _)| debian.eq_ignore_ascii_case(name)) {
            return (*id).to_string();
        }
        let letter = |c: char| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' };
        let text: String = name.chars().map(letter).collect();
        // A name such as "custom" means something else in every package.
        let id = format!(
            "LicenseRef-Debian-{}-{text}",
            package.replace(|c: char| !c.is_ascii_alphanumeric(), "-")
        );
        let entry = (name.to_string(), package.to_string());
        self.other.entry(id.clone()).or_insert(entry);
        id
    }

    /// What the document must say about licences that SPDX's list doesn't have.
    pub(crate) fn extracted(self) -> Vec<ExtractedLicense> {
        let told = |(license_id, (name, package)): (String, (String, String))| ExtractedLicense {
            extracted_text: format!(
                "What the copyright file of the Debian package {package} calls {name:?}. Its text is in \
                 /usr/share/doc/{package}/copyright of that package."
            ),
            license_id,
            name,
        };
        self.other.into_iter().map(told).collect()
    }
}

fn split<'a>(text: &'a str, separator: &'a str) -> impl Iterator<Item = &'a str> {
    text.split(separator).map(str::trim).filter(|part| !part.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expression(names: &[&str]) -> (String, usize) {
        let mut licenses = Licenses::default();
        let names: Vec<String> = names.iter().map(|name| (*name).to_string()).collect();
        let text = licenses.expression("libx1", &names);
        (text, licenses.extracted().len())
    }

    #[test]
    fn names_become_expressions() {
        for (names, expected, other) in [
            (&[][..], "NOASSERTION", 0),
            (&["Expat"], "MIT", 0),
            (&["expat", "Apache-2.0", "Expat"], "MIT AND Apache-2.0", 0),
            (&["GPL-2+ or LGPL-3+"], "(GPL-2.0-or-later OR LGPL-3.0-or-later)", 0),
            (&["Apache-2.0 and Go"], "Apache-2.0 AND LicenseRef-Debian-libx1-Go", 1),
            (
                &["GPL-2, and MIT/X11"],
                "GPL-2.0-only AND LicenseRef-Debian-libx1-MIT-X11",
                1,
            ),
            (
                &["GPL-3+ with Bison exception"],
                "LicenseRef-Debian-libx1-GPL-3--with-Bison-exception",
                1,
            ),
        ] {
            assert_eq!(expression(names), (expected.to_string(), other), "{names:?}");
        }
    }
}
