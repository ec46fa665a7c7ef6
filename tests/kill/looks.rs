//! A `statx` that fails after something was done, or beside it: what the kernel takes for true stays true.

use std::fs::{self, File};
use std::io::{self, Read};
use std::sync::Arc;

use crate::faults::{Traced, direct, put};
use crate::harness::{Vault, can_mount, is_root, pattern};

/// Calls `act` with the first, the second ... `statx` of the daemon failing, until it makes no more of them.
fn for_every_look(act: &dyn Fn(&Traced, u64)) {
    if !can_mount() || !is_root() {
        return;
    }
    let traced = Traced::mount(&Arc::new(Vault::new()));
    for after in 0.. {
        act(&traced, after);
        if traced.tracer().disarm().failed.is_empty() {
            assert!(after > 0, "nothing is looked at");
            break;
        }
    }
    traced.unmount();
}

/// Reads a file that the kernel must ask for.
fn read_anew(file: &mut File) -> io::Result<Vec<u8>> {
    rustix::fs::fadvise(&*file, 0, None, rustix::fs::Advice::DontNeed)?;
    let mut found = Vec::new();
    file.read_to_end(&mut found)?;
    Ok(found)
}

/// A listing that cannot look at a file gives its name, and leaves alone what the kernel knows of it: its content, part
/// of it in the journal, is still the one that was written.
#[test]
fn a_listing_that_cannot_look_at_a_file_spoils_nothing() {
    for_every_look(&|traced, after| {
        let dir = traced.vault.mnt.join("dir");
        fs::create_dir_all(&dir).unwrap();
        let file = dir.join("file");
        put(&file, 0, 50_000, 1).unwrap();
        direct(&file).unwrap().sync_all().unwrap();
        put(&file, 0, 50_000, after).unwrap();
        let held = File::open(&file).unwrap();
        traced.tracer().arm_only("statx", after);
        if let Ok(entries) = fs::read_dir(&dir) {
            let names: Vec<_> = entries.filter_map(|e| Some(e.ok()?.file_name())).collect();
            assert!(names.is_empty() || names == ["file"], "{names:?}");
        }
        assert_eq!(fs::metadata(&file).or_else(|_| fs::metadata(&file)).unwrap().len(), 50_000);
        for mut file in [held, File::open(&file).unwrap()] {
            let found = read_anew(&mut file).unwrap();
            assert!(found == pattern(50_000, after), "look {after}");
        }
    });
}

/// A file that was cut or made longer has that length in the kernel too, whatever fails then.
#[test]
fn a_length_that_was_set_is_the_kernels_too() {
    for_every_look(&|traced, after| {
        let path = traced.vault.mnt.join("file");
        put(&path, 0, 700_000, 1).unwrap();
        direct(&path).unwrap().sync_all().unwrap();
        // In the journal from here on, so that it stays open in the daemon.
        put(&path, 0, 700_000, 2).unwrap();
        for len in [300_000, 900_000, 100] {
            let before = fs::read(&path).unwrap();
            traced.tracer().arm_only("statx", after);
            let done = File::options().write(true).open(&path).and_then(|file| file.set_len(len));
            let fired = traced.tracer().has_fired();
            let mut expected = before.clone();
            expected.resize(len as usize, 0);
            let mut file = File::open(&path).or_else(|_| File::open(&path)).unwrap();
            let found = read_anew(&mut file).unwrap();
            let as_told = if done.is_ok() { found == expected } else { found == expected || found == before };
            assert!(as_told, "look {after}, {len}: {done:?}, then {} bytes", found.len());
            if fired {
                return;
            }
        }
    });
}
