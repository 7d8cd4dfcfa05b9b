//! Polling against a DNS server that does as it is told.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};

use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

use super::*;
use crate::config::Discovery;
use crate::discovery::resolver::Family;
use crate::discovery::{endpoint, spawn};

const DEADLINE: Duration = Duration::from_secs(20);
const NX_DOMAIN: u8 = 3;
const SERVER_FAILURE: u8 = 2;

/// A DNS server on loopback with one answer for every name.
struct Server {
    address: SocketAddr,
    zone: Arc<Mutex<Zone>>,
    /// How many questions were answered.
    asked: watch::Receiver<usize>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Zone {
    code: u8,
    addresses: Vec<IpAddr>,
    names: Vec<String>,
}

impl Server {
    async fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let zone = Arc::new(Mutex::new(Zone::default()));
        let (count, asked) = watch::channel(0);
        let answers = zone.clone();
        let task = tokio::spawn(async move {
            let mut packet = [0; 1500];
            loop {
                let (length, from) = socket.recv_from(&mut packet).await.unwrap();
                let answer = answers.lock().unwrap().answer(&packet[..length]);
                socket.send_to(&answer, from).await.unwrap();
                count.send_modify(|count| *count += 1);
            }
        });
        Self { address, zone, asked, task }
    }

    fn says(&self, code: u8, addresses: &[&str]) {
        let mut zone = self.zone.lock().unwrap();
        zone.code = code;
        zone.addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
    }

