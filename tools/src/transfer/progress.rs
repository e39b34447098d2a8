//! A progress bar on a terminal, nothing anywhere else.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};

/// Progress in bytes.
pub(super) struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// A bar for `bytes`, which may grow, if standard error is a terminal.
    pub(super) fn new(verb: &'static str, bytes: u64) -> Progress {
        if !std::io::stderr().is_terminal() {
            return Progress { bar: ProgressBar::hidden() };
        }
        let bar = ProgressBar::new(bytes);
        let template = "{prefix} {wide_bar} {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}";
        // A template that does not parse would only cost the bar its looks.
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_prefix(verb);
        Progress { bar }
    }

    /// More is to be done than was known.
    pub(super) fn expect(&self, bytes: u64) {
        self.bar.inc_length(bytes);
    }

    /// This much more is done.
    pub(super) fn done(&self, bytes: u64) {
        self.bar.inc(bytes);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
