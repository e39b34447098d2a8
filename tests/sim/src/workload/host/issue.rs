//! What a host asks next.

use gannet_client::{AttributeChanges, Operation, Ownership};
use gannet_proto::{Handle, Inode};

use super::{Host, HostOptions, Kind, Setup};
use crate::workload::content::{self, POISON};
use crate::workload::history::{Appended, Outcome as Ended, What};
use crate::workload::names::Names;

impl Host {
    /// Submits what comes next. False: nothing does now.
    pub(super) fn issue(&mut self) -> bool {
        if !self.is_set_up {
            return self.outstanding.is_empty() && self.issue_setup();
        }
        if self.audit.is_some() {
            return self.outstanding.is_empty() && self.issue_audit();
        }
        if self.issued >= self.options.operations
            || self.outstanding.len() >= self.options.depth
            || self.now < self.next_at
        {
            return false;
        }
        self.next_at = self.now + self.random.delay(self.options.think);
        self.issued += 1;
        self.issue_load();
        true
    }

    fn issue_setup(&mut self) -> bool {
        let Some(step) = self.setup.front().copied() else { return self.begin_load() };
        let ownership = Ownership { mode: 0o755, uid: 0, gid: 0 };
        let operation = match step {
            Setup::MakeDirectory(index) => {
                Operation::Mkdir { parent: root(), name: directory_name(index), ownership }
            }
            Setup::FindDirectory(index) => {
                Operation::Lookup { parent: root(), path: directory_name(index) }
            }
            Setup::MakeFile(index) => {
                let places = self.options.directories + 1;
                let parent = match index % places {
                    0 => root(),
                    place => self.board.borrow().directories[place - 1].unwrap_or(root()),
                };
                let name = format!("file{index}").into_bytes();
                Operation::Create { parent, name, ownership, exclusive: false }
            }
        };
        self.submit(operation, Kind::Setup(step), None);
        true
    }

    fn begin_load(&mut self) -> bool {
        self.is_set_up = true;
        let board = self.board.borrow();
        let directories = board.directories.iter().flatten().copied();
        let directories = std::iter::once(root()).chain(directories).collect();
        self.names = Names::new(self.options.number, directories);
        if let Some(audit) = &mut self.audit {
            let log = self.options.shared_files;
            for (file, handle) in board.files.iter().enumerate() {
                if let Some(handle) = handle {
                    audit.push_back(((file != log).then_some(file), *handle, 0));
                }
            }
            audit.extend(board.own.iter().map(|(file, handle)| (Some(*file), *handle, 0)));
        }
        true
    }

    fn issue_audit(&mut self) -> bool {
        let next = self.audit.as_ref().and_then(|audit| audit.front().copied());
        let Some((file, handle, at)) = next else { return false };
        let Some(mut buffer) = self.take_buffer() else { return false };
        let length = (self.options.buffer_bytes as u64).min(self.options.request_bytes_max) as u32;
        buffer[..length as usize].fill(POISON);
        let kind = match file {
            Some(file) => {
                let (bytes, end_of_file) = (Vec::new(), false);
                let what = What::Read { offset: at, asked: length, bytes, end_of_file };
                let host = self.options.number;
                let of = self.history.borrow_mut().begin(host, file, what);
                Kind::Read { of, offset: 0, length }
            }
            None => Kind::LogRead { offset: 0 },
        };
        let operation =
            Operation::Read { file: handle, offset: at, length, buffer, buffer_offset: 0 };
        self.submit(operation, kind, file);
        true
    }

    fn issue_load(&mut self) {
        let weights = self.options.weights;
        let mut drawn = self.random.below(weights.iter().sum());
        let mut choice = 0;
        while drawn >= weights[choice] {
            drawn -= weights[choice];
            choice += 1;
        }
        match choice {
            0 => self.issue_read(),
            1 => self.issue_write(),
            2 => self.issue_truncate(),
            3 => self.issue_append(),
            4 => self.issue_question(),
            _ => self.issue_name(),
        }
    }

    fn choose_file(&mut self) -> Option<(Handle, usize)> {
        let own: Vec<(Handle, usize)> = self.names.files().collect();
        if !own.is_empty() && self.random.below(4) == 0 {
            return Some(own[self.random.index(own.len())]);
        }
        let file = self.random.index(self.options.shared_files);
        let handle = self.board.borrow().files[file];
        handle.map(|handle| (handle, file))
    }

