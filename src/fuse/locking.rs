//! Locks that a handler keeps, where the kernel does not: who has to wait for one is answered later, and no thread that
//! serves requests waits.
//!
//! One thread asks again for those who wait: at once when a lock of this mount is let go, else after pauses that grow, since
//! other hosts do not tell. With a lock the kernel forgets the file's pages, which are of the time before; before an unlock
//! it writes back what was changed through a mapping. Both may wait for other requests, as a seek does (`seek`), so few of the
//! threads that serve do it at once; the rest is left to that thread, too.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::debug;
use parking_lot::{Condvar, Mutex};
use rustix::io::Errno;

use super::channel::Channel;
use super::dispatch::Reply;
use super::handler::{Answer, Handler};
use super::notify::Notifier;
use crate::fs::waits::LONG_WAITS;
use crate::fs::{Granted, Ino, LockAsk, LockKind};

/// Requests that wait at once, at most; ENOLCK beyond.
const MOST: usize = 256;
/// Interrupts that came before their request waited; those of requests of other kinds are among them, and not looked for.
const EARLY: usize = 256;
/// The first pause, and the longest: what another host's unlock is seen after.
const PAUSES: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(250));

/// How far a request has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// Changed pages go to the lower file before the lock does.
    WriteBack,
    /// The handler is asked.
    Ask,
    /// The lock is there; pages of the time before go.
    Forget,
}

/// A request without an answer.
#[derive(Clone, Debug)]
struct Waiting {
    unique: u64,
    /// Where it came from: the kernel takes the answer there only.
    channel: Arc<Channel>,
    ino: Ino,
    ask: LockAsk,
    stage: Stage,
    /// Whether it waits for the lock.
    wait: bool,
    due: Instant,
    pause: Duration,
    /// What happened while it was being tried.
    trying: bool,
    interrupted: bool,
    nudged: bool,
}

#[derive(Debug, Default)]
struct Queue {
    /// In the order in which they came.
    waiting: Vec<Waiting>,
    early: VecDeque<u64>,
    ended: bool,
}

/// The locks of a mount on their way.
pub(super) struct Locking<H> {
    handler: Arc<H>,
    notifier: Notifier,
    queue: Mutex<Queue>,
    news: Condvar,
}

impl<H: Handler> Locking<H> {
    /// Nobody waits yet.
    pub(super) fn new(handler: Arc<H>, notifier: Notifier) -> Self {
        let (queue, news) = (Mutex::default(), Condvar::new());
        Self { handler, notifier, queue, news }
    }

    /// Answers a request, or lets it wait.
    pub(super) fn set(
        &self,
        channel: &Arc<Channel>,
        unique: u64,
        ino: Ino,
        (ask, wait): (&LockAsk, bool),
    ) -> Reply {
        let first = if ask.kind.is_none() { Stage::WriteBack } else { Stage::Ask };
        let stage = match self.go_on(ino, ask, first, false) {
            Ok(Err(Errno::AGAIN)) if wait => Stage::Ask,
            Ok(answer) => {
                if lets_others_in(ask, answer) {
                    self.nudge(ino);
                }
                return reply(answer);
            }
            Err(stage) => stage,
        };
        let due = Instant::now() + if stage == Stage::Ask { PAUSES.0 } else { Duration::ZERO };
        let channel = Arc::clone(channel);
        let (trying, interrupted, nudged) = (false, false, false);
        let pause = PAUSES.0;
        let waiting =
            Waiting { unique, channel, ino, ask: *ask, stage, wait, due, pause, trying, interrupted, nudged };
        match self.park(waiting) {
            Ok(()) => Reply::Silence,
            Err(errno) => reply(self.give_up(ino, ask, stage, errno)),
        }
    }

    /// Goes on from a stage to the answer; `Err`: too many threads wait for pages, and this one shall not.
    fn go_on(&self, ino: Ino, ask: &LockAsk, from: Stage, patient: bool) -> Result<Answer<()>, Stage> {
        let mut stage = from;
        loop {
            stage = match stage {
                Stage::WriteBack if self.forget_pages(ino, patient) => Stage::Ask,
                Stage::Ask => match self.handler.set_lock(ino, ask) {
                    Ok(Granted::Fresh) => Stage::Forget,
                    Ok(Granted::AsBefore) => return Ok(Ok(())),
                    Err(errno) => return Ok(Err(errno)),
                },
                Stage::Forget if self.forget_pages(ino, patient) => return Ok(Ok(())),
                Stage::WriteBack | Stage::Forget => return Err(stage),
            };
        }
    }

