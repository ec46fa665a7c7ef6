//! The management interface: CloudHSM CLI's commands, as JSON. Each is checked against the permission table.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use cryptoki_sys::*;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Ck;
use super::appliance::{App, Appliance, Life, Login};
use super::attrs::Attrs;
use super::lc::Md;
use super::object::Object;
use super::record;
use super::session::check_new_password;
use super::users::{MAX_USERS, Permission, Role, User};
use super::wire::Bytes;

/// How long a command line's login lives without being used.
const KEEP_LOGIN: std::time::Duration = std::time::Duration::from_secs(600);

/// A command.
#[derive(Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum Command {
    /// `cluster hsm-info`.
    HsmInfo,
    /// How the HSM is.
    Health,
    /// The certificate signing request of a new HSM.
    Csr,
    /// `cluster initialize`: PEM texts.
    Initialize { signed: String, ca: String },
    /// `cluster activate`.
    Activate { password: Zeroized },
    /// `login`: lives on for the next command lines.
    Login { username: String, role: Role, password: Zeroized },
    /// `logout`.
    Logout,
    /// `user list`.
    UserList,
    /// `user create`.
    UserCreate { username: String, role: Role, password: Zeroized },
    /// `user delete`.
    UserDelete { username: String, role: Role },
    /// `user change-password`; of oneself with the old one, of others by an admin.
    UserChangePassword { username: String, role: Role, old: Option<Zeroized>, password: Zeroized },
    /// `key list`.
    KeyList,
    /// `key share`, `key unshare`.
    KeyShare { handle: u64, username: String, share: bool },
    /// Digests of the token objects, to compare members.
    SyncStatus,
    /// A token object, sealed for members of the same cluster.
    ExtractMasked { handle: u64 },
    /// Takes such an object in.
    InsertMasked { masked: String },
    /// Writes a backup into the HSM's directory.
    Backup { password: Zeroized },
    /// `audit verify`.
    AuditVerify,
}

/// A password in a command: wiped, and not printed.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Zeroized(pub(crate) String);

impl Drop for Zeroized {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.0);
    }
}

/// Why a command was refused: for people.
pub(super) struct Refusal(pub(super) String);

impl From<CK_RV> for Refusal {
    fn from(rv: CK_RV) -> Self {
        let why = match rv {
            CKR_PIN_INCORRECT => "wrong user name or password; five wrong passwords lock the account",
            CKR_PIN_LOCKED => {
                "the account is locked after five wrong passwords; an admin unlocks it: envelopefs hsm user change-password"
            }
            CKR_PIN_LEN_RANGE => "a password has 8 to 128 characters",
            CKR_PIN_INVALID => "a user name has 1 to 31 characters: letters, digits, and . _ - @",
            CKR_USER_TYPE_INVALID => "the user has another role",
            CKR_USER_NOT_LOGGED_IN => "this needs a login with another role (envelopefs hsm login)",
            CKR_OBJECT_HANDLE_INVALID | CKR_KEY_HANDLE_INVALID => "no such key, or it is not yours to see",
            CKR_ACTION_PROHIBITED => "only the key's owner may do this",
            CKR_DEVICE_MEMORY => "the HSM is full",
            CKR_DEVICE_ERROR => "the HSM's disk failed; see its log",
            other => return Self(format!("refused with {other:#x}")),
        };
        Self(why.into())
    }
}

fn refuse<T>(why: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal(why.into()))
}

impl Appliance {
    /// Runs a command; the answer is `{"error_code":0,"data":...}` as CloudHSM CLI prints it.
    pub(super) fn admin(&self, app: &Arc<App>, text: &[u8]) -> Ck<Bytes> {
        let answer = match serde_json::from_slice::<Command>(text) {
            Err(e) => json!({ "error_code": 1, "data": format!("no such command: {e}") }),
            Ok(command) => match self.command(app, command) {
                Ok(data) => json!({ "error_code": 0, "data": data }),
                Err(Refusal(why)) => json!({ "error_code": 1, "data": why }),
            },
        };
        Ok(record::json(&answer))
    }

