//! A repository, as the rest of this folder and the commands see it. The library's types end here.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use rustic_core::jiff::{Span, Timestamp, Zoned};
use rustic_core::repofile::{Chunker, Node, SnapshotFile};
use rustic_core::{
    BlobId, ConfigOptions, Credentials, DataId, IndexedFullStatus, KeepOptions, KeyOptions, LimitOption,
    LsOptions, OpenStatus, PruneOptions, Repository, RepositoryBackends, RepositoryOptions, RusticError,
};
use serde::Serialize;
use zeroize::Zeroizing;

use super::backend::Backend;
use super::error::{BackupError, Result, StoreFault};
use super::meter::Meter;
use super::node;
use super::s3::{Objects, Put, StoreOptions};
use super::source::ROOT;
use super::walk::Xattr;
use crate::format::config::{MAX_CONFIG, VolumeConfig};
use crate::format::keks::KekFile;
use crate::format::layout::GROUP_DISK;

/// zstd's level. Blocks do not compress, and this level finds that out at a gigabyte a second; trees and the empty ends of map
/// pages do.
const COMPRESSION: i32 = 1;
/// Size of a pack of data. Fixed: a command holds several in memory.
const PACK: u64 = 32 << 20;
/// Bytes of randomness in a repository password.
const PASSWORD: usize = 32;
/// Where in a bucket lies what is not the repository's own.
const EXTRA: &str = "envelopefs";
/// Says how to restore.
const README: &str = "README.txt";
/// Copies of the volume config that are looked at.
const CONFIGS: usize = 64;
/// Marks a snapshot that lacks something of the vault.
pub(super) const INCOMPLETE: &str = "incomplete";

/// A random password, as it is written into a key file.
pub fn new_password() -> std::io::Result<Zeroizing<String>> {
    let mut bytes = Zeroizing::new([0; PASSWORD]);
    getrandom::fill(&mut bytes[..]).map_err(std::io::Error::other)?;
    Ok(Zeroizing::new(URL_SAFE_NO_PAD.encode(&bytes[..])))
}

/// An open repository.
pub struct Repo {
    pub(super) repo: Repository<OpenStatus>,
    pub(super) closed: Closed,
    pub(super) backend: Arc<Backend>,
    pub(super) objects: Arc<Objects>,
    pub(super) meter: Arc<Meter>,
    pub(super) state: PathBuf,
}

impl std::fmt::Debug for Repo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Repo({})", self.objects.location())
    }
}

/// What a repository is opened from.
pub(super) struct Closed {
    options: RepositoryOptions,
    pub(super) backends: RepositoryBackends,
}

/// One state of a vault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Snapshot {
    /// Hexadecimal.
    pub id: String,
    /// When the run began, seconds since 1970.
    pub time: i64,
    /// The same, for people.
    pub when: String,
    /// Host that ran it.
    pub host: String,
    /// Id of the vault.
    pub vault: String,
    /// Nothing is missing in it.
    pub complete: bool,
    /// Files in it.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    #[serde(skip)]
    tree: String,
}

/// What is in a snapshot under one path.
#[derive(Clone, Debug)]
pub struct Item {
    /// Lower path from the vault's top; empty for the top.
    pub path: PathBuf,
    /// `S_IFMT` bits.
    pub kind: u32,
    /// Permissions with set-id and sticky bits.
    pub mode: u32,
    /// Owner and group.
    pub owner: (u32, u32),
    /// Seconds and nanoseconds of the last change of content.
    pub modified: Option<(i64, u32)>,
    /// Length of a regular file.
    pub size: u64,
    /// Xattrs by name.
    pub xattrs: Vec<Xattr>,
    /// Target of a symlink.
    pub target: Option<Vec<u8>>,
    /// Device number of a device node.
    pub device: u64,
    /// Names one inode among those with several names.
    pub inode: Option<(u64, u64)>,
    /// The content of a regular file.
    pub content: ContentRef,
}

/// The chunks of a file, by the SHA-256 of each.
#[derive(Clone, Debug, Default)]
pub struct ContentRef(Vec<DataId>);

impl ContentRef {
    /// Number of chunks.
    pub fn chunks(&self) -> usize {
        self.0.len()
    }

