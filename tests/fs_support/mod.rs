//! A vault on a temporary directory, opened without a mount.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]

use std::path::{Path, PathBuf};

use envelopefs::fs::{Caller, Found, Fs, FsError, Ino, Options};
use envelopefs::keys::{self, Unlock};
use envelopefs::kms::{Engine, Protection};
use tempfile::TempDir;

/// Number of the top directory.
pub const TOP: Ino = 1;

/// The superuser, with the usual umask.
pub const ROOT: Caller = Caller { uid: 0, gid: 0, umask: 0o022 };

/// A vault and the store of its key; both go when it is dropped.
pub struct Vault {
    base: TempDir,
}

impl Vault {
    /// Makes a vault with a key of its own.
    pub fn new() -> Self {
        let vault = Self { base: tempfile::tempdir().expect("a temporary directory") };
        std::fs::create_dir(vault.lower()).expect("the vault directory");
        let kms = vault.base.path().join("kms");
        let engine = Engine::create(&kms, &Protection::KeyFile).expect("a key store");
        let key = engine.create_key("test").expect("a key");
        drop(engine);
        let uri = &format!("kms:embedded/{}", key.key_id);
        keys::init_vault(&vault.lower(), uri, &vault.unlock()).expect("a vault");
        vault
    }

    /// The directory of ciphertext.
    pub fn lower(&self) -> PathBuf {
        self.base.path().join("vault")
    }

    /// A directory beside the vault, on the same filesystem.
    pub fn beside(&self, name: &str) -> PathBuf {
        self.base.path().join(name)
    }

    fn unlock(&self) -> Unlock {
        Unlock { kms_dir: Some(self.base.path().join("kms")), ..Unlock::default() }
    }

    /// Its keys.
    pub fn keyring(&self) -> keys::Keyring {
        keys::open_vault(&self.lower(), &self.unlock()).expect("the keys open")
    }

    /// Opens it.
    pub fn open(&self) -> Fs {
        self.open_with(Options::default()).expect("the vault opens")
    }

    /// Opens it with options.
    pub fn open_with(&self, options: Options) -> Result<Fs, FsError> {
        Fs::open(&self.lower(), self.keyring(), options)
    }
}

/// Every entry of a directory but `.` and `..`: name and inode number.
pub fn list(fs: &Fs, dir: Ino) -> Vec<(Vec<u8>, Ino)> {
    let fh = fs.opendir(dir).expect("opendir");
    let mut entries = Vec::new();
    fs.readdir(fh, 0, false, &mut |e| {
        if e.name != b"." && e.name != b".." {
            entries.push((e.name.to_vec(), e.ino));
        }
        true
    })
    .expect("readdir");
    fs.releasedir(fh);
    entries.sort();
    entries
}

/// Makes a file with content; keeps the lookup's reference.
pub fn put(fs: &Fs, dir: Ino, name: &[u8], content: &[u8]) -> Found {
    let (found, fh) = fs.create(&myself(), dir, name, 0o644, libc::O_RDWR | libc::O_EXCL).expect("create");
    fs.write(fh, 0, content, false).expect("write");
    fs.release(fh);
    found
}

/// The whole content of a file.
pub fn get(fs: &Fs, ino: Ino) -> Result<Vec<u8>, FsError> {
    let fh = fs.open_file(ino, libc::O_RDONLY)?;
    let mut content = vec![0; usize::try_from(fs.getattr(ino)?.size).expect("a short file")];
    let got = fs.read(fh, 0, &mut content);
    fs.release(fh);
    content.truncate(got?);
    Ok(content)
}

/// The errno of a refusal.
pub fn errno<T>(result: Result<T, FsError>) -> i32 {
    result.err().expect("a refusal").errno()
}

/// Lower names of a directory of the vault.
pub fn lower_names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).expect("the lower directory");
    entries.map(|e| e.expect("an entry").file_name().into_string().expect("text")).collect()
}

/// Runs `test` as an ordinary user: as whoever runs the tests, or, for the superuser, as user and group 12345 in a
/// thread of its own.
pub fn as_user(test: impl FnOnce() + Send) {
    use rustix::process::{Gid, Uid};
    use rustix::thread;
    std::thread::scope(|scope| {
        let run = scope.spawn(|| {
            if rustix::process::geteuid().is_root() {
                let (uid, gid) = (Uid::from_raw(12345), Gid::from_raw(12345));
                thread::set_thread_groups(&[]).expect("no groups");
                thread::set_thread_res_gid(gid, gid, gid).expect("another group");
                thread::set_thread_res_uid(uid, uid, uid).expect("another user");
            }
            test();
        });
        run.join().expect("the test passes");
    });
}

/// The caller who runs this thread, with the usual umask.
pub fn myself() -> Caller {
    // The thread's own ids: the C library's calls speak for the whole process.
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    Caller { uid, gid, umask: 0o022 }
}
