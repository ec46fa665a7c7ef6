//! A vault in a temporary directory, and its mount, which ends with the test also when that fails.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// How long a mount may take to appear or to go, in a debug build on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// Waits for what should come soon on a busy machine.
pub(crate) fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < until, "{what}: it does not come");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Whether tests can mount here; says so when not.
pub(crate) fn can_mount() -> bool {
    let there = Path::new("/dev/fuse").exists();
    if !there {
        eprintln!("skipped: no /dev/fuse");
    }
    there
}

/// How the requests of mounts under test come, unless a test says it.
pub(crate) fn transport() -> String {
    std::env::var("ENVELOPEFS_TEST_TRANSPORT").unwrap_or_else(|_| "device".into())
}

/// Whether the test runs as root; says so when not.
pub(crate) fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: needs root");
    }
    root
}

/// The binary under test, with `args`.
pub(crate) fn envelopefs<'a>(args: impl IntoIterator<Item = &'a str>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_envelopefs"));
    command.args(args).stdin(Stdio::null());
    command
}

/// Runs a command and gives its output; panics with what it said when it fails.
pub(crate) fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(output.status.success(), "{command:?} gave {}\n{}", output.status, said(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs a shell line in a directory.
pub(crate) fn sh(dir: &Path, line: &str) -> String {
    run(Command::new("bash").args(["-euo", "pipefail", "-c", line]).current_dir(dir).stdin(Stdio::null()))
}

/// Both streams of a command.
pub(crate) fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A vault with its KMS store, in a directory that goes away.
pub(crate) struct Vault {
    /// The ciphertext.
    pub(crate) dir: PathBuf,
    /// The KMS's store.
    pub(crate) kms: PathBuf,
    /// Where it is mounted.
    pub(crate) mnt: PathBuf,
    /// What the daemons said.
    log: PathBuf,
    /// Space for a test's own files, beside the vault.
    pub(crate) scratch: PathBuf,
    _home: TempDir,
}

impl Vault {
    /// A new vault.
    pub(crate) fn new() -> Self {
        Self::in_home(tempfile::tempdir().unwrap())
    }

    /// A new vault whose ciphertext lies below a given directory.
    pub(crate) fn below(lower: &Path) -> Self {
        let mut vault = Self::paths(tempfile::tempdir().unwrap());
        vault.dir = lower.join("vault");
        vault.init();
        vault
    }

    /// Paths of a vault that is not made.
    pub(crate) fn unmade() -> Self {
        Self::paths(tempfile::tempdir().unwrap())
    }

    fn in_home(home: TempDir) -> Self {
        let vault = Self::paths(home);
        vault.init();
        vault
    }

    fn paths(home: TempDir) -> Self {
        let at = |name: &str| home.path().join(name);
        let vault = Self {
            dir: at("vault"),
            kms: at("kms"),
            mnt: at("mnt"),
            log: at("log"),
            scratch: at("scratch"),
            _home: home,
        };
        fs::create_dir(&vault.mnt).unwrap();
        fs::create_dir(&vault.scratch).unwrap();
        vault
    }

    fn init(&self) {
        run(&mut self.command(&["init", text(&self.dir), "--kms-key-file"]));
    }

    /// A command on this vault's KMS.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = envelopefs(args.iter().copied());
        command.args(["--kms-dir", text(&self.kms)]);
        command
    }

    /// Mounts it.
    pub(crate) fn mount(&self) -> Mount<'_> {
        self.mount_with("")
    }

    /// Mounts it with `-o options`.
    pub(crate) fn mount_with(&self, options: &str) -> Mount<'_> {
        self.mount_as(&[], options)
    }

    /// Mounts it with `-o options`, the daemon started through `setpriv` with `privileges`.
    pub(crate) fn mount_as(&self, privileges: &[&str], options: &str) -> Mount<'_> {
        let log = File::options().create(true).append(true).open(&self.log).unwrap();
        // The daemon ends with this thread: a test that is killed leaves no mount behind.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "TERM"]).args(privileges).arg(env!("CARGO_BIN_EXE_envelopefs"));
        command.args([
            "mount",
            text(&self.dir),
            text(&self.mnt),
            "--foreground",
            "--kms-dir",
            text(&self.kms),
        ]);
        // Never by what the machine happens to offer.
        if !options.contains("transport=") {
            // One that shares has no rings.
            let way = if options.contains("shared") { "device".into() } else { transport() };
            command.args(["--transport", &way]);
        }
        if !options.is_empty() {
            command.args(["-o", options]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let mut mount = Mount { daemon: command.spawn().unwrap(), vault: self };
        let until = Instant::now() + PATIENCE;
        while !is_mounted(&self.mnt) {
            let ended = mount.daemon.try_wait().unwrap();
            assert!(ended.is_none() && Instant::now() < until, "no mount ({ended:?}): {}", self.log());
            thread::sleep(Duration::from_millis(5));
        }
        mount
    }

    /// What the daemons said.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The lower file of a file in the mount, which has its inode number.
    pub(crate) fn lower(&self, in_mount: &Path) -> PathBuf {
        self.lower_of(fs::symlink_metadata(in_mount).unwrap().ino())
    }

    /// The lower file with an inode number.
    pub(crate) fn lower_of(&self, ino: u64) -> PathBuf {
        find_ino(&self.dir, ino).expect("a lower file with the inode number that the mount shows")
    }

    /// Runs `check`: exit code and what it said.
    pub(crate) fn check(&self) -> (i32, String) {
        let output = self.command(&["check", text(&self.dir)]).output().unwrap();
        (output.status.code().unwrap_or(-1), said(&output))
    }

    /// Fails unless `check` finds nothing.
    pub(crate) fn assert_sound(&self) {
        let (code, said) = self.check();
        assert_eq!(code, 0, "{said}");
    }
}

