//! Replay: what a crash left in the logs goes to its place, before anybody reads the vault.
//!
//! Every record says what is true from then on, so the last word on a block, a group or the length counts, however
//! much of it lies in its place already. A page that was torn while it was overwritten is rebuilt from its image.
//! A page that is whole, but none of those the records were made for, nor what they make of it, means that journal and
//! file do not belong together: then the file is left as it is.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{self, IoSlice};
use std::sync::Arc;

use super::log::{Log, Tail};
use crate::content::checkpoint::tag_of;
use crate::content::groups::{Bitmap, Entries, bit, holes, lone_leader, set_bit};
use crate::content::{ContentError, Fault, Result};
use crate::crypto::{FileKeys, JournalRoot};
use crate::format::ids::FileId;
use crate::format::inline::{InlineHead, KIND_INLINE};
use crate::format::journal::{Draft, Home, NO_PAGE, PageTag, Record, Time, Where};
use crate::format::layout::{
    BLOCK, BlockIndex, GROUP_BLOCKS, GroupIndex, INLINE_HEAD, LEADER_SPAN, MAP_PAGE, disk_len, groups_in,
};
use crate::format::map::{Entry, KIND_MAP, Leader, MapPage};
use crate::vault::{JournalStore, LowerFile};

/// Files replayed between two syncs.
const BATCH: usize = 128;
/// Pages in one record of images.
const PAGES: usize = 64;

/// Finds files for a replay.
pub trait Finder {
    /// The file with this id, for writing. `paths`: where it was seen, the last place first; `gone`: it lost its
    /// last name, so that looking everywhere is not worth the time.
    fn find(&mut self, id: &FileId, inode: u64, paths: &[Vec<u8>], gone: bool) -> Found;
    /// `done` of `all` files were replayed.
    fn progress(&mut self, done: usize, all: usize);
    /// Whether a file that a failing disk keeps from being read is left out, its records put aside. Otherwise the
    /// replay ends there, to be run again when the disk is well.
    fn goes_on(&self) -> bool {
        false
    }
}

/// What became of the search for a file.
pub enum Found {
    /// Open. `true`: it was being made when the power went, so that it need not be what the records were made for.
    File(Box<dyn LowerFile>, Arc<FileKeys>, bool),
    /// There is none.
    Missing,
    /// There is one, and it cannot be opened.
    Unusable(String),
    /// The disk or the KMS failed while it was looked for: another time it may be found.
    Failed(io::Error),
}

/// What a replay did.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Replayed {
    /// Files that were brought up to date.
    pub files: usize,
    /// Files that are gone.
    pub missing: usize,
    /// Files that were left as they are, and why.
    pub refused: Vec<(FileId, String)>,
}

/// What the logs of a store hold.
pub struct Replay {
    store: Box<dyn JournalStore>,
    root: JournalRoot,
    logs: Vec<Arc<Log>>,
    /// Files that are no log of this vault: torn, changed, or another vault's.
    other: Vec<u32>,
    files: HashMap<FileId, History>,
    born_since: Option<Time>,
    home: Home,
    copied: bool,
}

impl std::fmt::Debug for Replay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Replay").field("files", &self.files.len()).finish_non_exhaustive()
    }
}

/// What the logs say about one file, in order.
#[derive(Default)]
struct History {
    inode: u64,
    paths: Vec<Vec<u8>>,
    gone: bool,
    /// By generation and sequence number.
    steps: Vec<((u64, u64), Step)>,
    /// When it was changed last, and the generation that says so.
    modified: Option<(u64, Time)>,
}

impl History {
    fn says_something(&self) -> bool {
        !self.steps.is_empty() || self.modified.is_some()
    }
}

/// A stretch of a log.
#[derive(Clone, Copy, Debug)]
struct Stretch {
    log: usize,
    at: u64,
    len: usize,
}

enum Step {
    Inline { base: PageTag, tag: PageTag, sealed: Stretch },
    Change { length: Option<u64>, groups: Vec<GroupStep>, dropped: Vec<GroupIndex> },
    Image { group: GroupIndex, tag: PageTag, page: Stretch },
}

