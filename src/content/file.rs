//! The open file: what is shared by all handles of an inode.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::{Mutex, MutexGuard, RwLock, RwLockWriteGuard};
use zeroize::Zeroizing;

use super::checkpoint::tag_of;
use super::groups::{Groups, Loaded};
use super::journal::{Appended, Journal};
use super::lease::Turnstile;
use super::pending::{Keeper, Pending};
use super::sync::Unsynced;
use super::write::{BLOCKS_AT_ONCE, SPAN_PLAIN};
use super::{ContentError, Fault, Result};
use crate::crypto::FileKeys;
use crate::format::ids::FileId;
use crate::format::inline::{InlineHead, KIND_INLINE};
use crate::format::journal::Draft;
use crate::format::layout::{BLOCK_U64, GROUP_PLAIN, GroupIndex, INLINE_HEAD, MAP_PAGE, disk_len, is_inline};
use crate::format::map::KIND_MAP;
use crate::vault::LowerFile;

/// How a file lies on the lower filesystem.
pub(super) enum Form {
    /// One record; here its plaintext.
    Inline(Zeroizing<Vec<u8>>),
    /// Groups.
    Grouped,
}

/// How often a change is tried again when space ran out: a checkpoint frees the journal's, and what was punched or cut.
const ROOM_TRIES: usize = 2;

/// Where a file is, for a replay to find it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LowerPlace {
    /// Its lower inode number.
    pub inode: u64,
    /// Its lower path from the vault's top; empty where that is not known.
    pub path: Vec<u8>,
}

/// What ties a file to a journal.
pub struct Link {
    /// The journal.
    pub journal: Arc<Journal>,
    /// The file's id.
    pub id: FileId,
    /// Where the file is now.
    pub place: Box<dyn Fn() -> LowerPlace + Send + Sync>,
}

/// A `Link` as the file keeps it: the journal holds files, and files do not hold the journal.
struct Tie {
    journal: Weak<Journal>,
    id: FileId,
    place: Box<dyn Fn() -> LowerPlace + Send + Sync>,
}

/// An open encrypted file. All handles of one inode share one `File`; every method may be called at once from
/// any thread.
pub struct File {
    lower: RwLock<Arc<dyn LowerFile>>,
    keys: Arc<FileKeys>,
    /// Shared: reads, and writes that change whole blocks. Exclusive: everything else.
    pub(super) gate: RwLock<Form>,
    turnstile: Turnstile,
    /// Authenticated length. Grows under the slot of group 0 or the exclusive gate; shrinks under the latter.
    plain_len: AtomicU64,
    groups: Groups,
    /// The lower file was found longer than it should be: a crash. Cut before the first change.
    overlong: AtomicBool,
    /// Length of the lower file when it was opened and found overlong; 0 otherwise, and once it was cut.
    found: AtomicU64,
    link: Option<Tie>,
    me: OnceLock<Weak<Self>>,
    /// Whether changes go through the journal. Changes under the exclusive gate.
    journaled: AtomicBool,
    pending: Mutex<Pending>,
    /// Whether some block may stand in the journal.
    overlay: AtomicBool,
    unsynced: Unsynced,
    one_fill: Mutex<()>,
    times: Mutex<()>,
    /// The newest record, for `Journal::sync`.
    ticket: AtomicU64,
    /// The newest generation of the journal that knows where the file is.
    named_in: AtomicU64,
    /// The newest generation that holds a time of the file which a replay would set; 0: none does.
    times_in: AtomicU64,
}

impl std::fmt::Debug for File {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("File").field("plain_len", &self.len()).finish_non_exhaustive()
    }
}

impl File {
    /// Writes the record of an empty file into an empty lower file. Without a journal.
    pub fn create(lower: Box<dyn LowerFile>, keys: Arc<FileKeys>) -> Result<Self> {
        let file = Self::with(lower, keys, Form::Inline(Zeroizing::default()), 0);
        file.put_record(&mut file.gate.write(), Zeroizing::default())?;
        Ok(file)
    }

