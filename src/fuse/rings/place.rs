//! Where a ring's thread runs. A small request is answered on the processor of its caller, which waits for it: no other
//! one has to be woken. With a large one the thread leaves, so that several run at once and the caller goes on.

use log::debug;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Small requests in a row after which a thread goes back: moving costs more than one of them.
const SETTLED: u8 = 8;

/// Writes of the page cache in a row (nobody waits for each of them) after which a thread leaves: one that syncs or closes
/// small files makes fewer between other requests.
const STREAM: u8 = 8;

/// What a request asks of its thread.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Weight {
    /// A caller waits, and not for much.
    Small,
    /// A write of the page cache.
    Background,
    /// Copies and cipher are worth another processor.
    Large,
}

/// A thread's place.
#[derive(Debug)]
pub(super) struct Place {
    /// The queue's processor, where it may be chosen.
    home: Option<CpuSet>,
    /// Every processor that the process may use.
    anywhere: Option<CpuSet>,
    away: bool,
    /// Small requests since the last large one.
    small: u8,
    /// Writes of the page cache since the last other request.
    background: u8,
}

impl Place {
    /// Of the calling thread: on `cpu`, or anywhere.
    pub(super) fn new(cpu: Option<usize>) -> Self {
        let anywhere = sched_getaffinity(None).ok();
        let home = cpu.filter(|cpu| anywhere.is_some_and(|a| *cpu < CpuSet::MAX_CPU && a.is_set(*cpu)));
        let home = home.map(|cpu| {
            let mut set = CpuSet::new();
            set.set(cpu);
            set
        });
        let mut place = Self { home, anywhere, away: true, small: 0, background: 0 };
        place.go_home();
        place
    }

    /// A request was taken.
    pub(super) fn before(&mut self, weight: Weight) {
        self.background = if weight == Weight::Background { self.background.saturating_add(1) } else { 0 };
        if weight == Weight::Large || self.background >= STREAM {
            self.small = 0;
            self.leave();
        } else if self.away {
            self.small = self.small.saturating_add(1);
            if self.small >= SETTLED {
                self.go_home();
            }
        }
    }

    fn leave(&mut self) {
        if let Some(anywhere) = self.anywhere.filter(|_| !self.away && self.home.is_some()) {
            self.away = true;
            set(&anywhere);
        }
    }

    fn go_home(&mut self) {
        if let Some(home) = self.home {
            self.away = false;
            set(&home);
        }
    }
}

/// It is a wish: without it the thread runs where the kernel likes.
fn set(cpus: &CpuSet) {
    if let Err(e) = sched_setaffinity(None, cpus) {
        debug!("a ring's thread stays where it is: {e}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Large requests and streams of background writes are answered anywhere; a few small ones bring the thread back.
    #[test]
    fn a_thread_leaves_for_what_is_large_and_comes_back() {
        let cpu =
            sched_getaffinity(None).ok().and_then(|set| (0..CpuSet::MAX_CPU).find(|cpu| set.is_set(*cpu)));
        let mut place = Place::new(cpu);
        assert!(!place.away);
        let mut after = |weight, times: u8| {
            (0..times).for_each(|_| place.before(weight));
            place.away
        };
        assert!(after(Weight::Large, 1));
        assert!(after(Weight::Small, SETTLED - 1));
        assert!(!after(Weight::Small, 1));
        assert!(!after(Weight::Background, STREAM - 1));
        assert!(!after(Weight::Small, 1));
        assert!(after(Weight::Background, STREAM));
        assert!(after(Weight::Background, 100));
        assert!(!after(Weight::Small, SETTLED));
        set(&place.anywhere.expect("as it was before"));
    }
}
