// Host build of warp.cuh: the footprint table and the pass over one frame. Plain C interface for ctypes.
#include "warp.cuh"

#include <algorithm>
#include <cmath>
#include <vector>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

using warp::Geometry;

using warp::Pass;

namespace {
constexpr int kSamples = 16;  // sub-samples a side: the integral over an output pixel's footprint

struct Tap {
  int x, y;
  double weight;
};

// All bilinear taps of one output pixel, merged. Samples that fall outside the source count as black.
void taps_of(const Geometry& g, int u, int v, int width, int height, int stride, std::vector<Tap>& taps) {
  taps.clear();
  for (int j = 0; j < kSamples; j += stride)
    for (int i = 0; i < kSamples; i += stride) {
      double x, y;
      bool front;
      warp::source_of(g, u + (i + 0.5) / kSamples - 0.5, v + (j + 0.5) / kSamples - 0.5, &x, &y, &front);
      if (!front || !(x > -1 && y > -1 && x < width && y < height)) continue;
      const int ix = static_cast<int>(std::floor(x)), iy = static_cast<int>(std::floor(y));
      const double fx = x - ix, fy = y - iy;
      const double w[4] = {(1 - fx) * (1 - fy), fx * (1 - fy), (1 - fx) * fy, fx * fy};
      for (int k = 0; k < 4; ++k) {
        const int px = std::min(std::max(ix + (k & 1), 0), width - 1), py = std::min(std::max(iy + (k >> 1), 0), height - 1);
        if (w[k] > 0) taps.push_back({px, py, w[k] / (kSamples * kSamples)});
      }
    }
}

void bounds(const std::vector<Tap>& taps, int* x0, int* y0, int* x1, int* y1) {
  *x0 = *y0 = 1 << 30;
  *x1 = *y1 = -1;
  for (const Tap& t : taps) {
    *x0 = std::min(*x0, t.x);
    *y0 = std::min(*y0, t.y);
    *x1 = std::max(*x1, t.x);
    *y1 = std::max(*y1, t.y);
  }
}
// Sum of one window, the same integers as warp::gather, from packed weights; channels in the source's order.
// It reads whole groups of four pixels and four bytes more: see `roomy`. Two rows go through one multiply-add.
inline void gather_packed(const uint8_t* p, int stride, int groups, int kh, const int16_t* w, uint32_t sum[3]) {
#ifdef __SSE2__
  const __m128i zero = _mm_setzero_si128();
  __m128i a = zero, b = zero, c = zero;  // 12 lanes: channels 0 1 2 0 | 1 2 0 1 | 2 0 1 2
  for (int j = 0; j < kh; j += 2) {
    const uint8_t* upper = p + static_cast<int64_t>(j) * stride;
    const uint8_t* lower = j + 1 < kh ? upper + stride : upper;  // its weights are zero then
    for (int g = 0; g < groups; ++g, w += 24) {
      const __m128i u = _mm_loadu_si128(reinterpret_cast<const __m128i*>(upper + 12 * g));
      const __m128i l = _mm_loadu_si128(reinterpret_cast<const __m128i*>(lower + 12 * g));
      const __m128i low = _mm_unpacklo_epi8(u, l), high = _mm_unpackhi_epi8(u, l);
      const __m128i* q = reinterpret_cast<const __m128i*>(w);
      a = _mm_add_epi32(a, _mm_madd_epi16(_mm_unpacklo_epi8(low, zero), _mm_loadu_si128(q)));
      b = _mm_add_epi32(b, _mm_madd_epi16(_mm_unpackhi_epi8(low, zero), _mm_loadu_si128(q + 1)));
      c = _mm_add_epi32(c, _mm_madd_epi16(_mm_unpacklo_epi8(high, zero), _mm_loadu_si128(q + 2)));
    }
  }
  // Add the four pixels: lanes 0-2, 3-5, 6-8 and 9-11.
  const __m128i second = _mm_or_si128(_mm_srli_si128(a, 12), _mm_slli_si128(b, 4));
  const __m128i third = _mm_or_si128(_mm_srli_si128(b, 8), _mm_slli_si128(c, 8));
  const __m128i total = _mm_add_epi32(_mm_add_epi32(a, second), _mm_add_epi32(third, _mm_srli_si128(c, 4)));
  alignas(16) uint32_t lanes[4];
  _mm_store_si128(reinterpret_cast<__m128i*>(lanes), total);
  for (int k = 0; k < 3; ++k) sum[k] = lanes[k];
#else
  uint32_t lanes[12] = {};
  for (int j = 0; j < kh; j += 2) {
    const uint8_t* upper = p + static_cast<int64_t>(j) * stride;
    const uint8_t* lower = j + 1 < kh ? upper + stride : upper;
    for (int g = 0; g < groups; ++g, w += 24)
      for (int k = 0; k < 12; ++k) lanes[k] += static_cast<uint32_t>(w[2 * k] * upper[12 * g + k] + w[2 * k + 1] * lower[12 * g + k]);
  }
  for (int k = 0; k < 3; ++k) sum[k] = lanes[k] + lanes[k + 3] + lanes[k + 6] + lanes[k + 9];
#endif
}

// One frame. `write(sum, channel)` makes the output value: another output type is another `write`.
template <class Out, class Write>
void run(const Pass& pass, const uint8_t* src, int stride, Write write, Out* out) {
  constexpr int kBlock = 64;
  const int groups = (pass.kw + 3) / 4;
  const int packed_window = groups * 24 * ((pass.kh + 1) / 2);
  const int first = pass.format == warp::kBgr ? 2 : 0, last = 2 - first;
  const bool packed = pass.packed && pass.format <= warp::kBgr;
  uint32_t sums[3][kBlock];
  for (int i0 = 0; i0 < pass.n; i0 += kBlock) {
    const int count = std::min(kBlock, pass.n - i0);
    for (int k = 0; k < count; ++k) {
      const int i = i0 + k, x0 = pass.origin[2 * i], y0 = pass.origin[2 * i + 1];
      // Reading past a row's end is harmless (weight zero) unless it is the last row.
      const bool roomy = y0 + pass.kh < pass.src_h || 3 * x0 + 12 * groups + 4 <= 3 * pass.src_w;
      uint32_t sum[3], column[3];
      if (packed && roomy) {
        gather_packed(src + static_cast<int64_t>(y0) * stride + 3 * x0, stride, groups, pass.kh,
                      pass.packed + static_cast<int64_t>(i) * packed_window, sum);
        column[0] = sum[first];
        column[1] = sum[1];
        column[2] = sum[last];
      } else {
        warp::pixel(pass, src, stride, i, sum);
        std::copy(sum, sum + 3, column);
      }
      for (int c = 0; c < 3; ++c) sums[c][k] = column[c];
    }
    for (int c = 0; c < 3; ++c)
      for (int k = 0; k < count; ++k) out[static_cast<int64_t>(c) * pass.n + i0 + k] = write(sums[c][k], c);
  }
}
}  // namespace

