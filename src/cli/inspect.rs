//! `inspect`: one lower file's header and lengths; with `--map`, how its blocks lie. No secrets.

use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use serde::Serialize;

use super::args::InspectArgs;
use super::error::CliError;
use super::exit::Exit;
use crate::content;
use crate::format::config::{CONFIG_FILE, VolumeConfig};
use crate::format::header::{FileHeader, HEADER_XATTR, MAX_HEADER, Wrapped};
use crate::format::layout;
use crate::format::names::VAULT_DIR;
use crate::keys;
use crate::vault::DiskFile;

#[derive(Serialize)]
struct Report {
    file: String,
    header: &'static str,
    header_bytes: usize,
    file_id: String,
    recipients: Vec<Recipient>,
    lower_length: u64,
    /// From the lower length alone; `null` where no complete file is that long.
    plain_length: Option<u64>,
    layout: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    map: Option<Map>,
}

#[derive(Serialize)]
struct Recipient {
    wrapping_key: u8,
    uri: Option<String>,
    version: Option<u16>,
    wrapped_bytes: usize,
}

#[derive(Serialize)]
struct Map {
    plain_length: u64,
    inline: bool,
    groups: Vec<Group>,
}

#[derive(Serialize)]
struct Group {
    group: u64,
    blocks: usize,
}

pub(super) fn run(args: &InspectArgs) -> Result<Exit, CliError> {
    let file = File::open(&args.file).map_err(CliError::io(&args.file))?;
    let lower_length = file.metadata().map_err(CliError::io(&args.file))?.len();
    let bytes = header_of(&file, &args.file)?;
    let header = FileHeader::decode(&bytes).map_err(|e| CliError::Header(args.file.clone(), e))?;
    let vault = vault_of(&args.file);
    let config = vault.as_deref().and_then(|v| keys::read_config(v).ok());
    let map = match (&vault, args.map) {
        (_, false) => None,
        (None, true) => return Err(CliError::NotALowerFile(args.file.clone())),
        (Some(vault), true) => Some(map(args, vault, file, &header)?),
    };
    let report = Report {
        file: args.file.display().to_string(),
        header: if bytes.first() == Some(&1) { "compact" } else { "blob" },
        header_bytes: bytes.len(),
        file_id: header.file_id.to_string(),
        recipients: recipients(&header, config.as_ref()),
        lower_length,
        plain_length: layout::plain_len(lower_length),
        layout: if lower_length <= layout::BLOCK_U64 { "inline" } else { "groups" },
        map,
    };
    if args.json {
        println!("{}", super::json(&report));
    } else {
        print(&report);
    }
    Ok(Exit::Ok)
}

pub(super) fn header_of(file: &File, path: &Path) -> Result<Vec<u8>, CliError> {
    let mut bytes = vec![0; MAX_HEADER];
    match rustix::fs::fgetxattr(file, HEADER_XATTR, &mut bytes) {
        Ok(len) => {
            bytes.truncate(len);
            Ok(bytes)
        }
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Err(CliError::NotALowerFile(path.to_owned())),
        Err(e) => Err(CliError::Io(path.to_owned(), e.into())),
    }
}

/// The vault that a lower file lies in: the nearest directory above it with a volume config.
pub(super) fn vault_of(file: &Path) -> Option<PathBuf> {
    let file = file.canonicalize().ok()?;
    let above = file.ancestors().skip(1).find(|dir| dir.join(VAULT_DIR).join(CONFIG_FILE).is_file());
    above.map(Path::to_owned)
}

fn recipients(header: &FileHeader, config: Option<&VolumeConfig>) -> Vec<Recipient> {
    let uri =
        |index: u8| config.and_then(|c| c.keys.iter().find(|k| k.index == index)).map(|k| k.uri.clone());
    let one = |r: &crate::format::header::Recipient| {
        let (version, wrapped_bytes) = match &r.wrapped {
            Wrapped::Compact { version, bytes } => (Some(*version), bytes.len()),
            Wrapped::Blob(bytes) => (None, bytes.len()),
        };
        Recipient { wrapping_key: r.key_index, uri: uri(r.key_index), version, wrapped_bytes }
    };
    header.recipients.iter().map(one).collect()
}

fn map(args: &InspectArgs, vault: &Path, file: File, header: &FileHeader) -> Result<Map, CliError> {
    let keyring = keys::open_vault(vault, &args.key.unlock_vault(vault)?)?;
    let keys = keyring.open_file(header)?;
    let damaged = |e| CliError::Content(args.file.clone(), e);
    let map = content::File::open(Box::new(DiskFile(file)), keys).and_then(|f| f.map()).map_err(damaged)?;
    Ok(Map {
        plain_length: map.plain_len,
        inline: map.inline,
        groups: map.groups.iter().map(|(group, blocks)| Group { group: group.0, blocks: *blocks }).collect(),
    })
}

fn print(report: &Report) {
    println!("file           {}", report.file);
    println!("header         {}, {} bytes in {HEADER_XATTR}", report.header, report.header_bytes);
    println!("file id        {}", report.file_id);
    for r in &report.recipients {
        println!(
            "wrapping key {} {}",
            r.wrapping_key,
            r.uri.as_deref().unwrap_or("(not in a volume config)")
        );
        match r.version {
            Some(version) => println!("  version      {version}"),
            None => println!("  version      in the provider's blob of {} bytes", r.wrapped_bytes),
        }
    }
    println!("lower length   {}", report.lower_length);
    match report.plain_length {
        Some(len) => println!("plain length   {len}"),
        None => println!("plain length   none: no complete file has this lower length"),
    }
    println!("layout         {}", report.layout);
    let Some(map) = &report.map else { return };
    println!("authenticated  {} bytes", map.plain_length);
    if map.inline {
        println!("blocks         none: one inline record");
        return;
    }
    for group in &map.groups {
        let full = layout::GROUP_BLOCKS;
        let kind = if layout::GroupIndex(group.group).is_leader() { " (leader)" } else { "" };
        println!("group {:<8} {} of {full} blocks{kind}", group.group, group.blocks);
    }
}
