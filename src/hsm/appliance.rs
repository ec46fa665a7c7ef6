//! The appliance: its state in memory and on disk, the applications that are connected, and who is logged in.
//!
//! Three locks, taken in this order and none held while another process or a password is waited for: `writing` (one
//! durable change at a time), `state`, and those of one application. Reads take `state` alone, for moments.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use cryptoki_sys::*;
use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};
use zeroize::Zeroize as _;

use super::Ck;
use super::audit::{Audit, Entry, Head};
use super::budget::{self, Budget};
use super::cluster::{Clock, Key, Member, Peers, Policy, Stamp, Talk};
use super::engine::Running;
use super::error::HsmError;
use super::metrics::Counts;
use super::object::Object;
use super::quorum::Tokens;
use super::record;
use super::root::{self, Cost, Keys, Protection, hex};
use super::store::Store;
use super::users::{Permission, Role, User};
use super::wire::Op;
use crate::crypto::random;

/// Token keys of one HSM (CloudHSM hsm2m.medium: 16,666).
pub(super) const MAX_TOKEN_OBJECTS: usize = 16_666;
/// Session objects of all applications together.
pub(super) const MAX_SESSION_OBJECTS: usize = 65_536;
/// Locks for checks of passwords; users share them by their names.
const GUESSING: usize = 64;
/// Characters of what an audit line is about.
const MAX_OBJECT: usize = 128;
/// Sessions of one application (CloudHSM: 1,024).
pub(super) const MAX_SESSIONS: usize = 1024;

/// Settings of a running appliance.
#[derive(Clone, Debug)]
pub struct Config {
    /// Offers weak and old mechanisms too: RSA below 2,048 bits, triple DES, MD5, MACs and derivations of old.
    pub legacy: bool,
    /// Makes every IV of AES-GCM itself, as CloudHSM does; the caller reads it out of his parameters.
    pub hsm_iv: bool,
    /// Whose PIN is one without a colon.
    pub default_user: String,
    /// Whose SO PIN is one without a colon.
    pub default_admin: String,
    /// Price of a password guess.
    pub login_cost: Cost,
    /// The most members that its cluster may have.
    pub max_members: usize,
    /// Lets a new key be used although it is on one member of the cluster only.
    pub disable_key_availability_check: bool,
    /// How often it compares itself with the other members.
    pub sync_every: std::time::Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            legacy: false,
            hsm_iv: false,
            default_user: "user".into(),
            default_admin: "admin".into(),
            login_cost: Cost::LOGIN,
            max_members: super::cluster::DEFAULT_MEMBERS,
            disable_key_availability_check: false,
            sync_every: std::time::Duration::from_secs(3),
        }
    }
}

/// How far the appliance has come (CloudHSM's words for a cluster).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Life {
    /// Made; its CSR waits for a signature.
    Uninitialized,
    /// Has a certificate; the first admin has no password yet.
    Initialized,
    /// In service.
    Active,
}

/// What the appliance is: one sealed record.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Meta {
    pub(super) serial: String,
    pub(super) label: String,
    pub(super) life: Life,
    pub(super) cluster: String,
    /// Starts so far.
    pub(super) reboot: u32,
    /// Seals masked objects: the same in every member of the cluster. Hexadecimal.
    pub(super) mask_key: String,
    /// Approvals needed, by service.
    pub(super) quorum: BTreeMap<String, u32>,
    /// The key of its certificate (PKCS#8 PEM), its certificate and the customer's CA certificate (PEM).
    pub(super) tls_key: String,
    pub(super) certificate: String,
    pub(super) ca: String,
    pub(super) audit: Head,
    /// When label and members were last changed.
    #[serde(default)]
    pub(super) policy: Stamp,
    /// When a quorum value was last set.
    #[serde(default)]
    pub(super) quorum_stamp: Stamp,
    #[serde(default)]
    pub(super) members: Vec<Member>,
    /// It was a member once: where it is none now, it was removed.
    #[serde(default)]
    pub(super) joined: bool,
    /// Deletions of before then are forgotten.
    #[serde(default)]
    pub(super) horizon: u64,
    /// Deletions of until then are known here, whoever made them.
    #[serde(default)]
    pub(super) seen: u64,
    /// Deletions that another member knew until then are known here.
    #[serde(default)]
    pub(super) known: BTreeMap<String, u64>,
}

