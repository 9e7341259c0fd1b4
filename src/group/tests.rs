//! Of W ranks as threads.

use super::testing::{ranks, ranks_within};
use super::*;
use std::thread::sleep;
use std::time::Instant;
use tch::Kind;

#[test]
fn shares_are_contiguous_cover_all_and_differ_by_at_most_one() {
    for n in [0, 1, 7, 8, 9, 1000, u64::MAX] {
        for world in [1, 2, 3, 8] {
            let shares: Vec<Range<u64>> = (0..world).map(|rank| share_of(n, rank, world)).collect();
            assert_eq!((shares[0].start, shares[world as usize - 1].end), (0, n));
            assert!(shares.windows(2).all(|pair| pair[0].end == pair[1].start), "{shares:?}");
            assert!(shares.iter().all(|s| s.end - s.start - n / world <= 1), "{shares:?}");
        }
    }
}

#[test]
fn a_failure_is_an_error_and_a_panic_stays_one() {
    let failed = attempt(|| -> Result<()> { resume_unwind(Box::new(Failed(anyhow::anyhow!("rank 1 is gone")))) });
    assert_eq!(failed.unwrap_err().to_string(), "rank 1 is gone");
    let panicked = catch_unwind(|| attempt(|| -> Result<()> { resume_unwind(Box::new("no failure of the group")) }));
    assert_eq!(panicked.unwrap_err().downcast_ref(), Some(&"no failure of the group"));
}

/// So that sums in another order differ by nothing to speak of.
const DOUBLE: (Kind, Device) = (Kind::Double, Device::Cpu);

/// Samples of a step.
fn samples(n: i64) -> Tensor {
    (Tensor::arange(n * 4, DOUBLE) * 0.37).sin().reshape([n, 4])
}

fn own(all: &Tensor, share: Range<u64>) -> Tensor {
    all.narrow(0, share.start as i64, (share.end - share.start) as i64)
}

fn numbers(t: &Tensor) -> Vec<f64> {
    Vec::try_from(t.to_kind(Kind::Double).flatten(0, -1)).unwrap()
}

#[track_caller]
fn assert_close(a: &[f64], b: &[f64], tolerance: f64) {
    assert!(a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= tolerance), "{a:?}\n{b:?}");
}

#[test]
fn rows_of_all_ranks_come_in_order_in_every_kind() {
    // Rank 1 has none.
    let rows = |rank: usize| [2i64, 0, 3][rank];
    ranks(3, |rank| {
        for kind in [Kind::Float, Kind::Double, Kind::BFloat16, Kind::Half, Kind::Int64, Kind::Uint8, Kind::Bool] {
            let of = |rank: usize| {
                (Tensor::arange(rows(rank) * 2, (Kind::Int64, Device::Cpu)) + 10 * rank as i64).reshape([rows(rank), 2])
            };
            // Not contiguous, as a head may have it.
            let mine = of(rank).to_kind(kind).tr().contiguous().tr();
            let all = gather(&mine);
            assert_eq!((all.kind(), all.size()), (kind, vec![5, 2]));
            assert_eq!(numbers(&all), numbers(&Tensor::cat(&[of(0), of(1), of(2)], 0).to_kind(kind)));
            assert_eq!(alone(|| gather(&mine)).size(), mine.size());
        }
        assert_eq!(gather(&Tensor::zeros([0, 2], (Kind::Float, Device::Cpu))).size(), [0, 2]);
    });
}

#[test]
fn sums_are_those_of_all_ranks() {
    ranks(3, |rank| {
        for kind in [Kind::Float, Kind::Double, Kind::Int64] {
            assert_eq!(numbers(&sum(&Tensor::from_slice(&[rank as i64, 1]).to_kind(kind))), [3., 3.]);
            // A number.
            assert_eq!(sum(&Tensor::from(rank as i64 + 1).to_kind(kind)).double_value(&[]), 6.);
        }
        // 256 + 1 + 1 in bfloat16 steps would stay 256.
        let half = sum(&Tensor::from([256f32, 1., 1.][rank]).to_kind(Kind::BFloat16));
        assert_eq!((half.kind(), half.double_value(&[])), (Kind::BFloat16, 258.));
        let x = Tensor::from(1f32);
        assert_eq!((numbers(&alone(|| sum(&x))), world()), (vec![1.], 3));
        assert_eq!(x.double_value(&[]), 1.);
    });
}

