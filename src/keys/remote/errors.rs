//! AWS's exceptions as key errors (KMS API reference, "Errors" of each action; "Common Error Types").

use aws_sdk_kms::config::http::HttpResponse;
use aws_sdk_kms::error::{ProvideErrorMetadata, SdkError};

use crate::keys::KeyError;

/// The longest text of an error that is kept: it comes from the network.
const LONGEST: usize = 300;

/// What an error of the SDK means for a key.
pub(super) fn key_error<E>(uri: &str, error: SdkError<E, HttpResponse>) -> KeyError
where
    E: std::error::Error + ProvideErrorMetadata + Send + Sync + 'static,
{
    let status = error.raw_response().map(|response| response.status().as_u16());
    let Some(service) = error.as_service_error() else {
        return KeyError::Unreachable(format!("{uri}: {}", clean(&in_words(&error))));
    };
    let code = service.code().unwrap_or_default();
    let message = clean(service.message().unwrap_or_default());
    by_code(uri, code, status, &message)
}

fn by_code(uri: &str, code: &str, status: Option<u16>, message: &str) -> KeyError {
    // Some services give a namespace and a URL with it.
    let name = code.rsplit('#').next().unwrap_or(code).split(':').next().unwrap_or(code);
    let text =
        if name.is_empty() { format!("{uri}: {message}") } else { format!("{uri}: {name}: {message}") };
    match name {
        "NotFoundException" => KeyError::NotFound(format!("{uri}: {message}")),
        "DisabledException" | "KMSInvalidStateException" => KeyError::Disabled(uri.to_owned()),
        "InvalidCiphertextException" | "IncorrectKeyException" => KeyError::Foreign,
        "KeyUnavailableException"
        | "DependencyTimeoutException"
        | "KMSInternalException"
        | "InternalFailure"
        | "InternalServiceError"
        | "ServiceUnavailable"
        | "ServiceUnavailableException"
        | "CustomKeyStoreInvalidStateException"
        | "CloudHsmClusterNotActiveException"
        | "LimitExceededException"
        | "Throttling"
        | "ThrottlingException"
        | "ThrottledException"
        | "TooManyRequestsException"
        | "RequestLimitExceeded"
        | "RequestTimeout"
        | "RequestTimeoutException" => KeyError::Unreachable(text),
        _ if status.is_none_or(|s| s >= 500 || s == 429) => KeyError::Unreachable(text),
        // AccessDeniedException, UnrecognizedClientException, InvalidSignatureException, ExpiredTokenException, ...
        _ => KeyError::Denied(text),
    }
}

/// An error and what caused it.
fn in_words(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// Text of a stranger: one line, bounded.
fn clean(text: &str) -> String {
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(LONGEST).collect();
    line.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each exception sends an operator to the right place; what is unknown is judged by its status.
    #[test]
    fn exceptions_keep_their_meaning() {
        let of = |code: &str, status| by_code("kms:x", code, Some(status), "why");
        assert!(matches!(of("NotFoundException", 400), KeyError::NotFound(_)));
        assert!(matches!(of("com.amazonaws.kms#DisabledException", 400), KeyError::Disabled(_)));
        assert!(matches!(of("KMSInvalidStateException", 400), KeyError::Disabled(_)));
        assert!(matches!(of("InvalidCiphertextException", 400), KeyError::Foreign));
        assert!(matches!(of("IncorrectKeyException", 400), KeyError::Foreign));
        assert!(matches!(of("ThrottlingException", 400), KeyError::Unreachable(_)));
        assert!(matches!(of("KMSInternalException", 500), KeyError::Unreachable(_)));
        assert!(matches!(of("AccessDeniedException:http://x", 400), KeyError::Denied(_)));
        assert!(matches!(of("UnrecognizedClientException", 400), KeyError::Denied(_)));
        assert!(matches!(of("SomethingNew", 403), KeyError::Denied(_)));
        assert!(matches!(of("SomethingNew", 503), KeyError::Unreachable(_)));
        assert!(matches!(of("", 502), KeyError::Unreachable(_)));
    }

    /// What a server says cannot forge a log line or fill the log.
    #[test]
    fn a_servers_text_is_one_bounded_line() {
        assert_eq!(clean("a\nb\u{1b}c"), "a b c");
        assert_eq!(clean(&"x".repeat(9999)).len(), LONGEST);
    }
}
