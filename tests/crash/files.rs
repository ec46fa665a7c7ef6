//! Steps of the workloads that work on files.

use std::thread;
use std::time::Duration;

use crate::random::Random;
use crate::work::Work;

/// One step of a workload.
pub(crate) type Step = fn(&mut Work, &mut Random);

/// Around the longest inline file, a block, and a group.
const LENGTHS: &[usize] =
    &[0, 1, 700, 4000, 4064, 4065, 4096, 12_288, 40_000, 70_000, 131_072, 500_000, 524_288, 540_000];

/// Files of all forms; what is here when the recording begins.
pub(crate) fn prepare(work: &mut Work, random: &mut Random) {
    for (i, len) in LENGTHS.iter().enumerate() {
        let name = format!("f{i}");
        work.create(&name);
        if *len > 0 {
            let bytes = random.bytes(*len);
            work.write(&name, 0, &bytes);
        }
    }
    for dir in ["d0", "d1"] {
        work.mkdir(dir);
        let name = format!("{dir}/in");
        work.create(&name);
        let bytes = random.bytes(9000);
        work.write(&name, 0, &bytes);
    }
}

fn pick(work: &Work, random: &mut Random) -> String {
    let names = work.names();
    names[random.index(names.len())].clone()
}

/// What happens around every step: a file is synced, written back by the kernel, closed; or nothing happens for a while.
fn around(work: &mut Work, random: &mut Random, name: &str) {
    match random.below(64) {
        0..=15 => work.sync(name),
        16..=20 => work.nudge(name),
        21..=23 => work.close(name),
        24 => work.close_all(),
        25 => thread::sleep(Duration::from_millis(random.below(150))),
        _ => {}
    }
}

/// A range inside a file: whole blocks, or any.
fn range(len: usize, random: &mut Random) -> (usize, usize) {
    if random.one_in(2) && len > 4096 {
        let block = random.index(len / 4096);
        let most = if random.one_in(8) { 20 } else { 2 };
        let blocks = 1 + random.index(most);
        return (block * 4096, (blocks * 4096).min(len - block * 4096));
    }
    let at = random.index(len);
    let most = if random.one_in(8) { 30_000 } else { 3000 };
    (at, (1 + random.index(most)).min(len - at))
}

/// Overwrites within files that were there before.
pub(crate) fn overwrites(work: &mut Work, random: &mut Random) {
    let name = pick(work, random);
    let len = work.len(&name);
    if len > 0 {
        let (at, count) = range(len, random);
        let bytes = random.bytes(count);
        work.write(&name, at, &bytes);
    }
    around(work, random, &name);
}

/// Files that grow at their end; one that got long makes room for a new one, as logs do.
pub(crate) fn appends(work: &mut Work, random: &mut Random) {
    let name = pick(work, random);
    let len = work.len(&name);
    if len > 600_000 {
        let old = format!("{name}.old");
        work.rename(&name, &old);
        work.create(&name);
        work.sync_dir("");
        if random.one_in(2) {
            work.unlink(&old);
        }
        return;
    }
    if name.ends_with(".old") {
        work.unlink(&name);
        return;
    }
    let count = match random.below(4) {
        0 => 4096,
        1 => 1 + random.index(100),
        2 => 1 + random.index(5000),
        _ => 1 + random.index(40_000),
    };
    let bytes = random.bytes(count);
    work.write(&name, len, &bytes);
    around(work, random, &name);
}

/// Files saved as editors do.
pub(crate) fn editors(work: &mut Work, random: &mut Random) {
    let doc = format!("doc{}", random.below(24));
    let there = work.names().contains(&doc);
    let len = if random.one_in(4) { 1 + random.index(60_000) } else { 1 + random.index(9000) };
    let text = random.bytes(len);
    match random.below(8) {
        // In place.
        0 if there => {
            work.truncate(&doc, 0);
            work.write(&doc, 0, &text);
            work.sync(&doc);
        }
        // With the old one kept beside it.
        1 if there => {
            let backup = format!("{doc}~");
            if work.names().contains(&backup) {
                work.unlink(&backup);
            }
            work.link(&doc, &backup);
            save(work, &doc, &text, true);
        }
        2 if there && random.one_in(2) => {
            work.unlink(&doc);
            if random.one_in(2) {
                work.sync_dir("");
            }
        }
        // By a program that does not care.
        3 => save(work, &doc, &text, false),
        _ => save(work, &doc, &text, true),
    }
    around_dir(work, random);
}

