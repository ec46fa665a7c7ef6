//! `envelopefs kms`: the store of the embedded KMS, its server, and AWS's actions in the words of `aws kms`, done in the
//! store, by the server that holds it, or by a server at a URL. `--json` prints what AWS KMS answers.

mod actions;
mod args;
mod audit;
mod backend;
mod care;
mod date;
mod measure;
mod principal;
mod serve;
mod show;
mod simulate;
mod usage;

use std::error::Error;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

use serde_json::json;
use zeroize::Zeroizing;

use actions::Asked;
pub(crate) use args::KmsArgs;
use args::{Fixed, KmsCommand, read_passphrase};
use audit::AuditCommand;
use backend::{Backend, Remote};

use crate::cli::secrets::KeyArgs;
use crate::keys::token::RootKeys;
use crate::keys::{KeyError, Unlock};
use crate::kms::{self, Engine, KmsError, Protection, ProtectionKind, RootSecrets, Scope};

/// Where a passphrase comes from when no file is named: `None` where nobody can be asked.
type Secrets<'a> = &'a dyn Fn() -> io::Result<Option<Zeroizing<String>>>;

/// Runs a `kms` command. `secrets` asks for the passphrase where neither file nor descriptor gives it.
pub(crate) fn run(args: &KmsArgs, secrets: Secrets<'_>) -> Result<(), Box<dyn Error>> {
    let passphrase = || match args.given()? {
        Some(given) => Ok(Some(given)),
        None => secrets(),
    };
    match &args.command {
        KmsCommand::Action(asked) => {
            let asked = asked.as_ref().as_ref().map_err(|why| kms::KmsError::Validation(why.clone()))?;
            act(asked, &mut backend(args, &passphrase)?)
        }
        KmsCommand::Fixed(Fixed::Init { key_file, kms_key_uri }) => {
            let dir = dir(args)?;
            init(&dir, &new_protection(args, &dir, *key_file, kms_key_uri.as_deref(), secrets)?)
        }
        KmsCommand::Fixed(Fixed::Passwd { key_file, kms_key_uri, new_passphrase_file }) => {
            let dir = dir(args)?;
            let new = match (new_passphrase_file, kms_key_uri) {
                _ if *key_file => Protection::KeyFile,
                (Some(path), _) => Protection::Passphrase(read_passphrase(path)?),
                (None, Some(uri)) => by_token(&dir, uri)?,
                (None, None) => Protection::Passphrase(new_passphrase()?),
            };
            passwd(&dir, &new, &passphrase)
        }
        KmsCommand::Fixed(Fixed::Serve(serve)) => {
            let dir = dir(args)?;
            serve::run(serve, || open(&dir, &passphrase, serve.kms_key_uri.as_deref()))
        }
        KmsCommand::Fixed(Fixed::Backup { to, backup_passphrase_file }) => {
            care::backup(to, backup_passphrase_file.as_deref(), &mut backend(args, &passphrase)?)
        }
        KmsCommand::Fixed(Fixed::Restore { from, backup_passphrase_file, key_file, kms_key_uri }) => {
            let dir = dir(args)?;
            let protection = new_protection(args, &dir, *key_file, kms_key_uri.as_deref(), secrets)?;
            care::restore(from, backup_passphrase_file.as_deref(), &dir, &protection)
        }
        KmsCommand::Fixed(Fixed::Check { output }) => {
            care::check(output.json, &mut backend(args, &passphrase)?)
        }
        KmsCommand::Fixed(Fixed::Measure(args_of)) => measure::run(args_of, backend(args, &passphrase)?),
        KmsCommand::Fixed(Fixed::SimulatePolicy(simulate)) => {
            simulate::run(simulate, args.region.as_deref(), &mut backend(args, &passphrase)?)
        }
        KmsCommand::Fixed(Fixed::Usage(of)) => usage::run(of, &mut backend(args, &passphrase)?),
        KmsCommand::Fixed(Fixed::Audit(of)) => match &of.command {
            AuditCommand::Verify { output } => {
                audit::verify(output, &dir(args)?, &mut backend(args, &passphrase)?)
            }
            AuditCommand::Query(query) => audit::query(query, &dir(args)?),
        },
        KmsCommand::Fixed(Fixed::Principal(principal)) => {
            principal::run(principal, &mut backend(args, &passphrase)?)
        }
    }
}

