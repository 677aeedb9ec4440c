//! How do requests travel? ttrpc (containerd/ttrpc, PROTOCOL.md), unary calls only: a header of ten bytes, then a message.
//!
//! ```text
//! | length, 4 bytes, big endian | stream, 4 bytes | kind, 1 byte: 1 request, 2 response | flags, 1 byte |
//! ```

use std::cell::RefCell;
use std::future::Future;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use report::Kind;
use runtime::protobuf::Message;
use rustix::io::Errno;

use super::message::{Request, Response, Status, Whole};
use crate::executor::{Bell, Loop};

const HEADER: usize = 10;
/// The protocol's own limit for a message, bytes.
const LARGEST: usize = 4 << 20;
const REQUEST: u8 = 1;
const RESPONSE: u8 = 2;

/// gRPC's codes, as far as we use them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    Unknown = 2,
    InvalidArgument = 3,
    NotFound = 5,
    AlreadyExists = 6,
    FailedPrecondition = 9,
    Unimplemented = 12,
}

/// What an error is to the caller.
pub fn code(error: &anyhow::Error) -> Code {
    match report::kind(error) {
        Some(Kind::BadInput) => Code::InvalidArgument,
        Some(Kind::NotFound) => Code::NotFound,
        Some(Kind::AlreadyExists) => Code::AlreadyExists,
        Some(Kind::WrongState) => Code::FailedPrecondition,
        Some(Kind::Unsupported) => Code::Unimplemented,
        Some(Kind::CannotExecute | Kind::Failed) | None => Code::Unknown,
    }
}

/// The answer to a request, when it is there.
pub type Answer = Pin<Box<dyn Future<Output = Result<Message>>>>;

/// What answers requests.
pub type Handler = dyn Fn(&str, &str, Vec<u8>) -> Answer;

/// Answer the requests of one connection until its other side is gone; then `ended`.
pub fn serve(on: &Loop, stream: OwnedFd, handler: Rc<Handler>, ended: impl FnOnce() + 'static) {
    let stream = Rc::new(stream);
    let out = Rc::new(Out::default());
    let writer = {
        let (on, stream, out) = (on.clone(), stream.clone(), out.clone());
        async move { out.write(&on, &stream).await }
    };
    on.spawn(writer);
    let within = on.clone();
    on.spawn(async move {
        let mut input = Vec::new();
        loop {
            match next(&within, &stream, &mut input, LARGEST).await {
                Ok(Some(frame)) if frame.kind == REQUEST => answer(&within, &handler, &out, frame),
                // Streams and whatever else a newer caller may try belong to services that we do not have.
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(e) => {
                    log::warn!("a connection is closed: {e:#}");
                    break;
                }
            }
        }
        out.end();
        ended();
    });
}

fn answer(on: &Loop, handler: &Rc<Handler>, out: &Rc<Out>, frame: Frame) {
    let (handler, out) = (handler.clone(), out.clone());
    on.spawn(async move {
        let answer = match Request::parse(&frame.body) {
            Some(request) => handler(&request.service, &request.method, request.payload).await,
            None => Err(report::error(Kind::BadInput, "the request is not a message")),
        };
        let response = match answer {
            Ok(message) => Response { status: None, payload: message.as_bytes().to_vec() },
            Err(e) => Response {
                status: Some(Status { code: code(&e) as i32, message: report::line(&e) }),
                payload: Vec::new(),
            },
        };
        out.add(frame.stream, RESPONSE, response.message().as_bytes());
    });
}

struct Frame {
    stream: u32,
    kind: u8,
    body: Vec<u8>,
}

fn write_frame(out: &mut Vec<u8>, stream: u32, kind: u8, body: &[u8]) {
    out.extend((body.len() as u32).to_be_bytes());
    out.extend(stream.to_be_bytes());
    out.extend([kind, 0]);
    out.extend(body);
}

/// The next frame; `None`: the other side is gone. `input` keeps what was read too much.
async fn next(on: &Loop, stream: &OwnedFd, input: &mut Vec<u8>, largest: usize) -> Result<Option<Frame>> {
    loop {
        if let Some(header) = input.first_chunk::<HEADER>() {
            let [a, b, c, d, s, t, u, v, kind, _flags] = *header;
            let length = u32::from_be_bytes([a, b, c, d]) as usize;
            if length > largest {
                bail!("a message of {length} bytes is larger than {largest}");
            }
            if input.len() >= HEADER + length {
                let rest = input.split_off(HEADER + length);
                let body = std::mem::replace(input, rest).split_off(HEADER);
                return Ok(Some(Frame { stream: u32::from_be_bytes([s, t, u, v]), kind, body }));
            }
        }
        on.readable(stream.as_fd()).await.context("wait for a request")?;
        if !fill(stream, input)? {
            return Ok(None);
        }
    }
}

/// Read what is there; `false`: the end.
fn fill(stream: &OwnedFd, input: &mut Vec<u8>) -> Result<bool> {
    let mut buffer = [0; 4096];
    match rustix::io::read(stream, &mut buffer) {
        Ok(0) | Err(Errno::CONNRESET) => Ok(false),
        Ok(n) => {
            input.extend_from_slice(&buffer[..n]);
            Ok(true)
        }
        Err(Errno::AGAIN | Errno::INTR) => Ok(true),
        Err(e) => Err(e).context("read a request"),
    }
}

