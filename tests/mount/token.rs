//! Vaults whose wrapping key is in a PKCS#11 token: our HSM, and SoftHSM2 where it is installed.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::Instant;

use tempfile::TempDir;

use crate::harness::{Mount, Vault, can_mount, envelopefs, eventually, pattern, run, said, sh, text};

const SOFTHSM: [&str; 3] = [
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
];

fn is_there(program: &str) -> bool {
    let there = Command::new("sh").args(["-c", &format!("command -v {program} >/dev/null")]).status();
    let there = there.is_ok_and(|status| status.success());
    if !there {
        eprintln!("skipped: {program} is not installed");
    }
    there
}

/// Our module, as it was built last.
pub(crate) fn our_module() -> PathBuf {
    let program = Path::new(env!("CARGO_BIN_EXE_envelopefs"));
    let beside = program.with_file_name("libenvelopefs.so");
    let built = program.with_file_name("deps").join("libenvelopefs.so");
    let newest = |path: &PathBuf| path.metadata().and_then(|meta| meta.modified()).ok();
    let module = [built, beside].into_iter().filter(|path| path.exists()).max_by_key(newest);
    module.expect("the module is built with the program")
}

/// A token with the AES key `vault-key` in it, and what programs need to find it.
struct Token {
    module: PathBuf,
    /// Of the token.
    label: &'static str,
    pin: &'static str,
    env: Vec<(&'static str, String)>,
    dir: TempDir,
    server: Option<Child>,
    serve: Vec<&'static str>,
}

impl Drop for Token {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Token {
    /// An HSM of ours; `None` where pkcs11-tool is missing, which says so.
    fn ours(serve: &[&'static str]) -> Option<Self> {
        if !is_there("pkcs11-tool") {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let socket = format!("unix:{}", dir.path().join("hsm.sock").display());
        let mut token = Self {
            module: our_module(),
            label: "our token",
            pin: "user:password",
            env: vec![("ENVELOPEFS_HSM", socket)],
            dir,
            server: None,
            serve: serve.to_vec(),
        };
        run(&mut envelopefs([
            "hsm",
            "cluster",
            "create",
            "--dir",
            text(&token.dir.path().join("hsm")),
            "--key-file",
        ]));
        token.start();
        token.tool(&["--init-token", "--slot", "0", "--label", token.label, "--so-pin", "admin-password"]);
        let so = ["--login", "--login-type", "so", "--so-pin", "admin-password"];
        token.tool(&[&so[..], &["--init-pin", "--new-pin", token.pin]].concat());
        token.new_key("vault-key", "01");
        Some(token)
    }

    /// A token of SoftHSM2; `None` where it is missing, which says so.
    fn softhsm() -> Option<Self> {
        let module = SOFTHSM.iter().map(PathBuf::from).find(|path| path.exists());
        let Some(module) = module else {
            eprintln!("skipped: SoftHSM2 is not installed");
            return None;
        };
        if !is_there("pkcs11-tool") || !is_there("softhsm2-util") {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let (conf, tokens) = (dir.path().join("softhsm2.conf"), dir.path().join("tokens"));
        fs::create_dir(&tokens).unwrap();
        fs::write(&conf, format!("directories.tokendir = {}\n", tokens.display())).unwrap();
        let token = Self {
            module,
            label: "soft",
            pin: "1234",
            env: vec![("SOFTHSM2_CONF", text(&conf).to_owned())],
            dir,
            server: None,
            serve: Vec::new(),
        };
        run(Command::new("softhsm2-util")
            .args([
                "--init-token",
                "--free",
                "--label",
                token.label,
                "--so-pin",
                "12345678",
                "--pin",
                token.pin,
            ])
            .envs(token.env()));
        token.new_key("vault-key", "01");
        Some(token)
    }

    fn env(&self) -> impl Iterator<Item = (&'static str, String)> {
        self.env.clone().into_iter()
    }

    fn start(&mut self) {
        let socket = self.dir.path().join("hsm.sock");
        let _ = fs::remove_file(&socket);
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "TERM", env!("CARGO_BIN_EXE_envelopefs"), "hsm", "serve", "--dir"]);
        command.arg(self.dir.path().join("hsm")).args(["--listen", &format!("unix:{}", socket.display())]);
        command.args(&self.serve).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.server = Some(command.spawn().unwrap());
        eventually("the HSM", || std::os::unix::net::UnixStream::connect(&socket).is_ok());
    }

    /// As a plug that is pulled.
    fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            let _ = server.kill();
            let _ = server.wait();
        }
    }

