//! Adding hosts to the text of a Clusterfile. Whatever a person wrote stays as it is: comments, order, quotes, layout.
//!
//! The text is not written anew from data; lines are put into it where the parser says that the list of hosts is. What comes out is
//! parsed again and compared, so a layout that is not understood is refused, never damaged.

use std::{net::Ipv4Addr, path::Path};

use crate::{
    cluster::{Clusterfile, Role},
    problem::Problems,
    yaml::{self, Node, Value},
};

/// Why hosts cannot be added to a text.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    /// The text is no Clusterfile.
    #[error(transparent)]
    Problems(#[from] Problems),
    /// The list of hosts is written in a way that is not understood.
    #[error("the list of hosts cannot be extended where it stands (line {line}); add it by hand: {entry}")]
    Layout {
        /// Line of the list, from 1.
        line: u64,
        /// What is to be added.
        entry: String,
    },
}

/// The text with hosts added that shall be nodes, in front of whatever follows the list of hosts. `file` and `base` are as in
/// [`Clusterfile::parse`].
///
/// # Errors
/// When the text is no Clusterfile, or its list of hosts cannot be extended without touching anything else.
pub fn add_nodes(text: &str, file: &str, base: &Path, nodes: &[Ipv4Addr]) -> Result<String, EditError> {
    let before = Clusterfile::parse(text, file, base)?;
    let nodes: Vec<Ipv4Addr> = nodes
        .iter()
        .filter(|ip| before.cluster.hosts.iter().all(|host| host.ip != **ip))
        .copied()
        .collect();
    if nodes.is_empty() {
        return Ok(text.to_owned());
    }
    let documents = yaml::parse(text).unwrap_or_default();
    let cluster = documents
        .iter()
        .find(|document| document.get("kind").and_then(Node::as_str) == Some("Cluster"));
    let spec = cluster.and_then(|cluster| cluster.get("spec"));
    let refused = || EditError::Layout {
        line: spec.and_then(|spec| spec.get("hosts")).map_or(0, |hosts| hosts.at.line),
        entry: flow_entry(&nodes),
    };
    let edited = spec.and_then(|spec| insert(text, spec, &nodes)).ok_or_else(refused)?;
    let is_extended = Clusterfile::parse(&edited, file, base).is_ok_and(|after| {
        let added = after.cluster.hosts.iter().filter(|host| nodes.contains(&host.ip));
        let are_nodes = added.clone().all(|host| host.roles == [Role::Node]);
        let all = added.count() == nodes.len() && after.cluster.hosts.len() == before.cluster.hosts.len() + nodes.len();
        all && are_nodes && without_added(&edited, &nodes) == yaml::parse(text).ok().map(|all| data(&all))
    });
    if is_extended { Ok(edited) } else { Err(refused()) }
}

fn data(documents: &[Node]) -> Vec<serde_json::Value> {
    documents.iter().map(Node::to_json).collect()
}

/// What a text says without the entry for `nodes`.
fn without_added(text: &str, nodes: &[Ipv4Addr]) -> Option<Vec<serde_json::Value>> {
    let mut documents = data(&yaml::parse(text).ok()?);
    let ips: Vec<String> = nodes.iter().map(ToString::to_string).collect();
    for document in documents.iter_mut().filter(|document| document["kind"] == "Cluster") {
        let spec = document.get_mut("spec")?.as_object_mut()?;
        let hosts = spec.get_mut("hosts")?.as_array_mut()?;
        hosts.retain(|host| host["ips"] != serde_json::json!(ips));
        // The first form got a list of its own.
        if hosts.is_empty() && ["masters", "nodes"].iter().any(|field| spec.contains_key(*field)) {
            spec.remove("hosts");
        }
    }
    Some(documents)
}

fn addresses(nodes: &[Ipv4Addr]) -> String {
    let nodes: Vec<String> = nodes.iter().map(ToString::to_string).collect();
    nodes.join(", ")
}

