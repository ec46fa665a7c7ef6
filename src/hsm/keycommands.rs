//! Commands about keys: listing, sharing, files, rotation, and masked objects.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use cryptoki_sys::*;
use serde_json::{Value, json};

use super::Ck;
use super::admin::{Command, Refusal, refuse};
use super::appliance::{App, Appliance};
use super::attrs::Attrs;
use super::cluster::{Version, object_key};
use super::lc::{Hmac, Md};
use super::object::Object;
use super::quorum::{Guard, Pass};
use super::record;
use super::users::{Permission, Role};

impl Appliance {
    pub(super) fn key_command(&self, app: &Arc<App>, command: Command) -> Result<Value, Refusal> {
        match command {
            Command::KeyList => self.key_list(app),
            Command::KeyShare { handle, username, share } => {
                let result = self.key_share(app, handle, &username, share);
                let opcode = if share { "CN_SHARE_OBJECT" } else { "CN_UNSHARE_OBJECT" };
                let name = username.to_lowercase();
                let result = self.logged(app, opcode, &format!("{handle:#x} {}", self.known(&name)), result);
                result.map(|done| self.covered(done, &[object_key(handle)]))
            }
            Command::KeyExport { handle, password } => {
                let result = self.key_export(app, handle, password.0.as_bytes());
                self.logged(app, "CN_GEN_PSWD_ENC_KEY", &format!("{handle:#x}"), result)
            }
            Command::KeyImport { file, password, label, terms } => {
                let result = self.key_import(app, &file, password.0.as_bytes(), label.as_deref(), &terms);
                let made = result.as_ref().ok().and_then(|v| v["key-reference"].as_str()).unwrap_or_default();
                let made = made.to_owned();
                self.logged(app, "CN_CREATE_OBJECT", &made, result)
            }
            Command::KeyRotate { handle } => {
                let result = self.key_rotate(app, handle);
                self.logged(app, "CN_ROTATE_KEY", &format!("{handle:#x}"), result)
            }
            Command::KeyReplicate { handle } => {
                Self::need_owner(app, &*self.object(app, handle)?)?;
                self.replicate(object_key(handle))
            }
            Command::SyncStatus => {
                Self::need(app, Permission::SyncStatus)?;
                self.digests()
            }
            Command::ExtractMasked { handle } => {
                let result = self.extract_masked(app, handle);
                self.logged(app, "CN_EXTRACT_MASKED_OBJECT_USER", &format!("{handle:#x}"), result)
            }
            Command::InsertMasked { masked } => {
                let result = self.insert_masked(app, &masked);
                self.logged(app, "CN_INSERT_MASKED_OBJECT_USER", "", result)
            }
            other => self.quorum_command(app, other),
        }
    }

    fn key_list(&self, app: &App) -> Result<Value, Refusal> {
        Self::need(app, Permission::KeyManagement)?;
        let handles = {
            let state = self.state.read();
            let mut all: Vec<_> =
                state.objects.values().filter(|o| o.is_token() && o.attrs.is_key()).cloned().collect();
            all.sort_by_key(|o| o.handle);
            all
        };
        let mine: Vec<_> =
            handles.iter().filter(|o| self.object(app, o.handle).is_ok()).map(|o| self.describe(o)).collect();
        Ok(json!({ "total_key_count": mine.len(), "returned_key_count": mine.len(), "matched_keys": mine }))
    }