    /// As `create`. Until the file is made durable, nothing durable can be lost: it is changed in place.
    pub fn create_linked(lower: Box<dyn LowerFile>, keys: Arc<FileKeys>, link: Link) -> Result<Arc<Self>> {
        let journal = Arc::clone(&link.journal);
        let file = Self::create(lower, keys)?.linked(link);
        file.mark_unsynced();
        journal.made(&file);
        Ok(file)
    }

    /// As `open`, with a journal for its changes. `durable`: the lower file is known to be durable as it lies.
    pub fn open_linked(
        lower: Box<dyn LowerFile>,
        keys: Arc<FileKeys>,
        link: Link,
        durable: bool,
    ) -> Result<Arc<Self>> {
        let file = Self::open(lower, keys)?.linked(link);
        file.journaled.store(true, Ordering::Release);
        if !durable {
            file.mark_unsynced();
        }
        // An earlier opening may have left a time in the journal that counts no more: a sync makes that sure.
        file.ticket.store(file.journal()?.landed(), Ordering::Release);
        file.pending().high = file.len();
        Ok(file)
    }

    fn linked(mut self, link: Link) -> Arc<Self> {
        let Link { journal, id, place } = link;
        self.link = Some(Tie { journal: Arc::downgrade(&journal), id, place });
        let file = Arc::new(self);
        let _ = file.me.set(Arc::downgrade(&file));
        file
    }

    /// Opens an existing lower file: reads and verifies its first page. Without a journal.
    pub fn open(lower: Box<dyn LowerFile>, keys: Arc<FileKeys>) -> Result<Self> {
        let disk = lower.len()?;
        let mut page = [0; MAP_PAGE];
        // No more than there is: a call less to learn that the file ends.
        let most = usize::try_from(disk).map_or(MAP_PAGE, |n| n.min(MAP_PAGE));
        let read = lower.read_at(&mut page[..most], 0)?;
        let file = match page[0] {
            _ if read < INLINE_HEAD => {
                return Err(Fault::Cut { found: disk, expected: INLINE_HEAD as u64 }.into());
            }
            KIND_INLINE => Self::open_inline(lower, keys, &page[..read])?,
            KIND_MAP if read < MAP_PAGE => {
                return Err(Fault::Cut { found: disk, expected: MAP_PAGE as u64 }.into());
            }
            _ => Self::open_grouped(lower, keys, &page)?,
        };
        let expected = disk_len(file.len());
        if disk < expected {
            return Err(Fault::Cut { found: disk, expected }.into());
        }
        if disk > expected {
            file.overlong.store(true, Ordering::Relaxed);
            file.found.store(disk, Ordering::Relaxed);
        }
        Ok(file)
    }

    fn open_inline(lower: Box<dyn LowerFile>, keys: Arc<FileKeys>, bytes: &[u8]) -> Result<Self> {
        let fault = |why: String| ContentError::Damaged(Fault::Inline(why));
        let head = InlineHead::decode(bytes).map_err(|e| fault(e.to_string()))?;
        let end = INLINE_HEAD + usize::from(head.plain_len);
        let Some(sealed) = bytes.get(INLINE_HEAD..end) else {
            return Err(Fault::Cut { found: bytes.len() as u64, expected: end as u64 }.into());
        };
        let mut plain = Zeroizing::new(sealed.to_vec());
        keys.open_inline(&head, &mut plain).map_err(|e| fault(e.to_string()))?;
        let len = u64::from(head.plain_len);
        let file = Self::with(lower, keys, Form::Inline(plain), len);
        file.pending().first = head.tag;
        Ok(file)
    }

    fn open_grouped(lower: Box<dyn LowerFile>, keys: Arc<FileKeys>, page: &[u8; MAP_PAGE]) -> Result<Self> {
        let first = GroupIndex(0);
        let tag = tag_of(page);
        let fault = |why: String| ContentError::Damaged(Fault::Page { group: first, why });
        let page = keys.open_page(page, first).map_err(|e| fault(e.to_string()))?;
        let leader = page.leader.ok_or_else(|| fault("group 0 is no leader".into()))?;
        let len = leader.plain_len.ok_or_else(|| fault("group 0 has no length".into()))?;
        let file = Self::with(lower, keys, Form::Grouped, len);
        file.groups.set_bitmap(first, Box::new(leader.bitmap));
        *file.groups.write(first) = Some(Loaded { entries: page.entries, tag, stale: 0 });
        Ok(file)
    }

