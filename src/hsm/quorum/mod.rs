//! Quorum authentication (M of N), as CloudHSM CLI's `token-sign` strategy has it.
//!
//! A user registers an RSA-2048 key. Who wants to do what needs approvals gets a token from the appliance, users sign its
//! data outside, and the appliance counts the signatures when the operation comes: each user once, each key once, by
//! the keys that are registered at that moment. A token is good for one operation of its service, for ten minutes, in
//! the login that got it, on the appliance that made it. Nothing of this is decided by a client.

mod client;
mod commands;
mod keys;
mod token;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use cryptoki_sys::*;
use serde::{Deserialize, Serialize};

use super::admin::Refusal;
use super::appliance::{App, Appliance};
use super::object::Object;
use super::users::{Role, User};

pub use client::Sharing;
pub(crate) use keys::Terms;
use token::Token;
pub(super) use token::Tokens;

/// The most approvals that a value asks for (CloudHSM: 2 to 8). A value of 1 asks for none.
const MOST: u32 = 8;

/// What a token is good for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Service {
    /// Users are made, deleted, given passwords.
    User,
    /// Quorum values are set.
    Quorum,
    /// Members come and go, a trust anchor is set.
    Cluster,
    /// A key with a quorum value leaves, is shared or changed.
    KeyManagement,
    /// A key with a quorum value is used.
    KeyUsage,
    /// A user registers the key by which he approves.
    Registration,
}

impl Service {
    /// Those that have a value of the whole cluster.
    const VALUED: [Self; 3] = [Self::User, Self::Quorum, Self::Cluster];

    /// As CloudHSM CLI writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Quorum => "quorum",
            Self::Cluster => "cluster",
            Self::KeyManagement => "key-management",
            Self::KeyUsage => "key-usage",
            Self::Registration => "registration",
        }
    }

    /// Whether it is about one key.
    fn is_of_keys(self) -> bool {
        matches!(self, Self::KeyManagement | Self::KeyUsage)
    }

    /// Whether users of this role get tokens for it.
    fn is_for(self, role: Role) -> bool {
        match role {
            Role::Admin => !self.is_of_keys(),
            Role::CryptoUser => self.is_of_keys() || self == Self::Registration,
            Role::ApplianceUser | Role::UnactivatedAdmin => false,
        }
    }
}

/// The value of a service.
fn value_of(values: &BTreeMap<String, u32>, service: Service) -> u32 {
    values.get(service.name()).copied().unwrap_or(1).max(1)
}

/// What one operation needs: how many approvals, and whose.
pub(super) struct Guard {
    service: Service,
    needed: u32,
    /// The key that it is about.
    key: Option<Arc<Object>>,
}

impl Guard {
    /// To wrap, export, share or change a key. What takes a key out of reach of its approvers needs as many as its use.
    pub(super) fn management(key: &Arc<Object>) -> Self {
        let needed = key.quorum.management.max(key.quorum.usage);
        Self { service: Service::KeyManagement, needed, key: Some(key.clone()) }
    }

    /// To use a key.
    pub(super) fn usage(key: &Arc<Object>) -> Self {
        Self { service: Service::KeyUsage, needed: key.quorum.usage, key: Some(key.clone()) }
    }

    /// Whether anything is needed at all.
    pub(super) fn is_on(&self) -> bool {
        self.needed > 1
    }

    /// Whether this user's approval counts: an admin's, or one's with whom the key is shared.
    fn counts(&self, user: &User) -> bool {
        match &self.key {
            None => user.role == Role::Admin,
            Some(key) => user.role == Role::CryptoUser && key.is_of(&user.name),
        }
    }
}

/// Why an operation is refused: not enough users approve of it.
pub(super) enum Unapproved {
    /// Of admins.
    Command,
    /// Of a key's users.
    Key(Service),
}

impl From<Unapproved> for CK_RV {
    /// "The request is rejected by the user": it has no approval. Not CKR_USER_NOT_LOGGED_IN, upon which clients log in
    /// anew and try again.
    fn from(_: Unapproved) -> Self {
        CKR_FUNCTION_REJECTED
    }
}

impl From<Unapproved> for Refusal {
    fn from(why: Unapproved) -> Self {
        Self(match why {
            Unapproved::Command => "Quorum approval is required for this operation".into(),
            Unapproved::Key(service) => failed(format!(
                "the key has a quorum value (envelopefs hsm quorum token-sign generate --service {})",
                service.name()
            )),
        })
    }
}

