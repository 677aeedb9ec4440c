//! One request to a registry: its address, our credentials, redirections, and what is tried again.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use report::{Explain, Kind, error};
use serde::Deserialize;
use ureq::http::header::{AUTHORIZATION, LOCATION, RETRY_AFTER, WWW_AUTHENTICATE};
use ureq::http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use ureq::tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig, TlsProvider};
use ureq::{Agent, Body, SendBody};

use super::challenge::{Challenge, challenges};
use super::credentials::Credentials;
use super::hosts::Host;

/// How often something is tried.
pub const TRIES: u32 = 5;
const REDIRECTS: usize = 5;
/// The longest that a `Retry-After` is obeyed.
const PATIENCE: Duration = Duration::from_secs(120);
const CONNECT: Duration = Duration::from_secs(30);
const SILENCE: Duration = Duration::from_secs(60);
/// Bytes of an error, or of a token's answer, that are read.
const ANSWER_MOST: u64 = 1 << 20;
const AGENT: &str = concat!("berth/", env!("CARGO_PKG_VERSION"));

/// What is sent along.
pub enum Payload<'a> {
    None,
    Bytes(&'a [u8]),
    /// Of a length, if it is known. It cannot be sent again.
    Stream(&'a mut (dyn Read + Send), Option<u64>),
}

/// A request.
pub struct Call<'a> {
    pub method: Method,
    /// Whole, or below the host's API.
    pub url: &'a str,
    pub headers: Vec<(&'static str, String)>,
    pub payload: Payload<'a>,
    /// What it needs a token for, as in `repository:library/alpine:pull`.
    pub scope: &'a str,
}

/// A host that is spoken to.
pub struct Endpoint {
    pub host: Host,
    agent: Agent,
    credentials: Option<Credentials>,
    /// Plain HTTP may be tried.
    insecure: bool,
    scheme: Mutex<Option<String>>,
    auth: Mutex<Auth>,
    pause: fn(Duration),
}

#[derive(Default)]
struct Auth {
    basic: bool,
    /// By scope.
    tokens: BTreeMap<String, String>,
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Endpoint {{ {} }}", self.host.address)
    }
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

fn certificates(path: &std::path::Path) -> Result<Vec<Certificate<'static>>> {
    let pem = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
    let items = ureq::tls::parse_pem(&pem).collect::<Result<Vec<_>, _>>();
    let items = items.with_context(|| path.display().to_string())?;
    let all: Vec<_> = items
        .into_iter()
        .filter_map(|item| match item {
            ureq::tls::PemItem::Certificate(c) => Some(c),
            _ => None,
        })
        .collect();
    ensure!(!all.is_empty(), "{}: no certificate in it", path.display());
    Ok(all)
}

impl Endpoint {
    pub fn new(
        host: Host,
        credentials: Option<Credentials>,
        insecure: bool,
        pause: fn(Duration),
    ) -> Result<Endpoint> {
        let mut roots = Vec::new();
        for path in &host.authorities {
            roots.extend(certificates(path)?);
        }
        let client = match &host.client {
            Some((certificate, key)) => {
                let pem = std::fs::read(key).with_context(|| format!("read {}", key.display()))?;
                let key = PrivateKey::from_pem(&pem).with_context(|| key.display().to_string())?;
                Some(ClientCert::new_with_certs(&certificates(certificate)?, key))
            }
            None => None,
        };
        // They are many, and some need none of them.
        if host.scheme.as_deref() != Some("http") {
            let system = rustls_native_certs::load_native_certs();
            roots.extend(system.certs.iter().map(|c| Certificate::from_der(c.as_ref()).to_owned()));
        }
        let tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .root_certs(RootCerts::new_with_certs(&roots))
            .client_cert(client)
            .disable_verification(insecure || host.skip_verify)
            .build();
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .tls_config(tls)
            .user_agent(AGENT)
            .accept_encoding("identity")
            .timeout_connect(Some(host.connect.unwrap_or(CONNECT)))
            .timeout_recv_response(Some(SILENCE))
            .timeout_per_read(Some(SILENCE))
            .timeout_per_write(Some(SILENCE))
            .max_idle_connections_per_host(8)
            .build();
        let scheme = Mutex::new(host.scheme.clone());
        let insecure = insecure || host.is_loopback();
        Ok(Endpoint {
            host,
            agent: config.new_agent(),
            credentials,
            insecure,
            scheme,
            auth: Mutex::default(),
            pause,
        })
    }

