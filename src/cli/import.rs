//! `import`: a copy of a ciphertext view becomes a vault.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use indicatif::HumanBytes;

use super::error::CliError;
use super::exit::Exit;
use crate::backup::{self, Meter};

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  \
    envelopefs mount --view ciphertext ~/vault ~/view && aws s3 sync ~/view s3://BUCKET/vault\n  \
    aws s3 sync s3://BUCKET/vault ~/tree && envelopefs import ~/tree ~/vault\n\n\
    Ends with 0 when all of it is in the vault, 3 when something is not (listed).")]
pub(super) struct ImportArgs {
    /// The copy of the view.
    tree: PathBuf,
    /// A new or empty directory, or a vault that is not mounted.
    vault: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &ImportArgs) -> Result<Exit, CliError> {
    let done = backup::import(&args.tree, &args.vault, &Arc::new(Meter::default()))?;
    if args.json {
        println!("{}", super::json(&done));
    } else {
        super::backup::notes(&done.notes);
        for (path, why) in &done.problems {
            println!("{}: {why}", path.display());
        }
        println!("{} files, {} other entries, {} written", done.files, done.others, HumanBytes(done.bytes));
        if done.owners > 0 {
            println!("{} entries stay yours: only root gives files away", done.owners);
        }
    }
    if done.problems.is_empty() {
        return Ok(Exit::Ok);
    }
    Err(CliError::Incomplete(format!("{} entries of the tree are not in the vault", done.problems.len())))
}
