//! Management of an appliance from outside: what `envelopefs hsm` calls.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use cryptoki_sys::*;
use serde_json::Value;
use zeroize::Zeroizing;

use super::address::Address;
use super::admin::{Command, Zeroized};
use super::client::{Link, Lost, parse};
use super::error::HsmError;
use super::quorum::Sharing;
use super::root::{hex, unhex};
use super::tls::ClientTls;
use super::users::Role;
use super::wire::{Bytes, Mech, Params, Request, Template, Wire};

/// A connection for management.
pub struct Manager {
    link: Link,
}

/// The token file of a command line's login.
#[derive(serde::Serialize, serde::Deserialize)]
struct Kept {
    address: String,
    token: String,
}

/// A new key, or a pair.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NewKey {
    /// AES of so many bytes.
    Aes(u64),
    /// A generic secret of so many bytes.
    Generic(u64),
    /// RSA of so many bits.
    Rsa(u64),
    /// A curve, by the name that NIST or SECG gives it.
    Ec(&'static [u8]),
}

/// What an operation with a key that needs approvals is answered without them.
const NO_APPROVAL: &str = "Quorum Failed: the key has a quorum value; give --approval with a token of the service key-usage \
                           (to use it) or key-management (envelopefs hsm quorum token-sign generate)";

/// The curves of `generate-asymmetric-pair ec`: their names, and CKA_EC_PARAMS.
pub const CURVES: [(&str, &[u8]); 5] = [
    ("secp224r1", &[6, 5, 0x2b, 0x81, 4, 0, 0x21]),
    ("prime256v1", &[6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7]),
    ("secp384r1", &[6, 5, 0x2b, 0x81, 4, 0, 0x22]),
    ("secp521r1", &[6, 5, 0x2b, 0x81, 4, 0, 0x23]),
    ("secp256k1", &[6, 5, 0x2b, 0x81, 4, 0, 0x0a]),
];

/// Attributes of CloudHSM CLI that are yes or no.
const FLAGS: [(&str, u64); 17] = [
    ("encrypt", CKA_ENCRYPT),
    ("decrypt", CKA_DECRYPT),
    ("sign", CKA_SIGN),
    ("verify", CKA_VERIFY),
    ("wrap", CKA_WRAP),
    ("unwrap", CKA_UNWRAP),
    ("derive", CKA_DERIVE),
    ("sensitive", CKA_SENSITIVE),
    ("extractable", CKA_EXTRACTABLE),
    ("trusted", CKA_TRUSTED),
    ("wrap-with-trusted", CKA_WRAP_WITH_TRUSTED),
    ("token", CKA_TOKEN),
    ("private", CKA_PRIVATE),
    ("modifiable", CKA_MODIFIABLE),
    ("destroyable", CKA_DESTROYABLE),
    ("copyable", CKA_COPYABLE),
    ("always-authenticate", CKA_ALWAYS_AUTHENTICATE),
];

/// One `NAME=VALUE` of `--attributes`.
fn attribute(text: &str) -> Result<(u64, Bytes), HsmError> {
    let refused = || {
        HsmError::Refused(format!("{text}: no attribute; write as in: extractable=false, id=0x01, label=x"))
    };
    let (name, value) = text.split_once('=').ok_or_else(refused)?;
    let bytes = match (name, FLAGS.iter().find(|(n, _)| *n == name)) {
        (_, Some((_, kind))) => (*kind, vec![u8::from(value.parse::<bool>().map_err(|_| refused())?)]),
        ("label", None) => (CKA_LABEL, value.as_bytes().to_vec()),
        ("id", None) => (CKA_ID, unhex(value.trim_start_matches("0x")).ok_or_else(refused)?),
        _ => return Err(refused()),
    };
    Ok((bytes.0, Zeroizing::new(bytes.1)))
}

impl Manager {
    /// A client of the appliance at an address.
    ///
    /// # Errors
    /// TCP without certificates.
    pub fn new(address: Address, tls: Option<&ClientTls>) -> Result<Self, HsmError> {
        Ok(Self { link: Link::new(address, tls)? })
    }

