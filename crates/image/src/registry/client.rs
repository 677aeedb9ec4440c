//! How does an image come from a registry, and go there?

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use report::{Kind, error};
use serde::Deserialize;
use ureq::http::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, LOCATION, RANGE};
use ureq::http::{Method, Response};
use ureq::{Body, BodyReader};

use super::credentials::{self, Credentials};
use super::hosts::{Host, hosts};
use super::http::{Call, Endpoint, Payload, TRIES, absolute, encode, origin, unexpected};
use super::pace::Pace;
use super::replay::Replay;
use crate::digest::Digest;
use crate::manifest::{
    DOCKER_INDEX, DOCKER_MANIFEST, Descriptor, Document, Index, MANIFEST_MOST, OCI_INDEX, OCI_MANIFEST,
};
use crate::reference::Reference;
use crate::transfer::{Source, Target};

/// Pages of a list that are read.
const PAGES: usize = 1000;
const LIST_MOST: u64 = 16 << 20;

/// How registries are spoken to: values that a program gathers.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Folders of `hosts.toml` and certificates, the first that knows a registry decides.
    pub hosts: Vec<PathBuf>,
    /// Files of credentials, in order.
    pub credentials: Vec<PathBuf>,
    /// These, whatever the files say.
    pub login: Option<Credentials>,
    /// Certificates are not looked at, and plain HTTP is tried.
    pub insecure: bool,
    /// How to wait.
    pub pause: fn(Duration),
}

/// A repository of a registry.
#[derive(Debug)]
pub struct Repository {
    reference: Reference,
    endpoints: Vec<Endpoint>,
}

impl Settings {
    /// Nothing but the registry itself, and no credentials.
    pub fn plain() -> Settings {
        Settings {
            hosts: Vec::new(),
            credentials: Vec::new(),
            login: None,
            insecure: false,
            pause: std::thread::sleep,
        }
    }

    fn endpoints(&self, registry: &str, repository: &str) -> Result<Vec<Endpoint>> {
        let endpoint = |host: Host| {
            // A mirror is another registry: it gets what is kept for its own name.
            let own = host.address == Host::plain(registry).address;
            let key = if own { registry } else { &host.address };
            let found = match &self.login {
                Some(login) if own => Some(login.clone()),
                _ => credentials::find(&self.credentials, key, repository)?,
            };
            Endpoint::new(host, found, self.insecure, self.pause)
        };
        hosts(&self.hosts, registry)?.into_iter().map(endpoint).collect()
    }

    /// The repository that a reference names.
    pub fn repository(&self, reference: &Reference) -> Result<Repository> {
        let endpoints = self.endpoints(reference.registry(), reference.repository())?;
        Ok(Repository { reference: reference.clone(), endpoints })
    }

    /// See whether a registry takes these credentials.
    pub fn check_login(&self, registry: &str) -> Result<()> {
        let mut endpoints = self.endpoints(registry, "")?;
        let endpoint = endpoints.pop().context("no such registry")?;
        let call = Call { method: Method::GET, url: "/", headers: vec![], payload: Payload::None, scope: "" };
        endpoint.expect(call, &[200]).map(drop)
    }

    /// Repositories whose names have the words: name, description, stars, official.
    pub fn search(&self, registry: &str, words: &str, most: usize) -> Result<Vec<Found>> {
        #[derive(Deserialize)]
        struct Answer {
            results: Vec<Found>,
        }
        let address =
            if registry == crate::reference::DEFAULT_REGISTRY { "index.docker.io" } else { registry };
        let endpoint = Endpoint::new(
            Host { path: String::new(), ..Host::plain(address) },
            None,
            self.insecure,
            self.pause,
        )?;
        let url = format!("/v1/search?q={}&n={}", encode(words), most.clamp(1, 100));
        let call =
            Call { method: Method::GET, url: &url, headers: vec![], payload: Payload::None, scope: "" };
        let answer = endpoint.call(call)?;
        if answer.status() == 200 {
            let answer: Answer = json(answer)?;
            return Ok(answer.results.into_iter().take(most).collect());
        }
        // Registries other than Docker's list what they have.
        #[derive(Deserialize)]
        struct Catalog {
            repositories: Vec<String>,
        }
        let endpoints = self.endpoints(registry, "")?;
        let endpoint = endpoints.last().context("no such registry")?;
        let names = pages(endpoint, "/_catalog?n=1000", "registry:catalog:*", |answer| {
            Ok(json::<Catalog>(answer)?.repositories)
        })?;
        let found = names.into_iter().filter(|name| name.contains(words)).take(most);
        Ok(found.map(|name| Found { name, ..Found::default() }).collect())
    }
}

