//! The time line: a row for each host, a bar for each of its phases, as SVG.

use super::{CLUSTER, Html, seen, took};
use crate::{
    story::{How, Span, Story},
    table::time,
};
use bootstrap::phases::PHASES;
use std::time::Duration;

const WIDTH: f64 = 1160.0;
const LABEL: f64 = 150.0;
const AXIS: f64 = 24.0;
/// More rows than this are drawn low, without words in the bars.
const MANY: usize = 30;
/// A letter's width in a bar.
const LETTER: f64 = 6.2;
/// Steps of the axis, in seconds.
const STEPS: [f64; 15] = [
    0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0,
];

/// How high things are.
#[derive(Clone, Copy)]
struct Sizes {
    lane: f64,
    gap: f64,
    words: bool,
}

impl Sizes {
    fn of(rows: usize) -> Self {
        let (lane, gap) = if rows > MANY { (8.0, 5.0) } else { (16.0, 10.0) };
        Self {
            lane,
            gap,
            words: rows <= MANY,
        }
    }
}

/// Bars of one host, in lanes so that none covers another.
struct Row<'s> {
    label: &'s str,
    lanes: Vec<Vec<&'s Span>>,
}

/// Draws it, with what the colours mean.
pub(super) fn draw(html: &mut Html, story: &Story) {
    if story.spans.is_empty() {
        return;
    }
    let total = story.total().as_secs_f64().max(0.001);
    let rows = rows(story);
    let sizes = Sizes::of(rows.len());
    let height = AXIS
        + rows
            .iter()
            .map(|row| row.lanes.len() as f64 * sizes.lane + sizes.gap)
            .sum::<f64>();
    let x = |at: Duration| LABEL + at.as_secs_f64() / total * (WIDTH - LABEL - 10.0);
    html.raw("<section><h2>Time line</h2><svg role=\"img\" aria-label=\"time line of every host\" viewBox=\"0 0 ");
    html.value(WIDTH)
        .raw(" ")
        .value(height)
        .raw("\" xmlns=\"http://www.w3.org/2000/svg\">\n");
    axis(html, total, height, x);
    let mut y = AXIS;
    for row in &rows {
        html.raw("<text class=\"label\" x=\"")
            .value(LABEL - 12.0)
            .raw("\" y=\"")
            .value(y + sizes.lane * 0.5 + 4.0)
            .raw("\">");
        html.text(&shortened(row.label, 20)).raw("</text>\n");
        for lane in &row.lanes {
            for span in lane {
                bar(html, span, story.total(), (y, sizes), x);
            }
            y += sizes.lane;
        }
        y += sizes.gap;
    }
    html.raw("</svg>\n");
    legend(html, story);
    html.raw("</section>\n");
}

fn rows(story: &Story) -> Vec<Row<'_>> {
    let row = |label, host: Option<&str>| Row {
        label,
        lanes: lanes(
            story.spans.iter().filter(|span| span.host.as_deref() == host).collect(),
            story.total(),
        ),
    };
    let mut rows: Vec<Row> = seen(story).into_iter().map(|host| row(host, Some(host))).collect();
    rows.push(row(CLUSTER, None));
    rows.retain(|row| !row.lanes.is_empty());
    rows
}

/// Puts each bar into the first lane that is free.
fn lanes(mut spans: Vec<&Span>, total: Duration) -> Vec<Vec<&Span>> {
    let end = |span: &Span| span.end.as_ref().map_or(total, |(to, _)| *to);
    spans.sort_by_key(|span| span.from);
    let mut lanes: Vec<Vec<&Span>> = Vec::new();
    for span in spans {
        let free = lanes
            .iter_mut()
            .find(|lane| lane.last().is_none_or(|last| end(last) <= span.from));
        match free {
            Some(lane) => lane.push(span),
            None => lanes.push(vec![span]),
        }
    }
    lanes
}