    fn tool(&self, args: &[&str]) -> String {
        run(Command::new("pkcs11-tool").args(["--module", text(&self.module)]).args(args).envs(self.env()))
    }

    fn new_key(&self, label: &str, id: &str) {
        self.generate(&["--keygen", "--key-type", "AES:32", "--sensitive", "--label", label, "--id", id]);
    }

    fn generate(&self, args: &[&str]) {
        self.tool(&[&["--token-label", self.label, "--login", "--pin", self.pin], args].concat());
    }

    /// The module behind one of ours, whose `C_Encrypt` or `C_Decrypt` is other code: it can call `real` with its
    /// arguments `s, in, n, out, m`. A result is asked for where `out` is not null.
    fn behind(&self, name: &str, function: usize, body: &str) -> PathBuf {
        let text = format!(
            r#"
            #include <dlfcn.h>
            #include <unistd.h>
            typedef unsigned long number;
            typedef number (*call)(number, void *, number, void *, number *);
            struct list {{ unsigned char version[2]; call functions[68]; }};
            static struct list ours;
            static call real;
            static number changed(number s, void *in, number n, void *out, number *m) {{ {body} }}
            number C_GetFunctionList(struct list **list) {{
                struct list *theirs;
                void *module = dlopen("{}", RTLD_NOW);
                number (*get)(struct list **) = module ? dlsym(module, "C_GetFunctionList") : 0;
                if (!get || get(&theirs)) return 5;
                ours = *theirs;
                real = ours.functions[{function}];
                ours.functions[{function}] = changed;
                *list = &ours;
                return 0;
            }}"#,
            self.module.display()
        );
        compile(self.dir.path(), name, &text)
    }

    fn uri_of(&self, object: &str, more: &str) -> String {
        let label = self.label.replace(' ', "%20");
        format!("pkcs11:token={label};object={object}?module-path={}{more}", self.module.display())
    }

    fn uri(&self) -> String {
        self.uri_of("vault-key", "")
    }

    /// A command that finds the token, with its PIN.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = envelopefs(args.iter().copied());
        command.envs(self.env()).env("ENVELOPEFS_PIN", self.pin);
        command
    }

    fn vault(&self, uri: &str, more: &[&str]) -> Vault {
        let vault = Vault::unmade();
        run(&mut self.command(&[&["init", text(&vault.dir), "--key-uri", uri][..], more].concat()));
        vault
    }

    fn mount<'a>(&self, vault: &'a Vault, options: &str) -> Mount<'a> {
        let pin = [("ENVELOPEFS_PIN", self.pin.to_owned())];
        let variables: Vec<String> =
            self.env().chain(pin).map(|(name, value)| format!("{name}={value}")).collect();
        let command: Vec<&str> = std::iter::once("env").chain(variables.iter().map(String::as_str)).collect();
        vault.mount_as(&command, options)
    }
}

/// Places in PKCS#11's list of functions.
const C_ENCRYPT: usize = 30;
const C_DECRYPT: usize = 34;

/// A module of C code.
fn compile(dir: &Path, name: &str, code: &str) -> PathBuf {
    let [source, module] = ["c", "so"].map(|end| dir.join(format!("{name}.{end}")));
    fs::write(&source, code).unwrap();
    run(Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&module, &source]).arg("-ldl"));
    module
}

/// What a command that must fail says.
fn refusal(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(!output.status.success(), "{command:?} is not refused");
    said(&output)
}

fn errno(path: &Path) -> Option<i32> {
    File::open(path).err().and_then(|e| e.raw_os_error())
}

fn lines(log: &str, word: &str) -> usize {
    log.lines().filter(|line| line.contains(word)).count()
}

