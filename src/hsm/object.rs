//! Objects: how a template becomes one, and what of it may be changed later.

use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};

use cryptoki_sys::*;

use super::Ck;
use super::attrs::{Attrs, STATED, USES};
use super::budget::Reserved;
use super::cluster::Stamp;
use super::material::{self, Key};
use crate::crypto::random;

/// One object. Shared by everybody who works with it; a change makes a new one in its place.
pub(super) struct Object {
    /// The same on every member of a cluster.
    pub(super) handle: u64,
    /// The crypto user that made it; empty for what was made by none.
    pub(super) owner: String,
    /// Crypto users that may use it.
    pub(super) shared: BTreeSet<String>,
    /// Application and session of a session object.
    pub(super) session: Option<(u64, u64)>,
    /// Approvals that a use and a change of the key need; 0 for none.
    pub(super) quorum: KeyQuorum,
    pub(super) attrs: Attrs,
    /// When it was last changed; digest of that version, once somebody asked.
    pub(super) stamp: Stamp,
    pub(super) digest: OnceLock<[u8; 16]>,
    /// What a session object takes of its application's share.
    pub(super) reserved: Option<Reserved>,
    /// The key made ready, at its first use.
    ready: OnceLock<Ck<Arc<Key>>>,
}

/// How many of a key's users must approve (CloudHSM: services key-usage and key-management).
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(super) struct KeyQuorum {
    /// To sign.
    pub(super) usage: u32,
    /// To wrap, unwrap, share and change.
    pub(super) management: u32,
}

impl Object {
    pub(super) fn new(owner: &str, session: Option<(u64, u64)>, attrs: Attrs) -> Self {
        // Seven random bytes: a handle is not guessed from another, and never 0 or CK_UNAVAILABLE_INFORMATION.
        let handle = u64::from_le_bytes(random::array()) >> 8 | 1 << 48;
        Self::with(handle, owner.to_owned(), BTreeSet::new(), session, KeyQuorum::default(), attrs)
    }

    pub(super) fn with(
        handle: u64,
        owner: String,
        shared: BTreeSet<String>,
        session: Option<(u64, u64)>,
        quorum: KeyQuorum,
        attrs: Attrs,
    ) -> Self {
        Self {
            handle,
            owner,
            shared,
            session,
            quorum,
            attrs,
            stamp: Stamp::default(),
            digest: OnceLock::new(),
            reserved: None,
            ready: OnceLock::new(),
        }
    }

    /// The same object with other attributes.
    pub(super) fn changed(&self, attrs: Attrs) -> Self {
        Self::with(self.handle, self.owner.clone(), self.shared.clone(), self.session, self.quorum, attrs)
    }

    /// The same object without some of its sharees, changed at that time.
    pub(super) fn unshared(&self, stamp: Stamp, out: impl Fn(&str) -> bool) -> Self {
        let mut new = self.changed(self.attrs.clone());
        new.shared.retain(|sharee| !out(sharee));
        new.stamp = stamp;
        new
    }

    /// The key, ready to work.
    pub(super) fn key(&self) -> Ck<Arc<Key>> {
        self.ready.get_or_init(|| Key::of(&self.attrs).map(Arc::new)).clone()
    }

    /// Whether a crypto user owns it, or it is shared with him.
    pub(super) fn is_of(&self, name: &str) -> bool {
        self.owner == name || self.shared.contains(name)
    }

    pub(super) fn is_token(&self) -> bool {
        self.attrs.flag(CKA_TOKEN)
    }
}

/// How an object comes into being.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// C_CreateObject: the caller gives the material.
    Created,
    /// C_GenerateKey, C_GenerateKeyPair, by this mechanism.
    Generated(u64),
    /// C_UnwrapKey.
    Unwrapped,
    /// C_DeriveKey; the parent's ALWAYS_SENSITIVE and NEVER_EXTRACTABLE.
    Derived { sensitive: bool, unextractable: bool },
}

