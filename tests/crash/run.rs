//! One workload on one disk: recorded, cut at many points, and each time looked over.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::cut::{Cuts, Tear, points};
use crate::disk::{Disk, Image};
use crate::load::{self, Bench, Load};
use crate::model::{Findings, Moment};
use crate::random::Random;
use crate::target::{Lower, Place, Target};
use crate::work::read_tree;

/// Carries a spec into the process that works it off.
const INSIDE: &str = "EFS_CRASH_INSIDE";
/// Kept images of one run; an image takes some MiB.
const MOST_KEPT: usize = 10;
/// Points of a run whose damage is told in words.
const MOST_TOLD: usize = 12;
/// Of so many points one is repaired because its journal had something, and one because something was left.
const REPAIRED_ONE_IN: usize = 8;
/// What a vault's name for something unfinished begins with.
const TEMPORARY: &str = ".efs.tmp.";

/// What to run.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    pub(crate) target: Target,
    pub(crate) lower: Lower,
    pub(crate) workload: String,
    pub(crate) points: usize,
    pub(crate) seed: u64,
    pub(crate) millis: u64,
}

impl Spec {
    fn line(&self) -> String {
        let Self { target, lower, workload, points, seed, millis } = self;
        format!("{} {} {workload} {points} {seed} {millis}", target.name(), lower.name())
    }

    fn parse(line: &str) -> Option<Self> {
        let words: Vec<_> = line.split(' ').collect();
        let [target, lower, workload, points, seed, millis] = words[..] else { return None };
        Some(Self {
            target: Target::named(target)?,
            lower: Lower::named(lower)?,
            workload: workload.to_owned(),
            points: points.parse().ok()?,
            seed: seed.parse().ok()?,
            millis: millis.parse().ok()?,
        })
    }
}

/// Counts of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) points: usize,
    /// Points that were looked over a second time, after `check --repair` in the place of a mount.
    pub(crate) repaired: usize,
    /// Points at which anything was wrong.
    pub(crate) bad: usize,
    pub(crate) lost: usize,
    pub(crate) eio: usize,
    pub(crate) dirs: usize,
    pub(crate) other: usize,
}

impl Outcome {
    /// One line for scripts: names and numbers.
    pub(crate) fn line(&self, spec: &Spec) -> String {
        let Self { points, repaired, bad, lost, eio, dirs, other } = self;
        format!(
            "CRASH {} {} {} points {points} repaired {repaired} lost {lost} eio {eio} dirs {dirs} other {other} bad {bad}",
            spec.target.name(),
            spec.lower.name(),
            spec.workload
        )
    }

    fn parse(line: &str) -> Option<Self> {
        let words: Vec<_> = line.strip_prefix("CRASH ")?.split(' ').collect();
        let number =
            |name: &str| words.iter().position(|w| *w == name).and_then(|i| words.get(i + 1)?.parse().ok());
        Some(Self {
            points: number("points")?,
            repaired: number("repaired")?,
            bad: number("bad")?,
            lost: number("lost")?,
            eio: number("eio")?,
            dirs: number("dirs")?,
            other: number("other")?,
        })
    }

    /// Whether nothing at all was wrong.
    pub(crate) fn is_clean(&self) -> bool {
        *self == Self { points: self.points, repaired: self.repaired, ..Self::default() }
    }

    fn count(&mut self, findings: &Findings) {
        if findings.lower_dead {
            // Torn superblocks are the lower filesystem's own affair: nothing can be said about what lies on it.
            return;
        }
        self.points += 1;
        self.bad += usize::from(!findings.is_empty());
        self.lost += findings.lost;
        self.eio += findings.eio;
        self.dirs += findings.dirs;
        self.other += findings.other;
    }
}