/// Writes, mounts anew, reads; `check` finds the vault whole.
fn is_usable(token: &Token, vault: &Vault) {
    let mount = token.mount(vault, "");
    for size in [0, 10, 100_000] {
        fs::write(mount.path(&format!("f{size}")), pattern(size, 3)).unwrap();
    }
    mount.unmount();
    let mount = token.mount(vault, "key_cache=0");
    for size in [0, 10, 100_000] {
        assert!(fs::read(mount.path(&format!("f{size}"))).unwrap() == pattern(size, 3), "{size}");
    }
    assert!(vault.log().contains("sandbox: landlock"), "{}", vault.log());
    mount.unmount();
    run(&mut token.command(&["check", text(&vault.dir)]));
}

/// Ends the workers of a test, also when it fails.
pub(crate) struct Stop<'a>(pub(crate) &'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// The helper processes of a daemon: children of its keepers.
fn helpers(daemon: u32) -> Vec<i32> {
    let keepers = sh(Path::new("/"), &format!("pgrep -P {daemon} -f token-keeper || true"));
    let of = |keeper: &str| sh(Path::new("/"), &format!("pgrep -P {keeper} -f token-helper || true"));
    keepers
        .lines()
        .flat_map(|keeper| of(keeper).lines().map(str::to_owned).collect::<Vec<_>>())
        .filter_map(|pid| pid.parse().ok())
        .collect()
}

/// A vault on our HSM: it works in its sandbox; when the HSM goes, what is open goes on and the rest gives ENOKEY, with
/// a log line; when it is back, all works by itself, logins and sessions renewed.
#[test]
fn an_hsm_that_goes_and_comes_back() {
    if !can_mount() {
        return;
    }
    let Some(mut token) = Token::ours(&[]) else { return };
    let vault = token.vault(&token.uri(), &[]);
    let config = fs::read_to_string(vault.dir.join(".envelopefs/vault.toml")).unwrap();
    assert!(
        config.contains("mechanism=aes-gcm") && config.contains("id=%01") && !config.contains("password"),
        "{config}"
    );
    is_usable(&token, &vault);
    let mount = token.mount(&vault, "key_cache=0");
    let mut open = File::open(mount.path("f100000")).unwrap();
    for round in 0..2 {
        let before = lines(&vault.log(), "gives no keys");
        token.stop();
        for _ in 0..8 {
            assert_eq!(errno(&mount.path("f10")), Some(libc::ENOKEY));
        }
        if round == 0 {
            let mut content = Vec::new();
            open.read_to_end(&mut content).unwrap();
            assert!(content == pattern(100_000, 3), "what is open does not go on");
        }
        // One for an outage; a second one where the pool was still being refused when an open had its answer again.
        let told = lines(&vault.log(), "gives no keys") - before;
        assert!((1..=2).contains(&told), "{}", vault.log());
        token.start();
        eventually("the HSM's return", || errno(&mount.path("f10")).is_none());
        assert!(fs::read(mount.path("f10")).unwrap() == pattern(10, 3));
        fs::write(mount.path("new"), "new").unwrap();
        eventually("its line", || {
            let _ = errno(&mount.path("f10"));
            lines(&vault.log(), "gives keys again") == lines(&vault.log(), "gives no keys")
        });
    }
    drop(open);
    mount.unmount();
}

