//! `quorum token-sign ...` and `user change-quorum token-sign register`.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use cryptoki_sys::*;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::super::admin::{Command, Refusal, refuse};
use super::super::appliance::{App, Appliance, Login};
use super::super::cluster::{POLICY, user_key};
use super::super::lc::Md;
use super::super::root::hex;
use super::super::users::{Permission, Role};
use super::token::{Approval, LIFE, Registration, RegistrationFile, Token, TokenFile, signed};
use super::{MOST, Pass, Service, distinct, failed, value_of};
use crate::crypto::random;

/// Version of the files.
const VERSION: &str = "2.0";
/// The most signatures of one file: more than any value asks for.
const MAX_SIGNATURES: usize = 64;
/// Bits of a key that approves.
const KEY_BITS: usize = 2048;

fn no_token() -> Refusal {
    Refusal(failed(
        "there is no such token (any more): one is good for ten minutes and one operation, in the login that got it, on the \
         HSM that made it",
    ))
}

fn parse<T: DeserializeOwned>(text: &str) -> Result<T, Refusal> {
    serde_json::from_str(text).map_err(|e| Refusal(failed(format!("that is no token file ({e})"))))
}

fn base64(text: &str) -> Result<Vec<u8>, Refusal> {
    BASE64.decode(text.trim()).map_err(|_| Refusal(failed("the token file holds what is not base64")))
}

impl Appliance {
    pub(in super::super) fn quorum_command(&self, app: &App, command: Command) -> Result<Value, Refusal> {
        match command {
            Command::QuorumValues => Ok(self.values()),
            Command::QuorumTimeouts => Ok(json!({ "generated": LIFE.as_secs(), "approved": LIFE.as_secs() })),
            Command::QuorumList => {
                Self::need(app, Permission::Approvals)?;
                Ok(self.list_tokens())
            }
            Command::QuorumGenerate { service, key } => {
                let result = self.generate_token(app, service, key);
                self.logged(app, "CN_GET_TOKEN", service.name(), result)
            }
            Command::QuorumApprove { approval } => {
                let result = self.approve(app, &approval);
                let service = result.as_ref().ok().and_then(|v| v["service"].as_str()).unwrap_or_default();
                let service = service.to_owned();
                self.logged(app, "CN_APPROVE_TOKEN", &service, result)
            }
            Command::QuorumDelete { all } => {
                let result = self.delete_tokens(app, all);
                self.logged(app, "CN_DELETE_TOKEN", if all { "all" } else { "user" }, result)
            }
            Command::QuorumSet { service, value } => {
                Self::need(app, Permission::SetQuorum)?;
                let result = self.with_pass(app, |pass| self.set_value(pass, service, value));
                let result =
                    self.logged(app, "CN_SET_M_VALUE", &format!("{} {value}", service.name()), result)?;
                // CloudHSM CLI answers a text; what a member has not got yet is said beside it.
                let mut done = self.covered(result, &[vec![POLICY]]);
                Ok(if done.get("missing-on").is_none() { done["message"].take() } else { done })
            }
            Command::RegisterApprover { public_key, token } => {
                let login = self.approving(app)?;
                let result = self.register(app, &login, &public_key, &token);
                let result = self.logged(app, "CN_REGISTER_QUORUM_PUB_KEY", &login.name, result);
                result.map(|done| self.covered(done, &[user_key(&login.name)]))
            }
            Command::KeyTerms { terms } => {
                let owner = app.crypto_user(Permission::KeyManagement)?;
                self.check_terms(&owner, &terms).map(|()| json!({}))
            }
            _ => refuse("no such command"),
        }
    }

    fn approving(&self, app: &App) -> Result<Login, Refusal> {
        Self::need(app, Permission::Approvals)?;
        Ok(app.login.read().clone().ok_or(CKR_USER_NOT_LOGGED_IN)?)
    }

