//! Against a real S3 server (SeaweedFS). `EFS_S3_ENDPOINT` names one that runs; otherwise one is started.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use super::harness::{Home, can_mount, has};

/// A server for all tests of this process.
struct Server {
    endpoint: String,
    /// Its process, where it was started here.
    pid: Option<i32>,
}

fn script() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("scripts/s3-server.sh")
}

/// Eight free ports in a row.
fn port() -> u16 {
    (0..200u16)
        .map(|n| 20_000 + (std::process::id() as u16 % 100) * 80 + n * 8)
        .find(|port| (0..8).all(|n| TcpListener::bind(("127.0.0.1", port + n)).is_ok()))
        .unwrap_or(18_333)
}

/// Stops the server when this process is gone, however it ends.
fn watch(work: &Path) {
    let line = "while kill -0 $1 2>/dev/null; do sleep 0.5; done; S3_WORK=$2 $3 stop; rm -rf \"$2\"";
    let _ = Command::new("bash")
        .args(["-c", line, "watch", &std::process::id().to_string()])
        .args([work, &script()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
}

fn server() -> Option<&'static Server> {
    static SERVER: OnceLock<Option<Server>> = OnceLock::new();
    SERVER
        .get_or_init(|| {
            if let Ok(endpoint) = std::env::var("EFS_S3_ENDPOINT") {
                return Some(Server { endpoint, pid: None });
            }
            let work = std::env::temp_dir().join(format!("efs-s3-{}", std::process::id()));
            let port = port();
            let status = Command::new(script())
                .arg("start")
                .env("S3_WORK", &work)
                .env("S3_PORT", port.to_string())
                .stdout(Stdio::null())
                .status()
                .ok()?;
            let pid = std::fs::read_to_string(work.join("pid")).ok()?.trim().parse().ok();
            let ended = move || Server { endpoint: format!("http://127.0.0.1:{port}"), pid };
            watch(&work);
            status.success().then(ended)
        })
        .as_ref()
        .or_else(|| {
            eprintln!("skipped: no S3 server could be started (scripts/s3-server.sh)");
            None
        })
}

/// A vault whose repository is in a bucket of its own.
pub(crate) fn home(name: &str) -> Option<Home> {
    if !can_mount() {
        return None;
    }
    let server = server()?;
    let mut home = Home::new();
    home.env = [
        ("AWS_ACCESS_KEY_ID", "efsaccess"),
        ("AWS_SECRET_ACCESS_KEY", "efssecret"),
        ("AWS_ENDPOINT_URL", server.endpoint.as_str()),
        ("AWS_REGION", "us-east-1"),
    ]
    .map(|(k, v)| (k.to_owned(), v.to_owned()))
    .to_vec();
    let bucket = format!("vaults-{name}-{}", std::process::id());
    put_bucket(server, &bucket);
    home.repo = format!("s3://{bucket}/host/one");
    Some(home)
}

/// Makes a bucket.
fn put_bucket(server: &Server, bucket: &str) {
    let (status, told) = signed(&server.endpoint, "PUT", bucket, &[], None);
    assert_eq!(status, 200, "{told}");
}

/// A request of the administrator's, signed by curl: the status and the text of its answer.
pub(crate) fn signed(
    endpoint: &str,
    method: &str,
    path: &str,
    more: &[&str],
    body: Option<&str>,
) -> (u16, String) {
    let mut curl = Command::new("curl");
    curl.args(["-sS", "-X", method, "-w", "\n%{http_code}"])
        .args(["--aws-sigv4", "aws:amz:us-east-1:s3", "--user", "efsaccess:efssecret"])
        .args(more)
        .arg(format!("{endpoint}/{path}"));
    if let Some(body) = body {
        use sha2::Digest;
        let digest = hex::encode(sha2::Sha256::digest(body.as_bytes()));
        curl.args(["-H", &format!("x-amz-content-sha256: {digest}"), "--data-binary", body]);
    }
    let told = super::harness::said(&curl.output().unwrap());
    let (text, status) = told.rsplit_once('\n').unwrap();
    (status.parse().unwrap(), text.to_owned())
}

/// There and back through S3, with the config and the text beside the repository; nothing else is in the bucket.
#[test]
fn a_vault_comes_back_from_s3() {
    let Some(mut home) = home("trip") else { return };
    home.fill();
    let told = home.ok(&["backup", "init", "vault", "REPO"]);
    assert!(!told.contains("overwrites objects"), "this server keeps objects: {told}");
    let first = home.json(0, &["backup", "run", "vault", "REPO"]);
    assert!(first["meter"]["puts"].as_u64().unwrap() < 20, "packs, not an object a file: {first}");
    assert_eq!(home.json(0, &["backup", "run", "vault", "REPO"])["new"].as_u64(), Some(0));
    home.ok(&["backup", "verify", "--read", "all", "REPO"]);
    let done = home.json(0, &["backup", "restore", "REPO", "back"]);
    assert!(done["meter"]["gets"].as_u64().unwrap() < 30, "a pack is fetched once: {done}");
    home.assert_same("vault", "back");
    home.sh("rm -r config cache back");
    home.ok(&["backup", "restore", "--vault-key", "REPO", "back"]);
    home.assert_same("vault", "back");
}

/// A wrong secret, a bucket that is not there, a server that is not there: each has its own word, and ends soon.
#[test]
fn refusals_are_told_apart() {
    let Some(mut home) = home("refused") else { return };
    home.init_repo();
    let right = home.env.clone();
    home.env[1].1 = "wrong".into();
    let told = home.ends(1, &["backup", "run", "vault", "REPO"]);
    assert!(told.contains("SignatureDoesNotMatch") && told.contains("Credentials come from"), "{told}");
    home.env = right.clone();
    let told = home.ends(1, &["backup", "list", "s3://no-such-bucket-here"]);
    assert!(told.contains("repository") || told.contains("bucket"), "{told}");
    home.env[2].1 = "http://127.0.0.1:9".into();
    let told = home.ends(1, &["backup", "list", "--patience", "2", "REPO"]);
    assert!(told.contains("Run it again when the store answers"), "{told}");
}

/// A server that freezes in the middle is waited for: requests are sent again, and nothing is lost.
#[test]
fn a_frozen_server_is_waited_for() {
    let Some(mut home) = home("frozen") else { return };
    let Some(pid) = server().and_then(|s| s.pid) else {
        eprintln!("skipped: the server was not started here");
        return;
    };
    home.fill();
    home.init_repo();
    let run = home
        .efs(&["backup", "run", "--json", "--timeout", "2", "--limit", "4000", "vault", "REPO"])
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(1500));
    let signal =
        |name: &str| assert!(Command::new("kill").args([name, &pid.to_string()]).status().unwrap().success());
    signal("-STOP");
    std::thread::sleep(Duration::from_secs(8));
    signal("-CONT");
    let output = run.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", super::harness::said(&output));
    home.ok(&["backup", "verify", "--read", "all", "REPO"]);
    home.ok(&["backup", "restore", "REPO", "back"]);
    home.assert_same("vault", "back");
}

