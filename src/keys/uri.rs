//! Key URIs: which provider, and which of its keys.

use super::KeyError;
use super::token::TokenUri;

/// The key that `init` makes and uses where none is named.
pub const DEFAULT_URI: &str = "kms:embedded/alias/envelopefs";

const EMBEDDED: &str = "kms:embedded/";
const AWS: &str = "kms:aws/";
const HTTPS: &str = "kms:https://";
const HTTP: &str = "kms:http://";

/// A key URI that this build can serve.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum KeyUri {
    /// `kms:embedded/KEY`: a key of the embedded KMS, by id, ARN, `alias/NAME` or alias ARN.
    Embedded(String),
    /// `kms:aws/ARN`, `kms:https://HOST[:PORT]/ARN`: a key of AWS KMS, or of a server that speaks its protocol.
    Remote(RemoteKey),
    /// `pkcs11:…`: a key of a PKCS#11 token (RFC 7512).
    Token(TokenUri),
    /// `recovery:PUBLIC-KEY`: see `recovery`.
    Recovery,
    /// `envelope:`: the key-encryption keys of the vault itself.
    Envelope,
}

/// A key behind the AWS KMS protocol.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RemoteKey {
    /// `https://HOST[:PORT]`; `None` for AWS itself.
    pub endpoint: Option<String>,
    /// ARN of the key or of an alias.
    pub arn: String,
    /// The ARN's region.
    pub region: String,
}

impl KeyUri {
    /// Reads a URI.
    pub fn parse(uri: &str) -> Result<Self, KeyError> {
        let refuse = |why: String| KeyError::Uri { uri: uri.to_owned(), why };
        if let Some(key) = uri.strip_prefix(EMBEDDED) {
            if key.is_empty() {
                return Err(refuse(format!("it names no key; use {EMBEDDED}alias/NAME or {EMBEDDED}KEY-ID")));
            }
            return Ok(Self::Embedded(key.to_owned()));
        }
        if uri.starts_with(AWS) || uri.starts_with(HTTPS) || uri.starts_with(HTTP) {
            return RemoteKey::parse(uri).map(Self::Remote).map_err(refuse);
        }
        if uri.starts_with(super::recovery::PREFIX) {
            return Ok(Self::Recovery);
        }
        if uri == super::envelope::URI {
            return Ok(Self::Envelope);
        }
        if uri.starts_with(super::token::SCHEME) {
            return TokenUri::parse(uri).map(Self::Token);
        }
        Err(refuse(format!(
            "unknown provider; use {DEFAULT_URI}, {EMBEDDED}KEY-ID, {AWS}KEY-ARN, {HTTPS}HOST/KEY-ARN or pkcs11:…"
        )))
    }

    /// TCP port that the provider is reached on, where it is.
    pub(super) fn port(&self) -> Option<u16> {
        match self {
            Self::Embedded(_) | Self::Token(_) | Self::Recovery | Self::Envelope => None,
            Self::Remote(key) => Some(key.port()),
        }
    }

    /// The URI of a key of the embedded KMS.
    pub(super) fn embedded(key: &str) -> String {
        format!("{EMBEDDED}{key}")
    }
}

/// The ARN of a key behind the AWS KMS protocol.
pub(super) fn arn(uri: &str) -> Option<String> {
    match KeyUri::parse(uri) {
        Ok(KeyUri::Remote(key)) => Some(key.arn),
        _ => None,
    }
}

impl RemoteKey {
    fn parse(uri: &str) -> Result<Self, String> {
        let (endpoint, arn) = if let Some(arn) = uri.strip_prefix(AWS) {
            (None, arn)
        } else {
            let server = uri.strip_prefix("kms:").ok_or("it names no server")?;
            let (endpoint, arn) = server
                .find("/arn:")
                .and_then(|at| Some((server.get(..at)?, server.get(at + 1..)?)))
                .ok_or(format!("it names no key; use {HTTPS}HOST[:PORT]/KEY-ARN"))?;
            check_endpoint(endpoint)?;
            (Some(endpoint.to_owned()), arn)
        };
        let parts: Vec<&str> = arn.splitn(6, ':').collect();
        let region = match parts.as_slice() {
            ["arn", partition, "kms", region, account, key]
                if partition.starts_with("aws")
                    && !region.is_empty()
                    && region.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
                    && account.len() == 12
                    && account.bytes().all(|b| b.is_ascii_digit())
                    && is_resource(key) =>
            {
                (*region).to_owned()
            }
            _ => {
                return Err(format!(
                    "{arn:?} is no ARN of a key; it looks like arn:aws:kms:REGION:ACCOUNT:key/KEY-ID (or :alias/NAME)"
                ));
            }
        };
        Ok(Self { endpoint, arn: arn.to_owned(), region })
    }

    /// The URI again.
    pub fn uri(&self) -> String {
        match &self.endpoint {
            None => format!("{AWS}{}", self.arn),
            Some(endpoint) => format!("kms:{endpoint}/{}", self.arn),
        }
    }

