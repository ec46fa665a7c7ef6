//! Vaults that earlier builds wrote: every later build opens them and finds every byte.
//!
//! `tests/frozen/vN/sample.json` holds a vault of format N and its KMS store as one list of entries with their xattrs,
//! since git keeps none. A sample is made once, by [`make_the_sample`], and never again.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use rustix::fs::{CWD, FileType, Mode, XattrFlags, getxattr, listxattr, mknodat, setxattr};
use serde::{Deserialize, Serialize};

use crate::harness::{Vault, can_mount, pattern, run, sh};

const PAGE: usize = 4096;

/// One file, directory, symlink or FIFO below a sample's top.
#[derive(Serialize, Deserialize)]
struct Entry {
    path: String,
    kind: Kind,
    mode: u32,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    xattrs: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Directory,
    Fifo,
    Symlink(String),
    /// Another name of the inode at an earlier path.
    Link(String),
    /// Length, and pages that are not all zero.
    File(u64, BTreeMap<u64, String>),
}

/// What the sample holds in plaintext: every form of file, name and attribute that format 1 has.
fn make_plain_tree(top: &Path) {
    let lens = [0, 1, 4064, 4065, 4096, 10_000];
    for len in lens {
        fs::write(top.join(format!("file-{len}")), pattern(len, len as u64)).unwrap();
    }
    let sparse = File::create(top.join("sparse")).unwrap();
    sparse.set_len(1_200_000).unwrap();
    for at in [5000, 600_000] {
        sparse.write_all_at(&pattern(3000, at), at).unwrap();
    }
    drop(sparse);
    let long = "long name ".repeat(25);
    fs::create_dir_all(top.join("dir").join(&long)).unwrap();
    fs::write(top.join("dir").join(&long).join("é"), "inside").unwrap();
    fs::write(top.join(&long), "beside").unwrap();
    fs::hard_link(top.join("file-10000"), top.join("dir/linked")).unwrap();
    symlink("dir/linked", top.join("symlink")).unwrap();
    mknodat(CWD, top.join("fifo"), FileType::Fifo, Mode::from_raw_mode(0o640), 0).unwrap();
    for path in [top.join("file-1"), top.join("dir")] {
        setxattr(&path, "user.note", b"kept", XattrFlags::empty()).unwrap();
        setxattr(&path, format!("user.{}", "n".repeat(240)), b"", XattrFlags::empty()).unwrap();
    }
    for (name, mode) in [("file-0", 0o600), ("file-1", 0o4755), ("dir", 0o1770)] {
        fs::set_permissions(top.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
}

/// Reads a tree with all that a sample keeps, parents before children.
fn pack(top: &Path) -> Vec<Entry> {
    let mut seen = BTreeMap::new();
    let mut entries = Vec::new();
    let mut waiting = vec![PathBuf::new()];
    while let Some(dir) = waiting.pop() {
        let mut names: Vec<_> =
            fs::read_dir(top.join(&dir)).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        for name in names {
            let inner = dir.join(name);
            let path = top.join(&inner);
            let meta = fs::symlink_metadata(&path).unwrap();
            let text = inner.to_str().unwrap().to_owned();
            let earlier = (!meta.is_dir()).then(|| seen.insert(meta.ino(), text.clone())).flatten();
            let kind = if let Some(earlier) = earlier {
                Kind::Link(earlier)
            } else if meta.is_dir() {
                waiting.push(inner);
                Kind::Directory
            } else if meta.is_symlink() {
                Kind::Symlink(fs::read_link(&path).unwrap().to_str().unwrap().to_owned())
            } else if meta.file_type().is_fifo() {
                Kind::Fifo
            } else {
                let bytes = fs::read(&path).unwrap();
                let pages = bytes.chunks(PAGE).enumerate().filter(|(_, page)| page.iter().any(|b| *b != 0));
                let pages = pages.map(|(i, page)| ((i * PAGE) as u64, BASE64.encode(page)));
                Kind::File(meta.len(), pages.collect())
            };
            let xattrs = if meta.is_symlink() { BTreeMap::new() } else { xattrs(&path) };
            entries.push(Entry { path: text, kind, mode: meta.mode() & 0o7777, xattrs });
        }
    }
    entries
}

fn xattrs(path: &Path) -> BTreeMap<String, String> {
    let mut list = vec![0_u8; 65_536];
    let n = listxattr(path, &mut list).unwrap();
    let names = list[..n].split(|b| *b == 0).filter(|name| name.starts_with(b"user."));
    names
        .map(|name| {
            let name = std::str::from_utf8(name).unwrap();
            let mut value = vec![0_u8; 65_536];
            let n = getxattr(path, name, &mut value).unwrap();
            (name.to_owned(), BASE64.encode(&value[..n]))
        })
        .collect()
}

/// Writes packed entries below `top`.
fn unpack(entries: &[Entry], top: &Path) {
    for entry in entries {
        let path = top.join(&entry.path);
        match &entry.kind {
            Kind::Directory => fs::create_dir(&path).unwrap(),
            Kind::Fifo => mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap(),
            Kind::Symlink(target) => symlink(target, &path).unwrap(),
            Kind::Link(earlier) => fs::hard_link(top.join(earlier), &path).unwrap(),
            Kind::File(len, pages) => {
                let file = File::create(&path).unwrap();
                file.set_len(*len).unwrap();
                for (at, page) in pages {
                    file.write_all_at(&BASE64.decode(page).unwrap(), *at).unwrap();
                }
            }
        }
        for (name, value) in &entry.xattrs {
            setxattr(&path, name.as_str(), &BASE64.decode(value).unwrap(), XattrFlags::empty()).unwrap();
        }
        if !matches!(entry.kind, Kind::Symlink(_)) {
            fs::set_permissions(&path, fs::Permissions::from_mode(entry.mode)).unwrap();
        }
    }
}

fn sample(version: u32) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/frozen/v{version}/sample.json"))
}

/// The frozen sample of format 1 opens, holds exactly the tree that was put into it, and is sound; it can be written.
#[test]
fn the_frozen_vault_of_format_1_opens() {
    let text = fs::read_to_string(sample(1)).unwrap();
    let entries: Vec<Entry> = serde_json::from_str(&text).unwrap();
    let vault = Vault::unmade();
    let top = vault.dir.parent().unwrap();
    unpack(&entries, top);
    vault.assert_sound();
    if !can_mount() {
        return;
    }
    let plain = vault.scratch.join("plain");
    fs::create_dir(&plain).unwrap();
    make_plain_tree(&plain);
    let mount = vault.mount_with("ro");
    let (expected, seen) = (pack(&plain), pack(mount.top()));
    assert_eq!(serde_json::to_value(&seen).unwrap(), serde_json::to_value(&expected).unwrap());
    mount.unmount();
    let mount = vault.mount();
    sh(mount.top(), "cp -a dir copy; rm -r dir; echo more >> file-4064; mv copy dir; echo new > new");
    assert_eq!(fs::read(mount.path("file-4064")).unwrap().len(), 4069);
    mount.unmount();
    vault.assert_sound();
}

/// Makes the sample of the newest format, once: `cargo test --test mount make_the_sample -- --ignored`.
#[test]
#[ignore = "writes tests/frozen; a sample is never made again"]
fn make_the_sample() {
    let path = sample(1);
    assert!(!path.exists(), "{} is frozen", path.display());
    let vault = Vault::new();
    let mount = vault.mount();
    make_plain_tree(mount.top());
    mount.unmount();
    let top = vault.scratch.join("sample");
    fs::create_dir(&top).unwrap();
    run(Command::new("cp").arg("-a").args([&vault.dir, &vault.kms]).arg(&top));
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let lines: Vec<_> = pack(&top).iter().map(|e| serde_json::to_string(e).unwrap()).collect();
    fs::write(&path, format!("[\n{}\n]\n", lines.join(",\n"))).unwrap();
}
