//! Sessions, logins and PINs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cryptoki_sys::*;
use parking_lot::Mutex;

use super::Ck;
use super::appliance::{App, Appliance, Life, Login, MAX_SESSIONS, Session};
use super::quorum::Service;
use super::users::{
    MAX_NAME, MAX_PASSWORD, MAX_USERS, MIN_PASSWORD, Permission, Role, User, split_pin, valid_name,
};
use super::wire::TokenFacts;

impl Appliance {
    pub(super) fn facts(&self) -> TokenFacts {
        let state = self.state.read();
        let locked = |name: &str| state.users.get(name).is_some_and(User::is_locked);
        let user = state.users.get(&self.config.default_user);
        // Without a default user any crypto user will do: tools look at the flag before they ask for a PIN.
        let any = state.users.values().any(|u| u.role == Role::CryptoUser);
        TokenFacts {
            label: state.meta.label.clone(),
            serial: state.meta.serial.clone(),
            initialized: state.meta.life == Life::Active,
            user_pin: user.is_some() || any,
            user_locked: locked(&self.config.default_user),
            so_locked: locked(&self.config.default_admin),
            legacy: self.config.legacy,
            min_pin: u32::try_from(MIN_PASSWORD).unwrap_or(0),
            max_pin: u32::try_from(MAX_NAME + 1 + MAX_PASSWORD).unwrap_or(0),
        }
    }

    pub(super) fn open_session(&self, app: &App, rw: bool) -> Ck<u64> {
        if !rw && app.role() == Some(Role::Admin) {
            return Err(CKR_SESSION_READ_WRITE_SO_EXISTS);
        }
        let mut sessions = app.sessions.lock();
        if sessions.len() >= MAX_SESSIONS {
            return Err(CKR_SESSION_COUNT);
        }
        let id = self.number();
        let session =
            Session { id, rw, running: Mutex::new([const { None }; 5]), context: AtomicBool::new(false) };
        sessions.insert(id, Arc::new(session));
        Ok(id)
    }

    pub(super) fn close_session(&self, app: &App, id: u64) -> Ck<()> {
        let last = {
            let mut sessions = app.sessions.lock();
            sessions.remove(&id).ok_or(CKR_SESSION_HANDLE_INVALID)?;
            sessions.is_empty()
        };
        self.drop_session_objects(app.id, Some(id));
        // The login ends with the last session (PKCS#11 5.6), but for a command line's.
        if last && app.kept_until.lock().is_none() {
            *app.login.write() = None;
        }
        Ok(())
    }

    pub(super) fn close_all(&self, app: &App) {
        app.sessions.lock().clear();
        self.drop_session_objects(app.id, None);
        self.tokens.end_of(app.id);
        *app.login.write() = None;
    }

    /// CKS_* and CKF_* of a session.
    pub(super) fn session_info(&self, app: &App, s: u64) -> Ck<(u64, u64)> {
        let session = app.session(s)?;
        let state = match (app.role(), session.rw) {
            (Some(Role::Admin), _) => CKS_RW_SO_FUNCTIONS,
            (Some(_), true) => CKS_RW_USER_FUNCTIONS,
            (Some(_), false) => CKS_RO_USER_FUNCTIONS,
            (None, true) => CKS_RW_PUBLIC_SESSION,
            (None, false) => CKS_RO_PUBLIC_SESSION,
        };
        Ok((state, CKF_SERIAL_SESSION | if session.rw { CKF_RW_SESSION } else { 0 }))
    }

    /// Checks a password; counts wrong ones durably before they are answered.
    pub(super) fn check_password(&self, name: &str, password: &[u8]) -> Ck<Role> {
        let _one = self.guessing.lock();
        let user = self.state.read().users.get(name).cloned();
        let Some(user) = user else {
            // As long as a real check takes: names are not told by the clock.
            let _ = self.config.login_cost.stretch(password, &[0; 16]);
            return Err(CKR_PIN_INCORRECT);
        };
        if user.is_locked() {
            return Err(CKR_PIN_LOCKED);
        }
        let right = user.verifier.as_ref().is_some_and(|v| v.matches(password));
        if right && user.failures() == 0 {
            return Ok(user.role);
        }
        let serial = self.state.read().meta.serial.clone();
        self.change_user(name, |user, _| {
            let mut user = user.ok_or(CKR_PIN_INCORRECT)?;
            if right {
                user.forgive();
            } else {
                user.count_wrong(&serial);
            }
            Ok((Some(user), ()))
        })?;
        // The other members count it before the guess is answered.
        self.spread(&[super::cluster::user_key(name)]);
        if right { Ok(user.role) } else { Err(CKR_PIN_INCORRECT) }
    }

