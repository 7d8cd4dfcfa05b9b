//! Commands that ask a running usher through its admin API.

use bytes::Bytes;
use clap::{Args, Subcommand};
use http::{Method, Request, Uri};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

use super::offline::Format;
use super::output::{say, show};
use super::{BAD, GOOD, UNABLE, drain, output, why};

/// Which usher to ask.
#[derive(Args, Debug)]
pub(super) struct AdminArgs {
    /// Where its admin API is
    #[arg(long, default_value = "http://127.0.0.1:8081", value_name = "URL", global = true)]
    admin: String,
    /// Its `api_key`
    #[arg(long, env = "USHER_API_KEY", hide_env_values = true, default_value = "", global = true)]
    api_key: String,
}

/// `usher monolith`.
#[derive(Args, Debug)]
pub(super) struct MonolithArgs {
    #[command(flatten)]
    admin: AdminArgs,
    #[command(subcommand)]
    command: MonolithCommand,
}

#[derive(Debug, Subcommand)]
enum MonolithCommand {
    /// List the Monoliths
    List,
    /// Let a Monolith lose its rooms: they move to the others, and it takes no new ones
    Drain {
        /// Its id
        id: String,
        /// Wait until nothing more is going to happen; with rooms left the exit code is 1
        #[arg(long)]
        wait: bool,
    },
    /// Let a Monolith take rooms again; moves that have not begun are dropped
    Resume {
        /// Its id
        id: String,
    },
}

/// `usher room`.
#[derive(Args, Debug)]
pub(super) struct RoomArgs {
    #[command(flatten)]
    admin: AdminArgs,
    #[command(subcommand)]
    command: RoomCommand,
}

#[derive(Debug, Subcommand)]
enum RoomCommand {
    /// List the rooms
    List,
    /// Say where a room is
    Where {
        /// Its name
        name: String,
    },
    /// Tell the story of a room: why it is where it is
    Why {
        /// Its name
        name: String,
        /// How it is printed; `json` is the whole document of the admin API
        #[arg(long, value_enum, default_value_t = Format::Pretty)]
        format: Format,
    },
    /// Move a room to another Monolith, once nobody in it has said anything for a moment
    Move {
        /// Its name
        name: String,
        /// The id of the Monolith that is to have it
        #[arg(long, value_name = "ID")]
        to: String,
    },
}

pub(super) fn status(args: &AdminArgs) -> u8 {
    let ready = ask(args, Method::GET, "/_usher/ready", None);
    match ready {
        Ok((status, body)) => {
            print_json(&body);
            if status == 200 { GOOD } else { BAD }
        }
        Err(error) => unable(args, &error),
    }
}

pub(super) fn monolith(args: &MonolithArgs) -> u8 {
    match &args.command {
        MonolithCommand::List => {
            report(&args.admin, ask(&args.admin, Method::GET, "/_usher/v1/monoliths", None), print_json)
        }
        MonolithCommand::Drain { id, wait } => drain::begin(&args.admin, id, *wait),
        MonolithCommand::Resume { id } => drain::resume(&args.admin, id),
    }
}

pub(super) fn room(args: &RoomArgs) -> u8 {
    match &args.command {
        RoomCommand::List => {
            let mut cursor = String::new();
            loop {
                let path = format!("/_usher/v1/rooms?limit=1000&cursor={cursor}");
                let mut next = None;
                let code = report(&args.admin, ask(&args.admin, Method::GET, &path, None), |page| {
                    for room in page["rooms"].as_array().into_iter().flatten() {
                        let text = |key: &str| room[key].as_str().unwrap_or("-").to_string();
                        say!("{}  {}  {}  {} clients", text("name"), text("state"), text("monolith"), room["clients"]);
                    }
                    next = page["next"].as_str().map(str::to_string);
                });
                match next {
                    Some(next) if code == GOOD && output::is_open() => cursor = next,
                    _ => return code,
                }
            }
        }
        RoomCommand::Where { name } => {
            let path = format!("/_usher/v1/rooms/{name}");
            report(&args.admin, ask(&args.admin, Method::GET, &path, None), |room| {
                // How it came there is what `why` tells.
                let place = ["name", "state", "monolith", "epoch", "clients"];
                let place: serde_json::Map<_, _> =
                    place.map(|key| (key.into(), room[key].clone())).into_iter().collect();
                print_json(&place.into());
            })
        }
        RoomCommand::Why { name, format } => why::live(&args.admin, name, *format),
        RoomCommand::Move { name, to } => {
            let path = format!("/_usher/v1/rooms/{name}/move");
            let body = serde_json::json!({"to": to});
            report(&args.admin, ask(&args.admin, Method::POST, &path, Some(body)), |moving| {
                let text = |key: &str| moving[key].as_str().unwrap_or("-");
                say!("{} goes from {} to {}, {} clients", text("room"), text("from"), text("to"), moving["clients"]);
            })
        }
    }
}

pub(super) fn print_json(document: &Value) {
    show!("{document:#}\n");
}

pub(super) fn report(args: &AdminArgs, answer: Result<(u16, Value), String>, show: impl FnOnce(&Value)) -> u8 {
    match answer {
        Ok((200, document)) => {
            show(&document);
            GOOD
        }
        Ok((status, document)) => {
            let message = document["error"]["message"].as_str().unwrap_or("no reason given");
            eprintln!("usher: {status}: {message}");
            BAD
        }
        Err(error) => unable(args, &error),
    }
}

fn unable(args: &AdminArgs, error: &str) -> u8 {
    eprintln!("usher: cannot ask {}: {error}; name the right address with --admin", args.admin);
    UNABLE
}

pub(super) fn ask(args: &AdminArgs, method: Method, path: &str, body: Option<Value>) -> Result<(u16, Value), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
    runtime.block_on(async {
        let limit = std::time::Duration::from_secs(30);
        let asked = tokio::time::timeout(limit, ask_unbounded(args, method, path, body)).await;
        asked.unwrap_or_else(|_| Err(format!("no answer within {} s", limit.as_secs())))
    })
}

async fn ask_unbounded(
    args: &AdminArgs,
    method: Method,
    path: &str,
    body: Option<Value>,
) -> Result<(u16, Value), String> {
    let uri: Uri = args.admin.parse().map_err(|error| format!("not a URL: {error}"))?;
    if uri.scheme_str().is_some_and(|scheme| scheme != "http") {
        return Err("only http:// is spoken here; TLS ends in front of usher".into());
    }
    let host = uri.host().ok_or("the URL names no host")?;
    let port = uri.port_u16().unwrap_or(80);
    let stream = TcpStream::connect((host.trim_matches(['[', ']']), port)).await.map_err(|error| error.to_string())?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    let driver = tokio::spawn(connection);
    let body = body.map_or_else(Bytes::new, |body| Bytes::from(body.to_string()));
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", format!("{host}:{port}"))
        .header("authorization", format!("Bearer {}", args.api_key))
        .header("content-type", "application/json")
        .body(Full::new(body))
        .map_err(|error| error.to_string())?;
    let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
    let status = response.status().as_u16();
    let bytes = response.into_body().collect().await.map_err(|error| error.to_string())?.to_bytes();
    driver.abort();
    let document = serde_json::from_slice(&bytes).map_err(|_| format!("status {status} without JSON"))?;
    Ok((status, document))
}
