//! Worker threads that help a caller with work on the caller's own stack. An island of `unsafe`: one borrowed
//! closure is lent to threads that the borrow checker does not know to be done in time.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;

use crossbeam::channel::{Sender, bounded};
use parking_lot::{Condvar, Mutex};

/// Requests that may wait for a worker. A full queue is not an error: callers do their own work then.
const QUEUE: usize = 64;
/// The most workers, whatever the machine has.
const MAX_WORKERS: usize = 64;

/// The closure of one `run`, with its borrow's lifetime erased.
struct Task(*const (dyn Fn(usize) + Sync));

// SAFETY: the pointee is `Sync`, so calling it from another thread is sound; that it is still alive then is
// the invariant of `Job`.
#[allow(unsafe_code)]
unsafe impl Send for Task {}
// SAFETY: as above; `&Task` gives no more than a shared call of a `Sync` closure.
#[allow(unsafe_code)]
unsafe impl Sync for Task {}

/// One `run`. Invariant: `task` is called only for an index below `parts` that `next` gave out, and `run` does not
/// return before `done` counts all of them. So no call outlives the borrow that `task` was made from.
struct Job {
    task: Task,
    parts: usize,
    next: AtomicUsize,
    done: Mutex<Done>,
    all_done: Condvar,
}

#[derive(Default)]
struct Done {
    parts: usize,
    panic: Option<Box<dyn Any + Send>>,
}

impl Job {
    /// Takes parts until none is left.
    fn help(&self) {
        loop {
            let part = self.next.fetch_add(1, Ordering::Relaxed);
            if part >= self.parts {
                return;
            }
            // SAFETY: `part < parts` was given out to this thread alone and is not counted in `done` yet, so by
            // the invariant of `Job` the caller of `run` still waits and the closure is alive.
            #[allow(unsafe_code)]
            let outcome = catch_unwind(AssertUnwindSafe(|| unsafe { (*self.task.0)(part) }));
            let mut done = self.done.lock();
            done.parts += 1;
            if let Err(panic) = outcome {
                done.panic = Some(panic);
            }
            if done.parts == self.parts {
                self.all_done.notify_all();
            }
        }
    }

    fn wait(&self) -> Option<Box<dyn Any + Send>> {
        let mut done = self.done.lock();
        while done.parts < self.parts {
            self.all_done.wait(&mut done);
        }
        done.panic.take()
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
                let body = move || jobs.iter().for_each(|job| job.help());
                thread::Builder::new().name(name).spawn(body).is_ok()
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
    /// all are done. A panic in one of them is raised here, after all are done.
    pub fn run(&self, parts: usize, task: &(dyn Fn(usize) + Sync)) {
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
            next: AtomicUsize::new(0),
            done: Mutex::default(),
            all_done: Condvar::new(),
        });
        for _ in 0..self.workers.min(parts.saturating_sub(1)) {
            if self.queue.try_send(Arc::clone(&job)).is_err() {
                break;
            }
        }
        job.help();
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
