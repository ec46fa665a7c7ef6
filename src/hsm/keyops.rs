//! Objects on request: create, generate, copy, destroy, look at, change, find.

use std::sync::Arc;

use cryptoki_sys::*;

use super::Ck;
use super::appliance::{App, Appliance, Session};
use super::attrs::{Attrs, is_note};
use super::cluster::object_key;
use super::material;
use super::mechs;
use super::object::{By, Object, Origin, change, complete};
use super::quorum::{Guard, Pass, Terms};
use super::users::{Permission, Role};
use super::wire::{Bytes, MAX_FRAME, Mech, Template};

/// The most attributes that one request looks at.
const MAX_SHOWN: usize = 512;
/// The most bytes of values that one answer holds: half of a message.
const MAX_SHOWN_BYTES: usize = MAX_FRAME / 2;

/// An attribute as C_GetAttributeValue gives it: the value, or why there is none.
pub(super) type Shown = (u64, Option<Bytes>);

impl Appliance {
    /// Whether somebody may know of an object.
    fn sees(app: &App, object: &Object) -> bool {
        if object.session.is_some_and(|(a, _)| a != app.id) {
            return false;
        }
        if !object.attrs.flag(CKA_PRIVATE) {
            return true;
        }
        let login = app.login.read();
        login.as_ref().is_some_and(|l| l.role == Role::CryptoUser && object.is_of(&l.name))
    }

    pub(super) fn object(&self, app: &App, handle: u64) -> Ck<Arc<Object>> {
        let object = self.state.read().objects.get(&handle).cloned();
        object.filter(|o| Self::sees(app, o)).ok_or(CKR_OBJECT_HANDLE_INVALID)
    }

    /// A key that is to be used.
    pub(super) fn key_object(&self, app: &App, handle: u64) -> Ck<Arc<Object>> {
        Self::need(app, Permission::UseKeys)?;
        let object = self.object(app, handle).map_err(|_| CKR_KEY_HANDLE_INVALID)?;
        if object.attrs.is_key() { Ok(object) } else { Err(CKR_KEY_HANDLE_INVALID) }
    }

    /// Only its owner changes, wraps, deletes or shares a key; what was made by nobody belongs to all.
    pub(super) fn need_owner(app: &App, object: &Object) -> Ck<()> {
        let me = app.crypto_user(Permission::KeyManagement)?;
        if object.owner.is_empty() || object.owner == me { Ok(()) } else { Err(CKR_ACTION_PROHIBITED) }
    }

    /// Where new objects of a session go: refuses what the session or the login does not allow.
    fn home(app: &App, session: &Session, attrs: &Attrs) -> Ck<(String, Option<(u64, u64)>)> {
        let owner = app.crypto_user(Permission::KeyManagement)?;
        let token = attrs.flag(CKA_TOKEN);
        if token && !session.rw {
            return Err(CKR_SESSION_READ_ONLY);
        }
        Ok((owner, (!token).then_some((app.id, session.id))))
    }

    /// Makes an object of completed attributes.
    pub(super) fn place(&self, app: &App, s: u64, attrs: Attrs) -> Ck<Object> {
        let session = app.session(s)?;
        let (owner, home) = Self::home(app, &session, &attrs)?;
        let mut object = Object::new(&owner, home, attrs);
        if !object.is_token() {
            object.reserved = Some(app.budget.take(object.attrs.weight())?);
        }
        Ok(object)
    }

    /// New objects. Token objects go to the other members too: one of them at least must have them before they are used.
    pub(super) fn put(&self, mut objects: Vec<Object>, terms: &Terms) -> Ck<Vec<u64>> {
        for object in &mut objects {
            self.put_terms(object, terms)?;
        }
        let handles: Vec<u64> = objects.iter().map(|o| o.handle).collect();
        let kept: Vec<_> = objects.iter().filter(|o| o.is_token()).map(|o| object_key(o.handle)).collect();
        self.insert(objects)?;
        if !kept.is_empty() && !self.available(&kept) {
            for handle in &handles {
                match self.remove(*handle, |_| Ok(())) {
                    // Somebody else deleted it already.
                    Ok(()) | Err(CKR_OBJECT_HANDLE_INVALID) => {}
                    Err(rv) => return Err(rv),
                }
            }
            return Err(CKR_TOKEN_WRITE_PROTECTED);
        }
        Ok(handles)
    }

    pub(super) fn put_one(&self, object: Object, terms: &Terms) -> Ck<u64> {
        self.put(vec![object], terms)?.first().copied().ok_or(CKR_GENERAL_ERROR)
    }

    pub(super) fn create_object(&self, app: &App, s: u64, attrs: Template) -> Ck<u64> {
        app.session(s)?;
        Self::need(app, Permission::KeyManagement)?;
        let given = Attrs::of(attrs)?;
        let attrs = complete(given.clone(), &given, Origin::Created)?;
        self.not_weak(&attrs)?;
        self.put_one(self.place(app, s, attrs)?, &Terms::default())
    }

