//! What an attacker with the nightly job's credentials, or with all of them, can do to what was stored.

use super::harness::{Home, eventually};
use super::s3::{home, signed};

const LOCK: &str = r#"<ObjectLockConfiguration xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><ObjectLockEnabled>Enabled</ObjectLockEnabled><Rule><DefaultRetention><Mode>COMPLIANCE</Mode><Days>1</Days></DefaultRetention></Rule></ObjectLockConfiguration>"#;

/// Bucket and endpoint of a home's repository.
fn place(home: &Home) -> (String, String) {
    let bucket = home.repo.trim_start_matches("s3://").split('/').next().unwrap();
    (bucket.to_owned(), home.env[2].1.clone())
}

/// Keys and versions that a listing of versions names, in elements of the name `kind`.
fn versions(text: &str, kind: &str) -> Vec<(String, String)> {
    let open = format!("<{kind}>");
    let part = |text: &str, name: &str| {
        let (_, rest) = text.split_once(&format!("<{name}>")).unwrap();
        rest.split_once("</").unwrap().0.to_owned()
    };
    text.split(&open).skip(1).map(|item| (part(item, "Key"), part(item, "VersionId"))).collect()
}

/// An identity that may read, write and list, and not delete, suffices for runs, also for one behind a run that was cut
/// off; it does not suffice for `forget`.
#[test]
fn a_run_needs_no_right_to_delete() {
    let Some(mut home) = home("rights") else { return };
    home.fill();
    home.init_repo();
    let (bucket, endpoint) = place(&home);
    let policy = format!(
        r#"{{"Version":"2012-10-17","Statement":[{{"Effect":"Deny","Principal":"*","Action":["s3:DeleteObject","s3:DeleteObjectVersion"],"Resource":"arn:aws:s3:::{bucket}/*"}}]}}"#
    );
    let (status, told) = signed(&endpoint, "PUT", &format!("{bucket}?policy="), &[], Some(&policy));
    assert!(matches!(status, 200 | 204), "{told}");
    home.env[0].1 = "efswriter".into();
    home.env[1].1 = "efswriter".into();
    let mut run = home.efs(&["backup", "run", "--limit", "500", "vault", "REPO"]).spawn().unwrap();
    let state = home.path("cache/envelopefs/backup");
    eventually("the run", || {
        std::fs::read_dir(&state)
            .is_ok_and(|dir| dir.flatten().any(|e| e.file_name().to_string_lossy().ends_with(".running")))
    });
    run.kill().unwrap();
    run.wait().unwrap();
    home.ok(&["backup", "run", "vault", "REPO"]);
    home.ok(&["backup", "run", "--all", "vault", "REPO"]);
    home.ok(&["backup", "verify", "--read", "all", "REPO"]);
    let told = home.ends(1, &["backup", "forget", "--keep-last", "1", "REPO"]);
    assert!(told.contains("AccessDenied"), "{told}");
    home.ok(&["backup", "restore", "REPO", "back"]);
    home.assert_same("vault", "back");
}

/// In a bucket with Object Lock nobody destroys what was stored, not even with all rights: versions cannot be removed, and
/// what a plain deletion hides comes back when its markers are removed.
#[test]
fn what_is_locked_cannot_be_destroyed() {
    let Some(mut home) = home("plain") else { return };
    let (bucket, endpoint) = place(&home);
    let bucket = format!("{bucket}-locked");
    let (status, told) =
        signed(&endpoint, "PUT", &bucket, &["-H", "x-amz-bucket-object-lock-enabled: true"], None);
    assert_eq!(status, 200, "{told}");
    let (status, told) = signed(&endpoint, "PUT", &format!("{bucket}?object-lock="), &[], Some(LOCK));
    assert_eq!(status, 200, "{told}");
    home.repo = format!("s3://{bucket}/host/one");
    home.fill();
    home.init_repo();
    home.ok(&["backup", "run", "vault", "REPO"]);
    let listing = || signed(&endpoint, "GET", &format!("{bucket}?versions="), &[], None).1;
    let stored = versions(&listing(), "Version");
    assert!(stored.len() >= 7, "{stored:?}");
    for (key, version) in &stored {
        let (status, told) =
            signed(&endpoint, "DELETE", &format!("{bucket}/{key}?versionId={version}"), &[], None);
        assert_eq!(status, 403, "{key}: {told}");
        let (status, told) = signed(&endpoint, "DELETE", &format!("{bucket}/{key}"), &[], None);
        assert_eq!(status, 204, "{key}: {told}");
    }
    let told = home.ends(1, &["backup", "restore", "REPO", "back"]);
    assert!(told.contains("no repository"), "{told}");
    let markers = versions(&listing(), "DeleteMarker");
    assert_eq!(markers.len(), stored.len());
    for (key, version) in markers {
        let (status, told) =
            signed(&endpoint, "DELETE", &format!("{bucket}/{key}?versionId={version}"), &[], None);
        assert_eq!(status, 204, "{key}: {told}");
    }
    assert_eq!(versions(&listing(), "Version").len(), stored.len());
    home.sh("rm -r cache");
    home.ok(&["backup", "verify", "--read", "all", "REPO"]);
    home.ok(&["backup", "restore", "REPO", "back"]);
    home.assert_same("vault", "back");
}
