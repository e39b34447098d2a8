//! Connections to peers whose names take long to be looked up.

use std::io;
use std::net::SocketAddr;
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};

use gannet_runtime::time::Time;

use super::{is_woken, port_of};
use crate::names::Names;
use crate::tcp::{TcpFabric, TcpOptions};
use crate::{Address, ConnectionId, DisconnectReason, Event, Events, Fabric};

const LONG: Duration = Duration::from_secs(20);

/// A fabric with a name server that answers when it is told to, with this machine's address.
struct Slow {
    fabric: TcpFabric,
    /// A name was asked for.
    asked: mpsc::Receiver<String>,
    answer: mpsc::Sender<()>,
    events: Events,
}

fn slow(connect_timeout: Duration) -> Slow {
    let mut fabric =
        TcpFabric::new(TcpOptions { connect_timeout, ..TcpOptions::default() }).unwrap();
    let (ask, asked) = mpsc::channel();
    let (answer, told) = mpsc::channel();
    let told = Mutex::new(told);
    let look_up = move |host: &str, port| {
        ask.send(host.to_owned()).unwrap();
        told.lock().unwrap().recv_timeout(LONG).map_err(|_| io::ErrorKind::TimedOut)?;
        match host {
            "nobody" => Err(io::ErrorKind::NotFound.into()),
            _ => Ok(SocketAddr::from(([127, 0, 0, 1], port))),
        }
    };
    fabric.names = Names::with(Box::new(look_up)).unwrap();
    Slow { fabric, asked, answer, events: Events::default() }
}

impl Slow {
    fn connect(&mut self, host: &str, port: u16) -> ConnectionId {
        let start = Instant::now();
        let id = self.fabric.connect(&Address::tcp(&format!("{host}:{port}")).unwrap()).unwrap();
        assert!(start.elapsed() < LONG / 4, "the caller waited {:?}", start.elapsed());
        id
    }

    /// Polls, with another fabric, until something happened to a connection.
    fn happened(&mut self, id: ConnectionId, server: Option<&mut TcpFabric>) -> Event {
        let mut server = server;
        let start = Instant::now();
        loop {
            if let Some(server) = &mut server {
                server.poll(Time::monotonic(), &mut Events::default());
                server.flush();
            }
            self.fabric.poll(Time::monotonic(), &mut self.events);
            self.fabric.flush();
            while let Some(event) = self.events.pop() {
                match event {
                    Event::Connected { connection } | Event::Disconnected { connection, .. }
                        if connection == id =>
                    {
                        return event;
                    }
                    _ => {}
                }
            }
            assert!(start.elapsed() < LONG, "nothing happened");
        }
    }

    fn ends(&mut self, id: ConnectionId) -> DisconnectReason {
        match self.happened(id, None) {
            Event::Disconnected { reason, .. } => reason,
            other => panic!("{other:?}"),
        }
    }
}

fn server() -> (TcpFabric, u16) {
    let mut server = TcpFabric::new(TcpOptions::default()).unwrap();
    server.listen(&Address::tcp("127.0.0.1:0").unwrap()).unwrap();
    let port = port_of(&server);
    (server, port)
}

#[test]
fn connecting_goes_on_when_the_name_is_known() {
    let (mut server, port) = server();
    let mut slow = slow(2 * LONG);
    let id = slow.connect("somebody", port);
    assert_eq!(slow.asked.recv().unwrap(), "somebody");
    slow.fabric.flush();
    slow.fabric.arm();
    slow.fabric.poll(Time::monotonic(), &mut slow.events);
    assert_eq!(slow.events.len(), 0);
    // Others are served meanwhile, and addresses are asked of nobody.
    let other = slow.connect("127.0.0.1", port);
    assert!(matches!(slow.happened(other, Some(&mut server)), Event::Connected { .. }));
    assert!(slow.asked.try_recv().is_err());

    slow.fabric.arm();
    slow.fabric.poll(Time::monotonic(), &mut slow.events);
    slow.answer.send(()).unwrap();
    assert!(is_woken(&slow.fabric, LONG), "the answer wakes nobody");
    slow.fabric.disarm();
    assert!(matches!(slow.happened(id, Some(&mut server)), Event::Connected { .. }));
}

#[test]
fn a_name_without_an_address_is_unreachable() {
    let mut slow = slow(2 * LONG);
    let id = slow.connect("nobody", 1);
    slow.answer.send(()).unwrap();
    assert_eq!(slow.ends(id), DisconnectReason::Unreachable);
    assert_eq!(slow.fabric.connections(), 0);
}

/// Time passes while a name is looked up, and users lose interest; an answer that comes later
/// concerns nobody, also not who has the place by then.
#[test]
fn late_answers_concern_nobody() {
    let mut slow = slow(Duration::from_millis(300));
    let start = Instant::now();
    let early = slow.connect("somebody", 1);
    assert_eq!(slow.ends(early), DisconnectReason::Unreachable);
    assert!(start.elapsed() >= Duration::from_millis(300), "it was not waited for");

    let given_up = slow.connect("somebody", 2);
    slow.fabric.disconnect(given_up);
    assert_eq!(slow.ends(given_up), DisconnectReason::Local);

    let last = slow.connect("somebody", 3);
    assert_eq!((last.index, given_up.index), (early.index, early.index), "one place");
    // The first one's answer.
    slow.answer.send(()).unwrap();
    let start = Instant::now();
    while !slow.fabric.names.has_answers() {
        assert!(start.elapsed() < LONG);
    }
    slow.fabric.poll(Time::monotonic(), &mut slow.events);
    let found = slow.fabric.at(last.index).unwrap();
    assert!(found.socket.is_none() && !found.connecting, "it is not the last one's");
    assert_eq!(slow.ends(last), DisconnectReason::Unreachable);
}
