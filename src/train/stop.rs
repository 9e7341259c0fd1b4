//! Ctrl-C and SIGTERM: the running step is finished and saved; a second signal ends the process at once, but not a rank: launchers send
//! it one as soon as another rank has ended.

use crate::group;
use anyhow::Result;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether the user asked the run to stop.
#[derive(Clone)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    pub fn on_signals() -> Result<Self> {
        let asked = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            // Registered first, so that it acts only when the flag is already set.
            if group::world() == 1 {
                flag::register_conditional_shutdown(signal, 128 + signal, asked.clone())?;
            }
            flag::register(signal, asked.clone())?;
        }
        Ok(Stop(asked))
    }

    pub fn asked(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
