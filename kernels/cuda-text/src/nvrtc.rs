//! NVRTC, opened while running where there is one: CUDA text to machine code, and what the assembler says of it.
//!
//! `PTSBENCH_NVRTC` names the library; else the loader's path and `CUDA_PATH/lib64` are tried. `PTSBENCH_CUDA_INCLUDE` names
//! headers beyond those that the text needs (it includes none for the kernels of `gpu/cuda`).

// A C interface: every block says why its pointers are good.
#![allow(unsafe_code)]

use std::ffi::{CString, c_char, c_int, c_void};
use std::path::PathBuf;

use libloading::Library;

type Program = *mut c_void;

/// The library.
pub struct Nvrtc {
    library: Library,
    /// Its version, major and minor.
    pub version: (i32, i32),
}

/// What the assembler reports of one kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Registers per unit.
    pub registers: u32,
    /// Bytes of registers that went to memory and back, stack included.
    pub spilled: u32,
    /// Bytes of machine code, the file around it included.
    pub code: usize,
}

impl Nvrtc {
    /// The first library that opens, or why there is none.
    pub fn open() -> Result<Self, String> {
        let names: Vec<PathBuf> = match std::env::var_os("PTSBENCH_NVRTC") {
            Some(path) => vec![path.into()],
            None => {
                let mut names: Vec<PathBuf> = ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"]
                    .map(PathBuf::from)
                    .to_vec();
                if let Some(toolkit) = std::env::var_os("CUDA_PATH") {
                    names.push(PathBuf::from(toolkit).join("lib64/libnvrtc.so"));
                }
                names
            }
        };
        let mut why = String::new();
        for name in &names {
            // SAFETY: opening a library runs its initializers; NVRTC's have no conditions.
            match unsafe { Library::new(name) } {
                Ok(library) => return Self::of(library),
                Err(e) if std::env::var_os("PTSBENCH_NVRTC").is_some() => why = e.to_string(),
                Err(_) => why = "no NVRTC library; set PTSBENCH_NVRTC to one".into(),
            }
        }
        Err(why)
    }

    fn of(library: Library) -> Result<Self, String> {
        let (mut major, mut minor) = (0, 0);
        // SAFETY: nvrtcResult nvrtcVersion(int*, int*) writes two numbers.
        unsafe {
            let version = library
                .get::<unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int>(b"nvrtcVersion\0")
                .map_err(|e| e.to_string())?;
            version(&mut major, &mut minor);
        }
        Ok(Self {
            library,
            version: (major, minor),
        })
    }

    /// Compiles a program of one kernel for an architecture such as `sm_90a`; the error is the compiler's log.
    pub fn compile(&self, source: &str, architecture: &str) -> Result<Usage, String> {
        let source = CString::new(source).map_err(|e| e.to_string())?;
        let mut options = vec![
            format!("--gpu-architecture={architecture}"),
            "-lineinfo".into(),
            "--ptxas-options=-v".into(),
        ];
        if let Some(folder) = std::env::var_os("PTSBENCH_CUDA_INCLUDE") {
            let folder = folder.to_string_lossy().into_owned();
            options.push(format!("--include-path={folder}"));
            options.push(format!("--include-path={folder}/cccl"));
        }
        let options: Vec<CString> = options
            .into_iter()
            .map(CString::new)
            .collect::<Result<_, _>>()
            .map_err(|e| e.to_string())?;
        let options: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
        let mut program: Program = std::ptr::null_mut();
        type Create = unsafe extern "C" fn(
            *mut Program,
            *const c_char,
            *const c_char,
            c_int,
            *const *const c_char,
            *const *const c_char,
        ) -> c_int;
        type Compile = unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int;
        type Destroy = unsafe extern "C" fn(*mut Program) -> c_int;
        // SAFETY: the signatures are those of nvrtc.h; strings end with 0 and outlive the program, which is destroyed once.
        unsafe {
            let create = self
                .library
                .get::<Create>(b"nvrtcCreateProgram\0")
                .map_err(|e| e.to_string())?;
            let compile = self
                .library
                .get::<Compile>(b"nvrtcCompileProgram\0")
                .map_err(|e| e.to_string())?;
            let destroy = self
                .library
                .get::<Destroy>(b"nvrtcDestroyProgram\0")
                .map_err(|e| e.to_string())?;
            let (none, names) = (std::ptr::null(), std::ptr::null());
            let code = create(
                &mut program,
                source.as_ptr(),
                std::ptr::null(),
                0,
                none,
                names,
            );
            if code != 0 {
                return Err(format!("nvrtcCreateProgram: error {code}"));
            }
            let code = compile(program, options.len() as c_int, options.as_ptr());
            let log = self.sized(
                program,
                b"nvrtcGetProgramLogSize\0",
                b"nvrtcGetProgramLog\0",
            );
            let cubin = self.sized(program, b"nvrtcGetCUBINSize\0", b"nvrtcGetCUBIN\0");
            destroy(&mut program);
            let log = String::from_utf8_lossy(&log?).into_owned();
            if code == 0 {
                usage(&log, cubin?.len())
            } else {
                Err(log)
            }
        }
    }

    /// A result that NVRTC hands out as a size and then as bytes.
    ///
    /// # Safety
    /// `program` is alive and the names are those of such a pair.
    unsafe fn sized(&self, program: Program, size: &[u8], get: &[u8]) -> Result<Vec<u8>, String> {
        type Size = unsafe extern "C" fn(Program, *mut usize) -> c_int;
        type Get = unsafe extern "C" fn(Program, *mut c_char) -> c_int;
        // SAFETY: the caller's; the buffer is as long as the library asked for.
        unsafe {
            let mut len = 0;
            (self.library.get::<Size>(size).map_err(|e| e.to_string())?)(program, &mut len);
            let mut bytes = vec![0u8; len];
            let to = bytes.as_mut_ptr().cast();
            (self.library.get::<Get>(get).map_err(|e| e.to_string())?)(program, to);
            Ok(bytes)
        }
    }
}

/// Reads the assembler's lines "N bytes stack frame, N bytes spill stores, N bytes spill loads" and "Used N registers".
fn usage(log: &str, code: usize) -> Result<Usage, String> {
    let before = |marker: &str| -> Option<u32> {
        let at = log.find(marker)?;
        log[..at].split_whitespace().next_back()?.parse().ok()
    };
    let numbers = (
        before(" registers"),
        before(" bytes stack frame"),
        before(" bytes spill stores"),
        before(" bytes spill loads"),
    );
    match numbers {
        (Some(registers), Some(stack), Some(stores), Some(loads)) => Ok(Usage {
            registers,
            spilled: stack + stores + loads,
            code,
        }),
        _ => Err(format!("no usage in the assembler's log: {log}")),
    }
}