/// A repository that was searched for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Found {
    pub name: String,
    pub description: Option<String>,
    pub star_count: u64,
    pub is_official: bool,
    pub is_automated: bool,
}

fn json<T: for<'de> Deserialize<'de>>(mut answer: Response<Body>) -> Result<T> {
    let mut bytes = Vec::new();
    answer.body_mut().as_reader().take(LIST_MOST + 1).read_to_end(&mut bytes)?;
    ensure!(bytes.len() as u64 <= LIST_MOST, "an answer of more than {LIST_MOST} bytes");
    serde_json::from_slice(&bytes).context("an answer that is not the JSON that was expected")
}

/// All pages of a list (distribution-spec, "Listing Tags": `Link`).
fn pages(
    endpoint: &Endpoint,
    first: &str,
    scope: &str,
    read: impl Fn(Response<Body>) -> Result<Vec<String>>,
) -> Result<Vec<String>> {
    let mut all = Vec::new();
    let mut url = first.to_owned();
    for _ in 0..PAGES {
        let call = Call { method: Method::GET, url: &url, headers: vec![], payload: Payload::None, scope };
        let answer = endpoint.expect(call, &[200])?;
        let link = answer.headers().get("link").and_then(|l| l.to_str().ok()).map(str::to_owned);
        all.extend(read(answer)?);
        let next = link.as_deref().filter(|l| l.contains("next")).and_then(|l| l.split(['<', '>']).nth(1));
        let Some(next) = next else { return Ok(all) };
        // Only the path: another host has no part in it.
        let path = next.strip_prefix(origin(next)).filter(|_| next.contains("://")).unwrap_or(next);
        let path = path.strip_prefix(&endpoint.host.path).unwrap_or(path).to_owned();
        ensure!(path != url, "{}: a list without an end", endpoint.host.address);
        url = path;
    }
    bail!("{}: a list of more than {PAGES} pages", endpoint.host.address)
}

impl Repository {
    pub fn reference(&self) -> &Reference {
        &self.reference
    }

    fn scope(&self, actions: &str) -> String {
        format!("repository:{}:{actions}", self.reference.repository())
    }

    fn url(&self, rest: &str) -> String {
        format!("/{}/{rest}", self.reference.repository())
    }

    fn call<'a>(method: Method, url: &'a str, scope: &'a str) -> Call<'a> {
        Call { method, url, headers: vec![], payload: Payload::None, scope }
    }

    /// Where things are pushed, deleted and listed.
    fn server(&self) -> Result<&Endpoint> {
        let found = self.endpoints.iter().rev().find(|e| e.host.push);
        found.with_context(|| {
            format!("{}: hosts.toml names no host that takes pushes", self.reference.registry())
        })
    }

    /// Ask those that can, in order; the first answer counts, and the last error.
    fn ask<T>(&self, can: impl Fn(&Host) -> bool, ask: impl Fn(&Endpoint) -> Result<T>) -> Result<T> {
        let mut last = None;
        for endpoint in self.endpoints.iter().filter(|e| can(&e.host)) {
            match ask(endpoint) {
                Ok(answer) => return Ok(answer),
                Err(e) => last = Some(e),
            }
        }
        Err(last
            .unwrap_or_else(|| anyhow::anyhow!("{}: no host that can be asked", self.reference.registry())))
    }

