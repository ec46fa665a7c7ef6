//! Grants as the store keeps them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::arn::Scope;
use super::context::push;
use super::engine::Engine;
use super::error::KmsError;
use super::records::{key_id, seconds};
use super::store::Fault;
use super::table::{GRANTS, INDEX, View, Writer};
use super::{hex, index, labels};

/// A grant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct GrantRecord {
    pub(super) id: String,
    /// Slot of the key.
    pub(super) slot: String,
    pub(super) scope: Scope,
    pub(super) name: Option<String>,
    pub(super) created_ms: u64,
    pub(super) grantee: String,
    pub(super) retiring: Option<String>,
    /// Account whose principal made it.
    pub(super) issuer: String,
    pub(super) operations: Vec<String>,
    pub(super) equals: Option<BTreeMap<String, String>>,
    pub(super) subset: Option<BTreeMap<String, String>>,
    pub(super) source_arn: Option<String>,
}

impl GrantRecord {
    /// Where the store keeps it.
    pub(super) fn place(&self) -> String {
        place(&self.slot, &self.id)
    }

    /// AWS's GrantListEntry.
    pub(super) fn json(&self) -> Value {
        let mut out = json!({
            "KeyId": self.scope.key_arn(key_id(&self.slot)),
            "GrantId": self.id,
            "Name": self.name.clone().unwrap_or_default(),
            "CreationDate": seconds(self.created_ms),
            "GranteePrincipal": self.grantee,
            "IssuingAccount": format!("arn:aws:iam::{}:root", self.issuer),
            "Operations": self.operations,
        });
        if let Some(retiring) = &self.retiring {
            out["RetiringPrincipal"] = json!(retiring);
        }
        let constraints = self.constraints();
        if constraints.as_object().is_some_and(|c| !c.is_empty()) {
            out["Constraints"] = constraints;
        }
        out
    }

    fn constraints(&self) -> Value {
        let mut out = json!({});
        if let Some(pairs) = &self.equals {
            out["EncryptionContextEquals"] = json!(pairs);
        }
        if let Some(pairs) = &self.subset {
            out["EncryptionContextSubset"] = json!(pairs);
        }
        if let Some(arn) = &self.source_arn {
            out["SourceArn"] = json!(arn);
        }
        out
    }

    /// Whether CreateGrant with these parameters is the same grant again.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        let plain = |g: &Self| Self { id: String::new(), created_ms: 0, ..g.clone() };
        plain(self) == plain(other)
    }
}

/// Where the store keeps a grant.
pub(super) fn place(slot: &str, id: &str) -> String {
    format!("{slot}|{id}")
}

/// Writes a new grant and its places in the index.
pub(super) fn insert(w: &Writer<'_>, grant: &GrantRecord) -> Result<(), Fault> {
    for name in places(grant) {
        w.mark(&name)?;
    }
    w.put(GRANTS, &grant.place(), grant)
}

/// Removes a grant and its places in the index; says whether there was one.
pub(super) fn remove(w: &Writer<'_>, place: &str) -> Result<bool, Fault> {
    let Some(grant) = w.get::<GrantRecord>(GRANTS, place)? else { return Ok(false) };
    for name in places(&grant) {
        w.remove(INDEX, &name)?;
    }
    w.remove(GRANTS, place)
}

fn places(grant: &GrantRecord) -> Vec<String> {
    let mut names = vec![index::grantee(&grant.slot, &grant.grantee, &grant.id)];
    names.extend(grant.retiring.as_ref().map(|p| index::retiring(p, &grant.slot, &grant.id)));
    names.extend(grant.name.as_ref().map(|n| index::named(&grant.slot, n, &grant.id)));
    names
}

/// Grants whose index names begin with `prefix`.
pub(super) fn indexed(
    view: &impl View,
    slot: &str,
    prefix: &str,
    limit: usize,
) -> Result<Vec<GrantRecord>, Fault> {
    let mut found = Vec::new();
    for name in view.keys(INDEX, prefix, "", limit)? {
        found.extend(view.get(GRANTS, &place(slot, index::tail(&name, '|')))?);
    }
    Ok(found)
}

impl Engine {
    /// A grant's token: it says where the grant is, and only this store makes it.
    pub(super) fn grant_token(&self, grant: &GrantRecord) -> String {
        let mut plain = Vec::new();
        push(&mut plain, grant.slot.as_bytes());
        plain.extend_from_slice(grant.id.as_bytes());
        hex::encode(&self.store.key.seal(labels::GRANT_TOKEN_AD, &plain))
    }

    /// The grant that a token stands for. One that was retired since gives none.
    pub(super) fn grant_of_token(&self, token: &str) -> Result<Option<GrantRecord>, KmsError> {
        let invalid = || KmsError::exception("InvalidGrantTokenException", "The grant token is not valid.");
        let sealed = hex::decode(token).ok_or_else(invalid)?;
        let plain = self.store.key.open(labels::GRANT_TOKEN_AD, &sealed).map_err(|_| invalid())?;
        let (len, rest) = plain.split_first_chunk::<4>().ok_or_else(invalid)?;
        let len = usize::try_from(u32::from_le_bytes(*len)).map_err(|_| invalid())?;
        let (slot, id) = rest.split_at_checked(len).ok_or_else(invalid)?;
        let (Ok(slot), Ok(id)) = (std::str::from_utf8(slot), std::str::from_utf8(id)) else {
            return Err(invalid());
        };
        self.store.read(|r| r.get(GRANTS, &place(slot, id)))
    }
}
