//! A lab's network: one bridge in the machine's namespace; per host a network namespace and a veth pair.

use crate::{Host, run};
use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};
use std::{fs, process::Command};

/// The network of a lab.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Network {
    lab: String,
    prefix: String,
}

impl Network {
    /// The network of the lab `lab` with addresses `<prefix>.1` (the machine) to `<prefix>.254`.
    ///
    /// # Errors
    /// When the name does not fit into an interface's name.
    pub fn new(lab: &str, prefix: &str) -> Result<Self> {
        if lab.is_empty() || lab.len() > 8 || !lab.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()) {
            bail!("a lab's name is 1 to 8 lowercase letters and digits, not {lab:?}");
        }
        Ok(Self {
            lab: lab.to_owned(),
            prefix: prefix.to_owned(),
        })
    }

    /// The name of the host's network namespace.
    pub fn netns(&self, host: &str) -> String {
        format!("lab-{}-{host}", self.lab)
    }

    fn bridge(&self) -> String {
        format!("lb-{}", self.lab)
    }

    fn veth(&self, host: &Host) -> String {
        format!("v{}-{}", self.lab, host.ip.octets()[3])
    }

    pub(crate) fn create(&self) -> Result<()> {
        let (bridge, prefix) = (self.bridge(), &self.prefix);
        run::ip(&format!("link add {bridge} type bridge"))?;
        run::ip(&format!("addr add {prefix}.1/24 dev {bridge}"))?;
        run::ip(&format!("link set {bridge} up"))
    }

    /// What `wire.sh` is told about a host: namespace, the machine's end of the cable, bridge, address.
    pub(crate) fn wiring(&self, host: &Host) -> [String; 4] {
        [
            self.netns(&host.name),
            self.veth(host),
            self.bridge(),
            format!("{}/24", host.ip),
        ]
    }

    /// Removes the bridge, the namespaces and so the links of the lab.
    pub(crate) fn remove(&self) -> Result<()> {
        let prefix = self.netns("");
        for entry in fs::read_dir("/run/netns").into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with(&prefix) {
                run::ip(&format!("netns del {name}"))?;
            }
        }
        if fs::exists(format!("/sys/class/net/{}", self.bridge()))? {
            run::ip(&format!("link del {}", self.bridge()))?;
        }
        // A namespace whose last process is still dying keeps its half of the pair for a moment.
        for entry in fs::read_dir("/sys/class/net")?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with(&format!("v{}-", self.lab)) {
                run::output(Command::new("ip").args(["link", "del", &name]))?;
            }
        }
        Ok(())
    }

    /// Cuts the host's cable (`up` false) or mends it.
    ///
    /// # Errors
    /// When there is no such host.
    pub fn cable(&self, host: &Host, up: bool) -> Result<()> {
        run::ip(&format!(
            "link set {} {}",
            self.veth(host),
            if up { "up" } else { "down" }
        ))
    }

    /// Keeps a host from other hosts that are kept like this; this machine and it still reach each other. Lasts until its power is cut.
    ///
    /// # Errors
    /// When there is no such host.
    pub fn isolate(&self, host: &Host) -> Result<()> {
        run::ip(&format!(
            "link set dev {} type bridge_slave isolated on",
            self.veth(host)
        ))
    }

    /// Limits the host's link in both directions to `rate` (a rate of tc, such as `100mbit`), or lifts the limit.
    ///
    /// # Errors
    /// When tc refuses the rate.
    pub fn limit(&self, host: &Host, rate: Option<&str>) -> Result<()> {
        shape(&["-n", &self.netns(&host.name)], "eth0", rate)?;
        shape(&[], &self.veth(host), rate)
    }

    /// Limits what this machine sends to all hosts together, or lifts the limit.
    ///
    /// # Errors
    /// When tc refuses the rate.
    pub fn limit_uplink(&self, rate: Option<&str>) -> Result<()> {
        shape(&[], &self.bridge(), rate)
    }

    /// Bytes that this machine has sent to the hosts, headers of its packets and all. What they send each other is not among them.
    ///
    /// # Errors
    /// When the lab has no network.
    pub fn sent(&self) -> Result<u64> {
        let path = format!("/sys/class/net/{}/statistics/tx_bytes", self.bridge());
        Ok(fs::read_to_string(path)?.trim().parse()?)
    }
}

/// Limits what leaves a device.
fn shape(netns: &[&str], device: &str, rate: Option<&str>) -> Result<()> {
    let mut command = Command::new("tc");
    command.args(netns).arg("qdisc");
    match rate {
        Some(rate) => {
            command.args([
                "replace", "dev", device, "root", "tbf", "rate", rate, "burst", "256kb", "latency", "50ms",
            ]);
            run::check(&mut command)?;
        }
        // Deleting what is not there is the wish already fulfilled.
        None => drop(run::output(command.args(["del", "dev", device, "root"]))?),
    }
    Ok(())
}