    fn get_manifest(&self, endpoint: &Endpoint, which: &str) -> Result<(Descriptor, Vec<u8>)> {
        let (url, scope) = (self.url(&format!("manifests/{which}")), self.scope("pull"));
        let mut call = Self::call(Method::GET, &url, &scope);
        let accept = [OCI_INDEX, DOCKER_INDEX, OCI_MANIFEST, DOCKER_MANIFEST].join(", ");
        call.headers.push(("accept", accept));
        let mut answer = endpoint.expect(call, &[200])?;
        let header = |name| answer.headers().get(name).and_then(|h| h.to_str().ok()).map(str::to_owned);
        let (told, announced) = (header("docker-content-digest"), header("content-type"));
        let mut bytes = Vec::new();
        answer
            .body_mut()
            .as_reader()
            .take(MANIFEST_MOST + 1)
            .read_to_end(&mut bytes)
            .context("read a manifest")?;
        ensure!(bytes.len() as u64 <= MANIFEST_MOST, "a manifest of more than {MANIFEST_MOST} bytes");
        let own = Document::media_type(&bytes)?;
        // Some say "text/plain", and leave it to the document.
        let announced = announced.as_deref().map(|t| t.split(';').next().unwrap_or(t).trim());
        let known = |t: &&str| [OCI_INDEX, DOCKER_INDEX, OCI_MANIFEST, DOCKER_MANIFEST].contains(t);
        let media_type = announced.filter(known).unwrap_or(&own);
        Document::parse(media_type, &bytes)?;
        let mut descriptor = Descriptor::of(media_type, &bytes);
        for expected in
            [told.and_then(|t| t.parse().ok()), which.parse::<Digest>().ok()].into_iter().flatten()
        {
            if expected.algorithm() != descriptor.digest.algorithm() {
                descriptor.digest = expected.algorithm().digest(&bytes);
            }
            ensure!(
                expected == descriptor.digest,
                "{}: {which}: the manifest is not {expected}, but {}",
                endpoint.host.address,
                descriptor.digest
            );
        }
        Ok((descriptor, bytes))
    }

    /// Without its content: what the reference leads to now. `None`: the registry does not say.
    pub fn current(&self) -> Result<Option<Digest>> {
        let which = self.which();
        self.ask(
            |h| h.resolve,
            |endpoint| {
                let (url, scope) = (self.url(&format!("manifests/{which}")), self.scope("pull"));
                let mut call = Self::call(Method::HEAD, &url, &scope);
                call.headers
                    .push(("accept", [OCI_INDEX, DOCKER_INDEX, OCI_MANIFEST, DOCKER_MANIFEST].join(", ")));
                let answer = endpoint.expect(call, &[200])?;
                let told = answer.headers().get("docker-content-digest").and_then(|h| h.to_str().ok());
                Ok(told.and_then(|t| t.parse().ok()))
            },
        )
    }

    /// The tag or digest that the reference names; a digest says more.
    fn which(&self) -> String {
        match (self.reference.digest(), self.reference.tag()) {
            (Some(digest), _) => digest.to_string(),
            (None, tag) => tag.unwrap_or("latest").to_owned(),
        }
    }

    /// All tags.
    pub fn tags(&self) -> Result<Vec<String>> {
        #[derive(Deserialize)]
        struct Tags {
            // Some say null when there are none.
            tags: Option<Vec<String>>,
        }
        let scope = self.scope("pull");
        self.ask(
            |h| h.pull,
            |endpoint| {
                pages(endpoint, &self.url("tags/list?n=1000"), &scope, |a| {
                    Ok(json::<Tags>(a)?.tags.unwrap_or_default())
                })
            },
        )
    }

    /// Delete the manifest that the reference names; by its digest, as registries want it.
    pub fn delete(&self) -> Result<()> {
        let server = self.server()?;
        let digest = match self.reference.digest() {
            Some(digest) => digest.clone(),
            None => self.get_manifest(server, &self.which())?.0.digest,
        };
        let (url, scope) = (self.url(&format!("manifests/{digest}")), self.scope("delete,pull,push"));
        server.expect(Self::call(Method::DELETE, &url, &scope), &[200, 202]).map(drop)
    }

    /// What refers to a manifest: signatures and the like (distribution-spec, "Listing Referrers").
    pub fn referrers(&self, digest: &Digest) -> Result<Vec<Descriptor>> {
        let (url, scope) = (self.url(&format!("referrers/{digest}")), self.scope("pull"));
        self.ask(
            |h| h.pull,
            |endpoint| {
                let answer = endpoint.call(Self::call(Method::GET, &url, &scope))?;
                if answer.status() == 200 {
                    return Ok(json::<Index>(answer)?.manifests);
                }
                // Registries that do not know of referrers keep them under a tag.
                let tag = format!("{}-{}", digest.algorithm().name(), digest.hex());
                match self.get_manifest(endpoint, &tag) {
                    Ok((_, bytes)) => Ok(serde_json::from_slice::<Index>(&bytes)?.manifests),
                    Err(e) if report::kind(&e) == Some(Kind::NotFound) => Ok(Vec::new()),
                    Err(e) => Err(e),
                }
            },
        )
    }

