//! How a process learns that it is one of several: from torchrun's variables, or those of a Slurm step.

use super::{Group, PROCESS};
use crate::ffi::{self, group::Store};
use anyhow::{Context, Result, anyhow, bail, ensure};
use std::env;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

/// Seconds that any collective may take, and that ranks wait for each other to start.
const LIMIT_VARIABLE: &str = "PRETEXT3D_GROUP_LIMIT";
const LIMIT_SECONDS: u64 = 600;

/// Ports for jobs of Slurm, below those that Linux gives to clients.
const SLURM_PORTS: std::ops::Range<u64> = 12_000..32_000;

/// What makes a process a rank: a child that shall be none starts without them.
pub const VARIABLES: &[&str] = &[
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    AGENT_STORE,
    "SLURM_STEP_NUM_TASKS",
    "SLURM_PROCID",
    "SLURM_LOCALID",
    "SLURM_STEP_NODELIST",
];

/// `True` where torchrun itself serves the store.
const AGENT_STORE: &str = "TORCHELASTIC_USE_AGENT_STORE";

/// A rank's place, and where all find each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    pub rank: usize,
    /// On its machine, from 0.
    pub local_rank: usize,
    /// At least 2.
    pub world: usize,
    /// Of rank 0.
    pub host: String,
    pub port: u16,
    /// Whether rank 0 serves the store, not its launcher.
    serves: bool,
}

/// The launch of this process; `None`: it runs by itself.
pub fn launched() -> Result<Option<Launch>> {
    Launch::read(|name| env::var(name).ok().filter(|value| !value.is_empty()))
}

impl Launch {
    /// RANK decides for torchrun's variables, which those of PyTorch's `env://` are; a step of Slurm with several tasks is the other way.
    fn read(get: impl Fn(&str) -> Option<String>) -> Result<Option<Launch>> {
        let number = |name: &str| -> Result<Option<usize>> {
            let parse = |text: String| {
                text.parse().map_err(|_| anyhow!("{name}={text}: expected a number; torchrun and srun set it for each process"))
            };
            get(name).map(parse).transpose()
        };
        let (rank, world) = (number("RANK")?, number("WORLD_SIZE")?);
        let tasks = number("SLURM_STEP_NUM_TASKS")?.filter(|&tasks| tasks > 1);
        match (rank, world, tasks) {
            (_, Some(1), None) | (Some(0), Some(1), _) | (None, None, None) => Ok(None),
            (Some(rank), Some(world), _) => {
                let set = "torchrun sets RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT";
                let missing = |name| format!("RANK={rank} and WORLD_SIZE={world} are set, {name} is not: {set}");
                let launch = Launch {
                    rank,
                    world,
                    local_rank: number("LOCAL_RANK")?.with_context(|| missing("LOCAL_RANK"))?,
                    host: get("MASTER_ADDR").with_context(|| missing("MASTER_ADDR"))?,
                    port: port(&get)?.with_context(|| missing("MASTER_PORT"))?,
                    serves: rank == 0 && get(AGENT_STORE).is_none_or(|value| value != "True"),
                };
                launch.checked("RANK", "WORLD_SIZE")
            }
            (None, _, Some(tasks)) => {
                ensure!(
                    world.is_none_or(|world| world == tasks),
                    "WORLD_SIZE={} and SLURM_STEP_NUM_TASKS={tasks}: expected the same, or no WORLD_SIZE",
                    world.unwrap_or_default()
                );
                let missing =
                    |name| format!("SLURM_STEP_NUM_TASKS={tasks} is set, {name} is not: start with srun, which sets both");
                let needed = |name| number(name)?.with_context(|| missing(name));
                let host = || -> Result<String> {
                    let nodes = get("SLURM_STEP_NODELIST").with_context(|| missing("SLURM_STEP_NODELIST"))?;
                    first_host(&nodes)
                        .with_context(|| format!("SLURM_STEP_NODELIST={nodes}: expected names as node[01-04],gpu7"))
                };
                let slurm_port = || -> Result<u16> {
                    let job = needed("SLURM_JOB_ID")? as u64;
                    // Steps of one job may run side by side.
                    let step = number("SLURM_STEP_ID")?.unwrap_or(0) as u64;
                    let span = SLURM_PORTS.end - SLURM_PORTS.start;
                    Ok((SLURM_PORTS.start + (job + step * 7919) % span) as u16)
                };
                let rank = needed("SLURM_PROCID")?;
                let launch = Launch {
                    rank,
                    world: tasks,
                    local_rank: needed("SLURM_LOCALID")?,
                    host: get("MASTER_ADDR").map_or_else(host, Ok)?,
                    port: port(&get)?.map_or_else(slurm_port, Ok)?,
                    serves: rank == 0,
                };
                launch.checked("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")
            }
            (Some(rank), None, _) => {
                bail!("RANK={rank} is set, WORLD_SIZE is not: start with torchrun, which sets both, or unset RANK")
            }
            (None, Some(world), None) => {
                bail!("WORLD_SIZE={world} is set, RANK is not: start with torchrun, which sets both, or unset WORLD_SIZE")
            }
        }
    }

