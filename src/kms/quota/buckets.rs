//! The buckets. A full one holds what one second allows, at least one request.

use std::collections::HashMap;
use std::time::Instant;

use parking_lot::Mutex;

use super::class::Class;

/// AWS's text of the ThrottlingException.
pub const THROTTLED: &str =
    "You have exceeded the rate at which you may call KMS. Reduce the frequency of your calls.";

/// Accounts and Regions whose buckets are kept. Beyond it, full ones are forgotten: a new one is full too.
const MAX_SCOPES: usize = 1024;

/// The request was one too many.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{THROTTLED}")]
pub struct Throttled;

/// Requests a second for each class; a class without a number is not bounded.
#[derive(Clone, PartialEq, Debug)]
pub struct Quotas(Box<[Option<f64>; Class::COUNT]>);

impl Default for Quotas {
    /// AWS's.
    fn default() -> Self {
        let mut all = Box::new([None; Class::COUNT]);
        for class in Class::all() {
            all[class.index()] = Some(class.default_rate());
        }
        Self(all)
    }
}

impl Quotas {
    /// None at all.
    pub fn off() -> Self {
        Self(Box::new([None; Class::COUNT]))
    }

    /// Changes them as a setting says: `off`, `aws`, a factor as `x10`, or classes as `symmetric=10000,create-key=off`.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "off" => return Ok(Self::off()),
            "aws" => return Ok(Self::default()),
            _ => {}
        }
        let mut quotas = Self::default();
        if let Some(factor) = text.strip_prefix('x') {
            let factor = rate(factor)?;
            quotas.0.iter_mut().flatten().for_each(|rate| *rate *= factor);
            return Ok(quotas);
        }
        for part in text.split(',') {
            let (name, value) = part
                .split_once('=')
                .ok_or_else(|| format!("\"{part}\" is neither off, aws, xFACTOR nor CLASS=RATE"))?;
            let class = Class::named(name).ok_or_else(|| {
                let names: Vec<_> = Class::all().map(Class::name).collect();
                format!("\"{name}\" is no class; there are {}", names.join(", "))
            })?;
            quotas.0[class.index()] = if value == "off" { None } else { Some(rate(value)?) };
        }
        Ok(quotas)
    }

    /// Requests a second of a class.
    pub fn rate(&self, class: Class) -> Option<f64> {
        self.0[class.index()]
    }
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(n) if n.is_finite() && n > 0.0 => Ok(n),
        _ => Err(format!("\"{text}\" is no positive number (requests a second)")),
    }
}

/// Token buckets by class, account and Region. Thread-safe.
#[derive(Debug)]
pub struct Buckets {
    quotas: Quotas,
    begin: Instant,
    /// By account and Region: of each class what is left, and when that was so (seconds since `begin`).
    scopes: Mutex<HashMap<String, Box<[Option<Bucket>; Class::COUNT]>>>,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    left: f64,
    at: f64,
}

impl Buckets {
    /// Full buckets.
    pub fn new(quotas: Quotas) -> Self {
        Self { quotas, begin: Instant::now(), scopes: Mutex::new(HashMap::new()) }
    }

    /// Takes one request of the caller's account and Region (`scope`, any text) out of the bucket of its class.
    pub fn take(&self, scope: &str, class: Class) -> Result<(), Throttled> {
        self.take_at(scope, class, self.begin.elapsed().as_secs_f64())
    }

    fn take_at(&self, scope: &str, class: Class, now: f64) -> Result<(), Throttled> {
        let Some(rate) = self.quotas.rate(class) else { return Ok(()) };
        let size = rate.max(1.0);
        let mut scopes = self.scopes.lock();
        if !scopes.contains_key(scope) {
            if scopes.len() >= MAX_SCOPES {
                self.forget_full(&mut scopes, now);
            }
            scopes.insert(scope.to_owned(), Box::new([None; Class::COUNT]));
        }
        let Some(buckets) = scopes.get_mut(scope) else { return Ok(()) };
        let bucket = buckets[class.index()].get_or_insert(Bucket { left: size, at: now });
        bucket.left = (bucket.left + (now - bucket.at).max(0.0) * rate).min(size);
        bucket.at = now;
        if bucket.left < 1.0 {
            return Err(Throttled);
        }
        bucket.left -= 1.0;
        Ok(())
    }