    /// SHA-256 of a chunk, in hexadecimal.
    pub fn digest(&self, chunk: usize) -> Option<String> {
        self.0.get(chunk).map(|id| id.to_hex().to_string())
    }
}

/// How many snapshots to keep.
#[derive(Clone, Debug, Default)]
pub struct Keep {
    /// The newest ones.
    pub last: Option<i32>,
    /// One of each hour that has one, so many hours.
    pub hourly: Option<i32>,
    /// One of each day.
    pub daily: Option<i32>,
    /// One of each week.
    pub weekly: Option<i32>,
    /// One of each month.
    pub monthly: Option<i32>,
    /// One of each year.
    pub yearly: Option<i32>,
    /// All of so many days before the newest.
    pub within_days: Option<i64>,
}

/// What `forget` did, or would do.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Forgotten {
    /// Snapshots that stay, with the rules that keep them.
    pub kept: Vec<(Snapshot, Vec<String>)>,
    /// Snapshots that are gone.
    pub removed: Vec<Snapshot>,
}

/// What `prune` did.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Pruned {
    /// Bytes of packs that are no longer needed, to be removed by a later prune.
    pub marked: u64,
    /// Bytes of packs that were removed.
    pub removed: u64,
    /// Bytes that were written anew, out of packs that were partly needed.
    pub rewritten: u64,
}

impl Repo {
    fn repository(
        objects: &Arc<Objects>,
        options: &StoreOptions,
        cache: &Path,
    ) -> Result<(Closed, Repository<()>, Arc<Backend>)> {
        let backend = Arc::new(Backend::new(Arc::clone(objects), options.parallel));
        let options = RepositoryOptions::default().cache_dir(cache.to_owned());
        let backends = RepositoryBackends::new(Arc::clone(&backend) as _, None);
        let repo = Repository::new(&options, &backends).map_err(failed(objects.location()))?;
        Ok((Closed { options, backends }, repo, backend))
    }

    /// The repository once more, to be given an index. Asks for its config only: the key is at hand.
    pub(super) fn again(&self) -> Result<Repository<OpenStatus>> {
        let repo = Repository::new(&self.closed.options, &self.closed.backends).map_err(self.failed())?;
        repo.open(&Credentials::Masterkey(self.repo.key())).map_err(self.failed())
    }

    /// Makes a repository with two passwords: one for the nightly job, one that whoever holds the vault's key can
    /// derive again. `cache`: a directory of this user's for the repository's metadata. Completes one that an earlier call
    /// for the vault `vault` left unfinished.
    pub fn init(
        objects: Arc<Objects>,
        options: &StoreOptions,
        cache: &Path,
        passwords: [&str; 2],
        vault: &str,
        meter: Arc<Meter>,
    ) -> Result<Self> {
        if objects.len_of("config")?.is_some() {
            return Self::complete(objects, options, cache, passwords, vault, meter);
        }
        remove_dead_keys(&objects)?;
        let (closed, repo, backend) = Self::repository(&objects, options, cache)?;
        let location = objects.location().to_owned();
        let size = |bytes: u64| format!("{bytes}B").parse().ok();
        let mut config = ConfigOptions::default();
        config.set_chunker = Some(Chunker::FixedSize);
        config.set_chunk_size = size(GROUP_DISK);
        config.set_compression = Some(COMPRESSION);
        config.set_datapack_size = size(PACK);
        config.set_datapack_growfactor = Some(0);
        let [nightly, derived] = passwords;
        let repo = repo
            .init(&Credentials::password(nightly), &key_of("nightly"), &config)
            .map_err(failed(&location))?;
        repo.add_key(derived, &key_of("vault key")).map_err(failed(&location))?;
        Ok(Self { repo, closed, backend, objects, meter, state: cache.to_owned() })
    }

