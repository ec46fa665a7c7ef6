//! Request quotas: a token bucket for each class of operations, account and Region (AWS KMS Developer Guide,
//! requests-per-second). Past them stands the ThrottlingException; clients back off and try again.

mod buckets;
mod class;

pub use buckets::{Buckets, Quotas, THROTTLED, Throttled};
pub use class::Class;
