//! Quorum as a client asks for it.

use serde_json::Value;

use super::super::admin::Command;
use super::super::error::HsmError;
use super::super::manager::Manager;
use super::super::wire::{Request, encode};
use super::{Service, Terms};

/// With whom a new key is shared, and how many of its users must approve of its use and its management.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Sharing {
    /// Crypto users beside the owner.
    pub users: Vec<String>,
    /// Approvals to wrap, share or change it: 2 to 8, or none.
    pub management: Option<u32>,
    /// Approvals to use it.
    pub usage: Option<u32>,
}

impl Sharing {
    pub(in super::super) fn terms(&self) -> Terms {
        let value = |v: Option<u32>| v.unwrap_or(0);
        Terms { share: self.users.clone(), management: value(self.management), usage: value(self.usage) }
    }

    pub(in super::super) fn with(&self, request: Request) -> Request {
        let terms = self.terms();
        if terms.are_none() { request } else { Request::With { terms, request: encode(&request) } }
    }
}

impl Manager {
    /// `user change-quorum token-sign register`: a public key (PEM) and the signed registration file.
    ///
    /// # Errors
    /// As for [`Manager::login`].
    pub fn register_approver(&self, public_key: &str, token: &str) -> Result<Value, HsmError> {
        self.admin(&Command::RegisterApprover { public_key: public_key.into(), token: token.into() })
    }

    /// `quorum token-sign generate`: the text of the token's file; for key services perhaps for one key alone.
    ///
    /// # Errors
    /// As for [`Manager::login`].
    pub fn quorum_generate(&self, service: Service, key: Option<u64>) -> Result<String, HsmError> {
        let answer = self.admin(&Command::QuorumGenerate { service, key })?;
        let text = serde_json::to_string_pretty(&answer["file"]);
        text.map(|t| t + "\n").map_err(|e| HsmError::Refused(format!("no answer: {e}")))
    }

    /// `--approval`: a token's file with signatures, for the next operation of its service.
    ///
    /// # Errors
    /// As for [`Manager::login`].
    pub fn quorum_approve(&self, file: &str) -> Result<Value, HsmError> {
        self.admin(&Command::QuorumApprove { approval: file.into() })
    }

    /// `quorum token-sign list`.
    ///
    /// # Errors
    /// As for [`Manager::login`].
    pub fn quorum_list(&self) -> Result<Value, HsmError> {
        self.admin(&Command::QuorumList)
    }

    /// `quorum token-sign list-quorum-values`.
    ///
    /// # Errors
    /// As for [`Manager::login`].
    pub fn quorum_values(&self) -> Result<Value, HsmError> {
        self.admin(&Command::QuorumValues)
    }

    /// `quorum token-sign list-timeouts`.
    ///
    /// # Errors
    /// As for [`Manager::login`].
    pub fn quorum_timeouts(&self) -> Result<Value, HsmError> {
        self.admin(&Command::QuorumTimeouts)
    }

    /// `quorum token-sign delete`: one's own tokens, or all.
    ///
    /// # Errors
    /// As for [`Manager::login`].
    pub fn quorum_delete(&self, all: bool) -> Result<Value, HsmError> {
        self.admin(&Command::QuorumDelete { all })
    }

    /// `quorum token-sign set-quorum-value`.
    ///
    /// # Errors
    /// As for [`Manager::login`].
    pub fn quorum_set(&self, service: Service, value: u32) -> Result<Value, HsmError> {
        self.admin(&Command::QuorumSet { service, value })
    }

    /// Why a key cannot be made so, in words.
    pub(in super::super) fn check(&self, sharing: &Sharing) -> Result<(), HsmError> {
        let terms = sharing.terms();
        if terms.are_none() { Ok(()) } else { self.admin(&Command::KeyTerms { terms }).map(|_| ()) }
    }
}
