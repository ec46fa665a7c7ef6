//! Principals: who may sign requests. A secret is shown once, when it is made; the store keeps it sealed.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::arn::is_account;
use super::caller::ADMIN_POLICY;
use super::engine::Engine;
use super::error::KmsError;
use super::hsm::Password;
use super::index;
use super::records::seconds;
use super::table::{INDEX, PRINCIPALS, View};
use crate::crypto::random;

/// Letters of access keys and ids (RFC 4648 base32).
const BASE32: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
/// Principals of one store.
const MAX_PRINCIPALS: u64 = 10_000;
/// The longest IAM policy document, in bytes.
const MAX_POLICY: usize = 6144;

/// A user that signs requests.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Principal {
    /// Name, unique in its account.
    pub name: String,
    /// Twelve digits.
    pub account: String,
    /// `arn:aws:iam::ACCOUNT:user/NAME`.
    pub arn: String,
    /// `AIDA...`.
    pub user_id: String,
    /// `AKIA...`.
    pub access_key: String,
    pub(super) secret: Password,
    /// IAM policies, as JSON.
    pub policies: Vec<String>,
    /// Permissions boundary, as JSON: the most that `policies` can give.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boundary: Option<String>,
    created_ms: u64,
}

impl Principal {
    /// Seconds since the epoch.
    pub fn created(&self) -> f64 {
        seconds(self.created_ms)
    }

    fn place(&self) -> String {
        place(&self.account, &self.name)
    }
}

/// What a new principal is to be. Fields that are `None` are made up.
#[derive(Debug, Default)]
pub struct NewPrincipal {
    /// Letters, digits and `+=,.@_-`.
    pub name: String,
    /// Twelve digits.
    pub account: Option<String>,
    /// IAM policies; without any: everything that key policies leave to the account.
    pub policies: Vec<String>,
    /// Permissions boundary.
    pub boundary: Option<String>,
    /// Access key, for repeatable tests.
    pub access_key: Option<String>,
    /// Secret, for repeatable tests.
    pub secret: Option<Zeroizing<String>>,
}

fn place(account: &str, name: &str) -> String {
    format!("{account}/{name}")
}

fn letters(prefix: &str, count: usize) -> String {
    let raw = random::array::<32>();
    let digits = raw.iter().take(count).map(|b| char::from(BASE32[usize::from(b % 32)]));
    prefix.chars().chain(digits).collect()
}

fn new_secret() -> Zeroizing<String> {
    use base64::Engine as _;
    Zeroizing::new(base64::prelude::BASE64_STANDARD.encode(random::array::<30>()))
}

impl Engine {
    /// Makes a principal; gives it and its secret.
    pub fn create_principal(&self, new: NewPrincipal) -> Result<(Principal, Zeroizing<String>), KmsError> {
        let name_ok = (1..=64).contains(&new.name.len())
            && new.name.chars().all(|c| c.is_ascii_alphanumeric() || "+=,.@_-".contains(c));
        if !name_ok {
            let text = "a principal's name has 1 to 64 letters, digits and +=,.@_-";
            return Err(KmsError::Validation(text.into()));
        }
        let account = new.account.unwrap_or_else(|| super::arn::HOME_ACCOUNT.to_owned());
        if !is_account(&account) {
            return Err(KmsError::Validation(format!("{account}: an account has twelve digits")));
        }
        for policy in new.policies.iter().chain(&new.boundary) {
            check_policy(policy)?;
        }
        let secret = new.secret.unwrap_or_else(new_secret);
        let policies = if new.policies.is_empty() { vec![ADMIN_POLICY.to_owned()] } else { new.policies };
        let principal = Principal {
            arn: format!("arn:aws:iam::{account}:user/{}", new.name),
            user_id: letters("AIDA", 17),
            access_key: new.access_key.unwrap_or_else(|| letters("AKIA", 16)),
            name: new.name,
            account,
            secret: Password(secret.clone()),
            policies,
            boundary: new.boundary,
            created_ms: self.now(),
        };
        self.store.write(|w| {
            if w.bytes(PRINCIPALS, &principal.place())?.is_some() {
                return Err(KmsError::AlreadyExists(principal.arn.clone()).into());
            }
            let taken = index::access_key(&principal.access_key, "");
            if !w.keys(INDEX, &taken, "", 1)?.is_empty() {
                return Err(KmsError::Validation("the access key is taken".into()).into());
            }
            if w.len(PRINCIPALS)? >= MAX_PRINCIPALS {
                return Err(KmsError::LimitExceeded(format!(
                    "there are {MAX_PRINCIPALS} principals already"
                ))
                .into());
            }
            w.mark(&index::access_key(&principal.access_key, &principal.place()))?;
            w.put(PRINCIPALS, &principal.place(), &principal)
        })?;
        self.principals_changed();
        Ok((principal, secret))
    }