    /// Waits until so many more questions were answered.
    async fn answers(&mut self, more: usize) {
        let goal = *self.asked.borrow() + more;
        tokio::time::timeout(DEADLINE, self.asked.wait_for(|asked| *asked >= goal)).await.unwrap().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Zone {
    /// The response to a query (RFC 1035 section 4): its header, its question, and one record an address.
    fn answer(&mut self, query: &[u8]) -> Vec<u8> {
        let mut end = 12;
        let mut name = String::new();
        while query[end] != 0 {
            let label = &query[end + 1..end + 1 + usize::from(query[end])];
            name += &format!("{}.", String::from_utf8_lossy(label));
            end += 1 + label.len();
        }
        let kind = query[end + 2];
        end += 5;
        self.names.push(name);
        let records: Vec<Vec<u8>> = self.addresses.iter().filter_map(|address| record(*address, kind)).collect();
        let records = if self.code == 0 { records } else { Vec::new() };
        let mut packet = vec![query[0], query[1], 0x81, 0x80 | self.code, 0, 1, 0, records.len() as u8, 0, 0, 0, 0];
        packet.extend_from_slice(&query[12..end]);
        packet.extend(records.into_iter().flatten());
        packet
    }
}

/// A record of the question's name (a pointer to it), of class IN, with a time to live that nobody may rely on.
fn record(address: IpAddr, kind: u8) -> Option<Vec<u8>> {
    let data = match (address, kind) {
        (IpAddr::V4(address), 1) => address.octets().to_vec(),
        (IpAddr::V6(address), 28) => address.octets().to_vec(),
        _ => return None,
    };
    let mut record = vec![0xc0, 12, 0, kind, 0, 1, 0, 0, 14, 16, 0, data.len() as u8];
    record.extend(data);
    Some(record)
}

fn dns(server: &Server) -> (watch::Receiver<EndpointSet>, JoinHandle<()>) {
    let (sender, receiver) = watch::channel(EndpointSet::new());
    let discovery = Discovery::Dns {
        query: "monoliths".into(),
        service_port: 3002,
        dns_server: Some(server.address),
        polling_interval: Duration::from_millis(20),
    };
    (receiver, spawn(discovery, sender))
}

async fn becomes(endpoints: &mut watch::Receiver<EndpointSet>, expected: &str) {
    let is = |set: &EndpointSet| endpoint::join(set.iter()) == expected;
    tokio::time::timeout(DEADLINE, endpoints.wait_for(is)).await.unwrap().unwrap();
}

#[tokio::test]
async fn changes_in_dns_arrive() {
    let mut server = Server::start().await;
    server.says(0, &["10.0.0.1"]);
    let (mut endpoints, _task) = dns(&server);
    becomes(&mut endpoints, "10.0.0.1:3002").await;
    endpoints.mark_unchanged();
    server.answers(3).await;
    assert!(!endpoints.has_changed().unwrap(), "the same set is no news");
    server.says(0, &["10.0.0.2", "10.0.0.1", "10.0.0.3"]);
    becomes(&mut endpoints, "10.0.0.1:3002, 10.0.0.2:3002, 10.0.0.3:3002").await;
    server.says(0, &["10.0.0.3"]);
    becomes(&mut endpoints, "10.0.0.3:3002").await;
}

#[tokio::test]
async fn a_and_aaaa_records_count_both() {
    let server = Server::start().await;
    server.says(0, &["fdaa::1", "10.0.0.1"]);
    let (mut endpoints, _task) = dns(&server);
    becomes(&mut endpoints, "10.0.0.1:3002, [fdaa::1]:3002").await;
    server.says(0, &["fdaa::1"]);
    becomes(&mut endpoints, "[fdaa::1]:3002").await;
}

#[tokio::test]
async fn a_failure_and_an_empty_answer_keep_the_last_good_set() {
    let mut server = Server::start().await;
    server.says(0, &["10.0.0.1"]);
    let (mut endpoints, _task) = dns(&server);
    becomes(&mut endpoints, "10.0.0.1:3002").await;
    endpoints.mark_unchanged();
    for code in [SERVER_FAILURE, NX_DOMAIN, 0] {
        server.says(code, &[]);
        server.answers(4).await;
        assert!(!endpoints.has_changed().unwrap(), "code {code}: {:?}", endpoints.borrow());
    }
    server.says(0, &["10.0.0.2"]);
    becomes(&mut endpoints, "10.0.0.2:3002").await;
}

#[tokio::test]
async fn a_server_that_comes_late_is_found() {
    let mut server = Server::start().await;
    server.says(SERVER_FAILURE, &[]);
    let (mut endpoints, _task) = dns(&server);
    server.answers(3).await;
    assert!(endpoints.borrow().is_empty());
    server.says(0, &["10.0.0.1"]);
    becomes(&mut endpoints, "10.0.0.1:3002").await;
}

#[tokio::test]
async fn fly_asks_for_aaaa_records_alone() {
    let server = Server::start().await;
    server.says(0, &["10.0.0.1", "fdaa::5", "fdaa::4"]);
    let query = Query { name: "global.my-app.internal.".into(), server: Some(server.address), family: Family::V6 };
    let found = tokio::time::timeout(DEADLINE, query.addresses()).await.unwrap().unwrap();
    assert_eq!(found.iter().map(IpAddr::to_string).collect::<Vec<_>>(), ["fdaa::4", "fdaa::5"]);
    let names = server.zone.lock().unwrap().names.clone();
    assert!(!names.is_empty() && names.iter().all(|name| name == "global.my-app.internal."), "{names:?}");
}

#[tokio::test]
async fn an_address_needs_no_server() {
    let query = Query { name: "fdaa::7".into(), server: None, family: Family::Both };
    assert_eq!(query.addresses().await.unwrap().iter().map(IpAddr::to_string).collect::<Vec<_>>(), ["fdaa::7"]);
}

#[test]
fn only_a_change_is_news() {
    let mut health = Health::Unknown;
    let news =
        [Health::Failing, Health::Failing, Health::Good, Health::Good, Health::Empty, Health::Empty, Health::Good]
            .map(|state| health.turns(state));
    assert_eq!(news, [true, false, true, false, true, false, true]);
}

#[test]
fn waits_double_up_to_the_longest_and_differ() {
    let mut backoff = Backoff::new(Duration::from_secs(1));
    for full in [1, 2, 4, 8, 16, 30, 30] {
        let wait = backoff.next();
        assert!(wait <= Duration::from_secs(full) && wait >= Duration::from_millis(full * 500), "{wait:?} for {full}");
    }
    let waits: std::collections::BTreeSet<Duration> =
        (0..20).map(|_| Backoff::new(Duration::from_secs(1)).next()).collect();
    assert!(waits.len() > 10, "{waits:?}");
    assert!(Backoff::new(Duration::from_secs(600)).next() >= Duration::from_secs(300));
}