/// What is to be written to a connection: whole frames, in order.
#[derive(Default)]
struct Out {
    bytes: RefCell<Vec<u8>>,
    ended: std::cell::Cell<bool>,
    bell: Bell,
}

impl Out {
    fn add(&self, stream: u32, kind: u8, body: &[u8]) {
        write_frame(&mut self.bytes.borrow_mut(), stream, kind, body);
        self.bell.ring();
    }

    /// No more will come.
    fn end(&self) {
        self.ended.set(true);
        self.bell.ring();
    }

    async fn write(&self, on: &Loop, stream: &OwnedFd) {
        loop {
            self.bell.wait().await;
            let bytes = self.bytes.take();
            if !crate::copy::write_all(on, stream, &bytes).await {
                return;
            }
            if self.ended.get() && self.bytes.borrow().is_empty() {
                return;
            }
        }
    }
}

/// A caller of others' services: one call at a time, on one connection.
pub struct Client {
    stream: OwnedFd,
    input: Vec<u8>,
    number: u32,
}

impl Client {
    /// Connect to a socket, named as containerd does: a path, or `unix://` and a path.
    pub fn connect(address: &str) -> Result<Client> {
        let path = address.strip_prefix("unix://").unwrap_or(address);
        let stream =
            std::os::unix::net::UnixStream::connect(path).with_context(|| format!("connect to {path}"))?;
        stream.set_nonblocking(true).context("make calls not wait")?;
        Ok(Client { stream: stream.into(), input: Vec::new(), number: 1 })
    }

    /// Call a method, and wait for its answer at most this long.
    pub async fn call(
        &mut self,
        on: &Loop,
        service: &str,
        method: &str,
        body: &Message,
        time: Duration,
    ) -> Result<Vec<u8>> {
        let request = Request {
            service: service.to_owned(),
            method: method.to_owned(),
            payload: body.as_bytes().to_vec(),
            timeout_nano: i64::try_from(time.as_nanos()).unwrap_or(i64::MAX),
        };
        let stream = self.number;
        self.number += 2; // odd ones are the caller's
        let mut frame = Vec::new();
        write_frame(&mut frame, stream, REQUEST, request.message().as_bytes());
        let exchange = async {
            if !crate::copy::write_all(on, &self.stream, &frame).await {
                bail!("the connection is closed");
            }
            loop {
                let Some(frame) = next(on, &self.stream, &mut self.input, LARGEST).await? else {
                    bail!("the connection is closed");
                };
                if frame.stream == stream && frame.kind == RESPONSE {
                    return Response::parse(&frame.body).context("the response is not a message");
                }
            }
        };
        let Some(response) = on.within(time, exchange).await else { bail!("no answer within {time:?}") };
        let response = response?;
        match response.status.filter(|status| status.code != 0) {
            Some(status) => bail!("{} (code {})", status.message, status.code),
            None => Ok(response.payload),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::containerd::message::ContainerRequest;

    #[test]
    fn calls_and_answers() {
        let on = Loop::new().unwrap();
        let (here, there) = UnixStream::pair().unwrap();
        for end in [&here, &there] {
            end.set_nonblocking(true).unwrap();
        }
        let handler: Rc<Handler> = Rc::new(|service: &str, method: &str, payload| {
            let said = format!("{service} {method}");
            Box::pin(async move {
                let asked = ContainerRequest::parse(&payload).unwrap();
                if asked.id == "none" {
                    return Err(report::error(Kind::NotFound, format!("{said}: none")));
                }
                Ok(ContainerRequest { id: format!("{said} {}", asked.id.len()) }.message())
            })
        });
        serve(&on, there.into(), handler, || ());
        let mut client = Client { stream: here.into(), input: Vec::new(), number: 1 };
        // Longer than what is read at once.
        let long = ContainerRequest { id: "x".repeat(100_000) };
        let answer =
            on.run(client.call(&on, "S", "M", &long.message(), Duration::from_secs(5))).unwrap().unwrap();
        assert_eq!(ContainerRequest::parse(&answer).unwrap().id, "S M 100000");
        let none = ContainerRequest { id: "none".to_owned() };
        let e =
            on.run(client.call(&on, "S", "M", &none.message(), Duration::from_secs(5))).unwrap().unwrap_err();
        assert_eq!(e.to_string(), "S M: none (code 5)");
    }

    #[test]
    fn a_message_that_is_too_large_ends_the_connection() {
        let on = Loop::new().unwrap();
        let (here, there) = UnixStream::pair().unwrap();
        there.set_nonblocking(true).unwrap();
        serve(&on, there.into(), Rc::new(|_: &str, _: &str, _| -> Answer { unreachable!() }), || ());
        rustix::io::write(&here, &[0xff, 0, 0, 0, 0, 0, 0, 1, 1, 0]).unwrap();
        here.set_nonblocking(true).unwrap();
        let here = OwnedFd::from(here);
        on.run(on.within(Duration::from_secs(5), on.readable(here.as_fd()))).unwrap().unwrap().unwrap();
        assert_eq!(rustix::io::read(&here, &mut [0; 1]), Ok(0));
    }
}
