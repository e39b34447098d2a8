//! Names of hosts, looked up beside the reactor.
//!
//! A name server may take its time, so it is never the reactor that asks it. Threads do, up to
//! [`THREADS_MAX`] per fabric, which are made when there is a name to look up and end when there is
//! none left; a name that takes long leaves the others to the next thread. Answers come back in a
//! list, and a descriptor among those on which the reactor sleeps says that it is not empty.
//!
//! The fabric's reactor owns a [`Names`]; the threads share the inside of it, under a lock that is
//! never held while a name is looked up. Dropping it does not wait: the threads end when the name
//! server has answered. A crash of the process ends all of it.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gannet_runtime::eventfd::EventFd;
use gannet_runtime::time::Time;

use crate::{ConnectionId, FabricError};

/// Names that one fabric looks up at a time. More wait, each no longer than its connection.
const THREADS_MAX: usize = 4;

/// Turns host and port into an address.
type LookUp = dyn Fn(&str, u16) -> io::Result<SocketAddr> + Send + Sync;

/// A name to be looked up.
struct Question {
    asker: ConnectionId,
    host: String,
    port: u16,
    /// When the asker does not want to know any more.
    deadline: Time,
}

/// What became of a question.
#[derive(Debug)]
pub(crate) struct Answer {
    /// The connection that it is for.
    pub(crate) asker: ConnectionId,
    /// The name.
    pub(crate) host: String,
    /// Its address.
    pub(crate) address: io::Result<SocketAddr>,
}

#[derive(Default)]
struct State {
    /// At most one question per place of the fabric's table.
    questions: VecDeque<Question>,
    /// What threads are looking up: whoever asks for the same waits for the same answer, so that one
    /// name that takes long keeps one thread busy, however often it is asked for.
    under_way: Vec<(String, u16)>,
    answers: Vec<Answer>,
    threads: usize,
}

struct Shared {
    look_up: Box<LookUp>,
    state: Mutex<State>,
    /// Whether there are answers; changed under the lock.
    answered: AtomicBool,
    /// Readable if there are answers; changed under the lock.
    wake: EventFd,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // It is consistent between any two statements.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a thread does.
    fn work(&self) {
        while let Some(Question { asker, host, port, deadline: _ }) = self.next() {
            let address = (self.look_up)(&host, port);
            let mut state = self.state();
            let State { questions, under_way, answers, .. } = &mut *state;
            under_way.retain(|(name, number)| (name, *number) != (&host, port));
            questions.retain(|question| {
                let same = (&question.host, question.port) == (&host, port);
                if same {
                    let (asker, host) = (question.asker, host.clone());
                    answers.push(Answer { asker, host, address: again(&address) });
                }
                !same
            });
            answers.push(Answer { asker, host, address });
            self.answered.store(true, Ordering::Release);
            self.wake.signal();
        }
    }

    /// The next question that nobody is about to answer. Without one the thread is at its end.
    fn next(&self) -> Option<Question> {
        let mut state = self.state();
        let now = Time::monotonic();
        let State { questions, under_way, threads, .. } = &mut *state;
        questions.retain(|question| question.deadline > now);
        let asked = |question: &Question| {
            under_way.iter().any(|(host, port)| (host, *port) == (&question.host, question.port))
        };
        let next = questions.iter().position(|question| !asked(question));
        let next = next.and_then(|position| questions.remove(position));
        match &next {
            Some(question) => under_way.push((question.host.clone(), question.port)),
            None => *threads -= 1,
        }
        next
    }
}

/// The same answer for somebody else.
fn again(address: &io::Result<SocketAddr>) -> io::Result<SocketAddr> {
    match address {
        Ok(address) => Ok(*address),
        Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
    }
}

/// The names that the connections of a fabric ask for.
pub(crate) struct Names {
    shared: Arc<Shared>,
}

impl Names {
    /// Nothing asked for, and no thread.
    ///
    /// # Errors
    /// `System` when no descriptor can be made.
    pub(crate) fn new() -> Result<Names, FabricError> {
        Names::with(Box::new(crate::address::look_up))
    }