/// Works a spec off in a process with mounts and process ids of its own, which end with this thread: whatever happens,
/// no mount, daemon or loop device is left.
pub(crate) fn run_apart(spec: &Spec) -> Outcome {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private"]);
    command.args(["--pid", "--fork", "--kill-child", "--mount-proc"]).arg(std::env::current_exe().unwrap());
    command.args(["--exact", "inside", "--ignored", "--nocapture"]).env(INSIDE, spec.line());
    let output = command.stdin(Stdio::null()).stderr(Stdio::piped()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    eprint!("{}", String::from_utf8_lossy(&output.stderr));
    let outcome = said.lines().rev().find_map(|l| Outcome::parse(&l[l.find("CRASH ")?..]));
    outcome
        .filter(|_| output.status.success())
        .unwrap_or_else(|| panic!("{spec:?} gave {}\n{said}", output.status))
}

/// The other end of `run_apart`; false when nobody asked.
pub(crate) fn inside() -> bool {
    let Ok(line) = std::env::var(INSIDE) else { return false };
    let spec = Spec::parse(&line).unwrap();
    let outcome = run(&spec);
    println!("\n{}", outcome.line(&spec));
    true
}

fn run(spec: &Spec) -> Outcome {
    let home = tempfile::tempdir().unwrap();
    let disk = Disk::new(spec.lower.disk_len());
    let mut load = load::named(&spec.workload, &disk, spec.seed);
    let at = |name: &str| home.path().join(name);
    let keys = if load.keys_inside() { at("lower").join("keys") } else { at("keys") };
    let place = Place { lower: at("lower"), mnt: at("mnt"), keys, log: at("log") };
    fs::create_dir(&place.lower).unwrap();
    fs::create_dir(&place.mnt).unwrap();

    let began = Instant::now();
    spec.lower.make(&disk);
    let lower = spec.lower.mount(&disk, &place.lower).unwrap();
    spec.target.init(&place);
    let bench = Bench { disk: &disk, place: &place, target: spec.target, until: began };
    load.prepare(&bench);
    lower.unmount().unwrap();

    let lower = spec.lower.mount(&disk, &place.lower).unwrap();
    let start = disk.record();
    load.work(&Bench { until: Instant::now() + Duration::from_millis(spec.millis), ..bench });
    lower.unmount().unwrap();
    let events = disk.recorded();
    let recorded = began.elapsed();

    let mut random = Random::new(spec.seed);
    let tear = if spec.lower == Lower::Xfs { Tear::NotXfs } else { Tear::All };
    let mut cuts = Cuts::new(start, &events, tear);
    let cutter = Cutter { spec, disk: &disk, place: &place, load: &*load, tear };
    let mut allowance = Allowance::of(spec);
    let (mut outcome, mut mixed) = (Outcome::default(), 0);
    let began = Instant::now();
    for cut in points(&events, spec.points, &mut random) {
        let image = cuts.image(cut, &mut random);
        let (image, interest, mut findings) = cutter.point(image, cut, &mut random);
        if !findings.lower_dead && allowance.allows(interest, !findings.is_empty()) {
            outcome.repaired += 1;
            findings.add(cutter.repaired(&image, cut, &mut random));
        }
        outcome.count(&findings);
        mixed += findings.mixed;
        if !findings.is_empty() {
            if outcome.bad <= MOST_TOLD {
                eprintln!("{} cut at {cut} of {}:", spec.line(), events.len());
                findings.notes.iter().take(8).for_each(|n| eprintln!("  {n}"));
            }
            if outcome.bad <= MOST_KEPT {
                cutter.keep(&image, cut, &findings);
            }
        }
    }
    eprintln!(
        "{}: {} events in {recorded:.1?}, {} points in {:.1?}, {mixed} blocks of several unsynced writes",
        spec.line(),
        events.len(),
        outcome.points,
        began.elapsed()
    );
    outcome
}

/// What makes an image one to be repaired as well.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
enum Interest {
    /// The vault was left in order.
    #[default]
    None,
    /// Its journal had changes of files to bring in.
    Replayed,
    /// Temporary names were left in it, or something came to `lost+found`.
    Left,
}

/// How many images of a run are repaired; those with damage always are.
struct Allowance {
    replayed: usize,
    left: usize,
    repairs: bool,
}

impl Allowance {
    fn of(spec: &Spec) -> Self {
        let each = spec.points.div_ceil(REPAIRED_ONE_IN);
        Self { replayed: each, left: each, repairs: spec.target.can_repair() }
    }

    fn allows(&mut self, interest: Interest, damaged: bool) -> bool {
        let left = match interest {
            _ if damaged || !self.repairs => return self.repairs,
            Interest::None => return false,
            Interest::Replayed => &mut self.replayed,
            Interest::Left => &mut self.left,
        };
        let allowed = *left > 0;
        *left = left.saturating_sub(1);
        allowed
    }
}

struct Cutter<'a> {
    spec: &'a Spec,
    disk: &'a Disk,
    place: &'a Place,
    load: &'a dyn Load,
    tear: Tear,
}

