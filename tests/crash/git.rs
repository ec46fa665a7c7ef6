//! Git: a commit that was acknowledged is there with all that it refers to.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::disk::Disk;
use crate::load::{Bench, Load, all_reads, while_written_back};
use crate::model::{Findings, Moment};
use crate::random::Random;
use crate::target::run;

/// A repository, and which of its commits are durable from when on.
pub(crate) struct Git<'a> {
    disk: &'a Disk,
    random: Random,
    acks: Vec<(Moment, u64)>,
    done: u64,
}

impl<'a> Git<'a> {
    pub(crate) fn new(disk: &'a Disk, seed: u64) -> Self {
        Self { disk, random: Random::new(seed), acks: Vec::new(), done: 0 }
    }

    /// A commit of a few changed files, with all that git syncs when it is told to; it leaves the directories to us.
    fn commit(&mut self, repo: &Path) {
        for _ in 0..=self.random.below(4) {
            let dir = repo.join(format!("d{}", self.random.below(4)));
            fs::create_dir_all(&dir).unwrap();
            let len = self.random.index(6000);
            fs::write(dir.join(format!("f{}", self.random.below(10))), self.random.bytes(len)).unwrap();
        }
        let n = self.done + 1;
        git(repo, &["add", "-A"]).unwrap();
        git(repo, &["commit", "-q", "--allow-empty", "-m", &n.to_string()]).unwrap();
        sync_dirs(&repo.join(".git"));
        self.done = n;
        self.acks.push((self.disk.now(), n));
    }
}

fn git(repo: &Path, args: &[&str]) -> Result<String, String> {
    let mut command = Command::new("git");
    command.arg("-C").arg(repo).args(["-c", "core.fsync=all", "-c", "core.fsyncMethod=fsync"]);
    // Its log of heads is appended to without a sync.
    command.args(["-c", "core.logAllRefUpdates=false", "-c", "gc.auto=0", "-c", "safe.directory=*"]);
    command.args(["-c", "user.name=t", "-c", "user.email=t@t.invalid"]).args(args);
    command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_SYSTEM", "/dev/null");
    run(command)
}

fn sync_dirs(dir: &Path) {
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            sync_dirs(&entry.path());
        }
    }
    File::open(dir).unwrap().sync_all().unwrap();
}

fn repo(mnt: &Path) -> PathBuf {
    mnt.join("repo")
}

impl Load for Git<'_> {
    fn prepare(&mut self, bench: &Bench) {
        let mounted = bench.target.mount(bench.place).unwrap();
        let repo = repo(&bench.place.mnt);
        fs::create_dir(&repo).unwrap();
        git(&repo, &["init", "-q", "-b", "main", "."]).unwrap();
        for _ in 0..3 {
            self.commit(&repo);
        }
        mounted.unmount().unwrap();
    }

    fn work(&mut self, bench: &Bench) {
        let mounted = bench.target.mount(bench.place).unwrap();
        while_written_back(bench.place, || {
            while !bench.is_over() {
                self.commit(&repo(&bench.place.mnt));
            }
        });
        mounted.unmount().unwrap();
    }

    fn judge(&self, cut: Moment, mnt: &Path) -> Findings {
        let mut findings = all_reads(mnt);
        let sure = self.acks.iter().filter(|(at, _)| *at <= cut).map(|(_, n)| *n).max().unwrap_or(0);
        let repo = repo(mnt);
        let top = git(&repo, &["log", "-1", "--format=%s"]);
        match top.as_ref().map(|t| t.trim().parse::<u64>()) {
            Ok(Ok(n)) if n >= sure => {}
            other => findings.lost(format!("git log: {other:?}, acknowledged were {sure} commits")),
        }
        if let Err(why) = git(&repo, &["fsck", "--full", "--strict", "--no-dangling"]) {
            findings.lost(format!("git fsck: {why}"));
        }
        if let Err(why) = git(&repo, &["ls-files", "--stage"]) {
            findings.lost(format!("git index: {why}"));
        }
        findings
    }
}
