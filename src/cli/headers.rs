//! `headers export`, `headers import`: the headers of a vault in one file, and back.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use super::error::CliError;
use super::exit::Exit;
use crate::backup::headers::{self, Exported, Imported};

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    envelopefs headers export ~/vault     before copying it with a tool that loses xattrs\n  \
    envelopefs headers import ~/vault     in the copy\n\n\
    Ends with 0 when all is well, 11 when something lacks its header.")]
pub(super) struct HeadersArgs {
    #[command(subcommand)]
    command: HeadersCommand,
}

#[derive(Debug, Subcommand)]
enum HeadersCommand {
    /// Writes .envelopefs/headers anew: what every file, directory and symlink of the vault has in xattrs.
    Export(ExportArgs),
    /// Puts back what is missing. What is there is never changed.
    Import(ImportArgs),
}

#[derive(Debug, Args)]
struct ExportArgs {
    /// The vault's directory.
    vault: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct ImportArgs {
    /// The vault's directory.
    vault: PathBuf,
    /// Read this file instead of .envelopefs/headers.
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &HeadersArgs) -> Result<Exit, CliError> {
    match &args.command {
        HeadersCommand::Export(args) => {
            let done = headers::export(&args.vault)?;
            if args.json {
                println!("{}", super::json(&done));
            } else {
                print_export(&done);
            }
            Ok(if done.faults.is_empty() { Exit::Ok } else { Exit::Faults })
        }
        HeadersCommand::Import(args) => {
            let done = headers::import(&args.vault, args.from.as_deref())?;
            if args.json {
                println!("{}", super::json(&done));
            } else {
                print_import(&done);
            }
            let well = done.faults.is_empty() && done.changed.is_empty() && done.differ.is_empty();
            Ok(if well { Exit::Ok } else { Exit::Faults })
        }
    }
}

fn print_export(done: &Exported) {
    for (path, why) in &done.faults {
        println!("{path}: {why}");
    }
    println!("{} entries exported, {} faults", done.entries, done.faults.len());
}

fn print_import(done: &Imported) {
    for (path, why) in &done.faults {
        println!("{path}: {why}");
    }
    for path in &done.differ {
        println!("{path}: has another header than was exported; it was left");
    }
    for path in &done.changed {
        println!("{path}: its length is not what it was; the header may be that of an older file");
    }
    println!("{} entries mended, {} were whole, {} are not there", done.put_back, done.had_it, done.gone);
}

/// Says that a vault has lost its headers, before a mount of it fails file by file.
pub(super) fn warn_of_lost(vault: &Path) {
    let Ok(seen) = headers::look(vault) else { return };
    if !seen.lost() {
        return;
    }
    eprintln!(
        "envelopefs: {}: {} of the first {} files have no header{}: a copy of the vault lost its extended attributes",
        vault.display(),
        seen.bare,
        seen.files,
        if seen.top_is_bare { ", nor has the top directory its id" } else { "" },
    );
    if seen.exported {
        eprintln!("  Put them back with: envelopefs headers import {}", vault.display());
    } else {
        eprintln!(
            "  Copy the vault again with a tool that keeps them: cp -a, rsync -aX, tar --xattrs, envelopefs backup."
        );
    }
}
