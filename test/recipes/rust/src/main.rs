// A VMM in Rust: the order of the calls, and the end.  The supervisor gives it the writing
// ends of two pipes, as 3 and 4; see supervisor.c.
use std::io::Error;
use std::os::raw::{c_int, c_ulong, c_void};

extern "C" {
    fn async_teardown_ram(start: *mut c_void, size: c_ulong) -> c_int;
    fn async_teardown_keep(fds: *const c_int, n: c_int) -> c_int;
    fn async_teardown_start() -> c_int;

    fn fcntl(fd: c_int, command: c_int, ...) -> c_int;
    fn _exit(status: c_int) -> !;
}
const F_SETFD: c_int = 2;
const FD_CLOEXEC: c_int = 1;

// Its drop frees the RAM, as vm-memory's does: before wait returns, helper or not.
struct GuestMemory(Vec<u8>);

fn checked(what: &str, ret: c_int) -> c_int {
    if ret < 0 {
        eprintln!("vmm: {what}: {}", Error::from_raw_os_error(-ret)); // not fatal: a slow exit
    }
    ret
}

fn main() {
    let mut memory = GuestMemory(vec![0x5a; 64 << 20]);
    let signs = [3, 4]; // first, last
    let helper;

    // SAFETY: these read what they are given; nobody else closes 3 and 4.
    unsafe {
        for fd in signs {
            fcntl(fd, F_SETFD, FD_CLOEXEC); // what it executes must not hold the pipes
        }
        let ram = memory.0.as_mut_ptr().cast();
        checked("RAM", async_teardown_ram(ram, memory.0.len() as c_ulong));
        // A helper that does not keep the pipes would let them close before anything is free.
        let kept = async_teardown_keep(signs.as_ptr(), 2);
        helper = checked("no helper", if kept < 0 { kept } else { async_teardown_start() });
    }
    println!("vmm={} helper={helper}", std::process::id());

    let _ = std::io::stdin().read_line(&mut String::new()); // the guest runs

    // Not a return, which drops memory.  (std::process::exit drops nothing either, but runs
    // what C code has registered with atexit.)
    unsafe { _exit(0) }
}
