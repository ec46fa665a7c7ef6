//! AWS Signature Version 4: signs requests, and verifies what a client signed
//! (<https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html>).
//!
//! Pure: a request, a secret and a clock go in. Only the header form is known, as KMS clients use it.

use aws_lc_rs::{digest, hmac};
use jiff::Timestamp;

use super::error::KmsError;
use super::hex;

/// How far a client's clock may be from ours, in seconds (AWS: 5 minutes).
const MAX_SKEW: i64 = 300;
/// Signed headers of one request; SDKs sign 4 to 8.
const MAX_SIGNED: usize = 64;
const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// The `Authorization` header, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Authorization {
    pub(super) access_key: String,
    /// `YYYYMMDD`.
    pub(super) date: String,
    pub(super) region: String,
    pub(super) service: String,
    pub(super) signed_headers: Vec<String>,
    pub(super) signature: String,
}

/// What of a request is signed.
pub(super) struct Signed<'a> {
    pub(super) method: &'a str,
    /// As sent, without the query.
    pub(super) path: &'a str,
    pub(super) query: &'a str,
    /// The value of a header, several joined by commas; names in lower case.
    pub(super) header: &'a dyn Fn(&str) -> Option<String>,
    pub(super) body: &'a [u8],
}

/// Signs a `POST /` of AWS JSON; gives the headers `X-Amz-Date` and `Authorization`.
pub fn sign_post(
    credentials: (&str, &str),
    (region, service): (&str, &str),
    host: &str,
    target: &str,
    body: &[u8],
) -> [(&'static str, String); 2] {
    sign_at(Timestamp::now(), credentials, (region, service), host, target, body)
}

/// As [`sign_post`], at a time.
pub(super) fn sign_at(
    now: Timestamp,
    credentials: (&str, &str),
    (region, service): (&str, &str),
    host: &str,
    target: &str,
    body: &[u8],
) -> [(&'static str, String); 2] {
    let when = basic(now);
    let mut authorization = Authorization {
        access_key: credentials.0.to_owned(),
        date: when.get(..8).unwrap_or_default().to_owned(),
        region: region.to_owned(),
        service: service.to_owned(),
        signed_headers: ["content-type", "host", "x-amz-date", "x-amz-target"].map(str::to_owned).into(),
        signature: String::new(),
    };
    let header = |name: &str| match name {
        "content-type" => Some("application/x-amz-json-1.1".to_owned()),
        "host" => Some(host.to_owned()),
        "x-amz-date" => Some(when.clone()),
        _ => Some(target.to_owned()),
    };
    let request = Signed { method: "POST", path: "/", query: "", header: &header, body };
    let text = authorization.string_to_sign(&request, &when);
    authorization.signature =
        hex::encode(hmac::sign(&authorization.signing_key(credentials.1), text.as_bytes()).as_ref());
    let value = format!(
        "{ALGORITHM} Credential={}/{}, SignedHeaders={}, Signature={}",
        authorization.access_key,
        authorization.scope(),
        authorization.signed_headers.join(";"),
        authorization.signature
    );
    [("X-Amz-Date", when), ("Authorization", value)]
}

fn incomplete(text: String) -> KmsError {
    KmsError::exception("IncompleteSignatureException", text)
}

impl Authorization {
    /// Reads the header's value.
    pub(super) fn parse(value: &str) -> Result<Self, KmsError> {
        let rest = value.strip_prefix(ALGORITHM).ok_or_else(|| {
            incomplete(format!("Authorization header requires '{ALGORITHM}' and its parameters."))
        })?;
        let field = |name: &str| {
            let mut parts = rest.split(',').map(str::trim);
            parts
                .find_map(|part| part.strip_prefix(name)?.strip_prefix('='))
                .ok_or_else(|| incomplete(format!("Authorization header requires '{name}' parameter.")))
        };
        let (credential, headers, signature) =
            (field("Credential")?, field("SignedHeaders")?, field("Signature")?);
        let parts: Vec<&str> = credential.rsplitn(5, '/').collect();
        let [terminal, service, region, date, access_key] = parts.as_slice() else {
            return Err(incomplete(format!(
                "Credential must have exactly 5 slash-delimited elements, e.g. keyid/date/region/service/term, got '{credential}'"
            )));
        };
        if *terminal != "aws4_request" || date.len() != 8 {
            return Err(incomplete(
                "Credential should be scoped with a valid terminator: 'aws4_request'.".into(),
            ));
        }
        let signed_headers: Vec<String> = headers.split(';').map(str::to_owned).collect();
        if signed_headers.len() > MAX_SIGNED || !signed_headers.iter().any(|h| h == "host") {
            return Err(incomplete("'Host' must be a signed header, among at most 64.".into()));
        }
        Ok(Self {
            access_key: (*access_key).to_owned(),
            date: (*date).to_owned(),
            region: (*region).to_owned(),
            service: (*service).to_owned(),
            signed_headers,
            signature: signature.to_owned(),
        })
    }

    fn scope(&self) -> String {
        format!("{}/{}/{}/aws4_request", self.date, self.region, self.service)
    }

    /// The key of the day, region and service.
    pub(super) fn signing_key(&self, secret: &str) -> hmac::Key {
        let first = zeroize::Zeroizing::new(format!("AWS4{secret}"));
        let step =
            |key: &[u8], text: &str| hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes());
        let mut tag = step(first.as_bytes(), &self.date);
        for part in [&self.region, &self.service, "aws4_request"] {
            tag = step(tag.as_ref(), part);
        }
        hmac::Key::new(hmac::HMAC_SHA256, tag.as_ref())
    }

    /// Refuses a request that was not signed with `key`, or not within five minutes of `now`.
    pub(super) fn verify(
        &self,
        key: &hmac::Key,
        request: &Signed<'_>,
        now: Timestamp,
    ) -> Result<(), KmsError> {
        let when = (request.header)("x-amz-date").ok_or_else(|| {
            incomplete("Authorization header requires existence of an 'X-Amz-Date' header.".into())
        })?;
        self.check_time(&when, now)?;
        let text = self.string_to_sign(request, &when);
        let signature = hex::decode(&self.signature).unwrap_or_default();
        // Constant time, by the library.
        hmac::verify(key, text.as_bytes(), &signature).map_err(|_| {
            KmsError::exception(
                "InvalidSignatureException",
                "The request signature we calculated does not match the signature you provided. Check your AWS Secret \
                 Access Key and signing method. Consult the service documentation for details.",
            )
        })
    }

    fn string_to_sign(&self, request: &Signed<'_>, when: &str) -> String {
        [ALGORITHM, when, &self.scope(), &sha256(self.canonical(request).as_bytes())].join("\n")
    }

    fn check_time(&self, when: &str, now: Timestamp) -> Result<(), KmsError> {
        let invalid = |text: String| KmsError::exception("InvalidSignatureException", text);
        let parsed = parse_time(when)
            .ok_or_else(|| incomplete(format!("Date must be in ISO-8601 'basic format'. Got '{when}'.")))?;
        if !when.starts_with(&self.date) {
            return Err(invalid(format!(
                "Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: '{}' != '{when}'.",
                self.date
            )));
        }
        let shift = |seconds: i64| basic(Timestamp::from_second(now.as_second() + seconds).unwrap_or(now));
        let skew = parsed.as_second() - now.as_second();
        if skew < -MAX_SKEW {
            let (earliest, now) = (shift(-MAX_SKEW), shift(0));
            return Err(invalid(format!(
                "Signature expired: {when} is now earlier than {earliest} ({now} - 5 min.)"
            )));
        }
        if skew > MAX_SKEW {
            let (latest, now) = (shift(MAX_SKEW), shift(0));
            return Err(invalid(format!(
                "Signature not yet current: {when} is still later than {latest} ({now} + 5 min.)"
            )));
        }
        Ok(())
    }

    fn canonical(&self, request: &Signed<'_>) -> String {
        let mut out = String::with_capacity(512);
        let path = if request.path.is_empty() { "/" } else { request.path };
        for part in [request.method, path, &canonical_query(request.query)] {
            out.push_str(part);
            out.push('\n');
        }
        for name in &self.signed_headers {
            let value = (request.header)(name).unwrap_or_default();
            out.push_str(name);
            out.push(':');
            let words: Vec<&str> = value.split_ascii_whitespace().collect();
            out.push_str(&words.join(" "));
            out.push('\n');
        }
        out.push('\n');
        out.push_str(&self.signed_headers.join(";"));
        out.push('\n');
        // The body is hashed here, whatever X-Amz-Content-Sha256 claims.
        out.push_str(&sha256(request.body));
        out
    }
}

fn canonical_query(query: &str) -> String {
    let mut pairs: Vec<String> = query
        .split('&')
        .filter(|p| !p.is_empty())
        .map(|p| if p.contains('=') { p.to_owned() } else { format!("{p}=") })
        .collect();
    pairs.sort();
    pairs.join("&")
}

fn sha256(bytes: &[u8]) -> String {
    hex::encode(digest::digest(&digest::SHA256, bytes).as_ref())
}

/// `20150830T123600Z`.
fn parse_time(text: &str) -> Option<Timestamp> {
    let bytes = text.as_bytes();
    if bytes.len() != 16 || bytes.get(8) != Some(&b'T') || bytes.get(15) != Some(&b'Z') {
        return None;
    }
    let number = |from: usize, to: usize| text.get(from..to)?.parse::<i16>().ok();
    let small = |from: usize| i8::try_from(number(from, from + 2)?).ok();
    let civil =
        jiff::civil::DateTime::new(number(0, 4)?, small(4)?, small(6)?, small(9)?, small(11)?, small(13)?, 0);
    jiff::tz::TimeZone::UTC.to_timestamp(civil.ok()?).ok()
}

/// `20150830T123600Z` of a time.
pub(super) fn basic(when: Timestamp) -> String {
    when.strftime("%Y%m%dT%H%M%SZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of AWS's test suite, "get-vanilla".
    const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
    const HEADER: &str = "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, \
        SignedHeaders=host;x-amz-date, \
        Signature=5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31";

    fn header(name: &str) -> Option<String> {
        match name {
            "host" => Some("example.amazonaws.com".into()),
            "x-amz-date" => Some("20150830T123600Z".into()),
            _ => None,
        }
    }

    fn at(shift: i64) -> Timestamp {
        Timestamp::from_second(parse_time("20150830T123600Z").unwrap().as_second() + shift).unwrap()
    }

    fn verify(secret: &str, body: &[u8], shift: i64) -> Result<(), KmsError> {
        let parsed = Authorization::parse(HEADER).unwrap();
        let request = Signed { method: "GET", path: "/", query: "", header: &header, body };
        parsed.verify(&parsed.signing_key(secret), &request, at(shift))
    }

    /// AWS's own vector verifies; another secret, body or a late clock does not, and says why as AWS does.
    #[test]
    fn the_vector_of_aws_verifies() {
        verify(SECRET, b"", 0).unwrap();
        verify(SECRET, b"", 300).unwrap();
        verify(SECRET, b"", -300).unwrap();
        let text = |r: Result<(), KmsError>| r.unwrap_err().to_string();
        assert!(text(verify("wrong", b"", 0)).contains("does not match the signature you provided"));
        assert!(text(verify(SECRET, b"x", 0)).contains("does not match"));
        assert_eq!(
            text(verify(SECRET, b"", 301)),
            "Signature expired: 20150830T123600Z is now earlier than 20150830T123601Z (20150830T124101Z - 5 min.)"
        );
        assert!(text(verify(SECRET, b"", -301)).starts_with("Signature not yet current"));
    }

    /// Headers that lack a part are told apart from wrong ones.
    #[test]
    fn incomplete_headers_say_what_is_missing() {
        for bad in [
            "",
            "Basic abc",
            "AWS4-HMAC-SHA256 Credential=a/b",
            "AWS4-HMAC-SHA256 Credential=a/20150830/r/s/aws4_request, SignedHeaders=host",
            "AWS4-HMAC-SHA256 Credential=a/20150830/r/s/aws4_request, SignedHeaders=x-amz-date, Signature=00",
            "AWS4-HMAC-SHA256 Credential=a/20150830/r/s/other, SignedHeaders=host, Signature=00",
        ] {
            assert_eq!(
                Authorization::parse(bad).unwrap_err().code(),
                "IncompleteSignatureException",
                "{bad}"
            );
        }
    }

    /// Query parameters are signed in the order of their names.
    #[test]
    fn queries_are_sorted() {
        assert_eq!(canonical_query("b=2&a=1&c"), "a=1&b=2&c=");
        assert_eq!(canonical_query(""), "");
    }
}