    fn forget_full(&self, scopes: &mut HashMap<String, Box<[Option<Bucket>; Class::COUNT]>>, now: f64) {
        scopes.retain(|_, buckets| {
            Class::all().any(|class| {
                let rate = self.quotas.rate(class).unwrap_or(f64::INFINITY);
                buckets[class.index()].is_some_and(|b| b.left + (now - b.at) * rate < rate.max(1.0))
            })
        });
        // All of them in use at once: they begin anew, rather than growing without bound.
        if scopes.len() >= MAX_SCOPES {
            scopes.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn symmetric() -> Class {
        Class::of("Decrypt", "SYMMETRIC_DEFAULT")
    }

    /// A bucket holds one second's requests, fills at its rate, and no further than its size.
    #[test]
    fn a_bucket_allows_its_rate() {
        let buckets = Buckets::new(Quotas::parse("symmetric=100").unwrap());
        let taken = |at: f64| (0..1000).filter(|_| buckets.take_at("a", symmetric(), at).is_ok()).count();
        assert_eq!(taken(0.0), 100);
        assert_eq!(taken(0.0), 0);
        assert_eq!(taken(0.5), 50);
        assert_eq!(taken(100.0), 100);
        // A clock that went back gives nothing.
        assert_eq!(taken(99.0), 0);
    }

    /// Accounts and classes have buckets of their own; operations of one class share theirs.
    #[test]
    fn buckets_are_apart() {
        let buckets = Buckets::new(Quotas::parse("symmetric=1,create-key=1").unwrap());
        assert!(buckets.take_at("a", symmetric(), 0.0).is_ok());
        assert!(buckets.take_at("a", Class::of("GenerateRandom", ""), 0.0).is_err());
        assert!(buckets.take_at("b", symmetric(), 0.0).is_ok());
        assert!(buckets.take_at("a", Class::of("CreateKey", ""), 0.0).is_ok());
        assert_eq!(buckets.take_at("a", Class::of("CreateKey", ""), 0.9), Err(Throttled));
        assert!(buckets.take_at("a", Class::of("CreateKey", ""), 1.0).is_ok());
    }

    /// A quota below one a second allows one request in its time.
    #[test]
    fn slow_quotas_allow_one() {
        let buckets = Buckets::new(Quotas::default());
        let class = Class::of("GetParametersForImport", "RSA_2048");
        assert!(buckets.take_at("a", class, 0.0).is_ok());
        assert!(buckets.take_at("a", class, 3.9).is_err() && buckets.take_at("a", class, 4.1).is_ok());
    }

    /// Settings switch off, scale and change; what is none is refused with a reason.
    #[test]
    fn settings_are_read() {
        let rate = |text: &str, action: &str| Quotas::parse(text).unwrap().rate(Class::of(action, ""));
        assert_eq!(rate("off", "Decrypt"), None);
        assert_eq!(rate("aws", "Decrypt"), Some(5500.0));
        assert_eq!(rate("x2", "Decrypt"), Some(11000.0));
        assert_eq!(rate("create-key=off", "CreateKey"), None);
        assert_eq!(rate("create-key=off", "Decrypt"), Some(5500.0));
        for bad in ["", "x0", "xx", "symmetric", "symmetric=-1", "none=5", "symmetric=NaN"] {
            assert!(Quotas::parse(bad).is_err(), "{bad}");
        }
    }

    /// The classes are AWS's.
    #[test]
    fn operations_have_their_classes() {
        let name = |action: &str, spec: &str| Class::of(action, spec).name();
        assert_eq!(name("Encrypt", "SYMMETRIC_DEFAULT"), "symmetric");
        assert_eq!(name("Encrypt", "RSA_2048"), "rsa");
        assert_eq!(name("Sign", "ECC_NIST_P256"), "ecc");
        assert_eq!(name("GenerateMac", "HMAC_256"), "symmetric");
        assert_eq!(name("GenerateDataKeyPair", "RSA_4096"), "pair-rsa-4096");
        assert_eq!(name("UpdateAlias", ""), "other");
    }

    /// Many accounts do not grow the table beyond its bound.
    #[test]
    fn the_table_has_a_bound() {
        let buckets = Buckets::new(Quotas::default());
        for n in 0..5000 {
            buckets.take_at(&n.to_string(), symmetric(), 0.0).unwrap();
        }
        assert!(buckets.scopes.lock().len() <= MAX_SCOPES);
    }
}