    /// Small private keys are there with `--legacy` only.
    pub(super) fn not_weak(&self, attrs: &Attrs) -> Ck<()> {
        let len = attrs.bytes(CKA_MODULUS).map_or(u64::MAX, |n| 8 * n.len() as u64);
        if attrs.is_secret() && !self.config.legacy && len < material::RSA_BITS.0 {
            return Err(CKR_KEY_SIZE_RANGE);
        }
        let curve = match attrs.key_type() {
            Some(CKK_EC) => attrs.bytes(CKA_EC_PARAMS).map(material::curve).transpose()?,
            _ => None,
        };
        if !self.config.legacy && curve == Some(super::lc::Curve::P192) {
            return Err(CKR_CURVE_NOT_SUPPORTED);
        }
        Ok(())
    }

    fn mechanism(&self, mech: &Mech, flag: u64) -> Ck<()> {
        match mechs::find(mech.kind, self.config.legacy) {
            Some(row) if row.flags & flag != 0 => Ok(()),
            _ => Err(CKR_MECHANISM_INVALID),
        }
    }

    pub(super) fn generate(&self, app: &App, s: u64, mech: &Mech, attrs: Template, terms: &Terms) -> Ck<u64> {
        app.session(s)?;
        self.mechanism(mech, CKF_GENERATE)?;
        Self::need(app, Permission::KeyManagement)?;
        let given = Attrs::of(attrs)?;
        let key_type = match mech.kind {
            CKM_AES_KEY_GEN => CKK_AES,
            CKM_DES2_KEY_GEN => CKK_DES2,
            CKM_DES3_KEY_GEN => CKK_DES3,
            _ => given.key_type().unwrap_or(CKK_GENERIC_SECRET),
        };
        let mut attrs = given.clone();
        expect(&mut attrs, CKO_SECRET_KEY, key_type)?;
        no_material(&given, &[CKA_VALUE])?;
        material::secret(&mut attrs, key_type)?;
        let attrs = complete(attrs, &given, Origin::Generated(mech.kind))?;
        self.put_one(self.place(app, s, attrs)?, terms)
    }

    pub(super) fn generate_pair(
        &self,
        app: &App,
        s: u64,
        mech: &Mech,
        public: Template,
        private: Template,
        terms: &Terms,
    ) -> Ck<(u64, u64)> {
        app.session(s)?;
        self.mechanism(mech, CKF_GENERATE_KEY_PAIR)?;
        Self::need(app, Permission::KeyManagement)?;
        let (given_public, given_private) = (Attrs::of(public)?, Attrs::of(private)?);
        let key_type = match mech.kind {
            CKM_EC_KEY_PAIR_GEN => CKK_EC,
            CKM_EC_EDWARDS_KEY_PAIR_GEN => CKK_EC_EDWARDS,
            _ => CKK_RSA,
        };
        let (mut public, mut private) = (given_public.clone(), given_private.clone());
        expect(&mut public, CKO_PUBLIC_KEY, key_type)?;
        expect(&mut private, CKO_PRIVATE_KEY, key_type)?;
        no_material(&given_private, &[CKA_VALUE, CKA_PRIVATE_EXPONENT, CKA_MODULUS])?;
        no_material(&given_public, &[CKA_MODULUS, CKA_EC_POINT])?;
        match key_type {
            CKK_RSA => material::rsa_pair(&mut public, &mut private, self.config.legacy)?,
            CKK_EC_EDWARDS => material::edwards_pair(&mut public, &mut private)?,
            _ => material::ec_pair(&mut public, &mut private)?,
        }
        self.not_weak(&private)?;
        let origin = Origin::Generated(mech.kind);
        let public = self.place(app, s, complete(public, &given_public, origin)?)?;
        let private = self.place(app, s, complete(private, &given_private, origin)?)?;
        match self.put(vec![public, private], terms)?.as_slice() {
            [public, private] => Ok((*public, *private)),
            _ => Err(CKR_GENERAL_ERROR),
        }
    }

    pub(super) fn copy(&self, app: &App, s: u64, handle: u64, attrs: Template) -> Ck<u64> {
        app.session(s)?;
        let object = self.object(app, handle)?;
        Self::need_owner(app, &object)?;
        // A copy would need nobody's approval.
        if !object.attrs.flag(CKA_COPYABLE) || Guard::management(&object).is_on() {
            return Err(CKR_ACTION_PROHIBITED);
        }
        let attrs = change(&object.attrs, &Attrs::of(attrs)?, By::Copy)?;
        self.put_one(self.place(app, s, attrs)?, &Terms::default())
    }