    fn command(&self, app: &Arc<App>, command: Command) -> Result<Value, Refusal> {
        match command {
            Command::HsmInfo => Ok(self.info()),
            Command::Health => Ok(self.health()),
            Command::Csr => self.csr(),
            Command::Initialize { signed, ca } => {
                self.logged(app, "CN_INIT_CLUSTER", "", self.initialize(&signed, &ca))
            }
            Command::Activate { password } => {
                self.logged(app, "CN_ACTIVATE", "", self.activate(password.0.as_bytes()))
            }
            Command::Login { username, role, password } => self.admin_login(app, &username, role, &password),
            Command::Logout => {
                *app.login.write() = None;
                *app.kept_until.lock() = None;
                Ok(json!({ "message": "Logout successful" }))
            }
            Command::UserList => self.user_list(app),
            Command::UserCreate { username, role, password } => {
                Self::need(app, Permission::ManageUsers)?;
                let result = self.user_create(&username, role, password.0.as_bytes());
                self.logged(app, "CN_CREATE_USER", self.known(&username.to_lowercase()), result)
            }
            Command::UserDelete { username, role } => {
                Self::need(app, Permission::ManageUsers)?;
                let name = username.to_lowercase();
                // Before it is gone.
                let known = self.known(&name);
                let result = self.user_delete(&username, role);
                self.logged(app, "CN_DELETE_USER", known, result)
            }
            Command::UserChangePassword { username, role, old, password } => {
                let result = self.user_password(app, &username, role, old.as_ref(), password.0.as_bytes());
                self.logged(app, "CN_CHANGE_PSWD", self.known(&username.to_lowercase()), result)
            }
            Command::KeyList => self.key_list(app),
            Command::KeyShare { handle, username, share } => {
                let result = self.key_share(app, handle, &username, share);
                let opcode = if share { "CN_SHARE_OBJECT" } else { "CN_UNSHARE_OBJECT" };
                let name = username.to_lowercase();
                self.logged(app, opcode, &format!("{handle:#x} {}", self.known(&name)), result)
            }
            Command::SyncStatus => {
                Self::need(app, Permission::SyncStatus)?;
                Ok(self.digests())
            }
            Command::ExtractMasked { handle } => {
                let result = self.extract_masked(app, handle);
                self.logged(app, "CN_EXTRACT_MASKED_OBJECT_USER", &format!("{handle:#x}"), result)
            }
            Command::InsertMasked { masked } => {
                let result = self.insert_masked(app, &masked);
                self.logged(app, "CN_INSERT_MASKED_OBJECT_USER", "", result)
            }
            Command::Backup { password } => {
                Self::need(app, Permission::ManageUsers)?;
                let result = self.backup(password.0.as_bytes());
                self.logged(app, "CN_BACKUP", "", result)
            }
            Command::AuditVerify => {
                Self::need(app, Permission::SyncStatus)?;
                self.audit_verify()
            }
        }
    }

    fn logged(
        &self,
        app: &App,
        opcode: &str,
        object: &str,
        result: Result<Value, Refusal>,
    ) -> Result<Value, Refusal> {
        self.log(app, 0, opcode, object, &result.as_ref().map(|_| ()).map_err(|_| CKR_FUNCTION_REJECTED));
        result
    }

    fn info(&self) -> Value {
        let state = self.state.read();
        json!({
            "hsms": [{
                "vendor": "EnvelopeFS",
                "model": "envelopefs-hsm",
                "serial-number": state.meta.serial,
                "firmware-version-major": env!("CARGO_PKG_VERSION_MAJOR"),
                "firmware-version-minor": env!("CARGO_PKG_VERSION_MINOR"),
                "state": state.meta.life,
                "cluster": state.meta.cluster,
                "label": state.meta.label,
                "fips-state": "0 [not certified]",
            }]
        })
    }

    fn health(&self) -> Value {
        let state = self.state.read();
        let locked: Vec<_> = state.users.values().filter(|u| u.is_locked()).map(|u| &u.name).collect();
        let sessions: usize = self.apps.lock().values().map(|a| a.sessions.lock().len()).sum();
        json!({
            "state": state.meta.life,
            "token-keys": state.token_objects,
            "session-keys": state.objects.len() - state.token_objects,
            "users": state.users.len(),
            "locked-users": locked,
            "applications": self.apps.lock().len(),
            "sessions": sessions,
            "audit-lines": self.audit.lock().head.lines,
            "starts": state.meta.reboot,
        })
    }

