//! Load over time: how uneven it is, every Monolith of each policy, and each Monolith by itself.
//!
//! A line is written once, in coordinates from 0 to 1000, and used in all plots that show it. Plots are stretched to
//! their place, so marks and numbers are not part of the drawing.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use serde_json::{Value, json};

use super::{Text, accent, name, section};
use crate::lab::page::{LoadOverTime, Page};
use crate::lab::page_figures::{mean, natural, number, peak, present, unevenness};

/// Width and height of a drawing in its own coordinates.
const SIDE: f64 = 1000.0;

/// From this many Monoliths on, one by itself gets less room.
const MANY: usize = 24;

/// What the values of a plot lie between.
#[derive(Clone, Copy)]
struct Scale {
    low: f64,
    high: f64,
    step: f64,
}

impl Scale {
    /// Round numbers around the values, in four steps or less.
    fn around(low: f64, high: f64) -> Self {
        let span = if high > low { high - low } else { 1.0 };
        let power = 10f64.powf((span / 4.0).log10().floor());
        let step = [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().map(|of| of * power).find(|step| step * 4.0 >= span);
        let step = step.unwrap_or(power * 10.0);
        Self { low, high: low + (span / step).ceil() * step, step }
    }

    /// Where a value lies, from 0 at the top to 1 at the bottom.
    fn down(self, value: f64) -> f64 {
        1.0 - ((value - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
    }

    fn ticks(self) -> impl Iterator<Item = f64> {
        let many = ((self.high - self.low) / self.step).round() as u32;
        (0..=many).map(move |tick| self.low + f64::from(tick) * self.step)
    }
}

/// The policies whose load is known.
pub(super) struct Load<'a> {
    page: &'a Page,
    sides: Vec<(usize, &'a LoadOverTime)>,
    from: f64,
    to: f64,
    scale: Scale,
    uneven: Scale,
}

impl<'a> Load<'a> {
    pub(super) fn of(page: &'a Page) -> Self {
        let known = page.sides.iter().enumerate().filter_map(|(at, side)| Some((at, side.load.as_ref()?)));
        let sides: Vec<_> = known.filter(|(_, load)| !load.at_s.is_empty() && !load.monoliths.is_empty()).collect();
        let moments = || sides.iter().flat_map(|(_, load)| &load.at_s).copied().filter(|at| at.is_finite());
        let from = moments().reduce(f64::min).unwrap_or(0.0);
        let to = moments().reduce(f64::max).unwrap_or(0.0);
        let values = sides.iter().flat_map(|(_, load)| &load.monoliths).filter_map(|monolith| peak(&monolith.values));
        let scale = Scale::around(0.0, values.fold(0.0, f64::max));
        let ratios = sides.iter().filter_map(|(_, load)| peak(&unevenness(load)));
        let uneven = Scale::around(1.0, ratios.fold(1.5, f64::max));
        Self { page, sides, from, to, scale, uneven }
    }

    pub(super) fn write(&self, text: &mut String) {
        let Some((_, first)) = self.sides.first() else { return };
        section(
            text,
            "load",
            "Load over time",
            format!(
                "How many {} each Monolith has. Point at a plot, or focus it and use the arrow keys, for values.",
                first.unit
            ),
        );
        self.lines(text);
        if first.monoliths.len() > 1 {
            self.unevenness(text);
        }
        text.push_str("<div class=\"panels\">\n");
        for (place, (at, load)) in self.sides.iter().enumerate() {
            self.panel(text, place, *at, load);
        }
        text.push_str("</div>\n");
        self.each(text);
        text.push_str("</section>\n");
    }

    /// What the script needs in order to tell values.
    pub(super) fn data(&self) -> Value {
        let round = |value: &Option<f64>| match value {
            Some(value) if value.is_finite() && value.fract() == 0.0 => json!(*value as i64),
            Some(value) if value.is_finite() => json!((value * 1000.0).round() / 1000.0),
            _ => Value::Null,
        };
        let sides = self.sides.iter().map(|(at, load)| {
            json!({
                "policy": name(self.page, *at),
                "accent": accent(*at),
                "at": load.at_s.iter().map(|at| round(&Some(*at))).collect::<Vec<_>>(),
                "uneven": unevenness(load).iter().map(round).collect::<Vec<_>>(),
                "monoliths": load.monoliths.iter().map(|monolith| json!({
                    "id": monolith.id,
                    "region": monolith.region,
                    "values": monolith.values.iter().map(round).collect::<Vec<_>>(),
                })).collect::<Vec<_>>(),
            })
        });
        json!({
            "from": self.from,
            "to": self.to,
            "unit": self.sides.first().map(|(_, load)| load.unit.as_str()),
            "load": [self.scale.low, self.scale.high],
            "uneven": [self.uneven.low, self.uneven.high],
            "sides": sides.collect::<Vec<_>>(),
        })
    }

    fn x(&self, at: f64) -> f64 {
        if self.to > self.from && at.is_finite() { (at - self.from) / (self.to - self.from) * SIDE } else { 0.0 }
    }

    /// A line with a gap wherever there is no value.
    fn path(&self, at_s: &[f64], values: &[Option<f64>], scale: Scale) -> String {
        let mut text = String::new();
        let mut last: Option<(i64, i64)> = None;
        let mut alone = false;
        for (at, value) in at_s.iter().zip(values) {
            let Some(value) = value.filter(|value| value.is_finite()) else {
                dot(&mut text, alone);
                (last, alone) = (None, false);
                continue;
            };
            let (x, y) = (self.x(*at).round() as i64, (scale.down(value) * SIDE).round() as i64);
            // Steps instead of places: a third of the length, and there can be a hundred lines of hundreds of moments.
            let _ = match last {
                None => write!(text, "M{x} {y}"),
                Some((before, above)) if y < above => write!(text, "l{}{}", x - before, y - above),
                Some((before, above)) => write!(text, "l{} {}", x - before, y - above),
            };
            alone = last.is_none();
            last = Some((x, y));
        }
        dot(&mut text, alone);
        text
    }

    /// What lies between the emptiest and the fullest Monolith.
    fn band(&self, load: &LoadOverTime) -> String {
        let mut text = String::new();
        let mut open: Vec<(f64, f64, f64)> = Vec::new();
        let close = |open: &mut Vec<(f64, f64, f64)>, text: &mut String| {
            let place = |x: f64, value: f64| format!("{:.0} {:.0}", x, self.scale.down(value) * SIDE);
            let above = open.iter().map(|(x, _, high)| place(*x, *high));
            let below = open.iter().rev().map(|(x, low, _)| place(*x, *low));
            let all: Vec<String> = above.chain(below).collect();
            if !all.is_empty() {
                let _ = write!(text, "M{}Z", all.join("L"));
            }
            open.clear();
        };
        for (moment, at) in load.at_s.iter().enumerate() {
            let all = present(load, moment);
            match (all.iter().copied().reduce(f64::min), all.iter().copied().reduce(f64::max)) {
                (Some(low), Some(high)) => open.push((self.x(*at), low, high)),
                _ => close(&mut open, &mut text),
            }
        }
        close(&mut open, &mut text);
        text
    }

    fn lines(&self, text: &mut String) {
        text.push_str("<svg class=\"defs\" width=\"0\" height=\"0\" aria-hidden=\"true\"><defs>\n");
        for (place, (_, load)) in self.sides.iter().enumerate() {
            for (which, monolith) in load.monoliths.iter().enumerate() {
                let path = self.path(&load.at_s, &monolith.values, self.scale);
                let _ =
                    writeln!(text, "<path id=\"l{place}-{which}\" vector-effect=\"non-scaling-stroke\" d=\"{path}\"/>");
            }
        }
        text.push_str("</defs></svg>\n");
    }

    fn unevenness(&self, text: &mut String) {
        let mut drawn = String::new();
        let mut says = String::from("Fullest Monolith over the mean, over time.");
        for (at, load) in &self.sides {
            let values = unevenness(load);
            let path = self.path(&load.at_s, &values, self.uneven);
            let _ = writeln!(
                drawn,
                "<g class=\"{}\"><path class=\"line\" vector-effect=\"non-scaling-stroke\" d=\"{path}\"/></g>",
                accent(*at)
            );
            if let Some(peak) = peak(&values) {
                let _ = write!(says, " {}: at most {}.", name(self.page, *at), number(peak));
            }
        }
        text.push_str("<figure class=\"card wide\">\n<figcaption><b>Fullest over mean</b> <span>1 is even</span>");
        for (at, _) in &self.sides {
            let _ = write!(text, " <span class=\"who {}\">{}</span>", accent(*at), Text(name(self.page, *at)));
        }
        text.push_str("</figcaption>\n");
        self.plot(text, "uneven", 0, self.uneven, &says, &drawn);
        text.push_str("</figure>\n");
    }

    fn panel(&self, text: &mut String, place: usize, at: usize, load: &LoadOverTime) {
        let means: Vec<Option<f64>> = (0..load.at_s.len()).map(|moment| mean(&present(load, moment))).collect();
        let many = load.monoliths.len();
        let mut drawn = String::new();
        if many > 1 {
            let _ = writeln!(drawn, "<path class=\"band\" d=\"{}\"/>", self.band(load));
        }
        let crowd = if many > 12 { "lines many" } else { "lines" };
        let _ = writeln!(drawn, "<g class=\"{crowd}\">");
        for which in 0..many {
            let _ = write!(drawn, "<use href=\"#l{place}-{which}\"/>");
        }
        drawn.push_str("</g>\n");
        if many > 1 {
            let path = self.path(&load.at_s, &means, self.scale);
            let _ = writeln!(drawn, "<path class=\"mean\" vector-effect=\"non-scaling-stroke\" d=\"{path}\"/>");
        }
        let highest = load.monoliths.iter().filter_map(|monolith| peak(&monolith.values)).fold(0.0, f64::max);
        let says = format!(
            "{}: {} on each of {many} Monoliths over time, at most {}.",
            name(self.page, at),
            load.unit,
            number(highest)
        );
        let _ = writeln!(
            text,
            "<figure class=\"card {}\">\n<figcaption><b class=\"who\">{}</b> <span>{} of {many} Monolith{}{}</span>\
             </figcaption>",
            accent(at),
            Text(name(self.page, at)),
            Text(&load.unit),
            if many == 1 { "" } else { "s" },
            if many > 1 { ", mean dashed" } else { "" },
        );
        self.plot(text, "load", place, self.scale, &says, &drawn);
        text.push_str("</figure>\n");
    }

    /// A drawing with its axes.
    fn plot(&self, text: &mut String, kind: &str, place: usize, scale: Scale, says: &str, drawn: &str) {
        let _ = writeln!(
            text,
            "<div class=\"plot\" data-plot=\"{kind}\" data-side=\"{place}\" tabindex=\"0\" role=\"img\" \
             aria-label=\"{}\">",
            Text(says)
        );
        text.push_str("<svg viewBox=\"0 0 1000 1000\" preserveAspectRatio=\"none\" aria-hidden=\"true\">\n");
        let grid: String = scale.ticks().map(|tick| format!("M0 {:.0}h1000", scale.down(tick) * SIDE)).collect();
        let _ = writeln!(text, "<path class=\"grid\" vector-effect=\"non-scaling-stroke\" d=\"{grid}\"/>");
        text.push_str(drawn);
        text.push_str("</svg>\n<div class=\"ys\" aria-hidden=\"true\">");
        for tick in scale.ticks() {
            let _ = write!(text, "<span style=\"top:{:.1}%\">{}</span>", scale.down(tick) * 100.0, number(tick));
        }
        text.push_str("</div>\n<div class=\"xs\" aria-hidden=\"true\">");
        for (tick, says) in time_ticks(self.from, self.to) {
            let _ = write!(text, "<span style=\"left:{:.1}%\">{says}</span>", self.x(tick) / SIDE * 100.0);
        }
        text.push_str("</div>\n</div>\n");
    }

    /// One small plot for each Monolith, with the line of every policy.
    fn each(&self, text: &mut String) {
        let mut where_is: BTreeMap<&str, Vec<(usize, usize)>> = BTreeMap::new();
        for (place, (_, load)) in self.sides.iter().enumerate() {
            for (which, monolith) in load.monoliths.iter().enumerate() {
                where_is.entry(&monolith.id).or_default().push((place, which));
            }
        }
        let mut ids: Vec<&str> = where_is.keys().copied().collect();
        ids.sort_by(|a, b| natural(a, b));
        let regions: BTreeSet<&str> =
            self.sides.iter().flat_map(|(_, load)| &load.monoliths).map(|monolith| monolith.region.as_str()).collect();
        let _ = writeln!(
            text,
            "<div class=\"bar\"><h3>Each Monolith</h3><span class=\"controls\" hidden><label>Order <select id=\"order\"\
             ><option value=\"name\">by name</option>{}<option value=\"peak\">highest peak first</option>{}\
             </select></label></span></div>",
            if regions.len() > 1 { "<option value=\"region\">by region</option>" } else { "" },
            if self.sides.len() > 1 { "<option value=\"change\">largest change first</option>" } else { "" },
        );
        let class = if ids.len() > MANY { "cells many" } else { "cells" };
        let _ = writeln!(text, "<ul class=\"{class}\" id=\"cells\">");
        for (index, id) in ids.iter().enumerate() {
            let lines = &where_is[id];
            self.cell(text, index, id, lines);
        }
        text.push_str("</ul>\n");
    }

    fn cell(&self, text: &mut String, index: usize, id: &str, lines: &[(usize, usize)]) {
        let peaks: Vec<Option<f64>> = lines.iter().map(|(at, which)| self.peak(*at, *which)).collect();
        let highest = peaks.iter().flatten().copied().fold(0.0, f64::max);
        let change = match (peaks.first(), peaks.last()) {
            (Some(Some(first)), Some(Some(last))) => (last - first).abs(),
            _ => highest,
        };
        let region = lines.first().map_or("", |(at, which)| &self.sides[*at].1.monoliths[*which].region);
        let _ = write!(
            text,
            "<li data-id=\"{0}\" data-name=\"{index}\" data-peak=\"{highest}\" data-change=\"{change}\" \
             data-region=\"{1}\"><p><b title=\"{0}\">{0}</b> <span>{1}</span><i title=\"highest\">",
            Text(id),
            Text(region),
        );
        for ((at, _), peak) in lines.iter().zip(&peaks) {
            let shown = peak.map_or("–".into(), number);
            let _ = write!(text, "<em class=\"{}\">{shown}</em>", accent(self.sides[*at].0));
        }
        text.push_str("</i></p><div class=\"plot small\" data-plot=\"cell\"><svg viewBox=\"0 0 1000 1000\" ");
        text.push_str("preserveAspectRatio=\"none\" aria-hidden=\"true\">");
        for (at, which) in lines {
            let accent = accent(self.sides[*at].0);
            let _ = write!(text, "<g class=\"{accent}\"><use class=\"line\" href=\"#l{at}-{which}\"/></g>");
        }
        text.push_str("</svg></div></li>\n");
    }

    fn peak(&self, place: usize, which: usize) -> Option<f64> {
        peak(&self.sides[place].1.monoliths[which].values)
    }
}

/// A moment between two gaps has no length of its own: it is drawn as a dot, by the round ends of a line.
fn dot(text: &mut String, alone: bool) {
    if alone {
        text.push_str("h0");
    }
}

/// At most seven moments at round numbers, with what is written there.
fn time_ticks(from: f64, to: f64) -> Vec<(f64, String)> {
    const STEPS: [f64; 22] = [
        0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 900.0, 1800.0, 3600.0, 7200.0,
        10_800.0, 21_600.0, 43_200.0, 86_400.0, 604_800.0,
    ];
    let span = to - from;
    if span <= 0.0 {
        return vec![(from, crate::lab::page_figures::span(from))];
    }
    let step = STEPS.into_iter().find(|step| span / step <= 6.0).unwrap_or(span / 6.0);
    let first = (from / step).ceil();
    let ticks = (0..7).map(|tick| (first + f64::from(tick)) * step).take_while(|tick| *tick <= to + step * 1e-6);
    ticks.map(|tick| (tick, moment(tick, step))).collect()
}

/// A moment on an axis with such steps: `90 s`, `12 min`, `6 h`, `6:30 h`.
fn moment(at: f64, step: f64) -> String {
    let minutes = (at / 60.0).round() as i64;
    match (at, step) {
        (0.0, _) => "0".into(),
        (at, step) if step < 60.0 => format!("{} s", number(at)),
        (_, step) if step < 1800.0 && minutes < 600 => format!("{minutes} min"),
        _ if minutes % 60 == 0 => format!("{} h", minutes / 60),
        _ => format!("{}:{:02} h", minutes / 60, minutes % 60),
    }
}
