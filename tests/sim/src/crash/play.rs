//! Plays a scene, with or without a crash.

use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use gannet_client::ClientOptions;
use gannet_fabric::Address;
use gannet_proto::SessionId;
use gannet_runtime::time::Time;

use super::auditor::Auditor;
use super::judge::{self, Fates};
use super::player::{Player, Progress, Stage};
use super::scene::Scene;
use super::script::Step;
use crate::cluster::Cluster;
use crate::disk::{DiskEvent, DiskEvents, Moment, PowerLoss, SimMedium};
use crate::network::SimFabric;
use crate::random::Random;
use crate::scheduler::{RoleId, Stuck};
use crate::trace::Trace;

/// Virtual time that anything may take.
const PATIENCE: Duration = Duration::from_secs(200);
/// How soon a start is tried again while a dead process's I/O runs.
const START_RETRY: Duration = Duration::from_micros(500);
/// Beyond the lease, until nothing is left of a host that went.
const REST: Duration = Duration::from_secs(15);

/// Who crashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Victims {
    /// The metadata server.
    Metaserver,
    /// The data server on whose disk it happens; another one if that is the metadata server's.
    Target,
    /// All servers.
    Servers,
    /// All servers and all hosts.
    Everything,
}

/// How.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// The processes die; what they have handed to their devices goes on for a while, or not.
    Process,
    /// The machines lose power.
    Power(PowerLoss),
}

/// A crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crash {
    /// When.
    pub moment: Moment,
    /// Who.
    pub victims: Victims,
    /// How.
    pub loss: Loss,
    /// Once more, so many events later: while the servers recover.
    pub again: Option<u64>,
    /// Lets chance go a way of its own from the crash on.
    pub salt: u64,
}

/// What a run without anything wrong came to.
#[derive(Clone, Debug)]
pub struct Played {
    /// What happened on the disks until the scripts were over.
    pub events: Vec<DiskEvent>,
    /// Crashes that came.
    pub crashes: u32,
    /// What became of outstanding steps, of hosts that died or were told of a doubt.
    pub fates: Fates,
    /// Hosts that live and were told that a change is in doubt.
    pub in_doubt: u32,
    /// The hosts, at their end.
    pub hosts: Vec<Progress>,
}

struct Play<'a> {
    scene: &'a Scene,
    cluster: Cluster,
    events: DiskEvents,
    random: Random,
    crash: Option<Crash>,
    crashes: u32,
    players: Vec<(RoleId, Rc<RefCell<Player>>)>,
    /// Hosts that are gone.
    gone: Vec<Progress>,
}

/// Plays a scene.
///
/// # Errors
/// What was wrong.
pub fn play(scene: &Scene, crash: Option<Crash>) -> Result<Played, String> {
    let random = Random::seeded(scene.seed);
    let trace = Trace::new();
    let mut cluster = Cluster::new(scene.shape.clone(), &random, &trace);
    let events = DiskEvents::default();
    cluster.metaserver_medium().watch(&events, 0);
    for (index, medium) in cluster.target_media().iter().enumerate() {
        medium.watch(&events, index + 1);
    }
    cluster.scheduler.stand_still_on(events.standstill());
    match crash {
        Some(crash) => events.stop_at(crash.moment),
        None => events.record(),
    }
    let (players, gone) = (Vec::new(), Vec::new());
    let random = random.stream("hosts");
    Play { scene, cluster, events, random, crash, crashes: 0, players, gone }.everything()
}

