//! Random operations on encrypted files, with kills and power cuts between and within them, against a plain model,
//! over a disk that forgets what was not synced.
//!
//! After a kill every completed operation is there. After a power cut each block is one of the versions that it had
//! since the last sync, whole, and the length one of the lengths; whatever was synced is there, and nothing gives an
//! error.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod disk;
mod model;
mod world;

use proptest::prelude::*;
use world::World;

/// Plaintext of a group.
const GROUP: u64 = 524_288;

/// A change of the content.
#[derive(Clone, Debug)]
enum Change {
    Write(u64, usize, u8),
    SetLen(u64),
    Punch(u64, u64),
    Zero(u64, u64, bool),
    Allocate(u64, u64, bool),
}

#[derive(Clone, Debug)]
enum Op {
    /// Work on one of the files.
    Do(usize, Work),
    /// The same while one change of the disk fails: the work is told, and goes on from what it left.
    Fault(usize, Work, u32),
    /// A checkpoint, and before one of its writes and syncs of files a change of one of them.
    Meanwhile(usize, Change, u32),
    /// A clean end and a new beginning.
    Remount,
    /// The file is closed and opened; a time is set meanwhile.
    Reopen(usize),
    /// The process is killed, or the power fails where a seed is given.
    Crash(Option<u64>, Again),
    /// The same when the work has reached the disk so many times.
    Die(usize, Work, u32, Option<u64>, Again),
}

/// The replay after a crash reaches the disk so many times, then there is another crash.
type Again = Option<(u32, Option<u64>)>;

/// What is being done.
#[derive(Clone, Debug)]
enum Work {
    Change(Change),
    Sync,
    /// Sets the time of the last change, as the kernel does before it syncs.
    Touch,
    /// With the time of the last change.
    SyncAll,
    Checkpoint,
    Settle,
    Unmount,
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed).wrapping_add((i >> 8) as u8) | 1).collect()
}

/// Offsets around every boundary of the format, up to a little over two groups.
fn offset() -> impl Strategy<Value = u64> {
    let near = |at: u64| (at.saturating_sub(3)..at + 4).boxed();
    prop_oneof![
        3 => 0..5000u64,
        2 => (0..20u64).prop_map(|block| block * 4096),
        1 => 0..1_200_000u64,
        1 => (0..290u64).prop_map(|block| block * 4096),
        1 => near(4064),
        1 => near(8192),
        1 => near(524_288),
        1 => near(1_048_576),
    ]
}

fn length() -> impl Strategy<Value = u64> {
    prop_oneof![1..100u64, 1..9000u64, Just(4096u64), Just(131_072u64), 1..300_000u64]
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        6 => (offset(), length(), any::<u8>()).prop_map(|(o, n, b)| Change::Write(o, n as usize, b)),
        2 => offset().prop_map(Change::SetLen),
        1 => (offset(), length()).prop_map(|(o, n)| Change::Punch(o, n)),
        1 => (offset(), length(), any::<bool>()).prop_map(|(o, n, k)| Change::Zero(o, n, k)),
        1 => (offset(), length(), any::<bool>()).prop_map(|(o, n, k)| Change::Allocate(o, n, k)),
    ]
}

