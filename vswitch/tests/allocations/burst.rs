//! A guest's burst as the forwarder sees it.

use vswitch::forward::counters::InputDrop;
use vswitch::forward::deliver::Frames;
use vswitch_vhost::{TxBurst, TxFrame};

/// The same as the worker's.
pub(crate) struct Burst<'r>(pub(crate) TxBurst<'r>);

impl Frames for Burst<'_> {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn get(&self, i: usize) -> Result<TxFrame<'_>, InputDrop> {
        Ok(self.0.frame(i)?)
    }
}
