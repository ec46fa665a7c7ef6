//! Who sent a request: signature to principal to caller.

use std::collections::HashMap;
use std::sync::Arc;

use aws_lc_rs::hmac;
use hyper::http::request::Parts;
use parking_lot::Mutex;

use super::listen::Origin;
use crate::kms::arn::{HOME_ACCOUNT, HOME_REGION, Scope, could_exist, is_region};
use crate::kms::caller::Caller;
use crate::kms::engine::Engine;
use crate::kms::error::KmsError;
use crate::kms::principals::Principal;
use crate::kms::sigv4::{Authorization, Signed};

/// Of a region that AWS has not got: no host would answer, so the connection ends without an answer.
pub(super) const NO_SUCH_REGION: &str = "NoSuchRegion";
/// Principals and signing keys that are remembered.
const REMEMBERED: usize = 1024;
/// Header in which the filesystem says that it calls on the principal's behalf. Counts only when it is signed.
const VIA_HEADER: &str = "x-envelopefs-via";
/// The one service that may say so.
const VIA_SERVICE: &str = "envelopefs";

/// Principals and signing keys, until a principal changes.
#[derive(Default)]
pub(super) struct Keyring(Mutex<Known>);

#[derive(Default)]
struct Known {
    changes: u64,
    principals: HashMap<String, Arc<Principal>>,
    /// By access key and credential scope.
    signing: HashMap<String, hmac::Key>,
}

/// A request whose signature was verified.
pub(super) struct Verified {
    pub(super) caller: Caller,
    /// The service of the credential scope: `kms` or `sts`.
    pub(super) service: String,
}

/// The owner of the store, over the control socket. The header `x-envelopefs-scope: ACCOUNT/REGION` names another scope.
pub(super) fn owner(parts: &Parts, request_id: &str) -> Caller {
    let named = parts.headers.get("x-envelopefs-scope").and_then(|v| v.to_str().ok());
    let (account, region) = named.and_then(|v| v.split_once('/')).unwrap_or((HOME_ACCOUNT, HOME_REGION));
    let scope = Scope { account: account.to_owned(), region: region.to_owned() };
    let mut caller = Caller::root(scope);
    request_id.clone_into(&mut caller.request_id);
    caller
}

/// Verifies the signature of a request.
pub(super) fn verify(
    engine: &Engine,
    keyring: &Keyring,
    parts: &Parts,
    body: &[u8],
    origin: Origin,
    request_id: &str,
) -> Result<Verified, KmsError> {
    let header = |name: &str| header(parts, name);
    let authorization = header("authorization").ok_or_else(|| {
        KmsError::exception("MissingAuthenticationTokenException", "Missing Authentication Token")
    })?;
    let authorization = Authorization::parse(&authorization)?;
    if !matches!(authorization.service.as_str(), "kms" | "sts") || !is_region(&authorization.region) {
        let text = format!(
            "Credential should be scoped to correct service: 'kms', not '{}/{}'.",
            authorization.region, authorization.service
        );
        return Err(KmsError::exception("InvalidSignatureException", text));
    }
    if !could_exist(&authorization.region) {
        return Err(KmsError::exception(NO_SUCH_REGION, ""));
    }
    let principal = keyring.principal(engine, &authorization.access_key)?.ok_or_else(|| {
        KmsError::exception(
            "UnrecognizedClientException",
            "The security token included in the request is invalid.",
        )
    })?;
    let key = keyring.signing_key(&authorization, &principal);
    let signed = Signed {
        method: parts.method.as_str(),
        path: parts.uri.path(),
        query: parts.uri.query().unwrap_or_default(),
        header: &header,
        body,
    };
    authorization.verify(&key, &signed, jiff::Timestamp::now())?;
    let via_signed = authorization.signed_headers.iter().any(|h| h == VIA_HEADER);
    let via = header(VIA_HEADER).filter(|v| via_signed && v == VIA_SERVICE);
    let caller = Caller {
        arn: principal.arn.clone(),
        user_id: principal.user_id.clone(),
        access_key: principal.access_key.clone(),
        policies: principal.policies.as_slice().into(),
        boundary: principal.boundary.as_deref().map(Into::into),
        source: match origin {
            Origin::Tcp { from, .. } => Some(from),
            Origin::Unix | Origin::Control => None,
        },
        secure: !matches!(origin, Origin::Tcp { tls: false, .. }),
        user_agent: header("user-agent").unwrap_or_default(),
        via: via.map(|v| format!("{v}.{}.amazonaws.com", authorization.region)),
        request_id: request_id.to_owned(),
        scope: Scope { account: principal.account.clone(), region: authorization.region },
    };
    Ok(Verified { caller, service: authorization.service })
}

/// A header's values, joined as SigV4 wants them.
pub(super) fn header(parts: &Parts, name: &str) -> Option<String> {
    let mut values = parts.headers.get_all(name).iter().filter_map(|v| v.to_str().ok());
    let first = values.next()?.to_owned();
    Some(values.fold(first, |joined, next| joined + "," + next))
}

impl Keyring {
    fn principal(&self, engine: &Engine, access_key: &str) -> Result<Option<Arc<Principal>>, KmsError> {
        // Before the read, as with records of keys.
        let changes = engine.principal_changes();
        {
            let mut known = self.0.lock();
            if known.changes != changes || known.principals.len() >= REMEMBERED {
                *known = Known { changes, ..Known::default() };
            }
            if let Some(principal) = known.principals.get(access_key) {
                return Ok(Some(principal.clone()));
            }
        }
        let found = engine.principal_of_key(access_key)?;
        if let Some(principal) = &found {
            let mut known = self.0.lock();
            if known.changes == changes {
                known.principals.insert(access_key.to_owned(), principal.clone());
            }
        }
        Ok(found)
    }

    fn signing_key(&self, authorization: &Authorization, principal: &Principal) -> hmac::Key {
        let Authorization { access_key, date, region, service, .. } = authorization;
        let name = format!("{access_key}/{}/{date}/{region}/{service}", principal.created());
        if let Some(key) = self.0.lock().signing.get(&name) {
            return key.clone();
        }
        let key = authorization.signing_key(&principal.secret.0);
        let mut known = self.0.lock();
        if known.signing.len() >= REMEMBERED {
            known.signing.clear();
        }
        known.signing.insert(name, key.clone());
        key
    }
}
