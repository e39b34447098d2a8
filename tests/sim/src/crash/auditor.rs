//! A host that looks at everything there is: names, attributes and data.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::BorrowedFd;

use gannet_client::{Client, ClientOptions, Completion, Operation, Outcome};
use gannet_fabric::arena::{Arena, RegionIds};
use gannet_proto::operations::file_type;
use gannet_proto::{Handle, Inode};
use gannet_runtime::poller::{Now, Poller};
use gannet_runtime::time::Time;

use super::player::BUFFER_BYTES;
use super::script::read;
use crate::network::SimFabric;

/// What is at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The inode.
    pub handle: Handle,
    /// Whether it is a directory.
    pub is_directory: bool,
    /// Names that its attributes say lead to it.
    pub links: usize,
    /// Size that its attributes say.
    pub size: u64,
    /// Content of a file.
    pub content: Vec<u8>,
}

#[derive(Clone, Debug)]
enum Question {
    List { path: String, directory: Handle, after: Vec<u8> },
    Stat { path: String, file: Handle },
    Read { path: String, file: Handle },
}

/// The host.
pub struct Auditor {
    client: Client<SimFabric>,
    arena: Arena,
    questions: VecDeque<Question>,
    is_outstanding: bool,
    seen: BTreeMap<String, Seen>,
    violations: Vec<String>,
    completions: Vec<Completion>,
}

impl Auditor {
    /// A host that begins at the root.
    ///
    /// # Panics
    /// Without memory.
    #[must_use]
    pub fn new(client: ClientOptions, fabric: SimFabric) -> Auditor {
        let root = Handle::new(Inode::ROOT);
        let first = Question::List { path: String::new(), directory: root, after: Vec::new() };
        Auditor {
            client: Client::new(client, fabric),
            arena: Arena::new(&RegionIds::new(), BUFFER_BYTES, 2).expect("memory for an arena"),
            questions: VecDeque::from([first]),
            is_outstanding: false,
            seen: BTreeMap::new(),
            violations: Vec::new(),
            completions: Vec::new(),
        }
    }

    /// Whether it has seen everything, or cannot go on.
    #[must_use]
    pub fn is_over(&self) -> bool {
        (self.questions.is_empty() && !self.is_outstanding) || !self.violations.is_empty()
    }

    /// By path, what there is.
    #[must_use]
    pub fn seen(&self) -> &BTreeMap<String, Seen> {
        &self.seen
    }

    /// What was wrong.
    #[must_use]
    pub fn violations(&self) -> &[String] {
        &self.violations
    }

    fn ask(&mut self) {
        let Some(question) = self.questions.front().cloned() else { return };
        let operation = match question {
            Question::List { directory, after, .. } => Operation::Readdir { directory, after },
            Question::Stat { file, .. } => Operation::Stat { handle: file },
            Question::Read { path, file } => {
                let at = self.seen[&path].content.len() as u64;
                read(file, at, self.arena.take().expect("one request at a time"))
            }
        };
        match self.client.submit(operation, 0) {
            Ok(_) => self.is_outstanding = true,
            Err(refused) => self.violations.push(format!("refused: {}", refused.error)),
        }
    }

    fn completed(&mut self, completion: Completion) {
        let Completion { result, buffer, .. } = completion;
        self.is_outstanding = false;
        let Some(question) = self.questions.pop_front() else { return };
        match (question, result) {
            (Question::List { path, directory, .. }, Ok(Outcome::Directory(listing))) => {
                let after = listing.entries.last().map(|entry| entry.name.clone());
                for entry in listing.entries {
                    let name = String::from_utf8_lossy(&entry.name).into_owned();
                    let path = if path.is_empty() { name } else { format!("{path}/{name}") };
                    let handle = entry.handle;
                    let is_directory = entry.file_type == file_type::DIRECTORY;
                    let (links, size, content) = (0, 0, Vec::new());
                    let seen = Seen { handle, is_directory, links, size, content };
                    if self.seen.insert(path.clone(), seen).is_some() {
                        self.violations.push(format!("{path} is listed twice"));
                    }
                    self.questions.push_back(if is_directory {
                        Question::List { path, directory: handle, after: Vec::new() }
                    } else {
                        Question::Stat { path, file: handle }
                    });
                }
                if let Some(after) = after.filter(|_| !listing.end) {
                    self.questions.push_front(Question::List { path, directory, after });
                }
            }
            (Question::Stat { path, file }, Ok(Outcome::Entry(attributes))) => {
                if let Some(seen) = self.seen.get_mut(&path) {
                    seen.links = attributes.links.get() as usize;
                    seen.size = attributes.size.get();
                }
                self.questions.push_front(Question::Read { path, file });
            }
            (Question::Read { path, file }, Ok(Outcome::Read { bytes, end_of_file })) => {
                if let (Some(seen), Some(buffer)) = (self.seen.get_mut(&path), buffer) {
                    seen.content.extend_from_slice(&buffer[..bytes as usize]);
                }
                if !end_of_file {
                    self.questions.push_front(Question::Read { path, file });
                }
            }
            (question, result) => {
                self.violations.push(format!("the audit: {question:?} ended with {result:?}"));
            }
        }
    }
}

impl Poller for Auditor {
    fn poll(&mut self, now: Now) -> usize {
        let mut completions = std::mem::take(&mut self.completions);
        let mut work = self.client.poll(now.time, &mut completions);
        for completion in completions.drain(..) {
            self.completed(completion);
        }
        self.completions = completions;
        if !self.is_outstanding && !self.is_over() {
            self.ask();
            work += 1;
        }
        work
    }

    fn deadline(&self) -> Time {
        self.client.deadline()
    }

    fn arm(&mut self) {}

    fn disarm(&mut self) {}

    fn wake_descriptors(&self, _visit: &mut dyn FnMut(BorrowedFd<'_>)) {}

    fn shutdown(&mut self, _now: Now) -> bool {
        true
    }
}