/// A helper that is killed while files are opened and made costs nobody an error: what it was asked, the next one is.
#[test]
fn a_helper_that_is_killed_under_load() {
    if !can_mount() {
        return;
    }
    let Some(token) = Token::ours(&[]) else { return };
    let vault = token.vault(&token.uri(), &[]);
    let mount = token.mount(&vault, "key_cache=0");
    for n in 0..16 {
        fs::write(mount.path(&n.to_string()), pattern(5000, n)).unwrap();
    }
    let (stop, reads) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        for worker in 0..4_u64 {
            let (mount, stop, reads) = (&mount, &stop, &reads);
            scope.spawn(move || {
                for n in (0..16).cycle().skip(usize::try_from(worker * 4).unwrap()) {
                    if stop.load(Relaxed) {
                        break;
                    }
                    let same = fs::read(mount.path(&n.to_string())).map(|read| read == pattern(5000, n));
                    // Without this a failure would leave the others at work for ever.
                    stop.fetch_or(!matches!(same, Ok(true)), Relaxed);
                    assert!(same.unwrap(), "{n}");
                    reads.fetch_add(1, Relaxed);
                }
            });
        }
        let _stop = Stop(&stop);
        for _ in 0..3 {
            // Each helper has done something: one that is killed before it is ready takes the same requests with it.
            let before = reads.load(Relaxed);
            eventually("reads", || stop.load(Relaxed) || reads.load(Relaxed) > before + 20);
            let deaths = lines(&vault.log(), "it is started again");
            for pid in helpers(mount.daemon_id()) {
                let pid = rustix::process::Pid::from_raw(pid).unwrap();
                rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
            }
            eventually("the restart", || {
                stop.load(Relaxed) || lines(&vault.log(), "it is started again") > deaths
            });
        }
        let before = reads.load(Relaxed);
        eventually("reads", || stop.load(Relaxed) || reads.load(Relaxed) > before + 20);
    });
    assert_eq!(lines(&vault.log(), "gives no keys"), 0, "{}", vault.log());
    mount.unmount();
}

/// Vaults on SoftHSM2, by each mechanism that it has.
#[test]
fn softhsm_opens_vaults() {
    if !can_mount() {
        return;
    }
    let Some(token) = Token::softhsm() else { return };
    let vault = token.vault(&token.uri(), &[]);
    is_usable(&token, &vault);
    for mechanism in ["aes-key-wrap", "aes-key-wrap-pad"] {
        let vault = token.vault(&token.uri_of("vault-key", &format!("&mechanism={mechanism}")), &[]);
        is_usable(&token, &vault);
    }
    token.generate(&["--keypairgen", "--key-type", "rsa:2048", "--label", "pair", "--id", "02"]);
    let uri = token.uri_of("pair", "");
    let said = refusal(&mut token.command(&["init", text(&Vault::unmade().dir), "--key-uri", &uri]));
    assert!(said.contains("--envelope"), "{said}");
    is_usable(&token, &token.vault(&uri, &["--envelope"]));
}

/// Our HSM by other mechanisms: IVs made by the HSM, key wraps, CloudHSM's numbers, RSA.
#[test]
fn our_hsm_wraps_in_many_ways() {
    if !can_mount() {
        return;
    }
    let Some(token) = Token::ours(&["--hsm-iv"]) else { return };
    let vault = token.vault(&token.uri(), &[]);
    let config = fs::read_to_string(vault.dir.join(".envelopefs/vault.toml")).unwrap();
    assert!(config.contains("mechanism=aes-gcm-token-iv"), "{config}");
    is_usable(&token, &vault);
    token.generate(&["--keygen", "--key-type", "AES:32", "--usage-wrap", "--label", "wrapper", "--id", "03"]);
    let vault = token.vault(&token.uri_of("wrapper", ""), &[]);
    let config = fs::read_to_string(vault.dir.join(".envelopefs/vault.toml")).unwrap();
    assert!(config.contains("mechanism=aes-key-wrap\""), "{config}");
    for mechanism in ["aes-key-wrap", "cloudhsm-aes-key-wrap-no-pad", "cloudhsm-aes-key-wrap-zero-pad"] {
        is_usable(&token, &token.vault(&token.uri_of("wrapper", &format!("&mechanism={mechanism}")), &[]));
    }
    token.generate(&["--keypairgen", "--key-type", "rsa:2048", "--label", "pair", "--id", "02"]);
    is_usable(&token, &token.vault(&token.uri_of("pair", ""), &["--envelope"]));
}