struct GroupStep {
    group: GroupIndex,
    base: PageTag,
    reset: bool,
    blocks: Vec<(BlockIndex, Entry, Source)>,
}

/// Where the ciphertext of a block is.
#[derive(Clone, Copy, Debug)]
enum Source {
    Hole,
    InPlace,
    Log(Stretch),
}

impl Replay {
    /// Reads the logs. `None`: there are none, the vault was left in order.
    pub fn read(store: Box<dyn JournalStore>, root: JournalRoot) -> io::Result<Option<Self>> {
        let slots = store.list()?;
        if slots.is_empty() {
            return Ok(None);
        }
        let (mut logs, mut other) = (Vec::new(), Vec::new());
        for slot in slots {
            match Log::open((slot, store.open(slot)?), &root)? {
                Some(log) => logs.push(log),
                None => {
                    let file = store.open(slot)?;
                    // A log that was never begun.
                    if file.len()? > 0 {
                        other.push(slot);
                    }
                }
            }
        }
        logs.sort_by_key(|log| log.header.generation);
        let oldest = logs.last().map_or(0, |log| log.header.oldest);
        logs.retain(|log| log.header.generation >= oldest);
        let live = logs;
        let newest = live.last().map(|log| log.header);
        let copied = store.is_copy();
        let mut replay = Self {
            store,
            root,
            logs: live.into_iter().map(Arc::new).collect(),
            other,
            files: HashMap::new(),
            born_since: newest.map(|h| h.born_since),
            home: newest.map(|h| h.home).unwrap_or_default(),
            copied,
        };
        for at in 0..replay.logs.len() {
            replay.read_log(at)?;
        }
        Ok(Some(replay))
    }

    /// Files with changes to bring in.
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Whether no file has changes to bring in.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Logs that are none of this vault, or damaged: they are put aside, and what they held is lost.
    pub fn unreadable(&self) -> usize {
        self.other.len()
    }

    /// Files that are younger may not be durable as they lie. `None`: the page cache of whoever wrote them is still
    /// this one, and nothing was lost; or files and logs are copies, so that nobody knows how old they are.
    pub fn suspects_since(&self) -> Option<Time> {
        if self.copied || self.is_at_home() { None } else { self.born_since }
    }

    /// Whether the logs were restored or copied with the files: what is not sure is left as it is, and put aside.
    pub fn is_copy(&self) -> bool {
        self.copied
    }

    fn is_at_home(&self) -> bool {
        self.home.is_same(&self.store.home())
    }

    fn read_log(&mut self, index: usize) -> io::Result<()> {
        let log = Arc::clone(&self.logs[index]);
        let mut tail = Tail::START;
        while let Some((at, kind, bytes)) = log.next(&mut tail)? {
            let Some(record) = Record::decode(kind, &bytes) else {
                log::error!("journal: a record of kind {kind} is not understood; the log ends before it");
                break;
            };
            let order = (log.header.generation, tail.sequence - 1);
            self.take((index, at), order, &bytes, record);
        }
        Ok(())
    }

    fn take(&mut self, (log, at): (usize, u64), order: (u64, u64), bytes: &[u8], record: Record<'_>) {
        let offset = |part: &[u8]| (part.as_ptr() as usize).saturating_sub(bytes.as_ptr() as usize) as u64;
        let stretch = |part: &[u8]| Stretch { log, at: at + offset(part), len: part.len() };
        match record {
            Record::Settled { born_since } => self.born_since = Some(born_since),
            Record::Name { file, inode, path } => {
                let history = self.files.entry(file).or_default();
                history.inode = inode;
                if !path.is_empty() && history.paths.first().is_none_or(|p| p != path) {
                    history.paths.insert(0, path.to_vec());
                }
            }
            Record::Times { file, modified } => {
                self.files.entry(file).or_default().modified = Some((order.0, modified));
            }
            Record::Landed { generation } => {
                let files = self.files.values_mut();
                files.for_each(|h| h.modified = h.modified.filter(|(g, _)| *g > generation));
            }
            Record::Gone { file } => self.files.entry(file).or_default().gone = true,
            Record::Inline { file, base, sealed } => {
                let step = Step::Inline { base, tag: tag_of(sealed), sealed: stretch(sealed) };
                self.files.entry(file).or_default().steps.push((order, step));
            }
            Record::Image { file, as_of, pages } => {
                let images = pages.into_iter().map(|(group, page)| {
                    (as_of, Step::Image { group, tag: tag_of(page), page: stretch(page) })
                });
                self.files.entry(file).or_default().steps.extend(images);
            }
            Record::Change { file, length, groups, dropped } => {
                let source = |at_| match at_ {
                    Where::Hole => Source::Hole,
                    Where::InPlace => Source::InPlace,
                    Where::Record(place, len) => Source::Log(Stretch { log, at: at + place as u64, len }),
                };
                let groups = groups
                    .into_iter()
                    .map(|g| GroupStep {
                        group: g.group,
                        base: g.base,
                        reset: g.reset,
                        blocks: g.blocks.iter().map(|b| (b.block, b.entry, source(b.at))).collect(),
                    })
                    .collect();
                let step = Step::Change { length, groups, dropped };
                self.files.entry(file).or_default().steps.push((order, step));
            }
        }
    }

