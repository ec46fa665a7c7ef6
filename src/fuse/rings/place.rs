//! Where a ring's thread runs. A small request is answered on the processor of its caller, which waits for it: no other
//! one has to be woken. With a large one the thread leaves, so that several run at once and the caller goes on.

use log::debug;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Small requests in a row after which a thread goes back: moving costs more than one of them.
const SETTLED: u8 = 8;

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
        let mut place = Self { home, anywhere, away: true, small: 0 };
        place.go_home();
        place
    }

    /// A request was taken: a large one, or a small one.
    pub(super) fn before(&mut self, large: bool) {
        if large {
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
