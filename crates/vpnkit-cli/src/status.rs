//! `vpnkit status`: what a running network's process is.

use std::io::Write;

use serde_json::{Value, json};
use vpnkit_sandbox::Report;

use crate::cli::QuestionArguments;
use crate::failure::Failure;
use crate::flows;

/// What `/status` says.
pub fn of(sandbox: Option<&Report>) -> Value {
    let sandbox = match sandbox {
        None => json!({ "enabled": "no" }),
        Some(report) => {
            let parts = report.parts().map(|(name, state)| (name.to_owned(), Value::from(state)));
            let enabled = ("enabled".to_owned(), Value::from("yes"));
            Value::Object([enabled].into_iter().chain(parts).collect())
        }
    };
    json!({ "version": env!("CARGO_PKG_VERSION"), "sandbox": sandbox })
}

/// Shows it on stdout.
pub fn show(arguments: &QuestionArguments) -> Result<(), Failure> {
    let status = flows::question(&arguments.control, "/status")?;
    let text = if arguments.json { format!("{status}\n") } else { table(&status) };
    std::io::stdout().write_all(text.as_bytes()).map_err(|error| Failure::of(&error))
}

fn table(status: &Value) -> String {
    let version = status["version"].as_str().unwrap_or("?");
    let mut text = format!("version            {version}\n");
    for (name, state) in status["sandbox"].as_object().into_iter().flatten() {
        let state = state.as_str().unwrap_or("?");
        text.push_str(&format!("sandbox {name:<18} {state}\n"));
    }
    text
}
