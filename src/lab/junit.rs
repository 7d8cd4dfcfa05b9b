//! A report as JUnit XML, which most build servers read.

use std::fmt::Write;

use super::report::{Report, Status, TestResult};

impl Report {
    /// One `testsuite` a file; `failure` for checks that did not hold, `error` for tests that could not run.
    pub fn junit(&self) -> String {
        let mut xml = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
        let seconds = |tests: &[TestResult]| tests.iter().map(|test| test.time.as_secs_f64()).sum::<f64>();
        let _ = writeln!(
            xml,
            "<testsuites tests=\"{}\" failures=\"{}\" errors=\"{}\" time=\"{:.3}\">",
            self.tests.len(),
            self.failed,
            self.errors,
            seconds(&self.tests),
        );
        for tests in self.tests.chunk_by(|a, b| a.file == b.file) {
            let count = |status| tests.iter().filter(|test| test.status == status).count();
            let _ = writeln!(
                xml,
                "  <testsuite name=\"{}\" tests=\"{}\" failures=\"{}\" errors=\"{}\" skipped=\"0\" time=\"{:.3}\">",
                escaped(&tests[0].file),
                tests.len(),
                count(Status::Fail),
                count(Status::Error),
                seconds(tests),
            );
            tests.iter().for_each(|test| case(&mut xml, test));
            xml.push_str("  </testsuite>\n");
        }
        xml.push_str("</testsuites>\n");
        xml
    }
}

fn case(xml: &mut String, test: &TestResult) {
    let name = if test.name.is_empty() { "(the file itself)" } else { &test.name };
    let (file, name) = (escaped(&test.file), escaped(name));
    let _ = write!(
        xml,
        "    <testcase classname=\"{file}\" name=\"{name}\" file=\"{file}\" time=\"{:.3}\"",
        test.time.as_secs_f64()
    );
    if test.status == Status::Pass && test.hidden_state.is_none() {
        xml.push_str("/>\n");
        return;
    }
    xml.push_str(">\n");
    let element = match test.status {
        Status::Pass => None,
        Status::Fail => Some("failure"),
        Status::Error => Some("error"),
    };
    if let Some(element) = element {
        let message = test.message.as_deref().unwrap_or_default();
        let at = test.line.map(|line| format!("{}:{line}\n", test.file)).unwrap_or_default();
        let call = test.call.as_ref().map(|call| format!("\ncall: {call}")).unwrap_or_default();
        let answer = test.answer.as_ref().map(|answer| format!("\nanswer: {answer}")).unwrap_or_default();
        let first = message.lines().next().unwrap_or_default();
        let whole = escaped(&format!("{at}{message}{call}{answer}"));
        let _ = writeln!(xml, "      <{element} message=\"{}\">{whole}</{element}>", escaped(first));
    }
    if let Some(hidden) = &test.hidden_state {
        let _ = writeln!(xml, "      <system-out>hidden state: {}</system-out>", escaped(hidden));
    }
    xml.push_str("    </testcase>\n");
}

/// Text for an element or an attribute. What XML 1.0 cannot hold in any spelling becomes a question mark.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&apos;"),
            '\n' => out.push_str("&#10;"),
            '\t' => out.push_str("&#9;"),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => out.push('?'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_escaped_and_told_apart() {
        let mut report = Report::default();
        let named = |name, status| TestResult::new("a_test.lua", name, status);
        report.add(named("good", Status::Pass));
        let message = Some("expected \"<a>\"\n     got 'b' & \u{1}".into());
        report.add(TestResult { message, line: Some(3), ..named("<&\">", Status::Fail) });
        report.add(TestResult { hidden_state: Some("x < y".into()), ..named("", Status::Error) });
        let xml = report.junit();
        for part in [
            "<testsuites tests=\"3\" failures=\"1\" errors=\"1\" time=\"0.000\">",
            "<testcase classname=\"a_test.lua\" name=\"good\" file=\"a_test.lua\" time=\"0.000\"/>",
            "name=\"&lt;&amp;&quot;&gt;\"",
            "<failure message=\"expected &quot;&lt;a&gt;&quot;\">a_test.lua:3&#10;expected &quot;&lt;a&gt;&quot;&#10;     got &apos;b&apos; &amp; ?</failure>",
            "name=\"(the file itself)\"",
            "<system-out>hidden state: x &lt; y</system-out>",
        ] {
            assert!(xml.contains(part), "{part}\n{xml}");
        }
        assert!(xml.ends_with("</testsuite>\n</testsuites>\n") && !xml.contains('\u{1}'));
    }
}
