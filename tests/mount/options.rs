//! Mount options and users: read-only, other users, ordinary users, set-id and device files.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};

use envelopefs::crypto::kernel::{self, Kind};
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};

use crate::harness::{Vault, can_mount, envelopefs, is_root, pattern, run, sh, text};

/// A command line run by an ordinary user (`daemon` and `bin` are on every Debian).
fn as_user(user: &str, dir: &Path, line: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", user, "--regid", user, "--clear-groups", "sh", "-c", line]).current_dir(dir);
    command.stdin(Stdio::null());
    command
}

/// With `ro` everything reads and nothing is written: EROFS, and the lower files keep their times.
#[test]
fn a_read_only_mount_writes_nothing() {
    if !can_mount() {
        return;
    }
    let vault = Vault::new();
    let mount = vault.mount();
    fs::create_dir(mount.path("d")).unwrap();
    fs::write(mount.path("d/f"), "content").unwrap();
    mount.unmount();
    let state = "find . -printf '%p %s %m %T@ %C@\\n' | grep -v '^./.envelopefs' | sort";
    let before = sh(&vault.dir, state);
    let mount = vault.mount_with("ro");
    assert_eq!(fs::read_to_string(mount.path("d/f")).unwrap(), "content");
    assert_eq!(fs::read_dir(mount.path("d")).unwrap().count(), 1);
    let refused =
        |result: std::io::Result<()>| assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EROFS));
    refused(fs::write(mount.path("new"), ""));
    refused(fs::create_dir(mount.path("new")));
    refused(fs::remove_file(mount.path("d/f")));
    refused(fs::rename(mount.path("d/f"), mount.path("g")));
    refused(File::options().write(true).open(mount.path("d/f")).map(drop));
    refused(fs::set_permissions(mount.path("d/f"), fs::Permissions::from_mode(0o600)));
    mount.unmount();
    assert_eq!(sh(&vault.dir, state), before);
}

/// With `noatime` reading does not move access times.
#[test]
fn noatime_keeps_access_times() {
    if !can_mount() {
        return;
    }
    let vault = Vault::new();
    let mount = vault.mount_with("noatime");
    sh(mount.top(), "echo x > f; touch -a -d 2001-02-03 f");
    let before = fs::metadata(mount.path("f")).unwrap().atime();
    fs::read(mount.path("f")).unwrap();
    mount.unmount();
    let mount = vault.mount_with("noatime");
    assert_eq!(fs::metadata(mount.path("f")).unwrap().atime(), before);
    mount.unmount();
}

/// With `direct-lower` the ciphertext of large files does not stay in the page cache, and everything reads back.
#[test]
fn direct_lower_leaves_the_page_cache_alone() {
    if !can_mount() {
        return;
    }
    let vault = Vault::new();
    let resident = |options: &str, name: &str| -> Option<u64> {
        let mount = vault.mount_with(options);
        let plain = pattern(3 << 20, 5);
        fs::write(mount.path(name), &plain).unwrap();
        File::open(mount.path(name)).unwrap().sync_all().unwrap();
        // Blocks in the middle, and a tail that is no page.
        let file = File::options().write(true).open(mount.path(name)).unwrap();
        file.write_all_at(b"middle", 1_000_000).unwrap();
        file.write_all_at(b"tail", 3 << 20).unwrap();
        drop(file);
        let lower = fs::read_dir(&vault.dir).unwrap().map(|e| e.unwrap().path());
        let largest = lower.max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap();
        mount.unmount();
        let mount = vault.mount_with(options);
        let mut expected = plain;
        expected[1_000_000..1_000_006].copy_from_slice(b"middle");
        expected.extend_from_slice(b"tail");
        assert!(fs::read(mount.path(name)).unwrap() == expected, "{options}: reads back");
        let told = Command::new("fincore").args(["-n", "-b", "-o", "RES"]).arg(&largest).output().ok()?;
        fs::remove_file(mount.path(name)).unwrap();
        mount.unmount();
        String::from_utf8_lossy(&told.stdout).trim().parse().ok()
    };
    let (Some(cached), Some(direct)) = (resident("", "cached"), resident("direct-lower", "direct")) else {
        eprintln!("skipped: no fincore");
        return;
    };
    assert!(cached > 3 << 20, "{cached} bytes of the lower file are in the cache");
    if vault_is_on_tmpfs(&vault) {
        return;
    }
    assert!(direct < 1 << 20, "{direct} bytes of the lower file are in the cache");
    vault.assert_sound();
}

