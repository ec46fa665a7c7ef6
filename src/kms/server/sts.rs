//! STS GetCallerIdentity, which SDK users expect beside every service: query protocol in, XML out.

use hyper::StatusCode;

use super::http::Answer;
use crate::kms::caller::Caller;
use crate::kms::error::KmsError;

const NAMESPACE: &str = "https://sts.amazonaws.com/doc/2011-06-15/";

/// Answers an STS request.
pub(super) fn call(caller: &Caller, body: &[u8], request_id: &str) -> Result<Answer, KmsError> {
    let text = std::str::from_utf8(body).unwrap_or_default();
    let action = text.split('&').find_map(|pair| pair.strip_prefix("Action="));
    let (status, body) = match action {
        Some("GetCallerIdentity") => (StatusCode::OK, identity(caller, request_id)),
        _ => (
            StatusCode::BAD_REQUEST,
            format!(
                "<ErrorResponse xmlns=\"{NAMESPACE}\"><Error><Type>Sender</Type><Code>InvalidAction</Code>\
                 <Message>Of STS, only GetCallerIdentity is served here.</Message></Error>\
                 <RequestId>{request_id}</RequestId></ErrorResponse>"
            ),
        ),
    };
    Ok(Answer::new(status, "text/xml", body))
}

fn identity(caller: &Caller, request_id: &str) -> String {
    // Names of principals have no character that XML escapes.
    format!(
        "<GetCallerIdentityResponse xmlns=\"{NAMESPACE}\"><GetCallerIdentityResult><Arn>{}</Arn>\
         <UserId>{}</UserId><Account>{}</Account></GetCallerIdentityResult>\
         <ResponseMetadata><RequestId>{request_id}</RequestId></ResponseMetadata></GetCallerIdentityResponse>",
        caller.arn, caller.user_id, caller.scope.account
    )
}