/// An HSM that a mount hosts itself: made by `init`, there while it is needed, and gone with the mount.
#[test]
fn an_embedded_hsm_needs_no_ceremony() {
    if !can_mount() {
        return;
    }
    let (vault, other) = (Vault::unmade(), Vault::unmade());
    let data = vault.scratch.join("data");
    let hsm = data.join("envelopefs/hsm");
    let variable = format!("ENVELOPEFS_PKCS11_MODULE={}", our_module().display());
    let init = |at: &Vault, switch: &str| {
        let mut command = envelopefs(["init", switch, text(&at.dir)]);
        command.env("XDG_DATA_HOME", &data).env("ENVELOPEFS_PKCS11_MODULE", our_module());
        command
    };
    let by_name = format!("--embedded-hsm={}", hsm.display());
    run(&mut init(&vault, "--embedded-hsm"));
    for file in ["admin", "pin"] {
        assert_eq!(fs::metadata(hsm.join(file)).unwrap().permissions().mode() & 0o777, 0o600, "{file}");
    }
    let options = format!("key_cache=0,embedded-hsm={}", hsm.display());
    for round in 0..2 {
        let mount = vault.mount_as(&["env", &variable], &options);
        // The one that has the HSM's log is started in the sandbox.
        eventually("the sandbox", || vault.log().contains("sandbox: landlock"));
        assert!(!vault.log().contains("runs already"), "{}", vault.log());
        if round == 0 {
            fs::write(mount.path("f"), pattern(5000, 1)).unwrap();
            let said = refusal(&mut init(&other, &by_name));
            assert!(said.contains("another process serves this HSM"), "{said}");
        }
        assert!(fs::read(mount.path("f")).unwrap() == pattern(5000, 1));
        mount.unmount();
        assert!(
            std::os::unix::net::UnixStream::connect(hsm.join("hsm.sock")).is_err(),
            "the HSM is still there"
        );
    }
    run(&mut init(&other, &by_name));
}

/// The making of an embedded HSM that is killed at any time leaves what the next one makes whole; what is no embedded
/// HSM is told to be none.
#[test]
fn an_embedded_hsm_is_made_whole_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let hsm = dir.path().join("hsm");
    let init = |name: &str| {
        let at = dir.path().join(name);
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", env!("CARGO_BIN_EXE_envelopefs"), "init"]);
        command.arg(format!("--embedded-hsm={}", hsm.display())).arg(at);
        command.env("ENVELOPEFS_PKCS11_MODULE", our_module()).stdin(Stdio::null());
        command
    };
    let begun = Instant::now();
    run(&mut init("first"));
    let all = begun.elapsed();
    fs::remove_dir_all(&hsm).unwrap();
    for part in 1..8 {
        let mut killed = init("killed").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        thread::sleep(all * part / 8);
        killed.kill().unwrap();
        killed.wait().unwrap();
        let _ = fs::remove_dir_all(dir.path().join("killed"));
        assert_eq!(hsm.exists(), hsm.join("pin").exists(), "after {part} eighths");
    }
    run(&mut init("last"));
    assert!(!dir.path().join(".hsm.unfinished").exists());
    fs::remove_file(hsm.join("pin")).unwrap();
    assert!(refusal(&mut init("other")).contains("its file pin is missing"));
}

/// A token joins a vault of another provider, and takes it over.
#[test]
fn a_token_is_a_recipient_like_others() {
    if !can_mount() {
        return;
    }
    let Some(token) = Token::ours(&[]) else { return };
    let vault = Vault::new();
    let mount = vault.mount();
    fs::write(mount.path("f"), pattern(5000, 1)).unwrap();
    mount.unmount();
    let kms = ["--kms-dir", text(&vault.kms)];
    run(&mut token.command(&[&["rewrap", text(&vault.dir), "--to", &token.uri()][..], &kms].concat()));
    run(&mut token.command(&[&["recipient", "remove", text(&vault.dir), "0"][..], &kms].concat()));
    fs::remove_dir_all(&vault.kms).unwrap();
    let mount = token.mount(&vault, "");
    assert!(fs::read(mount.path("f")).unwrap() == pattern(5000, 1));
    mount.unmount();
}

