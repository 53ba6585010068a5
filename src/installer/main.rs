//! `installer`: turns a Kubefile into a cluster image, and a Clusterfile plus that image into a running cluster.
//!
//! This program owns the terminal and nothing else: every command is a file beside this one with its `Args` and a `run`, and the work
//! is done by the crates below it. Errors are printed in one place, here.

mod apply;
mod bar;
mod build;
mod cert;
mod check;
mod cli;
mod cluster_args;
mod completion;
mod context;
mod diff;
mod document;
mod drift;
mod etcd;
mod exec;
mod failure;
mod history;
mod images;
mod inspect;
mod join;
mod key;
mod kubeconfig;
mod load;
mod login;
mod logout;
mod merge;
mod output;
mod plan;
mod progress;
mod prune;
mod pull;
mod push;
mod registry_args;
mod report;
mod reset;
mod rmi;
mod save;
mod sbom;
mod show;
mod sign;
mod status;
mod table;
mod tag;
mod verify;
mod version;

use clap::Parser;
use cli::{Cli, Command};
use context::Context;
use failure::Exit;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = Cli::parse();
    init_logging(cli.globals.verbose);
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let context = Context::new(&cli.globals, cli.command.format());
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failure::report(&context.out, &anyhow::Error::new(error).context("cannot start")),
    };
    let result = runtime.block_on(run(cli.command, &context));
    // Tasks that still hold connections must not keep the user waiting.
    runtime.shutdown_background();
    context.out.finish();
    match result {
        Ok(exit) => exit.into(),
        Err(error) => failure::report(&context.out, &error),
    }
}

async fn run(command: Command, context: &Context) -> anyhow::Result<Exit> {
    match command {
        Command::Build(args) => build::run(args, context).await,
        Command::Images(args) => images::run(&args, context),
        Command::Inspect(args) => inspect::run(&args, context),
        Command::Save(args) => save::run(args, context).await,
        Command::Load(args) => load::run(args, context).await,
        Command::Tag(args) => tag::run(&args, context),
        Command::Rmi(args) => rmi::run(&args, context),
        Command::Prune(args) => prune::run(args, context).await,
        Command::History(args) => history::run(&args, context),
        Command::Push(args) => push::run(args, context).await,
        Command::Pull(args) => pull::run(args, context).await,
        Command::Merge(args) => merge::run(args, context).await,
        Command::Diff(args) => diff::run(&args, context),
        Command::Verify(args) => verify::run(args, context).await,
        Command::Login(args) => login::run(args, context).await,
        Command::Logout(args) => logout::run(&args, context),
        Command::Key(args) => key::run(&args, context),
        Command::Sign(args) => sign::run(&args, context),
        Command::Sbom(args) => sbom::run(&args, context),
        Command::Plan(args) => plan::run(&args, context).await,
        Command::Apply(args) => apply::run(&args, context).await,
        Command::Check(args) => check::run(&args, context).await,
        Command::Status(args) => status::run(&args, context).await,
        Command::Drift(args) => drift::run(&args, context).await,
        Command::Cert(args) => cert::run(&args, context).await,
        Command::Etcd(args) => etcd::run(&args, context).await,
        Command::Join(args) => join::run(&args, context).await,
        Command::Reset(args) => reset::run(&args, context).await,
        Command::Exec(args) => exec::run(&args, context).await,
        Command::Kubeconfig(args) => kubeconfig::run(&args, context).await,
        Command::Version(args) => version::run(&args, context),
        Command::Completion(args) => completion::run(&args),
    }
}

/// Logs are for those who look for a fault: warnings by default, more with `-v`, all of it by `RUST_LOG`.
fn init_logging(verbose: u8) {
    let default = match verbose {
        0 => "error",
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        // What it has to say is part of our own errors.
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(format!("{default},rustls_platform_verifier=off")));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(verbose > 1)
        .init();
}