impl Cutter<'_> {
    /// Brings an image to life and looks it over; one in four after another cut in the midst of its recovery. Gives the
    /// image that was looked over.
    fn point(&self, mut image: Image, cut: Moment, random: &mut Random) -> (Image, Interest, Findings) {
        let mut findings = Findings::default();
        if random.one_in(4) {
            self.disk.load(image.clone());
            let start = self.disk.record();
            if let Err(why) = self.recover() {
                self.disk.recorded();
                findings.failed(why);
                return (image, Interest::None, findings);
            }
            let events = self.disk.recorded();
            let at = 1 + random.index(events.len().max(1));
            image = Cuts::new(start, &events, self.tear).image(at.min(events.len()), random);
        }
        let (interest, looked) = self.look_over(&image, false, cut, random);
        findings.add(looked);
        (image, interest, findings)
    }

    /// The same image, repaired: the repair must end well, and nothing may be missing then either.
    fn repaired(&self, image: &Image, cut: Moment, random: &mut Random) -> Findings {
        let (_, mut findings) = self.look_over(image, true, cut, random);
        findings.notes.iter_mut().for_each(|note| note.insert_str(0, "after check --repair: "));
        findings
    }

    fn look_over(
        &self,
        image: &Image,
        repair: bool,
        cut: Moment,
        random: &mut Random,
    ) -> (Interest, Findings) {
        let mut findings = Findings::default();
        self.disk.load(image.clone());
        let looked = self.look(repair, cut, random, &mut findings);
        let interest = looked.unwrap_or_else(|why| {
            findings.failed(why);
            Interest::None
        });
        let log = fs::read_to_string(&self.place.log).unwrap_or_default();
        if log.contains("panicked") {
            findings.other(format!("a panic: {}", self.place.said()));
        }
        (interest, findings)
    }

    fn recover(&self) -> Result<(), String> {
        let lower = self.spec.lower.mount(self.disk, &self.place.lower)?;
        self.spec.target.mount(self.place)?.unmount()?;
        lower.unmount()
    }

    fn look(
        &self,
        repair: bool,
        cut: Moment,
        random: &mut Random,
        findings: &mut Findings,
    ) -> Result<Interest, String> {
        let target = self.spec.target;
        let lower = self.spec.lower.mount(self.disk, &self.place.lower)?;
        if repair {
            target.repair(self.place)?;
        }
        let mounted = target.mount(self.place)?;
        let interest = self.interest();
        findings.add(self.load.judge(cut, &self.place.mnt));
        if findings.is_empty() {
            change(&self.place.mnt, random).map_err(|e| format!("a change after the recovery: {e}"))?;
        }
        mounted.unmount()?;
        // What is lost is told already, and a yardstick's own opinion of itself is not asked for.
        if findings.is_empty() && target != Target::Gocryptfs {
            target.check(self.place).unwrap_or_else(|why| findings.other(why));
        }
        lower.unmount()?;
        Ok(interest)
    }

    /// What the mount that was just made found. A mount leaves temporary names to a repair.
    fn interest(&self) -> Interest {
        let vault = self.place.vault();
        let kept = fs::read_dir(vault.join(".envelopefs/lost+found"));
        let log = fs::read_to_string(&self.place.log).unwrap_or_default();
        let changed =
            |line: &str| !line.contains("changes of 0 files") && line.contains("the journal's changes of");
        if kept.is_ok_and(|mut entries| entries.next().is_some()) || has_temporary(&vault) {
            Interest::Left
        } else if log.lines().any(changed) {
            Interest::Replayed
        } else {
            Interest::None
        }
    }

    /// Keeps an image with its keys and what was wrong with it.
    fn keep(&self, image: &Image, cut: Moment, findings: &Findings) {
        let Some(dir) = std::env::var_os("EFS_CRASH_KEEP") else { return };
        let Spec { target, lower, workload, seed, .. } = self.spec;
        let name = format!("{}-{}-{workload}-{seed}-{cut}", target.name(), lower.name());
        let dir = PathBuf::from(dir).join(name);
        fs::create_dir_all(&dir).unwrap();
        image.save(&dir.join("disk.img"));
        if !self.load.keys_inside() {
            let _ = Command::new("cp").arg("-rT").arg(&self.place.keys).arg(dir.join("keys")).status();
        }
        let mut what = File::create(dir.join("what.txt")).unwrap();
        writeln!(what, "{} cut {cut}\n{}\n\nthe daemon said:", self.spec.line(), findings.notes.join("\n"))
            .unwrap();
        what.write_all(&fs::read(&self.place.log).unwrap_or_default()).unwrap();
    }
}

fn has_temporary(dir: &Path) -> bool {
    fs::read_dir(dir).into_iter().flatten().flatten().any(|entry| {
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        entry.file_name().to_string_lossy().starts_with(TEMPORARY) || is_dir && has_temporary(&entry.path())
    })
}

/// Life goes on after a recovery: some of the files grow and change, a new one is made.
fn change(mnt: &Path, random: &mut Random) -> std::io::Result<()> {
    let tree = read_tree(mnt);
    let mut left = 6;
    for (path, read) in &tree.files {
        // Databases and repositories are not ours to scribble into.
        if left == 0 || !random.one_in(3) || !path.starts_with("work0") {
            continue;
        }
        left -= 1;
        let file = File::options().write(true).open(mnt.join(path))?;
        file.write_all_at(b"again", read.bytes.len() as u64 / 2)?;
        file.write_all_at(b"and more", read.bytes.len() as u64)?;
        file.sync_all()?;
    }
    fs::write(mnt.join("after"), random.bytes(20_000))?;
    File::open(mnt.join("after"))?.sync_all()
}
