//! Many threads at once, with few descriptors: no inode that is known is ever lost or mistaken for another.

#![allow(clippy::unwrap_used)]

mod fs_support;

use std::sync::atomic::{AtomicBool, Ordering};

use envelopefs::fs::{Fs, FsError, Ino};
use fs_support::{ROOT, TOP, Vault, errno, get, list, put};
use rustix::process::{Resource, Rlimit, setrlimit};

/// Descriptors of this test process: half as many directories as there are stay at hand.
const DESCRIPTORS: u64 = 128;

fn random(state: &mut u64) -> usize {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
    usize::try_from(*state >> 40).unwrap()
}

/// Moves its directory around below the others until told to stop. A move below itself is refused.
fn move_directories(fs: &Fs, tops: &[Ino], mine: usize, stop: &AtomicBool) {
    let name = format!("moving{mine}").into_bytes();
    let (mut at, mut state) = (TOP, mine as u64);
    while !stop.load(Ordering::Relaxed) {
        let to = tops[random(&mut state) % tops.len()];
        match fs.rename(at, &name, to, &name, 0) {
            Ok(()) => at = to,
            Err(e) => assert_eq!(e.errno(), libc::EINVAL),
        }
    }
}

/// Renames, relinks, reads and replaces files of its own in everybody's directories; each must always answer.
fn work_on_files(fs: &Fs, dirs: &[Ino], mine: usize) {
    let mut state = 77 + mine as u64;
    let content = |generation: usize| format!("{mine}/{generation}").into_bytes();
    let name = |n: usize| {
        if n.is_multiple_of(5) {
            vec![b'0' + u8::try_from(mine).unwrap(); 201 + n]
        } else {
            format!("{mine}-{n}").into_bytes()
        }
    };
    let mut at: Vec<(Ino, usize, Ino)> = Vec::new();
    for n in 0..6 {
        let dir = dirs[n % dirs.len()];
        at.push((dir, n, put(fs, dir, &name(n), &content(0)).attr.ino));
    }
    for round in 1..400 {
        let which = random(&mut state) % at.len();
        let (dir, n, ino) = at[which];
        let to = dirs[random(&mut state) % dirs.len()];
        match random(&mut state) % 4 {
            0 => {
                let free = 6 + round % 40;
                fs.rename(dir, &name(n), to, &name(free), 0).unwrap();
                at.iter().for_each(|(d, k, _)| assert!((*d, *k) != (to, free) || (*d, *k) == (dir, n)));
                at[which] = (to, free, ino);
                fs.rename(to, &name(free), dir, &name(n), 0).unwrap();
                at[which] = (dir, n, ino);
            }
            1 => {
                let second = [name(n), b"-link".to_vec()].concat();
                let second =
                    if second.len() > 255 { format!("{mine}-{n}-link").into_bytes() } else { second };
                fs.link(ino, to, &second).unwrap();
                assert_eq!(fs.getattr(ino).unwrap().nlink, 2);
                fs.unlink(to, &second).unwrap();
                fs.forget(ino, 1);
            }
            2 => {
                let new = put(fs, dir, format!("{mine}-new").as_bytes(), &content(0)).attr.ino;
                fs.rename(dir, format!("{mine}-new").as_bytes(), dir, &name(n), 0).unwrap();
                assert_eq!(fs.getattr(ino).unwrap().nlink, 0);
                assert_eq!(get(fs, ino).unwrap(), content(0));
                fs.forget(ino, 1);
                at[which].2 = new;
            }
            _ => assert_eq!(get(fs, ino).unwrap(), content(0)),
        }
        let (dir, n, ino) = at[which];
        let attr = fs.getattr(ino).unwrap();
        assert_eq!((attr.ino, attr.nlink), (ino, 1));
        let found = fs.lookup(dir, &name(n)).unwrap();
        assert_eq!(found.attr.ino, ino);
        fs.forget(ino, 1);
    }
    for (dir, n, _) in at {
        fs.unlink(dir, &name(n)).unwrap();
    }
}

fn walk(fs: &Fs, dirs: &[Ino], stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        for dir in dirs {
            let fh = fs.opendir(*dir).unwrap();
            let mut seen = Vec::new();
            fs.readdir(fh, 0, true, &mut |e| {
                seen.extend(e.found.map(|f| f.attr.ino));
                true
            })
            .unwrap();
            for ino in seen {
                // Somebody may remove it; what must not happen is an answer about another inode.
                match fs.getattr(ino) {
                    Ok(attr) => assert_eq!(attr.ino, ino),
                    Err(FsError::Errno(e)) => assert_eq!(e.raw_os_error(), libc::ESTALE),
                    Err(e) => panic!("{e}"),
                }
                fs.forget(ino, 1);
            }
            fs.releasedir(fh);
        }
    }
}

/// Directories move, files are renamed, linked, replaced and read, and others list it all, at once: every inode
/// that is known answers for itself at any moment, and nothing is left behind.
#[test]
fn threads_never_lose_an_inode() {
    let limit = Rlimit { current: Some(DESCRIPTORS), maximum: Some(DESCRIPTORS) };
    setrlimit(Resource::Nofile, limit).unwrap();
    let vault = Vault::new();
    let fs = vault.open();
    let tops: Vec<Ino> =
        (0..3).map(|n| fs.mkdir(&ROOT, TOP, format!("top{n}").as_bytes(), 0o755).unwrap().attr.ino).collect();
    let moving: Vec<Ino> = (0..2)
        .map(|n| fs.mkdir(&ROOT, TOP, format!("moving{n}").as_bytes(), 0o755).unwrap().attr.ino)
        .collect();
    let deep: Vec<Ino> = moving
        .iter()
        .flat_map(|m| {
            let fs = &fs;
            let a = fs.mkdir(&ROOT, *m, b"deep", 0o755).unwrap().attr.ino;
            let b = fs.mkdir(&ROOT, a, &[b'd'; 250], 0o755).unwrap().attr.ino;
            let many = (0..60).map(move |n| fs.mkdir(&ROOT, b, format!("{n}").as_bytes(), 0o755));
            many.map(|made| made.unwrap().attr.ino).chain([a, b]).collect::<Vec<_>>()
        })
        .collect();
    let targets = [&tops[..], &deep[..10], &[TOP]].concat();
    let dirs = [tops, moving, deep].concat();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (fs, dirs, targets, stop) = (&fs, &dirs, &targets, &stop);
        let background = [
            scope.spawn(move || move_directories(fs, targets, 0, stop)),
            scope.spawn(move || move_directories(fs, targets, 1, stop)),
            scope.spawn(move || walk(fs, dirs, stop)),
        ];
        let workers: Vec<_> = (0..4).map(|n| scope.spawn(move || work_on_files(fs, dirs, n))).collect();
        let worked: Vec<_> = workers.into_iter().map(|w| w.join()).collect();
        stop.store(true, Ordering::Relaxed);
        background.into_iter().for_each(|b| b.join().unwrap());
        worked.into_iter().for_each(|w| w.unwrap());
    });
    assert!(list(&fs, TOP).len() <= 5);
    assert_eq!(errno(fs.lookup(TOP, b"0-0")), libc::ENOENT);
}
