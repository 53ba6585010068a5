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
mod gen_clusterfile;
mod history;
mod images;
mod inspect;
mod join;
mod key;
mod kubeconfig;
mod load;
mod log;
mod login;
mod logout;
mod man;
mod merge;
mod output;
mod page;
mod plain;
mod plan;
mod progress;
mod prune;
mod pull;
mod push;
mod recording;
mod registry_args;
mod report;
mod reset;
mod rmi;
mod run_image;
mod save;
mod sbom;
mod show;
mod sign;
mod ssh_args;
mod stage;
mod status;
mod story;
mod support_bundle;
mod table;
mod tag;
mod verify;
mod version;
mod view;

use clap::Parser;
use cli::{Cli, Command};
use context::Context;
use failure::Exit;
use log::Log;
use output::Output;
use std::{process::ExitCode, sync::Arc};
use tokio::signal::unix::{SignalKind, signal};

fn main() -> ExitCode {
    completion::answer();
    let cli = Cli::parse();
    let out = Output::new(cli.command.format(), cli.globals.quiet, cli.globals.verbose);
    let log = Log::start(
        cli.command.logged(),
        cli.globals.log_file.as_deref(),
        cli.globals.verbose,
    );
    let context = match log.and_then(|log| Context::new(&cli, out.clone(), log)) {
        Ok(context) => Arc::new(context),
        Err(error) => {
            out.error(&format!("{error:#}"));
            return ExitCode::from(1);
        }
    };
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    tracing::debug!(
        version = env!("CARGO_PKG_VERSION"),
        command = cli.command.logged(),
        "begins"
    );
    let exit = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => {
            runtime.spawn(interrupted(Arc::clone(&context)));
            let result = runtime.block_on(run(cli.command, &context));
            // Tasks that still hold connections must not keep the user waiting.
            runtime.shutdown_background();
            context.out.finish();
            result.map_or_else(|error| failure::report(&context, &error), Exit::code)
        }
        Err(error) => failure::report(&context, &anyhow::Error::new(error).context("cannot start")),
    };
    context.ended(exit);
    ExitCode::from(exit)
}

/// Ends the program when the user interrupts it, with everything told and written that is told at an end. A task of its own, because
/// a command may be waiting for an answer of the user.
async fn interrupted(context: Arc<Context>) {
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return;
    };
    let exit = tokio::select! {
        _ = interrupt.recv() => 130,
        _ = terminate.recv() => 143,
    };
    context.out.finish();
    let error = anyhow::anyhow!("interrupted: what was done stays; run the same command again to go on");
    failure::report(&context, &error);
    context.ended(exit);
    std::process::exit(i32::from(exit));
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
        Command::Stage(args) => stage::run(&args, context).await,
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
        Command::Run(args) => run_image::run(&args, context).await,
        Command::Gen(args) => gen_clusterfile::run(&args, context).await,
        Command::SupportBundle(args) => support_bundle::run(&args, context).await,
        Command::Version(args) => version::run(&args, context),
        Command::Completion(args) => completion::run(&args),
        Command::Man(args) => man::run(&args, context),
    }
}
