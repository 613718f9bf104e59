//! Rows of figures, as a table or as JSON.

use super::measure::{Median, median};

/// One thing that was measured on several sides.
#[derive(Debug, Default)]
pub struct Row {
    /// Its name on the command line.
    pub name: &'static str,
    /// What ours ÷ the other may be at most, if anything was promised.
    pub limit: Option<f64>,
    /// What ours ÷ native may be at most, if anything was promised.
    pub native_limit: Option<f64>,
    /// Seconds of each of our runs.
    pub ours: Vec<f64>,
    /// Seconds of each of the other's runs.
    pub peer: Vec<f64>,
    /// Seconds of each run without a machine around it.
    pub native: Vec<f64>,
    /// Instructions retired by each of our runs.
    pub retired: Vec<f64>,
}

impl Row {
    /// A row without figures.
    pub fn new(name: &'static str, limit: Option<f64>) -> Row {
        Row { name, limit, ..Row::default() }
    }

    fn ratio(&self, other: &[f64]) -> Option<f64> {
        Some(of(&self.ours)?.middle / of(other)?.middle)
    }

    fn verdict(&self) -> &'static str {
        let promised = [(&self.peer, self.limit), (&self.native, self.native_limit)];
        let mut kept =
            promised.iter().filter_map(|(other, limit)| Some(self.ratio(other)? <= (*limit)?)).peekable();
        match (kept.peek().is_some(), kept.all(|is_kept| is_kept)) {
            (false, _) => "",
            (true, true) => "reached",
            (true, false) => "MISSED",
        }
    }

    fn json(&self) -> serde_json::Value {
        let all = |values: &[f64]| {
            of(values).map(
                |m| serde_json::json!({ "median": m.middle, "min": m.least, "max": m.most, "runs": values }),
            )
        };
        serde_json::json!({
            "row": self.name,
            "ours_s": all(&self.ours),
            "peer_s": all(&self.peer),
            "native_s": all(&self.native),
            "retired": of(&self.retired).map(|m| m.middle),
            "ours_to_peer": self.ratio(&self.peer),
            "ours_to_native": self.ratio(&self.native),
            "limit": self.limit,
            "native_limit": self.native_limit,
        })
    }
}

fn of(values: &[f64]) -> Option<Median> {
    (!values.is_empty()).then(|| median(values))
}

/// What the columns of a table are.
#[derive(Debug, Clone, Copy)]
pub struct Sides<'a> {
    /// Ours.
    pub ours: &'a str,
    /// What it is held against.
    pub peer: &'a str,
    /// What neither can be better than.
    pub native: &'a str,
}

impl<'a> Sides<'a> {
    /// Our software processor, another machine, and no machine.
    pub fn machines(peer: &'a str) -> Self {
        Self { ours: "ours (soft)", peer, native: "native" }
    }
}

/// Prints the rows.
pub fn print(title: &str, sides: Sides<'_>, rows: &[Row], json: bool) {
    let Sides { ours, peer, native } = sides;
    if json {
        let rows: Vec<_> = rows.iter().map(Row::json).collect();
        println!(
            "{:#}",
            serde_json::json!({ "title": title, "ours": ours, "peer": peer, "native": native, "rows": rows })
        );
        return;
    }
    let width = rows.iter().map(|row| row.name.len()).max().unwrap_or(0).max(12);
    println!("{title}; seconds, medians (min-max)");
    println!(
        "{:<width$} {ours:>22} {peer:>22} {:>8} {:>7} {:>8} {native:>22} {:>8} {:>7} {:>8}",
        "row", "ratio", "goal", "", "÷ native", "goal", "M instr"
    );
    for row in rows {
        let cell = |values: &[f64]| of(values).map_or_else(|| "-".to_owned(), |median| median.to_string());
        let number = |value: Option<f64>, digits: usize| {
            value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
        };
        println!(
            "{:<width$} {:>22} {:>22} {:>8} {:>7} {:>8} {:>22} {:>8} {:>7} {:>8}",
            row.name,
            cell(&row.ours),
            cell(&row.peer),
            number(row.ratio(&row.peer), 2),
            number(row.limit, 1),
            row.verdict(),
            cell(&row.native),
            number(row.ratio(&row.native), 1),
            number(row.native_limit, 1),
            number(of(&row.retired).map(|m| m.middle / 1e6), 0),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_reached_when_every_promise_about_it_is_kept() {
        let row = |ours: f64, limit, native_limit| Row {
            ours: vec![ours],
            peer: vec![2.0],
            native: vec![1.0],
            limit,
            native_limit,
            ..Row::default()
        };
        assert_eq!(row(1.0, None, None).verdict(), "");
        assert_eq!(row(1.9, Some(1.0), None).verdict(), "reached");
        assert_eq!(row(2.1, Some(1.0), None).verdict(), "MISSED");
        assert_eq!(row(2.5, None, Some(3.0)).verdict(), "reached");
        assert_eq!(row(1.9, Some(1.0), Some(1.5)).verdict(), "MISSED");
        let alone = Row { peer: Vec::new(), ..row(3.5, Some(1.0), Some(3.0)) };
        assert_eq!(alone.verdict(), "MISSED");
    }
}