impl Meta {
    /// What the members of the cluster agree on.
    pub(super) fn policy(&self) -> Policy {
        Policy {
            stamp: self.policy.clone(),
            members: self.members.clone(),
            label: self.label.clone(),
            quorum: self.quorum.clone(),
            quorum_stamp: self.quorum_stamp.clone(),
        }
    }

    /// Takes another member's over.
    pub(super) fn adopt(&mut self, policy: &Policy) {
        self.policy = policy.stamp.clone();
        self.members.clone_from(&policy.members);
        self.label.clone_from(&policy.label);
        self.quorum.clone_from(&policy.quorum);
        self.quorum_stamp = policy.quorum_stamp.clone();
        self.joined |= policy.has(&self.serial);
    }

    /// Whether it was taken out of its cluster.
    pub(super) fn is_removed(&self) -> bool {
        self.joined && !self.members.is_empty() && !self.policy().has(&self.serial)
    }
}

impl Drop for Meta {
    fn drop(&mut self) {
        self.mask_key.zeroize();
        self.tls_key.zeroize();
    }
}

/// What is in memory.
pub(super) struct State {
    pub(super) meta: Meta,
    pub(super) users: BTreeMap<String, User>,
    pub(super) objects: HashMap<u64, Arc<Object>>,
    pub(super) token_objects: usize,
    /// Deleted records, and when that was.
    pub(super) gone: BTreeMap<Key, Stamp>,
}

/// One HSM.
pub struct Appliance {
    pub(super) dir: PathBuf,
    pub(super) config: Config,
    pub(super) store: Store,
    pub(super) state: RwLock<State>,
    /// Held over each durable change, so that the store and the memory change in the same order.
    pub(super) writing: Mutex<()>,
    /// Held over each check of a user's password: guesses come one after another, and the fifth wrong one is the last.
    guessing: [Mutex<()>; GUESSING],
    /// Wrong guesses that the store did not take yet, by user.
    pub(super) uncounted: Mutex<BTreeMap<String, u64>>,
    /// Refusals of those who are not logged in, of this minute.
    pub(super) refusals: Mutex<Refusals>,
    pub(super) audit: Mutex<Audit>,
    /// Held while the audit log is verified.
    pub(super) verifying: Mutex<()>,
    pub(super) apps: Mutex<HashMap<u64, Arc<App>>>,
    pub(super) tokens: Tokens,
    pub(super) counts: Counts,
    pub(super) clock: Clock,
    pub(super) peers: Peers,
    /// What all applications take of memory.
    budget: Arc<Budget>,
    next: AtomicU64,
}

/// Refusals of those who are not logged in: some of each minute have a line of their own, the rest are counted.
#[derive(Default)]
pub(super) struct Refusals {
    since: Option<std::time::Instant>,
    count: u64,
}

impl Refusals {
    /// Of each minute.
    const SINGLE: u64 = 32;
    const MINUTE: std::time::Duration = std::time::Duration::from_secs(60);

    /// Counts one: whether it has a line, and how many of the minute before had none. `always` it has one, uncounted.
    fn count(&mut self, always: bool) -> (bool, u64) {
        let before = self.over();
        if always {
            return (true, before);
        }
        self.since.get_or_insert_with(std::time::Instant::now);
        self.count += 1;
        (self.count <= Self::SINGLE, before)
    }

    /// How many had no line, where their minute is over.
    fn over(&mut self) -> u64 {
        if self.since.is_none_or(|since| since.elapsed() < Self::MINUTE) {
            return 0;
        }
        self.since = None;
        std::mem::take(&mut self.count).saturating_sub(Self::SINGLE)
    }
}

/// Who is logged in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Login {
    pub(super) name: String,
    pub(super) role: Role,
}

/// A user whose password was right: which of those who had the name, and which of his passwords.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Checked {
    pub(super) role: Role,
    born: Stamp,
    version: u64,
}

impl Checked {
    pub(super) fn of(user: &User) -> Self {
        Self { role: user.role, born: user.born.clone(), version: user.version }
    }
}

/// One application: all connections of one process share its login, as PKCS#11 6.7.4 has it.
pub(super) struct App {
    pub(super) id: u64,
    pub(super) token: [u8; 32],
    pub(super) login: RwLock<Option<Login>>,
    pub(super) sessions: Mutex<HashMap<u64, Arc<Session>>>,
    pub(super) connections: AtomicUsize,
    /// A conversation as another member of the cluster, and whether that has proved to be one.
    pub(super) unit: Mutex<Option<Talk>>,
    pub(super) is_unit: AtomicBool,
    /// What its session objects and unfinished messages take of memory.
    pub(super) budget: Arc<Budget>,
    /// Lives on without connections until then: a command line's login.
    pub(super) kept_until: Mutex<Option<std::time::Instant>>,
}

