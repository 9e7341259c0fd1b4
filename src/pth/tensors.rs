//! The tensors and storages that a pickle names, held within their bounds.

use super::machine::{Id, Machine, Node, checked_name, in_nodes};
use super::view::{Storage, View, kind};
use anyhow::{Context, Result, bail, ensure};
use tch::Kind;

/// Axes of a tensor, as in torch.
const MOST_AXES: usize = 64;
/// Elements of a tensor that has more of them than its storage, as it repeats some.
pub(super) const MOST_REPEATED: i64 = 1 << 24;

impl Machine<'_> {
    /// `("storage", type, key, location, elements)`, of early versions with a view of it at the end.
    pub(super) fn storage(&mut self, id: Id) -> Result<()> {
        let Node::Tuple(parts) = &self.nodes[id] else { bail!("a storage's name is {}, expected a tuple", self.name(id)) };
        // One more than it may have.
        let nodes: Vec<&Node> = parts.iter().take(7).map(|&id| &self.nodes[id]).collect();
        let (kind, key, numel) = match nodes[..] {
            [Node::Text("storage"), &Node::Global(_, kind), &Node::Text(key), _, &Node::Int(numel)]
            | [Node::Text("storage"), &Node::Global(_, kind), &Node::Text(key), _, &Node::Int(numel), Node::None] => {
                (kind, key, numel)
            }
            _ => bail!("a storage is named otherwise than torch.save does"),
        };
        checked_name(key)?;
        self.count(in_nodes(&[key, kind]))?;
        ensure!(numel >= 0, "storage {key} has {numel} elements");
        let storage = Storage { name: kind.to_owned(), numel };
        match self.storages.get(key) {
            Some(other) => ensure!(*other == storage, "storage {key} is of two types or sizes"),
            None => _ = self.storages.insert(key.to_owned(), storage),
        }
        self.push(Node::Storage(key));
        Ok(())
    }

    pub(super) fn tensor(&mut self, storage: Id, offset: Id, size: Id, stride: Id, dtype: Option<Id>) -> Result<Id> {
        let Node::Storage(key) = self.nodes[storage] else { bail!("a tensor of {}, expected a storage", self.name(storage)) };
        let Node::Int(offset) = self.nodes[offset] else { bail!("a tensor's offset is {}", self.name(offset)) };
        let (size, stride) = (self.axes(size)?, self.axes(stride)?);
        let Storage { name, numel } = &self.storages[key];
        let (dtype, numel) = match dtype.map(|id| &self.nodes[id]) {
            None => (name.clone(), *numel),
            Some(Node::Global("torch", dtype)) => {
                let bytes = kind(dtype).map_or(1, Kind::elt_size_in_bytes) as i64;
                ((*dtype).to_owned(), numel / bytes)
            }
            Some(_) => bail!("a tensor's type has no name"),
        };
        let outside =
            || format!("a tensor of shape {size:?} with strides {stride:?} from element {offset} on, of a storage of {numel}");
        let end = end_of(offset, &size, &stride).with_context(outside)?;
        ensure!(end <= numel, outside());
        ensure!(size.iter().product::<i64>() <= numel.max(MOST_REPEATED), outside());
        let view = View { storage: key.to_owned(), dtype, offset, size, stride };
        let id = self.node(Node::Tensor(Box::new(view)));
        self.count(self.weight(id))?;
        Ok(id)
    }

    fn axes(&self, id: Id) -> Result<Vec<i64>> {
        let (Node::Tuple(items) | Node::List(items)) = &self.nodes[id] else { bail!("a shape is {}", self.name(id)) };
        ensure!(items.len() <= MOST_AXES, "a tensor of {} axes", items.len());
        items
            .iter()
            .map(|&id| if let Node::Int(n) = self.nodes[id] { Ok(n) } else { bail!("an extent is {}", self.name(id)) })
            .collect()
    }
}

/// The element after the last one that a view takes of its storage; `None`: no view, or no number.
fn end_of(offset: i64, size: &[i64], stride: &[i64]) -> Option<i64> {
    let fits = size.len() == stride.len() && offset >= 0 && size.iter().chain(stride).all(|&n| n >= 0);
    // As many elements as a number holds, whatever is repeated.
    size.iter().filter(|_| fits).try_fold(1i64, |numel, &n| numel.checked_mul(n.max(1)))?;
    if size.contains(&0) || !fits {
        return Some(offset).filter(|_| fits);
    }
    let mut steps = size.iter().zip(stride).map(|(n, step)| (n - 1).checked_mul(*step));
    steps.try_fold(offset.checked_add(1)?, |end, step| end.checked_add(step?))
}
