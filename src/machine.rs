//! What this machine is: processor, memory, disk.

use std::env;
use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// How often a thread of libtorch's OpenMP looks for work before it sleeps, and the variables by which a user says so.
const SPINS: &str = "1000";
const SPIN_COUNT: &str = "GOMP_SPINCOUNT";
const WAIT_POLICY: &str = "OMP_WAIT_POLICY";

/// How many threads libtorch and the BLAS libraries compute with.
pub const COMPUTE_THREADS: &str = "OMP_NUM_THREADS";

/// The processor's name as it gives it, or its architecture.
pub fn cpu_model() -> String {
    cpu_field(&cpu_info(), "model name").unwrap_or_else(|| env::consts::ARCH.to_string())
}

/// Lets threads that wait for others sleep soon, and computes on as many as the process is given. Starts the program anew where its
/// environment does not say how long they look for work first: OpenMP reads that once, before `main`. Its default, some milliseconds, costs
/// nothing on a quiet machine, but beside other work a thread that looks uses up the time in which the one it waits for could run.
pub fn settle_threads() {
    if [SPIN_COUNT, WAIT_POLICY].iter().all(|name| env::var_os(name).is_none())
        && let Ok(program) = env::current_exe()
    {
        // Returns only if it could not be done; then all goes on, slower beside other work.
        let mut again = Command::new(program);
        let mut arguments = env::args_os();
        arguments.next().iter().for_each(|name| _ = again.arg0(name));
        let _ = again.args(arguments).env(SPIN_COUNT, SPINS).exec();
    }
    // OpenMP knows of an affinity, but not of the quota of a control group.
    compute_with(cores());
}

/// Computes with up to so many threads, unless the user says with how many.
pub fn compute_with(threads: usize) {
    let threads = threads as i32;
    if env::var_os(COMPUTE_THREADS).is_none() && threads < tch::get_num_threads() {
        tch::set_num_threads(threads);
    }
}

/// Logical cores that this process may use, by its affinity and its control group's quota.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, Into::into)
}

/// The machine and those of its cores that this process may use, in words.
pub fn bound_to() -> String {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let cores = cpu_field(&status, "Cpus_allowed_list").unwrap_or_default();
    format!("{} {cores}", host_name())
}

/// The machine's name on its network; empty where it cannot be known.
pub fn host_name() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned()
}

/// The processor's bfloat16 matrix instructions, the fastest it has: without them bfloat16 is slower than float32.
pub fn cpu_bf16() -> Option<&'static str> {
    bf16_of(&cpu_info())
}

/// Whether bfloat16 pays off on the processor.
pub fn cpu_has_bf16() -> bool {
    cpu_bf16().is_some()
}

/// Bytes of memory of the machine: in all, and available without swapping.
pub fn memory() -> Option<[u64; 2]> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    Some([kilobytes(&text, "MemTotal")?, kilobytes(&text, "MemAvailable")?])
}

/// Bytes of memory that the control group (a container, a batch job) grants, if it limits them.
pub fn memory_limit() -> Option<u64> {
    let files = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
    let limit: u64 = files.iter().find_map(|f| fs::read_to_string(f).ok())?.trim().parse().ok()?;
    // The first version writes "no limit" as a number near 2^63.
    (limit < 1 << 60).then_some(limit)
}

/// Largest resident size of this process so far, in bytes.
pub fn peak_memory() -> Option<u64> {
    kilobytes(&fs::read_to_string("/proc/self/status").ok()?, "VmHWM")
}

/// Bytes free for this user on the disk that holds `path`, which must exist.
pub fn free_disk(path: &Path) -> Option<u64> {
    let path = CString::new(path.as_os_str().as_bytes()).ok()?;
    let mut stat = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: the path is NUL-terminated, and the call fills the whole structure when it returns 0.
    let stat = unsafe {
        if libc::statvfs(path.as_ptr(), stat.as_mut_ptr()) != 0 {
            return None;
        }
        stat.assume_init()
    };
    Some(stat.f_bavail as u64 * stat.f_frsize as u64)
}

fn cpu_info() -> String {
    fs::read_to_string("/proc/cpuinfo").unwrap_or_default()
}

/// First value of a `name : value` line.
fn cpu_field(text: &str, name: &str) -> Option<String> {
    let fields = text.lines().filter_map(|l| l.split_once(':'));
    fields.map(|(k, v)| (k.trim(), v.trim())).find(|&(k, v)| k == name && !v.is_empty()).map(|(_, v)| v.to_string())
}

/// x86 calls the line "flags", Arm "Features".
fn bf16_of(text: &str) -> Option<&'static str> {
    let flags = cpu_field(text, "flags").or_else(|| cpu_field(text, "Features"))?;
    ["amx_bf16", "avx512_bf16", "svebf16", "bf16"].into_iter().find(|f| flags.split_whitespace().any(|g| g == *f))
}

/// Value of a `Name:   123 kB` line, in bytes.
fn kilobytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_read_from_cpuinfo() {
        let xeon = "processor\t: 0\nmodel name\t: Xeon 8481C\nflags\t\t: fpu avx512f avx512_bf16 amx_bf16 amx_tile\n\nprocessor\t: 1\n";
        assert_eq!(bf16_of(xeon), Some("amx_bf16"));
        assert_eq!(cpu_field(xeon, "model name").as_deref(), Some("Xeon 8481C"));
        assert_eq!(bf16_of("flags\t: fpu avx512_bf16_not avx2\n"), None);
        assert_eq!(bf16_of("Features\t: fp asimd bf16\n"), Some("bf16"));
        assert_eq!(bf16_of(""), None);
    }

    #[test]
    fn peak_memory_sees_an_allocation() {
        let before = peak_memory().unwrap();
        let block = std::hint::black_box(vec![1u8; before as usize + (64 << 20)]);
        assert!(peak_memory().unwrap() >= block.len() as u64);
        let [total, available] = memory().unwrap();
        assert!(available <= total && peak_memory().unwrap() <= total);
        assert!(free_disk(Path::new(".")).is_some() && free_disk(Path::new("/no/such/place")).is_none());
    }
}
