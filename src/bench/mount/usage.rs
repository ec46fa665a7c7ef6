//! What a daemon takes: memory and processor time, from /proc.

use std::fs;

/// What /proc counts processor time in (`USER_HZ`): a constant of the kernel's interface.
const TICKS_PER_SECOND: f64 = 100.0;

/// The most memory that a process had resident (VmHWM), in KiB.
pub(super) fn peak_kib(id: u32) -> Option<u64> {
    peak_of(&fs::read_to_string(format!("/proc/{id}/status")).ok()?)
}

/// Seconds of processor time that a process has taken, in user and kernel mode.
pub(super) fn cpu_seconds(id: u32) -> Option<f64> {
    ticks_of(&fs::read_to_string(format!("/proc/{id}/stat")).ok()?).map(|ticks| ticks / TICKS_PER_SECOND)
}

fn peak_of(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    line.trim().trim_end_matches("kB").trim().parse().ok()
}

/// Fields 14 and 15 of /proc/PID/stat (proc(5)); the program's name, field 2, may hold blanks and parentheses.
fn ticks_of(stat: &str) -> Option<f64> {
    let behind = stat.rsplit_once(')')?.1;
    let mut fields = behind.split_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let kernel: f64 = fields.next()?.parse().ok()?;
    Some(user + kernel)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A name like `a) 1 2` does not shift the fields.
    #[test]
    fn proc_files_are_read() {
        assert_eq!(peak_of("Name:\tx\nVmHWM:\t   35840 kB\nVmRSS:\t1 kB\n"), Some(35_840));
        assert_eq!(peak_of("Name:\tx\n"), None);
        let stat = "7 (a) 1 2) S 1 7 7 0 -1 4194560 100 0 0 0 150 50 0 0 20 0";
        assert_eq!(ticks_of(stat), Some(200.0));
        assert!(peak_kib(std::process::id()).unwrap() > 500);
        assert!(cpu_seconds(std::process::id()).is_some());
    }
}
