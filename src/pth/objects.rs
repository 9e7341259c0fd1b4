//! What a pickle makes: the functions that it may call, and the values that come of it.

use super::Value;
use super::machine::{Id, MOST_BYTES, Machine, Node, integer};
use super::view::View;
use anyhow::{Context, Result, bail, ensure};

/// Containers within containers: what is made is walked, and freed, by recursion.
const DEEPEST: usize = 100;

/// Calls whose result is kept as a name: classes of plain data that checkpoints hold beside the weights. A trailing `.` is any of a module.
const DATA: [&str; 20] = [
    "builtins.bytearray",
    "builtins.complex",
    "builtins.range",
    "builtins.slice",
    "collections.Counter",
    "collections.deque",
    "copyreg._reconstructor",
    "datetime.",
    "decimal.Decimal",
    "fractions.Fraction",
    "numpy.core.multiarray.",
    "numpy._core.multiarray.",
    "numpy.core.numeric.",
    "numpy._core.numeric.",
    "numpy.random.",
    "pathlib.",
    "torch.device",
    "torch.Generator",
    "torch.serialization._get_layout",
    "uuid.UUID",
];

impl<'a> Machine<'a> {
    /// The attributes of an object, which are not kept; of numpy's types the order of bytes is one.
    pub(super) fn build(&mut self) -> Result<()> {
        let (state, top) = (self.pop()?, self.top()?);
        if let (Node::Dtype(_), Node::Tuple(state)) = (&self.nodes[top], &self.nodes[state]) {
            let order = state.get(1).map(|&id| &self.nodes[id]);
            if !matches!(order, Some(Node::Text("<" | "|" | "="))) {
                self.nodes[top] = Node::Opaque("numpy.dtype".into());
            }
        }
        Ok(())
    }

    pub(super) fn call(&mut self, mut function: Id, mut arguments: Id) -> Result<Id> {
        loop {
            self.count(1 + self.weight(function))?;
            let name = self.name(function);
            ensure!(matches!(self.nodes[function], Node::Global(..)), "it calls what is no function, {name}");
            let Node::Tuple(given) = &self.nodes[arguments] else { bail!("{name} is called without a tuple") };
            let given = given.as_slice();
            let argument = |i: usize| given.get(i).copied().with_context(|| format!("{name}: argument {i} is missing"));
            return Ok(match name.as_str() {
                "collections.OrderedDict" | "collections.defaultdict" => {
                    // The first, or after the factory of a `defaultdict`.
                    let pairs = given.iter().take(2).find_map(|&id| match &self.nodes[id] {
                        Node::List(pairs) => Some(pairs.clone()),
                        _ => None,
                    });
                    let pairs = pairs.unwrap_or_default();
                    self.count(pairs.len())?;
                    let entry = |id: Id| match &self.nodes[id] {
                        Node::List(pair) | Node::Tuple(pair) if pair.len() == 2 => Ok((pair[0], pair[1])),
                        _ => bail!("{name}: pairs expected"),
                    };
                    let entries = pairs.into_iter().map(entry).collect::<Result<_>>()?;
                    self.node(Node::Dict(entries))
                }
                "builtins.set" | "builtins.frozenset" | "torch.Size" => match given {
                    [] => self.node(Node::List(vec![])),
                    &[items] => items,
                    _ => bail!("{name}: one argument expected"),
                },
                "torch._utils._rebuild_tensor" | "torch._utils._rebuild_tensor_v2" => {
                    let [storage, offset, size, stride] = [argument(0)?, argument(1)?, argument(2)?, argument(3)?];
                    self.tensor(storage, offset, size, stride, None)?
                }
                // Of the types that have no storage of their own.
                "torch._utils._rebuild_tensor_v3" => {
                    let [storage, offset, size, stride] = [argument(0)?, argument(1)?, argument(2)?, argument(3)?];
                    let dtype = argument(6)?;
                    self.tensor(storage, offset, size, stride, Some(dtype))?
                }
                "torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state" => argument(0)?,
                // A tensor of a class of its own: the tensor itself.
                "torch._tensor._rebuild_from_type_v2" => {
                    (function, arguments) = (argument(0)?, argument(2)?);
                    continue;
                }
                "numpy.dtype" => match self.nodes[argument(0)?] {
                    Node::Text(code) => self.node(Node::Dtype(code)),
                    _ => self.node(Node::Opaque(name)),
                },
                "numpy.core.multiarray.scalar" | "numpy._core.multiarray.scalar" => {
                    let number = match (&self.nodes[argument(0)?], &self.nodes[argument(1)?]) {
                        (Node::Dtype(code), Node::Bytes(bytes)) => number(code, bytes),
                        _ => None,
                    };
                    self.node(number.unwrap_or(Node::Opaque(name)))
                }
                // How protocol 2 writes bytes.
                "_codecs.encode" => match self.nodes[argument(0)?] {
                    Node::Text(text) if text.len() <= 2 * MOST_BYTES => {
                        let bytes = text.chars().map(|c| u8::try_from(u32::from(c))).collect::<Result<_, _>>();
                        self.node(Node::Bytes(bytes.context("_codecs.encode: a text that is not Latin-1")?))
                    }
                    _ => self.node(Node::Opaque("bytes".into())),
                },
                // Tensors of kinds that are not read: sparse, quantised, nested.
                data if data.starts_with("torch._utils._rebuild_") || is_data(data) => self.node(Node::Opaque(name)),
                _ => bail!("it calls {name}, which makes no weights; nothing was run"),
            });
        }
    }

    fn values(&mut self, ids: Vec<Id>, depth: usize) -> Result<Vec<Value<View>>> {
        ids.into_iter().map(|id| self.value(id, depth)).collect()
    }

    pub(super) fn value(&mut self, id: Id, depth: usize) -> Result<Value<View>> {
        ensure!(depth <= DEEPEST, "more than {DEEPEST} containers within each other, or one that holds itself");
        self.count(1 + self.weight(id))?;
        Ok(match &self.nodes[id] {
            Node::None => Value::None,
            Node::Bool(value) => Value::Bool(*value),
            Node::Int(value) => Value::Int(*value),
            Node::Float(value) => Value::Float(*value),
            Node::Text(text) => Value::Text((*text).to_owned()),
            Node::List(items) | Node::Tuple(items) => {
                let items = items.clone();
                Value::List(self.values(items, depth + 1)?)
            }
            Node::Dict(entries) => {
                let (keys, values) = entries.iter().copied().unzip();
                let keys = self.values(keys, depth + 1)?;
                Value::Dict(keys.into_iter().zip(self.values(values, depth + 1)?).collect())
            }
            Node::Tensor(view) => Value::Tensor((**view).clone()),
            _ => Value::Opaque(self.name(id)),
        })
    }
}

fn is_data(name: &str) -> bool {
    DATA.iter().any(|data| name == *data || (data.ends_with('.') && name.starts_with(data)))
}

/// A number of numpy, little-endian.
fn number<'a>(code: &str, bytes: &[u8]) -> Option<Node<'a>> {
    Some(match code {
        "f8" => Node::Float(f64::from_le_bytes(bytes.try_into().ok()?)),
        "f4" => Node::Float(f32::from_le_bytes(bytes.try_into().ok()?).into()),
        "i8" | "i4" | "i2" | "i1" if code[1..].parse() == Ok(bytes.len()) => integer(bytes),
        "b1" if bytes.len() == 1 => Node::Bool(bytes[0] != 0),
        _ => return None,
    })
}
