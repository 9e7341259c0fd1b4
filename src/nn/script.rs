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

    /// Modules in a row, named by their numbers as in `torch.nn.ModuleList`; [`item`] calls them.
    pub fn list(modules: impl IntoIterator<Item = ScriptModule>) -> Self {
        (0..).zip(modules).fold(ScriptModule::default(), |list, (i, module): (usize, _)| list.child(i.to_string(), module))
    }

    /// A module that applies the modules of such a list, its child `name`, one after the other.
    pub fn sequence(name: &str, modules: impl IntoIterator<Item = ScriptModule>) -> Self {
        let list = ScriptModule::list(modules);
        let call = |i: usize| format!("    x = {}.forward(x)\n", item(name, i));
        let calls: String = (0..list.children.len()).map(call).collect();
        ScriptModule::new(format!("def forward(self, x: Tensor) -> Tensor:\n{calls}    return x\n")).child(name, list)
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

/// A module of [`ScriptModule::list`] in the source of the module that holds the list.
pub fn item(list: &str, i: usize) -> String {
    format!("getattr(self.{list}, \"{i}\")")
}
