//! A vault with its keys, a repository beside it, and commands on both, in a directory that goes away.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// How long a mount may take to appear, in a debug build on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A home directory with a vault.
pub(crate) struct Home {
    dir: TempDir,
    /// Where the repository is; another one for S3.
    pub(crate) repo: String,
    /// Environment of every command.
    pub(crate) env: Vec<(String, String)>,
    mounts: Vec<PathBuf>,
    points: usize,
}

/// Whether tests can mount here; says so when not.
pub(crate) fn can_mount() -> bool {
    let there = Path::new("/dev/fuse").exists();
    if !there {
        eprintln!("skipped: no /dev/fuse");
    }
    there
}

/// Whether a program is installed; says so when not.
pub(crate) fn has(program: &str) -> bool {
    let found = Command::new("sh").args(["-c", &format!("command -v {program}")]).output().unwrap();
    if !found.status.success() {
        eprintln!("skipped: {program} is not installed");
    }
    found.status.success()
}

/// Whether the test runs as root; says so when not.
pub(crate) fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: needs root");
    }
    root
}

/// Both streams of a command.
pub(crate) fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

impl Home {
    /// A new vault and the name of a repository in a local directory.
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let repo = dir.path().join("repo").display().to_string();
        let home = Self { dir, repo, env: Vec::new(), mounts: Vec::new(), points: 0 };
        home.ok(&["init", "--kms-key-file", "vault"]);
        home
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Where everything of this test is.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn vault(&self) -> PathBuf {
        self.path("vault")
    }

