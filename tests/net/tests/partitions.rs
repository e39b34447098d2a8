//! Every link of a cluster over TCP is cut in turn, wholly and in each direction alone, for longer
//! than every time-out, while two hosts read, write, create and remove.
//!
//! No request may take longer than its time-outs say; nothing that was acknowledged may be lost;
//! a request that failed has taken effect as a whole or not at all, and its buffer, which is in
//! other use at once, is not written into any more (H2), nor is what it holds then stored (H3); and
//! both hosts are served by all servers again within seconds of the link's return.

use std::time::{Duration, Instant};

use gannet_client::{ClientOptions, Operation, Ownership};
use gannet_integration::cluster::{Cluster, ClusterOptions, Stats};
use gannet_integration::host::Host;
use gannet_integration::load::{Done, Load, Model, Served};
use gannet_integration::process::run;
use gannet_integration::{load, one_at_a_time};
use gannet_net::fabrics;
use gannet_net::filter::Drops;
use gannet_net::lab::{Direction, Family};
use gannet_net::site::{self, HOSTS, Party, SHORT, Site, TARGETS, load_with};

/// How long a link is cut: longer than all that waits for it.
const OUTAGE: Duration = Duration::from_secs(5);
const _: () = assert!(OUTAGE.as_millis() > 2 * SHORT.peer.as_millis());
/// An outage that is shorter than all of that.
const SHORT_OUTAGE: Duration = Duration::from_secs(1);
/// Until when both hosts are served again by all servers.
const RETURN_MAX: Duration = Duration::from_secs(5);
/// How long a request may take beyond its time-outs, on a machine with other things to do.
const SLACK: Duration = Duration::from_secs(1);
/// Requests of each host that complete before a link is cut.
const BETWEEN: u64 = 300;

/// Requests of a host that ends, and bytes of each.
const ENDING_REQUESTS: u32 = 32;
const ENDING_BYTES: usize = 256 << 10;
/// How long its end may take.
const ENDING_MAX: Duration = Duration::from_secs(1);

/// How often the servers are asked for something that nothing tells.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// How a link is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    /// The plug is out.
    Unplugged,
    /// One direction is lost.
    Deaf(Direction),
}

const CUTS: [Cut; 3] =
    [Cut::Unplugged, Cut::Deaf(Direction::ToParty), Cut::Deaf(Direction::FromParty)];

impl Cut {
    fn begin(self, site: &Site, party: Party) {
        let (lab, party) = (site.lab(), party.number());
        match self {
            Cut::Unplugged => lab.unplug(party),
            Cut::Deaf(direction) => lab.filter(party, direction, Drops::All),
        }
    }

    /// Ends it; returns how many packets were lost where that is counted.
    fn end(self, site: &Site, party: Party) -> Option<u64> {
        let (lab, party) = (site.lab(), party.number());
        match self {
            Cut::Unplugged => {
                lab.plug(party);
                None
            }
            Cut::Deaf(direction) => {
                let lost = lab.dropped(party, direction);
                lab.filter(party, direction, Drops::None);
                Some(lost)
            }
        }
    }
}

#[test]
#[ignore = "needs root and network namespaces: run tests/run net"]
fn partitions_of_every_link_lose_nothing_and_end_with_the_link() {
    let _turn = one_at_a_time();
    assert!(OUTAGE > SHORT.longest());
    let site = Site::new(Family::V4);
    let options = ClusterOptions { store_size: "128M", ..site.cluster_with(&SHORT) };
    let mut cluster = Cluster::new(options);
    let address = cluster.address();
    let start = |host: usize| {
        let space = site.space(Party::Host(host));
        space.enter(|| Load::start(&address, load_with(host, &SHORT)))
    };
    let mut loads: Vec<Load> = (0..HOSTS).map(start).collect();
    let mut totals = [Done::default(); HOSTS];
    for party in Party::all() {
        for cut in CUTS {
            let dones = cut_once(&site, &mut loads, party, cut);
            assert!(cluster.is_running(), "{party} {cut:?}: a server has ended");
            for (total, done) in totals.iter_mut().zip(dones) {
                total.canaries += done.canaries;
                total.failures += done.failures;
                total.doubts += done.doubts;
                total.applied += done.applied;
            }
        }
    }
    let finished: Vec<(Model, Done)> = loads.into_iter().map(Load::finish).collect();
    for (host, (model, last)) in finished.iter().enumerate() {
        totals[host].canaries += last.canaries;
        let Done { failures, doubts, applied, canaries, .. } = totals[host];
        println!(
            "host {host}: {failures} failed, {doubts} in doubt, {applied} of them applied, \
             {canaries} buffers watched"
        );
        assert!(totals[host].canaries > 0, "no buffer was watched");
        let other = (host + 1) % HOSTS;
        let space = site.space(Party::Host(other));
        space.enter(|| model.verify(&mut load::open(&address)));
    }
    let used = cluster.used_bytes();
    let blocks: u64 = finished.iter().map(|(model, _)| model.blocks_bytes()).sum();
    assert_eq!(used, blocks, "what was cut short has left nothing behind");
    cluster.stop();
}