fn work() -> impl Strategy<Value = Work> {
    prop_oneof![
        12 => change().prop_map(Work::Change),
        3 => Just(Work::Sync),
        3 => Just(Work::Touch),
        3 => Just(Work::SyncAll),
        2 => Just(Work::Checkpoint),
        1 => Just(Work::Settle),
        1 => Just(Work::Unmount),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let power = || prop::option::weighted(0.7, any::<u64>());
    let again = || prop::option::weighted(0.3, (0..20u32, power()));
    let after = || prop_oneof![0..8u32, 0..60u32];
    prop_oneof![
        14 => (0..world::FILES, work()).prop_map(|(f, w)| Op::Do(f, w)),
        2 => (0..world::FILES, work(), 0..12u32).prop_map(|(f, w, n)| Op::Fault(f, w, n)),
        3 => (0..world::FILES, change(), 0..12u32).prop_map(|(f, c, n)| Op::Meanwhile(f, c, n)),
        1 => Just(Op::Remount),
        2 => (0..world::FILES).prop_map(Op::Reopen),
        3 => (power(), again()).prop_map(|(p, a)| Op::Crash(p, a)),
        4 => (0..world::FILES, work(), after(), power(), again()).prop_map(|(f, w, n, p, a)| Op::Die(f, w, n, p, a)),
    ]
}

/// What a change makes of a byte vector.
fn reference(change: &Change, content: &mut Vec<u8>) {
    let grow = |content: &mut Vec<u8>, len: u64| {
        if content.len() < len as usize {
            content.resize(len as usize, 0);
        }
    };
    let clear = |content: &mut Vec<u8>, from: u64, to: u64| {
        let to = content.len().min(to as usize);
        if (from as usize) < to {
            content[from as usize..to].fill(0);
        }
    };
    match *change {
        Change::Write(offset, len, seed) => {
            grow(content, offset + len as u64);
            content[offset as usize..offset as usize + len].copy_from_slice(&pattern(len, seed));
        }
        Change::SetLen(len) => content.resize(len as usize, 0),
        Change::Punch(offset, len) => clear(content, offset, offset + len),
        Change::Zero(offset, len, keep) => {
            if !keep {
                grow(content, offset + len);
            }
            clear(content, offset, offset + len);
        }
        Change::Allocate(offset, len, keep) => {
            if !keep {
                grow(content, offset + len);
            }
        }
    }
}

fn config(cases: u32) -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(cases);
    ProptestConfig { cases, max_shrink_iters: 20_000, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config(96))]

    /// Without a journal: kills between operations and while whole blocks are added, cuts right behind a sync.
    #[test]
    fn without_a_journal_what_was_synced_lasts(ops in prop::collection::vec(op(), 1..30)) {
        let mut world = World::without_journal();
        ops.iter().for_each(|op| world.apply(op));
        world.apply(&Op::Crash(None, None));
    }

    /// With a journal: kills and cuts at any moment.
    #[test]
    fn with_a_journal_what_was_synced_lasts(ops in prop::collection::vec(op(), 1..30)) {
        let mut world = World::with_journal();
        ops.iter().for_each(|op| world.apply(op));
        world.apply(&Op::Crash(None, None));
        world.apply(&Op::Remount);
    }
}

fn write(file: usize, offset: u64, len: usize) -> Op {
    Op::Do(file, Work::Change(Change::Write(offset, len, 0)))
}

/// Overwrites, each with its time and an fsync: the lower file is not synced, and a power cut loses neither.
#[test]
fn an_fsync_of_overwrites_syncs_the_log_alone() {
    for seed in 0..40 {
        let mut world = World::with_journal();
        let sync = || [Op::Do(0, Work::Touch), Op::Do(0, Work::SyncAll)];
        let first = [write(0, 0, 100_000), Op::Do(0, Work::Settle), write(0, 0, 4096)];
        first.into_iter().chain(sync()).for_each(|op| world.apply(&op));
        let before = world.syncs(0);
        for at in 0..5 {
            [write(0, at * 4096, 4096)].into_iter().chain(sync()).for_each(|op| world.apply(&op));
        }
        assert_eq!(world.syncs(0), before);
        // The log has been done with: its times must be in the lower file, and what came later without it counts.
        let later = [Op::Do(0, Work::Checkpoint), Op::Reopen(0), Op::Do(0, Work::SyncAll)];
        later.into_iter().take([0, 1, 3][seed as usize % 3]).for_each(|op| world.apply(&op));
        world.apply(&Op::Crash(Some(seed), None));
    }
}

fn set_len(len: u64) -> Op {
    Op::Do(0, Work::Change(Change::SetLen(len)))
}

/// A block that was a hole when a checkpoint began, and had a record before it ended, has nothing in its place: what
/// replaces that record must not count on the place either, until the next checkpoint.
#[test]
fn what_replaces_a_block_that_stands_in_the_journal_is_not_lost_with_its_place() {
    let change = |change| Op::Do(0, Work::Change(change));
    let block = |seed| Change::Write(4096, 4096, seed);
    for (during, power) in (0..6).flat_map(|during| (0..8).map(move |power| (during, power))) {
        let mut world = World::with_journal();
        for op in [
            write(0, 0, 12_288),
            Op::Do(0, Work::Settle),
            change(Change::Punch(4096, 4096)),
            Op::Meanwhile(0, block(1), during),
            Op::Do(0, Work::Sync),
            change(block(2)),
            Op::Crash(Some(power), None),
            Op::Remount,
        ] {
            world.apply(&op);
        }
    }
}

