//! What a server gives up once its ports are open: rights of its own, every place to write to but its folders, other programs,
//! and system calls that it has no use for. Threads that are started afterwards inherit it.

use caps::CapSet;
use landlock::{ABI, AccessFs, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetStatus};
use nix::sys::resource::{Resource, setrlimit};
use postern::config::{Config, TlsMode};
use seccompiler::{BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch};
use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::PathBuf;

/// The newest rules of the kernel that are asked for; an older kernel keeps those that it knows.
const RULES: ABI = ABI::V5;

/// Calls that turn a foothold into more: other programs, other processes, other views of the system, its clock and its kernel.
const REFUSED: [libc::c_long; 46] = [
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_kcmp,
    libc::SYS_pidfd_getfd,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_move_mount,
    libc::SYS_mount_setattr,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fspick,
    libc::SYS_fsmount,
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_open_by_handle_at,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_personality,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_adjtimex,
    libc::SYS_clock_adjtime,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_syslog,
    libc::SYS_quotactl,
];
/// What makes a new process or thread another view of the system.
const NEW_VIEWS: [libc::c_int; 7] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWCGROUP,
];

/// Folders that the server writes to.
pub fn folders(config: &Config) -> Vec<PathBuf> {
    let state = (config.tls.mode != TlsMode::Files).then(|| config.tls.state_dir.clone());
    let audit = config.audit.dir().map(PathBuf::from);
    [Some(config.server.runtime_dir.clone()), state, audit].into_iter().flatten().collect()
}

/// Memory holds media, passwords and keys: no core of it is written, whoever asks. Of 1 byte, since a handler that the kernel
/// pipes cores to is started at 0 (core(5)). Not by PR_SET_DUMPABLE: `postern reload` could not see the server any more.
pub fn forbid_cores() {
    let _ = setrlimit(Resource::RLIMIT_CORE, 1, 1);
}

/// Closes the calling thread in. What cannot be done here is told, and the server runs without.
pub fn enter(folders: &[PathBuf]) {
    make(folders);
    if let Err(error) = give_up_rights() {
        tracing::warn!(%error, "the rights that opened the ports could not be given up");
    }
    match write_only_to(folders) {
        Ok(RulesetStatus::FullyEnforced) => {}
        Ok(RulesetStatus::PartiallyEnforced) => {
            tracing::info!("this kernel's Landlock is an older one: of files elsewhere some may be truncated")
        }
        Ok(RulesetStatus::NotEnforced) => {
            tracing::info!("Landlock is not available (kernel, container or service manager): the server may write wherever its user may");
        }
        Err(error) => tracing::warn!(%error, "writing could not be restricted to the server's folders"),
    }
    if let Err(error) = refuse_calls() {
        tracing::warn!(%error, "system calls could not be restricted");
    }
}

/// Makes what does not exist yet: rules are for folders that are there.
fn make(folders: &[PathBuf]) {
    let user = nix::unistd::geteuid();
    for folder in folders {
        // Whoever needs it says what is wrong with it.
        let _ = DirBuilder::new().recursive(true).mode(0o750).create(folder);
        if user.is_root() && fs::metadata(folder).is_ok_and(|found| found.uid() != user.as_raw()) {
            tracing::warn!(
                folder = %folder.display(),
                "the server was started as root and gives up root's rights: it cannot write to a folder of another user; start it as that user"
            );
        }
    }
}

fn give_up_rights() -> Result<(), caps::errors::CapsError> {
    // Without this right the others cannot be taken from the bounding set; then they are not there to be had either.
    let may_bound = caps::has_cap(None, CapSet::Effective, caps::Capability::CAP_SETPCAP).unwrap_or(false);
    let bounding = may_bound.then_some(CapSet::Bounding);
    let sets = bounding.into_iter().chain([CapSet::Ambient, CapSet::Inheritable, CapSet::Effective, CapSet::Permitted]);
    let outcomes: Vec<_> = sets.map(|set| caps::clear(None, set)).collect();
    outcomes.into_iter().collect()
}

