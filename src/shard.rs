//! The part of the work on a folder that one process does.

use std::fmt;
use std::str::FromStr;

/// Of the pieces of the work, which are numbered from 0, those whose number leaves this remainder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// From 0.
    pub index: usize,
    pub count: usize,
}

impl Shard {
    pub fn is_whole(self) -> bool {
        self.count == 1
    }

    pub fn holds(self, number: usize) -> bool {
        number % self.count == self.index
    }

    /// A name of the shard's own, such as `.lock-3-of-8`.
    pub fn named(self, what: &str) -> String {
        format!("{what}-{}-of-{}", self.index + 1, self.count)
    }

    /// All shards, in order.
    pub fn among(count: usize) -> impl Iterator<Item = Shard> {
        (0..count).map(move |index| Shard { index, count })
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}/{}", self.index + 1, self.count)
    }
}

impl FromStr for Shard {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (i, n) = text.split_once('/')?;
            let (i, count): (usize, usize) = (i.parse().ok()?, n.parse().ok()?);
            (1..=count).contains(&i).then(|| Shard { index: i - 1, count })
        };
        parse().ok_or_else(|| {
            format!(
                "expected I/N with I from 1 to N, found {text:?}; the tasks of a Slurm array count like that from --array=1-N"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_count_from_1_and_share_all_work_out() {
        let shard: Shard = "3/8".parse().unwrap();
        assert_eq!(
            (shard.index, shard.count, shard.to_string(), shard.named(".lock")),
            (2, 8, "3/8".into(), ".lock-3-of-8".into())
        );
        for wrong in ["0/8", "9/8", "0/0", "3", "/8", "3/", "-1/8", "1/2/3", "a/b", ""] {
            let error = wrong.parse::<Shard>().unwrap_err();
            assert!(error.contains("from 1 to N") && error.contains(&format!("{wrong:?}")), "{error}");
        }
        for number in 0..20 {
            assert_eq!(Shard::among(3).filter(|shard| shard.holds(number)).count(), 1);
        }
    }
}
