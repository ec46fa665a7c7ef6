//! The policy evaluator of the KMS: a table of cases drawn from AWS's documentation, each citing its page, what is
//! refused as malformed, and a second implementation as oracle on random policies.
#![allow(missing_docs)]

mod malformed;
mod oracle;
mod table;
