//! Pages of listings: `Limit`, `Marker`, `NextMarker`, `Truncated`.

use serde_json::{Value, json};

use super::call::Call;
use crate::kms::error::KmsError;
use crate::kms::hex;

/// Where a page begins and how long it is.
pub(super) struct Page {
    /// The last name of the page before; empty for the first.
    pub(super) after: String,
    pub(super) limit: usize,
}

impl Page {
    pub(super) fn of(call: &Call<'_>, default: usize) -> Result<Self, KmsError> {
        let limit = call.number("Limit").and_then(|n| usize::try_from(n).ok()).unwrap_or(default);
        let after = match call.text("Marker") {
            None => String::new(),
            Some(marker) => hex::decode(marker).and_then(|b| String::from_utf8(b).ok()).ok_or_else(|| {
                KmsError::exception("InvalidMarkerException", "The marker is not one that this service gave.")
            })?,
        };
        Ok(Self { after, limit })
    }

    /// One more than the page has: it tells whether there is a next one.
    pub(super) fn fetch(&self) -> usize {
        self.limit.saturating_add(1)
    }

    /// The answer: at most `limit` of the entries under `field`; each comes with the name that continues behind it.
    pub(super) fn answer(&self, field: &str, mut entries: Vec<(String, Value)>) -> Value {
        let more = entries.len() > self.limit;
        entries.truncate(self.limit);
        let next = entries.last().filter(|_| more).map(|(name, _)| hex::encode(name.as_bytes()));
        let list: Vec<Value> = entries.into_iter().map(|(_, value)| value).collect();
        let mut out = json!({ "Truncated": more });
        out[field] = Value::Array(list);
        if let Some(next) = next {
            out["NextMarker"] = json!(next);
        }
        out
    }
}

/// Pages a short list that is at hand: names are positions.
pub(super) fn of_list(page: &Page, field: &str, all: Vec<Value>) -> Value {
    let skip = page.after.parse::<usize>().map_or(0, |n| n + 1);
    let entries = all.into_iter().enumerate().skip(skip).take(page.fetch());
    page.answer(field, entries.map(|(at, value)| (at.to_string(), value)).collect())
}
