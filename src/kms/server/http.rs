//! One HTTP request: route, read, authenticate, call, answer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::listen::Origin;
use super::{Shared, admin, auth, sts};
use crate::crypto::wiped;
use crate::kms::api::wipe;
use crate::kms::caller::new_request_id;
use crate::kms::console;
use crate::kms::error::KmsError;

/// Bytes of a request's body: the longest legal one, a policy and tags, stays far below.
const MAX_BODY: usize = 1 << 20;
/// Time for a request's body.
const BODY_TIME: Duration = Duration::from_secs(30);
/// `X-Amz-Target` begins with this.
const TARGET: &str = "TrentService.";
const AMZ_JSON: &str = "application/x-amz-json-1.1";
/// Actions that take microseconds and touch no disk, so they are done where they arrive.
const QUICK: &[&str] = &[
    "Decrypt",
    "DescribeKey",
    "Encrypt",
    "GenerateDataKey",
    "GenerateDataKeyWithoutPlaintext",
    "GenerateMac",
    "GenerateRandom",
    "ReEncrypt",
    "VerifyMac",
];

/// An answer, before it has its request id.
pub(super) struct Answer {
    status: StatusCode,
    kind: &'static str,
    /// A data key may stand in it.
    body: Zeroizing<Vec<u8>>,
}

impl Answer {
    pub(super) fn new(status: StatusCode, kind: &'static str, body: impl Into<Vec<u8>>) -> Self {
        Self { status, kind, body: Zeroizing::new(body.into()) }
    }

    /// Takes the answer of an action, and wipes it.
    fn json(mut value: Value) -> Self {
        let body = wiped::json(&value).expect("a value has string keys only");
        wipe(&mut value);
        Self { status: StatusCode::OK, kind: AMZ_JSON, body }
    }

    /// AWS's errors. Exceptions of the model have `message`, AccessDeniedException has `Message`.
    fn error(error: &KmsError) -> Self {
        let mut body = json!({ "__type": error.code() });
        if let Some(text) = error.wire_text() {
            body[if error.code() == "AccessDeniedException" { "Message" } else { "message" }] = json!(text);
        }
        let status = StatusCode::from_u16(error.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self::new(status, AMZ_JSON, body.to_string())
    }

    fn into_response(self, request_id: &str) -> Response<Full<Bytes>> {
        // The owner wipes it when the connection is done with it.
        let mut response = Response::new(Full::new(Bytes::from_owner(self.body)));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(self.kind));
        if let Ok(id) = HeaderValue::from_str(request_id) {
            headers.insert("x-amzn-requestid", id);
        }
        response
    }
}

/// Answers a request. Its only failure ends the connection: the request was for a region that does not exist.
pub(super) async fn answer(
    shared: &Arc<Shared>,
    request: Request<Incoming>,
    origin: Origin,
) -> std::io::Result<Response<Full<Bytes>>> {
    let request_id = new_request_id();
    if shared.console && request.uri().path().starts_with(console::PATH) {
        return Ok(console_answer(shared, request, origin).await);
    }
    let answer = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/healthz") => Answer::new(StatusCode::OK, "text/plain", "ok\n"),
        (&Method::GET, "/metrics") => {
            Answer::new(StatusCode::OK, "text/plain; version=0.0.4", shared.metrics.text())
        }
        (&Method::POST, "/moto-api/reset") if shared.test_reset => reset(shared).await,
        (&Method::POST, "/") => {
            let started = Instant::now();
            let (action, done) = post(shared, request, origin, &request_id).await;
            let code = done.as_ref().err().map_or("", KmsError::code);
            shared.metrics.count(action, code, started.elapsed());
            log_failure(&done, &request_id);
            if code == auth::NO_SUCH_REGION {
                return Err(std::io::ErrorKind::ConnectionAborted.into());
            }
            done.unwrap_or_else(|error| Answer::error(&error))
        }
        _ => {
            let unknown = KmsError::exception("UnknownOperationException", "");
            Answer { status: StatusCode::NOT_FOUND, ..Answer::error(&unknown) }
        }
    };
    Ok(answer.into_response(&request_id))
}

/// The console, for browsers on this machine only.
async fn console_answer(
    shared: &Arc<Shared>,
    request: Request<Incoming>,
    origin: Origin,
) -> Response<Full<Bytes>> {
    let local = match origin {
        Origin::Tcp { from, .. } => from.to_canonical().is_loopback(),
        Origin::Unix | Origin::Control => true,
    };
    let host = request.headers().get("host").and_then(|h| h.to_str().ok()).unwrap_or_default();
    let reply = if local && console::is_local_name(host) {
        let (parts, body) = request.into_parts();
        let body = tokio::time::timeout(BODY_TIME, read(body)).await;
        let body = body.ok().and_then(Result::ok).unwrap_or_default();
        let shared = shared.clone();
        let work = move || {
            let query = parts.uri.query().unwrap_or_default();
            console::answer(&shared.engine, parts.method.as_str(), parts.uri.path(), query, &body)
        };
        tokio::task::spawn_blocking(work).await.ok()
    } else {
        let body = b"the console is for browsers on this machine: open it as http://127.0.0.1:PORT/console";
        Some(console::Reply { status: 403, kind: "text/plain; charset=utf-8", body: body.to_vec() })
    };
    let failed =
        || console::Reply { status: 500, kind: "text/plain; charset=utf-8", body: b"failed".to_vec() };
    let reply = reply.unwrap_or_else(failed);
    let mut response = Response::new(Full::new(Bytes::from(reply.body)));
    *response.status_mut() = StatusCode::from_u16(reply.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(reply.kind));
    headers.insert("cache-control", HeaderValue::from_static("no-store"));
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    headers.insert("content-security-policy", HeaderValue::from_static(console::security_policy()));
    response
}