    /// A client of the first of several members that answers; of the one where the login in `file` is, if it is among them.
    ///
    /// # Errors
    /// TCP without certificates; what the last member said where none answers.
    pub fn of_several(members: Vec<Address>, tls: Option<&ClientTls>, file: &Path) -> Result<Self, HsmError> {
        let kept = super::root::read_private(file).ok().and_then(|b| serde_json::from_slice::<Kept>(&b).ok());
        let is_kept = |a: &Address| kept.as_ref().is_some_and(|k| k.address == a.to_string());
        let (mut all, others): (Vec<_>, Vec<_>) = members.into_iter().partition(is_kept);
        all.extend(others);
        let mut last = HsmError::Refused("no HSM is named".into());
        let several = all.len() > 1;
        for address in all {
            let manager = Self::new(address, tls)?.resumed(file);
            match several.then(|| manager.hsm_info()) {
                None | Some(Ok(_)) => return Ok(manager),
                Some(Err(e)) => last = e,
            }
        }
        Err(last)
    }

    /// Goes on with the login that [`Manager::keep`] wrote, where it is for the same appliance.
    #[must_use]
    pub fn resumed(self, file: &Path) -> Self {
        let kept = super::root::read_private(file).ok().and_then(|b| serde_json::from_slice::<Kept>(&b).ok());
        match kept {
            Some(kept) if kept.address == self.link.address().to_string() => {
                let token = Zeroizing::new(unhex(&kept.token).unwrap_or_default());
                Self { link: self.link.resume(&token) }
            }
            _ => self,
        }
    }

    /// Keeps the login for the next command: a file of mode 0600.
    ///
    /// # Errors
    /// The disk's.
    pub fn keep(&self, file: &Path) -> Result<(), HsmError> {
        let kept = Kept { address: self.link.address().to_string(), token: hex(&self.link.token()) };
        let text = Zeroizing::new(serde_json::to_vec(&kept).map_err(|e| HsmError::Refused(e.to_string()))?);
        let (Some(dir), Some(name)) = (file.parent(), file.file_name().and_then(|n| n.to_str())) else {
            return Err(HsmError::Refused(format!("{}: no file name", file.display())));
        };
        std::fs::create_dir_all(dir).map_err(HsmError::io(dir))?;
        super::root::replace(dir, name, &text)
    }

    /// The link itself, for tests of what goes through it.
    #[cfg(test)]
    pub(super) fn clone_link(&self) -> Link {
        let Address::Unix(_) = self.link.address() else { panic!("tests use Unix sockets") };
        Link::new(self.link.address().clone(), None).expect("a Unix link").resume(&self.link.token())
    }

    pub(super) fn ask<T: Wire>(&self, request: &Request) -> Result<Result<T, CK_RV>, HsmError> {
        match self.link.ask(request) {
            Ok(answer) => Ok(parse(&answer)),
            Err(Lost::Unreachable(e)) => Err(e),
            Err(Lost::Broken) => Err(HsmError::Unreachable {
                at: self.link.address().to_string(),
                why: "the connection ended before the answer".into(),
            }),
        }
    }

    pub(super) fn admin(&self, command: &Command) -> Result<Value, HsmError> {
        let json = super::record::json(command);
        let answer: Result<Bytes, CK_RV> = self.ask(&Request::Admin { json })?;
        let answer = answer.map_err(|rv| HsmError::Refused(format!("refused with {rv:#x}")))?;
        let mut answer: Value =
            serde_json::from_slice(&answer).map_err(|e| HsmError::Refused(format!("no answer: {e}")))?;
        let data = answer["data"].take();
        if answer["error_code"] == 0 {
            return Ok(data);
        }
        Err(HsmError::Refused(data.as_str().unwrap_or("refused").to_owned()))
    }

    /// `login`.
    ///
    /// # Errors
    /// The appliance's refusal, as for all that follow; what it says is meant for people.
    pub fn login(&self, username: &str, role: Role, password: &str) -> Result<Value, HsmError> {
        let password = Zeroized(password.to_owned());
        self.admin(&Command::Login { username: username.into(), role, password })
    }

    /// `logout`.
    ///
    /// # Errors
    /// As for [`Manager::login`].
    pub fn logout(&self) -> Result<Value, HsmError> {
        self.admin(&Command::Logout)
    }