    /// Gives a repository that is this vault's and has not all that `init` makes what it lacks; refuses any other.
    fn complete(
        objects: Arc<Objects>,
        options: &StoreOptions,
        cache: &Path,
        [nightly, derived]: [&str; 2],
        vault: &str,
        meter: Arc<Meter>,
    ) -> Result<Self> {
        let exists = || BackupError::Exists(objects.location().to_owned());
        let configs = Self::configs(&objects)?;
        let id = |text: &Vec<u8>| VolumeConfig::parse(text).ok().map(|s| s.config.vault_id.to_string());
        if configs.iter().any(|text| id(text).is_none_or(|id| id != vault)) {
            return Err(exists());
        }
        let open =
            |password: &str| Self::open(Arc::clone(&objects), options, cache, password, Arc::clone(&meter));
        let repo = match open(nightly) {
            Err(BackupError::WrongKey(_)) => return Err(exists()),
            other => other?,
        };
        match open(derived) {
            Err(BackupError::WrongKey(_)) => {
                repo.repo.add_key(derived, &key_of("vault key")).map_err(repo.failed())?;
            }
            Err(e) => return Err(e),
            // The text comes last.
            Ok(_) if !configs.is_empty() && objects.len_of(README)?.is_some() => return Err(exists()),
            Ok(_) => {}
        }
        Ok(repo)
    }

    /// Opens a repository.
    pub fn open(
        objects: Arc<Objects>,
        options: &StoreOptions,
        cache: &Path,
        password: &str,
        meter: Arc<Meter>,
    ) -> Result<Self> {
        if objects.len_of("config")?.is_none() {
            return Err(BackupError::NoRepository(objects.location().to_owned()));
        }
        let (closed, repo, backend) = Self::repository(&objects, options, cache)?;
        let repo = repo.open(&Credentials::password(password)).map_err(failed(objects.location()))?;
        Ok(Self { repo, closed, backend, objects, meter, state: cache.to_owned() })
    }

    /// As the user wrote it.
    pub fn location(&self) -> &str {
        self.objects.location()
    }

    /// Counters.
    pub fn meter(&self) -> &Arc<Meter> {
        &self.meter
    }