fn flow_entry(nodes: &[Ipv4Addr]) -> String {
    format!("{{ips: [{}], roles: [node]}}", addresses(nodes))
}

/// The text with an entry for `nodes` in `spec.hosts`; `None` where its layout is not understood.
fn insert(text: &str, spec: &Node, nodes: &[Ipv4Addr]) -> Option<String> {
    let end = if text.contains("\r\n") { "\r\n" } else { "\n" };
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let Some(hosts) = spec.get("hosts") else {
        // The first form of a Cluster has masters and nodes, and may have hosts beside them.
        let (first, _) = spec.entries().first()?;
        let (line, indent) = (index(first.at.line)?, indent(lines.get(index(first.at.line)?)?)?);
        let (outer, inner) = (" ".repeat(indent), " ".repeat(indent + 2));
        let is_block = indent + 1 == usize::try_from(first.at.column).ok()?;
        let entry = format!("{outer}hosts:{end}{inner}- {}{end}", flow_entry(nodes));
        return is_block.then(|| with_line(&lines, line, &entry, end));
    };
    let line = index(hosts.at.line)?;
    let Value::List(items) = &hosts.value else { return None };
    let opening = character(lines.get(line)?, hosts.at.column)?;
    if lines.get(line)?.get(opening..)?.starts_with('[') {
        let separator = if items.is_empty() { "" } else { ", " };
        let (head, tail) = lines.get(line)?.split_at_checked(opening + 1)?;
        let extended = format!("{head}{}{separator}{tail}", flow_entry(nodes));
        return Some([&lines[..line].concat(), extended.as_str(), &lines[line + 1..].concat()].concat());
    }
    let last = items.last()?;
    let first = index(last.at.line)?;
    let own = lines.get(first)?;
    let dash = indent(own)?;
    let content = character(own, last.at.column)?;
    let marker = own.get(dash..content)?;
    if marker.trim_end() != "-" {
        return None;
    }
    let is_flow = own.get(content..)?.starts_with('{');
    // What belongs to the last entry is indented deeper than its dash; comments and blank lines after it belong to what follows.
    let mut after = first + 1;
    for (number, line) in lines.iter().enumerate().skip(first + 1) {
        match indent(line) {
            None => {}
            Some(indent) if indent > dash => after = number + 1,
            Some(_) => break,
        }
    }
    let lead = " ".repeat(dash);
    let entry = if is_flow {
        format!("{lead}{marker}{}{end}", flow_entry(nodes))
    } else {
        let inner = " ".repeat(content - dash);
        format!(
            "{lead}{marker}ips: [{}]{end}{lead}{inner}roles: [node]{end}",
            addresses(nodes)
        )
    };
    Some(with_line(&lines, after, &entry, end))
}

/// The lines with `entry` in front of the one with this index.
fn with_line(lines: &[&str], at: usize, entry: &str, end: &str) -> String {
    let (head, tail) = lines.split_at(at.min(lines.len()));
    let head = head.concat();
    let gap = if head.is_empty() || head.ends_with('\n') {
        ""
    } else {
        end
    };
    [head.as_str(), gap, entry, &tail.concat()].concat()
}

/// A line's index by its number.
fn index(line: u64) -> Option<usize> {
    usize::try_from(line).ok()?.checked_sub(1)
}

/// Where the character in this column, from 1, begins in a line.
fn character(line: &str, column: u64) -> Option<usize> {
    let column = usize::try_from(column).ok()?.checked_sub(1)?;
    line.char_indices().nth(column).map(|(at, _)| at)
}