/// Outages that are shorter than the time-outs are not even noticed by connections.
#[test]
#[ignore = "needs root and network namespaces: run tests/run net"]
fn short_outages_of_every_link_delay_only() {
    let _turn = one_at_a_time();
    let site = Site::new(Family::V6);
    let mut cluster = Cluster::new(ClusterOptions { store_size: "128M", ..site.cluster() });
    let address = cluster.address();
    let start = |host: usize| {
        site.space(Party::Host(host)).enter(|| Load::start(&address, site::load(host)))
    };
    let mut loads: Vec<Load> = (0..HOSTS).map(start).collect();
    for party in Party::all() {
        for cut in CUTS {
            loads.iter_mut().for_each(|load| load.progress(BETWEEN));
            cut.begin(&site, party);
            // The outage itself, not a wait for something.
            std::thread::sleep(SHORT_OUTAGE);
            let back = Instant::now();
            let lost = cut.end(&site, party);
            let settled = loads.iter_mut().map(Load::settle).max().expect("there are loads");
            let returned = settled.saturating_duration_since(back);
            println!("{party} {cut:?}: all requests done {returned:?} after the return");
            assert_ne!(lost, Some(0), "nothing was lost");
            assert!(returned <= RETURN_MAX, "{party} {cut:?}: {returned:?}");
        }
    }
    let finished: Vec<(Model, Done)> = loads.into_iter().map(Load::finish).collect();
    for (host, (model, done)) in finished.iter().enumerate() {
        println!("host {host}: {done:?}");
        assert!(done.longest >= SHORT_OUTAGE, "host {host} felt nothing");
        assert_eq!(done.disconnects, 0, "host {host}: connections broke");
        let other = (host + 1) % HOSTS;
        let space = site.space(Party::Host(other));
        space.enter(|| model.verify(&mut load::open(&address)));
    }
    assert!(cluster.is_running());
    cluster.stop();
}

/// A host that ends with requests under way and all its servers out of reach does so at once.
#[test]
#[ignore = "needs root and network namespaces: run tests/run net"]
fn a_host_that_is_cut_off_ends_at_once() {
    let _turn = one_at_a_time();
    let site = Site::new(Family::V4);
    let mut cluster = Cluster::new(site.cluster());
    let address = cluster.address();
    for since_cut in [Duration::ZERO, Duration::from_secs(1), SHORT.longest()] {
        let took = site.space(Party::Host(0)).enter(|| {
            let mut session = load::open(&address);
            let name = format!("/file-{}", since_cut.as_secs());
            let file = session.create(&name, Ownership::default(), true).expect("made").handle;
            let bytes = vec![7; ENDING_BYTES * ENDING_REQUESTS as usize];
            session.write_at(file, 0, &bytes).expect("written");
            let adjust = |_: &mut ClientOptions| ();
            let mut host = Host::new(&address, ENDING_BYTES, 2 * ENDING_REQUESTS, adjust);
            let submit = |host: &mut Host, token: u32| {
                let (buffer, length) = (host.buffer(), ENDING_BYTES as u32);
                let offset = u64::from(token % ENDING_REQUESTS) * ENDING_BYTES as u64;
                let operation = if token.is_multiple_of(2) {
                    Operation::Read { file, offset, length, buffer, buffer_offset: 0 }
                } else {
                    let append = false;
                    Operation::Write { file, offset, length, buffer, buffer_offset: 0, append }
                };
                host.submit(operation, token.into());
            };
            (0..ENDING_REQUESTS).for_each(|token| submit(&mut host, token));
            let mut done = 0;
            while done < ENDING_REQUESTS as usize / 2 {
                done += host.wait(Duration::from_secs(1)).len();
            }
            site.lab().unplug(Party::Host(0).number());
            (ENDING_REQUESTS..2 * ENDING_REQUESTS).for_each(|token| submit(&mut host, token));
            let end = Instant::now() + since_cut;
            // At least once, so that the requests leave.
            loop {
                let _few = host.wait(Duration::from_millis(10));
                if Instant::now() >= end {
                    break;
                }
            }
            assert!(host.client().outstanding() > 0, "all was done");
            let begun = Instant::now();
            drop(host);
            drop(session);
            begun.elapsed()
        });
        site.lab().plug(Party::Host(0).number());
        println!("{since_cut:?} after the cut the host ended within {took:?}");
        assert!(took <= ENDING_MAX, "{took:?}");
    }
    assert!(cluster.is_running());
    cluster.stop();
}