/// A mounted vault.
pub(crate) struct Mount<'a> {
    daemon: Child,
    vault: &'a Vault,
}

impl Mount<'_> {
    /// A path in the mount.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.vault.mnt.join(name)
    }

    /// The mount point.
    pub(crate) fn top(&self) -> &Path {
        &self.vault.mnt
    }

    /// Process id of the daemon.
    pub(crate) fn daemon_id(&self) -> u32 {
        self.daemon.id()
    }

    /// Unmounts as a user does, and waits for the daemon: it must end with success.
    pub(crate) fn unmount(mut self) {
        run(&mut envelopefs(["umount", text(&self.vault.mnt)]));
        self.await_end();
    }

    /// Waits for the daemon, which was told to end: it must end with success.
    pub(crate) fn wait(mut self) {
        self.await_end();
    }

    fn await_end(&mut self) {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.daemon.try_wait().unwrap() {
                assert!(status.success(), "the daemon ended with {status}: {}", self.vault.log());
                return;
            }
            assert!(Instant::now() < until, "the daemon does not end: {}", self.vault.log());
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends the daemon as a crash does.
    pub(crate) fn kill(mut self) {
        self.daemon.kill().unwrap();
        self.daemon.wait().unwrap();
    }
}

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        if is_mounted(&self.vault.mnt) {
            let lazily = |program: &str, flag: &str| {
                Command::new(program).arg(flag).arg(&self.vault.mnt).stderr(Stdio::null()).status()
            };
            if !lazily("fusermount3", "-uz").is_ok_and(|s| s.success()) {
                let _ = lazily("umount", "-l");
            }
        }
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        if thread::panicking() {
            eprintln!("the daemon said: {}", self.vault.log());
        }
    }
}

/// A small filesystem of a kind, in an image file or in memory; unmounted when dropped. Needs root.
pub(crate) struct SmallDisk {
    pub(crate) dir: PathBuf,
    _home: TempDir,
}

impl SmallDisk {
    /// An ext4 of some MiB in an image file.
    pub(crate) fn ext4(mib: u64) -> Self {
        let home = tempfile::tempdir().unwrap();
        let image = home.path().join("image");
        File::create(&image).unwrap().set_len(mib << 20).unwrap();
        run(Command::new("mkfs.ext4")
            .args(["-q", "-m", "0"])
            .arg(&image)
            .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin"));
        Self::mounted(home, &["-o", "loop", text(&image)])
    }

    /// A filesystem that lives in memory: `tmpfs`, `ramfs`.
    pub(crate) fn memory(kind: &str, options: &str) -> Self {
        Self::mounted(tempfile::tempdir().unwrap(), &["-t", kind, "-o", options, kind])
    }

    fn mounted(home: TempDir, args: &[&str]) -> Self {
        let dir = home.path().join("disk");
        fs::create_dir(&dir).unwrap();
        run(Command::new("mount").args(args).arg(&dir));
        Self { dir, _home: home }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.dir).status();
    }
}

/// A path as text.
pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("temporary paths are text")
}

/// Bytes that repeat nowhere within 16 EiB, so that a block in the wrong place shows.
pub(crate) fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len + 8);
    let mut word = seed;
    while bytes.len() < len {
        word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bytes.extend((mixed ^ (mixed >> 27)).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Whether something is mounted at a path.
pub(crate) fn is_mounted(dir: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    table.lines().any(|l| l.split(' ').nth(1) == Some(text(dir)))
}

fn find_ino(dir: &Path, ino: u64) -> Option<PathBuf> {
    fs::read_dir(dir).unwrap().find_map(|entry| {
        let entry = entry.unwrap();
        if fs::symlink_metadata(entry.path()).unwrap().ino() == ino {
            return Some(entry.path());
        }
        if entry.file_type().unwrap().is_dir() { find_ino(&entry.path(), ino) } else { None }
    })
}