    /// `cluster hsm-info`.
    ///
    /// # Errors
    /// As for [`Manager::login`].
    pub fn hsm_info(&self) -> Result<Value, HsmError> {
        self.admin(&Command::HsmInfo)
    }

    /// `key export`: the bytes of a file under a password.
    ///
    /// # Errors
    /// As for [`Manager::login`].
    pub fn key_export(&self, handle: u64, password: &str) -> Result<Vec<u8>, HsmError> {
        let answer = self.admin(&Command::KeyExport { handle, password: Zeroized(password.to_owned()) })?;
        let text = answer["exported"].as_str().unwrap_or_default();
        BASE64.decode(text).map_err(|e| HsmError::Refused(format!("no answer: {e}")))
    }

    /// `key import` of such a file.
    ///
    /// # Errors
    /// As for [`Manager::login`].
    pub fn key_import(
        &self,
        file: &[u8],
        password: &str,
        label: Option<&str>,
        sharing: &Sharing,
    ) -> Result<Value, HsmError> {
        let (file, label) = (BASE64.encode(file), label.map(str::to_owned));
        let terms = sharing.terms();
        self.admin(&Command::KeyImport { file, password: Zeroized(password.to_owned()), label, terms })
    }

    /// `key rotate`: a new key in the old one's place.
    ///
    /// # Errors
    /// As for [`Manager::login`].
    pub fn key_rotate(&self, handle: u64) -> Result<Value, HsmError> {
        self.admin(&Command::KeyRotate { handle })
    }

    /// `cluster add`: the HSM at an address becomes a member.
    ///
    /// # Errors
    /// As for [`Manager::login`].
    pub fn cluster_add(&self, member: &str) -> Result<Value, HsmError> {
        self.admin(&Command::ClusterAdd { member: member.into() })
    }

    /// `cluster remove`: a member, by serial number or address.
    ///
    /// # Errors
    /// As for [`Manager::login`].
    pub fn cluster_remove(&self, member: &str) -> Result<Value, HsmError> {
        self.admin(&Command::ClusterRemove { member: member.into() })
    }

    /// `user replicate`.
    ///
    /// # Errors
    /// As for [`Manager::login`].
    pub fn user_replicate(&self, username: &str) -> Result<Value, HsmError> {
        self.admin(&Command::UserReplicate { username: username.into() })
    }

    /// `key replicate`.
    ///
    /// # Errors
    /// As for [`Manager::login`].
    pub fn key_replicate(&self, handle: u64) -> Result<Value, HsmError> {
        self.admin(&Command::KeyReplicate { handle })
    }

    /// How the appliance is.
    ///
    /// # Errors
    /// As for [`Manager::login`].
    pub fn health(&self) -> Result<Value, HsmError> {
        self.admin(&Command::Health)
    }

    /// The certificate signing request.
    ///
    /// # Errors
    /// As for [`Manager::login`].
    pub fn csr(&self) -> Result<Value, HsmError> {
        self.admin(&Command::Csr)
    }

    /// `cluster initialize`: PEM texts.
    ///
    /// # Errors
    /// As for [`Manager::login`].
    pub fn initialize(&self, signed: String, ca: String) -> Result<Value, HsmError> {
        self.admin(&Command::Initialize { signed, ca })
    }

    /// `cluster activate`.
    ///
    /// # Errors
    /// As for [`Manager::login`].
    pub fn activate(&self, password: &str) -> Result<Value, HsmError> {
        self.admin(&Command::Activate { password: Zeroized(password.to_owned()) })
    }

    /// `user list`.
    ///
    /// # Errors
    /// As for [`Manager::login`].
    pub fn user_list(&self) -> Result<Value, HsmError> {
        self.admin(&Command::UserList)
    }

    /// `user create`.
    ///
    /// # Errors
    /// As for [`Manager::login`].
    pub fn user_create(&self, username: &str, role: Role, password: &str) -> Result<Value, HsmError> {
        let password = Zeroized(password.to_owned());
        self.admin(&Command::UserCreate { username: username.into(), role, password })
    }

