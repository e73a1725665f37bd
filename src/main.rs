//! The `outfs` program: hands its arguments to `cli` and exits with its code.

fn main() -> std::process::ExitCode {
    outfs::cli::main()
}