    /// The program with `args`; `REPO` stands for the repository.
    pub(crate) fn efs(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_envelopefs"));
        let args = args.iter().map(|a| if *a == "REPO" { self.repo.as_str() } else { a });
        command
            .args(args)
            .current_dir(self.dir.path())
            .env("HOME", self.dir.path())
            .env("XDG_CONFIG_HOME", self.path("config"))
            .env("XDG_CACHE_HOME", self.path("cache"))
            .env("XDG_DATA_HOME", self.path("data"))
            .env_remove("ENVELOPEFS_BACKUP_KEY")
            .env_remove("AWS_CA_BUNDLE")
            .envs(self.env.iter().map(|(k, v)| (k, v)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs the program; it must end with `status`. Gives what it said.
    pub(crate) fn ends(&self, status: i32, args: &[&str]) -> String {
        let output = self.efs(args).output().unwrap();
        assert_eq!(output.status.code(), Some(status), "{args:?}: {}", said(&output));
        said(&output)
    }

    pub(crate) fn ok(&self, args: &[&str]) -> String {
        self.ends(0, args)
    }

    /// The last line of JSON that a command gives.
    pub(crate) fn json(&self, status: i32, args: &[&str]) -> Value {
        let output = self.efs(args).arg("--json").output().unwrap();
        assert_eq!(output.status.code(), Some(status), "{args:?}: {}", said(&output));
        let text = String::from_utf8(output.stdout).unwrap();
        serde_json::from_str(text.lines().last().expect("a report")).unwrap()
    }

    pub(crate) fn sh(&self, line: &str) -> String {
        let output = Command::new("bash")
            .args(["-euo", "pipefail", "-c", line])
            .current_dir(self.dir.path())
            // The servers here speak plain HTTP, and rclone stumbles over one.
            .env_remove("AWS_CA_BUNDLE")
            .envs(self.env.iter().map(|(k, v)| (k, v)))
            .output()
            .unwrap();
        assert!(output.status.success(), "{line}: {}", said(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Mounts a vault; gives the mount point.
    pub(crate) fn mount(&mut self, vault: &str) -> PathBuf {
        self.mount_with(vault, "rw")
    }

    /// With options for `-o`.
    pub(crate) fn mount_with(&mut self, vault: &str, options: &str) -> PathBuf {
        self.points += 1;
        let point = self.path(&format!("mnt-{}", self.points));
        fs::create_dir(&point).unwrap();
        let log = self.path("log");
        let log = log.to_str().unwrap();
        self.ok(&["mount", "-o", options, "--log-file", log, vault, point.to_str().unwrap()]);
        self.mounts.push(point.clone());
        point
    }

    pub(crate) fn umount(&mut self, point: &Path) {
        self.ok(&["umount", point.to_str().unwrap()]);
        self.mounts.retain(|m| m != point);
    }

    /// Unmounts when the last program has left that was told to.
    pub(crate) fn umount_soon(&mut self, point: &Path) {
        eventually("the end of the mount", || {
            self.efs(&["umount", point.to_str().unwrap()]).output().unwrap().status.success()
        });
        self.mounts.retain(|m| m != point);
    }

    /// Fills the vault with files of every kind and length.
    pub(crate) fn fill(&mut self) {
        let mnt = self.mount("vault");
        fs::write(self.path("fill.sh"), FILL).unwrap();
        self.sh(&format!("cd {} && bash ../fill.sh", mnt.display()));
        self.umount(&mnt);
    }

    /// Makes the repository.
    pub(crate) fn init_repo(&self) {
        self.ok(&["backup", "init", "vault", "REPO"]);
    }

    /// Mounts both vaults and compares everything that a user sees.
    pub(crate) fn assert_same(&mut self, a: &str, b: &str) {
        let (left, right) = (self.mount(a), self.mount(b));
        let list = r"find . -printf '%p %y %m %U %G %s %T@ %l %n\n' | sed 's/^\(\S* d \S* \S* \S*\) \S*/\1/' | sort; \
                     find . -type f -exec md5sum {} + | sort; find . -print0 | sort -z | xargs -0 getfattr -hd -m '^user\.' 2>/dev/null || true";
        let seen = |home: &Self, at: &Path| home.sh(&format!("cd {} && {list}", at.display()));
        let (one, other) = (seen(self, &left), seen(self, &right));
        self.umount(&left);
        self.umount(&right);
        assert!(one.lines().count() >= 3, "{one}");
        assert_eq!(one, other);
    }

    /// Every regular lower file with a header, below a vault.
    pub(crate) fn lower_files(&self, vault: &str) -> Vec<PathBuf> {
        let found =
            self.sh(&format!("find {vault} -name .envelopefs -prune -o -type f ! -name '*.n' -print | sort"));
        found.lines().map(|line| self.path(line)).collect()
    }

    /// Packs of a local repository, the largest first.
    pub(crate) fn packs(&self) -> Vec<PathBuf> {
        let found = self.sh("find repo/data -type f -printf '%s %p\\n' | sort -rn | cut -d' ' -f2");
        found.lines().map(|line| self.path(line)).collect()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        for mount in &self.mounts {
            let _ = Command::new("fusermount3").args(["-uz", mount.to_str().unwrap()]).output();
        }
    }
}

/// A tree with what a backup can get wrong.
const FILL: &str = r#"
mkdir -p a/b/c empty; printf x > one; : > zero
head -c 4064 /dev/urandom > a/inline; head -c 4065 /dev/urandom > a/grouped
head -c 600000 /dev/urandom > a/b/two-groups; head -c 3000000 /dev/urandom > a/b/c/large
truncate -s 5000000 sparse; printf end >> sparse
ln -s ../one a/link; ln one hard; mkfifo fifo
for n in $(seq 60); do head -c $((n * 37)) /dev/urandom > a/f$n; done
name=$(printf 'n%.0s' $(seq 250)); echo long > "$name"; mkdir "d$name"; echo in > "d$name/x"
chmod 0400 a/f1; chmod 0751 a/b; touch -d '2001-02-03 04:05:06.789' a/f2 a/b/c
setfattr -n user.colour -v blue a/f3; setfattr -n user.dir -v yes a/b
"#;

/// A child that is killed when the test ends.
pub(crate) struct Killed(pub(crate) Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits for what should come soon on a busy machine.
pub(crate) fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < until, "{what}: it does not come");
        std::thread::sleep(Duration::from_millis(20));
    }
}