    /// Wait before the next try: longer each time, and not all at once.
    pub fn back_off(&self, attempt: u32, told: Option<Duration>) {
        let jitter = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.subsec_micros() % 100);
        let own = Duration::from_millis(200 << attempt.min(6)) + Duration::from_millis(jitter.into());
        (self.pause)(told.map_or(own, |told| told.min(PATIENCE)));
    }

    /// `https://host:port`, as far as it is known.
    pub fn base(&self) -> Result<String> {
        let mut scheme = self.scheme.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(scheme) = &*scheme {
            return Ok(format!("{scheme}://{}", self.host.address));
        }
        // Only now is it asked, and only where plain HTTP would be right.
        let mut found = "https";
        if self.insecure {
            let url = format!("https://{}/v2/", self.host.address);
            if let Err(e) = self.agent.get(&url).call()
                && not_tls(&e)
            {
                found = "http";
            }
        }
        *scheme = Some(found.to_owned());
        Ok(format!("{found}://{}", self.host.address))
    }

    /// Send a request until there is an answer that is not for us alone to deal with: any status but 401, 429 and those that
    /// mean a trouble that passes. Redirections are followed for what only reads.
    pub fn call(&self, mut call: Call<'_>) -> Result<Response<Body>> {
        let mut attempt = 0;
        let mut asked = false;
        loop {
            let (last, once) = (attempt + 1 >= TRIES, matches!(call.payload, Payload::Stream(..)));
            let answer = match self.follow(&mut call) {
                Ok(answer) => answer,
                Err(e) if !last && !once && passes(&e) => {
                    self.back_off(attempt, None);
                    attempt += 1;
                    continue;
                }
                Err(e) => return Err(e),
            };
            match answer.status() {
                StatusCode::UNAUTHORIZED if !asked => {
                    asked = true;
                    self.authenticate(&answer, call.scope)?;
                    ensure!(
                        !once,
                        "{}: the registry asked for credentials when the content was on its way",
                        self.host.address
                    );
                }
                StatusCode::UNAUTHORIZED => {
                    let said = refusal(answer);
                    let e: Result<()> = Err(error(
                        Kind::Failed,
                        format!("{}: authentication failed: {said}", self.host.address),
                    ));
                    let name =
                        if self.host.address == "registry-1.docker.io" { "" } else { &self.host.address };
                    e.hint(|| format!("berth-builder login {name}").trim_end().to_owned())?;
                }
                status if retried(status) && !last && !once => {
                    let told = retry_after(answer.headers(), SystemTime::now());
                    self.back_off(attempt, told);
                    attempt += 1;
                }
                _ => return Ok(answer),
            }
        }
    }

    /// The same, with an error for every status that is not expected.
    pub fn expect(&self, call: Call<'_>, statuses: &[u16]) -> Result<Response<Body>> {
        let what = format!("{} {}", call.method, call.url);
        let answer = self.call(call)?;
        if statuses.contains(&answer.status().as_u16()) {
            return Ok(answer);
        }
        Err(unexpected(answer, &self.host.address, &what))
    }

    fn follow(&self, call: &mut Call<'_>) -> Result<Response<Body>> {
        let base = self.base()?;
        let mut url = if call.url.contains("://") {
            call.url.to_owned()
        } else {
            format!("{base}{}{}", self.host.path, call.url)
        };
        let reads = matches!(call.method, Method::GET | Method::HEAD);
        for _ in 0..=REDIRECTS {
            let answer = self.send(call, &url, &base)?;
            let status = answer.status();
            if !status.is_redirection() || status == StatusCode::NOT_MODIFIED {
                return Ok(answer);
            }
            let to = answer.headers().get(LOCATION).and_then(|l| l.to_str().ok());
            let to = to.with_context(|| format!("{}: redirected to nowhere", self.host.address))?;
            let next = absolute(&url, to)?;
            ensure!(reads, "{}: redirected {} to {}", self.host.address, call.method, origin(&next));
            ensure!(
                !(url.starts_with("https:") && next.starts_with("http:")),
                "{}: redirected from https to {}",
                self.host.address,
                origin(&next)
            );
            url = next;
        }
        bail!("{}: more than {REDIRECTS} redirections", self.host.address)
    }

    fn send(&self, call: &mut Call<'_>, url: &str, base: &str) -> Result<Response<Body>> {
        let mut request = Request::builder().method(call.method.clone()).uri(url);
        for (name, value) in &call.headers {
            request = request.header(*name, value);
        }
        // What is meant for this host goes to no other.
        if origin(url) == origin(base) {
            for (name, value) in &self.host.headers {
                request = request.header(name, value);
            }
            if let Some(value) = self.authorization(call.scope) {
                request = request.header(AUTHORIZATION, value);
            }
        }
        let at = || format!("{} {}", call.method, shown(url));
        let answer = match &mut call.payload {
            Payload::None if matches!(call.method, Method::POST | Method::PUT | Method::PATCH) => {
                self.agent.run(request.header("content-length", "0").body(&[][..])?)
            }
            Payload::None => self.agent.run(request.body(())?),
            Payload::Bytes(bytes) => self.agent.run(request.body(*bytes)?),
            Payload::Stream(content, length) => {
                if let Some(length) = length {
                    request = request.header("content-length", length.to_string());
                }
                self.agent.run(request.body(SendBody::from_reader(*content))?)
            }
        };
        answer.with_context(at)
    }

    fn authorization(&self, scope: &str) -> Option<String> {
        let auth = self.auth.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(token) = auth.tokens.get(scope) {
            return Some(format!("Bearer {token}"));
        }
        match &self.credentials {
            Some(Credentials::Password { user, password }) if auth.basic => Some(basic(user, password)),
            _ => None,
        }
    }

    /// Do what the registry asks for.
    fn authenticate(&self, answer: &Response<Body>, scope: &str) -> Result<()> {
        let headers = answer.headers().get_all(WWW_AUTHENTICATE);
        let all: Vec<_> = headers.iter().filter_map(|h| h.to_str().ok()).flat_map(challenges).collect();
        let bearer = all.iter().find_map(|c| match c {
            Challenge::Bearer { realm, service, scope } => Some((realm, service, scope)),
            Challenge::Basic => None,
        });
        if let Some((realm, service, asked)) = bearer {
            let scope_ = if scope.is_empty() { asked.clone().unwrap_or_default() } else { scope.to_owned() };
            let token = self.token(realm, service.as_deref(), &scope_)?;
            let mut auth = self.auth.lock().unwrap_or_else(PoisonError::into_inner);
            auth.tokens.insert(scope.to_owned(), token);
            return Ok(());
        }
        if all.contains(&Challenge::Basic) {
            ensure_https_or_loopback(&self.base()?, self.insecure)?;
            self.auth.lock().unwrap_or_else(PoisonError::into_inner).basic = true;
        }
        Ok(())
    }

    /// distribution, "Token Authentication Specification"; with an identity token as its "OAuth2" has it.
    fn token(&self, realm: &str, service: Option<&str>, scope: &str) -> Result<String> {
        let asking = || format!("ask {} for a token", origin(realm));
        ensure!(
            realm.starts_with("https://") || realm.starts_with("http://"),
            "{}: a realm that is no address",
            self.host.address
        );
        let secret = self.credentials.is_some();
        ensure!(
            !(secret && realm.starts_with("http://") && self.base()?.starts_with("https://")),
            "{}: it wants our credentials sent to {} without encryption",
            self.host.address,
            origin(realm)
        );
        let mut query: Vec<(&str, &str)> = service.iter().map(|s| ("service", *s)).collect();
        query.extend(scope.split(' ').filter(|s| !s.is_empty()).map(|s| ("scope", s)));
        let form = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(k, v)| format!("{k}={}", encode(v))).collect::<Vec<_>>().join("&")
        };
        let mut attempt = 0;
        let mut answer = loop {
            let answer = match &self.credentials {
                Some(Credentials::Identity(token)) => {
                    let mut pairs = query.clone();
                    pairs.extend([
                        ("grant_type", "refresh_token"),
                        ("client_id", "berth"),
                        ("refresh_token", token),
                    ]);
                    let request =
                        Request::post(realm).header("content-type", "application/x-www-form-urlencoded");
                    self.agent.run(request.body(form(&pairs))?)
                }
                other => {
                    let joint = if realm.contains('?') { '&' } else { '?' };
                    let mut request = Request::get(format!("{realm}{joint}{}", form(&query)));
                    if let Some(Credentials::Password { user, password }) = other {
                        request = request.header(AUTHORIZATION, basic(user, password));
                    }
                    self.agent.run(request.body(())?)
                }
            };
            match answer {
                Ok(answer) if !retried(answer.status()) || attempt + 1 >= TRIES => break answer,
                Ok(answer) => self.back_off(attempt, retry_after(answer.headers(), SystemTime::now())),
                Err(e) if attempt + 1 >= TRIES => return Err(e).with_context(asking),
                Err(_) => self.back_off(attempt, None),
            }
            attempt += 1;
        };
        if answer.status() != StatusCode::OK {
            let e: Result<String> = Err(unexpected(answer, &self.host.address, &asking()));
            return e.hint(|| "berth-builder login".to_owned());
        }
        let mut bytes = Vec::new();
        answer.body_mut().as_reader().take(ANSWER_MOST).read_to_end(&mut bytes).with_context(asking)?;
        let token: Token = serde_json::from_slice(&bytes).with_context(asking)?;
        let token = token.token.or(token.access_token).filter(|t| !t.is_empty()).with_context(asking)?;
        ensure!(token.bytes().all(|b| b.is_ascii_graphic()), "{}: the token is no token", asking());
        Ok(token)
    }
}

