//! Real programs inside a mount: git, cargo, rsync, tar, SQLite.

use std::fs;
use std::path::Path;

use crate::harness::{Mount, Vault, can_mount, pattern, sh, text};

/// A tree with all that archives keep (old times: rsync takes two of the same second for equal): sizes, modes, links, hard links, sparse files, xattrs, ACLs, odd names, FIFOs.
fn make_tree(dir: &Path) {
    fs::create_dir_all(dir).unwrap();
    for (i, len) in [0, 1, 4064, 4065, 4096, 70_000, 524_288, 600_000, 1_500_000].into_iter().enumerate() {
        let sub = dir.join(format!("dir {i}"));
        fs::create_dir(&sub).unwrap();
        for copy in 0..20 {
            fs::write(
                sub.join(format!("file {copy} ü")),
                pattern(if copy == 0 { len } else { len / 100 }, i as u64),
            )
            .unwrap();
        }
    }
    sh(
        dir,
        "chmod 4711 'dir 1/file 1 ü'; chmod 700 'dir 2'; ln 'dir 3/file 0 ü' hard; ln -s 'dir 4' soft; ln -s nowhere dangling
         mkfifo fifo; truncate -s 5M sparse; printf end >> sparse; setfattr -n user.note -v kept 'dir 5'
         setfattr -n user.note -v kept hard; setfacl -m u:1:r hard; setfacl -d -m u:1:rx 'dir 6'
         mkdir \"$(printf 'n%.0s' {1..250})\"; find . -depth -exec touch -h -d '2001-02-03 04:05:06.789' {} +",
    );
}

