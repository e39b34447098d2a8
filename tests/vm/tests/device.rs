//! The guest has an RDMA device that works: two processes talk through it with the tools that
//! everybody compares with. If these fail, tests of this project's own programs mean nothing.

use std::process::Command;
use std::time::Duration;

use gannet_vm::guest::{self, rdma_listens, tcp_listens};
use gannet_vm::process::Process;
use gannet_vm::wait;

const START_MAX: Duration = Duration::from_secs(20);
const RUN_MAX: Duration = Duration::from_secs(60);
/// Where rping listens.
const RPING_PORT: u16 = 7174;
/// Where ibv_rc_pingpong and perftest exchange their queue pairs' numbers.
const EXCHANGE_PORT: u16 = 18515;

/// `program` with arguments, in words.
fn start(program: &str, arguments: &str) -> Process {
    let mut command = Command::new(program);
    command.args(arguments.split_whitespace());
    Process::start(&format!("{program} {arguments}"), command)
}

/// The largest index of the table of addresses that is an IPv4 address for RoCE version 2, in
/// whose packets an ordinary network sees UDP.
fn gid_index() -> usize {
    let port = format!("/sys/class/infiniband/{}/ports/1", guest::DEVICE);
    (0..16)
        .rfind(|index| {
            let read = |what: &str| std::fs::read_to_string(format!("{port}/{what}/{index}"));
            read("gids").is_ok_and(|gid| gid.starts_with("0000:0000:0000:0000:0000:ffff:"))
                && read("gid_attrs/types").is_ok_and(|kind| kind.trim() == "RoCE v2")
        })
        .expect("the port has an IPv4 address")
}

#[test]
#[ignore = "needs an RDMA device: run tests/run vm"]
fn the_port_is_active() {
    let port = format!("/sys/class/infiniband/{}/ports/1", guest::DEVICE);
    let state = std::fs::read_to_string(format!("{port}/state")).expect("the device is there");
    assert_eq!(state.trim(), "4: ACTIVE");
    let layer = std::fs::read_to_string(format!("{port}/link_layer")).expect("the device is there");
    assert_eq!(layer.trim(), "Ethernet");
}

#[test]
#[ignore = "needs an RDMA device: run tests/run vm"]
fn the_connection_manager_connects_two_processes() {
    let address = guest::own_address();
    let server = start("rping", &format!("-s -v -a {address} -C 20"));
    wait::until("rping to listen", START_MAX, || rdma_listens(RPING_PORT));
    let client = start("rping", &format!("-c -V -a {address} -C 20"));
    let _said = client.wait(RUN_MAX).success();
    let said = server.wait(RUN_MAX).success();
    let pings = said.lines().filter(|line| line.starts_with("server ping data: rdma-ping-"));
    assert_eq!(pings.count(), 20, "{said}");
}

#[test]
#[ignore = "needs an RDMA device: run tests/run vm"]
fn messages_go_between_queue_pairs() {
    let arguments = format!("-d {} -g {} -n 500 -c", guest::DEVICE, gid_index());
    let server = start("ibv_rc_pingpong", &arguments);
    wait::until("ibv_rc_pingpong to listen", START_MAX, || tcp_listens(EXCHANGE_PORT));
    let client = start("ibv_rc_pingpong", &format!("{arguments} {}", guest::own_address()));
    for process in [client, server] {
        let said = process.wait(RUN_MAX).success();
        assert!(said.contains("500 iters in"), "{said}");
    }
}

#[test]
#[ignore = "needs an RDMA device: run tests/run vm"]
fn one_process_writes_to_the_other_s_memory() {
    let arguments = format!("-d {} -s 65536 -n 500", guest::DEVICE);
    let server = start("ib_write_bw", &arguments);
    wait::until("ib_write_bw to listen", START_MAX, || tcp_listens(EXCHANGE_PORT));
    let client = start("ib_write_bw", &format!("{arguments} {}", guest::own_address()));
    let said = client.wait(RUN_MAX).success();
    let _said = server.wait(RUN_MAX).success();
    let figures = said
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .find(|words| words.len() == 5 && words[0] == "65536" && words[1] == "500")
        .unwrap_or_else(|| panic!("ib_write_bw printed no figures:\n{said}"));
    let average_mb_per_s: f64 = figures[3].parse().expect("a number");
    assert!(average_mb_per_s > 0.0, "{said}");
}