/// tmpfs is its page cache.
fn vault_is_on_tmpfs(vault: &Vault) -> bool {
    rustix::fs::statfs(&vault.dir).unwrap().f_type == 0x0102_1994
}

/// With `allow_other` every user works under his own name, and the kernel keeps them apart.
#[test]
fn other_users_own_what_they_make() {
    if !can_mount() || !is_root() {
        return;
    }
    let vault = Vault::new();
    fs::set_permissions(vault.mnt.parent().unwrap(), fs::Permissions::from_mode(0o755)).unwrap();
    let mount = vault.mount_with("allow_other");
    sh(
        mount.top(),
        "chmod 755 .; mkdir -m 1777 t; mkdir -m 2777 g; chgrp daemon g; echo secret > s; chmod 600 s",
    );
    run(&mut as_user(
        "bin",
        mount.top(),
        "umask 027; echo x > t/f; mkdir t/d; ln -s x t/l; mkfifo t/p; echo x > g/f",
    ));
    let owners = sh(mount.top(), "find t g -mindepth 1 -printf '%p %u:%g %m\\n' | sort");
    let expected = "g/f bin:daemon 640\nt/d bin:bin 750\nt/f bin:bin 640\nt/l bin:bin 777\nt/p bin:bin 640\n";
    assert_eq!(owners, expected);
    assert!(!as_user("bin", mount.top(), "cat s").output().unwrap().status.success());
    assert!(!as_user("daemon", mount.top(), "rm -f t/f").output().unwrap().status.success());
    assert!(!as_user("bin", mount.top(), "chown daemon t/f").output().unwrap().status.success());
    mount.unmount();
    let mount = vault.mount_with("allow_other");
    assert_eq!(sh(mount.top(), "find t g -mindepth 1 -printf '%p %u:%g %m\\n' | sort"), expected);
    // Without the option, others do not get in at all.
    mount.unmount();
    let mount = vault.mount();
    assert!(
        !as_user("bin", Path::new("/"), &format!("ls {}", text(mount.top())))
            .output()
            .unwrap()
            .status
            .success()
    );
    mount.unmount();
    vault.assert_sound();
}

/// Set-id bits and device nodes work only where the mount was asked to let them.
#[test]
fn suid_and_dev_need_their_options() {
    if !can_mount() || !is_root() {
        return;
    }
    let vault = Vault::new();
    fs::set_permissions(vault.mnt.parent().unwrap(), fs::Permissions::from_mode(0o755)).unwrap();
    let mount = vault.mount_with("allow_other,suid,dev");
    sh(mount.top(), "chmod 755 .; cp /usr/bin/id .; chown bin id; chmod 4755 id");
    mknodat(CWD, mount.path("null"), FileType::CharacterDevice, Mode::from_raw_mode(0o666), makedev(1, 3))
        .unwrap();
    let who = |mount: &Path| run(&mut as_user("daemon", mount, "./id -un"));
    assert_eq!(who(mount.top()), "bin\n");
    fs::write(mount.path("null"), "swallowed").unwrap();
    assert_eq!(fs::metadata(mount.path("null")).unwrap().rdev(), makedev(1, 3));
    mount.unmount();
    let mount = vault.mount_with("allow_other");
    assert_eq!(who(mount.top()), "daemon\n");
    assert_eq!(fs::write(mount.path("null"), "").unwrap_err().raw_os_error(), Some(libc::EACCES));
    mount.unmount();
    let mount = vault.mount_with("allow_other,noexec");
    assert!(!as_user("daemon", mount.top(), "./id").output().unwrap().status.success());
    mount.unmount();
}

