//! The console in headless Chromium: what a person sees and does there. Without Chromium the test says so and passes.
#![allow(missing_docs)]

#[path = "kms_support/mod.rs"]
mod support;

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::start;

const NAMES: [&str; 3] = ["chromium", "chromium-browser", "google-chrome"];
/// The whole test; a browser that hangs is ended after it.
const PATIENCE: Duration = Duration::from_secs(180);

/// A headless browser, driven over its pipes (DevTools protocol: JSON ended by a NUL).
struct Browser {
    child: Child,
    to: File,
    from: BufReader<File>,
    session: String,
    next: u64,
    /// URLs that the page asked for.
    asked: Vec<String>,
    /// What the page complained of.
    complaints: Vec<String>,
    began: Instant,
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn program() -> Option<&'static str> {
    let here = |name: &&&str| {
        let found = Command::new(name).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        found.is_ok_and(|s| s.success())
    };
    NAMES.iter().find(here).copied()
}

impl Browser {
    fn open(program: &str, dir: &Path, url: &str) -> Self {
        let (up, down) = (dir.join("up"), dir.join("down"));
        for fifo in [&up, &down] {
            let made = Command::new("mkfifo").arg(fifo).status().expect("mkfifo");
            assert!(made.success());
        }
        // Its descriptors 3 and 4 are the pipes; the shell opens them in the order in which they are opened here.
        let line = format!(
            "exec {program} --headless=new --no-sandbox --disable-gpu --no-first-run --disable-dev-shm-usage \
             --disable-background-networking --disable-component-update --user-data-dir=\"$1\" \
             --remote-debugging-pipe about:blank 3<\"$2\" 4>\"$3\""
        );
        let child = Command::new("sh")
            .args(["-c", &line, "sh"])
            .args([&dir.join("profile"), &up, &down])
            .env("HOME", dir)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("sh");
        let to = File::options().write(true).open(&up).expect("a pipe");
        let from = BufReader::new(File::open(&down).expect("a pipe"));
        let mut browser = Self {
            child,
            to,
            from,
            session: String::new(),
            next: 0,
            asked: Vec::new(),
            complaints: Vec::new(),
            began: Instant::now(),
        };
        let target = browser.ask("Target.createTarget", &json!({ "url": "about:blank" }));
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let session = browser.ask("Target.attachToTarget", &attach);
        browser.session = session["sessionId"].as_str().expect("a session").to_owned();
        for domain in ["Page", "Runtime", "Network", "Log"] {
            browser.ask(&format!("{domain}.enable"), &json!({}));
        }
        browser.ask("Page.navigate", &json!({ "url": url }));
        browser
    }

    fn ask(&mut self, method: &str, params: &Value) -> Value {
        self.next += 1;
        let mut message = json!({ "id": self.next, "method": method, "params": params });
        if !self.session.is_empty() {
            message["sessionId"] = json!(self.session);
        }
        self.to.write_all(format!("{message}\0").as_bytes()).expect("the browser runs");
        loop {
            assert!(self.began.elapsed() < PATIENCE, "the browser takes too long");
            let mut bytes = Vec::new();
            self.from.read_until(0, &mut bytes).expect("the browser answers");
            assert_eq!(bytes.pop(), Some(0), "the browser ended");
            let answer: Value = serde_json::from_slice(&bytes).expect("JSON");
            if answer["id"] == self.next {
                assert!(answer.get("error").is_none(), "{method}: {answer}");
                return answer["result"].clone();
            }
            let params = &answer["params"];
            match answer["method"].as_str() {
                Some("Network.requestWillBeSent") => {
                    self.asked.push(params["request"]["url"].as_str().unwrap_or_default().to_owned());
                }
                Some("Runtime.exceptionThrown") => self.complaints.push(params.to_string()),
                Some("Log.entryAdded") if params["entry"]["level"] == "error" => {
                    self.complaints.push(params["entry"].to_string());
                }
                _ => {}
            }
        }
    }

    /// The value of an expression in the page.
    fn eval(&mut self, expression: &str) -> Value {
        let params = json!({ "expression": expression, "awaitPromise": true, "returnByValue": true });
        let answer = self.ask("Runtime.evaluate", &params);
        assert!(answer.get("exceptionDetails").is_none(), "{expression}: {answer}");
        answer["result"]["value"].clone()
    }

    fn text(&mut self, id: &str) -> String {
        self.eval(&format!("document.getElementById('{id}').textContent"))
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }

