// Device build of warp.cuh: one thread an output pixel, one block row a frame. Loaded by cuda.py through the driver interface.
#include "warp.cuh"

using warp::Pass;

namespace {
template <class Out, class Write>
__device__ void store(const Pass& pass, const uint32_t sum[3], int i, Write write, Out* out) {
  for (int c = 0; c < 3; ++c) out[static_cast<int64_t>(c) * pass.n + i] = write(sum[c], c);
}
}  // namespace

// `passes`, `src`, `stride` and `out` have one entry a frame (blockIdx.y). Frames of one camera share a table.
extern "C" __global__ void warp_frames(const Pass* passes, const uint8_t* const* src, const int* stride, void* const* out) {
  const Pass pass = passes[blockIdx.y];
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= pass.n) return;
  uint32_t sum[3];
  warp::pixel(pass, src[blockIdx.y], stride[blockIdx.y], i, sum);
  const auto value = [&pass](uint32_t s, int c) { return warp::normalised(s, pass.scale[c], pass.bias[c]); };
  switch (pass.type) {
    case warp::kUint8:
      return store(pass, sum, i, [](uint32_t s, int) { return warp::rounded(s); }, static_cast<uint8_t*>(out[blockIdx.y]));
    case warp::kFloat16:
      return store(pass, sum, i, [&](uint32_t s, int c) { return warp::half_of(value(s, c)); }, static_cast<uint16_t*>(out[blockIdx.y]));
    case warp::kInt8:
      return store(pass, sum, i, [&](uint32_t s, int c) { return warp::int8_of(value(s, c)); }, static_cast<int8_t*>(out[blockIdx.y]));
    default:
      return store(pass, sum, i, value, static_cast<float*>(out[blockIdx.y]));
  }
}
