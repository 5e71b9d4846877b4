//! How other programs name the parameters that we name `backbone.*` and `projector.*`. No I/O, no values: names to names.
//!
//! In: the keys of a file. Out: a [`Scheme`], which maps each key to ours or says that it has no place, and maps ours back.
//! Invariant: a scheme's two directions are inverse of each other on the keys that have a place (tested for every row).
//! Sources: torchvision's and timm's ResNet (the same names); facebookresearch/vicreg (main_vicreg.py wraps backbone and projector in
//! DistributedDataParallel, whose keys begin with `module.`; its resnet50.pth is the backbone alone); vturrisi/solo-learn
//! (solo/methods/base.py); lightly-ai/lightly (examples: backbone = Sequential of a ResNet's children; models/modules/heads.py;
//! models/resnet.py, whose shortcut has another name and which has neither rectifier nor pool among its children).

use super::WeightsError;

/// Whose names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// The backbone alone: `conv1.weight`, `layer1.0.bn1.bias`, ...
    Torchvision,
    /// The same names as torchvision's
    Timm,
    /// `module.backbone.*` and `module.projector.*`; the backbone alone as torchvision
    Official,
    /// `backbone.*`, `projector.*` and a `classifier.*`
    SoloLearn,
    /// `backbone.0.weight`, ... and `projection_head.layers.*`
    Lightly,
}

impl std::fmt::Display for Layout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Torchvision => "torchvision",
            Self::Timm => "timm",
            Self::Official => "official",
            Self::SoloLearn => "solo-learn",
            Self::Lightly => "lightly",
        })
    }
}

/// One way to name.
#[derive(Debug, PartialEq)]
struct Naming {
    /// Who names so; the first is the one that is reported.
    layouts: &'static [Layout],
    /// A key that begins so tells that it is this one.
    sign: &'static str,
    /// (theirs, ours): beginnings of keys.
    prefixes: &'static [(&'static str, &'static str)],
    /// What they call `downsample`.
    downsample: &'static str,
    /// Beginnings of keys of a classifier, for which a VICReg network has no place.
    heads: &'static [&'static str],
}

const CLASSIFIER: &[&str] = &["fc.", "classifier.", "online_classifier."];

/// In the order in which they are tried: what is more special comes first.
const NAMINGS: [Naming; 6] = [
    Naming {
        layouts: &[Layout::Lightly],
        sign: "backbone.2.0.",
        prefixes: &[
            ("backbone.0.", "backbone.conv1."),
            ("backbone.1.", "backbone.bn1."),
            ("backbone.2.", "backbone.layer1."),
            ("backbone.3.", "backbone.layer2."),
            ("backbone.4.", "backbone.layer3."),
            ("backbone.5.", "backbone.layer4."),
            ("projection_head.layers.", "projector."),
        ],
        downsample: "shortcut",
        heads: CLASSIFIER,
    },
    Naming {
        layouts: &[Layout::Lightly],
        sign: "backbone.0.",
        prefixes: &[
            ("backbone.0.", "backbone.conv1."),
            ("backbone.1.", "backbone.bn1."),
            ("backbone.4.", "backbone.layer1."),
            ("backbone.5.", "backbone.layer2."),
            ("backbone.6.", "backbone.layer3."),
            ("backbone.7.", "backbone.layer4."),
            ("projection_head.layers.", "projector."),
        ],
        downsample: "downsample",
        heads: CLASSIFIER,
    },
    Naming {
        layouts: &[Layout::Lightly],
        sign: "projection_head.",
        prefixes: &[("backbone.", "backbone."), ("projection_head.layers.", "projector.")],
        downsample: "downsample",
        heads: CLASSIFIER,
    },
    Naming {
        layouts: &[Layout::SoloLearn],
        sign: "classifier.",
        prefixes: &[("backbone.", "backbone."), ("projector.", "projector.")],
        downsample: "downsample",
        heads: CLASSIFIER,
    },
    Naming {
        layouts: &[Layout::Official, Layout::SoloLearn],
        sign: "backbone.",
        prefixes: &[("backbone.", "backbone."), ("projector.", "projector.")],
        downsample: "downsample",
        heads: CLASSIFIER,
    },
    Naming {
        layouts: &[Layout::Torchvision, Layout::Timm, Layout::Official],
        sign: "conv1.",
        prefixes: &[
            ("conv1.", "backbone.conv1."),
            ("bn1.", "backbone.bn1."),
            ("layer1.", "backbone.layer1."),
            ("layer2.", "backbone.layer2."),
            ("layer3.", "backbone.layer3."),
            ("layer4.", "backbone.layer4."),
        ],
        downsample: "downsample",
        heads: CLASSIFIER,
    },
];