    /// The same place with the key that an alias stands for.
    #[must_use]
    pub fn with_arn(&self, arn: &str) -> Self {
        Self { arn: arn.to_owned(), ..self.clone() }
    }

    /// TCP port of the service.
    pub fn port(&self) -> u16 {
        let Some(endpoint) = &self.endpoint else { return 443 };
        let default = if endpoint.starts_with("http://") { 80 } else { 443 };
        endpoint.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).unwrap_or(default)
    }
}

/// `key/ID` or `alias/NAME`, in characters that need no quoting anywhere.
fn is_resource(text: &str) -> bool {
    let name = text.strip_prefix("key/").or_else(|| text.strip_prefix("alias/"));
    name.is_some_and(|n| {
        !n.is_empty()
            && n.len() <= 256
            && n.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_/:".contains(&b))
    })
}

/// Plain HTTP is for this machine alone: a data key must not cross a network in the clear.
fn check_endpoint(endpoint: &str) -> Result<(), String> {
    let (plain, authority) = match endpoint.split_once("://") {
        Some(("https", authority)) => (false, authority),
        Some(("http", authority)) => (true, authority),
        _ => return Err("it names no server".into()),
    };
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => {
            port.parse::<u16>().ok().filter(|p| *p != 0).ok_or(format!("{port:?} is no TCP port"))?;
            host
        }
        _ => authority,
    };
    let inner = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    let good = match inner {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b)),
    };
    if !good {
        return Err(format!("{host:?} is no host name or address"));
    }
    let here = host == "localhost"
        || inner.unwrap_or(host).parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
    if plain && !here {
        return Err(format!(
            "http:// is for this machine (127.0.0.1, [::1], localhost) only; use {HTTPS}{authority}/…"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARN: &str = "arn:aws:kms:eu-west-1:123456789012:key/0b6b4e3c-0000-4000-8000-000000000001";

    fn remote(uri: &str) -> RemoteKey {
        match KeyUri::parse(uri) {
            Ok(KeyUri::Remote(key)) => key,
            other => panic!("{uri}: {other:?}"),
        }
    }

    /// Region and port follow from the URI, and what is read is written again.
    #[test]
    fn remote_uris_say_where_and_which() {
        for (uri, endpoint, port) in [
            (format!("kms:aws/{ARN}"), None, 443),
            (format!("kms:https://kms.example.org/{ARN}"), Some("https://kms.example.org"), 443),
            (format!("kms:https://kms.example.org:8443/{ARN}"), Some("https://kms.example.org:8443"), 8443),
            (format!("kms:http://127.0.0.1:9000/{ARN}"), Some("http://127.0.0.1:9000"), 9000),
            (format!("kms:http://[::1]/{ARN}"), Some("http://[::1]"), 80),
        ] {
            let key = remote(&uri);
            assert_eq!((key.endpoint.as_deref(), key.port()), (endpoint, port), "{uri}");
            assert_eq!((key.arn.as_str(), key.region.as_str(), key.uri()), (ARN, "eu-west-1", uri));
        }
        let alias = remote("kms:aws/arn:aws-us-gov:kms:us-gov-west-1:123456789012:alias/team/files");
        assert_eq!(alias.region, "us-gov-west-1");
        assert_eq!(alias.with_arn(ARN).uri(), format!("kms:aws/{ARN}"));
    }

    /// A data key never goes over a network in the clear, and nothing odd gets into a request.
    #[test]
    fn what_is_not_safe_or_complete_is_refused() {
        for (uri, word) in [
            (format!("kms:http://kms.example.org/{ARN}"), "this machine"),
            (format!("kms:http://10.0.0.1/{ARN}"), "this machine"),
            (format!("kms:https://user@host/{ARN}"), "no host name"),
            (format!("kms:https:///{ARN}"), "no host name"),
            (format!("kms:https://host:0/{ARN}"), "TCP port"),
            (format!("kms:https://host:70000/{ARN}"), "TCP port"),
            ("kms:https://host/key".into(), "names no key"),
            ("kms:aws/alias/x".into(), "no ARN"),
            ("kms:aws/arn:aws:s3:eu-west-1:123456789012:key/x".into(), "no ARN"),
            ("kms:aws/arn:aws:kms::123456789012:key/x".into(), "no ARN"),
            ("kms:aws/arn:aws:kms:eu.west:123456789012:key/x".into(), "no ARN"),
            ("kms:aws/arn:aws:kms:eu-west-1:1234:key/x".into(), "no ARN"),
            ("kms:aws/arn:aws:kms:eu-west-1:123456789012:key/x y".into(), "no ARN"),
        ] {
            let error = KeyUri::parse(&uri).unwrap_err().to_string();
            assert!(error.contains(&uri) && error.contains(word), "{error}");
        }
    }
}
