//! Progress of long work, on stderr: a bar on a terminal, a line a stage elsewhere.

use std::io::IsTerminal;
use std::sync::Mutex;

use indicatif::{ProgressBar, ProgressStyle};

/// Shows what a build is doing.
#[derive(Debug, Default)]
pub struct Bar {
    current: Mutex<Option<ProgressBar>>,
}

impl guest_image::Progress for Bar {
    fn stage(&self, name: &str, total_bytes: Option<u64>) {
        self.finish();
        if !std::io::stderr().is_terminal() {
            eprintln!("coracle: {name}");
            return;
        }
        let bar = total_bytes.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
        let template = if total_bytes.is_some() {
            "{msg:<40} {bar:24} {bytes:>10} of {total_bytes} {eta:>4}"
        } else {
            "{msg:<40} {spinner}"
        };
        bar.set_style(
            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()),
        );
        bar.set_message(name.to_owned());
        bar.enable_steady_tick(std::time::Duration::from_millis(100));
        *self.current.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(bar);
    }

    fn advance(&self, bytes: u64) {
        if let Some(bar) = &*self.current.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) {
            bar.inc(bytes);
        }
    }

    fn finish(&self) {
        if let Some(bar) = self.current.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take() {
            bar.finish_and_clear();
        }
    }
}
