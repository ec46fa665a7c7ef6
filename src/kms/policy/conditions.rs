//! What a request offers to the conditions of policies: condition keys and their values.

use std::collections::BTreeMap;

/// Condition keys with their values. Names of keys are of either case; values are kept as they are.
#[derive(Clone, Default, Debug)]
pub struct Conditions(BTreeMap<String, Vec<String>>);

impl Conditions {
    /// Gives a key one value, in place of what it had.
    pub fn set(&mut self, key: &str, value: impl Into<String>) {
        self.0.insert(key.to_lowercase(), vec![value.into()]);
    }

    /// Adds a value to a key that may have several.
    pub fn push(&mut self, key: &str, value: impl Into<String>) {
        self.0.entry(key.to_lowercase()).or_default().push(value.into());
    }

    /// The values of a key, which is given in lower case; empty where the request has none.
    pub(super) fn values(&self, key: &str) -> &[String] {
        self.0.get(key).map_or(&[], Vec::as_slice)
    }

    /// The value of a key (in lower case) that has one: what a policy variable stands for.
    pub(super) fn single(&self, key: &str) -> Option<&str> {
        match self.values(key) {
            [one] => Some(one),
            _ => None,
        }
    }

    /// Every key, in lower case, with its values.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[String])> {
        self.0.iter().map(|(k, v)| (k.as_str(), v.as_slice()))
    }
}

impl<K: AsRef<str>, V: Into<String>> FromIterator<(K, V)> for Conditions {
    fn from_iter<T: IntoIterator<Item = (K, V)>>(pairs: T) -> Self {
        let mut all = Self::default();
        for (key, value) in pairs {
            all.push(key.as_ref(), value);
        }
        all
    }
}
