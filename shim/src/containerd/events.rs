//! How does containerd learn what happened? Every event in the order in which it happened, over its ttrpc socket; while containerd is
//! away they wait.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{Seek, Write};
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use runtime::protobuf::Message;
use sys::process::Exit;

use super::message::{Any, Envelope, ForwardRequest, Whole};
use super::ttrpc::Client;
use crate::executor::{Bell, Once};
use crate::task::Host;

/// Beyond it, the oldest ones go: nobody has listened for very long.
const MOST: usize = 4096;

/// Where events go.
#[derive(Clone, Debug, Default)]
pub struct Destination {
    pub namespace: String,
    /// containerd's ttrpc socket.
    pub ttrpc: String,
    /// Or, where there is none, containerd's own program and its main socket.
    pub binary: OsString,
    pub address: String,
}

/// The queue; clones are the same one.
#[derive(Clone, Default)]
pub struct Events(Rc<Inner>);

#[derive(Default)]
struct Inner {
    waiting: RefCell<VecDeque<Envelope>>,
    namespace: String,
    bell: Bell,
    lost: Cell<u64>,
    /// Set when nothing waits, while somebody wants to know.
    empty: RefCell<Option<Once<()>>>,
}

impl Events {
    /// Send what is published, for as long as the loop runs.
    pub fn new(host: &Host, to: Destination) -> Events {
        let events = Events(Rc::new(Inner { namespace: to.namespace.clone(), ..Inner::default() }));
        let (this, host) = (events.clone(), host.clone());
        let on = host.on.clone();
        on.spawn(async move { this.send(&host, &to).await });
        events
    }

    /// `name`: the message's, without its package (`containerd.events`).
    pub fn publish(&self, topic: &str, name: &str, event: &Message) {
        let mut waiting = self.0.waiting.borrow_mut();
        if waiting.len() == MOST {
            waiting.pop_front();
            self.0.lost.set(self.0.lost.get() + 1);
        }
        waiting.push_back(Envelope {
            timestamp: Some(SystemTime::now().into()),
            namespace: self.0.namespace.clone(),
            topic: topic.to_owned(),
            event: Some(Any::of(&format!("containerd.events.{name}"), event)),
        });
        self.0.bell.ring();
    }

    /// Until all has been sent.
    pub async fn sent(&self) {
        if self.0.waiting.borrow().is_empty() {
            return;
        }
        let empty = self.0.empty.borrow_mut().get_or_insert_default().clone();
        empty.wait().await;
    }

    async fn send(&self, host: &Host, to: &Destination) {
        let mut client = None;
        let mut pause = Duration::from_millis(50);
        loop {
            let Some(envelope) = self.0.waiting.borrow().front().cloned() else {
                if let Some(empty) = self.0.empty.take() {
                    empty.set(());
                }
                self.0.bell.wait().await;
                continue;
            };
            let lost = self.0.lost.take();
            if lost > 0 {
                log::warn!("{lost} events were dropped: containerd was away for too long");
            }
            let sent = if to.ttrpc.is_empty() {
                publish(host, to, &envelope).await
            } else {
                forward(host, to, &envelope, &mut client).await
            };
            match sent {
                Ok(()) => {
                    pause = Duration::from_millis(50);
                    // Still the first one, unless so many came that it was dropped.
                    let mut waiting = self.0.waiting.borrow_mut();
                    if waiting.front() == Some(&envelope) {
                        waiting.pop_front();
                    }
                }
                Err(e) => {
                    client = None;
                    log::debug!("event {}: {e:#}", envelope.topic);
                    host.on.sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(1));
                }
            }
        }
    }
}

async fn forward(
    host: &Host,
    to: &Destination,
    envelope: &Envelope,
    client: &mut Option<Client>,
) -> Result<()> {
    let client = match client {
        Some(client) => client,
        None => client.insert(Client::connect(&to.ttrpc)?),
    };
    let request = ForwardRequest { envelope: Some(envelope.clone()) };
    let service = "containerd.services.events.ttrpc.v1.Events";
    client.call(&host.on, service, "Forward", &request.message(), Duration::from_secs(5)).await?;
    Ok(())
}

/// `containerd --address A publish --topic T --namespace N`, the event on standard input.
async fn publish(host: &Host, to: &Destination, envelope: &Envelope) -> Result<()> {
    if to.binary.is_empty() {
        return Ok(());
    }
    let mut file = sys::fd::memory_file("event").context("make a file in memory")?;
    let event = envelope.event.clone().unwrap_or_default();
    file.write_all(event.message().as_bytes()).context("write to a file in memory")?;
    file.rewind().context("rewind")?;
    let mut command = Command::new(&to.binary);
    command.args([
        "--address",
        &to.address,
        "publish",
        "--topic",
        &envelope.topic,
        "--namespace",
        &envelope.namespace,
    ]);
    command.stdin(file).stdout(Stdio::null()).stderr(Stdio::null());
    let (_, ended) = host.children.start(&mut command)?;
    match ended.wait().await.exit {
        Exit::Code(0) => Ok(()),
        exit => bail!("containerd publish: status {}", exit.status()),
    }
}
