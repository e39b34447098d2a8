//! What a host makes of the answers.

use gannet_client::{Completion, ErrorKind, Outcome, RequestError};
use gannet_fabric::arena::HostBuffer;
use gannet_proto::Status;

use super::{Host, Kind, Outstanding, Setup, Step};
use crate::random::Chance;
use crate::workload::content;
use crate::workload::history::{OperationRef, Outcome as Ended};

impl Host {
    pub(super) fn completed(&mut self, completion: Completion) {
        let Completion { token, result, buffer, .. } = completion;
        let Some(Outstanding { kind, .. }) = self.outstanding.remove(&token) else {
            return self.violation("a request completed twice");
        };
        let (host, what) = (self.options.number, kind.name());
        let endpoint = self.client.fabric_mut().endpoint();
        if buffer.as_ref().is_some_and(|buffer| endpoint.has_window_over(buffer)) {
            self.violation(&format!("the memory of a {what} came back with a window over it"));
        }
        let text = match &result {
            Ok(outcome) => format!("{outcome:?}"),
            Err(error) => error.to_string(),
        };
        self.record(Step::Completed { host, token, what, result: text });
        let ended = match &result {
            Ok(_) => Ended::Done,
            Err(error) => self.judge(error),
        };
        match kind {
            Kind::Setup(step) => self.setup_completed(step, &result),
            Kind::Ask => {}
            Kind::Truncate { of } => self.history.borrow_mut().end(of, ended),
            Kind::Name => self.name_completed(&result, ended),
            Kind::Read { of, offset, length } => {
                self.read_completed(of, &result, buffer, offset as usize, length as usize);
            }
            Kind::LogRead { offset } => self.log_read_completed(&result, buffer, offset as usize),
            Kind::Write { of, offset, length, at } => {
                let range = offset as usize..(offset + length) as usize;
                self.written(buffer, of.number, at, range);
                let mut history = self.history.borrow_mut();
                match result {
                    Ok(Outcome::Write { bytes, offset, size }) => {
                        let fits = (1..=length).contains(&bytes)
                            && offset == at
                            && size >= at + u64::from(bytes);
                        history.end_write(of, bytes);
                        if !fits {
                            let text = format!("write {} wrote {bytes} at {offset}", of.number);
                            history.violation(text);
                        }
                    }
                    _ => history.end(of, ended),
                }
            }
            Kind::Append { index, number, offset, length } => {
                self.written(buffer, number, 0, offset as usize..(offset + length) as usize);
                let mut history = self.history.borrow_mut();
                history.appends[index].outcome = ended;
                if let Ok(Outcome::Write { bytes, offset, .. }) = result {
                    history.appends[index].len_bytes = bytes;
                    history.appends[index].offset = Some(offset);
                }
            }
        }
    }

    /// What an error says of the outcome; and whether it may come at all.
    fn judge(&mut self, error: &RequestError) -> Ended {
        let text = format!("{}: {}", error.operation, error.kind);
        *self.errors.entry(text).or_default() += 1;
        let expected = match error.kind {
            ErrorKind::Cancelled { .. } | ErrorKind::TimedOut { .. } => {
                self.client.options().request_timeout.is_some()
                    || self.options.cancel != Chance::NEVER
            }
            ErrorKind::OutcomeUnknown => true,
            ErrorKind::Status(Status::NO_SPACE) => self.options.may_be_full,
            // Judged by whoever knows the names.
            ErrorKind::Status(Status::EXISTS | Status::NOT_FOUND) => {
                matches!(
                    error.operation,
                    "mkdir"
                        | "create"
                        | "unlink"
                        | "rmdir"
                        | "rename"
                        | "exchange"
                        | "link"
                        | "lookup"
                )
            }
            ErrorKind::SlotsLost => {
                self.client.options().request_timeout.is_some()
                    || self.options.cancel != Chance::NEVER
            }
            _ => false,
        };
        if !expected {
            self.violation(&format!("a request failed: {error}"));
        }
        match error.kind {
            ErrorKind::Cancelled { maybe_applied } | ErrorKind::TimedOut { maybe_applied } => {
                if maybe_applied {
                    Ended::Maybe
                } else {
                    Ended::Never
                }
            }
            ErrorKind::OutcomeUnknown | ErrorKind::Protocol(_) | ErrorKind::Memory(_) => {
                Ended::Maybe
            }
            _ => Ended::Never,
        }
    }