/// What DataParallel and DistributedDataParallel put before each key.
const PARALLEL: &str = "module.";

/// Where a key belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// To this parameter of ours.
    Ours(String),
    /// To a classifier.
    Head,
    /// Nowhere.
    Nowhere,
}

/// How the keys of one file name our parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scheme {
    /// Whose names they are.
    pub layout: Layout,
    naming: &'static Naming,
    parallel: bool,
}

impl Scheme {
    /// The scheme of these keys; only one of `forced`, if it is given.
    ///
    /// # Errors
    /// Keys that nobody we know has, or that `forced` does not have.
    pub fn detect<'a>(
        keys: impl Iterator<Item = &'a str> + Clone,
        forced: Option<Layout>,
    ) -> Result<Self, WeightsError> {
        let parallel = keys.clone().count() > 0 && keys.clone().all(|key| key.starts_with(PARALLEL));
        let bare = |key: &'a str| if parallel { &key[PARALLEL.len()..] } else { key };
        let candidates = || {
            NAMINGS
                .iter()
                .filter(|n| forced.is_none_or(|layout| n.layouts.contains(&layout)))
        };
        let signed = |naming: &&Naming| keys.clone().any(|key| bare(key).starts_with(naming.sign));
        match candidates().find(signed) {
            Some(naming) => Ok(Self {
                layout: forced.unwrap_or(naming.layouts[0]),
                naming,
                parallel,
            }),
            None => Err(WeightsError::UnknownLayout {
                forced,
                keys: keys.map(str::to_owned).collect(),
            }),
        }
    }

    /// The names that an export in `layout` has. `projector`: whether there is one.
    pub fn for_export(layout: Layout, projector: bool) -> Self {
        let plain = &NAMINGS[5];
        let naming = match layout {
            Layout::Official | Layout::SoloLearn if projector => &NAMINGS[4],
            Layout::Lightly => &NAMINGS[1],
            _ => plain,
        };
        Self {
            layout,
            naming,
            parallel: layout == Layout::Official && projector,
        }
    }

    /// Where a key of the file belongs.
    pub fn place(&self, key: &str) -> Place {
        let bare = match key.strip_prefix(PARALLEL) {
            Some(bare) if self.parallel => bare,
            _ => key,
        };
        let ours = self
            .naming
            .prefixes
            .iter()
            .find_map(|(theirs, ours)| Some((ours, bare.strip_prefix(theirs)?)));
        match ours {
            Some((ours, rest)) => Place::Ours(format!("{ours}{}", swap(rest, self.naming.downsample, "downsample"))),
            None if self.naming.heads.iter().any(|head| bare.starts_with(head)) => Place::Head,
            None => Place::Nowhere,
        }
    }

    /// What the file would call a parameter of ours; `None` if it has no such parameters.
    pub fn theirs(&self, ours: &str) -> Option<String> {
        let parallel = if self.parallel { PARALLEL } else { "" };
        self.naming.prefixes.iter().find_map(|(theirs, prefix)| {
            let rest = ours.strip_prefix(prefix)?;
            Some(format!(
                "{parallel}{theirs}{}",
                swap(rest, "downsample", self.naming.downsample)
            ))
        })
    }

    /// The names in a few words.
    pub fn describe(&self) -> String {
        let parallel = if self.parallel { PARALLEL } else { "" };
        let theirs = self
            .naming
            .prefixes
            .iter()
            .map(|(theirs, _)| format!("{parallel}{theirs}*"));
        let shared = match (self.layout, self.naming.layouts) {
            (Layout::Torchvision, [_, _, ..]) => "; timm and the official resnet50.pth name alike",
            _ => "",
        };
        format!("{} ({}{shared})", self.layout, theirs.collect::<Vec<_>>().join(", "))
    }
}