/// Completes a template, into which the material was put already, to the attributes of an object.
///
/// `given` is what the caller's template held: uses that it does not name are allowed only where it names none.
pub(super) fn complete(mut attrs: Attrs, given: &Attrs, origin: Origin) -> Ck<Attrs> {
    refuse_stated(given)?;
    if given.flag(CKA_TRUSTED) {
        // Only the CO sets it, afterwards.
        return Err(CKR_ATTRIBUTE_READ_ONLY);
    }
    let class = attrs.number(CKA_CLASS).ok_or(CKR_TEMPLATE_INCOMPLETE)?;
    let secret = attrs.is_secret();
    attrs.default(CKA_TOKEN, &[0]);
    attrs.default(CKA_PRIVATE, &[u8::from(secret)]);
    for flag in [CKA_MODIFIABLE, CKA_COPYABLE, CKA_DESTROYABLE] {
        attrs.default(flag, &[1]);
    }
    attrs.default(CKA_LABEL, b"");
    match class {
        CKO_DATA => {
            for name in [CKA_APPLICATION, CKA_OBJECT_ID, CKA_VALUE] {
                attrs.default(name, b"");
            }
        }
        CKO_CERTIFICATE => certificate(&mut attrs)?,
        CKO_PUBLIC_KEY | CKO_PRIVATE_KEY | CKO_SECRET_KEY => key(&mut attrs, given, origin)?,
        CKO_DOMAIN_PARAMETERS => return Err(CKR_TEMPLATE_INCONSISTENT),
        _ => return Err(CKR_ATTRIBUTE_VALUE_INVALID),
    }
    foreign(&attrs)?;
    Ok(attrs)
}

/// Facts that the appliance states cannot be given.
fn refuse_stated(given: &Attrs) -> Ck<()> {
    match STATED.iter().any(|name| given.has(*name)) {
        true => Err(CKR_ATTRIBUTE_READ_ONLY),
        false => Ok(()),
    }
}

fn certificate(attrs: &mut Attrs) -> Ck<()> {
    let kind = attrs.number(CKA_CERTIFICATE_TYPE).ok_or(CKR_TEMPLATE_INCOMPLETE)?;
    if kind != CKC_X_509 {
        return Err(CKR_ATTRIBUTE_VALUE_INVALID);
    }
    if !attrs.has(CKA_VALUE) && !attrs.has(CKA_URL) {
        return Err(CKR_TEMPLATE_INCOMPLETE);
    }
    attrs.default(CKA_TRUSTED, &[0]);
    attrs.default(CKA_CERTIFICATE_CATEGORY, &0u64.to_le_bytes());
    for name in [CKA_ID, CKA_ISSUER, CKA_SERIAL_NUMBER, CKA_SUBJECT, CKA_START_DATE, CKA_END_DATE] {
        attrs.default(name, b"");
    }
    Ok(())
}

