//! The page of a recorded run.

use super::*;
use bootstrap::{event::Event, phases::PHASES, preflight::Finding, reset::HostReset, verify::Check};

const NASTY: &str = "<script>alert('x')</script> & \"y\" \u{1b}[31m";

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Every phase on two hosts, one of which fails in the last but one, and everything else that can be told; `nasty` wherever others
/// choose the text.
pub(in crate::page) fn recorded(nasty: &str) -> Story {
    let mut story = Story::default();
    let mut now = 0;
    let mut told = vec![Event::Started {
        command: "apply".into(),
        cluster: format!("demo{nasty}"),
        image: format!("local/native:dev{nasty}"),
        version: "0.1.0",
    }];
    told.push(Event::Finding {
        finding: Finding {
            host: "10.0.0.2".into(),
            name: format!("n1{nasty}"),
            check: "swap",
            severity: Severity::Warning,
            cause: format!("swap is on{nasty}"),
            remedy: format!("swapoff -a{nasty}"),
        },
    });
    for event in told {
        story.take(ms(0), &event);
    }
    for (index, phase) in PHASES.iter().enumerate() {
        for host in ["m1", "n1"] {
            let host = format!("{host}{nasty}");
            let began = ms(now + if host.starts_with('n') { 40 } else { 0 });
            let here = Some(host.clone());
            let (phase, title) = (phase.name, phase.title);
            story.take(
                began,
                &Event::PhaseStarted {
                    phase,
                    title,
                    host: here.clone(),
                },
            );
            if phase == "blobs" {
                let bytes = 120_000_000;
                story.take(
                    began,
                    &Event::BytesExpected {
                        host: host.clone(),
                        bytes,
                    },
                );
                story.take(began + ms(900), &Event::BytesSent { host, bytes });
            }
            let end = began + ms(300 + 137 * (index as u64 % 7));
            if index + 2 == PHASES.len() && here.as_ref().is_some_and(|host| host.starts_with('n')) {
                let message = format!("it would not{nasty}");
                story.take(
                    end,
                    &Event::PhaseFailed {
                        phase,
                        host: here,
                        message,
                    },
                );
            } else {
                let (changes, bytes, took) = (3, 1000, ms(1));
                story.take(
                    end,
                    &Event::PhaseDone {
                        phase,
                        host: here,
                        changes,
                        bytes,
                        from_peers: 0,
                        took,
                    },
                );
            }
        }
        now += 260;
    }
    for (check, host, ok) in [
        ("node", None, true),
        ("dns", Some("m1"), true),
        ("dns", Some("n1"), false),
    ] {
        let host = host.map(|host| format!("{host}{nasty}"));
        let detail = format!("seen{nasty}");
        story.take(
            ms(now),
            &Event::Check(Check {
                check,
                host,
                ok,
                detail,
            }),
        );
    }
    story.take(
        ms(now),
        &Event::Reset {
            result: HostReset {
                host: format!("n1{nasty}"),
                undone: 3,
                failed: vec![format!("busy{nasty}")],
                left: Vec::new(),
                skipped: None,
            },
        },
    );
    let (host, message) = (None, format!("careful{nasty}"));
    story.take(
        ms(now),
        &Event::Warning {
            host: host.clone(),
            message: message.clone(),
        },
    );
    story.take(ms(now), &Event::Note { host, message });
    let line = Event::Output {
        host: None,
        what: format!("hook{nasty}"),
        stream: host::proto::Stream::Stdout,
        line: format!("line{nasty}"),
    };
    story.take(ms(now), &line);
    let (message, causes) = (format!("it failed{nasty}"), vec![format!("cable{nasty}")]);
    story.take(ms(now), &Event::Error { message, causes });
    story.take(ms(now), &Event::Ended { exit: 1, took: ms(now) });
    story
}

/// Elements that were opened and not closed, or closed and not opened. Strict: no element may be left open.
fn unbalanced(page: &str) -> Result<(), String> {
    let mut open: Vec<&str> = Vec::new();
    let mut rest = page.strip_prefix("<!DOCTYPE html>").ok_or("no doctype")?;
    while let Some(at) = rest.find('<') {
        let tag = &rest[at + 1..];
        let end = tag.find('>').ok_or("a tag without an end")?;
        let (tag, after) = (&tag[..end], &tag[end + 1..]);
        if let Some(name) = tag.strip_prefix('/') {
            if open.pop() != Some(name) {
                return Err(format!("</{name}> closes something else"));
            }
        } else if !tag.ends_with('/') {
            open.push(tag.split_whitespace().next().ok_or("a tag without a name")?);
        }
        if tag.matches('"').count() % 2 == 1 {
            return Err(format!("<{tag}> has an odd quote"));
        }
        rest = after;
    }
    if open.is_empty() {
        Ok(())
    } else {
        Err(format!("left open: {open:?}"))
    }
}

#[test]
fn every_phase_of_every_host_and_all_else_that_was_told_is_there() {
    let page = page(&recorded(""), "2026-01-01 10:00:00");
    for phase in PHASES {
        let title = phase.title.replace('\'', "&#39;");
        assert!(page.contains(&title), "{} is missing", phase.name);
        let bars = page.matches(&format!("<title>{title}: ")).count();
        assert!(bars >= 2, "{}: {bars} bars", phase.name);
    }
    for text in [
        "local/native:dev",
        "10.0.0.2",
        "swap is on",
        "swapoff -a",
        "it would not",
        "120.0 MB",
        "133.3 MB/s",
        "careful",
        "hook: line",
        "it failed",
        "because: cable",
        "busy",
        "2/3",
        "2026-01-01 10:00:00",
        "class=\"badge bad\">failed",
    ] {
        assert!(page.contains(text), "{text} is missing");
    }
}

#[test]
fn nothing_that_others_write_becomes_markup() {
    let page = page(&recorded(NASTY), NASTY);
    assert!(!page.contains("<script") && !page.contains('\u{1b}'));
    assert!(page.contains("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; &quot;y&quot; \u{fffd}[31m"));
    unbalanced(&page).unwrap();
    // As many elements as with harmless text: none was added.
    let plain = super::page(&recorded(""), "now");
    assert_eq!(page.matches('<').count(), plain.matches('<').count());
}

#[test]
fn the_page_is_well_formed_and_needs_nothing_from_elsewhere() {
    for story in [recorded(""), Story::default()] {
        let page = page(&story, "now");
        unbalanced(&page).unwrap();
        let links = page.replace("http://www.w3.org/2000/svg", "");
        for foreign in ["http:", "https:", "src=", "href=", "url(", "@import", "<script"] {
            assert!(!links.contains(foreign), "{foreign}");
        }
    }
}

#[test]
fn a_run_that_was_refused_says_so() {
    let mut story = Story::default();
    story.take(ms(5), &Event::Ended { exit: 3, took: ms(5) });
    assert!(page(&story, "now").contains("refused by preflight: nothing was changed"));
}

proptest::proptest! {
    #[test]
    fn any_text_leaves_the_page_well_formed(text in ".{0,40}") {
        let page = page(&recorded(&text), &text);
        proptest::prop_assert!(unbalanced(&page).is_ok());
    }
}
