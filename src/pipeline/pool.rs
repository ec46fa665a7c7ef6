//! Worker threads that help a caller with work on the caller's own stack. An island of `unsafe`: one borrowed
//! closure is lent to threads that the borrow checker does not know to be done in time.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, bounded};
use parking_lot::{Condvar, Mutex};

/// Requests that may wait for a worker. A full queue is not an error: callers do their own work then.
const QUEUE: usize = 64;
/// The most workers, whatever the machine has.
const MAX_WORKERS: usize = 64;
/// How long a worker stays awake for the next request, and a caller for the last part. Waking a thread costs 5 us where
/// its processor is awake and 30 to 50 where that sleeps; a part takes 7.
const AWAKE: Duration = Duration::from_micros(50);
/// Requests follow one another closely when no more than this lies between them.
const CLOSE: Duration = Duration::from_micros(200);
/// A processor that was given away and came back later than this is wanted by others: no staying awake then.
const TAKEN: Duration = Duration::from_micros(5);

/// The closure of one `run`, with its borrow's lifetime erased.
struct Task(*const (dyn Fn(usize) + Sync));

// SAFETY: the pointee is `Sync`, so calling it from another thread is sound; that it is still alive then is
// the invariant of `Job`.
#[allow(unsafe_code)]
unsafe impl Send for Task {}
// SAFETY: as above; `&Task` gives no more than a shared call of a `Sync` closure.
#[allow(unsafe_code)]
unsafe impl Sync for Task {}

/// Parts that nobody took yet: `first..end`, in the upper and the lower half of one word. The caller takes the first
/// one, workers the last: requests that go over the same buffers find much of them in the caches of the same cores.
struct Left(AtomicU64);

impl Left {
    fn new(parts: u32) -> Self {
        Self(AtomicU64::new(u64::from(parts)))
    }

    /// A part that is given to this thread alone.
    fn take(&self, who: Who) -> Option<usize> {
        let step = |left: u64| {
            let (first, end) = (left >> 32, left & u64::from(u32::MAX));
            (first < end).then(|| match who {
                Who::Caller => left + (1 << 32),
                Who::Worker => left - 1,
            })
        };
        let before = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, step).ok()?;
        Some(match who {
            Who::Caller => (before >> 32) as usize,
            Who::Worker => (before & u64::from(u32::MAX)) as usize - 1,
        })
    }
}

#[derive(Clone, Copy)]
enum Who {
    Caller,
    Worker,
}

/// One `run`. Invariant: `task` is called only for an index that `left` gave out, each of which is below `parts` and given
/// out once, and `run` does not return before `done` counts all of them. So no call outlives the borrow that `task`
/// was made from.
struct Job {
    task: Task,
    parts: usize,
    left: Left,
    done: AtomicUsize,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    all_done: Condvar,
}

impl Job {
    /// Takes parts until none is left.
    fn help(&self, who: Who) {
        while let Some(part) = self.left.take(who) {
            // SAFETY: `part < parts` was given out to this thread alone and is not counted in `done` yet, so by
            // the invariant of `Job` the caller of `run` still waits and the closure is alive.
            #[allow(unsafe_code)]
            let outcome = catch_unwind(AssertUnwindSafe(|| unsafe { (*self.task.0)(part) }));
            if let Err(panic) = outcome {
                *self.panic.lock() = Some(panic);
            }
            // Releases what this part wrote to whoever sees the count.
            if self.done.fetch_add(1, Ordering::Release) + 1 == self.parts {
                // Under the lock, so that it does not fall between a caller's look at the count and his sleep.
                drop(self.panic.lock());
                self.all_done.notify_all();
            }
        }
    }

    fn is_done(&self) -> bool {
        self.done.load(Ordering::Acquire) == self.parts
    }

    fn wait(&self) -> Option<Box<dyn Any + Send>> {
        stay_awake(|| self.is_done().then_some(()));
        let mut panic = self.panic.lock();
        while !self.is_done() {
            self.all_done.wait(&mut panic);
        }
        panic.take()
    }
}

