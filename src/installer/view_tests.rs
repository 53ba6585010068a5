//! What lines say.

use super::*;

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn started(host: Option<&str>, phase: &'static str, title: &'static str) -> Event {
    Event::PhaseStarted {
        phase,
        title,
        host: host.map(str::to_owned),
    }
}

fn done(host: &str, phase: &'static str) -> Event {
    Event::PhaseDone {
        phase,
        host: Some(host.to_owned()),
        changes: 0,
        bytes: 0,
        from_peers: 0,
        took: at(1),
    }
}

fn failed(host: &str, phase: &'static str) -> Event {
    Event::PhaseFailed {
        phase,
        host: Some(host.to_owned()),
        message: "no".to_owned(),
    }
}

fn expected(host: &str, bytes: u64) -> Event {
    Event::BytesExpected {
        host: host.to_owned(),
        bytes,
    }
}

fn sent(host: &str, bytes: u64) -> Event {
    Event::BytesSent {
        host: host.to_owned(),
        bytes,
    }
}

fn view(events: &[(u64, Event)]) -> View {
    let mut view = View::default();
    for (seconds, event) in events {
        view.take(at(*seconds), event);
    }
    view
}

/// Without colours, whatever the terminal of the tests.
fn lines(view: &View, seconds: u64, width: usize, height: usize) -> Vec<String> {
    let lines = view.lines(at(seconds), width, height);
    lines
        .iter()
        .map(|line| console::strip_ansi_codes(line).into_owned())
        .collect()
}

#[test]
fn a_host_shows_its_phase_its_bytes_their_rate_and_what_is_left() {
    let view = view(&[
        (0, started(Some("m1"), "blobs", "sending the rootfs")),
        (0, expected("m1", 100_000_000)),
        (0, started(Some("node-12"), "rootfs", "unpacking the rootfs")),
        (1, sent("m1", 10_000_000)),
        (2, sent("m1", 10_000_000)),
    ]);
    assert_eq!(
        lines(&view, 2, 200, 50),
        [
            "⠋ m1       sending the rootfs  ████──────────────── 20.0 MB/100.0 MB  10.0 MB/s  8 s left",
            "⠋ node-12  unpacking the rootfs",
        ]
    );
}

#[test]
fn a_line_goes_back_to_what_still_goes_on_and_keeps_how_it_ended() {
    let mut view = view(&[
        (0, started(Some("m1"), "registry", "starting the private registry")),
        (0, started(Some("m1"), "runtime", "starting the container runtime")),
        (1, done("m1", "runtime")),
    ]);
    assert_eq!(lines(&view, 0, 80, 9), ["⠋ m1       starting the private registry"]);
    view.take(at(1), &done("m1", "registry"));
    assert_eq!(lines(&view, 0, 80, 9), ["· m1       waiting"]);
    view.take(at(2), &started(Some("m1"), "agent", "starting the node agent"));
    view.take(at(3), &failed("m1", "agent"));
    assert_eq!(lines(&view, 0, 80, 9), ["✘ m1       starting the node agent: failed"]);
    view.take(at(4), &started(None, "verify", "proving that the cluster works"));
    let last = "⠋ cluster  proving that the cluster works";
    assert_eq!(lines(&view, 0, 80, 9)[1], last);
    let message = "done".to_owned();
    view.take(
        at(5),
        &Event::HostDone {
            host: "m1".into(),
            message,
        },
    );
    assert_eq!(lines(&view, 0, 80, 9)[0], "✔ m1       done");
}

#[test]
fn rates_are_those_of_the_last_seconds() {
    let mut bytes = Bytes::default();
    bytes.expect(at(0), 1000);
    for second in 1..=10 {
        bytes.add(at(second), 10);
    }
    assert_eq!(bytes.rate(at(10)), 10);
    // Nothing came for twenty seconds: it goes down, and is not that of the whole time.
    assert!(bytes.rate(at(30)) < 5);
    for second in 31..=40 {
        bytes.add(at(second), 50);
    }
    assert_eq!(bytes.rate(at(40)), 50);
    assert!(bytes.seen.len() < 40, "what is remembered is bounded");
    assert_eq!(left(1000, 600, 50), Some(at(8)));
    assert_eq!(left(1000, 600, 0), None);
    assert_eq!(left(1000, 1000, 50), None);
}

fn many() -> View {
    let mut view = View::default();
    for index in 0..50 {
        let name = format!("n{index:02}");
        view.take(at(0), &started(Some(&name), "blobs", "sending the rootfs"));
        view.take(at(0), &expected(&name, 1000));
        match index {
            0..2 => view.take(at(1), &sent(&name, 100)),
            2..40 => {
                view.take(at(1), &sent(&name, 1000));
                view.take(at(1), &done(&name, "blobs"));
                view.take(at(1), &started(Some(&name), "rootfs", "unpacking the rootfs"));
            }
            40 => view.take(at(1), &failed(&name, "blobs")),
            41..45 => view.take(at(1), &done(&name, "blobs")),
            _ => {
                let message = "done".to_owned();
                view.take(at(1), &Event::HostDone { host: name, message });
            }
        }
    }
    view
}

#[test]
fn many_hosts_are_counted_and_those_that_lag_or_failed_are_named() {
    assert_eq!(
        lines(&many(), 1, 200, 50),
        [
            "50 hosts: 5 done, 1 failed, 4 waiting",
            "     2  sending the rootfs  ██────────────────── 200 B/2.0 kB  200 B/s  9 s left",
            "    38  unpacking the rootfs",
            "     ✘  n40: sending the rootfs",
            "        behind: n00 (10 %), n01 (10 %)",
        ]
    );
}

#[test]
fn nobody_lags_while_most_are_in_the_same_phase() {
    let mut view = View::default();
    for index in 0..30 {
        view.take(
            at(0),
            &started(Some(&format!("n{index}")), "blobs", "sending the rootfs"),
        );
    }
    assert_eq!(
        lines(&view, 0, 80, 50),
        ["30 hosts: 0 done", "    30  sending the rootfs"]
    );
}

#[test]
fn lines_fit_the_terminal() {
    let view = many();
    for (width, height) in [(10, 3), (1, 1), (40, 100), (0, 0)] {
        let lines = lines(&view, 1, width, height);
        assert!(lines.len() <= height.max(1));
        for line in &lines {
            assert!(console::measure_text_width(line) <= width.max(1), "{line:?} in {width}");
        }
    }
    let few = super::tests::view(&[
        (0, started(Some("a"), "blobs", "x")),
        (0, started(Some("b"), "blobs", "x")),
    ]);
    assert_eq!(
        lines(&few, 0, 80, 3)[0],
        "2 hosts: 0 done",
        "a low terminal has no room for a line each"
    );
}
