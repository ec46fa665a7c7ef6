//! What is measured on a mount, by name: `randread-4k-cold-j4`, `write-1m-direct`, `tree-walk`.

use std::fmt;
use std::str::FromStr;

/// How a file is gone through.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Access {
    /// A new file, front to back, up to its fsync.
    Write,
    /// Front to back.
    Read,
    /// Overwrites of a quarter of a file at random, up to their fsync.
    RandomWrite,
    /// Reads of a quarter of a file at random, no block twice.
    RandomRead,
}

/// Bytes of one request of the program.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Block {
    /// 4 KiB.
    K4,
    /// 64 KiB.
    K64,
    /// 1 MiB.
    M1,
}

/// One run of fio.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a word of the job's name")]
pub struct IoJob {
    /// How.
    pub access: Access,
    /// In what pieces.
    pub block: Block,
    /// By four processes, each with a file of its own.
    pub four: bool,
    /// With O_DIRECT.
    pub direct: bool,
    /// With an fsync after each request.
    pub fsync: bool,
    /// With the caches of the mount and of the lower filesystem dropped before, and looked at.
    pub cold: bool,
}

/// What is done with a source tree. Each step needs the one before it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum TreeStep {
    /// A tarball extracted, up to a sync of the filesystem.
    Extract,
    /// Every directory listed and every name looked at (lstat), caches dropped before.
    Walk,
    /// Every file read, caches dropped before.
    Read,
    /// Everything removed, up to a sync of the filesystem.
    Remove,
}

/// One measurement.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Job {
    /// fio.
    Io(IoJob),
    /// A source tree.
    Tree(TreeStep),
}

const ACCESSES: [(Access, &str, &str); 4] = [
    (Access::Write, "write", "write"),
    (Access::Read, "read", "read"),
    (Access::RandomWrite, "randwrite", "random write"),
    (Access::RandomRead, "randread", "random read"),
];
const BLOCKS: [(Block, &str, &str, u64); 3] = [
    (Block::K4, "4k", "4 KiB", 4 << 10),
    (Block::K64, "64k", "64 KiB", 64 << 10),
    (Block::M1, "1m", "1 MiB", 1 << 20),
];
const STEPS: [(TreeStep, &str, &str); 4] = [
    (TreeStep::Extract, "tree-extract", "extract source tree"),
    (TreeStep::Walk, "tree-walk", "walk it, cold"),
    (TreeStep::Read, "tree-read", "read it, cold"),
    (TreeStep::Remove, "tree-remove", "remove it"),
];

/// A word that names no job.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "no job {0:?}: a job is write, read, randwrite or randread, then 4k, 64k or 1m, then any of j4, direct, fsync, cold \
     (randread-4k-cold-j4); or tree-extract, tree-walk, tree-read, tree-remove; or tree, default, all"
)]
pub struct NoSuchJob(String);

impl Access {
    /// Whether it changes the file.
    pub fn writes(self) -> bool {
        matches!(self, Self::Write | Self::RandomWrite)
    }

    /// Whether it jumps about.
    pub fn is_random(self) -> bool {
        matches!(self, Self::RandomWrite | Self::RandomRead)
    }

    /// In fio's language.
    pub(super) fn word(self) -> &'static str {
        ACCESSES.iter().find(|a| a.0 == self).map_or("", |a| a.1)
    }
}

impl Block {
    /// How many.
    pub fn bytes(self) -> u64 {
        BLOCKS.iter().find(|b| b.0 == self).map_or(0, |b| b.3)
    }
}

impl Job {
    /// What `word` stands for: one job, or a set of them.
    pub fn parse_set(word: &str) -> Result<Vec<Self>, NoSuchJob> {
        match word {
            "all" => Ok(Self::all()),
            "tree" => Ok(STEPS.iter().map(|s| Self::Tree(s.0)).collect()),
            one => one.parse().map(|job| vec![job]),
        }
    }

    /// Every combination that means something.
    fn all() -> Vec<Self> {
        let mut jobs = Vec::new();
        for bits in 0..16_u8 {
            let has = |bit: u8| bits & (1 << bit) != 0;
            for (access, ..) in ACCESSES {
                for (block, ..) in BLOCKS {
                    let (direct, fsync, cold, four) = (has(0), has(1), has(2), has(3));
                    let job = IoJob { access, block, four, direct, fsync, cold };
                    // What is not read from a cache is neither cold nor warm; a reader has nothing to sync.
                    if !(direct && (cold || fsync) || fsync && (cold || !access.writes())) {
                        jobs.push(Self::Io(job));
                    }
                }
            }
        }
        jobs.extend(STEPS.iter().map(|s| Self::Tree(s.0)));
        jobs
    }