    fn with(lower: Box<dyn LowerFile>, keys: Arc<FileKeys>, form: Form, len: u64) -> Self {
        Self {
            lower: RwLock::new(Arc::from(lower)),
            keys,
            gate: RwLock::new(form),
            turnstile: Turnstile::default(),
            plain_len: AtomicU64::new(len),
            groups: Groups::new(),
            overlong: AtomicBool::new(false),
            found: AtomicU64::new(0),
            link: None,
            me: OnceLock::new(),
            journaled: AtomicBool::new(false),
            pending: Mutex::default(),
            overlay: AtomicBool::new(false),
            unsynced: Unsynced::default(),
            one_fill: Mutex::default(),
            times: Mutex::default(),
            ticket: AtomicU64::new(0),
            named_in: AtomicU64::new(0),
            times_in: AtomicU64::new(0),
        }
    }

    /// Reads anew what is kept of a file that others may have changed: its form, its length, its map. Of a file without
    /// a journal, whose changes are all in the lower file.
    pub fn refresh(&self) -> Result<()> {
        if self.link.is_some() {
            return Ok(());
        }
        let mut form = self.gate.write();
        let fresh = Self::open(Box::new(self.lower()), Arc::clone(&self.keys))?;
        self.groups.take_over(&fresh.groups);
        self.pending().first = fresh.pending().first;
        self.set_plain_len(fresh.len());
        self.overlong.store(fresh.is_overlong(), Ordering::Relaxed);
        self.found.store(fresh.found.load(Ordering::Relaxed), Ordering::Relaxed);
        *form = fresh.gate.into_inner();
        Ok(())
    }

    /// Puts a writable lower file in the place of one opened read-only.
    pub fn replace_lower(&self, lower: Box<dyn LowerFile>) {
        *self.lower.write() = Arc::from(lower);
    }

    /// Length of the lower file as it was opened, where that was longer than it should be and nobody has cut it since:
    /// whoever judged the file by that length was misled.
    pub fn found_overlong(&self) -> Option<u64> {
        Some(self.found.load(Ordering::Relaxed)).filter(|found| *found != 0)
    }

    /// Authenticated length in bytes.
    #[expect(clippy::len_without_is_empty, reason = "a file, not a collection")]
    pub fn len(&self) -> u64 {
        self.plain_len.load(Ordering::Acquire)
    }

    /// From now on the file is changed through its journal.
    pub(super) fn end_of_freshness(&self) -> Result<()> {
        if self.link.is_none() || self.journaled.load(Ordering::Acquire) {
            return Ok(());
        }
        let _form = self.change_gate()?;
        self.pending().high = self.len();
        self.journaled.store(true, Ordering::Release);
        Ok(())
    }

    /// Called before `from..` of a file that will be at least `end` long is changed. What a killed process leaves of a
    /// block that it overwrote in place does not open, and map pages that it wrote before the length speak for blocks
    /// behind the end: a file stays fresh while it only grows by whole blocks, and the page with the length is the only
    /// one of those that it had that changes.
    pub(super) fn overwrites(&self, from: u64, end: u64) -> Result<()> {
        let len = self.len();
        if is_inline(len.max(end)) {
            return Ok(());
        }
        let one_page = len <= GROUP_PLAIN || len.is_multiple_of(GROUP_PLAIN) && len <= SPAN_PLAIN;
        let whole = len == 0 || !is_inline(len) && len.is_multiple_of(BLOCK_U64);
        let at_once = end.saturating_sub(from) <= BLOCKS_AT_ONCE * BLOCK_U64;
        if from >= len && one_page && whole && at_once { Ok(()) } else { self.end_of_freshness() }
    }

    /// Whether changes go through the journal; stays so while the gate is held.
    pub(super) fn is_journaled(&self) -> bool {
        self.journaled.load(Ordering::Acquire)
    }

