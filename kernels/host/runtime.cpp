// The scheduler of host-run kernels; what it promises is said in cuda_on_host.h.
#include "../include/f16.cuh"
#include "../include/qe.cuh"

#include <cstdio>
#include <cstdlib>
#include <pthread.h>
#include <sys/mman.h>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define QE_ASAN 1
#else
#define QE_ASAN 0
#endif

namespace qe {
namespace host {

__thread Current current;

namespace {

constexpr size_t kStackBytes = QE_ASAN ? 256 << 10 : 64 << 10;
constexpr unsigned kMaxThreads = 1024;
constexpr uint64_t kCanary = 0x5AFE57ACC0FFEE00ull;

// What one worker thread needs to run a block: made once, used for every block it runs.
struct Worker {
  Fiber fibers[kMaxThreads];
  PendingCopy pending[kMaxThreads][kMaxPending];
  Products products[kMaxThreads];
  Fiber scheduler;
  void (*kernel)(const void*);
  const void* params;
  unsigned threads;
  bool reversed;
  bool failed;
  char why[256];
#if QE_ASAN
  const void* home_bottom;  // the scheduler's own stack
  size_t home_size;
#endif
};
__thread Worker* worker;

#if defined(__x86_64__)
// Saves what the System V ABI lets a callee not touch, changes stacks, and returns on the other.
extern "C" void qe_host_switch(void** save, void* to);
asm(R"(
.text
.globl qe_host_switch
.type qe_host_switch, @function
qe_host_switch:
  endbr64
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size qe_host_switch, .-qe_host_switch
)");
#endif

// Leaves `from`, goes on with `to`. Returns when somebody goes on with `from`.
void jump(Fiber& from, Fiber& to) {
#if QE_ASAN
  const bool home = &to == &worker->scheduler;
  const bool last = from.wait == Wait::kDone;
  __sanitizer_start_switch_fiber(last ? nullptr : &from.asan_stack, home ? worker->home_bottom : to.stack,
                                 home ? worker->home_size : kStackBytes);
#endif
#if defined(__x86_64__)
  qe_host_switch(&from.sp, to.sp);
#else
  swapcontext(static_cast<ucontext_t*>(from.sp), static_cast<ucontext_t*>(to.sp));
#endif
#if QE_ASAN
  __sanitizer_finish_switch_fiber(from.asan_stack, nullptr, nullptr);
#endif
}

void check_stack(const Fiber& f) {
  uint64_t canary;
  memcpy(&canary, f.stack, sizeof canary);
  if (canary == kCanary || worker->failed) return;
  worker->failed = true;
  snprintf(worker->why, sizeof worker->why, "thread %u overran its stack of %zu bytes", f.thread, kStackBytes);
}

// Goes on with the next lane of the warp that can run, or with the scheduler if there is none.
void give_way(Fiber& f) {
  Worker& w = *worker;
  const int step = w.reversed ? -1 : 1;
  Fiber* const warp = &w.fibers[f.thread / QE_WARP * QE_WARP];
  Fiber* next = &f;
  do next += step;
  while (next >= warp && next < warp + QE_WARP && next->wait != Wait::kNothing);
  if (next < warp || next >= warp + QE_WARP || w.failed) return jump(f, w.scheduler);
  current.fiber = next;
  current.thread.x = next->thread;
  jump(f, *next);
}

void fiber_main() {
  Worker& w = *worker;
#if QE_ASAN
  // The first that ever runs comes from the scheduler, others may come from their neighbour.
  if (w.home_size == 0) __sanitizer_finish_switch_fiber(nullptr, &w.home_bottom, &w.home_size);
  else __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
  w.kernel(w.params);
  Fiber& f = *current.fiber;
  if (f.pending_count > 0) fail("a thread ends before it has waited for its asynchronous copies", f.copy_line);
  if (f.products->count > 0) fail("a thread ends before it has waited for its products", f.products->line);
  check_stack(f);
  f.wait = Wait::kDone;
  give_way(f);
  abort();  // nobody goes on with a thread that is done
}

// Lays out the stack of a thread that has not begun.
void prepare(Fiber& f, unsigned thread) {
  f.thread = thread;
  f.wait = Wait::kNothing;
  f.pending_count = f.groups = 0;
  Products& p = *f.products;
  p.count = p.groups = 0;
  p.fenced = p.unseen = p.unseen_by_all = false;
  p.trace = 0;
  memcpy(f.stack, &kCanary, sizeof kCanary);
#if defined(__x86_64__)
  // As if qe_host_switch had been called from fiber_main's caller: six registers, the address to return to, and a stack
  // aligned as it is at a function's entry.
  uint64_t* top = reinterpret_cast<uint64_t*>(f.stack + kStackBytes);
  *--top = 0;
  *--top = reinterpret_cast<uint64_t>(&fiber_main);
  for (int i = 0; i < 6; ++i) *--top = 0;
  f.sp = top;
#else
  ucontext_t* c = reinterpret_cast<ucontext_t*>(f.stack + 64);
  getcontext(c);
  c->uc_stack.ss_sp = f.stack + 64 + sizeof(ucontext_t);
  c->uc_stack.ss_size = kStackBytes - 64 - sizeof(ucontext_t);
  c->uc_link = nullptr;
  makecontext(c, fiber_main, 0);
  f.sp = c;
#endif
}

// Runs a thread, and those of its warp that follow it, until all of them wait or have ended.
void resume(Worker& w, Fiber& f) {
  current.fiber = &f;
  current.thread.x = f.thread;
  jump(w.scheduler, f);
}

// Makes floats of the bits of f16 that stand in their places.
template <int ROWS, int COLS>
void widen(float (&x)[ROWS][COLS]) {
  for (auto& row : x)
    for (float& v : row) v = f32(f16{static_cast<unsigned short>(__float_as_uint(v))});
}

// W: columns of B. Its elements and A's are of type E.
template <class E, int W>
void products(Fiber* lanes, int count) {
  typedef float Four __attribute__((vector_size(16)));  // what every machine adds at once
  float a[16][16];
  Four b[16][W / 4], d[16][W / 4];
  float(*const b_at)[W] = reinterpret_cast<float(*)[W]>(b);
  float(*const d_at)[W] = reinterpret_cast<float(*)[W]>(d);
  // Two elements in a register, the low one first: bf16 as floats already, f16 to be widened together.
  struct Pair {
    uint32_t low, high;
  };
  const auto pair = [](unsigned r) {
    return kIsF16<E> ? Pair{r & 0xFFFFu, r >> 16} : Pair{r << 16, r & 0xFFFF0000u};
  };
  for (int l = 0; l < QE_WARP; ++l) {
    const Mma& m = *static_cast<Mma*>(lanes[l].argument);
    const int g = l / 4, t = l % 4;
    for (int i = 0; i < W / 4; ++i) {
      const Pair both = pair(m.b[i]);
      const int row = 2 * t + 8 * (i % 2), col = g + 8 * (i / 2);
      memcpy(&b_at[row][col], &both.low, 4);
      memcpy(&b_at[row + 1][col], &both.high, 4);
    }
  }
  if (kIsF16<E>) widen(*reinterpret_cast<float(*)[16][W]>(b));
  for (int n = 0; n < count; ++n) {
    for (int l = 0; l < QE_WARP; ++l) {
      const Mma& m = *static_cast<Mma*>(lanes[l].argument);
      const int g = l / 4, t = l % 4;
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const Pair both = pair(m.a[n * 4 + i]);
        memcpy(&a[g + 8 * (i % 2)][2 * t + 8 * (i / 2)], &both, 8);
      }
#pragma GCC unroll 4
      for (int i = 0; i < W / 4; ++i) memcpy(&d_at[g + 8 * (i % 2)][2 * t + 8 * (i / 2)], m.d + n * m.apart + 2 * i, 8);
    }
    if (kIsF16<E>) widen(a);
    for (int i = 0; i < 16; ++i) {
      Four sum[W / 4];
      memcpy(sum, d[i], sizeof sum);
      for (int k = 0; k < 16; ++k)
#pragma GCC unroll 4
        for (int c = 0; c < W / 4; ++c) sum[c] += a[i][k] * b[k][c];
      memcpy(d[i], sum, sizeof sum);
    }
    for (int l = 0; l < QE_WARP; ++l) {
      const Mma& m = *static_cast<Mma*>(lanes[l].argument);
#pragma GCC unroll 4
      for (int i = 0; i < W / 4; ++i)
        memcpy(m.d + n * m.apart + 2 * i, &d_at[l / 4 + 8 * (i % 2)][2 * (l % 4) + 8 * (i / 2)], 8);
    }
  }
}

void load_matrices(Fiber* lanes, bool trans) {
  unsigned short rows[32][8];
  for (int l = 0; l < QE_WARP; ++l) memcpy(rows[l], static_cast<Ldmatrix*>(lanes[l].argument)->row, 16);
  for (int l = 0; l < QE_WARP; ++l) {
    const int g = l / 4, t = l % 4;
    for (int i = 0; i < 4; ++i) {
      const unsigned short lo = trans ? rows[8 * i + 2 * t][g] : rows[8 * i + g][2 * t];
      const unsigned short hi = trans ? rows[8 * i + 2 * t + 1][g] : rows[8 * i + g][2 * t + 1];
      static_cast<Ldmatrix*>(lanes[l].argument)->r[i] = static_cast<unsigned>(lo) | static_cast<unsigned>(hi) << 16;
    }
  }
}

// At the line of the thread's last product.
void refuse(const char* why, const Fiber& f) {
  Worker& w = *worker;
  if (w.failed) return;
  w.failed = true;
  snprintf(w.why, sizeof w.why, "%s (thread %u, line %d)", why, f.thread, f.products->line);
}

// The product that all lanes of a warp have at place `i`.
void run_product(Fiber* lanes, int i) {
  const Wgmma& first = lanes[0].products->pending[i];
  float* d[QE_WARP];
  for (int l = 0; l < QE_WARP; ++l) d[l] = lanes[l].products->pending[i].d;
  const char* why = multiply(first, d, static_cast<int>(lanes[0].thread / QE_WARP % 4) * 16);
  if (why != nullptr) refuse(why, lanes[0]);
}

const char* const kUnseen = "a product while a thread's copies lack fence_async";

// A product begins: at once, or, in reverse, at its wait.
void begin_product(Fiber* lanes) {
  const Worker& w = *worker;
  for (int l = 0; l < QE_WARP; ++l) {
    Products& p = *lanes[l].products;
    const Wgmma& mine = *static_cast<Wgmma*>(lanes[l].argument);
    const Wgmma& first = *static_cast<Wgmma*>(lanes[0].argument);
    p.line = lanes[l].line;
    if (mine.a != first.a || mine.b != first.b) return refuse("lanes name different operands of a product", lanes[l]);
    if (!p.fenced) return refuse("a product without wgmma_fence before its group", lanes[l]);
    if (p.unseen) return refuse(kUnseen, lanes[l]);
    if (p.count == kMaxProducts) return refuse("too many products under way", lanes[l]);
    p.trace = (p.trace ^ mine.a ^ mine.b << 7) * 0x9E3779B97F4A7C15ull + 1;
    p.group[p.count] = p.groups;
    p.pending[p.count++] = mine;
  }
  for (unsigned t = 0; t < w.threads; ++t)
    if (w.products[t].unseen_by_all) return refuse(kUnseen, lanes[0]);
  if (!w.reversed) run_product(lanes, lanes[0].products->count - 1);
}

// All but the newest groups of products end.
void end_products(Fiber* lanes) {
  const int newest = *static_cast<int*>(lanes[0].argument);
  const Products& p = *lanes[0].products;
  int done = 0;
  while (done < p.count && p.group[done] < p.groups - newest) ++done;
  for (int i = 0; i < done && worker->reversed; ++i) run_product(lanes, i);
  for (int l = 0; l < QE_WARP; ++l) {
    Products& mine = *lanes[l].products;
    mine.count -= done;
    memmove(mine.pending, mine.pending + done, sizeof mine.pending[0] * mine.count);
    memmove(mine.group, mine.group + done, sizeof mine.group[0] * mine.count);
  }
}

// All 32 lanes have arrived with the same collective at the same line.
void collect(Fiber* lanes) {
  switch (lanes[0].collective) {
    case Collective::kSync:
      break;
    case Collective::kShuffle:
      for (int l = 0; l < QE_WARP; ++l) {
        Shuffle& s = *static_cast<Shuffle*>(lanes[l].argument);
        s.result = static_cast<Shuffle*>(lanes[s.from].argument)->value;
      }
      break;
    case Collective::kBallot: {
      unsigned bits = 0;
      for (int l = 0; l < QE_WARP; ++l) bits |= unsigned{static_cast<Ballot*>(lanes[l].argument)->value} << l;
      for (int l = 0; l < QE_WARP; ++l) static_cast<Ballot*>(lanes[l].argument)->result = bits;
      break;
    }
    case Collective::kMma: {
      const Mma& m = *static_cast<Mma*>(lanes[0].argument);
      if (m.f16) m.width == 8 ? products<f16, 8>(lanes, m.count) : products<f16, 16>(lanes, m.count);
      else m.width == 8 ? products<bf16, 8>(lanes, m.count) : products<bf16, 16>(lanes, m.count);
      break;
    }
    case Collective::kLdmatrix:
    case Collective::kLdmatrixTrans:
      load_matrices(lanes, lanes[0].collective == Collective::kLdmatrixTrans);
      break;
    case Collective::kWgmma:
      begin_product(lanes);
      break;
    case Collective::kWgmmaWait:
      end_products(lanes);
      break;
  }
}

const char* name_of(Wait w) {
  switch (w) {
    case Wait::kBlock:
      return "waits for the block";
    case Wait::kWarp:
      return "waits for its warp";
    case Wait::kDone:
      return "has ended";
    default:
      return "runs";
  }
}

void diverged(Worker& w, const Fiber& a, const Fiber& b) {
  if (w.failed) return;
  w.failed = true;
  const auto place = [](const Fiber& f, char (&text)[80]) {
    if (f.wait == Wait::kDone) snprintf(text, sizeof text, "thread %u %s", f.thread, name_of(f.wait));
    else snprintf(text, sizeof text, "thread %u %s at line %d", f.thread, name_of(f.wait), f.line);
  };
  char one[80], other[80];
  place(a, one);
  place(b, other);
  snprintf(w.why, sizeof w.why, "threads diverge in block (%u, %u, %u): %s, %s", current.block.x, current.block.y,
           current.block.z, one, other);
}

// Runs a warp until every lane has ended or waits for the block.
void run_warp(Worker& w, Fiber* lanes) {
  for (;;) {
    for (int i = 0; i < QE_WARP && !w.failed; ++i) {
      Fiber& f = lanes[w.reversed ? QE_WARP - 1 - i : i];
      if (f.wait == Wait::kNothing) resume(w, f);
    }
    if (w.failed) return;
    const Fiber* collective = nullptr;
    for (int l = 0; l < QE_WARP; ++l)
      if (lanes[l].wait == Wait::kWarp) collective = &lanes[l];
    if (collective == nullptr) return;
    for (int l = 0; l < QE_WARP; ++l) {
      const Fiber& f = lanes[l];
      if (f.wait != Wait::kWarp || f.line != collective->line || f.collective != collective->collective)
        return diverged(w, *collective, f);
    }
    collect(lanes);
    for (int l = 0; l < QE_WARP; ++l) lanes[l].wait = Wait::kNothing;
  }
}

// The warps of a warpgroup have issued the same products.
void same_products(Worker& w) {
  for (unsigned t = 0; t < w.threads; ++t) {
    const unsigned first = t / (4 * QE_WARP) * (4 * QE_WARP);
    const uint64_t trace = w.products[t].trace;
    if (trace == w.products[first].trace && (trace == 0 || first + 4 * QE_WARP <= w.threads)) continue;
    return refuse("the warps of a warpgroup differ in their products", w.fibers[t]);
  }
}

void run_block(Worker& w) {
  for (unsigned t = 0; t < w.threads; ++t) prepare(w.fibers[t], t);
  const unsigned warps = w.threads / QE_WARP;
  for (;;) {
    for (unsigned i = 0; i < warps && !w.failed; ++i)
      run_warp(w, &w.fibers[(w.reversed ? warps - 1 - i : i) * QE_WARP]);
    if (w.failed) return;
    const Fiber& first = w.fibers[0];
    for (unsigned t = 0; t < w.threads; ++t) {
      const Fiber& f = w.fibers[t];
      if (f.wait != first.wait || (f.wait == Wait::kBlock && f.line != first.line)) return diverged(w, first, f);
    }
    if (first.wait == Wait::kDone) return same_products(w);
    for (unsigned t = 0; t < w.threads; ++t) {
      w.fibers[t].wait = Wait::kNothing;
      w.products[t].unseen_by_all = w.products[t].unseen;
    }
  }
}

// At the end of a thread that was a worker.
void free_worker(void* memory) {
  Worker* w = static_cast<Worker*>(memory);
#if QE_ASAN
  // Frames that were left without returning are still marked; whoever is given these addresses next must not find that.
  __asan_unpoison_memory_region(w->fibers[0].stack, kStackBytes * kMaxThreads);
#endif
  munmap(w->fibers[0].stack, kStackBytes * kMaxThreads);
#if !defined(__x86_64__)
  free(w->scheduler.sp);
#endif
  free(w);
}
pthread_key_t ends;
pthread_once_t once = PTHREAD_ONCE_INIT;
void make_key() {
  if (pthread_key_create(&ends, free_worker) != 0) abort();
}

// This thread's worker. Its memory stays with the thread.
Worker* get_worker() {
  if (worker != nullptr) return worker;
  pthread_once(&once, make_key);
  Worker* w = static_cast<Worker*>(calloc(1, sizeof(Worker)));
  void* stacks = mmap(nullptr, kStackBytes * kMaxThreads, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (w == nullptr || stacks == MAP_FAILED) return nullptr;
  for (unsigned t = 0; t < kMaxThreads; ++t) {
    w->fibers[t].stack = static_cast<char*>(stacks) + kStackBytes * t;
    w->fibers[t].pending = w->pending[t];
    w->fibers[t].products = &w->products[t];
  }
#if !defined(__x86_64__)
  w->scheduler.sp = calloc(1, sizeof(ucontext_t));
#endif
  if (pthread_setspecific(ends, w) != 0) return nullptr;
  return worker = w;
}

}  // namespace

void wait_block(int line) {
  Fiber& f = *current.fiber;
  f.wait = Wait::kBlock;
  f.line = line;
  check_stack(f);
  give_way(f);
}

void wait_warp(Collective what, void* argument, int line) {
  Fiber& f = *current.fiber;
  f.wait = Wait::kWarp;
  f.collective = what;
  f.argument = argument;
  f.line = line;
  give_way(f);
}

void fail(const char* why, int line) {
  Worker& w = *worker;
  if (!w.failed) {
    w.failed = true;
    snprintf(w.why, sizeof w.why, "%s (thread %u, line %d)", why, current.fiber->thread, line);
  }
  current.fiber->wait = Wait::kDone;
  jump(*current.fiber, w.scheduler);
  abort();
}

static void land(const PendingCopy& c) {
  if (c.src != nullptr) memcpy(c.dst, c.src, c.bytes);
  else memset(c.dst, 0, c.bytes);
}

void cp_async(void* dst, const void* src, int bytes, bool valid, int line) {
  Fiber& f = *current.fiber;
  f.copy_line = line;
  // PTX asks for both, whether `src` is read or not.
  const uintptr_t misaligned = (reinterpret_cast<uintptr_t>(dst) | reinterpret_cast<uintptr_t>(src)) % bytes;
  if (misaligned != 0) fail("an asynchronous copy of unaligned addresses", line);
  if (f.pending_count == kMaxPending) fail("too many asynchronous copies under way", line);
  PendingCopy c{dst, valid ? src : nullptr, bytes, f.groups};
  // A copy may land at any time from here to its wait: in reverse at once, so that one which overwrites what others still
  // read is seen; otherwise at the wait, so that a missing wait is.
  if (worker->reversed) land(c);
  f.pending[f.pending_count++] = c;
}

void cp_async_commit() { ++current.fiber->groups; }

void cp_async_wait(int newest) {
  Fiber& f = *current.fiber;
  int left = 0;
  for (int i = 0; i < f.pending_count; ++i) {
    const PendingCopy& c = f.pending[i];
    // Group numbers count up; the open group is not waited for.
    if (c.group < f.groups - newest) {
      if (!worker->reversed) land(c);
      f.products->unseen = true;
    } else {
      f.pending[left++] = c;
    }
  }
  f.pending_count = left;
}

void wgmma_fence() { current.fiber->products->fenced = true; }
void wgmma(Wgmma w, int line) { wait_warp(Collective::kWgmma, &w, line); }
void wgmma_commit() {
  Products& p = *current.fiber->products;
  ++p.groups;
  p.fenced = false;
}
void wgmma_wait(int newest, int line) { wait_warp(Collective::kWgmmaWait, &newest, line); }
void fence_async() { current.fiber->products->unseen = false; }

}  // namespace host
}  // namespace qe

