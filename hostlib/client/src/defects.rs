//! Safety rules broken on purpose, so that the simulator can show that it notices.
//!
//! Without the feature `defects` every switch is a constant `false` and costs nothing.

/// Which rules are broken.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Defects {
    #[cfg(feature = "defects")]
    arrivals: bool,
    #[cfg(feature = "defects")]
    cuts: bool,
    #[cfg(feature = "defects")]
    windows: bool,
    #[cfg(feature = "defects")]
    sessions: bool,
}

impl Defects {
    /// H1: a read completes before all of its data is there.
    pub(crate) fn arrivals(self) -> bool {
        #[cfg(feature = "defects")]
        return self.arrivals;
        #[cfg(not(feature = "defects"))]
        false
    }

    /// H2: memory is not taken back from data servers.
    pub(crate) fn cuts(self) -> bool {
        #[cfg(feature = "defects")]
        return self.cuts;
        #[cfg(not(feature = "defects"))]
        false
    }

    /// H2: a request completes before its windows are closed.
    pub(crate) fn windows(self) -> bool {
        #[cfg(feature = "defects")]
        return self.windows;
        #[cfg(not(feature = "defects"))]
        false
    }

    /// H2, H5: an attempt that is given up has its windows closed and its data sessions left open.
    pub(crate) fn sessions(self) -> bool {
        #[cfg(feature = "defects")]
        return self.sessions;
        #[cfg(not(feature = "defects"))]
        false
    }
}

#[cfg(feature = "defects")]
impl Defects {
    pub(crate) fn break_arrivals(&mut self) {
        self.arrivals = true;
    }

    pub(crate) fn break_cuts(&mut self) {
        self.cuts = true;
    }

    pub(crate) fn break_windows(&mut self) {
        self.windows = true;
    }

    pub(crate) fn break_sessions(&mut self) {
        self.sessions = true;
    }
}
