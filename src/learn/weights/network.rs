//! Which of our networks some names and shapes are, and which names and shapes a network of ours has.
//!
//! In: parameters by our names, without their values. Out: encoder and expander options. Invariant: [`Network::parameters`] is what
//! the built module has (tested), so a file can be checked before anything is built. What shapes cannot tell is left at its default:
//! the stem's padding, and how weights were drawn.

use std::collections::BTreeMap;
use std::fmt;

use crate::learn::expander::ExpanderOptions;
use crate::learn::resnet::{DEPTHS, ResNetOptions, Stem};

/// Names and shapes, sorted.
pub type Shapes = BTreeMap<String, Vec<usize>>;

/// A network by its options.
#[derive(Clone, Debug, PartialEq)]
pub struct Network {
    /// The backbone.
    pub encoder: ResNetOptions,
    /// The projector, where there is one.
    pub expander: Option<ExpanderOptions>,
}

/// Why the weights are none of our networks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NetworkError {
    /// There is no first convolution.
    #[error("there is no first convolution `conv1.weight`, so no ResNet of ours")]
    NoStem,
    /// A first convolution that we do not have.
    #[error("the first convolution is {shape:?}; [filters, 3, 7, 7] and [filters, 3, 3, 3] are known")]
    Stem {
        /// Its shape.
        shape: Vec<usize>,
    },
    /// A width that we do not have.
    #[error("the first convolution has {filters} filters; 1 to 1024 are known")]
    Width {
        /// Its filters.
        filters: usize,
    },
    /// Stages that no depth has.
    #[error("the stages have {blocks:?} {}; known are {}", if *bottleneck { "bottlenecks" } else { "basic blocks" }, known())]
    Depth {
        /// Blocks a stage.
        blocks: Vec<usize>,
        /// Three convolutions a block.
        bottleneck: bool,
    },
    /// An expander whose layers do not follow each other.
    #[error("the expander has linear layers at {indices:?}, not at 0, 3, 6, ...")]
    Expander {
        /// Where weights of two axes are.
        indices: Vec<usize>,
    },
}

/// All depths with their blocks.
fn known() -> String {
    let one = |depth: &u32| {
        let options = ResNetOptions {
            depth: *depth,
            ..ResNetOptions::default()
        };
        format!("{:?} ({depth})", blocks(&options))
    };
    DEPTHS.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn blocks(options: &ResNetOptions) -> Vec<usize> {
    options.plan().iter().map(Vec::len).collect()
}

impl Network {
    /// The network that parameters by our names are.
    ///
    /// # Errors
    /// None of ours; what was found instead.
    pub fn of(shapes: &Shapes) -> Result<Self, NetworkError> {
        let encoder = encoder(shapes)?;
        let has_expander = shapes.keys().any(|name| name.starts_with("projector."));
        let expander = has_expander.then(|| expander(shapes)).transpose()?;
        Ok(Self { encoder, expander })
    }

    /// Names and shapes of all parameters, running statistics included.
    pub fn parameters(&self) -> Shapes {
        let mut shapes = Shapes::new();
        let filters = self.encoder.filters();
        let kernel = self.encoder.stem_convolution().1;
        shapes.insert("backbone.conv1.weight".to_owned(), vec![filters, 3, kernel, kernel]);
        norm(&mut shapes, "backbone.bn1", filters);
        for (stage, plan) in self.encoder.plan().iter().enumerate() {
            for (at, block) in plan.iter().enumerate() {
                let block_name = format!("backbone.layer{}.{at}", stage + 1);
                let inner = if block.bottleneck { 3 } else { 2 };
                for (index, (inputs, outputs, kernel, _)) in block.convolutions().into_iter().enumerate() {
                    let (conv, bn) = match index {
                        index if index < inner => (format!("conv{}", index + 1), format!("bn{}", index + 1)),
                        _ => ("downsample.0".to_owned(), "downsample.1".to_owned()),
                    };
                    shapes.insert(
                        format!("{block_name}.{conv}.weight"),
                        vec![outputs, inputs, kernel, kernel],
                    );
                    norm(&mut shapes, &format!("{block_name}.{bn}"), outputs);
                }
            }
        }
        if let Some(expander) = &self.expander {
            projector(&mut shapes, expander, self.encoder.representation_dim());
        }
        shapes
    }

    /// The recipe's keys that make this network.
    pub fn recipe_keys(&self) -> Vec<String> {
        let ResNetOptions {
            depth,
            width,
            stem,
            stem_padding,
            ..
        } = &self.encoder;
        let mut keys = vec![
            format!("encoder.depth={depth}"),
            format!("encoder.width={width:?}"),
            format!("encoder.stem={}", stem_name(*stem)),
        ];
        keys.extend(stem_padding.map(|padding| format!("encoder.stem_padding={padding}")));
        if let Some(expander) = &self.expander {
            let dims: Vec<String> = expander.dims.iter().map(usize::to_string).collect();
            keys.push(format!("expander.dims=[{}]", dims.join(",")));
            keys.push(format!("expander.hidden_bias={}", expander.hidden_bias));
            keys.push(format!("expander.last_bias={}", expander.last_bias));
        }
        keys
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ResNetOptions { depth, width, stem, .. } = &self.encoder;
        write!(f, "ResNet-{depth}, width {width}, {} stem", stem_name(*stem))?;
        match &self.expander {
            Some(expander) => {
                let dims: Vec<String> = expander.dims.iter().map(usize::to_string).collect();
                write!(f, ", expander {}", dims.join("-"))
            }
            None => Ok(()),
        }
    }
}

/// As a recipe writes it.
pub fn stem_name(stem: Stem) -> &'static str {
    match stem {
        Stem::Imagenet => "imagenet",
        Stem::Cifar => "cifar",
    }
}