    /// Waits for all ranks to do the same.
    fn connect(&self, limit: Duration) -> Result<Group> {
        let Launch { rank, local_rank, world, ref host, port, serves } = *self;
        let group = || {
            let store = Arc::new(Store::tcp(host, port, serves, world, limit)?);
            Group::new(store, [rank, local_rank, world], limit, serves)
        };
        group().with_context(|| {
            format!(
                "rank {rank} of {world} did not meet the others at {host}:{port} (MASTER_ADDR, MASTER_PORT) within {limit:?} ({LIMIT_VARIABLE})"
            )
        })
    }

    fn checked(self, rank: &str, world: &str) -> Result<Option<Launch>> {
        ensure!(self.rank < self.world, "{rank}={} and {world}={}: expected a rank below their number", self.rank, self.world);
        Ok(Some(self))
    }
}

/// Which of the GPUs that this process sees is its own; Slurm may show each process its own one alone.
pub(super) fn cuda_index(rank: usize, local_rank: usize, visible: usize) -> Result<usize> {
    match visible {
        1 => Ok(0),
        _ if local_rank < visible => Ok(local_rank),
        _ => bail!(
            "rank {rank} is process {local_rank} of its machine (from 0), which shows it {visible} GPUs: start one process a GPU, or give --device cpu"
        ),
    }
}

fn port(get: impl Fn(&str) -> Option<String>) -> Result<Option<u16>> {
    let parse = |text: String| match text.parse() {
        Ok(0) | Err(_) => Err(anyhow!("MASTER_PORT={text}: expected a port from 1 to 65535")),
        Ok(port) => Ok(port),
    };
    get("MASTER_PORT").map(parse).transpose()
}

