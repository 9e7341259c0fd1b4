use std::process::ExitCode;

fn main() -> ExitCode {
    pretext3d::cli::main()
}
