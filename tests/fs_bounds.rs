//! Many known inodes need few descriptors.

#![allow(clippy::unwrap_used)]

mod fs_support;

use std::sync::{Mutex, MutexGuard, PoisonError};

use fs_support::{ROOT, TOP, Vault, errno, get, put};
use rustix::process::{Resource, Rlimit, setrlimit};

/// Descriptors of this test process, far below what it knows.
const DESCRIPTORS: u64 = 512;

/// The tests of this process share its descriptors, so they take turns.
static TURN: Mutex<()> = Mutex::new(());

fn few_descriptors() -> MutexGuard<'static, ()> {
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let limit = Rlimit { current: Some(DESCRIPTORS), maximum: Some(DESCRIPTORS) };
    setrlimit(Resource::Nofile, limit).unwrap();
    turn
}

/// Twenty thousand known inodes in a thousand directories are all at hand with 512 descriptors.
#[test]
fn known_inodes_need_no_descriptors() {
    let _turn = few_descriptors();
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

/// Open files may take nearly all descriptors: directories at hand make room. Beyond that opening is refused, and
/// goes on when something was closed.
#[test]
fn open_files_push_directories_out() {
    let _turn = few_descriptors();
    let vault = Vault::new();
    let fs = vault.open();
    let mut files = Vec::new();
    for d in 0..600 {
        let dir = fs.mkdir(&ROOT, TOP, format!("d{d}").as_bytes(), 0o755).unwrap().attr.ino;
        files.push(put(&fs, dir, b"f", b"x").attr.ino);
    }
    let mut handles = Vec::new();
    let refused = loop {
        match fs.open_file(files[handles.len()], libc::O_RDWR) {
            Ok(fh) => handles.push(fh),
            refused => break errno(refused),
        }
    };
    assert_eq!(refused, libc::EMFILE);
    assert!(handles.len() as u64 > DESCRIPTORS * 3 / 4, "{} files opened", handles.len());
    handles.drain(..10).for_each(|fh| fs.release(fh));
    fs.open_file(files[599], libc::O_RDWR).unwrap();
}
