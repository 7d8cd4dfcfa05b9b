//! Tests of the wire format: what is read, what is kept byte for byte, and what is refused.

use super::*;
use crate::model::hello::{Hello, LONGEST_TOKEN, is_object};
use crate::model::{Attachment, ClientId};
use proptest::prelude::*;

fn parse(text: &str) -> FromMonolith<'_> {
    Frame::parse(text).unwrap().message
}

#[test]
fn a_room_message_keeps_its_payload_byte_for_byte() {
    let FromMonolith::RoomMessage(message) =
        parse(r#"{"type":"room_msg","payload":{"room":"Foo","payload":{ "a" : 1.50, "b":"\u00e9" }}}"#)
    else {
        panic!("not a room message")
    };
    assert_eq!((&*message.room, message.to), ("Foo", Recipient::Everyone));
    assert_eq!(message.payload, r#"{ "a" : 1.50, "b":"\u00e9" }"#);
}

#[test]
fn recipients_are_everyone_someone_or_nobody() {
    let id = ClientId::from_u128(7).member(Attachment(1));
    for (client, expected) in [
        ("null".to_string(), Recipient::Everyone),
        (format!("\"{id}\""), Recipient::Member(id)),
        ("\"someone else\"".to_string(), Recipient::Nobody),
        ("5".to_string(), Recipient::Nobody),
    ] {
        let text = format!(r#"{{"payload":{{"room":"a","client_id":{client},"payload":{{}}}},"type":"room_msg"}}"#);
        let FromMonolith::RoomMessage(message) = parse(&text) else { panic!("not a room message") };
        assert_eq!(message.to, expected, "{client}");
    }
}

#[test]
fn a_kick_reason_that_is_no_code_is_4000() {
    for (reason, code) in [("4005", 4005), ("1001", 1001), ("1005", 4000), ("\"x\"", 4000), ("{}", 4000), ("-1", 4000)]
    {
        let text = format!(r#"{{"type":"kick","payload":{{"client_id":"x","reason":{reason}}}}}"#);
        let FromMonolith::Kick { code: got, client } = parse(&text) else { panic!("not a kick") };
        assert_eq!((got.get(), client), (code, None), "{reason}");
    }
}

#[test]
fn metadata_is_verbatim_but_for_users() {
    let raw = r#"{"name":"Bar","title":"x","visibility":"public","isTemporary":true,"users": 3 ,"extra":{"k":[1]}}"#;
    let text = format!(r#"{{"type":"loaded","payload":{{"room":{raw},"load_epoch":12}}}}"#);
    let FromMonolith::Loaded(report) = parse(&text) else { panic!("not loaded") };
    assert_eq!((report.name.spelling(), report.epoch, report.metadata.users), ("Bar", Epoch(12), 3));
    assert!(report.metadata.public && report.metadata.temporary);
    let mut out = String::new();
    report.metadata.write_with_users(10, &mut out);
    assert_eq!(out, raw.replace("3 ,", "10 ,"));
    for (bare, expected) in [
        (r#"{"name":"a"}"#, r#"{"name":"a","users":4}"#),
        ("{\"name\":\"a\" }", "{\"name\":\"a\",\"users\":4}"),
        (r#"{"name":"a","x":{"y":{}}}"#, r#"{"name":"a","x":{"y":{}},"users":4}"#),
        (r#"{"name":"a","x":"}}" }"#, r#"{"name":"a","x":"}}","users":4}"#),
        (r#"{"users":null,"name":"a"}"#, r#"{"users":4,"name":"a"}"#),
    ] {
        let mut out = String::new();
        Metadata::parse(bare).unwrap().1.write_with_users(4, &mut out);
        assert_eq!(out, expected);
    }
}

#[test]
fn unknown_types_and_fields_are_counted_and_garbage_is_an_error() {
    let frame = Frame::parse(r#"{"type":"later","payload":{"x":1,"room":2},"more":[]}"#).unwrap();
    assert!(matches!(frame.message, FromMonolith::Unknown));
    assert_eq!(frame.unknown_fields, 2);
    for bad in [
        "",
        "null",
        "[]",
        "{}",
        r#"{"type":"init"}"#,
        r#"{"type":"kick","payload":{}}"#,
        r#"{"type":"gossip","payload":{}}"#,
    ] {
        assert!(Frame::parse(bad).is_err(), "{bad}");
    }
}

#[test]
fn gossip_reads_what_changed_and_skips_what_is_malformed() {
    let gossip = |rooms: &str| format!(r#"{{"type":"gossip","payload":{{"rooms":[{rooms}]}}}}"#);
    let reports = |text: &str, known: &[RoomReport]| {
        let FromMonolith::Gossip(gossip) = parse(text) else { panic!("not gossip") };
        gossip.reports(|name| known.iter().find(|report| report.name.spelling() == name)).unwrap()
    };
    let (a, b) = (r#"{"room":{"name":"a","users":1},"load_epoch":5}"#, r#"{"room":{"name":"b"},"load_epoch":6}"#);
    let (first, skipped) = reports(&gossip(&format!("{a},{b}")), &[]);
    assert_eq!((first.len(), skipped), (2, 0));
    let changed = r#"{"room":{"name":"b","users":3},"load_epoch":7}"#;
    let (second, _) = reports(&gossip(&format!("{a},{changed}")), &first);
    assert!(Arc::ptr_eq(&first[0].metadata, &second[0].metadata), "what is the same is not read again");
    assert_eq!((second[1].metadata.users, second[1].epoch), (3, Epoch(7)));
    for bad in ["{}", "7", r#"{"room":{},"load_epoch":1}"#, r#"{"room":{"name":"c"},"load_epoch":-1}"#] {
        let (good, skipped) = reports(&gossip(&format!("{a},{bad},{b}")), &[]);
        assert_eq!((good.len(), skipped), (2, 1), "{bad}");
    }
}

#[test]
fn metadata_is_an_object_and_nothing_that_reads_like_one() {
    for bad in [r#"["a"]"#, r#"["a",null,null,3]"#, r#""a""#, "null", r#"{"name":"a","users":1,"users":2}"#] {
        assert!(Metadata::parse(bad).is_err(), "{bad}");
    }
}

#[test]
fn what_names_a_monolith_is_short_and_printable() {
    let init = |region: &str, id: &str| {
        let payload = serde_json::json!({"port": 1, "region": region, "id": id});
        Frame::parse(&format!(r#"{{"type":"init","payload":{payload}}}"#)).is_ok()
    };
    let longest = "x".repeat(LONGEST_NAME);
    assert!(init("ewr", "m") && init("", "m") && init(&longest, &longest) && init("é", "é"));
    let longer = "x".repeat(LONGEST_NAME + 1);
    for (region, id) in
        [("ewr", ""), ("ewr", &*longer), (&*longer, "m"), ("a\nb", "m"), ("ewr", "\u{1b}[2J"), ("\0", "m")]
    {
        assert!(!init(region, id), "{region:?} {id:?}");
    }
}

#[test]
fn a_token_has_a_longest_length() {
    let hello = |length| Hello::parse(&format!(r#"{{"action":"auth","token":"{}"}}"#, "t".repeat(length)));
    assert!(matches!(hello(LONGEST_TOKEN), Hello::Auth(_)));
    assert_eq!(hello(LONGEST_TOKEN + 1), Hello::NoToken);
}

#[test]
fn an_init_needs_port_region_and_id_and_never_prints_its_token() {
    let text = r#"{"type":"init","payload":{"port":3002,"region":"ewr","id":"m","token":"hush"}}"#;
    let FromMonolith::Init(init) = parse(text) else { panic!("not an init") };
    assert_eq!((init.port, init.token.as_deref()), (3002, Some("hush")));
    assert!(!format!("{init:?}").contains("hush"));
    for bad in ["0", "70000", "\"80\""] {
        assert!(Frame::parse(&text.replace("3002", bad)).is_err(), "{bad}");
    }
}

#[test]
fn frames_to_a_monolith_are_json_whatever_the_text() {
    let id = ClientId::from_u128(9).member(Attachment(1));
    let frame: serde_json::Value = serde_json::from_str(&join("a\"b", id, "t\\\n")).unwrap();
    assert_eq!(frame["payload"]["room"], "a\"b");
    assert_eq!(frame["payload"]["token"], "t\\\n");
    assert_eq!(
        client_message(id, "{}"),
        format!(r#"{{"type":"client_msg","payload":{{"client_id":"{id}","payload":{{}}}}}}"#)
    );
    let text = r#" {"odd":"}} \u00e9 é"} "#;
    assert_eq!(said(&client_message(id, text)), text);
    assert_eq!(said("{}"), "");
}

#[test]
fn f51_only_an_object_may_be_forwarded() {
    for good in ["{}", " {\"a\":null}\n", "{\"action\":\"req\",\"request\":null}"] {
        assert!(is_object(good), "{good}");
    }
    for bad in ["null", "1", "\"{}\"", "[]", "{", "{}{}", "{},\"x\":{}", "", "{a:1}"] {
        assert!(!is_object(bad), "{bad}");
    }
}

#[test]
fn a_first_frame_is_a_token_or_not() {
    assert_eq!(Hello::parse(r#"{"action":"auth","token":"t"}"#), Hello::Auth("t".into()));
    for none in [
        r#"{"action":"auth"}"#,
        r#"{"action":"auth","token":5}"#,
        r#"{"action":"req"}"#,
        "null",
        r#"{"action":"auth","token":""}"#,
    ] {
        assert_eq!(Hello::parse(none), Hello::NoToken, "{none}");
    }
    assert_eq!(Hello::parse("hello"), Hello::NotJson);
    assert!(!format!("{:?}", Hello::Auth("secret".into())).contains("secret"));
}

proptest! {
    #[test]
    fn no_text_panics(text in ".*") {
        if let Ok(Frame { message: FromMonolith::Gossip(gossip), .. }) = Frame::parse(&text) {
            let _ = gossip.reports(|_| None);
        }
        let _ = Hello::parse(&text);
        is_object(&text);
    }

    #[test]
    fn no_mutation_of_a_frame_panics(at in 0usize..200, byte: u8) {
        let mut bytes = br#"{"type":"gossip","payload":{"rooms":[{"room":{"name":"a","users":1,"visibility":"public"},"load_epoch":5}]}}"#.to_vec();
        let at = at % bytes.len();
        bytes[at] = byte;
        if let Ok(text) = std::str::from_utf8(&bytes)
            && let Ok(Frame { message: FromMonolith::Gossip(gossip), .. }) = Frame::parse(text)
        {
            let _ = gossip.reports(|_| None);
        }
    }
}
