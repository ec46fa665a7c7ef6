//! `envelopefs kms`: the store of the embedded KMS, its keys and aliases. `--json` prints what AWS KMS answers.

mod args;
mod date;

use std::error::Error;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::Path;

use serde_json::json;
use zeroize::Zeroizing;

pub(crate) use args::KmsArgs;
use args::{KmsCommand, Output, read_passphrase};
use date::date;

use crate::keys::KeyError;
use crate::kms::{self, Engine, KeyEntry, KeyMetadata, Protection, ProtectionKind, RotationEntry};

/// Where a passphrase comes from when no file is named: `None` where nobody can be asked.
type Secrets<'a> = &'a dyn Fn() -> io::Result<Option<Zeroizing<String>>>;

/// Runs a `kms` command. `secrets` asks for the passphrase where neither file nor descriptor gives it.
pub(crate) fn run(args: &KmsArgs, secrets: Secrets<'_>) -> Result<(), Box<dyn Error>> {
    let dir = args.kms_dir.clone().or_else(kms::default_dir).ok_or_else(|| {
        KeyError::Unreachable(
            "neither XDG_DATA_HOME nor HOME is set: name the KMS store with --kms-dir".into(),
        )
    })?;
    let passphrase = || match args.given()? {
        Some(given) => Ok(Some(given)),
        None => secrets(),
    };
    match &args.command {
        KmsCommand::Init { key_file: true } => init(&dir, &Protection::KeyFile),
        KmsCommand::Init { key_file: false } => {
            let phrase = match args.given()? {
                Some(given) => given,
                None => asked_twice(secrets)?,
            };
            init(&dir, &Protection::Passphrase(phrase))
        }
        KmsCommand::Passwd { key_file, new_passphrase_file } => {
            passwd(&dir, *key_file, new_passphrase_file.as_deref(), &passphrase)
        }
        command => on_keys(command, &open(&dir, &passphrase)?),
    }
}

fn on_keys(command: &KmsCommand, kms: &Engine) -> Result<(), Box<dyn Error>> {
    match command {
        KmsCommand::Init { .. } | KmsCommand::Passwd { .. } => Ok(()),
        KmsCommand::CreateKey { description, alias, output } => {
            create_key(kms, description, alias.as_deref(), output)
        }
        KmsCommand::ListKeys { output } => list_keys(kms, output),
        KmsCommand::DescribeKey { key, output } => {
            let key = kms.describe_key(&key.name)?;
            show(output, &json!({ "KeyMetadata": key }), &describe(&key))
        }
        KmsCommand::RotateKey { key, output } => {
            let key = kms.rotate_key_on_demand(&key.name)?;
            let text = format!("{}  now at version {}\n", key.key_id, key.version);
            show(output, &json!({ "KeyId": key.key_id }), &text)
        }
        KmsCommand::ListKeyRotations { key, output } => {
            let all = kms.list_key_rotations(&key.name)?;
            let line = |e: &RotationEntry| {
                format!("{}  {}  {}\n", date(e.rotation_date), e.rotation_type, e.key_material_id)
            };
            let text: String = all.iter().map(line).collect();
            show(output, &json!({ "Rotations": all, "Truncated": false }), &text)
        }
        KmsCommand::CreateAlias { alias, key } => Ok(kms.create_alias(alias, &key.name)?),
        KmsCommand::ListAliases { output } => {
            let all = kms.list_aliases()?;
            let text: String =
                all.iter().map(|a| format!("{}  {}\n", a.target_key_id, a.alias_name)).collect();
            show(output, &json!({ "Aliases": all, "Truncated": false }), &text)
        }
        KmsCommand::EnableKey { key } => Ok(kms.enable_key(&key.name)?),
        KmsCommand::DisableKey { key } => Ok(kms.disable_key(&key.name)?),
    }
}

fn init(dir: &Path, protection: &Protection) -> Result<(), Box<dyn Error>> {
    Engine::create(dir, protection)?;
    print(&format!("{}: new KMS store, {}\n", dir.display(), protected_by(kms::protection(dir)?)))
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

fn passwd(dir: &Path, key_file: bool, new: Option<&Path>, old: Secrets<'_>) -> Result<(), Box<dyn Error>> {
    let old = match kms::protection(dir)? {
        ProtectionKind::Passphrase => old()?,
        ProtectionKind::KeyFile => None,
    };
    let protection = match new {
        _ if key_file => Protection::KeyFile,
        Some(path) => Protection::Passphrase(read_passphrase(path)?),
        None => Protection::Passphrase(new_passphrase()?),
    };
    kms::reprotect(dir, old.as_ref().map(|p| p.as_str()), &protection)?;
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

fn open(dir: &Path, passphrase: Secrets<'_>) -> Result<Engine, Box<dyn Error>> {
    let passphrase = match kms::protection(dir)? {
        ProtectionKind::Passphrase => passphrase()?,
        ProtectionKind::KeyFile => None,
    };
    Ok(Engine::open(dir, passphrase.as_ref().map(|p| p.as_str()))?)
}

fn create_key(kms: &Engine, text: &str, alias: Option<&str>, output: &Output) -> Result<(), Box<dyn Error>> {
    let key = kms.create_key(text)?;
    if let Some(alias) = alias {
        kms.create_alias(alias, &key.key_id)
            .map_err(|e| format!("key {} was made, its alias was not: {e}", key.key_id))?;
    }
    show(output, &json!({ "KeyMetadata": key }), &format!("{}\n", key.key_id))
}

fn list_keys(kms: &Engine, output: &Output) -> Result<(), Box<dyn Error>> {
    let keys = kms.list_keys()?;
    let aliases = kms.list_aliases()?;
    let line = |key: &KeyEntry| {
        let names = aliases.iter().filter(|a| a.target_key_id == key.key_id).map(|a| a.alias_name.as_str());
        let names: Vec<_> = names.collect();
        format!("{}  {}\n", key.key_id, names.join(" "))
    };
    let text: String = keys.iter().map(line).collect();
    show(output, &json!({ "Keys": keys, "Truncated": false }), &text)
}

fn describe(key: &KeyMetadata) -> String {
    [
        ("key id", key.key_id.as_str()),
        ("arn", &key.arn),
        ("description", &key.description),
        ("state", key.key_state),
        ("created", &date(key.creation_date)),
        ("version", &key.version.to_string()),
        ("material", &key.current_key_material_id),
    ]
    .iter()
    .map(|(name, value)| format!("{name:<13}{value}\n"))
    .collect()
}

fn show(output: &Output, json: &serde_json::Value, people: &str) -> Result<(), Box<dyn Error>> {
    if output.json { print(&(serde_json::to_string_pretty(json)? + "\n")) } else { print(people) }
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
    }
}

fn denied<T>(why: &str) -> Result<T, Box<dyn Error>> {
    Err(KeyError::Denied(why.to_owned()).into())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::kms::KmsError;

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
