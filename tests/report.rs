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

use std::time::Duration;

use serde_json::{Value, json};
use usher::lab::page::Page;
use usher::lab::page_html::render;

use browser::{Browser, keep};

/// For all that the browser does, its start included.
const DEADLINE: Duration = Duration::from_secs(110);

/// Every text that is seen, with its contrast against what it stands on, by the formula of WCAG 2.2 ("relative
/// luminance" and "contrast ratio"). Colours are drawn on one point to learn their parts, whatever their notation.
const CONTRAST: &str = r#"(() => {
  const context = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const known = new Map();
  const parts = (color) => {
    if (!known.has(color)) known.set(color, draw(color));
    return known.get(color);
  };
  const draw = (color) => {
    context.clearRect(0, 0, 1, 1);
    context.fillStyle = color;
    context.fillRect(0, 0, 1, 1);
    return [...context.getImageData(0, 0, 1, 1).data];
  };
  const luminance = (color) => {
    const [r, g, b] = color.map((part) => part / 255).map((p) => (p <= 0.04045 ? p / 12.92 : ((p + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const color = parts(getComputedStyle(at).backgroundColor);
      if (color[3] === 255) return color;
    }
    return [255, 255, 255, 255];
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = [];
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.checkVisibility() || element.closest(".unseen, .skip, script")) continue;
    const style = getComputedStyle(element);
    const [a, b] = [luminance(parts(style.color)), luminance(ground(element))];
    found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), `${element.tagName}.${element.className} ${walker.currentNode.data}`]);
  }
  found.sort((a, b) => a[0] - b[0]);
  return { texts: found.length, worst: found.slice(0, 5), ground: getComputedStyle(document.body).backgroundColor };
})()"#;

/// Tables that are wider than their place.
const CUT: &str = "[...document.querySelectorAll('.scroll')].filter((e) => e.scrollWidth > e.clientWidth + 1).map((e) => e.getAttribute('aria-label'))";

#[tokio::test]
#[ignore = "needs Chromium: .ci/run installs it and runs this"]
async fn the_page_is_shown_as_it_should_be() {
    let all = async {
        let mut browser = Browser::start().await;
        browser.size(1280, 900).await;
        let file = keep("report.html", render(&sample::page(2, 12, 240, 400)));
        browser.open(&file).await;
        plots(&mut browser).await;
        values_under_the_pointer(&mut browser).await;
        table(&mut browser).await;
        changes_choose_their_decisions(&mut browser).await;
        order_of_monoliths(&mut browser).await;
        hostile_names(&mut browser).await;
        light_and_dark(&mut browser).await;
        paper(&mut browser).await;
        narrow(&mut browser).await;
        quiet(&mut browser, "report.html");
        others(&mut browser).await;
        browser.end().await;
    };
    tokio::time::timeout(DEADLINE, all).await.expect("the browser takes too long");
}

/// Nothing was complained about, and nothing but the file itself was asked for.
fn quiet(browser: &mut Browser, file: &str) {
    assert!(browser.complaints.is_empty(), "{file}: {:#?}", browser.complaints);
    // The icon is an empty text inside of the page.
    let asked: Vec<_> = browser.requests.iter().filter(|url| *url != "data:,").collect();
    assert!(asked.len() == 1 && asked[0].starts_with("file://") && asked[0].ends_with(file), "{asked:?}");
}

