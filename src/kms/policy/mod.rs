//! Who may do what: key policies, IAM policies and grants, decided as AWS KMS documents it.
//!
//! [`parse`] reads a key policy, [`parse_identity`] a policy of a principal, [`evaluate`] decides one request and says
//! by which statement or grant. Pure: no I/O, no clock, no store. What a request offers to conditions is gathered by
//! [`Call::conditions`].
//!
//! Sources: AWS KMS Developer Guide (key policies, policy evaluation, grants, condition keys), IAM User Guide
//! (evaluation logic, permissions boundaries, condition operators, policy variables), AWS Organizations User Guide
//! (service control policies). Not here: session policies, resource control policies, VPC endpoint policies.

mod cache;
mod compare;
mod condition;
mod conditions;
mod decision;
mod document;
mod evaluate;
mod facts;
mod grammar;
mod grant;
mod json;
mod parse;
mod pattern;
mod principal;
mod value;

pub use cache::Cache;
pub use conditions::Conditions;
pub use decision::{Decision, Missing, Reason, Source, StatementRef};
pub use document::{Document, Effect, Named};
pub use evaluate::{PolicySet, Request, allows_later_change, evaluate};
pub use facts::{Call, KeyFacts};
pub use grammar::Malformed;
pub use grant::{Grant, child_fits};
pub use parse::{MAX_POLICY, parse, parse_identity};
pub use principal::{Caller, account_of, default_key_policy};
