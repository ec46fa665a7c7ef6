//! `--embedded-hsm`: an HSM that a command or a mount hosts itself, for a start without ceremony. It is a process of its
//! own, which ends with the one that started it; its admin's password and its user's PIN lie beside it.
//!
//! What that gives up stands in docs/HSM.md: who has this user's files has the keys.

use std::ffi::OsString;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{BufRead as _, BufReader, ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::fs::{FlockOperation, flock};
use rustix::io::{FdFlags, fcntl_setfd};
use zeroize::Zeroizing;

use super::error::CliError;
use crate::backup::new_password;
use crate::hsm::{Address, Appliance, Cost, Manager, NewKey, Protection, Role, Sharing};
use crate::keys::token::{self, program};

/// The crypto user of the vaults, and the label of their key.
const NAME: &str = "envelopefs";
/// Holds the admin's password, mode 0600.
const ADMIN_FILE: &str = "admin";
/// Holds the user's PIN, mode 0600.
const PIN_FILE: &str = "pin";
/// Ends the name of one that is being made; it begins with a dot.
const UNFINISHED: &str = ".unfinished";
/// How long the HSM of a making that was killed may take to end.
const ENDS: Duration = Duration::from_secs(10);
/// What the module is called, beside the program.
const MODULE: &str = "libenvelopefs.so";

/// The one of this process.
static HOSTED: Mutex<Option<Hosted>> = Mutex::new(None);

struct Hosted {
    child: Child,
    pipe: Option<ChildStdin>,
    address: String,
    /// What it has to say, until somebody listens.
    said: Option<BufReader<ChildStderr>>,
}

impl Drop for Hosted {
    /// Its stdin's end is its own. It does not wait for a reader meanwhile.
    fn drop(&mut self) {
        self.said = None;
        self.pipe = None;
        let _ = self.child.wait();
    }
}

/// The default directory.
pub(super) fn default_dir() -> Option<PathBuf> {
    super::store::default_dir().map(|kms| kms.with_file_name("hsm"))
}

/// Runs the HSM in a directory until [`end`] or this process's end; gives its address. [`listen`] is to be called soon.
pub(super) fn host(dir: &Path) -> Result<String, CliError> {
    let mut hosted = HOSTED.lock();
    if let Some(hosted) = &*hosted {
        return Ok(hosted.address.clone());
    }
    let dir = dir.canonicalize().map_err(CliError::io(dir))?;
    let address = format!("unix:{}", dir.join("hsm.sock").display());
    let mut child = Command::new(program())
        .args(["hsm", "serve", "--until-eof", "--listen", &address, "--dir"])
        .arg(&dir)
        .env_remove(super::secrets::ENV)
        .env_remove(token::PIN_ENV)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(CliError::io(Path::new("/proc/self/exe")))?;
    let pipe = child.stdin.take();
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let mut new = Hosted { child, pipe, address: address.clone(), said: None };
    let mut line = String::new();
    if let Some(out) = out {
        BufReader::new(out).read_line(&mut line).map_err(CliError::io(&dir))?;
    }
    let Some(err) = err.map(BufReader::new) else { return Ok(address) };
    if line.is_empty() {
        let said = err.lines().next().and_then(Result::ok).unwrap_or_default();
        let said = said.strip_prefix("envelopefs: ").unwrap_or(&said);
        return Err(CliError::Usage(format!(
            "the embedded HSM does not start: {said} (where another mount hosts it, set \
             ENVELOPEFS_HSM={address} instead of --embedded-hsm)"
        )));
    }
    new.said = Some(err);
    *hosted = Some(new);
    Ok(address)
}

/// Puts what it has to say into our log: unread, that would keep it waiting once the pipe is full. Starts a thread, which
/// has the rights of its start for ever: a daemon calls this in its sandbox.
pub(super) fn listen() -> std::io::Result<()> {
    let Some(said) = HOSTED.lock().as_mut().and_then(|hosted| hosted.said.take()) else { return Ok(()) };
    let thread = std::thread::Builder::new().name("efs-hsm-log".to_owned());
    thread
        .spawn(move || said.lines().map_while(Result::ok).for_each(|line| log::info!("hsm: {line}")))
        .map(drop)
}

/// Ends it, and waits for that: the next one who hosts it finds it free.
pub(super) fn end() {
    drop(HOSTED.lock().take());
}

/// The URI of the embedded HSM's key; makes HSM, users and key where there is nothing yet.
pub(super) fn prepare(dir: &Path) -> Result<String, CliError> {
    let module = module()?;
    let pin = dir.join(PIN_FILE);
    if !pin.exists() {
        create(dir)?;
        println!("HSM made: {} (its keys, and what opens them, lie in it: back it up)", dir.display());
    }
    let pin = pin.canonicalize().map_err(CliError::io(&pin))?;
    Ok(token::uri_of(NAME, &module, &pin))
}

/// Makes it beside its place, which it is given when it is whole: what an interrupted making leaves is no HSM of
/// anybody, and the next one removes it.
fn create(dir: &Path) -> Result<(), CliError> {
    let place = std::path::absolute(dir).map_err(CliError::io(dir))?;
    // Where links lead.
    let place = place.canonicalize().unwrap_or(place);
    let (Some(parent), Some(name)) = (place.parent(), place.file_name()) else {
        return Err(CliError::Usage(format!("{}: it cannot be the directory of an HSM", dir.display())));
    };
    if std::fs::read_dir(&place).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(CliError::Usage(format!(
            "{}: it holds something, but no embedded HSM: its file {PIN_FILE} is missing. Bring that back from a backup, \
             or give another directory",
            dir.display()
        )));
    }
    DirBuilder::new().recursive(true).mode(0o700).create(parent).map_err(CliError::io(parent))?;
    let mut unfinished = OsString::from(".");
    unfinished.push(name);
    unfinished.push(UNFINISHED);
    let new = parent.join(unfinished);
    let alone = clear(&new)?;
    fill(&new)?;
    end();
    std::fs::rename(&new, &place).map_err(CliError::io(&place))?;
    drop(alone);
    File::open(parent).and_then(|parent| parent.sync_all()).map_err(CliError::io(parent))
}

