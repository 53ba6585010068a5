//! A plan as a file: what was looked at, what was found, and what shall be done about it. Whoever applies it later looks again, and goes on
//! only if all of it is still so.
//!
//! The file holds no secrets: the wish is a digest of the Clusterfile without its secrets, previews show no content of secret files.

use super::Plan;
use crate::{Error, Result, site::Seat};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{collections::BTreeMap, fmt, path::Path};

/// Names the format; another one is refused.
const FORMAT: &str = "installer.internal/plan/v1";
/// Largest file that is read, in bytes.
const LIMIT: u64 = 256 << 20;

/// See the head of this file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PlanFile {
    /// [`FORMAT`].
    pub format: String,
    /// Version of the installer that made it.
    pub installer: String,
    /// When it was made (RFC 3339).
    pub made: String,
    /// Digest of the Clusterfile without its secrets.
    pub wish: oci::Digest,
    /// The cluster image.
    pub image: String,
    /// Its digest.
    pub digest: oci::Digest,
    /// What each host was found to be, by address, as far as it decides anything.
    pub facts: BTreeMap<String, BTreeMap<String, String>>,
    /// The plan, as `plan -o json` prints it.
    pub plan: Value,
}

/// Something that is not as it was when the plan was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Moved {
    /// On which host; absent: not on a host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// What.
    pub what: String,
}

impl fmt::Display for Moved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Some(host) => write!(f, "{host}: {}", self.what),
            None => f.write_str(&self.what),
        }
    }
}

impl PlanFile {
    /// The file of a plan for these hosts, wished by `record` (a Clusterfile without secrets).
    ///
    /// # Errors
    /// Never for plans that can be printed.
    pub fn new(plan: &Plan, seats: &[Seat], record: &Value) -> Result<Self> {
        let seen = seats.iter().map(|seat| (seat.ip.to_string(), facts(seat)));
        Ok(Self {
            format: FORMAT.to_owned(),
            installer: env!("CARGO_PKG_VERSION").to_owned(),
            made: jiff::Timestamp::now().to_string(),
            wish: oci::Digest::of(record.to_string().as_bytes()),
            image: plan.image.clone(),
            digest: plan.digest.clone(),
            facts: seen.collect(),
            plan: serde_json::to_value(plan).map_err(|e| Error::Wish(format!("the plan cannot be written: {e}")))?,
        })
    }

    /// Reads one.
    ///
    /// # Errors
    /// When it cannot be read, is no plan, or is one of another version of this program.
    pub fn read(path: &Path) -> Result<Self> {
        let local = |source| Error::Local {
            what: format!("cannot read the plan {}", path.display()),
            source,
        };
        if std::fs::metadata(path).map_err(local)?.len() > LIMIT {
            return Err(Error::Wish(format!("{} is too large to be a plan", path.display())));
        }
        let bytes = std::fs::read(path).map_err(local)?;
        let value: Value = serde_json::from_slice(&bytes).map_err(|_| {
            Error::Wish(format!(
                "{} is no plan that installer plan --out wrote (a Clusterfile is named with -f)",
                path.display()
            ))
        })?;
        let format = value["format"].as_str().unwrap_or("none");
        if format != FORMAT {
            return Err(Error::Wish(format!(
                "{} has the format {format}, this installer reads {FORMAT}: make the plan anew with installer plan --out",
                path.display()
            )));
        }
        serde_json::from_value(value)
            .map_err(|e| Error::Wish(format!("{} is damaged: {e}; make the plan anew", path.display())))
    }

    /// As it is written.
    ///
    /// # Errors
    /// Never.
    pub fn to_json(&self) -> Result<Vec<u8>> {
        let mut text = serde_json::to_vec_pretty(self).map_err(|e| Error::Wish(e.to_string()))?;
        text.push(b'\n');
        Ok(text)
    }