    fn key_share(&self, app: &App, handle: u64, username: &str, share: bool) -> Result<Value, Refusal> {
        Self::need_owner(app, &*self.object(app, handle)?)?;
        let name = username.to_lowercase();
        let change = |object: &Arc<Object>, pass: &mut Pass<'_>| -> Result<Vec<Object>, Refusal> {
            Self::need_owner(app, object)?;
            // Any name is taken out of a share, of a user or not.
            let known = self.state.read().users.get(&name).is_some_and(|u| u.role == Role::CryptoUser)
                || !share && object.shared.contains(&name);
            if !known {
                return refuse(format!("there is no crypto-user named {name}"));
            }
            if !object.is_token() || name == object.owner {
                return refuse("only token keys are shared, and with others than their owner");
            }
            let mut shared = object.shared.clone();
            let changed = if share { shared.insert(name.clone()) } else { shared.remove(&name) };
            if !changed {
                return Ok(Vec::new());
            }
            if !share {
                self.can_spare(object, &name)?;
            }
            pass.need(&Guard::management(object))?;
            let (owner, attrs) = (object.owner.clone(), object.attrs.clone());
            Ok(vec![Object::with(handle, owner, shared, None, object.quorum, attrs)])
        };
        self.with_pass(app, |pass| self.change_object(handle, |object| change(object, pass)))?;
        Ok(json!({ "message": if share { "Key shared successfully" } else { "Key unshared successfully" } }))
    }

    /// Digests that members of one cluster compare, and from which nobody else learns whether he guessed a key.
    fn digests(&self) -> Result<Value, Refusal> {
        let key = self.sync_key()?;
        let objects: Vec<_> = {
            let state = self.state.read();
            state.objects.values().filter(|o| o.is_token()).cloned().collect()
        };
        let digest = |o: &Object| -> Ck<String> {
            let mac = Hmac::mac(Md::Sha256, key.expose(), &record::encode(o));
            mac.map(|mac| super::root::hex(&mac)).map_err(|_| CKR_FUNCTION_FAILED)
        };
        let all = objects.iter().map(|o| digest(o).map(|digest| (format!("{:#x}", o.handle), digest)));
        let all: std::collections::BTreeMap<String, String> = all.collect::<Ck<_>>()?;
        Ok(json!({ "keys": all }))
    }

    fn extract_masked(&self, app: &App, handle: u64) -> Result<Value, Refusal> {
        Self::need(app, Permission::MaskedObjects)?;
        let object = self.state.read().objects.get(&handle).cloned().filter(|o| o.is_token());
        let object = object.ok_or(CKR_OBJECT_HANDLE_INVALID)?;
        // A crypto user clones his own keys; officers and the appliance user synchronise all.
        if app.role() == Some(Role::CryptoUser) {
            self.object(app, handle)?;
        }
        let sealed = self.mask()?.seal(super::backup::MASKED_AD, &record::encode(&object));
        Ok(json!({ "masked": BASE64.encode(sealed) }))
    }

    fn insert_masked(&self, app: &App, masked: &str) -> Result<Value, Refusal> {
        Self::need(app, Permission::MaskedObjects)?;
        let other = || Refusal("not a masked object of this cluster, or it was changed".into());
        let sealed = BASE64.decode(masked).map_err(|_| other())?;
        let plain = self.mask()?.open(super::backup::MASKED_AD, &sealed).map_err(|_| other())?;
        let object = record::decode_object(&plain).ok_or_else(other)?;
        let handle = object.handle;
        // What a user brings in himself is one of his own.
        if app.role() == Some(Role::CryptoUser) && app.crypto_user(Permission::KeyManagement)? != object.owner
        {
            return Err(CKR_ACTION_PROHIBITED.into());
        }
        {
            let state = self.state.read();
            // Nobody remembers whether it was deleted.
            if !state.objects.contains_key(&handle) && object.stamp.time <= state.meta.horizon {
                return refuse(
                    "the key is older than the deletions that the cluster remembers; it does not come back",
                );
            }
        }
        self.absorb(vec![Version {
            key: object_key(handle),
            stamp: object.stamp.clone(),
            body: Some(plain),
        }])?;
        if !self.state.read().objects.contains_key(&handle) {
            return refuse("the key was deleted in this cluster; it does not come back");
        }
        Ok(json!({ "key-reference": format!("{handle:#x}") }))
    }

    /// A key as `key list --verbose` shows it.
    fn describe(&self, object: &Object) -> Value {
        let coverage = self.coverage(&[object_key(object.handle)]);
        let attrs: &Attrs = &object.attrs;
        let text = |name| String::from_utf8_lossy(attrs.bytes(name).unwrap_or_default()).into_owned();
        let class = match attrs.class() {
            CKO_SECRET_KEY => "secret-key",
            CKO_PRIVATE_KEY => "private-key",
            _ => "public-key",
        };
        let key_type = match attrs.key_type() {
            Some(CKK_AES) => "aes",
            Some(CKK_RSA) => "rsa",
            Some(CKK_EC) => "ec",
            Some(CKK_DES3 | CKK_DES2) => "des3",
            _ => "generic-secret",
        };
        let hex = |name| format!("0x{}", super::root::hex(attrs.bytes(name).unwrap_or_default()));
        json!({
            "key-reference": format!("{:#x}", object.handle),
            "key-info": {
                "key-owners": [{ "username": object.owner, "key-coverage": coverage }],
                "shared-users": object.shared.iter().map(|u| json!({ "username": u, "key-coverage": coverage })).collect::<Vec<_>>(),
                "key-quorum-values": { "manage-key-quorum-value": object.quorum.management, "use-key-quorum-value": object.quorum.usage },
                "cluster-coverage": coverage,
            },
            "attributes": {
                "key-type": key_type,
                "label": text(CKA_LABEL),
                "id": hex(CKA_ID),
                "check-value": hex(CKA_CHECK_VALUE),
                "class": class,
                "encrypt": attrs.flag(CKA_ENCRYPT),
                "decrypt": attrs.flag(CKA_DECRYPT),
                "token": attrs.flag(CKA_TOKEN),
                "always-sensitive": attrs.flag(CKA_ALWAYS_SENSITIVE),
                "derive": attrs.flag(CKA_DERIVE),
                "destroyable": attrs.flag(CKA_DESTROYABLE),
                "extractable": attrs.flag(CKA_EXTRACTABLE),
                "local": attrs.flag(CKA_LOCAL),
                "modifiable": attrs.flag(CKA_MODIFIABLE),
                "never-extractable": attrs.flag(CKA_NEVER_EXTRACTABLE),
                "private": attrs.flag(CKA_PRIVATE),
                "sensitive": attrs.flag(CKA_SENSITIVE),
                "sign": attrs.flag(CKA_SIGN),
                "trusted": attrs.flag(CKA_TRUSTED),
                "unwrap": attrs.flag(CKA_UNWRAP),
                "verify": attrs.flag(CKA_VERIFY),
                "wrap": attrs.flag(CKA_WRAP),
                "wrap-with-trusted": attrs.flag(CKA_WRAP_WITH_TRUSTED),
                "key-length-bytes": attrs.number(CKA_VALUE_LEN),
            }
        })
    }
}
