//! In which order findings are told, and which are told as part of another.

use super::{CHECKS, Finding, Severity};
use std::net::Ipv4Addr;

/// Checks whose findings go with another Kubernetes on the host: once that is gone, they are.
const FOLLOWING: [&str; 2] = ["cidr", "ports"];

/// Puts what only follows from another cluster's being there into the finding that tells of it, and orders all by consequence:
/// errors first, by check as [`CHECKS`] has them, then by host.
pub(crate) fn arrange(findings: &mut Vec<Finding>) {
    findings.sort_by(|one, other| key(one).cmp(&key(other)));
    findings.dedup();
    let owners: Vec<usize> = (0..findings.len()).filter(|at| is_owner(&findings[*at])).collect();
    let mut told = Vec::new();
    for owner in owners {
        let host = findings[owner].host.clone();
        let follows = |finding: &Finding| {
            finding.host == host && finding.severity == Severity::Error && FOLLOWING.contains(&finding.check)
        };
        let following: Vec<usize> = (0..findings.len())
            .filter(|at| !told.contains(at) && follows(&findings[*at]))
            .collect();
        if following.is_empty() {
            continue;
        }
        let causes: Vec<&str> = following.iter().map(|at| findings[*at].cause.as_str()).collect();
        let more = format!("; what probably goes with it: {}", causes.join("; "));
        findings[owner].cause.push_str(&more);
        told.extend(following);
    }
    let mut at = 0;
    findings.retain(|_| {
        at += 1;
        !told.contains(&(at - 1))
    });
}

/// Whether it tells that the host is another cluster's.
fn is_owner(finding: &Finding) -> bool {
    finding.check == "leftovers" && finding.severity == Severity::Error
}

/// What is in no list, such as a host that cannot be reached, comes first.
type Key<'f> = (Severity, Option<usize>, Option<Ipv4Addr>, &'f str, &'f str, &'f str);

fn key(finding: &Finding) -> Key<'_> {
    let rank = CHECKS.iter().position(|name| *name == finding.check);
    let ip = finding.host.parse().ok();
    (
        finding.severity,
        rank,
        ip,
        &finding.host,
        &finding.cause,
        &finding.remedy,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(host: &str, check: &'static str, severity: Severity, cause: &str) -> Finding {
        Finding {
            host: host.into(),
            name: host.into(),
            check,
            severity,
            cause: cause.into(),
            remedy: "r".into(),
        }
    }

    #[test]
    fn what_matters_most_comes_first_and_what_follows_from_it_is_part_of_it() {
        use Severity::{Error, Warning};
        let mut findings = vec![
            finding("10.0.0.10", "time-zone", Warning, "zone"),
            finding("10.0.0.2", "ports", Error, "nginx uses port 6443"),
            finding("10.0.0.10", "ports", Error, "etcd uses port 2379"),
            finding("10.0.0.10", "cidr", Error, "blocks overlap"),
            finding("10.0.0.10", "leftovers", Error, "it belongs to another"),
            finding("10.0.0.10", "arch", Error, "arm64"),
            finding("10.0.0.2", "arch", Error, "arm64"),
            finding("10.0.0.9", "reach", Error, "no answer"),
        ];
        findings.push(findings[0].clone());
        arrange(&mut findings);
        let told: Vec<_> = findings.iter().map(|f| (f.host.as_str(), f.cause.as_str())).collect();
        assert_eq!(
            told,
            [
                ("10.0.0.9", "no answer"),
                (
                    "10.0.0.10",
                    "it belongs to another; what probably goes with it: blocks overlap; etcd uses port 2379"
                ),
                ("10.0.0.2", "arm64"),
                ("10.0.0.10", "arm64"),
                ("10.0.0.2", "nginx uses port 6443"),
                ("10.0.0.10", "zone"),
            ]
        );
    }

    #[test]
    fn what_is_passed_over_hides_nothing() {
        use Severity::{Error, Warning};
        let mut findings = vec![
            finding("10.0.0.1", "leftovers", Warning, "traces"),
            finding("10.0.0.1", "ports", Error, "etcd uses port 2379"),
        ];
        arrange(&mut findings);
        assert_eq!(findings.len(), 2);
        assert_eq!(findings[0].check, "ports");
    }
}