    /// `user delete`.
    ///
    /// # Errors
    /// As for [`Manager::login`].
    pub fn user_delete(&self, username: &str, role: Role) -> Result<Value, HsmError> {
        self.admin(&Command::UserDelete { username: username.into(), role })
    }

    /// `user change-password`.
    ///
    /// # Errors
    /// As for [`Manager::login`].
    pub fn user_change_password(
        &self,
        username: &str,
        role: Role,
        old: Option<&str>,
        password: &str,
    ) -> Result<Value, HsmError> {
        let old = old.map(|o| Zeroized(o.to_owned()));
        let password = Zeroized(password.to_owned());
        self.admin(&Command::UserChangePassword { username: username.into(), role, old, password })
    }

    /// `key list`.
    ///
    /// # Errors
    /// As for [`Manager::login`].
    pub fn key_list(&self) -> Result<Value, HsmError> {
        self.admin(&Command::KeyList)
    }

    /// `key share` and `key unshare`.
    ///
    /// # Errors
    /// As for [`Manager::login`].
    pub fn key_share(&self, handle: u64, username: &str, share: bool) -> Result<Value, HsmError> {
        self.admin(&Command::KeyShare { handle, username: username.into(), share })
    }

    /// Digests of the token keys.
    ///
    /// # Errors
    /// As for [`Manager::login`].
    pub fn sync_status(&self) -> Result<Value, HsmError> {
        self.admin(&Command::SyncStatus)
    }

    /// A token key, sealed for members of the same cluster.
    ///
    /// # Errors
    /// As for [`Manager::login`].
    pub fn extract_masked(&self, handle: u64) -> Result<Value, HsmError> {
        self.admin(&Command::ExtractMasked { handle })
    }

    /// Takes in what [`Manager::extract_masked`] gave.
    ///
    /// # Errors
    /// As for [`Manager::login`].
    pub fn insert_masked(&self, masked: &str) -> Result<Value, HsmError> {
        self.admin(&Command::InsertMasked { masked: masked.into() })
    }

    /// Writes a backup into the appliance's directory; gives its path there.
    ///
    /// # Errors
    /// As for [`Manager::login`].
    pub fn backup(&self, password: &str) -> Result<Value, HsmError> {
        self.admin(&Command::Backup { password: Zeroized(password.to_owned()) })
    }

    /// `audit verify`.
    ///
    /// # Errors
    /// As for [`Manager::login`].
    pub fn audit_verify(&self) -> Result<Value, HsmError> {
        self.admin(&Command::AuditVerify)
    }

    /// Runs requests in a session of their own.
    pub(super) fn session<T>(
        &self,
        run: impl FnOnce(u64) -> Result<Result<T, CK_RV>, HsmError>,
    ) -> Result<T, HsmError> {
        let named = |rv: CK_RV| {
            HsmError::Refused(match rv {
                CKR_FUNCTION_REJECTED => NO_APPROVAL.to_owned(),
                rv => super::admin::Refusal::from(rv).0,
            })
        };
        let s: u64 = self.ask(&Request::OpenSession { rw: true })?.map_err(named)?;
        let result = run(s);
        let _: Result<(), CK_RV> = self.ask(&Request::CloseSession { s })?;
        result?.map_err(named)
    }