    /// For a table.
    pub fn title(self) -> String {
        match self {
            Self::Tree(step) => STEPS.iter().find(|s| s.0 == step).map_or("", |s| s.2).to_owned(),
            Self::Io(job) => {
                let access = ACCESSES.iter().find(|a| a.0 == job.access).map_or("", |a| a.2);
                let block = BLOCKS.iter().find(|b| b.0 == job.block).map_or("", |b| b.2);
                let mut title = format!("{access} {block}");
                for (on, word) in [
                    (job.cold, ", cold"),
                    (job.fsync, ", fsync each"),
                    (job.direct, ", direct"),
                    (job.four, ", 4 jobs"),
                ] {
                    if on {
                        title.push_str(word);
                    }
                }
                title
            }
        }
    }

    /// Unit of its figure.
    pub fn unit(self) -> &'static str {
        match self {
            Self::Io(job) if job.block == Block::K4 && (job.access.is_random() || job.fsync) => "IOPS",
            Self::Io(_) => "MB/s",
            Self::Tree(_) => "s",
        }
    }

    /// Whether a smaller figure is the better one.
    pub fn less_is_better(self) -> bool {
        matches!(self, Self::Tree(_))
    }

    /// Whether the caches are dropped before it.
    pub fn is_cold(self) -> bool {
        match self {
            Self::Io(job) => job.cold,
            Self::Tree(step) => matches!(step, TreeStep::Walk | TreeStep::Read),
        }
    }
}

impl fmt::Display for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let job = match self {
            Self::Tree(step) => return f.write_str(STEPS.iter().find(|s| s.0 == *step).map_or("", |s| s.1)),
            Self::Io(job) => job,
        };
        let block = BLOCKS.iter().find(|b| b.0 == job.block).map_or("", |b| b.1);
        write!(f, "{}-{block}", job.access.word())?;
        for (on, word) in
            [(job.four, "-j4"), (job.direct, "-direct"), (job.fsync, "-fsync"), (job.cold, "-cold")]
        {
            if on {
                f.write_str(word)?;
            }
        }
        Ok(())
    }
}

impl FromStr for Job {
    type Err = NoSuchJob;

    fn from_str(name: &str) -> Result<Self, NoSuchJob> {
        if let Some(step) = STEPS.iter().find(|s| s.1 == name) {
            return Ok(Self::Tree(step.0));
        }
        let wrong = || NoSuchJob(name.to_owned());
        let mut words = name.split('-');
        let access = words.next().and_then(|w| ACCESSES.iter().find(|a| a.1 == w)).ok_or_else(wrong)?.0;
        let block = words.next().and_then(|w| BLOCKS.iter().find(|b| b.1 == w)).ok_or_else(wrong)?.0;
        let mut job = IoJob { access, block, four: false, direct: false, fsync: false, cold: false };
        for word in words {
            match word {
                "j4" => job.four = true,
                "direct" => job.direct = true,
                "fsync" if access.writes() => job.fsync = true,
                "cold" => job.cold = true,
                _ => return Err(wrong()),
            }
        }
        Ok(Self::Io(job))
    }
}

impl serde::Serialize for Job {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A job's name is read back as the same job, for every one of them, and no two share a name or a title.
    #[test]
    fn names_are_read_back() {
        let all = Job::parse_set("all").unwrap();
        assert_eq!(all.len(), 4 * 3 * 2 * 3 + 2 * 3 * 2 + 4);
        let mut names: Vec<_> = all.iter().map(ToString::to_string).collect();
        let mut titles: Vec<_> = all.iter().map(|j| j.title()).collect();
        for (job, name) in all.iter().zip(&names) {
            assert_eq!(name.parse::<Job>().unwrap(), *job, "{name}");
        }
        names.sort();
        names.dedup();
        titles.sort();
        titles.dedup();
        assert_eq!((names.len(), titles.len()), (all.len(), all.len()));
    }

    #[test]
    fn nonsense_is_no_job() {
        for name in
            ["", "read", "read-4k-", "read-4m", "read-4k-fsync", "tree-fell", "READ-4k", "read-4k-cold-hot"]
        {
            assert!(Job::parse_set(name).is_err(), "{name:?}");
        }
        let cold: Job = "randread-4k-cold-j4".parse().unwrap();
        assert_eq!((cold.title().as_str(), cold.unit()), ("random read 4 KiB, cold, 4 jobs", "IOPS"));
        assert_eq!("write-4k-fsync".parse::<Job>().unwrap().unit(), "IOPS");
        assert_eq!(Job::parse_set("tree").unwrap().len(), 4);
    }
}