fn save(work: &mut Work, doc: &str, text: &[u8], careful: bool) {
    let new = format!("{doc}.new");
    work.create(&new);
    let (head, tail) = text.split_at(text.len() / 3);
    work.write(&new, 0, head);
    if !tail.is_empty() {
        work.write(&new, head.len(), tail);
    }
    if careful {
        work.sync(&new);
    }
    work.close(&new);
    work.rename(&new, doc);
    if careful {
        work.sync_dir("");
    }
}

fn around_dir(work: &mut Work, random: &mut Random) {
    match random.below(32) {
        0 => thread::sleep(Duration::from_millis(random.below(150))),
        1 => work.close_all(),
        _ => {}
    }
}

/// Files that shrink, grow by holes, and have holes punched.
pub(crate) fn space(work: &mut Work, random: &mut Random) {
    let name = pick(work, random);
    let len = work.len(&name);
    match random.below(10) {
        0 => work.truncate(&name, random.index(len + 1)),
        1 => work.truncate(&name, len + random.index(20_000)),
        2 => {
            let len = LENGTHS[random.index(LENGTHS.len())];
            work.truncate(&name, len);
        }
        3 | 4 if len > 0 => {
            let (at, count) = range(len, random);
            let count = if random.one_in(8) { count + 200_000 } else { count };
            work.punch(&name, at, count);
        }
        5 => {
            let count = 1 + random.index(20_000);
            let bytes = random.bytes(count);
            work.write(&name, (len + random.index(9000)).min(1_200_000), &bytes);
        }
        _ if len > 0 => {
            let (at, count) = range(len, random);
            let bytes = random.bytes(count);
            work.write(&name, at, &bytes);
        }
        _ => {}
    }
    around(work, random, &name);
}

/// Directories that are made, renamed and filled, and files in them that change all the while.
pub(crate) fn trees(work: &mut Work, random: &mut Random) {
    let n = random.below(12);
    let (dir, moved) = (format!("t{n}"), format!("m{n}"));
    let is = |work: &Work, path: &str| work.model.entry(path.as_ref()) != crate::model::Entry::Absent;
    let here = if is(work, &moved) { moved.clone() } else { dir.clone() };
    if !is(work, &here) {
        work.mkdir(&dir);
        if random.one_in(2) {
            work.sync_dir("");
        }
        work.mkdir(&format!("{dir}/sub"));
        for name in ["a", "b", "sub/c"] {
            let path = format!("{dir}/{name}");
            work.create(&path);
            let count = 1 + random.index(9000);
            let bytes = random.bytes(count);
            work.write(&path, 0, &bytes);
            if random.one_in(2) {
                work.sync(&path);
            }
        }
        work.sync_dir(&format!("{dir}/sub"));
        work.sync_dir(&dir);
        work.sync_dir("");
        return;
    }
    let file = format!("{here}/{}", ["a", "b", "sub/c"][random.index(3)]);
    let len = work.len(&file);
    let (at, count) = if len == 0 { (0, 5000) } else { range(len, random) };
    let bytes = random.bytes(count);
    work.write(&file, at, &bytes);
    around(work, random, &file);
    if random.one_in(12) {
        // The files in it have changes that are on no disk yet.
        let new = if here == dir { moved } else { dir };
        work.sync_dir(&format!("{here}/sub"));
        work.sync_dir(&here);
        work.sync_dir("");
        work.rename(&here, &new);
        if random.one_in(2) {
            work.sync_renamed_dir(&new);
        } else if random.one_in(2) {
            let file = format!("{new}/a");
            work.sync(&file);
        }
    }
}

/// New files that nobody syncs, some of which go again.
pub(crate) fn fresh(work: &mut Work, random: &mut Random) {
    let name = format!("new{}", random.below(40));
    if !work.names().contains(&name) {
        work.create(&name);
    }
    let len = work.len(&name);
    match random.below(16) {
        0 => {
            work.unlink(&name);
            return;
        }
        1 if len > 0 => {
            let at = random.index(len);
            work.truncate(&name, at);
        }
        2 if len > 0 => {
            let (at, count) = range(len, random);
            let bytes = random.bytes(count);
            work.write(&name, at, &bytes);
        }
        _ if len < 300_000 => {
            let most = if random.one_in(8) { 60_000 } else { 6000 };
            let count = 1 + random.index(most);
            let bytes = random.bytes(count);
            work.write(&name, len, &bytes);
        }
        _ => {}
    }
    match random.below(24) {
        0..=7 => work.nudge(&name),
        8..=10 => work.close(&name),
        // One of them after all.
        11 => work.sync(&name),
        12 => work.sync_dir(""),
        13 => thread::sleep(Duration::from_millis(random.below(60))),
        _ => {}
    }
}