fn axis(html: &mut Html, total: f64, height: f64, x: impl Fn(Duration) -> f64) {
    let step = STEPS
        .into_iter()
        .find(|step| total / step <= 10.0)
        .unwrap_or(total / 10.0);
    let mut at = 0.0;
    while at <= total {
        let duration = Duration::from_secs_f64(at);
        html.raw("<line class=\"grid\" x1=\"")
            .value(x(duration))
            .raw("\" x2=\"")
            .value(x(duration));
        html.raw("\" y1=\"18\" y2=\"")
            .value(height)
            .raw("\"/><text class=\"tick\" x=\"")
            .value(x(duration));
        html.raw("\" y=\"12\">").text(&tick(at)).raw("</text>\n");
        at += step;
    }
}

fn tick(seconds: f64) -> String {
    match seconds {
        s if s >= 60.0 && s % 60.0 == 0.0 => format!("{} min", s / 60.0),
        s => format!("{} s", (s * 10.0).round() / 10.0),
    }
}

fn bar(html: &mut Html, span: &Span, total: Duration, (y, sizes): (f64, Sizes), x: impl Fn(Duration) -> f64) {
    let (to, class) = match &span.end {
        Some((to, How::Done { .. })) => (*to, "bar"),
        Some((to, How::Failed(_))) => (*to, "bar failed"),
        None => (total, "bar open"),
    };
    let (left, width) = (x(span.from), (x(to) - x(span.from)).max(1.5));
    html.raw("<g><title>").text(span.title).raw(": ");
    html.text(&took(span).map_or("not finished".to_owned(), time));
    if let Some((_, How::Failed(message))) = &span.end {
        html.raw("\n").text(message);
    }
    html.raw("</title><rect class=\"").raw(class).raw("\" fill=\"");
    colour(html, span.phase);
    html.raw("\" x=\"");
    html.value(left)
        .raw("\" y=\"")
        .value(y + 1.0)
        .raw("\" width=\"")
        .value(width)
        .raw("\" height=\"")
        .value(sizes.lane - 2.0);
    html.raw("\" rx=\"2\"/>");
    if sizes.words && width > span.phase.len() as f64 * LETTER + 6.0 {
        html.raw("<text class=\"in\" x=\"")
            .value(left + 4.0)
            .raw("\" y=\"")
            .value(y + 11.5)
            .raw("\">");
        html.text(span.phase).raw("</text>");
    }
    html.raw("</g>\n");
}

/// Phases that follow each other get colours far from each other, none too light for white words.
fn colour(html: &mut Html, phase: &str) {
    let index = PHASES
        .iter()
        .position(|other| other.name == phase)
        .unwrap_or(PHASES.len());
    let lightness = [46.0, 36.0, 52.0][index % 3];
    html.raw("hsl(").value((index as f64 * 137.5 + 205.0) % 360.0);
    html.raw(" 52% ").value(lightness).raw("%)");
}

fn legend(html: &mut Html, story: &Story) {
    let mut told: Vec<&str> = Vec::new();
    html.raw("<p class=\"legend\">");
    for span in &story.spans {
        if told.contains(&span.phase) {
            continue;
        }
        told.push(span.phase);
        html.raw("<span><i style=\"background:");
        colour(html, span.phase);
        html.raw("\"></i>");
        html.text(span.phase).raw("</span> ");
    }
    html.raw("</p>\n");
}

fn shortened(text: &str, most: usize) -> String {
    match text.chars().count() > most {
        true => text.chars().take(most - 1).chain(['…']).collect(),
        false => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(from: u64, to: Option<u64>) -> Span {
        Span {
            phase: "blobs",
            title: "",
            host: None,
            from: Duration::from_secs(from),
            end: to.map(|to| (Duration::from_secs(to), How::Done { changes: 0, bytes: 0 })),
        }
    }

    #[test]
    fn bars_never_cover_each_other() {
        let spans = [
            span(0, Some(4)),
            span(1, Some(2)),
            span(2, Some(3)),
            span(4, Some(6)),
            span(5, None),
        ];
        let lanes = lanes(spans.iter().collect(), Duration::from_secs(9));
        let starts: Vec<Vec<u64>> = lanes
            .iter()
            .map(|lane| lane.iter().map(|s| s.from.as_secs()).collect())
            .collect();
        assert_eq!(starts, [vec![0, 4], vec![1, 2, 5]]);
    }
}