    /// What is not as it was, now that somebody has looked again.
    pub fn moved(&self, now: &Self) -> Vec<Moved> {
        let mut moved = Vec::new();
        let mut tell = |host: Option<&str>, what: String| {
            moved.push(Moved {
                host: host.map(str::to_owned),
                what,
            });
        };
        if self.installer != now.installer {
            tell(
                None,
                format!(
                    "the plan was made by installer {}, this is {}",
                    self.installer, now.installer
                ),
            );
        }
        if self.wish != now.wish {
            tell(
                None,
                "the Clusterfile says something else than when the plan was made".to_owned(),
            );
        }
        if self.digest != now.digest {
            tell(
                None,
                format!(
                    "the image {} is {} now, and was {}",
                    now.image,
                    now.digest.short(),
                    self.digest.short()
                ),
            );
        }
        for (host, what) in maps(&self.facts, &now.facts, "the host") {
            tell(Some(&host), what);
        }
        for (host, facts) in &now.facts {
            for (name, what) in self
                .facts
                .get(host)
                .map(|old| maps(old, facts, "it"))
                .unwrap_or_default()
            {
                tell(Some(host), format!("{name}: {what}"));
            }
        }
        let (old, new) = (by(&self.plan["hosts"], "host"), by(&now.plan["hosts"], "host"));
        for (host, plan) in &new {
            for what in old.get(host).map(|old| host_moved(old, plan)).unwrap_or_default() {
                tell(Some(host), what);
            }
        }
        for what in self.cluster_moved(now) {
            tell(None, what);
        }
        moved
    }

    fn cluster_moved(&self, now: &Self) -> Vec<String> {
        let mut moved = Vec::new();
        // A cluster that was not there has come up, or the other way round.
        if self.plan["objects"].is_null() != now.plan["objects"].is_null() {
            moved.push("whether the API server answers is not as it was".to_owned());
        }
        for (list, key, title) in [("objects", "object", "object"), ("leaving", "name", "leaving node")] {
            for (name, what) in maps(&by(&self.plan[list], key), &by(&now.plan[list], key), "its change") {
                moved.push(format!("{title} {name}: {what}"));
            }
        }
        if self.plan["images"] != now.plan["images"] {
            moved.push("the registry lacks other images than it did".to_owned());
        }
        moved
    }
}

/// Items of a list by their name; items of one name are told apart by their order.
fn by(list: &Value, key: &str) -> BTreeMap<String, Value> {
    let mut out = BTreeMap::new();
    for item in list.as_array().into_iter().flatten() {
        let name = item[key].as_str().unwrap_or_default();
        let mut unique = name.to_owned();
        let mut n = 1;
        while out.contains_key(&unique) {
            n += 1;
            unique = format!("{name} ({n})");
        }
        out.insert(unique, item.clone());
    }
    out
}

/// What differs between two maps, by key.
fn maps<V: PartialEq + Told>(
    old: &BTreeMap<String, V>,
    new: &BTreeMap<String, V>,
    what: &str,
) -> Vec<(String, String)> {
    let gone = old.keys().filter(|key| !new.contains_key(*key));
    let mut out: Vec<_> = gone
        .map(|key| (key.clone(), format!("{what} was in the plan and is no more")))
        .collect();
    for (key, value) in new {
        match old.get(key) {
            None => out.push((key.clone(), format!("{what} was not in the plan"))),
            Some(before) if before != value => out.extend(value.told(before).map(|told| (key.clone(), told))),
            Some(_) => {}
        }
    }
    out
}

/// How a difference is told.
trait Told: Sized {
    /// From `before` to this; nothing if somebody else tells it.
    fn told(&self, before: &Self) -> Option<String>;
}

impl Told for String {
    fn told(&self, before: &Self) -> Option<String> {
        Some(format!("was {before:?}, is {self:?}"))
    }
}

impl Told for BTreeMap<String, String> {
    fn told(&self, _: &Self) -> Option<String> {
        None
    }
}

impl Told for Value {
    fn told(&self, _: &Self) -> Option<String> {
        Some("it would be changed in another way".to_owned())
    }
}