extern "C" {

// Window size that holds the footprints, by their corners and two lines across (`full`: by every sample).
void warp_window(const Geometry* g, int src_w, int src_h, int dst_w, int dst_h, int full, int* kw, int* kh) {
  std::vector<Tap> taps;
  *kw = *kh = 1;
  for (int v = 0; v < dst_h; ++v)
    for (int u = 0; u < dst_w; ++u) {
      taps_of(*g, u, v, src_w, src_h, full ? 1 : 5, taps);
      if (taps.empty()) continue;
      int x0, y0, x1, y1;
      bounds(taps, &x0, &y0, &x1, &y1);
      *kw = std::max(*kw, x1 - x0 + 1);
      *kh = std::max(*kh, y1 - y0 + 1);
    }
}

// Fill origin int32[dst_h*dst_w][2] and weights uint16[dst_h*dst_w][kh*kw]; returns the share of footprints inside the source,
// or -1 when a footprint does not fit into the window.
double warp_table(const Geometry* g, int src_w, int src_h, int dst_w, int dst_h, int kw, int kh, int32_t* origin, uint16_t* weights) {
  std::vector<Tap> taps;
  std::vector<double> window(kw * kh);
  double covered = 0;
  for (int n = 0; n < dst_w * dst_h; ++n) {
    taps_of(*g, n % dst_w, n / dst_w, src_w, src_h, 1, taps);
    int x0 = 0, y0 = 0, x1 = 0, y1 = 0;
    if (!taps.empty()) bounds(taps, &x0, &y0, &x1, &y1);
    if (x1 - x0 >= kw || y1 - y0 >= kh) return -1;
    x0 = std::min(x0, src_w - kw);
    y0 = std::min(y0, src_h - kh);
    origin[2 * n] = x0;
    origin[2 * n + 1] = y0;
    std::fill(window.begin(), window.end(), 0.0);
    double total = 0;
    for (const Tap& t : taps) {
      window[(t.y - y0) * kw + t.x - x0] += t.weight;
      total += t.weight;
    }
    covered += total;
    // Round so that the weights of a fully seen pixel sum to exactly one: a flat picture stays flat.
    int sum = 0, largest = 0;
    uint16_t* out = weights + static_cast<int64_t>(n) * kw * kh;
    for (int k = 0; k < kw * kh; ++k) {
      out[k] = static_cast<uint16_t>(std::lround(window[k] * (1 << warp::kWeightBits)));
      sum += out[k];
      if (out[k] > out[largest]) largest = k;
    }
    const int want = static_cast<int>(std::lround(total * (1 << warp::kWeightBits)));
    out[largest] = static_cast<uint16_t>(out[largest] + want - sum);
  }
  return covered / (static_cast<double>(dst_w) * dst_h);
}

// Spread a table's weights for the vector pass: signed 16 bit, once for each channel, two window rows interleaved, pixels in
// groups of four. Returns 0 when a weight does not fit (a lone source pixel that weighs one; only when magnifying).
int warp_pack(int n, int kw, int kh, const uint16_t* weights, int16_t* packed) {
  const int groups = (kw + 3) / 4, pairs = (kh + 1) / 2;
  for (int i = 0; i < n; ++i, weights += kw * kh)
    for (int pair = 0; pair < pairs; ++pair)
      for (int k = 0; k < groups * 12; ++k)
        for (int half = 0; half < 2; ++half) {
          const int x = k / 3, y = 2 * pair + half;
          const int w = x < kw && y < kh ? weights[y * kw + x] : 0;
          if (w > INT16_MAX) return 0;
          *packed++ = static_cast<int16_t>(w);
        }
  return 1;
}

void warp_run(const Pass* pass, const uint8_t* src, int stride, void* out) {
  const auto value = [pass](uint32_t sum, int c) { return warp::normalised(sum, pass->scale[c], pass->bias[c]); };
  switch (pass->type) {
    case warp::kUint8:
      return run(*pass, src, stride, [](uint32_t sum, int) { return warp::rounded(sum); }, static_cast<uint8_t*>(out));
    case warp::kFloat16:
      return run(*pass, src, stride, [value](uint32_t sum, int c) { return warp::half_of(value(sum, c)); }, static_cast<uint16_t*>(out));
    case warp::kInt8:
      return run(*pass, src, stride, [value](uint32_t sum, int c) { return warp::int8_of(value(sum, c)); }, static_cast<int8_t*>(out));
    default:
      return run(*pass, src, stride, value, static_cast<float*>(out));
  }
}

// Several cameras in one call.
void warp_run_all(int count, const Pass* const* passes, const uint8_t* const* src, const int* stride, void* const* out) {
  for (int i = 0; i < count; ++i) warp_run(passes[i], src[i], stride[i], out[i]);
}
}
