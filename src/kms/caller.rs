//! Who calls: what the engine knows of the principal behind a request.

use std::net::IpAddr;
use std::sync::Arc;

use super::arn::Scope;

/// The principal behind a request, authenticated.
#[derive(Clone, Debug)]
pub struct Caller {
    /// ARN, for example `arn:aws:iam::123456789012:user/alice`.
    pub arn: String,
    /// Account and region that the request addresses.
    pub scope: Scope,
    /// Stable id, as AWS's `AIDA...`.
    pub user_id: String,
    /// Access key that signed.
    pub access_key: String,
    /// IAM policies of the principal, as JSON.
    pub policies: Arc<[String]>,
    /// Permissions boundary of the principal, as JSON.
    pub boundary: Option<Arc<str>>,
    /// Where the request came from.
    pub source: Option<IpAddr>,
    /// Whether the request came through TLS, or never left the machine.
    pub secure: bool,
    /// User-Agent of the request.
    pub user_agent: String,
    /// Service that calls on the principal's behalf, as `kms:ViaService` gives it.
    pub via: Option<String>,
    /// Id of the request, as the answer gives it.
    pub request_id: String,
}

impl Caller {
    /// The owner of the store: root of an account, who may do what the key policies leave to the account.
    pub fn root(scope: Scope) -> Self {
        Self {
            arn: format!("arn:aws:iam::{}:root", scope.account),
            user_id: scope.account.clone(),
            scope,
            access_key: String::new(),
            policies: Arc::from([ADMIN_POLICY.to_owned()]),
            boundary: None,
            source: None,
            secure: true,
            user_agent: "envelopefs".into(),
            via: None,
            request_id: new_request_id(),
        }
    }
}

/// The IAM policy of a principal that was given none: everything that key policies leave to the account.
pub const ADMIN_POLICY: &str =
    r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"kms:*","Resource":"*"}]}"#;

/// A random request id.
pub fn new_request_id() -> String {
    super::arn::new_key_id()
}

impl Caller {
    /// Account of the principal: its ARN's, which may be another than the one the request addresses.
    pub(super) fn account(&self) -> &str {
        self.arn.split(':').nth(4).unwrap_or_default()
    }

    /// Whether a grant that names `principal` means this caller: himself, his role, or his account.
    pub(super) fn is(&self, principal: &str) -> bool {
        super::policy::Caller::new(&self.arn).grantees().iter().any(|g| g == principal)
    }
}
