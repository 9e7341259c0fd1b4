use super::*;
use crate::nn::script::ScriptModule;
use crate::nn::{Level, NormKind, UNet, UNetConfig};
use crate::rng::{Stream, rng};
use crate::tasks::tests::{batch, check, encoder, scans};
use crate::tasks::{TaskConfigs, TaskKind};
use std::cell::RefCell;
use tch::Device;

#[test]
fn head_runs_forward_and_backward() {
    let mut configs = TaskConfigs::default();
    check(TaskKind::Cpc, &configs, 27);
    configs.cpc = CpcConfig { grid: Some(Sides::all(4)), first_step: 1, code: 8 };
    check(TaskKind::Cpc, &configs, 31);
    let task = Cpc::new(&CpcConfig { grid: "3,4,1".parse().ok(), ..Default::default() }, [36, 40, 10], 2, Rank::Three).unwrap();
    assert_eq!((task.views(), task.view_shape()), (12, [18, 16, 10]));
    let vs = nn::VarStore::new(Device::Cpu);
    let encoder = encoder(&vs, Rank::Three);
    let (batch, _) = batch(&task, &scans([40; 3]), Rank::Three, 2);
    let outcome = task.head(&vs.root(), &encoder).unwrap().forward(&encoder, &batch, Mode::Train);
    // Of 24 candidates, as an untrained network scores them.
    assert!((outcome.loss.double_value(&[]) - 24f64.ln()).abs() < 2.);
}

fn values(x: &Tensor) -> Vec<f64> {
    Vec::try_from(x.to_kind(Kind::Double).reshape([-1])).unwrap()
}

#[test]
fn info_nce_as_written_out() {
    tch::manual_seed(1);
    let (b, n, d) = (3, 4, 5);
    for first in [1, 2] {
        let random = |dims: &[i64]| Tensor::randn(dims, (Kind::Float, Device::Cpu));
        let (codes, contexts) = (random(&[b, n, n, n, d]), random(&[b, n, n, n, d]));
        let maps: Vec<Tensor> = (first..n).map(|_| random(&[d, d])).collect();
        let (logits, own) = scores(&codes, &contexts, &maps, first as usize);
        let found = f64::try_from(logits.cross_entropy_for_logits(&own)).unwrap();

        let (z, c) = (values(&codes), values(&contexts));
        let (n, d, b) = (n as usize, d as usize, b as usize);
        let cell = |s: usize, i: usize, j: usize, k: usize| ((s * n + i) * n + j) * n + k;
        let (mut loss, mut count, mut right) = (0., 0, 0);
        for (l, map) in (first as usize..n).zip(&maps) {
            let w = values(map);
            for s in 0..b {
                for (i, j, k) in ndarray::indices((n - l, n, n)) {
                    let context = &c[cell(s, i, j, k) * d..][..d];
                    let zhat: Vec<f64> = (0..d).map(|r| (0..d).map(|q| w[r * d + q] * context[q]).sum()).collect();
                    let dot = |id: usize| (0..d).map(|r| zhat[r] * z[id * d + r]).sum::<f64>();
                    let positive = cell(s, i + l, j, k);
                    let negatives: f64 = (0..b * n * n * n).filter(|&id| id != positive).map(|id| dot(id).exp()).sum();
                    loss -= (dot(positive).exp() / (dot(positive).exp() + negatives)).ln();
                    count += 1;
                    right += usize::from((0..b * n * n * n).all(|id| dot(id) <= dot(positive)));
                }
            }
        }
        assert_eq!(logits.size(), [count as i64, (b * n * n * n) as i64]);
        assert!((found - loss / count as f64).abs() < 1e-3 * found, "{found} against {}", loss / count as f64);
        let hits = logits.argmax(-1, false).eq_tensor(&own).sum(Kind::Int64);
        assert_eq!(i64::try_from(hits).unwrap(), right as i64);
    }
}

fn head(vs: &nn::VarStore, encoder: &dyn Encoder, rank: Rank, n: usize) -> CpcHead {
    let task =
        Cpc::new(&CpcConfig { grid: Some(Sides::all(n)), ..Default::default() }, rank.cube(8 * (n + 1)), 2, rank).unwrap();
    task.network(&(vs.root() / "cpc"), encoder).unwrap()
}