    /// The same, with a name server of its own.
    pub(crate) fn with(look_up: Box<LookUp>) -> Result<Names, FabricError> {
        let failed = |source| {
            let what = "making a descriptor for looking up names".to_owned();
            FabricError::System { what, source }
        };
        let wake = EventFd::new().map_err(failed)?;
        let (state, answered) = (Mutex::default(), AtomicBool::new(false));
        Ok(Names { shared: Arc::new(Shared { look_up, state, answered, wake }) })
    }

    /// Looks a name up for a connection, which is told of it by [`Names::take`] unless `deadline`
    /// passes before anybody gets round to it.
    ///
    /// # Errors
    /// What making a thread returns, if there is none to do it.
    pub(crate) fn ask(
        &mut self,
        asker: ConnectionId,
        host: &str,
        port: u16,
        deadline: Time,
    ) -> io::Result<()> {
        let mut state = self.shared.state();
        // Whoever had the place before is gone.
        state.questions.retain(|question| question.asker.index != asker.index);
        state.questions.push_back(Question { asker, host: host.to_owned(), port, deadline });
        // None of them is idle.
        if state.threads == THREADS_MAX {
            return Ok(());
        }
        let shared = Arc::clone(&self.shared);
        let thread = std::thread::Builder::new().name("gannet-names".to_owned());
        match thread.spawn(move || shared.work()) {
            Ok(_detached) => state.threads += 1,
            Err(error) if state.threads == 0 => {
                state.questions.clear();
                return Err(error);
            }
            Err(_) => {}
        }
        Ok(())
    }

    /// Whether there are answers. Reads a word of memory.
    #[inline]
    pub(crate) fn has_answers(&self) -> bool {
        self.shared.answered.load(Ordering::Acquire)
    }

    /// The answers that are there. The connection that asked may be gone.
    pub(crate) fn take(&mut self) -> Vec<Answer> {
        let mut state = self.shared.state();
        self.shared.wake.drain();
        self.shared.answered.store(false, Ordering::Relaxed);
        std::mem::take(&mut state.answers)
    }
}

impl AsFd for Names {
    /// Readable while there are answers.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.wake.as_fd()
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        self.shared.state().questions.clear();
    }
}