/// A loss that a sample's share cannot have by itself: rows against each other by way of a parameter above them, after a normalisation over all.
/// It leaves gradients in `below` and `above`.
fn contrast(x: &Tensor, below: &Tensor, above: &Tensor) -> f64 {
    let features = x.matmul(below).tanh();
    let count = sum(&Tensor::from(features.size()[0]));
    let mean = sum(&features.sum_dim_intlist(0i64, false, Kind::Double)) / &count;
    let deviation = &features - mean;
    let variance = sum(&deviation.square().sum_dim_intlist(0i64, false, Kind::Double)) / &count;
    let all = gather(&(deviation / (variance + 1e-3).sqrt()));
    let loss = -(all.matmul(above).matmul(&all.tr())).log_softmax(1, Kind::Double).diag(0).mean(Kind::Double);
    loss.f_backward().unwrap();
    loss.double_value(&[])
}

fn weights() -> [Tensor; 2] {
    [0.9, 0.4].map(|phase| ((Tensor::arange(16, DOUBLE) + phase).cos() * 0.5).reshape([4, 4]).set_requires_grad(true))
}

#[test]
fn the_loss_and_the_mean_of_gradients_are_those_of_one_process() {
    let [below, above] = weights();
    let loss = contrast(&samples(7), &below, &above);
    let expected = [below.grad(), above.grad()].map(|g| numbers(&g));
    for told in [false, true] {
        let found = ranks(3, |_| {
            let [below, above] = weights();
            let mut reducer = Reducer::new(&[below.shallow_clone(), above.shallow_clone()]).unwrap();
            reducer.arm().unwrap();
            let x = own(&samples(7), share(7));
            let loss = if told { with_batch(7, || contrast(&x, &below, &above)) } else { contrast(&x, &below, &above) };
            reducer.finish().unwrap();
            (loss, [below.grad(), above.grad()].map(|g| numbers(&g)))
        });
        for (found, gradients) in found {
            assert!((found - loss).abs() < 1e-12, "{found} for {loss}");
            gradients.iter().zip(&expected).for_each(|(found, expected)| assert_close(found, expected, 1e-12));
        }
    }
}

#[test]
fn rows_of_a_batch_are_known_without_asking() {
    ranks(3, |rank| {
        let here = (share(7).end - share(7).start) as i64;
        // Rank 1 waits for nobody.
        if rank == 1 {
            assert_eq!(with_batch(7, || rows(2 * here)), (14, 6..10));
            let odd = attempt(|| Ok(with_batch(7, || rows(2 * here + 1))));
            assert!(odd.unwrap_err().to_string().contains("5 rows of 2 samples"));
        }
        // Each outside of it says how many it has.
        assert_eq!(rows(rank as i64), (3, [0..0, 0..1, 1..3][rank].clone()));
    });
    assert_eq!(rows(5), (5, 0..5));
}

/// A convolution, laid out with channels last, below two heads: the parameters, and the loss of each head.
fn network() -> (Vec<Tensor>, impl Fn(&Tensor, usize) -> Tensor) {
    let parameter = |size: &[i64], phase: f64| {
        let n = size.iter().product::<i64>();
        ((Tensor::arange(n, DOUBLE) * 0.7 + phase).sin()).reshape(size).set_requires_grad(true)
    };
    let mut conv = parameter(&[3, 2, 2, 2], 0.1);
    ffi::set_memory_format(&conv, ffi::MemoryFormat::ChannelsLast).unwrap();
    conv = conv.set_requires_grad(true);
    let frozen = parameter(&[3], 0.2).set_requires_grad(false);
    let parameters = vec![conv, frozen, parameter(&[3], 0.3), parameter(&[3], 0.4), parameter(&[5], 0.5)];
    let [conv, frozen, first, second] = [0, 1, 2, 3].map(|i| parameters[i].shallow_clone());
    let loss = move |x: &Tensor, head: usize| {
        let features =
            x.reshape([-1, 1, 2, 2]).repeat([1, 2, 1, 1]).conv2d(&conv, Some(&frozen), 1, 0, 1, 1).flatten(1, -1).tanh();
        let all = gather(&features.matmul(if head == 0 { &first } else { &second }));
        all.square().mean(Kind::Double)
    };
    (parameters, loss)
}