    /// Every principal, without secrets.
    pub fn list_principals(&self) -> Result<Vec<Principal>, KmsError> {
        Ok(self.store.read(|r| r.list::<Principal>(PRINCIPALS))?.into_iter().map(|(_, p)| p).collect())
    }

    /// Removes a principal: from now on its signatures are worth nothing.
    pub fn delete_principal(&self, account: Option<&str>, name: &str) -> Result<(), KmsError> {
        let place = place(account.unwrap_or(super::arn::HOME_ACCOUNT), name);
        self.store.write(|w| {
            let found: Option<Principal> = w.get(PRINCIPALS, &place)?;
            let found = found.ok_or_else(|| KmsError::NotFound(format!("there is no principal {place}")))?;
            w.remove(INDEX, &index::access_key(&found.access_key, &place))?;
            w.remove(PRINCIPALS, &place)
        })?;
        self.principals_changed();
        Ok(())
    }

    /// Replaces the IAM policies of a principal.
    pub fn set_principal_policies(
        &self,
        account: Option<&str>,
        name: &str,
        policies: Vec<String>,
    ) -> Result<(), KmsError> {
        policies.iter().try_for_each(|p| check_policy(p))?;
        self.change_principal(account, name, |found| found.policies = policies)
    }

    /// Sets or takes away the permissions boundary of a principal.
    pub fn set_principal_boundary(
        &self,
        account: Option<&str>,
        name: &str,
        boundary: Option<String>,
    ) -> Result<(), KmsError> {
        boundary.iter().try_for_each(|p| check_policy(p))?;
        self.change_principal(account, name, |found| found.boundary = boundary)
    }

    fn change_principal(
        &self,
        account: Option<&str>,
        name: &str,
        change: impl FnOnce(&mut Principal),
    ) -> Result<(), KmsError> {
        let place = place(account.unwrap_or(super::arn::HOME_ACCOUNT), name);
        self.store.write(|w| {
            let found: Option<Principal> = w.get(PRINCIPALS, &place)?;
            let mut found =
                found.ok_or_else(|| KmsError::NotFound(format!("there is no principal {place}")))?;
            change(&mut found);
            w.put(PRINCIPALS, &place, &found)
        })?;
        self.principals_changed();
        Ok(())
    }

    /// The principal that an access key belongs to.
    pub(super) fn principal_of_key(&self, access_key: &str) -> Result<Option<Arc<Principal>>, KmsError> {
        if access_key.contains('|') {
            return Ok(None);
        }
        let prefix = index::access_key(access_key, "");
        self.store.read(|r| {
            let Some(name) = r.keys(INDEX, &prefix, "", 1)?.pop() else { return Ok(None) };
            let place = name.get(prefix.len()..).unwrap_or_default();
            Ok(r.get::<Principal>(PRINCIPALS, place)?.map(Arc::new))
        })
    }
}

/// Refuses what is no policy of a principal.
pub(super) fn check_policy(text: &str) -> Result<(), KmsError> {
    if text.len() > MAX_POLICY {
        let why = format!("the policy is longer than {MAX_POLICY} bytes");
        return Err(KmsError::LimitExceeded(why));
    }
    Ok(super::policy::parse_identity(text).map(drop)?)
}
