//! The management interface: CloudHSM CLI's commands, as JSON. Each is checked against the permission table.

use std::sync::Arc;

use cryptoki_sys::*;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Ck;
use super::appliance::{App, Appliance, Life};
use super::cluster::user_key;
use super::quorum::{Service, Terms};
use super::record;
use super::session::check_new_password;
use super::store::Table;
use super::users::{MAX_USERS, Permission, Role, User};
use super::wire::Bytes;

/// How long a command line's login lives without being used.
const KEEP_LOGIN: std::time::Duration = std::time::Duration::from_secs(600);

const ACTIVE: &str = "the HSM is active already; log in as an admin";

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
            Command::Health => Ok(self.health(app.role().is_some())),
            Command::Csr => {
                self.may_certify(app)?;
                self.csr()
            }
            Command::Initialize { signed, ca } => {
                self.may_certify(app)?;
                let result = self.approved(app, Service::Cluster, || self.initialize(&signed, &ca));
                self.logged(app, "CN_INIT_CLUSTER", "", result)
            }
            Command::Activate { password } => {
                self.logged(app, "CN_ACTIVATE", "", self.activate(password.0.as_bytes()))
            }
            Command::Login { username, role, password } => self.admin_login(app, &username, role, &password),
            Command::Logout => {
                self.end_login(app);
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
        let outcome = result.as_ref().map(|_| ()).map_err(|_| CKR_FUNCTION_REJECTED);
        let recorded = self.recorded(app, 0, opcode, object, outcome);
        match result {
            Ok(done) => recorded.map(|()| done).map_err(Refusal::from),
            refused => refused,
        }
    }

    /// The certificate of an HSM in service, and the CA whose clients it admits, are its admin's to choose.
    fn may_certify(&self, app: &App) -> Ck<()> {
        match self.state.read().meta.life {
            Life::Active => Self::need(app, Permission::ManageUsers),
            Life::Uninitialized | Life::Initialized => Ok(()),
        }
    }

    fn activate(&self, password: &[u8]) -> Result<Value, Refusal> {
        if self.state.read().meta.life == Life::Active {
            return refuse(ACTIVE);
        }
        let name = self.config.default_admin.clone();
        check_new_password(&name, password)?;
        let mut admin = User::new(&name, Role::Admin, Some(password), self.config.login_cost);
        let mut unit = User::new("app_user", Role::ApplianceUser, None, self.config.login_cost);
        let _one = self.writing.lock();
        let mut meta = self.state.read().meta.clone();
        // Another activation may have been made while this one's password was stretched.
        if meta.life == Life::Active {
            return refuse(ACTIVE);
        }
        meta.life = Life::Active;
        if meta.cluster.is_empty() {
            meta.cluster = format!("cluster-{}", super::root::hex(&crate::crypto::random::array::<6>()));
        }
        if meta.label.is_empty() {
            meta.label = "hsm1".into();
        }
        for user in [&mut admin, &mut unit] {
            user.stamp = self.stamp();
            user.born = user.stamp.clone();
        }
        let (meta_record, users) = (record::meta(&meta), [admin, unit]);
        let records: Vec<_> = users.iter().map(|u| (u.name.as_bytes().to_vec(), record::user(u))).collect();
        let mut changes = vec![meta_record.change()];
        changes.extend(records.iter().map(|(key, user)| (Table::Users, key.clone(), Some(user.as_slice()))));
        self.commit(&changes)?;
        let mut state = self.state.write();
        state.meta = meta;
        state.users.extend(users.into_iter().map(|u| (u.name.clone(), u)));
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
            .checked(&name, password.0.as_bytes())
            .and_then(|found| if found.role == role { Ok(found) } else { Err(CKR_USER_TYPE_INVALID) });
        let checked = self.recorded(app, 0, "CN_LOGIN", self.known(&name), result)?;
        self.enter(app, &name, &checked)?;
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
        let mut refused = None;
        self.change_user(&name, |old, _| {
            refused = self.may_go(&name, role, old.as_ref()).err();
            Ok((old.filter(|_| refused.is_some()), ()))
        })?;
        if let Some(why) = refused {
            return Err(why);
        }
        self.expel(&name);
        Ok(json!({ "username": name, "role": role.name() }))
    }

    /// Whether a user may be deleted. Called with `writing` held.
    fn may_go(&self, name: &str, role: Role, user: Option<&User>) -> Result<(), Refusal> {
        let (admins, owned, shared) = {
            let state = self.state.read();
            let admins = state.users.values().filter(|u| u.role == Role::Admin).count();
            let owned = state.objects.values().filter(|o| o.owner == name && o.is_token()).count();
            let shared: Vec<_> =
                state.objects.values().filter(|o| o.shared.contains(name)).cloned().collect();
            (admins, owned, shared)
        };
        if role == Role::Admin && admins < 2 {
            return refuse("the last admin cannot be deleted");
        }
        if owned > 0 && role == Role::CryptoUser {
            return refuse(format!(
                "{name} owns {owned} keys; they would belong to nobody. Delete or hand over them first"
            ));
        }
        if !user.is_some_and(|u| u.role == role && role != Role::ApplianceUser) {
            return refuse(format!("there is no {} named {name}", role.name()));
        }
        match role {
            Role::Admin => self.spare(name),
            _ => shared.iter().try_for_each(|key| self.can_spare(key, name)),
        }
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
        let set = || {
            let found = self.change_user(&name, |user, _| match user {
                Some(mut user) if user.role == role => {
                    user.reset(fresh);
                    Ok((Some(user), true))
                }
                other => Ok((other, false)),
            })?;
            if found { Ok(()) } else { refuse(format!("there is no {} named {name}", role.name())) }
        };
        // One's own password needs nobody's approval.
        if own { set() } else { self.approved(app, Service::User, set) }?;
        // An admin who gives himself another one stays.
        if !own {
            self.expel(&name);
        }
        Ok(done)
    }

    fn audit_verify(&self) -> Result<Value, Refusal> {
        // It reads the whole log: one at a time, and nobody waits for it who writes lines.
        let Some(_alone) = self.verifying.try_lock() else {
            return refuse("the log is being verified already; ask again in a while");
        };
        let failed = |e: super::error::HsmError| Refusal(e.to_string());
        let written = self.audit.lock().written().map_err(failed)?;
        let found = written.verify().map_err(failed)?;
        if found.faults.is_empty() {
            return Ok(json!({ "lines": found.lines, "first-line": found.first, "intact": true }));
        }
        refuse(found.faults.join("; "))
    }
}