// Runs the blocks first .. last (counted along x, then y, then z) of a launch. Returns 0, or 1 with `why` written.
extern "C" int qe_host_run(void (*kernel)(const void*), const void* params, const unsigned* grid, unsigned threads,
                           size_t shared_bytes, uint64_t first, uint64_t last, int reversed, char* why, size_t why_size) {
  using namespace qe::host;
  Worker* w = get_worker();
  unsigned char* shared = nullptr;
  if (w == nullptr || (shared_bytes > 0 && posix_memalign(reinterpret_cast<void**>(&shared), 1024, shared_bytes) != 0)) {
    snprintf(why, why_size, "no memory for the threads' stacks");
    return 1;
  }
  w->kernel = kernel;
  w->params = params;
  w->threads = threads;
  w->reversed = reversed != 0;
#if QE_ASAN
  // Threads that a failure left where they were never cleared what AddressSanitizer holds of their stacks.
  if (w->failed) __asan_unpoison_memory_region(w->fibers[0].stack, kStackBytes * kMaxThreads);
#endif
  w->failed = false;
  current.shared = shared;
  current.shared_bytes = shared_bytes;
  current.block_dim = Dim3{threads, 1, 1};
  current.grid_dim = Dim3{grid[0], grid[1], grid[2]};
  for (uint64_t i = first; i < last && !w->failed; ++i) {
    const uint64_t b = reversed ? first + last - 1 - i : i;
    current.block = Dim3{static_cast<unsigned>(b % grid[0]), static_cast<unsigned>(b / grid[0] % grid[1]),
                         static_cast<unsigned>(b / grid[0] / grid[1])};
    if (shared_bytes > 0) memset(shared, 0xFF, shared_bytes);
    run_block(*w);
  }
  free(shared);
  if (!w->failed) return 0;
  snprintf(why, why_size, "%s", w->why);
  return 1;
}
