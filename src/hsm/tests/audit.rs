//! The audit log: what it notices, and what does not end it.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::*;
use crate::hsm::audit::Entry;

fn verified(hsm: &Hsm) -> Result<serde_json::Value, HsmError> {
    hsm.logged_in("admin", Role::Admin).audit_verify()
}

/// An HSM that was stopped, and copies of it as it was then.
struct Stopped {
    hsm: Hsm,
    saved: tempfile::TempDir,
}

fn copied(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    std::fs::create_dir(to).unwrap();
    std::fs::set_permissions(to, std::fs::Permissions::from_mode(0o700)).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

impl Stopped {
    fn new(mut hsm: Hsm) -> Self {
        // The end of an HSM settles its log a moment after the last hold on it is gone: this one is settled, and ended.
        hsm.appliance.as_ref().unwrap().settle();
        hsm.stop();
        let open = || Appliance::open(&hsm.tmp.path().join("hsm"), None, config());
        while matches!(open(), Err(HsmError::Busy(_))) {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        let saved = tempfile::tempdir().unwrap();
        copied(&hsm.tmp.path().join("hsm"), &saved.path().join("hsm"));
        Self { hsm, saved }
    }

    fn log(&self) -> PathBuf {
        self.hsm.tmp.path().join("hsm/audit.log")
    }

    /// Starts it as it was, but for what `change` makes of its log.
    fn start(&mut self, change: impl FnOnce(String) -> String) {
        copied(&self.saved.path().join("hsm"), &self.hsm.tmp.path().join("hsm"));
        let whole = std::fs::read_to_string(self.log()).unwrap();
        std::fs::write(self.log(), change(whole)).unwrap();
        self.hsm.start();
    }
}

/// The audit log has no gaps, and notices a changed, a removed and a cut line. What is written behind a fault is evidence still:
/// each further one is named too.
#[test]
fn the_audit_log_notices_changes() {
    let hsm = Hsm::new();
    hsm.user("alice").generate(&[(CKA_TOKEN, &[1])]).unwrap();
    let lines = verified(&hsm).unwrap()["lines"].as_u64().unwrap();
    assert!(lines > 5);
    let mut stopped = Stopped::new(hsm);
    let whole = std::fs::read_to_string(stopped.log()).unwrap();
    assert!(whole.contains("CN_GENERATE_KEY") && whole.contains("CN_LOGIN") && !whole.contains(PASSWORD));
    let all: Vec<_> = whole.lines().collect();
    let cases = [
        whole.replace("\"user\":\"alice\"", "\"user\":\"bob\""),
        [&all[..2], &all[3..]].concat().join("\n") + "\n",
        all[..all.len() - 1].join("\n") + "\n",
        [&all[..2], &["garbage"], &all[2..]].concat().join("\n") + "\n",
        String::new(),
    ];
    for case in cases {
        stopped.start(|_| case.clone());
        assert!(verified(&stopped.hsm).is_err(), "{case}");
        stopped.hsm.stop();
        let log = std::fs::read_to_string(stopped.log()).unwrap();
        assert!(log.starts_with("{") && log.lines().next().unwrap().contains("CN_LOG_BEGINS"), "{log}");
        std::fs::write(
            stopped.log(),
            log.replace(
                "\"user\":\"\",\"role\":\"\",\"object\":\"admin\"",
                "\"user\":\"\",\"role\":\"\",\"object\":\"bob\"",
            ),
        )
        .unwrap();
        stopped.hsm.start();
        let faults = verified(&stopped.hsm).unwrap_err().to_string();
        assert!(faults.contains("was changed") && faults.matches(';').count() >= 1, "{faults}");
        stopped.hsm.stop();
    }
    stopped.start(|whole| whole);
    verified(&stopped.hsm).unwrap();
}

/// Half a line, as a power cut leaves it, is cut off and noted; the log goes on.
#[test]
fn half_a_line_does_not_end_the_audit_log() {
    let mut stopped = Stopped::new(Hsm::new());
    stopped.start(|whole| whole + "{\"seq\":99,\"reb");
    verified(&stopped.hsm).unwrap();
    let log = std::fs::read_to_string(stopped.log()).unwrap();
    assert!(log.contains("CN_LOG_CUT") && !log.contains("\"seq\":99"), "{log}");
    stopped.hsm.stop();
    stopped.hsm.start();
    verified(&stopped.hsm).unwrap();
}

/// A full file is put aside and the next one goes on from it; a missing one is noticed, but for the oldest, which may be put
/// elsewhere.
#[test]
fn a_full_audit_log_goes_on_in_another_file() {
    let hsm = Hsm::new();
    for _ in 0..1000 {
        let line = Entry { opcode: "CN_TEST".into(), object: "x".repeat(100), ..Entry::default() };
        hsm.appliance.as_ref().unwrap().audit.lock().append(line).unwrap();
    }
    let found = verified(&hsm).unwrap();
    assert!(found["lines"].as_u64().unwrap() > 1000 && found["first-line"] == 0, "{found}");
    let mut stopped = Stopped::new(hsm);
    stopped.start(|whole| whole);
    verified(&stopped.hsm).unwrap();
    let mut old: Vec<_> =
        std::fs::read_dir(stopped.hsm.tmp.path().join("hsm")).unwrap().flatten().map(|e| e.path()).collect();
    old.retain(|path| path.to_str().unwrap().contains("/audit.0"));
    old.sort();
    assert!(old.len() > 2, "{old:?}");
    std::fs::remove_file(&old[0]).unwrap();
    assert_ne!(verified(&stopped.hsm).unwrap()["first-line"], 0);
    std::fs::remove_file(&old[2]).unwrap();
    assert!(verified(&stopped.hsm).unwrap_err().to_string().contains("lines are missing"));
}

/// While the log is verified lines are written and the HSM's state is asked for.
#[test]
fn a_verification_holds_up_nobody() {
    let hsm = Hsm::new();
    let appliance = hsm.appliance.clone().unwrap();
    let written = appliance.audit.lock().written().unwrap();
    let _alone = appliance.verifying.lock();
    hsm.user("alice").generate(&[]).unwrap();
    hsm.manager().health().unwrap();
    let found = written.verify().unwrap();
    assert!(found.faults.is_empty() && found.lines < appliance.audit.lock().head.lines);
    assert!(verified(&hsm).is_err(), "one at a time");
}