/// One session.
pub(super) struct Session {
    pub(super) id: u64,
    pub(super) rw: bool,
    pub(super) running: Mutex<[Option<Running>; Op::ALL.len()]>,
    /// A context-specific login came: the next use of a key with CKA_ALWAYS_AUTHENTICATE may go on.
    pub(super) context: AtomicBool,
}

impl App {
    pub(super) fn session(&self, id: u64) -> Ck<Arc<Session>> {
        self.sessions.lock().get(&id).cloned().ok_or(CKR_SESSION_HANDLE_INVALID)
    }

    pub(super) fn role(&self) -> Option<Role> {
        self.login.read().as_ref().map(|l| l.role)
    }

    /// The crypto user that is logged in.
    pub(super) fn crypto_user(&self, what: Permission) -> Ck<String> {
        match &*self.login.read() {
            Some(login) if what.of(Some(login.role)) => Ok(login.name.clone()),
            _ => Err(CKR_USER_NOT_LOGGED_IN),
        }
    }
}

impl Appliance {
    /// Makes an appliance in a new or empty directory.
    ///
    /// # Errors
    /// A directory that holds something, or the disk's.
    pub fn create(dir: &Path, protection: &Protection, cost: Cost) -> Result<(), HsmError> {
        let keys = root::create(dir, protection, cost)?;
        let store = Store::open(dir, keys.store, true)?;
        let meta = Meta {
            serial: hex(&random::array::<8>()),
            label: String::new(),
            life: Life::Uninitialized,
            cluster: format!("cluster-{}", hex(&random::array::<6>())),
            reboot: 0,
            mask_key: hex(crate::crypto::Secret::<32>::random().expose()),
            quorum: BTreeMap::new(),
            tls_key: String::new(),
            certificate: String::new(),
            ca: String::new(),
            audit: Head::default(),
            policy: Stamp::default(),
            quorum_stamp: Stamp::default(),
            members: Vec::new(),
            joined: false,
            horizon: 0,
            seen: 0,
            known: BTreeMap::new(),
        };
        store.write(&[record::meta(&meta).change()])
    }

    /// Opens the appliance of a directory; at most one process does.
    ///
    /// # Errors
    /// No appliance there, a wrong passphrase, a damaged store, another process.
    pub fn open(dir: &Path, passphrase: Option<&str>, config: Config) -> Result<Arc<Self>, HsmError> {
        let keys = root::open(dir, passphrase)?;
        Self::launch(dir, keys, config)
    }

    fn launch(dir: &Path, keys: Keys, config: Config) -> Result<Arc<Self>, HsmError> {
        let store = Store::open(dir, keys.store, false)?;
        let mut meta = record::read_meta(&store, dir)?;
        meta.reboot += 1;
        store.write(&[record::meta(&meta).change()])?;
        let audit = Audit::open(dir, keys.audit, &meta.audit, meta.reboot)?;
        let users = record::read_users(&store, dir)?;
        let objects = record::read_objects(&store, dir)?;
        let token_objects = objects.len();
        let gone = record::read_gone(&store, dir)?;
        let clock = Clock::default();
        let stamps = users.values().map(|u| &u.stamp).chain(objects.values().map(|o| &o.stamp));
        stamps
            .chain(gone.values())
            .chain([&meta.policy, &meta.quorum_stamp])
            .for_each(|stamp| clock.heard(stamp.time));
        clock.heard(meta.horizon.max(meta.seen));
        let appliance = Arc::new(Self {
            dir: dir.to_owned(),
            config,
            store,
            state: RwLock::new(State { meta, users, objects, token_objects, gone }),
            writing: Mutex::new(()),
            guessing: [const { Mutex::new(()) }; GUESSING],
            uncounted: Mutex::new(BTreeMap::new()),
            refusals: Mutex::new(Refusals::default()),
            audit: Mutex::new(audit),
            verifying: Mutex::new(()),
            apps: Mutex::new(HashMap::new()),
            tokens: Tokens::default(),
            counts: Counts::default(),
            clock,
            peers: Peers::default(),
            budget: Budget::new(budget::ALL, None),
            // From a random point on, so that a handle of before a restart is not another one now.
            next: AtomicU64::new(u64::from(u32::from_le_bytes(random::array())) << 16 | 1),
        });
        appliance.peers.belong_to(&appliance);
        let weak = Arc::downgrade(&appliance);
        let spawned = std::thread::Builder::new().name("hsm-settle".into()).spawn(move || {
            loop {
                std::thread::sleep(super::audit::SETTLE);
                let Some(appliance) = weak.upgrade() else { return };
                appliance.settle();
                appliance.forget_idle();
            }
        });
        spawned.map_err(HsmError::io(dir))?;
        Ok(appliance)
    }