    fn values(&self) -> Value {
        let state = self.state.read();
        let one = |s: &Service| (s.name().to_owned(), value_of(&state.meta.quorum, *s).into());
        Value::Object(Service::VALUED.iter().map(one).collect())
    }

    fn set_value(&self, pass: &mut Pass<'_>, service: Service, value: u32) -> Result<Value, Refusal> {
        if !Service::VALUED.contains(&service) {
            return refuse(
                "a key's quorum values are given when it is made; services are user, quorum and cluster",
            );
        }
        if !(1..=MOST).contains(&value) {
            return refuse(format!("a quorum value is 2 to {MOST}, or 1 for none"));
        }
        self.try_change_meta(|meta| {
            pass.need(&self.guard_of_value(service))?;
            let able = distinct(&self.approvers(|u| u.role == Role::Admin));
            if value > 1 && able < value {
                return refuse(format!(
                    "{able} admins have registered a key: a value of {value} could never be met (user change-quorum token-sign \
                     register)"
                ));
            }
            meta.quorum.insert(service.name().into(), value);
            meta.quorum_stamp = self.stamp();
            Ok(())
        })?;
        Ok(json!({ "message": "Set quorum value successful" }))
    }

    fn generate_token(&self, app: &App, service: Service, key: Option<u64>) -> Result<Value, Refusal> {
        let login = self.approving(app)?;
        if !service.is_for(login.role) {
            return Err(CKR_USER_NOT_LOGGED_IN.into());
        }
        if let Some(handle) = key {
            self.object(app, handle)?;
            if !service.is_of_keys() {
                return refuse("only tokens for key-usage and key-management are for one key");
            }
        }
        let expires = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() + LIFE;
        let data = {
            let state = self.state.read();
            // Read by approvers: it says what they sign.
            let text = json!({
                "purpose": "quorum token of an envelopefs hsm",
                "cluster": state.meta.cluster,
                "hsm": state.meta.serial,
                "service": service.name(),
                "username": login.name,
                "key-reference": key.map(|k| format!("{k:#x}")),
                "expires": expires.as_secs(),
                "nonce": hex(&random::array::<32>()),
            });
            text.to_string().into_bytes()
        };
        let (approval_data, digest) = (BASE64.encode(&data), BASE64.encode(Md::Sha256.digest(&data)));
        let now = Instant::now();
        let token = Token {
            app: app.id,
            username: login.name,
            service,
            key,
            until: now + LIFE,
            data,
            signatures: Default::default(),
            taken: false,
        };
        self.tokens.add(token, now).map_err(|why| Refusal(why.into()))?;
        let version = VERSION.to_owned();
        let file = if service == Service::Registration {
            let token = Registration { approval_data, unsigned: digest, signed: String::new() };
            json!(RegistrationFile { version, tokens: vec![token] })
        } else {
            json!(TokenFile { version, approval_data, token: digest, signatures: Vec::new() })
        };
        Ok(json!({ "file": file }))
    }

    /// Takes signatures to a token. All of them must be good: who gave a bad one wants to know.
    fn approve(&self, app: &App, text: &str) -> Result<Value, Refusal> {
        let login = self.approving(app)?;
        let file: TokenFile = parse(text)?;
        let data = base64(&file.approval_data)?;
        if file.signatures.len() > MAX_SIGNATURES {
            return refuse(failed(format!("more than {MAX_SIGNATURES} signatures")));
        }
        let keys = self.approvers(|_| true);
        let mut good = std::collections::BTreeMap::new();
        for Approval { username, signature } in &file.signatures {
            let name = username.to_lowercase();
            let key =
                keys.get(&name).ok_or_else(|| Refusal(failed(format!("{name} has no registered key"))))?;
            let signature = base64(signature)?;
            if !signed(key, &data, &signature) {
                return refuse(failed(format!(
                    "the signature of {name} is not by the registered key over this token"
                )));
            }
            good.insert(name, signature);
        }
        let approved = self.tokens.with(app.id, &login.name, &data, Instant::now(), |token| {
            token.signatures = good;
            (token.service, token.signatures.len())
        });
        let (service, count) = approved.ok_or_else(no_token)?;
        Ok(json!({ "service": service.name(), "number-of-approvals": count }))
    }