fn ensure_https_or_loopback(base: &str, insecure: bool) -> Result<()> {
    ensure!(base.starts_with("https:") || insecure, "{base}: credentials are not sent without encryption");
    Ok(())
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

/// What rustls said, if it was that.
fn of_tls(e: &ureq::Error) -> Option<&rustls::Error> {
    match e {
        ureq::Error::Rustls(e) => Some(e),
        ureq::Error::Io(e) => e.get_ref()?.downcast_ref(),
        _ => None,
    }
}

/// Whether somebody answers who does not speak TLS, rather than nobody, or one whose certificate is wrong.
fn not_tls(e: &ureq::Error) -> bool {
    if matches!(of_tls(e), Some(rustls::Error::InvalidCertificate(_))) {
        return false;
    }
    match e {
        ureq::Error::Io(e) => e.kind() != ErrorKind::ConnectionRefused,
        ureq::Error::Protocol(_) | ureq::Error::Tls(_) | ureq::Error::Rustls(_) => true,
        _ => false,
    }
}

/// Whether a trouble may pass by itself: a connection's; neither a certificate's, nor a name's that nobody knows.
fn passes(e: &anyhow::Error) -> bool {
    use ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected, TimedOut, UnexpectedEof};
    match e.downcast_ref::<ureq::Error>() {
        Some(ureq::Error::Io(e)) => {
            let of_connection = matches!(
                e.kind(),
                BrokenPipe | ConnectionAborted | ConnectionReset | NotConnected | TimedOut | UnexpectedEof
            );
            of_connection || e.raw_os_error().is_some()
        }
        Some(ureq::Error::Timeout(_) | ureq::Error::ConnectionFailed | ureq::Error::Protocol(_)) => true,
        _ => false,
    }
}

