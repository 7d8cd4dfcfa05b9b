//! Prometheus text exposition, format 0.0.4: a writer, no registry. Whoever has numbers writes them when asked.

use std::fmt::{Display, Write as _};

/// A text that grows by one family of metrics after the other.
#[derive(Debug, Default)]
pub struct MetricsText {
    text: String,
}

impl MetricsText {
    /// A number that only rises.
    pub fn counter(&mut self, name: &str, help: &str, value: impl Display) {
        self.family(name, help, "counter", &[(&[], value)]);
    }

    /// Numbers that only rise, each with its name and its help.
    pub fn counters(&mut self, counters: &[(&str, &str, u64)]) {
        for (name, help, value) in counters {
            self.counter(name, help, *value);
        }
    }

    /// A number that rises and falls.
    pub fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.family(name, help, "gauge", &[(&[], value)]);
    }

    /// Numbers of one meaning that labels tell apart. `kind` is `counter` or `gauge`.
    pub fn family<V: Display>(&mut self, name: &str, help: &str, kind: &str, samples: &[(&[(&str, &str)], V)]) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value) in samples {
            self.text.push_str(name);
            for (at, (label, text)) in labels.iter().enumerate() {
                let open = if at == 0 { '{' } else { ',' };
                let escaped = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
                let _ = write!(self.text, "{open}{label}=\"{escaped}\"");
            }
            let close = if labels.is_empty() { "" } else { "}" };
            let _ = writeln!(self.text, "{close} {value}");
        }
    }

    /// Everything that was written.
    pub fn finish(self) -> String {
        self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_have_help_type_and_escaped_labels() {
        let mut text = MetricsText::default();
        text.gauge("a", "What a is.", 1.5);
        text.family("b", "What b is.", "counter", &[(&[("x", "say \"hi\""), ("y", "z")], 2)]);
        let expected = "# HELP a What a is.\n# TYPE a gauge\na 1.5\n# HELP b What b is.\n# TYPE b counter\n\
                        b{x=\"say \\\"hi\\\"\",y=\"z\"} 2\n";
        assert_eq!(text.finish(), expected);
    }
}
