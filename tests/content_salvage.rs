//! Damage by hand: what still opens is given out, all else is named, and nothing that does not open is given out.

#![allow(clippy::unwrap_used)]

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use envelopefs::content::File;
use envelopefs::content::salvage::{Fate, Salvaged, salvage};
use envelopefs::crypto::{DataKey, FileKeys, Secret};
use envelopefs::format::ids::FileId;
use envelopefs::vault::DiskFile;

const GROUP: u64 = 528_384;

fn keys() -> Arc<FileKeys> {
    Arc::new(FileKeys::derive(&DataKey(Secret::from_slice(&[3; 32]).unwrap()), &FileId([5; 12])))
}

/// Three groups with a hole of some blocks, the last block short.
fn content() -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..1_200_003u32).map(|i| (i / 11 % 250) as u8 + 1).collect();
    bytes[40_960..81_920].fill(0);
    bytes
}

fn lower() -> std::fs::File {
    let (file, bytes) = (tempfile::tempfile().unwrap(), content());
    let plain = File::create(Box::new(DiskFile(file.try_clone().unwrap())), keys()).unwrap();
    plain.write(0, &bytes[..40_960]).unwrap();
    plain.write(81_920, &bytes[81_920..]).unwrap();
    plain.sync(false).unwrap();
    drop(plain);
    file
}

fn run(file: &std::fs::File) -> (Vec<u8>, Salvaged) {
    let mut out = Vec::new();
    let mut put = |at: u64, plain: &[u8]| {
        let at = at as usize;
        out.resize(out.len().max(at + plain.len()), 0);
        out[at..at + plain.len()].copy_from_slice(plain);
        Ok(())
    };
    let lower = DiskFile(file.try_clone().unwrap());
    let found = salvage(&lower, &keys(), &mut put, &mut |_| true).unwrap();
    out.resize(found.plain_len as usize, 0);
    (out, found)
}

/// Salvages, and compares everything outside of the blocks `lost`, which must be zeros.
fn expect(file: &std::fs::File, lost: std::ops::Range<usize>) -> Salvaged {
    let (out, found) = run(file);
    let mut wanted = content();
    let end = wanted.len().min(lost.end * 4096);
    wanted[lost.start * 4096..end].fill(0);
    assert!(out == wanted, "{found:?}");
    assert_eq!(found.count(Fate::Lost), lost.len() as u64, "{found:?}");
    assert_eq!(found.is_whole(), lost.is_empty() && found.length_known);
    found
}

#[test]
fn a_whole_file_comes_out_whole() {
    let found = expect(&lower(), 0..0);
    assert_eq!((found.count(Fate::Good), found.count(Fate::Hole)), (283, 10));
}

#[test]
fn damaged_blocks_and_pages_cost_themselves_only() {
    let file = lower();
    file.write_all_at(&[9; 30], 4096 * 4 + 7).unwrap();
    expect(&file, 3..4);
    let file = lower();
    file.write_all_at(&[9; 30], GROUP + 600).unwrap();
    expect(&file, 128..256);
}

/// Without the first page the length follows from the lower file's; its group is lost, the others open by themselves.
#[test]
fn a_damaged_first_page_costs_its_group_only() {
    let file = lower();
    file.write_all_at(&[0; 4096], 0).unwrap();
    let found = expect(&file, 0..128);
    assert!(!found.length_known);
    // With bytes behind the end: the last block's length is found by trying.
    let len = file.metadata().unwrap().len();
    file.write_all_at(&[7; 900], len).unwrap();
    expect(&file, 0..128);
}

#[test]
fn a_cut_file_gives_what_is_left() {
    let file = lower();
    file.set_len(2 * GROUP + 4096 + 4096 * 10 + 5).unwrap();
    expect(&file, 266..293);
    file.set_len(2 * GROUP + 100).unwrap();
    expect(&file, 256..293);
}

#[test]
fn a_damaged_record_is_told() {
    let file = tempfile::tempfile().unwrap();
    let plain = File::create(Box::new(DiskFile(file.try_clone().unwrap())), keys()).unwrap();
    plain.write(0, b"a few bytes").unwrap();
    drop(plain);
    assert_eq!(run(&file).0, b"a few bytes");
    assert!(run(&file).1.is_whole());
    file.write_all_at(b"x", 35).unwrap();
    let (out, found) = run(&file);
    assert_eq!((out, found.count(Fate::Lost)), (vec![0; 11], 1));
}