impl Play<'_> {
    fn everything(mut self) -> Result<Played, String> {
        let scene = self.scene;
        self.add_player(0, scene.stage.clone(), Stage::default());
        self.play_on("the stage")?;
        // Without a stage nobody plays.
        let is_built = self.players.iter().all(|(_, host)| host.borrow().progress().is_complete());
        if self.gone.is_empty() && is_built {
            let built = self.players[0].1.borrow().progress().clone();
            for (index, script) in scene.hosts.iter().enumerate() {
                let stage = (built.tree.clone(), built.handles.clone());
                self.add_player(index as u8 + 1, script.clone(), stage);
            }
            self.play_on("the scripts")?;
        }
        if self.crash.is_some() && self.crashes == 0 {
            return Err("the moment of the crash did not come: runs of a seed differ".to_owned());
        }
        let events = self.events.recorded();
        let (hosts, fates) = self.audit()?;
        self.end()?;
        let in_doubt = hosts.iter().filter(|host| host.is_in_doubt).count() as u32;
        Ok(Played { events, crashes: self.crashes, fates, in_doubt, hosts })
    }

    fn client(&mut self, name: &str) -> (ClientOptions, SimFabric) {
        let fabric = self.cluster.network.fabric(name);
        let metaserver = Address::shm("/sim/meta.0").expect("a short path");
        let session = SessionId(self.random.bits() | 1);
        let mut client = ClientOptions::new(metaserver, session, self.random.bits());
        client.slots = self.scene.shape.slots;
        client.requests_max = 4;
        (client, fabric)
    }

    fn add_player(&mut self, number: u8, script: Vec<Step>, stage: Stage) {
        let name = format!("host.{number}");
        let (client, fabric) = self.client(&name);
        let endpoint = fabric.endpoint();
        let reactors = self.scene.shape.reactors as u16;
        let player = Player::new(number, script, stage, reactors, client, fabric);
        let player = Rc::new(RefCell::new(player));
        let role = self.cluster.scheduler.add_role(&name, player.clone(), vec![endpoint]);
        self.players.push((role, player));
    }

    /// Lets all hosts play to the end of their scripts, unless they die.
    fn play_on(&mut self, what: &str) -> Result<(), String> {
        let players: Vec<_> = self.players.iter().map(|(_, player)| Rc::clone(player)).collect();
        self.run(what, move || players.iter().all(|player| player.borrow().progress().is_over()))?;
        let players = self.players.iter().map(|(_, player)| player.borrow());
        let wrong: Vec<String> =
            players.flat_map(|player| player.progress().violations.clone()).collect();
        match wrong.is_empty() {
            true => Ok(()),
            false => Err(wrong.join("; ")),
        }
    }

    /// Runs until `is_over`, through crashes. Ends early when the hosts die.
    fn run(&mut self, what: &str, mut is_over: impl FnMut() -> bool) -> Result<(), String> {
        loop {
            match self.cluster.scheduler.run_until(PATIENCE, |_| is_over()) {
                Ok(()) => return Ok(()),
                Err(Stuck::StandsStill) => {
                    let had_hosts = !self.players.is_empty();
                    self.crash_now()?;
                    if had_hosts && self.players.is_empty() {
                        return Ok(());
                    }
                }
                Err(stuck) => {
                    let state = self.cluster.describe();
                    return Err(format!("{what} does not end: {stuck}\n{state}"));
                }
            }
            if let Some(failure) = self.cluster.failure() {
                return Err(format!("the metadata server failed: {failure}"));
            }
        }
    }

    /// The crash, where everything stands still; and the start of what crashed.
    fn crash_now(&mut self) -> Result<(), String> {
        let Some(crash) = self.crash else { return Err("nothing was to stand still".to_owned()) };
        self.crashes += 1;
        let targets = self.cluster.target_media().len();
        let disk = self.events.at().map_or(0, |event| event.disk);
        let target = disk.checked_sub(1).unwrap_or(crash.salt as usize % targets);
        let (metaserver, targets) = match crash.victims {
            Victims::Metaserver => (true, target..target),
            Victims::Target => (false, target..target + 1),
            Victims::Servers | Victims::Everything => (true, 0..targets),
        };
        let prepare = |medium: &SimMedium| {
            medium.stir(crash.salt);
            if let Loss::Power(power_loss) = crash.loss {
                medium.tune(|options| options.power_loss = power_loss);
            }
        };
        let loses_power = crash.loss != Loss::Process;
        if metaserver {
            prepare(self.cluster.metaserver_medium());
            self.cluster.crash_metaserver(loses_power);
        }
        for target in targets.clone() {
            prepare(&self.cluster.target_media()[target]);
            self.cluster.crash_target(target, loses_power);
        }
        if crash.victims == Victims::Everything {
            for (role, player) in std::mem::take(&mut self.players) {
                self.cluster.scheduler.kill(role);
                self.gone.push(player.borrow().progress().clone());
            }
        }
        self.events.go_on();
        if metaserver {
            self.wait_for_orphans()?;
            judge::check(self.cluster.metaserver_medium(), self.cluster.shape.reactors, false)
                .map_err(|text| format!("right after the crash: {text}"))?;
        }
        self.start(metaserver, targets)?;
        if let Some(later) = crash.again.filter(|_| self.crashes == 1) {
            self.events.stop_at(Moment::After(self.events.count() + later));
        }
        Ok(())
    }

    /// Waits until nothing of a dead metadata server is under way.
    fn wait_for_orphans(&mut self) -> Result<(), String> {
        let until = self.cluster.scheduler.now() + PATIENCE;
        while self.cluster.metaserver_medium().under_way() > 0 {
            self.pause(until, "the I/O of a dead metadata server does not end")?;
        }
        Ok(())
    }

    /// Starts what crashed, as soon as its media are free.
    fn start(&mut self, metaserver: bool, targets: Range<usize>) -> Result<(), String> {
        let until = self.cluster.scheduler.now() + PATIENCE;
        loop {
            let mut is_up = !metaserver || self.cluster.start_metaserver();
            for target in targets.clone() {
                is_up &= self.cluster.start_target(target);
            }
            if is_up {
                return Ok(());
            }
            self.pause(until, "the media of dead servers do not become free")?;
        }
    }

    fn pause(&mut self, until: Time, what: &str) -> Result<(), String> {
        if self.cluster.scheduler.now() > until {
            return Err(what.to_owned());
        }
        self.cluster.run_for(START_RETRY).map_err(|stuck| stuck.to_string())
    }

    /// Another host looks at everything. Returns the hosts, and what became of what was outstanding.
    fn audit(&mut self) -> Result<(Vec<Progress>, Fates), String> {
        let (client, fabric) = self.client("host.9");
        let endpoint = fabric.endpoint();
        let auditor = Rc::new(RefCell::new(Auditor::new(client, fabric)));
        let role = self.cluster.scheduler.add_role("host.9", auditor.clone(), vec![endpoint]);
        let asked = Rc::clone(&auditor);
        self.run("the audit", move || asked.borrow().is_over())?;
        // A second crash may have been due that nothing reaches any more.
        self.events.go_on();
        self.cluster.scheduler.kill(role);
        for (role, player) in std::mem::take(&mut self.players) {
            self.cluster.scheduler.kill(role);
            self.gone.push(player.borrow().progress().clone());
        }
        let auditor = auditor.borrow();
        if let Some(violation) = auditor.violations().first() {
            return Err(violation.clone());
        }
        let hosts = std::mem::take(&mut self.gone);
        let fates = judge::compare(auditor.seen(), &hosts)?;
        Ok((hosts, fates))
    }

    /// All sessions end, and then the power fails: nothing is left unfinished.
    fn end(&mut self) -> Result<(), String> {
        let rest = self.cluster.shape.lease + REST;
        self.cluster.run_for(rest).map_err(|stuck| format!("the rest: {stuck}"))?;
        self.cluster.check_at_rest();
        if let Some(violation) = self.cluster.history.borrow().violations.first() {
            return Err(violation.clone());
        }
        let medium = self.cluster.metaserver_medium().clone();
        medium.tune(|options| options.power_loss = PowerLoss::AllLost);
        self.cluster.crash_metaserver(true);
        judge::check(&medium, self.cluster.shape.reactors, true)
            .map_err(|text| format!("at the end: {text}"))
    }
}