    fn activate(&self, password: &[u8]) -> Result<Value, Refusal> {
        if self.state.read().meta.life == Life::Active {
            return refuse("the HSM is active already; log in as an admin");
        }
        let name = self.config.default_admin.clone();
        check_new_password(&name, password)?;
        let admin = User::new(&name, Role::Admin, Some(password), self.config.login_cost);
        self.change_user(&name, |_, _| Ok((Some(admin), ())))?;
        let unit = User::new("app_user", Role::ApplianceUser, None, self.config.login_cost);
        self.change_user("app_user", |old, _| Ok((Some(old.unwrap_or(unit)), ())))?;
        self.change_meta(|meta| {
            meta.life = Life::Active;
            if meta.label.is_empty() {
                meta.label = "hsm1".into();
            }
        })?;
        Ok(json!({ "message": "Cluster activation successful", "username": name }))
    }

    fn admin_login(
        &self,
        app: &App,
        username: &str,
        role: Role,
        password: &Zeroized,
    ) -> Result<Value, Refusal> {
        let name = username.to_lowercase();
        let result = self
            .check_password(&name, password.0.as_bytes())
            .and_then(|found| if found == role { Ok(()) } else { Err(CKR_USER_TYPE_INVALID) });
        self.log(app, 0, "CN_LOGIN", self.known(&name), &result);
        result?;
        *app.login.write() = Some(Login { name: name.clone(), role });
        *app.kept_until.lock() = Some(std::time::Instant::now() + KEEP_LOGIN);
        Ok(json!({ "username": name, "role": role.name() }))
    }

    fn user_list(&self, app: &App) -> Result<Value, Refusal> {
        if app.role().is_none() {
            return Err(CKR_USER_NOT_LOGGED_IN.into());
        }
        let state = self.state.read();
        let users: Vec<_> = state
            .users
            .values()
            .map(|u| {
                json!({
                    "username": u.name,
                    "role": u.role.name(),
                    "locked": u.is_locked().to_string(),
                    "mfa": [],
                    "quorum": if u.approval_key.is_some() { json!([{ "strategy": "token-sign", "status": "enabled" }]) } else { json!([]) },
                    "cluster-coverage": "full",
                })
            })
            .collect();
        Ok(json!({ "users": users }))
    }

    fn user_create(&self, username: &str, role: Role, password: &[u8]) -> Result<Value, Refusal> {
        if !matches!(role, Role::Admin | Role::CryptoUser) {
            return refuse("a new user is an admin or a crypto-user");
        }
        let name = username.to_lowercase();
        check_new_password(&name, password)?;
        let user = User::new(&name, role, Some(password), self.config.login_cost);
        let taken = self.change_user(&name, |old, count| match old {
            Some(old) => Ok((Some(old), true)),
            None if count >= MAX_USERS => Err(CKR_DEVICE_MEMORY),
            None => Ok((Some(user), false)),
        })?;
        if taken {
            return refuse(format!("user {name} exists"));
        }
        Ok(json!({ "username": name, "role": role.name() }))
    }

    fn user_delete(&self, username: &str, role: Role) -> Result<Value, Refusal> {
        let name = username.to_lowercase();
        let admins = self.state.read().users.values().filter(|u| u.role == Role::Admin).count();
        if role == Role::Admin && admins < 2 {
            return refuse("the last admin cannot be deleted");
        }
        let owned = {
            let state = self.state.read();
            state.objects.values().filter(|o| o.owner == name && o.is_token()).count()
        };
        if owned > 0 && role == Role::CryptoUser {
            return refuse(format!(
                "{name} owns {owned} keys; they would belong to nobody. Delete or hand over them first"
            ));
        }
        let gone = self.change_user(&name, |old, _| match old {
            Some(old) if old.role == role && role != Role::ApplianceUser => Ok((None, true)),
            old => Ok((old, false)),
        })?;
        if !gone {
            return refuse(format!("there is no {} named {name}", role.name()));
        }
        self.expel(&name);
        Ok(json!({ "username": name, "role": role.name() }))
    }

