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
    preflight::{Finding, Severity},
    rolling::PlannedTurn,
    run::Timing,
    verify::Check,
};
use host::Action;
use std::{collections::BTreeMap, time::Duration};

/// Every finding of every host.
pub fn findings(context: &Context, findings: &[Finding]) {
    let out = &context.out;
    for finding in findings {
        context.observer.event(Event::Finding {
            finding: finding.clone(),
        });
        if out.is_json() {
            continue;
        }
        let text = format!(
            "{} ({}): {} [{}]\n  remedy: {}",
            finding.host, finding.name, finding.cause, finding.check, finding.remedy
        );
        match finding.severity {
            Severity::Error => out.error(&text),
            Severity::Warning => out.warn(text),
        }
    }
    let errors = findings
        .iter()
        .filter(|finding| finding.severity == Severity::Error)
        .count();
    if errors > 0 {
        out.note(format!(
            "{errors} findings stop us; nothing was changed. --ignore-preflight NAME passes over a check"
        ));
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
        "{joining} hosts to add, {changing} to change: {changes} changes, {} to send; {objects} objects of the cluster",
        size(plan.bytes())
    )
}

fn host_plan(out: &Output, host: &HostPlan, diff: bool) {
    let joins = if host.joins { ", joins" } else { "" };
    out.result(format!(
        "{} {} ({}{joins}): {} in {} blobs",
        host.host,
        host.name,
        host.role,
        size(host.bytes),
        host.blobs
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
            "no packet left the cluster's addresses on any of {} hosts, from the unpacking of the rootfs on",
            held.len()
        ));
    }
    Exit::Done
}

/// Time and bytes of every phase; a phase that ran on several hosts counts from its first start to its last end.
pub fn timings(context: &Context, timings: &[Timing], total: Duration) {
    let out = &context.out;
    for timing in timings {
        context.observer.event(timing.into());
    }
    let mut phases: Vec<&'static str> = Vec::new();
    let mut sums: BTreeMap<&str, Sum> = BTreeMap::new();
    for timing in timings {
        if !phases.contains(&timing.phase) {
            phases.push(timing.phase);
        }
        sums.entry(timing.phase).or_default().add(timing);
    }
    let mut table = Table::new(["PHASE", "HOSTS", "FROM", "TO", "LONGEST", "CHANGES", "BYTES"]);
    for phase in phases {
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
    out.table(&table);
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
