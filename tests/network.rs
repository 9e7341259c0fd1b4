//! Gradients of the encoder and of the segmentation network in bfloat16 and on a GPU, against float32 on the CPU.

use pretext3d::dim::{PerAxis, Rank};
use pretext3d::ffi::{self, MemoryFormat};
use pretext3d::nn::blocks::{Conv, UpConv};
use pretext3d::nn::{Decoder, Encoder, Mode, UNet, UNetConfig};
use std::collections::BTreeMap;
use std::sync::Mutex;
use tch::{Device, Kind, Tensor, nn::VarStore};

/// Sides of what the tasks feed the encoder with windows of 64, 96 and 128, and a batch that leaves batch normalisation
/// something to average: patches of rpl and jig, of cpc, and whole windows. 39 and 32 pool to a depth of 2, where libtorch's
/// own bfloat16 weight gradient is garbage on the CPU.
const INPUTS: [(i64, i64); 8] = [(19, 32), (24, 32), (29, 32), (30, 32), (32, 8), (39, 8), (50, 4), (64, 2)];

/// Those of them that leave the deepest normalisation enough values for the whole network: with few, rounding decides the gradient,
/// and the number of threads does.
const WHOLE: [(i64, i64); 3] = [(32, 8), (39, 8), (64, 2)];

/// Sides of the patches that segmentation trains on, and batches as those of `WHOLE`.
const PATCHES: [(i64, i64); 3] = [(32, 8), (48, 4), (64, 2)];

static GENERATOR: Mutex<()> = Mutex::new(());

/// What the gradients are computed in.
#[derive(Clone, Copy)]
struct Setting {
    device: Device,
    kind: Kind,
    bf16: bool,
    format: MemoryFormat,
    /// Draws weights, input and projection.
    seed: i64,
}

const CPU: Setting = Setting { device: Device::Cpu, kind: Kind::Float, bf16: false, format: MemoryFormat::Contiguous, seed: 5 };
const DOUBLE: Setting = Setting { kind: Kind::Double, ..CPU };
const BF16: Setting = Setting { bf16: true, format: MemoryFormat::ChannelsLast, ..CPU };

/// The network whose gradients are looked at.
#[derive(Clone, Copy, PartialEq)]
enum Part {
    /// Up to the deepest map.
    Encoder,
    /// With the decoder, up to the logits of this many classes.
    Segmentation(i64),
}

/// Gradients of every parameter for a fixed random projection of what the network gives.
fn gradients(setting: Setting, part: Part, rank: Rank, (side, batch): (i64, i64), filters: i64) -> BTreeMap<String, Tensor> {
    // Tests share libtorch's generator.
    let _alone = GENERATOR.lock().unwrap_or_else(|e| e.into_inner());
    let Setting { device, kind, bf16, format, seed } = setting;
    tch::manual_seed(seed);
    let mut vs = VarStore::new(Device::Cpu);
    let encoder = UNet::new(&vs.root() / "encoder", UNetConfig { filters, ..UNetConfig::paper(rank, 1) });
    let decoder = match part {
        Part::Encoder => None,
        Part::Segmentation(classes) => Some(Decoder::new(&vs.root() / "decoder", &encoder, classes, false)),
    };
    let mut dims = vec![batch, 1];
    dims.extend(vec![side; rank.n()]);
    let x = Tensor::randn(&dims, (Kind::Float, Device::Cpu)).to_kind(kind).to_device(device);
    let levels = encoder.levels().len() as u32;
    let (channels, side) = match part {
        Part::Encoder => (filters << (levels - 1), side >> (levels - 1)),
        Part::Segmentation(classes) => (classes, side),
    };
    let mut given = vec![batch, channels];
    given.extend(vec![side; rank.n()]);
    let projection = Tensor::randn(&given, (Kind::Float, Device::Cpu)).to_kind(kind).to_device(device);
    vs.set_device(device);
    if kind == Kind::Double {
        vs.double();
    }
    for variable in vs.variables().values() {
        ffi::set_memory_format(variable, format).unwrap();
    }
    ffi::set_memory_format(&x, format).unwrap();
    let map = ffi::with_autocast(device, bf16, || {
        let mut pyramid = encoder.forward(&x, Mode::Train);
        match &decoder {
            None => pyramid.pop().unwrap(),
            Some(decoder) => decoder.forward(pyramid, Mode::Train).remove(0),
        }
    });
    (map.to_kind(kind) * projection).sum(kind).backward();
    vs.variables()
        .into_iter()
        .filter(|(_, t)| t.requires_grad())
        .map(|(name, t)| (name, t.grad().to_device(Device::Cpu).to_kind(Kind::Double).contiguous()))
        .collect()
}