fn key(attrs: &mut Attrs, given: &Attrs, origin: Origin) -> Ck<()> {
    let class = attrs.class();
    let key_type = attrs.key_type().ok_or(CKR_TEMPLATE_INCOMPLETE)?;
    for name in [CKA_ID, CKA_START_DATE, CKA_END_DATE] {
        attrs.default(name, b"");
    }
    attrs.default(CKA_ALLOWED_MECHANISMS, b"");
    uses(attrs, given, class, key_type)?;
    let local = matches!(origin, Origin::Generated(_));
    attrs.set_flag(CKA_LOCAL, local);
    let by = if let Origin::Generated(mechanism) = origin { mechanism } else { CK_UNAVAILABLE_INFORMATION };
    attrs.set_number(CKA_KEY_GEN_MECHANISM, by);
    if class == CKO_PUBLIC_KEY || class == CKO_PRIVATE_KEY {
        attrs.default(CKA_SUBJECT, b"");
    }
    if class == CKO_PUBLIC_KEY || class == CKO_SECRET_KEY {
        attrs.default(CKA_TRUSTED, &[0]);
    }
    if attrs.is_secret() {
        attrs.default(CKA_SENSITIVE, &[1]);
        attrs.default(CKA_EXTRACTABLE, &[0]);
        attrs.default(CKA_WRAP_WITH_TRUSTED, &[0]);
        if class == CKO_PRIVATE_KEY {
            attrs.default(CKA_ALWAYS_AUTHENTICATE, &[0]);
        }
        let (sensitive, unextractable) = match origin {
            Origin::Generated(_) => (true, true),
            Origin::Derived { sensitive, unextractable } => (sensitive, unextractable),
            Origin::Created | Origin::Unwrapped => (false, false),
        };
        attrs.set_flag(CKA_ALWAYS_SENSITIVE, sensitive && attrs.flag(CKA_SENSITIVE));
        attrs.set_flag(CKA_NEVER_EXTRACTABLE, unextractable && !attrs.flag(CKA_EXTRACTABLE));
    }
    material::finish(attrs)?;
    // One that was given must be the key's own.
    if given.bytes(CKA_CHECK_VALUE).is_some_and(|v| !v.is_empty() && Some(v) != attrs.bytes(CKA_CHECK_VALUE))
    {
        return Err(CKR_ATTRIBUTE_VALUE_INVALID);
    }
    Ok(())
}

/// The uses that a key of this class and type can have.
fn possible(class: u64, key_type: u64) -> &'static [u64] {
    match (class, key_type) {
        (CKO_PUBLIC_KEY, CKK_RSA) => &[CKA_ENCRYPT, CKA_VERIFY, CKA_VERIFY_RECOVER, CKA_WRAP, CKA_DERIVE],
        (CKO_PUBLIC_KEY, _) => &[CKA_VERIFY, CKA_DERIVE, CKA_ENCRYPT, CKA_WRAP, CKA_VERIFY_RECOVER],
        (CKO_PRIVATE_KEY, _) => &[CKA_DECRYPT, CKA_SIGN, CKA_SIGN_RECOVER, CKA_UNWRAP, CKA_DERIVE],
        _ => &[CKA_ENCRYPT, CKA_DECRYPT, CKA_SIGN, CKA_VERIFY, CKA_WRAP, CKA_UNWRAP, CKA_DERIVE],
    }
}

fn uses(attrs: &mut Attrs, given: &Attrs, class: u64, key_type: u64) -> Ck<()> {
    let possible = possible(class, key_type);
    if USES.iter().any(|u| given.flag(*u) && !possible.contains(u)) {
        return Err(CKR_TEMPLATE_INCONSISTENT);
    }
    // One that cannot be had says no, and is not there.
    attrs.0.retain(|name, _| !USES.contains(name) || possible.contains(name));
    let named = USES.iter().any(|u| given.flag(*u));
    for name in possible {
        let natural = !matches!(*name, CKA_DERIVE | CKA_SIGN_RECOVER | CKA_VERIFY_RECOVER);
        let able = key_type == CKK_RSA || class == CKO_SECRET_KEY || matches!(*name, CKA_SIGN | CKA_VERIFY);
        attrs.default(*name, &[u8::from(!named && natural && able)]);
    }
    Ok(())
}

/// Attributes that such an object does not have.
fn foreign(attrs: &Attrs) -> Ck<()> {
    let key_only = |name: u64| {
        USES.contains(&name)
            || matches!(
                name,
                CKA_KEY_TYPE
                    | CKA_SENSITIVE
                    | CKA_EXTRACTABLE
                    | CKA_MODULUS
                    | CKA_EC_PARAMS
                    | CKA_EC_POINT
                    | CKA_VALUE_LEN
                    | CKA_WRAP_WITH_TRUSTED
                    | CKA_ALWAYS_AUTHENTICATE
            )
    };
    if !attrs.is_key() && attrs.0.keys().any(|name| key_only(*name)) {
        return Err(CKR_TEMPLATE_INCONSISTENT);
    }
    if attrs.is_key() && attrs.has(CKA_CERTIFICATE_TYPE) {
        return Err(CKR_TEMPLATE_INCONSISTENT);
    }
    Ok(())
}

