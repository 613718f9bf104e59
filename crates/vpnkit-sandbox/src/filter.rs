//! Which system calls are left to a network's process: seccomp(2), in three parts.
//!
//! What a network needs is allowed. What nobody but an intruder would try ends the process. Everything else fails with
//! ENOSYS, which libraries know how to do without: a C library newer than this list loses speed, not connections.

use std::collections::BTreeMap;

use seccompiler::SeccompCmpArgLen::{Dword, Qword};
use seccompiler::SeccompCmpOp::{Eq, MaskedEq, Ne};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

/// Calls that are allowed whatever their arguments.
const ALLOWED: &[i64] = &[
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_brk,
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_connect,
    libc::SYS_dup,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_fstat,
    libc::SYS_futex,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getpeername,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_getrusage,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_gettid,
    libc::SYS_gettimeofday,
    libc::SYS_getuid,
    libc::SYS_listen,
    libc::SYS_lseek,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_pipe2,
    libc::SYS_ppoll,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmmsg,
    libc::SYS_recvmsg,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_sendmmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_set_robust_list,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_sigaltstack,
    libc::SYS_socketpair,
    libc::SYS_splice,
    libc::SYS_tee,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_gettime,
    libc::SYS_timerfd_settime,
    libc::SYS_uname,
    libc::SYS_wait4,
    libc::SYS_write,
    libc::SYS_writev,
];

/// The same calls by their older numbers, where an architecture has them.
#[cfg(target_arch = "x86_64")]
const ALLOWED_OLD: &[i64] =
    &[libc::SYS_dup2, libc::SYS_epoll_wait, libc::SYS_pipe, libc::SYS_poll, libc::SYS_time];
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_OLD: &[i64] = &[];

/// Calls that end the process: programs, other processes, namespaces, the kernel itself.
const DEADLY: &[i64] = &[
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_bpf,
    libc::SYS_capset,
    libc::SYS_chroot,
    libc::SYS_delete_module,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_finit_module,
    libc::SYS_init_module,
    libc::SYS_io_uring_setup,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_kill,
    libc::SYS_memfd_create,
    libc::SYS_mount,
    libc::SYS_move_mount,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_perf_event_open,
    libc::SYS_personality,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_open,
    libc::SYS_pivot_root,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_setgid,
    libc::SYS_setns,
    libc::SYS_setuid,
    libc::SYS_swapon,
    libc::SYS_umount2,
    libc::SYS_unshare,
    libc::SYS_userfaultfd,
];

/// Commands of fcntl(2) that are allowed: flags, copies, sizes of pipes, and seals of a machine's memory.
const FCNTL_ALLOWED: [i32; 10] = [
    libc::F_DUPFD,
    libc::F_DUPFD_CLOEXEC,
    libc::F_GETFD,
    libc::F_SETFD,
    libc::F_GETFL,
    libc::F_SETFL,
    libc::F_SETPIPE_SZ,
    libc::F_GETPIPE_SZ,
    libc::F_ADD_SEALS,
    libc::F_GET_SEALS,
];

/// Commands of fcntl(2) that have the kernel send signals of one's choice to any process of the same user, as kill(2) would:
/// `F_SETOWN`, `F_SETSIG`, `F_SETOWN_EX`, by their numbers, which not every C library has.
const FCNTL_DEADLY: [i32; 3] = [8, 10, 15];

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// The filters, to be applied in this order.
///
/// # Errors
/// When the architecture is not known to the compiler of filters.
pub fn programs() -> Result<[BpfProgram; 2], BackendError> {
    let architecture = TargetArch::try_from(std::env::consts::ARCH)?;
    let mut deadly: Rules = DEADLY.iter().map(|call| (*call, Vec::new())).collect();
    deadly.insert(libc::SYS_fcntl, commands(&FCNTL_DEADLY)?);
    let deadly = SeccompFilter::new(deadly, SeccompAction::Allow, SeccompAction::KillProcess, architecture)?;
    let missing = SeccompAction::Errno(libc::ENOSYS.cast_unsigned());
    // The second filter says ENOSYS where the first says the end; the kernel takes the more severe.
    let allowed = SeccompFilter::new(allowed()?, missing, SeccompAction::Allow, architecture)?;
    Ok([deadly.try_into()?, allowed.try_into()?])
}

/// A rule for each command of a call that takes it as the second argument.
fn commands(commands: &[i32]) -> Result<Vec<SeccompRule>, BackendError> {
    let rule = |command: &i32| {
        let is = SeccompCondition::new(1, Dword, Eq, u64::from(command.unsigned_abs()))?;
        SeccompRule::new(vec![is])
    };
    commands.iter().map(rule).collect()
}

fn allowed() -> Result<Rules, BackendError> {
    let mut rules: Rules = ALLOWED.iter().chain(ALLOWED_OLD).map(|call| (*call, Vec::new())).collect();
    let rule = |conditions| SeccompRule::new(conditions);
    let is = |index, value: u64| SeccompCondition::new(index, Dword, Eq, value);
    // Internet sockets alone: no Unix socket of another program, no netlink, no raw frames.
    let families = [libc::AF_INET, libc::AF_INET6].map(|family| rule(vec![is(0, family as u64)?]));
    rules.insert(libc::SYS_socket, families.into_iter().collect::<Result<_, _>>()?);
    // No memory becomes code.
    let executable = libc::PROT_EXEC as u64;
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        let plain = SeccompCondition::new(2, Dword, MaskedEq(executable), 0)?;
        rules.insert(call, vec![rule(vec![plain])?]);
    }
    // Threads, but no processes and no namespaces. clone3 hides its flags in memory: without it, libraries use this.
    let namespaces = libc::CLONE_NEWNS
        | libc::CLONE_NEWCGROUP
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUSER
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET;
    let thread = libc::CLONE_THREAD as u64;
    let flags = thread | namespaces as u32 as u64;
    let clone = SeccompCondition::new(0, Qword, MaskedEq(flags), thread)?;
    rules.insert(libc::SYS_clone, vec![rule(vec![clone])?]);
    rules.insert(libc::SYS_fcntl, commands(&FCNTL_ALLOWED)?);
    let ours = u64::from(std::process::id());
    rules.insert(libc::SYS_tgkill, vec![rule(vec![is(0, ours)?])?]);
    #[allow(clippy::unnecessary_cast, reason = "requests are int in some C libraries")]
    let ioctls = [libc::FIONBIO, libc::FIONREAD].map(|request| rule(vec![is(1, request as u64)?]));
    rules.insert(libc::SYS_ioctl, ioctls.into_iter().collect::<Result<_, _>>()?);
    let options = [libc::PR_SET_NAME, libc::PR_GET_NAME, libc::PR_SET_VMA];
    let options = options.map(|option| rule(vec![is(0, option as u64)?]));
    rules.insert(libc::SYS_prctl, options.into_iter().collect::<Result<_, _>>()?);
    // Limits of itself may be asked for, not changed: the third argument is the new one.
    let ask = vec![is(0, 0)?, SeccompCondition::new(2, Qword, Eq, 0)?];
    rules.insert(libc::SYS_prlimit64, vec![rule(ask)?]);
    // Changing handlers is common, but this one would make a filtered call look like an answer.
    let handlers = SeccompCondition::new(0, Dword, Ne, libc::SIGSYS as u64)?;
    rules.insert(libc::SYS_rt_sigaction, vec![rule(vec![handlers])?]);
    Ok(rules)
}
