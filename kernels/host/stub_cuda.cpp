// A `libcuda.so.1` for tests: the driver's calls that src/device/cuda.rs makes, with launches that run the host-run kernels.
// It is as strict as the driver's documentation where this program could go wrong: work is put off until something waits
// for it, a call needs a current context, addresses must lie in allocations that exist, a stream that is being recorded
// allows neither waiting nor allocating, and a fault stays with the context. Any thread may call; calls take turns.
//
// Environment: QLORA_STUB_DRIVER (13000), QLORA_STUB_GPUS (1), QLORA_STUB_CAPABILITY (8.6), QLORA_STUB_MEMORY (bytes),
// QLORA_STUB_LOCKED (bytes that may be page-locked), QLORA_STUB_FAIL (call:code, so that this call fails). What was not
// given back is said on stderr at the end, unless QLORA_STUB_QUIET is set.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include <pthread.h>

#define API extern "C" __attribute__((visibility("default")))

extern "C" int qe_host_run(void (*kernel)(const void*), const void* params, const unsigned* grid, unsigned threads,
                           size_t shared_bytes, uint64_t first, uint64_t last, int reversed, char* why, size_t why_size);

// The table of kernels, by build.rs.
#define STUB_KERNEL(name)                    \
  extern "C" void qe_host_##name(const void*); \
  extern "C" const unsigned qe_host_##name##_threads, qe_host_##name##_bytes;
#include "stub_kernels.inc"
#undef STUB_KERNEL

namespace {

// Codes and attributes, by cuda.h.
enum Code {
  kSuccess = 0,
  kInvalidValue = 1,
  kOutOfMemory = 2,
  kNoDevice = 100,
  kInvalidDevice = 101,
  kInvalidImage = 200,
  kInvalidContext = 201,
  kNotFound = 500,
  kNotReady = 600,
  kLaunchFailed = 719,
  kCaptureUnsupported = 900,
  kCaptureInvalidated = 901,
  kCaptureWrongThread = 908,
  kUnknown = 999,
};

struct KernelEntry {
  const char* name;
  void (*run)(const void*);
  const unsigned *threads, *bytes;
  int shared;  // what cuFuncSetAttribute allows
};
#define STUB_KERNEL(name) {#name, qe_host_##name, &qe_host_##name##_threads, &qe_host_##name##_bytes, 48 << 10},
KernelEntry kernels[] = {
#include "stub_kernels.inc"
};
#undef STUB_KERNEL

// A growing array of plain structs.
template <class T>
struct List {
  T* at = nullptr;
  size_t n = 0, room = 0;
  void push(const T& x) {
    if (n == room) at = static_cast<T*>(realloc(at, sizeof(T) * (room = 2 * room + 8)));
    if (at == nullptr) abort();
    at[n++] = x;
  }
  void remove(size_t i) { at[i] = at[--n]; }
};

struct Work {
  enum { kKernel, kCopy, kFill } kind;
  const KernelEntry* kernel;
  unsigned grid[3], threads, shared;
  void* params;  // a copy
  char* dst;
  const char* src;
  int byte;
  size_t bytes;
};

struct Graph {
  List<Work> work;
};

struct Stream {
  List<Work> pending;
  size_t done;  // of all that was ever enqueued
  bool recording, spoilt;
  Graph* graph;
};

struct Event {
  Stream* stream;
  size_t after;  // work of the stream
};

struct Span {
  char* at;
  size_t bytes;
};

List<Span> device_memory, pinned;
size_t used, locked;
int fault, contexts, streams, events, graphs, modules;
bool initialised;
__thread bool current;
__thread Stream* recorded;  // the stream that this thread records

// Held by each call from beginning to end, for all that is above; so launches run one after the other.
pthread_mutex_t turns = PTHREAD_MUTEX_INITIALIZER;
struct Turn {
  Turn() { pthread_mutex_lock(&turns); }
  ~Turn() { pthread_mutex_unlock(&turns); }
};

long setting(const char* name, long otherwise) {
  const char* text = getenv(name);
  return text == nullptr ? otherwise : atol(text);
}

size_t memory() { return static_cast<size_t>(setting("QLORA_STUB_MEMORY", 1l << 30)); }

// What the environment asks this call to fail with, or the context's fault.
int asked(const char* call) {
  const char* text = getenv("QLORA_STUB_FAIL");
  const size_t n = strlen(call);
  if (text != nullptr && strncmp(text, call, n) == 0 && text[n] == ':') return atoi(text + n + 1);
  return fault;
}

// Begins a call that needs a context.
#define BEGIN                                            \
  const Turn turn;                                       \
  if (const int code = asked(__func__)) return code;     \
  if (!current || contexts == 0) return kInvalidContext

bool inside(const List<Span>& all, const char* at, size_t bytes) {
  for (size_t i = 0; i < all.n; ++i) {
    const Span& s = all.at[i];
    if (at >= s.at && bytes <= s.bytes && at - s.at <= static_cast<ptrdiff_t>(s.bytes - bytes)) return true;
  }
  return false;
}

void run(const Work& w) {
  if (fault != 0) return;
  switch (w.kind) {
    case Work::kCopy:
      memcpy(w.dst, w.src, w.bytes);
      break;
    case Work::kFill:
      memset(w.dst, w.byte, w.bytes);
      break;
    case Work::kKernel: {
      char why[300];
      const uint64_t blocks = uint64_t{w.grid[0]} * w.grid[1] * w.grid[2];
      if (qe_host_run(w.kernel->run, w.params, w.grid, w.threads, w.shared, 0, blocks, 0, why, sizeof why) != 0)
        fault = kLaunchFailed;
    }
  }
}

// Runs what was enqueued, up to the `until`-th.
void catch_up(Stream* s, size_t until) {
  size_t n = 0;
  while (n < s->pending.n && s->done < until) {
    run(s->pending.at[n]);
    free(s->pending.at[n++].params);
    ++s->done;
  }
  memmove(s->pending.at, s->pending.at + n, sizeof(Work) * (s->pending.n - n));
  s->pending.n -= n;
}

int enqueue(Stream* s, const Work& w) {
  if (s == nullptr) return kInvalidValue;
  (s->recording ? s->graph->work : s->pending).push(w);
  return kSuccess;
}

Work copy_of(const Work& w) {
  Work mine = w;
  if (w.kind == Work::kKernel) {
    mine.params = malloc(w.bytes);
    if (mine.params == nullptr) abort();
    memcpy(mine.params, w.params, w.bytes);
  }
  return mine;
}

// A call that a recording by the same thread does not survive.
bool forbidden() { return recorded != nullptr && (recorded->spoilt = true); }

void free_graph(Graph* g) {
  for (size_t i = 0; i < g->work.n; ++i) free(g->work.at[i].params);
  free(g->work.at);
  free(g);
  --graphs;
}

}  // namespace

