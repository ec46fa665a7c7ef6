//! The commands. The only folder that names `clap` and prints.
//!
//! Secrets never come as arguments; what a command prints is for people on stderr and for programs on stdout; how
//! it ends is one of the codes of [`exit`].
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod args;
mod backup;
mod bench;
mod check;
mod control;
mod daemon;
mod docs;
mod embedded_hsm;
mod error;
mod exit;
mod guardian;
mod harden;
mod headers;
mod hsm;
mod import;
mod info;
mod init;
mod inspect;
mod kms;
mod logging;
mod mount;
mod mount_options;
mod mount_point;
mod network;
mod recipients;
mod salvage;
mod sandbox;
mod seccomp;
mod secrets;
mod signals;
mod store;
mod umount;
mod upkeep;
mod walk;

use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command};
use error::CliError;
use exit::Exit;

use crate::keys::token;

/// Runs the command line; gives the exit code.
pub fn main() -> ExitCode {
    harden::early();
    let argv = mount_options::rewrite(std::env::args_os().collect());
    if let [_, name, mount_point] = argv.as_slice()
        && name == guardian::NAME
    {
        return guardian::run(mount_point.into()).into();
    }
    if let [_, name, module] = argv.as_slice()
        && let Some(exit) = token_process(name, module.as_ref())
    {
        return exit.into();
    }
    let cli = match Cli::try_parse_from(&argv) {
        Ok(cli) => cli,
        Err(e) => {
            // Also --help and --version end here, with status 0.
            let _ = e.print();
            return ExitCode::from(u8::try_from(e.exit_code()).unwrap_or(Exit::Usage.code()));
        }
    };
    let done = dispatch(cli.command, &argv);
    embedded_hsm::end();
    match done {
        Ok(exit) => exit.into(),
        Err(error) => {
            error.print();
            ExitCode::from(error.code())
        }
    }
}

/// The processes that stand between a daemon and a PKCS#11 module. They are no commands: help does not know them.
fn token_process(name: &std::ffi::OsStr, module: &std::path::Path) -> Option<Exit> {
    let run = if name == token::KEEPER {
        token::keeper
    } else if name == token::HELPER {
        harden::no_new_privileges();
        token::helper
    } else {
        return None;
    };
    // The daemon's end is theirs, and comes later where it has to write back.
    signals::ignore();
    Some(if run(module).is_ok() { Exit::Ok } else { Exit::Failure })
}

fn dispatch(command: Command, argv: &[std::ffi::OsString]) -> Result<Exit, CliError> {
    match command {
        Command::Init(args) => init::run(&args),
        Command::Mount(args) => mount::run(&args, argv),
        Command::Umount(args) => umount::run(&args),
        Command::Info(args) => info::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Salvage(args) => salvage::run(&args),
        Command::Recipient(args) => recipients::run(&args),
        Command::RecoveryKey(args) => recipients::recovery_key(&args),
        Command::Keys(args) => upkeep::keys(&args),
        Command::Rewrap(args) => upkeep::rewrap(&args),
        Command::Rekey(args) => upkeep::rekey(&args),
        Command::Backup(args) => backup::run(&args),
        Command::Import(args) => import::run(&args),
        Command::Headers(args) => headers::run(&args),
        Command::Kms(args) => {
            kms::run(&args, &|| args_passphrase(&args)).map_err(CliError::Kms).map(|()| Exit::Ok)
        }
        Command::Hsm(args) => hsm::run(&args, &hsm_passphrase).map_err(CliError::Hsm).map(|()| Exit::Ok),
        Command::Bench(args) => bench::run(&args),
        Command::Completions(args) => docs::completions(&args),
        Command::Man(args) => docs::man(&args),
    }
}

/// One line of JSON.
fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("plain structures with string keys encode")
}

/// The passphrase of an HSM's root key: from the environment, or asked for.
fn hsm_passphrase() -> std::io::Result<Option<zeroize::Zeroizing<String>>> {
    secrets::environment_or_prompt("Passphrase of the HSM's root key: ")
        .map_err(|e| std::io::Error::other(e.to_string()))
}

/// The passphrase for `kms` commands, which open the store themselves.
fn args_passphrase(_args: &kms::KmsArgs) -> std::io::Result<Option<zeroize::Zeroizing<String>>> {
    secrets::KeyArgs::default().any_passphrase().map_err(|e| std::io::Error::other(e.to_string()))
}
