//! The daemon is killed with SIGKILL at a random instant, again and again, with several loads at work: after the next
//! mount every acknowledged operation is there, and all that was under way is old or new.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::files::{FileLoad, Habit};
use crate::harness::{Mount, Vault, can_mount, text, transport};
use crate::mapped::MappedLoad;
use crate::names::NameLoad;
use crate::random::Random;
use crate::setting;
use crate::sqlite::SqliteLoad;
use crate::worker::{Over, Worker};

/// Kills that one vault goes through before its last, clean unmount and `check`.
const KILLS_A_VAULT: u64 = 25;
/// Faults after which a run is given up.
const ENOUGH: usize = 20;

/// When the daemon is killed.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// So long after the loads began.
    Working(Duration),
    /// So long after the loads came to an end: caches and background work.
    Idle(Duration),
    /// So long after it was told to unmount.
    Unmounting(Duration),
    /// So long after its start, once more after a kill at work.
    Mounting(Duration),
}

fn moment(random: &mut Random) -> Moment {
    let micros = |random: &mut Random, most| Duration::from_micros(random.below(most));
    match random.below(100) {
        0..70 => Moment::Working(micros(random, 200_000)),
        70..82 => Moment::Working(micros(random, 1_200_000)),
        82..85 => Moment::Working(Duration::from_secs(4) + micros(random, 3_000_000)),
        85..90 => Moment::Idle(micros(random, 2_000_000)),
        90..95 => Moment::Unmounting(micros(random, 60_000)),
        _ => Moment::Mounting(micros(random, 150_000)),
    }
}

/// What a run did.
#[derive(Debug, Default)]
struct Tally {
    kills: u64,
    operations: u64,
    faults: Vec<String>,
}

/// One vault and the loads on it.
struct Series {
    vault: Arc<Vault>,
    workers: Vec<Box<dyn Worker>>,
    random: Random,
    options: String,
}