    /// Whether some of the file stands in the journal only, or a replay would set a time of it.
    pub fn is_pending(&self) -> bool {
        self.link.is_some() && !self.is_done(&self.pending())
    }

    /// Whether nothing of the file is waiting for the journal. Whoever must see the times' end takes `pending` after it.
    pub(super) fn is_done(&self, pending: &Pending) -> bool {
        pending.is_empty() && self.times_in() == 0
    }

    /// Keeps `keeper` until nothing of the file is pending, and asks that this be soon. Gives back what is to be
    /// dropped now: `keeper` itself where nothing is pending, or one that was kept already.
    pub fn keep_until_done(&self, keeper: Keeper) -> Option<Keeper> {
        let Ok(journal) = self.journal() else { return Some(keeper) };
        let before = {
            let mut pending = self.pending();
            if self.is_done(&pending) {
                return Some(keeper);
            }
            pending.keeper.replace(keeper)
        };
        journal.closed();
        before
    }

    /// The file has another name now, or none (`gone`): a replay shall find it, or not look for it.
    pub fn moved(&self, gone: bool) {
        let Some(link) = &self.link else { return };
        self.mark_attributes();
        if !self.is_pending() {
            return;
        }
        let draft = if gone { Draft::gone(link.id) } else { self.name() };
        if let Err(e) = self.journal().and_then(|journal| journal.note(self, draft)) {
            // The search for it takes longer then; nothing is lost.
            log::debug!("file {}: its new name is not in the journal: {e}", link.id);
        }
    }

