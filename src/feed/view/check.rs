//! Are the options possible? Every error names its key and what would do.
//!
//! In: options as written. Out: a list of errors, empty when all is well. Invariant: options that pass cannot make a view
//! panic.

use super::{Op, ViewOptions, ViewsOptions};

/// What is wrong with `[views]`.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ViewsError {
    /// A number outside its range.
    #[error("`{key}` is {value}; it must lie between {low} and {high}")]
    OutOfRange {
        /// Full key.
        key: String,
        /// What was written.
        value: f64,
        /// Smallest allowed.
        low: f64,
        /// Largest allowed.
        high: f64,
    },
    /// A range whose ends are outside their limits or in the wrong order.
    #[error("`{key}` is [{}, {}]; it must be [smallest, largest], both between {low} and {high}", value[0], value[1])]
    BadRange {
        /// Full key.
        key: String,
        /// What was written.
        value: [f64; 2],
        /// Smallest allowed.
        low: f64,
        /// Largest allowed.
        high: f64,
    },
    /// An operation that is listed more than once.
    #[error("`{key}` lists `{}` more than once", op.name())]
    DuplicateOp {
        /// Full key.
        key: String,
        /// Which.
        op: Op,
    },
    /// Not one or two tables.
    #[error("`views.view` has {count} tables; it must have one (for both views) or two (one for each)")]
    Tables {
        /// How many were written.
        count: usize,
    },
}

/// Smallest share or ratio that is not 0: below it a crop has no pixels, and its logarithm no precision.
const TINY: f64 = 1e-3;
/// Largest factor, ratio or sigma that makes any sense; it keeps the arithmetic far from its limits.
const HUGE: f64 = 1e3;

impl Op {
    /// As written in a recipe.
    pub fn name(self) -> &'static str {
        match self {
            Self::Flip => "flip",
            Self::Jitter => "jitter",
            Self::Grey => "grey",
            Self::Blur => "blur",
            Self::Solarize => "solarize",
        }
    }
}

impl ViewsOptions {
    /// All errors, in the order of the keys.
    pub fn validate(&self) -> Vec<ViewsError> {
        let mut errors = Vec::new();
        number(&mut errors, "views.size".into(), f64::from(self.size), 1.0, 8192.0);
        for mean in self.mean {
            number(&mut errors, "views.mean".into(), f64::from(mean), 0.0, 1.0);
        }
        for std in self.std {
            number(&mut errors, "views.std".into(), f64::from(std), TINY, HUGE);
        }
        if !matches!(self.view.len(), 1 | 2) {
            errors.push(ViewsError::Tables { count: self.view.len() });
        }
        for (index, view) in self.view.iter().enumerate() {
            errors.extend(view.validate(&format!("views.view[{index}]")));
        }
        errors
    }
}

impl ViewOptions {
    /// All errors; `table` is the prefix of the keys, such as `views.view[0]`.
    pub fn validate(&self, table: &str) -> Vec<ViewsError> {
        let mut errors = Vec::new();
        let key = |name: &str| format!("{table}.{name}");
        for (index, &op) in self.order.iter().enumerate() {
            // Reported once, at its second place.
            if self.order[..index].iter().filter(|&&other| other == op).count() == 1 {
                errors.push(ViewsError::DuplicateOp { key: key("order"), op });
            }
        }
        range(&mut errors, key("crop_scale"), self.crop_scale, TINY, 1.0);
        range(&mut errors, key("crop_ratio"), self.crop_ratio, TINY, HUGE);
        let probabilities = [
            ("flip", self.flip),
            ("jitter", self.jitter),
            ("grey", self.grey),
            ("blur", self.blur),
            ("solarize", self.solarize),
        ];
        for (name, value) in probabilities {
            number(&mut errors, key(name), value, 0.0, 1.0);
        }
        let amounts = [
            ("brightness", self.brightness),
            ("contrast", self.contrast),
            ("saturation", self.saturation),
        ];
        for (name, value) in amounts {
            number(&mut errors, key(name), value, 0.0, HUGE);
        }
        number(&mut errors, key("hue"), self.hue, 0.0, 0.5);
        range(&mut errors, key("blur_sigma"), self.blur_sigma, 0.0, HUGE);
        errors
    }
}

/// NaN is outside every range.
fn number(errors: &mut Vec<ViewsError>, key: String, value: f64, low: f64, high: f64) {
    if !(low..=high).contains(&value) {
        errors.push(ViewsError::OutOfRange { key, value, low, high });
    }
}

fn range(errors: &mut Vec<ViewsError>, key: String, value: [f64; 2], low: f64, high: f64) {
    let inside = value.iter().all(|end| (low..=high).contains(end));
    if !inside || value[0] > value[1] {
        errors.push(ViewsError::BadRange { key, value, low, high });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid_and_official() {
        let options = ViewsOptions::default();
        assert_eq!(options.validate(), []);
        assert_eq!((options.view[0].blur, options.view[0].solarize), (1.0, 0.0));
        assert_eq!((options.view[1].blur, options.view[1].solarize), (0.1, 0.2));
    }

    #[test]
    fn each_mistake_is_named() {
        let mut options = ViewsOptions {
            size: 0,
            std: [0.2, 0.0, 0.2],
            ..ViewsOptions::default()
        };
        options.view[1] = ViewOptions {
            order: vec![Op::Blur, Op::Flip, Op::Blur, Op::Blur],
            crop_scale: [0.5, 0.2],
            crop_ratio: [0.0, 1.0],
            flip: 1.5,
            grey: f64::NAN,
            contrast: -0.1,
            hue: 0.6,
            blur_sigma: [0.1, f64::INFINITY],
            ..ViewOptions::default()
        };
        let text: Vec<String> = options.validate().iter().map(ToString::to_string).collect();
        let expected = [
            "`views.size` is 0; it must lie between 1 and 8192",
            "`views.std` is 0; it must lie between 0.001 and 1000",
            "`views.view[1].order` lists `blur` more than once",
            "`views.view[1].crop_scale` is [0.5, 0.2]; it must be [smallest, largest], both between 0.001 and 1",
            "`views.view[1].crop_ratio` is [0, 1]; it must be [smallest, largest], both between 0.001 and 1000",
            "`views.view[1].flip` is 1.5; it must lie between 0 and 1",
            "`views.view[1].grey` is NaN; it must lie between 0 and 1",
            "`views.view[1].contrast` is -0.1; it must lie between 0 and 1000",
            "`views.view[1].hue` is 0.6; it must lie between 0 and 0.5",
            "`views.view[1].blur_sigma` is [0.1, inf]; it must be [smallest, largest], both between 0 and 1000",
        ];
        assert_eq!(text, expected);
    }

    #[test]
    fn one_table_serves_both_views_and_three_are_refused() {
        let grey = ViewOptions {
            grey: 1.0,
            ..ViewOptions::default()
        };
        let mut options = ViewsOptions {
            view: vec![grey.clone()],
            ..ViewsOptions::default()
        };
        assert_eq!(options.validate(), []);
        for view in options.views() {
            let super::super::View::Random { options, .. } = view else {
                panic!("training views are random")
            };
            assert_eq!(options, grey);
        }
        options.view = vec![grey; 3];
        assert_eq!(options.validate(), [ViewsError::Tables { count: 3 }]);
    }
}