#[test]
fn a_context_sees_all_planes_up_to_its_own_and_none_after() {
    for (rank, n) in [(Rank::Three, 3), (Rank::Three, 4), (Rank::Two, 7)] {
        tch::manual_seed(2);
        let vs = nn::VarStore::new(Device::Cpu);
        let head = head(&vs, &encoder(&vs, rank), rank, n);
        let cells = head.grid.count();
        let mut dims = vec![1];
        dims.extend(vec![n as i64; rank.n()]);
        dims.push(128);
        let codes = Tensor::randn(&dims, (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let contexts = head.contexts(&codes).reshape([cells as i64, 128]);
        let plane = |cell: usize| cell / n.pow(rank.n() as u32 - 1);
        for cell in 0..cells {
            let sum = contexts.get(cell as i64).sum(Kind::Float);
            let gradient = Tensor::run_backward(&[sum], &[&codes], true, false).remove(0);
            let seen = values(&gradient.reshape([cells as i64, 128]).abs().sum_dim_intlist(-1, false, Kind::Float));
            for (other, seen) in seen.iter().enumerate() {
                assert_eq!(*seen > 0., plane(other) <= plane(cell), "{rank:?} {n}: context {cell}, code {other}: {seen}");
            }
        }
    }
}

#[test]
fn with_instance_norm_nothing_of_later_planes_reaches_a_prediction() {
    for (rank, norm) in [Rank::Two, Rank::Three].into_iter().flat_map(|r| [(r, NormKind::Batch), (r, NormKind::Instance)]) {
        tch::manual_seed(6);
        let vs = nn::VarStore::new(Device::Cpu);
        let config = UNetConfig { filters: 4, levels: 3, norm, ..UNetConfig::paper(rank, 2) };
        let encoder = UNet::new(vs.root() / "encoder", config);
        let head = head(&vs, &encoder, rank, 3);
        let cells = head.grid.count() as i64;
        let mut dims = vec![2, cells, 2];
        dims.extend(vec![16; rank.n()]);
        let views = Tensor::randn(&dims, (Kind::Float, Device::Cpu));
        // Of the first scan the last plane's patches.
        let changed = views.copy();
        let _ = changed.get(0).narrow(0, cells - cells / 3, cells / 3).fill_(3.);
        let contexts = |views: &Tensor| head.contexts(&head.codes(&encoder, views, Mode::Train));
        let off = (contexts(&views) - contexts(&changed)).abs();
        let earlier = off.narrow(1, 0, 2).max().double_value(&[]);
        let of_other_scans = off.get(1).max().double_value(&[]);
        assert!(off.get(0).get(2).min().double_value(&[]) > 0., "a plane sees itself");
        for leak in [earlier, of_other_scans] {
            assert_eq!(leak > 1e-6, norm == NormKind::Batch, "{rank:?} {norm:?}: {leak}");
        }
    }
}

/// Records the batch sizes that pass an encoder.
struct Counting<E>(E, RefCell<Vec<i64>>);

impl<E: Encoder> Encoder for Counting<E> {
    fn rank(&self) -> Rank {
        self.0.rank()
    }
    fn in_channels(&self) -> i64 {
        self.0.in_channels()
    }
    fn levels(&self) -> &[Level] {
        self.0.levels()
    }
    fn norm(&self) -> NormKind {
        self.0.norm()
    }
    fn features(&self, x: &Tensor, train: bool) -> Vec<Tensor> {
        self.1.borrow_mut().push(x.size()[0]);
        self.0.features(x, train)
    }
    fn script(&self) -> ScriptModule {
        self.0.script()
    }
}

#[test]
fn every_patch_is_encoded_once_and_chance_is_reported() {
    tch::manual_seed(3);
    let vs = nn::VarStore::new(Device::Cpu);
    let encoder = Counting(encoder(&vs, Rank::Three), RefCell::new(Vec::new()));
    let task = Cpc::new(&CpcConfig { grid: Some(Sides::all(3)), ..Default::default() }, [32; 3], 2, Rank::Three).unwrap();
    let (batch, _) = batch(&task, &scans([32; 3]), Rank::Three, 5);
    let outcome = task.head(&vs.root(), &encoder).unwrap().forward(&encoder, &batch, Mode::Train);
    assert_eq!(*encoder.1.borrow(), [5 * 27]);
    let [accuracy, chance, within] = [0, 1, 2].map(|i| f64::try_from(&outcome.metrics[i]).unwrap());
    assert!((chance - 1. / 135.).abs() < 1e-7);
    assert!(accuracy <= within && within <= 1., "fewer candidates cannot make it harder: {accuracy} {within}");
    // An untrained network starts near chance, not at a wild loss.
    let loss = f64::try_from(outcome.loss).unwrap();
    assert!((loss - 135f64.ln()).abs() < 2., "{loss}");
}

#[test]
fn samples_are_flipped_padded_crops_and_replay() {
    for (rank, grid, window) in
        [(Rank::Two, "3", [1, 40, 40]), (Rank::Three, "3", [34; 3]), (Rank::Three, "3,4,1", [34, 45, 9])]
    {
        let scans = scans(std::array::from_fn(|a| if window[a] == 1 { 1 } else { window[a] + 2 }));
        let task = Cpc::new(&CpcConfig { grid: grid.parse().ok(), ..Default::default() }, window, 2, rank).unwrap();
        let shape = task.view_shape();
        let length = task.views() * 2 * voxels(shape);
        let (mut out, mut again) = (vec![f32::NAN; length], vec![f32::NAN; length]);
        let drawn = task.sample(&scans, 1, &mut rng(4, Stream::Train, 0, 0), &mut out).unwrap();
        let record: Params = serde_json::from_str(&drawn.params.to_string()).unwrap();
        task.render(&scans, 1, &record, &mut again).unwrap();
        assert_eq!(out, again);
        assert_eq!(record.patches.len(), task.views());
        let start = record.window.start;
        let least = [0, 1].map(|c| {
            let inside = |a: usize, x: usize| (start[a]..start[a] + record.window.size[a]).contains(&x);
            let values = scans.images[1]
                .indexed_iter()
                .filter(|((k, d, h, w), _)| *k == c && inside(0, *d) && inside(1, *h) && inside(2, *w));
            values.map(|(_, value)| *value).fold(f32::INFINITY, f32::min)
        });
        assert!(least[0] != least[1] && !least.contains(&0.));
        // Voxel by voxel, from the view back to the scan.
        let mut out = out.iter();
        for (v, patch) in record.patches.iter().enumerate() {
            let cell = task.grid.index(v);
            for (c, &least) in least.iter().enumerate() {
                for (d, h, w) in ndarray::indices((shape[0], shape[1], shape[2])) {
                    let mut at = [0; 3];
                    let covered = [d, h, w].iter().enumerate().all(|(a, x)| {
                        let [crop, step] = [&record.crop_side, &record.step].map(|sides| sides.shape("", rank).unwrap()[a]);
                        let x = x.wrapping_sub(patch.place[a]);
                        let x = if patch.flip[a] { (crop - 1).wrapping_sub(x) } else { x };
                        at[a] = (record.window.start[a] + cell[a] * step + patch.crop[a]).wrapping_add(x);
                        x < crop
                    });
                    let expected = if covered { scans.images[1][[c, at[0], at[1], at[2]]] } else { least };
                    assert_eq!(*out.next().unwrap(), expected, "{rank:?} view {v} voxel {:?}", [d, h, w]);
                }
            }
        }
    }
}

#[test]
fn sizes_and_refusals() {
    let new = |grid: Option<usize>, first_step, window, rank| {
        Cpc::new(&CpcConfig { grid: grid.map(Sides::all), first_step, code: 8 }, window, 1, rank)
    };
    for (rank, window, n, side) in [
        (Rank::Three, 64, 3, 32),
        (Rank::Three, 128, 4, 50),
        (Rank::Three, 40, 3, 20),
        (Rank::Two, 64, 7, 16),
        (Rank::Two, 224, 7, 56),
    ] {
        let task = new(None, 2, rank.cube(window), rank).unwrap();
        let found = (task.grid.n, task.grid.side, task.crop);
        assert_eq!(found, (rank.cube(n), rank.cube(side), rank.cube(side * 7 / 8)), "{rank:?} {window}");
    }
    // A thin axis is left whole, but for the one along which it predicts.
    assert_eq!(new(None, 2, [128, 128, 30], Rank::Three).unwrap().grid.n, [4, 4, 1]);
    assert_eq!(new(None, 2, [30, 128, 128], Rank::Three).unwrap().grid.n, [3, 4, 4]);
    let refused = |task: Result<Cpc>, part: &str| assert!(format!("{:#}", task.err().unwrap()).contains(part));
    refused(new(Some(2), 2, [64; 3], Rank::Three), "2 patches a side");
    refused(new(Some(3), 0, [64; 3], Rank::Three), "found 0");
    refused(new(Some(3), 2, [3; 3], Rank::Three), "window of 3");
}
