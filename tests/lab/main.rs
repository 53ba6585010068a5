//! `lab`: throw-away hosts from the command line.

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use lab::{Lab, Options, Snapshot};
use std::{fs, os::unix::process::CommandExt as _, path::PathBuf};

/// Throw-away Linux hosts on this machine, each with its own systemd, sshd, addresses and cgroups.
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// Where labs and their base tree are kept.
    #[arg(long, global = true, default_value = "target/lab")]
    state: PathBuf,
    /// The lab's name: up to eight lowercase letters and digits.
    #[arg(long, short, global = true, default_value = "demo")]
    name: String,
    #[command(subcommand)]
    command: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Make and boot hosts; returns when every sshd answers. What is left of a lab of this name is removed first.
    Up {
        /// Host names; the first gets PREFIX.11, the next PREFIX.12, …
        #[arg(default_values = ["m1", "n1", "n2"])]
        hosts: Vec<String>,
        /// The first three octets of the lab's /24.
        #[arg(long, default_value = "10.88.0")]
        prefix: String,
    },
    /// End all hosts and remove all that the lab made.
    Down,
    /// The hosts: name, address, and the process id of their init.
    List,
    /// Run a program on a host and exit as it does.
    Exec {
        /// Name or address.
        host: String,
        /// The program and its arguments.
        #[arg(trailing_var_arg = true, required = true)]
        argv: Vec<String>,
    },
    /// Restart a host properly and wait for its sshd.
    Reboot {
        /// Name or address.
        host: String,
    },
    /// Cut a host's power.
    Kill {
        /// Name or address.
        host: String,
    },
    /// Start a host whose power was cut.
    Start {
        /// Name or address.
        host: String,
    },
    /// Cut a host's cable.
    Partition {
        /// Name or address.
        host: String,
    },
    /// Mend a host's cable.
    Heal {
        /// Name or address.
        host: String,
    },
    /// Limit a host's link in both directions.
    Limit {
        /// Name or address.
        host: String,
        /// A rate of tc, such as 100mbit, or `none`.
        rate: String,
    },
    /// Write down what a host consists of, as JSON.
    Snapshot {
        /// Name or address.
        host: String,
        /// The file to write.
        file: PathBuf,
    },
    /// What differs between two snapshots; exit code 1 if anything does.
    Diff {
        /// The earlier snapshot.
        before: PathBuf,
        /// The later snapshot.
        after: PathBuf,
    },
}

fn main() -> std::process::ExitCode {
    match run() {
        Ok(code) => code.into(),
        Err(error) => {
            eprintln!("error: {error:#}");
            2.into()
        }
    }
}

fn run() -> Result<u8> {
    let cli = Cli::parse();
    let open = || Lab::open(&cli.state, &cli.name);
    match cli.command {
        Verb::Up { hosts, prefix } => {
            let lab = Lab::up(&Options {
                name: cli.name,
                prefix,
                hosts,
                state: cli.state,
            })?;
            list(&lab);
        }
        Verb::Down => {
            // Leftovers without a record carry the name all the same.
            let lab = open().or_else(|_| {
                let network = lab::Network::new(&cli.name, "")?;
                anyhow::Ok(Lab {
                    network,
                    hosts: Vec::new(),
                    dir: cli.state.join(&cli.name),
                    name: cli.name.clone(),
                })
            })?;
            lab.down()?;
        }
        Verb::List => list(&open()?),
        Verb::Exec { host, argv } => {
            let lab = open()?;
            return Err(lab.exec_command(lab.host(&host)?)?.args(argv).exec()).context("cannot start nsenter");
        }
        Verb::Reboot { host } => open().and_then(|lab| lab.reboot(lab.host(&host)?))?,
        Verb::Kill { host } => open().and_then(|lab| lab.kill(lab.host(&host)?))?,
        Verb::Start { host } => open().and_then(|lab| lab.start(lab.host(&host)?))?,
        Verb::Partition { host } => open().and_then(|lab| lab.network.cable(lab.host(&host)?, false))?,
        Verb::Heal { host } => open().and_then(|lab| lab.network.cable(lab.host(&host)?, true))?,
        Verb::Limit { host, rate } => {
            let lab = open()?;
            lab.network
                .limit(lab.host(&host)?, (rate != "none").then_some(rate.as_str()))?;
        }
        Verb::Snapshot { host, file } => {
            let lab = open()?;
            fs::write(file, serde_json::to_vec_pretty(&lab.snapshot(lab.host(&host)?)?)?)?;
        }
        Verb::Diff { before, after } => {
            let read = |file: PathBuf| anyhow::Ok(serde_json::from_slice::<Snapshot>(&fs::read(file)?)?);
            let lines = lab::diff(&read(before)?, &read(after)?);
            lines.iter().for_each(|line| println!("{line}"));
            return Ok(u8::from(!lines.is_empty()));
        }
    }
    Ok(0)
}

fn list(lab: &Lab) {
    println!("{:<12} {:<16} INIT", "HOST", "ADDRESS");
    for host in &lab.hosts {
        let pid = lab.init_pid(host).map_or("down".to_owned(), |p| p.to_string());
        println!("{:<12} {:<16} {pid}", host.name, host.ip);
    }
}