    /// Push to it. `relatives`: repositories of the same registry that may have blobs already.
    pub fn pushing(&self, relatives: Vec<String>) -> Result<Pushing<'_>> {
        Ok(Pushing { repository: self, server: self.server()?, relatives, sessions: Mutex::default() })
    }
}

impl Source for Repository {
    fn root(&self) -> Result<(Descriptor, Vec<u8>)> {
        let which = self.which();
        self.ask(|h| h.resolve, |endpoint| self.get_manifest(endpoint, &which))
    }

    fn document(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        let (found, bytes) =
            self.ask(|h| h.pull, |endpoint| self.get_manifest(endpoint, &descriptor.digest.to_string()))?;
        ensure!(
            found.size == descriptor.size,
            "{}: {} bytes, expected {}",
            descriptor.digest,
            found.size,
            descriptor.size
        );
        Ok(bytes)
    }

    fn blob(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + Send + '_>> {
        let mut blob = Blob {
            repository: self,
            descriptor: descriptor.clone(),
            at: 0,
            body: None,
            failures: 0,
            pace: Pace::default(),
        };
        if descriptor.size > 0 {
            blob.open()?;
        }
        Ok(Box::new(blob))
    }
}

/// A blob on its way, which goes on where it was cut.
struct Blob<'a> {
    repository: &'a Repository,
    descriptor: Descriptor,
    at: u64,
    body: Option<BodyReader<'static>>,
    /// Without a byte in between.
    failures: u32,
    pace: Pace,
}

impl Blob<'_> {
    fn open(&mut self) -> Result<()> {
        let digest = &self.descriptor.digest;
        let (url, scope) = (self.repository.url(&format!("blobs/{digest}")), self.repository.scope("pull"));
        let (answer, address) = self.repository.ask(
            |h| h.pull,
            |endpoint| {
                let mut call = Repository::call(Method::GET, &url, &scope);
                if self.at > 0 {
                    call.headers.push((RANGE.as_str(), format!("bytes={}-", self.at)));
                }
                Ok((endpoint.expect(call, &[200, 206])?, endpoint.host.address.clone()))
            },
        )?;
        let header = |name| answer.headers().get(name).and_then(|h| h.to_str().ok());
        let partial = answer.status() == 206;
        if partial {
            let from =
                header(CONTENT_RANGE).and_then(|r| r.strip_prefix("bytes ")?.split('-').next()?.parse().ok());
            ensure!(from == Some(self.at), "{address}: blob {digest}: another range than was asked for");
        } else if let Some(length) = header(CONTENT_LENGTH).and_then(|l| l.parse::<u64>().ok()) {
            let size = self.descriptor.size;
            ensure!(length == size, "{address}: blob {digest}: {length} bytes, expected {size}");
        }
        let mut body = answer.into_body().into_reader();
        if !partial && self.at > 0 {
            // The registry knows no ranges: what we have comes once more.
            let passed = io::copy(&mut (&mut body).take(self.at), &mut io::sink())?;
            ensure!(passed == self.at, "{address}: blob {digest}: cut off after {passed} bytes");
        }
        self.body = Some(body);
        self.pace = Pace::default();
        Ok(())
    }
}

impl Read for Blob<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.descriptor.size - self.at;
        if left == 0 || buffer.is_empty() {
            return Ok(0);
        }
        let most = left.min(buffer.len() as u64) as usize;
        loop {
            let asked = Instant::now();
            let cut = match &mut self.body {
                Some(body) => match body.read(&mut buffer[..most]) {
                    Ok(0) => io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        format!("cut off after {} bytes", self.at),
                    ),
                    Ok(n) => {
                        self.at += n as u64;
                        self.failures = 0;
                        self.pace.goes_on(n as u64, asked.elapsed())?;
                        return Ok(n);
                    }
                    Err(e) => e,
                },
                None => io::Error::other("no connection"),
            };
            self.body = None;
            if self.failures >= TRIES {
                let text = format!("cut off after {} bytes of {}: {cut}", self.at, self.descriptor.size);
                return Err(io::Error::new(cut.kind(), text));
            }
            if let Some(endpoint) = self.repository.endpoints.last() {
                endpoint.back_off(self.failures, None);
            }
            self.failures += 1;
            if let Err(e) = self.open()
                && self.failures >= TRIES
            {
                return Err(io::Error::other(format!("{}: {e:#}", self.descriptor.digest)));
            }
        }
    }
}

