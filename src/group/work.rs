//! How ranks work together: what they share out, what they agree on, and how they end. In one process all of it is the work itself.

use super::{self as group, Status};
use crate::machine;
use crate::print;
use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::time::Duration;

/// How long the other ranks wait at the end until the first one has saved.
const FAREWELL: Duration = Duration::from_secs(120);

/// Runs `work` as one of the ranks that a launcher started, or as the only process. A failure of any rank ends all: the first rank tells it,
/// once it has saved what there is. Launchers end all ranks soon after one has ended other than well; `well`: whether `work` did.
pub fn together<T>(work: impl FnOnce() -> Result<T>, well: impl FnOnce(&T) -> bool) -> Result<T> {
    let joined = group::join().inspect_err(|error| {
        // Who is not found may be the first rank; what a build lacks all of them say.
        print::speak(group::is_first() || !format!("{error:#}").contains(group::NO_GLOO));
    })?;
    let Some(_member) = joined else { return work() };
    let work = || {
        machine::compute_with(cores()?);
        work()
    };
    let ended = group::attempt(work).map_err(|error| {
        // Why the connections are gone the others say, or that they do not.
        let left = if group::lost().is_some() { group::left() } else { vec![] };
        if left.is_empty() { error } else { anyhow!(left.join("; ")) }
    });
    if let Err(error) = &ended
        && !group::ended()
    {
        // The others hear of it where they next wait for one another.
        let _ = group::agree(Status::Failed(format!("{error:#}")));
    }
    if ended.as_ref().is_ok_and(well) {
        return ended;
    }
    if group::is_first() {
        group::sign_off();
    } else if !group::await_first(FAREWELL) {
        print::speak(true);
    }
    ended
}

/// Whether any rank was asked to stop, `asked` being whether this one was.
pub fn stopping(asked: bool) -> Result<bool> {
    match group::agree(if asked { Status::Stop } else { Status::Fine })? {
        Status::Fine => Ok(false),
        Status::Stop => Ok(true),
        Status::Failed(why) => bail!(why),
    }
}

/// What the first rank makes, on all ranks.
pub fn of_first<T: Serialize + DeserializeOwned>(make: impl FnOnce() -> Result<T>) -> Result<T> {
    if group::is_first() {
        let made = make()?;
        if group::world() > 1 {
            group::exchange(&serde_json::to_vec(&made)?)?;
        }
        return Ok(made);
    }
    let all = group::exchange(&[])?;
    Ok(serde_json::from_slice(&all[0])?)
}

/// Errors unless all ranks have the same of this kind, e.g. `the store`.
pub fn check_same(kind: &str, own: &impl Serialize) -> Result<()> {
    if group::world() == 1 {
        return Ok(());
    }
    let all = group::exchange(&serde_json::to_vec(own)?)?;
    let other = all.iter().position(|other| *other != all[0]);
    other.map_or(Ok(()), |rank| bail!("rank {rank}: {kind} is not that of rank 0; all processes of a run need the same"))
}

/// How many processes compute, in words before a device; nothing where it is one.
pub fn processes() -> String {
    if group::world() == 1 { String::new() } else { format!("{} processes, ", group::world()) }
}

/// Cores of this process, shared out between the ranks that are bound to the same ones.
pub fn cores() -> Result<usize> {
    let cores = machine::cores();
    if group::world() == 1 {
        return Ok(cores);
    }
    let own = machine::bound_to();
    let sharing = group::exchange(own.as_bytes())?.iter().filter(|other| other[..] == *own.as_bytes()).count();
    Ok((cores / sharing).max(1))
}

/// The items of `0..n` that are this rank's: every W-th one.
pub fn own(n: usize) -> impl Iterator<Item = usize> {
    (group::rank()..n).step_by(group::world())
}

/// Whether a rank, this one by `stop`, waits for the others to leave off.
pub fn leaving_off(stop: &dyn Fn() -> bool) -> bool {
    stop() || group::announced().unwrap_or(true)
}

/// Where `result` is an error, tells the ranks that have longer to work.
pub fn leaving<T>(result: Result<T>) -> Result<T> {
    if result.is_err() {
        // Without the store they find out at the end of their work.
        let _ = group::announce();
    }
    result
}

/// The numbers that `item` gives for each of `0..n`, in order, each made by one rank, without the group. `None` if `stop` said so on
/// any rank.
pub fn each(n: usize, stop: &dyn Fn() -> bool, item: impl Fn(usize) -> Result<Vec<f64>>) -> Result<Option<Vec<Vec<f64>>>> {
    let mut made = Vec::new();
    for i in own(n) {
        if leaving_off(stop) {
            return gathered(None, n);
        }
        made.push(leaving(group::alone(|| item(i)))?);
    }
    gathered(Some(made), n)
}

/// The numbers of all of `0..n`, in order, by those of this rank's [`own`] ones; `None` if any rank has left off.
pub fn gathered(made: Option<Vec<Vec<f64>>>, n: usize) -> Result<Option<Vec<Vec<f64>>>> {
    let (world, Some(_)) = (group::world(), group::current()) else { return Ok(made) };
    if made.is_none() {
        group::announce()?;
    }
    let all = group::exchange(&made.map_or(vec![], |items| encoded(&items)))?;
    if all.iter().any(Vec::is_empty) {
        return Ok(None);
    }
    let mut ranks: Vec<_> = all.iter().map(|bytes| decoded(bytes)).collect::<Result<Vec<_>>>()?;
    ranks.iter_mut().for_each(|items| items.reverse());
    let next = |i: usize| ranks[i % world].pop().with_context(|| format!("rank {} has left item {i} out", i % world));
    (0..n).map(next).collect::<Result<_>>().map(Some)
}

/// The number of items, then each item's length and numbers, 8 bytes each.
fn encoded(items: &[Vec<f64>]) -> Vec<u8> {
    let mut bytes = (items.len() as u64).to_le_bytes().to_vec();
    for item in items {
        bytes.extend((item.len() as u64).to_le_bytes());
        item.iter().for_each(|number| bytes.extend(number.to_le_bytes()));
    }
    bytes
}

fn decoded(bytes: &[u8]) -> Result<Vec<Vec<f64>>> {
    let (words, rest) = bytes.as_chunks::<8>();
    ensure!(rest.is_empty(), "numbers of another rank: {} bytes", bytes.len());
    let mut words = words.iter();
    let mut word = || words.next().copied().context("numbers of another rank are cut off");
    let items = u64::from_le_bytes(word()?);
    (0..items)
        .map(|_| {
            let n = u64::from_le_bytes(word()?);
            (0..n).map(|_| Ok(f64::from_le_bytes(word()?))).collect()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_travel_to_the_bit() {
        let items = vec![vec![0.1 + 0.2, f64::NAN, -0.], vec![], vec![f64::MIN_POSITIVE / 4.]];
        let bits =
            |items: &[Vec<f64>]| items.iter().map(|item| item.iter().map(|x| x.to_bits()).collect()).collect::<Vec<Vec<_>>>();
        assert_eq!(bits(&decoded(&encoded(&items)).unwrap()), bits(&items));
        assert_eq!(decoded(&encoded(&[])).unwrap(), [[0f64; 0]; 0]);
        assert!(decoded(&encoded(&items)[..40]).is_err());
    }
}
