//! Memory windows: exact range, exact rights, and an end that can be relied on.

use gannet_fabric::WindowError;

use super::*;

/// Where the window of these tests starts in its registration, and how long it is.
const RANGE: (u64, u64) = (100, 512);

const FOR_WRITES: Access = Access { remote_read: false, remote_write: true };
const FOR_READS: Access = Access { remote_read: true, remote_write: false };

/// A host's registered memory, and the connection from both ends.
struct Open {
    bench: Bench,
    host: ConnectionId,
    server: ConnectionId,
    memory: Arc<Mapping>,
    base: Registration,
}

fn open(options: NetworkOptions, seed: u64) -> Open {
    let mut bench = Bench::new(options, seed, 2);
    let (host, server) = bench.connect(0, 1);
    let memory = Mapping::shareable(PAGE_BYTES).unwrap();
    let base = bench.register_for(0, host, &memory, Access::WINDOWS_ONLY);
    Open { bench, host, server, memory, base }
}

impl Open {
    fn ask(&mut self, access: Access) -> Result<Registration, WindowError> {
        let (offset, len_bytes) = RANGE;
        self.bench.fabrics[0].open_window(self.host, self.base.key, offset, len_bytes, access)
    }

    fn window(&mut self, access: Access) -> Registration {
        let made = self.ask(access).unwrap();
        self.bench.fabrics[0].flush();
        self.bench.settle();
        assert!(self.bench.seen[0].contains(&Seen::Registered(self.host, made.key.0)));
        made
    }

    /// The server writes `len_bytes` bytes from `offset` bytes into a window.
    fn write(&mut self, window: Registration, offset: i64, len_bytes: usize) {
        let mut write = transfer(1, filled(9, len_bytes), window, 0);
        write.remote.address = write.remote.address.wrapping_add_signed(offset);
        self.bench.fabrics[1].write(self.server, write).unwrap();
        self.bench.fabrics[1].flush();
    }

    fn changed(&self) -> Vec<usize> {
        let bytes = content(&self.memory);
        (0..bytes.len()).filter(|place| bytes[*place] != 0).collect()
    }

    fn closed(&self, window: Registration) -> bool {
        self.bench.seen[0].contains(&Seen::Deregistered(self.host, window.key.0))
    }
}

#[test]
fn one_byte_past_a_window_nothing_moves() {
    let cases = [
        ("all of it", 0, 512, true),
        ("its last byte", 511, 1, true),
        ("a byte past its end", 0, 513, false),
        ("the byte behind it", 512, 1, false),
        ("a byte before its start", -1, 512, false),
        ("nothing but the byte before", -1, 1, false),
    ];
    for (case, offset, len_bytes, is_right) in cases {
        let mut open = open(NetworkOptions::calm(Model::Verbs), 3);
        let window = open.window(FOR_WRITES);
        assert_eq!(window.address, open.base.address + RANGE.0);
        open.write(window, offset, len_bytes);
        open.bench.settle();
        let status = if is_right { TransferStatus::Done } else { TransferStatus::AccessRefused };
        assert_eq!(open.bench.statuses(1)[&1], [status], "{case}");
        let start = (RANGE.0 as i64 + offset) as usize;
        let moved: Vec<usize> =
            if is_right { (start..start + len_bytes).collect() } else { vec![] };
        assert_eq!(open.changed(), moved, "{case}");
        let end = (!is_right).then_some(DisconnectReason::TransferRefused);
        assert_eq!(open.bench.end_of(1, open.server), end, "{case}");
    }
}

#[test]
fn a_window_has_one_direction_and_its_registration_none() {
    for (access, is_write) in [(FOR_READS, true), (FOR_WRITES, false)] {
        let mut open = open(NetworkOptions::calm(Model::Verbs), 4);
        let window = open.window(access);
        let transfer = transfer(1, filled(9, 512), window, 0);
        let server = &mut open.bench.fabrics[1];
        let posted = match is_write {
            true => server.write(open.server, transfer),
            false => server.read(open.server, transfer),
        };
        posted.unwrap();
        server.flush();
        open.bench.settle();
        assert_eq!(open.bench.statuses(1)[&1], [TransferStatus::AccessRefused]);
        assert!(open.changed().is_empty());
    }
    let mut open = open(NetworkOptions::calm(Model::Verbs), 4);
    open.window(FOR_WRITES);
    let base = open.base;
    open.write(base, RANGE.0 as i64, 1);
    open.bench.settle();
    assert_eq!(open.bench.statuses(1)[&1], [TransferStatus::AccessRefused]);
    assert!(open.changed().is_empty());
}

