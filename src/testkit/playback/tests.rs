//! A script has the right expectations for each client, and a playback waits for what it needs.

use super::super::balancer::RawLink;
use super::super::recording::Recording;
use super::*;

const SOON: Duration = Duration::from_secs(10);
const A: &str = "00000000-0000-4000-8000-00000000000a";
const B: &str = "00000000-0000-4000-8000-00000000000b";

/// A recording of one link: `>` is what the balancer sent, `<` what the Monolith sent.
fn recording(lines: &[(&str, Value)]) -> Recording {
    let line = |(index, (direction, frame)): (usize, &(&str, Value))| {
        let direction = if *direction == ">" { "b2m" } else { "m2b" };
        let frame = frame.to_string();
        json!({"t_ms": index, "conn": "balancer-monolith:0", "gen": 0, "dir": direction, "frame": frame}).to_string()
    };
    let text: Vec<_> = lines.iter().enumerate().map(line).collect();
    Recording::parse(&text.join("\n")).unwrap()
}

fn join(id: &str, token: &str) -> (&'static str, Value) {
    (">", json!({"type": "join", "payload": {"room": "Room", "client": id, "token": token}}))
}

fn to(id: &str, n: u64) -> (&'static str, Value) {
    ("<", json!({"type": "room_msg", "payload": {"room": "Room", "client_id": id, "payload": {"n": n, "id": id}}}))
}

fn to_all(n: u64) -> (&'static str, Value) {
    ("<", json!({"type": "room_msg", "payload": {"room": "room", "payload": {"n": n}}}))
}

fn evening() -> Recording {
    recording(&[
        ("<", json!({"type": "init", "payload": {"port": 1, "region": "cdg", "id": "m"}})),
        join(A, "ta"),
        to(A, 1),
        to_all(2),
        join(B, "tb"),
        to_all(3),
        to(B, 4),
        (">", json!({"type": "client_msg", "payload": {"client_id": A, "payload": {"say": "x"}}})),
        (">", json!({"type": "client_msg", "payload": {"client_id": A, "payload": 5}})),
        to_all(5),
        (">", json!({"type": "leave", "payload": {"client": A}})),
        to_all(6),
        ("<", json!({"type": "kick", "payload": {"client_id": B, "reason": 4005}})),
        to_all(7),
    ])
}

fn numbers(client: &ScriptClient) -> Vec<u64> {
    let number = |text: &String| serde_json::from_str::<Value>(text).unwrap()["n"].as_u64().unwrap();
    client.expected.iter().map(number).collect()
}

#[test]
fn each_client_expects_what_the_link_had_for_it() {
    let script = Script::new(&evening(), 0, 0);
    let [a, b] = script.clients() else { panic!("two clients") };
    assert_eq!((numbers(a), numbers(b)), (vec![1, 2, 3, 5], vec![4, 5, 6]));
    assert_eq!(a.messages.iter().map(|(_, text)| text.as_str()).collect::<Vec<_>>(), [r#"{"say":"x"}"#]);
    assert_eq!((&a.kicked, &b.kicked), (&None, &Some(json!(4005))));
    assert!(Script::new(&evening(), 1, 0).is_empty());
}

#[tokio::test]
async fn a_playback_waits_for_joins_messages_and_leaves() {
    let playback = Playback::start(Script::new(&evening(), 0, 0), 80).await.unwrap();
    let mut link = RawLink::open(playback.link_addr()).await.unwrap();
    assert_eq!(link.next(SOON).await.unwrap().kind(), "init");
    link.next(Duration::from_millis(50)).await.unwrap_err();
    let (a, b) = (uuid::Uuid::new_v4().to_string(), uuid::Uuid::new_v4().to_string());
    // In the other order: each is known by its token.
    link.join("Room", &b, "tb").await;
    link.join("Room", &a, "ta").await;
    let said = link.take(4, SOON).await.unwrap();
    let expected = json!({"room": "Room", "client_id": a, "payload": {"n": 1, "id": a}});
    assert_eq!(said[0], super::super::balancer::Received::Frame(json!({"type": "room_msg", "payload": expected})));
    assert_eq!(playback.as_recorded(&format!(r#"{{"id":"{b}"}}"#)), format!(r#"{{"id":"{B}"}}"#));
    link.next(Duration::from_millis(50)).await.unwrap_err();
    link.send("client_msg", json!({"client_id": a, "payload": {"say": "x"}})).await;
    link.take(1, SOON).await.unwrap();
    assert!(playback.finished(Duration::from_millis(50)).await.unwrap_err().to_string().contains("Leave"));
    link.send("leave", json!({"client": a})).await;
    link.take(3, SOON).await.unwrap();
    playback.finished(SOON).await.unwrap();
    assert_eq!(playback.surprises(), [""; 0]);
    link.send("unload", json!({"room": "Room"})).await;
    link.join("Other", &b, "tb").await;
    link.until_pong(SOON).await.unwrap();
    assert_eq!(playback.surprises().len(), 2);
}
