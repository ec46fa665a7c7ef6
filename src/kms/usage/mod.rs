//! What was used in each month, and what AWS would have asked for it.

mod counter;
mod estimate;

pub use counter::{Counter, Month, Usage, UsageError, load};
pub use estimate::{Bill, KeyLife, Prices, estimate};