/// Cosine of the angle between two gradients, and the ratio of their lengths.
fn agreement(a: &Tensor, b: &Tensor) -> (f64, f64) {
    let [a, b] = [a, b].map(|t| t.flatten(0, -1));
    let (na, nb) = (a.norm().double_value(&[]), b.norm().double_value(&[]));
    ((a * b).sum(Kind::Double).double_value(&[]) / (na * nb), na / nb)
}

/// Gradients of one layer's weight and input for a random projection of its output, of a batch whose side is `side`.
fn layer_gradients(device: Device, bf16: bool, up: bool, [batch, inputs, outputs, side]: [i64; 4]) -> [Tensor; 2] {
    let _alone = GENERATOR.lock().unwrap_or_else(|e| e.into_inner());
    tch::manual_seed(7);
    let mut vs = VarStore::new(Device::Cpu);
    let (conv, up) = match up {
        false => (Some(Conv::new(vs.root(), Rank::Three, inputs, outputs, 3)), None),
        true => (None, Some(UpConv::new(vs.root(), inputs, outputs, PerAxis::all(Rank::Three, 2), 0.1))),
    };
    let x = Tensor::randn([batch, inputs, side, side, side], (Kind::Float, Device::Cpu));
    let out = if up.is_some() { 2 * side } else { side };
    let projection = Tensor::randn([batch, outputs, out, out, out], (Kind::Float, Device::Cpu)).to_device(device);
    vs.set_device(device);
    let format = if bf16 { MemoryFormat::ChannelsLast } else { MemoryFormat::Contiguous };
    let x = x.to_device(device);
    ffi::set_memory_format(&x, format).unwrap();
    ffi::set_memory_format(&vs.variables()["weight"], format).unwrap();
    let x = x.set_requires_grad(true);
    let map = ffi::with_autocast(device, bf16, || match (&conv, &up) {
        (Some(conv), _) => conv.forward(&x),
        (_, Some(up)) => up.forward(&x),
        _ => unreachable!("one of them"),
    });
    (map.to_kind(Kind::Float) * projection).sum(Kind::Float).backward();
    [vs.variables()["weight"].grad(), x.grad()].map(|t| t.to_device(Device::Cpu).to_kind(Kind::Double).contiguous())
}

/// Of every convolution that these inputs reach, alone: one rounding to 8 bits hardly turns a gradient.
fn assert_bf16_layers_follow(device: Device) {
    let mut layers = Vec::new();
    for (side, batch) in INPUTS.map(|(side, batch)| (side, batch.min(2))) {
        for level in 0..5 {
            let channels = 16 << level;
            layers.push((false, [batch, if level == 0 { 1 } else { channels / 2 }, channels, side >> level]));
            layers.push((false, [batch, channels, channels, side >> level]));
        }
    }
    for (side, batch) in PATCHES {
        layers.extend((1..5).map(|level| (true, [batch, 16 << level, 8 << level, side >> level])));
    }
    layers.sort();
    layers.dedup();
    for (up, sizes) in layers {
        let [rough, exact] = [true, false].map(|bf16| layer_gradients(device, bf16, up, sizes));
        for (of, rough, exact) in [("weight", &rough[0], &exact[0]), ("input", &rough[1], &exact[1])] {
            let (cosine, ratio) = agreement(rough, exact);
            assert!(cosine > 0.999 && (ratio - 1.).abs() < 0.01, "up {up} {sizes:?}, {of}: cosine {cosine}, length {ratio}");
        }
    }
}