    fn setup_completed(&mut self, step: Setup, result: &Result<Outcome, RequestError>) {
        let status = result.as_ref().err().and_then(RequestError::status);
        match (step, result) {
            (Setup::MakeDirectory(index), Err(_)) if status == Some(Status::EXISTS) => {
                self.setup[0] = Setup::FindDirectory(index);
            }
            (_, Ok(Outcome::Entry(attributes))) => {
                self.setup.pop_front();
                let mut board = self.board.borrow_mut();
                let known = match step {
                    Setup::MakeDirectory(index) | Setup::FindDirectory(index) => {
                        &mut board.directories[index]
                    }
                    Setup::MakeFile(index) => &mut board.files[index],
                };
                let first = *known.get_or_insert(attributes.handle);
                drop(board);
                if first != attributes.handle {
                    self.violation(&format!("{step:?} leads to two inodes"));
                }
            }
            // It is tried again; whether the error may come at all is judged elsewhere.
            (_, Err(_)) => {}
            (_, other) => self.violation(&format!("{step:?} ended with {other:?}")),
        }
    }

    fn name_completed(&mut self, result: &Result<Outcome, RequestError>, ended: Ended) {
        match self.names.completed(result, ended) {
            Ok(made) => {
                if let Some(made) = made {
                    let mut history = self.history.borrow_mut();
                    history.files.push(Vec::new());
                    self.names.number(made, history.files.len() - 1);
                }
                self.show_own_files();
            }
            Err(text) => self.violation(&text),
        }
    }

    /// Tells the board which files of this host are there for certain.
    pub(super) fn show_own_files(&mut self) {
        let mut board = self.board.borrow_mut();
        for file in self.shown.drain(..) {
            board.own.remove(&file);
        }
        for (handle, file) in self.names.files() {
            board.own.insert(file, handle);
            self.shown.push(file);
        }
    }

    /// Checks that nobody wrote into the memory of a write, and takes it back.
    fn written(
        &mut self,
        buffer: Option<HostBuffer>,
        number: u32,
        at: u64,
        range: std::ops::Range<usize>,
    ) {
        if let Some(buffer) = &buffer {
            if !content::is_of(number, at, &buffer[range.clone()]) {
                self.violation(&format!("the memory of write {number} was changed"));
            }
            self.check_canaries(&buffer[..range.start], "before a write's");
            self.check_canaries(&buffer[range.end..], "behind a write's");
        }
        self.give_back(buffer);
    }

    fn read_completed(
        &mut self,
        of: OperationRef,
        result: &Result<Outcome, RequestError>,
        buffer: Option<HostBuffer>,
        start: usize,
        length: usize,
    ) {
        if let Some(buffer) = &buffer {
            self.check_canaries(&buffer[..start], "before a read's");
            self.check_canaries(&buffer[start + length..], "behind a read's");
        }
        match (result, &buffer) {
            (Ok(Outcome::Read { bytes, end_of_file }), Some(buffer)) => {
                let count = (*bytes as usize).min(length);
                let data = &buffer[start..start + count];
                self.history.borrow_mut().end_read(of, data, *end_of_file);
                self.audited(count, *end_of_file);
            }
            (Err(_), _) => {
                self.history.borrow_mut().end(of, Ended::Never);
                self.audited(0, true);
            }
            _ => self.violation(&format!("read {} ended with {result:?}", of.number)),
        }
        self.give_back(buffer);
    }

    fn log_read_completed(
        &mut self,
        result: &Result<Outcome, RequestError>,
        buffer: Option<HostBuffer>,
        start: usize,
    ) {
        if let (Ok(Outcome::Read { bytes, end_of_file }), Some(buffer)) = (result, &buffer) {
            let data = &buffer[start..start + *bytes as usize];
            self.history.borrow_mut().log_content.extend_from_slice(data);
            self.audited(*bytes as usize, *end_of_file);
        } else {
            self.audited(0, true);
        }
        self.give_back(buffer);
    }

    /// An auditor goes on behind what it has read.
    fn audited(&mut self, count: usize, end_of_file: bool) {
        if let Some(audit) = &mut self.audit
            && let Some(mut current) = audit.pop_front()
            && !end_of_file
        {
            current.2 += count as u64;
            audit.push_front(current);
        }
    }
}