async fn plots(browser: &mut Browser) {
    let found = browser
        .eval(
            r#"[...document.querySelectorAll(".plot")].map((plot) => {
              const box = plot.getBoundingClientRect();
              const lines = [...plot.querySelectorAll("path.line, use")].map((line) => {
                const path = line.tagName === "use" ? document.querySelector(line.getAttribute("href")) : line;
                return [path.getTotalLength(), line.getBoundingClientRect().width];
              });
              return { kind: plot.dataset.plot, x: box.x, y: box.y + scrollY, width: box.width, height: box.height, lines };
            })"#,
        )
        .await;
    let found = found.as_array().unwrap();
    let kinds: Vec<&str> = found.iter().map(|plot| plot["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds[..3], ["uneven", "load", "load"]);
    assert_eq!((kinds.len(), kinds.iter().filter(|kind| **kind == "cell").count()), (15, 12));
    for plot in found {
        assert!(plot["width"].as_f64() > Some(100.0) && plot["height"].as_f64() > Some(30.0), "{plot}");
        let lines = plot["lines"].as_array().unwrap();
        assert!(lines.len() >= 2, "{plot}");
        for line in lines {
            assert!(line[0].as_f64() > Some(100.0) && line[1].as_f64() > Some(20.0), "a line without points: {plot}");
        }
    }
    for plot in found.iter().step_by(5) {
        let part = json!({"x": plot["x"], "y": plot["y"], "width": plot["width"], "height": plot["height"]});
        let picture = browser.picture(Some(part)).await;
        // Ground, grid, and lines with their smoothed edges.
        assert!(png::colours(&picture) > 8, "nothing is drawn: {plot}");
    }
    let data = "(() => { const s = JSON.parse(document.getElementById('data').textContent).sides; return [s.length, s[0].monoliths[2].values.includes(null)]; })()";
    assert_eq!(browser.eval(data).await, json!([2, true]));
    // The Monolith that was away has a line of two pieces.
    let moves = browser.eval("document.getElementById('l0-2').getAttribute('d').split('M').length - 1").await;
    assert_eq!(moves, 2);
}

/// Scrolls an element into the middle of the window, and waits until the page has heard of it: its event, which hides
/// what stands under the pointer, comes with the next frame.
async fn into_view(browser: &mut Browser, selector: &str) {
    let scroll = format!(
        "new Promise((done) => {{ const frame = (then) => requestAnimationFrame(then); \
         document.querySelector('{selector}').scrollIntoView({{block: 'center'}}); \
         frame(() => frame(() => frame(() => done(true)))); }})"
    );
    assert_eq!(browser.eval(&scroll).await, true);
}

async fn values_under_the_pointer(browser: &mut Browser) {
    into_view(browser, "[data-plot=load]").await;
    let at = "(() => { const b = document.querySelector('[data-plot=load]').getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 3]; })()";
    let place = browser.eval(at).await;
    browser.point(place[0].as_f64().unwrap(), place[1].as_f64().unwrap()).await;
    let shown = "[document.getElementById('tip').hidden, document.getElementById('tip').innerText, document.querySelectorAll('.plot use.on').length, document.querySelectorAll('.spot').length, document.querySelectorAll('#cells li.on').length]";
    let tip = browser.eval(shown).await;
    assert_eq!((&tip[0], &tip[2], &tip[3], &tip[4]), (&json!(false), &json!(2), &json!(1), &json!(1)), "{tip}");
    let says = tip[1].as_str().unwrap();
    assert!(says.contains("recorded") && says.contains("spread.lua") && says.contains(" · "), "{says}");
    browser.point(2.0, 2.0).await;
    let gone = browser.eval(shown).await;
    assert_eq!((&gone[0], &gone[2], &gone[3], &gone[4]), (&json!(true), &json!(0), &json!(0), &json!(0)), "{gone}");
    // The same with keys alone.
    browser.eval("document.querySelector('[data-plot=load]').focus()").await;
    browser.key("ArrowDown").await;
    browser.key("ArrowLeft").await;
    let first = browser.eval(shown).await;
    browser.key("ArrowDown").await;
    let second = browser.eval(shown).await;
    assert_eq!((&first[0], &second[0]), (&json!(false), &json!(false)));
    assert_ne!(first[1], second[1], "the arrows choose another Monolith");
    browser.key("Escape").await;
    assert_eq!(browser.eval("document.getElementById('tip').hidden").await, true);
}

/// The fields of a column in the order in which they are seen.
fn column(at: usize) -> String {
    format!(
        "[...document.querySelectorAll('#rows tbody tr')].filter((r) => !r.hidden).map((r) => r.cells[{at}].textContent)"
    )
}

async fn strings(browser: &mut Browser, expression: &str) -> Vec<String> {
    serde_json::from_value(browser.eval(expression).await).unwrap()
}

async fn table(browser: &mut Browser) {
    let numbers = |texts: Vec<String>| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<u64>>();
    let before = numbers(strings(browser, &column(0)).await);
    assert_eq!(before.len(), 400);
    assert!(!before.is_sorted(), "the sample is not in order");
    let sort = "document.querySelectorAll('#rows th button')[0].click()";
    browser.eval(sort).await;
    let up = numbers(strings(browser, &column(0)).await);
    assert!(up.is_sorted() && up.len() == 400);
    assert_eq!(browser.eval("document.querySelector('#rows th').getAttribute('aria-sort')").await, "ascending");
    browser.eval(sort).await;
    let down = numbers(strings(browser, &column(0)).await);
    assert!(down.iter().rev().is_sorted() && down.len() == 400);
    // By a text with numbers in it, as people count.
    browser.eval("document.querySelectorAll('#rows th button')[6].click()").await;
    let to = strings(browser, &column(6)).await;
    let first = |name: &str| to.iter().position(|to| to == name).unwrap();
    assert!(first("m2") < first("m10"), "{to:?}");

    // Typed as a reader types, letter by letter.
    browser.eval("document.getElementById('find').focus()").await;
    browser.call("Input.insertText", json!({"text": "AMS room-7"})).await;
    let rooms = strings(browser, &column(3)).await;
    assert!(!rooms.is_empty() && rooms.len() < 100, "{rooms:?}");
    let regions = strings(browser, &column(4)).await;
    assert!(rooms.iter().all(|room| room.contains("room-7")) && regions.iter().all(|region| region == "ams"));
    let count = browser.eval("document.getElementById('count').textContent").await;
    assert_eq!(count, format!("{} of 400 decisions", rooms.len()));
    set(browser, "find", "value", json!("nothing is called so")).await;
    assert_eq!(browser.eval("[document.getElementById('none').hidden, document.querySelectorAll('#rows tbody tr:not([hidden])').length]").await, json!([false, 0]));
    set(browser, "find", "value", json!("")).await;
    set(browser, "hook", "value", json!("route")).await;
    let hooks = strings(browser, &column(2)).await;
    assert!(hooks.len() == 80 && hooks.iter().all(|hook| hook == "route"), "{}", hooks.len());
    set(browser, "hook", "value", json!("")).await;
    set(browser, "changed", "checked", json!(true)).await;
    let (from, to) = (strings(browser, &column(5)).await, strings(browser, &column(6)).await);
    assert!(from.len() > 100 && from.len() < 400 && from.iter().zip(&to).all(|(from, to)| from != to));
    set(browser, "changed", "checked", json!(false)).await;
    assert_eq!(strings(browser, &column(0)).await.len(), 400);
}

async fn set(browser: &mut Browser, id: &str, property: &str, value: Value) {
    let change = format!(
        "(() => {{ const e = document.getElementById('{id}'); e.{property} = {value}; \
         e.dispatchEvent(new Event('input', {{bubbles: true}})); }})()"
    );
    browser.eval(&change).await;
}

async fn changes_choose_their_decisions(browser: &mut Browser) {
    // A change that is among the decisions shown.
    let choose = "(() => { const seen = new Set([...document.querySelectorAll('#rows tbody tr')].map((r) => [2, 5, 6].map((at) => r.cells[at].textContent).join())); \
                  const cell = [...document.querySelectorAll('td[data-hook]')].find((c) => seen.has([c.dataset.hook, c.dataset.from, c.dataset.to].join())); \
                  cell.click(); return [cell.dataset.hook, cell.dataset.from, cell.dataset.to, Number(cell.textContent.replaceAll(',', ''))]; })()";
    let chosen = browser.eval(choose).await;
    assert!(chosen[3].as_u64() > Some(0));
    for (at, part) in [(2, 0), (5, 1), (6, 2)] {
        let shown = strings(browser, &column(at)).await;
        assert!(!shown.is_empty() && shown.iter().all(|text| chosen[part] == text.as_str()), "{chosen}: {shown:?}");
    }
    assert_eq!(browser.eval("document.getElementById('flow').hidden").await, false);
    browser.eval("document.getElementById('flow').click()").await;
    assert_eq!(strings(browser, &column(0)).await.len(), 400);
}

async fn order_of_monoliths(browser: &mut Browser) {
    let peaks = "[...document.querySelectorAll('#cells li')].map((cell) => Number(cell.dataset.peak))";
    let sorted = |peaks: Value| serde_json::from_value::<Vec<f64>>(peaks).unwrap().is_sorted_by(|a, b| a >= b);
    assert!(!sorted(browser.eval(peaks).await));
    browser
        .eval("(() => { const e = document.getElementById('order'); e.value = 'peak'; e.dispatchEvent(new Event('change')); })()")
        .await;
    assert!(sorted(browser.eval(peaks).await));
}

async fn hostile_names(browser: &mut Browser) {
    let rooms = strings(browser, &column(3)).await;
    // A line separator is no control character of HTML, and stays.
    assert!(rooms.iter().any(|room| room == sample::HOSTILE), "the name is shown as it is");
    let found =
        browser.eval("[document.querySelectorAll('img').length, typeof window.harmed, document.scripts.length]").await;
    assert_eq!(found, json!([0, "undefined", 2]));
}

async fn light_and_dark(browser: &mut Browser) {
    let mut grounds = Vec::new();
    for scheme in ["light", "dark"] {
        browser.media("screen", scheme).await;
        grounds.push(readable(browser, scheme).await);
        keep(&format!("report-{scheme}.png"), browser.picture(None).await);
    }
    assert_ne!(grounds[0], grounds[1]);
    // The reader's choice goes before the system's.
    browser.eval("document.getElementById('theme').click()").await;
    assert_eq!(readable(browser, "chosen").await, grounds[0]);
    browser.eval("document.getElementById('theme').click()").await;
    assert_eq!(readable(browser, "chosen back").await, grounds[1]);
}

/// What the page stands on; every text has the contrast that WCAG 2.2 asks for at level AA.
async fn readable(browser: &mut Browser, what: &str) -> Value {
    let found = browser.eval(CONTRAST).await;
    assert!(found["texts"].as_u64() > Some(500), "{what}: {found}");
    assert!(found["worst"][0][0].as_f64() >= Some(4.5), "{what}: {found}");
    found["ground"].clone()
}

async fn paper(browser: &mut Browser) {
    // On paper it is light, also for a reader who chose dark.
    browser.media("print", "dark").await;
    let shown = "[getComputedStyle(document.body).backgroundColor, [...document.querySelectorAll('.controls, #theme, #tip')].filter((e) => e.checkVisibility()).length, \
                 [...document.querySelectorAll('.scroll')].filter((e) => e.scrollHeight > e.clientHeight + 1).length, document.querySelectorAll('.plot').length]";
    assert_eq!(browser.eval(shown).await, json!(["rgb(255, 255, 255)", 0, 0, 15]));
    readable(browser, "paper").await;
    // Nothing is wider than a sheet of A4 without its margins (186 mm at 96 points an inch).
    browser.size(703, 1000).await;
    assert_eq!(browser.eval(CUT).await, json!([]));
    // The first sheets only: all of them are a very tall picture.
    let part = json!({"x": 0, "y": 0, "width": 703, "height": 2600});
    keep("report-print.png", browser.picture(Some(part)).await);
    let sheets = browser.print().await;
    assert!(sheets.starts_with(b"%PDF") && sheets.len() > 20_000);
    keep("report.pdf", sheets);
    browser.media("screen", "light").await;
}

async fn narrow(browser: &mut Browser) {
    browser.size(390, 800).await;
    assert_eq!(browser.eval("document.documentElement.scrollWidth <= innerWidth").await, true);
    keep("report-narrow.png", browser.picture(None).await);
    browser.size(1280, 900).await;
}

/// Reports of other shapes are quiet as well.
async fn others(browser: &mut Browser) {
    for (file, page, plots) in [
        ("report-100.html", sample::page(2, 100, 300, 50), 103),
        ("report-one.html", sample::page(1, 4, 120, 20), 6),
        ("report-four.html", sample::page(4, 6, 60, 20), 11),
        ("report-empty.html", Page::default(), 0),
    ] {
        let file = keep(file, render(&page));
        browser.open(&file).await;
        assert_eq!(browser.eval("document.querySelectorAll('.plot').length").await, plots, "{}", file.display());
        assert_eq!(browser.eval("document.documentElement.scrollWidth <= innerWidth").await, true);
        assert_eq!(browser.eval("document.documentElement.classList.contains('ready')").await, true);
        if plots > 0 {
            into_view(browser, ".plot").await;
            browser.point(640.0, 450.0).await;
        }
        browser.media("print", "light").await;
        browser.size(703, 1000).await;
        assert_eq!(browser.eval(CUT).await, json!([]), "{}", file.display());
        browser.media("screen", "light").await;
        browser.size(1280, 900).await;
        quiet(browser, &file.file_name().unwrap().to_string_lossy());
    }
}
