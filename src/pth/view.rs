//! Tensors in a file: views of its storages.

use super::KINDS;
use tch::Kind;

/// A tensor in a file: a view of a storage, within its bounds.
#[derive(Clone, Debug, PartialEq)]
pub struct View {
    /// Names the storage in the file.
    pub storage: String,
    /// Element type by its name in torch, as that of its storage or its own.
    pub dtype: String,
    /// Of the first element, in elements.
    pub offset: i64,
    pub size: Vec<i64>,
    pub stride: Vec<i64>,
}

impl View {
    /// `None`: a type that is not read.
    pub fn kind(&self) -> Option<Kind> {
        kind(&self.dtype)
    }

    pub fn numel(&self) -> i64 {
        self.size.iter().product()
    }
}

pub(super) fn kind(dtype: &str) -> Option<Kind> {
    KINDS.iter().find(|(storage, name, _)| [*storage, *name].contains(&dtype)).map(|entry| entry.2)
}

/// A storage that a pickle names.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Storage {
    /// Name of its type in torch.
    pub name: String,
    pub numel: i64,
}

impl Storage {
    /// Its size in bytes; `None`: of a type whose size is not known here.
    pub fn bytes(&self) -> Option<i64> {
        let size = match self.name.as_str() {
            "UntypedStorage" => 1,
            // Not read, but before torch 1.6 the storages of a file lie one behind the other.
            "ComplexFloatStorage" => 8,
            "ComplexDoubleStorage" => 16,
            name => kind(name)?.elt_size_in_bytes() as i64,
        };
        Some(self.numel.saturating_mul(size))
    }
}
