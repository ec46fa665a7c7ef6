//! The keys on the disk too: a key that was rotated, and files that were synced under its new material.

use std::path::Path;
use std::process::Command;

use crate::disk::Disk;
use crate::load::{Bench, Load};
use crate::model::{Findings, Moment};
use crate::random::Random;
use crate::target::{Place, Target, run};
use crate::work::{Work, read_tree};

/// A directory in which each file was made after a rotation.
pub(crate) struct Keys<'a> {
    disk: &'a Disk,
    random: Random,
    work: Option<Work<'a>>,
    made: usize,
}

impl<'a> Keys<'a> {
    pub(crate) fn new(disk: &'a Disk, seed: u64) -> Self {
        Self { disk, random: Random::new(seed), work: None, made: 0 }
    }

    fn file(&mut self, dir: &str) {
        let work = self.work.as_mut().unwrap();
        let name = format!("{dir}{}", self.made);
        self.made += 1;
        work.create(&name);
        let len = 1 + self.random.index(9000);
        let bytes = self.random.bytes(len);
        work.write(&name, 0, &bytes);
        work.sync(&name);
        work.sync_dir("");
        work.close_all();
    }
}

/// Rotations that the KMS allows for one key, as AWS's does.
const ROTATIONS: usize = 8;

fn change_store(target: Target, place: &Place, round: usize) {
    if matches!(target, Target::Envelopefs | Target::Unordered) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_envelopefs"));
        let rotate: &[&str] = &["kms", "rotate-key", "alias/envelopefs"];
        command.args(if round < ROTATIONS { rotate } else { &["kms", "create-key"] });
        command.arg("--kms-dir").arg(&place.keys);
        run(command).unwrap();
    }
}

impl Load for Keys<'_> {
    fn prepare(&mut self, bench: &Bench) {
        let mounted = bench.target.mount(bench.place).unwrap();
        self.work = Some(Work::new(self.disk, bench.place.mnt.join("work")));
        self.file("f");
        self.work.as_mut().unwrap().settle();
        mounted.unmount().unwrap();
    }

    fn work(&mut self, bench: &Bench) {
        for round in (0..).take_while(|_| !bench.is_over()) {
            change_store(bench.target, bench.place, round);
            let mounted = bench.target.mount(bench.place).unwrap();
            for _ in 0..3 {
                self.file("f");
            }
            mounted.unmount().unwrap();
        }
    }

    fn judge(&self, cut: Moment, mnt: &Path) -> Findings {
        self.work.as_ref().unwrap().model.judge(cut, &read_tree(&mnt.join("work")))
    }

    fn keys_inside(&self) -> bool {
        true
    }
}