impl Series {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let habits = [
            Habit::Overwrites,
            Habit::Appends,
            Habit::Sizes,
            Habit::Small,
            Habit::Flood,
            Habit::Stripe(0),
            Habit::Stripe(1),
        ];
        let mut workers: Vec<Box<dyn Worker>> = Vec::new();
        for habit in habits {
            workers.push(Box::new(FileLoad::new(habit, random.next())));
        }
        workers.push(Box::new(NameLoad::new(random.next())));
        workers.push(Box::new(MappedLoad::new(random.next())));
        if let Some(load) = SqliteLoad::new(random.next()) {
            workers.push(Box::new(load));
        }
        let options = std::env::var("EFS_KILL_OPTIONS").unwrap_or_default();
        Self { vault: Arc::new(Vault::new()), workers, random, options }
    }

    /// One life of the daemon and its death; the faults that the next life shows.
    fn point(&mut self, tally: &mut Tally) -> Vec<String> {
        let moment = moment(&mut self.random);
        let chosen = self.choose();
        let mut faults = Vec::new();
        let vault = Arc::clone(&self.vault);
        let mount = vault.mount_with(&self.options);
        let dir = mount.top().to_owned();
        for i in &chosen {
            let worker = &mut self.workers[*i];
            if let Err(e) = worker.prepare(&dir) {
                faults.push(format!("{}: not ready: {e}", worker.name()));
            }
        }
        if faults.is_empty() {
            faults = self.live(&chosen, moment, mount, tally);
        } else {
            drop(mount);
        }
        tally.kills += 1;
        if let Moment::Mounting(after) = moment {
            self.die_while_mounting(after);
            tally.kills += 1;
        }
        let faults = faults.into_iter().chain(self.look(&chosen));
        faults.map(|fault| format!("killed {moment:?}: {fault}")).collect()
    }

    /// Three to five of the loads; both of those that share a file, or none.
    fn choose(&mut self) -> Vec<usize> {
        let count = 3 + self.random.below(3);
        let mut chosen: Vec<_> =
            (0..count).map(|_| self.random.below(self.workers.len() as u64) as usize).collect();
        if chosen.contains(&5) || chosen.contains(&6) {
            chosen.extend([5, 6]);
        }
        chosen.sort_unstable();
        chosen.dedup();
        chosen
    }

    /// Lets the loads work and kills the daemon at its moment.
    fn live(&mut self, chosen: &[usize], moment: Moment, mount: Mount<'_>, tally: &mut Tally) -> Vec<String> {
        let dir = mount.top().to_owned();
        let (over, ended) = (Over::default(), Over::default());
        let id = mount.daemon_id();
        let kill = || {
            ended.set();
            kill_process(Pid::from_raw(id.cast_signed()).unwrap(), Signal::KILL).unwrap();
        };
        let (over, ended, dir) = (&over, &ended, &dir);
        let outcomes: Vec<_> = thread::scope(|scope| {
            let workers = self.workers.iter_mut().enumerate().filter(|(i, _)| chosen.contains(i));
            let threads: Vec<_> = workers
                .map(|(_, worker)| {
                    scope.spawn(move || {
                        let (done, outcome) = worker.work(dir, over);
                        let excused = ended.is_set();
                        (done, outcome.err().filter(|_| !excused).map(|e| format!("{}: {e}", worker.name())))
                    })
                })
                .collect();
            match moment {
                Moment::Working(after) | Moment::Mounting(after) => {
                    thread::sleep(after);
                    over.set();
                    kill();
                }
                Moment::Idle(_) | Moment::Unmounting(_) => {
                    thread::sleep(Duration::from_millis(150));
                    over.set();
                }
            }
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        match moment {
            Moment::Idle(after) => {
                thread::sleep(after);
                kill();
            }
            Moment::Unmounting(after) => {
                kill_process(Pid::from_raw(id.cast_signed()).unwrap(), Signal::TERM).unwrap();
                thread::sleep(after);
                kill();
            }
            _ => {}
        }
        mount.kill();
        self.await_unmount();
        tally.operations += outcomes.iter().map(|(done, _)| done).sum::<u64>();
        outcomes.into_iter().filter_map(|(_, fault)| fault).collect()
    }

    /// The guardian takes the dead mount away.
    fn await_unmount(&self) {
        let until = Instant::now() + Duration::from_secs(20);
        let top = format!(" {} ", text(&self.vault.mnt));
        while fs::read_to_string("/proc/self/mountinfo").unwrap().contains(&top) {
            assert!(Instant::now() < until, "the dead mount stays");
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Starts the daemon and kills it before it is ready, or soon after.
    fn die_while_mounting(&self, after: Duration) {
        let transport = transport();
        let args = [
            "mount",
            text(&self.vault.dir),
            text(&self.vault.mnt),
            "--foreground",
            "--transport",
            &transport,
        ];
        let mut command = self.vault.command(&args);
        if !self.options.is_empty() {
            command.args(["-o", &self.options]);
        }
        let mut daemon = command.stderr(std::process::Stdio::null()).spawn().unwrap();
        thread::sleep(after);
        daemon.kill().unwrap();
        daemon.wait().unwrap();
        // A mount that came about is the guardian's to end; one that did not leaves nothing.
        self.await_unmount();
    }

    /// Mounts again and compares. Every second time the next life begins without a clean unmount before it.
    fn look(&mut self, chosen: &[usize]) -> Vec<String> {
        let vault = Arc::clone(&self.vault);
        let mount = vault.mount_with(&self.options);
        let dir = mount.top().to_owned();
        let workers = self.workers.iter_mut().enumerate().filter(|(i, _)| chosen.contains(i));
        let faults = workers
            .filter_map(|(_, worker)| worker.verify(&dir).err().map(|e| format!("{}: {e}", worker.name())))
            .collect::<Vec<_>>();
        if faults.is_empty() && self.random.percent(50) {
            mount.kill();
            self.await_unmount();
        } else {
            mount.unmount();
        }
        faults
    }

    /// What the last, clean unmount must leave: a sound vault with nothing to replay.
    fn end(&self) -> Vec<String> {
        let mut faults = Vec::new();
        self.vault.mount_with(&self.options).unmount();
        let (code, said) = self.vault.check();
        if code != 0 {
            faults.push(format!("check gives {code}: {said}"));
        }
        let left = fs::read_dir(self.vault.dir.join(".envelopefs/journal")).map_or(0, Iterator::count);
        if left > 0 {
            faults.push(format!("{left} files in the journal after a clean unmount"));
        }
        if self.vault.log().contains("panicked") {
            faults.push(format!("a panic: {}", self.vault.log()));
        }
        faults
    }

    /// Keeps the vault as it is, for whoever looks into the fault.
    fn keep(&self, name: &str) {
        if let Ok(into) = std::env::var("EFS_KILL_KEEP") {
            let from = self.vault.dir.parent().unwrap();
            crate::harness::sh(
                from,
                &format!("mkdir -p '{into}'; cp -a . '{}'", text(&Path::new(&into).join(name))),
            );
        }
    }
}

/// Kills so many times; tells what it did.
fn run(points: u64, seed: u64) -> Tally {
    let mut tally = Tally::default();
    let mut series_seed = seed;
    while tally.kills < points && tally.faults.len() < ENOUGH {
        let mut series = Series::new(series_seed);
        for i in 0..KILLS_A_VAULT {
            if tally.kills >= points {
                break;
            }
            let mut faults = series.point(&mut tally);
            if i + 1 == KILLS_A_VAULT || tally.kills >= points || !faults.is_empty() {
                faults.extend(series.end());
            }
            if !faults.is_empty() {
                for fault in faults {
                    eprintln!("seed {series_seed}, kill {i}: {fault}");
                    tally.faults.push(format!("seed {series_seed}, kill {i}: {fault}"));
                }
                series.keep(&format!("seed-{series_seed}-kill-{i}"));
                break;
            }
        }
        series_seed += 1;
    }
    eprintln!(
        "kill -9: {} points, {} operations acknowledged, {} faults",
        tally.kills,
        tally.operations,
        tally.faults.len()
    );
    tally
}

fn assert_survives(points: u64) {
    if !can_mount() {
        return;
    }
    let tally = run(setting("EFS_KILL_POINTS", points), setting("EFS_KILL_SEED", 1));
    assert!(tally.faults.is_empty(), "{}", tally.faults.join("\n"));
    assert!(tally.operations > tally.kills, "the loads do not work: {tally:?}");
}

/// No operation that the daemon has acknowledged is lost by its death, and nothing is half done.
#[test]
fn a_killed_daemon_loses_nothing() {
    assert_survives(12);
}

/// The same, as often as is promised.
#[test]
#[ignore = "ten minutes: scripts/crash.sh runs it"]
fn a_killed_daemon_loses_nothing_in_full() {
    assert_survives(500);
}
