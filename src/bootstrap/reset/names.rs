//! Hosts that stay forget the names of nodes that have left.

use crate::{Result, session::Session};
use host::{
    Effect, Mode, Scope,
    effect::HostsEntry,
    proto::{RunEnd, RunMark},
};
use std::net::Ipv4Addr;

/// Takes the names of `gone` out of the `/etc/hosts` of the host that `session` leads to.
///
/// # Errors
/// When the host does not answer, somebody else works on it, or the file cannot be written.
pub(crate) async fn forget(session: &Session, scope: &Scope, who: &str, gone: &[Ipv4Addr]) -> Result<()> {
    let mode = Mode::Write { who: who.to_owned() };
    let opened = session.client.open(scope, mode).await;
    opened.map_err(session.failed("taking the host's lock"))?;
    let applied = session.client.applied().await;
    let applied = applied.map_err(session.failed("asking what was applied"))?;
    let Some(effect) = without(&applied, gone) else {
        return Ok(());
    };
    let mark = RunMark {
        who: who.to_owned(),
        at_ms: jiff::Timestamp::now().as_millisecond(),
        ..RunMark::default()
    };
    let begun = session.client.begin_run(mark, false).await;
    begun.map_err(session.failed("noting that a run begins"))?;
    let changed = session.client.apply(vec![effect]).await;
    let how = if changed.is_ok() {
        RunEnd::PartDone
    } else {
        RunEnd::Failed
    };
    let ended = session.client.end_run(how).await;
    changed.map_err(session.failed("changing its /etc/hosts"))?;
    ended.map_err(session.failed("noting that a run ended"))
}

/// The lines of `/etc/hosts` as they were applied, without those of `gone`; nothing if there are none of these.
fn without(applied: &[Effect], gone: &[Ipv4Addr]) -> Option<Effect> {
    let entries = applied.iter().find_map(|effect| match effect {
        Effect::Hosts { entries } => Some(entries),
        _ => None,
    })?;
    let is_gone = |entry: &&HostsEntry| gone.iter().any(|ip| ip.to_string() == entry.ip);
    let kept: Vec<HostsEntry> = entries.iter().filter(|entry| !is_gone(entry)).cloned().collect();
    (kept.len() < entries.len()).then(|| Effect::Hosts { entries: kept.into() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Leaving, staying};

    #[test]
    fn nodes_that_stay_are_known_by_name_until_they_have_left() {
        let mut site = crate::testing::site();
        let wished = site.clone().hosts_entries();
        let leaving = |name: &str, ip: Option<&str>, now: Option<&str>| Leaving {
            name: name.to_owned(),
            ip: ip.map(|ip| ip.parse().unwrap()),
            now: now.map(str::to_owned),
        };
        site.staying = staying(&[
            leaving("late", Some("10.0.0.9"), None),
            // Here under another name, and one that nobody can reach.
            leaving("old", Some("10.0.0.2"), Some("n1")),
            leaving("lost", None, None),
        ]);
        let entries = site.hosts_entries();
        let added: Vec<&HostsEntry> = entries.iter().filter(|entry| !wished.contains(entry)).collect();
        assert_eq!(added.len(), 1, "{entries:?}");
        assert_eq!(
            (added[0].ip.as_str(), &added[0].names[..]),
            ("10.0.0.9", &["late".to_owned()][..])
        );
        // What is left then is what the next apply wants, in its order.
        let applied = [Effect::SwapOff, Effect::Hosts { entries }];
        let gone = ["10.0.0.9".parse().unwrap(), "10.0.0.77".parse().unwrap()];
        assert_eq!(without(&applied, &gone), Some(Effect::Hosts { entries: wished }));
        assert_eq!(without(&applied, &gone[1..]), None);
    }
}