    /// Brings everything to its place, durably, then removes the logs. Cut short, it can be run again.
    pub fn run(self, finder: &mut dyn Finder) -> io::Result<Replayed> {
        self.run_then(finder, || Ok(()))
    }

    /// As `run`; calls `then` when everything is in its place, before the logs go.
    pub fn run_then(
        mut self,
        finder: &mut dyn Finder,
        then: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<Replayed> {
        let mut replayed = Replayed::default();
        let mut files: Vec<_> = std::mem::take(&mut self.files).into_iter().collect();
        files.sort_by_key(|(id, _)| *id);
        // An image belongs where its page was that, which is before the place it was written down at.
        files.iter_mut().for_each(|(_, history)| history.steps.sort_by_key(|(order, _)| *order));
        let all = files.len();
        let mut images = None;
        if self.is_at_home() {
            // The lower inodes have newer ones.
            files.iter_mut().for_each(|(_, history)| history.modified = None);
        }
        if files.iter().any(|(_, history)| history.says_something()) {
            // The images speak for blocks and records that may be in the page cache alone.
            self.store.sync_all()?;
            let need = need(&files);
            let (log, mut tail) = self.begin().map_err(|e| tell_need(e, need))?;
            for (at, batch) in files.chunks(BATCH).enumerate() {
                finder.progress(at * BATCH, all);
                self.run_batch(batch, (&log, &mut tail), finder, &mut replayed)
                    .map_err(|e| tell_need(e, need))?;
            }
            // Also what was in the page cache alone: the files' new blocks, the names that lead to them.
            self.store.sync_all()?;
            images = Some(log.slot);
        }
        then()?;
        let keep = !replayed.refused.is_empty();
        let mut slots = self.store.list()?;
        // The newest last: while it is there, the others are read with it or not at all.
        slots.sort_by_key(|slot| (images == Some(*slot), self.generation(*slot)));
        for slot in slots {
            let live = self.logs.iter().any(|log| log.slot == slot);
            if self.other.contains(&slot) || keep && live {
                self.store.set_aside(slot)?;
            } else {
                self.store.remove(slot)?;
            }
        }
        Ok(replayed)
    }

    /// A log of its own for the images of this replay.
    fn begin(&self) -> io::Result<(Log, Tail)> {
        let last = self.logs.last().map(|log| log.header);
        let used: HashSet<u32> = self.logs.iter().map(|log| log.slot).collect();
        let slot = (0..).find(|slot| !used.contains(slot)).unwrap_or(0);
        let generations = last.map_or((1, 1), |h| (h.generation + 1, self.oldest()));
        let born_since = self.born_since.unwrap_or((0, 0));
        let file = (slot, self.store.open(slot)?);
        let log = Log::begin(file, &self.root, generations, born_since, self.home)?;
        Ok((log, Tail::START))
    }

    /// Of the log in a slot; 0 where there is none that counts.
    fn generation(&self, slot: u32) -> u64 {
        self.logs.iter().find(|log| log.slot == slot).map_or(0, |log| log.header.generation)
    }

    fn oldest(&self) -> u64 {
        self.logs.first().map_or(1, |log| log.header.generation)
    }

    fn run_batch(
        &self,
        batch: &[(FileId, History)],
        (log, tail): (&Log, &mut Tail),
        finder: &mut dyn Finder,
        replayed: &mut Replayed,
    ) -> io::Result<()> {
        let mut plans = Vec::new();
        for (id, history) in batch.iter().filter(|(_, h)| h.says_something()) {
            let (lower, keys, fresh) = match finder.find(id, history.inode, &history.paths, history.gone) {
                Found::File(lower, keys, fresh) => (lower, keys, fresh),
                Found::Missing if self.copied && !history.gone => {
                    replayed
                        .refused
                        .push((*id, "it is not among the files that came with the journal".into()));
                    continue;
                }
                Found::Missing => {
                    replayed.missing += 1;
                    continue;
                }
                Found::Unusable(why) => {
                    replayed.refused.push((*id, why));
                    continue;
                }
                Found::Failed(e) if finder.goes_on() => {
                    replayed.refused.push((*id, e.to_string()));
                    continue;
                }
                Found::Failed(e) => return Err(e),
            };
            let file = OneFile { lower: &*lower, keys: &keys, logs: &self.logs, history };
            match file.plan() {
                Ok(plan) => {
                    for pages in plan.pages.chunks(PAGES) {
                        let pages = pages.iter().map(|(group, page)| (*group, &**page));
                        log.append(tail, Draft::image(*id, (log.header.generation, u64::MAX), pages))?;
                    }
                    plans.push((*id, lower, keys, history, plan));
                }
                Err(ContentError::Io(e)) if !finder.goes_on() => return Err(e),
                Err(other) if fresh => {
                    log::warn!("journal: file {id}, which never became durable: {other}");
                    replayed.missing += 1;
                }
                Err(other) => replayed.refused.push((*id, other.to_string())),
            }
        }
        log.sync()?;
        for (_, lower, keys, history, plan) in &plans {
            OneFile { lower: &**lower, keys, logs: &self.logs, history }.fill(plan)?;
            replayed.files += 1;
        }
        Ok(())
    }
}

/// Space that a replay takes at most, in MiB: images of pages, and on some filesystems what it overwrites.
fn need(files: &[(FileId, History)]) -> u64 {
    let blocks = |step: &Step| match step {
        Step::Change { groups, .. } => groups.iter().map(|g| 3 + g.blocks.len()).sum(),
        Step::Inline { .. } | Step::Image { .. } => 3,
    };
    let steps = files.iter().flat_map(|(_, history)| &history.steps);
    1 + ((steps.map(|(_, step)| blocks(step)).sum::<usize>() * BLOCK) as u64 >> 20)
}

fn tell_need(e: io::Error, mib: u64) -> io::Error {
    if matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
        return io::Error::new(e.kind(), format!("{e}: it needs up to {mib} MiB of free space"));
    }
    e
}