fn dir(args: &KmsArgs) -> Result<PathBuf, Box<dyn Error>> {
    let dir = args.kms_dir.clone().or_else(kms::default_dir).ok_or_else(|| {
        KeyError::Unreachable(
            "neither XDG_DATA_HOME nor HOME is set: name the KMS store with --kms-dir".into(),
        )
    })?;
    Ok(dir)
}

/// Where actions are done: by the server at a URL, by the server that holds the store, or in the store.
fn backend(args: &KmsArgs, passphrase: Secrets<'_>) -> Result<Backend, Box<dyn Error>> {
    let env = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
    let region = args.region.clone().or_else(|| env("AWS_REGION")).or_else(|| env("AWS_DEFAULT_REGION"));
    if let Some(url) = &args.endpoint_url {
        let need = |name: &str| {
            env(name)
                .ok_or_else(|| KeyError::Denied(format!("{name} is not set: requests to {url} are signed")))
        };
        return Ok(Backend::Url(Remote {
            url: url.clone(),
            region: region.unwrap_or_else(|| Scope::home().region),
            access_key: need("AWS_ACCESS_KEY_ID")?,
            secret: Zeroizing::new(need("AWS_SECRET_ACCESS_KEY")?),
            ca_bundle: args.ca_bundle.clone().or_else(|| env("AWS_CA_BUNDLE").map(PathBuf::from)),
        }));
    }
    let dir = dir(args)?;
    // The region of the environment is AWS's; the store's own keys are in its home region.
    let region = args.region.clone().unwrap_or_else(|| Scope::home().region);
    let scope = Scope { region, ..Scope::home() };
    if let Some(socket) = backend::control(&dir) {
        return Ok(Backend::Control(socket, scope));
    }
    Ok(Backend::Store(Box::new(open(&dir, passphrase, None)?), scope))
}

/// Does an action and shows its answer.
fn act(asked: &Asked, backend: &mut Backend) -> Result<(), Box<dyn Error>> {
    let mut input = asked.input.clone();
    if let Some(member) = asked.position {
        // AWS takes no alias in most actions; a person may give one.
        let name = input[member].as_str().unwrap_or_default();
        if name.starts_with("alias/") {
            let found = backend.call("DescribeKey", json!({ "KeyId": name }))?;
            input[member] = found["KeyMetadata"]["KeyId"].clone();
        }
    }
    let answer = backend.call(asked.action, input)?;
    if let Some(alias) = &asked.alias {
        let key = answer["KeyMetadata"]["KeyId"].clone();
        backend.call("CreateAlias", json!({ "AliasName": alias, "TargetKeyId": key })).map_err(|e| {
            format!("key {} was made, its alias was not: {e}", key.as_str().unwrap_or_default())
        })?;
    }
    if asked.json {
        return show::json(&answer);
    }
    show::people(asked.action, &answer, backend)
}

fn init(dir: &Path, protection: &Protection) -> Result<(), Box<dyn Error>> {
    Engine::create(dir, protection)?;
    print(&format!("{}: new KMS store, {}\n", dir.display(), protected_by(kms::protection(dir)?)))
}

/// What a new store is to be protected by.
fn new_protection(
    args: &KmsArgs,
    dir: &Path,
    key_file: bool,
    uri: Option<&str>,
    secrets: Secrets<'_>,
) -> Result<Protection, Box<dyn Error>> {
    match (uri, key_file) {
        (Some(uri), _) => by_token(dir, uri),
        (None, true) => Ok(Protection::KeyFile),
        (None, false) => Ok(Protection::Passphrase(match args.given()? {
            Some(given) => given,
            None => asked_twice(secrets)?,
        })),
    }
}

