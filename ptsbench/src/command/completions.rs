//! `ptsbench completions`: a shell's completion script, made from the same types that parse the command line.

use clap::CommandFactory;
use clap_complete::Shell;

use crate::terminal;

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The shell
    pub shell: Shell,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    terminal::print_bytes(&script(args.shell))?;
    Ok(())
}

fn script(shell: Shell) -> Vec<u8> {
    // Into memory first: the generator panics where its writer fails, and a closed pipe is not a bug of ours.
    let mut text = Vec::new();
    let mut command = crate::cli::Cli::command();
    clap_complete::generate(shell, &mut command, "ptsbench", &mut text);
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ValueEnum;

    #[test]
    fn every_shell_completes_every_command() {
        let command = crate::cli::Cli::command();
        for shell in Shell::value_variants() {
            let script = String::from_utf8(script(*shell)).unwrap();
            for sub in command.get_subcommands() {
                assert!(
                    script.contains(sub.get_name()),
                    "{shell}: {}",
                    sub.get_name()
                );
            }
        }
    }
}
