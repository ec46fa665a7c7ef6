//! The direction of imports between the layers, and what may stand in which folder only.
//!
//! Reads the sources as text, without comments and strings; what stands behind `#[cfg(test)]` may import more.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// What each module may import (docs/ARCHITECTURE.md). A module that is missing here fails the test.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("format", &[]),
    ("crypto", &["format"]),
    ("vault", &["format"]),
    ("pipeline", &["format", "crypto"]),
    ("hsm", &["crypto"]),
    ("kms", &["crypto", "hsm"]),
    ("keys", &["format", "crypto", "kms"]),
    ("content", &["format", "crypto", "vault", "pipeline"]),
    ("upkeep", &["format", "crypto", "vault", "keys", "content"]),
    ("fs", &["format", "crypto", "vault", "keys", "content"]),
    ("fuse", &["fs"]),
    ("backup", &["format", "vault"]),
    ("view", &["format", "vault", "fs", "fuse", "backup"]),
    ("check", &["format", "crypto", "vault", "pipeline", "kms", "keys", "content", "fs", "fuse"]),
    ("bench", &["format", "crypto", "vault", "pipeline", "kms", "keys", "content", "fs", "fuse", "check"]),
    (
        "cli",
        &[
            "format", "crypto", "vault", "pipeline", "hsm", "kms", "keys", "content", "upkeep", "fs", "fuse",
            "check", "bench", "backup", "view",
        ],
    ),
    ("main", &["cli"]),
    ("lib", &[]),
];

/// Words that only one folder may use.
const ONLY_IN: &[(&str, &str)] = &[
    ("clap", "cli"),
    ("clap_complete", "cli"),
    ("clap_mangen", "cli"),
    ("indicatif", "cli"),
    ("rpassword", "cli"),
    ("println", "cli"),
    ("eprintln", "cli"),
    ("print", "cli"),
    ("eprint", "cli"),
];

/// The islands of `unsafe`. A file that needs it comes here, with a reason in its own module documentation.
const UNSAFE: &[&str] = &[
    // The processor's time stamp counter.
    "src/bench/kernel/clock.rs",
    // The kernel's own encryption is set by two ioctls.
    "src/bench/mount/fscrypt.rs",
    // What the page cache holds of a file: cachestat and mincore.
    "src/bench/mount/resident.rs",
    // Signals are awaited, not handled.
    "src/cli/signals.rs",
    // Instructions and loads of the cipher kernels: what a register offers, the registers, the bounds of texts, the entries.
    "src/crypto/kernel/x86/lanes.rs",
    "src/crypto/kernel/x86/mod.rs",
    "src/crypto/kernel/x86/text.rs",
    "src/crypto/kernel/x86/vectors.rs",
    // Memory for keys: mapped, locked, kept out of core dumps, wiped.
    "src/crypto/locked/arena.rs",
    "src/crypto/locked/mod.rs",
    // AWS-LC by its C interface: what aws-lc-rs does not offer.
    "src/hsm/lc/cipher.rs",
    "src/hsm/lc/edwards.rs",
    "src/hsm/lc/hash.rs",
    "src/hsm/lc/mod.rs",
    "src/hsm/lc/num.rs",
    "src/hsm/lc/pkey.rs",
    // The PKCS#11 module: functions that C calls, with the pointers that it passes.
    "src/hsm/module/exports.rs",
    "src/hsm/module/mechanism.rs",
    "src/hsm/module/memory.rs",
    // Memory of forgotten inodes goes back to the system.
    "src/fs/memory.rs",
    // A second descriptor of a mount.
    "src/fuse/channel.rs",
    // Rings: memory shared with the kernel, and the commands that name it.
    "src/fuse/rings/command.rs",
    "src/fuse/rings/slot.rs",
    "src/fuse/rings/worker.rs",
    // Jobs that borrow the caller's buffers.
    "src/pipeline/pool.rs",
    // Locks of ranges that belong to an open file; the error of a close.
    "src/vault/locks.rs",
    // A umask of its own for each thread.
    "src/vault/umask.rs",
];

/// One source file: its path, the module it belongs to, its code without comments, strings and tests.
struct Source {
    path: PathBuf,
    module: String,
    code: String,
}