#[test]
fn gradients_of_several_backward_passes_are_reduced_once_in_whatever_buckets() {
    // Two micro-batches of two tasks.
    let step = |own: &dyn Fn(&Tensor) -> Tensor, mut reducer: Option<&mut Reducer>, loss: &dyn Fn(&Tensor, usize) -> Tensor| {
        for (micro, all) in [samples(5), samples(8)].iter().enumerate() {
            for head in 0..2 {
                if let Some(reducer) = reducer.as_mut().filter(|_| (micro, head) == (1, 1)) {
                    reducer.arm().unwrap();
                }
                loss(&own(all), head).f_backward().unwrap();
            }
        }
    };
    let (parameters, loss) = network();
    step(&|all| all.shallow_clone(), None, &loss);
    let gradients = |parameters: &[Tensor]| -> Vec<Option<Vec<f64>>> {
        parameters.iter().map(|p| Some(p.grad()).filter(Tensor::defined).map(|g| numbers(&g))).collect()
    };
    let expected = gradients(&parameters);
    assert_eq!(expected.iter().map(Option::is_some).collect::<Vec<_>>(), [true, false, true, true, false]);
    // Every parameter by itself, and all together: the last head's and the convolution's gradients are there before the pass ends, but wait
    // for the first head's and the unused parameter's, which come not at all in it.
    for (bytes, buckets) in [(1, [4, 0]), (1 << 20, [1, 0])] {
        let found = ranks(3, |_| {
            let (mut parameters, loss) = network();
            let mut reducer = Reducer::in_buckets(&parameters, bytes).unwrap();
            let own = |all: &Tensor| own(all, share(all.size()[0] as u64));
            for again in 0..2 {
                step(&own, Some(&mut reducer), &loss);
                reducer.finish().unwrap();
                assert_eq!(reducer.buckets(), buckets);
                if again == 0 {
                    parameters.iter_mut().for_each(ffi::clear_gradient);
                }
            }
            gradients(&parameters)
        });
        for found in found {
            for (found, expected) in found.iter().zip(&expected) {
                assert_eq!(found.is_some(), expected.is_some());
                assert_close(found.as_deref().unwrap_or_default(), expected.as_deref().unwrap_or_default(), 1e-12);
            }
        }
    }
}

#[test]
fn buckets_leave_while_the_backward_pass_still_runs() {
    let early = ranks(2, |_| {
        let layers: Vec<Tensor> = (0..6).map(|_| Tensor::eye(4, DOUBLE).set_requires_grad(true)).collect();
        let mut reducer = Reducer::in_buckets(&layers, 1).unwrap();
        reducer.arm().unwrap();
        let out = layers.iter().fold(own(&samples(6), share(6)), |x, layer| x.matmul(layer).tanh());
        out.square().sum(Kind::Double).f_backward().unwrap();
        reducer.finish().unwrap();
        reducer.buckets()
    });
    assert_eq!(early, [[6, 6]; 2]);
}

#[test]
fn gradients_are_left_in_their_bucket() {
    let beside = ranks(2, |_| {
        let weights = [2, 3].map(|n| samples(n).set_requires_grad(true));
        let mut reducer = Reducer::new(&weights).unwrap();
        reducer.arm().unwrap();
        (weights[0].sum(Kind::Double) + weights[1].square().sum(Kind::Double)).f_backward().unwrap();
        reducer.finish().unwrap();
        let [first, second] = weights.each_ref().map(|w| w.grad().data_ptr() as usize);
        // From the last to the first, without a gap.
        (first - second) / size_of::<f64>() == weights[1].numel()
    });
    assert_eq!(beside, [true; 2]);
}

