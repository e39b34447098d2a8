//! A table of commands that cannot succeed, and of what each has to say.

use std::ffi::OsString;
use std::path::Path;

use super::{gannet, run};

/// Counts cases and collects what is wrong with them.
#[derive(Default)]
pub(crate) struct Table {
    cases: usize,
    problems: Vec<String>,
}

impl Table {
    /// One case: `gannet` with these arguments ends with `code` and says all `words`.
    pub(crate) fn case<S: Into<OsString> + Clone>(
        &mut self,
        arguments: &[S],
        code: i32,
        words: &[&str],
    ) {
        self.cases += 1;
        let arguments: Vec<OsString> = arguments.iter().cloned().map(Into::into).collect();
        let mut command = gannet();
        command.args(&arguments);
        let output = run(command);
        let said = String::from_utf8_lossy(&output.stderr);
        let mut problem = |what: &str| {
            let text = format!("{arguments:?}: {what}; {}, said: {said}", output.status);
            self.problems.push(text);
        };
        if output.status.code() != Some(code) {
            problem(&format!("exit code {code} was expected"));
        }
        for word in words {
            if !said.contains(word) {
                problem(&format!("{word:?} is not in the message"));
            }
        }
        if said.contains("panicked") || said.contains("RUST_BACKTRACE") {
            problem("it panicked");
        }
        if said.trim().is_empty() {
            problem("it says nothing");
        }
    }

    pub(crate) fn finish(self, what: &str) {
        println!("{what}: {} cases", self.cases);
        assert!(self.problems.is_empty(), "{}", self.problems.join("\n"));
    }
}

/// What is said when `rdma://` is asked for: on a machine without a device, how to learn what it
/// needs; elsewhere, just not nothing.
pub(crate) fn without_rdma() -> &'static [&'static str] {
    match std::fs::read_dir("/sys/class/infiniband").map(|mut devices| devices.next().is_some()) {
        Ok(true) => &[],
        _ => &["rdma://", "RDMA", "gannet doctor --rdma"],
    }
}

/// A path as an argument.
pub(crate) fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}
