// As much of CUDA as device.cu uses, for a C++ compiler. One source file includes this, then device.cu, and calls
// `emulated::launch`.
//
// Blocks run one after another, the threads of a block as fibers that give way to each other at barriers and shuffles
// only. What a GPU leaves open is decided for the worst: shared memory starts as noise, and an asynchronous copy fills
// its target with noise at once and lands when its own thread waits for it. A missing wait or barrier therefore gives
// wrong pixels, every time.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <vector>

#define __host__
#define __device__
#define __global__
#define __shared__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct uint3 {
  uint32_t x, y, z;
};

struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};

struct alignas(8) uint2 {
  uint32_t x, y;
};

struct alignas(8) int2 {
  int32_t x, y;
};

inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }

using std::max;
using std::min;

static uint3 threadIdx, blockIdx, blockDim, gridDim;

namespace {
// `extern __shared__ uint4 shared[]` inside a function of an unnamed namespace declares this very array.
alignas(128) uint4 shared[227 * 1024 / sizeof(uint4)];
}  // namespace

namespace emulated {

constexpr int kNoise = 0x5A;
constexpr size_t kPiece = 16;  // bytes of an asynchronous copy
constexpr uint32_t kWarp = 32;
constexpr uint32_t kMostThreads = 1024;
constexpr size_t kStack = 64 * 1024;

struct Range {
  const uint8_t* start;
  uint64_t size;
};

// Mirrored by `_Launch` in emulated_device.py.
struct Launch {
  uint32_t grid_x, grid_y, threads, shared_bytes;
  const Range* readable;  // what asynchronous copies may read
  uint64_t ranges;
};

struct Copy {
  uint8_t* to;
  const uint8_t* from;
};

struct Fiber {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(kStack);
  bool done;
  uint32_t barriers, shuffles;            // passed or waited at
  std::deque<std::vector<Copy>> batches;  // of copies under way; the last one is not committed yet
};

static Launch how;
static std::vector<Fiber> fibers;
static ucontext_t scheduler;
static uint32_t current;          // the fiber that runs
static bool progress;             // a fiber got further since the scheduler last went round
static const char* failure;       // the first one
static std::function<void()> body;
static uint32_t exchanged[2][kMostThreads];  // two: a thread may be at the next shuffle while others read this one

inline void fail(const char* what) {
  if (!failure) failure = what;
}

// Come back when `ready`.
template <class Condition>
void wait_until(Condition ready) {
  const uint32_t me = current;
  while (!ready()) swapcontext(&fibers[me].context, &scheduler);
  progress = true;
}

inline bool may_read(const uint8_t* from) {
  return std::any_of(how.readable, how.readable + how.ranges, [&](const Range& r) {
    return from >= r.start && from + kPiece <= r.start + r.size;
  });
}

inline bool is_shared(const uint8_t* to) {
  const uint8_t* const start = reinterpret_cast<const uint8_t*>(shared);
  return to >= start && to + kPiece <= start + how.shared_bytes;
}

inline bool is_aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % kPiece == 0; }

inline void thread_main() {
  body();
  fibers[current].done = progress = true;
  swapcontext(&fibers[current].context, &scheduler);
}

inline void run_block() {
  std::memset(shared, kNoise, how.shared_bytes);
  for (Fiber& f : fibers) {
    f.done = false;
    f.barriers = f.shuffles = 0;
    f.batches.assign(1, {});
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = f.stack.data();
    f.context.uc_stack.ss_size = f.stack.size();
    f.context.uc_link = nullptr;
    makecontext(&f.context, thread_main, 0);
  }
  const auto all_done = [] { return std::all_of(fibers.begin(), fibers.end(), [](const Fiber& f) { return f.done; }); };
  while (!all_done()) {
    progress = false;
    for (current = 0; current < fibers.size(); ++current) {
      if (fibers[current].done) continue;
      threadIdx = {current, 0, 0};
      swapcontext(&scheduler, &fibers[current].context);
    }
    if (!progress) return fail("threads wait for others that never come");
  }
}