fn retried(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 425 | 429 | 500 | 502 | 503 | 504)
}

/// RFC 9110, 10.2.3: seconds, or a date.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let now = now.duration_since(UNIX_EPOCH).ok()?.as_secs();
    Some(Duration::from_secs(date(text)?.saturating_sub(now)))
}

/// `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110, 5.6.7), in seconds since 1970.
fn date(text: &str) -> Option<u64> {
    let fields: Vec<_> = text.split([' ', ':']).collect();
    let [_, day, month, year, hour, minute, second, "GMT"] = fields.as_slice() else { return None };
    let months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let month = months.iter().position(|m| m == month)? as u64 + 1;
    let (day, year): (u64, u64) = (day.parse().ok()?, year.parse().ok()?);
    let (hour, minute, second): (u64, u64, u64) =
        (hour.parse().ok()?, minute.parse().ok()?, second.parse().ok()?);
    if !(1970..10_000).contains(&year) || !(1..=31).contains(&day) {
        return None;
    }
    // Days since the first of March of year 0, whose months have a simple pattern.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1;
    Some(((days - 719_468) * 24 + hour) * 3600 + minute * 60 + second)
}

/// Scheme, host and port.
pub fn origin(url: &str) -> &str {
    let start = url.find("://").map_or(0, |at| at + 3);
    let end = url[start..].find(['/', '?', '#']).map_or(url.len(), |at| start + at);
    &url[..end]
}

/// Without the query, which may hold a signature.
fn shown(url: &str) -> &str {
    url.split('?').next().unwrap_or(url)
}

