//! Safety rules broken on purpose, so that the simulator can show that it notices.
//!
//! Without the feature `defects` every switch is a constant `false` and costs nothing.

/// Which rules are broken.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Defects {
    #[cfg(feature = "defects")]
    live_checks: bool,
}

impl Defects {
    /// H5: grants are not looked at again before what they allow is done, and nobody waits for
    /// those of the past.
    #[inline]
    pub(crate) fn live_checks(self) -> bool {
        #[cfg(feature = "defects")]
        return self.live_checks;
        #[cfg(not(feature = "defects"))]
        false
    }
}

#[cfg(feature = "defects")]
impl Defects {
    pub(crate) fn break_live_checks(&mut self) {
        self.live_checks = true;
    }
}