/// How many blanks a line begins with; `None`: there is nothing else in it.
fn indent(line: &str) -> Option<usize> {
    let rest = line.trim_start_matches(' ');
    (!rest.trim().is_empty()).then(|| line.len() - rest.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "# My cluster.\napiVersion: sealer.io/v2\nkind: Cluster\nmetadata: {name: c} # short\nspec:\n  image: x:1\n  ssh: {user: root}\n";

    fn added(text: &str) -> Result<String, EditError> {
        let nodes = ["10.0.0.7", "10.0.0.1", "10.0.0.8"].map(|ip| ip.parse().unwrap());
        add_nodes(text, "Clusterfile", Path::new("."), &nodes)
    }

    #[test]
    fn hosts_are_added_in_the_layout_that_is_there_and_all_else_stays() {
        for (before, after, new) in [
            (
                "  hosts:\n  - {ips: [10.0.0.1], roles: [master]} # the first\n",
                "\n# below\n  env: [A=1]\n",
                "  - {ips: [10.0.0.7, 10.0.0.8], roles: [node]}\n",
            ),
            (
                "  hosts:\n    -   ips:\n        - 10.0.0.1\n        # why\n        roles: [master]\n",
                "\n    # about the next\n  env: [A=1]\n",
                "    -   ips: [10.0.0.7, 10.0.0.8]\n        roles: [node]\n",
            ),
            (
                "  hosts:\n  - ips: [10.0.0.2]\n    roles: [node]\n  - ips: [10.0.0.1]\n    roles:\n    - master\n    env:\n    - |-\n      A=1\n\n      - x\n",
                "---\napiVersion: sealer.io/v2\nkind: Config\nmetadata: {name: x}\nspec: {path: etc/x, data: \"- y\"}\n",
                "  - ips: [10.0.0.7, 10.0.0.8]\n    roles: [node]\n",
            ),
            (
                "  hosts: [",
                "{ips: [10.0.0.1], roles: [master]}] # all\n",
                "{ips: [10.0.0.7, 10.0.0.8], roles: [node]}, ",
            ),
        ] {
            let text = format!("{HEAD}{before}{after}");
            assert_eq!(added(&text).unwrap(), format!("{HEAD}{before}{new}{after}"));
            let windows = text.replace('\n', "\r\n");
            let expected = format!("{HEAD}{before}{new}{after}").replace('\n', "\r\n");
            assert_eq!(added(&windows).unwrap(), expected);
        }
        // A last line need not end.
        let text = format!("{HEAD}  hosts:\n  - {{ips: [10.0.0.1], roles: [master]}}");
        let expected = format!("{text}\n  - {{ips: [10.0.0.7, 10.0.0.8], roles: [node]}}\n");
        assert_eq!(added(&text).unwrap(), expected);
    }

    #[test]
    fn the_first_form_gets_a_list_of_hosts_beside_its_masters_and_nodes() {
        let head = "apiVersion: zlink.aliyun.com/v1alpha1\nkind: Cluster\nmetadata: {name: c}\nspec:\n";
        let rest = "  image: x:1\n  provider: BAREMETAL\n  masters: {ipList: [10.0.0.1]}\n";
        let expected = format!("{head}  hosts:\n    - {{ips: [10.0.0.7, 10.0.0.8], roles: [node]}}\n{rest}");
        assert_eq!(added(&format!("{head}{rest}")).unwrap(), expected);
    }

    #[test]
    fn hosts_that_are_there_change_nothing_and_a_strange_layout_is_refused_with_what_to_add() {
        let there = format!("{HEAD}  hosts: [{{ips: [10.0.0.1, 10.0.0.7-10.0.0.8], roles: [master]}}]\n");
        assert_eq!(added(&there).unwrap(), there);
        for strange in [
            "  hosts:\n  -\n    ips: [10.0.0.1]\n    roles: [master]\n",
            "  hosts: &all\n  - &one {ips: [10.0.0.1], roles: [master]}\n",
        ] {
            let error = match added(&format!("{HEAD}{strange}")) {
                // What cannot be placed is refused; where it can, only this was added.
                Ok(text) => {
                    assert!(text.contains("10.0.0.7, 10.0.0.8"), "{text}");
                    continue;
                }
                Err(error) => error.to_string(),
            };
            assert!(
                error.ends_with("add it by hand: {ips: [10.0.0.7, 10.0.0.8], roles: [node]}"),
                "{error}"
            );
        }
    }
}
