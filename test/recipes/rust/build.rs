// Makes a library of async_teardown.h: with cc and ar, without a crate.  The code calls no
// function of libc, so cc may be gcc or clang for a musl target, too.
use std::{env, path::Path, process::Command};

fn run(program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).status();
    assert!(matches!(status, Ok(s) if s.success()), "{program} {arguments:?} fails");
}

fn main() {
    let out = env::var("OUT_DIR").unwrap();
    let include = env::var("ATD_INCLUDE").unwrap_or("../../..".into()); // where the header is
    let cc = env::var("CC").unwrap_or("cc".into());
    let object = format!("{out}/async_teardown.o");
    let library = format!("{out}/libasync_teardown.a");

    run(&cc, &[
        "-x", "c", "-O2", "-fPIC", "-c", "-o", &object,
        "-DASYNC_TEARDOWN_IMPLEMENTATION", "-DASYNC_TEARDOWN_THREADS=2",
        &format!("{include}/async_teardown.h"),
    ]);
    run("ar", &["crs", &library, &object]);
    println!("cargo:rustc-link-search=native={out}");
    println!("cargo:rustc-link-lib=static=async_teardown");
    println!("cargo:rerun-if-changed={}", Path::new(&include).join("async_teardown.h").display());
}
