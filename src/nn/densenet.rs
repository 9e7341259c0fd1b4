//! DenseNet-121 for images (Huang et al. 2017), operation by operation and name by name as torchvision's `densenet121().features`,
//! so that its weights fit.

use super::blocks::{Conv, avg_pool};
use super::norm::{Norm, NormKind};
use super::script::ScriptModule;
use super::{Encoder, Level, step};
use crate::dim::{PerAxis, Rank, Shape};
use serde::{Deserialize, Serialize};
use std::fmt::Write;
use tch::{Tensor, nn};

/// Channels that each dense layer adds.
const GROWTH: i64 = 32;
/// Channels of the 1x1 convolution in each dense layer.
const BOTTLENECK: i64 = 4 * GROWTH;
/// Channels after the first convolution.
const STEM: i64 = 64;
/// Dense layers of each block.
const BLOCKS: [usize; 4] = [6, 12, 24, 16];

/// Settings of the DenseNet-121 encoder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DenseNetConfig {
    pub in_channels: i64,
    /// Dropout probability after each dense layer, 0 for none.
    pub dropout: f64,
}

impl DenseNetConfig {
    /// The stem before pooling, then each dense block before its transition, the last one normalised.
    pub fn levels() -> Vec<Level> {
        let by = |n| PerAxis::all(Rank::Two, n);
        let mut levels = vec![Level { channels: STEM, reduction: by(2) }];
        let mut inputs = STEM;
        for (i, layers) in BLOCKS.iter().enumerate() {
            let channels = inputs + GROWTH * *layers as i64;
            levels.push(Level { channels, reduction: by(4 << i) });
            inputs = channels / 2;
        }
        levels
    }
}

/// As torchvision's weights need it.
fn norm(vs: nn::Path, channels: i64) -> Norm {
    Norm::new(vs, NormKind::Batch, channels)
}

/// Normalisation, ReLU, 1x1 convolution, normalisation, ReLU, 3x3 convolution to [`GROWTH`] new channels.
#[derive(Debug)]
struct Layer {
    norms: [Norm; 2],
    convs: [Conv; 2],
}

impl Layer {
    fn new(vs: nn::Path, inputs: i64) -> Self {
        let conv = |name: &str, inputs, outputs, kernel| Conv::plain(&vs / name, Rank::Two, inputs, outputs, kernel, 1);
        Layer {
            norms: [norm(&vs / "norm1", inputs), norm(&vs / "norm2", BOTTLENECK)],
            convs: [conv("conv1", inputs, BOTTLENECK, 1), conv("conv2", BOTTLENECK, GROWTH, 3)],
        }
    }

    fn forward(&self, x: &Tensor, dropout: f64, train: bool) -> Tensor {
        let mut x = x.shallow_clone();
        for (norm, conv) in self.norms.iter().zip(&self.convs) {
            x = conv.forward(&norm.forward(&x, train).relu_());
        }
        if dropout > 0. { step::dropout(&x, dropout, train) } else { x }
    }

    fn script(&self, dropout: f64) -> ScriptModule {
        let mut source = String::from(
            "def forward(self, x: Tensor) -> Tensor:\n    x = self.conv1.forward(torch.relu(self.norm1.forward(x)))\n    x = self.conv2.forward(torch.relu(self.norm2.forward(x)))\n",
        );
        if dropout > 0. {
            writeln!(source, "    x = torch.dropout(x, {dropout}, self.training)").unwrap();
        }
        source += "    return x\n";
        (0..2).fold(ScriptModule::new(source), |module, i| {
            let n = i + 1;
            module.child(format!("norm{n}"), self.norms[i].script()).child(format!("conv{n}"), self.convs[i].script())
        })
    }
}

/// Normalisation, ReLU, 1x1 convolution to half the channels, average of 2x2.
#[derive(Debug)]
struct Transition {
    norm: Norm,
    conv: Conv,
}

impl Transition {
    fn new(vs: nn::Path, inputs: i64) -> Self {
        Transition { norm: norm(&vs / "norm", inputs), conv: Conv::plain(&vs / "conv", Rank::Two, inputs, inputs / 2, 1, 1) }
    }

    fn forward(&self, x: &Tensor, train: bool) -> Tensor {
        avg_pool(&self.conv.forward(&self.norm.forward(x, train).relu_()))
    }

    fn script(&self) -> ScriptModule {
        ScriptModule::new(
            "def forward(self, x: Tensor) -> Tensor:\n    return torch.avg_pool2d(self.conv.forward(torch.relu(self.norm.forward(x))), 2)\n",
        )
        .child("norm", self.norm.script())
        .child("conv", self.conv.script())
    }
}

/// DenseNet-121 encoder; its parameters are `conv0`, `norm0`, `denseblock{1-4}.denselayer{j}.{norm,conv}{1,2}`,
/// `transition{1-3}.{norm,conv}` and `norm5`.
#[derive(Debug)]
pub struct DenseNet {
    config: DenseNetConfig,
    levels: Vec<Level>,
    conv0: Conv,
    norm0: Norm,
    blocks: Vec<Vec<Layer>>,
    transitions: Vec<Transition>,
    norm5: Norm,
}