/// An ordinary user initialises, mounts through fusermount3, works and unmounts.
#[test]
fn an_ordinary_user_mounts() {
    if !can_mount() || !is_root() {
        return;
    }
    if fs::metadata("/dev/fuse").unwrap().mode() & 0o006 != 0o006 {
        eprintln!("skipped: /dev/fuse is closed to ordinary users here");
        return;
    }
    let vault = Vault::unmade();
    let home = vault.mnt.parent().unwrap();
    // Where the build lies may be closed to others; so may the directory for temporary files.
    fs::copy(env!("CARGO_BIN_EXE_envelopefs"), home.join("envelopefs")).unwrap();
    sh(home, "chmod 755 . envelopefs; chown -R daemon:daemon .");
    if !as_user("daemon", Path::new("/"), &format!("cd {}", text(home))).status().unwrap().success() {
        eprintln!("skipped: ordinary users cannot reach {}", home.display());
        return;
    }
    let lines = "set -e; export HOME=$PWD XDG_RUNTIME_DIR=$PWD
        ./envelopefs init vault --kms-dir kms --kms-key-file >&2
        ./envelopefs mount vault mnt --kms-dir kms
        trap 'fusermount3 -uz mnt 2>/dev/null || true' EXIT
        mkdir mnt/d; echo hello > mnt/d/f; ln -s d/f mnt/l; chmod 600 mnt/d/f; cat mnt/l; stat -c %U:%G:%a mnt/d/f
        ./envelopefs umount mnt
        ./envelopefs check vault --kms-dir kms >&2
        ls mnt | wc -l";
    assert_eq!(run(&mut as_user("daemon", home, lines)), "hello\ndaemon:daemon:600\n0\n");
}

/// `mount` without `--foreground` returns when the mount is ready.
#[test]
fn mount_returns_when_the_mount_is_ready() {
    if !can_mount() {
        return;
    }
    let vault = Vault::new();
    struct Unmount<'a>(&'a Vault);
    impl Drop for Unmount<'_> {
        fn drop(&mut self) {
            let _ = Command::new("fusermount3").arg("-uz").arg(&self.0.mnt).stderr(Stdio::null()).status();
        }
    }
    let guard = Unmount(&vault);
    run(&mut vault.command(&["mount", text(&vault.dir), text(&vault.mnt)]));
    fs::write(vault.mnt.join("f"), "at once").unwrap();
    run(&mut envelopefs(["umount", text(&vault.mnt)]));
    assert!(!vault.mnt.join("f").exists());
    drop(guard);
    vault.assert_sound();
}

/// With each kernel that this processor has a mount reads what every other one wrote, and says in its log which it is;
/// one that the processor lacks is refused.
#[test]
fn every_kernel_reads_what_the_others_wrote() {
    if !can_mount() {
        return;
    }
    let vault = Vault::new();
    let kinds = kernel::available();
    let content = |kind: Kind| -> Vec<u8> {
        (0..300_001u32).map(|i| (i.wrapping_mul(31).wrapping_add(kind as u32) % 253) as u8).collect()
    };
    for (i, kind) in kinds.iter().enumerate() {
        let mount = vault.mount_with(&format!("kernel={kind}"));
        assert!(vault.log().contains(&format!("cipher kernel: {kind}\n")), "{}", vault.log());
        for before in &kinds[..i] {
            assert!(
                fs::read(mount.path(before.name())).unwrap() == content(*before),
                "{kind} reads {before}"
            );
            assert_eq!(fs::read(mount.path(&format!("{before}.small"))).unwrap(), b"inline");
        }
        fs::write(mount.path(kind.name()), content(*kind)).unwrap();
        fs::write(mount.path(&format!("{kind}.small")), "inline").unwrap();
        mount.unmount();
    }
    let first = kinds[0];
    let mount = vault.mount_with(&format!("kernel={first}"));
    for kind in &kinds {
        assert!(fs::read(mount.path(kind.name())).unwrap() == content(*kind), "{first} reads {kind}");
    }
    mount.unmount();
    for kind in Kind::ALL.into_iter().filter(|kind| !kind.is_available()) {
        let mut command =
            vault.command(&["mount", text(&vault.dir), text(&vault.mnt), "--kernel", kind.name()]);
        let refused = command.output().unwrap();
        assert_eq!(refused.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&refused.stderr).contains(kind.needs()), "{refused:?}");
    }
    vault.assert_sound();
}
