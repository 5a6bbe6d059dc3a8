use std::process::ExitCode;

fn main() -> ExitCode {
    qlora_engine::cli::main(std::env::args_os())
}
