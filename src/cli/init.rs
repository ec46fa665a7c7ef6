//! `init`: makes a vault, and the key and store that it needs.

use super::args::InitArgs;
use super::embedded_hsm;
use super::error::CliError;
use super::exit::Exit;
use super::store;
use crate::keys::{self, Mode, OpenError};

pub(super) fn run(args: &InitArgs) -> Result<Exit, CliError> {
    // A directory that is refused must not cost a new store first.
    refuse_unsuitable(args)?;
    let args = &with_hsm(args)?;
    let unlock = store::prepare(args)?;
    let mode = if args.envelope { Mode::Envelope } else { Mode::EachFile };
    let config = keys::init_vault_as(&args.vault, &args.key_uri, &unlock, mode)?;
    println!("vault made: {} (id {})", args.vault.display(), config.vault_id);
    for key in &config.keys {
        println!("wrapping key: {}", key.uri);
    }
    if config.keys.iter().any(|key| key.uri.starts_with("kms:embedded/")) {
        println!("Back up the KMS store: without it nobody can read this vault.");
    } else {
        println!("Without this key nobody can read the vault: envelopefs recovery-key makes one for paper.");
    }
    Ok(Exit::Ok)
}

/// With the key of the embedded HSM, where one was asked for.
fn with_hsm(args: &InitArgs) -> Result<InitArgs, CliError> {
    let mut args = args.clone();
    if let Some(dir) = args.key.hsm_dir()? {
        if args.key_uri != keys::DEFAULT_URI {
            return Err(CliError::Usage("--embedded-hsm names the key: leave --key-uri out".into()));
        }
        args.key_uri = embedded_hsm::prepare(&dir)?;
    }
    Ok(args)
}

fn refuse_unsuitable(args: &InitArgs) -> Result<(), CliError> {
    let path = || args.vault.display().to_string();
    if keys::read_config(&args.vault).is_ok() {
        return Err(OpenError::Exists(path()).into());
    }
    match std::fs::read_dir(&args.vault) {
        Ok(mut entries) => match entries.next() {
            Some(_) => Err(OpenError::NotEmpty(path()).into()),
            None => Ok(()),
        },
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(CliError::Io(args.vault.clone(), e)),
    }
}