fn norm(shapes: &mut Shapes, name: &str, channels: usize) {
    for part in ["weight", "bias", "running_mean", "running_var"] {
        shapes.insert(format!("{name}.{part}"), vec![channels]);
    }
}

fn projector(shapes: &mut Shapes, options: &ExpanderOptions, features: usize) {
    let mut inputs = features;
    for (at, &outputs) in options.dims.iter().enumerate() {
        let last = at + 1 == options.dims.len();
        shapes.insert(format!("projector.{}.weight", 3 * at), vec![outputs, inputs]);
        if if last { options.last_bias } else { options.hidden_bias } {
            shapes.insert(format!("projector.{}.bias", 3 * at), vec![outputs]);
        }
        if !last {
            norm(shapes, &format!("projector.{}", 3 * at + 1), outputs);
        }
        inputs = outputs;
    }
}

fn encoder(shapes: &Shapes) -> Result<ResNetOptions, NetworkError> {
    let stem_shape = shapes.get("backbone.conv1.weight").ok_or(NetworkError::NoStem)?;
    let (filters, stem) = match stem_shape[..] {
        [filters, 3, 7, 7] => (filters, Stem::Imagenet),
        [filters, 3, 3, 3] => (filters, Stem::Cifar),
        _ => {
            return Err(NetworkError::Stem {
                shape: stem_shape.clone(),
            });
        }
    };
    if !(1..=1024).contains(&filters) {
        return Err(NetworkError::Width { filters });
    }
    let bottleneck = shapes.contains_key("backbone.layer1.0.conv3.weight");
    let count = |stage: usize| {
        let has = |block: &usize| shapes.contains_key(&format!("backbone.layer{stage}.{block}.conv1.weight"));
        (0..).take_while(has).count()
    };
    let found: Vec<usize> = (1..=4).map(count).take_while(|&blocks| blocks > 0).collect();
    let options = |depth: u32| ResNetOptions {
        depth,
        width: filters as f64 / 64.0,
        stem,
        ..ResNetOptions::default()
    };
    let fits = |options: &ResNetOptions| blocks(options) == found && options.plan()[0][0].bottleneck == bottleneck;
    DEPTHS.into_iter().map(options).find(fits).ok_or(NetworkError::Depth {
        blocks: found,
        bottleneck,
    })
}

