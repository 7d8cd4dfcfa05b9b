//! The walk of `examples/README.md`, from a recording to a swap: its ten commands, as they stand there.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;

use tempfile::TempDir;

use super::harness::eventually;
use super::process::{Kept, output, text, usher};

/// The commands of a guide: the lines of its `sh` blocks, without the program's name.
fn commands(guide: &str) -> Vec<Vec<String>> {
    let mut inside = false;
    let mut found = Vec::new();
    for line in guide.lines() {
        match line {
            "```sh" => inside = true,
            "```" => inside = false,
            line if inside => found.push(words(line.strip_prefix("usher ").expect(line))),
            _ => {}
        }
    }
    found
}

/// The words of a command; quotes keep one together.
fn words(line: &str) -> Vec<String> {
    let parts = line.split('"').enumerate();
    parts
        .flat_map(|(at, part)| match at % 2 {
            0 => part.split_whitespace().map(String::from).collect::<Vec<_>>(),
            _ => vec![part.to_string()],
        })
        .collect()
}

fn copy_examples(to: &Path) {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    fs::create_dir(to.join("examples")).unwrap();
    for entry in fs::read_dir(examples).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            fs::copy(&path, to.join("examples").join(path.file_name().unwrap())).unwrap();
        }
    }
}

/// What a command has to say on its way.
const SAYS: [&str; 10] =
    ["", "decisions", "today", "agree", "demo-0", "usher.test", "passed", "tomorrow", "today", "tomorrow"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_ten_commands_of_the_guide_work_as_they_stand_there() {
    let folder = TempDir::new().unwrap();
    copy_examples(folder.path());
    let guide = fs::read_to_string(folder.path().join("examples/README.md")).unwrap();
    let commands = commands(&guide);
    assert_eq!(commands.len(), SAYS.len(), "{commands:?}");

    // The first goes on while the others run.
    let mut demo = usher(folder.path());
    demo.args(&commands[0]).args(["--port", "0", "--clients", "40", "--rooms", "12"]).stdout(Stdio::piped());
    let mut demo = Kept(demo.spawn().unwrap());
    let mut lines = BufReader::new(demo.0.stdout.take().unwrap()).lines().map_while(Result::ok);
    let address = lines.find_map(|line| Some(line.split("ws://").nth(1)?.split('/').next()?.to_string())).unwrap();
    // It must not wait for somebody to read what it says.
    let reader = std::thread::spawn(move || lines.count());
    let admin = format!("http://{address}");
    let steer = ["--admin", admin.as_str(), "--api-key", "demo"];
    eventually("every room of the demo has been placed", async || {
        let listed = output(usher(folder.path()).args(["room", "list"]).args(steer)).await;
        (text(&listed.stdout).matches("demo-").count() >= 12).then_some(())
    })
    .await;

    for (command, says) in commands.iter().zip(SAYS).skip(1) {
        let live = command.contains(&"--api-key".to_string());
        let run = output(usher(folder.path()).args(command).args(if live { &steer[..2] } else { &[] })).await;
        let (said, complaints) = (text(&run.stdout), text(&run.stderr));
        assert_eq!(run.status.code(), Some(0), "usher {}\n{said}\n{complaints}", command.join(" "));
        assert!(said.contains(says), "usher {}: no {says:?} in\n{said}", command.join(" "));
    }
    for page in ["replay.html", "simulation.html"] {
        assert!(fs::read_to_string(folder.path().join(page)).unwrap().contains("<html"), "{page}");
    }

    let pid = rustix::process::Pid::from_child(&demo.0);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert_eq!(demo.ended().await.code(), Some(0));
    reader.join().unwrap();
}