/// Every slip has its message, and none shows the PIN.
#[test]
fn slips_are_told() {
    let Some(token) = Token::ours(&[]) else { return };
    token.new_key("twin", "0a");
    token.new_key("twin", "0b");
    token.generate(&["--keypairgen", "--key-type", "EC:prime256v1", "--label", "curve", "--id", "0c"]);
    let dir = tempfile::tempdir().unwrap();
    let note = dir.path().join("note");
    fs::write(&note, "no library").unwrap();
    let wide = dir.path().join("wide.so");
    fs::copy(&token.module, &wide).unwrap();
    fs::set_permissions(&wide, fs::Permissions::from_mode(0o666)).unwrap();
    let pin = dir.path().join("pin");
    fs::write(&pin, "user:password\n").unwrap();
    fs::set_permissions(&pin, fs::Permissions::from_mode(0o644)).unwrap();
    let by =
        |module: &Path| format!("pkcs11:token=our%20token;object=vault-key?module-path={}", module.display());
    // Modules that crash and hang, as some do.
    let bad = |name: &str, body: &str| {
        let code = format!(
            "#include <stdlib.h>\n#include <unistd.h>\nlong C_GetFunctionList(void *l) {{ {body} }}\n"
        );
        compile(dir.path(), name, &code)
    };
    let (crashing, hanging) = (bad("crashing", "abort();"), bad("hanging", "for (;;) pause();"));
    let late = bad("late", "sleep(5); abort();");
    let libm = sh(Path::new("/"), "ldd /bin/sh | sed -n 's/.*=> \\(.*libc.so.6\\) .*/\\1/p'");
    let vault = Vault::unmade();
    let init = |uri: &str| {
        let said = refusal(&mut token.command(&["init", text(&vault.dir), "--key-uri", uri]));
        assert!(!said.contains("user:password"), "{said}");
        assert!(!vault.dir.exists(), "{uri}: a vault was begun");
        said
    };
    for (uri, word) in [
        (token.uri_of("no-such-key", ""), "no AES or RSA key labelled \"no-such-key\""),
        (token.uri_of("twin", ""), "2 keys labelled \"twin\""),
        (token.uri_of("curve", ""), "AES and RSA keys wrap"),
        (token.uri().replace("our%20token", "other"), "no token \"other\""),
        (token.uri_of("vault-key", "&mechanism=rsa-oaep-sha1"), "does not fit the key's type"),
        (by(Path::new("/no/such/module.so")), "No such file"),
        (by(&note), "does not load"),
        (by(Path::new(libm.trim())), "no PKCS#11 module"),
        (by(&crashing), "the PKCS#11 module crashed: it ended: signal: 6"),
        (by(&hanging), "did not answer in time"),
        // Three tries, but not one after the other for all of their time.
        (by(&late), "did not answer in time"),
        (by(&wide), "others can change it"),
        (format!("{}&pin-source=file:{}", token.uri(), pin.display()), "chmod 600"),
        (format!("{}&pin-value=user:password", token.uri()), "does not belong into a URI"),
    ] {
        let said = init(&uri);
        assert!(said.contains(word), "{uri}: {said}");
    }
    // One try for all workers of all commands, so five of them lock the account.
    for _ in 0..5 {
        let args = ["init", text(&vault.dir), "--key-uri", &token.uri()];
        let said = refusal(token.command(&args).env("ENVELOPEFS_PIN", "user:wrong-password"));
        assert!(said.contains("CKR_PIN_INCORRECT") || said.contains("CKR_PIN_LOCKED"), "{said}");
    }
    assert!(init(&token.uri()).contains("CKR_PIN_LOCKED"));
    for (pin, word) in [(String::new(), "the PIN is empty"), ("7".repeat(5000), "the PIN has 5000 bytes")] {
        let args = ["init", text(&vault.dir), "--key-uri", &token.uri()];
        let said = refusal(token.command(&args).env("ENVELOPEFS_PIN", pin));
        assert!(said.contains(word) && said.contains("ENVELOPEFS_PIN for pkcs11:"), "{said}");
    }
    let said = refusal(
        token.command(&["init", text(&vault.dir), "--key-uri", &token.uri()]).env_remove("ENVELOPEFS_PIN"),
    );
    assert!(said.contains("needs a PIN"), "{said}");
    let mut lost = token.command(&["init", text(&vault.dir), "--key-uri", &token.uri()]);
    let said = refusal(lost.env_remove("ENVELOPEFS_HSM"));
    assert!(said.contains("CKR_FUNCTION_FAILED (it needs ENVELOPEFS_HSM"), "{said}");
}

