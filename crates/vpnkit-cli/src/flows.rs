//! `vpnkit flows`: the connections of a running network, as a table.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use ethlink::Address;
use serde_json::Value;

use crate::cli::QuestionArguments;
use crate::failure::Failure;

/// Between the two looks that make a rate.
const INTERVAL: Duration = Duration::from_secs(1);

/// Most bytes of an answer.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

/// Shows them on stdout.
pub fn show(arguments: &QuestionArguments) -> Result<(), Failure> {
    let first = flows(&arguments.control)?;
    let text = if arguments.json {
        format!("{first}\n")
    } else {
        let began = Instant::now();
        std::thread::sleep(INTERVAL);
        let second = flows(&arguments.control)?;
        let elapsed = began.elapsed();
        table(&first, &second, elapsed) + &dropped(&question(&arguments.control, "/drops")?)
    };
    std::io::stdout().write_all(text.as_bytes()).map_err(|error| Failure::of(&error))
}

fn flows(control: &Address) -> Result<Value, Failure> {
    question(control, "/flows")
}

/// Asks a running network for JSON.
pub fn question(control: &Address, path: &str) -> Result<Value, Failure> {
    let name = match control {
        Address::Unix(path) => path.display().to_string(),
        Address::Tcp(address) => address.to_string(),
    };
    let answer = ask(control, path).map_err(|error| {
        Failure::usage(format!("no vpnkit answers at {name}: {error}; was it started with --control?"))
    })?;
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body);
    body.and_then(|body| serde_json::from_str(body).ok())
        .ok_or_else(|| Failure::usage(format!("what answers at {name} is no vpnkit")))
}

/// HTTP/1.0: the answer ends with the connection, and is not in chunks.
fn ask(control: &Address, path: &str) -> std::io::Result<String> {
    let request = format!("GET {path} HTTP/1.0\r\nHost: vpnkit\r\n\r\n");
    let mut answer = String::new();
    match control {
        Address::Unix(path) => {
            let mut stream = UnixStream::connect(path)?;
            stream.write_all(request.as_bytes())?;
            stream.take(ANSWER_BYTES_MAX).read_to_string(&mut answer)?;
        }
        Address::Tcp(address) => {
            let mut stream = TcpStream::connect(address)?;
            stream.write_all(request.as_bytes())?;
            stream.take(ANSWER_BYTES_MAX).read_to_string(&mut answer)?;
        }
    }
    Ok(answer)
}

/// What a flow is known by in both looks.
fn name(flow: &Value) -> String {
    ["protocol", "guest", "remote"].map(|field| flow[field].as_str().unwrap_or("-")).join(" ")
}

fn count(flow: &Value, field: &str) -> u64 {
    flow[field].as_u64().unwrap_or(0)
}

/// A line a flow, those that move most first.
fn table(first: &Value, second: &Value, elapsed: Duration) -> String {
    let none = Vec::new();
    let before: HashMap<String, &Value> =
        first.as_array().unwrap_or(&none).iter().map(|flow| (name(flow), flow)).collect();
    let rate = |flow: &Value, field: &str| {
        let earlier = before.get(&name(flow)).map_or(0, |flow| count(flow, field));
        count(flow, field).saturating_sub(earlier) as f64 / elapsed.as_secs_f64()
    };
    let row = |flow: &Value| {
        let (up, down) = (rate(flow, "bytes_up"), rate(flow, "bytes_down"));
        let text = |field: &str| flow[field].as_str().unwrap_or("-").to_owned();
        let total = |field: &str| bytes(count(flow, field) as f64);
        let rates = [up, down].map(|rate| format!("{}/s", bytes(rate)));
        let [up_rate, down_rate] = rates;
        let cells = [
            text("protocol"),
            text("state"),
            text("guest"),
            text("remote"),
            total("bytes_up"),
            total("bytes_down"),
            up_rate,
            down_rate,
        ];
        (up + down, cells)
    };
    let mut rows: Vec<_> = second.as_array().unwrap_or(&none).iter().map(row).collect();
    rows.sort_by(|left, right| right.0.total_cmp(&left.0));
    let head = HEAD.map(str::to_owned);
    lined_up(std::iter::once(head).chain(rows.into_iter().map(|(_, cells)| cells)).collect())
}

