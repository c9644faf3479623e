//! A report as one HTML file: the text, and plots of each second as SVG. No script, nothing from elsewhere.

use super::report::Sample;
use std::fmt::Write;

const WIDTH: f64 = 820.0;
const HEIGHT: f64 = 180.0;
/// Room for the numbers beside and below a plot.
const LEFT: f64 = 64.0;
const BELOW: f64 = 22.0;
const COLOURS: [&str; 2] = ["#1f6feb", "#d1541f"];

const STYLE: &str = "\
:root{color-scheme:light dark;--line:#8884}body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}\
h1{font-size:1.3rem}h2{font-size:1rem;margin:1.5rem 0 .3rem}pre{white-space:pre-wrap;background:#8881;padding:1rem;border-radius:8px}\
svg{width:100%;height:auto}svg text{font:11px system-ui,sans-serif;fill:currentColor}.key{margin-left:1rem;font-weight:normal}";

/// One plot: its title, and named lines over time.
struct Plot<'a> {
    title: &'a str,
    lines: Vec<(&'a str, Vec<Option<f64>>)>,
}

pub fn write(title: &str, text: &str, samples: &[Sample]) -> String {
    let of = |figure: &dyn Fn(&Sample) -> Option<f64>| samples.iter().map(figure).collect::<Vec<_>>();
    let plots = [
        Plot { title: "Packets received per second", lines: vec![("", of(&|s| Some(s.received_per_s)))] },
        Plot { title: "Mbit/s received", lines: vec![("", of(&|s| Some(s.bits_per_s / 1e6)))] },
        Plot { title: "One way, ms", lines: vec![("p50", of(&|s| s.p50_ms)), ("p99", of(&|s| s.p99_ms))] },
        Plot { title: "Cores in use", lines: vec![("server", of(&|s| s.server_cpu)), ("this tool", of(&|s| Some(s.own_cpu)))] },
        Plot { title: "Participants", lines: vec![("", of(&|s| Some(s.participants as f64)))] },
        Plot { title: "Packets lost since the beginning", lines: vec![("", of(&|s| Some(s.lost as f64)))] },
        Plot { title: "Memory of the server, MiB", lines: vec![("", of(&|s| s.server_memory.map(|b| b as f64 / 1_048_576.0)))] },
    ];
    let title = escaped(title);
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>{title}</title><style>{STYLE}</style>\n<h1>{title}</h1>\n<pre>{}</pre>\n",
        escaped(text)
    );
    let times: Vec<f64> = samples.iter().map(|s| s.at_s).collect();
    for plot in plots.iter().filter(|p| p.lines.iter().any(|(_, values)| values.iter().any(Option::is_some))) {
        plot.draw(&times, &mut page);
    }
    page.push_str("</html>\n");
    page
}

impl Plot<'_> {
    fn draw(&self, times: &[f64], page: &mut String) {
        let highest = self.lines.iter().flat_map(|(_, values)| values.iter().flatten()).fold(0.0, |a: f64, b| a.max(*b));
        let top = round_up(highest);
        let until = times.last().copied().unwrap_or(1.0).max(1.0);
        let x = |at: f64| LEFT + at / until * (WIDTH - LEFT - 8.0);
        let y = |value: f64| HEIGHT - BELOW - value / top * (HEIGHT - BELOW - 8.0);
        let _ = write!(page, "<h2>{}", self.title);
        for ((name, _), colour) in self.lines.iter().zip(COLOURS).filter(|((name, _), _)| !name.is_empty()) {
            let _ = write!(page, "<span class=\"key\" style=\"color:{colour}\">{name}</span>");
        }
        let _ = write!(page, "</h2>\n<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">", self.title);
        for tick in 0..=4 {
            let (value, at) = (top * f64::from(tick) / 4.0, y(top * f64::from(tick) / 4.0));
            let _ = write!(page, "<path d=\"M{LEFT} {at:.1}H{WIDTH}\" stroke=\"var(--line)\"/>");
            let _ = write!(page, "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>", LEFT - 6.0, at + 4.0, number(value));
            let (time, below) = (until * f64::from(tick) / 4.0, HEIGHT - 5.0);
            let anchor = if tick == 4 { "end" } else { "middle" };
            let _ = write!(
                page,
                "<text x=\"{:.1}\" y=\"{below}\" text-anchor=\"{anchor}\">{} s</text>",
                x(time),
                number((time * 10.0).round() / 10.0)
            );
        }
        for ((_, values), colour) in self.lines.iter().zip(COLOURS) {
            // A gap in the values is a gap in the line.
            let (mut path, mut pen) = (String::new(), 'M');
            for (at, value) in times.iter().zip(values) {
                match value {
                    Some(value) => {
                        let _ = write!(path, "{pen}{:.1} {:.1}", x(*at), y(*value));
                        pen = 'L';
                    }
                    None => pen = 'M',
                }
            }
            let _ = write!(page, "<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\"/>");
        }
        page.push_str("</svg>\n");
    }
}

/// The next of 1, 2, 5, 10, 20 … that is not below.
fn round_up(value: f64) -> f64 {
    if value <= 0.0 || !value.is_finite() {
        return 1.0;
    }
    let unit = 10f64.powf(value.log10().floor());
    [1.0, 2.0, 5.0, 10.0].map(|n| n * unit).into_iter().find(|n| *n >= value).unwrap_or(value)
}

/// At most three digits that say something.
fn number(value: f64) -> String {
    let (value, unit) = match value {
        v if v >= 1e6 => (v / 1e6, " M"),
        v if v >= 1e4 => (v / 1e3, " k"),
        v => (v, ""),
    };
    let decimals = if value >= 100.0 { 0 } else { 2 - usize::from(value >= 10.0) };
    let text = format!("{value:.decimals$}");
    let digits = if decimals > 0 { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{digits}{unit}")
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_end_on_round_numbers() {
        for (value, want) in [(0.0, 1.0), (0.7, 1.0), (1.0, 1.0), (1.1, 2.0), (4_300.0, 5_000.0), (99.0, 100.0), (f64::NAN, 1.0)] {
            assert_eq!(round_up(value), want, "{value}");
        }
    }

    #[test]
    fn numbers_are_short_and_not_rounded_away() {
        for (value, want) in
            [(0.0, "0"), (0.05, "0.05"), (7.5, "7.5"), (12.5, "12.5"), (25.0, "25"), (7_500.0, "7500"), (37_500.0, "37.5 k"), (2e6, "2 M")]
        {
            assert_eq!(number(value), want);
        }
    }

    #[test]
    fn a_page_is_whole_and_hostile_text_is_text() {
        let samples: Vec<Sample> = (0..5)
            .map(|at| Sample { at_s: f64::from(at), received_per_s: 1e5, p99_ms: (at != 2).then_some(3.0), ..Sample::default() })
            .collect();
        let page = write("a <b> & \"c\"", "failed, 1: <script>", &samples);
        assert!(page.contains("a &lt;b> &amp; &quot;c&quot;") && !page.contains("<script"));
        let plots = page.matches("<svg").count();
        assert_eq!((plots, page.matches("</svg>").count()), (6, 6), "no plot of a server that nobody named");
        assert!(!page.contains("NaN") && !page.contains("inf"));
        assert!(page.contains("M64.0 ") && page.matches('M').count() > plots, "the line of latencies has a gap");
        assert!(!page.contains("http"), "nothing from elsewhere");
    }
}