/// A header whose blob was changed opens nothing, and spoils nothing for the other files.
#[test]
fn a_forged_blob_is_refused_alone() {
    if !can_mount() {
        return;
    }
    for token in [Token::ours(&[]), Token::softhsm()].into_iter().flatten() {
        let vault = token.vault(&token.uri(), &[]);
        let mount = token.mount(&vault, "");
        for name in ["a", "b"] {
            fs::write(mount.path(name), pattern(5000, 1)).unwrap();
        }
        let (a, b) = (vault.lower(&mount.path("a")), vault.lower(&mount.path("b")));
        mount.unmount();
        let mut header = [0; 4096];
        let len = rustix::fs::getxattr(&a, "user.efs.key", &mut header).unwrap();
        let good = header[..len].to_vec();
        for at in [20, 21, 25, len - 1] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            rustix::fs::setxattr(&a, "user.efs.key", &bad, rustix::fs::XattrFlags::empty()).unwrap();
            let mount = token.mount(&vault, "key_cache=0");
            for _ in 0..3 {
                assert_eq!(errno(&mount.path("a")), Some(libc::EKEYREJECTED), "byte {at}: {}", vault.log());
                assert!(fs::read(mount.path("b")).unwrap() == pattern(5000, 1));
            }
            mount.unmount();
        }
        // Another file's wrapped key.
        let len = rustix::fs::getxattr(&b, "user.efs.key", &mut header).unwrap();
        let swapped = [&good[..16], &header[16..len]].concat();
        rustix::fs::setxattr(&a, "user.efs.key", &swapped, rustix::fs::XattrFlags::empty()).unwrap();
        let mount = token.mount(&vault, "key_cache=0");
        assert_eq!(errno(&mount.path("a")), Some(libc::EKEYREJECTED), "{}", vault.log());
        mount.unmount();
    }
}

