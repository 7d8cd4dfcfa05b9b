//! A browser without a window, steered over its DevTools protocol, and what it says and asks for meanwhile.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

/// How long the browser has for any one thing. Long, because its first start on a busy machine is slow.
const PATIENCE: Duration = Duration::from_secs(40);

/// The browser's first process: the others end with it.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The browser, which ends with this, and its one page.
pub(crate) struct Browser {
    _process: Process,
    socket: WebSocketStream<TcpStream>,
    session: Option<String>,
    calls: u64,
    /// Everything that went wrong on the page: console messages of warning and error, exceptions, refused content.
    pub(crate) complaints: Vec<String>,
    /// Every address that the page asked for.
    pub(crate) requests: Vec<String>,
    loaded: bool,
    // Deleted last, when the browser writes no more.
    _profile: TempDir,
}

impl Browser {
    /// Starts the browser of `CHROMIUM`, or one that is found in the path.
    pub(crate) async fn start() -> Self {
        let profile = tempfile::tempdir().unwrap();
        let mut process = Command::new(program())
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"])
            .args(["--disable-extensions", "--disable-background-networking", "--disable-component-update"])
            .args(["--hide-scrollbars", "--force-color-profile=srgb", "--remote-debugging-port=0"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("about:blank")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (tell, address) = oneshot::channel();
        let stderr = BufReader::new(process.stderr.take().unwrap());
        // Reads on after the address, because a full pipe would stop the browser; ends with it.
        thread::spawn(move || {
            let mut tell = Some(tell);
            for line in stderr.lines().map_while(Result::ok) {
                if let Some(address) = line.strip_prefix("DevTools listening on ") {
                    let _ = tell.take().map(|tell| tell.send(address.trim().to_owned()));
                }
            }
        });
        // From here on it ends with the guard, whatever happens.
        let process = Process(process);
        let address = timeout(PATIENCE, address).await.expect("the browser does not listen");
        let address = address.expect("the browser ended before it listened");
        let host = address.strip_prefix("ws://").and_then(|rest| rest.split('/').next()).unwrap().to_owned();
        let stream = TcpStream::connect(&host).await.unwrap();
        let (socket, _) = tokio_tungstenite::client_async(&address, stream).await.unwrap();
        let (complaints, requests) = (Vec::new(), Vec::new());
        let mut browser = Self {
            _process: process,
            socket,
            session: None,
            calls: 0,
            complaints,
            requests,
            loaded: false,
            _profile: profile,
        };
        let target = browser.call("Target.createTarget", json!({"url": "about:blank"})).await;
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        let session = browser.call("Target.attachToTarget", attach).await;
        browser.session = session["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Log", "Network"] {
            browser.call(&format!("{domain}.enable"), json!({})).await;
        }
        browser
    }

    /// Opens a file, and waits until all of it is there.
    pub(crate) async fn open(&mut self, file: &Path) {
        self.complaints.clear();
        self.requests.clear();
        self.loaded = false;
        self.call("Page.navigate", json!({"url": format!("file://{}", file.display())})).await;
        let wait = async {
            while !self.loaded {
                self.receive().await;
            }
        };
        timeout(PATIENCE, wait).await.expect("the page does not load");
    }

    /// Shows the page as if on such media.
    pub(crate) async fn media(&mut self, media: &str, scheme: &str) {
        let features = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        self.call("Emulation.setEmulatedMedia", json!({"media": media, "features": features})).await;
    }

    /// Makes the window so large.
    pub(crate) async fn size(&mut self, width: u32, height: u32) {
        let metrics = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        self.call("Emulation.setDeviceMetricsOverride", metrics).await;
    }

    /// The value of an expression on the page.
    pub(crate) async fn eval(&mut self, expression: &str) -> Value {
        let evaluate = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let answer = self.call("Runtime.evaluate", evaluate).await;
        assert!(answer.get("exceptionDetails").is_none(), "{expression}: {answer}");
        answer["result"]["value"].clone()
    }

    /// A key that is pressed and let go.
    pub(crate) async fn key(&mut self, key: &str) {
        for kind in ["keyDown", "keyUp"] {
            self.call("Input.dispatchKeyEvent", json!({"type": kind, "key": key, "code": key})).await;
        }
    }

    /// Moves the pointer to a place of the window.
    pub(crate) async fn point(&mut self, x: f64, y: f64) {
        self.call("Input.dispatchMouseEvent", json!({"type": "mouseMoved", "x": x, "y": y})).await;
    }

    /// A picture of a part of the page, as PNG: `x`, `y`, `width` and `height`; of the whole page without.
    pub(crate) async fn picture(&mut self, part: Option<Value>) -> Vec<u8> {
        let mut how = json!({"format": "png", "captureBeyondViewport": true});
        if let Some(mut part) = part {
            part["scale"] = json!(1);
            how["clip"] = part;
        }
        let answer = self.call("Page.captureScreenshot", how).await;
        from_base64(answer["data"].as_str().unwrap())
    }

    /// The page as it would be printed.
    pub(crate) async fn print(&mut self) -> Vec<u8> {
        let answer = self.call("Page.printToPDF", json!({"preferCSSPageSize": true})).await;
        from_base64(answer["data"].as_str().unwrap())
    }

    /// Asks the browser to end; one that does not is killed.
    pub(crate) async fn end(mut self) {
        self.session = None;
        let close = json!({"id": 0, "method": "Browser.close"});
        let _ = self.socket.send(Message::text(close.to_string())).await;
        // It closes the socket last; what then still stands is killed with the guard.
        let _ = timeout(Duration::from_secs(10), async { while let Some(Ok(_)) = self.socket.next().await {} }).await;
    }

    /// Calls a method of the protocol, on the page once there is one.
    pub(crate) async fn call(&mut self, method: &str, parameters: Value) -> Value {
        self.calls += 1;
        let id = self.calls;
        let mut call = json!({"id": id, "method": method, "params": parameters});
        if let Some(session) = &self.session {
            call["sessionId"] = json!(session);
        }
        self.socket.send(Message::text(call.to_string())).await.unwrap();
        let answer = async {
            loop {
                if let Some(answer) = self.receive().await.filter(|answer| answer["id"] == id) {
                    break answer;
                }
            }
        };
        let answer = timeout(PATIENCE, answer).await.unwrap_or_else(|_| panic!("no answer to {method}"));
        assert!(answer.get("error").is_none(), "{method}: {answer}");
        answer["result"].clone()
    }

    /// Takes one message in; an answer is handed back, an event is noted.
    async fn receive(&mut self) -> Option<Value> {
        let message = self.socket.next().await.expect("the browser hung up").unwrap();
        let Message::Text(text) = message else { return None };
        let message: Value = serde_json::from_str(&text).unwrap();
        let parameters = &message["params"];
        match message["method"].as_str() {
            None => return Some(message),
            Some("Page.loadEventFired") => self.loaded = true,
            Some("Runtime.exceptionThrown") => self.complaints.push(parameters["exceptionDetails"].to_string()),
            Some("Runtime.consoleAPICalled") => self.complaints.push(parameters["args"].to_string()),
            Some("Log.entryAdded") => self.complaints.push(parameters["entry"].to_string()),
            Some("Network.requestWillBeSent") => {
                self.requests.extend(parameters["request"]["url"].as_str().map(str::to_owned));
            }
            Some(_) => {}
        }
        None
    }
}

fn program() -> PathBuf {
    if let Some(program) = env::var_os("CHROMIUM") {
        return program.into();
    }
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let folders: Vec<PathBuf> = env::split_paths(&env::var_os("PATH").unwrap_or_default()).collect();
    let found =
        names.iter().flat_map(|name| folders.iter().map(move |folder| folder.join(name))).find(|path| path.is_file());
    found.expect("no chromium, chromium-browser or google-chrome in PATH; install one, or name it in CHROMIUM")
}

fn from_base64(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut many) = (0u32, 0);
    for letter in text.bytes().take_while(|letter| *letter != b'=') {
        let value = match letter {
            b'A'..=b'Z' => letter - b'A',
            b'a'..=b'z' => letter - b'a' + 26,
            b'0'..=b'9' => letter - b'0' + 52,
            b'+' => 62,
            _ => 63,
        };
        bits = bits << 6 | u32::from(value);
        many += 6;
        if many >= 8 {
            many -= 8;
            bytes.push((bits >> many) as u8);
        }
    }
    bytes
}

/// Writes a file where the build keeps what its tests leave behind.
pub(crate) fn keep(name: &str, content: impl AsRef<[u8]>) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::write(&path, content).unwrap();
    path
}