/// CloudHSM CLI's word, and why.
fn failed(why: impl std::fmt::Display) -> String {
    format!("Quorum Failed: {why}")
}

/// The approvals of one operation under way. Those of an operation that fails are given back.
pub(super) struct Pass<'a> {
    appliance: &'a Appliance,
    app: &'a App,
    taken: Vec<Token>,
}

impl Pass<'_> {
    /// Takes a token with the approvals that are needed. Asked with `writing` held, nothing comes between the count and the
    /// change.
    pub(super) fn need(&mut self, guard: &Guard) -> Result<(), Unapproved> {
        if guard.is_on() {
            self.taken.push(self.appliance.take_token(self.app, guard)?);
        }
        Ok(())
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.taken.iter().for_each(|token| self.appliance.tokens.give_back(token));
    }
}

impl Appliance {
    /// What an admin's operation needs.
    pub(super) fn guard(&self, service: Service) -> Guard {
        Guard { service, needed: value_of(&self.state.read().meta.quorum, service), key: None }
    }

    /// Whether any service of admins has a value.
    pub(super) fn has_quorum(&self) -> bool {
        Service::VALUED.iter().any(|service| self.guard(*service).is_on())
    }

    /// Setting a value needs the approvals of the service `quorum`, and as many as the value that is given up.
    fn guard_of_value(&self, service: Service) -> Guard {
        let state = self.state.read();
        let values = &state.meta.quorum;
        let needed = value_of(values, Service::Quorum).max(value_of(values, service));
        Guard { service: Service::Quorum, needed, key: None }
    }

    /// Does what may need approvals. They are used up where it succeeds.
    pub(super) fn with_pass<T, E>(
        &self,
        app: &App,
        run: impl FnOnce(&mut Pass<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut pass = Pass { appliance: self, app, taken: Vec::new() };
        let result = run(&mut pass);
        if result.is_ok() {
            pass.taken.drain(..).for_each(|token| self.tokens.used(&token));
        }
        result
    }

    /// Does what needs these approvals.
    pub(super) fn with_approval<T, E: From<Unapproved>>(
        &self,
        app: &App,
        guard: &Guard,
        run: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        self.with_pass(app, |pass| {
            pass.need(guard)?;
            run()
        })
    }

    /// The same for a service of admins.
    pub(super) fn approved<T, E: From<Unapproved>>(
        &self,
        app: &App,
        service: Service,
        run: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        self.with_approval(app, &self.guard(service), run)
    }

    fn take_token(&self, app: &App, guard: &Guard) -> Result<Token, Unapproved> {
        let refused = || match guard.key {
            None => Unapproved::Command,
            Some(_) => Unapproved::Key(guard.service),
        };
        let login = app.login.read().clone().ok_or_else(refused)?;
        let keys = self.approvers(|user| guard.counts(user));
        self.tokens.take(app.id, &login.name, guard, &keys, Instant::now()).ok_or_else(refused)
    }

    /// The registered keys of users.
    fn approvers(&self, which: impl Fn(&User) -> bool) -> BTreeMap<String, String> {
        let state = self.state.read();
        let of = |u: &User| u.approval_key.clone().map(|key| (u.name.clone(), key));
        state.users.values().filter(|u| which(u)).filter_map(of).collect()
    }

    /// Refuses to take a user's approval away from what then nobody could approve of any more.
    pub(super) fn spare(&self, name: &str) -> Result<(), Refusal> {
        let most = {
            let state = self.state.read();
            Service::VALUED.iter().map(|s| value_of(&state.meta.quorum, *s)).max().unwrap_or(1)
        };
        let admins = self.approvers(|u| u.role == Role::Admin);
        if most > 1 && admins.contains_key(name) && distinct(&admins) <= most {
            return Err(Refusal(format!(
                "{most} approvals are needed and {} admins can approve: lower the quorum values first, or register another \
                 admin's key",
                distinct(&admins)
            )));
        }
        Ok(())
    }
}

/// How many approvals these users can give: one key is one approver, whoever else has registered it.
fn distinct(keys: &BTreeMap<String, String>) -> u32 {
    let all: std::collections::BTreeSet<_> = keys.values().collect();
    u32::try_from(all.len()).unwrap_or(u32::MAX)
}
