//! Safety rules broken on purpose, so that the simulator can show that it notices.
//!
//! Without the feature `defects` every switch is a constant `false` and costs nothing.

/// Which rules are broken.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Defects {
    #[cfg(feature = "defects")]
    pins: bool,
    #[cfg(feature = "defects")]
    attempts: bool,
    #[cfg(feature = "defects")]
    decisions: bool,
}

impl Defects {
    /// H7: freed blocks are used again while transfers may refer to them.
    pub(crate) fn pins(self) -> bool {
        #[cfg(feature = "defects")]
        return self.pins;
        #[cfg(not(feature = "defects"))]
        false
    }

    /// H3: a write is committed although a later attempt superseded it or its session ended.
    pub(crate) fn attempts(self) -> bool {
        #[cfg(feature = "defects")]
        return self.attempts;
        #[cfg(not(feature = "defects"))]
        false
    }

    /// H14: shards learn of a decision before it is durable.
    pub(crate) fn decisions(self) -> bool {
        #[cfg(feature = "defects")]
        return self.decisions;
        #[cfg(not(feature = "defects"))]
        false
    }
}

#[cfg(feature = "defects")]
impl crate::Core {
    /// Breaks rule H7 on purpose: freed blocks are used again at once.
    pub fn break_pins(&mut self) {
        self.defects.pins = true;
    }

    /// Breaks rule H3 on purpose: a write is committed although a later attempt superseded it or its
    /// session ended.
    pub fn break_attempts(&mut self) {
        self.defects.attempts = true;
    }

    /// Breaks rule H14 on purpose: shards learn of a decision before it is durable.
    pub fn break_decisions(&mut self) {
        self.defects.decisions = true;
    }
}
