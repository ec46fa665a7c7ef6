//! The management interface: CloudHSM CLI's commands, as JSON. Each is checked against the permission table.

use std::sync::Arc;

use cryptoki_sys::*;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Ck;
use super::appliance::{App, Appliance, Life, Login};
use super::cluster::user_key;
use super::quorum::{Service, Terms};
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
    /// `cluster add`: the HSM at an address, restored from a backup of this cluster.
    ClusterAdd { member: String },
    /// `cluster remove`: a serial number or an address.
    ClusterRemove { member: String },
    /// `user replicate`.
    UserReplicate { username: String },
    /// `key replicate`.
    KeyReplicate { handle: u64 },
    /// `key export`: a file under a password.
    KeyExport { handle: u64, password: Zeroized },
    /// `key import` of such a file.
    KeyImport {
        file: String,
        password: Zeroized,
        label: Option<String>,
        #[serde(default)]
        terms: Terms,
    },
    /// `key rotate`.
    KeyRotate { handle: u64 },
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
    /// `user change-quorum token-sign register`: a public key (PEM), and the signed registration file.
    RegisterApprover { public_key: String, token: String },
    /// `quorum token-sign generate`; for key services perhaps for one key alone.
    QuorumGenerate { service: Service, key: Option<u64> },
    /// The file of a token with its signatures: the next operation of its service has these approvals.
    QuorumApprove { approval: String },
    /// `quorum token-sign list`.
    QuorumList,
    /// `quorum token-sign list-quorum-values`.
    QuorumValues,
    /// `quorum token-sign list-timeouts`.
    QuorumTimeouts,
    /// `quorum token-sign delete`: one's own, or all.
    QuorumDelete { all: bool },
    /// `quorum token-sign set-quorum-value`.
    QuorumSet { service: Service, value: u32 },
    /// Whether a new key can be made so: says why not.
    KeyTerms { terms: Terms },
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
            CKR_DEVICE_REMOVED => "this HSM was removed from its cluster; ask another member",
            CKR_TOKEN_WRITE_PROTECTED => {
                "the key does not meet the availability requirements: it must be on at least 2 HSMs before it is used, and \
                 no other member answers (hsm serve --disable-key-availability-check)"
            }
            CKR_DEVICE_ERROR => "the HSM's disk failed; see its log",
            other => return Self(format!("refused with {other:#x}")),
        };
        Self(why.into())
    }
}

pub(super) fn refuse<T>(why: impl Into<String>) -> Result<T, Refusal> {
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
                let result = self.approved(app, Service::Cluster, || self.initialize(&signed, &ca));
                self.logged(app, "CN_INIT_CLUSTER", "", result)
            }
            Command::Activate { password } => {
                self.logged(app, "CN_ACTIVATE", "", self.activate(password.0.as_bytes()))
            }
            Command::Login { username, role, password } => self.admin_login(app, &username, role, &password),
            Command::Logout => {
                *app.login.write() = None;
                *app.kept_until.lock() = None;
                self.tokens.end_of(app.id);
                Ok(json!({ "message": "Logout successful" }))
            }
            Command::UserList => self.user_list(app),
            Command::UserCreate { username, role, password } => {
                Self::need(app, Permission::ManageUsers)?;
                let create = || self.user_create(&username, role, password.0.as_bytes());
                let result = self.approved(app, Service::User, create);
                let name = username.to_lowercase();
                let result = self.logged(app, "CN_CREATE_USER", self.known(&name), result);
                result.map(|done| self.covered(done, &[user_key(&name)]))
            }
            Command::UserDelete { username, role } => {
                Self::need(app, Permission::ManageUsers)?;
                let name = username.to_lowercase();
                // Before it is gone.
                let known = self.known(&name);
                let result = self.approved(app, Service::User, || self.user_delete(&username, role));
                let result = self.logged(app, "CN_DELETE_USER", known, result);
                result.map(|done| self.covered(done, &[user_key(&name)]))
            }
            Command::UserChangePassword { username, role, old, password } => {
                let result = self.user_password(app, &username, role, old.as_ref(), password.0.as_bytes());
                let name = username.to_lowercase();
                let result = self.logged(app, "CN_CHANGE_PSWD", self.known(&name), result);
                result.map(|done| self.covered(done, &[user_key(&name)]))
            }
            Command::ClusterAdd { member } => {
                Self::need(app, Permission::ManageUsers)?;
                let result = self.approved(app, Service::Cluster, || self.cluster_add(&member));
                self.logged(app, "CN_ADD_MEMBER", &member, result)
            }
            Command::ClusterRemove { member } => {
                Self::need(app, Permission::ManageUsers)?;
                let result = self.approved(app, Service::Cluster, || self.cluster_remove(&member));
                self.logged(app, "CN_REMOVE_MEMBER", &member, result)
            }
            Command::UserReplicate { username } => {
                Self::need(app, Permission::ManageUsers)?;
                self.replicate(user_key(&username.to_lowercase()))
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
            other => self.key_command(app, other),
        }
    }

    pub(super) fn logged(
        &self,
        app: &App,
        opcode: &'static str,
        object: &str,
        result: Result<Value, Refusal>,
    ) -> Result<Value, Refusal> {
        self.log(app, 0, opcode, object, &result.as_ref().map(|_| ()).map_err(|_| CKR_FUNCTION_REJECTED));
        result
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
            if meta.cluster.is_empty() {
                meta.cluster = format!("cluster-{}", super::root::hex(&crate::crypto::random::array::<6>()));
            }
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
        self.in_service()?;
        let result = self
            .check_password(&name, password.0.as_bytes())
            .and_then(|found| if found == role { Ok(()) } else { Err(CKR_USER_TYPE_INVALID) });
        self.log(app, 0, "CN_LOGIN", self.known(&name), &result);
        result?;
        self.tokens.end_of(app.id);
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
                    "cluster-coverage": self.coverage(&[user_key(&u.name)]),
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
        if role == Role::Admin {
            self.spare(&name)?;
        }
        let is_there = self.state.read().users.get(&name).is_some_and(|u| u.role == role);
        if role == Role::CryptoUser && is_there {
            self.unshare_all(&name)?;
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
        let set = || -> Result<bool, Refusal> {
            Ok(self.change_user(&name, |user, _| match user {
                Some(mut user) if user.role == role => {
                    user.verifier = fresh.verifier;
                    user.forgive();
                    user.version += 1;
                    Ok((Some(user), true))
                }
                other => Ok((other, false)),
            })?)
        };
        // One's own password needs nobody's approval.
        let found = if own { set()? } else { self.approved(app, Service::User, set)? };
        if found { Ok(done) } else { refuse(format!("there is no {} named {name}", role.name())) }
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