#[test]
fn modules_import_only_what_their_row_names() {
    let allowed: BTreeMap<_, _> = MAY_IMPORT.iter().copied().collect();
    let mut wrong = Vec::new();
    for source in sources() {
        let row = allowed.get(source.module.as_str());
        for import in imports(&source.code) {
            if import != source.module && !row.is_some_and(|r| r.contains(&import.as_str())) {
                wrong.push(format!("{}: {} imports {import}", source.path.display(), source.module));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn modules_do_not_import_each_other_in_a_circle() {
    let mut graph: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for source in sources() {
        let edges = imports(&source.code).into_iter().filter(|i| *i != source.module).collect::<Vec<_>>();
        graph.entry(source.module).or_default().extend(edges);
    }
    assert_eq!(circle(&graph), None);
}

#[test]
fn crates_and_printing_stay_in_their_folders() {
    let mut wrong = Vec::new();
    for source in sources() {
        for (word, home) in ONLY_IN {
            if source.module != *home && words(&source.code).any(|w| w == *word) {
                wrong.push(format!("{}: `{word}` belongs into src/{home}", source.path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn unsafe_stands_on_the_listed_islands_only() {
    let found: BTreeSet<_> = sources()
        .filter(|s| words(&s.code).any(|w| w == "unsafe"))
        .map(|s| s.path.to_string_lossy().into_owned())
        .collect();
    let listed: BTreeSet<_> = UNSAFE.iter().map(|s| (*s).to_owned()).collect();
    assert_eq!(found, listed, "files with `unsafe` (left) and the list in this test (right)");
}

#[test]
fn every_folder_has_its_mod_file() {
    let mut folders: BTreeSet<PathBuf> = BTreeSet::new();
    for path in files(Path::new("src")) {
        folders.extend(path.parent().map(Path::to_owned));
    }
    folders.remove(Path::new("src"));
    let bare: Vec<_> = folders.iter().filter(|f| !f.join("mod.rs").exists()).collect();
    assert!(bare.is_empty(), "without mod.rs: {bare:?}");
}

#[test]
fn imports_are_found_however_they_are_written() {
    let code = "use crate::vault::file;\nuse crate::{fs::{Fs, Ino}, keys};\npub(in crate::kms) fn f() { crate::crypto::x(); }";
    let found: Vec<_> = imports(&strip(code)).into_iter().collect();
    assert_eq!(found, ["crypto", "fs", "keys", "kms", "vault"]);
    let quiet = "// crate::a\n/* crate::b */ \"crate::c\" r#\"crate::d \"\"# '\"' 'x' fn f<'a>() {}";
    assert!(imports(&strip(quiet)).is_empty());
}

#[test]
fn a_circle_is_found() {
    let edge = |a: &str, b: &str| (a.to_owned(), BTreeSet::from([b.to_owned()]));
    assert_eq!(circle(&BTreeMap::from([edge("a", "b"), edge("b", "c")])), None);
    assert!(circle(&BTreeMap::from([edge("a", "b"), edge("b", "c"), edge("c", "a")])).is_some());
}

/// Every source file that is built without `cfg(test)`.
fn sources() -> impl Iterator<Item = Source> {
    let all = files(Path::new("src"));
    assert!(all.len() > 20, "run in the package's directory");
    let test_only = test_only_paths(&all);
    all.into_iter().filter(move |p| !test_only.iter().any(|t| p.starts_with(t))).map(|path| {
        let text = fs::read_to_string(&path).expect("a readable source file");
        let inner = path.strip_prefix("src").expect("below src");
        let first = inner.components().next().expect("a path").as_os_str().to_string_lossy().into_owned();
        let module = first.trim_end_matches(".rs").to_owned();
        let code = without_tests(&strip(&text));
        Source { path, module, code }
    })
}

/// Files and folders of modules that are declared behind `#[cfg(test)]`.
fn test_only_paths(all: &[PathBuf]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for path in all {
        let code = strip(&fs::read_to_string(path).expect("a readable source file"));
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let mut home = path.parent().expect("below src").to_owned();
        if !matches!(stem.as_str(), "mod" | "lib" | "main") {
            home.push(stem);
        }
        for part in code.split("#[cfg(test)]").skip(1) {
            let mut rest = words(part).filter(|w| *w != "pub" && *w != "crate");
            if rest.next() == Some("mod") && part.find(';') < part.find('{').or(Some(usize::MAX)) {
                let name = rest.next().unwrap_or_default();
                found.extend([home.join(name), home.join(format!("{name}.rs"))]);
            }
        }
    }
    found
}

/// The code up to a test module, which stands at the end of a file.
fn without_tests(code: &str) -> String {
    let mut end = code.len();
    for (at, _) in code.match_indices("#[cfg(test)]") {
        let behind = code[at + "#[cfg(test)]".len()..].trim_start();
        if behind.starts_with("mod ") && behind.find('{') < behind.find(';').or(Some(usize::MAX)) {
            end = end.min(at);
        }
    }
    code[..end].to_owned()
}

/// First path segments behind `crate::` (and `envelopefs::` in the binary), groups in braces included.
fn imports(code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for root in ["crate::", "envelopefs::"] {
        for (at, _) in code.match_indices(root) {
            if code[..at].ends_with(|c: char| c == '_' || c == '$' || c.is_alphanumeric()) {
                continue;
            }
            let behind = &code[at + root.len()..];
            match behind.strip_prefix('{') {
                Some(group) => found.extend(group_heads(group)),
                None => found.extend(words(behind).next().map(str::to_owned)),
            }
        }
    }
    found
}

/// The first word of each element of a brace group.
fn group_heads(group: &str) -> Vec<String> {
    let (mut depth, mut heads, mut start) = (0, Vec::new(), 0);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                heads.extend(words(&group[start..at]).next().map(str::to_owned));
                start = at + 1;
                if c == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    heads
}

/// A circle of imports, if there is one.
fn circle(graph: &BTreeMap<String, BTreeSet<String>>) -> Option<Vec<String>> {
    fn walk(at: &str, graph: &BTreeMap<String, BTreeSet<String>>, path: &mut Vec<String>) -> bool {
        path.push(at.to_owned());
        for next in graph.get(at).into_iter().flatten() {
            if path.contains(next) {
                path.push(next.clone());
                return true;
            }
            if walk(next, graph, path) {
                return true;
            }
        }
        path.pop();
        false
    }
    graph.keys().find_map(|start| {
        let mut path = Vec::new();
        walk(start, graph, &mut path).then_some(path)
    })
}

/// Identifiers of a text.
fn words(code: &str) -> impl Iterator<Item = &str> {
    code.split(|c: char| c != '_' && !c.is_alphanumeric()).filter(|w| !w.is_empty())
}

/// The text without comments, strings and character literals.
fn strip(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let skip = match c {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => rest.find("*/").map_or(rest.len(), |e| e + 2),
            '"' => quoted(rest),
            'r' if !out.ends_with(|p: char| p == '_' || p.is_alphanumeric()) => raw(rest),
            '\'' => character(rest),
            _ => 0,
        };
        if skip == 0 {
            out.push(c);
            rest = &rest[c.len_utf8()..];
        } else {
            out.push(' ');
            rest = &rest[skip..];
        }
    }
    out
}

/// Length of the string literal that `text` begins with.
fn quoted(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// Length of the raw string literal that `text` begins with; 0 where it begins with none.
fn raw(text: &str) -> usize {
    let hashes = text[1..].bytes().take_while(|b| *b == b'#').count();
    if !text[1 + hashes..].starts_with('"') {
        return 0;
    }
    let end = format!("\"{}", "#".repeat(hashes));
    let body = 2 + hashes;
    text[body..].find(&end).map_or(text.len(), |e| body + e + end.len())
}

/// Length of the character literal that `text` begins with; 0 where it begins with a lifetime.
fn character(text: &str) -> usize {
    let mut chars = text.char_indices().skip(1);
    match chars.next() {
        Some((_, '\\')) => {
            text[2..].char_indices().skip(1).find(|(_, c)| *c == '\'').map_or(0, |(at, _)| at + 3)
        }
        Some(_) => chars.next().filter(|(_, c)| *c == '\'').map_or(0, |(at, _)| at + 1),
        None => 0,
    }
}

/// Every `.rs` file below a folder, sorted.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).expect("a readable folder") {
        let path = entry.expect("a readable entry").path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}