API int cuDriverGetVersion(int* version) {
  if (const int code = asked(__func__)) return code;
  *version = static_cast<int>(setting("QLORA_STUB_DRIVER", 13000));
  return kSuccess;
}
API int cuInit(unsigned) {
  const Turn turn;
  if (const int code = asked(__func__)) return code;
  if (setting("QLORA_STUB_GPUS", 1) == 0) return kNoDevice;
  initialised = true;
  return kSuccess;
}
API int cuGetErrorName(int code, const char** text) {
  switch (code) {
    case kInvalidValue: *text = "CUDA_ERROR_INVALID_VALUE"; break;
    case kOutOfMemory: *text = "CUDA_ERROR_OUT_OF_MEMORY"; break;
    case kNoDevice: *text = "CUDA_ERROR_NO_DEVICE"; break;
    case kInvalidImage: *text = "CUDA_ERROR_INVALID_IMAGE"; break;
    case kInvalidContext: *text = "CUDA_ERROR_INVALID_CONTEXT"; break;
    case kNotFound: *text = "CUDA_ERROR_NOT_FOUND"; break;
    case kLaunchFailed: *text = "CUDA_ERROR_LAUNCH_FAILED"; break;
    case kCaptureUnsupported: *text = "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"; break;
    case kCaptureInvalidated: *text = "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"; break;
    case kCaptureWrongThread: *text = "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD"; break;
    case kUnknown: *text = "CUDA_ERROR_UNKNOWN"; break;
    default: *text = nullptr; return kInvalidValue;
  }
  return kSuccess;
}
API int cuGetErrorString(int code, const char** text) {
  switch (code) {
    case kInvalidValue: *text = "invalid argument"; break;
    case kOutOfMemory: *text = "out of memory"; break;
    case kNoDevice: *text = "no CUDA-capable device is detected"; break;
    case kInvalidImage: *text = "device kernel image is invalid"; break;
    case kInvalidContext: *text = "invalid device context"; break;
    case kNotFound: *text = "named symbol not found"; break;
    case kLaunchFailed: *text = "unspecified launch failure"; break;
    case kCaptureUnsupported: *text = "operation not permitted when stream is capturing"; break;
    case kCaptureInvalidated: *text = "operation failed due to a previous error during capture"; break;
    case kCaptureWrongThread: *text = "attempt to terminate a thread-local capture sequence from another thread"; break;
    case kUnknown: *text = "unknown error"; break;
    default: *text = nullptr; return kInvalidValue;
  }
  return kSuccess;
}

