//! Envelope mode: data keys are wrapped in the process, under key-encryption keys (KEKs) of the vault, which the
//! provider wraps. As S3 Bucket Keys do: one call of the provider for many files.
//!
//! KEKs stand in `.envelopefs/keks.toml`. The newest one wraps; it is renewed by age and by count. An unwrapped KEK is
//! kept as long as an unwrapped data key (`key_cache`), then the provider is asked again.

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lru::LruCache;
use parking_lot::Mutex;

use super::edit;
use super::keyring::Shared;
use super::open::OpenError;
use super::table::{Row, Table, keep_hopeful};
use super::{KeyError, KeyInfo, Provider, WrapContext};
use crate::crypto::{DataKey, SealKey, Secret, VaultKey, derive};
use crate::format::config::ConfigError;
use crate::format::header::Wrapped;
use crate::format::ids::VaultId;
use crate::format::keks::{KEKS_FILE, Kek, KekFile, MAX_KEKS, MAX_KEKS_FILE};
use crate::kms;

/// URI of the row of the volume config that stands for the KEKs.
pub(super) const URI: &str = "envelope:";
/// Data keys that a mount reserves in the file at once: a write of it for so many creates.
const PORTION: u64 = 1 << 16;
/// Unwrapped KEKs that are kept: old files use old ones.
const KEPT: NonZeroUsize = NonZeroUsize::new(64).expect("not zero");
/// How often the file is looked at for what others changed.
const LOOK: Duration = Duration::from_secs(1);
/// How long a renewal that failed is put off.
const PUT_OFF: Duration = Duration::from_secs(60);
/// Tries of a change that others keep overtaking.
const TRIES: usize = 8;

/// When a KEK is renewed.
#[derive(Clone, Copy, Debug)]
pub struct Renewal {
    /// Age of the newest KEK.
    pub age: Duration,
    /// Data keys that one KEK wraps. Far below where random file ids under one key would meet.
    pub count: u64,
}

impl Default for Renewal {
    fn default() -> Self {
        Self { age: Duration::from_secs(30 * 24 * 3600), count: 1 << 24 }
    }
}

/// Wraps under the newest KEK, opens under any.
pub(super) struct Envelope {
    shared: OnceLock<Weak<Shared>>,
    state: Mutex<State>,
}

struct State {
    list: Option<(Instant, Arc<List>)>,
    open: LruCache<u16, (Arc<SealKey>, Instant)>,
    /// Data keys left of the portion reserved under a KEK.
    left: (u16, u64),
    put_off: Option<Instant>,
    /// Counts calls of [`Envelope::forget`]: what was read before one does not come back after it.
    epoch: u64,
}

/// The file as it was read: its text, to be replaced, and what it says.
struct List {
    text: Option<Vec<u8>>,
    file: KekFile,
}

impl Envelope {
    pub(super) fn new() -> Self {
        let state = State { list: None, open: LruCache::new(KEPT), left: (0, 0), put_off: None, epoch: 0 };
        Self { shared: OnceLock::new(), state: Mutex::new(state) }
    }

    /// Says whose KEKs these are. Before that nothing is wrapped or opened.
    pub(super) fn attach(&self, shared: &Arc<Shared>) {
        let _ = self.shared.set(Arc::downgrade(shared));
    }

    fn shared(&self) -> Result<Arc<Shared>, KeyError> {
        self.shared
            .get()
            .and_then(Weak::upgrade)
            .ok_or_else(|| KeyError::NotFound("the vault of these key-encryption keys is not open".into()))
    }

    /// The list, at most [`LOOK`] old.
    fn list(&self, shared: &Shared) -> Result<Arc<List>, KeyError> {
        if let Some((at, list)) = &self.state.lock().list
            && at.elapsed() < LOOK
        {
            return Ok(list.clone());
        }
        self.reread(shared)
    }

    fn reread(&self, shared: &Shared) -> Result<Arc<List>, KeyError> {
        let home = shared.home.as_ref().ok_or(KeyError::Foreign)?;
        let epoch = self.state.lock().epoch;
        let (text, file) = read(&home.dir, shared.vault, &shared.vault_key).map_err(refused)?;
        let list = Arc::new(List { text, file });
        let mut state = self.state.lock();
        if state.epoch == epoch {
            state.list = Some((Instant::now(), list.clone()));
        }
        Ok(list)
    }

    /// Forgets which KEK is the newest and what is reserved under it: a wrap that begins from now on reads the file
    /// as it is. Unwrapped KEKs are kept, for the files under them.
    pub(super) fn forget(&self) {
        let mut state = self.state.lock();
        state.epoch += 1;
        (state.list, state.left, state.put_off) = (None, (0, 0), None);
    }