    fn user_password(
        &self,
        app: &App,
        username: &str,
        role: Role,
        old: Option<&Zeroized>,
        new: &[u8],
    ) -> Result<Value, Refusal> {
        let name = username.to_lowercase();
        let own = app.login.read().as_ref().is_some_and(|l| l.name == name);
        let done = json!({ "username": name, "role": role.name() });
        check_new_password(&name, new)?;
        if own && !Permission::ChangeAnyPassword.of(app.role()) {
            let old = old.ok_or_else(|| Refusal("the old password is needed to change one's own".into()))?;
            self.change_own(&name, old.0.as_bytes(), new)?;
            return Ok(done);
        }
        Self::need(app, Permission::ChangeAnyPassword)?;
        let fresh = User::new(&name, role, Some(new), self.config.login_cost);
        let found = self.change_user(&name, |user, _| match user {
            Some(mut user) if user.role == role => {
                user.verifier = fresh.verifier;
                user.failures = 0;
                user.version += 1;
                Ok((Some(user), true))
            }
            other => Ok((other, false)),
        })?;
        if found { Ok(done) } else { refuse(format!("there is no {} named {name}", role.name())) }
    }

    fn key_list(&self, app: &App) -> Result<Value, Refusal> {
        Self::need(app, Permission::KeyManagement)?;
        let handles = {
            let state = self.state.read();
            let mut all: Vec<_> =
                state.objects.values().filter(|o| o.is_token() && o.attrs.is_key()).cloned().collect();
            all.sort_by_key(|o| o.handle);
            all
        };
        let mine: Vec<_> =
            handles.iter().filter(|o| self.object(app, o.handle).is_ok()).map(|o| describe(o)).collect();
        Ok(json!({ "total_key_count": mine.len(), "returned_key_count": mine.len(), "matched_keys": mine }))
    }

    fn key_share(&self, app: &App, handle: u64, username: &str, share: bool) -> Result<Value, Refusal> {
        let object = self.object(app, handle)?;
        Self::need_owner(app, &object)?;
        let name = username.to_lowercase();
        if !self.state.read().users.get(&name).is_some_and(|u| u.role == Role::CryptoUser) {
            return refuse(format!("there is no crypto-user named {name}"));
        }
        if !object.is_token() || name == object.owner {
            return refuse("only token keys are shared, and with others than their owner");
        }
        let mut shared = object.shared.clone();
        let changed = if share { shared.insert(name) } else { shared.remove(&name) };
        if changed {
            let new =
                Object::with(handle, object.owner.clone(), shared, None, object.quorum, object.attrs.clone());
            self.insert(vec![Arc::new(new)])?;
        }
        Ok(json!({ "message": if share { "Key shared successfully" } else { "Key unshared successfully" } }))
    }

    fn digests(&self) -> Value {
        let state = self.state.read();
        let digest = |o: &Object| super::root::hex(&Md::Sha256.digest(&record::encode(o)));
        let all: std::collections::BTreeMap<String, String> = state
            .objects
            .values()
            .filter(|o| o.is_token())
            .map(|o| (format!("{:#x}", o.handle), digest(o)))
            .collect();
        json!({ "keys": all })
    }

    fn extract_masked(&self, app: &App, handle: u64) -> Result<Value, Refusal> {
        Self::need(app, Permission::MaskedObjects)?;
        let object = self.state.read().objects.get(&handle).cloned().filter(|o| o.is_token());
        let object = object.ok_or(CKR_OBJECT_HANDLE_INVALID)?;
        // A crypto user clones his own keys; officers and the appliance user synchronise all.
        if app.role() == Some(Role::CryptoUser) {
            self.object(app, handle)?;
        }
        let sealed = self.mask()?.seal(super::backup::MASKED_AD, &record::encode(&object));
        Ok(json!({ "masked": BASE64.encode(sealed) }))
    }