    fn list_tokens(&self) -> Value {
        let now = Instant::now();
        let (admins, users) =
            (self.approvers(|u| u.role == Role::Admin), self.approvers(|u| u.role == Role::CryptoUser));
        let needed = |token: &Token| match (token.service, token.key) {
            (Service::Registration, _) => Some(1),
            (service, Some(key)) => {
                let object = self.state.read().objects.get(&key).cloned()?;
                let usage = object.quorum.usage;
                Some(if service == Service::KeyUsage { usage } else { usage.max(object.quorum.management) })
            }
            (service, None) if service.is_of_keys() => None,
            (service, None) => Some(value_of(&self.state.read().meta.quorum, service)),
        };
        let tokens: Vec<_> = self
            .tokens
            .list(now)
            .iter()
            .map(|token| {
                json!({
                    "username": token.username,
                    "service": token.service.name(),
                    "approvals-required": needed(token),
                    "number-of-approvals": token.approvals(if token.service.is_of_keys() { &users } else { &admins }),
                    "token-timeout-seconds": token.until.saturating_duration_since(now).as_secs(),
                    "cluster-coverage": "full",
                })
            })
            .collect();
        json!({ "tokens": tokens })
    }

    fn delete_tokens(&self, app: &App, all: bool) -> Result<Value, Refusal> {
        let login = self.approving(app)?;
        if all && login.role != Role::Admin {
            return Err(CKR_USER_NOT_LOGGED_IN.into());
        }
        self.tokens.end(|token| all || token.username == login.name);
        Ok("Deletion of quorum token(s) successful".into())
    }

    fn register(&self, app: &App, login: &Login, public_key: &str, file: &str) -> Result<Value, Refusal> {
        let key = approval_key(public_key)?;
        let file: RegistrationFile = parse(file)?;
        let [token] = file.tokens.as_slice() else {
            return refuse(failed("a registration file has one token"));
        };
        let (data, signature) = (base64(&token.approval_data)?, base64(&token.signed)?);
        if !signed(&key, &data, &signature) {
            return refuse(failed(
                "the registration token is not signed by the private key of this public key",
            ));
        }
        // One person with one key is one approver, whatever his names are.
        if self.approvers(|u| u.name != login.name).values().any(|other| *other == key) {
            return refuse("another user has registered this key");
        }
        let known = self.tokens.with(app.id, &login.name, &data, Instant::now(), |t| t.service);
        if known != Some(Service::Registration) {
            return Err(no_token());
        }
        self.change_user(&login.name, |user, _| {
            let mut user = user.ok_or(CKR_USER_NOT_LOGGED_IN)?;
            user.approval_key = Some(key);
            user.version += 1;
            Ok((Some(user), ()))
        })?;
        self.tokens.end(|t| t.data == data);
        Ok(json!({ "username": login.name, "role": login.role.name() }))
    }
}

/// A public key in PEM as it is kept: DER (PKCS#1) in base64.
fn approval_key(pem: &str) -> Result<String, Refusal> {
    use x509_parser::prelude::FromDer as _;
    let no_key = || Refusal("the public key is no PEM of an RSA key (openssl rsa -pubout)".into());
    let (_, block) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).map_err(|_| no_key())?;
    if block.label != "PUBLIC KEY" {
        return Err(no_key());
    }
    let (_, info) =
        x509_parser::x509::SubjectPublicKeyInfo::from_der(&block.contents).map_err(|_| no_key())?;
    let Ok(x509_parser::public_key::PublicKey::RSA(rsa)) = info.parsed() else { return Err(no_key()) };
    if rsa.key_size() != KEY_BITS {
        return refuse(format!("a key that approves is RSA of {KEY_BITS} bits"));
    }
    Ok(BASE64.encode(&info.subject_public_key.data))
}