/// What must be equal of two trees: contents by `diff`, all else by listing.
fn assert_equal_trees(a: &Path, b: &Path) {
    sh(Path::new("/"), &format!("diff -r --no-dereference -x fifo '{}' '{}'", text(a), text(b)));
    // Sizes of directories and symlinks are the filesystem's own affair.
    let list =
        "find . ! -type d -printf '%p %y %m %U:%G %s %n %T@ %l\\n' -o -printf '%p %y %m %U:%G %T@\\n' | sort
        all() { find . ! -type l -print0 | sort -z | xargs -0 \"$@\"; }; all getfattr -d -m '^user\\.'; all getfacl -p -n";
    let (a, b) = (sh(a, list), sh(b, list));
    let only = |these: &str, those: &str| -> Vec<String> {
        these.lines().filter(|l| !those.lines().any(|o| o == *l)).map(str::to_owned).collect()
    };
    assert!(a == b, "only in the first: {:#?}\nonly in the second: {:#?}", only(&a, &b), only(&b, &a));
}

/// Remounts, so that what is read comes from the ciphertext and not from the page cache.
fn remount<'a>(vault: &'a Vault, mount: Mount<'a>) -> Mount<'a> {
    mount.unmount();
    vault.mount()
}

/// `git clone` of a repository with hundreds of commits, `git fsck`, and work in the clone.
#[test]
fn git_clones_and_checks() {
    if !can_mount() {
        return;
    }
    let vault = Vault::new();
    let origin = vault.scratch.join("origin");
    fs::create_dir(&origin).unwrap();
    sh(
        &origin,
        "git init -q . ; git config user.name t; git config user.email t@t.invalid; git config gc.auto 0
         for i in $(seq 300); do mkdir -p d$((i % 17)); echo \"line $i\" >> d$((i % 17))/f$((i % 41)); echo $i > f$i
           git add -A; git commit -q -m \"commit $i\"; done",
    );
    let mount = vault.mount();
    sh(mount.top(), &format!("git clone -q 'file://{}' clone", text(&origin)));
    let mount = remount(&vault, mount);
    let clone = mount.path("clone");
    sh(
        &clone,
        "git fsck --full --strict; test -z \"$(git status --porcelain)\"; test $(git rev-list --count HEAD) = 300",
    );
    sh(
        &clone,
        "git config user.name t; git config user.email t@t.invalid; git checkout -q -b work HEAD~100; echo x > new
         git add new; git commit -q -m new; git rebase -q @{-1}; git gc -q --aggressive --prune=now; git fsck --full",
    );
    sh(Path::new("/"), &format!("diff -r -x .git -x new '{}' '{}'", text(&origin), text(&clone)));
    mount.unmount();
    vault.assert_sound();
}

/// `cargo build` of a project with dependencies from cargo's cache, its target directory in the mount too; the second
/// build, after a remount, finds everything fresh.
#[test]
fn cargo_builds() {
    if !can_mount() {
        return;
    }
    let vault = Vault::new();
    let mount = vault.mount();
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    fs::create_dir_all(mount.path("project/src")).unwrap();
    let project = mount.path("project");
    fs::copy(here.join("Cargo.lock"), project.join("Cargo.lock")).unwrap();
    let manifest = "[package]\nname = \"inside\"\nversion = \"1.0.0\"\nedition = \"2024\"\n[workspace]\n[dependencies]\n\
        serde_json = \"1\"\nhex = \"0.4\"\n";
    fs::write(project.join("Cargo.toml"), manifest).unwrap();
    let program =
        "fn main() { println!(\"{} {}\", serde_json::json!({\"a\": [1, 2]}), hex::encode(b\"built\")); }\n";
    fs::write(project.join("src/main.rs"), program).unwrap();
    let cargo =
        |command: &str| format!("env -u CARGO_TARGET_DIR -u RUSTFLAGS cargo {command} --offline 2>&1");
    let first = sh(&project, &cargo("build"));
    assert!(first.contains("Compiling serde_json"), "{first}");
    let mount = remount(&vault, mount);
    let second = sh(&project, &cargo("build"));
    assert!(second.contains("Finished") && !second.contains("Compiling"), "{second}");
    assert_eq!(sh(&project, "target/debug/inside"), "{\"a\":[1,2]} 6275696c74\n");
    mount.unmount();
    vault.assert_sound();
}

/// `rsync -aHAX` into the mount, again without a transfer, and back out.
#[test]
fn rsync_keeps_everything() {
    if !can_mount() {
        return;
    }
    let vault = Vault::new();
    let tree = vault.scratch.join("tree");
    make_tree(&tree);
    let mount = vault.mount();
    let copy = format!("rsync -aHAX --itemize-changes '{}/' tree/", text(&tree));
    sh(mount.top(), &copy);
    let mount = remount(&vault, mount);
    assert_eq!(sh(mount.top(), &copy), "", "the second run changes something");
    assert_eq!(sh(mount.top(), &format!("{copy} --checksum")), "", "a checksum differs");
    assert_equal_trees(&tree, &mount.path("tree"));
    sh(&vault.scratch, &format!("rsync -aHAX '{}/' back/", text(&mount.path("tree"))));
    assert_equal_trees(&tree, &vault.scratch.join("back"));
    mount.unmount();
    vault.assert_sound();
}

/// `tar` of a tree into the mount and out of it again.
#[test]
fn tar_goes_in_and_out() {
    if !can_mount() {
        return;
    }
    let vault = Vault::new();
    let tree = vault.scratch.join("tree");
    make_tree(&tree);
    let mount = vault.mount();
    let flags = "--xattrs --acls --numeric-owner --sparse -p";
    sh(mount.top(), &format!("tar -C '{}' {flags} -cf - tree | tar {flags} -xf -", text(&vault.scratch)));
    let mount = remount(&vault, mount);
    assert_equal_trees(&tree, &mount.path("tree"));
    sh(
        mount.top(),
        &format!("tar {flags} -czf inside.tgz tree; mkdir out; tar -C out {flags} -xzf inside.tgz"),
    );
    assert_equal_trees(&tree, &mount.path("out/tree"));
    mount.unmount();
    vault.assert_sound();
}

/// SQLite with a write-ahead log and with a rollback journal: concurrent writers, then an integrity check.
#[test]
fn sqlite_databases_stay_whole() {
    if !can_mount() {
        return;
    }
    let vault = Vault::new();
    let mut mount = vault.mount();
    for journal in ["wal", "delete", "truncate"] {
        let fill = format!(
            "rm -f db*; sqlite3 db 'PRAGMA journal_mode={journal}; CREATE TABLE t(who, i, x); CREATE INDEX x ON t(x);' >/dev/null
             writers=()
             for who in 1 2 3; do
               for i in $(seq 15); do echo \"WITH RECURSIVE s(v) AS (SELECT 1 UNION ALL SELECT v + 1 FROM s WHERE v < 50)
                 INSERT INTO t SELECT $who, $i * 100 + v, hex(randomblob(60)) FROM s;\"; done |
                 sqlite3 -bail -cmd '.timeout 60000' db & writers+=($!)
             done; for writer in ${{writers[@]}}; do wait $writer; done
             sqlite3 db 'DELETE FROM t WHERE i % 7 = 0; VACUUM;'"
        );
        sh(mount.top(), &fill);
        mount = remount(&vault, mount);
        let checked = sh(
            mount.top(),
            "sqlite3 db 'PRAGMA integrity_check; SELECT count(*), count(DISTINCT who) FROM t;'",
        );
        assert_eq!(checked, "ok\n1929|3\n", "journal mode {journal}");
    }
    mount.unmount();
    vault.assert_sound();
}
