//! A shared mapping: what `msync` has acknowledged is there. In a process of its own, which the death of the daemon may
//! end with SIGBUS.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::mm::{MapFlags, MsyncFlags, ProtFlags, mmap, msync};

use crate::harness::{pattern, text};
use crate::random::Random;
use crate::versions::{BLOCK, Versions};
use crate::worker::{Over, Worker, read};

/// Bytes of the mapping: two groups.
const LEN: usize = 1 << 20;
/// Where the process finds its file.
const FILE: &str = "EFS_KILL_MAPPED_FILE";
/// What the process begins with.
const SEED: &str = "EFS_KILL_MAPPED_SEED";

/// The load.
pub(crate) struct MappedLoad {
    random: Random,
    versions: Versions,
    process: Option<Child>,
}

impl MappedLoad {
    pub(crate) fn new(seed: u64) -> Self {
        Self { random: Random(seed), versions: Versions::of(vec![]), process: None }
    }
}

impl Worker for MappedLoad {
    fn name(&self) -> String {
        "mapped".to_owned()
    }

    fn prepare(&mut self, dir: &Path) -> io::Result<()> {
        let path = dir.join("mapped");
        if !path.exists() {
            let file = File::create(&path)?;
            file.set_len(LEN as u64)?;
            file.sync_all()?;
            self.versions = Versions::of(vec![0; LEN]);
        }
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(std::env::current_exe()?);
        command.args(["--exact", "mapped::the_process_that_maps", "--ignored", "--nocapture"]);
        command.env(FILE, text(&path)).env(SEED, self.random.next().to_string());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        self.process = Some(command.spawn()?);
        Ok(())
    }

    fn work(&mut self, _dir: &Path, over: &Over) -> (u64, io::Result<()>) {
        let mut process = self.process.take().expect("prepared");
        let lines = BufReader::new(process.stdout.take().expect("piped")).lines();
        let mut done = 0;
        let mut ended = Err(io::Error::other("the process has ended"));
        for line in lines.map_while(Result::ok) {
            let words: Vec<_> = line.split(' ').collect();
            match words[..] {
                ["store", at, len, seed] => {
                    let number = |word: &str| word.parse::<u64>().unwrap();
                    let (at, bytes) = (number(at) as usize, pattern(number(len) as usize, number(seed)));
                    let mut content = self.versions.newest().to_vec();
                    content[at..at + bytes.len()].copy_from_slice(&bytes);
                    self.versions.begin(content);
                }
                ["synced"] => {
                    self.versions.acknowledged();
                    done += 1;
                    if over.is_set() {
                        // What it has begun meanwhile still stands in the pipe.
                        let _ = process.kill();
                        ended = Ok(());
                    }
                }
                ["failed"] => break,
                _ => {}
            }
        }
        let _ = process.kill();
        let _ = process.wait();
        (done, ended)
    }

    fn verify(&mut self, dir: &Path) -> Result<(), String> {
        let found = read(&dir.join("mapped"))?.ok_or("is gone")?;
        // The kernel may send a page while it is being written to.
        let checked = self.versions.check(&found, 1, |_| true);
        self.versions = Versions::of(found);
        checked
    }
}

/// Not a test: `MappedLoad` starts it.
#[test]
#[ignore = "a part of another test"]
#[expect(unsafe_code, reason = "mapping is what is tested")]
fn the_process_that_maps() {
    let Ok(path) = std::env::var(FILE) else { return };
    let mut random = Random(std::env::var(SEED).unwrap().parse().unwrap());
    let file = File::options().read(true).write(true).open(path).unwrap();
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice of a file of `LEN` bytes, alive until the process ends.
    let (at, bytes) = unsafe {
        let at = mmap(std::ptr::null_mut(), LEN, access, MapFlags::SHARED, &file, 0).unwrap();
        (at, std::slice::from_raw_parts_mut(at.cast::<u8>(), LEN))
    };
    let mut out = io::stdout().lock();
    // Behind what the test runner has printed.
    writeln!(out).unwrap();
    loop {
        for _ in 0..=random.below(4) {
            let from = random.below((LEN - 2 * BLOCK) as u64) as usize;
            let most = if random.percent(50) { 200 } else { 2 * BLOCK as u64 };
            let len = 1 + random.below(most) as usize;
            let seed = random.next();
            if writeln!(out, "store {from} {len} {seed}").and_then(|()| out.flush()).is_err() {
                return;
            }
            bytes[from..from + len].copy_from_slice(&pattern(len, seed));
        }
        // SAFETY: the mapping above.
        let synced = unsafe { msync(at, LEN, MsyncFlags::SYNC) };
        let told = writeln!(out, "{}", if synced.is_ok() { "synced" } else { "failed" });
        if synced.is_err() || told.and_then(|()| out.flush()).is_err() {
            return;
        }
    }
}
