//! SQLite commits: what it has acknowledged is in the database, which stays whole.

use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::random::Random;
use crate::worker::{Over, Worker};

/// The load: one row a transaction, counted upwards.
pub(crate) struct SqliteLoad {
    random: Random,
    acknowledged: u64,
    begun: u64,
    shell: Option<Child>,
}

impl SqliteLoad {
    /// `None` where the program is missing.
    pub(crate) fn new(seed: u64) -> Option<Self> {
        let there = Command::new("sqlite3").arg("--version").output().is_ok();
        there.then(|| Self { random: Random(seed), acknowledged: 0, begun: 0, shell: None })
    }
}

impl Worker for SqliteLoad {
    fn name(&self) -> String {
        "sqlite".to_owned()
    }

    fn prepare(&mut self, dir: &Path) -> io::Result<()> {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "sqlite3", "-bail", "db"]).current_dir(dir);
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        self.shell = Some(piped.spawn()?);
        Ok(())
    }

    fn work(&mut self, _dir: &Path, over: &Over) -> (u64, io::Result<()>) {
        let mut shell = self.shell.take().expect("prepared");
        let before = self.acknowledged;
        let outcome = self.talk(&mut shell, over);
        let _ = shell.kill();
        let _ = shell.wait();
        (self.acknowledged - before, outcome)
    }

    fn verify(&mut self, dir: &Path) -> Result<(), String> {
        let ask = "PRAGMA integrity_check; CREATE TABLE IF NOT EXISTS t(i INTEGER PRIMARY KEY, x);
            SELECT count(*) || ' ' || coalesce(max(i), 0) FROM t;";
        let output = Command::new("sqlite3").arg("db").arg(ask).current_dir(dir).output();
        let output = output.map_err(|e| e.to_string())?;
        let said = crate::harness::said(&output);
        let mut lines = said.lines();
        let sound = lines.next() == Some("ok");
        let counts: Vec<u64> =
            lines.next().unwrap_or_default().split(' ').filter_map(|n| n.parse().ok()).collect();
        let [rows, newest] = counts[..] else { return Err(said) };
        let range = self.acknowledged..=self.begun;
        (self.acknowledged, self.begun) = (newest, newest);
        if sound && rows == newest && range.contains(&newest) {
            return Ok(());
        }
        Err(format!("{said} ({range:?} expected)"))
    }
}

impl SqliteLoad {
    fn talk(&mut self, shell: &mut Child, over: &Over) -> io::Result<()> {
        let mode = ["delete", "wal", "truncate", "persist"][self.random.below(4) as usize];
        let mut ask = shell.stdin.take().expect("piped");
        let mut answers = BufReader::new(shell.stdout.take().expect("piped")).lines();
        writeln!(ask, "PRAGMA synchronous=FULL; PRAGMA journal_mode={mode};")?;
        writeln!(ask, "CREATE TABLE IF NOT EXISTS t(i INTEGER PRIMARY KEY, x);")?;
        let ended = || io::Error::other("sqlite3 has ended");
        answers.next().ok_or_else(ended)??;
        while !over.is_set() {
            let size = self.random.below(6000);
            self.begun += 1;
            let i = self.begun;
            writeln!(ask, "INSERT INTO t VALUES({i}, randomblob({size})); SELECT {i};")?;
            if answers.next().ok_or_else(ended)??.parse() != Ok(i) {
                return Err(io::Error::other("sqlite3 gave another answer"));
            }
            self.acknowledged = i;
        }
        Ok(())
    }
}