    pub(super) fn login(&self, app: &App, s: u64, kind: u64, pin: &[u8]) -> Ck<()> {
        let session = app.session(s)?;
        let default = if kind == CKU_SO { &self.config.default_admin } else { &self.config.default_user };
        let (name, password) = split_pin(pin, default);
        if kind == CKU_CONTEXT_SPECIFIC {
            let login = app.login.read().clone().ok_or(CKR_USER_NOT_LOGGED_IN)?;
            let result = match split_pin(pin, &login.name) {
                (name, password) if name == login.name => self.check_password(&name, password).map(|_| ()),
                _ => Err(CKR_PIN_INCORRECT),
            };
            session.context.store(result.is_ok(), Ordering::Relaxed);
            self.log(app, s, "CN_LOGIN", self.known(&name), &result);
            return result;
        }
        let wanted = match kind {
            CKU_SO => Role::Admin,
            CKU_USER => Role::CryptoUser,
            _ => return Err(CKR_USER_TYPE_INVALID),
        };
        match &*app.login.read() {
            Some(login) if login.role == wanted => return Err(CKR_USER_ALREADY_LOGGED_IN),
            Some(_) => return Err(CKR_USER_ANOTHER_ALREADY_LOGGED_IN),
            None => {}
        }
        self.in_service()?;
        if wanted == Role::Admin && app.sessions.lock().values().any(|s| !s.rw) {
            return Err(CKR_SESSION_READ_ONLY_EXISTS);
        }
        let result = self.check_password(&name, password).and_then(|role| {
            // A user of another kind has the right password: saying so tells nothing to who does not have it.
            if role == wanted { Ok(()) } else { Err(CKR_USER_TYPE_INVALID) }
        });
        self.log(app, s, "CN_LOGIN", self.known(&name), &result);
        result?;
        *app.login.write() = Some(Login { name, role: wanted });
        Ok(())
    }

    pub(super) fn logout(&self, app: &App, s: u64) -> Ck<()> {
        app.session(s)?;
        if app.role().is_none() {
            return Err(CKR_USER_NOT_LOGGED_IN);
        }
        self.log(app, s, "CN_LOGOUT", "", &Ok(()));
        *app.login.write() = None;
        self.tokens.end_of(app.id);
        // Private session objects end with the login (PKCS#11 5.6: C_Logout).
        let gone = |o: &super::object::Object| {
            o.session.is_some_and(|(a, _)| a == app.id) && o.attrs.flag(CKA_PRIVATE)
        };
        self.state.write().objects.retain(|_, o| !gone(o));
        for session in app.sessions.lock().values() {
            *session.running.lock() = [const { None }; 5];
        }
        Ok(())
    }

    /// C_InitToken: activates a new HSM, or empties one whose admin gives the password.
    pub(super) fn init_token(&self, app: &App, pin: &[u8], label: &str) -> Ck<()> {
        if !app.sessions.lock().is_empty() {
            return Err(CKR_SESSION_EXISTS);
        }
        let (name, password) = split_pin(pin, &self.config.default_admin);
        let result = self.try_init_token(&name, password, label.trim_end());
        self.log(app, 0, "CN_INIT_TOKEN", label.trim_end(), &result);
        result
    }

    fn try_init_token(&self, name: &str, password: &[u8], label: &str) -> Ck<()> {
        if self.state.read().meta.members.len() > 1 {
            log::error!("a member of a cluster is not initialised anew: remove the other members first");
            return Err(CKR_FUNCTION_REJECTED);
        }
        // One admin would take all users away, and the values with them.
        if self.has_quorum() {
            log::error!("an HSM with a quorum value is not initialised anew: set the values to 1 first");
            return Err(CKR_FUNCTION_REJECTED);
        }
        if self.state.read().meta.life == Life::Active {
            if self.check_password(name, password)? != Role::Admin {
                return Err(CKR_PIN_INCORRECT);
            }
            // Session objects and sessions of others end, as if the token was taken away and put back.
            for app in self.apps.lock().values() {
                app.sessions.lock().clear();
                *app.login.write() = None;
            }
        } else {
            check_new_password(name, password)?;
        }
        let mut admin = User::new(name, Role::Admin, Some(password), self.config.login_cost);
        let _one = self.writing.lock();
        let (mut meta, officers) = {
            let state = self.state.read();
            let keep = |u: &&User| u.role == Role::ApplianceUser || u.name == name;
            (state.meta.clone(), state.users.values().filter(keep).cloned().collect::<Vec<_>>())
        };
        if let Some(old) = officers.iter().find(|u| u.name == name) {
            admin.approval_key.clone_from(&old.approval_key);
            admin.version = old.version + 1;
        }
        meta.label = label.into();
        meta.life = Life::Active;
        // What was sealed for the old cluster is foreign to the new one.
        meta.cluster = format!("cluster-{}", super::root::hex(&crate::crypto::random::array::<6>()));
        meta.mask_key = super::root::hex(crate::crypto::Secret::<32>::random().expose());
        meta.policy = self.stamp();
        admin.stamp = self.stamp();
        admin.born = admin.stamp.clone();
        meta.quorum.clear();
        meta.quorum_stamp = self.stamp();
        let users: std::collections::BTreeMap<_, _> = officers
            .into_iter()
            .filter(|u| u.role == Role::ApplianceUser)
            .chain([admin])
            .map(|u| (u.name.clone(), u))
            .collect();
        let records: Vec<_> =
            users.values().map(|u| (u.name.as_bytes().to_vec(), super::record::user(u))).collect();
        self.store.clear().map_err(|e| {
            log::error!("{e}");
            CKR_DEVICE_ERROR
        })?;
        let meta_record = super::record::meta(&meta);
        let mut changes = vec![meta_record.change()];
        for (key, value) in &records {
            changes.push((super::store::Table::Users, key.clone(), Some(value)));
        }
        self.commit(&changes)?;
        let mut state = self.state.write();
        state.meta = meta;
        state.users = users;
        state.objects.clear();
        state.gone.clear();
        state.token_objects = 0;
        Ok(())
    }

