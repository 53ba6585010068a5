//! How `clusterd` and `clusterd-host` begin and end.

use std::{fmt::Display, io, process::ExitCode};

/// Does the work of a program to its end, with its log on stderr. What only waits is `small`: it gets one thread, since each further one
/// costs memory.
pub fn run<E: Display>(small: bool, work: impl Future<Output = Result<(), E>>) -> ExitCode {
    // The client of the API server tells every answer that is no success; who asked says what it means.
    let level = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info,kube_client=off"));
    tracing_subscriber::fmt()
        .with_env_filter(level)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let told = match wait(small, work) {
        Ok(Ok(())) => return ExitCode::SUCCESS,
        Ok(Err(error)) => format!("{error:#}"),
        Err(error) => format!("no threads: {error}"),
    };
    eprintln!("clusterd: {told}");
    ExitCode::FAILURE
}

fn wait<T>(small: bool, work: impl Future<Output = T>) -> io::Result<T> {
    let mut builder = if small {
        tokio::runtime::Builder::new_current_thread()
    } else {
        tokio::runtime::Builder::new_multi_thread()
    };
    let runtime = builder.enable_all().build()?;
    let result = runtime.block_on(work);
    runtime.shutdown_background();
    Ok(result)
}
