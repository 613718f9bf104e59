//! Rows of figures, as a table or as JSON.

use super::measure::{Median, median};

/// One thing that was measured on several sides.
#[derive(Debug, Default)]
pub struct Row {
    /// Its name on the command line.
    pub name: &'static str,
    /// What ours ÷ the other may be at most, if anything was promised.
    pub limit: Option<f64>,
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
        match (self.ratio(&self.peer), self.limit) {
            (Some(ratio), Some(limit)) if ratio <= limit => "reached",
            (Some(_), Some(_)) => "MISSED",
            _ => "",
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
        })
    }
}

fn of(values: &[f64]) -> Option<Median> {
    (!values.is_empty()).then(|| median(values))
}

/// Prints the rows.
pub fn print(title: &str, peer: &str, rows: &[Row], json: bool) {
    if json {
        let rows: Vec<_> = rows.iter().map(Row::json).collect();
        println!("{:#}", serde_json::json!({ "title": title, "peer": peer, "rows": rows }));
        return;
    }
    println!("{title}; seconds, medians (min-max)");
    println!(
        "{:<12} {:>22} {:>22} {:>8} {:>7} {:>8} {:>9} {:>8} {:>8}",
        "row", "ours (soft)", peer, "ratio", "goal", "", "native", "÷ native", "M instr"
    );
    for row in rows {
        let cell = |values: &[f64]| of(values).map_or_else(|| "-".to_owned(), |median| median.to_string());
        let number = |value: Option<f64>, digits: usize| {
            value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
        };
        println!(
            "{:<12} {:>22} {:>22} {:>8} {:>7} {:>8} {:>9} {:>8} {:>8}",
            row.name,
            cell(&row.ours),
            cell(&row.peer),
            number(row.ratio(&row.peer), 2),
            number(row.limit, 1),
            row.verdict(),
            number(of(&row.native).map(|m| m.middle), 3),
            number(row.ratio(&row.native), 1),
            number(of(&row.retired).map(|m| m.middle / 1e6), 0),
        );
    }
}