    pub(super) fn failed(&self) -> impl FnOnce(Box<RusticError>) -> BackupError + '_ {
        failed(self.location())
    }

    /// Every snapshot, the oldest first.
    pub fn snapshots(&self) -> Result<Vec<Snapshot>> {
        let mut files = self.repo.get_all_snapshots().map_err(self.failed())?;
        files.sort_by(|a, b| a.time.cmp(&b.time));
        Ok(files.iter().map(Snapshot::of).collect())
    }

    /// The snapshot that `wish` names: `latest`, the beginning of an id, or a time (`2026-11-26T20:00:00Z`, or a day),
    /// which means the last one before it. `vault`: of the vault only whose id begins so; by time, it must be one.
    pub fn snapshot(&self, wish: &str, vault: Option<&str>) -> Result<Snapshot> {
        let mut all = self.snapshots()?;
        all.retain(|s| vault.is_none_or(|v| s.vault.starts_with(v)));
        let none = || BackupError::NoSnapshot(self.location().to_owned(), wish.to_owned());
        let before = if wish == "latest" { Some(i64::MAX) } else { moment(wish) };
        if let Some(before) = before {
            let vaults: BTreeSet<&str> = all.iter().map(|s| &s.vault[..]).collect();
            if vaults.len() > 1 {
                let vaults = vaults.into_iter().collect::<Vec<_>>().join(", ");
                return Err(BackupError::SeveralVaults(self.location().to_owned(), vaults));
            }
            return all.into_iter().rev().find(|s| s.time <= before).ok_or_else(none);
        }
        let mut named = all.into_iter().filter(|s| wish.len() >= 4 && s.id.starts_with(wish));
        match (named.next(), named.next()) {
            (Some(found), None) => Ok(found),
            _ => Err(none()),
        }
    }

    /// Removes the snapshots that no rule keeps, but never a vault's newest complete one. `dry`: only tells.
    pub fn forget(&self, keep: &Keep, dry: bool) -> Result<Forgotten> {
        let mut rules = KeepOptions::default();
        rules.keep_last = keep.last;
        rules.keep_hourly = keep.hourly;
        rules.keep_daily = keep.daily;
        rules.keep_weekly = keep.weekly;
        rules.keep_monthly = keep.monthly;
        rules.keep_yearly = keep.yearly;
        rules.keep_within = keep.within_days.map(|days| Span::new().days(days));
        let mut report = Forgotten::default();
        let mut gone = Vec::new();
        let all = self.repo.get_all_snapshots().map_err(self.failed())?;
        let mut vaults: Vec<String> = all.iter().map(|s| s.label.clone()).collect();
        vaults.sort_unstable();
        vaults.dedup();
        for vault in vaults {
            let of_it: Vec<SnapshotFile> = all.iter().filter(|s| s.label == vault).cloned().collect();
            let mut complete = false;
            for judged in rules.apply(of_it, &Zoned::now()).map_err(self.failed())? {
                let snapshot = Snapshot::of(&judged.snapshot);
                // The newest first: this one, or a newer one, has what incomplete ones lack.
                let last_complete = snapshot.complete && !std::mem::replace(&mut complete, true);
                if judged.keep || last_complete {
                    let mut reasons = judged.reasons;
                    if !judged.keep {
                        reasons.push("newest complete".into());
                    }
                    report.kept.push((snapshot, reasons));
                } else {
                    gone.push(judged.snapshot.id);
                    report.removed.push(snapshot);
                }
            }
        }
        if !dry && !gone.is_empty() {
            self.repo.delete_snapshots(&gone).map_err(self.failed())?;
        }
        Ok(report)
    }

    /// Frees what no snapshot needs. In two steps, so that a run that goes on meanwhile loses nothing: packs are
    /// marked, and removed by a prune that comes a day later. `at_once`: nothing else uses the repository.
    pub fn prune(&self, at_once: bool) -> Result<Pruned> {
        self.mend_index(at_once)?;
        let mut options = PruneOptions::default();
        options.instant_delete = at_once;
        options.max_repack = LimitOption::Unlimited;
        let plan = self.repo.prune_plan(&options).map_err(self.failed())?;
        let stats = &plan.stats;
        let sizes = stats.size_sum();
        let done = Pruned {
            marked: if at_once { 0 } else { sizes.remove + stats.size_unref },
            removed: stats.size_to_delete.remove + if at_once { sizes.remove + stats.size_unref } else { 0 },
            rewritten: sizes.repack.saturating_sub(sizes.repackrm),
        };
        self.repo.prune(&options, plan).map_err(self.failed())?;
        Ok(done)
    }

    /// For reading snapshots. Loads the index.
    pub fn reader(&self) -> Result<Reader> {
        let repo = self.indexed_whole()?;
        Ok(Reader { repo, backend: Arc::clone(&self.backend), location: self.location().to_owned() })
    }

    /// Puts copies of the volume config and the key-encryption keys, which are wrapped, beside the repository, so that the
    /// bucket and the master key open everything; and a text that says how. What is there already stays.
    pub fn put_extras(&self, config: &[u8], keks: Option<&[u8]>, readme: &str) -> Result<()> {
        let put = |kind: &str, digest: &str, text: &[u8]| {
            let name = format!("{EXTRA}/{kind}-{}.toml", digest.get(..16).unwrap_or_default());
            self.objects.put(&name, &[Bytes::copy_from_slice(text)])
        };
        put("vault", &sha256(config), config)?;
        if let Some(keks) = keks {
            // Its counts change with every mount; another copy is needed for other keys only.
            let name = match KekFile::parse(keks) {
                Ok(mut signed) => {
                    signed.file.keks.iter_mut().for_each(|kek| kek.reserved = 0);
                    sha256(signed.file.encode_body().as_bytes())
                }
                Err(_) => sha256(keks),
            };
            put("keks", &name, keks)?;
        }
        self.objects.put(README, &[Bytes::copy_from_slice(readme.as_bytes())])?;
        Ok(())
    }
}

/// Who a password is for.
fn key_of(user: &str) -> KeyOptions {
    KeyOptions::default().hostname(host()).username(user.to_owned()).with_created(true)
}

/// Removes keys that an `init` left which came no further: they open nothing, and would be taken for those of the
/// repository that is made now. Where there is more than keys, a config was lost, and nothing is touched.
fn remove_dead_keys(objects: &Objects) -> Result<()> {
    let dead = objects.list("keys")?;
    if dead.is_empty() {
        return Ok(());
    }
    for folder in ["snapshots", "index", "data"] {
        if !objects.list(folder)?.is_empty() {
            return Err(BackupError::Repository {
                location: objects.location().to_owned(),
                why: format!(
                    "it has keys and {folder}, and no config: a repository that lost it, and no new place"
                ),
            });
        }
    }
    dead.iter().try_for_each(|(name, _)| objects.remove(&format!("keys/{name}")))
}

