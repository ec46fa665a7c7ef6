//! The KMS store and `init` under several processes and under kill -9.
//!
//! A child is this test binary again, told by an environment variable what to do; it acknowledges on stdout what
//! has become durable.

use std::io::{BufRead, BufReader, Read as _, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use envelopefs::format::header::FileHeader;
use envelopefs::keys::{DEFAULT_URI, OpenError, Unlock, ensure_embedded_key, init_vault, open_vault};
use envelopefs::kms::{EncryptionContext, Engine, KmsError, Limits, Protection};

const ROLE: &str = "ENVELOPEFS_TEST_ROLE";
const DIR: &str = "ENVELOPEFS_TEST_DIR";
/// Kills during `init`, spread over 60 ms: it takes about 25 ms here, most of them in fsync.
const ROUNDS: u64 = 40;

/// A child that is killed and awaited when the test leaves, however it leaves.
struct Guarded(Child);

impl Drop for Guarded {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn child(role: &str, dir: &Path) -> (Guarded, BufReader<ChildStdout>) {
    let mut child = Command::new(std::env::current_exe().expect("this test has a path"))
        .args(["--exact", "plays_a_role", "--nocapture", "--test-threads=1"])
        .env(ROLE, role)
        .env(DIR, dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("this test starts itself");
    let out = BufReader::new(child.stdout.take().expect("stdout is a pipe"));
    (Guarded(child), out)
}

fn generous(engine: Engine) -> Engine {
    engine.with_limits(Limits { on_demand_rotations: u16::MAX, ..Limits::default() })
}

fn acknowledge(line: &str) {
    let mut out = std::io::stdout().lock();
    // The parent may have gone; then this process is about to end as well.
    let _ = writeln!(out, "ACK {line}").and_then(|()| out.flush());
}

/// Acknowledged lines, without what the test harness prints around them.
fn acknowledged(out: impl BufRead) -> Vec<String> {
    out.lines()
        .map_while(Result::ok)
        .filter_map(|l| l.split_once("ACK ").map(|(_, l)| l.to_owned()))
        .collect()
}

/// Not a test of its own: what the children of the tests below do. Without a role it does nothing.
#[test]
fn plays_a_role() {
    let (Ok(role), Ok(dir)) = (std::env::var(ROLE), std::env::var(DIR)) else { return };
    let dir = PathBuf::from(dir);
    match role.as_str() {
        "writer" => {
            let kms = generous(Engine::open(&dir, None).unwrap());
            loop {
                let key = kms.create_key("").unwrap().key_id;
                let blob = kms.encrypt(&key, b"kept", &EncryptionContext::new()).unwrap().blob;
                acknowledge(&format!("{key} 1 {}", hex::encode(&blob)));
                for _ in 0..3 {
                    let version = kms.rotate_key_on_demand(&key).unwrap().version;
                    acknowledge(&format!("{key} {version} {}", hex::encode(&blob)));
                }
            }
        }
        "rotator" => {
            let kms = generous(Engine::open(&dir, None).unwrap());
            for _ in 0..20 {
                acknowledge(&kms.rotate_key_on_demand("alias/envelopefs").unwrap().version.to_string());
            }
        }
        "creator" => drop(Engine::create(&dir, &Protection::KeyFile).unwrap()),
        "initialiser" => {
            let unlock = Unlock { kms_dir: Some(dir.with_file_name("kms")), ..Unlock::default() };
            init_vault(&dir, DEFAULT_URI, &unlock).unwrap();
        }
        "without-xattrs" => {
            let unlock = Unlock { kms_dir: Some(dir.with_file_name("kms")), ..Unlock::default() };
            acknowledge(&format!("{:?}", init_vault(&dir, DEFAULT_URI, &unlock).unwrap_err()));
        }
        other => panic!("no such role: {other}"),
    }
}

/// What was acknowledged before a kill -9 is there after it, and the store goes on working, round after round.
#[test]
fn a_killed_writer_loses_nothing_acknowledged() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("kms");
    Engine::create(&dir, &Protection::KeyFile).unwrap();
    let mut all = 0;
    for round in 0..12_u64 {
        let (mut writer, mut out) = child("writer", &dir);
        // At least one thing is acknowledged; then the kill comes somewhere in the next few commits.
        let mut first = String::new();
        while !first.contains("ACK ") {
            first.clear();
            assert_ne!(out.read_line(&mut first).unwrap(), 0, "the writer ended");
        }
        std::thread::sleep(Duration::from_micros(700 * round * round));
        writer.0.kill().unwrap();
        writer.0.wait().unwrap();
        let lines = acknowledged(first.as_bytes().chain(out));
        let kms = Engine::open(&dir, None).unwrap();
        for line in &lines {
            let mut fields = line.split(' ');
            let (Some(key), Some(version), Some(blob)) = (fields.next(), fields.next(), fields.next()) else {
                // The last line may be cut by the kill.
                continue;
            };
            assert!(kms.describe_key(key).unwrap().version >= version.parse().unwrap(), "{line}");
            if let Ok(blob) = hex::decode(blob)
                && blob.len() == 81
            {
                let opened = kms.decrypt(&blob, &EncryptionContext::new(), Some(key)).unwrap();
                assert_eq!(opened.plaintext.as_slice(), b"kept");
            }
            all += 1;
        }
        assert!(kms.list_keys().unwrap().iter().all(|key| {
            let ctx = EncryptionContext::new();
            let blob = kms.encrypt(&key.key_id, b"x", &ctx).unwrap().blob;
            kms.decrypt(&blob, &ctx, None).is_ok()
        }));
        kms.create_key("after").unwrap();
    }
    assert!(all >= 12);
}

/// A kill -9 while a store or a vault is being made leaves none or a whole one, and making it again works.
#[test]
fn a_killed_init_leaves_nothing_or_everything() {
    let tmp = tempfile::tempdir().unwrap();
    let kms = tmp.path().join("kms");
    Engine::create(&kms, &Protection::KeyFile).unwrap();
    let unlock = Unlock { kms_dir: Some(kms), ..Unlock::default() };
    ensure_embedded_key(DEFAULT_URI, &unlock).unwrap();
    let mut seen = [0; 2];
    for round in 0..ROUNDS {
        let kill_after = Duration::from_micros(1500 * round);
        let store = tmp.path().join(format!("store{round}"));
        let vault = tmp.path().join(format!("vault{round}"));
        for (role, dir) in [("creator", &store), ("initialiser", &vault)] {
            let (mut made, _out) = child(role, dir);
            // The first is killed before it began, the last one is not killed; the others are somewhere between.
            if round + 1 < ROUNDS {
                std::thread::sleep(kill_after);
                made.0.kill().unwrap();
            }
            made.0.wait().unwrap();
        }
        match Engine::open(&store, None) {
            Ok(whole) => drop(whole.create_key("").unwrap()),
            Err(KmsError::NoStore(_)) => drop(Engine::create(&store, &Protection::KeyFile).unwrap()),
            Err(other) => panic!("{other}"),
        }
        match open_vault(&vault, &unlock) {
            Ok(_) => seen[0] += 1,
            Err(OpenError::NotAVault(_)) => {
                seen[1] += 1;
                init_vault(&vault, DEFAULT_URI, &unlock).unwrap();
                open_vault(&vault, &unlock).unwrap();
            }
            Err(other) => panic!("{other}"),
        }
    }
    assert!(seen.iter().all(|n| *n > 0), "either no kill came early or none was survived: {seen:?}");
}

/// A mounted vault goes on making and opening files while another process rotates its key twenty times.
#[test]
fn a_keyring_works_while_another_process_rotates() {
    let tmp = tempfile::tempdir().unwrap();
    let (kms, vault) = (tmp.path().join("kms"), tmp.path().join("vault"));
    Engine::create(&kms, &Protection::KeyFile).unwrap();
    let unlock = Unlock { kms_dir: Some(kms.clone()), ..Unlock::default() };
    ensure_embedded_key(DEFAULT_URI, &unlock).unwrap();
    init_vault(&vault, DEFAULT_URI, &unlock).unwrap();
    let ring = open_vault(&vault, &unlock).unwrap();
    let (mut rotator, out) = child("rotator", &kms);
    let mut files = Vec::new();
    let start = Instant::now();
    while rotator.0.try_wait().unwrap().is_none() || start.elapsed() < Duration::from_millis(1200) {
        assert!(start.elapsed() < Duration::from_secs(60), "the rotator does not end");
        files.push(ring.new_file().unwrap().header);
        // A keyring that knows no data key yet, so that it asks the store.
        if files.len() % 100 == 0 {
            let fresh = open_vault(&vault, &unlock).unwrap();
            fresh.open_file(&FileHeader::decode(&files[files.len() - 1]).unwrap()).unwrap();
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(rotator.0.wait().unwrap().success());
    assert_eq!(acknowledged(out).last().map(String::as_str), Some("21"));
    std::thread::sleep(Duration::from_millis(1100));
    files.push(ring.new_file().unwrap().header);
    assert_eq!(&files[files.len() - 1][2..4], &[21, 0], "the pool follows the rotation");
    let fresh = open_vault(&vault, &unlock).unwrap();
    for header in &files {
        fresh.open_file(&FileHeader::decode(header).unwrap()).unwrap();
    }
}

/// A store that somebody else keeps locked is reported within seconds, by name.
#[test]
fn a_store_that_stays_locked_is_reported() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("kms");
    let kms = Engine::create(&dir, &Protection::KeyFile).unwrap();
    let _held = redb::Database::open(dir.join("store.redb")).unwrap();
    let start = Instant::now();
    let error = kms.list_keys().unwrap_err();
    assert!(matches!(error, KmsError::Busy { .. }), "{error}");
    assert!((4..15).contains(&start.elapsed().as_secs()));
}

/// A lower filesystem without user xattrs (ramfs) is refused, and nothing stays behind. The mount lives in a mount
/// namespace of the child's and ends with it; without the right to make one there is nothing to test.
#[test]
fn a_filesystem_without_xattrs_is_refused() {
    let tmp = tempfile::tempdir().unwrap();
    let (kms, vault) = (tmp.path().join("kms"), tmp.path().join("vault"));
    Engine::create(&kms, &Protection::KeyFile).unwrap();
    ensure_embedded_key(DEFAULT_URI, &Unlock { kms_dir: Some(kms), ..Unlock::default() }).unwrap();
    std::fs::create_dir(&vault).unwrap();
    let script = r#"mount -t ramfs none "$1" && echo ACK mounted && "$2" --exact plays_a_role --nocapture; ls -A "$1""#;
    let out = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"])
        .arg(&vault)
        .arg(std::env::current_exe().unwrap())
        .env(ROLE, "without-xattrs")
        .env(DIR, &vault)
        .output();
    let Ok(out) = out else { return };
    let lines = acknowledged(&*out.stdout);
    if lines.is_empty() {
        return;
    }
    assert!(lines.len() == 2 && lines[1].starts_with("NoXattrs("), "{lines:?}");
    assert!(!String::from_utf8_lossy(&out.stdout).contains(".efs"), "{out:?}");
}