    /// The KEK with a number, unwrapped by whatever row can.
    fn kek(&self, shared: &Shared, number: u16) -> Result<Arc<SealKey>, KeyError> {
        if let Some((key, since)) = self.state.lock().open.get(&number)
            && since.elapsed() <= shared.cache.max_age()
        {
            return Ok(key.clone());
        }
        let mut list = self.list(shared)?;
        if list.file.find(number).is_none() {
            list = self.reread(shared)?;
        }
        let kek = list
            .file
            .find(number)
            .ok_or_else(|| KeyError::NotFound(format!("key-encryption key {number} of this vault")))?;
        let raw = unwrap(shared, &shared.table(), kek)?;
        let key = sealing(&raw);
        self.state.lock().open.put(number, (key.clone(), Instant::now()));
        Ok(key)
    }

    /// The KEK for `count` new data keys, with that many reserved in the file.
    fn newest(&self, shared: &Arc<Shared>, count: u64) -> Result<(u16, Arc<SealKey>), KeyError> {
        for _ in 0..TRIES {
            {
                let mut state = self.state.lock();
                let (number, left) = state.left;
                // Somebody else may have started another one.
                let newest = state.list.as_ref().and_then(|(_, list)| list.file.newest());
                let good =
                    newest.is_some_and(|kek| kek.number == number && !is_old(shared, kek, state.put_off));
                if left >= count && good {
                    state.left = (number, left - count);
                    drop(state);
                    return Ok((number, self.kek(shared, number)?));
                }
            }
            self.reserve(shared, count)?;
        }
        Err(KeyError::Unreachable(format!("{KEKS_FILE} is changed by others all the time")))
    }

    /// Takes a portion under the newest KEK, or under a new one where that is old or full.
    fn reserve(&self, shared: &Arc<Shared>, count: u64) -> Result<(), KeyError> {
        let (put_off, epoch) = {
            let state = self.state.lock();
            (state.put_off, state.epoch)
        };
        let list = self.reread(shared)?;
        let mut file = list.file.clone();
        let mut fresh = None;
        let full = |kek: &Kek| kek.reserved >= shared.renewal.count;
        if file.newest().is_none_or(|kek| is_old(shared, kek, put_off) || full(kek)) {
            // A row may have come since: the new KEK must be its own, too.
            shared.refresh();
            match renew(shared, &mut file) {
                Ok(key) => fresh = Some(key),
                Err(error) if file.newest().is_some() => {
                    log::warn!("the key-encryption key is not renewed and goes on being used: {error}");
                    self.state.lock().put_off = Some(Instant::now());
                }
                Err(error) => return Err(error),
            }
        }
        let portion = PORTION.min(shared.renewal.count).max(count);
        let newest = file.keks.last_mut().ok_or(KeyError::Foreign)?;
        newest.reserved = newest.reserved.saturating_add(portion);
        let number = newest.number;
        if write(shared, &list, &file)? {
            let mut state = self.state.lock();
            state.list = None;
            if state.epoch == epoch {
                state.left = (number, portion);
            }
            if let Some(key) = fresh {
                state.put_off = None;
                state.open.put(number, (sealing(&key), Instant::now()));
            }
            drop(state);
            self.reread(shared)?;
        }
        Ok(())
    }

    /// Starts a new KEK now, for the rows that are active in the volume config as it is at this moment: what a retired
    /// recipient knows wraps nothing any more.
    pub(super) fn renew_now(&self) -> Result<u16, KeyError> {
        let shared = self.shared()?;
        shared.refresh();
        for _ in 0..TRIES {
            let list = self.reread(&shared)?;
            let mut file = list.file.clone();
            renew(&shared, &mut file)?;
            if write(&shared, &list, &file)? {
                self.forget();
                return Ok(file.newest().map_or(0, |kek| kek.number));
            }
        }
        Err(KeyError::Unreachable(format!("{KEKS_FILE} is changed by others all the time")))
    }

    /// Wraps every KEK for the rows in `rows` too, and drops copies for rows that `keep` refuses. A KEK that would be
    /// left without a copy ends it with nothing changed: its files would be lost.
    pub(super) fn share(&self, rows: &[Arc<Row>], keep: impl Fn(u8) -> bool) -> Result<(), KeyError> {
        self.change(|shared, file| {
            for kek in &mut file.keks {
                give_copies(shared, kek, rows)?;
                kek.wrapped.retain(|(index, _)| keep(*index));
                if kek.wrapped.is_empty() {
                    return Err(KeyError::Denied(format!(
                        "key-encryption key {} is wrapped for no key that stays: its files would be lost",
                        kek.number
                    )));
                }
            }
            Ok(())
        })
    }