impl DenseNet {
    pub fn new(vs: nn::Path, config: DenseNetConfig) -> Self {
        let levels = DenseNetConfig::levels();
        let block = |i: usize| {
            let inputs = levels[i].channels / if i == 0 { 1 } else { 2 };
            let path = &vs / format!("denseblock{}", i + 1);
            let layer = |j: usize| Layer::new(&path / format!("denselayer{}", j + 1), inputs + GROWTH * j as i64);
            (0..BLOCKS[i]).map(layer).collect()
        };
        let transition = |i: usize| Transition::new(&vs / format!("transition{i}"), levels[i].channels);
        DenseNet {
            conv0: Conv::plain(&vs / "conv0", Rank::Two, config.in_channels, STEM, 7, 2),
            norm0: norm(&vs / "norm0", STEM),
            blocks: (0..BLOCKS.len()).map(block).collect(),
            transitions: (1..BLOCKS.len()).map(transition).collect(),
            norm5: norm(&vs / "norm5", levels[BLOCKS.len()].channels),
            config,
            levels,
        }
    }
}

impl Encoder for DenseNet {
    fn rank(&self) -> Rank {
        Rank::Two
    }

    fn in_channels(&self) -> i64 {
        self.config.in_channels
    }

    fn levels(&self) -> &[Level] {
        &self.levels
    }

    fn norm(&self) -> NormKind {
        NormKind::Batch
    }

    /// The first convolution and the first pooling pad, and so round up.
    fn deepest_shape(&self, input: Shape) -> Shape {
        let side = |n: usize| n.div_ceil(2).div_ceil(2) >> (BLOCKS.len() - 1);
        [1, side(input[1]), side(input[2])]
    }

    fn features(&self, x: &Tensor, train: bool) -> Vec<Tensor> {
        let stem = self.norm0.forward(&self.conv0.forward(x), train).relu_();
        let mut x = stem.max_pool2d([3, 3], [2, 2], [1, 1], [1, 1], false);
        let mut pyramid = vec![stem];
        for (i, layers) in self.blocks.iter().enumerate() {
            for layer in layers {
                let new = layer.forward(&x, self.config.dropout, train);
                x = Tensor::cat(&[x, new], 1);
            }
            match self.transitions.get(i) {
                Some(transition) => {
                    let next = transition.forward(&x, train);
                    pyramid.push(std::mem::replace(&mut x, next));
                }
                None => pyramid.push(self.norm5.forward(&x, train).relu_()),
            }
        }
        pyramid
    }

    fn script(&self) -> ScriptModule {
        let mut source = String::from(
            "def forward(self, x: Tensor) -> List[Tensor]:\n    f0 = torch.relu(self.norm0.forward(self.conv0.forward(x)))\n    x = torch.max_pool2d(f0, [3, 3], [2, 2], [1, 1])\n",
        );
        for i in 1..=BLOCKS.len() {
            writeln!(source, "    f{i} = self.denseblock{i}.forward(x)").unwrap();
            if i < BLOCKS.len() {
                writeln!(source, "    x = self.transition{i}.forward(f{i})").unwrap();
            }
        }
        source += "    return [f0, f1, f2, f3, torch.relu(self.norm5.forward(f4))]\n";
        let mut module = ScriptModule::new(source).child("conv0", self.conv0.script()).child("norm0", self.norm0.script());
        for (i, layers) in self.blocks.iter().enumerate() {
            let mut source = String::from("def forward(self, x: Tensor) -> Tensor:\n");
            (1..=layers.len())
                .for_each(|j| writeln!(source, "    x = torch.cat([x, self.denselayer{j}.forward(x)], 1)").unwrap());
            source += "    return x\n";
            let block = layers.iter().enumerate().fold(ScriptModule::new(source), |module, (j, layer)| {
                module.child(format!("denselayer{}", j + 1), layer.script(self.config.dropout))
            });
            module = module.child(format!("denseblock{}", i + 1), block);
        }
        for (i, transition) in self.transitions.iter().enumerate() {
            module = module.child(format!("transition{}", i + 1), transition.script());
        }
        module.child("norm5", self.norm5.script())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::nn::VarStore;
    use tch::{Device, Kind};

    #[test]
    fn the_pyramid_is_as_declared_for_even_and_odd_sides() {
        let vs = VarStore::new(Device::Cpu);
        let net = DenseNet::new(vs.root(), DenseNetConfig { in_channels: 3, dropout: 0. });
        assert_eq!(net.levels().iter().map(|l| l.channels).collect::<Vec<_>>(), [64, 256, 512, 1024, 1024]);
        let run =
            |h: i64, w: i64| tch::no_grad(|| net.features(&Tensor::randn([1, 3, h, w], (Kind::Float, Device::Cpu)), false));
        for (map, level) in run(64, 96).iter().zip(net.levels()) {
            let [_, h, w] = level.extent([1, 64, 96]).map(|n| n as i64);
            assert_eq!(map.size(), [1, level.channels, h, w]);
        }
        for side in [61, 66, 74] {
            let deepest = net.deepest_shape([1, side, 64]).map(|n| n as i64);
            assert_eq!(run(side as i64, 64).pop().unwrap().size()[2..], deepest[1..]);
        }
        // Of torchvision's documentation, its classifier of 1000 classes subtracted.
        let learned: usize = vs.trainable_variables().iter().map(Tensor::numel).sum();
        assert_eq!(learned, 7_978_856 - 1024 * 1000 - 1000);
    }
}
