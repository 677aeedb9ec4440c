//! How does a file come from the web, that is no part of an image?

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ureq::Agent;
use ureq::http::header::{CONTENT_DISPOSITION, LAST_MODIFIED};
use ureq::tls::{Certificate, RootCerts, TlsConfig, TlsProvider};

/// How often something is tried.
const TRIES: u32 = 4;
const REDIRECTS: u32 = 10;

/// A file that is coming.
pub struct Coming {
    pub body: Box<dyn Read + Send>,
    /// What the server calls it.
    pub name: Option<String>,
    /// When it was changed, as the server says it.
    pub modified: Option<String>,
}

/// Ask for a file; `pause` waits between tries.
pub fn fetch(url: &str, pause: fn(Duration)) -> Result<Coming> {
    let system = rustls_native_certs::load_native_certs();
    let roots: Vec<_> = system.certs.iter().map(|c| Certificate::from_der(c.as_ref()).to_owned()).collect();
    let tls = TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .root_certs(RootCerts::new_with_certs(&roots))
        .build();
    let agent: Agent = Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(REDIRECTS)
        .tls_config(tls)
        .user_agent(concat!("berth/", env!("CARGO_PKG_VERSION")))
        .accept_encoding("identity")
        .timeout_connect(Some(Duration::from_secs(30)))
        .timeout_recv_response(Some(Duration::from_secs(60)))
        .timeout_per_read(Some(Duration::from_secs(60)))
        .build()
        .new_agent();
    let mut attempt = 0;
    loop {
        attempt += 1;
        let again = match agent.get(url).call() {
            Ok(answer) if answer.status().is_success() => {
                let header =
                    |name| answer.headers().get(name).and_then(|v| Some(v.to_str().ok()?.to_owned()));
                let name = header(CONTENT_DISPOSITION).and_then(|d| {
                    let name =
                        d.split("filename=").nth(1)?.split(';').next()?.trim().trim_matches('"').to_owned();
                    (!name.is_empty() && !name.contains('/') && name != "." && name != "..").then_some(name)
                });
                let modified = header(LAST_MODIFIED);
                return Ok(Coming { body: Box::new(answer.into_body().into_reader()), name, modified });
            }
            Ok(answer) => {
                let status = answer.status();
                if !(status.is_server_error() || status.as_u16() == 429) || attempt == TRIES {
                    bail!("{url}: the server says {status}");
                }
                None
            }
            Err(e) => Some(e),
        };
        if let Some(e) = again
            && attempt == TRIES
        {
            return Err(e).with_context(|| format!("fetch {url}"));
        }
        pause(Duration::from_millis(200 << attempt));
    }
}
