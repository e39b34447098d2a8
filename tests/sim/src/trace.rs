//! What happened, as a number, and if wanted as text.
//!
//! Every part of a simulation records what it does. The hash over all of it is the proof that two
//! runs of one seed were the same run. The text of the last steps is for people: it is kept only
//! after [`Trace::keep_lines`], and costs nothing otherwise.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt::{Debug, Write};
use std::hash::{Hash, Hasher};
use std::rc::Rc;

use gannet_runtime::time::Time;
use rustc_hash::FxHasher;

/// The record of one run, shared by all parts of a simulation.
#[derive(Clone, Default)]
pub struct Trace {
    shared: Rc<RefCell<Shared>>,
}

#[derive(Default)]
struct Shared {
    hasher: FxHasher,
    steps: u64,
    lines_max: usize,
    lines: VecDeque<String>,
}

impl Shared {
    fn keep(&mut self, line: String) {
        if self.lines.len() == self.lines_max {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }
}

impl Trace {
    /// An empty record.
    #[must_use]
    pub fn new() -> Trace {
        Trace::default()
    }

    /// Keeps the text of the last `lines_max` steps from now on.
    pub fn keep_lines(&self, lines_max: usize) {
        self.shared.borrow_mut().lines_max = lines_max;
    }

    /// Adds a step. Addresses of memory must not be part of it: they differ from run to run.
    pub fn record(&self, at: Time, step: impl Hash + Debug) {
        let mut shared = self.shared.borrow_mut();
        (at, &step).hash(&mut shared.hasher);
        shared.steps += 1;
        if shared.lines_max > 0 {
            shared.keep(format!("{:>12} ns  {step:?}", at.0));
        }
    }

    /// Adds a line for people, if lines are kept. It does not count as a step.
    pub fn note(&self, at: Time, line: impl FnOnce() -> String) {
        let mut shared = self.shared.borrow_mut();
        if shared.lines_max > 0 {
            shared.keep(format!("{:>12} ns  {}", at.0, line()));
        }
    }

    /// The hash over all steps so far.
    #[must_use]
    pub fn hash(&self) -> u64 {
        self.shared.borrow().hasher.clone().finish()
    }

    /// How many steps there were.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.shared.borrow().steps
    }

    /// The text of the last steps, oldest first.
    #[must_use]
    pub fn text(&self) -> String {
        let shared = self.shared.borrow();
        let mut text = String::new();
        for line in &shared.lines {
            let _infallible = writeln!(text, "{line}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_a_step_counts() {
        let hash = |steps: &[(u64, &str)]| {
            let trace = Trace::new();
            for (at, step) in steps {
                trace.record(Time(*at), step);
            }
            trace.hash()
        };
        let base = hash(&[(1, "a"), (2, "b")]);
        assert_eq!(base, hash(&[(1, "a"), (2, "b")]));
        for other in
            [&[(1, "a")][..], &[(2, "b"), (1, "a")], &[(1, "a"), (3, "b")], &[(1, "a"), (2, "c")]]
        {
            assert_ne!(base, hash(other));
        }
    }

    #[test]
    fn only_the_last_lines_are_kept() {
        let trace = Trace::new();
        trace.record(Time(1), "unseen");
        trace.keep_lines(2);
        for step in ["one", "two", "three"] {
            trace.record(Time(2), step);
        }
        let text = trace.text();
        assert!(text.contains("two") && text.contains("three"), "{text}");
        assert!(!text.contains("one") && !text.contains("unseen"), "{text}");
        assert_eq!(trace.steps(), 4);
    }
}