/// Asks until there is an answer, for [`AWAKE`] at most, and as long as nobody else wants the processor.
fn stay_awake<T>(ask: impl Fn() -> Option<T>) -> Option<T> {
    let start = Instant::now();
    loop {
        // Some looks in a row, since each `yield` is a system call.
        for _ in 0..32 {
            if let Some(answer) = ask() {
                return Some(answer);
            }
            std::hint::spin_loop();
        }
        let before = Instant::now();
        if before.duration_since(start) > AWAKE {
            return None;
        }
        thread::yield_now();
        if before.elapsed() > TAKEN {
            return ask();
        }
    }
}

/// What a worker does until the pool is dropped. It sleeps on its queue, but while requests follow closely it looks for
/// the next one before it goes to sleep.
fn work(jobs: &Receiver<Arc<Job>>) {
    let mut ended: Option<Instant> = None;
    let mut close = false;
    loop {
        let awake = if close { stay_awake(|| jobs.try_recv().ok()) } else { None };
        let Some(job) = awake.or_else(|| jobs.recv().ok()) else { return };
        close = ended.is_some_and(|ended| ended.elapsed() <= CLOSE);
        job.help(Who::Worker);
        ended = Some(Instant::now());
    }
}

/// A fixed set of worker threads behind a bounded queue.
pub struct Pool {
    queue: Sender<Arc<Job>>,
    workers: usize,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("workers", &self.workers).finish_non_exhaustive()
    }
}

impl Pool {
    /// Starts `workers` threads (at most 64). They end when the pool is dropped.
    pub fn new(workers: usize) -> Self {
        let (queue, jobs) = bounded::<Arc<Job>>(QUEUE);
        let started = (0..workers.min(MAX_WORKERS))
            .filter(|i| {
                let jobs = jobs.clone();
                let name = format!("seal-{i}");
                thread::Builder::new().name(name).spawn(move || work(&jobs)).is_ok()
            })
            .count();
        Self { queue, workers: started }
    }

    /// The process's pool: one worker for each core but the caller's, started at first use (after a sandbox
    /// that the threads shall inherit).
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Pool> = OnceLock::new();
        SHARED.get_or_init(|| {
            let cores = thread::available_parallelism().map_or(1, usize::from);
            Self::new(cores.saturating_sub(1))
        })
    }

    /// Runs `task(0)` to `task(parts - 1)`, each once, on this thread and on workers that are free; returns when
    /// all are done. A panic in one of them is raised here, after all are done. More parts than fit a `u32` are refused by a
    /// panic: no buffer has so many.
    pub fn run(&self, parts: usize, task: &(dyn Fn(usize) + Sync)) {
        let count = u32::try_from(parts).expect("parts of one request");
        // SAFETY: only the lifetime changes. `Job`'s invariant, kept by `wait` below, ends every use of the
        // pointer before this borrow ends; nothing between here and `wait` unwinds (`help` catches).
        #[allow(unsafe_code)]
        let task = unsafe {
            std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), *const (dyn Fn(usize) + Sync + 'static)>(
                task,
            )
        };
        let job = Arc::new(Job {
            task: Task(task),
            parts,
            left: Left::new(count),
            done: AtomicUsize::new(0),
            panic: Mutex::default(),
            all_done: Condvar::new(),
        });
        for _ in 0..self.workers.min(parts.saturating_sub(1)) {
            if self.queue.try_send(Arc::clone(&job)).is_err() {
                break;
            }
        }
        job.help(Who::Caller);
        if let Some(panic) = job.wait() {
            resume_unwind(panic);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every part runs exactly once, with more callers at once than workers.
    #[test]
    fn each_part_runs_once() {
        let pool = Pool::new(2);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for parts in 0..50 {
                        let hits: Vec<_> = (0..parts).map(|_| AtomicUsize::new(0)).collect();
                        pool.run(parts, &|i| {
                            hits[i].fetch_add(1, Ordering::Relaxed);
                        });
                        assert!(hits.iter().all(|h| h.load(Ordering::Relaxed) == 1));
                    }
                });
            }
        });
    }

    /// A panic in a part reaches the caller, and the pool goes on.
    #[test]
    fn a_panic_reaches_the_caller() {
        let pool = Pool::new(1);
        let caught = catch_unwind(AssertUnwindSafe(|| pool.run(8, &|i| assert_ne!(i, 5))));
        assert!(caught.is_err());
        let ran = AtomicUsize::new(0);
        pool.run(8, &|_| {
            ran.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(ran.load(Ordering::Relaxed), 8);
    }
}
