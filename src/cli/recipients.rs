//! `recipient` and `recovery-key`: the wrapping keys of a vault.

use std::io::Write;

use serde::Serialize;

use super::args::{RecipientArgs, RecipientCommand, RecoveryKeyArgs};
use super::error::CliError;
use super::exit::Exit;
use super::upkeep::{MountOf, all_headers};
use crate::keys::{self, Keyring, RecoveryKey};
use crate::upkeep;

#[derive(Serialize)]
struct Row {
    row: u8,
    uri: String,
    /// Whether new keys are wrapped for it.
    active: bool,
}

pub(super) fn run(args: &RecipientArgs) -> Result<Exit, CliError> {
    match &args.command {
        RecipientCommand::Add { vault, uri, key } => {
            let keyring = keys::open_vault(vault, &key.unlock_vault_with(vault, Some(uri))?)?;
            let _alone = upkeep::WorkLock::take(vault)?;
            let row = keyring.add_recipient(uri, false)?;
            println!("wrapping key {row}: {uri}");
            advise(&keyring);
            Ok(Exit::Ok)
        }
        RecipientCommand::Remove { vault, recipient, force, key } => {
            let keyring = keys::open_vault(vault, &key.unlock_vault(vault)?)?;
            let _alone = upkeep::WorkLock::take(vault)?;
            let row = keyring.find_recipient(recipient)?;
            keyring.retire_recipient(row)?;
            // From here on no file is made for it, so what is counted stays as it is or gets less.
            upkeep::settle(vault, &MountOf(vault))?;
            let found = all_headers(vault)?;
            if found.interrupted {
                return Ok(Exit::Interrupted);
            }
            let (named, unread) = (found.of_row(row), found.unread);
            let sole = found.sole.get(&row).copied().unwrap_or(0);
            if named + unread > 0 && !force {
                return Err(CliError::StillNamed { row, named, sole, unread, vault: vault.clone() });
            }
            keyring.remove_recipient(row)?;
            if keyring.is_enveloped() {
                // A new KEK began, and the mount knows the old one, which the removed recipient may know, too.
                upkeep::settle(vault, &MountOf(vault))?;
            }
            println!("wrapping key {row} removed");
            Ok(Exit::Ok)
        }
        RecipientCommand::List { vault, json } => {
            // What a config says is no secret; `info` checks it.
            let config = keys::read_config(vault)?;
            let rows: Vec<Row> = config
                .keys
                .into_iter()
                .map(|key| Row { row: key.index, uri: key.uri, active: key.active })
                .collect();
            if *json {
                println!("{}", super::json(&rows));
                return Ok(Exit::Ok);
            }
            for Row { row, uri, active } in rows {
                println!("{row:<3} {:<8} {uri}", if active { "active" } else { "retired" });
            }
            Ok(Exit::Ok)
        }
    }
}

pub(super) fn recovery_key(args: &RecoveryKeyArgs) -> Result<Exit, CliError> {
    let keyring = keys::open_vault(&args.vault, &args.key.unlock_vault(&args.vault)?)?;
    // Before the key is shown: one that was shown shall be a key of the vault.
    let _alone = upkeep::WorkLock::take(&args.vault)?;
    let key = RecoveryKey::random();
    let uri = key.uri()?;
    // Before the vault knows it: one that was not seen must not be a key of the vault.
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", *key.text()).and_then(|()| out.flush()).map_err(CliError::io("stdout".as_ref()))?;
    drop(out);
    let row = keyring.add_recipient(&uri, false)?;
    eprintln!("This is a recovery key for {}: wrapping key {row}.", args.vault.display());
    eprintln!("Write it down and keep it away from this machine. It is not stored and not shown again.");
    eprintln!("With it the vault opens without its KMS: envelopefs mount --recovery-key VAULT MOUNTPOINT");
    advise(&keyring);
    Ok(Exit::Ok)
}

fn advise(keyring: &Keyring) {
    if keyring.is_enveloped() {
        eprintln!("It opens every file of the vault.");
    } else {
        eprintln!("New files are wrapped for it. For those that are there already: envelopefs rewrap VAULT");
    }
}
