//! `installer history`: the steps that made an image.

use crate::{context::Context, document::DocumentArg, failure::Exit, table};
use image::Store;

/// A longer instruction is cut, in characters.
const LINE: usize = 80;

/// Flags of `history`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name or digest of the image
    #[arg(value_name = "IMAGE")]
    pub image: String,
    /// How to print.
    #[command(flatten)]
    pub format: DocumentArg,
}

/// Prints the steps, the first one first.
pub fn run(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    let histories = Store::open(&context.store)?.history(&args.image)?;
    if args.format.print(&context.out, &histories)? {
        return Ok(Exit::Done);
    }
    let mut list = table::Table::new(["PLATFORM", "STEP", "LAYER", "SIZE", "CREATED BY"]);
    for history in &histories {
        for (number, step) in history.steps.iter().enumerate() {
            let wide = args.format.is_wide();
            let layer = step
                .layer
                .as_ref()
                .map(|layer| if wide { layer.as_str() } else { layer.short() });
            let length = if wide { usize::MAX } else { LINE };
            list.row([
                history.platform.clone(),
                (number + 1).to_string(),
                layer.unwrap_or("-").to_string(),
                layer.map_or_else(|| "-".to_string(), |_| table::size(step.size)),
                one_line(&step.created_by, length),
            ]);
        }
    }
    context.out.table(&list);
    Ok(Exit::Done)
}

fn one_line(text: &str, length: usize) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match text.chars().count() > length {
        true => text.chars().take(length - 1).chain(['…']).collect(),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_are_one_line_and_cut_at_a_character() {
        assert_eq!(one_line("RUN a \\\n   b", 80), "RUN a \\ b");
        assert_eq!(one_line("äöüß", 3), "äö…");
    }
}
