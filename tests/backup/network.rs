//! Networks and servers that misbehave (`proxy`): a run lasts through what passes, says in a word what does not, and the
//! next one mends.

use super::harness::{Home, Killed, eventually, said};
use super::proxy::{Fault, Plan, Proxy};
use super::s3::home;

/// A filled vault whose repository is reached through a proxy.
fn drilled(name: &str) -> Option<(Home, Proxy)> {
    let mut home = home(name)?;
    home.fill();
    home.init_repo();
    let proxy = Proxy::before(&home.env[2].1);
    home.env[2].1.clone_from(&proxy.endpoint);
    Some((home, proxy))
}

fn plan(fault: Fault, every: usize, of: &'static str) -> Option<Plan> {
    Some(Plan { fault, every, of })
}

/// Everything is there and right, in a repository that was written on a bad day.
fn assert_whole(home: &mut Home) {
    home.ok(&["backup", "verify", "--read", "all", "REPO"]);
    home.ok(&["backup", "restore", "REPO", "back"]);
    home.assert_same("vault", "back");
}

/// Every third request is answered 500 or 503, or its connection is cut on the way there or back: what failed is sent
/// again, and the run ends with 0.
#[test]
fn what_passes_is_tried_again() {
    let Some((mut home, proxy)) = drilled("passes") else { return };
    let faults = [
        Fault::Answer(500, "InternalError"),
        Fault::Answer(503, "SlowDown"),
        Fault::CutRequest,
        Fault::CutAnswer,
    ];
    for fault in faults {
        let before = proxy.faults();
        proxy.set(plan(fault.clone(), 3, "/"));
        let done = home.json(0, &["backup", "run", "--all", "vault", "REPO"]);
        proxy.set(None);
        assert!(proxy.faults() > before, "{fault:?}");
        assert!(done["meter"]["retries"].as_u64().unwrap() > 0, "{fault:?}: {done}");
    }
    assert_whole(&mut home);
}

/// A server that says 503 to everything, or nothing at all, is given up after the time that was given: exit code 1, and
/// the next run stores all of it.
#[test]
fn what_does_not_pass_is_given_up() {
    let Some((mut home, proxy)) = drilled("given-up") else { return };
    for fault in [Fault::Answer(503, "SlowDown"), Fault::Freeze] {
        proxy.set(plan(fault, 1, "PUT"));
        let told = home.ends(1, &["backup", "run", "--timeout", "1", "--patience", "2", "vault", "REPO"]);
        proxy.set(None);
        assert!(told.contains("Run it again when the store answers"), "{told}");
    }
    home.ok(&["backup", "run", "vault", "REPO"]);
    assert_whole(&mut home);
}

/// A store that takes no more packs ends a run soon, however much there is still to be read: it is not read.
#[test]
fn a_store_that_is_gone_ends_a_run_soon() {
    let Some((mut home, proxy)) = drilled("gone") else { return };
    // Six packs.
    let mnt = home.mount("vault");
    home.sh(&format!(
        "cd {} && for n in 1 2 3 4; do head -c 45000000 /dev/urandom > big-$n; done",
        mnt.display()
    ));
    home.umount(&mnt);
    // The tries of two packs, of one each at a time.
    for (fault, most) in [(Fault::Answer(503, "SlowDown"), 12), (Fault::Answer(403, "AccessDenied"), 2)] {
        proxy.set(plan(fault.clone(), 1, "PUT"));
        let before = proxy.faults();
        let args = ["backup", "run", "--parallel", "1", "--timeout", "9", "--patience", "2", "vault", "REPO"];
        let told = home.ends(1, &args);
        proxy.set(None);
        assert!(
            told.contains("Run it again when the store answers") || told.contains("AccessDenied"),
            "{told}"
        );
        let tries = proxy.faults() - before;
        assert!(tries <= most, "{fault:?}: {tries}");
    }
    home.ok(&["backup", "run", "vault", "REPO"]);
    home.ok(&["backup", "verify", "REPO"]);
}

/// A server that stops answering in the middle of a pack and comes back is waited for.
#[test]
fn a_freeze_in_a_pack_passes() {
    let Some((mut home, proxy)) = drilled("freeze") else { return };
    proxy.set(plan(Fault::Freeze, 1, "/data/"));
    let run = home.efs(&["backup", "run", "--json", "--timeout", "1", "vault", "REPO"]).spawn().unwrap();
    eventually("a frozen pack", || proxy.faults() >= 2);
    proxy.set(None);
    let output = run.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert_whole(&mut home);
}

/// A clock that is wrong is named as such, at once.
#[test]
fn a_wrong_clock_is_named() {
    let Some((home, proxy)) = drilled("clock") else { return };
    proxy.set(plan(Fault::Answer(403, "RequestTimeTooSkewed"), 1, "/"));
    let told = home.ends(1, &["backup", "run", "vault", "REPO"]);
    proxy.set(None);
    assert!(told.contains("clock"), "{told}");
    home.ok(&["backup", "run", "vault", "REPO"]);
}

/// A bit that is turned over on the way there is noticed by the server, and the pack is sent again; on the way back it is
/// noticed here, and the pack is fetched again.
#[test]
fn a_bit_flipped_on_the_way_is_noticed() {
    let Some((mut home, proxy)) = drilled("flip") else { return };
    proxy.set(plan(Fault::FlipRequest, 2, "/data/"));
    home.ok(&["backup", "run", "vault", "REPO"]);
    let there = proxy.faults();
    assert!(there > 0);
    // The trees' pack or one of data, whichever comes second.
    proxy.set(plan(Fault::FlipAnswer, 2, "/data/"));
    home.sh("rm -r cache");
    let done = home.json(0, &["backup", "restore", "REPO", "back"]);
    assert!(proxy.faults() > there && done["meter"]["retries"].as_u64().unwrap() > 0, "{done}");
    proxy.set(None);
    home.assert_same("vault", "back");
    home.sh("rm -r back");
    assert_whole(&mut home);
}

/// Two machines (caches of their own) store into one repository at once: both end well, nothing of either is lost.
#[test]
fn two_machines_at_once() {
    let Some((mut home, _proxy)) = drilled("two") else { return };
    let other = home.path("other-cache");
    let mut second = home.efs(&["backup", "run", "--limit", "2000", "vault", "REPO"]);
    let mut second = Killed(second.env("XDG_CACHE_HOME", other).spawn().unwrap());
    home.ok(&["backup", "run", "--limit", "2000", "vault", "REPO"]);
    assert!(second.0.wait().unwrap().success());
    assert_eq!(home.json(0, &["backup", "list", "REPO"]).as_array().unwrap().len(), 2);
    assert_whole(&mut home);
}

/// A server that stops answering while a repository is verified has no fault: 1, not 11.
#[test]
fn a_server_that_does_not_answer_is_no_fault_of_a_repository() {
    let Some((home, proxy)) = drilled("verify-away") else { return };
    home.ok(&["backup", "run", "vault", "REPO"]);
    for what in [&["--read", "all"][..], &["--deep"]] {
        for of in ["/data/", "/index/"] {
            home.sh("rm -rf cache");
            proxy.set(plan(Fault::Answer(503, "SlowDown"), 1, of));
            let args = [&["backup", "verify", "--timeout", "1", "--patience", "1", "REPO"], what].concat();
            let told = home.ends(1, &args);
            proxy.set(None);
            assert!(told.contains("Run it again when the store answers"), "{told}");
        }
    }
    home.ok(&["backup", "verify", "--read", "all", "REPO"]);
}