/// Whether a store keeps an object that is there from being overwritten. `Repo::put_extras` has run.
pub(super) fn keeps_objects(objects: &Objects) -> Result<bool> {
    let name = format!("{EXTRA}/probe");
    objects.put(&name, &[Bytes::from_static(b"1")])?;
    Ok(objects.put(&name, &[Bytes::from_static(b"2")])? == Put::WasThere)
}

impl Repo {
    /// Whether the store keeps an object that is there from being overwritten.
    pub fn keeps_objects(&self) -> Result<bool> {
        keeps_objects(&self.objects)
    }

    /// The copies of volume configs that lie in a bucket. Needs no repository key.
    pub fn configs(objects: &Objects) -> Result<Vec<Vec<u8>>> {
        let mut found = objects.list(EXTRA)?;
        found.retain(|(name, len)| name.starts_with("vault-") && *len <= MAX_CONFIG as u64);
        found.truncate(CONFIGS);
        found
            .iter()
            .map(|(name, _)| objects.get(&format!("{EXTRA}/{name}"), None).map(|bytes| bytes.to_vec()))
            .collect()
    }
}

impl Snapshot {
    pub(super) fn of(file: &SnapshotFile) -> Self {
        let summary = file.summary.as_ref();
        Self {
            id: file.id.to_hex().to_string(),
            time: file.time.timestamp().as_second(),
            when: file.time.strftime("%Y-%m-%d %H:%M:%S %:z").to_string(),
            host: file.hostname.clone(),
            vault: file.label.clone(),
            complete: !file.tags.contains(INCOMPLETE),
            files: summary.map_or(0, |s| s.total_files_processed),
            bytes: summary.map_or(0, |s| s.total_bytes_processed),
            tree: file.tree.to_hex().to_string(),
        }
    }

    /// Names the state itself: two snapshots with the same one hold the same.
    pub fn tree(&self) -> &str {
        &self.tree
    }
}

/// Reads what snapshots hold. Thread-safe.
pub struct Reader {
    repo: Repository<IndexedFullStatus>,
    backend: Arc<Backend>,
    location: String,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Reader({})", self.location)
    }
}

impl Reader {
    /// For whoever reads most of the data: each pack is fetched whole, once.
    pub fn read_whole_packs(&self) {
        self.backend.read_whole_packs();
    }

    /// As the user wrote it.
    pub fn location(&self) -> &str {
        &self.location
    }

    fn root(&self, snapshot: &Snapshot, below: &Path) -> Result<Node> {
        let none = || BackupError::NoPath(snapshot.id.clone(), below.to_owned());
        let top = snapshot.tree.parse().map_err(failed(&self.location))?;
        let mut found: Option<Node> = None;
        for part in Path::new(ROOT).join(below).components() {
            let Component::Normal(name) = part else { continue };
            let tree = found.map_or(Some(top), |node| node.subtree).ok_or_else(none)?;
            // What cannot be read is not the same as what is not there.
            let tree = self.repo.get_tree(&tree).map_err(failed(&self.location))?;
            found = Some(tree.nodes.into_iter().find(|node| node.name() == name).ok_or_else(none)?);
        }
        found.ok_or_else(none)
    }

    /// The item at a lower path.
    pub fn item(&self, snapshot: &Snapshot, path: &Path) -> Result<Item> {
        Ok(item_of(path.to_owned(), &self.root(snapshot, path)?))
    }

    /// Calls `each` with the item at `below` and everything below it, directories before what is in them.
    pub fn walk(
        &self,
        snapshot: &Snapshot,
        below: &Path,
        each: &mut dyn FnMut(Item) -> Result<()>,
    ) -> Result<()> {
        let root = self.root(snapshot, below)?;
        let is_dir = root.is_dir();
        each(item_of(below.to_owned(), &root))?;
        if !is_dir {
            return Ok(());
        }
        let nodes = self.repo.ls(&root, &LsOptions::default()).map_err(failed(&self.location))?;
        for found in nodes {
            let (path, node) = found.map_err(failed(&self.location))?;
            each(item_of(below.join(path), &node))?;
        }
        Ok(())
    }

    /// The items in a directory.
    pub fn children(&self, snapshot: &Snapshot, dir: &Path) -> Result<Vec<Item>> {
        let root = self.root(snapshot, dir)?;
        let Some(tree) = root.subtree else { return Ok(Vec::new()) };
        let tree = self.repo.get_tree(&tree).map_err(failed(&self.location))?;
        Ok(tree.nodes.iter().map(|node| item_of(dir.join(node.name()), node)).collect())
    }

