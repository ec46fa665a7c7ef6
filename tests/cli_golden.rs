//! Golden command lines: each file of `tests/cli/` is a shell preparation, a command, and what it must answer.
//!
//! In expected text `[..]` stands for anything within a line and `{dir}` for the case's own directory.
#![allow(missing_docs)]

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    /// What the case shows.
    about: String,
    /// Shell commands run before; `$EFS` is the program.
    #[serde(default)]
    setup: String,
    args: Vec<String>,
    #[serde(default)]
    stdin: String,
    status: i32,
    #[serde(default)]
    stdout: String,
    #[serde(default)]
    stderr: String,
}

const PROGRAM: &str = env!("CARGO_BIN_EXE_envelopefs");

/// The program in the case's directory, with nothing of this machine's own settings.
fn command(program: &str, dir: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .current_dir(dir)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", dir)
        .env("XDG_DATA_HOME", dir.join("data"))
        .env("EFS", PROGRAM)
        .env("COLUMNS", "100");
    command
}

fn run(case: &Case, dir: &Path) -> Output {
    if !case.setup.is_empty() {
        let setup = command("sh", dir).arg("-euc").arg(&case.setup).output().expect("sh");
        assert!(setup.status.success(), "{}: setup: {}", case.about, String::from_utf8_lossy(&setup.stderr));
    }
    let mut child = command(PROGRAM, dir)
        .args(&case.args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    // A program that does not read its stdin closes it.
    let _ = child.stdin.take().expect("piped").write_all(case.stdin.as_bytes());
    child.wait_with_output().expect("the program ends")
}

/// Whether `line` is what `pattern` says.
fn fits(pattern: &str, line: &str) -> bool {
    let Some((head, rest)) = pattern.split_once("[..]") else { return pattern == line };
    let Some(line) = line.strip_prefix(head) else { return false };
    (0..=line.len()).filter(|i| line.is_char_boundary(*i)).any(|i| fits(rest, &line[i..]))
}

/// Every line in its place.
fn all_fit(expected: &str, found: &str, dir: &Path) -> bool {
    let expected = expected.replace("{dir}", &dir.display().to_string());
    let (expected, found): (Vec<_>, Vec<_>) =
        (expected.trim().lines().collect(), found.trim().lines().collect());
    expected.len() == found.len()
        && expected.iter().zip(&found).all(|(e, f)| fits(e.trim_end(), f.trim_end()))
}

/// Every golden command line ends as its file says, with the text that its file says.
#[test]
fn every_golden_command_line_answers_as_written() {
    let mut files: Vec<_> = fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cli"))
        .expect("tests/cli")
        .map(|e| e.expect("an entry").path())
        .filter(|p| p.extension().is_some_and(|e| e == "toml"))
        .collect();
    files.sort();
    assert!(files.len() >= 20, "only {} cases: were some lost?", files.len());
    let mut wrong = String::new();
    for file in files {
        let text = fs::read_to_string(&file).expect("readable");
        let case: Case = toml::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        let tmp = tempfile::tempdir().expect("a directory");
        let dir = tmp.path().canonicalize().expect("a path");
        let output = run(&case, &dir);
        let (stdout, stderr) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let good = output.status.code() == Some(case.status)
            && all_fit(&case.stdout, &stdout, &dir)
            && all_fit(&case.stderr, &stderr, &dir);
        if !good {
            wrong += &format!(
                "\n== {}: {}\nstatus {:?}, expected {}\n-- stdout\n{stdout}-- stderr\n{stderr}",
                file.display(),
                case.about,
                output.status.code(),
                case.status
            );
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// The matcher can say no: it is what every case rests on.
#[test]
fn the_matcher_tells_lines_apart() {
    assert!(fits("a[..]c", "abbc") && fits("[..]", "") && fits("x", "x"));
    assert!(!fits("a[..]c", "abb") && !fits("x", "xy") && !fits("", "x"));
    assert!(!all_fit("one", "one\ntwo", Path::new("/")));
}
