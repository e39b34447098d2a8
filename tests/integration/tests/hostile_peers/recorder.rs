//! Stands between a host and a server, passes everything on, and remembers what the host said.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

use gannet_fabric::Address;

use crate::stream::messages;

/// See the module. It ends with the connections that it passes on.
pub(crate) struct Recorder {
    port: u16,
    said: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Recorder {
    /// Passes connections on to a port of this machine.
    pub(crate) fn start(to: u16) -> Recorder {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let said = Arc::new(Mutex::new(Vec::new()));
        let recorded = Arc::clone(&said);
        // Detached: it waits for connections as long as the test runs.
        std::thread::spawn(move || {
            for host in listener.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, to)) else { return };
                for stream in [&host, &server] {
                    stream.set_nodelay(true).expect("an option of every socket");
                }
                let number = {
                    let mut said = recorded.lock().unwrap_or_else(PoisonError::into_inner);
                    said.push(Vec::new());
                    said.len() - 1
                };
                let back = [&server, &host].map(|stream| stream.try_clone().expect("a descriptor"));
                let recorded = Arc::clone(&recorded);
                std::thread::spawn(move || {
                    pass_on(host, server, |bytes| {
                        let mut said = recorded.lock().unwrap_or_else(PoisonError::into_inner);
                        said[number].extend_from_slice(bytes);
                    });
                });
                std::thread::spawn(move || {
                    let [server, host] = back;
                    pass_on(server, host, |_| ());
                });
            }
        });
        Recorder { port, said }
    }

    /// Where hosts connect.
    pub(crate) fn address(&self) -> Address {
        Address::Tcp { host: "127.0.0.1".to_owned(), port: self.port }
    }

    /// The messages of all connections so far, in the order of connecting.
    pub(crate) fn messages(&self) -> Vec<Vec<u8>> {
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        said.iter().flat_map(|bytes| messages(bytes)).collect()
    }
}

fn pass_on(mut from: TcpStream, mut to: TcpStream, mut note: impl FnMut(&[u8])) {
    let mut bytes = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        note(&bytes[..count]);
        if to.write_all(&bytes[..count]).is_err() {
            break;
        }
    }
    // The other direction hears of it too.
    let _gone = to.shutdown(Shutdown::Both);
    let _gone = from.shutdown(Shutdown::Both);
}