/// Cases that failed once, as they were found.
#[test]
#[expect(clippy::too_many_lines, reason = "a list")]
fn what_was_mended_stays_mended() {
    let dies = |change, after, power, again| Op::Die(0, Work::Change(change), after, power, again);
    let settle = || Op::Do(0, Work::Settle);
    let cases = [
        // A group that comes to exist in the record that turns an inline file into a grouped one.
        vec![settle(), write(0, 397_312, 131_072), Op::Do(0, Work::Sync)],
        // The map page of a new ordinary group at a checkpoint.
        vec![Op::Crash(None, None), write(0, 524_285, 4), Op::Remount],
        // A file that was in the page cache alone when its process was killed.
        vec![
            dies(Change::Write(0, 1, 0), 0, None, None),
            write(0, 0, 1),
            Op::Die(1, Work::Sync, 0, Some(21_721_313_580_841_610), None),
        ],
        // A replay that is cut while the records it reads are in the page cache alone.
        vec![settle(), dies(Change::Write(0, 4065, 0), 4, None, Some((3, Some(1_329_021_701_821_249_799))))],
        // A replay that is cut while it removes the logs.
        vec![
            Op::Remount,
            write(0, 4061, 4),
            Op::Die(0, Work::Sync, 0, None, Some((8, Some(8_151_695_640_528_254_230)))),
        ],
        // A small durable file that grows: its bytes are in the new block alone, once and twice.
        vec![
            write(1, 0, 1),
            write(0, 0, 1),
            Op::Crash(None, Some((3, Some(0)))),
            write(1, 8189, 1),
            write(0, 0, 1),
            write(0, 4096, 1),
            dies(Change::Write(0, 1, 0), 0, Some(2_988_648_593_217_684_012), None),
        ],
        vec![
            write(1, 0, 1),
            Op::Crash(None, Some((3, Some(0)))),
            Op::Die(1, Work::Change(Change::Write(4061, 4132, 0)), 5, Some(14_272_346_334_307_386_089), None),
        ],
        // A new file's last block is sealed anew when the process is killed.
        vec![write(0, 0, 4065), dies(Change::Write(4096, 1, 0), 1, None, None)],
        // Entries behind the end, left by a process that was killed while the file grew.
        vec![
            write(0, 524_288, 4096),
            dies(Change::Write(917_505, 131_072, 0), 3, None, None),
            write(0, 1_048_573, 1),
            write(0, 0, 1),
        ],
        // Blocks that were written again between two cuts.
        vec![
            write(0, 0, 4096),
            write(0, 0, 1),
            set_len(1),
            Op::Do(0, Work::Change(Change::Allocate(0, 131_072, false))),
            set_len(4096),
            Op::Remount,
        ],
        // A log that could not be begun.
        vec![
            dies(Change::SetLen(829_043), 2, None, None),
            write(0, 0, 1),
            Op::Fault(0, Work::Checkpoint, 0),
            Op::Remount,
        ],
        // A log that is lost while the one behind it is not.
        vec![
            set_len(4061),
            dies(Change::Write(0, 1, 0), 0, Some(7_543_149_096_751_734_279), None),
            write(0, 8192, 1),
            Op::Fault(0, Work::Checkpoint, 1),
            dies(Change::Punch(8189, 1), 2, Some(10_818_746_912_936_298_248), None),
        ],
        // A log whose space was used again before its new header was durable.
        vec![
            Op::Do(1, Work::Change(Change::Zero(4061, 4, false))),
            write(1, 1, 4096),
            settle(),
            write(1, 8192, 1),
            Op::Do(0, Work::Checkpoint),
            Op::Fault(0, Work::Change(Change::Write(4061, 36_900, 0)), 1),
            Op::Crash(Some(1_553_883_329_746_573_251), None),
        ],
        // A page that was right as it stood, so that a replay left it; killed when it had removed the log that named it.
        vec![
            write(1, 0, 1),
            settle(),
            dies(Change::Zero(0, 4065, false), 6, None, None),
            Op::Do(1, Work::Change(Change::Zero(0, 4097, false))),
            Op::Do(0, Work::Change(Change::Punch(4061, 1))),
            Op::Fault(0, Work::Checkpoint, 8),
            Op::Crash(None, Some((9, None))),
        ],
    ];
    for case in cases {
        let mut world = World::with_journal();
        case.iter().for_each(|op| world.apply(op));
        world.apply(&Op::Crash(None, None));
        world.apply(&Op::Remount);
    }
}