    /// The lock for guesses at a user's password.
    pub(super) fn guessing(&self, name: &str) -> &Mutex<()> {
        let sum = name.bytes().fold(0, |sum: usize, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
        &self.guessing[sum % GUESSING]
    }

    /// A number that was not used before.
    pub(super) fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Makes the audit log durable, then the head of its chain.
    pub fn settle(&self) {
        let refused = self.refusals.lock().over();
        if let Err(e) = self.log_refusals(refused) {
            log::error!("audit log: {e}");
        }
        let Some((file, head)) = self.audit.lock().unsettled() else { return };
        if let Err(e) = file.sync_data() {
            log::error!("audit log: {e}");
            return;
        }
        let _one = self.writing.lock();
        let mut meta = self.state.read().meta.clone();
        meta.audit = head;
        if self.store.write(&[record::meta(&meta).change()]).is_ok() {
            self.state.write().meta = meta;
        }
    }

    /// Logs a management command; what it was refused with, too.
    pub(super) fn log<T>(&self, app: &App, session: u64, opcode: &'static str, object: &str, result: &Ck<T>) {
        if let Err(e) = self.try_log(app, session, opcode, object, result) {
            log::error!("audit log: {e}");
        }
    }

    /// Logs a management command and gives its result, which is a failure where its line could not be written.
    pub(super) fn recorded<T>(
        &self,
        app: &App,
        session: u64,
        opcode: &'static str,
        object: &str,
        result: Ck<T>,
    ) -> Ck<T> {
        let logged = self.try_log(app, session, opcode, object, &result);
        if let Err(e) = logged {
            log::error!("audit log: {e}");
            return result.and(Err(CKR_DEVICE_ERROR));
        }
        result
    }

    fn try_log<T>(
        &self,
        app: &App,
        session: u64,
        opcode: &'static str,
        object: &str,
        result: &Ck<T>,
    ) -> std::io::Result<()> {
        self.counts.command(opcode, result.is_err());
        let login = app.login.read().clone();
        // Who is not logged in does not fill the disk. Wrong passwords of a user are bounded by the lockout.
        if login.is_none() && result.is_err() {
            let guess = result.as_ref().err() == Some(&CKR_PIN_INCORRECT)
                && self.state.read().users.contains_key(object);
            let (single, before) = self.refusals.lock().count(guess);
            self.log_refusals(before)?;
            if !single {
                return Ok(());
            }
        }
        let (user, role) = login.map_or((String::new(), ""), |l| (l.name, l.role.name()));
        let entry = Entry {
            opcode: opcode.into(),
            session,
            result: result.as_ref().map_or_else(|rv| format!("{rv:#x}"), |_| "SUCCESS".into()),
            user,
            role: role.into(),
            object: object.chars().take(MAX_OBJECT).collect(),
            ..Entry::default()
        };
        self.audit.lock().append(entry)
    }

    /// One line for the refusals that got none.
    fn log_refusals(&self, count: u64) -> std::io::Result<()> {
        if count == 0 {
            return Ok(());
        }
        let (opcode, object) = ("CN_REFUSED".into(), format!("{count} more"));
        let result = format!("{CKR_USER_NOT_LOGGED_IN:#x}");
        self.audit.lock().append(Entry { opcode, object, result, ..Entry::default() })
    }

    /// A name for the audit log: only a user's. A mistyped PIN can have a piece of a password where the name belongs.
    pub(super) fn known<'a>(&self, name: &'a str) -> &'a str {
        if self.state.read().users.contains_key(name) { name } else { "(no such user)" }
    }

    /// Begins an application, or joins the one that the token names.
    pub(super) fn hello(&self, token: &[u8]) -> Ck<Arc<App>> {
        let mut apps = self.apps.lock();
        if token.is_empty() {
            let app = Arc::new(App {
                id: self.number(),
                token: random::array(),
                login: RwLock::new(None),
                sessions: Mutex::new(HashMap::new()),
                connections: AtomicUsize::new(1),
                unit: Mutex::new(None),
                is_unit: AtomicBool::new(false),
                budget: Budget::new(budget::APPLICATION, Some(self.budget.clone())),
                kept_until: Mutex::new(None),
            });
            apps.insert(app.id, app.clone());
            return Ok(app);
        }
        let same =
            |app: &&Arc<App>| aws_lc_rs::constant_time::verify_slices_are_equal(&app.token, token).is_ok();
        let app = apps.values().find(same).ok_or(CKR_USER_NOT_LOGGED_IN)?;
        app.connections.fetch_add(1, Ordering::Relaxed);
        Ok(app.clone())
    }

    /// A connection of an application ended; with the last one the application ends.
    pub(super) fn goodbye(&self, app: &Arc<App>) {
        let last = {
            let mut apps = self.apps.lock();
            let last =
                app.connections.fetch_sub(1, Ordering::Relaxed) == 1 && app.kept_until.lock().is_none();
            if last {
                apps.remove(&app.id);
            }
            last
        };
        if last {
            self.drop_session_objects(app.id, None);
            self.tokens.end_of(app.id);
        }
    }

    /// Ends the applications that were kept for a command line and are out of time.
    fn forget_idle(&self) {
        let now = std::time::Instant::now();
        let over = |app: &Arc<App>| {
            app.connections.load(Ordering::Relaxed) == 0
                && app.kept_until.lock().is_none_or(|until| until <= now)
        };
        let ended: Vec<_> = self.apps.lock().extract_if(|_, app| over(app)).collect();
        for (id, _) in &ended {
            self.drop_session_objects(*id, None);
            self.tokens.end_of(*id);
        }
    }

    /// Session objects of an application, or of one of its sessions.
    pub(super) fn drop_session_objects(&self, app: u64, session: Option<u64>) {
        let gone = |o: &Object| {
            o.session.is_some_and(|(a, s)| a == app && session.is_none_or(|session| s == session))
        };
        // Most sessions leave nothing behind: look before the exclusive lock.
        if self.state.read().objects.values().any(|o| gone(o)) {
            self.state.write().objects.retain(|_, o| !gone(o));
        }
    }

    /// Logs a user in whose password was just found right. What happened to him meanwhile holds: he may have been deleted,
    /// or have another password.
    pub(super) fn enter(&self, app: &App, name: &str, checked: &Checked) -> Ck<()> {
        // What the login before got for itself is not this one's.
        self.tokens.end_of(app.id);
        *app.login.write() = Some(Login { name: name.to_owned(), role: checked.role });
        // Whoever changes the user looks at the logins afterwards: one of the two sees the other.
        let same = self.state.read().users.get(name).is_some_and(|now| Checked::of(now) == *checked);
        let stays = self.in_service().and(if same { Ok(()) } else { Err(CKR_PIN_INCORRECT) });
        if stays.is_err() {
            self.end_login(app);
        }
        stays
    }

    /// Logs a user out everywhere: it was removed, or an admin gave it another password.
    pub(super) fn expel(&self, name: &str) {
        self.end_logins(|login| login.name == name);
    }

    /// Ends the logins that `whose` says.
    pub(super) fn end_logins(&self, whose: impl Fn(&Login) -> bool) {
        let apps: Vec<_> = self.apps.lock().values().cloned().collect();
        for app in apps {
            if app.login.read().as_ref().is_some_and(&whose) {
                self.end_login(&app);
            }
        }
    }

    /// Ends a login with what it alone could have: operations, private session objects, a login for one use of a key, quorum
    /// tokens.
    pub(super) fn end_login(&self, app: &App) {
        *app.login.write() = None;
        *app.kept_until.lock() = None;
        self.tokens.end_of(app.id);
        // Private session objects end with the login (PKCS#11 5.6: C_Logout).
        let gone = |o: &Object| o.session.is_some_and(|(a, _)| a == app.id) && o.attrs.flag(CKA_PRIVATE);
        if self.state.read().objects.values().any(|o| gone(o)) {
            self.state.write().objects.retain(|_, o| !gone(o));
        }
        for session in app.sessions.lock().values() {
            *session.running.lock() = [const { None }; Op::ALL.len()];
            session.context.store(false, Ordering::Relaxed);
        }
    }

    /// How far it has come.
    pub fn life(&self) -> Life {
        self.state.read().meta.life
    }

    /// The appliance's directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Appliance {
    fn drop(&mut self) {
        self.settle();
    }
}