/// The key of a token, looked at and tried out.
fn by_token(dir: &Path, uri: &str) -> Result<Protection, Box<dyn Error>> {
    Ok(Protection::Token(RootKeys::new(with_pin(Some(uri))?, dir, None).choose(uri)?))
}

/// What opens a token: the PIN, where its URI names no file for it.
fn with_pin(uri: Option<&str>) -> Result<Unlock, Box<dyn Error>> {
    let uris: Vec<_> = uri.into_iter().collect();
    let pin = KeyArgs::default().pin_for(&uris).map_err(|e| KeyError::Denied(e.to_string()))?;
    Ok(Unlock { pin, ..Unlock::default() })
}

/// Asks twice: a mistyped passphrase would show only when the first vault does not open.
fn asked_twice(secrets: Secrets<'_>) -> Result<Zeroizing<String>, Box<dyn Error>> {
    match (secrets()?, secrets()?) {
        (Some(first), Some(again)) if first == again => Ok(first),
        (Some(_), Some(_)) => denied("the two passphrases differ; nothing was made"),
        _ => denied(
            "a new KMS store needs a protection: a passphrase (--passphrase-file, --passphrase-fd, \
             ENVELOPEFS_PASSPHRASE, or a terminal), or --key-file",
        ),
    }
}

fn passwd(dir: &Path, new: &Protection, old: Secrets<'_>) -> Result<(), Box<dyn Error>> {
    with_secrets(dir, old, None, |by| kms::reprotect(dir, by, new))?;
    print(&format!("{}: {}\n", dir.display(), protected_by(kms::protection(dir)?)))
}

fn new_passphrase() -> Result<Zeroizing<String>, Box<dyn Error>> {
    if !io::stdin().is_terminal() {
        return denied("no terminal to ask for the new passphrase; give it with --new-passphrase-file");
    }
    let first = Zeroizing::new(rpassword::prompt_password("New passphrase for the KMS store: ")?);
    let again = Zeroizing::new(rpassword::prompt_password("Again: ")?);
    if first == again { Ok(first) } else { denied("the two passphrases differ; nothing was changed") }
}

/// Opens a store; by the key of another URI than the one it names, where one is given.
fn open(dir: &Path, passphrase: Secrets<'_>, instead: Option<&str>) -> Result<Engine, Box<dyn Error>> {
    Ok(with_secrets(dir, passphrase, instead, |by| Engine::open_by(dir, by))?.watched()?)
}

/// Asks for what the store's protection needs, and for nothing else.
fn with_secrets<T>(
    dir: &Path,
    passphrase: Secrets<'_>,
    instead: Option<&str>,
    act: impl FnOnce(&RootSecrets<'_>) -> Result<T, KmsError>,
) -> Result<T, Box<dyn Error>> {
    let kind = kms::protection(dir)?;
    if instead.is_some() && kind != ProtectionKind::Token {
        return Err(KmsError::Validation(format!(
            "{}: {}, not by a token",
            dir.display(),
            protected_by(kind)
        ))
        .into());
    }
    let phrase = match kind {
        ProtectionKind::Passphrase => passphrase()?,
        ProtectionKind::KeyFile | ProtectionKind::Token => None,
    };
    let named = kms::root_uri(dir)?;
    let unlock = with_pin(instead.or(named.as_deref()))?;
    let tokens = RootKeys::new(unlock, dir, instead.map(str::to_owned));
    let by = RootSecrets { passphrase: phrase.as_ref().map(|p| p.as_str()), tokens: Some(&tokens) };
    Ok(act(&by)?)
}

/// Prints; a reader that has gone (`| head`) is no failure.
fn print(text: &str) -> Result<(), Box<dyn Error>> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(e.into()),
        _ => Ok(()),
    }
}