/// An image on its way to a registry.
#[derive(Debug)]
pub struct Pushing<'a> {
    repository: &'a Repository,
    server: &'a Endpoint,
    relatives: Vec<String>,
    /// Uploads that were begun when a blob could not be mounted.
    sessions: Mutex<BTreeMap<Digest, String>>,
}

/// Bytes of what was sent that can be sent once more.
const WINDOW: usize = 8 << 20;
/// Repositories that are asked for a blob.
const RELATIVES: usize = 3;

impl Pushing<'_> {
    fn scope(&self) -> String {
        let mut scope = self.repository.scope("pull,push");
        for relative in self.relatives.iter().take(RELATIVES) {
            scope.push_str(&format!(" repository:{relative}:pull"));
        }
        scope
    }

    fn location(&self, answer: &Response<Body>, url: &str) -> Result<String> {
        let to = answer.headers().get(LOCATION).and_then(|l| l.to_str().ok());
        let to = to.with_context(|| format!("{}: an upload without a place", self.server.host.address))?;
        absolute(url, to)
    }

    /// Begin an upload; where it goes.
    fn begin(&self, query: &str) -> Result<(u16, String)> {
        let (url, scope) = (self.repository.url(&format!("blobs/uploads/{query}")), self.scope());
        let call = Repository::call(Method::POST, &url, &scope);
        let answer = self.server.expect(call, &[201, 202])?;
        let status = answer.status().as_u16();
        let base = format!("{}{}{url}", self.server.base()?, self.server.host.path);
        Ok((status, self.location(&answer, &base)?))
    }

    /// How far an upload has come: bytes, and where it goes on.
    fn progress(&self, place: &str) -> Result<(u64, String)> {
        let scope = self.scope();
        let answer = self.server.expect(Repository::call(Method::GET, place, &scope), &[204])?;
        let range = answer.headers().get(RANGE).and_then(|r| r.to_str().ok()).unwrap_or_default();
        let end = range.trim_start_matches("bytes=").split('-').nth(1).and_then(|n| n.parse::<u64>().ok());
        // "0-0" is what some say when nothing has come.
        let came = end.map_or(0, |end| if end == 0 { 0 } else { end + 1 });
        Ok((came, self.location(&answer, place).unwrap_or_else(|_| place.to_owned())))
    }

    /// Send all of it; where it is to be ended.
    fn send(&self, replay: &mut Replay<'_>, mut place: String, size: Option<u64>) -> Result<String> {
        let scope = self.scope();
        let mut failures = 0;
        if size == Some(0) {
            return Ok(place);
        }
        loop {
            let from = replay.position();
            let mut headers = vec![(CONTENT_TYPE.as_str(), "application/octet-stream".to_owned())];
            if let Some(size) = size.filter(|_| from > 0) {
                headers.push(("content-range", format!("{from}-{}", size.saturating_sub(1))));
            }
            let payload = Payload::Stream(&mut *replay, size.map(|s| s - from));
            let call = Call { method: Method::PATCH, url: &place, headers, payload, scope: &scope };
            let failed = match self.server.call(call) {
                Ok(answer) if answer.status() == 202 => return self.location(&answer, &place),
                Ok(answer) => unexpected(answer, &self.server.host.address, "PATCH of an upload"),
                Err(e) => e,
            };
            // What our own side could not read is no matter of the registry.
            if let Some(e) = replay.failure() {
                return Err(e.into());
            }
            let before = replay.acknowledged();
            loop {
                if failures >= TRIES {
                    return Err(failed);
                }
                self.server.back_off(failures, None);
                failures += 1;
                match self.progress(&place) {
                    // One byte looks like none: then all of it goes once more.
                    Ok((came, next)) if came > 0 && replay.rewind(came) => {
                        place = next;
                        if came > before {
                            failures = 0;
                        }
                        break;
                    }
                    // The session is gone, but all of it is still here.
                    _ if replay.rewind(0) => {
                        if let Ok((_, next)) = self.begin("") {
                            place = next;
                            break;
                        }
                    }
                    _ => {}
                }
            }
        }
    }

    fn end(&self, place: &str, digest: &Digest) -> Result<()> {
        let joint = if place.contains('?') { '&' } else { '?' };
        let (url, scope) = (format!("{place}{joint}digest={digest}"), self.scope());
        let answer = self.server.expect(Repository::call(Method::PUT, &url, &scope), &[201, 204])?;
        let told = answer.headers().get("docker-content-digest").and_then(|h| h.to_str().ok());
        if let Some(told) = told.and_then(|t| t.parse::<Digest>().ok()) {
            ensure!(
                told == *digest || told.algorithm() != digest.algorithm(),
                "the registry took {told} for {digest}"
            );
        }
        Ok(())
    }

    fn put_manifest(&self, which: &str, descriptor: &Descriptor, bytes: &[u8]) -> Result<()> {
        let (url, scope) = (self.repository.url(&format!("manifests/{which}")), self.scope());
        let mut call = Repository::call(Method::PUT, &url, &scope);
        call.headers.push(("content-type", descriptor.media_type.clone()));
        call.payload = Payload::Bytes(bytes);
        let answer = self.server.expect(call, &[200, 201, 202])?;
        let told = answer.headers().get("docker-content-digest").and_then(|h| h.to_str().ok());
        if let Some(told) = told.and_then(|t| t.parse::<Digest>().ok()) {
            ensure!(
                told == descriptor.digest || told.algorithm() != descriptor.digest.algorithm(),
                "{}: the registry took the manifest for {told}, not {}",
                self.server.host.address,
                descriptor.digest
            );
        }
        Ok(())
    }
}

