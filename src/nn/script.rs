//! Description of a network as TorchScript modules; [`crate::ffi`] builds and saves it.

use tch::Tensor;

/// One module: its tensors, children and TorchScript methods.
#[derive(Default)]
pub struct ScriptModule {
    pub parameters: Vec<(String, Tensor)>,
    pub buffers: Vec<(String, Tensor)>,
    pub children: Vec<(String, ScriptModule)>,
    /// `def forward(self, ...)` and any other methods.
    pub source: String,
}

impl ScriptModule {
    pub fn new(source: impl Into<String>) -> Self {
        ScriptModule { source: source.into(), ..Default::default() }
    }

    pub fn parameter(mut self, name: &str, tensor: &Tensor) -> Self {
        self.parameters.push((name.into(), tensor.shallow_clone()));
        self
    }

    pub fn buffer(mut self, name: &str, tensor: &Tensor) -> Self {
        self.buffers.push((name.into(), tensor.shallow_clone()));
        self
    }

    pub fn child(mut self, name: impl Into<String>, module: ScriptModule) -> Self {
        self.children.push((name.into(), module));
        self
    }
}
