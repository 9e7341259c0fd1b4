//! Gradient checkpointing (Chen et al. 2016, arXiv 1604.06174): of a piece of a network only the input is kept for the backward pass, which
//! computes the piece again.

use super::{autocast_enabled, check, pointers, with_autocast};
use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use tch::Tensor;
use torch_sys::C_tensor;

unsafe extern "C" {
    fn p3d_checkpoint(
        x: *mut C_tensor,
        parameters: *const *mut C_tensor,
        n: usize,
        closure: *mut c_void,
        call: extern "C" fn(*mut c_void, *mut C_tensor) -> *mut C_tensor,
        drop: extern "C" fn(*mut c_void),
    ) -> *mut C_tensor;
}

thread_local! {
    static ENABLED: Cell<bool> = const { Cell::new(false) };
}

/// Runs `f`; where `enabled`, what it calls [`checkpoint`] for is computed again in the backward pass of its result.
pub fn with_checkpointing<T>(enabled: bool, f: impl FnOnce() -> T) -> T {
    /// Restores the flag when the scope ends, also by a panic.
    struct Scope(bool);
    impl Drop for Scope {
        fn drop(&mut self) {
            ENABLED.set(self.0);
        }
    }
    let _restore = Scope(ENABLED.replace(enabled));
    f()
}

type Piece = Box<dyn Fn(&Tensor) -> Tensor + Send>;

extern "C" fn call(piece: *mut c_void, x: *mut C_tensor) -> *mut C_tensor {
    // SAFETY: the shim passes the closure that `checkpoint` gave it, and a live tensor; a panic must not cross C++.
    let out = catch_unwind(AssertUnwindSafe(|| unsafe { (*(piece as *const Piece))(&Tensor::clone_from_ptr(x)) }));
    out.map_or(std::ptr::null_mut(), |mut out| {
        let pointer = out.as_mut_ptr();
        std::mem::forget(out);
        pointer
    })
}

extern "C" fn drop_piece(piece: *mut c_void) {
    // SAFETY: called once, with the pointer that `checkpoint` leaked.
    drop(unsafe { Box::from_raw(piece as *mut Piece) });
}

/// `f(x)`. Within [`with_checkpointing`] nothing but `x` is kept for the backward pass. `f` must give the same each time that it is called,
/// change nothing, and learn by these parameters alone.
pub fn checkpoint(x: &Tensor, parameters: &[Tensor], f: impl Fn(&Tensor) -> Tensor + Send + 'static) -> Tensor {
    if !ENABLED.get() {
        return f(x);
    }
    // The backward pass runs outside of the autocast of the forward pass, on a GPU in another thread.
    let (device, bf16) = (x.device(), autocast_enabled(x.device()));
    let piece: Piece = Box::new(move |x| with_autocast(device, bf16, || f(x)));
    let (parameters, piece) = (pointers(parameters), Box::into_raw(Box::new(piece)) as *mut c_void);
    // SAFETY: live tensors; the closure is the shim's from here on, which frees it with the graph.
    unsafe {
        let out = p3d_checkpoint(x.as_ptr() as *mut C_tensor, parameters.as_ptr(), parameters.len(), piece, call, drop_piece);
        check("a piece that is computed again", out.is_null() as c_int)
            .expect("a piece that runs without checkpointing runs with it");
        Tensor::from_ptr(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dim::Rank;
    use crate::nn::{Architecture, Decoder, Encoder, EncoderFlags, Mode, NormKind};
    use std::collections::BTreeMap;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tch::{Device, Kind, nn::VarStore};

    #[test]
    fn a_piece_runs_again_in_the_backward_pass_and_its_failure_is_an_error() {
        let weight = Tensor::from_slice(&[3f32]).set_requires_grad(true);
        let (calls, fails) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(usize::MAX)));
        let run = |enabled| {
            let (weight, calls, fails) = (weight.shallow_clone(), calls.clone(), fails.clone());
            with_checkpointing(enabled, || {
                checkpoint(&Tensor::from_slice(&[2f32]), &[weight.shallow_clone()], move |x| {
                    assert!(calls.fetch_add(1, Ordering::Relaxed) < fails.load(Ordering::Relaxed));
                    x * &weight * &weight
                })
            })
        };
        for (enabled, expected) in [(false, 1), (true, 2)] {
            calls.store(0, Ordering::Relaxed);
            weight.shallow_clone().zero_grad();
            run(enabled).backward();
            assert_eq!((calls.load(Ordering::Relaxed), weight.grad().double_value(&[0])), (expected, 12.), "{enabled}");
        }
        calls.store(0, Ordering::Relaxed);
        fails.store(1, Ordering::Relaxed);
        let error = run(true).f_backward().unwrap_err().to_string();
        assert!(error.contains("has failed"), "{error}");
    }

    /// Of every variable, where maps are kept and where they are computed again.
    #[test]
    fn gradients_are_those_without_it() {
        for architecture in [Architecture::UNet, Architecture::PlainConv, Architecture::ResEncL] {
            let flags = EncoderFlags {
                encoder: Some(architecture),
                filters: Some(4),
                levels: Some(3),
                norm: Some(NormKind::Instance).filter(|_| architecture == Architecture::UNet),
                ..EncoderFlags::default()
            };
            let vs = VarStore::new(Device::Cpu);
            let encoder: Box<dyn Encoder> = flags.config(Rank::Three, 1, 0.).unwrap().build(&vs.root() / "encoder");
            let decoder = Decoder::new(&vs.root() / "decoder", &*encoder, 2, false);
            // As a learnt part of the input.
            let shift = vs.root().zeros("shift", &[1]);
            let x = Tensor::randn([2, 1, 16, 12, 8], (Kind::Float, Device::Cpu));
            let run = |bf16: bool, enabled: bool| {
                let loss = with_autocast(Device::Cpu, bf16, || {
                    with_checkpointing(enabled, || {
                        let maps = encoder.forward(&(&x + &shift), Mode::Train);
                        // A second pass, of which one map alone has a gradient, and of whose input none is asked for.
                        let deepest = encoder.forward(&(&x * 2), Mode::Train).pop().unwrap();
                        let logits = decoder.forward(maps, Mode::Train).remove(0).to_kind(Kind::Float);
                        logits.square().mean(Kind::Float) + deepest.to_kind(Kind::Float).abs().mean(Kind::Float)
                    })
                });
                vs.variables().values().for_each(|variable| variable.shallow_clone().zero_grad());
                loss.backward();
                (
                    loss.double_value(&[]),
                    vs.variables().into_iter().map(|(n, v)| (n, v.grad().copy())).collect::<BTreeMap<_, _>>(),
                )
            };
            for bf16 in [false, true] {
                let ((loss, kept), (again_loss, again)) = (run(bf16, false), run(bf16, true));
                assert_eq!(loss, again_loss);
                for (name, kept) in kept {
                    let off = (&again[&name] - &kept).norm().double_value(&[]);
                    let (scale, share) = (kept.norm().double_value(&[]), if bf16 { 0.02 } else { 1e-5 });
                    assert!(off <= share * scale + 1e-6, "{architecture:?} {bf16} {name}: {off} of {scale}");
                }
            }
        }
    }
}