/// The columns of the table: words first, then numbers.
const HEAD: [&str; 8] = ["PROTO", "STATE", "GUEST", "REMOTE", "UP", "DOWN", "UP RATE", "DOWN RATE"];
/// How many of them are words.
const WORDS: usize = 4;

/// Rows as lines, each column as wide as its widest cell: addresses of IPv6 are long.
fn lined_up(rows: Vec<[String; HEAD.len()]>) -> String {
    let widths: [usize; HEAD.len()] =
        std::array::from_fn(|at| rows.iter().map(|row| row[at].len()).max().unwrap_or(0));
    let line = |row: &[String; HEAD.len()]| {
        let cells = row.iter().zip(widths).enumerate().map(|(at, (cell, width))| {
            if at < WORDS { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        cells.collect::<Vec<_>>().join(" ").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

/// A line of what was dropped or refused since the start, if anything was, most often first.
fn dropped(drops: &Value) -> String {
    let counts = drops.as_object().into_iter().flatten();
    let mut counts: Vec<(u64, &String)> =
        counts.map(|(name, count)| (count.as_u64().unwrap_or(0), name)).collect();
    counts.sort_by(|left, right| right.0.cmp(&left.0).then(left.1.cmp(right.1)));
    let parts: Vec<String> = counts.iter().map(|(count, name)| format!("{count} {name}")).collect();
    if parts.is_empty() { String::new() } else { format!("dropped: {}\n", parts.join(", ")) }
}

/// With a unit of a thousand, in at most seven letters.
fn bytes(count: f64) -> String {
    let mut value = count;
    for unit in ["B", "kB", "MB", "GB"] {
        if value < 999.5 {
            return if unit == "B" { format!("{value:.0} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1000.0;
    }
    format!("{value:.1} TB")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_flow_that_moves_most_comes_first_with_its_rate() {
        let flow = |remote: &str, down: u64| {
            json!({"protocol": "tcp", "state": "ESTABLISHED", "guest": "g:1", "remote": remote, "bytes_up": 0,
                "bytes_down": down})
        };
        let first = json!([flow("slow", 5_000_000), flow("fast", 0)]);
        let second = json!([flow("slow", 5_001_000), flow("fast", 3_000_000)]);
        let table = table(&first, &second, Duration::from_secs(2));
        let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[0][..4], ["PROTO", "STATE", "GUEST", "REMOTE"]);
        assert_eq!(lines[1][3..], ["fast", "0", "B", "3.0", "MB", "0", "B/s", "1.5", "MB/s"]);
        assert_eq!(lines[2][3..], ["slow", "0", "B", "5.0", "MB", "0", "B/s", "500", "B/s"]);
    }

    #[test]
    fn columns_stand_below_one_another_whatever_their_addresses() {
        let flow = |guest: &str| {
            json!([{"protocol": "tcp", "state": "ESTABLISHED", "guest": guest, "remote": "203.0.113.2:80", "bytes_up": 0,
                "bytes_down": 0}])
        };
        let both = json!([flow("10.0.0.1:1")[0], flow("[fd76:706e:6b69:7400:1820:98ff:fe3e:6785]:42082")[0]]);
        let table = table(&both, &both, Duration::from_secs(1));
        let at: Vec<_> = table.lines().map(|line| line.find("203.0.113.2").or(line.find("REMOTE"))).collect();
        assert!(at.len() == 3 && at.iter().all(|place| *place == at[0] && place.is_some()), "{table}");
        let ends: Vec<_> = table.lines().map(str::len).collect();
        assert_eq!(ends, [ends[0]; 3], "{table}");
    }

    #[test]
    fn what_was_dropped_most_often_comes_first() {
        let drops = json!({"malformed": 2, "forged_source": 40, "queue_full": 2});
        assert_eq!(dropped(&drops), "dropped: 40 forged_source, 2 malformed, 2 queue_full\n");
        assert_eq!(dropped(&json!({})), "");
    }
}
