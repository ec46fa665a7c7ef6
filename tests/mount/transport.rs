//! Mounts whose requests come by io_uring. The whole program runs so with ENVELOPEFS_TEST_TRANSPORT=uring; here stands
//! what concerns the rings themselves.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;

use rustix::fs::{SeekFrom, seek};

use crate::harness::{Mount, Vault, can_mount, eventually, is_mounted, is_root, pattern, run, sh};

const PARAMETER: &str = "/sys/module/fuse/parameters/enable_uring";

/// Whether mounts by io_uring can be had here; says so when not.
fn can_ring() -> bool {
    if !can_mount() || !is_root() {
        return false;
    }
    let has = Path::new(PARAMETER).exists() && fs::write(PARAMETER, "Y").is_ok();
    if !has {
        eprintln!("skipped: this kernel does not offer FUSE over io_uring");
    }
    has
}

fn by_rings(vault: &Vault) -> Mount<'_> {
    let mount = vault.mount_with("transport=uring");
    eventually("the log line", || vault.log().contains("transport uring"));
    mount
}

/// Content of every size, names, listings, xattrs and holes come out of rings as they went in.
#[test]
fn rings_serve_every_kind_of_request() {
    if !can_ring() {
        return;
    }
    let vault = Vault::new();
    let mount = by_rings(&vault);
    for (n, len) in [0, 1, 4064, 4065, 100_000, 524_289, 9_000_001].into_iter().enumerate() {
        let name = mount.path(&format!("f{n}"));
        fs::write(&name, pattern(len, n as u64)).unwrap();
    }
    sh(
        mount.top(),
        "mkdir d; for i in $(seq 3000); do : > d/a-name-of-some-length-$i; done; ln -s f1 l; setfattr -n user.x -v y f1",
    );
    let sparse =
        File::options().read(true).write(true).create(true).truncate(true).open(mount.path("s")).unwrap();
    sparse.write_all_at(b"end", 3 << 20).unwrap();
    assert_eq!(seek(&sparse, SeekFrom::Data(0)).unwrap(), 3 << 20);
    drop(sparse);
    mount.unmount();
    let mount = by_rings(&vault);
    for (n, len) in [0, 1, 4064, 4065, 100_000, 524_289, 9_000_001].into_iter().enumerate() {
        assert!(fs::read(mount.path(&format!("f{n}"))).unwrap() == pattern(len, n as u64), "{len} bytes");
    }
    assert_eq!(fs::read_dir(mount.path("d")).unwrap().count(), 3000);
    assert_eq!(sh(mount.top(), "readlink l; getfattr --only-values -n user.x f1"), "f1\ny");
    assert!(fs::File::open(mount.path("none")).is_err());
    mount.unmount();
    vault.assert_sound();
}

/// Many threads on every processor, with large and small requests beside each other, and syncs: nothing is mixed up.
#[test]
fn requests_of_many_threads_are_not_mixed_up() {
    if !can_ring() {
        return;
    }
    let vault = Vault::new();
    let mount = by_rings(&vault);
    thread::scope(|scope| {
        for t in 0..8_u64 {
            let dir = mount.path(&format!("t{t}"));
            scope.spawn(move || {
                fs::create_dir(&dir).unwrap();
                for n in 0..40_u64 {
                    let len = if n % 8 == 0 { 3 << 20 } else { 4000 + n as usize };
                    let file = dir.join(n.to_string());
                    fs::write(&file, pattern(len, t * 1000 + n)).unwrap();
                    if n % 8 == 1 {
                        File::open(&file).unwrap().sync_all().unwrap();
                    }
                    assert!(fs::read(&file).unwrap() == pattern(len, t * 1000 + n));
                }
            });
        }
    });
    sh(mount.top(), "echo 3 > /proc/sys/vm/drop_caches");
    for (t, n) in (0..8_u64).flat_map(|t| (0..40_u64).map(move |n| (t, n))) {
        let len = if n % 8 == 0 { 3 << 20 } else { 4000 + n as usize };
        assert!(fs::read(mount.path(&format!("t{t}/{n}"))).unwrap() == pattern(len, t * 1000 + n));
    }
    mount.unmount();
    vault.assert_sound();
}

/// A daemon that is killed with requests in its rings leaves no dead mount, and what it acknowledged is there.
#[test]
fn a_killed_daemon_with_rings_leaves_no_dead_mount() {
    if !can_ring() {
        return;
    }
    let vault = Vault::new();
    let mount = by_rings(&vault);
    let kept = File::create(mount.path("kept")).unwrap();
    kept.write_all_at(&pattern(50_000, 1), 0).unwrap();
    kept.sync_all().unwrap();
    let busy = File::create(mount.path("busy")).unwrap();
    let writer = thread::spawn(move || {
        let data = vec![7; 1 << 20];
        while busy.write_all_at(&data, 0).and_then(|()| busy.sync_data()).is_ok() {}
    });
    thread::sleep(std::time::Duration::from_millis(200));
    mount.kill();
    writer.join().unwrap();
    drop(kept);
    eventually("the unmount", || !is_mounted(&vault.mnt));
    let mount = by_rings(&vault);
    assert!(fs::read(mount.path("kept")).unwrap() == pattern(50_000, 1));
    mount.unmount();
    vault.assert_sound();
}

/// A lazy unmount ends with the last open file, and an aborted connection at once: the ring threads end, and the daemon.
#[test]
fn rings_end_with_the_mount_however_it_ends() {
    if !can_ring() {
        return;
    }
    let vault = Vault::new();
    let mount = by_rings(&vault);
    fs::write(mount.path("f"), "still readable").unwrap();
    let open = File::open(mount.path("f")).unwrap();
    run(std::process::Command::new("fusermount3").arg("-uz").arg(mount.top()));
    let mut seen = [0; 14];
    open.read_exact_at(&mut seen, 0).unwrap();
    drop(open);
    mount.wait();
    let mount = by_rings(&vault);
    let line = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = line.lines().find(|l| l.contains(&format!(" {} ", mount.top().display()))).unwrap();
    let minor = line.split(' ').nth(2).and_then(|device| device.split(':').nth(1)).unwrap();
    let control = Path::new("/sys/fs/fuse/connections");
    if !control.join(minor).exists() {
        run(std::process::Command::new("mount").args(["-t", "fusectl", "none"]).arg(control));
    }
    fs::write(control.join(minor).join("abort"), "1").unwrap();
    mount.wait();
    vault.assert_sound();
}
