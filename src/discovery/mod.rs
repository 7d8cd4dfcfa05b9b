//! Where the Monoliths are: manual, DNS, Fly and harness, each a stream of endpoint sets.
//!
//! A set is a wish list: it says what to dial, not what is alive. So a method that knows nothing new says nothing, and
//! one that fails, or suddenly finds nobody, keeps the last good set: the links notice by themselves who is gone.

pub mod endpoint;
pub mod harness;
mod polling;
mod resolver;

use std::net::Ipv6Addr;

use tokio::sync::watch;
use tokio::task::JoinHandle;

pub use endpoint::{Endpoint, EndpointSet};

use crate::config::Discovery;
use polling::Backoff;
use resolver::{Family, Query};

/// Starts a method on the current tokio runtime. It writes each new set to `endpoints`, ends when every receiver is
/// gone, and can be aborted at any moment; what it wrote last stays. A changed configuration is another `spawn` with a
/// clone of the sender after the first task was aborted.
pub fn spawn(discovery: Discovery, endpoints: watch::Sender<EndpointSet>) -> JoinHandle<()> {
    tokio::spawn(async move {
        tokio::select! {
            () = run(discovery, &endpoints) => {}
            () = endpoints.closed() => {}
        }
    })
}

async fn run(discovery: Discovery, endpoints: &watch::Sender<EndpointSet>) {
    match discovery {
        Discovery::Manual(monoliths) => {
            publish(endpoints, monoliths.into_iter().map(|(host, port)| Endpoint { host, port }).collect());
            std::future::pending().await
        }
        Discovery::Dns { query, service_port, dns_server, polling_interval } => {
            let query = Query { name: query, server: dns_server, family: Family::Both };
            polling::poll(query, service_port, polling_interval, endpoints).await;
        }
        Discovery::Fly { fly_app, service_port, polling_interval } => {
            let query = Query { name: format!("global.{fly_app}.internal."), server: None, family: Family::V6 };
            polling::poll(query, service_port, polling_interval, endpoints).await;
        }
        Discovery::Harness { port } => {
            let mut backoff = Backoff::new(std::time::Duration::from_millis(500));
            loop {
                match tokio::net::TcpListener::bind((Ipv6Addr::LOCALHOST, port)).await {
                    Ok(listener) => return harness::serve(listener, endpoints).await,
                    Err(error) => {
                        tracing::error!(port, %error, "harness discovery cannot listen on [::1], trying again");
                        tokio::time::sleep(backoff.next()).await;
                    }
                }
            }
        }
    }
}

/// Writes a set if it differs from the last one, so that receivers wake only for news.
fn publish(endpoints: &watch::Sender<EndpointSet>, set: EndpointSet) {
    endpoints.send_if_modified(|last| {
        if *last == set {
            return false;
        }
        tracing::info!(
            endpoints = set.len(),
            added = %endpoint::join(set.difference(last)),
            removed = %endpoint::join(last.difference(&set)),
            "discovered Monoliths changed"
        );
        *last = set;
        true
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_manual_list_is_sent_once_and_the_task_ends_with_its_receivers() {
        let (sender, mut receiver) = watch::channel(EndpointSet::new());
        let list = vec![("b.local".into(), 2), ("10.0.0.1".into(), 1)];
        let task = spawn(Discovery::Manual(list), sender);
        receiver.changed().await.unwrap();
        assert_eq!(endpoint::join(receiver.borrow_and_update().iter()), "10.0.0.1:1, b.local:2");
        assert!(!receiver.has_changed().unwrap());
        drop(receiver);
        tokio::time::timeout(std::time::Duration::from_secs(10), task).await.unwrap().unwrap();
    }
}