fn host_moved(old: &Value, new: &Value) -> Vec<String> {
    let mut out = Vec::new();
    for (field, what) in [
        ("name", "its name"),
        ("role", "its role"),
        ("joins", "whether it joins"),
        ("blobs", "blobs it lacks"),
        ("bytes", "bytes to send"),
    ] {
        if old[field] != new[field] {
            out.push(format!("{what}: was {}, is {}", old[field], new[field]));
        }
    }
    for (list, key) in [("changes", "what"), ("restarts", "what")] {
        let changes = maps(&by(&old[list], key), &by(&new[list], key), "its change");
        out.extend(changes.into_iter().map(|(what, how)| format!("{what}: {how}")));
    }
    out
}

/// What of a host decides anything and does not change by itself.
fn facts(seat: &Seat) -> BTreeMap<String, String> {
    let facts = &seat.facts;
    let own = |interface: &str| {
        !["veth", "installer-", "lo"]
            .iter()
            .any(|prefix| interface.starts_with(prefix))
    };
    let addresses = facts.addresses.iter().filter(|address| own(&address.interface));
    let mut addresses: Vec<String> = addresses.map(|a| format!("{}/{}", a.ip, a.prefix)).collect();
    addresses.sort();
    let installed: Vec<String> = facts
        .installed
        .iter()
        .map(|of| format!("{}{}", of.cluster, if of.undoing { " (being reset)" } else { "" }))
        .collect();
    let features = facts
        .features
        .iter()
        .filter(|(_, there)| **there)
        .map(|(name, _)| name.as_str());
    let runtimes: Vec<&str> = facts.runtimes.keys().map(String::as_str).collect();
    let text = |name: &str| facts.os.get(name).cloned().unwrap_or_default();
    let all = [
        ("os", text("PRETTY_NAME")),
        ("arch", facts.arch.clone()),
        ("kernel", facts.kernel.clone()),
        ("hostname", facts.hostname.clone()),
        ("machineId", facts.machine_id.clone()),
        ("systemd", facts.systemd.version.to_string()),
        ("cgroups", format!("{:?}", facts.cgroup.mode)),
        ("features", features.collect::<Vec<_>>().join(" ")),
        ("swap", facts.swaps.join(" ")),
        ("addresses", addresses.join(" ")),
        ("runtimes", runtimes.join(" ")),
        ("installed", installed.join(" ")),
        ("joined", seat.seen.joined.to_string()),
        (
            "authority",
            seat.seen
                .ca
                .as_ref()
                .map(|ca| oci::Digest::of(ca.as_bytes()).to_string())
                .unwrap_or_default(),
        ),
    ];
    all.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        plan::{HostPlan, Leaving, ObjectChange, PhaseChange, Restart},
        testing::site,
    };
    use host::{Action, Change};
    use serde_json::json;

    fn plan() -> Plan {
        let site = site();
        let host = |seat: &Seat| HostPlan {
            host: seat.ip.to_string(),
            name: seat.name.clone(),
            role: "node",
            joins: true,
            blobs: 2,
            bytes: 100,
            changes: vec![change("/etc/a", "content"), change("/etc/a", "mode")],
            restarts: vec![Restart {
                what: "unit a.service".into(),
                how: "restart",
            }],
        };
        Plan {
            cluster: "demo".into(),
            image: site.image.reference.clone(),
            digest: site.image.digest.clone(),
            hosts: site.seats.iter().map(host).collect(),
            turns: vec![],
            objects: Some(vec![object("configmap a")]),
            images: vec![],
            leaving: vec![],
        }
    }

    fn change(what: &str, detail: &str) -> PhaseChange {
        PhaseChange {
            phase: "prepare",
            change: Change {
                what: what.into(),
                action: Action::Modify,
                detail: detail.into(),
                diff: None,
            },
        }
    }

    fn object(name: &str) -> ObjectChange {
        ObjectChange {
            object: name.into(),
            action: "create",
        }
    }

    #[test]
    fn whatever_moved_is_told_with_the_host_it_moved_on() {
        type Change = fn(&mut Plan, &mut Vec<Seat>, &mut Value);
        let table: [(Change, &str); 14] = [
            (
                |_, _, record| record["spec"] = json!(1),
                "the Clusterfile says something else than when the plan was made",
            ),
            (
                |plan, _, _| plan.digest = oci::Digest::of(b"other"),
                "the image local/native:dev is",
            ),
            (
                |_, seats, _| seats[1].facts.kernel = "7.0".into(),
                "10.0.0.2: kernel: was \"\", is \"7.0\"",
            ),
            (
                |_, seats, _| seats[0].seen.joined = true,
                "10.0.0.1: joined: was \"false\", is \"true\"",
            ),
            (
                |_, seats, _| {
                    seats[0].facts.installed.push(host::facts::Installed {
                        cluster: "other".into(),
                        ..Default::default()
                    })
                },
                "10.0.0.1: installed: was \"\", is \"other\"",
            ),
            (
                |_, seats, _| drop(seats.pop()),
                "10.0.0.2: the host was in the plan and is no more",
            ),
            (
                |plan, _, _| plan.hosts[1].bytes = 7,
                "10.0.0.2: bytes to send: was 100, is 7",
            ),
            (
                |plan, _, _| plan.hosts[0].changes[1].change.detail = "owner".into(),
                "10.0.0.1: /etc/a (2): it would be changed in another way",
            ),
            (
                |plan, _, _| plan.hosts[0].changes.push(change("/etc/b", "")),
                "10.0.0.1: /etc/b: its change was not in the plan",
            ),
            (
                |plan, _, _| drop(plan.hosts[0].changes.pop()),
                "10.0.0.1: /etc/a (2): its change was in the plan and is no more",
            ),
            (
                |plan, _, _| plan.hosts[0].restarts.clear(),
                "10.0.0.1: unit a.service: its change was in the plan and is no more",
            ),
            (
                |plan, _, _| plan.objects = Some(vec![object("configmap b")]),
                "object configmap a: its change was in the plan and is no more",
            ),
            (
                |plan, _, _| plan.objects = None,
                "whether the API server answers is not as it was",
            ),
            (
                |plan, _, _| {
                    plan.leaving.push(Leaving {
                        name: "n9".into(),
                        ip: None,
                        now: None,
                    })
                },
                "leaving node n9: its change was not in the plan",
            ),
        ];
        let record = json!({"kind": "Cluster"});
        let made = PlanFile::new(&plan(), &site().seats, &record).unwrap();
        let again = PlanFile::new(&plan(), &site().seats, &record).unwrap();
        assert_eq!(made.moved(&again), []);
        for (move_something, expected) in table {
            let (mut plan, mut seats, mut record) = (plan(), site().seats, record.clone());
            move_something(&mut plan, &mut seats, &mut record);
            let now = PlanFile::new(&plan, &seats, &record).unwrap();
            let told: Vec<String> = made.moved(&now).iter().map(ToString::to_string).collect();
            assert!(
                told.iter().any(|told| told.starts_with(expected)),
                "{expected}: {told:?}"
            );
        }
    }

    #[test]
    fn addresses_of_pods_come_and_go_without_moving_anything() {
        let mut seat = site().seats.remove(0);
        let before = facts(&seat);
        seat.facts.addresses.push(host::facts::Address {
            interface: "veth01".into(),
            ip: "100.64.0.1".into(),
            prefix: 24,
            mtu: 1500,
        });
        assert_eq!(facts(&seat), before);
        seat.facts.addresses[0].ip = "10.0.0.9".into();
        assert_ne!(facts(&seat), before);
    }

    #[test]
    fn a_file_is_read_back_and_what_is_none_is_refused_with_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plan.json");
        let made = PlanFile::new(&plan(), &site().seats, &json!({})).unwrap();
        std::fs::write(&path, made.to_json().unwrap()).unwrap();
        assert_eq!(PlanFile::read(&path).unwrap(), made);
        for (text, why) in [
            ("kind: Cluster", "is named with -f"),
            ("{}", "the format none"),
            (r#"{"format": "installer.internal/plan/v0"}"#, "make the plan anew"),
            (r#"{"format": "installer.internal/plan/v1"}"#, "is damaged"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = PlanFile::read(&path).unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