/// What a `Location` means (RFC 3986, 5.2, as far as registries go).
pub fn absolute(from: &str, to: &str) -> Result<String> {
    let url = if to.contains("://") {
        to.to_owned()
    } else if let Some(rest) = to.strip_prefix("//") {
        format!("{}//{rest}", from.split("//").next().unwrap_or_default())
    } else if to.starts_with('/') {
        format!("{}{to}", origin(from))
    } else {
        let path = shown(from);
        format!("{}/{to}", path.rsplit_once('/').map_or(path, |(above, _)| above))
    };
    let uri: Uri =
        url.parse().with_context(|| format!("a location that is none: {}", to.escape_default()))?;
    ensure!(
        matches!(uri.scheme_str(), Some("http" | "https")),
        "a location with another scheme: {}",
        origin(&url)
    );
    ensure!(!uri.authority().is_some_and(|a| a.as_str().contains('@')), "a location with a user's name");
    Ok(url)
}

/// Percent-encoding (RFC 3986, 2.1).
pub fn encode(text: &str) -> String {
    let mut out = Vec::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(byte);
        } else {
            // Writing to a vector cannot fail.
            write!(out, "%{byte:02X}").unwrap_or_default();
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// What a registry said, with nothing in it that a terminal would obey.
fn refusal(mut answer: Response<Body>) -> String {
    #[derive(Deserialize)]
    struct Errors {
        #[serde(default)]
        errors: Vec<Said>,
        #[serde(default, alias = "details", alias = "error")]
        message: Option<String>,
    }
    #[derive(Deserialize)]
    struct Said {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let status = answer.status();
    let mut bytes = Vec::new();
    // What cannot be read is not told.
    answer.body_mut().as_reader().take(64 << 10).read_to_end(&mut bytes).unwrap_or_default();
    let text = match serde_json::from_slice::<Errors>(&bytes) {
        Ok(Errors { errors, .. }) if !errors.is_empty() => {
            let all: Vec<_> = errors.iter().take(3).map(|e| format!("{} ({})", e.message, e.code)).collect();
            all.join("; ")
        }
        Ok(Errors { message: Some(message), .. }) => message,
        _ => String::new(),
    };
    let text: String = text.chars().take(500).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.is_empty() { status.to_string() } else { format!("{status}: {text}") }
}

/// An answer that nobody expected, as an error.
pub fn unexpected(answer: Response<Body>, host: &str, what: &str) -> anyhow::Error {
    let kind = match answer.status() {
        StatusCode::NOT_FOUND => Kind::NotFound,
        _ => Kind::Failed,
    };
    error(kind, format!("{host}: {}: {}", shown(what), refusal(answer)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_places() {
        assert_eq!(date("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777));
        assert_eq!(date("Thu, 01 Jan 1970 00:00:00 GMT"), Some(0));
        assert_eq!(date("Thu, 29 Feb 2024 12:00:00 GMT"), Some(1_709_208_000));
        for bad in [
            "",
            "soon",
            "Sun, 06 Nov 1994 08:49:37",
            "Sun, 99 Nov 1994 08:49:37 GMT",
            "Sun, 06 Nov 0 08:49:37 GMT",
        ] {
            assert_eq!(date(bad), None, "{bad}");
        }
        let after = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, value.parse().unwrap());
            retry_after(&headers, UNIX_EPOCH + Duration::from_secs(784_111_770)).map(|d| d.as_secs())
        };
        assert_eq!(after("7"), Some(7));
        assert_eq!(after("Sun, 06 Nov 1994 08:49:37 GMT"), Some(7));
        assert_eq!(after("Sun, 06 Nov 1993 08:49:37 GMT"), Some(0));
        assert_eq!(after("later"), None);
        for (from, to, expected) in [
            ("https://a/v2/x/", "/v2/y?z", "https://a/v2/y?z"),
            ("https://a:1/v2/x/", "https://b/c", "https://b/c"),
            ("https://a/v2/x/y?q", "z", "https://a/v2/x/z"),
            ("https://a/v2/", "//b/c", "https://b/c"),
        ] {
            assert_eq!(absolute(from, to).unwrap(), expected);
        }
        for bad in ["ftp://a/b", "https://u:p@a/b", "https://a/ b"] {
            assert!(absolute("https://a/", bad).is_err(), "{bad}");
        }
        assert_eq!(origin("https://a:1/b?c"), "https://a:1");
        assert_eq!(encode("a b/ü:~"), "a%20b%2F%C3%BC%3A~");
    }
}
