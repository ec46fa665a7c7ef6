//! One log line when a provider stops giving keys, one when it gives them again.

use std::time::Instant;

use parking_lot::Mutex;

use super::KeyError;

/// What is known of one provider's trouble.
#[derive(Default)]
pub(super) struct Outage {
    began: Mutex<Option<Instant>>,
}

impl Outage {
    /// Notes how a call ended. Errors that concern one wrapped key only are none of the provider's.
    pub(super) fn note<T>(&self, uri: &str, outcome: &Result<T, KeyError>) {
        match outcome {
            Ok(_) | Err(KeyError::Foreign) => {
                if let Some(began) = self.began.lock().take() {
                    let seconds = began.elapsed().as_secs();
                    log::info!("{uri}: gives keys again, after {seconds} s");
                }
            }
            Err(error) if error.is_outage() => {
                let mut began = self.began.lock();
                if began.is_none() {
                    *began = Some(Instant::now());
                    let error = error.to_string();
                    let error =
                        error.strip_prefix(uri).map_or(error.as_str(), |rest| rest.trim_start_matches(": "));
                    log::error!(
                        "{uri}: gives no keys: {error}; what is open goes on, other opens fail until it is back"
                    );
                }
            }
            Err(_) => {}
        }
    }
}
