//! The Clusterfiles that the documentation shows are ones that can be read.

use std::path::Path;

use crate::Clusterfile;

const PAGES: [&str; 5] = [
    "first-cluster.md",
    "growing.md",
    "recovering.md",
    "security.md",
    "clusterfile.md",
];
const CLUSTER: &str = "apiVersion: sealer.io/v2\nkind: Cluster\nmetadata: {name: demo}\nspec:\n  image: a/b:1\n  hosts: [{ips: [10.0.0.1], roles: [master]}]\n";

/// Every YAML text of a page: whole blocks marked `yaml`, and what its shell examples write by way of `CLUSTERFILE`.
fn texts(page: &str) -> Vec<String> {
    let between = |text: &str, open: &str, close: &str| -> Vec<String> {
        let parts = text.split(open).skip(1);
        parts
            .filter_map(|part| part.split(close).next().map(str::to_owned))
            .collect()
    };
    let mut texts = between(page, "\n```yaml\n", "\n```");
    texts.extend(between(page, "<<'CLUSTERFILE'\n", "\nCLUSTERFILE"));
    texts
}

#[test]
fn every_clusterfile_of_the_documentation_is_understood() {
    let mut found = 0;
    for page in PAGES {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs").join(page);
        let text = std::fs::read_to_string(&path).unwrap();
        for text in texts(&text) {
            // What is shown alone is read beside a Cluster.
            let whole = match text.contains("kind: Cluster\n") {
                true => text.clone(),
                false if text.trim_start().starts_with("---") => format!("{CLUSTER}{text}\n"),
                false => format!("{CLUSTER}---\n{text}\n"),
            };
            if let Err(problems) = Clusterfile::parse(&whole, page, Path::new("/w")) {
                panic!("{page}: {problems}\n{text}");
            }
            found += 1;
        }
    }
    assert!(found >= 7, "only {found} Clusterfiles were found");
}
