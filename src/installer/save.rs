//! `installer save`: a cluster image as one file.

use crate::{context::Context, failure::Exit, progress::Task, table};
use image::{Event, Progress, Store};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

/// Flags of `save`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name or digest of the image
    #[arg(value_name = "IMAGE")]
    pub image: String,
    /// File to write: a tar archive that every OCI tool can read
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
}

/// Writes the archive.
pub async fn run(args: Args, context: &Context) -> anyhow::Result<Exit> {
    let store = Store::open(&context.store)?;
    let bar = Bar::new(context.out.task(args.output.display().to_string()));
    let name = args.image.clone();
    let size = tokio::task::spawn_blocking(move || {
        let size = image::save(&store, &name, &args.output, &bar);
        bar.end(size.is_ok());
        size
    })
    .await??;
    context.out.note(format!("{} saved, {}", args.image, table::size(size)));
    Ok(Exit::Done)
}

/// A bar of bytes that is told absolute counts.
pub struct Bar {
    task: Task,
    done: AtomicU64,
}

impl Bar {
    /// Shows progress on `task`.
    pub fn new(task: Task) -> Self {
        Bar {
            task,
            done: AtomicU64::new(0),
        }
    }

    /// Ends the bar.
    pub fn end(&self, good: bool) {
        if good {
            self.task.done("done");
        }
    }
}

impl Progress for Bar {
    fn event(&self, event: Event) {
        if let Event::Bytes { done, total } = event {
            let before = self.done.swap(done, Ordering::Relaxed);
            if before == 0 {
                self.task.total(total);
            }
            self.task.advance(done.saturating_sub(before));
        }
    }
}