/// Restic finds the repository in the bucket as it finds its own.
#[test]
fn stock_restic_restores_it_from_s3() {
    if !has("restic") {
        return;
    }
    let Some(mut home) = home("restic") else { return };
    home.fill();
    home.init_repo();
    home.ok(&["backup", "run", "vault", "REPO"]);
    let endpoint = home.env[2].1.clone();
    let repo = home.repo.replace("s3://", &format!("s3:{endpoint}/"));
    home.sh(&format!(
        "RESTIC_CACHE_DIR=$PWD/rc restic -q -r {repo} --password-file config/envelopefs/backup.key restore latest --target out"
    ));
    home.assert_same("vault", "out/vault");
}

/// `aws s3 sync`, which keeps nothing but bytes, carries the ciphertext view there and back; what comes back is the vault.
#[test]
fn the_view_goes_round_by_aws_s3_sync() {
    if !has("aws") {
        return;
    }
    let Some(mut home) = home("sync") else { return };
    home.fill();
    std::fs::create_dir(home.path("view")).unwrap();
    let log = home.path("view.log");
    home.ok(&["mount", "--view", "ciphertext", "--log-file", log.to_str().unwrap(), "vault", "view"]);
    let bucket = home.repo.replace("/host/one", "/tree");
    home.sh(&format!("aws s3 sync --only-show-errors view {bucket}"));
    home.ok(&["umount", "view"]);
    home.sh(&format!("aws s3 sync --only-show-errors {bucket} tree"));
    home.ok(&["import", "tree", "back"]);
    home.assert_same("vault", "back");
}

/// The same with rclone, without `--metadata`.
#[test]
fn the_view_goes_round_by_rclone() {
    if !has("rclone") {
        return;
    }
    let Some(mut home) = home("rclone") else { return };
    home.fill();
    std::fs::create_dir(home.path("view")).unwrap();
    let log = home.path("view.log");
    home.ok(&["mount", "--view", "ciphertext", "--log-file", log.to_str().unwrap(), "vault", "view"]);
    let remote = home.repo.replace("s3://", ":s3,provider=Other,env_auth:").replace("/host/one", "/tree");
    home.sh(&format!("RCLONE_S3_ENDPOINT=$AWS_ENDPOINT_URL rclone -q copy view {remote}"));
    home.ok(&["umount", "view"]);
    home.sh(&format!("RCLONE_S3_ENDPOINT=$AWS_ENDPOINT_URL rclone -q copy {remote} tree"));
    home.ok(&["import", "tree", "back"]);
    home.assert_same("vault", "back");
}