/// An empty directory for the making, for this process and the HSM that it starts as long as the result lives.
fn clear(new: &Path) -> Result<File, CliError> {
    match DirBuilder::new().mode(0o700).create(new) {
        Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(CliError::Io(new.to_owned(), e)),
        _ => {}
    }
    let alone = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW)
        .open(new)
        .map_err(CliError::io(new))?;
    // The HSM of a making that was killed holds the lock, too, and ends by itself.
    let until = Instant::now() + ENDS;
    while flock(&alone, FlockOperation::NonBlockingLockExclusive).is_err() {
        if Instant::now() >= until {
            return Err(CliError::Usage(format!(
                "{}: another command makes this HSM just now",
                new.display()
            )));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let held = alone.metadata().map_err(CliError::io(new))?;
    if !std::fs::symlink_metadata(new).is_ok_and(|meta| meta.ino() == held.ino()) {
        return Err(CliError::Usage("another command has made this HSM meanwhile: try again".into()));
    }
    fcntl_setfd(&alone, FdFlags::empty()).map_err(|e| CliError::Io(new.to_owned(), e.into()))?;
    let remove = || {
        for entry in std::fs::read_dir(new)? {
            let entry = entry?;
            match entry.file_type()?.is_dir() {
                true => std::fs::remove_dir_all(entry.path())?,
                false => std::fs::remove_file(entry.path())?,
            }
        }
        Ok(())
    };
    remove().map_err(CliError::io(new))?;
    Ok(alone)
}

/// The HSM with its users and key.
fn fill(dir: &Path) -> Result<(), CliError> {
    let hsm = |e: crate::hsm::HsmError| CliError::Hsm(Box::new(e));
    Appliance::create(dir, &Protection::KeyFile, Cost::SLOW).map_err(hsm)?;
    let address: Address = host(dir)?.parse().map_err(CliError::Usage)?;
    let manager = Manager::new(address, None).map_err(hsm)?;
    let password = || new_password().map_err(CliError::io(dir));
    let (admin, user) = (password()?, password()?);
    write(&dir.join(ADMIN_FILE), &admin)?;
    manager.activate(&admin).map_err(hsm)?;
    manager.login("admin", Role::Admin, &admin).map_err(hsm)?;
    manager.user_create(NAME, Role::CryptoUser, &user).map_err(hsm)?;
    manager.logout().map_err(hsm)?;
    manager.login(NAME, Role::CryptoUser, &user).map_err(hsm)?;
    let attributes = ["id=0x01", "encrypt=true", "decrypt=true"].map(str::to_owned);
    manager.key_generate(NewKey::Aes(32), NAME, "", &attributes, &Sharing::default()).map_err(hsm)?;
    manager.logout().map_err(hsm)?;
    write(&dir.join(PIN_FILE), &Zeroizing::new(format!("{NAME}:{}", user.as_str())))
}

fn write(path: &Path, text: &Zeroizing<String>) -> Result<(), CliError> {
    let mut open = OpenOptions::new();
    let file = open.write(true).create_new(true).mode(0o600).open(path);
    file.and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.write_all(b"\n")?;
        file.sync_all()
    })
    .map_err(CliError::io(path))
}

/// The PKCS#11 module of this program: built beside it.
fn module() -> Result<PathBuf, CliError> {
    if let Some(path) = std::env::var_os(token::MODULE_ENV) {
        return Ok(path.into());
    }
    let program = program();
    let beside = program.with_file_name(MODULE);
    let installed = program.with_file_name("../lib").join(MODULE);
    let found = [beside, installed].into_iter().find(|path| path.is_file());
    found.and_then(|path| path.canonicalize().ok()).ok_or_else(|| {
        CliError::Usage(format!(
            "{}: {MODULE} is neither beside the program nor in ../lib: build it with cargo build --release, or name it \
             with {}",
            program.display(),
            token::MODULE_ENV
        ))
    })
}