API int cuDeviceGetCount(int* count) {
  const Turn turn;
  if (const int code = asked(__func__)) return code;
  if (!initialised) return kInvalidContext;
  *count = static_cast<int>(setting("QLORA_STUB_GPUS", 1));
  return kSuccess;
}
API int cuDeviceGet(int* device, int ordinal) {
  if (const int code = asked(__func__)) return code;
  if (ordinal < 0 || ordinal >= setting("QLORA_STUB_GPUS", 1)) return kInvalidDevice;
  *device = ordinal;
  return kSuccess;
}
API int cuDeviceGetName(char* name, int bytes, int) {
  if (const int code = asked(__func__)) return code;
  snprintf(name, static_cast<size_t>(bytes), "Stub 3080");
  return kSuccess;
}
API int cuDeviceTotalMem_v2(size_t* bytes, int) {
  if (const int code = asked(__func__)) return code;
  *bytes = memory();
  return kSuccess;
}
static const char* capability() {
  const char* given = getenv("QLORA_STUB_CAPABILITY");
  return given != nullptr ? given : "8.6";
}
// Most shared memory that a block can have.
static int shared_limit() { return strcmp(capability(), "9.0") == 0 ? 232448 : 101376; }
API int cuDeviceGetAttribute(int* value, int which, int) {
  if (const int code = asked(__func__)) return code;
  switch (which) {
    case 13: *value = 1710000; break;  // clock
    case 16: *value = 68; break;       // multiprocessors
    case 36: *value = 9501000; break;  // memory clock
    case 37: *value = 320; break;      // memory bus
    case 38: *value = 5 << 20; break;  // L2
    case 75: *value = atoi(capability()); break;
    case 76: *value = atoi(strchr(capability(), '.') + 1); break;
    case 97: *value = shared_limit(); break;
    default: return kInvalidValue;
  }
  return kSuccess;
}

API int cuDevicePrimaryCtxRetain(void** context, int) {
  const Turn turn;
  if (const int code = asked(__func__)) return code;
  ++contexts;
  *context = &contexts;
  return kSuccess;
}
API int cuDevicePrimaryCtxRelease_v2(int) {
  const Turn turn;
  if (contexts == 0) return kInvalidContext;
  const size_t left = device_memory.n + pinned.n + static_cast<size_t>(streams + events + graphs + modules);
  if (--contexts == 0 && left > 0 && getenv("QLORA_STUB_QUIET") == nullptr)
    fprintf(stderr, "stub: left behind: %zu allocations, %zu pinned, %d streams, %d events, %d graphs, %d modules\n",
            device_memory.n, pinned.n, streams, events, graphs, modules);
  return kSuccess;
}
API int cuCtxSetCurrent(void* context) {
  if (context != &contexts) return kInvalidContext;
  current = true;
  return kSuccess;
}

