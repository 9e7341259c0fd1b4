//! The pickles that `torch.save` writes, read without running anything: a machine that knows containers, numbers and tensors.
//!
//! Objects of other classes are kept as their name. A call of anything but the few functions that make data is an error, since that is
//! how a hostile pickle runs code in Python, and no checkpoint needs one.

use super::Value;
use super::machine::{Id, Machine, Node, checked_name, integer};
use super::view::{Storage, View};
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeMap;

/// What a pickle holds.
pub(super) struct Unpickled {
    pub value: Value<View>,
    pub storages: BTreeMap<String, Storage>,
    /// Bytes up to its end.
    pub length: usize,
}

/// Reads the pickle at the beginning of `bytes`.
pub(super) fn unpickle(bytes: &[u8]) -> Result<Unpickled> {
    let mut machine = Machine::new(bytes);
    let value = machine.run().and_then(|root| machine.value(root, 0));
    let value = value.with_context(|| format!("byte {} of its pickle", machine.at))?;
    Ok(Unpickled { value, storages: machine.storages, length: machine.at })
}

impl<'a> Machine<'a> {
    fn run(&mut self) -> Result<Id> {
        loop {
            self.count(1)?;
            let op = self.take(1)?[0];
            match op {
                0x80 => ensure!(self.take(1)?[0] <= 5, "a newer protocol than 5"),
                // Length of a frame, which is of no use here.
                0x95 => _ = self.take(8)?,
                b'.' => return self.pop(),
                b'(' => self.marks.push(self.stack.len()),
                b'0' if self.marks.last() == Some(&self.stack.len()) => _ = self.marks.pop(),
                b'0' => _ = self.pop()?,
                b'1' => _ = self.pop_marked()?,
                b'2' => self.stack.push(self.top()?),
                b'N' => self.push(Node::None),
                0x88 => self.push(Node::Bool(true)),
                0x89 => self.push(Node::Bool(false)),
                b'J' => {
                    let value = i32::from_le_bytes(self.array()?);
                    self.push(Node::Int(value.into()));
                }
                b'K' => {
                    let value = self.length(1)?;
                    self.push(Node::Int(value as i64));
                }
                b'M' => {
                    let value = self.length(2)?;
                    self.push(Node::Int(value as i64));
                }
                b'G' => {
                    let value = f64::from_be_bytes(self.array()?);
                    self.push(Node::Float(value));
                }
                0x8a | 0x8b => {
                    let bytes = self.counted(if op == 0x8a { 1 } else { 4 })?;
                    self.push(integer(bytes));
                }
                b'X' | 0x8c | 0x8d => {
                    let bytes =
                        self.counted([(b'X', 4), (0x8c, 1), (0x8d, 8)].iter().find(|o| o.0 == op).expect("one of them").1)?;
                    let text = str::from_utf8(bytes).context("a text that is not UTF-8")?;
                    self.push(Node::Text(text));
                }
                // Strings of Python 2, and bytes.
                b'U' | b'T' | b'C' | b'B' | 0x8e | 0x96 => {
                    let bytes = self.counted(match op {
                        b'U' | b'C' => 1,
                        b'T' | b'B' => 4,
                        _ => 8,
                    })?;
                    match str::from_utf8(bytes) {
                        Ok(text) if matches!(op, b'U' | b'T') => self.push(Node::Text(text)),
                        _ => self.push_bytes(bytes.to_vec()),
                    }
                }
                b']' | 0x8f => self.push(Node::List(vec![])),
                b'}' => self.push(Node::Dict(vec![])),
                b')' => self.push(Node::Tuple(vec![])),
                b't' => {
                    let items = self.pop_marked()?;
                    self.push(Node::Tuple(items));
                }
                0x85..=0x87 => {
                    let n = usize::from(op - 0x84);
                    let mut items = (0..n).map(|_| self.pop()).collect::<Result<Vec<_>>>()?;
                    items.reverse();
                    self.push(Node::Tuple(items));
                }
                b'l' | 0x91 => {
                    let items = self.pop_marked()?;
                    self.push(Node::List(items));
                }
                b'd' => {
                    let items = self.pop_marked()?;
                    self.push(Node::Dict(vec![]));
                    self.set(items)?;
                }
                b'a' => {
                    let item = self.pop()?;
                    self.append(vec![item])?;
                }
                b'e' | 0x90 => {
                    let items = self.pop_marked()?;
                    self.append(items)?;
                }
                b's' => {
                    let value = self.pop()?;
                    let key = self.pop()?;
                    self.set(vec![key, value])?;
                }
                b'u' => {
                    let items = self.pop_marked()?;
                    self.set(items)?;
                }
                b'q' | b'r' => {
                    let key = self.length(if op == b'q' { 1 } else { 4 })?;
                    self.memo.insert(key, self.top()?);
                }
                0x94 => _ = self.memo.insert(self.memo.len(), self.top()?),
                b'h' | b'j' => {
                    let key = self.length(if op == b'h' { 1 } else { 4 })?;
                    let id = *self.memo.get(&key).with_context(|| format!("no value was kept as {key}"))?;
                    self.stack.push(id);
                }
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.push(Node::Global(module, name));
                }
                0x93 => match [self.pop()?, self.pop()?].map(|id| &self.nodes[id]) {
                    [&Node::Text(name), &Node::Text(module)] => {
                        self.push(Node::Global(checked_name(module)?, checked_name(name)?))
                    }
                    _ => bail!("a class without a name"),
                },
                b'R' => {
                    let (arguments, function) = (self.pop()?, self.pop()?);
                    let id = self.call(function, arguments)?;
                    self.stack.push(id);
                }
                // An object of a class, and what it holds.
                0x81 | 0x92 => {
                    (0..if op == 0x81 { 1 } else { 2 }).try_for_each(|_| self.pop().map(|_| ()))?;
                    let class = self.pop()?;
                    self.count(self.weight(class))?;
                    self.push(Node::Opaque(self.name(class)));
                }
                b'b' => self.build()?,
                b'Q' => {
                    let id = self.pop()?;
                    self.storage(id)?;
                }
                b'i' | b'o' => bail!("it makes an object the way that pickles did before 2003, which torch.save does not"),
                _ => bail!("unknown opcode {op:#04x}"),
            }
        }
    }
}
