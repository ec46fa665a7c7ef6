//! Compiled policies, by their text: a request does not parse what the last one parsed.

use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;

use super::{Document, Malformed, parse, parse_identity};

/// Policies that are kept: at most 32 KiB of text each, and about as much compiled.
const KEPT: NonZeroUsize = NonZeroUsize::new(256).expect("not zero");

/// A bounded store of compiled policies. Thread-safe.
pub struct Cache {
    keys: Mutex<LruCache<String, Arc<Document>>>,
    identities: Mutex<LruCache<String, Arc<Document>>>,
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Cache(..)")
    }
}

impl Default for Cache {
    fn default() -> Self {
        Self { keys: Mutex::new(LruCache::new(KEPT)), identities: Mutex::new(LruCache::new(KEPT)) }
    }
}

impl Cache {
    /// A key policy, compiled.
    pub fn key_policy(&self, text: &str) -> Result<Arc<Document>, Malformed> {
        get(&self.keys, text, parse)
    }

    /// A key policy that has a name of its own, so that its text is made only when it is compiled.
    pub fn key_policy_as(
        &self,
        name: &str,
        text: impl FnOnce() -> String,
    ) -> Result<Arc<Document>, Malformed> {
        get(&self.keys, name, |_| parse(&text()))
    }

    /// A policy of a principal, compiled.
    pub fn identity_policy(&self, text: &str) -> Result<Arc<Document>, Malformed> {
        get(&self.identities, text, parse_identity)
    }
}

fn get(
    kept: &Mutex<LruCache<String, Arc<Document>>>,
    text: &str,
    read: impl FnOnce(&str) -> Result<Document, Malformed>,
) -> Result<Arc<Document>, Malformed> {
    if let Some(found) = kept.lock().get(text) {
        return Ok(found.clone());
    }
    let document = Arc::new(read(text)?);
    kept.lock().put(text.to_owned(), document.clone());
    Ok(document)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kms::policy::default_key_policy;

    /// A text is compiled once; what does not parse is not kept; both grammars stay apart.
    #[test]
    fn a_text_is_compiled_once() {
        let cache = Cache::default();
        let text = default_key_policy("111122223333");
        let first = cache.key_policy(&text).unwrap();
        assert!(Arc::ptr_eq(&first, &cache.key_policy(&text).unwrap()));
        assert!(cache.identity_policy(&text).is_err() && cache.key_policy("{").is_err());
        for n in 0..1000 {
            cache.key_policy(&text.replace("key-default-1", &n.to_string())).unwrap();
        }
        assert!(cache.keys.lock().len() <= KEPT.get());
    }
}
