//! Means, sums and dropout of a whole step, whose samples several processes may share (see [`crate::group`]). In one process they are what
//! they are without ranks, to the bit.

use crate::ffi::{self, MemoryFormat};
use crate::group;
use tch::Tensor;

/// The mean over the rows of all ranks, by `own`, the mean over this rank's `rows`, of which each sample has as many.
pub fn mean(own: Tensor, rows: i64) -> Tensor {
    if group::world() == 1 {
        return own;
    }
    let (total, _) = group::rows(rows);
    group::sum(&(own * (rows as f64 / total as f64)))
}

/// Sums over all ranks, by one collective; `own`: of one kind.
pub fn sums<const N: usize>(own: [Tensor; N]) -> [Tensor; N] {
    if group::world() == 1 {
        return own;
    }
    let all = group::sum(&Tensor::cat(&own.each_ref().map(|x| x.flatten(0, -1)), 0));
    let mut start = 0;
    own.map(|x| {
        let part = all.narrow(0, start, x.numel() as i64).reshape(x.size());
        start += x.numel() as i64;
        part
    })
}

/// Dropout of rows `[N, ...]`: each rank draws the mask of the whole step and takes that of its own rows.
pub fn dropout(x: &Tensor, p: f64, train: bool) -> Tensor {
    if p == 0. || !train || group::world() == 1 {
        return x.dropout(p, train);
    }
    let mut dims = x.size();
    let (total, own) = group::rows(dims[0]);
    dims[0] = total;
    let ones = x.detach().new_ones(&dims, (x.kind(), x.device()));
    if !x.is_contiguous() {
        // As one process has it: the draws lie as the map does.
        ffi::set_memory_format(&ones, MemoryFormat::ChannelsLast).expect("a map can be laid out as another one");
    }
    x * ones.dropout(p, true).narrow(0, own.start, own.end - own.start)
}