API int cuMemGetInfo_v2(size_t* free_bytes, size_t* all) {
  BEGIN;
  *all = memory();
  *free_bytes = memory() - used;
  return kSuccess;
}
API int cuMemAlloc_v2(unsigned long long* addr, size_t bytes) {
  BEGIN;
  if (forbidden()) return kCaptureUnsupported;
  if (bytes == 0) return kInvalidValue;
  if (bytes > memory() - used) return kOutOfMemory;
  void* at = nullptr;
  if (posix_memalign(&at, 256, bytes) != 0) return kOutOfMemory;
  memset(at, 0xFF, bytes);
  device_memory.push(Span{static_cast<char*>(at), bytes});
  used += bytes;
  *addr = reinterpret_cast<unsigned long long>(at);
  return kSuccess;
}
API int cuMemFree_v2(unsigned long long addr) {
  BEGIN;
  if (forbidden()) return kCaptureUnsupported;
  for (size_t i = 0; i < device_memory.n; ++i) {
    if (device_memory.at[i].at != reinterpret_cast<char*>(addr)) continue;
    used -= device_memory.at[i].bytes;
    free(device_memory.at[i].at);
    device_memory.remove(i);
    return kSuccess;
  }
  return kInvalidValue;
}
API int cuMemHostAlloc(void** at, size_t bytes, unsigned flags) {
  BEGIN;
  if (forbidden()) return kCaptureUnsupported;
  if (bytes == 0 || flags > 7) return kInvalidValue;
  if (bytes > static_cast<size_t>(setting("QLORA_STUB_LOCKED", 1l << 30)) - locked) return kOutOfMemory;
  if (posix_memalign(at, 4096, bytes) != 0) return kOutOfMemory;
  memset(*at, 0xFF, bytes);
  pinned.push(Span{static_cast<char*>(*at), bytes});
  locked += bytes;
  return kSuccess;
}
API int cuMemFreeHost(void* at) {
  BEGIN;
  for (size_t i = 0; i < pinned.n; ++i) {
    if (pinned.at[i].at != at) continue;
    locked -= pinned.at[i].bytes;
    free(at);
    pinned.remove(i);
    return kSuccess;
  }
  return kInvalidValue;
}

API int cuStreamCreate(Stream** stream, unsigned flags) {
  BEGIN;
  if (flags != 1) return kInvalidValue;  // one that waits for the default stream cannot be recorded
  *stream = static_cast<Stream*>(calloc(1, sizeof(Stream)));
  ++streams;
  return kSuccess;
}
API int cuStreamDestroy_v2(Stream* s) {
  const Turn turn;
  // What nobody waited for never runs.
  for (size_t i = 0; i < s->pending.n; ++i) free(s->pending.at[i].params);
  free(s->pending.at);
  if (recorded == s) recorded = nullptr;
  free(s);
  --streams;
  return kSuccess;
}
API int cuStreamSynchronize(Stream* s) {
  BEGIN;
  if (s == nullptr) return kInvalidValue;
  if (s->recording) {
    s->spoilt = true;
    return kCaptureUnsupported;
  }
  catch_up(s, SIZE_MAX);
  return fault;
}
API int cuEventCreate(Event** event, unsigned) {
  BEGIN;
  *event = static_cast<Event*>(calloc(1, sizeof(Event)));
  ++events;
  return kSuccess;
}
API int cuEventDestroy_v2(Event* event) {
  const Turn turn;
  free(event);
  --events;
  return kSuccess;
}
API int cuEventRecord(Event* event, Stream* s) {
  BEGIN;
  event->stream = s;
  event->after = s->done + s->pending.n;
  return kSuccess;
}
// The stub has no clock: a microsecond for each thing that was done.
API int cuEventElapsedTime(float* milliseconds, Event* from, Event* to) {
  BEGIN;
  if (from->stream == nullptr || from->stream != to->stream) return kInvalidValue;
  if (to->stream->done < to->after) return kNotReady;
  *milliseconds = 1e-3f * static_cast<float>(to->after - from->after);
  return kSuccess;
}
API int cuEventSynchronize(Event* event) {
  BEGIN;
  if (event->stream != nullptr) catch_up(event->stream, event->after);
  return fault;
}

API int cuMemcpyHtoDAsync_v2(unsigned long long dst, const void* src, size_t bytes, Stream* s) {
  BEGIN;
  char* to = reinterpret_cast<char*>(dst);
  // From memory that is not pinned the driver may or may not copy before it returns.
  if (!inside(device_memory, to, bytes) || !inside(pinned, static_cast<const char*>(src), bytes)) return kInvalidValue;
  return enqueue(s, Work{Work::kCopy, nullptr, {}, 0, 0, nullptr, to, static_cast<const char*>(src), 0, bytes});
}
API int cuMemcpyDtoHAsync_v2(void* dst, unsigned long long src, size_t bytes, Stream* s) {
  BEGIN;
  const char* from = reinterpret_cast<const char*>(src);
  if (!inside(device_memory, from, bytes)) return kInvalidValue;
  return enqueue(s, Work{Work::kCopy, nullptr, {}, 0, 0, nullptr, static_cast<char*>(dst), from, 0, bytes});
}
API int cuMemcpyDtoDAsync_v2(unsigned long long dst, unsigned long long src, size_t bytes, Stream* s) {
  BEGIN;
  char* to = reinterpret_cast<char*>(dst);
  const char* from = reinterpret_cast<const char*>(src);
  if (!inside(device_memory, to, bytes) || !inside(device_memory, from, bytes)) return kInvalidValue;
  return enqueue(s, Work{Work::kCopy, nullptr, {}, 0, 0, nullptr, to, from, 0, bytes});
}
API int cuMemsetD8Async(unsigned long long dst, unsigned char byte, size_t bytes, Stream* s) {
  BEGIN;
  char* to = reinterpret_cast<char*>(dst);
  if (!inside(device_memory, to, bytes)) return kInvalidValue;
  return enqueue(s, Work{Work::kFill, nullptr, {}, 0, 0, nullptr, to, nullptr, byte, bytes});
}

