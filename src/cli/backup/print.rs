//! Reports for people, or for programs.

use std::path::{Path, PathBuf};

use indicatif::HumanBytes;
use serde::Serialize;

use super::deep::DeepReport;
use super::progress::words;
use crate::backup::{Forgotten, Pruned, Reading, Restored, RunReport, Snapshot, Verified};

/// Characters of an id that people see.
const SHORT: usize = 8;

fn short(id: &str) -> &str {
    id.get(..SHORT).unwrap_or(id)
}

fn line(value: &impl Serialize) {
    println!("{}", super::super::json(value));
}

fn problems(list: &[(PathBuf, String)]) {
    for (path, why) in list {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        println!("{}: {why}", path.display());
    }
}

pub(in crate::cli) fn notes(list: &[String]) {
    for note in list {
        println!("note        {note}");
    }
}

/// What lies in the bucket for whoever finds it.
pub(super) fn readme(location: &str, vault: &str) -> String {
    format!(
        "This is a backup of the EnvelopeFS vault {vault}, made by `envelopefs backup`.\n\
         It holds ciphertext: no file opens without the vault's master key (KMS or HSM).\n\n\
         With envelopefs and the key file that `backup init` made:\n\n\
         \x20 envelopefs backup restore --key-file backup.key {location} VAULT\n\n\
         Without the key file, with the vault's master key (for the embedded KMS: a copy of its store):\n\n\
         \x20 envelopefs backup restore --vault-key --kms-dir KMS-STORE {location} VAULT\n\n\
         Without envelopefs, by restic (https://restic.net, 0.14 or newer), whose password is the key file's line:\n\n\
         \x20 restic -r s3:https://ENDPOINT/BUCKET/PREFIX --password-file backup.key restore latest --target DIR\n\n\
         The vault is then DIR/vault. Restore to a filesystem with extended attributes (ext4, XFS, Btrfs, ZFS): on\n\
         any other one restic loses the wrapped keys without a word. Look whether they are there:\n\n\
         \x20 getfattr -d -m user.efs -R DIR/vault\n\n\
         envelopefs/vault-*.toml are copies of the volume config, envelopefs/keks-*.toml of the key-encryption keys; both are wrapped.\n"
    )
}

#[derive(Serialize)]
struct Initialised<'a> {
    repository: &'a str,
    key_file: &'a Path,
    keeps_objects: bool,
}

pub(super) fn initialised(json: bool, repository: &str, key_file: &Path, keeps_objects: bool) {
    if json {
        return line(&Initialised { repository, key_file, keeps_objects });
    }
    println!("repository  {repository}");
    println!(
        "key file    {}: keep a copy elsewhere; the vault's master key opens the repository too",
        key_file.display()
    );
    if !keeps_objects {
        println!(
            "note        this store overwrites objects in spite of If-None-Match; the repository does not rest on it"
        );
    }
}

pub(super) fn run(json: bool, report: &RunReport) {
    if json {
        return line(report);
    }
    problems(&report.problems);
    println!("snapshot    {} of {}", short(&report.snapshot.id), report.snapshot.when);
    println!("files       {} new, {} changed, {} unchanged", report.new, report.changed, report.unchanged);
    println!("work        {}", words(&report.meter));
    if report.passes > 1 {
        println!("passes      {}: some files changed while they were read", report.passes);
    }
    if report.frozen {
        println!("moment      all is as it was when the snapshot of the filesystem below was made");
    }
    println!("complete    {}", if report.problems.is_empty() { "yes" } else { "no" });
}

pub(super) fn list(json: bool, all: &[Snapshot]) {
    if json {
        return line(&all);
    }
    for snapshot in all {
        println!(
            "{}  {}  {}  vault {}  {} files, {}{}",
            short(&snapshot.id),
            snapshot.when,
            snapshot.host,
            short(&snapshot.vault),
            snapshot.files,
            HumanBytes(snapshot.bytes),
            if snapshot.complete { "" } else { "  incomplete" }
        );
    }
    println!("{} snapshots", all.len());
}

#[derive(Serialize)]
struct RestoredOf<'a> {
    snapshot: &'a Snapshot,
    restored: &'a Restored,
    meter: &'a Reading,
}

pub(super) fn restored(json: bool, snapshot: &Snapshot, done: &Restored, meter: &Reading) {
    if json {
        return line(&RestoredOf { snapshot, restored: done, meter });
    }
    notes(&done.notes);
    problems(&done.problems);
    println!("snapshot    {} of {}", short(&snapshot.id), snapshot.when);
    println!("files       {} right ({} were there), {} other entries", done.files, done.kept, done.others);
    println!(
        "work        {} written, {} received, {} retries",
        HumanBytes(done.bytes),
        HumanBytes(meter.received),
        meter.retries
    );
    if done.owners > 0 {
        println!("owners      {} entries stay yours: only root gives files away", done.owners);
    }
    println!(
        "compared    {}",
        match (done.problems.is_empty(), snapshot.complete) {
            (true, true) => "all is as it was",
            (true, false) => "all is as the snapshot has it, which is incomplete",
            (false, _) => "not all is as it was",
        }
    );
}

pub(super) fn verified(json: bool, found: &Verified, meter: &Reading) {
    if json {
        return line(found);
    }
    for fault in &found.repository {
        println!("repository: {fault}");
    }
    for (snapshot, path, why) in &found.files_at_fault {
        println!("{}: {}: {why}", short(snapshot), path.display());
    }
    for snapshot in &found.incomplete {
        println!("{}: lacked something when it was made", short(snapshot));
    }
    println!(
        "{} snapshots, {} files, {} received: {}",
        found.snapshots,
        found.files,
        HumanBytes(meter.received),
        if found.is_clean() { "no fault" } else { "faults" }
    );
}

pub(super) fn deep(json: bool, report: &DeepReport) {
    if json {
        return line(report);
    }
    problems(&report.faults);
    if report.journal {
        println!("note        the snapshot has changes in a journal, which are not looked at here");
    }
    println!(
        "snapshot {}: {} files, {} of plaintext opened, {}",
        short(&report.snapshot),
        report.files,
        HumanBytes(report.bytes),
        if report.faults.is_empty() {
            "no fault".to_owned()
        } else {
            format!("{} faults", report.faults.len())
        }
    );
}

pub(super) fn forgotten(json: bool, done: &Forgotten, dry: bool) {
    if json {
        return line(done);
    }
    for (snapshot, reasons) in &done.kept {
        println!("kept     {}  {}  {}", short(&snapshot.id), snapshot.when, reasons.join(", "));
    }
    for snapshot in &done.removed {
        println!("{}  {}  {}", if dry { "to go   " } else { "removed " }, short(&snapshot.id), snapshot.when);
    }
    println!("{} kept, {} {}", done.kept.len(), done.removed.len(), if dry { "to go" } else { "removed" });
}

pub(super) fn pruned(json: bool, done: &Pruned) {
    if json {
        return line(done);
    }
    println!("removed     {}", HumanBytes(done.removed));
    println!("marked      {}, to be removed by a prune in a day", HumanBytes(done.marked));
    println!("rewritten   {}", HumanBytes(done.rewritten));
}