fn protected_by(kind: ProtectionKind) -> &'static str {
    match kind {
        ProtectionKind::Passphrase => "its root key is sealed under a passphrase (Argon2id)",
        ProtectionKind::KeyFile => "its root key is sealed under root.key beside it (mode 0600)",
        ProtectionKind::Token => "its root key is sealed by a key in a PKCS#11 token",
    }
}

fn denied<T>(why: &str) -> Result<T, Box<dyn Error>> {
    Err(KeyError::Denied(why.to_owned()).into())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        kms: KmsArgs,
    }

    /// Runs one command line on the store in `dir`; `asked` is what a prompt would give.
    fn kms(dir: &Path, line: &str, asked: Option<&str>) -> Result<(), Box<dyn Error>> {
        let dir = dir.to_str().expect("temporary paths are UTF-8");
        let words = ["kms", "--kms-dir", dir].into_iter().chain(line.split(' '));
        let parsed = Line::try_parse_from(words)?;
        run(&parsed.kms, &|| Ok(asked.map(|p| Zeroizing::new(p.to_owned()))))
    }

    /// Every command does what it says, on a store with a key file and on one with a passphrase.
    #[test]
    fn every_command_works() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().join("kms");
        kms(&dir, "init --key-file", None).unwrap();
        for line in [
            "create-key --alias alias/a --description payroll",
            "create-key --json",
            "create-alias alias/b alias/a",
            "rotate-key alias/b",
            "describe-key alias/a --json",
            "list-keys",
            "list-keys --json",
            "list-aliases --json",
            "list-key-rotations alias/a",
            "disable-key alias/a",
            "enable-key alias/a",
        ] {
            kms(&dir, line, None).unwrap_or_else(|e| panic!("{line}: {e}"));
        }
        let engine = Engine::open(&dir, None).unwrap();
        assert_eq!(engine.list_keys().unwrap().len(), 2);
        let key = engine.describe_key("alias/b").unwrap();
        assert_eq!((key.version, key.description.as_str(), key.enabled), (2, "payroll", true));
        let missing = kms(&dir, "describe-key alias/none", None).unwrap_err();
        assert!(matches!(missing.downcast_ref(), Some(KmsError::NotFound(_))), "{missing}");
        let strict = kms(&dir, "enable-key --key-id alias/a", None).unwrap_err();
        assert!(strict.to_string().contains("Invalid keyId"), "{strict}");
    }

    /// A passphrase comes from a file or is asked for; it is not asked for where none is needed.
    #[test]
    fn passphrases_come_from_files_and_prompts() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().join("kms");
        let file = |name: &str, text: &str| {
            let path = tmp.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        let (old, new) = (file("old", "one\nrest\n"), file("new", "two"));
        assert!(kms(&dir, "init", None).is_err());
        assert!(!dir.exists());
        kms(&dir, &format!("init --passphrase-file {old}"), None).unwrap();
        kms(&dir, "list-keys", Some("one")).unwrap();
        let none = kms(&dir, "list-keys", None).unwrap_err();
        assert!(matches!(none.downcast_ref(), Some(KmsError::Denied(_))), "{none}");
        kms(&dir, &format!("passwd --passphrase-file {old} --new-passphrase-file {new}"), None).unwrap();
        assert!(kms(&dir, "list-keys", Some("one")).is_err());
        kms(&dir, "passwd --key-file", Some("two")).unwrap();
        kms(&dir, "list-keys", None).unwrap();
    }

    /// Two different answers to the two prompts for a new passphrase make no store.
    #[test]
    fn a_mistyped_passphrase_makes_nothing() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().join("kms");
        let count = std::cell::Cell::new(0);
        let line = Line::try_parse_from(["kms", "--kms-dir", dir.to_str().unwrap(), "init"]).unwrap();
        let typed = || {
            count.set(count.get() + 1);
            Ok(Some(Zeroizing::new(format!("try {}", count.get()))))
        };
        assert!(run(&line.kms, &typed).unwrap_err().to_string().contains("differ"));
        assert!(!dir.exists());
    }
}