#[test]
fn a_gradient_that_only_some_ranks_have_counts_as_zero_elsewhere() {
    let found = ranks(2, |rank| {
        let weights = [2f64, 3.].map(|value| Tensor::from(value).set_requires_grad(true));
        let mut reducer = Reducer::new(&weights).unwrap();
        reducer.arm().unwrap();
        (&weights[rank] * 4).f_backward().unwrap();
        reducer.finish().unwrap();
        // Learns nothing in the next step.
        let _ = weights[1].set_requires_grad(false);
        reducer.arm().unwrap();
        (&weights[0] * 4).f_backward().unwrap();
        reducer.finish().unwrap();
        weights.map(|w| w.grad().double_value(&[]))
    });
    // The mean of 4 and nothing; then 4 more on both.
    assert_eq!(found, [[6., 2.]; 2]);
}

#[test]
fn reducing_before_the_last_backward_pass_is_an_error() {
    let errors = ranks(2, |_| {
        let weight = Tensor::from(2f64).set_requires_grad(true);
        let mut reducer = Reducer::new(&[weight.shallow_clone()]).unwrap();
        assert!(reducer.finish().unwrap_err().to_string().contains("not armed"));
        reducer.arm().unwrap();
        (&weight * 2).f_backward().unwrap();
        (&weight * 2).f_backward().unwrap_err().to_string()
    });
    assert!(errors.iter().all(|error| error.contains("came twice")), "{errors:?}");
}

#[test]
fn bytes_and_tensors_reach_all_ranks() {
    ranks(3, |rank| {
        assert_eq!(exchange(&b"abc"[..rank]).unwrap(), [&b""[..], b"a", b"ab"]);
        assert_eq!(exchange(&[]).unwrap(), [[]; 3] as [[u8; 0]; 3]);
        let value = rank as i64 + 1;
        let tensors = [
            Tensor::full([2, 3], value, (Kind::Float, Device::Cpu)).tr(),
            Tensor::from(value),
            Tensor::full([0], value, (Kind::Float, Device::Cpu)),
            Tensor::full([3], value, (Kind::Float, Device::Cpu)).set_requires_grad(true),
        ];
        broadcast(&tensors).unwrap();
        assert!(tensors.iter().all(|t| numbers(t).iter().all(|&n| n == 1.)), "{tensors:?}");
        let other = Tensor::zeros([1 + (rank == 2) as i64], (Kind::Float, Device::Cpu));
        assert!(broadcast(&[other]).unwrap_err().to_string().contains("rank 2"));
    });
    assert_eq!(exchange(b"abc").unwrap(), [b"abc"]);
}

#[test]
fn ranks_agree_on_a_failure_before_a_stop_before_going_on() {
    let failed = |message: &str| Status::Failed(message.into());
    for (own, all) in [
        ([Status::Fine, Status::Fine, Status::Fine], Status::Fine),
        ([Status::Fine, Status::Stop, Status::Fine], Status::Stop),
        ([Status::Stop, failed("disk full"), failed("no samples")], failed("rank 1: disk full")),
    ] {
        let agreed = ranks(3, |rank| (agree(own[rank].clone()).unwrap(), ended()));
        assert_eq!(agreed, vec![(all.clone(), matches!(all, Status::Failed(_))); 3]);
    }
    assert_eq!(agree(failed("disk full")).unwrap(), failed("disk full"));
}

#[test]
fn a_failure_reaches_ranks_whatever_they_tell_each_other() {
    let errors = ranks(4, |rank| {
        let error = match rank {
            0 => exchange(b"abc").unwrap_err().to_string(),
            1 => broadcast(&[samples(2)]).unwrap_err().to_string(),
            2 => attempt(|| Ok(gather(&samples(2)))).unwrap_err().to_string(),
            _ => format!("{:?}", agree(Status::Failed("disk full".into())).unwrap()),
        };
        assert!(ended() && exchange(b"abc").unwrap_err().to_string().contains("have ended"));
        error
    });
    assert_eq!(errors[..3], ["rank 3: disk full"; 3]);
    assert_eq!(errors[3], "Failed(\"rank 3: disk full\")");
    // Two at different calls, none of which failed.
    let errors = ranks(2, |rank| if rank == 0 { exchange(&[]).is_err() } else { agree(Status::Fine).is_err() });
    assert_eq!(errors, [true; 2]);
}