impl Target for Pushing<'_> {
    fn has(&self, descriptor: &Descriptor) -> Result<bool> {
        let digest = &descriptor.digest;
        let (url, scope) = (self.repository.url(&format!("blobs/{digest}")), self.scope());
        let answer = self.server.call(Repository::call(Method::HEAD, &url, &scope))?;
        match answer.status().as_u16() {
            200 => return Ok(true),
            404 => {}
            _ => return Err(unexpected(answer, &self.server.host.address, &format!("HEAD {url}"))),
        }
        for relative in self.relatives.iter().take(RELATIVES) {
            let (status, place) = self.begin(&format!("?mount={digest}&from={relative}"))?;
            if status == 201 {
                return Ok(true);
            }
            self.sessions.lock().unwrap_or_else(PoisonError::into_inner).insert(digest.clone(), place);
        }
        Ok(false)
    }

    fn put(&self, descriptor: &Descriptor, content: &mut (dyn Read + Send)) -> Result<()> {
        let digest = &descriptor.digest;
        let sending = || format!("push blob {digest}");
        let begun = self.sessions.lock().unwrap_or_else(PoisonError::into_inner).remove(digest);
        let place = match begun {
            Some(place) => place,
            None => self.begin("").with_context(sending)?.1,
        };
        let mut replay = Replay::new(content, WINDOW, digest.algorithm());
        let place = self.send(&mut replay, place, Some(descriptor.size)).with_context(sending)?;
        let (came, size) = replay.finish();
        ensure!(
            came == *digest && size == descriptor.size,
            "blob {digest}: its content is that of {came} ({size} bytes)"
        );
        self.end(&place, digest).with_context(sending)
    }

    fn put_new(&self, media_type: &str, content: &mut (dyn Read + Send)) -> Result<Descriptor> {
        let (_, place) = self.begin("")?;
        let mut replay = Replay::new(content, WINDOW, crate::digest::Algorithm::Sha256);
        let place = self.send(&mut replay, place, None).context("push a layer")?;
        let (digest, size) = replay.finish();
        self.end(&place, &digest).with_context(|| format!("push blob {digest}"))?;
        Ok(Descriptor { digest, size, ..Descriptor::of(media_type, b"") })
    }

    fn put_document(&self, descriptor: &Descriptor, bytes: &[u8]) -> Result<()> {
        self.put_manifest(&descriptor.digest.to_string(), descriptor, bytes)
    }

    fn finish(&self, root: &Descriptor, bytes: &[u8]) -> Result<()> {
        match (self.repository.reference.tag(), self.repository.reference.digest()) {
            (_, Some(digest)) if *digest != root.digest => Err(error(
                Kind::BadInput,
                format!("{}: the image is {}", self.repository.reference.familiar(), root.digest),
            )),
            (Some(tag), _) => self.put_manifest(tag, root, bytes),
            (None, _) => self.put_manifest(&root.digest.to_string(), root, bytes),
        }
    }
}