/// A broken layer has a cosine near 0 or a wild length. Rounding to 8 bits grows on the way back through the batch normalisations
/// (PyTorch's own figures are the same), so that only the last convolution is near; each alone is held to more above. What rounding
/// makes of one draw is chance: medians of some.
fn assert_bf16_follows(setting: Setting, part: Part, input: (i64, i64)) {
    let draws = [5, 6, 7].map(|seed| {
        let [rough, exact] = [setting, CPU].map(|s| gradients(Setting { seed, ..s }, part, Rank::Three, input, 16));
        // Of convolutions, transposed ones included.
        let convolutions = exact.into_iter().filter(|(_, gradient)| gradient.dim() == 5);
        convolutions.map(|(name, exact)| (name.clone(), agreement(&rough[&name], &exact))).collect::<BTreeMap<_, _>>()
    });
    let last = match part {
        Part::Encoder => "level4.conv1",
        Part::Segmentation(_) => "decoder.output",
    };
    for name in draws[0].keys() {
        let median = |of: fn(&(f64, f64)) -> f64| {
            let mut found = draws.each_ref().map(|draw| of(&draw[name]));
            found.sort_by(f64::total_cmp);
            found[1]
        };
        let (cosine, ratio) = (median(|agreement| agreement.0), median(|agreement| agreement.1));
        let least = if name.contains(last) { 0.9 } else { 0.4 };
        assert!(cosine > least && (0.5..2.).contains(&ratio), "{input:?}, {name}: cosine {cosine}, length {ratio}");
    }
}

#[test]
fn bfloat16_gradients_of_every_layer_follow_float32() {
    assert_bf16_layers_follow(Device::Cpu);
}

#[test]
fn bfloat16_gradients_of_the_encoder_follow_float32() {
    WHOLE.iter().for_each(|&input| assert_bf16_follows(BF16, Part::Encoder, input));
}

#[test]
fn bfloat16_gradients_of_segmentation_follow_float32() {
    PATCHES.iter().for_each(|&input| assert_bf16_follows(BF16, Part::Segmentation(4), input));
}

#[test]
fn float32_agrees_with_double_precision() {
    let segmentation = Part::Segmentation(4);
    for (part, rank, input) in [
        (Part::Encoder, Rank::Three, (40, 2)),
        (Part::Encoder, Rank::Two, (40, 4)),
        (segmentation, Rank::Three, (32, 2)),
        (segmentation, Rank::Two, (48, 4)),
    ] {
        let exact = gradients(DOUBLE, part, rank, input, 4);
        let single = gradients(CPU, part, rank, input, 4);
        let last = gradients(Setting { format: MemoryFormat::ChannelsLast, ..DOUBLE }, part, rank, input, 4);
        for (name, exact) in exact.iter().filter(|(name, _)| name.ends_with("weight")) {
            // The decoder's normalisations pass rounding on, and more so of few voxels.
            let rounding = if part == Part::Encoder { 1e-5 } else { 1e-3 };
            for (found, least) in [(&single[name], 1. - rounding), (&last[name], 1. - 1e-9)] {
                let (cosine, ratio) = agreement(found, exact);
                assert!(cosine > least && (ratio - 1.).abs() < 1e-2, "{rank:?} {name}: cosine {cosine}, length {ratio}");
            }
        }
    }
}

#[test]
#[ignore = "needs a GPU; `make test` asks for it where there is one"]
fn gpu_gradients_equal_the_cpus() {
    ffi::load_cuda().unwrap();
    assert!(tch::Cuda::is_available(), "no GPU that libtorch can use");
    let gpu = Device::Cuda(0);
    let segmentation = Part::Segmentation(4);
    for (part, input) in [(Part::Encoder, (40, 2)), (segmentation, (32, 2))] {
        let exact = gradients(DOUBLE, part, Rank::Three, input, 4);
        let setting = Setting { device: gpu, format: MemoryFormat::ChannelsLast, ..DOUBLE };
        let found = gradients(setting, part, Rank::Three, input, 4);
        for (name, exact) in exact.iter().filter(|(name, _)| name.ends_with("weight")) {
            let (cosine, ratio) = agreement(&found[name], exact);
            assert!(cosine > 1. - 1e-9 && (ratio - 1.).abs() < 1e-6, "{name}: cosine {cosine}, length {ratio}");
        }
    }
    assert_bf16_layers_follow(gpu);
    let setting = Setting { device: gpu, ..BF16 };
    WHOLE.iter().for_each(|&input| assert_bf16_follows(setting, Part::Encoder, input));
    PATCHES.iter().for_each(|&input| assert_bf16_follows(setting, segmentation, input));
}