    /// Wraps every KEK for a row that the volume config does not have yet. False, with nothing changed, where a KEK has a
    /// copy for its number: somebody else is about to give that to a key of his.
    pub(super) fn share_with_new(&self, row: &Arc<Row>) -> Result<bool, KeyError> {
        self.change(|shared, file| {
            if file.keks.iter().any(|kek| has_copy(kek, row.index)) {
                return Ok(false);
            }
            file.keks.iter_mut().try_for_each(|kek| give_copies(shared, kek, std::slice::from_ref(row)))?;
            Ok(true)
        })
    }

    /// Changes the list: read, changed, replaced where nobody else did meanwhile, with the rows of the volume config as it
    /// is.
    fn change<T>(&self, make: impl Fn(&Shared, &mut KekFile) -> Result<T, KeyError>) -> Result<T, KeyError> {
        let shared = self.shared()?;
        shared.refresh();
        for _ in 0..TRIES {
            let list = self.reread(&shared)?;
            let mut file = list.file.clone();
            let made = make(&shared, &mut file)?;
            if file == list.file || write(&shared, &list, &file)? {
                return Ok(made);
            }
        }
        Err(KeyError::Unreachable(format!("{KEKS_FILE} is changed by others all the time")))
    }

    /// The number behind the last row that a KEK has a copy for.
    pub(super) fn next_row(&self) -> Result<u16, KeyError> {
        let list = self.reread(&*self.shared()?)?;
        let rows = list.file.keks.iter().flat_map(|kek| &kek.wrapped);
        Ok(rows.map(|(index, _)| u16::from(*index) + 1).max().unwrap_or(0))
    }
}

impl Provider for Envelope {
    fn describe(&self) -> Result<KeyInfo, KeyError> {
        let shared = self.shared()?;
        let version = self.list(&shared)?.file.newest().map(|kek| kek.number);
        let key_id = format!("key-encryption keys in .envelopefs/{KEKS_FILE}");
        Ok(KeyInfo { uri: URI.to_owned(), key_id, version })
    }

    fn generate(&self, contexts: &[WrapContext]) -> Result<Vec<(DataKey, Wrapped)>, KeyError> {
        let shared = self.shared()?;
        let (number, key) = self.newest(&shared, contexts.len() as u64)?;
        let make = |context: &WrapContext| {
            let data = Secret::random();
            let wrapped = seal(&key, number, &data, context)?;
            Ok((DataKey(data), wrapped))
        };
        contexts.iter().map(make).collect()
    }

    fn wrap(&self, data: &Secret<32>, context: &WrapContext) -> Result<Wrapped, KeyError> {
        let (number, key) = self.newest(&self.shared()?, 1)?;
        seal(&key, number, data, context)
    }

    fn unwrap(&self, wrapped: &Wrapped, context: &WrapContext) -> Result<Secret<32>, KeyError> {
        let (Wrapped::Compact { version, bytes }, Some(file)) = (wrapped, context.file()) else {
            return Err(KeyError::Foreign);
        };
        let key = self.kek(&*self.shared()?, *version)?;
        let (text, tag) = bytes.split_last_chunk::<16>().ok_or(KeyError::Foreign)?;
        let mut data = Secret::from_slice(text).ok_or(KeyError::Foreign)?;
        key.open_with(&file.0, &canonical(context)?, data.expose_mut(), tag)
            .map_err(|_| KeyError::Foreign)?;
        Ok(data)
    }

    fn wrapping_version(&self) -> Option<u16> {
        let shared = self.shared().ok()?;
        self.list(&shared).ok()?.file.newest().map(|kek| kek.number)
    }
}

fn seal(key: &SealKey, number: u16, data: &Secret<32>, context: &WrapContext) -> Result<Wrapped, KeyError> {
    let file = context.file().ok_or_else(|| KeyError::Denied("data keys are made for files only".into()))?;
    let mut bytes = zeroize::Zeroizing::new([0; 48]);
    let (text, tag) = bytes.split_at_mut(32);
    text.copy_from_slice(data.expose());
    tag.copy_from_slice(&key.seal_with(&file.0, &canonical(context)?, text));
    Ok(Wrapped::Compact { version: number, bytes: *bytes })
}

/// Whether a KEK has had its time, and a renewal was not put off a moment ago.
fn is_old(shared: &Shared, kek: &Kek, put_off: Option<Instant>) -> bool {
    let resting = put_off.is_some_and(|at| at.elapsed() < PUT_OFF);
    !resting && now().saturating_sub(kek.created) >= shared.renewal.age.as_secs().max(1)
}

fn sealing(raw: &Secret<32>) -> Arc<SealKey> {
    Arc::new(SealKey::new(derive::hkdf(raw.expose(), &[], derive::ENVELOPE_KEY)))
}

