//! The open file: what is shared by all handles of an inode.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{RwLock, RwLockWriteGuard};
use zeroize::Zeroizing;

use super::groups::Groups;
use super::{ContentError, Fault, Result};
use crate::crypto::FileKeys;
use crate::format::inline::{InlineHead, KIND_INLINE};
use crate::format::layout::{GroupIndex, INLINE_HEAD, MAP_PAGE, disk_len};
use crate::format::map::KIND_MAP;
use crate::vault::LowerFile;

/// How a file lies on the lower filesystem.
pub(super) enum Form {
    /// One record; here its plaintext.
    Inline(Zeroizing<Vec<u8>>),
    /// Groups.
    Grouped,
}

/// An open encrypted file. All handles of one inode share one `File`; every method may be called at once from
/// any thread.
pub struct File {
    lower: RwLock<Arc<dyn LowerFile>>,
    keys: Arc<FileKeys>,
    /// Shared: reads, and writes that change whole blocks. Exclusive: everything else.
    pub(super) gate: RwLock<Form>,
    /// Authenticated length. Grows under the slot of group 0 or the exclusive gate; shrinks under the latter.
    plain_len: AtomicU64,
    groups: Groups,
    /// The lower file was found longer than it should be: a crash. Cut before the first change.
    overlong: AtomicBool,
    /// Length of the lower file when it was opened and found overlong; 0 otherwise, and once it was cut.
    found: AtomicU64,
}

impl std::fmt::Debug for File {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("File").field("plain_len", &self.len()).finish_non_exhaustive()
    }
}

impl File {
    /// Writes the record of an empty file into an empty lower file.
    pub fn create(lower: Box<dyn LowerFile>, keys: Arc<FileKeys>) -> Result<Self> {
        let file = Self::with(lower, keys, Form::Inline(Zeroizing::default()), 0);
        file.put_record(&[], 0)?;
        Ok(file)
    }

    /// Opens an existing lower file: reads and verifies its first page.
    pub fn open(lower: Box<dyn LowerFile>, keys: Arc<FileKeys>) -> Result<Self> {
        let disk = lower.len()?;
        let mut page = [0; MAP_PAGE];
        let read = lower.read_at(&mut page, 0)?;
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
        Ok(Self::with(lower, keys, Form::Inline(plain), len))
    }

    fn open_grouped(lower: Box<dyn LowerFile>, keys: Arc<FileKeys>, page: &[u8; MAP_PAGE]) -> Result<Self> {
        let first = GroupIndex(0);
        let fault = |why: String| ContentError::Damaged(Fault::Page { group: first, why });
        let page = keys.open_page(page, first).map_err(|e| fault(e.to_string()))?;
        let leader = page.leader.ok_or_else(|| fault("group 0 is no leader".into()))?;
        let len = leader.plain_len.ok_or_else(|| fault("group 0 has no length".into()))?;
        let file = Self::with(lower, keys, Form::Grouped, len);
        file.groups.set_bitmap(first, Box::new(leader.bitmap));
        *file.groups.write(first) = Some(page.entries);
        Ok(file)
    }

    fn with(lower: Box<dyn LowerFile>, keys: Arc<FileKeys>, form: Form, len: u64) -> Self {
        Self {
            lower: RwLock::new(Arc::from(lower)),
            keys,
            gate: RwLock::new(form),
            plain_len: AtomicU64::new(len),
            groups: Groups::new(),
            overlong: AtomicBool::new(false),
            found: AtomicU64::new(0),
        }
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

    /// Makes everything written durable.
    pub fn sync(&self, data_only: bool) -> Result<()> {
        Ok(self.lower().sync(data_only)?)
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
            self.lower().set_len(disk_len(len))?;
            self.groups.truncate(GroupIndex::of(len.saturating_sub(1)));
            self.overlong.store(false, Ordering::Relaxed);
            self.found.store(0, Ordering::Relaxed);
        }
        Ok(())
    }
}