#[test]
fn who_leaves_ends_the_collectives_of_the_others_with_a_message() {
    let start = Instant::now();
    let found = ranks(4, |rank| match rank {
        2 => {
            leave("disk full");
            (lost().unwrap(), left())
        }
        // Two wait for tensors, one of them in a backward pass, and one for a word.
        0 => (attempt(|| Ok(sum(&samples(2)))).unwrap_err().to_string(), left()),
        1 => {
            let weight = samples(1).set_requires_grad(true);
            let mut reducer = Reducer::new(&[weight.shallow_clone()]).unwrap();
            reducer.arm().unwrap();
            weight.sum(Kind::Double).f_backward().unwrap();
            (reducer.finish().unwrap_err().to_string(), left())
        }
        _ => (agree(Status::Fine).unwrap_err().to_string(), left()),
    });
    for (rank, (error, left)) in found.into_iter().enumerate() {
        assert!(!error.is_empty());
        let expected: &[&str] = if rank == 2 { &[] } else { &["rank 2: disk full"] };
        assert_eq!(left, expected, "{rank}: {error}");
    }
    assert!(start.elapsed() < Duration::from_secs(20), "nobody waits for the time limit");
}

#[test]
fn who_hangs_ends_the_collectives_of_the_others_at_the_time_limit() {
    ranks_within(3, Duration::from_secs(1), |rank| {
        if rank == 1 {
            return sleep(Duration::from_secs(3));
        }
        let start = Instant::now();
        let error = attempt(|| Ok(sum(&samples(2)))).unwrap_err().to_string();
        assert!(start.elapsed() < Duration::from_millis(2500), "{error}");
        assert_eq!(error, format!("the group of ranks: {}", lost().unwrap()));
        assert!(error.contains("summing: Timed out waiting"), "{error}");
        // From then on at once.
        let start = Instant::now();
        assert!(agree(Status::Fine).is_err() && ended() && start.elapsed() < Duration::from_millis(200));
        let words = current().unwrap().words(Duration::from_millis(1500)).unwrap();
        assert_eq!(words.len(), 1);
        assert!(words[0].starts_with("rank 1 does not answer"), "{words:?}");
        // Nor is it waited for at the end.
        let start = Instant::now();
        if rank == 0 {
            sign_off();
        } else {
            assert!(await_first(Duration::from_secs(30)));
        }
        assert!(start.elapsed() < Duration::from_secs(4));
    });
}

#[test]
fn the_others_wait_for_rank_0_to_sign_off() {
    ranks(3, |rank| match rank {
        0 => {
            announce().unwrap();
            sleep(Duration::from_millis(200));
            sign_off();
        }
        1 => assert!(await_first(Duration::from_secs(30))),
        _ => {
            assert!(await_first(Duration::from_secs(30)) && announced().unwrap());
        }
    });
    ranks(2, |rank| assert!(rank == 0 || !await_first(Duration::from_millis(50)) && !announced().unwrap()));
}

/// The constructors that are looked up in libtorch's CUDA half run: they stop where there is no GPU.
#[test]
fn nccl_says_that_there_is_no_gpu_or_sums_on_it() {
    if let Err(reason) = ffi::load_cuda() {
        assert!(ffi::group::nccl_loadable().is_err(), "{reason}");
        return;
    }
    assert!(ffi::group::has_nccl(), "{NO_NCCL}");
    ffi::group::nccl_loadable().unwrap();
    ranks(1, |_| match ffi::gpus().is_ok_and(|gpus| !gpus.is_empty()) {
        false => assert!(use_device(Device::Cuda(0)).unwrap_err().to_string().contains("no GPUs found")),
        true => {
            use_device(Device::Cuda(0)).unwrap();
            let weight = samples(3).to_device(Device::Cuda(0)).set_requires_grad(true);
            let mut reducer = Reducer::new(&[weight.shallow_clone()]).unwrap();
            reducer.arm().unwrap();
            let loss = sum(&gather(&weight).square().sum(Kind::Double));
            loss.f_backward().unwrap();
            reducer.finish().unwrap();
            assert_close(&numbers(&weight.grad()), &numbers(&(&weight * 2)), 1e-12);
            broadcast(&[weight]).unwrap();
        }
    });
}