// Run a kernel; what went wrong first, or null.
inline const char* launch(const Launch& wanted, std::function<void()> kernel) {
  how = wanted;
  body = std::move(kernel);
  failure = nullptr;
  if (how.shared_bytes > sizeof shared) return "more shared memory than a block can have";
  if (how.threads > kMostThreads) return "more threads than a block can have";
  std::memset(shared, kNoise, sizeof shared);
  fibers = std::vector<Fiber>(how.threads);
  blockDim = {how.threads, 1, 1};
  gridDim = {how.grid_x, how.grid_y, 1};
  for (uint32_t y = 0; y < how.grid_y && !failure; ++y)
    for (uint32_t x = 0; x < how.grid_x && !failure; ++x) {
      blockIdx = {x, y, 0};
      run_block();
    }
  return failure;
}

}  // namespace emulated

inline void __syncthreads() {
  using namespace emulated;
  const uint32_t mine = ++fibers[current].barriers;
  wait_until([&] {
    return std::all_of(fibers.begin(), fibers.end(), [&](const Fiber& f) { return f.done || f.barriers >= mine; });
  });
}

// All lanes of a warp must come: the mask is taken to be full.
inline uint32_t __shfl_xor_sync(uint32_t, uint32_t value, uint32_t distance) {
  using namespace emulated;
  const uint32_t me = current, mine = ++fibers[me].shuffles;
  const uint32_t first = me / kWarp * kWarp, after = std::min<uint32_t>(first + kWarp, fibers.size());
  exchanged[mine % 2][me] = value;
  wait_until([&] {
    return std::all_of(
        &fibers[first], &fibers[first] + (after - first), [&](const Fiber& f) { return f.shuffles >= mine; });
  });
  return exchanged[mine % 2][me ^ distance];
}

inline void __pipeline_memcpy_async(void* to, const void* from, size_t size) {
  using namespace emulated;
  const Copy copy = {static_cast<uint8_t*>(to), static_cast<const uint8_t*>(from)};
  if (size != kPiece) return fail("a copy of another size than 16 bytes");
  if (!is_aligned(to) || !is_aligned(from)) return fail("a copy that is not aligned");
  if (!may_read(copy.from)) return fail("a copy from outside the frames");
  if (!is_shared(copy.to)) return fail("a copy to outside shared memory");
  std::memset(to, kNoise, kPiece);
  fibers[current].batches.back().push_back(copy);
}

inline void __pipeline_commit() { emulated::fibers[emulated::current].batches.emplace_back(); }

// Wait for all committed batches but the last `but`.
inline void __pipeline_wait_prior(size_t but) {
  auto& batches = emulated::fibers[emulated::current].batches;
  for (; batches.size() - 1 > but; batches.pop_front())
    for (const emulated::Copy& copy : batches.front()) std::memcpy(copy.to, copy.from, emulated::kPiece);
}

// Four bytes of the eight in `high`:`low`, chosen by the low three bits of each digit of `which`.
inline uint32_t __byte_perm(uint32_t low, uint32_t high, uint32_t which) {
  const uint64_t bytes = static_cast<uint64_t>(high) << 32 | low;
  uint32_t out = 0;
  for (int i = 0; i < 4; ++i) out |= static_cast<uint32_t>(bytes >> 8 * (which >> 4 * i & 7) & 0xff) << 8 * i;
  return out;
}

// Two 16-bit numbers times the two low or the two high bytes of `b`, added to `c`.
inline uint32_t __dp2a_lo(uint32_t a, uint32_t b, uint32_t c) {
  return c + (a & 0xffff) * (b & 0xff) + (a >> 16) * (b >> 8 & 0xff);
}

inline uint32_t __dp2a_hi(uint32_t a, uint32_t b, uint32_t c) { return __dp2a_lo(a, b >> 16, c); }
