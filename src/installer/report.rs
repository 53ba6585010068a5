//! How findings, plans, checks and timings are printed.

use crate::{
    context::Context,
    failure::Exit,
    output::Output,
    table::{Table, size, time},
};
use bootstrap::{
    airgap::Proof,
    event::Event,
    plan::{HostPlan, Plan, Restart},
    preflight::{self, Finding, Severity},
    rolling::PlannedTurn,
    run::Timing,
    verify::Check,
};
use host::Action;
use oci::counted;
use std::{collections::BTreeMap, time::Duration};

/// So many hosts are named where several have one finding.
const NAMED: usize = 5;

/// Every finding of every host; people are told what several hosts have in common once.
pub fn findings(context: &Context, findings: &[Finding]) {
    let out = &context.out;
    for finding in findings {
        context.observer.event(Event::Finding {
            finding: finding.clone(),
        });
    }
    if out.is_json() {
        return;
    }
    let folded = folded(findings);
    for (finding, hosts) in &folded {
        let text = format!(
            "{}: {} [{}]\n  remedy: {}",
            named(hosts),
            finding.cause,
            finding.check,
            finding.remedy
        );
        match finding.severity {
            Severity::Error => out.error(&text),
            Severity::Warning => out.warn(text),
        }
    }
    let stopping = folded.iter().filter(|(finding, _)| finding.severity == Severity::Error);
    let (errors, ignorable) = stopping.fold((0, false), |(count, any), (finding, _)| {
        (count + 1, any || preflight::CHECKS.contains(&finding.check))
    });
    if errors > 0 {
        let verb = if errors == 1 { "stops" } else { "stop" };
        let ignore = match ignorable {
            true => ". --ignore-preflight NAME passes over a check",
            false => "",
        };
        out.note(format!(
            "{} {verb} us; nothing was changed{ignore}",
            counted(errors, "finding")
        ));
    }
}

/// Findings that differ in nothing but their host are one, in the place of the first.
fn folded(findings: &[Finding]) -> Vec<(&Finding, Vec<&Finding>)> {
    let mut folded: Vec<(&Finding, Vec<&Finding>)> = Vec::new();
    for finding in findings {
        let same = |other: &Finding| {
            (other.check, other.severity) == (finding.check, finding.severity)
                && other.cause == finding.cause
                && other.remedy == finding.remedy
        };
        match folded.iter_mut().find(|(first, _)| same(first)) {
            Some((_, hosts)) => hosts.push(finding),
            None => folded.push((finding, vec![finding])),
        }
    }
    folded
}

/// Hosts by address and name; an address alone where that is all that is known.
fn named(hosts: &[&Finding]) -> String {
    let name = |finding: &&Finding| match finding.name == finding.host {
        true => finding.host.clone(),
        false => format!("{} ({})", finding.host, finding.name),
    };
    let named: Vec<String> = hosts.iter().take(NAMED).map(name).collect();
    match hosts.len().saturating_sub(NAMED) {
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    }
}

/// What a plan says.
pub fn plan(out: &Output, plan: &Plan, diff: bool) {
    out.result(format!(
        "cluster {} with image {} ({})",
        plan.cluster,
        plan.image,
        plan.digest.short()
    ));
    for host in plan.hosts.iter().filter(|host| !host.is_empty()) {
        host_plan(out, host, diff);
    }
    turns(out, plan);
    match &plan.objects {
        None => out.result("the cluster itself: created, with the image's manifests"),
        Some(objects) => {
            for object in objects {
                out.result(format!("  {} {}", sign(object.action), object.object));
            }
        }
    }
    for image in &plan.images {
        out.result(format!("  {} image {image}", sign("create")));
    }
    leaving(out, plan);
    if plan.is_empty() {
        out.result("nothing to do");
    } else {
        out.result(summary(plan));
    }
}

/// In which order hosts are worked on that run pods.
fn turns(out: &Output, plan: &Plan) {
    if plan.turns.is_empty() {
        return;
    }
    let turn = |turn: &PlannedTurn| format!("{} ({})", turn.host, if turn.drain { "drained" } else { "pods stay" });
    let told: Vec<String> = plan.turns.iter().map(turn).collect();
    out.result(format!("one after the other: {}", told.join(", ")));
}

