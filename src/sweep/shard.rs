//! The part of a sweep that one process does.

/// Which part of the work this process does: cell `i` of those whose number leaves this remainder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// From 0.
    pub index: usize,
    pub count: usize,
}

impl std::str::FromStr for Shard {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (i, n) = text.split_once('/')?;
            let (i, count): (usize, usize) = (i.parse().ok()?, n.parse().ok()?);
            (1..=count).contains(&i).then(|| Shard { index: i - 1, count })
        };
        parse().ok_or_else(|| format!("expected I/N with I from 1 to N, found {text:?}"))
    }
}