#[test]
fn a_window_is_of_no_use_before_it_is_open() {
    let mut open = open(NetworkOptions::calm(Model::Verbs), 5);
    let window = open.ask(FOR_WRITES).unwrap();
    open.bench.settle();
    assert!(!open.bench.seen[0].contains(&Seen::Registered(open.host, window.key.0)));
    open.write(window, 0, 512);
    open.bench.settle();
    assert_eq!(open.bench.statuses(1)[&1], [TransferStatus::AccessRefused]);
    assert!(open.changed().is_empty());
}

#[test]
fn a_closed_window_lets_nothing_through_and_an_open_one_until_then() {
    let (mut early, mut late) = (0, 0);
    for seed in 0..40 {
        let mut open = open(NetworkOptions::calm(Model::Verbs), seed);
        let window = open.window(FOR_WRITES);
        open.bench.fabrics[0].deregister(open.host, window.key);
        open.bench.fabrics[0].deregister(open.host, window.key);
        open.bench.settle();
        assert!(!open.closed(window), "not before the flush");
        open.bench.fabrics[0].flush();
        open.write(window, 0, 512);
        // Both are under way: the device closes the window before the write arrives, or after.
        while !open.closed(window) {
            let next = open.bench.network.next_event();
            open.bench.now = next;
            open.bench.network.advance(next);
            open.bench.poll_all();
        }
        let changed = open.changed().len();
        open.bench.settle();
        assert_eq!(open.changed().len(), changed, "nothing comes after the end was told");
        match open.bench.statuses(1)[&1][0] {
            TransferStatus::Done => early += 1,
            TransferStatus::AccessRefused => late += 1,
            TransferStatus::ConnectionLost => panic!("the connection lives until then"),
        }
        let told = Seen::Deregistered(open.host, window.key.0);
        assert_eq!(open.bench.seen[0].iter().filter(|seen| **seen == told).count(), 1);
    }
    assert!(early > 5 && late > 5, "{early} early, {late} late");
}

#[test]
fn a_window_ends_with_its_registration_and_with_its_connection() {
    let mut with_base = open(NetworkOptions::calm(Model::Verbs), 6);
    let window = with_base.window(FOR_WRITES);
    let base = with_base.base;
    with_base.bench.fabrics[0].deregister(with_base.host, base.key);
    with_base.bench.settle();
    assert!(with_base.closed(window) && with_base.closed(base));
    with_base.write(window, 0, 512);
    with_base.bench.settle();
    assert_eq!(with_base.bench.statuses(1)[&1], [TransferStatus::AccessRefused]);
    assert!(with_base.changed().is_empty());

    let mut with_connection = open(NetworkOptions::calm(Model::Verbs), 7);
    let window = with_connection.window(FOR_WRITES);
    let host = with_connection.host;
    with_connection.bench.fabrics[0].disconnect(host);
    with_connection.write(window, 0, 512);
    with_connection.bench.settle();
    assert_ne!(with_connection.bench.statuses(1)[&1], [TransferStatus::Done]);
    assert!(with_connection.changed().is_empty());
    assert_eq!(with_connection.ask(FOR_WRITES), Err(WindowError::NotConnected));
}

#[test]
fn windows_are_bounded_and_lie_inside_a_registration() {
    let options = NetworkOptions { windows_max: 3, ..NetworkOptions::calm(Model::Verbs) };
    let mut open = open(options, 8);
    let first = open.window(FOR_READS);
    open.window(FOR_READS);
    open.ask(FOR_WRITES).unwrap();
    assert_eq!(open.ask(FOR_WRITES), Err(WindowError::Full));
    open.bench.fabrics[0].deregister(open.host, first.key);
    open.bench.fabrics[0].flush();
    assert_eq!(open.ask(FOR_WRITES), Err(WindowError::Full), "it is on its way out");
    open.bench.settle();
    let again = open.window(FOR_WRITES);

    let page = PAGE_BYTES as u64;
    let fabric = &mut open.bench.fabrics[0];
    fabric.deregister(open.host, again.key);
    fabric.flush();
    open.bench.settle();
    let fabric = &mut open.bench.fabrics[0];
    let mut ask = |base, offset, len_bytes| {
        fabric.open_window(open.host, base, offset, len_bytes, FOR_READS).map(|_| ())
    };
    for (offset, len_bytes) in [(0, page + 1), (page, 1), (1, page), (u64::MAX, 1)] {
        assert_eq!(ask(open.base.key, offset, len_bytes), Err(WindowError::Range));
    }
    assert_eq!(ask(gannet_fabric::Key(u32::MAX), 0, 1), Err(WindowError::Range), "no such key");
    assert_eq!(ask(again.key, 0, 1), Err(WindowError::Range), "no windows of windows");
    assert_eq!(ask(open.base.key, page - 1, 1), Ok(()));
}

#[test]
fn shm_has_no_windows() {
    let mut open = open(NetworkOptions::calm(Model::Shm), 9);
    assert_eq!(open.ask(FOR_READS), Err(WindowError::Unsupported));
}
