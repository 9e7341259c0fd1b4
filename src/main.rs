use std::process::ExitCode;

// Allocates for libtorch too, and keeps what is freed. Training frees and takes the same large tensors at every
// step, and handing each back to the kernel costs a third of the step in page faults; glibc's allocator, told to keep them, scatters them so
// that the process grows by half. Large pages spare most of the faults that are left. It is there as `malloc`, not as the global allocator:
// the decoder of JPEG 2000 frees null pointers, which `free` allows and a global allocator does not.
use tikv_jemallocator as _;

#[used]
#[unsafe(export_name = "malloc_conf")]
static ALLOCATOR_SETTINGS: &[u8] = b"dirty_decay_ms:-1,muzzy_decay_ms:-1,thp:always\0";

fn main() -> ExitCode {
    pretext3d::cli::main()
}
