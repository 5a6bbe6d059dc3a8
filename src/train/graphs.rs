//! Passes that were run before are replayed: on a GPU the launches of a pass are captured as one graph.

use std::collections::HashMap;

use crate::device::{Device, Graph};
use crate::error::Result;
use crate::model::Shape;

/// Captured passes by their shape.
#[derive(Default)]
pub(super) struct Graphs(HashMap<Shape, State>);

enum State {
    /// It ran once, launch by launch: every kernel is loaded.
    Ran,
    Captured(Graph),
}

impl Graphs {
    /// Runs `pass`, whose launches depend on `shape` alone: the first time launch by launch, the second time captured, from
    /// then on replayed. All give the same bits. A device that captures nothing runs it each time.
    pub fn run(&mut self, shape: Shape, device: &Device, pass: impl FnOnce() -> Result<()>) -> Result<()> {
        match self.0.get(&shape) {
            Some(State::Captured(graph)) => graph.launch(),
            Some(State::Ran) => {
                if let Some(graph) = device.capture(pass)? {
                    graph.launch()?;
                    self.0.insert(shape, State::Captured(graph));
                }
                Ok(())
            }
            None => {
                pass()?;
                self.0.insert(shape, State::Ran);
                Ok(())
            }
        }
    }
}