/// Who changes an attribute.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    /// The owner.
    Owner,
    /// The CO, who may set CKA_TRUSTED and nothing else.
    Officer,
    /// C_CopyObject, which may also choose token or session, and public or private.
    Copy,
}

/// Applies a template of changes (C_SetAttributeValue, C_CopyObject): all of it or nothing.
pub(super) fn change(old: &Attrs, changes: &Attrs, by: By) -> Ck<Attrs> {
    let mut new = old.clone();
    // Nobody keeps his trust by making the key unchangeable.
    if by == By::Owner && !old.flag(CKA_MODIFIABLE) {
        return Err(CKR_ACTION_PROHIBITED);
    }
    let trusted = old.flag(CKA_TRUSTED) && by == By::Owner;
    for (name, value) in &changes.0 {
        if by == By::Officer && *name != CKA_TRUSTED {
            return Err(CKR_USER_NOT_LOGGED_IN);
        }
        let same = old.0.get(name) == Some(value);
        let on = value.as_slice() == [1];
        let allowed = match *name {
            CKA_LABEL
            | CKA_ID
            | CKA_SUBJECT
            | CKA_START_DATE
            | CKA_END_DATE
            | CKA_ISSUER
            | CKA_SERIAL_NUMBER
            | CKA_APPLICATION
            | CKA_OBJECT_ID
            | CKA_URL
            | CKA_CERTIFICATE_CATEGORY => true,
            CKA_TRUSTED => by == By::Officer || by == By::Copy && !on || by == By::Owner && same,
            CKA_SENSITIVE | CKA_WRAP_WITH_TRUSTED => same || on,
            CKA_EXTRACTABLE | CKA_COPYABLE | CKA_DESTROYABLE => same || !on,
            CKA_TOKEN => same || by == By::Copy || on,
            CKA_PRIVATE => same || by == By::Copy,
            CKA_MODIFIABLE => same || by == By::Copy || !on,
            CKA_VALUE => same || old.class() == CKO_DATA,
            // A key that never was to leave does not come to have children.
            CKA_DERIVE if on && !same && old.class() == CKO_SECRET_KEY && old.flag(CKA_NEVER_EXTRACTABLE) => {
                false
            }
            // What the officer trusts comes to do no more than when he looked at it.
            name if USES.contains(&name) => old.has(name) && (same || !on || !trusted),
            _ => false,
        };
        if !allowed {
            return Err(if same { CKR_OK_OR_READ_ONLY } else { CKR_ATTRIBUTE_READ_ONLY });
        }
        new.0.insert(*name, value.clone());
    }
    if by == By::Copy && old.flag(CKA_TRUSTED) {
        new.set_flag(CKA_TRUSTED, false);
    }
    if new.class() == CKO_SECRET_KEY {
        new.remember(old);
    }
    no_new_leak(old, &new)?;
    foreign(&new)?;
    Ok(new)
}

/// What a template that repeats a fact is answered.
const CKR_OK_OR_READ_ONLY: CK_RV = CKR_ATTRIBUTE_READ_ONLY;

/// A key does not come to wrap and decrypt, or to unwrap and encrypt, by later changes, also not to the one after the other
/// (Clulow 2003; Bortolozzo, Focardi 2010, "Tookan"): what it wrapped before would be decrypted.
fn no_new_leak(old: &Attrs, new: &Attrs) -> Ck<()> {
    let both = |a: &Attrs, x, y| a.ever(x) && a.ever(y);
    for (x, y) in [(CKA_WRAP, CKA_DECRYPT), (CKA_UNWRAP, CKA_ENCRYPT)] {
        if new.class() == CKO_SECRET_KEY && both(new, x, y) && !both(old, x, y) {
            return Err(CKR_TEMPLATE_INCONSISTENT);
        }
    }
    Ok(())
}
