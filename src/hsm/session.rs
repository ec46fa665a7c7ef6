//! Sessions, logins and PINs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cryptoki_sys::*;
use parking_lot::Mutex;

use super::Ck;
use super::appliance::{App, Appliance, Checked, Life, MAX_SESSIONS, Session};
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
            self.end_login(app);
        }
        Ok(())
    }

    pub(super) fn close_all(&self, app: &App) {
        app.sessions.lock().clear();
        self.drop_session_objects(app.id, None);
        self.end_login(app);
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
        self.checked(name, password).map(|checked| checked.role)
    }

    /// As [`Appliance::check_password`]; tells whose and which password it was.
    pub(super) fn checked(&self, name: &str, password: &[u8]) -> Ck<Checked> {
        let (result, counted) = {
            let _one = self.guessing(name).lock();
            self.guess(name, password)?
        };
        if counted {
            // Another member may take seconds to answer.
            super::pool::end_slow_turn();
            // The other members count it before the guess is answered.
            self.spread(&[super::cluster::user_key(name)]);
        }
        result
    }

    /// One guess, and whether the count of wrong ones changed. Called with the lock of `guessing` held.
    fn guess(&self, name: &str, password: &[u8]) -> Ck<(Ck<Checked>, bool)> {
        // A guess that could not be counted is the last one until it is.
        let undone = self.uncounted.lock().get(name).copied().unwrap_or(0);
        if undone > 0 {
            self.count_wrong(name, undone)?;
        }
        let user = self.state.read().users.get(name).cloned();
        let Some(user) = user else {
            // As long as the check of a right password takes. A wrong one of a user takes longer, as it is stored.
            let _ = self.config.login_cost.stretch(password, &[0; 16]);
            return Ok((Err(CKR_PIN_INCORRECT), false));
        };
        if user.is_locked() {
            return Ok((Err(CKR_PIN_LOCKED), undone > 0));
        }
        let right = user.verifier.as_ref().is_some_and(|v| v.matches(password));
        if !right {
            *self.uncounted.lock().entry(name.to_owned()).or_default() += 1;
            self.count_wrong(name, 1)?;
            return Ok((Err(CKR_PIN_INCORRECT), true));
        }
        if user.failures() == 0 {
            return Ok((Ok(Checked::of(&user)), undone > 0));
        }
        self.change_user(name, |user, _| {
            let mut user = user.ok_or(CKR_PIN_INCORRECT)?;
            user.forgive();
            Ok((Some(user), ()))
        })?;
        Ok((Ok(Checked::of(&user)), true))
    }

    /// Counts wrong guesses durably; until that is done they stay in `uncounted`.
    fn count_wrong(&self, name: &str, times: u64) -> Ck<()> {
        let serial = self.state.read().meta.serial.clone();
        self.change_user(name, |mut user, _| {
            if let Some(user) = &mut user {
                (0..times).for_each(|_| user.count_wrong(&serial));
            }
            Ok((user, ()))
        })?;
        self.uncounted.lock().remove(name);
        Ok(())
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
            let result = self.recorded(app, s, "CN_LOGIN", self.known(&name), result);
            session.context.store(result.is_ok(), Ordering::Relaxed);
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
        let result = self.checked(&name, password).and_then(|checked| {
            // A user of another kind has the right password: saying so tells nothing to who does not have it.
            if checked.role == wanted { Ok(checked) } else { Err(CKR_USER_TYPE_INVALID) }
        });
        let checked = self.recorded(app, s, "CN_LOGIN", self.known(&name), result)?;
        self.enter(app, &name, &checked)
    }

    pub(super) fn logout(&self, app: &App, s: u64) -> Ck<()> {
        app.session(s)?;
        if app.role().is_none() {
            return Err(CKR_USER_NOT_LOGGED_IN);
        }
        self.log(app, s, "CN_LOGOUT", "", &Ok(()));
        self.end_login(app);
        Ok(())
    }

    /// C_InitToken: activates a new HSM, or empties one whose admin gives the password.
    pub(super) fn init_token(&self, app: &App, pin: &[u8], label: &str) -> Ck<()> {
        if !app.sessions.lock().is_empty() {
            return Err(CKR_SESSION_EXISTS);
        }
        let (name, password) = split_pin(pin, &self.config.default_admin);
        let result = self.try_init_token(&name, password, label.trim_end());
        self.recorded(app, 0, "CN_INIT_TOKEN", label.trim_end(), result)
    }

    /// What one admin does not empty.
    fn may_init_token(&self) -> Ck<()> {
        if self.state.read().meta.members.len() > 1 {
            log::error!("a member of a cluster is not initialised anew: remove the other members first");
            return Err(CKR_FUNCTION_REJECTED);
        }
        // He would take all users away, and the values with them.
        if self.has_quorum() {
            log::error!("an HSM with a quorum value is not initialised anew: set the values to 1 first");
            return Err(CKR_FUNCTION_REJECTED);
        }
        Ok(())
    }

    fn try_init_token(&self, name: &str, password: &[u8], label: &str) -> Ck<()> {
        self.may_init_token()?;
        let active = self.state.read().meta.life == Life::Active;
        let allowed = self.state.read().users.get(name).map(|u| (u.born.clone(), u.version));
        if active {
            if self.check_password(name, password)? != Role::Admin {
                return Err(CKR_PIN_INCORRECT);
            }
        } else {
            check_new_password(name, password)?;
        }
        let mut admin = User::new(name, Role::Admin, Some(password), self.config.login_cost);
        let one = self.writing.lock();
        // Somebody may have activated it, added a member, set a value or changed that admin since.
        self.may_init_token()?;
        let (mut meta, officers) = {
            let state = self.state.read();
            let now = state.users.get(name).map(|u| (u.born.clone(), u.version));
            if (state.meta.life == Life::Active) != active || now != allowed {
                return Err(CKR_PIN_INCORRECT);
            }
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
        let meta_record = super::record::meta(&meta);
        let mut changes = vec![meta_record.change()];
        for (key, value) in &records {
            changes.push((super::store::Table::Users, key.clone(), Some(value)));
        }
        // The old users and keys go and the new admin comes at once: a crash leaves the one HSM or the other.
        self.store.replace(&changes).map_err(|e| {
            log::error!("{e}");
            CKR_DEVICE_ERROR
        })?;
        {
            let mut state = self.state.write();
            state.meta = meta;
            state.users = users;
            state.objects.clear();
            state.gone.clear();
            state.token_objects = 0;
        }
        drop(one);
        self.end_sessions();
        Ok(())
    }

    /// Ends all sessions and logins, as if the token was taken away and put back.
    fn end_sessions(&self) {
        let apps: Vec<_> = self.apps.lock().values().cloned().collect();
        for app in apps {
            app.sessions.lock().clear();
            self.end_login(&app);
        }
    }

    /// C_InitPIN: the admin sets a crypto user's password; the user is made where it is missing.
    pub(super) fn init_pin(&self, app: &App, s: u64, pin: &[u8]) -> Ck<()> {
        app.session(s)?;
        if app.role() != Some(Role::Admin) {
            return Err(CKR_USER_NOT_LOGGED_IN);
        }
        let (name, password) = split_pin(pin, &self.config.default_user);
        let result = self.approved(app, Service::User, || self.set_user_password(&name, password, true));
        self.recorded(app, s, "CN_CHANGE_PSWD", self.known(&name), result)
    }

    fn set_user_password(&self, name: &str, password: &[u8], make: bool) -> Ck<()> {
        check_new_password(name, password)?;
        let cost = self.config.login_cost;
        // The slow part before any lock.
        let fresh = User::new(name, Role::CryptoUser, Some(password), cost);
        self.change_user(name, |user, count| match user {
            Some(user) if user.role != Role::CryptoUser => Err(CKR_PIN_INVALID),
            Some(mut user) => {
                user.reset(fresh);
                Ok((Some(user), ()))
            }
            None if make && count < MAX_USERS => Ok((Some(fresh), ())),
            None => Err(CKR_DEVICE_MEMORY),
        })?;
        self.expel(name);
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
        self.recorded(app, s, "CN_CHANGE_PSWD", self.known(&name), result)
    }

    pub(super) fn change_own(&self, name: &str, old: &[u8], new: &[u8]) -> Ck<()> {
        check_new_password(name, new)?;
        let checked = self.checked(name, old)?;
        let fresh = User::new(name, Role::CryptoUser, Some(new), self.config.login_cost);
        self.change_user(name, |user, _| {
            // An admin may have given him another password since, or another user the name.
            let mut user = user.filter(|now| Checked::of(now) == checked).ok_or(CKR_PIN_INCORRECT)?;
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