fn expander(shapes: &Shapes) -> Result<ExpanderOptions, NetworkError> {
    let index = |name: &str| {
        name.strip_prefix("projector.")?
            .strip_suffix(".weight")?
            .parse::<usize>()
            .ok()
    };
    let linear = |(name, shape): (&String, &Vec<usize>)| Some((index(name).filter(|_| shape.len() == 2)?, shape[0]));
    let mut layers: Vec<(usize, usize)> = shapes.iter().filter_map(linear).collect();
    layers.sort_unstable();
    if layers.is_empty() || layers.iter().enumerate().any(|(at, &(index, _))| index != 3 * at) {
        let indices = layers.into_iter().map(|(index, _)| index).collect();
        return Err(NetworkError::Expander { indices });
    }
    let has_bias = |at: usize| shapes.contains_key(&format!("projector.{at}.bias"));
    let last = layers.len() - 1;
    Ok(ExpanderOptions {
        dims: layers.iter().map(|&(_, outputs)| outputs).collect(),
        hidden_bias: if last > 0 {
            has_bias(0)
        } else {
            ExpanderOptions::default().hidden_bias
        },
        last_bias: has_bias(3 * last),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learn::model::VicReg;
    use crate::learn::weights::export;
    use burn::backend::Flex;

    fn network(depth: u32, filters: u32, stem: Stem, dims: &[usize], hidden_bias: bool, last_bias: bool) -> Network {
        Network {
            encoder: ResNetOptions {
                depth,
                width: f64::from(filters) / 64.0,
                stem,
                ..ResNetOptions::default()
            },
            expander: Some(ExpanderOptions {
                dims: dims.to_vec(),
                hidden_bias,
                last_bias,
            }),
        }
    }

    #[test]
    fn parameters_are_the_modules_and_tell_the_network() {
        for network in [
            network(8, 2, Stem::Cifar, &[5], true, true),
            network(10, 3, Stem::Imagenet, &[5, 4], true, false),
            network(18, 1, Stem::Cifar, &[5, 4, 3], false, true),
            network(34, 1, Stem::Imagenet, &[2; 4], true, true),
            network(50, 1, Stem::Imagenet, &[4, 4, 4], true, false),
            network(101, 1, Stem::Imagenet, &[3], true, false),
            network(200, 1, Stem::Cifar, &[4, 2], false, false),
        ] {
            let expander = network.expander.as_ref().unwrap();
            let module = VicReg::<Flex>::new(&network.encoder, expander, 1, &Default::default());
            let built: Shapes = export(&module).into_iter().map(|t| (t.name, t.shape)).collect();
            assert_eq!(network.parameters(), built, "{network}");
            assert_eq!(Network::of(&built), Ok(network));
        }
    }

    #[test]
    fn other_networks_are_described() {
        let known = network(18, 2, Stem::Imagenet, &[4], true, false).parameters();
        let with = |name: &str, shape: &[usize]| {
            let mut shapes = known.clone();
            shapes.insert(name.to_owned(), shape.to_vec());
            Network::of(&shapes).unwrap_err().to_string()
        };
        let error = with("backbone.conv1.weight", &[64, 1, 7, 7]);
        assert!(error.contains("[64, 1, 7, 7]"), "{error}");
        let error = with("backbone.conv1.weight", &[5000, 3, 7, 7]);
        assert!(error.contains("5000 filters"), "{error}");
        let error = with("backbone.layer2.2.conv1.weight", &[1, 1, 3, 3]);
        assert!(
            error.contains("[2, 3, 2, 2] basic blocks") && error.contains("[2, 2, 2, 2] (18)"),
            "{error}"
        );
        let error = with("backbone.layer1.0.conv3.weight", &[1, 1, 1, 1]);
        assert!(error.contains("[2, 2, 2, 2] bottlenecks"), "{error}");
        let error = with("projector.2.weight", &[4, 4]);
        assert!(error.contains("[0, 2]"), "{error}");
        assert_eq!(Network::of(&Shapes::new()), Err(NetworkError::NoStem));
    }
}
