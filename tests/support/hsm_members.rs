//! A cluster of three HSMs, each a process that ends with the test, also when that fails.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use envelopefs::hsm::{Address, Appliance, Cost, Manager, Protection, Role};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Password of the admin `admin`.
pub(crate) const ADMIN: &str = "admin-password";
/// Password of the crypto user `user`.
pub(crate) const PASSWORD: &str = "user-password";
/// Longer than a loaded machine takes for what the loss of a member may delay by many seconds.
const LONG: Duration = Duration::from_secs(240);

/// Waits until something is done.
pub(crate) fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < LONG, "waited too long for {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// One HSM.
pub(crate) struct Member {
    dir: PathBuf,
    process: Option<Child>,
}

impl Member {
    pub(crate) fn address(&self) -> Address {
        Address::Unix(self.dir.with_extension("sock"))
    }

    /// Starts it, and waits until it serves.
    pub(crate) fn start(&mut self) {
        // KILL, as a stopped process takes no other signal.
        let mut child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", env!("CARGO_BIN_EXE_envelopefs"), "hsm", "serve", "--dir"])
            .arg(&self.dir)
            .args(["--listen", &self.address().to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let output = child.stdout.take().unwrap();
        self.process = Some(child);
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line).unwrap();
        assert!(line.starts_with("unix:"), "it does not serve: {line:?}");
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = self.process.as_ref().and_then(|child| i32::try_from(child.id()).ok());
        kill_process(pid.and_then(Pid::from_raw).unwrap(), signal).unwrap();
    }

    /// As a plug that is pulled; also where it is stopped.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.process.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// A connection of one of its users.
    pub(crate) fn manager(&self, user: &str, role: Role, password: &str) -> Manager {
        let manager = Manager::new(self.address(), None).unwrap();
        manager.login(user, role, password).unwrap();
        manager
    }

    /// What it says of itself and of the others; asks for no login.
    pub(crate) fn health(&self) -> Option<Value> {
        Manager::new(self.address(), None).ok()?.health().ok()
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Three members of one cluster with the crypto user `user`, in a directory.
pub(crate) fn members(home: &Path) -> Vec<Member> {
    let member = |n: usize| Member { dir: home.join(format!("hsm{n}")), process: None };
    let mut first = member(0);
    Appliance::create(&first.dir, &Protection::KeyFile, Cost::TESTS).unwrap();
    first.start();
    Manager::new(first.address(), None).unwrap().activate(ADMIN).unwrap();
    let admin = first.manager("admin", Role::Admin, ADMIN);
    admin.user_create("user", Role::CryptoUser, PASSWORD).unwrap();
    let made = admin.backup("backup password").unwrap();
    let backup = PathBuf::from(made["path"].as_str().unwrap());
    let mut all = vec![first];
    for n in [1, 2] {
        let mut other = member(n);
        let (root, cost) = (Protection::KeyFile, Cost::TESTS);
        Appliance::restore(&other.dir, &root, cost, &backup, b"backup password").unwrap();
        other.start();
        admin.cluster_add(&other.address().to_string()).unwrap();
        all.push(other);
    }
    all
}

/// Waits until a member says that the others have all that it has.
pub(crate) fn synchronised(by: &Member) {
    wait_for("the members to be alike", || {
        let health = by.health().unwrap_or(Value::Null);
        let others = health["members"].as_array().map_or(&[][..], Vec::as_slice);
        others.len() == 2
            && others.iter().all(|m| m["reachable"] == true && m["compared"] == true && m["lacks"] == 0)
    });
}