/// The backup commands open a vault by its token: with the vault at hand, by a snapshot, by the bucket alone.
#[test]
fn backups_are_opened_by_a_token() {
    if !can_mount() {
        return;
    }
    let Some(token) = Token::ours(&[]) else { return };
    let vault = token.vault(&token.uri(), &[]);
    let mount = token.mount(&vault, "");
    fs::write(mount.path("f"), pattern(100_000, 1)).unwrap();
    mount.unmount();
    let home = token.dir.path();
    let [repo, key, cache, back, point] =
        ["repo", "backup.key", "cache", "back", "point"].map(|name| text(&home.join(name)).to_owned());
    let backup = |args: &[&str]| {
        let by = ["--key-file", key.as_str(), "--cache-dir", cache.as_str()];
        token.command(&[&["backup"], args, &by].concat())
    };
    run(&mut backup(&["init", text(&vault.dir), &repo]));
    run(&mut backup(&["run", text(&vault.dir), &repo]));
    run(&mut backup(&["verify", "--deep", &repo]));
    run(&mut backup(&["restore", "--vault-key", &repo, &back]));
    run(&mut token.command(&["check", &back]));
    fs::create_dir(&point).unwrap();
    // Ends with this test, also where that fails.
    let mut shown = Command::new("setpriv");
    shown.args(["--pdeathsig", "KILL", env!("CARGO_BIN_EXE_envelopefs")]);
    let wanted = backup(&["mount", &repo, &point]);
    shown.args(wanted.get_args()).envs(wanted.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let mut shown = shown.stdout(Stdio::null()).spawn().unwrap();
    let file = Path::new(&point).join("f");
    eventually("the snapshot", || fs::read(&file).is_ok_and(|read| read == pattern(100_000, 1)));
    run(&mut envelopefs(["umount", &point]));
    assert!(shown.wait().unwrap().success());
}

/// A token that needs most of a second for each wrap: what it wraps in a few seconds suffices for a create.
#[test]
fn a_slow_token_gives_progress() {
    if !can_mount() {
        return;
    }
    let Some(mut token) = Token::softhsm() else { return };
    let vault = token.vault(&token.uri(), &[]);
    let slow = token.behind("slow", C_ENCRYPT, "if (out) usleep(700000); return real(s, in, n, out, m);");
    token.env.push(("ENVELOPEFS_PKCS11_MODULE", text(&slow).to_owned()));
    let mount = token.mount(&vault, "");
    fs::write(mount.path("f"), pattern(5000, 1)).unwrap();
    mount.unmount();
}

/// An error that tells nothing, once, is not taken for a blob that does not open.
#[test]
fn a_vague_error_is_asked_about() {
    let Some(mut token) = Token::softhsm() else { return };
    let vault = token.vault(&token.uri(), &[]);
    let body = "static int calls; return calls++ ? real(s, in, n, out, m) : 5;";
    let moody = token.behind("moody", C_DECRYPT, body);
    token.env.push(("ENVELOPEFS_PKCS11_MODULE", text(&moody).to_owned()));
    run(&mut token.command(&["check", text(&vault.dir)]));
}

/// The root key of a KMS store in a token: vaults and commands open the store by it, a server does, and it can be moved
/// there and back. Another token does not open it, and a token that is away is told to be away.
#[test]
fn a_token_seals_a_kms_store() {
    if !can_mount() {
        return;
    }
    for mut token in [Token::ours(&[]), Token::softhsm()].into_iter().flatten() {
        let vault = Vault::unmade();
        let kms = ["--kms-dir", text(&vault.kms)];
        let command = |token: &Token, args: &[&str]| token.command(&[args, &kms].concat());
        token.new_key("other-key", "07");
        run(&mut command(&token, &["kms", "init", "--kms-key-uri", &token.uri()]));
        let root = fs::read_to_string(vault.kms.join("root.toml")).unwrap();
        assert!(root.contains("protection = \"token\"") && root.contains("mechanism=aes-gcm"), "{root}");
        assert!(!root.contains(token.pin), "{root}");
        run(&mut command(&token, &["kms", "create-key", "--alias", "alias/payroll"]));
        let uri = "kms:embedded/alias/payroll";
        run(&mut command(&token, &["init", text(&vault.dir), "--key-uri", uri]));
        let pin = format!("ENVELOPEFS_PIN={}", token.pin);
        let variables: Vec<String> = token.env().map(|(name, value)| format!("{name}={value}")).collect();
        let env: Vec<&str> = ["env", &pin].into_iter().chain(variables.iter().map(String::as_str)).collect();
        let mount = vault.mount_as(&env, &format!("kms-dir={}", vault.kms.display()));
        fs::write(mount.path("f"), pattern(5000, 1)).unwrap();
        assert!(helpers(mount.daemon_id()).is_empty(), "the helper stays though the store is open");
        mount.unmount();
        // By another key, by none, by a URI given instead.
        let listen = format!("unix:{}", token.dir.path().join("kms.sock").display());
        let serve = |uri: &str| command(&token, &["kms", "serve", "--listen", &listen, "--kms-key-uri", uri]);
        let why = refusal(&mut serve(&token.uri_of("other-key", "")));
        assert!(why.contains("did not wrap for the KMS store"), "{why}");
        let why = refusal(command(&token, &["kms", "list-keys"]).env("ENVELOPEFS_PIN", ""));
        assert!(why.contains("the PIN is empty"), "{why}");
        let mut server = serve(&token.uri());
        let mut server = server.stdout(Stdio::null()).spawn().unwrap();
        eventually("the server", || vault.kms.join("control.sock").exists());
        run(&mut command(&token, &["kms", "list-keys"]));
        let pid = rustix::process::Pid::from_child(&server);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert!(server.wait().unwrap().success());
        // There and back.
        run(&mut command(&token, &["kms", "passwd", "--key-file"]));
        run(envelopefs(["check", text(&vault.dir)]).args(kms));
        run(&mut command(&token, &["kms", "passwd", "--kms-key-uri", &token.uri_of("other-key", "")]));
        run(&mut command(&token, &["check", text(&vault.dir)]));
        if token.server.is_some() {
            token.stop();
            let output = command(&token, &["check", text(&vault.dir)]).output().unwrap();
            assert_eq!(output.status.code(), Some(7), "{}", said(&output));
            token.start();
        }
        token.generate(&["--keypairgen", "--key-type", "rsa:2048", "--label", "pair", "--id", "02"]);
        let why =
            refusal(&mut command(&token, &["kms", "passwd", "--kms-key-uri", &token.uri_of("pair", "")]));
        assert!(why.contains("take an AES key"), "{why}");
    }
}