/// A host that has nothing to ask and vanishes is noticed by all servers, to whom it is only silent.
#[test]
#[ignore = "needs root and network namespaces: run tests/run net"]
fn an_idle_host_that_vanishes_is_noticed() {
    let _turn = one_at_a_time();
    let site = Site::new(Family::V4);
    let mut cluster = Cluster::new(site.cluster_with(&SHORT));
    let address = cluster.address();
    let noticed = site.space(Party::Host(1)).enter(|| {
        let mut session = load::open(&address);
        let file = session.create("/file", Ownership::default(), true).expect("made").handle;
        session.write_at(file, 0, &vec![7; 16 << 20]).expect("written to all data servers");
        let noticed = vanish(&site, 1);
        drop(session);
        noticed
    });
    println!("noticed after {noticed:?}");
    assert!(cluster.is_running());
    cluster.stop();
}

/// Unplugs a host that is connected, and returns how long it took until all servers had noticed.
fn vanish(site: &Site, host: usize) -> Duration {
    let look = || Stats(run(site.command(0, &["stats", "--json"])).json());
    let before = look();
    let connections = fabrics::connections_with(site, &before, host);
    assert!(connections > TARGETS, "the host is connected with all servers: {connections}");
    site.lab().unplug(Party::Host(host).number());
    let begun = Instant::now();
    loop {
        let now = look();
        let is_gone = fabrics::connections_with(site, &now, host) == 0;
        if is_gone && now.metaserver("sessions") < before.metaserver("sessions") {
            return begun.elapsed();
        }
        let at_most = 2 * SHORT.peer + SHORT.lease + SLACK;
        assert!(begun.elapsed() <= at_most, "it is not noticed: {:#}", now.0);
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Cuts a link and joins it again; returns what the hosts did meanwhile.
fn cut_once(site: &Site, loads: &mut [Load], party: Party, cut: Cut) -> Vec<Done> {
    loads.iter_mut().for_each(|load| load.progress(BETWEEN));
    cut.begin(site, party);
    // The outage itself, not a wait for something.
    std::thread::sleep(OUTAGE);
    let back = Instant::now();
    let lost = cut.end(site, party);
    let served: Vec<Served> = loads.iter_mut().map(Load::served).collect();
    let dones: Vec<Done> = std::thread::scope(|scope| {
        let checks: Vec<_> = loads.iter_mut().map(|load| scope.spawn(|| load.check())).collect();
        checks.into_iter().map(|check| check.join().expect("see the load's panic above")).collect()
    });

    let seconds = |times: &[Instant]| {
        let times = times.iter().map(|time| time.saturating_duration_since(back).as_secs_f64());
        times.map(|time| format!("{time:.2}")).collect::<Vec<_>>().join(" and ")
    };
    let times = |which: fn(&Served) -> Instant| served.iter().map(which).collect::<Vec<_>>();
    println!(
        "{party} {cut:?}: read after {} s, written after {} s, served by all after {} s; {} failed \
         of {}, {} in doubt, {} of them applied; longest {:.2} s; {}",
        seconds(&times(|served| served.read)),
        seconds(&times(|served| served.write)),
        seconds(&times(|served| served.all)),
        sum(&dones, |done| done.failures),
        sum(&dones, |done| done.reads + done.writes + done.names + done.failures),
        sum(&dones, |done| done.doubts),
        sum(&dones, |done| done.applied),
        dones.iter().map(|done| done.longest).max().unwrap_or_default().as_secs_f64(),
        lost.map_or_else(String::new, |lost| format!("{lost} packets lost")),
    );
    assert_ne!(lost, Some(0), "nothing was lost");
    for (host, (served, done)) in served.iter().zip(&dones).enumerate() {
        let returned = served.all.saturating_duration_since(back);
        assert!(returned <= RETURN_MAX, "host {host} is served {returned:?} after the return");
        let longest = SHORT.request + SHORT.cancel + SLACK;
        assert!(done.longest <= longest, "host {host}: a request took {:?}", done.longest);
        let is_concerned = !matches!(party, Party::Host(other) if other != host);
        assert!(done.failures > 0 || !is_concerned, "host {host} did not feel it: {done:?}");
        assert!(done.failures == 0 || is_concerned, "host {host} felt another's link: {done:?}");
    }
    dones
}

fn sum(dones: &[Done], of: fn(&Done) -> u64) -> u64 {
    dones.iter().map(of).sum()
}
