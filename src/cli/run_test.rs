//! Tests of `run.rs`: what ends a balancer that serves.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::*;
use crate::config::{Config, Discovery};
use crate::control::{Control, Stopped};
use crate::front::listener::Listener;
use crate::testkit::http;

/// For what must happen: long, because machines are slow.
const SOON: Duration = Duration::from_secs(20);

/// A balancer without Monoliths that serves until something ends it.
async fn serving() -> (SocketAddr, Control, tokio::task::JoinHandle<u8>) {
    let mut config = Config { discovery: Discovery::Manual(Vec::new()), ..Config::default() };
    config.timeouts.shutdown = Duration::from_millis(100);
    let request = config::Request {
        path: None,
        working_dir: PathBuf::new(),
        environment: Vec::new(),
        shipped: config::SHIPPED_POLICIES.to_vec(),
        workers: 1,
    };
    let start = Start {
        id: Uuid::new_v4(),
        loaded: Loaded { config, warnings: Vec::new() },
        request,
        listener: Listener::bind_loopback().unwrap(),
        admin_listener: None,
    };
    let app = App::start(start).await.unwrap();
    let (addr, control) = (app.addr(), app.control().clone());
    let mut terminate = signal(SignalKind::user_defined1()).unwrap();
    let mut interrupt = signal(SignalKind::user_defined2()).unwrap();
    let serving =
        tokio::spawn(async move { serve(Running { app, incumbent: None }, &mut terminate, &mut interrupt).await });
    (addr, control, serving)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f16_usher_ends_with_an_error_when_its_control_thread_breaks() {
    let (addr, control, serving) = serving().await;
    assert_eq!(http::get(addr, "/api/status").await.unwrap().text(), "OK");
    assert!(!serving.is_finished());
    let broken = control.query(|_| -> bool { panic!("a test breaks the control thread") }).await;
    assert_eq!(broken, Err(Stopped));
    let code = tokio::time::timeout(SOON, serving).await.expect("it ends").unwrap();
    assert_eq!(code, UNABLE);
    assert!(http::get(addr, "/api/status").await.is_err(), "nobody is told any more that all is well");
}
