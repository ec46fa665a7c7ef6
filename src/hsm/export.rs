//! A key as a file under a password, and a key's successor.
//!
//! The file holds all attributes, sealed under Argon2id of the password; it is made and opened in the appliance. It leaves
//! by its owner's word only, and only if it may leave at all.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use cryptoki_sys::*;
use serde_json::{Value, json};

use super::Ck;
use super::admin::{Refusal, refuse};
use super::appliance::{App, Appliance};
use super::attrs::{Attrs, STATED, is_note};
use super::cluster::object_key;
use super::material;
use super::object::{Object, Origin, complete};
use super::passworded::Kind;
use super::quorum::{Guard, Pass, Terms};
use super::users::{MIN_PASSWORD, Permission};
use super::wire::Template;

/// The file of an exported key. Never edit it.
pub(super) const EXPORT: Kind = Kind { magic: b"EFSKEY01", label: b"envelopefs/hsm/v1/export" };

impl Appliance {
    /// `key export`: the file's bytes in base64.
    pub(super) fn key_export(&self, app: &App, handle: u64, password: &[u8]) -> Result<Value, Refusal> {
        let object = self.object(app, handle)?;
        Self::need_owner(app, &object)?;
        let attrs = &object.attrs;
        if !attrs.is_secret() {
            return Err(Refusal(
                "only secret and private keys are exported; a public key is no secret".into(),
            ));
        }
        if !attrs.flag(CKA_EXTRACTABLE) {
            return Err(Refusal("the key is not extractable: it never leaves the cluster".into()));
        }
        if attrs.flag(CKA_WRAP_WITH_TRUSTED) {
            return Err(Refusal(
                "the key leaves wrapped under a trusted key only (wrap-with-trusted)".into(),
            ));
        }
        if password.len() < MIN_PASSWORD {
            return Err(Refusal(format!("the password of an export has at least {MIN_PASSWORD} characters")));
        }
        self.with_approval(app, &Guard::management(&object), || {
            let file = EXPORT.seal(password, self.file_cost(), &attrs.encode());
            let file = file.ok_or_else(|| Refusal("Argon2id refuses its cost".into()))?;
            Ok(json!({ "exported": BASE64.encode(file) }))
        })
    }

    /// `key import`: a new token key of the caller's, with the file's attributes.
    pub(super) fn key_import(
        &self,
        app: &App,
        file: &str,
        password: &[u8],
        label: Option<&str>,
        terms: &Terms,
    ) -> Result<Value, Refusal> {
        let owner = app.crypto_user(Permission::KeyManagement)?;
        self.check_terms(&owner, terms)?;
        let refused = || Refusal("wrong password, or the file was cut or changed".into());
        let bytes = BASE64.decode(file).map_err(|_| refused())?;
        let plain = EXPORT.open(password, &bytes).ok_or_else(refused)?;
        // Whoever knows the password may have made the file himself: it is looked at as any template.
        let mut template: Template = super::wire::decode(&plain).ok_or_else(refused)?;
        template.retain(|(name, _)| !is_note(*name));
        let mut given = Attrs::of(template)?;
        // Facts are stated anew: it was outside. Trust is the officer's to give.
        let facts = [CKA_TRUSTED, CKA_VALUE_LEN, CKA_CHECK_VALUE, CKA_MODULUS_BITS, CKA_PUBLIC_KEY_INFO];
        for name in STATED.iter().chain(&facts) {
            given.0.remove(name);
        }
        given.set_flag(CKA_TOKEN, true);
        if let Some(label) = label {
            given.set(CKA_LABEL, label.as_bytes());
        }
        let attrs = complete(given.clone(), &given, Origin::Created)?;
        if !attrs.is_secret() {
            return Err(refused());
        }
        self.not_weak(&attrs)?;
        let handle = self.put_one(Object::new(&owner, None, attrs), terms)?;
        Ok(json!({ "key-reference": format!("{handle:#x}") }))
    }

    /// `key rotate`: a new secret key takes label, uses and shares over; the old one stays, under another label.
    pub(super) fn key_rotate(&self, app: &App, handle: u64) -> Result<Value, Refusal> {
        Self::need_owner(app, &*self.object(app, handle)?)?;
        self.with_pass(app, |pass| self.replace_key(app, pass, handle))
    }

    fn replace_key(&self, app: &App, pass: &mut Pass<'_>, handle: u64) -> Result<Value, Refusal> {
        let (mut fresh, mut labels) = (0, (Vec::new(), Vec::new()));
        // Both at once: there is never no key of that label, nor two.
        self.change_object(handle, |old| -> Result<_, Refusal> {
            Self::need_owner(app, old)?;
            if old.attrs.class() != CKO_SECRET_KEY || !old.is_token() {
                return refuse("only secret token keys are rotated; make a new pair and share it");
            }
            if !old.attrs.flag(CKA_MODIFIABLE) {
                return refuse("the key's label cannot be changed (modifiable=false)");
            }
            let (new, kept) = successor(old)?;
            pass.need(&Guard::management(old))?;
            let label = |of: &Object| of.attrs.bytes(CKA_LABEL).unwrap_or_default().to_vec();
            (fresh, labels) = (new.handle, (label(old), label(&kept)));
            Ok(vec![new, kept])
        })?;
        let (label, was) = labels;
        let keys = [object_key(fresh), object_key(handle)];
        if !self.available(&keys) {
            self.remove(fresh, |_| Ok(()))?;
            self.change_object(handle, |now| -> Ck<_> {
                let mut attrs = now.attrs.clone();
                if attrs.bytes(CKA_LABEL) == Some(&was) {
                    attrs.set(CKA_LABEL, &label);
                }
                Ok(vec![now.changed(attrs)])
            })?;
            return Err(CKR_TOKEN_WRITE_PROTECTED.into());
        }
        Ok(json!({
            "key-reference": format!("{fresh:#x}"),
            "old-key-reference": format!("{handle:#x}"),
            "old-label": String::from_utf8_lossy(&was),
        }))
    }
}

/// The new key, and the old one under the label that it has from then on.
fn successor(old: &Object) -> Ck<(Object, Object)> {
    let mut given = old.attrs.clone();
    for name in STATED.iter().chain(&[CKA_VALUE, CKA_CHECK_VALUE, CKA_TRUSTED, CKA_ID]) {
        given.0.remove(name);
    }
    given.0.retain(|name, _| !is_note(*name));
    let key_type = given.key_type().ok_or(CKR_KEY_TYPE_INCONSISTENT)?;
    let len = old.attrs.bytes(CKA_VALUE).map_or(0, |v| v.len() as u64);
    let mut attrs = given.clone();
    attrs.set_number(CKA_VALUE_LEN, len);
    material::secret(&mut attrs, key_type)?;
    let mechanism = if key_type == CKK_AES { CKM_AES_KEY_GEN } else { CKM_GENERIC_SECRET_KEY_GEN };
    let attrs = complete(attrs, &given, Origin::Generated(mechanism))?;
    let mut new = Object::new(&old.owner, None, attrs);
    new.shared.clone_from(&old.shared);
    new.quorum = old.quorum;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let mut label = old.attrs.bytes(CKA_LABEL).unwrap_or_default().to_vec();
    label.extend_from_slice(format!(".until-{}", now.as_millis()).as_bytes());
    let mut attrs = old.attrs.clone();
    attrs.set(CKA_LABEL, &label);
    Ok((new, old.changed(attrs)))
}