    /// Keeps a checkpoint from writing to the lower file and setting its times back, while the caller sets them.
    pub fn hold_times(&self) -> MutexGuard<'_, ()> {
        self.times.lock()
    }

    /// Runs a change of content or length when the journal has room for it and nobody keeps changes off.
    pub(super) fn with_room(&self, change: impl Fn() -> Result<()>) -> Result<()> {
        let journal = self.admitted()?;
        let _going = self.turnstile.enter();
        with_space(journal.as_deref(), change)
    }

    /// As `with_room`, for what changes neither.
    pub(super) fn with_room_beside_leases(&self, change: impl Fn() -> Result<()>) -> Result<()> {
        with_space(self.admitted()?.as_deref(), change)
    }

    /// The journal, with room, of a file that has one.
    fn admitted(&self) -> Result<Option<Arc<Journal>>> {
        if self.link.is_none() {
            return Ok(None);
        }
        let journal = self.journal()?;
        journal.admit()?;
        Ok(Some(journal))
    }

    /// The journal, which a file that still needs it must find.
    pub(super) fn journal(&self) -> std::io::Result<Arc<Journal>> {
        self.link.as_ref().and_then(|link| link.journal.upgrade()).ok_or_else(no_journal)
    }

    /// Appends a record of this file; `pages`: how many pages it makes pending.
    pub(super) fn record(&self, draft: Draft, pages: usize) -> Result<Appended> {
        let me = self.me.get().and_then(Weak::upgrade).ok_or_else(no_journal)?;
        let appended = self.journal()?.append(&me, draft, pages)?;
        self.raise_ticket(appended.ticket);
        Ok(appended)
    }

    /// Where the file is, as a record.
    pub(super) fn name(&self) -> Draft {
        let place = self.link.as_ref().map(|link| (link.place)()).unwrap_or_default();
        Draft::name(self.id(), place.inode, &place.path)
    }

    pub(super) fn id(&self) -> FileId {
        self.link.as_ref().map_or(FileId([0; FileId::LEN]), |link| link.id)
    }

    /// The newest record of the journal: its generation and sequence number.
    pub(super) fn position(&self) -> (u64, u64) {
        self.journal().map_or((0, 0), |journal| journal.position())
    }

    pub(super) fn named_in(&self) -> u64 {
        self.named_in.load(Ordering::Acquire)
    }

    pub(super) fn set_named_in(&self, generation: u64) {
        self.named_in.store(generation, Ordering::Release);
    }

    /// See the field.
    pub(super) fn times_in(&self) -> u64 {
        self.times_in.load(Ordering::Acquire)
    }

    /// Under the journal's lock.
    pub(super) fn set_times_in(&self, generation: u64) {
        self.times_in.store(generation, Ordering::Release);
    }

    pub(super) fn ticket(&self) -> u64 {
        self.ticket.load(Ordering::Acquire)
    }

    pub(super) fn raise_ticket(&self, ticket: u64) {
        self.ticket.fetch_max(ticket, Ordering::AcqRel);
    }

    pub(super) fn turnstile(&self) -> &Turnstile {
        &self.turnstile
    }

    pub(super) fn is_linked(&self) -> bool {
        self.link.is_some()
    }

    pub(super) fn unsynced(&self) -> &Unsynced {
        &self.unsynced
    }

    pub(super) fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock()
    }

    /// Whether to look for blocks in the journal.
    pub(super) fn has_overlay(&self) -> bool {
        self.overlay.load(Ordering::Acquire)
    }

    pub(super) fn set_overlay(&self, some: bool) {
        self.overlay.store(some, Ordering::Release);
    }

    pub(super) fn one_fill(&self) -> MutexGuard<'_, ()> {
        self.one_fill.lock()
    }

    /// Lengthens the lower file where it is shorter than a file of `len` bytes needs it.
    pub(super) fn stretch_lower(&self, len: u64) -> Result<()> {
        let lower = self.lower();
        if self.is_journaled() && lower.len()? >= disk_len(len) {
            return Ok(());
        }
        lower.set_len(disk_len(len))?;
        self.mark_unsynced();
        Ok(())
    }

    pub(super) fn set_plain_len(&self, len: u64) {
        self.plain_len.store(len, Ordering::Release);
    }

    pub(super) fn lower(&self) -> Arc<dyn LowerFile> {
        Arc::clone(&self.lower.read())
    }

    pub(super) fn keys(&self) -> &FileKeys {
        &self.keys
    }

    pub(super) fn groups(&self) -> &Groups {
        &self.groups
    }

    /// The exclusive gate, for a change; the length of the lower file is right when it is given.
    pub(super) fn change_gate(&self) -> Result<RwLockWriteGuard<'_, Form>> {
        let form = self.gate.write();
        self.mend_length()?;
        Ok(form)
    }

    /// Cuts the lower file, unless what its old map speaks for still needs the room.
    fn cut_lower(&self, len: u64) -> Result<()> {
        let lower = self.lower();
        if !self.is_journaled() {
            return Ok(lower.set_len(disk_len(len))?);
        }
        let needed = {
            let pending = self.pending();
            len.max(pending.high).max(pending.flight.as_ref().map_or(0, |f| f.len))
        };
        if lower.len()? > disk_len(needed) {
            lower.set_len(disk_len(needed))?;
        }
        Ok(())
    }

    /// Whether the lower file is known to be longer than it should be.
    pub(super) fn is_overlong(&self) -> bool {
        self.overlong.load(Ordering::Relaxed)
    }

    /// Notes that the lower file may be longer than it should be.
    pub(super) fn mark_overlong(&self) {
        self.overlong.store(true, Ordering::Relaxed);
    }

    /// Cuts what a crash or a failed write left behind the end, so that `stat` of the lower file tells the length
    /// again. Under the exclusive gate.
    pub(super) fn mend_length(&self) -> Result<()> {
        if self.is_overlong() {
            let len = self.len();
            self.cut_lower(len)?;
            self.groups.truncate(GroupIndex::of(len.saturating_sub(1)));
            self.overlong.store(false, Ordering::Relaxed);
            self.found.store(0, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// Runs a change; once more where space ran out and a checkpoint could free some.
fn with_space(journal: Option<&Journal>, change: impl Fn() -> Result<()>) -> Result<()> {
    let mut done = change();
    let Some(journal) = journal else { return done };
    for _ in 0..ROOM_TRIES {
        match &done {
            Err(ContentError::Io(e)) if matches!(e.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT)) => {
                if journal.checkpoint().is_err() {
                    break;
                }
                done = change();
            }
            _ => break,
        }
    }
    done
}

fn no_journal() -> std::io::Error {
    std::io::Error::other("the file's journal has ended")
}
