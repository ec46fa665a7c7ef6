//! Keys with quorum values: what a new key is made with, and who may approve of its use.

use std::collections::BTreeSet;

use cryptoki_sys::*;
use serde::{Deserialize, Serialize};

use super::super::Ck;
use super::super::admin::Refusal;
use super::super::appliance::Appliance;
use super::super::object::{KeyQuorum, Object};
use super::super::users::Role;
use super::super::wire::Wire;
use super::{MOST, distinct};

/// With whom a new key is shared, and how many of these users its management and its use need.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Terms {
    /// Crypto users.
    pub(crate) share: Vec<String>,
    /// 0 and 1 need no approval.
    pub(crate) management: u32,
    /// The same for uses.
    pub(crate) usage: u32,
}

impl Wire for Terms {
    fn size(&self) -> usize {
        self.share.size() + 2 * 4
    }

    fn put(&self, out: &mut Vec<u8>) {
        self.share.put(out);
        self.management.put(out);
        self.usage.put(out);
    }

    fn take(from: &mut &[u8]) -> Option<Self> {
        Some(Self { share: Vec::take(from)?, management: u32::take(from)?, usage: u32::take(from)? })
    }
}

impl Terms {
    /// Whether they say nothing.
    pub(crate) fn are_none(&self) -> bool {
        *self == Self::default()
    }

    fn most(&self) -> u32 {
        self.management.max(self.usage)
    }

    fn users(&self) -> BTreeSet<String> {
        self.share.iter().map(|name| name.to_lowercase()).collect()
    }
}

impl Appliance {
    /// Refuses terms that nobody could meet.
    pub(in super::super) fn check_terms(&self, owner: &str, terms: &Terms) -> Result<(), Refusal> {
        let users = terms.users();
        {
            let state = self.state.read();
            let is_user = |name: &&String| {
                name.as_str() != owner && state.users.get(*name).is_some_and(|u| u.role == Role::CryptoUser)
            };
            if let Some(name) = users.iter().find(|name| !is_user(name)) {
                return Err(Refusal(format!("there is no other crypto-user named {name}")));
            }
        }
        if terms.most() > MOST {
            return Err(Refusal(format!("a quorum value is 2 to {MOST}")));
        }
        self.can_approve(owner, &users, terms.most())
    }

    /// Whether so many of a key's users have registered a key.
    fn can_approve(&self, owner: &str, shared: &BTreeSet<String>, needed: u32) -> Result<(), Refusal> {
        let able =
            self.approvers(|u| u.role == Role::CryptoUser && (u.name == owner || shared.contains(&u.name)));
        if needed > 1 && distinct(&able) < needed {
            return Err(Refusal(format!(
                "a quorum value of {needed} needs as many of the key's users with a registered key, and {} have one (user \
                 change-quorum token-sign register, --share-crypto-users)",
                distinct(&able)
            )));
        }
        Ok(())
    }

    /// Whether a key's approvers are still enough without one.
    pub(in super::super) fn can_spare(&self, key: &Object, name: &str) -> Result<(), Refusal> {
        let mut left = key.shared.clone();
        left.remove(name);
        self.can_approve(&key.owner, &left, key.quorum.management.max(key.quorum.usage))
    }

    /// Puts the terms on a new key. Public keys have none: they are no secret.
    pub(in super::super) fn put_terms(&self, object: &mut Object, terms: &Terms) -> Ck<()> {
        if terms.are_none() || !object.attrs.is_secret() {
            return Ok(());
        }
        // The value of a key that is not sensitive is read without anybody's approval.
        if !object.is_token() || (terms.most() > 1 && !object.attrs.flag(CKA_SENSITIVE)) {
            return Err(CKR_TEMPLATE_INCONSISTENT);
        }
        self.check_terms(&object.owner, terms).map_err(|_| CKR_ARGUMENTS_BAD)?;
        object.shared = terms.users();
        object.quorum = KeyQuorum { usage: terms.usage, management: terms.management };
        Ok(())
    }

    /// Whether a new key's terms can still be met: who approves or shares may be gone since. Called with `writing` held.
    pub(in super::super) fn keeps_terms(&self, object: &Object) -> Ck<()> {
        let KeyQuorum { usage, management } = object.quorum;
        let terms = Terms { share: object.shared.iter().cloned().collect(), management, usage };
        if terms.are_none() {
            return Ok(());
        }
        self.check_terms(&object.owner, &terms).map_err(|_| CKR_ARGUMENTS_BAD)
    }
}
