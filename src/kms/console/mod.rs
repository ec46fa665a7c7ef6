//! The console: one page without any outside asset, and what it reads. `kms serve --console` serves it to this machine.
//!
//! Reading needs no login, and changes nothing; the simulator only computes. What changes something goes to the API
//! like every client's call, signed by the page with keys that its user types in and that never leave it.

mod data;

use std::fmt::Write as _;
use std::sync::OnceLock;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::engine::Engine;
use super::error::KmsError;

/// Where the page is.
pub(super) const PATH: &str = "/console";
/// Its questions begin with this.
const API: &str = "/console/api/";
/// The longest question: two policies and little more.
pub(super) const MAX_BODY: usize = 256 << 10;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");
const MARKUP: &str = include_str!("page.html");

/// An answer to a browser.
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) kind: &'static str,
    pub(super) body: Vec<u8>,
}

struct Page {
    html: String,
    policy: String,
}

fn page() -> &'static Page {
    static PAGE: OnceLock<Page> = OnceLock::new();
    PAGE.get_or_init(|| {
        let hash =
            |text: &str| format!("'sha256-{}'", BASE64_STANDARD.encode(Sha256::digest(text.as_bytes())));
        let html = MARKUP.replace("{{style}}", STYLE).replace("{{script}}", SCRIPT);
        // Nothing but this script and this style runs, whatever a description or a tag of a key may hold.
        let mut policy =
            "default-src 'none'; connect-src 'self'; base-uri 'none'; form-action 'none'; ".to_owned();
        let _ =
            write!(policy, "frame-ancestors 'none'; script-src {}; style-src {}", hash(SCRIPT), hash(STYLE));
        Page { html, policy }
    })
}

/// The Content-Security-Policy of every answer.
pub(super) fn security_policy() -> &'static str {
    &page().policy
}

/// Whether a `Host` header names this machine: a page of somebody else's, whose name was made to point here, does not.
pub(super) fn is_local_name(host: &str) -> bool {
    let name = host.rsplit_once(':').filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()));
    matches!(name.map_or(host, |(name, _)| name), "localhost" | "127.0.0.1" | "[::1]")
}

/// Answers a browser.
pub(super) fn answer(engine: &Engine, method: &str, path: &str, query: &str, body: &[u8]) -> Reply {
    if path == PATH && method == "GET" {
        return Reply { status: 200, kind: "text/html; charset=utf-8", body: page().html.clone().into() };
    }
    let words = data::words(query);
    let found: Option<Result<Value, KmsError>> = match (method, path.strip_prefix(API)) {
        ("GET", Some("keys")) => Some(data::keys(engine, &words)),
        ("GET", Some("key")) => Some(data::key(engine, &words)),
        ("GET", Some("audit")) => Some(data::audit(engine, &words)),
        ("GET", Some("usage")) => Some(data::usage(engine)),
        ("POST", Some("simulate")) => Some(data::simulate(engine, body)),
        _ => None,
    };
    match found {
        Some(Ok(value)) => Reply { status: 200, kind: "application/json", body: value.to_string().into() },
        Some(Err(error)) => {
            Reply { status: 400, kind: "text/plain; charset=utf-8", body: error.to_string().into() }
        }
        None => {
            Reply { status: 404, kind: "text/plain; charset=utf-8", body: b"there is no such page".into() }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kms::{Protection, Scope};
    use serde_json::json;

    /// The page names nothing outside of itself, and carries what it needs.
    #[test]
    fn the_page_needs_nothing_from_outside() {
        let html = &page().html;
        for outside in ["http://", "https://", "src=", "href=", "@import", "url("] {
            assert!(!html.contains(outside), "{outside}");
        }
        assert!(html.contains("PutKeyPolicy") && !html.contains("{{"));
        assert!(security_policy().contains("script-src 'sha256-"));
    }

    /// Only names of this machine are taken for it.
    #[test]
    fn other_names_are_not_this_machine() {
        for good in ["localhost", "localhost:9777", "127.0.0.1:1", "[::1]:5", "[::1]"] {
            assert!(is_local_name(good), "{good}");
        }
        for bad in ["", "example.com", "127.0.0.1.example.com:9", "localhost.evil:80", "10.0.0.1"] {
            assert!(!is_local_name(bad), "{bad}");
        }
    }

    /// The console's questions are answered from the store; what is asked wrongly is told so.
    #[test]
    fn questions_are_answered() {
        let tmp = tempfile::tempdir().unwrap();
        let engine =
            Engine::create(&tmp.path().join("kms"), &Protection::KeyFile).unwrap().watched().unwrap();
        let owner = crate::kms::Caller::root(Scope::home());
        let call = |action: &str, input: Value| engine.call(action, input, &owner).unwrap();
        let made = call("CreateKey", json!({ "Description": "<script>payroll" }));
        let (id, arn) = (&made["KeyMetadata"]["KeyId"], &made["KeyMetadata"]["Arn"]);
        call("CreateAlias", json!({ "AliasName": "alias/pay", "TargetKeyId": id }));
        call("EnableKeyRotation", json!({ "KeyId": id, "RotationPeriodInDays": 100 }));
        let user = "arn:aws:iam::000000000000:user/u";
        call("CreateGrant", json!({ "KeyId": id, "GranteePrincipal": user, "Operations": ["Decrypt"] }));
        let get = |path: &str, query: &str| {
            let reply = answer(&engine, "GET", path, query, &[]);
            assert_eq!(reply.status, 200, "{}", String::from_utf8_lossy(&reply.body));
            serde_json::from_slice::<Value>(&reply.body).unwrap()
        };
        let all = get("/console/api/keys", "q=alias%2Fpay");
        assert_eq!(all["total"], 1);
        assert_eq!(all["keys"][0]["aliases"], json!(["alias/pay"]));
        assert_eq!(all["keys"][0]["rotation"]["days"], 100);
        assert_eq!(all["keys"][0]["grants"], 1);
        assert_eq!(get("/console/api/keys", "q=nothing")["total"], 0);
        let query = format!("arn={}", arn.as_str().unwrap());
        let one = get("/console/api/key", &query);
        assert_eq!(one["grants_list"][0]["grantee"], user);
        assert_eq!(get("/console/api/audit", "")["events"].as_array().unwrap().len(), 4);
        assert_eq!(get("/console/api/usage", "")["months"][0]["total"], 0, "not written yet");
        let question =
            json!({ "arn": arn, "principal": user, "action": "kms:Decrypt", "policy": one["policy"] });
        let reply = answer(&engine, "POST", "/console/api/simulate", "", question.to_string().as_bytes());
        let verdict: Value = serde_json::from_slice(&reply.body).unwrap();
        assert_eq!(verdict["allowed"], true, "{verdict}");
        for (method, path, body, status) in [
            ("GET", "/console/api/key", "", 400),
            ("POST", "/console/api/simulate", "{", 400),
            ("GET", "/console/api/none", "", 404),
            ("POST", "/console/api/keys", "", 404),
        ] {
            assert_eq!(answer(&engine, method, path, "", body.as_bytes()).status, status, "{path}");
        }
    }
}
