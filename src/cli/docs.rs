//! Completions and man pages, made from the command line's own definition.

use std::io;

use clap::CommandFactory;

use super::args::{Cli, CompletionsArgs, ManArgs};
use super::error::CliError;
use super::exit::Exit;

/// Prints a completion script.
pub(super) fn completions(args: &CompletionsArgs) -> Result<Exit, CliError> {
    clap_complete::generate(args.shell, &mut Cli::command(), "envelopefs", &mut io::stdout());
    Ok(Exit::Ok)
}

/// Writes `envelopefs.1`, `envelopefs-mount.1`, ...
pub(super) fn man(args: &ManArgs) -> Result<Exit, CliError> {
    std::fs::create_dir_all(&args.dir).map_err(CliError::io(&args.dir))?;
    clap_mangen::generate_to(Cli::command().disable_help_subcommand(true), &args.dir)
        .map_err(CliError::io(&args.dir))?;
    Ok(Exit::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition is consistent: no two flags alike, no conflict with an unknown one.
    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