struct OneFile<'a> {
    lower: &'a dyn LowerFile,
    keys: &'a FileKeys,
    logs: &'a [Arc<Log>],
    history: &'a History,
}

/// What is to be written.
#[derive(Default)]
struct Plan {
    /// The plaintext's; `None`: as it is.
    len: Option<u64>,
    blocks: Vec<(BlockIndex, Stretch)>,
    pages: Vec<(GroupIndex, Box<[u8; MAP_PAGE]>)>,
    inline: Option<Stretch>,
}

/// A group as the records leave it.
#[derive(Default)]
struct Group {
    /// Its page in the lower file counts no more.
    reset: bool,
    exists: Option<bool>,
    blocks: BTreeMap<usize, (BlockIndex, Entry, Source)>,
    /// Which groups of its span came and went; leaders only.
    span: BTreeMap<u64, bool>,
    /// Tags that its page in the lower file may have.
    expected: HashSet<PageTag>,
    /// It came to exist in these records: whatever stands in its page's place is of no meaning.
    born: bool,
    /// What its page was, `blocks` and `span` not yet counted.
    image: Option<Stretch>,
    /// The last ciphertext of each block that the journal holds, which may not have reached its place.
    written: BTreeMap<usize, (BlockIndex, Entry, Stretch)>,
}

