//! Shared writable mappings.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use rustix::mm::{MapFlags, MsyncFlags, ProtFlags, mmap, msync, munmap};

use crate::harness::{Vault, can_mount, pattern};

/// Maps a file shared and writable, hands its bytes to `with`, then syncs and unmaps it.
#[expect(unsafe_code, reason = "mapping is what is tested")]
fn with_mapping(file: &File, len: usize, with: impl FnOnce(&mut [u8])) {
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice; the file is `len` bytes long and stays so, and
    // nobody else refers to the mapping, which is unmapped behind the last use of the slice.
    unsafe {
        let at = mmap(std::ptr::null_mut(), len, access, MapFlags::SHARED, file, 0).unwrap();
        with(std::slice::from_raw_parts_mut(at.cast::<u8>(), len));
        msync(at, len, MsyncFlags::SYNC).unwrap();
        munmap(at, len).unwrap();
    }
}

/// What a shared mapping writes is read by `pread` at once, and is there after a remount.
#[test]
fn a_shared_mapping_writes_the_file() {
    if !can_mount() {
        return;
    }
    let vault = Vault::new();
    let mount = vault.mount();
    let len = 700_000;
    let mut expected = pattern(len, 1);
    fs::write(mount.path("mapped"), &expected).unwrap();
    let file = File::options().read(true).write(true).open(mount.path("mapped")).unwrap();
    let patch = pattern(5_000, 2);
    with_mapping(&file, len, |bytes| {
        assert_eq!(bytes[..], expected[..]);
        bytes[522_000..527_000].copy_from_slice(&patch);
    });
    expected[522_000..527_000].copy_from_slice(&patch);
    let mut seen = vec![0; len];
    file.read_exact_at(&mut seen, 0).unwrap();
    assert!(seen == expected, "pread sees another content than was mapped");
    drop(file);
    mount.unmount();
    let mount = vault.mount();
    assert!(fs::read(mount.path("mapped")).unwrap() == expected, "lost by the remount");
    mount.unmount();
    vault.assert_sound();
}

/// A mapping of a sparse file reads zeros in the holes, and fills only the pages that were written.
#[test]
fn a_mapping_of_a_hole_reads_zeros() {
    if !can_mount() {
        return;
    }
    let vault = Vault::new();
    let mount = vault.mount();
    let file = File::options().read(true).write(true).create_new(true).open(mount.path("sparse")).unwrap();
    let len = 3 << 20;
    file.set_len(len as u64).unwrap();
    with_mapping(&file, len, |bytes| {
        assert!(bytes.iter().all(|b| *b == 0));
        bytes[2 << 20] = 7;
    });
    drop(file);
    mount.unmount();
    let mount = vault.mount();
    let seen = fs::read(mount.path("sparse")).unwrap();
    assert_eq!(seen.iter().position(|b| *b != 0), Some(2 << 20));
    assert_eq!(seen.len(), len);
    mount.unmount();
    vault.assert_sound();
}
