//! A vault on a cluster of three of our HSMs, whose members are killed and stopped under load.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;

use envelopefs::hsm::{NewKey, Role, Sharing};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::harness::{Vault, can_mount, envelopefs, pattern, run, text};
use crate::hsm_members::{ADMIN, Member, PASSWORD, members, synchronised, wait_for};
use crate::token::{Stop, our_module};

const WORKERS: usize = 4;

/// Three members with the crypto user `user`, whose AES key is `vault-key`.
struct Cluster {
    members: Vec<Member>,
    _home: TempDir,
}

impl Cluster {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let members = members(home.path());
        let user = members[0].manager("user", Role::CryptoUser, PASSWORD);
        user.key_generate(NewKey::Aes(32), "vault-key", "", &[], &Sharing::default()).unwrap();
        Self { members, _home: home }
    }

    /// What commands and mounts need to find it.
    fn env(&self) -> [(&'static str, String); 2] {
        let addresses: Vec<_> = self.members.iter().map(|member| member.address().to_string()).collect();
        [("ENVELOPEFS_HSM", addresses.join(",")), ("ENVELOPEFS_PIN", format!("user:{PASSWORD}"))]
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
            let health = cluster.members[other].health().unwrap();
            assert!(health["members"].to_string().contains(&format!("user {late}")), "{health}");
            cluster.members[lost].start();
            synchronised(&cluster.members[other]);
            drop(cluster.members[lost].manager(&late, Role::CryptoUser, PASSWORD));
        }
        cluster.members[0].signal(Signal::STOP);
        load.goes_on();
        cluster.members[0].signal(Signal::CONT);
        synchronised(&cluster.members[0]);
        cluster.members[2].kill();
        cluster.members[1].signal(Signal::STOP);
        load.goes_on();
        cluster.members[1].signal(Signal::CONT);
        cluster.members[2].start();
        synchronised(&cluster.members[0]);
        load.goes_on();
    });
    let log = vault.log();
    assert!(!log.contains("gives no keys") && !log.contains("is started again"), "{log}");
    mount.unmount();
    run(envelopefs(["check", text(&vault.dir)]).envs(cluster.env()));
}
