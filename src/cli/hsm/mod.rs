//! `envelopefs hsm`: runs an HSM, and manages one in CloudHSM CLI's words. `--json` prints what CloudHSM CLI prints.

mod args;
mod keys;
mod quorum;
mod quorum_args;
mod serve;

use std::error::Error;
use std::io;
use std::path::Path;

use serde_json::{Value, json};
use zeroize::Zeroizing;

pub(crate) use args::HsmArgs;
use args::{AuditCommand, ClusterCommand, HsmCommand, NewArgs, PasswordArgs, RootArgs, UserCommand};

use super::exit::Exit;
use crate::hsm::{Appliance, ClientTls, Cost, HsmError, Manager, Protection, session_file};

/// Where a passphrase comes from when no file is named: `None` where nobody can be asked.
type Secrets<'a> = &'a dyn Fn() -> io::Result<Option<Zeroizing<String>>>;
/// What a command answers.
type Answer = Result<Value, Box<dyn Error>>;

/// Name of the environment variable with a user's password.
const PASSWORD: &str = "ENVELOPEFS_HSM_PASSWORD";

/// Runs an `hsm` command.
pub(crate) fn run(args: &HsmArgs, secrets: Secrets<'_>) -> Result<(), Box<dyn Error>> {
    let answer = match &args.command {
        HsmCommand::Serve(args) => return serve::run(args, secrets),
        HsmCommand::Cluster { command: ClusterCommand::Create(new) } => create(new, secrets)?,
        HsmCommand::Restore { backup, password, new } => {
            let password = password.get("Password of the backup: ")?;
            let protection = new.protection(secrets)?;
            Appliance::restore(&new.dir, &protection, Cost::SLOW, backup, password.as_bytes())?;
            json!({ "message": format!("{}: HSM restored", new.dir.display()) })
        }
        command => {
            let file = session_file().ok_or("neither XDG_RUNTIME_DIR nor HOME is set")?;
            on_hsm(command, &args.manager(&file)?, &file)?
        }
    };
    show(args.json, &answer)
}

fn on_hsm(command: &HsmCommand, hsm: &Manager, file: &Path) -> Answer {
    let read = |path: &Path| std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()));
    Ok(match command {
        HsmCommand::Serve(_) | HsmCommand::Restore { .. } => Value::Null,
        HsmCommand::Cluster { command } => match command {
            ClusterCommand::Create(_) => Value::Null,
            ClusterCommand::Csr => hsm.csr()?["csr"].take(),
            ClusterCommand::Initialize { signed_cert, trust_anchor, approval } => {
                approval.give(hsm)?;
                hsm.initialize(read(signed_cert)?, read(trust_anchor)?)?
            }
            ClusterCommand::Activate { password } => {
                hsm.activate(&password.chosen("Password of the admin: ")?)?
            }
            ClusterCommand::Add { member, approval } => {
                approval.give(hsm)?;
                hsm.cluster_add(member)?
            }
            ClusterCommand::Remove { member, approval } => {
                approval.give(hsm)?;
                hsm.cluster_remove(member)?
            }
            ClusterCommand::HsmInfo => hsm.hsm_info()?,
        },
        HsmCommand::Login { user, password } => {
            let done = hsm.login(&user.username, user.role.into(), &password.get("Password: ")?)?;
            hsm.keep(file)?;
            done
        }
        HsmCommand::Logout => {
            let done = hsm.logout()?;
            // The appliance has forgotten the login; the file is worth nothing.
            let _ = std::fs::remove_file(file);
            done
        }
        HsmCommand::User { command } => users(command, hsm)?,
        HsmCommand::Key { command } => keys::run(command, hsm)?,
        HsmCommand::Quorum { command } => quorum::run(command, hsm)?,
        HsmCommand::Crypto { command } => quorum::crypto(command, hsm)?,
        HsmCommand::Backup { password } => hsm.backup(&password.chosen("Password of the backup: ")?)?,
        HsmCommand::Audit { command: AuditCommand::Verify } => hsm.audit_verify()?,
        HsmCommand::Health => hsm.health()?,
    })
}

fn users(command: &UserCommand, hsm: &Manager) -> Answer {
    Ok(match command {
        UserCommand::Create { user, password, approval } => {
            let password = password.chosen("Password of the new user: ")?;
            approval.give(hsm)?;
            hsm.user_create(&user.username, user.role.into(), &password)?
        }
        UserCommand::List => hsm.user_list()?,
        UserCommand::Delete { user, approval } => {
            approval.give(hsm)?;
            hsm.user_delete(&user.username, user.role.into())?
        }
        UserCommand::ChangeQuorum { command } => quorum::change(command, hsm)?,
        UserCommand::Replicate { username } => hsm.user_replicate(username)?,
        UserCommand::ChangePassword { user, password, old_password_file, approval } => {
            let old = old_password_file.as_deref().map(password_of).transpose()?;
            let new = password.chosen("New password: ")?;
            approval.give(hsm)?;
            hsm.user_change_password(
                &user.username,
                user.role.into(),
                old.as_ref().map(|o| o.as_str()),
                &new,
            )?
        }
    })
}

