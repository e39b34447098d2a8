//! A look at a cluster from outside: whether its state is right, and what it is doing.

use gannet_meta_core::Core;

use super::Cluster;

impl Cluster {
    /// Looks at what hosts' memory holds and what the metadata server's state is, when nothing is
    /// under way; notes what is wrong.
    pub fn check_at_rest(&self) {
        for host in self.hosts.iter().filter_map(|place| place.process.as_ref()) {
            host.values[0].borrow().check_idle_buffers();
        }
        let mut history = self.history.borrow_mut();
        for reactor in self.metaserver.iter().flat_map(|process| &process.values) {
            let reactor = reactor.borrow();
            let Some(core) = reactor.server().core() else { continue };
            if let Err(text) = core.check_invariants() {
                history.violation(format!("the metadata server's state is wrong: {text}"));
            }
            let counters = core.counters();
            if counters.live_operations > 0 || counters.live_grants > 0 {
                history.violation(format!(
                    "{} operations and {} grants are under way at rest",
                    counters.live_operations, counters.live_grants
                ));
            }
        }
        for (index, target) in self.targets.iter().enumerate() {
            let grants = target.as_ref().map_or(0, |process| process.values[0].borrow().grants());
            if grants > 0 {
                history.violation(format!("data server {index} has {grants} grants at rest"));
            }
        }
    }

    /// What everybody is doing, in words.
    #[must_use]
    pub fn describe(&self) -> String {
        let mut text = String::new();
        let reactors = self.metaserver.iter().flat_map(|process| &process.values);
        for (index, reactor) in reactors.enumerate() {
            let reactor = reactor.borrow();
            let server = reactor.server();
            text += &format!(
                "reactor {index}: serving {}, failure {:?}, {:?}\n",
                server.is_serving(),
                server.failure(),
                server.core().map(Core::counters)
            );
        }
        for (index, target) in self.targets.iter().enumerate() {
            let Some(process) = target else {
                text += &format!("data server {index}: down\n");
                continue;
            };
            let target = process.values[0].borrow();
            text += &format!(
                "data server {index}: {} sessions, {} grants, {} under way on disk, {:?}\n",
                target.sessions(),
                target.grants(),
                self.target_media[index].under_way(),
                target.stats()
            );
        }
        for place in &self.hosts {
            match &place.process {
                Some(process) => text += &format!("{}\n", process.values[0].borrow().describe()),
                None => text += "a host is down\n",
            }
        }
        text
    }

    /// Errors that hosts of now were told, with their number.
    #[must_use]
    pub fn errors(&self) -> Vec<(String, u32)> {
        let hosts = self.hosts.iter().filter_map(|place| place.process.as_ref());
        let mut all = std::collections::BTreeMap::new();
        for host in hosts {
            for (text, count) in host.values[0].borrow().errors() {
                *all.entry(text.clone()).or_insert(0) += count;
            }
        }
        all.into_iter().collect()
    }
}