API int cuModuleLoadData(void** module, const void* image) {
  BEGIN;
  if (forbidden()) return kCaptureUnsupported;
  const unsigned char magic[4] = {0x50, 0xED, 0x55, 0xBA};  // a fatbin's
  if (memcmp(image, magic, 4) != 0) return kInvalidImage;
  *module = malloc(1);
  ++modules;
  return kSuccess;
}
API int cuModuleUnload(void* module) {
  const Turn turn;
  free(module);
  --modules;
  return kSuccess;
}
API int cuModuleGetFunction(KernelEntry** function, void*, const char* name) {
  BEGIN;
  for (KernelEntry& k : kernels) {
    if (strcmp(k.name, name) != 0) continue;
    *function = &k;
    return kSuccess;
  }
  return kNotFound;
}
API int cuFuncGetAttribute(int* value, int which, KernelEntry* f) {
  BEGIN;
  if (which == 0) *value = static_cast<int>(*f->threads);
  else if (which == 1) *value = 0;  // fixed shared memory
  else return kInvalidValue;
  return kSuccess;
}
API int cuFuncSetAttribute(KernelEntry* f, int which, int value) {
  BEGIN;
  if (which != 8 || value > shared_limit()) return kInvalidValue;
  f->shared = value;
  return kSuccess;
}
API int cuLaunchKernel(KernelEntry* f, unsigned x, unsigned y, unsigned z, unsigned tx, unsigned ty, unsigned tz,
                       unsigned shared, Stream* s, void** params, void** extra) {
  BEGIN;
  const bool sizes = x > 0 && y > 0 && z > 0 && x < 1u << 31 && y < 65536 && z < 65536;
  if (!sizes || tx == 0 || tx > *f->threads || ty != 1 || tz != 1 || static_cast<int>(shared) > f->shared ||
      extra != nullptr)
    return kInvalidValue;
  const Work w{Work::kKernel, f, {x, y, z}, tx, shared, params[0], nullptr, nullptr, 0, *f->bytes};
  return enqueue(s, copy_of(w));
}

API int cuStreamBeginCapture_v2(Stream* s, int mode) {
  BEGIN;
  if (mode != 1 || s->recording) return kInvalidValue;
  s->recording = true;
  recorded = s;
  s->spoilt = false;
  s->graph = static_cast<Graph*>(calloc(1, sizeof(Graph)));
  ++graphs;
  return kSuccess;
}
API int cuStreamEndCapture(Stream* s, Graph** graph) {
  const Turn turn;
  if (!s->recording) return kInvalidValue;
  if (recorded != s) return kCaptureWrongThread;
  s->recording = false;
  recorded = nullptr;
  *graph = s->graph;
  if (!s->spoilt) return kSuccess;
  free_graph(s->graph);
  *graph = nullptr;
  return kCaptureInvalidated;
}
API int cuGraphInstantiateWithFlags(Graph** exec, Graph* graph, unsigned long long) {
  BEGIN;
  *exec = static_cast<Graph*>(calloc(1, sizeof(Graph)));
  ++graphs;
  for (size_t i = 0; i < graph->work.n; ++i) (*exec)->work.push(copy_of(graph->work.at[i]));
  return kSuccess;
}
API int cuGraphDestroy(Graph* graph) {
  const Turn turn;
  free_graph(graph);
  return kSuccess;
}
API int cuGraphExecDestroy(Graph* exec) {
  const Turn turn;
  free_graph(exec);
  return kSuccess;
}
API int cuGraphLaunch(Graph* exec, Stream* s) {
  BEGIN;
  for (size_t i = 0; i < exec->work.n; ++i) s->pending.push(copy_of(exec->work.at[i]));
  return kSuccess;
}
