//! Two machines: each of the tests runs in both, at the same time, and does its machine's part.
//! Guest 1 serves, guest 2 connects.

use std::process::Command;
use std::time::Duration;

use gannet_vm::guest;
use gannet_vm::process::Process;
use gannet_vm::wait;

const START_MAX: Duration = Duration::from_secs(20);
const BARRIER_MAX: Duration = Duration::from_secs(40);
const RUN_MAX: Duration = Duration::from_secs(60);
/// Where perftest exchanges its queue pairs' numbers.
const EXCHANGE_PORT: u16 = 18515;

#[test]
#[ignore = "needs an RDMA device: run tests/run vm"]
fn one_machine_writes_to_the_other_s_memory() {
    let mut command = Command::new("ib_write_bw");
    command.args(["-d", guest::DEVICE, "-s", "65536", "-n", "300"]);
    let process = if guest::number() == 1 {
        let server = Process::start("ib_write_bw, server", command);
        wait::until("ib_write_bw to listen", START_MAX, || guest::tcp_listens(EXCHANGE_PORT));
        guest::barrier("ib_write_bw listens", BARRIER_MAX);
        server
    } else {
        guest::barrier("ib_write_bw listens", BARRIER_MAX);
        command.arg(guest::peer_address().to_string());
        Process::start("ib_write_bw, client", command)
    };
    let said = process.wait(RUN_MAX).success();
    let done = said
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .any(|words| words.len() == 5 && words[0] == "65536" && words[1] == "300");
    assert!(done, "ib_write_bw printed no figures:\n{said}");
}