/// Nodes that nobody wishes any more; they are only removed when that is confirmed.
pub fn leaving(out: &Output, plan: &Plan) {
    for node in &plan.leaving {
        let ip = node.ip.map(|ip| format!(" ({ip})")).unwrap_or_default();
        out.result(format!(
            "  - node {}{ip} is in the cluster but not in the Clusterfile{}",
            node.name,
            node.now
                .as_ref()
                .map(|name| format!(": its host is {name} now"))
                .unwrap_or_default()
        ));
    }
}

/// One line that says it all.
pub fn summary(plan: &Plan) -> String {
    let joining = plan.hosts.iter().filter(|host| host.joins).count();
    let changing = plan.hosts.iter().filter(|host| !host.joins && !host.is_empty()).count();
    let changes: usize = plan.hosts.iter().map(|host| host.changes.len()).sum();
    let objects = plan.objects.as_ref().map_or(0, Vec::len);
    format!(
        "{} to add, {changing} to change: {}, {} to send; {} of the cluster",
        counted(joining, "host"),
        counted(changes, "change"),
        size(plan.bytes()),
        counted(objects, "object")
    )
}

fn host_plan(out: &Output, host: &HostPlan, diff: bool) {
    let joins = if host.joins { ", joins" } else { "" };
    out.result(format!(
        "{} {} ({}{joins}): {} in {}",
        host.host,
        host.name,
        host.role,
        size(host.bytes),
        counted(host.blobs, "blob")
    ));
    for change in &host.changes {
        let detail = if change.change.detail.is_empty() {
            String::new()
        } else {
            format!(" ({})", change.change.detail)
        };
        let action = match change.change.action {
            Action::None => continue,
            Action::Create => "create",
            Action::Modify => "modify",
            Action::Remove => "remove",
        };
        out.result(format!("  {} {}{detail}", sign(action), change.change.what));
        if let Some(text) = change.change.diff.as_ref().filter(|_| diff) {
            for line in text.lines() {
                out.result(format!("      {line}"));
            }
        }
    }
    for one in &host.restarts {
        restart(out, one);
    }
}

fn restart(out: &Output, restart: &Restart) {
    out.result(format!("  {} {} {}", sign("restart"), restart.how, restart.what));
}

fn sign(action: &str) -> console::StyledObject<&'static str> {
    match action {
        "create" => console::style("+").green(),
        "remove" => console::style("-").red(),
        "restart" => console::style("↻").yellow(),
        _ => console::style("~").yellow(),
    }
}

/// Tells what hosts counted of what would have left the cluster, and how the command ends because of it.
pub fn proof(out: &Output, proof: &[Proof]) -> Exit {
    let (held, broken): (Vec<_>, Vec<_>) = proof.iter().partition(|proof| proof.holds());
    for proof in &broken {
        out.error(&proof.to_string());
    }
    if !broken.is_empty() {
        return Exit::Unhealthy;
    }
    if !held.is_empty() {
        out.result(format!(
            "no packet left the cluster's addresses, counted on {} from the unpacking of the rootfs on",
            counted(held.len(), "host")
        ));
    }
    Exit::Done
}

/// A phase that changed nothing and was shorter than this is not worth a row.
const IDLE: Duration = Duration::from_secs(1);

/// Time and bytes of every phase; a phase that ran on several hosts counts from its first start to its last end. People see those
/// that did something, or took their time.
pub fn timings(context: &Context, timings: &[Timing], total: Duration) {
    for timing in timings {
        context.observer.event(timing.into());
    }
    context.out.table(&phases(timings, total));
}