    /// C_InitPIN: the admin sets a crypto user's password; the user is made where it is missing.
    pub(super) fn init_pin(&self, app: &App, s: u64, pin: &[u8]) -> Ck<()> {
        app.session(s)?;
        if app.role() != Some(Role::Admin) {
            return Err(CKR_USER_NOT_LOGGED_IN);
        }
        let (name, password) = split_pin(pin, &self.config.default_user);
        let result = self.approved(app, Service::User, || self.set_user_password(&name, password, true));
        self.log(app, s, "CN_CHANGE_PSWD", self.known(&name), &result);
        result
    }

    fn set_user_password(&self, name: &str, password: &[u8], make: bool) -> Ck<()> {
        check_new_password(name, password)?;
        let cost = self.config.login_cost;
        // The slow part before any lock.
        let fresh = User::new(name, Role::CryptoUser, Some(password), cost);
        self.change_user(name, |user, count| match user {
            Some(user) if user.role != Role::CryptoUser => Err(CKR_PIN_INVALID),
            Some(mut user) => {
                user.verifier = fresh.verifier;
                user.forgive();
                user.version += 1;
                Ok((Some(user), ()))
            }
            None if make && count < MAX_USERS => Ok((Some(fresh), ())),
            None => Err(CKR_DEVICE_MEMORY),
        })?;
        self.spread(&[super::cluster::user_key(name)]);
        Ok(())
    }

    /// C_SetPIN: one's own password.
    pub(super) fn set_pin(&self, app: &App, s: u64, old: &[u8], new: &[u8]) -> Ck<()> {
        let session = app.session(s)?;
        if !session.rw {
            return Err(CKR_SESSION_READ_ONLY);
        }
        // Without a login it is the default user's (PKCS#11 5.6: C_SetPIN).
        let me =
            app.login.read().as_ref().map_or_else(|| self.config.default_user.clone(), |l| l.name.clone());
        let ((name, old), (new_name, new)) = (split_pin(old, &me), split_pin(new, &me));
        if name != new_name || (name != me && app.role().is_some()) {
            return Err(CKR_PIN_INVALID);
        }
        let result = self.change_own(&name, old, new);
        self.log(app, s, "CN_CHANGE_PSWD", self.known(&name), &result);
        result
    }

    pub(super) fn change_own(&self, name: &str, old: &[u8], new: &[u8]) -> Ck<()> {
        check_new_password(name, new)?;
        self.check_password(name, old)?;
        let fresh = User::new(name, Role::CryptoUser, Some(new), self.config.login_cost);
        self.change_user(name, |user, _| {
            let mut user = user.ok_or(CKR_PIN_INCORRECT)?;
            user.verifier = fresh.verifier;
            user.version += 1;
            Ok((Some(user), ()))
        })?;
        self.spread(&[super::cluster::user_key(name)]);
        Ok(())
    }

    /// A member that was taken out of its cluster logs nobody in: its users and keys may be out of date.
    pub(super) fn in_service(&self) -> Ck<()> {
        if self.state.read().meta.is_removed() { Err(CKR_DEVICE_REMOVED) } else { Ok(()) }
    }

    /// Refuses whoever has not this row of the permission table.
    pub(super) fn need(app: &App, what: Permission) -> Ck<()> {
        if what.of(app.role()) { Ok(()) } else { Err(CKR_USER_NOT_LOGGED_IN) }
    }
}

/// Whether a name and a new password can be.
pub(super) fn check_new_password(name: &str, password: &[u8]) -> Ck<()> {
    if !valid_name(name) {
        return Err(CKR_PIN_INVALID);
    }
    if !(MIN_PASSWORD..=MAX_PASSWORD).contains(&password.len()) {
        return Err(CKR_PIN_LEN_RANGE);
    }
    Ok(())
}