    /// One chunk of a file; its SHA-256 was checked.
    pub fn chunk(&self, content: &ContentRef, chunk: usize) -> Result<Bytes> {
        let Some(id) = content.0.get(chunk) else { return Ok(Bytes::new()) };
        let blob = BlobId::from(id.into_inner());
        let bytes = self
            .repo
            .get_blob_cached(&blob, rustic_core::repofile::BlobType::Data)
            .map_err(failed(&self.location))?;
        // The library trusts the authenticator of the pack alone.
        if sha256(&bytes) != id.to_hex().to_string() {
            return Err(BackupError::Repository {
                location: self.location.clone(),
                why: format!("chunk {}: its bytes are not those that its name says", &*id.to_hex()),
            });
        }
        Ok(bytes)
    }

    /// Length of a chunk.
    pub fn chunk_len(&self, content: &ContentRef, chunk: usize) -> Result<u64> {
        let Some(id) = content.0.get(chunk) else { return Ok(0) };
        let entry = self.repo.get_index_entry(id).map_err(failed(&self.location))?;
        Ok(entry.data_length().into())
    }
}

fn item_of(path: PathBuf, node: &Node) -> Item {
    use rustic_core::repofile::NodeType;
    let device = match node.node_type {
        NodeType::Dev { device } | NodeType::Chardev { device } => device,
        _ => 0,
    };
    let target = node.is_symlink().then(|| {
        use std::os::unix::ffi::OsStrExt;
        node.node_type.to_link().as_os_str().as_bytes().to_vec()
    });
    Item {
        path,
        kind: node::kind_bits(node),
        mode: node::permissions(node),
        owner: (node.meta.uid.unwrap_or(0), node.meta.gid.unwrap_or(0)),
        modified: node::modified(node),
        size: node.meta.size,
        xattrs: node::xattrs_of(node),
        target,
        device,
        inode: (node.meta.links > 1).then_some((node.meta.device_id, node.meta.inode)),
        content: ContentRef(node.content.clone().unwrap_or_default()),
    }
}

/// SHA-256 in hexadecimal.
pub(super) fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest;
    hex::encode(sha2::Sha256::digest(bytes))
}

/// A day or a moment, as seconds since 1970; a day means its end.
fn moment(text: &str) -> Option<i64> {
    if let Ok(at) = text.parse::<Timestamp>() {
        return Some(at.as_second());
    }
    let day: rustic_core::jiff::civil::Date = text.parse().ok()?;
    let end = day.tomorrow().ok()?.to_zoned(rustic_core::jiff::tz::TimeZone::system()).ok()?;
    Some(end.timestamp().as_second() - 1)
}

/// This machine's name.
pub(super) fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// What the store answered, where that is among the causes of an error.
pub(super) fn store_error(e: &(dyn std::error::Error + 'static)) -> Option<BackupError> {
    let mut cause = e.source();
    while let Some(at) = cause {
        if let Some(e @ BackupError::Store { .. }) = at.downcast_ref() {
            return Some(e.again());
        }
        cause = at.source();
    }
    None
}

/// The library's error in one line; an error of the store, which it carries, as it was.
pub(super) fn failed(location: &str) -> impl FnOnce(Box<RusticError>) -> BackupError + '_ {
    move |e| {
        if e.is_incorrect_password() {
            return BackupError::WrongKey(location.to_owned());
        }
        if let Some(answer) = store_error(&*e) {
            return answer;
        }
        let text = e.display_log();
        let text = text.strip_prefix("Error: ").unwrap_or(&text);
        let why = text.split_whitespace().collect::<Vec<_>>().join(" ");
        BackupError::Repository { location: location.to_owned(), why }
    }
}

impl BackupError {
    /// Whether the store does not answer, or refuses: nothing is said about what is in it.
    pub fn is_outage(&self) -> bool {
        use StoreFault::{Clock, Denied, Unreachable};
        matches!(self.store_fault(), Some(Denied | Clock | Unreachable))
    }

    /// What a store answered, where this is a store's answer.
    pub fn store_fault(&self) -> Option<StoreFault> {
        match self {
            Self::Store { fault, .. } => Some(*fault),
            _ => None,
        }
    }
}
