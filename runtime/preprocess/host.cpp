// Host build of warp.cuh: the footprint table and the pass over one frame. Plain C interface for ctypes.
#include "warp.cuh"

#include <algorithm>
#include <cmath>
#include <vector>

using warp::Geometry;

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

void warp_float(const uint8_t* src, int stride, int n, int kw, int kh, const int32_t* origin, const uint16_t* weights, int bgr,
                const float* scale, const float* bias, float* out) {
  for (int i = 0; i < n; ++i) {
    uint32_t sum[3];
    warp::gather(src, stride, origin[2 * i], origin[2 * i + 1], kw, kh, weights + static_cast<int64_t>(i) * kw * kh, bgr, sum);
    for (int c = 0; c < 3; ++c) out[c * n + i] = warp::normalised(sum[c], scale[c], bias[c]);
  }
}

void warp_uint8(const uint8_t* src, int stride, int n, int kw, int kh, const int32_t* origin, const uint16_t* weights, int bgr, uint8_t* out) {
  for (int i = 0; i < n; ++i) {
    uint32_t sum[3];
    warp::gather(src, stride, origin[2 * i], origin[2 * i + 1], kw, kh, weights + static_cast<int64_t>(i) * kw * kh, bgr, sum);
    for (int c = 0; c < 3; ++c) out[c * n + i] = warp::rounded(sum[c]);
  }
}
}