fn write_only_to(folders: &[PathBuf]) -> Result<RulesetStatus, landlock::RulesetError> {
    let restricted = AccessFs::from_write(RULES) | AccessFs::Execute;
    let rules = Ruleset::default().set_compatibility(CompatLevel::BestEffort).handle_access(restricted)?.create()?;
    let mut open = folders.iter().filter_map(|folder| PathFd::new(folder).ok());
    let rules = open.try_fold(rules, |rules, fd| rules.add_rule(PathBeneath::new(fd, AccessFs::from_write(RULES))))?;
    Ok(rules.restrict_self()?.ruleset)
}

fn refuse_calls() -> Result<(), String> {
    let mut calls: BTreeMap<i64, Vec<SeccompRule>> = REFUSED.iter().map(|call| (*call, Vec::new())).collect();
    let views = NEW_VIEWS.map(|view| {
        let is_asked = SeccompCmpOp::MaskedEq(view as u64);
        SeccompCondition::new(0, SeccompCmpArgLen::Qword, is_asked, view as u64).and_then(|condition| SeccompRule::new(vec![condition]))
    });
    calls.insert(libc::SYS_clone, views.into_iter().collect::<Result<_, _>>().map_err(|e| e.to_string())?);
    if cfg!(target_arch = "x86_64") {
        // The same calls under the numbers of x32.
        let x32: Vec<_> = calls.iter().map(|(call, rules)| (call | 0x4000_0000, rules.clone())).collect();
        calls.extend(x32);
    }
    refuse(calls, libc::EPERM)?;
    // Its flags are in memory, where no filter looks: whoever needs it goes on with clone.
    refuse(BTreeMap::from([(libc::SYS_clone3, Vec::new())]), libc::ENOSYS)
}

fn refuse(calls: BTreeMap<i64, Vec<SeccompRule>>, errno: libc::c_int) -> Result<(), String> {
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(|e| e.to_string())?;
    let filter = SeccompFilter::new(calls, SeccompAction::Allow, SeccompAction::Errno(errno as u32), arch).map_err(|e| e.to_string())?;
    let program: BpfProgram = filter.try_into().map_err(|e: seccompiler::BackendError| e.to_string())?;
    seccompiler::apply_filter(&program).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::ErrorKind;
    use std::process::Command;

    #[test]
    fn s40_a_closed_in_thread_writes_to_its_folders_alone_and_starts_nothing() {
        let beside = std::env::temp_dir().join(format!("postern-sandbox-{}", std::process::id()));
        let inside = beside.join("state/deeper");
        std::fs::create_dir_all(&beside).expect("made");
        std::fs::write(beside.join("mine"), "before").expect("written");
        let (here, there) = (inside.clone(), beside.clone());
        // Rights, rules and filters are a thread's: this one alone is closed in.
        let closed_in = std::thread::spawn(move || {
            enter(std::slice::from_ref(&here));
            let kind = |outcome: std::io::Result<()>| outcome.err().map(|e| e.kind());
            let rights: usize = [CapSet::Effective, CapSet::Permitted, CapSet::Inheritable, CapSet::Ambient]
                .map(|set| caps::read(None, set).expect("readable").len())
                .iter()
                .sum();
            let view = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUSER).map_err(std::io::Error::from);
            // Threads are still to be had.
            std::thread::spawn(|| ()).join().expect("a thread");
            let status = std::fs::read_to_string("/proc/thread-self/status").expect("readable");
            assert!(status.contains("NoNewPrivs:\t1") && status.contains("Seccomp:\t2"), "{status}");
            (
                rights,
                std::fs::read_to_string(there.join("mine")).expect("reading stays allowed"),
                kind(std::fs::write(here.join("new"), "x").and_then(|()| std::fs::rename(here.join("new"), here.join("newer")))),
                [
                    kind(std::fs::write(there.join("new"), "x")),
                    kind(std::fs::write(there.join("mine"), "x")),
                    kind(std::fs::remove_file(there.join("mine"))),
                    kind(std::fs::create_dir(there.join("folder"))),
                    kind(Command::new("/bin/true").status().map(drop)),
                    kind(view),
                ],
            )
        });
        let (rights, read, written, refused) = closed_in.join().expect("no panic");
        assert_eq!((rights, read.as_str(), written), (0, "before", None));
        assert_eq!(refused, [Some(ErrorKind::PermissionDenied); 6]);
        std::fs::remove_dir_all(&beside).expect("removed");
    }
}
