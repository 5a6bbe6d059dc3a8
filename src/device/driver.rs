//! The functions of NVIDIA's driver (`libcuda.so.1`, opened at run time) that are called here, and their types. The only
//! file that names cudarc, which opens the library.
//!
//! cudarc declares these functions too, with its enum of codes as their result: a code that is not in it, as a driver newer
//! than it may give, would be undefined behaviour. Here a code is a number, and a function that is not in the library an
//! error. cudarc panics where the library itself is missing, so [`is_present`] is asked before anything else is called.

use std::ffi::{CStr, c_char, c_int, c_uchar, c_uint, c_ulonglong, c_void};
use std::ptr;
use std::sync::OnceLock;

use self::types::{
    CUcontext, CUdevice, CUdevice_attribute, CUdeviceptr, CUevent, CUfunction, CUfunction_attribute, CUgraph,
    CUgraphExec, CUmodule, CUstream, CUstreamCaptureMode,
};
use super::queue::Said;

/// cudarc's handles, and the numbers that are passed in.
pub(super) mod types {
    pub(in super::super) use cudarc::driver::sys::{
        CUcontext, CUdevice, CUdevice_attribute, CUdeviceptr, CUevent, CUevent_flags, CUfunction, CUfunction_attribute,
        CUgraph, CUgraphExec, CUmodule, CUstream, CUstream_flags, CUstreamCaptureMode,
    };
}

pub(super) fn is_present() -> bool {
    static PRESENT: OnceLock<bool> = OnceLock::new();
    // SAFETY: opens the driver's library, whose initialisers any CUDA program runs.
    *PRESENT.get_or_init(|| unsafe { cudarc::driver::sys::is_culib_present() })
}

/// Functions of the library by their names there, in the current version of their interface (`_v2` and so on).
macro_rules! functions {
    ($(fn $name:ident($($arg:ident: $type:ty),* $(,)?);)*) => {$(
        /// # Safety
        /// The library is present, and the arguments are what the driver's documentation asks for.
        #[allow(non_snake_case, clippy::too_many_arguments)]
        pub(super) unsafe fn $name($($arg: $type),*) -> Said<()> {
            type Function = unsafe extern "C" fn($($type),*) -> c_uint;
            static FUNCTION: OnceLock<Option<Function>> = OnceLock::new();
            let name = stringify!($name);
            // SAFETY: the library's function of this name has these parameters (cuda.h), and its result, an enum of C, is
            // an unsigned int. The library stays open.
            let found = FUNCTION.get_or_init(|| unsafe {
                cudarc::driver::sys::culib().get::<Function>(name.as_bytes()).ok().map(|found| *found)
            });
            let function = found.ok_or_else(|| format!("{name}: the NVIDIA driver does not have it"))?;
            // SAFETY: the caller's.
            match unsafe { function($($arg),*) } {
                0 => Ok(()),
                code => Err(Code { name, code }.text()),
            }
        }
    )*};
}

