// Device build of warp.cuh, loaded by cuda.py through the driver interface. `warp_tiles` is the kernel; `warp_any` is the plain
// one, for windows so large that a tile's source does not fit into shared memory.
//
// A block makes one tile of the output for several frames of one camera. It copies the tile's source into shared memory with
// 16-byte loads, the next frame's while it works on this one's, so every source byte leaves the memory about once. The weights
// are as many bytes as the pixels: they are read once and stay in registers from frame to frame.
//
// kLanes lanes share an output pixel. They take turns at items of 4 pixels in 2 rows, whose 8 weights are one uint4 (cuda.py
// packs them): each of its words holds a pixel's weight in the upper row and the one in the lower row, so a byte of the upper
// row beside the same byte of the lower row goes through one two-way dot product. Sums are integers: the order is free.
#include "warp.cuh"

#include <cuda_pipeline.h>

using warp::Pass;

#ifndef WARP_LANES
#define WARP_LANES 4
#endif
#ifndef WARP_STAGES
#define WARP_STAGES 2
#endif
#ifndef WARP_HELD
#define WARP_HELD 7
#endif
#ifndef WARP_BLOCKS
#define WARP_BLOCKS 3
#endif

namespace {
constexpr int kLanes = WARP_LANES;    // of one output pixel
constexpr int kStages = WARP_STAGES;  // frames of a tile in shared memory
constexpr int kHeld = WARP_HELD;      // items of a lane in registers; of larger windows the rest is read for every frame
constexpr int kMost = 256;            // threads of a block
static_assert(kLanes == 4 || kLanes == 8, "three lanes write one channel each");

// One camera and how its output is cut into tiles. Mirrored by `_Plan` in cuda.py, as are the next two.
struct Plan {
  const uint4* weights;    // [n][items]; an item is 4 pixels by 2 rows
  const uint32_t* offset;  // [n] bytes from the start of a staged tile to the window of an output pixel
  const uint32_t* total;   // [n] sum of the weights
  const int2* box;         // [tiles] first byte in a row and first row of a tile's source
  float scale[3], bias[3];
  int32_t format, type, src_h, dst_w, dst_h, tile_w, tile_h, groups, items;
  int32_t chunks, rows;  // a staged tile: rows of `chunks` times 16 bytes
};

struct Frame {
  const uint8_t* src;  // rows start at multiples of 16 bytes
  void* out;
  int32_t stride, camera;
};

struct Job {
  int32_t camera, first, count;  // frames [first, first + count)
};

__device__ __forceinline__ void store(int type, void* out, int64_t at, uint32_t sum, float scale, float bias) {
  const float value = warp::normalised(sum, scale, bias);
  if (type == warp::kUint8)
    static_cast<uint8_t*>(out)[at] = warp::rounded(sum);
  else if (type == warp::kFloat16)
    static_cast<uint16_t*>(out)[at] = warp::half_of(value);
  else if (type == warp::kInt8)
    static_cast<int8_t*>(out)[at] = warp::int8_of(value);
  else
    static_cast<float*>(out)[at] = value;
}

__device__ constexpr bool has_rgb(int format) { return format <= warp::kBgr; }

// Bytes of four pixels in a row, and staged rows of two picture rows: NV12 has its chroma row behind its two luma rows.
__device__ constexpr int unit(int format) { return has_rgb(format) ? 12 : format == warp::kYuyv ? 8 : 4; }
__device__ constexpr int rows_of_pair(int format) { return format == warp::kNv12 ? 3 : 2; }

__device__ __forceinline__ uint32_t word(const uint8_t* p) { return *reinterpret_cast<const uint32_t*>(p); }

// Two bytes of the upper word, each followed by the same byte of the lower one.
template <int kFirst, int kSecond>
__device__ __forceinline__ uint32_t beside(uint32_t upper, uint32_t lower) {
  return __byte_perm(upper, lower, kFirst | (kFirst + 4) << 4 | kSecond << 8 | (kSecond + 4) << 12);
}

// Add `first` times the low half of `bytes` to `a` and `second` times its high half to `b`.
__device__ __forceinline__ void add(uint32_t first, uint32_t second, uint32_t bytes, uint32_t& a, uint32_t& b) {
  a = __dp2a_lo(first, bytes, a);
  b = __dp2a_hi(second, bytes, b);
}

// Add one item to the sums of the three channels in memory order (R G B or B G R; Y U V).
template <int kFormat>
__device__ __forceinline__ void add_item(const uint8_t* p, int pitch, uint4 w, uint32_t sum[3]) {
  const uint8_t* q = p + pitch;
  if (has_rgb(kFormat)) {  // R0 G0 B0 R1 | G1 B1 R2 G2 | B2 R3 G3 B3
    const uint32_t u0 = word(p), u1 = word(p + 4), u2 = word(p + 8), l0 = word(q), l1 = word(q + 4), l2 = word(q + 8);
    add(w.x, w.y, beside<0, 3>(u0, l0), sum[0], sum[0]);
    add(w.x, w.x, beside<1, 2>(u0, l0), sum[1], sum[2]);
    add(w.y, w.z, beside<0, 3>(u1, l1), sum[1], sum[1]);
    add(w.y, w.z, beside<1, 2>(u1, l1), sum[2], sum[0]);
    add(w.z, w.w, beside<0, 3>(u2, l2), sum[2], sum[2]);
    add(w.w, w.w, beside<1, 2>(u2, l2), sum[0], sum[1]);
    return;
  }
  // U and V belong to two pixels. The weights of a window sum to 32768 at most: adding two words carries into neither half.
  const uint32_t left = w.x + w.y, right = w.z + w.w;
  if (kFormat == warp::kYuyv) {  // Y0 U Y1 V, twice
    const uint2 u = *reinterpret_cast<const uint2*>(p), l = *reinterpret_cast<const uint2*>(q);
    add(w.x, w.y, beside<0, 2>(u.x, l.x), sum[0], sum[0]);
    add(left, left, beside<1, 3>(u.x, l.x), sum[1], sum[2]);
    add(w.z, w.w, beside<0, 2>(u.y, l.y), sum[0], sum[0]);
    add(right, right, beside<1, 3>(u.y, l.y), sum[1], sum[2]);
  } else {  // four Y in each row, U V U V for both
    const uint32_t u = word(p), l = word(q), chroma = word(q + pitch);
    add(w.x, w.y, beside<0, 1>(u, l), sum[0], sum[0]);
    add(w.z, w.w, beside<2, 3>(u, l), sum[0], sum[0]);
    add(left, left, beside<0, 1>(chroma, chroma), sum[1], sum[2]);
    add(right, right, beside<2, 3>(chroma, chroma), sum[1], sum[2]);
  }
}

// Start copying a tile's source. Rows below the picture have no weight: any row will do.
template <int kFormat>
__device__ __forceinline__ void stage(const Plan& plan, int2 box, const Frame& frame, uint8_t* to) {
  const int more_rows = blockDim.x / plan.chunks, more_columns = blockDim.x % plan.chunks;
  int row = threadIdx.x / plan.chunks, column = threadIdx.x % plan.chunks;
  for (int chunk = threadIdx.x; row < plan.rows; chunk += blockDim.x) {
    int y = box.y + row;
    if (kFormat == warp::kNv12) {
      const int pair = row / 3, part = row % 3;
      y = part < 2 ? min(box.y + 2 * pair + part, plan.src_h - 1) : plan.src_h + min(box.y / 2 + pair, plan.src_h / 2 - 1);
    } else {
      y = min(y, plan.src_h - 1);
    }
    __pipeline_memcpy_async(to + 16 * chunk, frame.src + static_cast<int64_t>(y) * frame.stride + box.x + 16 * column, 16);
    row += more_rows;
    column += more_columns;
    if (column >= plan.chunks) {
      column -= plan.chunks;
      ++row;
    }
  }
}

template <int kFormat>
__device__ __forceinline__ void run(const Plan& plan, const Frame* frames, int count) {
  extern __shared__ uint4 shared[];
  uint8_t* const tiles = reinterpret_cast<uint8_t*>(shared);
  const int across = (plan.dst_w + plan.tile_w - 1) / plan.tile_w, down = (plan.dst_h + plan.tile_h - 1) / plan.tile_h;
  if (blockIdx.x >= across * down) return;
  const int2 box = plan.box[blockIdx.x];
  const int pitch = 16 * plan.chunks, size = pitch * plan.rows;
  for (int s = 0; s < kStages - 1; ++s) {
    if (s < count) stage<kFormat>(plan, box, frames[s], tiles + s * size);
    __pipeline_commit();
  }

  // Lanes beyond the output's edge repeat its last pixel and write nothing.
  const int lane = threadIdx.x % kLanes, place = threadIdx.x / kLanes;
  const int u = blockIdx.x % across * plan.tile_w + place % plan.tile_w;
  const int v = blockIdx.x / across * plan.tile_h + place / plan.tile_w;
  const bool writes = u < plan.dst_w && v < plan.dst_h && lane < 3;
  const int i = min(v, plan.dst_h - 1) * plan.dst_w + min(u, plan.dst_w - 1);
  const uint4* const weights = plan.weights + static_cast<int64_t>(i) * plan.items;
  const uint32_t offset = plan.offset[i], total = plan.total[i];
  const float scale = plan.scale[min(lane, 2)], bias = plan.bias[min(lane, 2)];
  const auto place_of = [&](int item) {
    return offset + item / plan.groups * rows_of_pair(kFormat) * pitch + item % plan.groups * unit(kFormat);
  };
  uint4 held[kHeld];
  uint32_t at[kHeld];
#pragma unroll
  for (int k = 0; k < kHeld; ++k) {
    const int item = lane + k * kLanes;
    held[k] = item < plan.items ? weights[item] : make_uint4(0, 0, 0, 0);
    at[k] = item < plan.items ? place_of(item) : offset;
  }
  const int steps = (plan.items + kLanes - 1) / kLanes;

  for (int f = 0; f < count; ++f) {
    __pipeline_wait_prior(kStages - 2);
    __syncthreads();  // this frame has arrived, and nobody reads the one before it any more
    const int next = f + kStages - 1;
    if (next < count) stage<kFormat>(plan, box, frames[next], tiles + next % kStages * size);
    __pipeline_commit();
    const uint8_t* const tile = tiles + f % kStages * size;
    uint32_t sum[3] = {};
#pragma unroll
    for (int k = 0; k < kHeld; ++k)
      if (k < steps) add_item<kFormat>(tile + at[k], pitch, held[k], sum);
    for (int item = lane + kHeld * kLanes; item < plan.items; item += kLanes)
      add_item<kFormat>(tile + place_of(item), pitch, weights[item], sum);
#pragma unroll
    for (int distance = 1; distance < kLanes; distance *= 2)
#pragma unroll
      for (int c = 0; c < 3; ++c) sum[c] += __shfl_xor_sync(0xffffffffu, sum[c], distance);
    if (!has_rgb(kFormat)) warp::rgb_of(sum[0], sum[1], sum[2], total, sum);
    const uint32_t mine = lane == 1 ? sum[1] : (lane == 0) == (plan.format != warp::kBgr) ? sum[0] : sum[2];
    const int64_t plane = plan.dst_w * plan.dst_h;
    if (writes) store(plan.type, frames[f].out, lane * plane + i, mine, scale, bias);
  }
}
}  // namespace

// Grid: tiles of the camera with most of them, jobs. Block: kLanes threads an output pixel of a tile.
extern "C" __global__ void __launch_bounds__(kMost, WARP_BLOCKS) warp_tiles(const Plan* plans, const Frame* frames, const Job* jobs) {
  const Job job = jobs[blockIdx.y];
  const Plan& plan = plans[job.camera];
  if (plan.format == warp::kYuyv)
    run<warp::kYuyv>(plan, frames + job.first, job.count);
  else if (plan.format == warp::kNv12)
    run<warp::kNv12>(plan, frames + job.first, job.count);
  else
    run<warp::kRgb>(plan, frames + job.first, job.count);
}

// Grid: output pixels, frames. One thread an output pixel.
extern "C" __global__ void warp_any(const Pass* passes, const Frame* frames) {
  const Frame frame = frames[blockIdx.y];
  const Pass& pass = passes[frame.camera];
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= pass.n) return;
  uint32_t sum[3];
  warp::pixel(pass, frame.src, frame.stride, i, sum);
  for (int c = 0; c < 3; ++c) store(pass.type, frame.out, static_cast<int64_t>(c) * pass.n + i, sum[c], pass.scale[c], pass.bias[c]);
}