impl fmt::Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.shared.state();
        f.debug_struct("Names")
            .field("questions", &state.questions.len())
            .field("answers", &state.answers.len())
            .field("threads", &state.threads)
            .finish()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    /// A name server that answers with the port, and only when it is told to.
    fn slow() -> (Names, mpsc::Receiver<u16>, mpsc::Sender<()>) {
        let (asked, questions) = mpsc::channel();
        let (answer, told) = mpsc::channel();
        let told = Mutex::new(told);
        let look_up = move |host: &str, port: u16| {
            asked.send(port).unwrap();
            told.lock().unwrap().recv().unwrap();
            match host {
                "nobody" => Err(io::ErrorKind::NotFound.into()),
                _ => Ok(SocketAddr::from(([127, 0, 0, 1], port))),
            }
        };
        (Names::with(Box::new(look_up)).unwrap(), questions, answer)
    }

    fn id(index: u32) -> ConnectionId {
        ConnectionId { index, generation: 1 }
    }

    fn is_readable(names: &Names, within: Duration) -> bool {
        let mut entry = [PollFd::new(names, PollFlags::IN)];
        let within = Timespec { tv_sec: within.as_secs() as i64, tv_nsec: 0 };
        poll(&mut entry, Some(&within)).unwrap() == 1
    }

    const LONG: Duration = Duration::from_secs(30);

    fn next(names: &mut Names) -> Vec<Answer> {
        assert!(is_readable(names, LONG), "nothing woke the sleeper");
        assert!(names.has_answers());
        names.take()
    }

    #[test]
    fn answers_come_when_the_name_server_has_them() {
        let (mut names, questions, answer) = slow();
        let deadline = Time::monotonic() + LONG;
        names.ask(id(1), "somebody", 10, deadline).unwrap();
        assert_eq!(questions.recv().unwrap(), 10);
        assert!(!names.has_answers() && !is_readable(&names, Duration::ZERO));
        answer.send(()).unwrap();
        let answers = next(&mut names);
        assert_eq!((answers.len(), answers[0].asker, &*answers[0].host), (1, id(1), "somebody"));
        assert_eq!(answers[0].address.as_ref().unwrap().port(), 10);
        assert!(!names.has_answers() && !is_readable(&names, Duration::ZERO), "taken");

        names.ask(id(2), "nobody", 11, deadline).unwrap();
        answer.send(()).unwrap();
        let answers = next(&mut names);
        assert_eq!((answers[0].asker, answers[0].address.is_err()), (id(2), true));
    }

    #[test]
    fn a_few_at_a_time_and_nobody_for_those_who_do_not_wait() {
        let (mut names, questions, answer) = slow();
        let deadline = Time::monotonic() + LONG;
        for index in 0..THREADS_MAX as u32 {
            names.ask(id(index), "somebody", index as u16, deadline).unwrap();
        }
        let asked: Vec<_> = (0..THREADS_MAX).map(|_| questions.recv().unwrap()).collect();
        assert_eq!(asked.len(), THREADS_MAX, "none waits for another one");
        names.ask(id(10), "somebody", 10, deadline).unwrap();
        names.ask(id(11), "somebody", 11, Time::ZERO).unwrap();
        names.ask(ConnectionId { index: 10, generation: 2 }, "somebody", 12, deadline).unwrap();
        assert_eq!(names.shared.state().questions.len(), 2, "one per place");
        assert!(questions.try_recv().is_err(), "there is no thread left");
        for _ in 0..=THREADS_MAX {
            answer.send(()).unwrap();
        }
        let mut ports = Vec::new();
        while ports.len() <= THREADS_MAX {
            let answers = next(&mut names);
            ports.extend(answers.into_iter().map(|answer| answer.address.unwrap().port()));
        }
        ports.sort_unstable();
        assert_eq!(ports, [0, 1, 2, 3, 12]);
        assert_eq!(questions.try_iter().collect::<Vec<_>>(), [12], "nobody wants to know of 11");
    }

    /// However often a name that takes long is asked for, the others do not wait for it.
    #[test]
    fn one_look_up_serves_all_who_ask_for_the_same() {
        const ASKERS: u32 = 2 * THREADS_MAX as u32;
        let (mut names, questions, answer) = slow();
        let deadline = Time::monotonic() + LONG;
        for index in 0..ASKERS {
            names.ask(id(index), "nobody", 1, deadline).unwrap();
        }
        assert_eq!(questions.recv().unwrap(), 1);
        names.ask(id(ASKERS), "somebody", 2, deadline).unwrap();
        assert_eq!(questions.recv().unwrap(), 2, "it waits for the other one");
        answer.send(()).unwrap();
        answer.send(()).unwrap();
        let mut answers = Vec::new();
        while answers.len() <= ASKERS as usize {
            answers.extend(next(&mut names));
        }
        answers.sort_by_key(|answer| answer.asker.index);
        let found: Vec<_> = answers.iter().map(|answer| answer.address.is_ok()).collect();
        assert_eq!(found[..ASKERS as usize], [false; ASKERS as usize]);
        assert!(found[ASKERS as usize] && questions.try_recv().is_err(), "asked again");
        assert!(names.shared.state().under_way.is_empty());
    }

    #[test]
    fn the_end_waits_for_nobody() {
        let (mut names, questions, answer) = slow();
        for index in 0..2 * THREADS_MAX as u32 {
            names.ask(id(index), "somebody", index as u16, Time::monotonic() + LONG).unwrap();
        }
        for _ in 0..THREADS_MAX {
            questions.recv().unwrap();
        }
        drop(names);
        // The threads see nobody who would tell them to answer, and end; what waited is not asked.
        (0..THREADS_MAX).for_each(|_| answer.send(()).unwrap());
        assert!(questions.recv().is_err(), "nobody has the other end any more");
    }
}
