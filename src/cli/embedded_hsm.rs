//! `--embedded-hsm`: an HSM that a command or a mount hosts itself, for a start without ceremony. It is a process of its
//! own, which ends with the one that started it; its admin's password and its user's PIN lie beside it.
//!
//! What that gives up stands in docs/HSM.md: who has this user's files has the keys.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use parking_lot::Mutex;
use zeroize::Zeroizing;

use super::error::CliError;
use super::guardian::program;
use crate::crypto::random;
use crate::hsm::{Address, Appliance, Cost, Manager, NewKey, Protection, Role, Sharing};
use crate::keys::token;

/// The crypto user of the vaults, and the label of their key.
const NAME: &str = "envelopefs";
/// Holds the admin's password, mode 0600.
const ADMIN_FILE: &str = "admin";
/// Holds the user's PIN, mode 0600.
const PIN_FILE: &str = "pin";
/// What the module is called, beside the program.
const MODULE: &str = "libenvelopefs.so";

/// The one of this process.
static HOSTED: Mutex<Option<Hosted>> = Mutex::new(None);

struct Hosted {
    child: Child,
    pipe: Option<ChildStdin>,
    address: String,
}

impl Drop for Hosted {
    /// Its stdin's end is its own.
    fn drop(&mut self) {
        self.pipe = None;
        let _ = self.child.wait();
    }
}

/// The default directory.
pub(super) fn default_dir() -> Option<PathBuf> {
    super::store::default_dir().map(|kms| kms.with_file_name("hsm"))
}

/// Runs the HSM in a directory until [`end`] or this process's end; gives its address.
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
    let new = Hosted { child, pipe, address: address.clone() };
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
    // What it has to say goes into our log; unread, it would keep the HSM waiting.
    let log = std::thread::Builder::new().name("efs-hsm-log".to_owned());
    log.spawn(move || err.lines().map_while(Result::ok).for_each(|line| log::info!("hsm: {line}")))
        .map_err(CliError::io(&dir))?;
    *hosted = Some(new);
    Ok(address)
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

fn create(dir: &Path) -> Result<(), CliError> {
    let hsm = |e: crate::hsm::HsmError| CliError::Hsm(Box::new(e));
    if let Some(parent) = dir.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(parent).map_err(CliError::io(parent))?;
    }
    Appliance::create(dir, &Protection::KeyFile, Cost::SLOW).map_err(hsm)?;
    let address: Address = host(dir)?.parse().map_err(CliError::Usage)?;
    let manager = Manager::new(address, None).map_err(hsm)?;
    let (admin, user) = (password(), password());
    write(&dir.join(ADMIN_FILE), &admin)?;
    manager.activate(&admin).map_err(hsm)?;
    manager.login("admin", Role::Admin, &admin).map_err(hsm)?;
    manager.user_create(NAME, Role::CryptoUser, &user).map_err(hsm)?;
    manager.logout().map_err(hsm)?;
    manager.login(NAME, Role::CryptoUser, &user).map_err(hsm)?;
    let attributes = ["id=0x01", "encrypt=true", "decrypt=true"].map(str::to_owned);
    manager.key_generate(NewKey::Aes(32), NAME, "", &attributes, &Sharing::default()).map_err(hsm)?;
    manager.logout().map_err(hsm)?;
    // Last: with it the HSM is complete.
    write(&dir.join(PIN_FILE), &Zeroizing::new(format!("{NAME}:{}", user.as_str())))
}

/// 128 random bits in hex.
fn password() -> Zeroizing<String> {
    let bytes = Zeroizing::new(random::array::<16>());
    let digit = |n: u8| char::from(b"0123456789abcdef"[usize::from(n & 15)]);
    Zeroizing::new(bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(*byte)]).collect())
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
