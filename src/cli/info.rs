//! `info`: what can be told about a vault, and more of it when its key store opens.

use serde::Serialize;

use super::args::InfoArgs;
use super::error::CliError;
use super::exit::Exit;
use super::walk::{self, Counts};
use crate::format::config::VolumeConfig;
use crate::keys::{self, KeyError, KeyInfo, Keyring};
use crate::upkeep;

#[derive(Serialize)]
struct Info {
    vault: String,
    vault_id: String,
    format: u32,
    created: u64,
    /// Whether the config's authenticator was checked; without keys it cannot be.
    authenticated: bool,
    keys: Vec<Key>,
    /// How data keys are wrapped: `each-file` by the provider, or `envelope`.
    mode: &'static str,
    /// What an interrupted rewrap was for.
    #[serde(skip_serializing_if = "Option::is_none")]
    interrupted_rewrap: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    counts: Option<Counts>,
}

#[derive(Serialize)]
struct Key {
    index: u8,
    uri: String,
    active: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trouble: Option<String>,
}

pub(super) fn run(args: &InfoArgs) -> Result<Exit, CliError> {
    let config = keys::read_config(&args.vault)?;
    let keyring = args.key.unlock_quietly(&args.vault)?.map(|unlock| keys::open_vault(&args.vault, &unlock));
    let (opened, trouble) = match keyring {
        // A changed config is an attack or a damaged disk: never shown as if it were true.
        Some(Err(e @ keys::OpenError::Tampered(_))) => return Err(e.into()),
        Some(Ok(keyring)) => (Some(keyring), None),
        Some(Err(e)) => (None, Some(e.to_string())),
        None => (None, Some("the key store is locked: give its passphrase".to_owned())),
    };
    let counts = if args.no_counts {
        None
    } else {
        Some(walk::count(&args.vault).map_err(CliError::io(&args.vault))?)
    };
    let info = Info {
        vault: args.vault.display().to_string(),
        vault_id: config.vault_id.to_string(),
        format: config.format,
        created: config.created,
        authenticated: opened.is_some(),
        keys: describe(&config, opened.as_ref(), trouble.as_deref()),
        mode: if config.keys.iter().any(|k| k.active && k.uri == "envelope:") {
            "envelope"
        } else {
            "each-file"
        },
        interrupted_rewrap: upkeep::interrupted(&args.vault),
        counts,
    };
    if args.json {
        println!("{}", super::json(&info));
    } else {
        print(&info);
    }
    Ok(Exit::Ok)
}

fn describe(config: &VolumeConfig, keyring: Option<&Keyring>, trouble: Option<&str>) -> Vec<Key> {
    let described = keyring.map(Keyring::describe).unwrap_or_default();
    let found = |index: u8| described.iter().find(|(i, _)| *i == index).map(|(_, info)| info);
    let key = |index: u8, uri: &str, active: bool, info: Option<&Result<KeyInfo, KeyError>>| Key {
        index,
        uri: uri.to_owned(),
        active,
        key_id: info.and_then(|i| i.as_ref().ok()).map(|i| i.key_id.clone()),
        version: info.and_then(|i| i.as_ref().ok()).and_then(|i| i.version),
        trouble: match info {
            Some(Err(e)) => Some(e.to_string()),
            Some(Ok(_)) => None,
            None => trouble.map(ToOwned::to_owned),
        },
    };
    config.keys.iter().map(|k| key(k.index, &k.uri, k.active, found(k.index))).collect()
}

fn print(info: &Info) {
    println!("vault          {}", info.vault);
    println!("vault id       {}", info.vault_id);
    println!("format         {}", info.format);
    println!(
        "config         {}",
        if info.authenticated { "authenticated" } else { "not authenticated (no key)" }
    );
    if info.mode == "envelope" {
        println!("mode           envelope: data keys are wrapped by keys of the vault");
    }
    if let Some(target) = &info.interrupted_rewrap {
        println!("rewrap         interrupted, to {target}: run it again");
    }
    for key in &info.keys {
        let active = if key.active { ", wraps new files" } else { "" };
        println!("wrapping key {} {}{active}", key.index, key.uri);
        if let Some(id) = &key.key_id {
            println!("  key id       {id}");
        }
        if let Some(version) = key.version {
            println!("  version      {version}");
        }
        if let Some(trouble) = &key.trouble {
            println!("  not opened   {trouble}");
        }
    }
    if let Some(c) = &info.counts {
        println!(
            "files          {} ({} bytes of plaintext, {} below)",
            c.files, c.plain_bytes, c.lower_bytes
        );
        println!("directories    {}", c.directories);
        println!("symlinks       {}", c.symlinks);
        println!("other nodes    {}", c.others);
        if c.foreign > 0 {
            println!("foreign names  {} (see: envelopefs check)", c.foreign);
        }
    }
}