    pub(super) fn destroy(&self, app: &App, s: u64, handle: u64) -> Ck<bool> {
        let session = app.session(s)?;
        let object = self.object(app, handle)?;
        Self::need_owner(app, &object)?;
        if object.is_token() && !session.rw {
            return Err(CKR_SESSION_READ_ONLY);
        }
        self.remove(handle, |now| {
            Self::need_owner(app, now)?;
            if now.attrs.flag(CKA_DESTROYABLE) { Ok(()) } else { Err(CKR_ACTION_PROHIBITED) }
        })?;
        if object.is_token() {
            self.spread(&[object_key(handle)]);
        }
        Ok(object.is_token())
    }

    /// Values of attributes, and the worst of what was wrong with them.
    pub(super) fn show(&self, app: &App, s: u64, handle: u64, types: &[u64]) -> Ck<(u64, Vec<Shown>)> {
        app.session(s)?;
        if types.len() > MAX_SHOWN {
            return Err(CKR_ARGUMENTS_BAD);
        }
        let object = self.object(app, handle)?;
        let bytes: usize = types.iter().filter_map(|name| object.attrs.bytes(*name)).map(<[u8]>::len).sum();
        if bytes > MAX_SHOWN_BYTES {
            return Err(CKR_DEVICE_MEMORY);
        }
        let mut worst = CKR_OK;
        let shown = types
            .iter()
            .map(|name| {
                let value = object.attrs.0.get(name).filter(|_| !is_note(*name));
                let why = match value {
                    None => CKR_ATTRIBUTE_TYPE_INVALID,
                    Some(_) if object.attrs.hides(*name) => CKR_ATTRIBUTE_SENSITIVE,
                    Some(_) => return (*name, value.cloned()),
                };
                worst = why;
                (*name, None)
            })
            .collect();
        Ok((worst, shown))
    }

    pub(super) fn change(&self, app: &App, s: u64, handle: u64, attrs: Template) -> Ck<()> {
        let session = app.session(s)?;
        let changes = Attrs::of(attrs)?;
        let officer = app.role() == Some(Role::Admin);
        let (mut kept, mut was) = (false, None);
        let mut look = |object: &Arc<Object>, pass: &mut Pass<'_>| -> Ck<Vec<Object>> {
            if officer {
                // The officer cannot look for keys, but is told the handle of the one to trust.
                if !object.is_token() {
                    return Err(CKR_OBJECT_HANDLE_INVALID);
                }
            } else {
                if !Self::sees(app, object) {
                    return Err(CKR_OBJECT_HANDLE_INVALID);
                }
                Self::need_owner(app, object)?;
            }
            let attrs = change(&object.attrs, &changes, if officer { By::Officer } else { By::Owner })?;
            let mut new = object.changed(attrs);
            if (object.is_token() || new.is_token()) && !session.rw {
                return Err(CKR_SESSION_READ_ONLY);
            }
            if new.is_token() {
                new.session = None;
                if !object.is_token() {
                    let mut old = object.changed(object.attrs.clone());
                    old.reserved = Some(app.budget.take(old.attrs.weight())?);
                    was = Some(old);
                }
            } else {
                new.reserved = Some(app.budget.take(new.attrs.weight())?);
            }
            kept = new.is_token();
            // What an officer may set needs nobody's approval.
            if !officer {
                pass.need(&Guard::management(object))?;
            }
            Ok(vec![new])
        };
        self.with_pass(app, |pass| self.change_object(handle, |object| look(object, pass)))?;
        match was {
            // A new token key is on two members of a cluster, or none.
            Some(was) if !self.available(&[object_key(handle)]) => {
                self.recall(app, was)?;
                Err(CKR_TOKEN_WRITE_PROTECTED)
            }
            None if kept => {
                self.spread(&[object_key(handle)]);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    pub(super) fn find(&self, app: &App, s: u64, template: Template) -> Ck<Vec<u64>> {
        app.session(s)?;
        let Some(template) = Attrs::wanted(template)? else { return Ok(Vec::new()) };
        // Whoever waits to change something waits for this look alone, not for all comparisons.
        let seen: Vec<Arc<Object>> = {
            let state = self.state.read();
            state.objects.values().filter(|o| Self::sees(app, o)).cloned().collect()
        };
        let found = seen.iter().filter(|o| o.attrs.matches(&template));
        let mut found: Vec<_> = found.map(|o| o.handle).collect();
        found.sort_unstable();
        Ok(found)
    }
}

/// Class and key type, where the template leaves them out; another one is refused.
pub(super) fn expect(attrs: &mut Attrs, class: u64, key_type: u64) -> Ck<()> {
    attrs.default(CKA_CLASS, &class.to_le_bytes());
    attrs.default(CKA_KEY_TYPE, &key_type.to_le_bytes());
    if attrs.number(CKA_CLASS) == Some(class) && attrs.key_type() == Some(key_type) {
        Ok(())
    } else {
        Err(CKR_TEMPLATE_INCONSISTENT)
    }
}

/// Material that the appliance makes itself cannot be given.
fn no_material(given: &Attrs, names: &[u64]) -> Ck<()> {
    if names.iter().any(|name| given.has(*name)) { Err(CKR_TEMPLATE_INCONSISTENT) } else { Ok(()) }
}
