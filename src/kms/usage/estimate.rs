//! What AWS KMS and AWS CloudHSM would ask for a month. Prices are settings, since they change; the defaults are the
//! list prices of us-east-1 that the project was begun with.

use super::counter::Usage;

/// Prices in US dollars.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Prices {
    /// A key, for a month. The first and the second rotation of a key cost as much again; later ones nothing.
    pub key_month: f64,
    /// 10,000 requests with symmetric keys, and of management.
    pub requests: f64,
    /// 10,000 requests with asymmetric keys other than RSA_2048.
    pub asymmetric: f64,
    /// 10,000 RSA data key pairs.
    pub rsa_pairs: f64,
    /// Requests of a month that cost nothing.
    pub free: u64,
    /// An HSM, for an hour.
    pub hsm_hour: f64,
    /// HSMs of the cluster that would do the same: two, so that one may fail.
    pub hsms: u32,
}

impl Default for Prices {
    fn default() -> Self {
        Self {
            key_month: 1.0,
            requests: 0.03,
            asymmetric: 0.15,
            rsa_pairs: 12.0,
            free: 20_000,
            hsm_hour: 1.5,
            hsms: 2,
        }
    }
}

/// The life of a key, as far as it costs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KeyLife {
    /// Milliseconds since 1970.
    pub created_ms: u64,
    /// Rotations so far.
    pub rotations: u32,
}

/// A month's estimate, in US dollars.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Bill {
    /// Keys, in months of a key.
    pub key_months: f64,
    /// For the keys.
    pub keys: f64,
    /// For the requests.
    pub requests: f64,
    /// An HSM cluster for the same month.
    pub hsms: f64,
}

impl Bill {
    /// Keys and requests.
    pub fn kms(&self) -> f64 {
        self.keys + self.requests
    }
}

/// What a month costs. `begin_ms` and `end_ms` bound it (of the current month, up to now).
#[expect(clippy::cast_precision_loss, reason = "an estimate in cents of counts far below 2^52")]
pub fn estimate(usage: &Usage, keys: &[KeyLife], begin_ms: u64, end_ms: u64, prices: &Prices) -> Bill {
    let span = end_ms.saturating_sub(begin_ms).max(1) as f64;
    let mut key_months = 0.0;
    for key in keys.iter().filter(|k| k.created_ms < end_ms) {
        let share = (end_ms - key.created_ms.max(begin_ms)) as f64 / span;
        key_months += share * f64::from(1 + key.rotations.min(2));
    }
    let (mut plain, mut asymmetric, mut pairs) = (0u64, 0u64, 0u64);
    for (class, count) in &usage.requests {
        match class.as_str() {
            "rsa" | "ecc" => asymmetric += count,
            name if name.starts_with("pair-rsa") => pairs += count,
            _ => plain += count,
        }
    }
    let of = |count: u64, price: f64| count as f64 / 10_000.0 * price;
    let requests = of(plain.saturating_sub(prices.free), prices.requests)
        + of(asymmetric, prices.asymmetric)
        + of(pairs, prices.rsa_pairs);
    let hours = span / 3_600_000.0;
    Bill {
        key_months,
        keys: key_months * prices.key_month,
        requests,
        hsms: hours * prices.hsm_hour * f64::from(prices.hsms),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000;

    fn near(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-9
    }

    /// A month of 30 days with one key all through, one from its middle on and one rotated often.
    #[test]
    fn a_month_costs_what_it_says() {
        let begin = 1_000 * HOUR;
        let end = begin + 720 * HOUR;
        let usage = Usage {
            requests: [
                ("symmetric".into(), 1_020_000),
                ("rsa".into(), 10_000),
                ("pair-rsa-2048".into(), 100),
            ]
            .into(),
            failed: 0,
        };
        let key = |created_ms, rotations| KeyLife { created_ms, rotations };
        let keys = [key(0, 0), key(begin + 360 * HOUR, 0), key(0, 9), key(end, 0)];
        let bill = estimate(&usage, &keys, begin, end, &Prices::default());
        assert!(near(bill.key_months, 4.5), "{bill:?}");
        assert!(near(bill.requests, 3.0 + 0.15 + 0.12), "{bill:?}");
        assert!(near(bill.hsms, 720.0 * 1.5 * 2.0) && near(bill.kms(), 7.77), "{bill:?}");
    }

    /// Within the free tier, and without keys, nothing is asked for.
    #[test]
    fn little_use_is_free() {
        let usage = Usage { requests: [("symmetric".into(), 20_000)].into(), failed: 0 };
        assert!(near(estimate(&usage, &[], 0, 720 * HOUR, &Prices::default()).kms(), 0.0));
    }
}
