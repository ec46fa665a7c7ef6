//! What a run was measured on: without it a figure means nothing.

use std::fs;

/// The machine and the program.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct Machine {
    /// As the processor calls itself.
    pub processor: String,
    /// Those of its abilities that matter to a cipher.
    pub features: Vec<&'static str>,
    /// Processors that this process may use.
    pub processors: usize,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// The kernel's release.
    pub kernel: String,
    /// This program's version.
    pub version: &'static str,
    /// Commit that it was built from, where the caller told it in `EFS_COMMIT`.
    pub commit: Option<String>,
}

/// Abilities that are looked for.
const FEATURES: [&str; 8] =
    ["aes", "pclmulqdq", "vaes", "vpclmulqdq", "avx2", "avx512f", "avx512bw", "constant_tsc"];

impl Machine {
    /// This one.
    pub fn here() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let kib = value(&meminfo, "MemTotal").and_then(|v| v.trim_end_matches(" kB").parse::<u64>().ok());
        let flags: Vec<_> = value(&cpuinfo, "flags").unwrap_or_default().split(' ').collect();
        Self {
            processor: value(&cpuinfo, "model name").unwrap_or(std::env::consts::ARCH).to_owned(),
            features: FEATURES.into_iter().filter(|f| flags.contains(f)).collect(),
            processors: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            memory_mib: kib.unwrap_or(0) >> 10,
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
            version: env!("CARGO_PKG_VERSION"),
            commit: std::env::var("EFS_COMMIT").ok().filter(|c| !c.is_empty()),
        }
    }

    /// One line for people.
    pub fn line(&self) -> String {
        let commit = self.commit.as_deref().map(|c| format!(" at {c}")).unwrap_or_default();
        format!(
            "{} processors of {} ({}), {} MiB, Linux {}; envelopefs {}{commit}",
            self.processors,
            self.processor,
            self.features.join(" "),
            self.memory_mib,
            self.kernel,
            self.version
        )
    }
}

/// The first value of `key` in a file of `key : value` lines.
fn value<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().filter_map(|l| l.split_once(':')).find(|(k, _)| k.trim() == key).map(|(_, v)| v.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_found_by_its_whole_key() {
        assert_eq!(value("MemTotalX: 1\nMemTotal:  2 kB\n", "MemTotal"), Some("2 kB"));
        assert!(!Machine::here().kernel.is_empty());
    }
}
