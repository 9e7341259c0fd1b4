use crate::data::store::Index;
use crate::data::store::verify::verify;
use crate::print::{self, note, say};
use crate::report::progress::Counter;
use crate::{ffi, group, machine};
use anyhow::{Result, bail, ensure};
use indicatif::HumanBytes;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Print what a bug report needs: versions, devices, memory, disk
///
/// Exit code 1 if something is broken; the last line then says what.
#[derive(clap::Args)]
pub struct Args {
    /// Print JSON: bytes for sizes, null for what is unknown
    #[arg(long)]
    json: bool,
    /// Read every file of this store instead, and compare it with the checksum of when it was written; those that differ are named
    #[arg(long, value_name = "STORE", conflicts_with = "json")]
    data: Option<PathBuf>,
}

pub fn run(args: Args) -> Result<()> {
    if let Some(folder) = &args.data {
        return check_store(folder);
    }
    let report = Report::collect();
    let broken = report.broken();
    if args.json {
        let mut json = report.json();
        json["broken"] = json!(broken);
        say!("{json:#}");
    } else {
        say!("{}", report.text().trim_end());
    }
    match broken.len() {
        0 => Ok(()),
        _ => bail!("{}", broken.join("; ")),
    }
}

/// Compares a store's files with their checksums.
fn check_store(folder: &Path) -> Result<()> {
    let (index, start) = (Index::read(folder)?, Instant::now());
    let counter = Counter::new("checksums", index.subjects.len(), print::attended());
    let wrong = verify(folder, &index, &|id| counter.inc(id));
    drop(counter);
    let wrong = wrong?;
    wrong.iter().for_each(|line| note!("bad: {line}"));
    let of = index.subjects.len();
    ensure!(wrong.is_empty(), "{}: {} files of {of} scans are not as they were written", folder.display(), wrong.len());
    let bytes = HumanBytes(index.subjects.iter().map(|s| s.bytes).sum());
    say!("{}: {of} scans, {bytes}, all as they were written, {:.1} s", folder.display(), start.elapsed().as_secs_f64());
    Ok(())
}

struct Report {
    /// Compiled with, and running.
    torch: [String; 2],
    /// libtorch's build settings.
    config: String,
    threads: i32,
    /// Whether libtorch's CUDA half could be loaded.
    cuda_loaded: Result<(), String>,
    /// Devices libtorch can use.
    cuda_devices: i64,
    cudnn: Option<i64>,
    /// Whether several processes can train together, on CPUs and GPUs.
    gloo: Result<(), String>,
    nccl: Result<(), String>,
    /// What the driver says.
    gpus: Result<Vec<ffi::Gpu>, String>,
}

impl Report {
    fn collect() -> Report {
        // First of all: libtorch asks only once whether it has a CUDA half.
        let cuda_loaded = ffi::load_cuda();
        let config = ffi::torch_config();
        let running = config.split("TORCH_VERSION=").nth(1).and_then(|s| s.split([',', '\n']).next()).unwrap_or("unknown");
        let cuda_devices = if tch::Cuda::is_available() { tch::Cuda::device_count() } else { 0 };
        Report {
            torch: [ffi::compiled_version(), running.trim().to_string()],
            threads: tch::get_num_threads(),
            cudnn: (cuda_devices > 0 && tch::Cuda::cudnn_is_available()).then(tch::utils::version_cudnn),
            gloo: if ffi::group::has_gloo() { Ok(()) } else { Err(group::NO_GLOO.into()) },
            nccl: match &cuda_loaded {
                _ if !ffi::group::has_nccl() => Err(group::NO_NCCL.into()),
                Err(reason) => Err(format!("libtorch's CUDA libraries do not load: {reason}")),
                Ok(()) => ffi::group::nccl_loadable().map_err(|e| e.to_string()),
            },
            gpus: ffi::gpus(),
            config,
            cuda_loaded,
            cuda_devices,
        }
    }

    /// What cannot work as it is.
    fn broken(&self) -> Vec<String> {
        let mut broken = Vec::new();
        let [compiled, running] = &self.torch;
        if release(compiled) != release(running) {
            broken.push(format!("compiled with libtorch {compiled}, but {running} is running"));
        }
        let gpus = self.gpus.as_ref().map_or(0, Vec::len);
        if gpus > 0 && self.cuda_devices < gpus as i64 {
            let why = self.cuda_loaded.clone().err().unwrap_or("the driver may be too old for this libtorch".into());
            broken.push(format!("the driver has {gpus} GPU(s), libtorch can use {}: {why}", self.cuda_devices));
        }
        broken
    }

