//! SQLite: transactions that were committed are there, whole, and none is there in part.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::disk::Disk;
use crate::load::{Bench, Load, all_reads, while_written_back};
use crate::model::{Findings, Moment};
use crate::random::Random;
use crate::target::run;

/// One database for each kind of journal that SQLite has; each is set so that it syncs what it must for durable commits.
const MODES: &[(&str, &str)] = &[("delete", "extra"), ("truncate", "full"), ("wal", "full")];

/// Databases with their acknowledged transactions.
pub(crate) struct Sqlite<'a> {
    disk: &'a Disk,
    random: Random,
    /// Of each database: from which moment on how many transactions are durable.
    acks: Vec<Vec<(Moment, u64)>>,
    done: Vec<u64>,
}

impl<'a> Sqlite<'a> {
    pub(crate) fn new(disk: &'a Disk, seed: u64) -> Self {
        let acks = vec![Vec::new(); MODES.len()];
        Self { disk, random: Random::new(seed), acks, done: vec![0; MODES.len()] }
    }

    /// A few transactions in one process, each acknowledged by what it prints.
    fn transactions(&mut self, which: usize, mnt: &Path, count: u64) {
        let (mode, synchronous) = MODES[which];
        let mut shell = Command::new("sqlite3");
        shell.arg("-bail").arg(mnt.join(format!("{mode}.db"))).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut shell = shell.spawn().unwrap();
        let mut to = shell.stdin.take().unwrap();
        let mut from = BufReader::new(shell.stdout.take().unwrap()).lines();
        let mut say = |line: String, answer: &str| {
            writeln!(to, "{line}\nselect 'done';").unwrap();
            let found = from.by_ref().map(Result::unwrap).find(|l| l == "done" || l == answer);
            assert!(found.is_some(), "{mode}: {line}");
        };
        say(format!("pragma synchronous={synchronous}; pragma journal_mode={mode};"), "done");
        for _ in 0..count {
            let n = self.done[which] + 1;
            let (a, b) = (self.random.below(20), self.random.below(20));
            let filler = "x".repeat(self.random.index(6000));
            say(
                format!(
                    "begin; insert into log values({n}, '{n}:{filler}');
                     update account set balance = balance - {n} where id = {a};
                     update account set balance = balance + {n} where id = {b};
                     update counter set n = {n}; commit;"
                ),
                "done",
            );
            self.done[which] = n;
            self.acks[which].push((self.disk.now(), n));
        }
        drop(to);
        assert!(shell.wait().unwrap().success());
    }
}

impl Load for Sqlite<'_> {
    fn prepare(&mut self, bench: &Bench) {
        let mounted = bench.target.mount(bench.place).unwrap();
        for (mode, _) in MODES {
            let make = "create table log(n integer primary key, text); create table counter(n); insert into counter values(0);
                create table account(id integer primary key, balance);
                with recursive i(n) as (select 0 union all select n + 1 from i where n < 19) insert into account select n, 1000 from i;";
            let make = format!("pragma journal_mode={mode}; {make}");
            run(Command::new("sqlite3").arg(bench.place.mnt.join(format!("{mode}.db"))).arg(make)).unwrap();
        }
        for which in 0..MODES.len() {
            self.transactions(which, &bench.place.mnt, 5);
        }
        mounted.unmount().unwrap();
    }

    fn work(&mut self, bench: &Bench) {
        let mounted = bench.target.mount(bench.place).unwrap();
        while_written_back(bench.place, || {
            while !bench.is_over() {
                let which = self.random.index(MODES.len());
                let count = 1 + self.random.below(8);
                self.transactions(which, &bench.place.mnt, count);
            }
        });
        mounted.unmount().unwrap();
    }

    fn judge(&self, cut: Moment, mnt: &Path) -> Findings {
        let mut findings = all_reads(mnt);
        for (which, (mode, _)) in MODES.iter().enumerate() {
            let sure =
                self.acks[which].iter().filter(|(at, _)| *at <= cut).map(|(_, n)| *n).max().unwrap_or(0);
            let ask = "pragma integrity_check; select n from counter; select count(*) from log;
                select coalesce(max(n), 0) from log; select sum(balance) from account;
                select count(*) from log where text not like n || ':%';";
            match run(Command::new("sqlite3").arg("-bail").arg(mnt.join(format!("{mode}.db"))).arg(ask)) {
                Err(why) => findings.lost(format!("{mode}.db: {why}")),
                Ok(said) => {
                    let lines: Vec<_> = said.lines().collect();
                    let n = lines.get(1).and_then(|n| n.parse().ok()).unwrap_or(0_u64);
                    let want = format!("ok\n{n}\n{n}\n{n}\n20000\n0\n");
                    if said != want {
                        findings.lost(format!("{mode}.db: {said:?} is not {want:?}"));
                    } else if n < sure {
                        findings.lost(format!("{mode}.db: {n} transactions, acknowledged were {sure}"));
                    }
                }
            }
        }
        findings
    }
}
