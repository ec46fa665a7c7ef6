//! A report as one HTML file: tables and bar plots in SVG, light or dark as the reader's system is, nothing from outside.

use std::fmt::Write;

use super::stats::figure;
use super::table::Table;

/// Width of a plot's labels, of its longest bar and of the space for figures, in pixels.
const LABEL: f64 = 190.0;
const BAR: f64 = 420.0;
const SPACE: f64 = 150.0;
/// Height of a bar with its gap.
const LINE: f64 = 22.0;

/// One bar: a median, with the range of the repetitions as a line on it.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Bar {
    pub(super) label: String,
    pub(super) value: f64,
    pub(super) range: Option<(f64, f64)>,
    /// Drawn in the accent colour: it is what the report is about.
    pub(super) ours: bool,
}

/// A plot.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Chart {
    pub(super) title: String,
    pub(super) unit: String,
    /// Told beside the title: whether long bars are good.
    pub(super) less_is_better: bool,
    pub(super) bars: Vec<Bar>,
}

/// A heading with what stands below it.
#[derive(Clone, Debug, Default)]
pub(super) struct Section {
    pub(super) title: String,
    pub(super) notes: Vec<String>,
    pub(super) table: Option<Table>,
    pub(super) charts: Vec<Chart>,
}

const STYLE: &str = "
:root { color-scheme: light dark; --fg: #1c2330; --bg: #ffffff; --dim: #5b6472; --line: #d9dee6; --bar: #9fb1c9; --ours: #d9622b; }
@media (prefers-color-scheme: dark) { :root { --fg: #e4e8ee; --bg: #12161c; --dim: #9aa4b2; --line: #2c3440; --bar: #51637c; --ours: #f08a4b; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--fg); background: var(--bg); max-width: 1200px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
p, li { color: var(--dim); } .scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; } th, td { padding: .25rem .7rem; border-bottom: 1px solid var(--line); text-align: left; }
.n { text-align: right; font-variant-numeric: tabular-nums; } .reached { color: #2e9e5b; } .missed { color: #d0453c; font-weight: 600; }
.plots { display: flex; flex-wrap: wrap; gap: 1rem 2rem; } figure { margin: 0; } figcaption { font-weight: 600; } figcaption small { font-weight: 400; color: var(--dim); }
svg { max-width: 100%; height: auto; } svg text { font: 13px system-ui, sans-serif; fill: var(--fg); } .b { fill: var(--bar); } .o { fill: var(--ours); } .r { stroke: var(--fg); stroke-width: 1.5; }
";

/// A whole document.
pub(super) fn page(title: &str, sections: &[Section]) -> String {
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{0}</title>\n\
         <style>{STYLE}</style>\n</head>\n<body>\n<h1>{0}</h1>\n",
        escape(title)
    );
    for section in sections {
        let _ = writeln!(out, "<section>\n<h2>{}</h2>", escape(&section.title));
        for note in &section.notes {
            let _ = writeln!(out, "<p>{}</p>", escape(note));
        }
        if let Some(table) = &section.table {
            out.push_str(&table_html(table));
        }
        if !section.charts.is_empty() {
            out.push_str("<div class=\"plots\">\n");
            section.charts.iter().for_each(|c| out.push_str(&chart_html(c)));
            out.push_str("</div>\n");
        }
        out.push_str("</section>\n");
    }
    out.push_str("</body>\n</html>\n");
    out
}

fn table_html(table: &Table) -> String {
    let mut out = "<div class=\"scroll\"><table>\n".to_owned();
    for (at, row) in table.rows().iter().enumerate() {
        let tag = if at == 0 { "th" } else { "td" };
        out.push_str("<tr>");
        for (column, text) in row.iter().enumerate() {
            let class = match text.as_str() {
                "reached" | "missed" => format!(" class=\"{text}\""),
                _ if table.is_figure(column) => " class=\"n\"".to_owned(),
                _ => String::new(),
            };
            let _ = write!(out, "<{tag}{class}>{}</{tag}>", escape(text));
        }
        out.push_str("</tr>\n");
    }
    out + "</table></div>\n"
}

#[expect(clippy::cast_precision_loss, reason = "a few bars")]
fn chart_html(chart: &Chart) -> String {
    let reach = |b: &Bar| b.range.map_or(b.value, |(_, high)| high.max(b.value));
    let most = chart.bars.iter().map(reach).fold(0.0, f64::max);
    let scale = |v: f64| if most > 0.0 { (v / most * BAR).clamp(0.0, BAR) } else { 0.0 };
    let (width, height) = (LABEL + BAR + SPACE, chart.bars.len() as f64 * LINE + 4.0);
    let better = if chart.less_is_better { "shorter is better" } else { "longer is better" };
    let mut out = format!(
        "<figure><figcaption>{} <small>{}, {better}</small></figcaption>\n\
         <svg role=\"img\" aria-label=\"{}\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\">\n",
        escape(&chart.title),
        escape(&chart.unit),
        escape(&chart.title)
    );
    for (at, bar) in chart.bars.iter().enumerate() {
        let y = at as f64 * LINE + 2.0;
        let (text, middle) = (y + 14.0, y + 9.0);
        let long = scale(bar.value);
        let class = if bar.ours { "o" } else { "b" };
        let _ = write!(
            out,
            "<text x=\"{:.0}\" y=\"{text:.0}\" text-anchor=\"end\">{}</text>\
             <rect class=\"{class}\" x=\"{LABEL}\" y=\"{y:.0}\" width=\"{long:.1}\" height=\"18\" rx=\"2\"/>",
            LABEL - 8.0,
            escape(&bar.label)
        );
        let mut end = long;
        if let Some((low, high)) = bar.range.filter(|(low, high)| high > low) {
            end = end.max(scale(high));
            let (from, to) = (LABEL + scale(low), LABEL + scale(high));
            let _ = write!(
                out,
                "<line class=\"r\" x1=\"{from:.1}\" x2=\"{to:.1}\" y1=\"{middle:.0}\" y2=\"{middle:.0}\"/>"
            );
        }
        let _ = writeln!(
            out,
            "<text x=\"{:.0}\" y=\"{text:.0}\">{}</text>",
            LABEL + end + 8.0,
            figure(bar.value)
        );
    }
    out + "</svg></figure>\n"
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> String {
        let bar = |label: &str, value, ours| Bar {
            label: label.into(),
            value,
            range: Some((value, value * 2.0)),
            ours,
        };
        let mut table = Table::new(&["what", "outcome"], 1);
        table.row(["a<b".into(), "missed".into()]);
        let chart = Chart {
            title: "write \"1 MiB\"".into(),
            unit: "MB/s".into(),
            less_is_better: false,
            bars: vec![bar("envelopefs", 10.0, true), bar("null", 40.0, false), bar("zero", 0.0, false)],
        };
        let section =
            Section { title: "tmpfs & co".into(), notes: vec![], table: Some(table), charts: vec![chart] };
        page("Run <1>", &[section])
    }

    /// Nothing is loaded from outside, and a text cannot become markup.
    #[test]
    fn a_page_stands_alone_and_is_escaped() {
        let html = example();
        for outside in ["http", "src=", "href=", "url(", "<script", "@import"] {
            assert!(!html.contains(outside), "{outside}");
        }
        assert!(html.contains("Run &lt;1&gt;") && html.contains("a&lt;b") && html.contains("tmpfs &amp; co"));
        assert!(html.contains("prefers-color-scheme: dark"));
    }

    /// The longest range fills the plot, other bars are in proportion.
    #[test]
    fn bars_are_in_proportion() {
        let html = example();
        assert!(html.contains("class=\"o\" x=\"190\" y=\"2\" width=\"52.5\""), "{html}");
        assert!(html.contains("width=\"210.0\"") && html.contains("width=\"0.0\""));
    }

    /// Every element that is opened is closed: a parser of XML takes each plot.
    #[test]
    fn every_tag_is_closed() {
        let html = example();
        for tag in ["svg", "figure", "table", "section", "text", "div", "tr", "figcaption"] {
            let (open, close) =
                (html.matches(&format!("<{tag}")).count(), html.matches(&format!("</{tag}>")).count());
            assert_eq!(open, close, "{tag}");
        }
    }
}