/// The file as the records leave it.
#[derive(Default)]
struct Outcome {
    /// The sealed inline record that it is.
    inline: Option<Stretch>,
    len: Option<u64>,
    groups: BTreeMap<u64, Group>,
}

/// What stands in the place of a page.
enum Standing {
    Page(Box<MapPage>, PageTag),
    Inline(PageTag),
    /// Nothing that verifies.
    Nothing,
}

impl Group {
    /// What was said before counts no more.
    fn start_over(&mut self, reset: bool) {
        self.reset = reset;
        self.image = None;
        self.blocks.clear();
        self.span.clear();
    }
}

impl Outcome {
    fn of(history: &History) -> Self {
        let mut outcome = Self::default();
        history.steps.iter().for_each(|(_, step)| outcome.take(step));
        outcome
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Image { group, tag, page } => {
                self.inline = None;
                if group.0 == 0 {
                    // It has the length of its time.
                    self.len = None;
                }
                let known = self.groups.entry(group.0).or_default();
                known.expected.insert(*tag);
                known.start_over(false);
                known.image = Some(*page);
                known.exists = Some(true);
            }
            Step::Inline { base, tag, sealed } => {
                self.forget_behind(0);
                let first = self.groups.entry(0).or_default();
                first.expected.extend([*base, *tag]);
                first.start_over(true);
                self.inline = Some(*sealed);
                self.len = None;
            }
            Step::Change { length, groups, dropped } => {
                self.inline = None;
                // Leaders stand last: one that starts anew must not forget what its span gets.
                groups.iter().rev().for_each(|step| self.change(step));
                dropped.iter().for_each(|group| self.drop_group(*group));
                if let Some(len) = length {
                    self.len = Some(*len);
                    self.forget_behind(groups_in(*len).max(1) - 1);
                }
            }
        }
    }

    fn change(&mut self, step: &GroupStep) {
        let group = self.groups.entry(step.group.0).or_default();
        group.expected.insert(step.base);
        if step.reset {
            group.start_over(true);
            group.exists = Some(true);
            group.born |= step.base == NO_PAGE;
        }
        for (block, entry, source) in &step.blocks {
            group.blocks.insert(block.slot(), (*block, *entry, *source));
            if let Source::Log(stretch) = source {
                group.written.insert(block.slot(), (*block, *entry, *stretch));
            }
        }
        let leader = step.group.leader();
        if step.reset && leader != step.group {
            self.groups.entry(leader.0).or_default().span.insert(step.group.0, true);
        }
    }

    fn drop_group(&mut self, group: GroupIndex) {
        let known = self.groups.entry(group.0).or_default();
        known.start_over(true);
        known.exists = Some(false);
        if group.leader() != group {
            self.groups.entry(group.leader().0).or_default().span.insert(group.0, false);
        }
    }

    /// Groups behind `last` are not part of the file.
    fn forget_behind(&mut self, last: u64) {
        for (_, group) in self.groups.range_mut(last + 1..) {
            group.start_over(true);
            group.exists = Some(false);
        }
    }
}

