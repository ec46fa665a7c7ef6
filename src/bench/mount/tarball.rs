//! A tarball like a source tree's, the same bytes each time: ustar, written as it is made.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

/// The directory of the tarball that holds all others.
pub(super) const TOP: &str = "src";
/// Files in one directory, as in large source trees.
const FILES_PER_DIR: u32 = 15;
/// A tar record.
const RECORD: usize = 512;
/// Bytes of the text that files are cut from; a prime beside the multiplier below, so that few files begin alike.
const TEXT: usize = 262_147;

/// Writes a tarball of `files` files; gives the bytes of their content.
pub(super) fn write(path: &Path, files: u32) -> io::Result<u64> {
    let mut out = BufWriter::new(File::create(path)?);
    let text = text();
    let mut total = 0;
    for index in 0..files {
        let dir = format!("{TOP}/module{:04}", index / FILES_PER_DIR);
        if index % FILES_PER_DIR == 0 {
            out.write_all(&header(&format!("{dir}/"), 0, b'5', 0o755))?;
        }
        let random = mix(u64::from(index));
        let len = size(random);
        let start = usize::try_from(random % TEXT as u64).unwrap_or(0);
        out.write_all(&header(&format!("{dir}/file{index:05}.c"), len, b'0', 0o644))?;
        let mut left = len;
        let mut at = start;
        while left > 0 {
            let piece = &text[at..text.len().min(at + left)];
            out.write_all(piece)?;
            left -= piece.len();
            at = 0;
        }
        out.write_all(&[0; RECORD][..len.next_multiple_of(RECORD) - len])?;
        total += len as u64;
    }
    out.write_all(&[0; 2 * RECORD])?;
    out.into_inner()?.sync_all()?;
    Ok(total)
}

/// Half of the files below 3 KiB, a twentieth up to 200 KiB: about what the Linux sources have.
fn size(random: u64) -> usize {
    let within = random >> 8;
    let len = match random % 20 {
        0..=9 => 100 + within % 3_000,
        10..=15 => 2_000 + within % 8_000,
        16..=18 => 8_000 + within % 30_000,
        _ => 30_000 + within % 170_000,
    };
    usize::try_from(len).unwrap_or(0)
}

/// splitmix64's output function.
fn mix(index: u64) -> u64 {
    let z = index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn text() -> Vec<u8> {
    (0..TEXT as u64).map(|i| b" etaoinshrdlu(){};=\n"[usize::try_from(mix(i) % 20).unwrap_or(0)]).collect()
}

fn header(name: &str, len: usize, kind: u8, mode: u32) -> [u8; RECORD] {
    let mut record = [0_u8; RECORD];
    let mut put = |at: usize, bytes: &[u8]| record[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, name.as_bytes());
    put(100, format!("{mode:07o}").as_bytes());
    put(108, b"0000000");
    put(116, b"0000000");
    put(124, format!("{len:011o}").as_bytes());
    put(136, b"14000000000");
    put(148, b"        ");
    put(156, &[kind]);
    put(257, b"ustar\x0000");
    let sum: u32 = record.iter().map(|b| u32::from(*b)).sum();
    record[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    record
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `tar` takes it, finds every file, and the bytes are those that were counted.
    #[test]
    fn tar_reads_the_tarball() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.tar");
        let bytes = write(&path, 100).unwrap();
        let list = std::process::Command::new("tar").arg("-tvf").arg(&path).output().unwrap();
        assert!(list.status.success());
        let text = String::from_utf8(list.stdout).unwrap();
        let files: Vec<_> = text.lines().filter(|l| l.starts_with('-')).collect();
        assert_eq!((files.len(), text.lines().count()), (100, 107));
        let sum: u64 =
            files.iter().map(|l| l.split_whitespace().nth(2).unwrap().parse::<u64>().unwrap()).sum();
        assert_eq!(sum, bytes);
        let again = dir.path().join("again.tar");
        write(&again, 100).unwrap();
        assert!(
            std::fs::read(&path).unwrap() == std::fs::read(&again).unwrap(),
            "not the same bytes each time"
        );
    }
}