/// The first name of a list of Slurm's, as `node[01-03,07],gpu7`.
fn first_host(list: &str) -> Option<String> {
    let (mut host, mut rest) = (String::new(), list.trim());
    loop {
        let end = rest.find(['[', ',']).unwrap_or(rest.len());
        host += &rest[..end];
        let Some(range) = rest[end..].strip_prefix('[') else { break };
        let (range, after) = range.split_once(']')?;
        host += range.split([',', '-']).next()?;
        rest = after;
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    (!host.is_empty() && host.chars().all(plain)).then_some(host)
}

fn limit() -> Result<Duration> {
    let seconds = match env::var(LIMIT_VARIABLE) {
        Ok(text) => match text.parse() {
            Ok(seconds) if seconds > 0 => seconds,
            _ => bail!("{LIMIT_VARIABLE}={text}: expected a whole number of seconds, at least 1 (default: {LIMIT_SECONDS})"),
        },
        Err(_) => LIMIT_SECONDS,
    };
    Ok(Duration::from_secs(seconds))
}

/// Makes this process a rank until it is dropped.
#[must_use = "the group ends when it is dropped"]
pub struct Member(());

impl Drop for Member {
    fn drop(&mut self) {
        PROCESS.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// Connects this process with the others of its [`launched`] run, for tensors on the CPU (see [`use_device`](super::use_device) for others), and makes that its group;
/// `None` if it runs by itself.
pub fn join() -> Result<Option<Member>> {
    let Some(launch) = launched()? else { return Ok(None) };
    ensure!(ffi::group::has_gloo(), "{} processes: {NO_GLOO}", launch.world);
    *PROCESS.lock().unwrap_or_else(PoisonError::into_inner) = Some(launch.connect(limit()?)?);
    Ok(Some(Member(())))
}

/// Why several processes cannot run, and what to do.
pub const NO_GLOO: &str = "this program was built without Gloo's headers, over which they talk: `make build` fetches them; or install libgloo-dev \
                           (Debian, Ubuntu), and then `cargo clean -p pretext3d` and build again";

/// Why GPUs do not talk directly, and what to do.
pub const NO_NCCL: &str =
    "this program was built without NCCL's headers: with a CUDA build of torch `make build` fetches what is missing";

#[cfg(test)]
mod tests {
    use super::super::{exchange, within};
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Option<Launch>> {
        Launch::read(|name| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| value.to_string()))
    }

    const TORCHRUN: [(&str, &str); 5] =
        [("RANK", "3"), ("LOCAL_RANK", "1"), ("WORLD_SIZE", "4"), ("MASTER_ADDR", "node1"), ("MASTER_PORT", "29500")];
    const SLURM: [(&str, &str); 6] = [
        ("SLURM_STEP_NUM_TASKS", "8"),
        ("SLURM_PROCID", "0"),
        ("SLURM_LOCALID", "0"),
        ("SLURM_STEP_NODELIST", "gpu[07-08]"),
        ("SLURM_JOB_ID", "1234567"),
        ("SLURM_STEP_ID", "0"),
    ];

    #[test]
    fn torchrun_and_slurm_name_the_rank_and_the_meeting_place() {
        let torchrun = Launch { rank: 3, local_rank: 1, world: 4, host: "node1".into(), port: 29500, serves: false };
        assert_eq!(read(&TORCHRUN).unwrap(), Some(torchrun.clone()));
        // torchrun's within a step of Slurm, which has the same number of tasks for each of them.
        assert_eq!(read(&[&TORCHRUN[..], &SLURM].concat()).unwrap(), Some(torchrun));
        let slurm = read(&SLURM).unwrap().unwrap();
        assert_eq!((slurm.rank, slurm.world, slurm.host.as_str(), slurm.serves), (0, 8, "gpu07", true));
        assert!(SLURM_PORTS.contains(&(slurm.port as u64)));
        let next = read(&[&[("SLURM_STEP_ID", "1")], &SLURM[..5]].concat()).unwrap().unwrap();
        assert_ne!(next.port, slurm.port);
        // As scripts for several machines set them.
        let own = read(&[&SLURM[..], &[("MASTER_ADDR", "10.0.0.1"), ("MASTER_PORT", "29400"), ("WORLD_SIZE", "8")]].concat())
            .unwrap();
        assert_eq!(own, Some(Launch { host: "10.0.0.1".into(), port: 29400, ..slurm }));
    }

    #[test]
    fn the_store_is_served_by_rank_0_or_by_torchrun() {
        let first = [&[("RANK", "0")], &TORCHRUN[1..]].concat();
        assert!(read(&first).unwrap().unwrap().serves);
        assert!(!read(&[&first[..], &[(AGENT_STORE, "True")]].concat()).unwrap().unwrap().serves);
    }

    #[test]
    fn one_process_is_a_plain_run() {
        for plain in [
            &[][..],
            &[("RANK", "0"), ("WORLD_SIZE", "1"), ("MASTER_ADDR", "localhost"), ("MASTER_PORT", "29500")],
            &[("WORLD_SIZE", "1")],
            &[("SLURM_STEP_NUM_TASKS", "1"), ("SLURM_PROCID", "0")],
            // Within sbatch or an array, outside of srun.
            &[("SLURM_JOB_ID", "7"), ("SLURM_NTASKS", "8"), ("SLURM_PROCID", "0")],
            &[("MASTER_ADDR", "node1"), ("MASTER_PORT", "29500")],
        ] {
            assert_eq!(read(plain).unwrap(), None, "{plain:?}");
        }
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        for missing in ["LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK"] {
            let rest: Vec<_> = TORCHRUN.into_iter().filter(|(name, _)| *name != missing).collect();
            assert!(read(&rest).unwrap_err().to_string().contains(&format!("{missing} is not")), "{missing}");
        }
        for missing in ["SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NODELIST", "SLURM_JOB_ID"] {
            let rest: Vec<_> = SLURM.into_iter().filter(|(name, _)| *name != missing).collect();
            assert!(read(&rest).unwrap_err().to_string().contains(&format!("{missing} is not")), "{missing}");
        }
        for (name, value) in [
            ("RANK", "-1"),
            ("RANK", "4"),
            ("WORLD_SIZE", "four"),
            ("WORLD_SIZE", "0"),
            ("LOCAL_RANK", "x"),
            ("MASTER_PORT", "0"),
            ("MASTER_PORT", "70000"),
        ] {
            let error = read(&[&[(name, value)], &TORCHRUN[..]].concat()).unwrap_err().to_string();
            assert!(error.contains(&format!("{name}={value}")), "{error}");
        }
        let error = read(&[&[("SLURM_STEP_NODELIST", "[")], &SLURM[..]].concat()).unwrap_err().to_string();
        assert!(error.contains("SLURM_STEP_NODELIST=["), "{error}");
        assert!(read(&[&SLURM[..], &[("WORLD_SIZE", "4")]].concat()).unwrap_err().to_string().contains("WORLD_SIZE=4"));
    }

    #[test]
    fn ranks_meet_over_tcp_or_say_where_they_did_not() {
        let limit = Duration::from_secs(30);
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let launch =
            |rank: usize| Launch { rank, local_rank: rank, world: 2, host: "127.0.0.1".into(), port, serves: rank == 0 };
        let met = std::thread::scope(|scope| {
            let meet = |rank: usize| {
                scope.spawn(move || within(Some(launch(rank).connect(limit).unwrap()), || exchange(&[rank as u8; 2]).unwrap()))
            };
            [meet(1), meet(0)].map(|thread| thread.join().unwrap())
        });
        assert_eq!(met, [[[0, 0], [1, 1]]; 2]);
        let error = format!("{:#}", launch(1).connect(Duration::from_secs(1)).err().expect("rank 0 is not there"));
        assert!(error.contains("rank 1 of 2 did not meet the others at 127.0.0.1:") && error.contains("within 1s"), "{error}");
    }

    #[test]
    fn the_first_host_of_slurms_lists() {
        for (list, first) in [
            ("node1", Some("node1")),
            ("node[01-03,07],gpu7", Some("node01")),
            ("a,b[1-2]", Some("a")),
            ("rack[3,5]-n[010-012].cluster", Some("rack3-n010.cluster")),
            ("node[1", None),
            ("", None),
        ] {
            assert_eq!(first_host(list).as_deref(), first, "{list}");
        }
    }

    #[test]
    fn each_process_of_a_machine_has_a_gpu_of_its_own() {
        assert_eq!((cuda_index(3, 1, 4).unwrap(), cuda_index(3, 1, 1).unwrap()), (1, 0));
        assert!(cuda_index(3, 2, 2).unwrap_err().to_string().contains("2 GPUs"));
    }
}