impl OneFile<'_> {
    fn log_bytes(&self, stretch: Stretch) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; stretch.len];
        let log = self.logs.get(stretch.log).ok_or_else(|| io::Error::other("no such log"))?;
        log.read(&mut bytes, stretch.at)?;
        Ok(bytes)
    }

    fn standing(&self, group: GroupIndex) -> io::Result<Standing> {
        let mut page = Box::new([0; MAP_PAGE]);
        let read = self.lower.read_at(&mut page[..], group.disk_start())?;
        if group.0 == 0 && page[0] == KIND_INLINE && read >= INLINE_HEAD {
            return Ok(self.standing_inline(&page[..read]));
        }
        if read < MAP_PAGE || page[0] != KIND_MAP {
            return Ok(Standing::Nothing);
        }
        let tag = tag_of(&page[..]);
        Ok(self
            .keys
            .open_page(&page, group)
            .map_or(Standing::Nothing, |page| Standing::Page(Box::new(page), tag)))
    }

    fn standing_inline(&self, bytes: &[u8]) -> Standing {
        let Ok(head) = InlineHead::decode(bytes) else { return Standing::Nothing };
        let end = INLINE_HEAD + usize::from(head.plain_len);
        let Some(sealed) = bytes.get(INLINE_HEAD..end) else { return Standing::Nothing };
        let mut plain = zeroize::Zeroizing::new(sealed.to_vec());
        match self.keys.open_inline(&head, &mut plain) {
            Ok(()) => Standing::Inline(head.tag),
            Err(_) => Standing::Nothing,
        }
    }

    /// Works out what must be written so that the file is what the records say.
    fn plan(&self) -> Result<Plan> {
        if self.history.steps.is_empty() {
            return Ok(Plan { len: None, ..Plan::default() });
        }
        let outcome = Outcome::of(self.history);
        if let Some(sealed) = outcome.inline {
            return self.plan_inline(&outcome, sealed);
        }
        let first = self.standing(GroupIndex(0))?;
        let imaged = outcome.groups.get(&0).is_some_and(|g| g.image.is_some());
        let standing = match &first {
            Standing::Page(page, _) if !imaged => page.leader.as_ref().and_then(|l| l.plain_len),
            _ => None,
        };
        let len = match outcome.len.or(standing) {
            Some(len) => len,
            None => self.imaged_length(&outcome)?,
        };
        let mut plan = Plan { len: Some(len), ..Plan::default() };
        let end = groups_in(len);
        // Leaders last, group 0 the very last: the file is never longer than what stands in it.
        let (leaders, ordinary): (Vec<_>, Vec<_>) =
            outcome.groups.iter().filter(|(g, _)| **g < end).partition(|(g, _)| GroupIndex(**g).is_leader());
        for (group, known) in ordinary.into_iter().chain(leaders.into_iter().rev()) {
            self.plan_group(GroupIndex(*group), known, len, &mut plan)?;
        }
        Ok(plan)
    }

    fn imaged_length(&self, outcome: &Outcome) -> Result<u64> {
        let none = || mismatch(GroupIndex(0), "its length is lost");
        let image = outcome.groups.get(&0).and_then(|g| g.image).ok_or_else(none)?;
        let page = self.image(GroupIndex(0), image)?;
        page.leader.and_then(|l| l.plain_len).ok_or_else(none)
    }

    fn image(&self, group: GroupIndex, stretch: Stretch) -> Result<MapPage> {
        let bytes = self.log_bytes(stretch)?;
        let bytes = bytes.first_chunk().ok_or_else(|| mismatch(group, "its image is short"))?;
        self.keys.open_page(bytes, group).map_err(|_| mismatch(group, "its image does not verify"))
    }

    fn plan_inline(&self, outcome: &Outcome, sealed: Stretch) -> Result<Plan> {
        let first = outcome.groups.get(&0).ok_or_else(|| mismatch(GroupIndex(0), "no record"))?;
        let (Standing::Page(_, tag) | Standing::Inline(tag)) = self.standing(GroupIndex(0))? else {
            return Ok(self.inline_plan(sealed));
        };
        if first.expected.contains(&tag) { Ok(self.inline_plan(sealed)) } else { Err(foreign(GroupIndex(0))) }
    }

    fn inline_plan(&self, sealed: Stretch) -> Plan {
        Plan { len: Some((sealed.len - INLINE_HEAD) as u64), inline: Some(sealed), ..Plan::default() }
    }

    fn plan_group(&self, group: GroupIndex, known: &Group, len: u64, plan: &mut Plan) -> Result<()> {
        if known.exists == Some(false) {
            return Ok(());
        }
        let standing = self.standing(group)?;
        let (tag, standing_page) = match standing {
            Standing::Page(page, tag) => (Some(tag), Some(*page)),
            Standing::Inline(tag) => (Some(tag), None),
            Standing::Nothing => (None, None),
        };
        let foreign_tag = !known.born && tag.is_some_and(|tag| !known.expected.contains(&tag));
        let start = match (&standing_page, known.image) {
            (_, Some(image)) => Some(self.image(group, image)?),
            _ if known.reset => None,
            (Some(page), None) => Some(page.clone()),
            (None, None) => return Err(mismatch(group, "it is torn, and the journal has no image of it")),
        };
        let mut entries: Entries = start.as_ref().map_or_else(holes, |p| p.entries.clone());
        for (slot, (block, entry, source)) in &known.blocks {
            entries[*slot] = self.entry(*block, *entry, *source, len)?;
        }
        clear_behind(&mut entries, group, len);
        let leader = group.is_leader().then(|| {
            let mut bitmap = start.and_then(|p| p.leader).map_or_else(lone_leader, |l| Box::new(l.bitmap));
            self.set_span(&mut bitmap, group, known, len);
            Leader { bitmap: *bitmap, plain_len: (group.0 == 0).then_some(len) }
        });
        let page = MapPage { group, leader, entries };
        let stands = standing_page.is_some_and(|standing| standing == page);
        // A replay before this one may have left it as it was, and removed the log that said what it had been.
        if foreign_tag && !stands {
            return Err(foreign(group));
        }
        let written = known.written.iter().filter(|(slot, (_, entry, _))| page.entries[**slot] == *entry);
        plan.blocks.extend(written.map(|(_, (block, _, stretch))| (*block, *stretch)));
        if !stands {
            plan.pages.push((group, self.keys.seal_page(&page)));
        }
        Ok(())
    }

    fn set_span(&self, bitmap: &mut Bitmap, leader: GroupIndex, known: &Group, len: u64) {
        for (group, exists) in &known.span {
            set_bit(bitmap, GroupIndex(*group), *exists);
        }
        for group in (groups_in(len).max(leader.0 + 1)..leader.0 + LEADER_SPAN).map(GroupIndex) {
            if bit(bitmap, group) {
                set_bit(bitmap, group, false);
            }
        }
    }

    /// The entry of a block; where its data never reached its place, the hole that it was.
    fn entry(&self, block: BlockIndex, entry: Entry, source: Source, len: u64) -> Result<Entry> {
        match source {
            Source::Hole => Ok(Entry::HOLE),
            _ if block.len_in(len) == 0 => Ok(Entry::HOLE),
            Source::Log(_) => Ok(entry),
            Source::InPlace => {
                let mut buf = zeroize::Zeroizing::new([0; BLOCK]);
                let text = &mut buf[..block.len_in(len)];
                let whole = self.lower.read_at(text, block.disk_start())? == text.len();
                let opens = whole && self.keys.open_block(block, &entry, text).is_ok();
                Ok(if opens { entry } else { Entry::HOLE })
            }
        }
    }

    /// Writes what was planned.
    fn fill(&self, plan: &Plan) -> io::Result<()> {
        let modified = match self.history.modified {
            Some((_, time)) => Some(time),
            None => self.lower.modified()?,
        };
        if let Some(sealed) = plan.inline {
            self.lower.write_at(&[IoSlice::new(&self.log_bytes(sealed)?)], 0)?;
        }
        for (block, stretch) in &plan.blocks {
            self.lower.write_at(&[IoSlice::new(&self.log_bytes(*stretch)?)], block.disk_start())?;
        }
        for (group, page) in &plan.pages {
            self.lower.write_at(&[IoSlice::new(&page[..])], group.disk_start())?;
        }
        if let Some(len) = plan.len.map(disk_len)
            && self.lower.len()? != len
        {
            self.lower.set_len(len)?;
        }
        modified.map_or(Ok(()), |time| self.lower.set_modified(time))
    }
}

/// Entries of blocks behind the end are zero.
fn clear_behind(entries: &mut Entries, group: GroupIndex, len: u64) {
    let first = group.first_block().0;
    for slot in (0..GROUP_BLOCKS).filter(|slot| BlockIndex(first + *slot as u64).len_in(len) == 0) {
        entries[slot] = Entry::HOLE;
    }
}

fn mismatch(group: GroupIndex, why: &str) -> ContentError {
    Fault::Page { group, why: format!("{why}; the journal's changes were not brought in") }.into()
}

fn foreign(group: GroupIndex) -> ContentError {
    mismatch(group, "it is none of the pages that the journal's records were made for")
}
