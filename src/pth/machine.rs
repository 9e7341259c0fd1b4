//! The machine that reads a pickle: a stack, a memo, and the values that they name.

use super::view::{Storage, View};
use anyhow::{Context, Result, bail, ensure};
use std::collections::{BTreeMap, HashMap};

/// Steps of a pickle and values of what it makes, each at most so many: ten times what large checkpoints take, and their memory stays
/// below 200 MB. A file can ask for endless work with few bytes otherwise, as values may be used again.
const MOST_STEPS: usize = 1 << 21;
/// Bytes that are kept of a bytes object, which is a number's here.
pub(super) const MOST_BYTES: usize = 64;

/// Bytes of a name: of a module, a class, a storage, or a tensor with those of the dictionaries around it.
const LONGEST_NAME: usize = 1000;

pub(super) type Id = usize;

/// A value while a pickle is read; its parts are numbers of other nodes, so that a value that is used often, or holds itself, costs no more
/// than its bytes.
pub(super) enum Node<'a> {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(&'a str),
    Bytes(Vec<u8>),
    List(Vec<Id>),
    Tuple(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// Module and name.
    Global(&'a str, &'a str),
    Storage(&'a str),
    Tensor(Box<View>),
    /// Of numpy, by its code such as `f8`.
    Dtype(&'a str),
    Opaque(String),
}

pub(super) struct Machine<'a> {
    bytes: &'a [u8],
    pub at: usize,
    steps: usize,
    pub nodes: Vec<Node<'a>>,
    pub stack: Vec<Id>,
    pub marks: Vec<usize>,
    pub memo: HashMap<usize, Id>,
    pub storages: BTreeMap<String, Storage>,
}

impl<'a> Machine<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        let (nodes, stack, marks, memo, storages) = Default::default();
        Machine { bytes, at: 0, steps: 0, nodes, stack, marks, memo, storages }
    }

    /// The name of a class, or of what kind a value is.
    pub fn name(&self, id: Id) -> String {
        match &self.nodes[id] {
            // Modules of Python 2 by their present names.
            Node::Global("__builtin__", name) => format!("builtins.{name}"),
            Node::Global("copy_reg", name) => format!("copyreg.{name}"),
            Node::Global(module, name) => format!("{module}.{name}"),
            Node::Opaque(name) => name.clone(),
            Node::None => "None".into(),
            Node::Bool(_) => "bool".into(),
            Node::Int(_) => "int".into(),
            Node::Float(_) => "float".into(),
            Node::Text(_) => "str".into(),
            Node::Bytes(_) => "bytes".into(),
            Node::List(_) => "list".into(),
            Node::Tuple(_) => "tuple".into(),
            Node::Dict(_) => "dict".into(),
            Node::Storage(_) => "torch.storage".into(),
            Node::Tensor(_) => "torch.Tensor".into(),
            Node::Dtype(_) => "numpy.dtype".into(),
        }
    }

    /// What a copy of a value or of its name takes, in nodes, without what its parts hold.
    pub fn weight(&self, id: Id) -> usize {
        match &self.nodes[id] {
            Node::List(items) | Node::Tuple(items) => items.len(),
            Node::Dict(entries) => 2 * entries.len(),
            Node::Tensor(view) => 2 * view.size.len() + in_nodes(&[&view.storage, &view.dtype]),
            Node::Text(text) => in_nodes(&[text]),
            Node::Global(module, name) => in_nodes(&[module, name]),
            Node::Opaque(name) => in_nodes(&[name]),
            _ => 0,
        }
    }

    pub fn count(&mut self, steps: usize) -> Result<()> {
        self.steps += steps;
        ensure!(self.steps <= MOST_STEPS, "more than {MOST_STEPS} steps or values, which no checkpoint needs");
        Ok(())
    }

    pub fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let end = self.at.checked_add(n).filter(|&end| end <= self.bytes.len());
        let end =
            end.with_context(|| format!("it ends too early, {n} more bytes expected, {} found", self.bytes.len() - self.at))?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        Ok(self.take(N)?.try_into().expect("as many bytes as taken"))
    }

    /// A number of `width` bytes, little-endian.
    pub fn length(&mut self, width: usize) -> Result<usize> {
        Ok(self.take(width)?.iter().rev().fold(0, |sum, &byte| sum << 8 | usize::from(byte)))
    }

    /// Bytes after their number.
    pub fn counted(&mut self, width: usize) -> Result<&'a [u8]> {
        let length = self.length(width)?;
        self.take(length)
    }

    pub fn line(&mut self) -> Result<&'a str> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().position(|&byte| byte == b'\n').context("a name without an end")?;
        self.at += end + 1;
        checked_name(str::from_utf8(&rest[..end]).context("a name that is not UTF-8")?)
    }

    pub fn node(&mut self, node: Node<'a>) -> Id {
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    pub fn push(&mut self, node: Node<'a>) {
        let id = self.node(node);
        self.stack.push(id);
    }

    pub fn push_bytes(&mut self, bytes: Vec<u8>) {
        self.push(if bytes.len() > MOST_BYTES { Node::Opaque("bytes".into()) } else { Node::Bytes(bytes) });
    }

    pub fn top(&self) -> Result<Id> {
        let above = self.stack.len() > self.marks.last().copied().unwrap_or(0);
        self.stack.last().copied().filter(|_| above).context("a value is missing")
    }

    pub fn pop(&mut self) -> Result<Id> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    pub fn pop_marked(&mut self) -> Result<Vec<Id>> {
        Ok(self.stack.split_off(self.marks.pop().context("a mark is missing")?))
    }

    pub fn append(&mut self, items: Vec<Id>) -> Result<()> {
        let top = self.top()?;
        match &mut self.nodes[top] {
            Node::List(list) => list.extend(items),
            Node::Opaque(_) => {}
            _ => bail!("items for {}", self.name(top)),
        }
        Ok(())
    }

    /// Keys and values in turn.
    pub fn set(&mut self, items: Vec<Id>) -> Result<()> {
        ensure!(items.len().is_multiple_of(2), "a key without a value");
        let top = self.top()?;
        match &mut self.nodes[top] {
            Node::Dict(dict) => dict.extend(items.chunks_exact(2).map(|pair| (pair[0], pair[1]))),
            Node::Opaque(_) => {}
            _ => bail!("keys for {}", self.name(top)),
        }
        Ok(())
    }
}

/// Memory of texts, in nodes.
pub(super) fn in_nodes(texts: &[&str]) -> usize {
    texts.iter().map(|text| text.len()).sum::<usize>() / size_of::<Node>()
}

/// Errors if a name is longer than any checkpoint needs: names are copied wherever they are used.
pub(super) fn checked_name(name: &str) -> Result<&str> {
    let start = || name.chars().take(40).collect::<String>();
    ensure!(
        name.len() <= LONGEST_NAME,
        "a name of {} bytes, expected at most {LONGEST_NAME}; it begins with {}",
        name.len(),
        start()
    );
    Ok(name)
}

/// A Python int, as far as 64 bits hold it.
pub(super) fn integer<'a>(bytes: &[u8]) -> Node<'a> {
    if bytes.len() > size_of::<i64>() {
        return Node::Opaque("int".into());
    }
    let mut filled = [if bytes.last().is_some_and(|byte| byte & 0x80 != 0) { 0xff } else { 0 }; size_of::<i64>()];
    filled[..bytes.len()].copy_from_slice(bytes);
    Node::Int(i64::from_le_bytes(filled))
}