    /// Waits until an expression is true.
    fn until(&mut self, expression: &str) {
        let begin = Instant::now();
        while self.eval(&format!("!!({expression})")) != true {
            if begin.elapsed() > Duration::from_secs(30) {
                let body = self.eval("document.body.innerText");
                panic!("{expression} did not come true; {:?}; the page: {body}", self.complaints);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Keys, policies, simulator, saving with a login, audit and usage work in a browser; nothing is fetched from
/// elsewhere; hostile text in a description stays text.
#[test]
fn the_console_works_in_a_browser() {
    let Some(program) = program() else {
        eprintln!("skipped: Chromium is not installed (Debian: apt install chromium)");
        return;
    };
    let kms = start("off");
    let admin = kms.user("admin", &[]);
    let hostile = "<img src=x onerror=\"document.title='owned'\">";
    let made = kms.good(&admin, "CreateKey", &json!({ "Description": hostile }));
    let (id, arn) = (made["KeyMetadata"]["KeyId"].clone(), made["KeyMetadata"]["Arn"].clone());
    kms.good(&admin, "CreateAlias", &json!({ "AliasName": "alias/console-test", "TargetKeyId": id }));
    kms.good(&admin, "EnableKeyRotation", &json!({ "KeyId": id }));
    let grantee = format!("arn:aws:iam::{}:user/guest", support::ACCOUNT);
    let grant = json!({ "KeyId": id, "GranteePrincipal": grantee, "Operations": ["Decrypt"] });
    kms.good(&admin, "CreateGrant", &grant);
    let tmp = tempfile::tempdir().expect("a directory");
    let origin = format!("http://{}", kms.at);
    let mut page = Browser::open(program, tmp.path(), &format!("{origin}/console"));

    page.until("document.querySelectorAll('#key-rows tr').length === 1");
    let row = page.text("key-rows");
    for part in ["alias/console-test", id.as_str().expect("an id"), "Enabled", "every 365 days"] {
        assert!(row.contains(part), "{part}: {row}");
    }
    page.eval("document.querySelector('#key-rows tr').click()");
    page.until("document.getElementById('policy').value.includes('Statement')");
    assert!(page.text("key-facts").contains(hostile));
    assert!(page.text("grant-rows").contains(&grantee));

    // The simulator decides by what stands in the field.
    let simulate = |page: &mut Browser, principal: &str| {
        page.eval(&format!(
            "document.getElementById('verdict').textContent = ''; \
             document.getElementById('s-principal').value = '{principal}'; \
             document.getElementById('simulate').requestSubmit()"
        ));
        page.until("document.getElementById('verdict').textContent");
        page.text("verdict")
    };
    assert!(simulate(&mut page, &grantee).starts_with("allowed: grant "));
    let other = format!("arn:aws:iam::{}:user/other", support::ACCOUNT);
    assert!(simulate(&mut page, &other).starts_with("denied: no policy"));
    let policy = json!({ "Version": "2012-10-17", "Statement": [
        { "Effect": "Allow", "Principal": { "AWS": admin.arn }, "Action": "kms:*", "Resource": "*" },
        { "Sid": "now", "Effect": "Allow", "Principal": { "AWS": other }, "Action": "kms:Decrypt", "Resource": "*" },
    ]});
    page.eval(&format!("document.getElementById('policy').value = {}", json!(policy.to_string())));
    let verdict = simulate(&mut page, &other);
    assert!(verdict.starts_with("allowed") && verdict.contains("\"now\""), "{verdict}");

    // Without a login nothing is saved; with one the page signs like every client.
    page.eval("document.getElementById('save').click()");
    page.until("document.getElementById('saved').textContent === 'sign in first'");
    page.eval(&format!(
        "document.getElementById('access').value = '{}'; document.getElementById('secret').value = '{}'; \
         document.getElementById('login').requestSubmit(); document.getElementById('save').click()",
        admin.key, admin.secret
    ));
    page.until("document.getElementById('saved').textContent === 'saved'");
    assert_eq!(page.eval("document.getElementById('secret').value"), "");
    let stored = kms.good(&admin, "GetKeyPolicy", &json!({ "KeyId": arn }));
    assert_eq!(stored["Policy"].as_str(), Some(policy.to_string().as_str()));

    // The audit log shows what was just done, and follows it.
    page.eval("document.querySelector('nav [data-view=audit]').click()");
    page.until("document.getElementById('audit-rows').textContent.includes('PutKeyPolicy')");
    kms.good(&admin, "DescribeKey", &json!({ "KeyId": arn }));
    page.until("document.getElementById('audit-rows').textContent.includes('DescribeKey')");
    page.eval("document.querySelector('nav [data-view=usage]').click()");
    page.until("document.querySelectorAll('#usage-rows tr').length >= 1");

    assert_ne!(page.eval("document.title"), "owned");
    assert!(page.complaints.is_empty(), "{:?}", page.complaints);
    let outside: Vec<_> = page.asked.iter().filter(|url| !url.starts_with(&origin)).collect();
    assert!(outside.is_empty() && !page.asked.is_empty(), "{outside:?}");
}

/// A request by another name, as a page of somebody else's would make it, gets nothing; the page has its policy.
#[test]
fn the_console_is_for_this_machine() {
    let kms = start("off");
    let get = |host: &str, path: &str| {
        kms.send(&format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"))
    };
    let (status, head, body) = get(&kms.at.to_string(), "/console");
    assert!(status == 200 && body.contains("EnvelopeFS KMS"));
    assert!(head.to_lowercase().contains("content-security-policy: default-src 'none'"), "{head}");
    for path in ["/console", "/console/api/keys"] {
        let (status, _, body) = get("evil.example:80", path);
        assert!(status == 403 && !body.contains("keys\""), "{body}");
    }
    assert_eq!(get(&kms.at.to_string(), "/console/api/nothing").0, 404);
}