fn create(new: &NewArgs, secrets: Secrets<'_>) -> Answer {
    Appliance::create(&new.dir, &new.protection(secrets)?, Cost::SLOW)?;
    Ok(json!({ "message": format!("{}: new HSM, not yet activated", new.dir.display()) }))
}

/// Prints an answer: as JSON, or its lines.
fn show(as_json: bool, answer: &Value) -> Result<(), Box<dyn Error>> {
    let text = match answer {
        _ if as_json => serde_json::to_string_pretty(&json!({ "error_code": 0, "data": answer }))? + "\n",
        // A text of several lines, as a certificate, ends its last line itself.
        Value::String(text) if text.ends_with('\n') => text.clone(),
        Value::String(text) => format!("{text}\n"),
        Value::Object(map) if map.len() == 1 && map.contains_key("message") => {
            format!("{}\n", map["message"].as_str().unwrap_or_default())
        }
        other => serde_json::to_string_pretty(other)? + "\n",
    };
    let mut out = io::stdout().lock();
    match io::Write::write_all(&mut out, text.as_bytes()).and_then(|()| io::Write::flush(&mut out)) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(e.into()),
        _ => Ok(()),
    }
}

impl HsmArgs {
    fn manager(&self, kept: &Path) -> Result<Manager, Box<dyn Error>> {
        let addresses = self.hsm.as_deref().ok_or("name the HSM: --hsm unix:PATH, or ENVELOPEFS_HSM")?;
        let tls = match (&self.tls_ca, &self.tls_cert, &self.tls_key) {
            (Some(ca), Some(cert), Some(key)) => {
                Some(ClientTls { ca: ca.clone(), cert: cert.clone(), key: key.clone() })
            }
            _ => None,
        };
        let members: Result<Vec<_>, _> = addresses.split(',').map(|one| one.trim().parse()).collect();
        Ok(Manager::of_several(members?, tls.as_ref(), kept)?)
    }
}

impl NewArgs {
    fn protection(&self, secrets: Secrets<'_>) -> Result<Protection, Box<dyn Error>> {
        if self.key_file {
            return Ok(Protection::KeyFile);
        }
        let phrase = self.root.passphrase(secrets)?.ok_or_else(|| {
            HsmError::Denied(
                "a new HSM needs a protection: a passphrase (--passphrase-file, ENVELOPEFS_PASSPHRASE, or a terminal), \
                 or --key-file"
                    .into(),
            )
        })?;
        Ok(Protection::Passphrase(phrase))
    }
}

impl RootArgs {
    fn passphrase(&self, secrets: Secrets<'_>) -> io::Result<Option<Zeroizing<String>>> {
        match &self.passphrase_file {
            Some(path) => password_of(path).map(Some),
            None => secrets(),
        }
    }
}

impl PasswordArgs {
    /// From the file, the environment, or asked for.
    fn get(&self, prompt: &str) -> Result<Zeroizing<String>, Box<dyn Error>> {
        if let Some(path) = &self.password_file {
            return Ok(password_of(path)?);
        }
        if let Ok(text) = std::env::var(PASSWORD) {
            return Ok(Zeroizing::new(text));
        }
        let asked = super::secrets::prompt(prompt).map_err(|e| e.to_string())?;
        Ok(asked.ok_or_else(|| {
            HsmError::Denied(format!(
                "no terminal to ask for the password; give it with --password-file or {PASSWORD}"
            ))
        })?)
    }

    /// A new one: asked for twice.
    fn chosen(&self, prompt: &str) -> Result<Zeroizing<String>, Box<dyn Error>> {
        let first = self.get(prompt)?;
        let typed = self.password_file.is_none() && std::env::var_os(PASSWORD).is_none();
        if typed && self.get("Again: ")? != first {
            return Err(HsmError::Denied("the two passwords differ; nothing was changed".into()).into());
        }
        Ok(first)
    }
}

/// The first line of a file.
fn password_of(path: &Path) -> io::Result<Zeroizing<String>> {
    let named = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display()));
    std::fs::File::open(path).and_then(super::secrets::first_line).map_err(named)
}

/// Exit code of an HSM error.
pub(super) fn exit_of(e: &(dyn Error + 'static)) -> Exit {
    match e.downcast_ref::<HsmError>() {
        Some(HsmError::NoHsm(_) | HsmError::Unreachable { .. } | HsmError::Busy(_)) => Exit::KeyUnavailable,
        Some(HsmError::Permissions { .. } | HsmError::Denied(_)) => Exit::KeyDenied,
        Some(HsmError::Damaged { .. }) => Exit::Tampered,
        Some(HsmError::Exists(_)) => Exit::Unsuitable,
        Some(HsmError::Refused(_) | HsmError::Io { .. }) | None => Exit::Failure,
    }
}
