//! What was asked of every file, and what was answered.
//!
//! One counter orders all submissions and completions of all hosts: an operation that completed
//! before another was submitted came before it. [`super::checker`] judges the whole afterwards.

use std::cell::RefCell;
use std::rc::Rc;

/// How an operation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It has not ended, or nobody is left to say how.
    Pending,
    /// It took effect.
    Done,
    /// Its host was told that it may have taken effect, or still may.
    Maybe,
    /// It took no effect.
    Never,
}

/// What an operation does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// Puts bytes of its number into a range.
    Write {
        /// First byte in the file.
        offset: u64,
        /// Byte after the last.
        end: u64,
    },
    /// Sets the size.
    Truncate {
        /// The new size.
        size: u64,
    },
    /// Reads.
    Read {
        /// First byte in the file.
        offset: u64,
        /// Bytes asked for.
        asked: u32,
        /// What came.
        bytes: Vec<u8>,
        /// Whether it came with the end of the file.
        end_of_file: bool,
    },
}

/// One operation on a file.
#[derive(Clone, Debug)]
pub struct Operation {
    /// Its number: unique in a run, and part of the bytes that it writes.
    pub number: u32,
    /// When it was submitted.
    pub begin: u64,
    /// When its host learnt how it ended.
    pub end: Option<u64>,
    /// What it does.
    pub what: What,
    /// How it ended.
    pub outcome: Outcome,
    /// Which host asked.
    pub host: u32,
}

/// Names an operation of a history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OperationRef {
    file: usize,
    index: usize,
    /// The operation's number.
    pub number: u32,
}

/// A record appended to the log file of a run.
#[derive(Clone, Copy, Debug)]
pub struct Appended {
    /// Its number.
    pub number: u32,
    /// Its length.
    pub len_bytes: u32,
    /// Where it went, if the host learnt it.
    pub offset: Option<u64>,
    /// How it ended.
    pub outcome: Outcome,
}

/// Everything that hosts did in a run.
#[derive(Debug, Default)]
pub struct History {
    clock: u64,
    numbers: u32,
    /// Operations by file.
    pub files: Vec<Vec<Operation>>,
    /// What was appended to the run's log file.
    pub appends: Vec<Appended>,
    /// The log file's content at the end.
    pub log_content: Vec<u8>,
    /// What was seen to be wrong on the way.
    pub violations: Vec<String>,
    /// Operations by kind of end: done, maybe, never.
    pub ends: [u64; 3],
}

/// The history that all hosts of a run share.
pub type SharedHistory = Rc<RefCell<History>>;

impl History {
    /// An empty history of `files` files.
    #[must_use]
    pub fn new(files: usize) -> History {
        History { files: (0..files).map(|_| Vec::new()).collect(), ..History::default() }
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// A number for something that writes.
    pub fn next_number(&mut self) -> u32 {
        self.numbers += 1;
        self.numbers
    }

    /// Notes a submission.
    pub fn begin(&mut self, host: u32, file: usize, what: What) -> OperationRef {
        let (number, begin) = (self.next_number(), self.tick());
        let outcome = Outcome::Pending;
        let operations = &mut self.files[file];
        operations.push(Operation { number, begin, end: None, what, outcome, host });
        OperationRef { file, index: operations.len() - 1, number }
    }

    /// Notes an end.
    pub fn end(&mut self, of: OperationRef, outcome: Outcome) {
        let now = self.tick();
        self.count(outcome);
        let operation = &mut self.files[of.file][of.index];
        operation.outcome = outcome;
        operation.end = (outcome == Outcome::Done).then_some(now);
    }

    /// Notes the end of a write that put `bytes` bytes into the file.
    pub fn end_write(&mut self, of: OperationRef, bytes: u32) {
        if let What::Write { offset, end } = &mut self.files[of.file][of.index].what {
            *end = (*end).min(*offset + u64::from(bytes));
        }
        self.end(of, Outcome::Done);
    }

    /// Notes the end of a read.
    pub fn end_read(&mut self, of: OperationRef, data: &[u8], is_end: bool) {
        if let What::Read { bytes, end_of_file, .. } = &mut self.files[of.file][of.index].what {
            bytes.extend_from_slice(data);
            *end_of_file = is_end;
        }
        self.end(of, Outcome::Done);
    }

    fn count(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Pending => {}
            Outcome::Done => self.ends[0] += 1,
            Outcome::Maybe => self.ends[1] += 1,
            Outcome::Never => self.ends[2] += 1,
        }
    }

    /// Notes something wrong.
    pub fn violation(&mut self, text: String) {
        // The first ones tell the story.
        if self.violations.len() < 20 {
            self.violations.push(text);
        }
    }
}
