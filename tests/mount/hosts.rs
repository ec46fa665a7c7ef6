//! Two hosts on one KMS server: each mounts the same vault with credentials of its own, under one key.

use std::fs::{self, File};

use serde_json::{Value, json};

use crate::harness::{Mount, Vault, can_mount, envelopefs, eventually, run, text};
use crate::kms_support::{self, User};

/// What a host of the filesystem needs of a key.
const OPERATIONS: [&str; 4] = ["Decrypt", "Encrypt", "GenerateDataKey", "DescribeKey"];

fn credentials(user: &User) -> [(&'static str, String); 3] {
    [
        ("AWS_ACCESS_KEY_ID", user.key.clone()),
        ("AWS_SECRET_ACCESS_KEY", user.secret.clone()),
        ("AWS_EC2_METADATA_DISABLED", "true".into()),
    ]
}

fn mount<'a>(vault: &'a Vault, user: &User) -> Mount<'a> {
    let variables = credentials(user).map(|(name, value)| format!("{name}={value}"));
    let command: Vec<&str> = std::iter::once("env").chain(variables.iter().map(String::as_str)).collect();
    vault.mount_as(&command, "shared,key_cache=0")
}

/// Both hosts read what either wrote. Revoking the grant of one stops that host alone, at its next open; the other goes
/// on, and the first one, too, when it is granted again.
#[test]
fn revoking_a_grant_stops_that_host_alone() {
    if !can_mount() {
        return;
    }
    let server = kms_support::start("off");
    let owner = server.user("owner", &[]);
    // Hosts may do nothing but what grants give them.
    let nothing = json!({ "Version": "2012-10-17", "Statement":
        [{ "Effect": "Deny", "Action": "kms:ScheduleKeyDeletion", "Resource": "*" }] });
    let hosts = ["one", "two"].map(|name| server.user(name, std::slice::from_ref(&nothing)));
    let arn = server.good(&owner, "CreateKey", &json!({}))["KeyMetadata"]["Arn"].clone();
    let grant = |host: &User| -> Value {
        let input = json!({ "KeyId": arn, "GranteePrincipal": host.arn, "Operations": OPERATIONS });
        server.good(&owner, "CreateGrant", &input)["GrantId"].clone()
    };
    let [_first, second] = [grant(&hosts[0]), grant(&hosts[1])];

    let one = Vault::unmade();
    let mut two = Vault::unmade();
    two.dir.clone_from(&one.dir);
    let uri = format!("kms:http://{}/{}", server.at, arn.as_str().unwrap());
    run(envelopefs(["init", text(&one.dir), "--key-uri", &uri]).envs(credentials(&owner)));
    let (here, there) = (mount(&one, &hosts[0]), mount(&two, &hosts[1]));
    fs::write(here.path("a"), "from one").unwrap();
    fs::write(there.path("b"), "from two").unwrap();
    assert_eq!(fs::read_to_string(there.path("a")).unwrap(), "from one");
    assert_eq!(fs::read_to_string(here.path("b")).unwrap(), "from two");

    server.good(&owner, "RevokeGrant", &json!({ "KeyId": arn, "GrantId": second }));
    for name in ["a", "b"] {
        let refused = File::open(there.path(name)).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EACCES), "{name}: {refused}");
    }
    assert_eq!(fs::read_to_string(here.path("b")).unwrap(), "from two");
    fs::write(here.path("c"), "still there").unwrap();
    assert_eq!(fs::read_to_string(here.path("c")).unwrap(), "still there");

    grant(&hosts[1]);
    eventually("the second host's return", || File::open(there.path("a")).is_ok());
    assert_eq!(fs::read_to_string(there.path("c")).unwrap(), "still there");
    here.unmount();
    there.unmount();
}
