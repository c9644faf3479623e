//! `postern man` and `postern completions`: made from the commands themselves, for whoever packs this binary.

use clap::{Command, CommandFactory};
use std::io::{self, Write};

#[derive(clap::Args)]
pub struct Completions {
    shell: clap_complete::Shell,
}

pub fn completions(args: &Completions) {
    clap_complete::generate(args.shell, &mut super::Cli::command(), "postern", &mut io::stdout());
}

/// One page with all commands.
pub fn page() -> Result<(), String> {
    let mut command = super::Cli::command();
    command.build();
    let write = || -> io::Result<()> {
        let mut out = io::stdout().lock();
        let man = clap_mangen::Man::new(command.clone()).section("1").source(concat!("Postern ", env!("CARGO_PKG_VERSION")));
        man.render_title(&mut out)?;
        man.render_name_section(&mut out)?;
        man.render_synopsis_section(&mut out)?;
        man.render_description_section(&mut out)?;
        writeln!(out, ".SH COMMANDS")?;
        for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set() && sub.get_name() != "help") {
            section(&mut out, "postern", sub)?;
        }
        out.write_all(OTHERS.as_bytes())
    };
    write().map_err(|e| e.to_string())
}

/// A command with its options; of one that has commands of its own, each.
fn section(out: &mut dyn Write, before: &str, command: &Command) -> io::Result<()> {
    let name = format!("{before} {}", command.get_name());
    let subs: Vec<&Command> = command.get_subcommands().filter(|sub| sub.get_name() != "help").collect();
    for sub in &subs {
        section(out, &name, sub)?;
    }
    if !subs.is_empty() {
        return Ok(());
    }
    writeln!(out, ".SS {}", escaped(&name))?;
    writeln!(out, "{}", escaped(&command.get_about().map(ToString::to_string).unwrap_or_default()))?;
    for argument in command.get_arguments().filter(|a| !a.is_hide_set() && a.get_id() != "help") {
        let takes_value = argument.get_action().takes_values();
        let value = argument.get_value_names().filter(|_| takes_value).and_then(|names| names.first());
        let flag = argument.get_long().map(|long| format!("--{long}")).unwrap_or_default();
        let head = [flag, value.map(|v| format!("<{v}>")).unwrap_or_default()].join(" ");
        let default = argument
            .get_default_values()
            .first()
            .filter(|_| takes_value)
            .map(|v| format!(" [{}]", v.to_string_lossy()))
            .unwrap_or_default();
        let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
        writeln!(out, ".TP\n\\fB{}\\fR\n{}{}", escaped(head.trim()), escaped(&help), escaped(&default))?;
    }
    Ok(())
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\e").replace('-', "\\-")
}

const OTHERS: &str = r#".SH FILES
.TP
/etc/postern/postern.toml
the settings; /etc/postern/config.example.toml has every key with its default and reason
.TP
/var/lib/postern
what the server makes or orders itself: the self\-signed authority, ACME's account and certificate
.TP
/var/log/postern
the audit log, where audit.dir says so
.SH ENVIRONMENT
.TP
POSTERN_<SECTION>_<KEY>
comes over the key of the file
.TP
RUST_LOG
comes over log.level
.SH SIGNALS
SIGHUP reads the settings again, SIGTERM and SIGINT let calls end first, a second one does not wait.
.SH EXIT STATUS
0 after an orderly end, 1 when the server cannot start, 70 when a worker was stuck or lost: service managers start it anew.
"#;
