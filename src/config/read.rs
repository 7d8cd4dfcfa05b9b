//! Readers: from a value of the document to a checked value, or what is wrong with it and what would be right.

use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use ipnet::IpNet;

use super::tree::{Node, Value};
use super::types::{Secret, private_ranges};
use super::units;

type Read<T> = Result<T, String>;

/// A text. What an environment variable holds is a text, whatever it looks like.
pub(super) fn text(node: &Node) -> Read<String> {
    match (&node.value, &node.raw) {
        (Value::Text(text), _) => Ok(text.clone()),
        (_, Some(raw)) => Ok(raw.clone()),
        _ => Err(format!("expected a text in quotes, found {}", node.kind())),
    }
}

/// A text that is not empty and holds no space or control character.
pub(super) fn word(node: &Node) -> Read<String> {
    let text = text(node)?;
    if text.is_empty() || text.len() > 255 || text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(format!("{:?} is empty, too long or holds a space; write one word", cut(&text)));
    }
    Ok(text)
}

/// A text that no error quotes.
pub(super) fn secret(node: &Node) -> Read<Secret> {
    text(node).map(Secret::new)
}

/// `true` or `false`.
pub(super) fn flag(node: &Node) -> Read<bool> {
    match node.value {
        Value::Flag(flag) => Ok(flag),
        _ => Err(format!("expected true or false, found {}", node.shown())),
    }
}

/// A whole number in a range.
pub(super) fn integer<T>(range: RangeInclusive<T>) -> impl FnOnce(&Node) -> Read<T>
where
    T: TryFrom<i64> + PartialOrd + Display + Copy,
{
    move |node| {
        let bounds = || format!("a whole number from {} to {}", range.start(), range.end());
        match &node.value {
            Value::Integer(Ok(number)) => T::try_from(*number)
                .ok()
                .filter(|number| range.contains(number))
                .ok_or_else(|| format!("{number} is out of range; write {}", bounds())),
            Value::Integer(Err(digits)) => Err(format!("{} is out of range; write {}", cut(digits), bounds())),
            _ => Err(format!("expected {}, found {}", bounds(), node.shown())),
        }
    }
}

/// A port that can be listened on or dialled.
pub(super) fn port(node: &Node) -> Read<u16> {
    integer(1..=u16::MAX)(node).map_err(|error| error.replace("a whole number", "a port"))
}

/// A finite number in a range.
pub(super) fn number(range: RangeInclusive<f64>) -> impl Fn(&Node) -> Read<f64> {
    move |node| {
        let bounds = format!("a number from {} to {}", range.start(), range.end());
        let number = match node.value {
            Value::Integer(Ok(number)) => number as f64,
            Value::Float(number) => number,
            _ => return Err(format!("expected {bounds}, found {}", node.shown())),
        };
        if range.contains(&number) { Ok(number) } else { Err(format!("{number} is out of range; write {bounds}")) }
    }
}

/// A duration with its unit, in a range.
pub(super) fn duration(range: RangeInclusive<Duration>) -> impl FnOnce(&Node) -> Read<Duration> {
    move |node| {
        let example = || format!("write a number with a unit, such as \"250ms\", {:?} or \"2m\"", seconds_of(node));
        let duration = match &node.value {
            Value::Text(text) => units::duration(text)
                .ok_or_else(|| format!("{:?} is no duration with a unit; {}", cut(text), example()))?,
            Value::Integer(_) | Value::Float(_) => {
                return Err(format!("expected a duration, found {} without a unit; {}", node.shown(), example()));
            }
            _ => return Err(format!("expected a duration, found {}; {}", node.shown(), example())),
        };
        if range.contains(&duration) {
            return Ok(duration);
        }
        let [found, low, high] = [duration, *range.start(), *range.end()].map(units::write_duration);
        Err(format!("{found} is out of range; write a duration from {low} to {high}"))
    }
}