/// What a client is not told is told the log.
fn log_failure(done: &Result<Answer, KmsError>, request_id: &str) {
    if let Err(error) = done
        && error.status() >= 500
    {
        log::error!("KMS request {request_id} failed: {error}");
    }
}

async fn reset(shared: &Arc<Shared>) -> Answer {
    let shared = shared.clone();
    let done = tokio::task::spawn_blocking(move || {
        shared.engine.reset()?;
        shared.seed.as_deref().map_or(Ok(()), |seed| shared.engine.seed(seed))
    });
    match done.await {
        Ok(Ok(())) => Answer::json(json!({ "status": "ok" })),
        Ok(Err(error)) => Answer::error(&error),
        Err(_) => Answer::error(&KmsError::exception("KMSInternalException", "The reset failed.")),
    }
}

async fn read(body: Incoming) -> Result<Zeroizing<Vec<u8>>, KmsError> {
    let too_large = || {
        KmsError::exception(
            "RequestEntityTooLargeException",
            format!("The body is longer than {MAX_BODY} bytes."),
        )
    };
    let broken = || KmsError::exception("SerializationException", "The body ended early.");
    let mut body = body;
    let mut bytes = Zeroizing::new(Vec::new());
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| broken())?.into_data() else { continue };
        if bytes.len() + data.len() > MAX_BODY {
            return Err(too_large());
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes)
}

/// A signed request; gives the action for the metrics, too.
async fn post(
    shared: &Arc<Shared>,
    request: Request<Incoming>,
    origin: Origin,
    request_id: &str,
) -> (&'static str, Result<Answer, KmsError>) {
    let (parts, body) = request.into_parts();
    let action = known_action(&parts);
    let name = action.unwrap_or("unknown");
    let late = KmsError::exception("RequestTimeoutException", "The body did not arrive in time.");
    let body = match tokio::time::timeout(BODY_TIME, read(body)).await {
        Ok(Ok(body)) => body,
        Ok(Err(error)) => return (name, Err(error)),
        Err(_) => return (name, Err(late)),
    };
    let work = Work { shared: shared.clone(), parts, body, origin, request_id: request_id.to_owned() };
    if QUICK.contains(&name) {
        return (name, work.run());
    }
    let done = tokio::task::spawn_blocking(move || work.run()).await;
    let failed = || KmsError::exception("KMSInternalException", "The request failed.");
    (name, done.unwrap_or_else(|_| Err(failed())))
}

fn known_action(parts: &Parts) -> Option<&'static str> {
    let target = parts.headers.get("x-amz-target")?.to_str().ok()?;
    let name = target.strip_prefix(TARGET).or_else(|| target.strip_prefix(admin::TARGET))?;
    crate::kms::actions().find(|action| *action == name)
}

/// A request that was read.
struct Work {
    shared: Arc<Shared>,
    parts: Parts,
    body: Zeroizing<Vec<u8>>,
    origin: Origin,
    request_id: String,
}

impl Work {
    fn run(&self) -> Result<Answer, KmsError> {
        let target = self.parts.headers.get("x-amz-target").and_then(|v| v.to_str().ok());
        let engine = &self.shared.engine;
        let signed = self.parts.headers.contains_key("authorization");
        let caller = if self.origin == Origin::Control && !signed {
            if let Some(action) = target.and_then(|t| t.strip_prefix(admin::TARGET)) {
                return admin::call(engine, action, &self.object()?).map(Answer::json);
            }
            auth::owner(&self.parts, &self.request_id)
        } else {
            let verified = auth::verify(
                engine,
                &self.shared.keyring,
                &self.parts,
                &self.body,
                self.origin,
                &self.request_id,
            )?;
            if verified.service == "sts" {
                return sts::call(&verified.caller, &self.body, &self.request_id);
            }
            verified.caller
        };
        let action = target.and_then(|t| t.strip_prefix(TARGET));
        let action = action.ok_or_else(|| KmsError::exception("UnknownOperationException", ""))?;
        engine.call(action, self.object()?, &caller).map(Answer::json)
    }

    fn object(&self) -> Result<Value, KmsError> {
        if self.body.is_empty() {
            return Ok(json!({}));
        }
        serde_json::from_slice(&self.body).map_err(|_| KmsError::exception("SerializationException", ""))
    }
}