    fn insert_masked(&self, app: &App, masked: &str) -> Result<Value, Refusal> {
        Self::need(app, Permission::MaskedObjects)?;
        let other = || Refusal("not a masked object of this cluster, or it was changed".into());
        let sealed = BASE64.decode(masked).map_err(|_| other())?;
        let plain = self.mask()?.open(super::backup::MASKED_AD, &sealed).map_err(|_| other())?;
        let object = record::decode_object(&plain).ok_or_else(other)?;
        let handle = object.handle;
        // What a user brings in himself is one of his own.
        if app.role() == Some(Role::CryptoUser) && app.crypto_user(Permission::KeyManagement)? != object.owner
        {
            return Err(CKR_ACTION_PROHIBITED.into());
        }
        self.insert(vec![Arc::new(object)])?;
        Ok(json!({ "key-reference": format!("{handle:#x}") }))
    }

    fn audit_verify(&self) -> Result<Value, Refusal> {
        let audit = self.audit.lock();
        let (lines, fault) = audit.verify(&self.dir).map_err(|e| Refusal(e.to_string()))?;
        match fault {
            None => Ok(json!({ "lines": lines, "intact": true })),
            Some(fault) => refuse(format!("{}: {fault}", super::audit::AUDIT_FILE)),
        }
    }
}

/// A key as `key list --verbose` shows it.
fn describe(object: &Object) -> Value {
    let attrs: &Attrs = &object.attrs;
    let text = |name| String::from_utf8_lossy(attrs.bytes(name).unwrap_or_default()).into_owned();
    let class = match attrs.class() {
        CKO_SECRET_KEY => "secret-key",
        CKO_PRIVATE_KEY => "private-key",
        _ => "public-key",
    };
    let key_type = match attrs.key_type() {
        Some(CKK_AES) => "aes",
        Some(CKK_RSA) => "rsa",
        Some(CKK_EC) => "ec",
        Some(CKK_DES3 | CKK_DES2) => "des3",
        _ => "generic-secret",
    };
    let hex = |name| format!("0x{}", super::root::hex(attrs.bytes(name).unwrap_or_default()));
    json!({
        "key-reference": format!("{:#x}", object.handle),
        "key-info": {
            "key-owners": [{ "username": object.owner, "key-coverage": "full" }],
            "shared-users": object.shared.iter().map(|u| json!({ "username": u, "key-coverage": "full" })).collect::<Vec<_>>(),
            "key-quorum-values": { "manage-key-quorum-value": object.quorum.management, "use-key-quorum-value": object.quorum.usage },
            "cluster-coverage": "full",
        },
        "attributes": {
            "key-type": key_type,
            "label": text(CKA_LABEL),
            "id": hex(CKA_ID),
            "check-value": hex(CKA_CHECK_VALUE),
            "class": class,
            "encrypt": attrs.flag(CKA_ENCRYPT),
            "decrypt": attrs.flag(CKA_DECRYPT),
            "token": attrs.flag(CKA_TOKEN),
            "always-sensitive": attrs.flag(CKA_ALWAYS_SENSITIVE),
            "derive": attrs.flag(CKA_DERIVE),
            "destroyable": attrs.flag(CKA_DESTROYABLE),
            "extractable": attrs.flag(CKA_EXTRACTABLE),
            "local": attrs.flag(CKA_LOCAL),
            "modifiable": attrs.flag(CKA_MODIFIABLE),
            "never-extractable": attrs.flag(CKA_NEVER_EXTRACTABLE),
            "private": attrs.flag(CKA_PRIVATE),
            "sensitive": attrs.flag(CKA_SENSITIVE),
            "sign": attrs.flag(CKA_SIGN),
            "trusted": attrs.flag(CKA_TRUSTED),
            "unwrap": attrs.flag(CKA_UNWRAP),
            "verify": attrs.flag(CKA_VERIFY),
            "wrap": attrs.flag(CKA_WRAP),
            "wrap-with-trusted": attrs.flag(CKA_WRAP_WITH_TRUSTED),
            "key-length-bytes": attrs.number(CKA_VALUE_LEN),
        }
    })
}
