//! Many known inodes need few descriptors.

#![allow(clippy::unwrap_used)]

mod fs_support;

use fs_support::{ROOT, TOP, Vault, get, put};
use rustix::process::{Resource, Rlimit, setrlimit};

/// Descriptors of this test process, far below what it knows.
const DESCRIPTORS: u64 = 512;

fn few_descriptors() {
    let limit = Rlimit { current: Some(DESCRIPTORS), maximum: Some(DESCRIPTORS) };
    setrlimit(Resource::Nofile, limit).unwrap();
}

/// Twenty thousand known inodes in a thousand directories are all at hand with 512 descriptors.
#[test]
fn known_inodes_need_no_descriptors() {
    few_descriptors();
    let vault = Vault::new();
    let fs = vault.open();
    let mut known = Vec::new();
    let mut files = Vec::new();
    for d in 0..1000 {
        let dir = fs.mkdir(&ROOT, TOP, format!("d{d}").as_bytes(), 0o755).unwrap().attr.ino;
        let nested = fs.mkdir(&ROOT, dir, b"nested", 0o755).unwrap().attr.ino;
        files.push(put(&fs, nested, b"file", format!("content {d}").as_bytes()).attr.ino);
        known.extend([dir, nested]);
        for n in 0..17 {
            let name = format!("fifo{n}").into_bytes();
            let made = fs.mknod(&ROOT, nested, &name, libc::S_IFIFO | 0o600, 0).unwrap();
            known.push(made.attr.ino);
        }
    }
    assert_eq!(known.len() + files.len(), 20_000);
    for ino in &known {
        assert_eq!(fs.getattr(*ino).unwrap().ino, *ino);
    }
    for (d, ino) in files.iter().enumerate() {
        assert_eq!(get(&fs, *ino).unwrap(), format!("content {d}").as_bytes());
    }
    // Top directories that were renamed meanwhile are still the way to what is below them.
    for d in 0..1000 {
        fs.rename(TOP, format!("d{d}").as_bytes(), TOP, format!("e{d}").as_bytes(), 0).unwrap();
    }
    for ino in known.iter().chain(&files) {
        assert_eq!(fs.getattr(*ino).unwrap().ino, *ino);
    }
}