fn phases(timings: &[Timing], total: Duration) -> Table {
    let mut phases: Vec<&'static str> = Vec::new();
    let mut sums: BTreeMap<&str, Sum> = BTreeMap::new();
    for timing in timings {
        if !phases.contains(&timing.phase) {
            phases.push(timing.phase);
        }
        sums.entry(timing.phase).or_default().add(timing);
    }
    let mut table = Table::new(["PHASE", "HOSTS", "FROM", "TO", "LONGEST", "CHANGES", "BYTES"]);
    let (busy, idle): (Vec<_>, Vec<_>) = phases.into_iter().partition(|phase| !sums[phase].is_idle());
    for phase in busy {
        let sum = &sums[phase];
        table.row([
            phase.to_owned(),
            if sum.hosts == 0 {
                "-".to_owned()
            } else {
                sum.hosts.to_string()
            },
            time(sum.from),
            time(sum.to),
            time(sum.longest),
            sum.changes.to_string(),
            size(sum.bytes),
        ]);
    }
    if !idle.is_empty() {
        table.row([format!("{} without work", counted(idle.len(), "phase"))]);
    }
    let bytes = timings.iter().map(|timing| timing.bytes).sum();
    table.row([
        "total".to_owned(),
        String::new(),
        String::new(),
        time(total),
        String::new(),
        String::new(),
        size(bytes),
    ]);
    table
}

#[derive(Default)]
struct Sum {
    hosts: usize,
    from: Duration,
    to: Duration,
    longest: Duration,
    changes: usize,
    bytes: u64,
    any: bool,
}

impl Sum {
    fn is_idle(&self) -> bool {
        self.changes == 0 && self.bytes == 0 && self.longest < IDLE
    }

    fn add(&mut self, timing: &Timing) {
        self.from = if self.any {
            self.from.min(timing.began)
        } else {
            timing.began
        };
        self.any = true;
        self.to = self.to.max(timing.began + timing.took);
        self.longest = self.longest.max(timing.took);
        self.hosts += usize::from(timing.host.is_some());
        self.changes += timing.changes;
        self.bytes += timing.bytes;
    }
}

/// What was checked; returns whether all is well. Single checks were told as events already.
pub fn checks(context: &Context, checks: &[Check], took: Duration) -> bool {
    let passed = checks.iter().filter(|check| check.ok).count();
    let failed = checks.len() - passed;
    let ok = failed == 0;
    context.observer.event(Event::Checked {
        ok,
        passed,
        failed,
        took,
    });
    let mut table = Table::new(["", "CHECK", "FROM", "DETAIL"]);
    for check in checks {
        let mark = if check.ok {
            console::style("✔").green()
        } else {
            console::style("✘").red()
        };
        let host = check.host.clone().unwrap_or_else(|| "API server".to_owned());
        table.row([mark.to_string(), check.check.to_owned(), host, check.detail.clone()]);
    }
    context.out.table(&table);
    ok
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(host: &str, name: &str, cause: &str) -> Finding {
        Finding {
            host: host.into(),
            name: name.into(),
            check: "swap",
            severity: Severity::Warning,
            cause: cause.into(),
            remedy: "nothing".into(),
        }
    }

    #[test]
    fn what_hosts_have_in_common_is_told_once() {
        let mut findings: Vec<_> = (1..=7)
            .map(|n| finding(&format!("10.0.0.{n}"), &format!("n{n}"), "swap is on"))
            .collect();
        findings.insert(1, finding("10.0.0.9", "10.0.0.9", "it refuses the connection"));
        let told: Vec<_> = folded(&findings)
            .iter()
            .map(|(finding, hosts)| format!("{}: {}", named(hosts), finding.cause))
            .collect();
        let many = "10.0.0.1 (n1), 10.0.0.2 (n2), 10.0.0.3 (n3), 10.0.0.4 (n4), 10.0.0.5 (n5) and 2 more: swap is on";
        assert_eq!(told, [many, "10.0.0.9: it refuses the connection"]);
    }

    #[test]
    fn a_small_apply_has_a_small_table() {
        let timing = |phase, changes, bytes, millis| Timing {
            phase,
            host: Some("m1".into()),
            began: Duration::ZERO,
            took: Duration::from_millis(millis),
            changes,
            bytes,
            from_peers: 0,
        };
        let timings = [
            timing("blobs", 0, 0, 3),
            timing("rootfs", 0, 0, 12),
            timing("prepare", 1, 0, 20),
            timing("agent", 0, 0, 5),
            timing("verify", 0, 0, 2500),
        ];
        let text = phases(&timings, Duration::from_secs(3)).to_string();
        let first: Vec<&str> = text.lines().filter_map(|line| line.split_whitespace().next()).collect();
        assert_eq!(first, ["PHASE", "prepare", "verify", "3", "total"], "{text}");
        assert!(text.contains("3 phases without work"), "{text}");
    }
}
