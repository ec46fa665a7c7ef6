//! Time in nanoseconds, and in ticks of the processor's time stamp counter. An island of `unsafe`: one instruction.

use std::time::Instant;

/// What a stretch of work took.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Took {
    pub(super) seconds: f64,
    /// Ticks of the counter, which runs at one rate whatever the core does; none where there is no such counter.
    pub(super) ticks: Option<u64>,
}

/// Runs `work`, and tells what it took.
pub(super) fn time<T>(work: impl FnOnce() -> T) -> (T, Took) {
    let (begin, from) = (Instant::now(), ticks());
    let done = work();
    let (to, seconds) = (ticks(), begin.elapsed().as_secs_f64());
    let ticks = from.zip(to).map(|(from, to)| to.wrapping_sub(from));
    (done, Took { seconds, ticks })
}

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
fn ticks() -> Option<u64> {
    // SAFETY: every x86-64 processor has the instruction; Linux does not forbid it to programs.
    Some(unsafe { core::arch::x86_64::_rdtsc() })
}

#[cfg(not(target_arch = "x86_64"))]
fn ticks() -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn longer_work_takes_longer() {
        let sleep = |ms| time(|| std::thread::sleep(std::time::Duration::from_millis(ms))).1;
        let (short, long) = (sleep(1), sleep(40));
        assert!(long.seconds > short.seconds && long.seconds >= 0.04);
        assert!(long.ticks >= short.ticks);
    }
}