/// What the operator most likely meant by a bare number.
fn seconds_of(node: &Node) -> String {
    match &node.value {
        Value::Integer(Ok(number)) if *number > 0 => format!("{number}s"),
        Value::Float(number) if *number > 0.0 && *number < 1e6 => format!("{number}s"),
        Value::Text(text) if !text.is_empty() && text.len() < 7 && text.parse::<f64>().is_ok() => format!("{text}s"),
        _ => "5s".into(),
    }
}

/// A size with its unit, in a range.
pub(super) fn size(range: RangeInclusive<usize>) -> impl FnOnce(&Node) -> Read<usize> {
    move |node| {
        let example = "write a number with a unit, such as \"64KiB\" or \"8MiB\"";
        let size = match &node.value {
            Value::Text(text) => {
                units::size(text).ok_or_else(|| format!("{:?} is no size with a unit; {example}", cut(text)))?
            }
            _ => return Err(format!("expected a size, found {}; {example}", node.shown())),
        };
        if range.contains(&size) {
            return Ok(size);
        }
        let [found, low, high] = [size, *range.start(), *range.end()].map(units::write_size);
        Err(format!("{found} is out of range; write a size from {low} to {high}"))
    }
}

/// A list of texts, each checked.
pub(super) fn list<T>(what: &'static str, item: impl Fn(&Node) -> Read<T>) -> impl FnOnce(&Node) -> Read<Vec<T>> {
    move |node| match &node.value {
        Value::List(items) => items.iter().map(item).collect(),
        _ => Err(format!("expected a list of {what}, found {}", node.shown())),
    }
}

/// An address with a port; empty: none.
pub(super) fn listen(node: &Node) -> Read<Option<SocketAddr>> {
    let text = text(node)?;
    if text.is_empty() {
        return Ok(None);
    }
    match text.parse::<SocketAddr>() {
        Ok(address) if address.port() != 0 => Ok(Some(address)),
        _ => Err(format!(
            "{:?} is no address with a port; write \"127.0.0.1:9090\", \"[::]:9090\", or \"\" for the main port",
            cut(&text)
        )),
    }
}

/// The address of a DNS server, with port 53 unless it says another.
pub(super) fn dns_server(node: &Node) -> Read<SocketAddr> {
    let text = text(node)?;
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    match (text.parse::<SocketAddr>(), bare.parse::<IpAddr>()) {
        (Ok(address), _) if address.port() != 0 => Ok(address),
        (_, Ok(ip)) => Ok(SocketAddr::new(ip, 53)),
        _ => Err(format!("{:?} is no address; write \"10.0.0.2\" or \"10.0.0.2:5353\"", cut(&text))),
    }
}

/// Whose `X-Forwarded-For` is believed.
pub(super) fn trusted(node: &Node) -> Read<Vec<IpNet>> {
    let what = "write \"none\" or a list of addresses, ranges such as \"10.0.0.0/8\", and \"private\"";
    let items = match &node.value {
        Value::Text(text) if text == "none" => return Ok(Vec::new()),
        Value::List(items) => items,
        _ => return Err(format!("found {}; {what}", node.shown())),
    };
    let mut ranges = Vec::new();
    for item in items {
        let Value::Text(text) = &item.value else { return Err(format!("found {} in the list; {what}", item.shown())) };
        match text.as_str() {
            "private" => ranges.extend(private_ranges()),
            "none" if items.len() == 1 => {}
            "none" => return Err(format!("\"none\" stands beside other entries; {what}")),
            range => match (range.parse::<IpNet>(), range.parse::<IpAddr>()) {
                (Ok(range), _) => ranges.push(range.trunc()),
                (_, Ok(address)) => ranges.push(address.into()),
                _ => return Err(format!("{:?} is no address or range; {what}", cut(range))),
            },
        }
    }
    Ok(ranges)
}

/// A text that is cut to what an error should quote.
pub(super) fn cut(text: &str) -> String {
    text.chars().take(80).collect()
}