fn canonical(context: &WrapContext) -> Result<Vec<u8>, KeyError> {
    kms::canonical(&context.encryption_context()).map_err(|e| KeyError::Denied(e.to_string()))
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Adds a KEK with the next number, wrapped for every active row.
fn renew(shared: &Shared, file: &mut KekFile) -> Result<Secret<32>, KeyError> {
    let number = file.newest().map_or(0, |kek| kek.number).checked_add(1);
    let number = number.filter(|_| file.keks.len() < MAX_KEKS).ok_or_else(|| {
        KeyError::Denied(format!("the vault has {MAX_KEKS} key-encryption keys, the most that are kept"))
    })?;
    let raw = Secret::random();
    let wrapped = shared
        .table()
        .keeping()
        .map(|row| Ok((row.index, wrap_for(row, &raw, shared.vault, number)?)))
        .collect::<Result<Vec<_>, KeyError>>()?;
    if wrapped.is_empty() {
        return Err(KeyError::NotFound("the volume config marks no wrapping key as active".into()));
    }
    log::info!("key-encryption key {number} is new");
    file.keks.push(Kek { number, created: now(), reserved: 0, wrapped });
    Ok(raw)
}

fn has_copy(kek: &Kek, row: u8) -> bool {
    kek.wrapped.iter().any(|(index, _)| *index == row)
}

/// Wraps a KEK for the rows that it has no copy for.
fn give_copies(shared: &Shared, kek: &mut Kek, rows: &[Arc<Row>]) -> Result<(), KeyError> {
    let missing: Vec<_> = rows.iter().filter(|row| !has_copy(kek, row.index)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let raw = unwrap(shared, &shared.table(), kek)?;
    for row in missing {
        kek.wrapped.push((row.index, wrap_for(row, &raw, shared.vault, kek.number)?));
    }
    Ok(())
}

fn wrap_for(row: &Row, raw: &Secret<32>, vault: VaultId, number: u16) -> Result<Vec<u8>, KeyError> {
    match row.call(|provider| provider.wrap(raw, &WrapContext::of_envelope(vault, number)))? {
        Wrapped::Blob(blob) => Ok(blob),
        Wrapped::Compact { .. } => Err(KeyError::Foreign),
    }
}

/// Near rows first: a recovery key that is here needs no network.
fn unwrap(shared: &Shared, table: &Table, kek: &Kek) -> Result<Secret<32>, KeyError> {
    let context = WrapContext::of_envelope(shared.vault, kek.number);
    let mut told = None;
    let mut copies: Vec<_> =
        kek.wrapped.iter().filter_map(|(i, blob)| Some((table.row(*i).ok()?, blob))).collect();
    copies.sort_by_key(|(row, _)| row.is_far());
    for (row, blob) in copies {
        if row.provider.is_ok() && !row.can_unwrap() {
            continue;
        }
        match row.unwrap(&Wrapped::Blob(blob.clone()), &context, &shared.calls) {
            Ok(key) => return Ok(key),
            Err(error) => keep_hopeful(&mut told, error),
        }
    }
    Err(told.unwrap_or_else(|| {
        KeyError::NotFound(format!("no wrapping key at hand opens key-encryption key {}", kek.number))
    }))
}

/// Reads and authenticates the list; a vault that has none yet has an empty one.
fn read(dir: &Path, vault: VaultId, key: &VaultKey) -> Result<(Option<Vec<u8>>, KekFile), OpenError> {
    let path = dir.join(crate::format::names::VAULT_DIR).join(KEKS_FILE).display().to_string();
    let Some(text) = edit::read(dir, KEKS_FILE, MAX_KEKS_FILE)? else {
        return Ok((None, KekFile { vault_id: vault, keks: Vec::new() }));
    };
    let signed = KekFile::parse(&text)
        .map_err(|source: ConfigError| OpenError::Config { path: path.clone(), source })?;
    if !derive::keks_mac_matches(key, signed.body, &signed.mac) || signed.file.vault_id != vault {
        return Err(OpenError::Tampered(path));
    }
    let file = signed.file;
    Ok((Some(text), file))
}

fn write(shared: &Shared, list: &List, file: &KekFile) -> Result<bool, KeyError> {
    let home = shared.home.as_ref().ok_or(KeyError::Foreign)?;
    let body = file.encode_body();
    let text = KekFile::join(&body, &derive::keks_mac(&shared.vault_key, body.as_bytes()));
    edit::replace(&home.dir, KEKS_FILE, list.text.as_deref(), text.as_bytes()).map_err(refused)
}

/// A list that cannot be used keeps its files' keys away.
fn refused(error: OpenError) -> KeyError {
    match error {
        OpenError::Key(error) => error,
        other => KeyError::Unreachable(other.to_string()),
    }
}
