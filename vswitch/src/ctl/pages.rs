//! Completions and man pages, made from the command lines themselves.

use std::io;
use std::path::Path;

use clap::Command;
use clap_complete::Shell;

use super::cli::Program;

/// A completion script.
pub fn completions(shell: Shell, mut command: Command) -> Vec<u8> {
    let mut out = Vec::new();
    let name = command.get_name().to_owned();
    clap_complete::generate(shell, &mut command, name, &mut out);
    out
}

/// A man page of a section, as roff.
pub fn page(command: &Command, section: &str) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    clap_mangen::Man::new(command.clone())
        .section(section)
        .source(format!("vswitch {}", env!("CARGO_PKG_VERSION")))
        .manual("vswitch")
        .render(&mut out)?;
    Ok(out)
}

/// Writes the pages of both programs and of every command; returns the names of the files.
pub fn write_all(directory: &Path) -> io::Result<Vec<String>> {
    std::fs::create_dir_all(directory)?;
    let mut written = Vec::new();
    for (program, section) in [(Program::Vswitchd, "8"), (Program::Vswitchctl, "1")] {
        let mut command = program.command();
        // Gives every subcommand its full name and the global options.
        command.build();
        let name = command.get_name().to_owned();
        write_tree(directory, &command, &name, section, &mut written)?;
    }
    Ok(written)
}

fn write_tree(
    directory: &Path,
    command: &Command,
    name: &str,
    section: &str,
    written: &mut Vec<String>,
) -> io::Result<()> {
    let file = format!("{name}.{section}");
    std::fs::write(directory.join(&file), page(command, section)?)?;
    written.push(file);
    for sub in command
        .get_subcommands()
        .filter(|sub| sub.get_name() != "help")
    {
        write_tree(
            directory,
            sub,
            &format!("{name}-{}", sub.get_name()),
            section,
            written,
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_everything() {
        let directory = tempfile::tempdir().unwrap();
        let written = write_all(directory.path()).unwrap();
        for name in [
            "vswitchd.8",
            "vswitchctl.1",
            "vswitchctl-port-add.1",
            "vswitchctl-config.1",
        ] {
            assert!(written.iter().any(|file| file == name), "{written:?}");
            let text = std::fs::read_to_string(directory.path().join(name)).unwrap();
            assert!(text.contains(".SH SYNOPSIS"), "{name}");
        }
        let add = directory.path().join("vswitchctl-port-add.1");
        let add = std::fs::read_to_string(add).unwrap().replace("\\-", "-");
        assert!(
            add.contains("--queue-pairs") && add.contains("until vswitchd ends"),
            "{add}"
        );
    }

    #[test]
    fn completions_for_every_shell() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            for program in [Program::Vswitchctl, Program::Vswitchd] {
                let script = completions(shell, program.command());
                let script = String::from_utf8(script).unwrap();
                assert!(script.contains(program.command().get_name()), "{shell}");
            }
        }
    }
}