    /// A range of a file and of a buffer.
    fn choose_range(&mut self) -> (u64, u32, u32) {
        let block = 4096;
        let HostOptions { file_bytes_max, request_bytes_max, .. } = self.options;
        let room = (self.options.buffer_bytes as u64).min(request_bytes_max);
        if self.random.happens(self.options.aligned) {
            let blocks = self.random.between(1, (room / block).max(1));
            let length = blocks * block;
            let offset =
                self.random.between(0, file_bytes_max.saturating_sub(length) / block) * block;
            let spare = (self.options.buffer_bytes as u64 - length) / block;
            return (offset, length as u32, (self.random.between(0, spare) * block) as u32);
        }
        // Short ranges, and those that touch few bytes of a block, are as likely as long ones.
        let longest = [64, block, room][self.random.index(3)].min(room);
        let length = self.random.between(1, longest);
        let offset = self.random.between(0, file_bytes_max.saturating_sub(length));
        let spare = self.options.buffer_bytes as u64 - length;
        (offset, length as u32, self.random.between(0, spare) as u32)
    }

    fn issue_read(&mut self) {
        let Some((file, index)) = self.choose_file() else { return };
        let (offset, length, buffer_offset) = self.choose_range();
        let Some(mut buffer) = self.take_buffer() else { return };
        buffer[buffer_offset as usize..][..length as usize].fill(POISON);
        let what = What::Read { offset, asked: length, bytes: Vec::new(), end_of_file: false };
        let of = self.history.borrow_mut().begin(self.options.number, index, what);
        let operation = Operation::Read { file, offset, length, buffer, buffer_offset };
        self.submit(operation, Kind::Read { of, offset: buffer_offset, length }, Some(index));
    }

    fn issue_write(&mut self) {
        let Some((file, index)) = self.choose_file() else { return };
        let (offset, length, buffer_offset) = self.choose_range();
        let Some(mut buffer) = self.take_buffer() else { return };
        let what = What::Write { offset, end: offset + u64::from(length) };
        let of = self.history.borrow_mut().begin(self.options.number, index, what);
        let range = buffer_offset as usize..(buffer_offset + length) as usize;
        content::fill(of.number, offset, &mut buffer[range]);
        let append = false;
        let operation = Operation::Write { file, offset, length, buffer, buffer_offset, append };
        let kind = Kind::Write { of, offset: buffer_offset, length, at: offset };
        self.submit(operation, kind, Some(index));
    }

    fn issue_append(&mut self) {
        let Some(Some(file)) = self.board.borrow().files.last().copied() else { return };
        let (_, length, buffer_offset) = self.choose_range();
        // Long enough to be told from others by its bytes.
        let (length, buffer_offset) = if length < 16 { (16, 0) } else { (length, buffer_offset) };
        let Some(mut buffer) = self.take_buffer() else { return };
        let mut history = self.history.borrow_mut();
        let number = history.next_number();
        let outcome = Ended::Pending;
        history.appends.push(Appended { number, len_bytes: length, offset: None, outcome });
        let index = history.appends.len() - 1;
        drop(history);
        content::fill(number, 0, &mut buffer[buffer_offset as usize..][..length as usize]);
        let (offset, append) = (0, true);
        let operation = Operation::Write { file, offset, length, buffer, buffer_offset, append };
        self.submit(operation, Kind::Append { index, number, offset: buffer_offset, length }, None);
    }

    fn issue_truncate(&mut self) {
        let Some((handle, index)) = self.choose_file() else { return };
        let size = self.random.between(0, self.options.file_bytes_max);
        let size = if self.random.coin() { size / 4096 * 4096 } else { size };
        let what = What::Truncate { size };
        let of = self.history.borrow_mut().begin(self.options.number, index, what);
        let changes = AttributeChanges { size: Some(size), ..AttributeChanges::default() };
        let operation = Operation::SetAttributes { handle, changes };
        self.submit(operation, Kind::Truncate { of }, Some(index));
    }

    fn issue_question(&mut self) {
        let Some((handle, index)) = self.choose_file() else { return };
        let operation = match self.random.below(4) {
            0 => Operation::Stat { handle },
            1 => Operation::Open { file: handle },
            2 => Operation::Fsync { file: handle },
            _ => Operation::StatFs { reactor: 0 },
        };
        self.submit(operation, Kind::Ask, Some(index));
    }

    fn issue_name(&mut self) {
        if self.names.is_busy() {
            return self.issue_question();
        }
        let outstanding = &self.outstanding;
        let is_used = |file| outstanding.values().any(|one| one.file == Some(file));
        let operation = self.names.next(&mut self.random, is_used);
        self.show_own_files();
        self.submit(operation, Kind::Name, None);
    }
}

fn root() -> Handle {
    Handle::new(Inode::ROOT)
}

fn directory_name(index: usize) -> Vec<u8> {
    format!("directory{index}").into_bytes()
}
