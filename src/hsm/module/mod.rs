//! The PKCS#11 module (`libenvelopefs.so`): all functions of version 2.40, as a thin client of an appliance.
//!
//! It holds no key and no decision. What a caller passes is read once, with its lengths checked; a fault of this code
//! becomes CKR_GENERAL_ERROR, never an unwinding into C. Which appliance, says `ENVELOPEFS_HSM` (`unix:PATH` or
//! `tcp:HOST:PORT`) or the file that `ENVELOPEFS_HSM_CONF` names.
//!
//! Numbers are passed on as they lie in memory, so this is built where CK_ULONG is a little-endian 64-bit number.

mod config;
mod exports;
mod fleet;
mod mechanism;
mod memory;
mod ops;
mod state;
mod tokens;