functions! {
    fn cuCtxSetCurrent(context: CUcontext);
    fn cuDeviceGet(device: *mut CUdevice, ordinal: c_int);
    fn cuDeviceGetAttribute(value: *mut c_int, which: CUdevice_attribute, device: CUdevice);
    fn cuDeviceGetCount(count: *mut c_int);
    fn cuDeviceGetName(name: *mut c_char, bytes: c_int, device: CUdevice);
    fn cuDevicePrimaryCtxRelease_v2(device: CUdevice);
    fn cuDevicePrimaryCtxRetain(context: *mut CUcontext, device: CUdevice);
    fn cuDeviceTotalMem_v2(bytes: *mut usize, device: CUdevice);
    fn cuDriverGetVersion(version: *mut c_int);
    fn cuEventCreate(event: *mut CUevent, flags: c_uint);
    fn cuEventDestroy_v2(event: CUevent);
    fn cuEventElapsedTime(milliseconds: *mut f32, from: CUevent, to: CUevent);
    fn cuEventRecord(event: CUevent, stream: CUstream);
    fn cuEventSynchronize(event: CUevent);
    fn cuFuncGetAttribute(value: *mut c_int, which: CUfunction_attribute, function: CUfunction);
    fn cuFuncSetAttribute(function: CUfunction, which: CUfunction_attribute, value: c_int);
    fn cuGetErrorName(code: c_uint, text: *mut *const c_char);
    fn cuGetErrorString(code: c_uint, text: *mut *const c_char);
    fn cuGraphDestroy(graph: CUgraph);
    fn cuGraphExecDestroy(exec: CUgraphExec);
    fn cuGraphInstantiateWithFlags(exec: *mut CUgraphExec, graph: CUgraph, flags: c_ulonglong);
    fn cuGraphLaunch(exec: CUgraphExec, stream: CUstream);
    fn cuInit(flags: c_uint);
    fn cuLaunchKernel(
        function: CUfunction,
        grid_x: c_uint,
        grid_y: c_uint,
        grid_z: c_uint,
        block_x: c_uint,
        block_y: c_uint,
        block_z: c_uint,
        shared: c_uint,
        stream: CUstream,
        params: *mut *mut c_void,
        extra: *mut *mut c_void,
    );
    fn cuMemAlloc_v2(addr: *mut CUdeviceptr, bytes: usize);
    fn cuMemFreeHost(at: *mut c_void);
    fn cuMemFree_v2(addr: CUdeviceptr);
    fn cuMemGetInfo_v2(free: *mut usize, all: *mut usize);
    fn cuMemHostAlloc(at: *mut *mut c_void, bytes: usize, flags: c_uint);
    fn cuMemcpyDtoDAsync_v2(to: CUdeviceptr, from: CUdeviceptr, bytes: usize, stream: CUstream);
    fn cuMemcpyDtoHAsync_v2(to: *mut c_void, from: CUdeviceptr, bytes: usize, stream: CUstream);
    fn cuMemcpyHtoDAsync_v2(to: CUdeviceptr, from: *const c_void, bytes: usize, stream: CUstream);
    fn cuMemsetD8Async(to: CUdeviceptr, byte: c_uchar, bytes: usize, stream: CUstream);
    fn cuModuleGetFunction(function: *mut CUfunction, module: CUmodule, name: *const c_char);
    fn cuModuleLoadData(module: *mut CUmodule, image: *const c_void);
    fn cuModuleUnload(module: CUmodule);
    fn cuStreamBeginCapture_v2(stream: CUstream, mode: CUstreamCaptureMode);
    fn cuStreamCreate(stream: *mut CUstream, flags: c_uint);
    fn cuStreamDestroy_v2(stream: CUstream);
    fn cuStreamEndCapture(stream: CUstream, graph: *mut CUgraph);
    fn cuStreamSynchronize(stream: CUstream);
}

/// What a function answered, other than 0.
struct Code {
    name: &'static str,
    code: c_uint,
}

impl Code {
    /// In the driver's words, with the number where it has none.
    fn text(&self) -> String {
        let Code { name, code } = self;
        // These two would otherwise ask themselves.
        if ["cuGetErrorName", "cuGetErrorString"].contains(name) {
            return format!("{name}: error {code}");
        }
        let said = |ask: unsafe fn(c_uint, *mut *const c_char) -> Said<()>| {
            let mut text = ptr::null();
            // SAFETY: a function of this library has answered, so that it is present; `text` outlives the call.
            unsafe { ask(*code, &mut text) }.ok().filter(|()| !text.is_null())?;
            // SAFETY: the driver's texts are its constants, and end with a zero.
            Some(unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
        };
        match (said(cuGetErrorString), said(cuGetErrorName)) {
            (Some(text), Some(symbol)) => format!("{name}: {text} ({symbol})"),
            _ => format!("{name}: error {code}, which this driver does not explain"),
        }
    }
}
