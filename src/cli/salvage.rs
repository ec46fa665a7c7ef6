//! `salvage`: copies out of a damaged lower file what still opens, with a map of what does not. Never writes into a vault.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::args::SalvageArgs;
use super::error::CliError;
use super::exit::Exit;
use super::inspect::{header_of, vault_of};
use crate::content::salvage::{self, Fate, Salvaged};
use crate::format::header::FileHeader;
use crate::format::layout::BLOCK_U64;
use crate::keys;
use crate::vault::DiskFile;

#[derive(Serialize)]
struct Report {
    out: String,
    map: String,
    plain_length: u64,
    length_authenticated: bool,
    good: u64,
    holes: u64,
    lost: u64,
    unsure: u64,
    ranges: Vec<Range>,
}

#[derive(Serialize)]
struct Range {
    first_block: u64,
    blocks: u64,
    fate: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
}

pub(super) fn run(args: &SalvageArgs) -> Result<Exit, CliError> {
    // A FIFO in the place of the file must not keep us waiting.
    let flags = libc::O_NONBLOCK;
    let file =
        File::options().read(true).custom_flags(flags).open(&args.file).map_err(CliError::io(&args.file))?;
    let header = header_of(&file, &args.file)?;
    let header = FileHeader::decode(&header).map_err(|e| CliError::Header(args.file.clone(), e))?;
    let vault = args.vault.clone().or_else(|| vault_of(&args.file));
    let vault = vault.ok_or_else(|| {
        CliError::Usage(format!("{}: in no vault; say with --vault which it is from", args.file.display()))
    })?;
    let out = args.out.clone().unwrap_or_else(|| format!("salvaged-{}", header.file_id).into());
    outside(&vault, &out)?;
    let keyring = keys::open_vault(&vault, &args.key.unlock_vault(&vault)?)?;
    let keys = keyring.open_file(&header)?;
    let map = PathBuf::from(format!("{}.map", out.display()));
    let (target, map_file) = (new(&out)?, new(&map)?);
    let lower = DiskFile(file);
    let mut put = |offset: u64, plain: &[u8]| target.write_all_at(plain, offset);
    let found = salvage::salvage(&lower, &keys, &mut put, &mut |_| true).map_err(CliError::io(&out))?;
    target.set_len(found.plain_len).and_then(|()| target.sync_all()).map_err(CliError::io(&out))?;
    let report = report(&found, &out, &map);
    write_map(map_file, &report).map_err(CliError::io(&map))?;
    if args.json {
        println!("{}", super::json(&report));
    } else {
        print(&report);
    }
    Ok(if found.is_whole() { Exit::Ok } else { Exit::Faults })
}

/// Refuses an output that would lie in the vault.
fn outside(vault: &Path, out: &Path) -> Result<(), CliError> {
    let dir = out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let dir = dir.canonicalize().map_err(CliError::io(dir))?;
    let vault = vault.canonicalize().map_err(CliError::io(vault))?;
    if dir.starts_with(vault) {
        let why =
            format!("{}: lies in the vault, into which salvage never writes; give -o OUT", out.display());
        return Err(CliError::Usage(why));
    }
    Ok(())
}

/// A new file, for its owner alone: it is going to hold plaintext.
fn new(path: &Path) -> Result<File, CliError> {
    File::options().write(true).create_new(true).mode(0o600).open(path).map_err(CliError::io(path))
}

fn report(found: &Salvaged, out: &Path, map: &Path) -> Report {
    let range = |s: &salvage::Stretch| Range {
        first_block: s.first.0,
        blocks: s.blocks,
        fate: name(s.fate),
        why: s.why.clone(),
    };
    Report {
        out: out.display().to_string(),
        map: map.display().to_string(),
        plain_length: found.plain_len,
        length_authenticated: found.length_known,
        good: found.count(Fate::Good),
        holes: found.count(Fate::Hole),
        lost: found.count(Fate::Lost),
        unsure: found.count(Fate::Unsure),
        ranges: found.stretches.iter().map(range).collect(),
    }
}

fn name(fate: Fate) -> &'static str {
    match fate {
        Fate::Good => "good",
        Fate::Hole => "hole",
        Fate::Lost => "lost",
        Fate::Unsure => "unsure",
    }
}

fn write_map(file: File, report: &Report) -> std::io::Result<()> {
    let mut file = std::io::BufWriter::new(file);
    writeln!(file, "# blocks of {BLOCK_U64} bytes: first, count, fate, why")?;
    for range in &report.ranges {
        let why = range.why.as_deref().unwrap_or("");
        writeln!(file, "{} {} {} {why}", range.first_block, range.blocks, range.fate)?;
    }
    file.into_inner()?.sync_all()
}

fn print(report: &Report) {
    for range in report.ranges.iter().filter(|r| matches!(r.fate, "lost" | "unsure")) {
        let why = range.why.as_deref().unwrap_or("");
        println!("blocks {}+{}: {}: {why}", range.first_block, range.blocks, range.fate);
    }
    if !report.length_authenticated {
        println!("length unknown: taken from the lower file's");
    }
    println!(
        "{}: {} bytes; blocks: {} good, {} holes, {} lost, {} unsure; map: {}",
        report.out, report.plain_length, report.good, report.holes, report.lost, report.unsure, report.map
    );
}
