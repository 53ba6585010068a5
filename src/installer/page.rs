//! The report of a run: one HTML page that needs nothing from anywhere, and no scripts. Pure: a [`Story`] goes in, text comes out.

mod html;
mod timeline;

use crate::{
    story::{How, Outcome, Said, Span, Story},
    table::{size, time},
};
use bootstrap::preflight::Severity;
use html::Html;
use std::{collections::BTreeMap, time::Duration};

const STYLE: &str = include_str!("page/style.css");
/// How what belongs to no host is called.
const CLUSTER: &str = "cluster";

/// The page; `began` is when the run began, for people.
pub fn page(story: &Story, began: &str) -> String {
    let mut html = Html::default();
    html.raw("<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"/>");
    html.raw("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/><title>");
    html.text(&format!("{} of {}", story.command, story.cluster));
    html.raw("</title><style>")
        .raw(STYLE)
        .raw("</style></head>\n<body><main>\n");
    head(&mut html, story, began);
    failure(&mut html, story);
    tiles(&mut html, story);
    timeline::draw(&mut html, story);
    resets(&mut html, story);
    phases(&mut html, story);
    // What a reset did on each host is told above.
    if story.command != "reset" {
        hosts(&mut html, story);
    }
    findings(&mut html, story);
    checks(&mut html, story);
    said(&mut html, "Warnings", &story.warnings, true);
    said(&mut html, "Notes", &story.notes, false);
    said(
        &mut html,
        "Output of hooks and applications",
        story.output.iter(),
        false,
    );
    html.raw("<footer>made by installer ");
    html.text(story.version).raw("</footer>\n</main></body></html>\n");
    html.done()
}

fn head(html: &mut Html, story: &Story, began: &str) {
    let (class, word) = match story.result() {
        Outcome::Done => ("good", "done"),
        Outcome::Refused => ("warn", "refused by preflight: nothing was changed"),
        Outcome::Failed => ("bad", "failed"),
        Outcome::Unfinished => ("warn", "not finished"),
    };
    html.raw("<header><h1>")
        .text(&story.command)
        .raw(" <span class=\"of\">of</span> ");
    html.text(&story.cluster).raw(" <span class=\"badge ");
    html.raw(class).raw("\">").text(word).raw("</span></h1>\n<dl>");
    let digest = story.plan.as_ref().map_or("", |plan| plan.digest.as_str());
    let took = time(story.total());
    for (name, value) in [
        ("image", story.image.as_str()),
        ("began", began),
        ("took", &took),
        ("digest", digest),
    ] {
        if !value.is_empty() {
            html.raw("<div><dt>")
                .raw(name)
                .raw("</dt><dd>")
                .text(value)
                .raw("</dd></div>");
        }
    }
    html.raw("</dl></header>\n");
}

fn failure(html: &mut Html, story: &Story) {
    let Some((message, causes)) = &story.error else {
        return;
    };
    html.raw("<section class=\"failure\"><h2>Why it failed</h2><pre>")
        .text(message);
    for cause in causes {
        html.raw("\nbecause: ").text(cause);
    }
    html.raw("</pre></section>\n");
}

fn tiles(html: &mut Html, story: &Story) {
    let hosts = story
        .plan
        .as_ref()
        .map_or_else(|| seen(story).len(), |plan| plan.hosts.len());
    let bytes: u64 = story.traffic.values().map(|traffic| traffic.bytes).sum();
    let changes: usize = story.spans.iter().map(|span| did(span).0).sum();
    let passed = story.checks.iter().filter(|check| check.ok).count();
    html.raw("<section class=\"tiles\">");
    let mut tile = |class: &'static str, value: String, what: &'static str| {
        html.raw("<div class=\"tile ").raw(class).raw("\"><b>").text(&value);
        html.raw("</b><span>").raw(what).raw("</span></div>");
    };
    if hosts > 0 {
        tile("", hosts.to_string(), "hosts");
    }
    if bytes > 0 {
        tile("", size(bytes), "sent");
    }
    if story.command != "reset" {
        tile("", changes.to_string(), "changes");
    }
    if !story.resets.is_empty() {
        let undone: usize = story.resets.iter().map(|reset| reset.undone).sum();
        tile("", undone.to_string(), "changes undone");
    }
    if !story.checks.is_empty() {
        let class = if passed == story.checks.len() { "good" } else { "bad" };
        tile(class, format!("{passed}/{}", story.checks.len()), "probes passed");
    }
    if !story.findings.is_empty() {
        let class = if story.errors() > 0 { "bad" } else { "warn" };
        tile(class, story.findings.len().to_string(), "preflight findings");
    }
    if !story.warnings.is_empty() {
        tile("warn", story.warnings.len().to_string(), "warnings");
    }
    html.raw("</section>\n");
}

/// Hosts that were heard of, in this order.
fn seen(story: &Story) -> Vec<&str> {
    let mut hosts: Vec<&str> = Vec::new();
    let planned = story
        .plan
        .iter()
        .flat_map(|plan| &plan.hosts)
        .map(|host| host.name.as_str());
    let worked = story.spans.iter().filter_map(|span| span.host.as_deref());
    for host in planned.chain(worked) {
        if !hosts.contains(&host) {
            hosts.push(host);
        }
    }
    hosts
}

/// Changes and bytes of a phase.
fn did(span: &Span) -> (usize, u64) {
    match &span.end {
        Some((_, How::Done { changes, bytes })) => (*changes, *bytes),
        _ => (0, 0),
    }
}

fn took(span: &Span) -> Option<Duration> {
    span.end.as_ref().map(|(to, _)| to.saturating_sub(span.from))
}

fn phases(html: &mut Html, story: &Story) {
    let mut order: Vec<&str> = Vec::new();
    let mut by_phase: BTreeMap<&str, Vec<&Span>> = BTreeMap::new();
    for span in &story.spans {
        if !order.contains(&span.phase) {
            order.push(span.phase);
        }
        by_phase.entry(span.phase).or_default().push(span);
    }
    if order.is_empty() {
        return;
    }
    html.raw("<section><h2>Phases</h2><div class=\"scroll\"><table><thead><tr><th>phase</th><th></th><th class=\"n\">hosts</th>");
    html.raw("<th class=\"n\">from</th><th class=\"n\">longest</th><th>slowest</th><th class=\"n\">changes</th>");
    html.raw("<th class=\"n\">bytes</th></tr></thead><tbody>\n");
    for phase in order {
        let spans = &by_phase[phase];
        let (changes, bytes) = spans
            .iter()
            .map(|span| did(span))
            .fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
        let from = spans.iter().map(|span| span.from).min().unwrap_or_default();
        let slowest = spans
            .iter()
            .filter_map(|span| Some((took(span)?, *span)))
            .max_by_key(|(took, _)| *took);
        let hosts = spans.iter().filter(|span| span.host.is_some()).count();
        html.raw("<tr>").name(phase).cell(spans[0].title);
        html.number(&if hosts == 0 {
            "–".to_owned()
        } else {
            hosts.to_string()
        });
        html.number(&time(from));
        html.number(&slowest.map_or("–".to_owned(), |(took, _)| time(took)));
        html.name(slowest.and_then(|(_, span)| span.host.as_deref()).unwrap_or(""));
        html.number(&changes.to_string());
        html.number(&if bytes > 0 { size(bytes) } else { String::new() });
        html.raw("</tr>\n");
        unwell(html, spans);
    }
    html.raw("</tbody></table></div></section>\n");
}

/// What failed or did not end, in rows of their own.
fn unwell(html: &mut Html, spans: &[&Span]) {
    for span in spans {
        let place = span.host.as_deref().unwrap_or(CLUSTER);
        match &span.end {
            Some((_, How::Failed(message))) => {
                html.raw("<tr class=\"why\"><td></td><td colspan=\"7\"><p class=\"bad\">✘ ")
                    .text(place);
                html.raw(": ").text(message).raw("</p></td></tr>\n");
            }
            None => {
                html.raw("<tr class=\"why\"><td></td><td colspan=\"7\"><p class=\"warn\">")
                    .text(place);
                html.raw(": not finished</p></td></tr>\n");
            }
            Some((_, How::Done { .. })) => {}
        }
    }
}

fn hosts(html: &mut Html, story: &Story) {
    let hosts = seen(story);
    if hosts.is_empty() {
        return;
    }
    let works = story.result() == Outcome::Done;
    let most = story
        .traffic
        .values()
        .map(|traffic| traffic.bytes)
        .max()
        .unwrap_or(0)
        .max(1);
    html.raw("<section><h2>Hosts</h2><div class=\"scroll\"><table><thead><tr><th>host</th><th>address</th><th>role</th><th>state</th>");
    html.raw("<th class=\"n\">changes</th><th class=\"n\">sent</th><th></th><th class=\"n\">rate</th><th class=\"n\">peak</th></tr></thead><tbody>\n");
    for host in hosts {
        let planned = story
            .plan
            .iter()
            .flat_map(|plan| &plan.hosts)
            .find(|planned| planned.name == host);
        let own = || story.spans.iter().filter(|span| span.host.as_deref() == Some(host));
        let failed = own().find(|span| matches!(span.end, Some((_, How::Failed(_)))));
        let state = match (failed, own().find(|span| span.end.is_none())) {
            (Some(span), _) => ("bad", format!("failed: {}", span.title)),
            (None, Some(span)) => ("warn", format!("not finished: {}", span.title)),
            (None, None) if own().next().is_none() => ("", "untouched".to_owned()),
            (None, None) if works && planned.is_some_and(|planned| planned.joins) => ("good", "joined".to_owned()),
            (None, None) => ("good", "done".to_owned()),
        };
        let traffic = story.traffic.get(host);
        let bytes = traffic.map_or(0, |traffic| traffic.bytes);
        html.raw("<tr>").name(host);
        html.cell(planned.map_or("", |planned| &planned.ip))
            .cell(planned.map_or("", |planned| planned.role));
        html.raw("<td class=\"")
            .raw(state.0)
            .raw("\">")
            .text(&state.1)
            .raw("</td>");
        html.number(&own().map(|span| did(span).0).sum::<usize>().to_string());
        let planned = planned.map_or(0, |planned| planned.bytes);
        let (sent, wanted) = (size(bytes), size(planned));
        html.number(&match bytes < planned && sent != wanted {
            true => format!("{sent} of {wanted}"),
            false => sent,
        });
        html.raw("<td class=\"share\"><i style=\"width:")
            .value(bytes as f64 * 100.0 / most as f64)
            .raw("%\"></i></td>");
        let rate = |rate: Option<u64>| rate.map_or(String::new(), |rate| format!("{}/s", size(rate)));
        html.number(&rate(traffic.and_then(|traffic| traffic.rate())));
        html.number(&rate(traffic.map(|traffic| traffic.peak).filter(|peak| *peak > 0)));
        html.raw("</tr>\n");
    }
    html.raw("</tbody></table></div></section>\n");
}

fn findings(html: &mut Html, story: &Story) {
    if story.findings.is_empty() {
        return;
    }
    html.raw("<section><h2>Preflight findings</h2><div class=\"scroll\"><table><thead><tr><th></th><th>host</th><th>check</th><th>cause</th><th>remedy</th></tr></thead><tbody>\n");
    for finding in &story.findings {
        html.raw(match finding.severity {
            Severity::Error => "<tr><td class=\"bad\">stops</td>",
            Severity::Warning => "<tr><td class=\"warn\">warning</td>",
        });
        html.cell(&format!("{} ({})", finding.name, finding.host))
            .cell(finding.check);
        html.cell(&finding.cause).cell(&finding.remedy).raw("</tr>\n");
    }
    html.raw("</tbody></table></div></section>\n");
}

/// Probes as a table of places and checks; what was seen is in the list below.
fn checks(html: &mut Html, story: &Story) {
    if story.checks.is_empty() {
        return;
    }
    let place = |host: &Option<String>| host.clone().unwrap_or_else(|| "API server".to_owned());
    let (mut places, mut names): (Vec<String>, Vec<&str>) = (Vec::new(), Vec::new());
    for check in &story.checks {
        if !places.contains(&place(&check.host)) {
            places.push(place(&check.host));
        }
        if !names.contains(&check.check) {
            names.push(check.check);
        }
    }
    html.raw("<section><h2>Probes</h2><div class=\"scroll\"><table class=\"matrix\"><thead><tr><th>from</th>");
    for name in &names {
        html.raw("<th>").text(name).raw("</th>");
    }
    html.raw("</tr></thead><tbody>\n");
    for from in &places {
        html.raw("<tr>").cell(from);
        for name in &names {
            let mut here = story
                .checks
                .iter()
                .filter(|check| check.check == *name && place(&check.host) == *from);
            html.raw(match here.clone().next() {
                None => "<td></td>",
                Some(_) if here.all(|check| check.ok) => "<td class=\"good\">✔</td>",
                Some(_) => "<td class=\"bad\">✘</td>",
            });
        }
        html.raw("</tr>\n");
    }
    html.raw("</tbody></table></div>\n");
    for (ok, open) in [
        (false, "<details open=\"open\"><summary>"),
        (true, "<details><summary>"),
    ] {
        let some = story.checks.iter().filter(|check| check.ok == ok);
        if some.clone().next().is_none() {
            continue;
        }
        html.raw(open)
            .raw(if ok { "what was seen" } else { "what is wrong" })
            .raw("</summary><ul>\n");
        for check in some {
            html.raw("<li><b>")
                .text(check.check)
                .raw("</b> from ")
                .text(&place(&check.host));
            html.raw(": ").text(&check.detail).raw("</li>\n");
        }
        html.raw("</ul></details>\n");
    }
    html.raw("</section>\n");
}

fn resets(html: &mut Html, story: &Story) {
    if story.resets.is_empty() {
        return;
    }
    html.raw("<section><h2>What was undone</h2><div class=\"scroll\"><table><thead><tr><th>host</th><th class=\"n\">undone</th><th>state</th><th></th></tr></thead><tbody>\n");
    for reset in &story.resets {
        html.raw("<tr>").cell(&reset.host).number(&reset.undone.to_string());
        html.raw(match (&reset.skipped, reset.clean()) {
            (Some(_), _) => "<td class=\"warn\">left out</td>",
            (None, true) => "<td class=\"good\">nothing is left</td>",
            (None, false) => "<td class=\"bad\">something is left</td>",
        });
        html.raw("<td>");
        let left = reset.left.iter().map(crate::reset::describe);
        for line in reset.skipped.iter().chain(&reset.failed).cloned().chain(left) {
            html.raw("<p>").text(&line).raw("</p>");
        }
        html.raw("</td></tr>\n");
    }
    html.raw("</tbody></table></div></section>\n");
}

fn said<'s>(html: &mut Html, title: &'static str, all: impl IntoIterator<Item = &'s Said>, open: bool) {
    let mut all = all.into_iter().peekable();
    if all.peek().is_none() {
        return;
    }
    html.raw("<section><h2>").raw(title).raw("</h2>");
    html.raw(if open {
        "<ul class=\"said\">\n"
    } else {
        "<details><summary>show</summary><ul class=\"said\">\n"
    });
    for line in all {
        html.raw("<li><span>").text(&time(line.at)).raw("</span> <b>");
        html.text(line.host.as_deref().unwrap_or(CLUSTER))
            .raw("</b> ")
            .text(&line.text)
            .raw("</li>\n");
    }
    html.raw(if open {
        "</ul></section>\n"
    } else {
        "</ul></details></section>\n"
    });
}

#[cfg(test)]
mod tests;