    /// `key generate-symmetric` and `key generate-asymmetric-pair`: the handles of the new token keys.
    ///
    /// # Errors
    /// As for [`Manager::login`].
    pub fn key_generate(
        &self,
        key: NewKey,
        label: &str,
        public_label: &str,
        attributes: &[String],
        sharing: &Sharing,
    ) -> Result<Vec<u64>, HsmError> {
        self.check(sharing)?;
        let mut template: Template = vec![(CKA_TOKEN, Zeroizing::new(vec![1]))];
        template.push((CKA_LABEL, Zeroizing::new(label.as_bytes().to_vec())));
        for text in attributes {
            template.push(attribute(text)?);
        }
        let mech = |kind| Mech { kind, params: Params::None {} };
        let number = |n: u64| Zeroizing::new(n.to_le_bytes().to_vec());
        self.session(|s| match key {
            NewKey::Aes(len) | NewKey::Generic(len) => {
                let kind =
                    if matches!(key, NewKey::Aes(_)) { CKM_AES_KEY_GEN } else { CKM_GENERIC_SECRET_KEY_GEN };
                template.push((CKA_VALUE_LEN, number(len)));
                let request = sharing.with(Request::Generate { s, mech: mech(kind), attrs: template });
                let made = self.ask(&request)?;
                Ok(made.map(|h: u64| vec![h]))
            }
            NewKey::Rsa(_) | NewKey::Ec(_) => {
                let mut public: Template = vec![(CKA_TOKEN, Zeroizing::new(vec![1]))];
                public.push((CKA_LABEL, Zeroizing::new(public_label.as_bytes().to_vec())));
                let kind = match key {
                    NewKey::Rsa(bits) => {
                        public.push((CKA_MODULUS_BITS, number(bits)));
                        CKM_RSA_PKCS_KEY_PAIR_GEN
                    }
                    NewKey::Ec(params) => {
                        public.push((CKA_EC_PARAMS, Zeroizing::new(params.to_vec())));
                        CKM_EC_KEY_PAIR_GEN
                    }
                    NewKey::Aes(_) | NewKey::Generic(_) => CKM_AES_KEY_GEN,
                };
                let request = Request::GeneratePair { s, mech: mech(kind), public, private: template };
                let request = sharing.with(request);
                let made: Result<(u64, u64), CK_RV> = self.ask(&request)?;
                Ok(made.map(|(a, b)| vec![a, b]))
            }
        })
    }

    /// `key delete`.
    ///
    /// # Errors
    /// As for [`Manager::login`].
    pub fn key_delete(&self, object: u64) -> Result<(), HsmError> {
        self.session(|s| self.ask(&Request::Destroy { s, object }))
    }

    /// `key set-attribute`: `NAME=VALUE`.
    ///
    /// # Errors
    /// As for [`Manager::login`].
    pub fn key_set_attribute(&self, object: u64, text: &str) -> Result<(), HsmError> {
        let attrs = vec![attribute(text)?];
        self.session(|s| self.ask(&Request::SetAttrs { s, object, attrs }))
    }

    /// `key wrap aes-zero-pad` (RFC 5649): the key, wrapped under another.
    ///
    /// # Errors
    /// As for [`Manager::login`].
    pub fn key_wrap(&self, by: u64, key: u64) -> Result<Vec<u8>, HsmError> {
        let mech = Mech { kind: CKM_AES_KEY_WRAP_KWP, params: Params::None {} };
        let wrapped: (Bytes, Bytes) = self.session(|s| self.ask(&Request::Wrap { s, mech, by, key }))?;
        Ok(wrapped.0.to_vec())
    }

    /// `key unwrap aes-zero-pad` of an AES key: its handle.
    ///
    /// # Errors
    /// As for [`Manager::login`].
    pub fn key_unwrap(
        &self,
        by: u64,
        wrapped: &[u8],
        label: &str,
        attributes: &[String],
        sharing: &Sharing,
    ) -> Result<u64, HsmError> {
        self.check(sharing)?;
        let mech = Mech { kind: CKM_AES_KEY_WRAP_KWP, params: Params::None {} };
        let number = |n: u64| Zeroizing::new(n.to_le_bytes().to_vec());
        let mut attrs: Template = vec![
            (CKA_CLASS, number(CKO_SECRET_KEY)),
            (CKA_KEY_TYPE, number(CKK_AES)),
            (CKA_TOKEN, Zeroizing::new(vec![1])),
            (CKA_LABEL, Zeroizing::new(label.as_bytes().to_vec())),
        ];
        for text in attributes {
            attrs.push(attribute(text)?);
        }
        let wrapped = Zeroizing::new(wrapped.to_vec());
        self.session(|s| self.ask(&sharing.with(Request::Unwrap { s, mech, by, wrapped, attrs })))
    }
}

/// Where a command line's login is kept: `$XDG_RUNTIME_DIR`, else `$XDG_CACHE_HOME` or `~/.cache`.
pub fn session_file() -> Option<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let dir = absolute("XDG_RUNTIME_DIR")
        .or_else(|| absolute("XDG_CACHE_HOME"))
        .or_else(|| Some(absolute("HOME")?.join(".cache")))?;
    Some(dir.join("envelopefs/hsm-session"))
}
