//! A vault on a cluster of three of our HSMs, whose members are killed and stopped under load.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use envelopefs::hsm::{Address, Appliance, Cost, Manager, NewKey, Protection, Role, Sharing};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::harness::{Vault, can_mount, envelopefs, pattern, run, text};
use crate::token::{Stop, our_module};

const ADMIN: &str = "admin-password";
const PASSWORD: &str = "user-password";
const WORKERS: usize = 4;
/// Longer than a loaded machine takes for anything here.
const LONG: Duration = Duration::from_secs(240);

/// Waits for what the loss of a member may delay by many seconds.
fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < LONG, "waited too long for {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// One HSM as a process, which ends with this one.
struct Member {
    dir: PathBuf,
    process: Option<Child>,
}

impl Member {
    fn address(&self) -> Address {
        Address::Unix(self.dir.with_extension("sock"))
    }

    /// Starts it, and waits until it serves.
    fn start(&mut self) {
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

    fn signal(&self, signal: Signal) {
        let pid = self.process.as_ref().and_then(|child| i32::try_from(child.id()).ok());
        kill_process(pid.and_then(Pid::from_raw).unwrap(), signal).unwrap();
    }

    /// As a plug that is pulled; also where it is stopped.
    fn kill(&mut self) {
        if let Some(mut child) = self.process.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn manager(&self, user: &str, role: Role, password: &str) -> Manager {
        let manager = Manager::new(self.address(), None).unwrap();
        manager.login(user, role, password).unwrap();
        manager
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Three members with the crypto user `user`, whose AES key is `vault-key`.
struct Cluster {
    members: Vec<Member>,
    _home: TempDir,
}

impl Cluster {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let member = |n: usize| Member { dir: home.path().join(format!("hsm{n}")), process: None };
        let mut first = member(0);
        Appliance::create(&first.dir, &Protection::KeyFile, Cost::TESTS).unwrap();
        first.start();
        Manager::new(first.address(), None).unwrap().activate(ADMIN).unwrap();
        let admin = first.manager("admin", Role::Admin, ADMIN);
        admin.user_create("user", Role::CryptoUser, PASSWORD).unwrap();
        let made = admin.backup("backup password").unwrap();
        let backup = PathBuf::from(made["path"].as_str().unwrap());
        let mut members = vec![first];
        for n in [1, 2] {
            let mut other = member(n);
            let (root, cost) = (Protection::KeyFile, Cost::TESTS);
            Appliance::restore(&other.dir, &root, cost, &backup, b"backup password").unwrap();
            other.start();
            admin.cluster_add(&other.address().to_string()).unwrap();
            members.push(other);
        }
        let user = members[0].manager("user", Role::CryptoUser, PASSWORD);
        user.key_generate(NewKey::Aes(32), "vault-key", "", &[], &Sharing::default()).unwrap();
        Self { members, _home: home }
    }

    /// What commands and mounts need to find it.
    fn env(&self) -> [(&'static str, String); 2] {
        let addresses: Vec<_> = self.members.iter().map(|member| member.address().to_string()).collect();
        [("ENVELOPEFS_HSM", addresses.join(",")), ("ENVELOPEFS_PIN", format!("user:{PASSWORD}"))]
    }

    /// Waits until a member says that the others have all that it has.
    fn synchronised(&self, by: usize) {
        let mut last = Value::Null;
        let whole = |health: &Value| {
            let others = health["members"].as_array().map_or(&[][..], Vec::as_slice);
            others.len() == 2
                && others.iter().all(|m| m["reachable"] == true && m["compared"] == true && m["lacks"] == 0)
        };
        wait_for("the members to be alike", || {
            let manager = Manager::new(self.members[by].address(), None).unwrap();
            last = manager.health().unwrap_or(Value::Null);
            whole(&last)
        });
    }
}

/// The load: workers that make files, read them, and read earlier ones, each of which needs the cluster.
#[derive(Default)]
struct Load {
    stop: AtomicBool,
    rounds: [AtomicU64; WORKERS],
}

impl Load {
    fn work(&self, worker: usize, dir: &std::path::Path) {
        // Without this a failure would leave the others at work for ever.
        let _stop = Stop(&self.stop);
        let seed = |n: u64| n * WORKERS as u64 + worker as u64;
        let path = |n: u64| dir.join(seed(n).to_string());
        for n in 0.. {
            if self.stop.load(Relaxed) {
                return;
            }
            fs::write(path(n), pattern(5000, seed(n))).unwrap_or_else(|e| panic!("{worker}: write {n}: {e}"));
            for old in [n, n / 2] {
                let read = fs::read(path(old)).unwrap_or_else(|e| panic!("{worker}: read {old}: {e}"));
                assert!(read == pattern(5000, seed(old)), "{worker}: {old} is another");
            }
            self.rounds[worker].store(n + 1, Relaxed);
        }
    }

    /// Waits until each worker has gone some rounds further.
    fn goes_on(&self) {
        let before: Vec<_> = self.rounds.iter().map(|n| n.load(Relaxed)).collect();
        wait_for("the load to go on", || {
            assert!(!self.stop.load(Relaxed), "a worker ended");
            self.rounds.iter().zip(&before).all(|(n, before)| n.load(Relaxed) >= before + 10)
        });
    }
}

/// No operation of the mount fails while each member in turn is killed and brought back, one is stopped, and then one is
/// stopped while the next one is killed. Each loss but for the first two hits the member that the mount works with: it goes
/// on to the next one in their order, and is with the first when all have been killed in turn.
#[test]
fn a_mount_survives_the_loss_of_each_member() {
    if !can_mount() {
        return;
    }
    let mut cluster = Cluster::new();
    let vault = Vault::unmade();
    let uri = format!("pkcs11:object=vault-key?module-path={}", our_module().display());
    run(envelopefs(["init", text(&vault.dir), "--key-uri", &uri]).envs(cluster.env()));
    let variables = cluster.env().map(|(name, value)| format!("{name}={value}"));
    let mount = vault.mount_as(&["env", &variables[0], &variables[1]], "key_cache=0");
    let load = Load::default();
    thread::scope(|scope| {
        for worker in 0..WORKERS {
            let (load, dir) = (&load, mount.top());
            scope.spawn(move || load.work(worker, dir));
        }
        let _stop = Stop(&load.stop);
        load.goes_on();
        for lost in 0..3 {
            let other = (lost + 1) % 3;
            cluster.members[lost].kill();
            load.goes_on();
            let late = format!("late{lost}");
            let admin = cluster.members[other].manager("admin", Role::Admin, ADMIN);
            admin.user_create(&late, Role::CryptoUser, PASSWORD).unwrap();
            let health = admin.health().unwrap();
            assert!(health["members"].to_string().contains(&format!("user {late}")), "{health}");
            cluster.members[lost].start();
            cluster.synchronised(other);
            drop(cluster.members[lost].manager(&late, Role::CryptoUser, PASSWORD));
        }
        cluster.members[0].signal(Signal::STOP);
        load.goes_on();
        cluster.members[0].signal(Signal::CONT);
        cluster.synchronised(0);
        cluster.members[2].kill();
        cluster.members[1].signal(Signal::STOP);
        load.goes_on();
        cluster.members[1].signal(Signal::CONT);
        cluster.members[2].start();
        cluster.synchronised(0);
        load.goes_on();
    });
    let log = vault.log();
    assert!(!log.contains("gives no keys") && !log.contains("is started again"), "{log}");
    mount.unmount();
    run(envelopefs(["check", text(&vault.dir)]).envs(cluster.env()));
}