    /// Why there is no GPU to use.
    fn no_gpu(&self) -> String {
        match (&self.cuda_loaded, &self.gpus) {
            (Err(e), _) => format!("none: libtorch's CUDA libraries do not load: {e}"),
            (_, Err(e)) => format!("none: CUDA libraries are loaded, the driver is missing: {e}"),
            (_, Ok(gpus)) if gpus.is_empty() => {
                "none: CUDA libraries are loaded, the driver has no GPU for this process".into()
            }
            _ => "none: CUDA libraries are loaded, but libtorch cannot use the driver's GPU".into(),
        }
    }

    fn text(&self) -> String {
        let [compiled, running] = &self.torch;
        let bf16 = machine::cpu_bf16().map_or("no (float32 is faster here)".into(), |f| format!("yes ({f})"));
        let memory =
            machine::memory().map_or("unknown".into(), |[total, free]| format!("{} available of {}", size(free), size(total)));
        let limit = machine::memory_limit().map(|b| format!(", limited to {}", size(b))).unwrap_or_default();
        let mut lines = vec![
            (
                "pretext3d",
                format!("{} ({})", env!("CARGO_PKG_VERSION"), if cfg!(debug_assertions) { "debug" } else { "release" }),
            ),
            ("libtorch", format!("{running}, compiled with {compiled}")),
            ("CPU", format!("{}, {} cores", machine::cpu_model(), machine::cores())),
            ("CPU bfloat16", bf16),
            ("threads", format!("{} per operation; libtorch uses {}", self.threads, self.capability())),
            ("memory", format!("{memory}{limit}")),
            (
                "disk",
                machine::free_disk(Path::new(".")).map_or("unknown".into(), |b| format!("{} free in this folder", size(b))),
            ),
        ];
        if self.cuda_devices == 0 {
            lines.push(("GPU", self.no_gpu()));
        } else {
            for (i, gpu) in self.gpus.iter().flatten().enumerate() {
                let [major, minor] = gpu.compute_capability;
                lines.push(("GPU", format!("cuda:{i} {}, {}, compute capability {major}.{minor}", gpu.name, size(gpu.memory))));
            }
            let cudnn = self.cudnn.map_or("not available".into(), |v| v.to_string());
            lines.push(("CUDA", format!("libraries loaded, {} device(s), cuDNN {cudnn}", self.cuda_devices)));
        }
        let backend =
            |found: &Result<(), String>, yes: &str| found.as_ref().map_or_else(|why| format!("no: {why}"), |()| yes.into());
        lines.push(("Gloo", backend(&self.gloo, "yes: several processes can train together")));
        lines.push((
            "NCCL",
            backend(&self.nccl, if self.cuda_devices > 0 { "yes" } else { "can be loaded; there is no GPU to use it" }),
        ));
        lines.iter().map(|(name, value)| format!("{name:<14}{value}\n")).collect()
    }

    fn json(&self) -> Value {
        let memory = machine::memory();
        json!({
            "pretext3d": env!("CARGO_PKG_VERSION"),
            "debug_build": cfg!(debug_assertions),
            "libtorch": { "compiled_with": self.torch[0], "running": self.torch[1], "config": self.config },
            "cpu": {
                "model": machine::cpu_model(),
                "cores": machine::cores(),
                "threads": self.threads,
                "bfloat16": machine::cpu_bf16(),
                "capability": self.capability(),
            },
            "memory": {
                "total": memory.map(|m| m[0]),
                "available": memory.map(|m| m[1]),
                "limit": machine::memory_limit(),
            },
            "disk_free": machine::free_disk(Path::new(".")),
            "cuda": {
                "libraries_loaded": self.cuda_loaded.is_ok(),
                "devices": self.cuda_devices,
                "cudnn": self.cudnn,
                "gpus": self.gpus.as_ref().ok(),
                "reason": (self.cuda_devices == 0).then(|| self.no_gpu()),
            },
            // Of several processes; null: there, otherwise why not.
            "backends": { "gloo": self.gloo.as_ref().err(), "nccl": self.nccl.as_ref().err() },
        })
    }

    /// The instruction set that libtorch's own kernels were chosen for.
    fn capability(&self) -> &str {
        self.config.split("CPU capability: ").nth(1).unwrap_or("unknown")
    }
}

/// `2.11.0` of `2.11.0+cu130`.
fn release(version: &str) -> &str {
    version.split('+').next().unwrap_or(version)
}

fn size(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / (1u64 << 30) as f64)
}