/// The key with one of its parts called otherwise.
fn swap(key: &str, from: &str, to: &str) -> String {
    if from == to {
        return key.to_owned();
    }
    let parts: Vec<&str> = key
        .split('.')
        .map(|part| if part == from { to } else { part })
        .collect();
    parts.join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_layout_is_told_by_its_keys() {
        for (keys, layout, downsample) in [
            (
                &["conv1.weight", "layer1.0.downsample.0.weight"][..],
                Layout::Torchvision,
                "layer1.0.downsample.0.weight",
            ),
            (
                &["module.conv1.weight", "module.bn1.bias"],
                Layout::Torchvision,
                "module.layer1.0.downsample.0.weight",
            ),
            (
                &["module.backbone.conv1.weight", "module.projector.0.weight"],
                Layout::Official,
                "module.backbone.layer1.0.downsample.0.weight",
            ),
            (
                &["backbone.conv1.weight", "classifier.bias"],
                Layout::SoloLearn,
                "backbone.layer1.0.downsample.0.weight",
            ),
            (
                &[
                    "backbone.0.weight",
                    "backbone.4.0.conv1.weight",
                    "projection_head.layers.0.weight",
                ],
                Layout::Lightly,
                "backbone.4.0.downsample.0.weight",
            ),
            (
                &[
                    "backbone.0.weight",
                    "backbone.2.0.conv1.weight",
                    "backbone.4.0.conv1.weight",
                ],
                Layout::Lightly,
                "backbone.2.0.shortcut.0.weight",
            ),
            (
                &["backbone.conv1.weight", "projection_head.layers.0.weight"],
                Layout::Lightly,
                "backbone.layer1.0.downsample.0.weight",
            ),
        ] {
            let scheme = Scheme::detect(keys.iter().copied(), None).unwrap();
            assert_eq!(scheme.layout, layout, "{keys:?}");
            let ours = "backbone.layer1.0.downsample.0.weight";
            assert_eq!(scheme.theirs(ours).as_deref(), Some(downsample), "{keys:?}");
            assert_eq!(scheme.place(downsample), Place::Ours(ours.to_owned()), "{keys:?}");
        }
    }

    #[test]
    fn the_two_directions_are_inverse() {
        for naming in &NAMINGS {
            for parallel in [false, true] {
                let scheme = Scheme {
                    layout: naming.layouts[0],
                    naming,
                    parallel,
                };
                for (_, ours) in naming.prefixes {
                    for rest in ["weight", "0.downsample.1.running_var", "3.bias"] {
                        let ours = format!("{ours}{rest}");
                        let theirs = scheme.theirs(&ours).unwrap();
                        assert_eq!(scheme.place(&theirs), Place::Ours(ours), "{theirs}");
                    }
                }
            }
        }
    }

    #[test]
    fn other_keys_are_heads_or_have_no_place() {
        let scheme = Scheme::detect(["conv1.weight", "fc.weight"].into_iter(), None).unwrap();
        assert_eq!(scheme.place("fc.weight"), Place::Head);
        assert_eq!(scheme.place("layer5.0.conv1.weight"), Place::Nowhere);
        let none: [&str; 0] = [];
        assert!(Scheme::detect(none.into_iter(), None).is_err());
        let error = Scheme::detect(["blocks.0.attn.qkv.weight"].into_iter(), None)
            .unwrap_err()
            .to_string();
        assert!(error.contains("blocks.0.attn.qkv.weight"), "{error}");
        let error = Scheme::detect(["conv1.weight"].into_iter(), Some(Layout::Lightly))
            .unwrap_err()
            .to_string();
        assert!(error.contains("lightly") && error.contains("conv1.weight"), "{error}");
    }
}