    /// Has the kernel write back and forget an inode's pages. False: not now.
    fn forget_pages(&self, ino: Ino, patient: bool) -> bool {
        let place = if patient { None } else { LONG_WAITS.take() };
        let now = patient || place.is_some();
        if now && let Err(e) = self.notifier.inval_inode(ino, 0, 0) {
            debug!("pages of inode {ino} at a lock: {e}");
        }
        now
    }

    fn park(&self, waiting: Waiting) -> Result<(), Errno> {
        let mut queue = self.queue.lock();
        if waiting.stage == Stage::Ask
            && let Some(at) = queue.early.iter().position(|unique| *unique == waiting.unique)
        {
            queue.early.remove(at);
            return Err(Errno::INTR);
        }
        if queue.waiting.len() >= MOST {
            return Err(Errno::NOLCK);
        }
        queue.waiting.push(waiting);
        self.news.notify_one();
        Ok(())
    }

    /// Ends a request for which there is no place.
    fn give_up(&self, ino: Ino, ask: &LockAsk, stage: Stage, errno: Errno) -> Answer<()> {
        match stage {
            // An unlock is never refused.
            Stage::WriteBack => self.handler.set_lock(ino, ask).map(drop),
            Stage::Ask => Err(errno),
            Stage::Forget => {
                let _ = self.handler.set_lock(ino, &LockAsk { kind: None, ..*ask });
                Err(errno)
            }
        }
    }

    /// Something of an inode was let go: who waits for it may have it.
    pub(super) fn nudge(&self, ino: Ino) {
        let now = Instant::now();
        let mut queue = self.queue.lock();
        for waiting in queue.waiting.iter_mut().filter(|w| w.ino == ino) {
            (waiting.due, waiting.pause, waiting.nudged) = (now, PAUSES.0, true);
            self.news.notify_one();
        }
    }

    /// A signal came for whoever made a request: if that waits for a lock, it does so no longer.
    pub(super) fn interrupt(&self, unique: u64) {
        let mut queue = self.queue.lock();
        let Some(at) = queue.waiting.iter().position(|w| w.unique == unique) else {
            if queue.early.len() >= EARLY {
                queue.early.pop_front();
            }
            queue.early.push_back(unique);
            return;
        };
        match queue.waiting.get_mut(at) {
            Some(waiting) if waiting.trying => waiting.interrupted = true,
            // Whose lock is there, or goes, is answered soon.
            Some(waiting) if waiting.stage == Stage::Ask => {
                let waiting = queue.waiting.remove(at);
                drop(queue);
                answer(&waiting, Err(Errno::INTR));
            }
            _ => {}
        }
    }

    /// Asks again for those who wait, until the end. In a thread that does nothing else.
    pub(super) fn run(&self) {
        while let Some(waiting) = self.next() {
            let outcome = self.go_on(waiting.ino, &waiting.ask, waiting.stage, true);
            let lets_in = outcome.is_ok_and(|answer| lets_others_in(&waiting.ask, answer));
            if let Some(answered) = self.settle(waiting.unique, &outcome) {
                answer(&waiting, answered);
            }
            if lets_in {
                self.nudge(waiting.ino);
            }
        }
    }

    /// Nobody waits any longer: the mount is gone.
    pub(super) fn end(&self) {
        let mut queue = self.queue.lock();
        queue.ended = true;
        queue.waiting.clear();
        self.news.notify_all();
    }

    /// The request that is to be tried next, when its time has come.
    fn next(&self) -> Option<Waiting> {
        let mut queue = self.queue.lock();
        loop {
            if queue.ended {
                return None;
            }
            let now = Instant::now();
            match queue.waiting.iter_mut().min_by_key(|w| w.due) {
                None => self.news.wait(&mut queue),
                Some(first) if first.due <= now => {
                    (first.trying, first.nudged) = (true, false);
                    return Some(first.clone());
                }
                Some(first) => {
                    let due = first.due;
                    let _ = self.news.wait_until(&mut queue, due);
                }
            }
        }
    }

    /// After a try: the answer, or when to try again.
    fn settle(&self, unique: u64, outcome: &Result<Answer<()>, Stage>) -> Option<Answer<()>> {
        let mut queue = self.queue.lock();
        let at = queue.waiting.iter().position(|w| w.unique == unique)?;
        let waiting = queue.waiting.get_mut(at)?;
        waiting.trying = false;
        let answered = match outcome {
            Ok(Err(Errno::AGAIN)) if waiting.wait => waiting.interrupted.then_some(Err(Errno::INTR)),
            Ok(answer) => Some(*answer),
            Err(stage) => {
                waiting.stage = *stage;
                None
            }
        };
        if answered.is_some() {
            queue.waiting.remove(at);
        } else if !waiting.nudged {
            waiting.pause = (waiting.pause * 2).min(PAUSES.1);
            waiting.due = Instant::now() + waiting.pause;
        }
        answered
    }
}

/// Whether others may have a lock after this: of an unlock, and of a lock for reading in the place of one for writing.
fn lets_others_in(ask: &LockAsk, answer: Answer<()>) -> bool {
    answer.is_ok() && ask.kind != Some(LockKind::Write)
}

fn reply(answer: Answer<()>) -> Reply {
    match answer {
        Ok(()) => Reply::Data(0),
        Err(errno) => Reply::Error(errno),
    }
}

fn answer(waiting: &Waiting, answer: Answer<()>) {
    let error = answer.map_or_else(|errno| -errno.raw_os_error(), |()| 0);
    match waiting.channel.send_small(waiting.unique, error, &[]) {
        Ok(()) | Err(Errno::NOENT | Errno::NODEV | Errno::NOTCONN) => {}
        Err(e) => debug!("the kernel did not take the answer to a lock: {e}"),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;
    use std::sync::atomic::{AtomicBool, Ordering};

    use zerocopy::FromBytes;

    use super::*;
    use crate::fs::Range;
    use crate::fuse::abi::OutHeader;

    /// A lock that others have, or not.
    struct Gate(AtomicBool);

    impl Handler for Gate {
        fn set_lock(&self, _: Ino, _: &LockAsk) -> Answer<Granted> {
            if self.0.load(Ordering::Acquire) { Err(Errno::AGAIN) } else { Ok(Granted::AsBefore) }
        }
    }

    const ASK: LockAsk =
        LockAsk { fh: 1, owner: 1, range: Range::WHOLE, kind: Some(LockKind::Write), pid: 1, whole: false };

    fn taken() -> (Arc<Locking<Gate>>, Arc<Channel>, File) {
        let (answers, kernel) = rustix::pipe::pipe().expect("a pipe");
        let channel = Arc::new(Channel::new(kernel));
        let notifier = Notifier::new(Arc::clone(&channel));
        (Arc::new(Locking::new(Arc::new(Gate(AtomicBool::new(true))), notifier)), channel, answers.into())
    }

    fn answered(answers: &mut File) -> (u64, i32) {
        let mut bytes = [0; size_of::<OutHeader>()];
        answers.read_exact(&mut bytes).expect("an answer");
        let header = OutHeader::read_from_bytes(&bytes).expect("a header");
        (header.unique, header.error)
    }

    /// So many wait and no more; a signal makes room; when the lock is let go all are answered.
    #[test]
    fn so_many_wait_and_are_answered() {
        let (locking, channel, mut answers) = taken();
        let most = MOST as u64;
        for unique in 1..=most {
            assert_eq!(locking.set(&channel, unique, 7, (&ASK, true)), Reply::Silence);
        }
        assert_eq!(locking.set(&channel, most + 1, 7, (&ASK, true)), Reply::Error(Errno::NOLCK));
        locking.interrupt(5);
        assert_eq!(answered(&mut answers), (5, -libc::EINTR));
        assert_eq!(locking.set(&channel, most + 2, 7, (&ASK, true)), Reply::Silence);
        let thread = std::thread::spawn({
            let locking = Arc::clone(&locking);
            move || locking.run()
        });
        std::thread::sleep(Duration::from_millis(50));
        locking.handler.0.store(false, Ordering::Release);
        locking.nudge(7);
        let mut all: Vec<_> = (1..=most).map(|_| answered(&mut answers)).collect();
        assert!(all.iter().all(|(_, error)| *error == 0));
        all.sort_unstable();
        assert!(all.iter().map(|(unique, _)| *unique).eq((1..=most).filter(|u| *u != 5).chain([most + 2])));
        locking.end();
        thread.join().expect("no panic");
    }

    /// A signal that is told before its request waits ends the wait all the same; who does not wait is told at once.
    #[test]
    fn an_early_interrupt_counts() {
        let (locking, channel, _answers) = taken();
        locking.interrupt(9);
        assert_eq!(locking.set(&channel, 9, 7, (&ASK, true)), Reply::Error(Errno::INTR));
        assert_eq!(locking.set(&channel, 9, 7, (&ASK, true)), Reply::Silence);
        assert_eq!(locking.set(&channel, 10, 7, (&ASK, false)), Reply::Error(Errno::AGAIN));
        for unique in 100..100 + 2 * EARLY as u64 {
            locking.interrupt(unique);
        }
        assert_eq!(locking.queue.lock().early.len(), EARLY);
    }
}
